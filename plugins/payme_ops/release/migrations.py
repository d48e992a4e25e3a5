"""The application's own migrations (Drizzle's files), tried on a copy that nobody needs: up, down, and up again.

Only what was seen to come back there, schema and rows, may be rolled back without a person. A migration is a file of
the application's repository, its way back a file of the same name in `down/`.
"""

import hashlib
import os
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import psycopg
from psycopg import sql
from psycopg.conninfo import make_conninfo
from psycopg.pq import TransactionStatus

from payme_ops.foundation import content, evidence
from payme_ops.foundation.errors import DatabaseError, IntegrityError, NotFound, Unavailable
from payme_ops.foundation.evidence import Finding, Verdict, failed, passed
from payme_ops.foundation.postgres import connect, speaking
from payme_ops.foundation.progress import Report
from payme_ops.foundation.sql import load
from payme_ops.release.code_host import CodeHost
from payme_ops.release.request import Request

BREAKPOINT = "--> statement-breakpoint"
_APPLICATION = "payme_ops:rehearsal"
_STATEMENT_SECONDS = 1800
_SHOWN, _CUT = 10, 100
# Classes of SQLSTATE whose messages name objects and no values: constraints, transactions, roles, schemas, syntax and
# names, limits, objects in the wrong state, what an administrator or a timeout has ended.
_NAMES_ONLY = ("", "0A", "23", "25", "2B", "3F", "42", "54", "55", "57")
_LOOK = "there are none where PAYME_OPS__RELEASE__MIGRATIONS_PATH points: is it the right folder?"

_Schema = dict[tuple[str, str], str]
_Rows = dict[str, tuple[int, str]]


@dataclass(frozen=True)
class Migration:
    """One file, and the script that undoes it, if there is one."""

    name: str
    up: str = field(repr=False)
    down: str | None = field(repr=False)


def tested(host: CodeHost, request: Request, path: str, rehearsed: Callable[[Sequence[Migration]], Finding]) -> Finding:
    """The item `migrations_tested`: what the form says is what the commit brings, and what it brings was rehearsed.

    `rehearsed` is called with the new migrations of the folder `path`, if there are any. `rollback_safe` is in
    what was measured. Raises IntegrityError as `new_migrations`, Unavailable, ServiceRefused.
    """
    try:
        found = new_migrations(host, request, path)
    except NotFound as error:
        measured = {"folder": path, "migrations": "none, old or new", "rollback_safe": False}
        verdict = Verdict.FAIL if request.carries_migration else Verdict.INCONCLUSIVE
        return Finding(verdict, measured, error.remedy)
    said = {"form": "carries a migration" if request.carries_migration else "carries none"}
    measured = {**said, "new": [one.name for one in found]}
    if bool(found) != request.carries_migration:
        todo = "the form and the commit disagree: ask for the release again with what is so, or with another commit"
        return failed({**measured, "rollback_safe": False}, todo)
    if not found:
        return passed({**measured, "rollback_safe": True})
    finding = rehearsed(found)
    return Finding(finding.verdict, {**measured, **finding.measured}, finding.remedy)


def new_migrations(host: CodeHost, request: Request, path: str) -> list[Migration]:
    """The `*.sql` files of the folder that the release's commit has and the previous one has not, in name order.

    Raises IntegrityError naming files of the previous commit that are gone or changed, since what was applied is not
    applied again; for a file that is no text, or not what the code host lists; for a commit that it has not. NotFound
    when neither commit has any.
    """
    for commit in (request.previous_commit, request.commit):
        if not host.exists(commit):  # or it would look like one without migrations
            raise IntegrityError(f"the code host has no commit {commit[:12]}", remedy="name commits that were pushed")
    before, now = (_listed(host, path, commit) for commit in (request.previous_commit, request.commit))
    if not before and not now:
        raise NotFound(f"there are no migrations in {path}", expected="files *.sql", found="none", remedy=_LOOK)
    if changed := [name for name in before if now.get(name) != before[name]]:
        raise IntegrityError(
            "migrations of the previous commit have changed",
            expected="each as it was applied",
            found=f"changed or gone: {_some(changed)}",
            remedy="bring them back as they were, and put the change into a new migration",
        )
    new = [name for name in now if name not in before]
    ways_back = _listed(host, f"{path}/down", request.commit) if new else {}
    return [
        Migration(
            name,
            _text(host, f"{path}/{name}", request.commit, now[name]),
            _text(host, f"{path}/down/{name}", request.commit, ways_back[name]) if name in ways_back else None,
        )
        for name in new
    ]


