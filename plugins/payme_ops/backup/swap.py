"""Put a restored database in the place of another, by two renames in one transaction.

Where a swap stands is found by looking: at names, and at the markers in databases' comments. So it may be killed at
any instruction: the name leads to the old database or to the restored one, whole, and running it again ends it.
The old one is kept, closed to everybody, until `drop_replaced`.
"""

import json
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

import psycopg
from psycopg import sql
from psycopg.rows import dict_row

from payme_ops.foundation import lease
from payme_ops.foundation.clock import EAT, show, utc_now
from payme_ops.foundation.errors import NotFound, PaymeOpsError
from payme_ops.foundation.evidence import digest
from payme_ops.foundation.postgres import connect, speaking
from payme_ops.foundation.progress import Report
from payme_ops.foundation.sql import load

_MARK = "payme-ops "
_END_EVERY_SECONDS = 0.05
# A rename waits up to 5 s by itself for sessions to end; somebody else's lock on the name is waited for this long.
_LOCK_TIMEOUT = "5s"
# Of the name's 63 characters, so that the rest fits behind it.
_NAME_CHARACTERS = 37


@dataclass(frozen=True)
class Facts:
    """What belongs to a database by its name and not to its content; a swap carries it over."""

    owner: str
    privileges: list[str]
    settings: list[str]
    connection_limit: int
    comment: str | None
    tablespace: str
    locale: str
    size_bytes: int

    @property
    def carried(self) -> dict[str, object]:
        """What must be the same before and after."""
        return {
            "owner": self.owner,
            "privileges": self.privileges,
            "settings": self.settings,
            "connection limit": self.connection_limit,
        }


@dataclass(frozen=True)
class Mark:
    """What a database's comment says of it: restored (beside, complete) or replaced (the old one, kept)."""

    name: str
    state: str
    target: str
    run: str
    at: datetime
    backup: str


@dataclass(frozen=True)
class Swapped:
    """What a swap came to: the old database's new name (empty when there was none), and what was carried over."""

    target: str
    replaced: str
    carried: dict[str, Any]


def beside_name(target: str, run: str) -> str:
    """Name of the database that a run restores into, the same each time it is tried."""
    return f"{target[:_NAME_CHARACTERS]}_restore_{digest(run)[:12]}"


def _replaced_name(target: str, at: datetime) -> str:
    return f"{target[:_NAME_CHARACTERS]}_replaced_{at.astimezone(EAT):%Y%m%d_%H%M%S}"


def facts(session: psycopg.Connection, name: str) -> Facts | None:
    """What belongs to a database; None when there is none of that name. Raises psycopg.Error."""
    with session.cursor(row_factory=dict_row) as cursor:
        row = cursor.execute(load("restore/database_facts.sql"), {"name": name}).fetchone()
    return Facts(**row) if row else None


def marks(session: psycopg.Connection) -> list[Mark]:
    """Databases that restores made or put aside. Raises psycopg.Error."""
    found = []
    for name, comment in session.execute(load("restore/marked_databases.sql")):
        try:
            said = json.loads(comment.removeprefix(_MARK))
            found.append(Mark(name=name, **{**said, "at": datetime.fromisoformat(said["at"])}))
        except (ValueError, TypeError, KeyError):
            continue  # somebody's own words
    return found


def mark_restored(conninfo: str, name: str, *, target: str, run: str, backup: str) -> None:
    """Say in the comment of `name` that it holds `backup` whole. Raises DatabaseUnavailable, DatabaseError."""
    with connect(conninfo, application="payme_ops:swap") as session, speaking(f"mark database {name}"):
        _comment(session, name, _said("restored", target, run, backup))


def _said(state: str, target: str, run: str, backup: str) -> str:
    said = {"state": state, "target": target, "run": run, "at": utc_now().isoformat(), "backup": backup}
    return _MARK + json.dumps(said)


def _comment(session: psycopg.Connection, name: str, text: str | None) -> None:
    statement = sql.SQL("COMMENT ON DATABASE {} IS {}").format(sql.Identifier(name), sql.Literal(text))
    session.execute(statement)


