"""The checklists before and during the migration. What other parts know comes in as arguments (DESIGN.md section 1)."""

import hashlib
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime, timedelta
from datetime import time as TimeOfDay
from functools import cache
from pathlib import Path
from statistics import median
from typing import Any

import psycopg
from psycopg.rows import dict_row

from payme_ops.foundation import http
from payme_ops.foundation.clock import EAT, show
from payme_ops.foundation.evidence import Check, Finding, Verdict, failed, passed
from payme_ops.foundation.payme_api import Health, Metrics
from payme_ops.foundation.postgres import speaking
from payme_ops.foundation.record import Record
from payme_ops.foundation.sql import SQL_DIR
from payme_ops.migration import envelope, shape
from payme_ops.migration.desk import MigrationDesk, no_table, session
from payme_ops.migration.names import Names, statement

GREEN = "green"  # a rehearsal's verdict when every step and every undo was
REHEARSAL_MAX_AGE = timedelta(hours=24)
LOCK_WAIT = timedelta(seconds=1)
LONGEST_TRANSACTION_SECONDS = 300.0
REPLICA_LAG_SECONDS = 30.0
API_SECONDS = 2.0
_BETWEEN_READINGS_SECONDS = 1.0
_NAMED = 50


# Before: the checklist.


def backup_fresh(verified_at: datetime | None, max_age: timedelta, now: datetime) -> Check:
    """The newest verified backup's time, None when there is none."""

    def measure() -> Finding:
        remedy = "run backup_daily, then restore_test"
        if verified_at is None:
            return failed("no verified backup", remedy)
        measured = {"verified": show(verified_at), "hours": round((now - verified_at) / timedelta(hours=1), 1)}
        return passed(measured) if timedelta() <= now - verified_at <= max_age else failed(measured, remedy)

    return Check("backup_fresh", f"a verified backup, at most {max_age} old", "backup catalogue", measure)


def window_open(start: TimeOfDay, end: TimeOfDay, now: datetime) -> Check:
    """Maintenance hours in EAT; they may go over midnight."""

    def measure() -> Finding:
        hour = now.astimezone(EAT).time()
        inside = start <= hour < end if start < end else hour >= start or hour < end
        return passed(show(now)) if inside else failed(show(now), f"start it between {start:%H:%M} and {end:%H:%M} EAT")

    return Check("window_open", f"between {start:%H:%M} and {end:%H:%M} EAT", "clock", measure)


def load_is_usual(desk: MigrationDesk, usual: Sequence[float]) -> Check:
    """`usual`: transactions per second as they were measured in the last seven days."""

    def measure() -> Finding:
        now, normal = _transactions_per_second(desk), median(usual) if usual else None
        measured = {"now": round(now, 1), "median": normal, "samples": len(usual)}
        if normal is None:
            return Finding(Verdict.INCONCLUSIVE, measured, "nothing to compare with; a person says whether it is quiet")
        return passed(measured) if now <= normal else failed(measured, "wait for a quieter hour")

    return Check(
        "load_is_usual", "at most the 7-day median", f"transactions per second, database {desk.database}", measure
    )


def _transactions_per_second(desk: MigrationDesk) -> float:
    query = (
        "SELECT xact_commit + xact_rollback, extract(epoch FROM clock_timestamp())::double precision"
        " FROM pg_stat_database WHERE datname = current_database()"
    )
    with session(desk, "load") as connection, speaking("count transactions"):
        first = connection.execute(query).fetchone() or (0, 0.0)
        time.sleep(_BETWEEN_READINGS_SECONDS)  # the counters are about a second behind, each time
        last = connection.execute(query).fetchone() or (0, 0.0)
    return float((last[0] - first[0]) / max(last[1] - first[1], 0.001))


def told(message: str | None) -> Check:
    """`message`: Slack's time stamp of the announcement; None when Slack did not take it, which is sent again later."""

    def measure() -> Finding:
        if message:
            return passed({"message": message})
        remedy = "announce the change yourself, or clear tell when Slack is back"
        return Finding(Verdict.INCONCLUSIVE, "Slack has not taken the announcement", remedy)

    return Check("stakeholders_told", "an announcement in Slack", "Slack", measure)


def rehearsal_green(record: Record | None, code: str, now: datetime) -> Check:
    """The newest rehearsal's record; the code it ran is its fact `code`, a `code_digest`."""

    def measure() -> Finding:
        remedy = "rehearse on a scratch restore with the code that is to run"
        if record is None:
            return failed("no rehearsal", remedy)
        ran = str(record.facts.get("code"))
        measured = {"verdict": record.verdict, "ended": show(record.ended), "same_code": ran == code}
        fresh = timedelta() <= now - record.ended <= REHEARSAL_MAX_AGE
        good = record.verdict == GREEN and ran == code and fresh
        return passed(measured) if good else failed(measured, remedy)

    return Check("rehearsal_green", "every step and undo, same code, at most 24 h ago", "rehearsal", measure)


