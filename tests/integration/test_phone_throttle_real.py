"""The backfill's throttle on real parts: a standby that stops replaying or is lost, an autovacuum of the table."""

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace

import psycopg
import pytest

from payme_ops.foundation.errors import GateClosed
from payme_ops.migration import throttle
from payme_ops.migration.desk import session
from payme_ops.migration.throttle import Meter, Reading, Throttle
from sandbox import postgres
from sandbox.postgres import Cluster
from tests.support.backfills import BATCH, before_batch, beside, cursor, small_batches
from tests.support.phones import Phones, database, expanded
from tests.support.site import Site
from tests.support.standby import start, streaming
from tests.support.waiting import eventually

pytestmark = pytest.mark.long  # its servers take a while

USERS = 2_000
MORE_USERS = 18_000
SLOT = "payme_standby"
LAG_SECONDS = 0.2


@pytest.fixture(autouse=True)
def _often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(throttle, "CANARY_SECONDS", 0.005)
    small_batches(monkeypatch)


@pytest.fixture(scope="module")
def standby(site: Site) -> Iterator[Cluster]:
    """Of the server that holds `phones`, with a slot."""
    with streaming(site, SLOT) as cluster, site.admin("postgres") as admin:
        # A standby that is cut off is taken for lost after this time.
        admin.execute("ALTER SYSTEM SET wal_sender_timeout = '1500ms'")
        admin.execute("SELECT pg_reload_conf()")
        try:
            yield cluster
        finally:
            admin.execute("ALTER SYSTEM RESET wal_sender_timeout")
            admin.execute("SELECT pg_reload_conf()")


@pytest.fixture
def replicated(phones: Phones, standby: Cluster) -> Phones:
    """Expanded, with 20,000 users, all of them on the standby, too; and a low limit for its lag."""
    settings = phones.desk.settings
    # WAL is written five times a second, so in the short time between two readings here it may be much at once.
    limits = settings.migration.model_copy(
        update={
            "replica_lag_seconds": LAG_SECONDS,
            "wal_bytes_per_second": 10**12,
            "canary_p99_ms": 60_000,
            "rest_ratio": 0,
        }
    )
    phones.desk = replace(phones.desk, settings=settings.model_copy(update={"migration": limits}))
    with expanded(phones).admin() as admin:
        admin.execute(
            "INSERT INTO users (public_id, phone_number, full_name)"
            " SELECT gen_random_uuid(), '+25411' || lpad(n::text, 7, '0'), 'Test' FROM generate_series(1, %s) AS n",
            [MORE_USERS],
        )
    eventually(lambda: lacking(standby, phones) == USERS + MORE_USERS, "the standby to have all users")
    return phones


def lacking(standby: Cluster, phones: Phones) -> int:
    """How many rows have no ciphertext on the standby; -1 when the database is not there yet."""
    try:
        with psycopg.connect(standby.conninfo(phones.name)) as connection:
            row = connection.execute("SELECT count(*) FROM users WHERE phone_number_encrypted IS NULL").fetchone()
    except psycopg.OperationalError:
        return -1
    return row[0] if row else -1


def pause(standby: Cluster) -> None:
    """Returns when nothing more is replayed."""
    with psycopg.connect(standby.conninfo(), autocommit=True) as connection:
        connection.execute("SELECT pg_wal_replay_pause()")
        state = "SELECT pg_get_wal_replay_pause_state()"
        eventually(lambda: connection.execute(state).fetchone() == ("paused",), "the standby to pause")


def resume(standby: Cluster) -> None:
    with psycopg.connect(standby.conninfo(), autocommit=True) as connection:
        connection.execute("SELECT pg_wal_replay_resume()")


@pytest.fixture
def readings(monkeypatch: pytest.MonkeyPatch) -> list[Reading]:
    """All that throttles take from now on."""
    taken, original = list[Reading](), Throttle.take

    def take(self: Throttle, reading: Reading) -> None:
        original(self, reading)
        taken.append(reading)

    monkeypatch.setattr(Throttle, "take", take)
    return taken