def require_power(session: psycopg.Connection, target: str) -> None:
    """Raises PaymeOpsError naming the right that this role lacks for a swap; nothing has been touched then."""
    with session.cursor(row_factory=dict_row) as cursor:
        row = cursor.execute(load("restore/may_swap.sql"), {"name": target}).fetchone() or {}
    lacking = [name.replace("_", " ") for name, has in row.items() if not has]
    if lacking:
        raise PaymeOpsError(
            f"this role cannot swap {target}",
            expected="a role that creates databases, ends sessions, copies settings and owns target",
            found=f"not: {', '.join(lacking)}",
            remedy="as a superuser run restore_functions.sql of include/sql/grants, for the owner restore_role.sql",
        )


def swap(ops: str, conninfo: str, *, environment: str, target: str, beside: str, run: str, report: Report) -> Swapped:
    """Give `beside` the name `target`; what had it is kept under another.

    No dump, schema change or release runs meanwhile (three leases). Owner, privileges, settings and connection limit
    are carried over and compared before; the renames take parts of a second and end every session of `target`. Run
    again after anything: it finds what is done. Raises LeaseHeld, NotFound, DatabaseError (SQLSTATE 55006: a session
    that may not be ended holds the database), PaymeOpsError when what was carried over is not the same.
    """
    with ExitStack() as stack:
        held = [
            stack.enter_context(lease.hold(ops, name, run))
            for name in (f"snapshot:{target}", f"ddl:{target}", f"release:{environment}")
        ]
        session = stack.enter_context(connect(conninfo, application="payme_ops:swap"))
        with speaking(f"swap {target}"):
            if before := _done(session, target, run):
                report(f"{target} was swapped already; the old one is {before.replaced or 'none'}")
                return before
            require_power(session, target)
            old, mark = facts(session, target), _restored(session, beside, target, run)
            if old:
                _carry_over(session, old, target, beside)
        return _rename(conninfo, session, held, old=old, mark=mark, report=report)


def done(conninfo: str, target: str, run: str) -> Swapped | None:
    """What the swap of this run came to, None when it was not done. Raises DatabaseUnavailable, DatabaseError."""
    with connect(conninfo, application="payme_ops:swap") as session, speaking(f"look at {target}"):
        return _done(session, target, run)


def _restored(session: psycopg.Connection, beside: str, target: str, run: str) -> Mark:
    for mark in marks(session):
        if (mark.name, mark.state, mark.target, mark.run) == (beside, "restored", target, run):
            return mark
    raise NotFound(
        f"there is no restored database {beside}",
        expected=f"a whole restore for {target} under that name",
        found="none, or one that did not end",
        remedy="restore beside first; the old database is as it was",
    )


def _done(session: psycopg.Connection, target: str, run: str) -> Swapped | None:
    """What this run's swap came to, if it is done. Without an old database the restored one bears the marker on."""
    found = facts(session, target)
    for mark in marks(session):
        mine = mark.run == run and mark.target == target
        if found and mine and (mark.state == "replaced" or mark.name == target):
            return Swapped(target, mark.name if mark.state == "replaced" else "", found.carried)
    return None


def _carry_over(session: psycopg.Connection, before: Facts, source: str, beside: str) -> None:
    """Owner, privileges, settings and connection limit of `source` to `beside`, and compare."""
    name = sql.Identifier(beside)
    session.execute(sql.SQL("ALTER DATABASE {} OWNER TO {}").format(name, sql.Identifier(before.owner)))
    limit = sql.Literal(before.connection_limit)
    session.execute(sql.SQL("ALTER DATABASE {} CONNECTION LIMIT {}").format(name, limit))
    _copy_privileges(session, source, beside)
    session.execute("SELECT payme_restore.copy_settings(%s::name, %s::name)", [source, beside])
    after = facts(session, beside)
    carried = after.carried if after else {}
    differ = [part for part, value in before.carried.items() if carried.get(part) != value]
    if differ:
        raise PaymeOpsError(
            f"what belongs to {source} could not be carried over",
            expected=", ".join(f"{part} {before.carried[part]}" for part in differ),
            found=", ".join(f"{part} {carried.get(part)}" for part in differ),
            remedy="the old database is as it was; a database administrator carries these over, then clear the task",
        )


def _copy_privileges(session: psycopg.Connection, source: str, beside: str) -> None:
    name, query = sql.Identifier(beside), load("restore/privileges.sql")
    with session.transaction():
        for grantee, _, _ in session.execute(query, {"name": beside}).fetchall():
            session.execute(sql.SQL("REVOKE ALL ON DATABASE {} FROM {}").format(name, _role(grantee)))
        for grantee, privilege, grantable in session.execute(query, {"name": source}).fetchall():
            statement = sql.SQL("GRANT {} ON DATABASE {} TO {}{}").format(
                sql.SQL(privilege), name, _role(grantee), sql.SQL(" WITH GRANT OPTION" if grantable else "")
            )
            session.execute(statement)