def code_digest() -> str:
    """Digest of what the migration runs: its code and its SQL."""
    found = hashlib.sha256()
    for path in sorted([*Path(__file__).parent.glob("*.py"), *(SQL_DIR / "phone_encryption").glob("*.sql")]):
        content = path.read_bytes()
        found.update(f"{path.name} {len(content)}\n".encode() + content)
    return f"sha256:{found.hexdigest()}"


def url_answers(url: str) -> Check:
    """The change's page."""

    def measure() -> Finding:
        if not url.startswith(("https://", "http://")):
            return failed("no http address", "give the address of the change's page")
        status = http.call("the change's page", "GET", url).status
        return passed({"status": status}) if status == 200 else failed({"status": status}, "correct the address")

    return Check("change_url", "status 200", "the change's URL", measure)


def key_usable(desk: MigrationDesk, environment: Mapping[str, str]) -> Check:
    """ENCRYPTION_KEY, and whether what is encrypted already names its id."""

    def measure() -> Finding:
        keys = envelope.load_keys(environment, key_id=desk.settings.migration.key_id, names=desk.names)
        with session(desk, "key") as connection, speaking("read key ids"):
            found = shape.inspect(connection, desk.names)
            if not (found.has_ciphertext or found.switched):
                return passed({"key_id": keys.key_id})
            names = desk.names.identifiers
            stored = names["plaintext" if found.switched else "ciphertext"]
            ids = connection.execute(statement(desk.names, "0_key_ids.sql", stored=stored)).fetchall()
        measured = {"key_id": keys.key_id, "stored": [key_id for (key_id,) in ids]}
        if any(key_id != keys.key_id for (key_id,) in ids):
            return failed(measured, "give workers the key that the application encrypts with, under its own id")
        return passed(measured)

    return Check("key_usable", "64 hex digits, used for nothing else, of the id in use", envelope.KEY_VARIABLE, measure)


# Before: the table.


def preflight(desk: MigrationDesk) -> list[Check]:
    """What would stop a later step or surprise somebody, found before anything is touched."""
    source = f"database {desk.database}, table {desk.names.title}"
    facts = cache(lambda: _facts(desk))  # read by the first check that asks

    def bound(item: str, threshold: str, measure: Callable[[], Finding]) -> Check:
        return Check(item, threshold, source, measure)

    return [
        bound("names_free", "the names that are made are free, or ours", lambda: _names_free(facts(), desk.names)),
        bound("rows_visible", "no policy hides rows from the owner", lambda: _rows_visible(facts())),
        bound("update_triggers", "told", lambda: passed({"fire_on_update": facts()["update_triggers"]})),
        bound("space", "told", lambda: _space(facts())),
        bound("duplicates", "a unique number stays unique however it is written", lambda: _duplicates(desk)),
    ]


def _facts(desk: MigrationDesk) -> dict[str, Any]:
    names = desk.names
    values = {
        "schema": names.schema,
        "table": names.table,
        "base": names.base,
        "columns": [names.plaintext, names.ciphertext, names.blind_index],
        "made": sorted({*names.made.values()}),
    }
    with (
        session(desk, "preflight") as connection,
        speaking("look at the table"),
        connection.cursor(row_factory=dict_row) as cursor,
    ):
        row = cursor.execute(statement(names, "0_facts.sql"), values).fetchone()
    if row is None:
        raise no_table(names)
    return row


def _names_free(facts: dict[str, Any], names: Names) -> Finding:
    columns: dict[str, str] = facts["columns"]
    if columns.get(names.blind_index) == "bytea":
        return passed("ours")
    taken = [*facts["taken"], *(f"column {name}" for name in columns if name != names.plaintext)]
    if taken:
        return failed(taken, "rename or drop these, or tell the migration's names apart from them (names.py)")
    return passed("free")


def _rows_visible(facts: dict[str, Any]) -> Finding:
    if facts["hidden_from_owner"]:
        return failed("FORCE ROW LEVEL SECURITY", "ALTER TABLE … NO FORCE ROW LEVEL SECURITY for the migration")
    return passed("none")


def _space(facts: dict[str, Any]) -> Finding:
    # Every row is written once more and is about 110 bytes longer; without room in its page, in every index, too.
    grows = facts["table_bytes"] + facts["rows"] * 110 + (facts["indexes_bytes"] if facts["fillfactor"] > 90 else 0)
    told_facts = {name: facts[name] for name in ("rows", "table_bytes", "indexes_bytes", "fillfactor")}
    return passed({**told_facts, "grows_by_at_most_bytes": grows})


def duplicates(connection: psycopg.Connection, names: Names) -> list[list[int]]:
    """Keys of rows that share a number in different spellings, up to 50 groups. Raises psycopg.Error."""
    source = names.identifiers["relation"]
    rows = connection.execute(statement(names, "0_duplicates.sql", source=source), {"limit": _NAMED}).fetchall()
    return [keys[:_NAMED] for (keys,) in rows]


