"""The lease: one holder, a dead one replaced at once, a hung one in time, and nobody works on with a void one."""

import os
import signal
import threading
from collections.abc import Iterator
from datetime import timedelta

import psycopg
import pytest

from payme_ops.foundation import lease
from payme_ops.foundation.clock import show, utc_now
from payme_ops.foundation.errors import DatabaseUnavailable, LeaseHeld, LeaseLost
from sandbox.postgres import Cluster
from tests.support.ops import holder, ops_database
from tests.support.waiting import eventually

NAME = "snapshot:payme"


@pytest.fixture(scope="module")
def ops_of_module(cluster: Cluster) -> Iterator[str]:
    with ops_database(cluster) as conninfo:
        yield conninfo


@pytest.fixture
def ops(ops_of_module: str) -> str:
    with psycopg.connect(ops_of_module, autocommit=True) as connection:
        connection.execute("TRUNCATE ops.leases")
    return ops_of_module


def expire(ops: str) -> None:
    """What is in the row when a holder has not renewed for too long."""
    with psycopg.connect(ops, autocommit=True) as connection:
        connection.execute("UPDATE ops.leases SET expires_at = now() - interval '1 second'")


def sessions(ops: str) -> int:
    with psycopg.connect(ops) as connection:
        row = connection.execute(
            "SELECT count(*) FROM pg_stat_activity WHERE application_name LIKE 'payme_ops:lease:%'"
            " AND datname = current_database()"
        ).fetchone()
    assert row is not None
    return int(row[0])


def test_the_second_is_told_who_holds_it_and_since_when(ops: str) -> None:
    before = utc_now()
    with (
        lease.hold(ops, NAME, "backup_daily/run-1"),
        pytest.raises(LeaseHeld) as caught,
        lease.hold(ops, NAME, "cli/2"),
    ):
        pytest.fail("two held it")
    assert caught.value.found.startswith("backup_daily/run-1 since ")
    assert caught.value.found.removeprefix("backup_daily/run-1 since ") >= show(before)
    assert caught.value.remedy
    eventually(lambda: sessions(ops) == 0, "both sessions to be gone")


def test_another_name_is_another_lease(ops: str) -> None:
    with lease.hold(ops, NAME, "one"), lease.hold(ops, "ddl:payme", "two") as other:
        assert other.token == 1


def test_token_grows_with_every_acquisition(ops: str) -> None:
    tokens = []
    for number in range(3):
        with lease.hold(ops, NAME, f"run {number}") as held:
            tokens.append(held.token)
    assert tokens == [1, 2, 3]


def test_an_error_in_the_block_frees_it(ops: str) -> None:
    with pytest.raises(RuntimeError), lease.hold(ops, NAME, "one"):
        raise RuntimeError
    with lease.hold(ops, NAME, "two") as held:
        assert held.token == 2


def test_peek_says_who_and_takes_nothing(ops: str) -> None:
    assert lease.peek(ops, NAME) is None
    with lease.hold(ops, NAME, "one") as held:
        found = lease.peek(ops, NAME)
        assert found is not None
        assert (found.name, found.holder) == (NAME, "one")
        assert abs(found.since - utc_now()) < timedelta(minutes=1)
        held.check()
    assert lease.peek(ops, NAME) is None


def test_twenty_at_once_and_one_gets_it(ops: str) -> None:
    start, end = threading.Barrier(20), threading.Event()
    outcomes: list[str] = []

    def attempt(number: int) -> None:
        start.wait()
        try:
            with lease.hold(ops, NAME, f"run {number}"):
                outcomes.append(f"run {number}")
                end.wait(20)
        except LeaseHeld as error:
            outcomes.append(error.found)

    threads = [threading.Thread(target=attempt, args=(number,)) for number in range(20)]
    for thread in threads:
        thread.start()
    eventually(lambda: len(outcomes) == 20, "all to have tried", seconds=30)
    end.set()
    for thread in threads:
        thread.join()
    (winner,) = [outcome for outcome in outcomes if "since" not in outcome and "starting" not in outcome]
    others = [outcome for outcome in outcomes if outcome != winner]
    assert len(others) == 19
    assert all(outcome.startswith((f"{winner} since ", "a run that is just starting")) for outcome in others)


