"""Connections, and the client tools of the server's own major version.

A conninfo is a libpq string: `service=payme_db_read` on a shell, host and password from an Airflow connection in
a task. Error texts carry SQLSTATE, table and constraint and never DETAIL or CONTEXT: a CHECK violation's DETAIL
prints the whole row.
"""

import os
import re
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path

import psycopg
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from payme_ops.foundation.errors import DatabaseError, DatabaseUnavailable, DumpFailed, NotFound
from payme_ops.foundation.scrub import scrub

OLDEST_MAJOR, NEWEST_MAJOR = 14, 18
# A peer that vanished without a word is noticed within about a minute.
_KEEPALIVE = {
    "connect_timeout": "10",
    "keepalives_idle": "30",
    "keepalives_interval": "10",
    "keepalives_count": "3",
}
# What libpq's client tools say when the connection, not the statement, failed.
_CONNECTION_LOST = (
    "server closed the connection",
    "terminating connection",
    "connection to server",
    "could not receive data",
    "the database system is",
    "SSL connection has been closed",
    "no connection to the server",
)
_CLIENT_VARIABLES = ("PATH", "HOME", "LD_LIBRARY_PATH", "PGSERVICEFILE", "PGPASSFILE", "PGSYSCONFDIR")
# 57P01-57P03: shut down, crash, starting up; 53300: too many connections; class 08: connection.
_TRANSIENT = re.compile(r"08...|57P0[1-5]|53300")

_REMEDIES = {
    "42501": "grant what include/sql/grants/ grants to this role",
    "53200": "give the server more memory, or raise max_locks_per_transaction if it says so (one lock a relation)",
    "53100": "make room on the server's disk",
}


@contextmanager
def speaking(what: str) -> Iterator[None]:
    """Turn psycopg's errors into ours, without row data. `what` says what was being done.

    Raises DatabaseUnavailable for lost or refused connections, DatabaseError for everything else.
    """
    try:
        yield
    except psycopg.Error as error:
        raise _translate(what, error) from None


def _translate(what: str, error: psycopg.Error) -> DatabaseError | DatabaseUnavailable:
    state = error.sqlstate or ""
    message = error.diag.message_primary or str(error).strip().split("\n")[0]
    if _TRANSIENT.fullmatch(state) or (not state and isinstance(error, psycopg.OperationalError)):
        return DatabaseUnavailable(
            what,
            expected="a working connection",
            found=message,
            remedy="check that the server runs and the connection's host, port and password are right",
        )
    place = [f"{name} {value}" for name, value in _place(error)]
    return DatabaseError(
        what,
        sqlstate=state,
        expected="the statement to succeed",
        found=", ".join([f"SQLSTATE {state} {message}", *place]),
        remedy=_REMEDIES.get(state, ""),
    )


def _place(error: psycopg.Error) -> Iterator[tuple[str, str]]:
    for name, value in (("table", error.diag.table_name), ("constraint", error.diag.constraint_name)):
        if value:
            yield name, value


@contextmanager
def connect(conninfo: str, *, application: str) -> Iterator[psycopg.Connection]:
    """An autocommit connection that is closed in every case.

    Where the server can, it ends our session within seconds of this process being killed
    (client_connection_check_interval: PostgreSQL 14 and newer, on Linux). Raises DatabaseUnavailable.
    """
    with speaking("connect to PostgreSQL"):
        connection = psycopg.connect(
            # UTF8: what a role or PGCLIENTENCODING says must not change how text is hashed, and psycopg makes bytes
            # of SQL_ASCII.
            make_conninfo(conninfo, application_name=application, client_encoding="UTF8", **_KEEPALIVE),
            autocommit=True,
        )
    try:
        with (
            speaking("set up a session of PostgreSQL"),
            suppress(psycopg.errors.UndefinedObject, psycopg.errors.InvalidParameterValue),
        ):
            connection.execute("SET client_connection_check_interval = '2s'")
        yield connection
    finally:
        connection.close()


def server_major(connection: psycopg.Connection) -> int:
    """Major version of the server, for example 15."""
    return connection.info.server_version // 10000


def client_invocation(conninfo: str, *, application: str) -> tuple[str, dict[str, str]]:
    """(`--dbname` value without password, extra environment) for a libpq client tool.

    A password on a command line can be read by every user of the machine.
    """
    parts = conninfo_to_dict(make_conninfo(conninfo, application_name=application, **_KEEPALIVE))
    password = parts.pop("password", None)
    return make_conninfo(**{k: str(v) for k, v in parts.items()}), {} if password is None else {
        "PGPASSWORD": str(password)
    }


def client_environment(secrets: dict[str, str]) -> dict[str, str]:
    """What a client tool needs of our environment, and nothing else of it: no key and no other password."""
    kept = {name: os.environ[name] for name in _CLIENT_VARIABLES if name in os.environ}
    return {**kept, "LC_ALL": "C", **secrets}


def with_database(conninfo: str, dbname: str) -> str:
    """The same server and role, another database."""
    return make_conninfo(conninfo, dbname=dbname)


@cache
def tool_version(path: Path) -> tuple[int, int]:
    """(major, minor) that a client tool prints, for example (15, 18). Raises NotFound when it does not run."""
    try:
        text = subprocess.run(
            [path, "--version"], capture_output=True, text=True, timeout=10, check=True, env=client_environment({})
        ).stdout
    except (OSError, subprocess.SubprocessError) as error:
        raise NotFound(f"{path} cannot be run", found=type(error).__name__) from None
    found = re.search(r"\b(\d+)(?:\.(\d+))?", text)
    if found is None:
        raise NotFound(f"{path} printed no version", found=text.strip()[:80])
    return int(found[1]), int(found[2] or 0)


def client_tool(name: str, major: int, client_dirs: list[str]) -> Path:
    """Path of `name` (pg_dump, pg_restore, pg_dumpall) of exactly this major version.

    Any other version is refused: archives of a newer client do not restore cleanly into an older server.
    Raises NotFound naming what was found where.
    """
    seen: list[str] = []
    for folder in client_dirs:
        path = Path(folder.format(major=major)) / name
        if not path.is_file():
            continue
        version = tool_version(path)
        if version[0] == major:
            return path
        seen.append(f"{path} is {version[0]}.{version[1]}")
    raise NotFound(
        f"no {name} for PostgreSQL {major}",
        expected=f"{name} of major version {major} in one of {', '.join(client_dirs)}",
        found=", ".join(seen) or "none",
        remedy=f"install the PostgreSQL {major} client tools or add their folder to PAYME_OPS__POSTGRES__CLIENT_DIRS",
    )


def tool_failure(tool: str, code: int, stderr: str) -> DatabaseUnavailable | DumpFailed:
    """The error for a client tool that ended with `code`; lost connections are worth another try."""
    # Only the tool's own lines: DETAIL, CONTEXT and the statement that follow one hold rows.
    own = [line for line in stderr.splitlines() if line.startswith(f"{tool}: ")]
    lines = [scrub(line.strip()) for line in own or stderr.splitlines() if line.strip()]
    said = " / ".join(lines[:3])[:400] or "nothing"
    if any(sign in stderr for sign in _CONNECTION_LOST):
        return DatabaseUnavailable(
            f"{tool} lost its connection",
            expected="a connection that lasts",
            found=said,
            remedy="look whether the server restarted or the network was cut",
        )
    ended = f"signal {-code}" if code < 0 else f"exit code {code}"
    return DumpFailed(
        f"{tool} failed",
        expected="exit code 0",
        found=f"{ended}, saying: {said}",
        remedy="read what it says; `python -m payme_ops doctor` names missing rights",
    )
