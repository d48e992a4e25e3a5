"""Every step and every undo on a copy that nobody needs, under the application's kind of traffic.

The key is made for the rehearsal: the copy holds plaintext, and what is encrypted in it goes away with it.
"""

import os
import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from statistics import quantiles
from typing import Any, LiteralString

import psycopg
from psycopg import sql
from psycopg.conninfo import make_conninfo

from payme_ops.foundation import evidence
from payme_ops.foundation.clock import utc_now
from payme_ops.foundation.errors import NotFound, PaymeOpsError
from payme_ops.foundation.evidence import Evidence, Finding, Verdict, failed, passed
from payme_ops.foundation.postgres import connect, speaking
from payme_ops.foundation.progress import Report
from payme_ops.migration import backfill, envelope, steps, verify
from payme_ops.migration.desk import MigrationDesk, no_table
from payme_ops.migration.envelope import Keys
from payme_ops.migration.names import Names
from payme_ops.migration.steps import BROWN_OUT, END_SHIM, EXPAND, FINISH, RELAX, SWITCH, Step

KIND = "phone_encryption_rehearsal"
_WORKERS, _SAMPLE, _PAUSE_SECONDS = 2, 1000, 0.002
MIGRATE_ROLE = "payme_db_migrate"


def throw_away_keys(names: Names) -> Keys:
    """Keys of this rehearsal only."""
    return envelope.load_keys({envelope.KEY_VARIABLE: os.urandom(32).hex()}, key_id="rehearsal", names=names)


def open_doors(superuser: str, names: Names, app_role: str) -> tuple[str, str]:
    """Let the migrate role and the application's into the throw-away database; their conninfos.

    Raises NotFound when the backup has no such role, or no such table.
    """
    doors = []
    with connect(superuser, application="payme_ops:rehearsal") as admin, speaking("let the roles in"):
        database = sql.Identifier(admin.info.dbname)
        for role in (MIGRATE_ROLE, app_role):
            if admin.execute("SELECT FROM pg_roles WHERE rolname = %s", [role]).rowcount == 0:
                raise NotFound(
                    f"the backup has no role {role}",
                    expected="the roles of include/sql/grants/migrate_role.sql and of the application",
                    found="a backup that is older than the role, or another setting",
                    remedy="make the role, run backup_daily and backup_restore_test, then rehearse",
                )
            password, name = os.urandom(24).hex(), sql.Identifier(role)
            admin.execute(sql.SQL("ALTER ROLE {} LOGIN PASSWORD {}").format(name, sql.Literal(password)))
            admin.execute(sql.SQL("GRANT CONNECT ON DATABASE {} TO {}").format(database, name))
            doors.append(make_conninfo(superuser, user=role, password=password))
        # As in production; a backup has no rights on the database itself.
        owner = admin.execute(
            "SELECT pg_get_userbyid(relowner) FROM pg_class WHERE oid = to_regclass(%s)",
            [names.identifiers["relation"].as_string(admin)],
        ).fetchone()
        if owner is None:
            raise no_table(names)
        admin.execute(sql.SQL("GRANT CREATE ON DATABASE {} TO {}").format(database, sql.Identifier(owner[0])))
    return doors[0], doors[1]


def rehearse(desk: MigrationDesk, keys: Keys, application: str, report: Report) -> list[Evidence]:
    """The whole migration on the desk's database: each step done, undone and done again as far as it has an undo.

    `application` is the conninfo of the application's role, which reads and writes numbers throughout. Ends at the
    first step that fails; its evidence says why.
    """
    found: list[Evidence] = []
    with _traffic(desk.names, keys, application, found, desk) as stage:

        def work(name: str, do: Callable[[], Any]) -> None:
            started, clock = utc_now(), time.monotonic()
            report(f"rehearsal: {name}")
            try:
                do()
                finding = passed({"milliseconds": round((time.monotonic() - clock) * 1000)})
            except PaymeOpsError as error:
                finding = failed({"error": error.what, "expected": error.expected, "found": error.found}, error.remedy)
            found.append(_evidence(desk, name, finding, "it succeeds", started))
            if finding.verdict is not Verdict.PASS:
                raise _Ended

        def there_and_back(step: Step, before: str = "", after: str = "") -> None:
            work(step.name, lambda: _take(desk, step, report))
            stage(after)
            stage(before)
            work(f"undo {step.name}", lambda: step.undo(desk, report))
            work(f"{step.name} again", lambda: _take(desk, step, report))
            stage(after)

        with suppress(_Ended):
            stage("plaintext")
            there_and_back(EXPAND, before="plaintext", after="both")
            work("backfill", lambda: _encrypt(desk, keys, report))
            there_and_back(FINISH)
            work("verify", lambda: _verify(desk, keys, report))
            there_and_back(RELAX)
            stage("ciphertext")
            work("reverse backfill", lambda: backfill.reverse(desk, keys, report))
            there_and_back(BROWN_OUT)
            work("switch", lambda: _take(desk, SWITCH, report))
            stage("final")
            there_and_back(END_SHIM)
            work("verify at the end", lambda: _verify(desk, keys, report))
    return found


class _Ended(Exception):
    """A step failed; its evidence is there."""


def _take(desk: MigrationDesk, step: Step, report: Report) -> None:
    steps.gate(desk, step.gate, step.before(desk))
    steps.take(desk, step, report)


def _encrypt(desk: MigrationDesk, keys: Keys, report: Report) -> None:
    for low, high in backfill.plan_ranges(desk, _WORKERS):
        backfill.encrypt_range(desk, keys, low, high, pass_number=1, report=report)
    backfill.catch_up(desk, keys, report)


