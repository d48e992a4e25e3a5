"""Orders that were stopped are taken again, whatever became of who stopped them."""

from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from payme_ops.foundation import evidence, http, lease, payme_api
from payme_ops.foundation.errors import LeaseHeld, LeaseLost, Unavailable
from payme_ops.foundation.evidence import Verdict
from payme_ops.foundation.payme_api import Orders, PaymeApi
from payme_ops.release import orders
from payme_ops.release.request import Release
from sandbox import postgres
from tests.support import releases
from tests.support.ops import ops_database
from tests.support.releases import SETTINGS, Api

FREEZE, MERCHANT = "freeze:production", SETTINGS.test_merchant


@pytest.fixture(scope="module")
def cluster() -> Iterator[postgres.Cluster]:
    with postgres.temporary_cluster() as started:
        yield started


@pytest.fixture
def ops(cluster: postgres.Cluster) -> Iterator[str]:
    with ops_database(cluster) as conninfo:
        yield conninfo


@pytest.fixture
def api(tmp_path: Path) -> Iterator[Api]:
    with releases.api(tmp_path) as running:
        yield running


@pytest.fixture
def release(ops: str) -> Release:
    return releases.release(ops)


def is_taken(api: Api) -> bool:
    placed = payme_api.place_order(api.asks, MERCHANT, "somebody-else")
    assert placed
    return placed.accepted


def expire(ops: str) -> None:
    with psycopg.connect(ops, autocommit=True) as admin:
        admin.execute("UPDATE ops.terms SET expires_at = now() - interval '1 s' WHERE ended_at IS NULL")


def watch(ops: str, api: Api | PaymeApi) -> list[orders.Expired]:
    door = api.asks if isinstance(api, Api) else api
    return orders.resume_expired(ops, {"production": door}, "watchdog", MERCHANT)


def test_stopped_and_taken_again(ops: str, release: Release, api: Api) -> None:
    stopped = orders.freeze(ops, release, api.asks, SETTINGS)
    assert (stopped.verdict, stopped.measured["probe order"]) == (Verdict.PASS, "refused")
    assert not is_taken(api)
    assert orders.require_frozen(ops, release).holder == release.run
    assert orders.freeze(ops, release, api.asks, SETTINGS).verdict is Verdict.PASS  # a task that runs again
    for _ in range(2):
        back = orders.resume(ops, release, api.asks, SETTINGS)
        assert (back.verdict, back.measured["probe order"]) == (Verdict.PASS, "taken")
    assert is_taken(api)
    assert lease.living_term(ops, FREEZE) is None
    with pytest.raises(LeaseLost, match="not stopped any more"):
        orders.require_frozen(ops, release)


@pytest.mark.blocks("freeze_orders")
@pytest.mark.parametrize(
    ("fault", "says"), [("never_drains", "orders do not end"), ("freeze_ignored", "says frozen and takes orders")]
)
def test_what_is_not_stopped_is_taken_again_at_once(
    ops: str, release: Release, api: Api, fault: str, says: str
) -> None:
    api.control(fault=fault)
    found = orders.freeze(ops, release, api.asks, SETTINGS)
    assert found.verdict is Verdict.FAIL
    assert says in found.remedy
    api.control(fault=None)
    assert is_taken(api)
    assert lease.living_term(ops, FREEZE) is None


def test_without_the_switch_nothing_is_stopped_and_nobody_waits_for_it(ops: str, release: Release, api: Api) -> None:
    api.control(fault="no_orders")
    for door in (api.asks, None):
        assert orders.freeze(ops, release, door, SETTINGS).verdict is Verdict.INCONCLUSIVE
    assert lease.living_term(ops, FREEZE) is None


def test_another_release_may_not_stop_them_too(ops: str, release: Release, api: Api) -> None:
    other = releases.release(ops, run="pre_deployment/b")
    orders.freeze(ops, release, api.asks, SETTINGS)
    with pytest.raises(LeaseHeld, match=release.id):
        orders.freeze(ops, other, api.asks, SETTINGS)
    assert not is_taken(api)


def test_an_api_that_goes_away_while_it_stops_leaves_a_term_that_the_watchdog_ends(
    ops: str, release: Release, api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    def away(*_: object) -> Orders:
        api.stand_in.fail(503)
        raise Unavailable("gone")

    monkeypatch.setattr(orders, "_frozen", away)
    with pytest.raises(Unavailable):
        orders.freeze(ops, release, api.asks, SETTINGS)
    assert lease.living_term(ops, FREEZE)
    api.stand_in.fail(None)
    assert not is_taken(api)
    expire(ops)
    (done,) = watch(ops, api)
    assert (done.environment, done.holder, done.error) == ("production", release.run, "")
    assert is_taken(api)


@pytest.mark.blocks("resume_orders")
def test_an_api_that_does_not_take_orders_again_fails_and_is_tried_again(ops: str, release: Release, api: Api) -> None:
    orders.freeze(ops, release, api.asks, SETTINGS)
    api.control(fault="stays_frozen")
    assert orders.resume(ops, release, api.asks, SETTINGS).verdict is Verdict.FAIL
    expire(ops)
    (found,) = watch(ops, api)
    assert "does not take orders again" in found.error
    api.control(fault=None)
    expire(ops)
    (found,) = watch(ops, api)
    assert (found.holder, found.error) == (release.run, "")
    assert is_taken(api)


def test_whoever_died_the_watchdog_takes_orders_again_and_says_so_in_the_release(
    ops: str, release: Release, api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http, "CONNECT_SECONDS", 0.5)
    orders.freeze(ops, release, api.asks, SETTINGS)
    assert watch(ops, api) == []  # it is still renewed
    expire(ops)
    (found,) = watch(ops, PaymeApi("http://127.0.0.1:1", "t"))
    assert "did not answer" in found.error
    assert watch(ops, api) == []  # not while somebody tries
    expire(ops)
    (found,) = watch(ops, api)
    assert (found.holder, found.error) == (release.run, "")
    assert is_taken(api)
    kept = evidence.latest(ops, release.run, "resume_orders")
    assert (kept.verdict, kept.measured["by"]) == (Verdict.PASS, "watchdog")
    with pytest.raises(LeaseLost):
        orders.require_frozen(ops, release)
    assert watch(ops, api) == []


def test_an_environment_nobody_knows_is_told_and_not_forgotten(ops: str, release: Release, api: Api) -> None:
    orders.freeze(ops, release, api.asks, SETTINGS)
    expire(ops)
    (found,) = orders.resume_expired(ops, {}, "watchdog", MERCHANT)
    assert "nobody has told" in found.error
    expire(ops)
    assert len(watch(ops, api)) == 1
