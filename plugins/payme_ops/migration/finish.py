"""Step 3's end, when a pass of the backfill has found nothing: the index, and the checks that keep it so."""

from typing import Any

import psycopg
from psycopg import sql

from payme_ops.foundation.errors import DatabaseError, GateClosed, UnexpectedSchema
from payme_ops.foundation.evidence import Check, Finding, failed, passed
from payme_ops.foundation.postgres import speaking
from payme_ops.foundation.progress import Report
from payme_ops.migration.ddl import build_index, drop_index, validate, with_lock_budget
from payme_ops.migration.desk import MigrationDesk, session
from payme_ops.migration.names import statement
from payme_ops.migration.shape import Stage, inspect, look, reached, require, source

_UNIQUE_VIOLATION, _CHECK_VIOLATION = "23505", "23514"


def do_finish(desk: MigrationDesk, report: Report) -> dict[str, Any]:
    """Build the index (UNIQUE if the plaintext is), validate the format check, add and validate the complete check.

    Only when every version that is connected writes the ciphertext: from the complete check on, a row that lacks it
    cannot be updated. Raises GateClosed naming rows that lack one or share a number, UnexpectedSchema, LockBudgetSpent,
    LeaseHeld.
    """
    names = desk.names
    before = look(desk)
    require(before, names, Stage.EXPANDED)
    if before.reached(Stage.BACKFILLED):
        report(f"{names.title} is {before.stage} already")
        return {"changed": False}
    _require_no_fault(_missing(desk), "rows lack their ciphertext", "run the backfill until a pass finds nothing")
    unique = before.unique_plaintext
    _build(desk, unique=unique, report=report)
    validate(desk, names.made["format_check"])
    add_complete(desk)
    try:
        validate(desk, names.made["complete_check"])
    except DatabaseError as error:
        if error.sqlstate != _CHECK_VIOLATION:
            raise
        drop = sql.SQL("ALTER TABLE {relation} DROP CONSTRAINT IF EXISTS {complete_check}").format(**names.identifiers)
        with_lock_budget(desk, "undo complete check", lambda connection: connection.execute(drop))
        _require_no_fault(_missing(desk), "rows lack their ciphertext", "an old version writes: see the fleet gate")
        raise
    report(f"{names.title} is indexed and checked")
    return {"changed": True, "unique": unique}


def _build(desk: MigrationDesk, *, unique: bool, report: Report) -> None:
    names = desk.names
    create = statement(names, "3_index.sql", unique=sql.SQL("UNIQUE" if unique else ""))
    if unique:
        _require_no_fault(duplicates(desk, names.blind_index), *_DUPLICATES)
    try:
        build_index(desk, names.made["index"], create, report=report)
    except DatabaseError as error:
        if error.sqlstate == _UNIQUE_VIOLATION:  # written since we looked
            _require_no_fault(duplicates(desk, names.blind_index), *_DUPLICATES)
        raise
    if (found := look(desk)).unique_index != unique:
        raise UnexpectedSchema(
            f"the index of {names.title}.{names.blind_index} is not as the plaintext's",
            expected="a UNIQUE one" if unique else "one that is not UNIQUE",
            found="a UNIQUE one" if found.unique_index else "one that is not UNIQUE",
            remedy="undo this step, then run it again",
        )


_DUPLICATES = (
    "rows share a number, written in different ways",
    "let support merge those users; an index over both fails",
)


def add_complete(desk: MigrationDesk) -> None:
    """Add the check that no number is without its ciphertext, unless it is there; `validate` comes after."""

    def work(connection: psycopg.Connection) -> None:
        if inspect(connection, desk.names).complete_check is None:
            connection.execute(statement(desk.names, "3_complete.sql"))

    with_lock_budget(desk, "complete check", work)


def undo_finish(desk: MigrationDesk, report: Report) -> dict[str, Any]:
    """Drop the complete check and the index; the format check is one for new rows again.

    Raises UnexpectedSchema once the plaintext is relaxed (undo that first), LockBudgetSpent, LeaseHeld.
    """
    names = desk.names

    def work(connection: psycopg.Connection) -> bool:
        shape = inspect(connection, names)
        require(shape, names, Stage.START, before=Stage.RELAXED)
        if shape.complete_check is None and shape.format_check != "valid":
            return False
        connection.execute(statement(names, "3_undo_finish.sql"))
        return True

    unchecked = with_lock_budget(desk, "undo finish", work)
    dropped = drop_index(desk, names.made["index"], report=report)
    report(f"{names.title} has no index and no check over its ciphertexts")
    return {"changed": unchecked or dropped}


def checks_before_finish(desk: MigrationDesk) -> list[Check]:
    """Whether every number has its ciphertext, and each number one row."""

    def missing() -> Finding:
        count, ids = _missing(desk)
        found = {"rows": count, "ids": ids}
        return failed(found, "run the backfill until a pass finds nothing") if count else passed(found)

    def shared() -> Finding:
        if not look(desk).unique_plaintext:
            return passed({"unique": False})
        count, ids = duplicates(desk, desk.names.blind_index)
        found = {"unique": True, "numbers": count, "ids": ids}
        return failed(found, _DUPLICATES[1]) if count else passed(found)

    return [
        reached(desk, "expanded", Stage.EXPANDED),
        Check("finish_missing", "every number has its ciphertext", source(desk), missing),
        Check("finish_duplicates", "no number twice, if the plaintext is unique", source(desk), shared),
    ]


def checks_after_finish(desk: MigrationDesk) -> list[Check]:
    """Whether index and checks are valid."""
    return [reached(desk, "finished", Stage.BACKFILLED)]


Faults = tuple[int, list[Any]]  # how many, and ids of the first


def _missing(desk: MigrationDesk) -> Faults:
    with session(desk, "missing") as connection, speaking("count rows without ciphertext"):
        row = connection.execute(statement(desk.names, "3_missing.sql")).fetchone()
    return row or (0, [])


def duplicates(desk: MigrationDesk, column: str) -> Faults:
    """Ids of rows that share a value of a column: how many values (at most 20), and the ids of each."""
    query = statement(desk.names, "3_duplicates.sql", column=sql.Identifier(column))
    with session(desk, "duplicates") as connection, speaking("look for duplicates"):
        rows = connection.execute(query).fetchall()
    return len(rows), [ids for (ids,) in rows]


def _require_no_fault(faults: Faults, what: str, remedy: str) -> None:
    count, ids = faults
    if count:
        raise GateClosed(what, expected="none", found=f"{count}, ids {show_ids(ids)}", remedy=remedy)


def show_ids(ids: list[Any]) -> str:
    """Ids, or groups of them, for a message."""
    return ", ".join(" and ".join(map(str, one)) if isinstance(one, list) else str(one) for one in ids)