def _role(grantee: str | None) -> sql.Composable:
    return sql.SQL("PUBLIC") if grantee is None else sql.Identifier(grantee)


def _rename(
    conninfo: str,
    session: psycopg.Connection,
    held: list[lease.Lease],
    *,
    old: Facts | None,
    mark: Mark,
    report: Report,
) -> Swapped:
    """Both renames in one transaction, which waits for the database to be empty while others' sessions are ended.

    Whoever connects meanwhile waits for the transaction's lock on the database and is then told that the name is
    another's: at its next try it is in the restored one.
    """
    began, target = utc_now(), mark.target
    replaced = _replaced_name(target, began) if old else ""
    with _without_sessions(conninfo, target, mark.name), speaking(f"swap {target}"), session.transaction():
        session.execute(sql.SQL("SET LOCAL lock_timeout = {}").format(sql.Literal(_LOCK_TIMEOUT)))
        if old:
            _rename_database(session, target, replaced)
            _comment(session, replaced, _said("replaced", target, mark.run, mark.backup))
            # Nobody, of whatever rank, writes to the old one by mistake; its owner can open it again.
            closed = sql.SQL("ALTER DATABASE {} ALLOW_CONNECTIONS false").format(sql.Identifier(replaced))
            session.execute(closed)
            _comment(session, mark.name, old.comment)
        _rename_database(session, mark.name, target)
        for one in held:
            one.check()
    report(f"{target} is the restored database since {show(began)}; the old one is {replaced or 'none'}")
    found = facts(session, target)
    if found is None or (old and found.carried != old.carried):
        raise PaymeOpsError(
            f"{target} has not what it had before",
            expected=str(old.carried if old else "a database"),
            found=str(found.carried if found else "none"),
            remedy="do not start the application; call the database administrator",
        )
    return Swapped(target, replaced, found.carried)


def _rename_database(session: psycopg.Connection, name: str, to: str) -> None:
    session.execute(sql.SQL("ALTER DATABASE {} RENAME TO {}").format(sql.Identifier(name), sql.Identifier(to)))


@contextmanager
def _without_sessions(conninfo: str, *names: str) -> Iterator[None]:
    """During the block a session of its own ends every other one in these databases, again and again."""
    stop = threading.Event()
    with connect(conninfo, application="payme_ops:swap:end_sessions") as session:

        def end() -> None:
            while not stop.is_set():
                for name in names:
                    session.execute(load("restore/end_sessions.sql"), {"name": name})
                stop.wait(_END_EVERY_SECONDS)

        ender = threading.Thread(target=_quietly, args=(end,), name="end sessions", daemon=True)
        ender.start()
        try:
            yield
        finally:
            stop.set()
            ender.join()


def _quietly(work: Any) -> None:
    try:
        work()
    except psycopg.Error:
        return  # without it the rename is refused, and says so


def replaced(conninfo: str) -> list[Mark]:
    """Databases that a swap put aside. Raises DatabaseUnavailable, DatabaseError."""
    with connect(conninfo, application="payme_ops:replaced") as session, speaking("list replaced databases"):
        return [mark for mark in marks(session) if mark.state == "replaced"]


def drop_replaced(conninfo: str, *, older_than: timedelta, report: Report) -> list[str]:
    """Drop those that were put aside longer ago, and what a run restored beside as long ago and left there.

    Answers their names. Raises DatabaseUnavailable, DatabaseError.
    """
    with connect(conninfo, application="payme_ops:replaced") as session, speaking("list replaced databases"):
        over = [mark for mark in marks(session) if mark.at + older_than <= utc_now() and mark.name != mark.target]
    for mark in over:
        drop(conninfo, mark.name)
        report(f"{mark.name}, {mark.state} {show(mark.at)}, is dropped")
    return [mark.name for mark in over]


def drop(conninfo: str, name: str) -> None:
    """Drop a database that a restore made or put aside; one without the marker, or none, is left alone."""
    with connect(conninfo, application="payme_ops:replaced") as session, speaking(f"drop database {name}"):
        if any(mark.name == name != mark.target for mark in marks(session)):
            session.execute(sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(sql.Identifier(name)))