def _verify(desk: MigrationDesk, keys: Keys, report: Report) -> None:
    found = verify.verify(desk, keys, workers=_WORKERS, report=report)
    if found.kinds:
        raise PaymeOpsError(
            "not every row decrypts to its number", expected="no fault", found=evidence.plain(found.kinds)
        )


def _evidence(desk: MigrationDesk, item: str, finding: Finding, threshold: str, started: Any) -> Evidence:
    return evidence.conclude(
        item, finding, threshold=threshold, actor=desk.run, source=f"database {desk.database}", started=started
    )


# -- traffic ----------------------------------------------------------------------------------------------------

# Which columns the application knows, from release to release.
_READS: dict[str, LiteralString] = {
    "plaintext": "SELECT {plaintext} FROM {relation} WHERE {key} = %(key)s",
    "both": "SELECT {plaintext} FROM {relation} WHERE {key} = %(key)s",
    "ciphertext": "SELECT {ciphertext} FROM {relation} WHERE {blind_index} = %(index)s AND {key} = %(key)s",
    "final": "SELECT {plaintext} FROM {relation} WHERE {blind_index} = %(index)s AND {key} = %(key)s",
}
_WRITES: dict[str, LiteralString] = {
    "plaintext": "UPDATE {relation} SET {plaintext} = %(plain)s WHERE {key} = %(key)s",
    "both": "UPDATE {relation} SET {plaintext} = %(plain)s, {ciphertext} = %(sealed)s, {blind_index} = %(index)s"
    " WHERE {key} = %(key)s",
    "ciphertext": "UPDATE {relation} SET {ciphertext} = %(sealed)s, {blind_index} = %(index)s WHERE {key} = %(key)s",
    "final": "UPDATE {relation} SET {plaintext} = %(sealed)s, {blind_index} = %(index)s WHERE {key} = %(key)s",
}


@dataclass
class _Seen:
    """What became of the traffic."""

    stage: str = ""
    milliseconds: list[float] = field(default_factory=list)
    failed: Counter[str] = field(default_factory=Counter)
    wrong: int = 0


@contextmanager
def _traffic(
    names: Names, keys: Keys, application: str, found: list[Evidence], desk: MigrationDesk
) -> Iterator[Callable[[str], None]]:
    """Read numbers and write the same ones again, as the release does that the yielded function was told; at the end
    the evidence of it is added to `found`."""
    seen, lock, stop, started = _Seen(), threading.Lock(), threading.Event(), utc_now()

    def stage(name: str) -> None:
        if name:
            with lock:  # between two rounds: the release before is drained
                seen.stage = name

    thread = threading.Thread(target=_send, args=(names, keys, application, seen, lock, stop), daemon=True)
    thread.start()
    try:
        yield stage
    finally:
        stop.set()
        thread.join()
        found.append(_evidence(desk, "traffic", _judged(seen), "no failed query, no wrong number", started))


def _judged(seen: _Seen) -> Finding:
    times = seen.milliseconds
    measured: dict[str, Any] = {"queries": len(times), "failed": dict(seen.failed), "wrong": seen.wrong}
    if len(times) > 1:
        measured |= {"p99_ms": round(quantiles(times, n=100)[-1], 1), "slowest_ms": round(max(times), 1)}
    if seen.failed or seen.wrong:
        return failed(measured, "look at the step during which it failed; do not migrate before it is understood")
    return passed(measured) if times else failed(measured, "no query was sent: the table is empty")


def _send(names: Names, keys: Keys, application: str, seen: _Seen, lock: threading.Lock, stop: threading.Event) -> None:
    query = sql.SQL(
        "SELECT {key}, {plaintext} FROM {relation} WHERE {plaintext} IS NOT NULL ORDER BY {key} LIMIT %s"
    ).format(**names.identifiers)
    try:
        with psycopg.connect(application, autocommit=True, application_name="payme-api/rehearsal") as connection:
            known = connection.execute(query, [_SAMPLE]).fetchall()
            while known and not stop.wait(_PAUSE_SECONDS):
                with lock:
                    _round(connection, names, keys, seen, *random.choice(known))  # noqa: S311  # any will do
    except psycopg.Error as error:
        seen.failed[error.sqlstate or type(error).__name__] += 1


def _round(connection: psycopg.Connection, names: Names, keys: Keys, seen: _Seen, key: int, text: str) -> None:
    if not seen.stage:
        return
    bound = names.associated_data(key)
    values = {"key": key, "plain": text, "index": envelope.blind_index(keys, text)}
    values["sealed"] = envelope.encrypt(keys, bound, text)
    for statements in (_WRITES, _READS):
        statement = sql.SQL(statements[seen.stage]).format(**names.identifiers)
        began = time.monotonic()
        try:
            cursor = connection.execute(statement, values, prepare=True)
            rows = cursor.fetchall() if statements is _READS else [(None,)] * cursor.rowcount
        except psycopg.Error as error:
            seen.failed[error.sqlstate or type(error).__name__] += 1
            continue
        seen.milliseconds.append((time.monotonic() - began) * 1000)
        if len(rows) != 1 or (statements is _READS and not _is(seen.stage, keys, bound, rows[0][0], text)):
            seen.wrong += 1


def _is(stage: str, keys: Keys, bound: bytes, stored: str | None, text: str) -> bool:
    if stage in ("plaintext", "both"):
        return stored == text
    with suppress(envelope.Undecryptable):
        return stored is not None and envelope.decrypt(keys, bound, stored) == text
    return False
