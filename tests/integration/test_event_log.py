"""The exports of Airflow's event log, on a real metadata database and real S3: complete, chained, never guessed."""

import hashlib
import json
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path

import psycopg
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from psycopg import sql

from payme_ops.backup import event_log
from payme_ops.backup.event_log import Export
from payme_ops.backup.run import Desk
from payme_ops.foundation import settings, signing
from payme_ops.foundation.clock import utc_now
from payme_ops.foundation.errors import (
    DatabaseUnavailable,
    IntegrityError,
    ManifestInvalid,
    NotFound,
    StoreUnavailable,
    Untrusted,
)
from payme_ops.foundation.sql import load
from tests.support import document, metadata
from tests.support.installation import Installation, quiet
from tests.support.proxy import Proxy
from tests.support.site import Site

PHONE = "+254712345678"
KEEP = timedelta(days=90)
_ADD = """
    INSERT INTO log (dttm, event, owner, extra)
    VALUES (coalesce(%s::timestamptz, clock_timestamp()), 'trigger', 'oncall', %s)
"""


@pytest.fixture(scope="module")
def _metadata(site: Site) -> None:
    metadata.make(site)


@pytest.fixture
def log(site: Site, _metadata: None) -> Iterator[psycopg.Connection]:
    with metadata.emptied(site) as connection:
        yield connection


@pytest.fixture
def desk(installation: Installation) -> Desk:
    return desk_of(installation)


def desk_of(installation: Installation) -> Desk:
    database = installation.site.world.conninfo("airflow", "airflow")
    return replace(installation.desk, settings=settings.load().of("airflow"), database=database)


def add(log: psycopg.Connection, count: int = 1, at: datetime | None = None, extra: str = "{}") -> None:
    for _ in range(count):
        log.execute(_ADD, [at, extra])


def export(desk: Desk, report: Callable[[str], None] = quiet) -> Export | None:
    return event_log.export(desk, "desk_housekeeping/test", keep_since=utc_now() - KEEP, report=report)


def exported(desk: Desk) -> Export:
    made = export(desk)
    assert made is not None
    return made


def keys(installation: Installation) -> list[str]:
    return list(installation.store.keys(event_log.PREFIX))


def test_every_entry_is_there_and_opens_with_stock_tools(
    log: psycopg.Connection, desk: Desk, installation: Installation
) -> None:
    document.require("age", "zstd")
    awkward = json.dumps({"reason": f"call {PHONE}\n\\ „ä\u2028“"})
    add(log, 3)
    add(log, extra=awkward)
    made = exported(desk)
    lines = opened(made, installation)
    found = log.execute("SELECT id, event, owner, extra FROM log ORDER BY id").fetchall()
    entries = [json.loads(line) for line in lines.splitlines()]
    assert [(one["id"], one["event"], one["owner"], one["extra"]) for one in entries] == found
    assert entries[3]["extra"] == awkward
    assert set(entries[0]) == set(made.columns)
    assert (made.number, made.rows, made.first_id, made.last_id, made.missing, made.gaps) == (1, 4, 1, 4, 0, [])
    assert (hashlib.sha256(lines).hexdigest(), len(lines)) == (made.text_sha256, made.text_size_bytes)
    # Only who holds an identity reads what people typed.
    for key in keys(installation):
        assert PHONE.encode() not in installation.store.get(key)


def opened(made: Export, installation: Installation) -> bytes:
    """The export's file, as a person opens it."""
    identity = installation.site.world.root / "keys" / "recovery.age-identity"
    sealed = installation.store.get(made.events.key)
    plain = subprocess.run(["age", "--decrypt", "--identity", identity], input=sealed, capture_output=True, check=True)
    return subprocess.run(["zstd", "-d", "-c"], input=plain.stdout, capture_output=True, check=True).stdout


def test_a_second_run_writes_nothing_and_the_next_day_goes_on(
    log: psycopg.Connection, desk: Desk, installation: Installation
) -> None:
    add(log, 2)
    first = exported(desk)
    there = keys(installation)
    assert export(desk) is None
    assert keys(installation) == there
    add(log, 3)
    second = exported(desk)
    assert (second.number, second.after, second.rows, second.before.state) == (2, 2, 3, "unchanged")
    assert second.previous_sha256 == hashlib.sha256(installation.store.get(first.key)).hexdigest()
    assert list(event_log.chain(desk.bucket, desk.settings.backup.trusted_keys)) == [second, first]
    event_log.require_untouched(second)


