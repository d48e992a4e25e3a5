"""A deploy is posted once, whatever is killed, cleared or answered; what runs is read back."""

from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import psycopg
import pytest

from payme_ops.foundation import evidence, http, lease, payme_api
from payme_ops.foundation.clock import utc_now
from payme_ops.foundation.errors import LeaseHeld, LeaseLost, NotApproved, PaymeOpsError, ServiceRefused, Unavailable
from payme_ops.foundation.evidence import Evidence, Verdict
from payme_ops.foundation.lease import Term
from payme_ops.foundation.payme_api import PaymeApi, Replicas
from payme_ops.release import autoscaling, deploy, request, smoke
from payme_ops.release.request import Release
from sandbox import postgres
from sandbox.builds import commit_of
from tests.support import releases
from tests.support.installation import quiet
from tests.support.ops import ops_database
from tests.support.releases import SETTINGS, Api

TTL = timedelta(minutes=15)


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


def term(ops: str, release: Release) -> Term:
    return lease.take_term(ops, "release:production", release.run, TTL)


def bring(ops: str, release: Release, api: Api) -> evidence.Finding:
    return deploy.deploy(ops, release, api.doors, SETTINGS, [term(ops, release)], quiet)


def found(item: str, measured: object, verdict: Verdict = Verdict.PASS) -> Evidence:
    now = utc_now()
    return Evidence(item, verdict, measured, "", "", now, now, "", evidence.digest(measured))


def test_a_release_is_one_row_whoever_asks_again(ops: str) -> None:
    first, again = releases.release(ops), releases.release(ops)
    other = releases.release(ops, run="pre_deployment/b")
    assert first == again == request.get(ops, first.id) == request.of_run(ops, "pre_deployment/a")
    assert (first.id, other.id) == (f"production-2.4.1-{commit_of('2.4.1')[:7]}", f"{first.id}-2")


def test_it_is_posted_once_and_what_runs_is_read_back(ops: str, release: Release, api: Api) -> None:
    assert not deploy.was_posted(ops, release)
    done = bring(ops, release, api)
    assert (done.verdict, done.measured["commit"]) == (Verdict.PASS, commit_of("2.4.1"))
    again = bring(ops, release, api)
    assert again.verdict is Verdict.PASS
    assert (done.measured["posted"], again.measured["posted"]) == ("by this try", "by an earlier try, and not again")
    assert (api.counted["posts"], api.counted["deploys"]) == (1, 1)
    assert deploy.was_posted(ops, release)


def test_killed_after_the_post_it_waits_and_posts_nothing(ops: str, release: Release, api: Api) -> None:
    class Killed(BaseException):
        pass

    def killed(line: str) -> None:
        if "waiting for" in line:
            raise Killed

    with pytest.raises(Killed):
        deploy.deploy(ops, release, api.doors, SETTINGS, [term(ops, release)], killed)
    assert api.counted["posts"] == 1
    assert bring(ops, release, api).verdict is Verdict.PASS
    assert api.counted["posts"] == 1


def test_killed_right_before_the_post_the_api_says_that_it_got_nothing(ops: str, release: Release, api: Api) -> None:
    bring_nothing = {
        "release": release.id,
        "kind": "deploy",
        "commit": release.request.commit,
        "key": f"{release.id}-deploy",
    }
    deploy._execute(ops, "ops/intend_deploy.sql", {**bring_nothing, "token": 1})
    deploy._execute(ops, "ops/claim_post.sql", {"release": release.id, "kind": "deploy", "token": 1})
    assert bring(ops, release, api).verdict is Verdict.PASS
    assert api.counted["posts"] == 1


def test_when_nobody_can_tell_it_is_not_posted_again(ops: str, release: Release, api: Api) -> None:
    api.control(fault="no_deploys")
    values = {"release": release.id, "kind": "deploy", "commit": release.request.commit, "key": f"{release.id}-deploy"}
    deploy._execute(ops, "ops/intend_deploy.sql", {**values, "token": 1})
    deploy._execute(ops, "ops/claim_post.sql", {"release": release.id, "kind": "deploy", "token": 1})
    short = SETTINGS.model_copy(update={"settle_seconds": 1})
    with pytest.raises(PaymeOpsError, match="cannot be told whether it was deployed"):
        deploy.deploy(ops, release, api.doors, short, [term(ops, release)], quiet)
    assert api.counted["posts"] == 0


def test_without_deploy_states_the_running_commit_says_that_it_is_done(ops: str, release: Release, api: Api) -> None:
    api.control(fault="no_deploys")
    assert bring(ops, release, api).verdict is Verdict.PASS


@pytest.mark.blocks("deploy")
@pytest.mark.parametrize("fault", ["redirect", "echo_token"])
def test_a_no_is_a_no_and_no_token_is_in_it(ops: str, release: Release, api: Api, fault: str) -> None:
    api.control(fault=fault)
    with pytest.raises(ServiceRefused) as refused:
        payme_api.post_deploy(api.doors.deploys, release.request.commit, "a-key")
    assert releases.DEPLOY_TOKEN not in refused.value.what
    with pytest.raises(ServiceRefused) as refused:
        bring(ops, release, api)
    assert releases.DEPLOY_TOKEN not in f"{refused.value!r} {refused.value}"
    api.control(fault=None)
    assert api.counted["deploys"] == 0


def test_an_unknown_commit_is_refused_and_counts_as_not_deployed(ops: str, api: Api) -> None:
    unknown = releases.release(ops, run="pre_deployment/u")
    odd = replace(unknown, request=replace(unknown.request, commit="e" * 40))
    with pytest.raises(ServiceRefused, match="refused to deploy"):
        bring(ops, odd, api)
    assert not deploy.was_posted(ops, odd)


