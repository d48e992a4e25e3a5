"""Pause, resume and abort of a backfill, by a row in the target database that it reads before every batch."""

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum

import psycopg

from payme_ops.foundation.clock import show
from payme_ops.foundation.errors import Aborted, SettingsError
from payme_ops.foundation.postgres import speaking
from payme_ops.migration import state
from payme_ops.migration.desk import MigrationDesk, session
from payme_ops.migration.names import STATE_SCHEMA, Names, statement

_SHORTEST_REASON = 10


class Word(StrEnum):
    """What may be said to a backfill."""

    RUN = "run"
    PAUSE = "pause"
    ABORT = "abort"


@dataclass(frozen=True)
class Said:
    """The word that holds, by whom, since when and why."""

    word: Word
    reason: str
    by: str
    at: datetime

    def __str__(self) -> str:
        return f"{self.word} by {self.by} since {show(self.at)}: {self.reason}"


@dataclass(frozen=True)
class PassDone:
    """How far a pass over the table has come."""

    work: str
    number: int
    ranges: int
    ended: int
    rows: int
    written: int
    refused: int


@dataclass(frozen=True)
class Status:
    """The word that holds (None: nobody has said anything, it may run), and the passes so far."""

    said: Said | None
    passes: list[PassDone]


def pause(desk: MigrationDesk, *, reason: str) -> None:
    """Let every backfill of this column wait after its batch, until `resume`. Raises SettingsError without a reason."""
    _say(desk, Word.PAUSE, reason)


def resume(desk: MigrationDesk, *, reason: str) -> None:
    """Let it go on, or run again after an abort. Raises SettingsError without a reason."""
    _say(desk, Word.RUN, reason)


def abort(desk: MigrationDesk, *, reason: str) -> None:
    """End every backfill of this column after its batch; what is committed stays. Raises SettingsError."""
    _say(desk, Word.ABORT, reason)


def _say(desk: MigrationDesk, word: Word, reason: str) -> None:
    if len(reason.strip()) < _SHORTEST_REASON:
        raise SettingsError("the reason says nothing", expected="a sentence of why", found=repr(reason))
    state.ensure(desk)
    values = {"subject": state.subject(desk.names), "word": word, "reason": reason.strip(), "said_by": desk.run}
    with session(desk, "control") as connection, speaking("tell the backfill"):
        connection.execute(statement(desk.names, "3_say.sql"), values)


def status(desk: MigrationDesk) -> Status:
    """What was said, and how far the passes are. Raises DatabaseError, DatabaseUnavailable."""
    with session(desk, "control") as connection, speaking("look at the backfill"):
        if not connection.execute("SELECT FROM pg_namespace WHERE nspname = %s", [STATE_SCHEMA]).rowcount:
            return Status(None, [])
        rows = connection.execute(statement(desk.names, "3_passes.sql"), [state.subject(desk.names)]).fetchall()
        return Status(_said(connection, desk.names), [PassDone(*row) for row in rows])


def waits(connection: psycopg.Connection, names: Names) -> str:
    """Why the backfill has to wait; empty when it may go on. Raises Aborted, psycopg.Error."""
    said = _said(connection, names)
    if said is None or said.word is Word.RUN:
        return ""
    if said.word is Word.ABORT:
        raise Aborted(
            "the backfill was told to end",
            expected="to run to its end",
            found=str(said),
            remedy="resume it, then run it again: it goes on where it was",
        )
    return str(said)


def _said(connection: psycopg.Connection, names: Names) -> Said | None:
    row = connection.execute(statement(names, "3_said.sql"), [state.subject(names)]).fetchone()
    return Said(Word(row[0]), *row[1:]) if row else None
