"""After step 5: the table's file is written anew, since a dropped column's values stay in it until then."""

import time
from collections.abc import Sequence
from typing import Any

import psycopg
from psycopg import sql
from psycopg.rows import dict_row

from payme_ops.foundation.errors import GateClosed, PaymeOpsError
from payme_ops.foundation.evidence import Check, Finding, Verdict, failed, passed
from payme_ops.foundation.postgres import speaking
from payme_ops.foundation.progress import Report, size
from payme_ops.foundation.sql import load
from payme_ops.migration.ddl import without_transaction
from payme_ops.migration.desk import MigrationDesk, session
from payme_ops.migration.names import statement
from payme_ops.migration.shape import Stage, inspect, named, reached, remembered, require, source
from payme_ops.migration.state import subject


def do_purge(
    desk: MigrationDesk, report: Report, *, free_bytes: int | None, canaries: Sequence[str] = ()
) -> dict[str, Any]:
    """VACUUM FULL, unless the file is another than at the drop; facts for the erasure certificate.

    It blocks every query on the table as long as it takes; only getting the lock is tried in short waits.
    `free_bytes` of the server's disk is what a person has looked up: SQL cannot tell. `canaries` are known numbers;
    where this role may read pages they are counted before and after. Raises GateClosed without room for a second copy
    of the table, UnexpectedSchema while a shim or the plaintext is there, LockBudgetSpent, LeaseHeld.
    """
    names = desk.names
    with session(desk, "purge") as connection, speaking(f"look at {names.title}"):
        require(inspect(connection, names), names, Stage.SWITCHED)
        before, dropped = _file(connection, desk), _file_at_drop(connection, desk)
        pages = _pages_with(connection, desk, canaries)
    began = time.monotonic()
    changed = before["file"] == dropped or dropped is None
    if changed:
        _require_room(free_bytes, before["total_bytes"])
        report(f"writing {names.title} anew, {size(before['total_bytes'])}; nobody reads or writes it meanwhile")
        without_transaction(desk, "purge", _vacuum(desk))
    seconds = round(time.monotonic() - began, 2)
    with session(desk, "purge") as connection, speaking(f"look at {names.title}"):
        after, left = _file(connection, desk), _pages_with(connection, desk, canaries)
    if after["file"] in (dropped, before["file"] if changed else None):
        raise PaymeOpsError(
            f"{names.title} has still the file that held the plaintext",
            expected="another file after VACUUM FULL",
            found=f"file {after['file']}",
            remedy="look whether this role may vacuum the table: it has to be the owner's",
        )
    report(f"{names.title} has a new file, {size(before['total_bytes'])} before and {size(after['total_bytes'])} now")
    return {
        "changed": changed,
        "seconds": seconds if changed else 0,
        "file_with_plaintext": dropped if dropped is not None else before["file"],
        "file": after["file"],
        "bytes_before": before["total_bytes"],
        "bytes_after": after["total_bytes"],
        "pages_with_canaries_before": pages,
        "pages_with_canaries_after": left,
        "wal_segment": after["wal_segment"],
        "proof": "the table's file was replaced" if left is None else f"{left} pages hold a canary",
    }


def finding(facts: dict[str, Any]) -> Finding:
    """What the facts of a purge are as evidence."""
    if facts["pages_with_canaries_after"]:
        return failed(facts, "find what else holds numbers in this table: its file is a new one")
    return passed(facts)


def _vacuum(desk: MigrationDesk) -> Any:
    def work(connection: psycopg.Connection) -> None:
        connection.execute("SET lock_timeout = '200ms'")
        connection.execute(statement(desk.names, "5f_purge.sql"))

    return work


def _file(connection: psycopg.Connection, desk: MigrationDesk) -> dict[str, Any]:
    with connection.cursor(row_factory=dict_row) as cursor:
        return cursor.execute(load("phone_encryption/5f_file.sql"), named(desk.names)).fetchone() or {}


def _file_at_drop(connection: psycopg.Connection, desk: MigrationDesk) -> int | None:
    if not remembered(connection, desk.names, "dropped"):
        return None
    query = sql.SQL("SELECT file FROM {state}.dropped WHERE subject = %s").format(**desk.names.identifiers)
    row = connection.execute(query, [subject(desk.names)]).fetchone()
    return int(row[0]) if row else None


def _pages_with(connection: psycopg.Connection, desk: MigrationDesk, canaries: Sequence[str]) -> int | None:
    """How many pages hold one of them; None where this role may not read pages, or there is none to look for."""
    query = (
        "SELECT rolsuper AND to_regprocedure('get_raw_page(text, bigint)') IS NOT NULL FROM pg_roles"
        " WHERE rolname = current_user"
    )
    may = connection.execute(query).fetchone()
    if not canaries or not may or not may[0]:
        return None
    values = {**named(desk.names), "values": [canary.encode() for canary in canaries]}
    row = connection.execute(load("phone_encryption/5f_pages.sql"), values).fetchone()
    return int(row[0]) if row else None


def _require_room(free_bytes: int | None, needed: int) -> None:
    if free_bytes is not None and free_bytes > needed:
        return
    raise GateClosed(
        "VACUUM FULL may fill the server's disk",
        expected=f"more than {size(needed)} free: the new copy stands beside the old one",
        found="unknown, since SQL cannot tell" if free_bytes is None else size(free_bytes),
        remedy="look at the server's disk and give the free bytes; with too little, use pg_repack or make room",
    )


def checks_before_purge(desk: MigrationDesk, free_bytes: int | None) -> list[Check]:
    """Whether there is only the table left, and room for a second copy of it."""

    def room() -> Finding:
        with session(desk, "purge") as connection, speaking(f"look at {desk.names.title}"):
            needed = _file(connection, desk)["total_bytes"]
        measured = {"needed_bytes": needed, "free_bytes": free_bytes}
        if free_bytes is None:
            return Finding(Verdict.INCONCLUSIVE, measured, "look at the server's disk and give the free bytes")
        return passed(measured) if free_bytes > needed else failed(measured, "make room on the server's disk")

    return [
        reached(desk, "switched", Stage.SWITCHED),
        Check("purge_room", "room for a second copy of the table", source(desk), room),
    ]


def checks_after_purge(desk: MigrationDesk) -> list[Check]:
    """Whether the file that held the plaintext is gone."""

    def replaced() -> Finding:
        with session(desk, "purge") as connection, speaking(f"look at {desk.names.title}"):
            found, dropped = _file(connection, desk)["file"], _file_at_drop(connection, desk)
        measured = {"file": found, "file_with_plaintext": dropped}
        if dropped is None:
            return Finding(Verdict.INCONCLUSIVE, measured, "which file held the plaintext is not known")
        return failed(measured, "run the purge") if found == dropped else passed(measured)

    return [Check("purged", "the table has another file than at the drop", source(desk), replaced)]