def test_another_commit_than_the_one_posted_fails(ops: str, release: Release, api: Api) -> None:
    api.control(fault="wrong_sha")
    done = bring(ops, release, api)
    assert (done.verdict, done.measured["commit"]) == (Verdict.FAIL, "f" * 40)


def test_a_busy_api_is_asked_again_later_and_the_post_was_not_taken(ops: str, release: Release, api: Api) -> None:
    api.stand_in.fail(503, 2)  # what runs; then the POST itself
    with pytest.raises((Unavailable, PaymeOpsError)):
        deploy.deploy(ops, release, api.doors, SETTINGS, [term(ops, release)], quiet)
        raise PaymeOpsError("it was taken")
    api.stand_in.fail(None)
    assert bring(ops, release, api).verdict is Verdict.PASS
    assert api.counted["deploys"] == 1


def test_two_releases_one_has_the_environment_and_a_stale_token_posts_nothing(
    ops: str, release: Release, api: Api
) -> None:
    other = releases.release(ops, "2.4.4-slow", run="pre_deployment/b")
    stale = term(ops, release)
    with pytest.raises(LeaseHeld, match="release/production"):
        term(ops, other)
    with psycopg.connect(ops, autocommit=True) as admin:
        admin.execute("UPDATE ops.terms SET expires_at = now() - interval '1 s'")
    term(ops, other)
    with pytest.raises(LeaseLost):
        deploy.deploy(ops, release, api.doors, SETTINGS, [stale], quiet)
    assert api.counted["posts"] == 0


@pytest.mark.blocks("rollback")
@pytest.mark.parametrize(
    "shown",
    [
        None,
        found("migrations_tested", {"rollback_safe": False}),
        found("migrations_tested", {"rollback_safe": "True"}),
        found("migrations_tested", {"rollback_safe": True}, Verdict.INCONCLUSIVE),
        found("migrations_tested", ["rollback_safe"]),
    ],
)
def test_nothing_goes_back_that_was_not_shown_to(ops: str, release: Release, api: Api, shown: Evidence | None) -> None:
    with pytest.raises(NotApproved, match="may not be brought back"):
        deploy.roll_back(ops, release, api.doors, SETTINGS, [term(ops, release)], shown, quiet)
    assert api.counted["posts"] == 0


def test_it_goes_back_once(ops: str, release: Release, api: Api) -> None:
    safe = found("migrations_tested", {"rollback_safe": True})
    bring(ops, release, api)
    for _ in range(2):
        back = deploy.roll_back(ops, release, api.doors, SETTINGS, [term(ops, release)], safe, quiet)
        assert (back.verdict, back.measured["commit"]) == (Verdict.PASS, commit_of("2.4.0"))
    assert api.counted["posts"] == 2


# -- smoke ------------------------------------------------------------------------------------------------------


def test_an_order_and_its_refund_are_read_back_while_orders_are_stopped(release: Release, api: Api) -> None:
    payme_api.freeze_orders(api.asks, release.id)
    done = smoke.smoke(release, api.asks, SETTINGS)
    assert (done.verdict, done.measured["afterwards"]) == (Verdict.PASS, "refunded")
    assert smoke.smoke(release, api.asks, SETTINGS).measured["order"] == done.measured["order"]
    assert (api.counted["orders"], api.counted["refunds"]) == (1, 1)


@pytest.mark.blocks("smoke")
def test_who_is_not_well_takes_no_test_order(release: Release, api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(smoke.healthy_in_a_row, "__defaults__", (3, 0.0))
    api.control(fault="unhealthy")
    done = smoke.smoke(release, api.asks, SETTINGS)
    assert (done.verdict, done.measured) == (Verdict.FAIL, {"health": "unhealthy", "database": "connected"})
    assert api.counted["orders"] == 0


@pytest.mark.parametrize("update", [{"test_merchant": ""}, {}])
def test_without_test_orders_a_person_has_to_try(release: Release, api: Api, update: dict[str, str]) -> None:
    if not update:
        api.control(fault="no_orders")
    done = smoke.smoke(release, api.asks, SETTINGS.model_copy(update=update))
    assert done.verdict is Verdict.INCONCLUSIVE


# -- autoscaling ------------------------------------------------------------------------------------------------


def test_the_limits_from_before_come_back_exactly_however_often_they_were_fixed(api: Api) -> None:
    first = autoscaling.fix(api.asks, None)
    assert (first.verdict, payme_api.autoscaling(api.asks)) == (Verdict.PASS, Replicas(6, 6))
    kept = found("autoscaling", first.measured)
    assert autoscaling.fix(api.asks, kept).measured == first.measured
    assert autoscaling.restore(api.asks, kept).verdict is Verdict.PASS
    assert payme_api.autoscaling(api.asks) == Replicas(2, 6)


@pytest.mark.blocks("autoscaling")
def test_without_the_switch_a_person_is_asked(api: Api) -> None:
    api.control(fault="no_autoscaling")
    assert autoscaling.fix(api.asks, None).verdict is Verdict.INCONCLUSIVE
    assert autoscaling.fix(None, None).verdict is Verdict.INCONCLUSIVE
    assert autoscaling.restore(api.asks, None).verdict is Verdict.INCONCLUSIVE


def test_nobody_there_is_unavailable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http, "CONNECT_SECONDS", 0.5)
    with pytest.raises(Unavailable):
        autoscaling.fix(PaymeApi("http://127.0.0.1:1", "t"), None)
