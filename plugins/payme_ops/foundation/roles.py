"""Whether each database role has what include/sql/grants/ gives it, and no more."""

from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any

import psycopg
from psycopg.rows import dict_row

from payme_ops.foundation.evidence import Check, Finding, failed, passed
from payme_ops.foundation.opsdb import WORKERS
from payme_ops.foundation.postgres import connect, speaking, with_database
from payme_ops.foundation.sql import load

# No row reaches the server's log.
_QUIET = {"log_error_verbosity": "terse", "log_min_error_statement": "panic"}
# What `backup.preflight` measures of the role that reads, in its items `readable` and `read_only`.
_TOLD_ELSEWHERE = {"SUPERUSER", "CREATEDB", "CREATEROLE", "BYPASSRLS"}
_WRITERS = {"pg_write_all_data", "pg_execute_server_program", "pg_write_server_files"}


@dataclass(frozen=True)
class _Wanted:
    """Attributes, memberships and what else, in words, that the role lacks."""

    attributes: Collection[str]
    member_of: Collection[str]
    missing: Collection[str] = ()


def reader(conninfo: str) -> Check:
    """The role of payme_db_read. What it can read and write is measured by preflight."""

    def wanted(_: psycopg.Connection) -> _Wanted:
        return _Wanted((), ("pg_read_all_data", "pg_read_all_stats"))

    return _check("read_role", "payme_db_read", "backup_role.sql", conninfo, wanted, _TOLD_ELSEWHERE | _WRITERS)


def restorer(conninfo: str, database: str) -> Check:
    """The role of payme_db_restore; `database` is the one that is backed up, and need not be on that server."""

    def wanted(session: psycopg.Connection) -> _Wanted:
        known = session.execute("SELECT FROM pg_database WHERE datname = %s", [database]).fetchone() is not None
        with session.cursor(row_factory=dict_row) as cursor:
            may = cursor.execute(load("restore/may_swap.sql"), {"name": database}).fetchone() or {}
        missing = [] if may["copies_settings"] else ["EXECUTE on payme_restore.copy_settings"]
        owners = _owners(with_database(conninfo, database)) if known else []
        return _Wanted(("CREATEDB",), ("pg_signal_backend", *owners), missing)

    files = "restore_role.sql and include/sql/grants/restore_functions.sql"
    return _check("restore_role", "payme_db_restore", files, conninfo, wanted)


def migrator(conninfo: str, table: str) -> Check:
    """The role of payme_db_migrate, which changes `table` (public.users)."""

    def wanted(session: psycopg.Connection) -> _Wanted:
        with session.cursor(row_factory=dict_row) as cursor:
            found = cursor.execute(load("doctor/migrate_role.sql"), {"table": table}).fetchone() or {}
        missing = [] if found["owner"] else [f"the table {table}"]
        missing += [] if found["sets_replication_role"] else ["SET on session_replication_role"]
        return _Wanted((), ("pg_monitor", *filter(None, [found["owner"]])), missing)

    return _check("migrate_role", "payme_db_migrate", "migrate_role.sql", conninfo, wanted)


def keeper(conninfo: str) -> Check:
    """The role of payme_ops_db, which owns the desk's own database or works in it, and is nothing else."""
    return _check(
        "ops_role", "payme_ops_db", "ops_database.sql", conninfo, lambda _: _Wanted((), ()), WORKERS, quiet={}
    )


def _check(
    item: str,
    connection: str,
    files: str,
    conninfo: str,
    wanted: Callable[[psycopg.Connection], _Wanted],
    elsewhere: Collection[str] = (),
    quiet: dict[str, str] = _QUIET,
) -> Check:
    def measure() -> Finding:
        with (
            connect(conninfo, application="payme_ops:doctor") as session,
            speaking(f"examine the role of {connection}"),
        ):
            with session.cursor(row_factory=dict_row) as cursor:
                has = cursor.execute(load("doctor/role.sql")).fetchone() or {}
            return _judge(has, wanted(session), elsewhere, quiet, files)

    return Check(item, f"what include/sql/grants/{files} gives, and no more", f"connection {connection}", measure)


def _judge(
    has: dict[str, Any], wanted: _Wanted, elsewhere: Collection[str], quiet: dict[str, str], files: str
) -> Finding:
    needed = {*wanted.attributes, *(f"member of {role}" for role in wanted.member_of)}
    there = {*has["attributes"], *(f"member of {role}" for role in has["member_of"])}
    ignored = {*elsewhere, *(f"member of {role}" for role in elsewhere)}
    missing = sorted(needed - there) + list(wanted.missing)
    missing += [f"{name} = {value}" for name, value in quiet.items() if has[name] != value]
    surplus = sorted(there - needed - ignored)
    if not missing and not surplus:
        return passed({"role": has["role"], "grants": len(needed)})
    remedies = [f"grant what is missing as include/sql/grants/{files} does"] if missing else []
    remedies += ["revoke what is too much"] if surplus else []
    return failed({"role": has["role"], "missing": missing, "too much": surplus}, " and ".join(remedies))


def _owners(conninfo: str) -> list[str]:
    with connect(conninfo, application="payme_ops:doctor") as session, speaking("list who owns what is backed up"):
        return [row[0] for row in session.execute(load("doctor/owners.sql"))]
