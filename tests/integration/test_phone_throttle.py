"""The backfill gives way: to replicas, to writers who wait, to the application's reads, to a backup; and goes on."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import psycopg
import pytest
from psycopg.conninfo import make_conninfo

from payme_ops.foundation import lease
from payme_ops.migration import throttle
from payme_ops.migration.desk import session
from payme_ops.migration.throttle import Meter, Reading, Throttle
from tests.support.backfills import BATCH, before_batch, beside, cursor, small_batches
from tests.support.phones import Phones, expanded
from tests.support.waiting import eventually

USERS = 2_000


@dataclass
class Gauge:
    """Stands in for the measuring, and only for that."""

    reading: Reading
    taken: int = 0

    def read(self) -> Reading:
        self.taken += 1
        return self.reading

    def show(self, reading: Reading) -> None:
        """This from now on; returns when the backfill has seen it."""
        self.reading, before = reading, self.taken
        eventually(lambda: self.taken > before + 2, "two more readings")


@pytest.fixture
def gauge(monkeypatch: pytest.MonkeyPatch) -> Gauge:
    made = Gauge(Reading())
    monkeypatch.setattr(Meter, "read", lambda _meter: made.read())
    return made


@pytest.fixture(autouse=True)
def _often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(throttle, "CANARY_SECONDS", 0.002)
    small_batches(monkeypatch)


@contextmanager
def _meter(phones: Phones) -> Iterator[Meter]:
    with session(phones.desk, "watch") as connection:
        yield Meter(connection, phones.desk)


def test_beyond_the_limit_it_stops_within_a_batch_and_goes_on_below_half(
    phones: Phones, monkeypatch: pytest.MonkeyPatch, gauge: Gauge
) -> None:
    before_batch(monkeypatch, 5, lambda: gauge.show(Reading(replica_lag_seconds=6.0)))
    with beside(expanded(phones)) as running:
        running.says("waits: replica lag 6.0 s (goes on at 2.5 s)")
        stopped = cursor(phones)
        assert stopped[1] == 4 * BATCH
        gauge.show(Reading(replica_lag_seconds=2.6))  # below the limit is not enough
        assert cursor(phones) == stopped
        assert not running.future.done()
        gauge.reading = Reading(replica_lag_seconds=2.5)  # it may be done before there are two more readings
        running.says("goes on")
        assert running.future.result().written == USERS


def test_an_autovacuum_slows_it_and_is_told(phones: Phones, monkeypatch: pytest.MonkeyPatch, gauge: Gauge) -> None:
    monkeypatch.setattr("payme_ops.foundation.progress._EVERY_SECONDS", 0)
    gauge.reading = Reading(autovacuum=True)
    with beside(expanded(phones)) as running:
        assert running.future.result().written == USERS
    assert "slowed: autovacuum" in running.lines[0]
    assert not any("waits" in line for line in running.lines)


def test_while_a_backup_is_made_it_waits_and_says_whose(phones: Phones, monkeypatch: pytest.MonkeyPatch) -> None:
    backup = ExitStack()

    def begin_backup() -> None:
        backup.enter_context(lease.hold(phones.desk.ops, f"snapshot:{phones.name}", "backup_daily/7"))
        eventually(lambda: throttles[0].backup, "the throttle to see it")

    throttles = _throttles(monkeypatch)
    before_batch(monkeypatch, 5, begin_backup)
    with beside(expanded(phones)) as running, backup:
        running.says("waits: a backup is made by backup_daily/7 since ")
        assert cursor(phones)[1] == 4 * BATCH
        backup.close()
        running.says("goes on")
        assert running.future.result().written == USERS


def _throttles(monkeypatch: pytest.MonkeyPatch) -> list[Throttle]:
    """Those that are made from now on."""
    made, original = list[Throttle](), Throttle.__init__

    def init(self: Throttle, *args: Any) -> None:
        made.append(self)
        original(self, *args)

    monkeypatch.setattr(Throttle, "__init__", init)
    return made


def test_sessions_that_wait_for_our_locks_are_seen(phones: Phones) -> None:
    ours = make_conninfo(phones.desk.target, application_name="payme_ops:migration:backfill")
    query = "SELECT 1 FROM users WHERE id = 5 FOR UPDATE"
    with _meter(expanded(phones)) as meter, phones.app() as app, ThreadPoolExecutor(1) as pool:
        assert meter.read().lock_waiters == 0
        with psycopg.connect(ours) as holder:
            holder.execute(query)
            waiting = pool.submit(app.execute, query)
            eventually(lambda: meter.read().lock_waiters == 1, "the waiter")
        waiting.result()
        assert meter.read().lock_waiters == 0


def test_sessions_that_wait_for_somebody_else_are_not_counted(phones: Phones) -> None:
    query = "SELECT 1 FROM users WHERE id = 5 FOR UPDATE"
    with _meter(expanded(phones)) as meter, phones.app() as app, ThreadPoolExecutor(1) as pool:
        with psycopg.connect(phones.conninfo("payme_app")) as holder:
            holder.execute(query)
            waiting = pool.submit(app.execute, query)
            with phones.admin() as admin:
                waits = "SELECT FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()"
                eventually(lambda: admin.execute(waits).rowcount == 1, "the waiter")
            assert meter.read().lock_waiters == 0
        waiting.result()


def test_the_wal_that_is_written_is_measured(phones: Phones) -> None:
    with _meter(expanded(phones)) as meter, phones.admin() as admin:
        assert meter.read().wal_bytes_per_second == 0  # nothing to compare with yet
        admin.execute("UPDATE users SET full_name = full_name || '!'")
        assert meter.read().wal_bytes_per_second > 100_000


def test_a_table_that_cannot_be_read_is_a_slow_one(phones: Phones, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(throttle, "_CANARIES_NEEDED", 1)
    with _meter(expanded(phones)) as meter, phones.admin() as admin, admin.transaction():
        meter.canary(5)
        assert meter.read().canary_p99_ms < 100
        admin.execute("LOCK TABLE users")
        meter.connection.execute("SET lock_timeout = '300ms'")
        meter.canaries.clear()
        meter.canary(5)
        assert meter.read().canary_p99_ms > 300