def _listed(host: CodeHost, path: str, commit: str) -> dict[str, str]:
    return {name: mark for name, mark in host.directory(path, commit).items() if name.endswith(".sql")}


def _text(host: CodeHost, path: str, commit: str, mark: str) -> str:
    """The file as text. A code host may leave out what is large: its hash in the listing says whether it is whole."""
    data = host.file(path, commit) or b""
    if hashlib.sha1(b"blob %d\0" % len(data) + data, usedforsecurity=False).hexdigest() != mark:
        raise IntegrityError(
            f"{path} is not the file that the code host lists",
            expected=f"git's hash {mark[:12]}",
            found=f"{len(data)} bytes of another",
            remedy="files of more than 1 MB are not answered: split it",
        )
    try:
        text = data.decode()
    except UnicodeDecodeError:
        text = "\0"
    if "\0" in text or not statements(text):
        raise IntegrityError(
            f"{path} is no SQL script",
            expected="UTF-8 text with a statement in it",
            found="no statement" if text.strip("\0") or not data else "other bytes",
            remedy="correct the file, and release that commit",
        )
    return text


def statements(text: str) -> list[str]:
    """The parts of a script that are sent one by one: split at Drizzle's mark, as Drizzle does, wherever it stands."""
    return [part.strip() for part in text.split(BREAKPOINT) if part.strip()]


# -- the rehearsal ----------------------------------------------------------------------------------------------


@dataclass
class _Rehearsal:
    """What is worked on, and what was measured so far."""

    owner: str = field(repr=False)  # a conninfo with a password
    report: Report
    measured: dict[str, Any]

    def run(self, way: str, scripts: Sequence[tuple[str, str]]) -> None:
        """Send scripts of (name, text) as the owner. Raises _Stopped, Unavailable."""
        begun = time.monotonic()
        for name, text in scripts:
            self.report(f"migrations: {way} {name}")
            _send(self.owner, way, name, text)
        self.measured["milliseconds"][way] = round((time.monotonic() - begun) * 1000)

    def look(self, superuser: str, when: str) -> _Schema:
        """The schema as it is now; its digest goes into what was measured."""
        found = _schema(superuser)
        listed = sorted([*name, what] for name, what in found.items())
        self.measured["schema"][when] = f"sha256 {evidence.digest(listed)}"
        return found


class _Stopped(Exception):
    """A script failed; `measured` says which statement, `todo` what to do."""

    def __init__(self, measured: dict[str, Any], todo: str) -> None:
        super().__init__(todo)
        self.measured, self.todo = measured, todo


def rehearse(conninfo: str, migrations: Sequence[Migration], report: Report) -> Finding:
    """Migrate the database of `conninfo` up, down and up again, as the role that owns its tables.

    `conninfo` is a superuser's, of a database on a server that nobody needs: that role gets a new password, and is
    no superuser afterwards. Passes, with `rollback_safe`, when after the way down schema and rows are as before, and
    the second way up leads to the schema of the first. Without all ways back it is inconclusive at best. Takes two
    passes over every table beside the scripts. Raises NotFound without a table, Unavailable.
    """
    door, role = _open_door(conninfo)
    measured: dict[str, Any] = {
        "role": role,
        "scripts": [_facts(one) for one in migrations],
        "milliseconds": {},
        "schema": {},
        "rollback_safe": False,
    }
    rehearsal = _Rehearsal(door, report, measured)
    ups = [(one.name, one.up) for one in migrations]
    downs = [(one.name, one.down) for one in reversed(migrations) if one.down is not None]
    try:
        before, rows = rehearsal.look(conninfo, "before"), _rows(conninfo)
        measured["tables"], measured["rows"] = len(rows), sum(count for count, _ in rows.values())
        rehearsal.run("up", ups)
        after = rehearsal.look(conninfo, "up")
        if len(downs) < len(ups):
            lacking = _some([one.name for one in migrations if one.down is None])
            todo = f"no way back for {lacking}: after a bad release nothing is rolled back by itself; a person decides"
            return Finding(Verdict.INCONCLUSIVE, measured, todo)
        rehearsal.run("down", downs)
        if left := _differences(before, rehearsal.look(conninfo, "down")):
            todo = "correct the down scripts: they do not lead back to the schema from before"
            return failed({**measured, "not as before": left}, todo)
        if lost := _differences(rows, _rows(conninfo)):
            todo = "correct the scripts: up and down lose or change rows, and that is no way back"
            return failed({**measured, "rows not as before": lost}, todo)
        rehearsal.run("up again", ups)
        if other := _differences(after, rehearsal.look(conninfo, "up again")):
            todo = "correct the scripts: after a way back the second way up leads elsewhere"
            return failed({**measured, "not as after the first": other}, todo)
    except _Stopped as stopped:
        return failed({**measured, **stopped.measured}, stopped.todo)
    return passed({**measured, "rollback_safe": True})


