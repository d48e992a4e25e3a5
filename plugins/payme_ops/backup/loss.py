"""What a restore would take away: rows of the running database that the backup does not have, and what a rename
changes. Only looked at, never touched."""

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any

import psycopg
from psycopg import sql
from psycopg.rows import dict_row

from payme_ops.backup import swap
from payme_ops.backup.manifest import Manifest
from payme_ops.foundation.clock import show
from payme_ops.foundation.postgres import connect, speaking, with_database
from payme_ops.foundation.progress import Report, size
from payme_ops.foundation.sql import load

_COMES_BACK, _GOES = "comes back", "goes: the backup does not have it"


@dataclass(frozen=True)
class TableLoss:
    """One table now and in the backup. None: not there, or (`newer`, `newest`) nothing says when a row came to be."""

    table: str
    now: int | None
    backup: int | None
    newer: int | None = None
    newest: str | None = None
    note: str = ""

    @property
    def unchanged(self) -> bool:
        """Whether nothing shows that anything would be lost."""
        return self.now == self.backup and not self.newer and not self.note


def tables(server: str, target: str, manifest: Manifest, *, report: Report) -> list[TableLoss]:
    """Every table of the running database beside the backup's, by name. A database that is gone has none.

    `newer` counts rows made since the snapshot, where a column tells; changes of older rows show nowhere. Raises
    DatabaseUnavailable, DatabaseError.
    """
    backup = {one.qualified: one.rows for one in manifest.truth.relations if one.kind == "table"}
    live = {one.table: one for one in _live(server, target, manifest.snapshot_at, report)}
    return [
        TableLoss(name, None, backup[name], note=_COMES_BACK)
        if name not in live
        else TableLoss(
            name,
            live[name].now,
            backup.get(name),
            live[name].newer,
            live[name].newest,
            ", ".join(filter(None, ["" if name in backup else _GOES, live[name].note])),
        )
        for name in sorted(backup.keys() | live.keys())
    ]


def _live(server: str, target: str, snapshot_at: datetime, report: Report) -> Iterator[TableLoss]:
    with connect(server, application="payme_ops:loss") as session, speaking(f"look at {target}"):
        if swap.facts(session, target) is None:
            return
    conninfo = with_database(server, target)
    with connect(conninfo, application="payme_ops:loss") as session, speaking(f"count the rows of {target}"):
        session.execute("SET row_security = off; SET default_transaction_read_only = on; SET lock_timeout = '5s'")
        with session.cursor(row_factory=dict_row) as cursor:
            found = cursor.execute(load("restore/live_tables.sql")).fetchall()
        for number, table in enumerate(found, 1):
            yield _count(session, table, snapshot_at)
            if number % 50 == 0 or number == len(found):
                report(f"loss: {number} of {len(found)} tables counted")


def _count(session: psycopg.Connection, table: dict[str, Any], snapshot_at: datetime) -> TableLoss:
    name = f"{table['schema']}.{table['name']}"
    since = sql.Identifier(table["since"]) if table["since"] else sql.SQL("NULL::timestamptz")
    query = sql.SQL("SELECT count(*), count(*) FILTER (WHERE {since} > %s), max({since}) FROM ONLY {table}").format(
        since=since, table=sql.Identifier(table["schema"], table["name"])
    )
    try:
        row = session.execute(query, [snapshot_at]).fetchone() or (None, None, None)
    except (psycopg.errors.InsufficientPrivilege, psycopg.errors.LockNotAvailable) as error:
        return TableLoss(name, None, None, note=f"not counted: SQLSTATE {error.sqlstate}")
    return TableLoss(name, row[0], None, row[1] if table["since"] else None, show(row[2]) if row[2] else None)


def summary(found: list[TableLoss]) -> dict[str, Any]:
    """The tables that differ, and the words that sum them up."""
    newest = max((one for one in found if one.newest), key=lambda one: one.newest or "", default=None)
    return {
        "rows newer than the backup": sum(one.newer or 0 for one in found),
        "newest row": f"{newest.newest} in {newest.table}" if newest else "nothing says when rows came to be",
        "missing now, come back": [f"{one.table} ({one.backup} rows)" for one in found if one.note == _COMES_BACK],
        "not in the backup, go": [
            f"{one.table} ({'not counted' if one.now is None else f'{one.now} rows'})"
            for one in found
            if one.note.startswith(_GOES)
        ],
        "tables": [asdict(one) for one in found if not one.unchanged],
        "tables unchanged": sum(one.unchanged for one in found),
    }


def renaming(server: str, target: str, beside: str, *, keep_days: int) -> dict[str, Any]:
    """What belongs to the name and what hangs on the old database."""
    with connect(server, application="payme_ops:loss") as session, speaking(f"look at {target}"):
        old, new = swap.facts(session, target), swap.facts(session, beside)
        bound = [
            f"{kind} {name}" for kind, name in session.execute(load("restore/bound_to_database.sql"), {"name": target})
        ]
    if old is None or new is None:
        return {"old database": "there is none: owner, privileges and settings are not in a backup, set them by hand"}
    return {
        "carried over": old.carried,
        "stays with the old database": bound + _publications(server, target),
        "sessions that are ended": sessions(server, target),
        "tablespace": _change(old.tablespace, new.tablespace),
        "encoding and locale": _change(old.locale, new.locale),
        "disk": f"the old database keeps {size(old.size_bytes)} for {keep_days} days beside {size(new.size_bytes)}",
    }


def _change(old: str, new: str) -> str:
    return old if old == new else f"{old} becomes {new}"


def _publications(server: str, target: str) -> list[str]:
    conninfo = with_database(server, target)
    with connect(conninfo, application="payme_ops:loss") as session, speaking(f"list publications of {target}"):
        names = [row[0] for row in session.execute(load("restore/publications.sql"))]
    return [f"subscribers of publication {name} (copy them anew)" for name in names]


def sessions(server: str, target: str) -> list[str]:
    """Who is connected to the target, without ourselves. Raises DatabaseUnavailable, DatabaseError."""
    with connect(server, application="payme_ops:loss") as session, speaking(f"list sessions of {target}"):
        rows = session.execute(load("restore/sessions.sql"), {"name": target}).fetchall()
    return [
        f"{count} of {role} ({program or 'no name'}){', a superuser: end it yourself' if superuser else ''}"
        for role, program, count, superuser in rows
        if not program.startswith("payme_ops:")
    ]
