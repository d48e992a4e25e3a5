"""Step 1: ciphertext and blind index beside the plaintext, and nothing that anybody has to wait for."""

from functools import cache
from typing import Any

import psycopg
from psycopg.rows import dict_row

from payme_ops.foundation.errors import UnexpectedSchema
from payme_ops.foundation.evidence import Check, Finding, Verdict, failed, passed
from payme_ops.foundation.postgres import speaking
from payme_ops.foundation.progress import Report
from payme_ops.foundation.sql import load
from payme_ops.migration import acl
from payme_ops.migration.ddl import with_lock_budget
from payme_ops.migration.desk import MigrationDesk, no_table, session
from payme_ops.migration.names import statement
from payme_ops.migration.shape import Shape, Stage, inspect, named, reached, require, source

_TABLE = {
    "ordinary_table": "a table that is neither partitioned nor inherits",
    "integer_primary_key": "a primary key of one bigint or integer column",
    "text_column": "a text column that is not computed",
    "base_name_is_free": "no other relation under the name that the table gets for a while",
}
_RIGHTS = {
    "owner_creates_in_schema": "the table's owner may create in its schema (include/sql/grants/migrate_role.sql)",
    "owner_creates_schema": "it may create a schema in the database (include/sql/grants/migrate_role.sql)",
}


def do_expand(desk: MigrationDesk, report: Report) -> dict[str, Any]:
    """Add both columns, the format check and the trigger that nulls a stale ciphertext.

    Whoever has rights on the plaintext column by itself gets them on the two new ones. Raises LockBudgetSpent,
    LeaseHeld, UnexpectedSchema when a part is there that we have not made.
    """
    names = desk.names

    def work(connection: psycopg.Connection) -> bool:
        shape = inspect(connection, names)
        if shape.reached(Stage.EXPANDED):
            return False
        _require_nothing_of_it(desk, shape)
        connection.execute(statement(names, "state.sql"))
        connection.execute(statement(names, "1_expand.sql"))
        acl.copy_column(connection, names, names.plaintext, [names.ciphertext, names.blind_index])
        return True

    changed = with_lock_budget(desk, "expand", work)
    report(f"{names.title} has {names.ciphertext} and {names.blind_index}" + ("" if changed else " already"))
    return {"changed": changed}


def _require_nothing_of_it(desk: MigrationDesk, shape: Shape) -> None:
    """A step is all or nothing: a part of it alone is somebody else's, of whatever type."""
    there = [
        what
        for what, found in (
            (desk.names.ciphertext, shape.has_ciphertext),
            (desk.names.blind_index, shape.has_blind_index),
            ("format check", shape.format_check),
            ("stale trigger", shape.stale_trigger),
        )
        if found
    ]
    if there:
        raise UnexpectedSchema(
            f"{desk.names.title} has a part of what step 1 makes",
            expected="both columns, check and trigger, or nothing of them",
            found=", ".join(there),
            remedy="drop or rename what is there: it is not of this migration",
        )


def undo_expand(desk: MigrationDesk, report: Report) -> dict[str, Any]:
    """Drop both columns, with what is built on them, and the state schema.

    Only while the plaintext is the truth: raises UnexpectedSchema once it is relaxed. LockBudgetSpent, LeaseHeld.
    """
    names = desk.names

    def work(connection: psycopg.Connection) -> bool:
        shape = inspect(connection, names)
        require(shape, names, Stage.START, before=Stage.RELAXED)
        if not shape.reached(Stage.EXPANDED):
            _require_nothing_of_it(desk, shape)
            return False
        connection.execute(statement(names, "1_undo_expand.sql"))
        return True

    changed = with_lock_budget(desk, "undo expand", work)
    report(f"{names.title} has no ciphertext" + (" any more" if changed else ""))
    return {"changed": changed}


def checks_before_expand(desk: MigrationDesk) -> list[Check]:
    """Whether the table, its owner and its publications are as the migration needs them."""
    facts = cache(lambda: _facts(desk))  # read by the first check that asks
    return [
        Check("expand_table", "; ".join(_TABLE.values()), source(desk), lambda: _facts_hold(facts(), _TABLE)),
        Check("expand_rights", "; ".join(_RIGHTS.values()), source(desk), lambda: _facts_hold(facts(), _RIGHTS)),
        Check("expand_publications", "no publication sends the table", source(desk), lambda: _publications(facts())),
    ]


def checks_after_expand(desk: MigrationDesk) -> list[Check]:
    """Whether all of it is there."""
    return [reached(desk, "expanded", Stage.EXPANDED)]


def _facts(desk: MigrationDesk) -> dict[str, Any]:
    with (
        session(desk, "look") as connection,
        speaking(f"look at {desk.names.title}"),
        connection.cursor(row_factory=dict_row) as cursor,
    ):
        row = cursor.execute(load("phone_encryption/1_table_facts.sql"), named(desk.names)).fetchone()
    if row is None:
        raise no_table(desk.names)
    return row


def _facts_hold(found: dict[str, Any], wanted: dict[str, str]) -> Finding:
    lacking = [text for fact, text in wanted.items() if not found[fact]]
    measured = {fact: found[fact] for fact in wanted}
    return failed(measured, f"needed: {'; '.join(lacking)}") if lacking else passed(measured)


def _publications(facts: dict[str, Any]) -> Finding:
    """A subscriber that lacks a column stops at the first row: DDL is not replicated."""
    found = facts["publications"]
    if not found:
        return passed([])
    by_hand = "add both columns on every subscriber first, then confirm; later the switch stops after the drop"
    return Finding(Verdict.INCONCLUSIVE, {"publications": found}, by_hand)