def test_a_standby_that_stops_replaying_stops_it_and_one_that_goes_on_lets_it_go_on(
    replicated: Phones, standby: Cluster, monkeypatch: pytest.MonkeyPatch, readings: list[Reading]
) -> None:
    when_over: list[int] = []
    original = throttle.over

    def over(reading: Reading, *others: object) -> dict[str, str]:
        found = original(reading, *others)  # type: ignore[arg-type]
        if found and not when_over:
            when_over.append(cursor(replicated)[1])
        return found

    monkeypatch.setattr(throttle, "over", over)
    before_batch(monkeypatch, 5, lambda: pause(standby))
    with beside(replicated) as running, ExitStack() as paused:
        paused.callback(resume, standby)
        running.says("waits: replica lag 0.")
        stopped = cursor(replicated)
        assert 0 < stopped[1] <= when_over[0] + BATCH  # that was being written
        assert stopped[1] < USERS + MORE_USERS
        before = len(readings)
        eventually(lambda: len(readings) > before + 10, "ten more readings")
        assert cursor(replicated) == stopped
        assert readings[-1].replica_lag_seconds > readings[before].replica_lag_seconds
        assert lacking(standby, replicated) > USERS + MORE_USERS - stopped[1]
        paused.close()
        running.says("goes on")
        assert running.future.result().written == USERS + MORE_USERS
    assert not any("is gone" in line for line in running.lines)
    eventually(lambda: lacking(standby, replicated) == 0, "the standby to have all ciphertexts")


def killed(phones: Phones, standby: Cluster) -> Callable[[], None]:
    """The whole server is gone; answers how it comes back."""
    postgres.kill(standby)
    return lambda: start(phones.site, standby)


def cut_off(_phones: Phones, standby: Cluster) -> Callable[[], None]:
    """The primary hears nothing of it, and its connection stays as if there were something to hear."""
    with psycopg.connect(standby.conninfo()) as connection:
        row = connection.execute("SELECT pid FROM pg_stat_wal_receiver").fetchone()
    assert row
    pid: int = row[0]
    os.kill(pid, signal.SIGSTOP)
    return lambda: os.kill(pid, signal.SIGCONT)


@pytest.mark.parametrize("lose", [killed, cut_off])
def test_a_lost_standby_is_said_and_does_not_stop_it_for_ever(
    replicated: Phones,
    standby: Cluster,
    monkeypatch: pytest.MonkeyPatch,
    readings: list[Reading],
    lose: Callable[[Phones, Cluster], Callable[[], None]],
) -> None:
    def act() -> None:
        lost.callback(lose(replicated, standby))
        with replicated.admin() as admin:
            admin.execute("UPDATE users SET full_name = full_name || '!' WHERE id < 10")  # it does not get that
        noticed = lambda: readings[-1].lost or readings[-1].replica_lag_seconds > LAG_SECONDS  # noqa: E731
        eventually(noticed, "a reading that shows it")

    with ExitStack() as lost:
        before_batch(monkeypatch, 5, act)
        with beside(replicated) as running:
            assert running.future.result(30).written == USERS + MORE_USERS
            said = running.says("is gone")
            assert "does not wait for this: standby walreceiver at 127.0.0.1 is gone" in said
            assert f"nobody reads slot {SLOT}, which keeps less than 16.8 MB of WAL" in running.says(SLOT)
        # One that is cut off is behind, until it is known to be lost.
        assert any("waits: replica lag" in line for line in running.lines) == (lose is cut_off)
        lost.close()
        eventually(lambda: lacking(standby, replicated) == 0, "the standby to have all ciphertexts")


def test_a_role_from_which_the_standbys_are_hidden_is_refused(phones: Phones) -> None:
    with expanded(phones).admin() as admin, meter(phones) as watching:
        watching.read()
        admin.execute("REVOKE pg_monitor FROM payme_db_migrate")
        try:
            with pytest.raises(GateClosed, match="grant pg_monitor to the migrate role"):
                watching.read()
        finally:
            admin.execute("GRANT pg_monitor TO payme_db_migrate")


