"""Where the table stands, read from the catalogues: what every step looks at before it acts, and after."""

from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import psycopg
from psycopg import sql
from psycopg.rows import dict_row

from payme_ops.foundation.errors import NotFound, UnexpectedSchema
from payme_ops.foundation.evidence import Check, Finding, failed, passed
from payme_ops.foundation.postgres import speaking
from payme_ops.foundation.sql import load
from payme_ops.migration.desk import MigrationDesk, session
from payme_ops.migration.names import STATE_SCHEMA, Names
from payme_ops.migration.state import subject


class Stage(StrEnum):
    """How far the schema has got, in this order. What is between two of them counts as the lower one."""

    START = "as it was"
    EXPANDED = "expanded"
    BACKFILLED = "backfilled, indexed and checked"
    RELAXED = "relaxed"
    BROWNED_OUT = "browned out"
    SHIMMED = "dropped, behind the shim view"
    SWITCHED = "dropped, without a shim"


@dataclass(frozen=True)
class Shape:
    """The table's columns and what the steps make around them."""

    has_plaintext: bool
    has_ciphertext: bool  # under its own name
    has_blind_index: bool
    format_check: str | None  # "not valid" | "valid"
    complete_check: str | None
    stale_trigger: bool
    index: str | None  # "invalid" | "valid"
    unique_index: bool
    unique_plaintext: bool
    not_null: bool
    shim: bool
    switched: bool  # the plaintext's name is the ciphertext's
    relaxed: bool  # what was relaxed is remembered
    browned_out: bool

    @property
    def stage(self) -> Stage:
        """The last stage that is whole."""
        if self.switched:
            return Stage.SHIMMED if self.shim else Stage.SWITCHED
        if not self.has_plaintext:
            return Stage.SWITCHED  # where no shim can work the ciphertext keeps its own name
        columns = self.has_ciphertext and self.has_blind_index
        if not (columns and self.format_check and self.stale_trigger):
            return Stage.START
        ruled = bool(self.complete_check or self.not_null or self.unique_plaintext)
        if (
            self.index != "valid"
            or self.format_check != "valid"
            or not (self.relaxed or self.complete_check == "valid")
        ):
            return Stage.EXPANDED
        if not self.relaxed or ruled:
            return Stage.BACKFILLED
        return Stage.BROWNED_OUT if self.browned_out else Stage.RELAXED

    def reached(self, stage: Stage) -> bool:
        """At this stage or beyond it."""
        order = list(Stage)
        return order.index(self.stage) >= order.index(stage)


def inspect(connection: psycopg.Connection, names: Names) -> Shape:
    """Read it. Raises NotFound without table or column, DatabaseUnavailable, DatabaseError."""
    with speaking(f"look at {names.title}"), connection.cursor(row_factory=dict_row) as cursor:
        row = cursor.execute(load("phone_encryption/shape.sql"), named(names)).fetchone()
        relaxed, browned_out = (remembered(connection, names, table) for table in ("relaxed", "saved_acl"))
    if row is None or not (row["plaintext_name"] or row["has_ciphertext"]):
        raise NotFound(
            f"there is no column {names.title}.{names.plaintext}",
            expected="the column that is to be encrypted",
            found="neither it nor its ciphertext" if row else "no such table",
            remedy="check the database that the connection payme_db_migrate names",
        )
    row["switched"] = row["switched"] and not row["has_ciphertext"]
    row["has_plaintext"] = row.pop("plaintext_name") and not row["switched"]
    return Shape(**row, relaxed=relaxed, browned_out=browned_out)


def look(desk: MigrationDesk) -> Shape:
    """The same in a session of its own."""
    with session(desk, "look") as connection:
        return inspect(connection, desk.names)


def named(names: Names) -> dict[str, Any]:
    """Parameters for queries of the catalogues: names as they have them, `relation` and `base_relation` quoted."""
    plain = ("schema", "table", "base", "key", "plaintext", "ciphertext", "blind_index")
    return {
        **names.made,
        **{what: getattr(names, what) for what in plain},
        "relation": quoted(names.identifiers["relation"]),
        "base_relation": quoted(names.identifiers["base_relation"]),
    }


def quoted(identifier: sql.Composable) -> str:
    """As to_regclass takes it."""
    return identifier.as_string(None)


def remembered(connection: psycopg.Connection, names: Names, table: str) -> bool:
    """Whether a table of the state schema, which may not be there, has a row for ours. Raises psycopg.Error."""
    where = sql.Identifier(STATE_SCHEMA, table)
    row = connection.execute("SELECT to_regclass(%s)", [quoted(where)]).fetchone()
    if not row or row[0] is None:
        return False
    found = connection.execute(sql.SQL("SELECT FROM {} WHERE subject = %s LIMIT 1").format(where), [subject(names)])
    return found.rowcount > 0


def require(shape: Shape, names: Names, stage: Stage, *, before: Stage | None = None) -> None:
    """Raises UnexpectedSchema unless the table is at `stage` or beyond it, and not yet at `before`."""
    # Half of an undo of the relaxing is no leave to go further back.
    too_far = before is not None and (shape.reached(before) or (before is Stage.RELAXED and shape.relaxed))
    if shape.reached(stage) and not too_far:
        return
    raise UnexpectedSchema(
        f"{names.title} is not as this step expects it",
        expected=f"{stage} or later" + (f", and not yet {before}" if before else ""),
        found=shape.stage,
        remedy="do the steps, or undo them, in their order; nothing was changed",
    )


def reached(desk: MigrationDesk, item: str, stage: Stage) -> Check:
    """The check that the table is at a stage, or beyond it."""

    def measure() -> Finding:
        shape = look(desk)
        measured = {"stage": shape.stage}
        if shape.reached(stage):
            return passed(measured)
        return failed(measured, "run the step before this one (again): it does what is left to do")

    return Check(item, f"{desk.names.title} is {stage}", source(desk), measure)


def source(desk: MigrationDesk) -> str:
    """Where a check looks."""
    return f"connection payme_db_migrate, database {desk.database}"