def _duplicates(desk: MigrationDesk) -> Finding:
    with session(desk, "preflight") as connection, speaking("look for one number in two spellings"):
        found = shape.inspect(connection, desk.names)
        if not found.has_plaintext:
            return passed("the plaintext is gone")
        same = duplicates(connection, desk.names)
    if not same:
        return passed("none")
    if found.unique_plaintext:
        return failed({"ids": same}, "decide with support which user keeps the number, and change the others")
    return passed({"ids": same})  # the index will not be unique either


# During: each step.

# What each replica of the application tells, by its URL.
Told = Mapping[str, Metrics]
# What a change of the schema does to statements: syntax, names and rights; data; its checks and NULLs; plans that no
# longer fit; faults of the server. Other statements fail without it, too: a number that is taken, a row that is gone, a
# deadlock, a connection that is cut.
_OF_MIGRATION = ("42", "22", "23514", "23502", "0A000", "XX")
_NO_CONNECTION = "not known: there is no connection payme_api"
_READ_THE_LOG = "read the application's error log (Sentry) since the run began"
_READ_ERRORS = (
    "find these in the application's error log (Sentry); when their cause is gone clear check_request alone:"
    " from then on errors are counted anew"
)


def db_healthy(desk: MigrationDesk) -> Check:
    """Nobody waits for locks, no transaction has been open for long, standbys keep up. Our own sessions apart."""

    def measure() -> Finding:
        with (
            session(desk, "health") as connection,
            speaking("look how the database is"),
            connection.cursor(row_factory=dict_row) as cursor,
        ):
            row = cursor.execute(statement(desk.names, "0_health.sql"), {"wait": LOCK_WAIT}).fetchone() or {}
        measured = {name: round(value, 1) for name, value in row.items()}
        good = (
            row["lock_waiters"] == 0
            and row["longest_transaction_seconds"] <= LONGEST_TRANSACTION_SECONDS
            and row["replica_lag_seconds"] <= REPLICA_LAG_SECONDS
        )
        return passed(measured) if good else failed(measured, "find in pg_stat_activity who waits and for whom")

    return Check(
        "database_performance",
        f"nobody waits over {LOCK_WAIT.total_seconds():.0f} s, no transaction over {LONGEST_TRANSACTION_SECONDS:.0f} s,"
        f" standbys at most {REPLICA_LAG_SECONDS:.0f} s behind",
        f"pg_stat_activity of database {desk.database}",
        measure,
    )


def api_healthy(ask: Callable[[], Health] | None) -> Check:
    """`ask` is payme_api.health of the API that is served by this database; None: nobody knows where it is."""

    def measure() -> Finding:
        if ask is None:
            return Finding(Verdict.INCONCLUSIVE, _NO_CONNECTION, "look at the API's response times yourself")
        begun = time.monotonic()
        health = ask()
        seconds = time.monotonic() - begun
        measured = {"status": health.status, "database": health.database, "seconds": round(seconds, 3)}
        if health.healthy and seconds <= API_SECONDS:
            return passed(measured)
        return failed(measured, "read the API's log; pause the migration")

    return Check("api_response", f"healthy within {API_SECONDS:.0f} s", "/health of the PayMe API", measure)


def error_log(before: Callable[[], Told], now: Callable[[], Told]) -> Check:
    """Errors of the application's statements since the run began. No answer at all: nobody knows where it is."""

    def measure() -> Finding:
        base, told = before(), now()
        measured: dict[str, Any] = {"risen": risen(base, told), "replicas": len(told)}
        if wrong := risen(base, told, is_of_migration):
            return failed({"risen": wrong}, _READ_ERRORS)
        if not told:
            return Finding(Verdict.INCONCLUSIVE, _NO_CONNECTION, _READ_THE_LOG)
        if unknown := silent(base, told):
            return Finding(Verdict.INCONCLUSIVE, {**measured, "not told by": unknown}, _READ_THE_LOG)
        return passed(measured)

    threshold = f"since the run began none of {', '.join(_OF_MIGRATION)}…"
    return Check("error_log", threshold, "/metrics of each replica of the application", measure)


def risen(before: Told, now: Told, counts: Callable[[str], bool] = bool) -> list[dict[str, Any]]:
    """By how much the count of each SQLSTATE for which `counts` has risen, where both were told."""
    return [
        {"replica": url, "SQLSTATE": state, "more": more}
        for url, told in now.items()
        if url in before
        for state, more in sorted(_more(before[url], told).items())
        if counts(state)
    ]


def _more(before: Metrics, now: Metrics) -> dict[str, int]:
    base, counts = before.database_errors, now.database_errors
    if base is None or counts is None:
        return {}
    if now.version != before.version or any(counts.get(state, 0) < count for state, count in base.items()):
        base = {}  # the process was started anew: all that it tells is new
    return {state: count - base.get(state, 0) for state, count in counts.items() if count > base.get(state, 0)}


def silent(before: Told, now: Told) -> list[str]:
    """Replicas of which nobody can say what has risen."""
    return [
        url
        for url, told in now.items()
        if told.database_errors is None or url not in before or before[url].database_errors is None
    ]


def is_of_migration(state: str) -> bool:
    """Whether a change of the schema makes errors of this SQLSTATE."""
    return state.startswith(_OF_MIGRATION)