def _facts(one: Migration) -> dict[str, Any]:
    return {
        "name": one.name[:_CUT],
        "statements": len(statements(one.up)),
        "up": _sha256(one.up),
        "down": _sha256(one.down) if one.down is not None else "none",
    }


def _sha256(text: str) -> str:
    return f"sha256 {hashlib.sha256(text.encode()).hexdigest()}"  # without that word it would be scrubbed as a key


def _open_door(superuser: str) -> tuple[str, str]:
    """Conninfo and name of the role that migrates. A login of its own: a session that only plays its part could take
    the superuser's power back, and with it run programs on this worker."""
    password = os.urandom(24).hex()
    with connect(superuser, application=_APPLICATION) as admin, speaking("let the owner of the tables in"):
        row = admin.execute(load("release/owner.sql")).fetchone()
        if row is None:
            raise NotFound("the backup has no table", expected="the application's tables", found="none")
        role, database = sql.Identifier(row[0]), sql.Identifier(admin.info.dbname)
        admin.execute(
            sql.SQL("ALTER ROLE {} LOGIN NOSUPERUSER CONNECTION LIMIT -1 VALID UNTIL 'infinity' PASSWORD {}").format(
                role, sql.Literal(password)
            )
        )
        # As in production; a backup has no rights on the database itself.
        admin.execute(sql.SQL("GRANT CONNECT, CREATE, TEMPORARY ON DATABASE {} TO {}").format(database, role))
    options = f"-c statement_timeout={_STATEMENT_SECONDS}s"
    return make_conninfo(superuser, user=row[0], password=password, options=options), str(row[0])


def _send(owner: str, way: str, name: str, text: str) -> None:
    """A script in a session of its own, each statement by itself, so that an index may be built CONCURRENTLY."""
    where: dict[str, Any] = {"failed": f"{way} {name[:_CUT]}"}
    with connect(owner, application=_APPLICATION) as session:
        for number, statement in enumerate(statements(text), 1):
            try:
                with speaking(f"{way} {name}, statement {number}"):
                    session.execute(statement.encode())
            except DatabaseError as error:
                if error.sqlstate.startswith("53"):
                    raise Unavailable(
                        "there is not enough room for the rehearsal",
                        found=error.found,
                        remedy="make room on the restore worker; this says nothing about the migration",
                    ) from None
                todo = f"correct the {'down ' if way == 'down' else ''}script, and release that commit"
                raise _Stopped({**where, "statement": number, "said": _said(error)}, todo) from None
        if session.info.transaction_status is not TransactionStatus.IDLE:
            raise _Stopped({**where, "said": "a transaction is left open"}, "end what the script begins")


def _said(error: DatabaseError) -> str:
    """What the server said, without values: the message about a bad value, or of a function's own, may hold one."""
    if error.sqlstate[:2] in _NAMES_ONLY:
        return error.found
    with suppress(KeyError):
        return f"SQLSTATE {error.sqlstate} {psycopg.errors.lookup(error.sqlstate).__name__}"
    return f"SQLSTATE {error.sqlstate}"


# -- what is compared -------------------------------------------------------------------------------------------


def _schema(superuser: str) -> _Schema:
    """Definition, owner and privileges of every object."""
    with connect(superuser, application=_APPLICATION) as session, speaking("look at the schema"):
        content.pin_settings(session)
        found = {(kind, name): mark for kind, name, mark in content.definitions(session)}
        rights = {("rights", name): f"{owner}: {rights}" for name, owner, rights in content.grants(session)}
    return {**found, **rights}


def _rows(superuser: str) -> _Rows:
    """Rows and content hash of every table."""
    with connect(superuser, application=_APPLICATION) as session, speaking("count rows and hash them"):
        content.pin_settings(session)
        columns = content.hashed_columns(session)
        return {
            f"{one['schema']}.{one['name']}": content.rows_and_hash(
                session, one["schema"], one["name"], columns[one["oid"]]
            )
            for one in content.list_relations(session)
            if one["kind"] == "r"
        }


def _differences(before: dict[Any, Any], after: dict[Any, Any]) -> list[str]:
    """What is there only once, or otherwise: the first names."""
    names = [name for name in {**before, **after} if before.get(name) != after.get(name)]
    return sorted(name if isinstance(name, str) else " ".join(name) for name in names)[:_SHOWN]


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(name[:_CUT] for name in names[:_SHOWN]) + more
