"""A verification that is shared: one task holds the exported snapshot, others read its ranges on any worker.

All that passes between them is in the target database. A range is its reader's by a row lock, so that the range of a
killed reader is free at once, and what it had found so far was never written. The snapshot ends with the session of
its holder; joining it again for each range says at once that it is gone.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass

import psycopg
from psycopg.types.json import Jsonb

from payme_ops.foundation.errors import NotFound, PaymeOpsError
from payme_ops.foundation.postgres import speaking
from payme_ops.foundation.progress import Progress, Report, rows
from payme_ops.migration import readers, state, verify
from payme_ops.migration.desk import MigrationDesk
from payme_ops.migration.envelope import Keys
from payme_ops.migration.names import statement
from payme_ops.migration.readers import Layout
from payme_ops.migration.verify import Seen, Snapshot, Span, Verified

PATIENCE_SECONDS = 1800.0  # without an answer: there is no reader
_LOOK_EVERY_SECONDS = 1.0
_REMEDY = "clear plan_reading with what follows it: hold_snapshot, read_snapshot, verify_all"


@dataclass(frozen=True)
class Shared:
    """A snapshot that a run shares: ranges without an answer, rows with one, time to the last answer."""

    seen: Seen
    left: int
    rows: int
    seconds: float


def forget(desk: MigrationDesk) -> None:
    """Begin anew: what was read so far does not count. Raises NotFound, DatabaseUnavailable, DatabaseError."""
    state.ensure(desk)
    with _session(desk) as connection:
        _forget(connection, desk)


def hold(desk: MigrationDesk, report: Report) -> None:
    """Hold a snapshot until readers have answered for every range of it; nothing is done when they have.

    Run again after anything: it is a new snapshot then, and what was read of another does not count. Raises
    PaymeOpsError when nobody answers, UnexpectedSchema, DatabaseUnavailable, DatabaseError.
    """
    state.ensure(desk)
    with _session(desk) as connection:
        before = _look(connection, desk)
        if before and not before.left:
            report(f"every range of snapshot {before.seen.id} is answered")
            return
        with verify.hold_snapshot(desk) as held:
            _share(connection, desk, held)
            report(f"snapshot {held.id} is held")
            _wait(connection, desk, held, report)


def read(desk: MigrationDesk, keys: Keys, label: str, report: Report) -> bool:
    """Read and judge ranges of the snapshot that this run shares, until none is free; whether all are answered.

    False as well while there is no snapshot: ask again later. Raises Unavailable when it is gone, DatabaseUnavailable,
    DatabaseError.
    """
    with _session(desk) as connection:
        shared = _look(connection, desk)
        if shared and shared.left:
            progress = Progress(f"{label}, snapshot {shared.seen.id}", report=report, show=rows)
            with readers.reading(desk.target) as reading:
                while span := _read_one(connection, reading, desk, keys, shared.seen):
                    progress.add(span.rows)
            progress.finish()
            shared = _look(connection, desk)
    if shared is None:
        report("no snapshot is held yet")
    elif shared.left:
        report(f"{shared.left} ranges are read by others")
    return shared is not None and not shared.left


def result(desk: MigrationDesk) -> Verified:
    """What the readers of this run's snapshot found. Raises NotFound without it or an answer, IntegrityError for an
    answer that is not of it, DatabaseUnavailable, DatabaseError."""
    with _session(desk) as connection:
        shared = _look(connection, desk)
        if shared is None or shared.left:
            raise NotFound(
                "the rows were not all read",
                expected="a snapshot of this run, with an answer for each of its ranges",
                found=f"{shared.left} ranges without one" if shared else "no snapshot",
                remedy=_REMEDY,
            )
        values = {"subject": state.subject(desk.names), "snapshot": shared.seen.id}
        answers = connection.execute(statement(desk.names, "4_answers.sql"), values).fetchall()
    parts = [(Span(low, high, count), readers.part_of(part)) for low, high, count, part in answers]
    return verify.combine(shared.seen, parts, seconds=shared.seconds)


@contextmanager
def _session(desk: MigrationDesk) -> Iterator[psycopg.Connection]:
    with readers.patient(desk.target) as connection, speaking("share a verification"):
        yield connection


def _look(connection: psycopg.Connection, desk: MigrationDesk) -> Shared | None:
    values = {"subject": state.subject(desk.names), "run": desk.run}
    row = connection.execute(statement(desk.names, "4_shared_snapshot.sql"), values).fetchone()
    if row is None:
        return None
    layout, *seen, left, answered, seconds = row
    return Shared(Seen(Layout(**layout), *seen), left, answered, seconds)


def _forget(connection: psycopg.Connection, desk: MigrationDesk) -> None:
    connection.execute(statement(desk.names, "4_forget_snapshot.sql"), {"subject": state.subject(desk.names)})


def _share(connection: psycopg.Connection, desk: MigrationDesk, held: Snapshot) -> None:
    cut = list(verify.spans(held))
    values = {
        "subject": state.subject(desk.names),
        "run": desk.run,
        **{name: getattr(held, name) for name in ("id", "point", "lsn", "last", "rows_estimated")},
        "layout": Jsonb(asdict(held.layout)),
        "lows": [span.low for span in cut],
        "highs": [span.high for span in cut],
        "counts": [span.rows for span in cut],
    }
    with connection.transaction():
        _forget(connection, desk)
        connection.execute(statement(desk.names, "4_share_snapshot.sql"), values)


def _wait(connection: psycopg.Connection, desk: MigrationDesk, held: Snapshot, report: Report) -> None:
    progress, news = Progress("verify", total=held.rows_estimated, report=report, show=rows), time.monotonic()
    while True:
        held.connection.execute("SELECT")  # raises when this session, and with it the snapshot, is gone
        shared = _look(connection, desk)
        if shared is None or shared.seen.id != held.id:
            raise PaymeOpsError(
                f"the snapshot {held.id} is not this run's any more",
                expected="one task that holds a snapshot",
                found=f"snapshot {shared.seen.id}" if shared else "none",
                remedy=f"somebody began anew meanwhile; if that was not intended, {_REMEDY}",
            )
        gained = shared.rows - progress.done
        progress.add(gained, slowed="" if shared.rows else "no reader has answered yet")
        if not shared.left:
            progress.finish()
            return
        if gained:
            news = time.monotonic()
        if time.monotonic() - news > PATIENCE_SECONDS:
            raise PaymeOpsError(
                "nobody reads the snapshot that is held",
                expected=f"an answer of read_snapshot every {PATIENCE_SECONDS / 60:.0f} minutes",
                found=f"none after {rows(shared.rows)}; {shared.left} ranges are left",
                remedy="see why read_snapshot does not run (it failed, or queue migration has no slot beside this"
                f" task's), or what locks the table; then {_REMEDY}",
            )
        time.sleep(_LOOK_EVERY_SECONDS)


def _read_one(
    connection: psycopg.Connection, reading: psycopg.Connection, desk: MigrationDesk, keys: Keys, seen: Seen
) -> Span | None:
    """A range that was free and is answered now; None when none is free."""
    values = {"subject": state.subject(desk.names), "snapshot": seen.id}
    with connection.transaction():
        row = connection.execute(statement(desk.names, "4_claim_span.sql"), values).fetchone()
        if row is None:
            return None
        span = Span(*row)
        with readers.under(reading, seen.id) as session:
            part = readers.read_range(session, keys, desk.names, seen.layout, span.low, span.high)
        answer = {**values, "low": span.low, "part": Jsonb(asdict(part))}
        connection.execute(statement(desk.names, "4_answer_span.sql"), answer)
    return span