def test_a_holder_killed_is_replaced_at_once_with_a_higher_token(ops: str) -> None:
    with holder(ops, NAME, "dead") as dead:
        assert dead.token == 1
        with pytest.raises(LeaseHeld, match="dead since"), lease.hold(ops, NAME, "next"):
            pass
        os.kill(dead.process.pid, signal.SIGKILL)
        dead.process.wait()
        # The row has not expired: that its session is gone is enough. The server needs a moment to see it.
        eventually(lambda: lease.peek(ops, NAME) is None, "the server to see the death", seconds=5)
        with lease.hold(ops, NAME, "next") as held:
            assert held.token == 2


def test_a_holder_that_lives_but_has_expired_is_ended_and_told(ops: str) -> None:
    with lease.hold(ops, NAME, "hung") as first:
        expire(ops)
        with lease.hold(ops, NAME, "next") as second:
            assert second.token == first.token + 1
            with pytest.raises(LeaseLost, match="lost by hung"):
                first.check()
            second.check()
            found = lease.peek(ops, NAME)
            assert found is not None
            assert found.holder == "next"
    assert lease.peek(ops, NAME) is None


def test_an_ended_holder_does_not_free_its_successors_lease(ops: str) -> None:
    with lease.hold(ops, NAME, "hung"):
        expire(ops)
        successor = lease.hold(ops, NAME, "next")
        held = successor.__enter__()
    try:
        held.check()
        with pytest.raises(LeaseHeld, match="next since"), lease.hold(ops, NAME, "third"):
            pass
    finally:
        successor.__exit__(None, None, None)


def test_a_frozen_process_is_replaced_when_it_has_expired(ops: str) -> None:
    with holder(ops, NAME, "frozen") as frozen:
        os.kill(frozen.process.pid, signal.SIGSTOP)
        with pytest.raises(LeaseHeld, match="frozen since"), lease.hold(ops, NAME, "too early"):
            pass
        expire(ops)
        with lease.hold(ops, NAME, "next") as held:
            assert held.token == frozen.token + 1


def test_check_notices_at_once_that_its_session_was_ended(ops: str) -> None:
    with lease.hold(ops, NAME, "one") as held:
        held.check()
        with psycopg.connect(ops, autocommit=True) as connection:
            connection.execute("SELECT pg_terminate_backend(backend_pid, 5000) FROM ops.leases")
        with pytest.raises(LeaseLost) as caught:
            held.check()
    assert caught.value.remedy
    with pytest.raises(LeaseLost):
        held.check()


def test_check_renews(ops: str) -> None:
    with lease.hold(ops, NAME, "one") as held:
        expire(ops)  # nobody else wanted it meanwhile, so it is still ours
        held.check()
        with psycopg.connect(ops) as connection:
            row = connection.execute("SELECT expires_at > now() + interval '50 seconds' FROM ops.leases").fetchone()
        assert row == (True,)


def test_renewal_keeps_it(ops: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease, "_RENEW_SECONDS", 0.05)
    with lease.hold(ops, NAME, "one") as held:
        expire(ops)

        def renewed() -> bool:
            with psycopg.connect(ops) as connection:
                row = connection.execute("SELECT expires_at > now() FROM ops.leases").fetchone()
            return row == (True,)

        eventually(renewed, "the renewal", seconds=5)
        held.check()


def test_an_ops_database_that_is_away_is_said_so(cluster: Cluster) -> None:
    with pytest.raises(DatabaseUnavailable), lease.hold(f"{cluster.conninfo('payme_ops')} port=1", NAME, "one"):
        pass