def test_an_entry_that_is_being_written_is_waited_for(log: psycopg.Connection, desk: Desk, site: Site) -> None:
    waits = threading.Event()
    with metadata.connected(site) as slow, ThreadPoolExecutor() as pool:
        with slow.transaction():
            add(slow)  # has number 1, and cannot be seen yet
            add(log)
            running = pool.submit(export, desk, lambda line: waits.set() if "waits for 1" in line else None)
            assert waits.wait(30)
            add(log)  # comes later: left to the next export
        made = running.result(30)
    assert made is not None
    assert (made.rows, made.first_id, made.last_id, made.missing) == (2, 1, 2, 0)
    assert exported(desk).first_id == 3


def test_one_that_is_never_written_is_told(
    log: psycopg.Connection, desk: Desk, site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(event_log, "_SETTLE_SECONDS", 0.0)
    add(log)
    with (
        metadata.connected(site) as slow,
        slow.transaction(force_rollback=True),
    ):
        add(slow)
        with pytest.raises(DatabaseUnavailable, match="does not settle"):
            export(desk)
    assert exported(desk).gaps == []
    add(log)
    assert exported(desk).gaps == [(2, 2)]  # what was rolled back has left a gap


def test_missing_numbers_are_counted_and_named(log: psycopg.Connection, desk: Desk) -> None:
    add(log, 9)
    log.execute("DELETE FROM log WHERE id IN (1, 4, 5, 9)")
    made = exported(desk)
    # Number 9 was given and is gone: it shows when the next one comes.
    assert (made.rows, made.missing, made.gaps) == (5, 3, [(1, 1), (4, 5)])
    add(log)
    assert exported(desk).gaps == [(9, 9)]


@pytest.mark.parametrize(
    ("change", "found"),
    [
        ("DELETE FROM log WHERE id = 2", 2),
        ("UPDATE log SET owner = 'somebody else' WHERE id = 2", 3),
        # A database that was restored gives numbers out again.
        ("TRUNCATE log RESTART IDENTITY", 1),
    ],
)
def test_what_was_exported_and_is_something_else_now_is_told_once(
    log: psycopg.Connection, desk: Desk, change: str, found: int
) -> None:
    add(log, 3)
    first = exported(desk)
    log.execute(change)
    add(log)
    second = exported(desk)
    assert (second.before.state, second.before.rows, second.before.found) == ("changed", 3, found)
    assert second.after == first.after  # all that is there now is in it
    with pytest.raises(IntegrityError, match="are not what was exported"):
        event_log.require_untouched(second)
    assert export(desk) is None


def test_a_database_that_lost_more_than_one_export_loses_no_new_entry(log: psycopg.Connection, desk: Desk) -> None:
    for _ in range(3):
        add(log, 2)
        exported(desk)
    log.execute("DELETE FROM log WHERE id > 2")  # as restored from before the second
    log.execute("SELECT setval('log_id_seq', 2)")
    add(log, 3)
    made = exported(desk)
    assert (made.number, made.after, made.rows, made.last_id) == (4, 2, 3, 5)


def test_other_columns_after_an_upgrade_are_no_alarm(log: psycopg.Connection, desk: Desk) -> None:
    add(log)
    exported(desk)
    log.execute("ALTER TABLE log ADD COLUMN team text")
    try:
        add(log)
        made = exported(desk)
    finally:
        log.execute("ALTER TABLE log DROP COLUMN team")
    assert (made.before.state, made.columns[-1]) == ("not comparable", "team")
    assert made.rows == 2  # the one before once more: it may have been another
    event_log.require_untouched(made)


def test_what_may_be_cleaned_is_not_compared_unless_numbers_went_back(log: psycopg.Connection, desk: Desk) -> None:
    add(log, 3, at=utc_now() - 2 * KEEP)
    exported(desk)
    log.execute("DELETE FROM log WHERE id < 3")  # as a clean does
    add(log)
    second = exported(desk)
    assert (second.before.state, second.rows, second.after) == ("not comparable", 1, 3)
    log.execute("TRUNCATE log RESTART IDENTITY")
    add(log, 2)
    third = exported(desk)
    assert (third.before.state, third.rows, third.after) == ("changed", 2, 0)


def test_an_incomplete_export_is_not_committed(
    log: psycopg.Connection, desk: Desk, installation: Installation, monkeypatch: pytest.MonkeyPatch
) -> None:
    add(log, 3)
    rows = "desk/event_log_rows.sql"
    # As an index that has lost an entry would answer.
    lossy = sql.SQL(load(rows).as_string().replace("WHERE", "WHERE id <> 2 AND"))
    monkeypatch.setattr(event_log, "load", lambda name: lossy if name == rows else load(name))
    with pytest.raises(IntegrityError, match="not complete"):
        export(desk)
    assert [key for key in keys(installation) if key.endswith("manifest.json")] == []


@pytest.mark.parametrize(
    ("method", "contains"),
    [("PUT", event_log.EVENTS_NAME), ("GET", event_log.EVENTS_NAME), ("PUT", "manifest.json")],
)
def test_a_store_that_is_away_leaves_no_export_and_the_next_run_makes_it(
    log: psycopg.Connection, installation: Installation, proxy: Proxy, method: str, contains: str
) -> None:
    desk = desk_of(installation)
    add(log, 3)
    rule = proxy.answer(method, contains, 503, "SlowDown")
    with pytest.raises(StoreUnavailable):
        export(desk)
    assert rule.hits
    assert [key for key in keys(installation) if key.endswith("manifest.json")] == []
    assert installation.uploads() == []
    with pytest.raises(NotFound, match="never exported"):
        event_log.clean_before(desk, utc_now() - KEEP)
    proxy.clear()
    assert exported(desk).rows == 3
    assert len(keys(installation)) == 2


def test_a_commit_whose_answer_got_lost_is_a_commit(
    log: psycopg.Connection, installation: Installation, proxy: Proxy
) -> None:
    add(log, 2)
    rule = proxy.lose_answer("PUT", "manifest.json", times=1)
    desk = desk_of(installation)
    made = exported(desk)
    assert rule.hits == 1
    assert list(event_log.chain(desk.bucket, desk.settings.backup.trusted_keys)) == [made]


# As a task does it: in a process of its own, which can be killed.
_EXPORT = """
import sys
from datetime import timedelta
from payme_ops.backup import event_log
from payme_ops.backup.run import Desk
from payme_ops.foundation import settings
from payme_ops.foundation.clock import utc_now
from payme_ops.foundation.objectstore import Bucket, profile_client
config = settings.load().of("airflow")
bucket = Bucket(profile_client("payme_s3_write"), config.backup.bucket)
desk = Desk(config, sys.argv[1], "service=payme_ops_db", bucket, bucket)
event_log.export(desk, "killed", keep_since=utc_now() - timedelta(days=90), report=print)
"""


@pytest.mark.parametrize(
    ("method", "contains", "done_upstream", "exports"),
    [
        pytest.param("POST", f"{event_log.EVENTS_NAME}?uploads", True, 1, id="upload begun"),
        pytest.param("PUT", "partNumber=1", True, 1, id="entries stored"),
        pytest.param("GET", event_log.EVENTS_NAME, True, 1, id="reading back"),
        pytest.param("PUT", "manifest.json", False, 1, id="manifest on its way"),
        pytest.param("PUT", "manifest.json", True, 2, id="manifest written, nobody told"),
    ],
)
def test_killed_at_any_moment_no_entry_is_lost_or_exported_twice(
    log: psycopg.Connection,
    installation: Installation,
    proxy: Proxy,
    method: str,
    contains: str,
    done_upstream: bool,
    exports: int,
) -> None:
    document.require("age", "zstd")
    add(log, 3)
    desk = desk_of(installation)
    held = proxy.hold(method, contains, done_upstream=done_upstream)
    running = subprocess.Popen([sys.executable, "-c", _EXPORT, desk.database], stdout=subprocess.DEVNULL)
    try:
        held.wait_until_seen(60)
    finally:
        running.kill()
        running.wait()
        held.drop()
    add(log, 2)
    exported(desk)  # its lease and its sessions are no hindrance
    chain = list(event_log.chain(desk.bucket, desk.settings.backup.trusted_keys))
    assert len(chain) == exports
    lines = [json.loads(line) for one in reversed(chain) for line in opened(one, installation).splitlines()]
    assert [line["id"] for line in lines] == [1, 2, 3, 4, 5]
    assert len(keys(installation)) == 2 * exports
    assert installation.uploads() == []


def test_a_manifest_that_nobody_signed_stops_export_and_clean(
    log: psycopg.Connection, desk: Desk, installation: Installation
) -> None:
    add(log)
    made = exported(desk)
    forged = made.model_dump(mode="json") | {"upto": 10_000}
    verification_key = settings.load().backup.verification_key_file
    put(installation, made.key, signing.sign(forged, signing.load_private_key(verification_key)))
    add(log)
    for act in (lambda: export(desk), lambda: event_log.clean_before(desk, utc_now())):
        with pytest.raises(Untrusted):
            act()
    assert len(keys(installation)) == 2


def test_a_backup_worker_that_nobody_trusts_writes_no_manifest(
    log: psycopg.Connection, installation: Installation
) -> None:
    desk = desk_of(installation)
    keyless = desk.settings.backup.model_copy(update={"trusted_keys": ["A" * 43 + "="]})
    add(log)
    with pytest.raises(Untrusted):
        export(replace(desk, settings=desk.settings.model_copy(update={"backup": keyless})))
    assert [key for key in keys(installation) if key.endswith("manifest.json")] == []


def test_an_export_that_is_gone_or_replaced_or_moved_is_told(
    log: psycopg.Connection, desk: Desk, installation: Installation
) -> None:
    add(log)
    first = exported(desk)
    add(log)
    second = exported(desk)
    key = signing.load_private_key(desk.settings.backup.signing_key_file)
    kept = installation.store.get(first.key)
    put(installation, first.key, signing.sign(first.model_dump(mode="json") | {"run": "another"}, key))
    with pytest.raises(IntegrityError, match="is not the one that its successor names"):
        list(event_log.chain(desk.bucket, desk.settings.backup.trusted_keys))
    put(installation, first.key, json.loads(kept))
    put(installation, second.key, json.loads(kept))
    with pytest.raises(ManifestInvalid, match="under another export's key"):
        export(desk)
    installation.store.delete(first.events.key)
    with pytest.raises(IntegrityError, match="are gone"):
        export(desk)


def test_what_lies_there_and_is_no_export_stops_nobody(
    log: psycopg.Connection, desk: Desk, installation: Installation
) -> None:
    add(log)
    for name in ("manifest.json", "old/manifest.json", "00000007 (copy)/manifest.json"):
        installation.store.put(f"{event_log.PREFIX}{name}", b"{}")
    assert exported(desk).number == 1
    assert export(desk) is None


def put(installation: Installation, key: str, signed: object) -> None:
    body = json.dumps(signed, indent=1, sort_keys=True, ensure_ascii=False).encode()
    installation.store.client.put_object(Bucket=installation.bucket_name, Key=key, Body=body)


def test_a_clean_stops_at_what_no_export_has_and_at_runs_that_go_on(log: psycopg.Connection, desk: Desk) -> None:
    now = utc_now()
    keep_since = now - KEEP
    with pytest.raises(NotFound):
        event_log.clean_before(desk, keep_since)
    old, older = now - timedelta(days=100), now - timedelta(days=120)
    add(log, at=old)
    exported(desk)
    assert event_log.clean_before(desk, keep_since) == old  # nothing newer was exported
    add(log, at=now)
    exported(desk)
    assert event_log.clean_before(desk, keep_since) == keep_since
    log.execute(
        "INSERT INTO dag_run (dag_id, run_id, state, run_type, start_date, run_after, log_template_id)"
        " SELECT 'deployment', state, state, 'manual', started, now(), (SELECT max(id) FROM log_template)"
        " FROM (VALUES ('success', %s), ('running', %s)) AS run (state, started)",
        [older, old],
    )
    assert event_log.clean_before(desk, keep_since) == old
    add(log, at=older)  # came after the export
    assert event_log.clean_before(desk, keep_since) == older


def test_the_lines_of_the_page_read_the_exports_and_find_what_was_forged(
    log: psycopg.Connection, desk: Desk, installation: Installation, tmp_path: Path
) -> None:
    add(log, extra=f"typed by hand: {PHONE}")
    exported(desk)
    add(log, 2)
    second = exported(desk)
    first, *blocks = document.blocks("event-log.md")
    world = installation.site.world
    values = {
        "BUCKET": installation.bucket_name,
        "PROFILE": "payme_s3_write",
        "TRUSTED_KEYS": world.env["PAYME_OPS__BACKUP__TRUSTED_KEYS"],
        "IDENTITY": str(world.root / "keys" / "recovery.age-identity"),
        "WORK": str(tmp_path / "work"),
        "NUMBER": "00000001",
    }
    lines = [document.with_values(first, values), *blocks]
    env = document.without_us(world.env, tmp_path)
    told = document.run(lines, env, tmp_path)
    assert "00000001 1 entries 1 to 1 not comparable" in told
    assert "00000002 2 entries 2 to 3 unchanged" in told
    assert told.count("signature: yes") == told.count("events.jsonl.zst.age: OK") == 2
    assert f"oncall trigger None typed by hand: {PHONE}" in told
    assert not (tmp_path / "work").exists()

    put(installation, second.key, signing.sign(second.model_dump(mode="json"), Ed25519PrivateKey.generate()))
    assert "00000002/ signature: NOT VERIFIED" in document.run(lines, env, tmp_path)
