"""Terms: leases without a session. They live by being renewed, exclude the others, and are taken over when left."""

from collections.abc import Iterator
from datetime import datetime, timedelta

import psycopg
import pytest

from payme_ops.foundation import lease
from payme_ops.foundation.errors import LeaseHeld, LeaseLost
from sandbox import postgres
from tests.support.ops import holder, ops_database
from tests.support.waiting import eventually

NAME, OURS, OTHERS = "release:production", "release/a", "release/b"
LONG, OVER = timedelta(minutes=4), timedelta(0)


@pytest.fixture(scope="module")
def cluster() -> Iterator[postgres.Cluster]:
    with postgres.temporary_cluster() as started:
        yield started


@pytest.fixture
def ops(cluster: postgres.Cluster) -> Iterator[str]:
    with ops_database(cluster) as conninfo:
        yield conninfo


def test_the_same_holder_keeps_its_token_and_another_is_told_who_has_it(ops: str) -> None:
    taken = lease.take_term(ops, NAME, OURS, LONG)
    again = lease.take_term(ops, NAME, OURS, LONG)
    assert (again.token, again.taken_at) == (taken.token, taken.taken_at)
    assert again.expires_at > taken.expires_at
    with pytest.raises(LeaseHeld, match="release/a since"):
        lease.take_term(ops, NAME, OTHERS, LONG)
    assert lease.living_term(ops, NAME) == again


def test_what_ended_is_taken_with_a_higher_token_also_by_the_same_holder(ops: str) -> None:
    first = lease.take_term(ops, NAME, OURS, LONG)
    assert lease.end_term(ops, NAME, first.token)
    assert not lease.end_term(ops, NAME, first.token)
    assert lease.living_term(ops, NAME) is None
    assert lease.take_term(ops, NAME, OURS, LONG).token == first.token + 1
    with pytest.raises(LeaseLost):
        lease.renew_term(ops, first, LONG)


def test_what_expired_is_ours_until_another_takes_it(ops: str) -> None:
    first = lease.take_term(ops, NAME, OURS, OVER)
    lease.renew_term(ops, first, OVER)
    second = lease.take_term(ops, NAME, OTHERS, LONG)
    assert second.token == first.token + 1
    with pytest.raises(LeaseLost, match="release/a"):
        lease.renew_term(ops, first, LONG)
    assert not lease.end_term(ops, NAME, first.token)
    assert lease.living_term(ops, NAME) == second


def test_what_was_left_is_claimed_until_somebody_ends_it(ops: str) -> None:
    left = lease.take_term(ops, "freeze:production", OURS, OVER)
    lease.take_term(ops, "freeze:staging", OURS, LONG)
    lease.take_term(ops, NAME, OURS, OVER)
    (claimed,) = lease.claim_expired(ops, "freeze:", "watchdog", OVER)
    assert (claimed.name, claimed.holder, claimed.token) == (left.name, OURS, left.token + 1)
    with pytest.raises(LeaseLost):
        lease.renew_term(ops, left, LONG)
    (again,) = lease.claim_expired(ops, "freeze:", "watchdog", LONG)
    assert (again.holder, again.taken_at) == (OURS, left.taken_at)
    assert lease.claim_expired(ops, "freeze:", "watchdog", LONG) == []
    assert lease.end_term(ops, again.name, again.token)
    assert lease.claim_expired(ops, "freeze:", "watchdog", LONG) == []


def test_a_session_and_a_term_of_one_name_exclude_each_other(ops: str) -> None:
    with holder(ops, NAME, "backup_restore/x"), pytest.raises(LeaseHeld, match="backup_restore/x"):
        lease.take_term(ops, NAME, OURS, LONG)
    lease.take_term(ops, NAME, OURS, LONG)
    with pytest.raises(LeaseHeld, match="release/a"), lease.hold(ops, NAME, "backup_restore/x"):
        pass
    with lease.hold(ops, NAME, OURS):
        assert lease.take_term(ops, NAME, OURS, LONG).holder == OURS


def test_it_is_renewed_while_the_work_lasts_and_the_work_is_told_when_it_is_lost(ops: str) -> None:
    taken = lease.take_term(ops, NAME, OURS, timedelta(seconds=0.4))
    with lease.keeping(ops, [taken], timedelta(seconds=0.4)) as keeper:
        eventually(lambda: expires(ops) > taken.expires_at + timedelta(seconds=0.4), "a second renewal")
        keeper.check()
        assert lease.end_term(ops, NAME, taken.token)
        eventually(lambda: keeper.lost is not None, "the loss to be noticed")
        with pytest.raises(LeaseLost):
            keeper.check()
    with pytest.raises(LeaseLost), lease.keeping(ops, [taken], LONG):
        pass


def test_a_short_absence_of_the_ops_database_loses_nothing(ops: str, cluster: postgres.Cluster) -> None:
    taken = lease.take_term(ops, NAME, OURS, timedelta(seconds=0.4))
    with lease.keeping(ops, [taken], timedelta(seconds=0.4)) as keeper:
        with psycopg.connect(cluster.conninfo(), autocommit=True) as admin:
            admin.execute("ALTER DATABASE ops_test ALLOW_CONNECTIONS false")
            admin.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = 'ops_test'")
            admin.execute("ALTER DATABASE ops_test ALLOW_CONNECTIONS true")
        before = expires(ops)
        eventually(lambda: expires(ops) > before, "the next renewal")
        keeper.check()


def expires(ops: str) -> datetime:
    with psycopg.connect(ops) as connection:
        row = connection.execute("SELECT expires_at FROM ops.terms WHERE name = %s", [NAME]).fetchone()
    assert row
    return datetime.fromisoformat(str(row[0]))


def test_what_is_held_now_is_listed_and_nothing_else(ops: str) -> None:
    assert lease.held(ops) == []
    ended = lease.take_term(ops, "release:staging", OURS, LONG)
    lease.end_term(ops, ended.name, ended.token)
    lease.take_term(ops, "freeze:staging", OURS, OVER)  # expired at once
    lease.take_term(ops, NAME, OURS, LONG)
    with holder(ops, "ddl:payme", OTHERS) as other:
        assert [(one.name, one.holder) for one in lease.held(ops)] == [(NAME, OURS), ("ddl:payme", OTHERS)]
        other.process.kill()
        eventually(lambda: len(lease.held(ops)) == 1, "the lock of a killed holder to go")
    assert [one.name for one in lease.held(ops)] == [NAME]
