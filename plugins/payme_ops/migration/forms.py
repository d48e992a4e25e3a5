"""Every form of statement that the application sends about a number, run on a row that is rolled back again."""

import os
from collections.abc import Iterator
from typing import Any

import psycopg
from psycopg import sql

from payme_ops.foundation.errors import GateClosed
from payme_ops.foundation.sql import load
from payme_ops.migration.names import Names
from payme_ops.migration.shape import Shape, named

# {stored} is the ciphertext under the name that a version uses; {columns} and {values} are the row's other ones.
_FORMS = {
    "INSERT ... RETURNING": "INSERT INTO {relation} ({key}, {stored}, {blind_index}, {columns})"
    " OVERRIDING SYSTEM VALUE SELECT %(key)s, %(first)s, %(index)s, {values} FROM {relation} LIMIT 1"
    " RETURNING {key}, {stored}",
    "SELECT by blind index": "SELECT {key}, {stored} FROM {relation} WHERE {blind_index} = %(index)s",
    "SELECT ... FOR UPDATE": "SELECT {key}, {stored} FROM {relation} WHERE {key} = %(key)s FOR UPDATE",
    "INSERT ... ON CONFLICT": "INSERT INTO {relation} ({stored}, {blind_index}, {columns})"
    " SELECT %(second)s, %(index)s, {values} FROM {relation} LIMIT 1"
    " ON CONFLICT ({blind_index}) DO UPDATE SET {stored} = EXCLUDED.{stored} RETURNING {key}, {stored}",
    "UPDATE": "UPDATE {relation} SET {stored} = %(first)s, {blind_index} = %(index)s WHERE {key} = %(key)s"
    " RETURNING {key}, {stored}",
    "DELETE": "DELETE FROM {relation} WHERE {key} = %(key)s RETURNING {key}, {stored}",
}


def run_forms(connection: psycopg.Connection, names: Names, shape: Shape) -> dict[str, Any]:
    """Each form under each name that the column has; what they answer is compared. Nothing stays but a used id.

    Raises GateClosed naming the form that failed or answered wrongly, psycopg.Error. Answers `not run` with a reason
    where no row can be made: an empty table, a unique column of a type we cannot invent, ids without a sequence.
    """
    made = _parts(connection, names, shape)
    if isinstance(made, str):
        return {"not run": made}
    sequence, parts = made
    ran = []
    for stored in _stored_as(names, shape):
        with connection.transaction(force_rollback=True):
            row = connection.execute("SELECT nextval(%s)", [sequence]).fetchone()
            values: dict[str, Any] = {"key": row[0] if row else None, "index": os.urandom(32)}
            values |= {which: f"v1:canary:{os.urandom(33).hex()}" for which in ("first", "second")}
            for form, text in _forms(shape):
                statement = sql.SQL(text).format(**names.identifiers, stored=sql.Identifier(stored), **parts)
                _run(connection, form, statement, values, stored)
                ran.append(f"{form} ({stored})")
    return {"forms": ran}


def _forms(shape: Shape) -> Iterator[tuple[str, str]]:
    for form, text in _FORMS.items():
        if shape.unique_index or "ON CONFLICT" not in form:
            yield form, text


def _stored_as(names: Names, shape: Shape) -> list[str]:
    if not shape.switched:
        return [names.ciphertext]
    return [names.ciphertext, names.plaintext] if shape.shim else [names.plaintext]


def _run(
    connection: psycopg.Connection, form: str, statement: sql.Composed, values: dict[str, Any], stored: str
) -> None:
    try:
        rows = connection.execute(statement, values).fetchall()
    except psycopg.Error as error:
        if connection.closed or error.sqlstate in ("55P03", "40P01"):
            raise  # it says nothing of the form
        found = f"SQLSTATE {error.sqlstate}"
    else:
        written = values["second" if "ON CONFLICT" in form else "first"]
        if rows == [(values["key"], written)]:
            return
        found = f"{len(rows)} rows, not the one that was written"
    raise GateClosed(
        f"the application's {form} would fail",
        expected=f"it works with the column as {stored}",
        found=found,
        remedy="nothing was changed; find what on this table stands against it, or switch without a shim",
    )


def _parts(connection: psycopg.Connection, names: Names, shape: Shape) -> tuple[str, dict[str, sql.Composable]] | str:
    relation = named(names)["base_relation" if shape.shim else "relation"]
    rows = connection.execute(
        load("phone_encryption/5d_canary_columns.sql"), {**named(names), "relation": relation}
    ).fetchall()
    unknown = [column for column, value in rows if value is None]
    if unknown:
        return f"no value can be made up for {', '.join(unknown)}"
    found = connection.execute(
        sql.SQL("SELECT pg_get_serial_sequence(%s, %s), EXISTS (SELECT FROM {relation})").format(**names.identifiers),
        [relation, names.key],
    ).fetchone()
    if found is None or found[0] is None:
        return f"{names.key} has no sequence"
    if not found[1]:
        return "the table is empty"
    return str(found[0]), {
        "columns": sql.SQL(", ").join(sql.Identifier(column) for column, _ in rows),
        "values": sql.SQL(", ").join(sql.SQL(value) for _, value in rows),
    }