@contextmanager
def meter(phones: Phones) -> Iterator[Meter]:
    with session(phones.desk, "watch") as connection:
        yield Meter(connection, phones.desk)


@pytest.fixture
def vacuums(site: Site) -> Iterator[None]:
    """The server looks each second what there is to vacuum."""
    with site.admin("postgres") as admin:
        admin.execute("ALTER SYSTEM SET autovacuum_naptime = '1s'")
        admin.execute("SELECT pg_reload_conf()")
        try:
            yield
        finally:
            admin.execute("ALTER SYSTEM RESET autovacuum_naptime")
            admin.execute("SELECT pg_reload_conf()")


def autovacuum_by_itself(phones: Phones) -> int:
    """As after many changes; answers the worker's pid."""
    with phones.admin() as admin:
        slow(admin)
        admin.execute("ALTER TABLE users SET (autovacuum_vacuum_threshold = 1, autovacuum_vacuum_scale_factor = 0)")
        admin.execute("UPDATE users SET full_name = full_name || '!'")
        admin.execute("SELECT pg_stat_force_next_flush()")
    return eventually(lambda: worker(phones), "an autovacuum of the table")


def autovacuum_against_wraparound(phones: Phones) -> int:
    """As after 100,000 transactions, in a table that is vacuumed for nothing else; answers the worker's pid."""
    with phones.admin() as admin:
        slow(admin)
        admin.execute("ALTER TABLE users SET (autovacuum_enabled = false, autovacuum_freeze_max_age = 100000)")
        admin.execute("SET synchronous_commit = off")
        admin.execute("DO $$ BEGIN FOR n IN 1..100100 LOOP PERFORM pg_current_xact_id(); COMMIT; END LOOP; END $$")
        pid = eventually(lambda: worker(phones), "an autovacuum of the table")
        row = admin.execute("SELECT query FROM pg_stat_activity WHERE pid = %s", [pid]).fetchone()
    assert row == ("autovacuum: VACUUM public.users (to prevent wraparound)",)
    return pid


def slow(admin: psycopg.Connection) -> None:
    """The next worker is at the table for many seconds, 0.1 s a page and more."""
    admin.execute("ALTER TABLE users SET (autovacuum_vacuum_cost_delay = 100, autovacuum_vacuum_cost_limit = 1)")


def worker(phones: Phones) -> int:
    with phones.admin() as admin:
        row = admin.execute(
            "SELECT pid FROM pg_stat_progress_vacuum WHERE relid = 'users'::regclass AND datname = current_database()"
        ).fetchone()
    return row[0] if row else 0


@pytest.mark.parametrize("begin", [autovacuum_by_itself, autovacuum_against_wraparound])
def test_a_real_autovacuum_slows_it_and_is_left_alone(
    phones: Phones,
    vacuums: None,  # noqa: ARG001
    monkeypatch: pytest.MonkeyPatch,
    begin: Callable[[Phones], int],
) -> None:
    monkeypatch.setattr("payme_ops.foundation.progress._EVERY_SECONDS", 0)
    pid = begin(expanded(phones))
    with beside(phones) as running:
        assert running.future.result().written == USERS
    assert worker(phones) == pid
    batches = [line for line in running.lines if "slowed:" in line]
    assert len(batches) == USERS // BATCH
    assert all(line.endswith("slowed: autovacuum") for line in batches)
    assert not any("waits" in line for line in running.lines)


def test_an_autovacuum_in_another_database_is_none_of_the_table(
    phones: Phones,
    vacuums: None,  # noqa: ARG001
) -> None:
    """Copies of a database have their tables under the same numbers."""
    with database(phones.site) as other, meter(expanded(phones)) as here, meter(expanded(other)) as there:
        pid = autovacuum_by_itself(other)
        assert (there.read().autovacuum, here.read().autovacuum) == (True, False)
        assert worker(other) == pid
