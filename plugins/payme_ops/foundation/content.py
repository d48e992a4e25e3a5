"""What a database holds, in comparable form: rows and content hash of a table, definitions, owners and privileges.

The hash of a table is the sum over its rows of hash_record_extended(ROW(columns in name order)): independent of
row and column order, one pass, about 1 s per million rows. Types whose equality hides a difference (numeric 1.0
and 1.00, jsonb, enum, interval, float) go in by their binary form; types without a hash, arrays, composites and
types of extensions by their text, with the settings that shape text pinned.

Every function takes a session with `pin_settings`, and raises psycopg.Error; the caller says what it was doing.
"""

from collections import defaultdict
from typing import Any

import psycopg
from psycopg import sql
from psycopg.rows import dict_row
from psycopg.types.json import Jsonb

from payme_ops.foundation.sql import load

# Equality of these types is identity of their bytes or text.
_EXACT = {
    *("bool", "bytea", "char", "name", "int2", "int4", "int8", "oid", "text", "varchar", "uuid"),
    *("date", "time", "timetz", "timestamp", "timestamptz", "inet", "cidr", "macaddr", "macaddr8", "pg_lsn"),
}
_SEND = {
    "numeric": "numeric_send",
    "jsonb": "jsonb_send",
    "interval": "interval_send",
    "float4": "float4send",
    "float8": "float8send",
    "bpchar": "bpcharsend",  # without a length it keeps trailing blanks that equality and ::text do not see
}
_PINNED = {
    "TimeZone": "UTC",
    "DateStyle": "ISO, YMD",
    "IntervalStyle": "iso_8601",
    "bytea_output": "hex",
    "extra_float_digits": "3",
    "lc_monetary": "C",
    "search_path": "",  # the text of a regclass has its schema where the path does not
    "row_security": "off",
    "quote_all_identifiers": "off",
    "standard_conforming_strings": "on",
    "lo_compat_privileges": "on",
    # One core beside the dump's; the other sessions of a production server keep theirs.
    "max_parallel_workers_per_gather": "0",
    "statement_timeout": "0",
    "idle_in_transaction_session_timeout": "0",
    "transaction_timeout": "0",
}


def pin_settings(connection: psycopg.Connection) -> None:
    """Make text forms and visibility independent of the role's and server's defaults.

    Settings that this server does not know (transaction_timeout before 17) or this role may not change
    (lo_compat_privileges: the grants set it for the role) keep their values.
    """
    connection.execute(
        "SELECT set_config(s.name, %(values)s::jsonb ->> s.name, false) FROM pg_settings AS s"
        " WHERE %(values)s::jsonb ? s.name AND (s.context = 'user' OR (SELECT rolsuper FROM pg_roles"
        " WHERE rolname = current_user))",
        {"values": Jsonb(_PINNED)},
    )


def list_relations(connection: psycopg.Connection) -> list[dict[str, Any]]:
    """Every relation to hold, in name order: oid, schema, name, kind, persistence, populated."""
    with connection.cursor(row_factory=dict_row) as cursor:
        return cursor.execute(load("content/list_relations.sql")).fetchall()


def definitions(connection: psycopg.Connection) -> list[tuple[str, str, str]]:
    """Kind, name and SHA-256 of the text form of every object."""
    return connection.execute(load("content/list_definitions.sql")).fetchall()


def grants(connection: psycopg.Connection) -> list[tuple[str, str, str]]:
    """Name, owner and privileges of every schema, relation, column and function."""
    return connection.execute(load("content/list_grants.sql")).fetchall()


def hashed_columns(connection: psycopg.Connection) -> dict[int, list[sql.Composable]]:
    """How each column of a table enters its row hash, by the table's oid; a table without columns has none."""
    expressions: dict[int, list[sql.Composable]] = defaultdict(list)
    for oid, name, builtin_type, is_enum, hides in connection.execute(load("content/list_columns.sql")):
        expressions[oid].append(_expression(sql.Identifier(name), builtin_type, is_enum, hides))
    return expressions


def _expression(column: sql.Identifier, builtin_type: str | None, is_enum: bool, hides: bool) -> sql.Composable:
    """How one column enters the row hash."""
    if is_enum:
        return sql.SQL("enum_send({})").format(column)
    if builtin_type in _SEND:
        return sql.SQL("{}({})").format(sql.Identifier("pg_catalog", _SEND[builtin_type]), column)
    if builtin_type in _EXACT and not hides:
        return column
    return sql.SQL("textsend({}::text)").format(column)


def rows_and_hash(
    connection: psycopg.Connection, schema: str, name: str, columns: list[sql.Composable]
) -> tuple[int, str]:
    """Rows and content hash of one table by itself, with its columns from `hashed_columns`."""
    total = sql.SQL("sum(hash_record_extended(ROW({}), 0))").format(sql.SQL(", ").join(columns))
    query = sql.SQL("SELECT count(*), coalesce({}, 0)::text FROM ONLY {}").format(
        total if columns else sql.SQL("0"), sql.Identifier(schema, name)
    )
    row = connection.execute(query).fetchone()
    return (row[0], row[1]) if row else (0, "0")
