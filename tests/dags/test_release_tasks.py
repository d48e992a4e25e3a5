"""What the tasks of a release do and refuse: with a real ops database, the sandbox's API, and nothing of XCom."""

import json
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import psycopg
import pytest
from airflow.sdk.exceptions import AirflowSkipException

from payme_ops.foundation import evidence, http, lease, payme_api, record, status_page
from payme_ops.foundation.clock import utc_now
from payme_ops.foundation.errors import GateClosed, NotApproved, NotFound, PaymeOpsError, Unavailable
from payme_ops.foundation.evidence import Finding, Verdict, failed, passed
from payme_ops.foundation.payme_api import Orders, Replicas
from payme_ops.orchestration import connections, release
from payme_ops.release import deploy, orders
from payme_ops.release.checklist import GATES
from sandbox.builds import commit_of
from sandbox.standin import Server
from tests.integration.test_airflow_api import Airflow, ended, entry, instance
from tests.support import releases
from tests.support.release_desk import FAILED, FREEZE, LEASE, Desk
from tests.support.standins import StandIn, served
from tests.support.waiting import eventually

NEW, OLD = commit_of("2.4.1"), commit_of("2.4.0")
ALONE = "nobody else answers the phone tonight"
BEFORE = Replicas(2, 6)


@pytest.fixture
def desk(release_desk: Desk) -> Desk:
    return release_desk


def act(desk: Desk, name: str, *, last: bool = True) -> None:
    desk.begin(name, last=last)
    release.act(name)


def away(item: str) -> Finding:
    """What stands there when an API was away to the end."""
    return Finding(Verdict.INCONCLUSIVE, {"error": f"{item} was not answered", "found": "status 503"}, "")


def nothing_was_done(desk: Desk) -> None:
    assert (desk.posts, desk.takes_orders, desk.commit) == (0, True, OLD)
    assert desk.term(LEASE) is None
    assert [desk.found(name) for name in ("freeze_orders", "deploy")] == [None, None]


# -- the go -----------------------------------------------------------------------------------------------------


def test_two_people_agreed_to_what_holds(desk: Desk) -> None:
    desk.go()
    desk.begin("take_release")
    release.take_release()
    taken = desk.term(LEASE)
    assert taken
    assert taken.holder == desk.release.run


def test_one_alone_with_a_reason_is_enough(desk: Desk) -> None:
    desk.go("oncall", "oncall", reason=ALONE)
    act(desk, "freeze_orders")
    assert not desk.takes_orders


@pytest.mark.blocks("go_no_go")
@pytest.mark.parametrize(
    ("people", "says"),
    [
        ([], "nobody's answer"),
        ([("approver", "Approve")], "nobody's answer"),
        ([("approver", "Approve"), ("oncall", "Approve")], "who triggered the run"),
        ([("oncall", "Approve"), ("lead", "Approve")], "who triggered the run"),
        ([("approver", "Approve"), ("approver", "Approve")], "the same person, approver"),
        ([("approver", "Approve"), ("", "Approve")], "by nobody"),
        ([("approver", "Approve"), ("lead", "Reject")], "Reject by lead"),
        ([("approver", "Approve"), ("", "Reject")], "nobody in time"),
    ],
    ids=["nobody", "one", "and who asked", "who asked first", "one twice", "and nobody", "a no", "no answer in time"],
)
def test_without_two_others_nothing_is_done(desk: Desk, people: list[tuple[str, str]], says: str) -> None:
    desk.prepare()
    desk.begin("collect")
    release.collect()
    for gate, (who, choice) in zip(GATES, people, strict=False):
        desk.answer(gate, who, choice=choice)
    for name in ("freeze_orders", "deploy", "smoke"):
        with pytest.raises(NotApproved, match=says):
            act(desk, name)
    nothing_was_done(desk)


@pytest.mark.blocks("go_no_go")
def test_gates_marked_as_success_have_asked_nobody(desk: Desk) -> None:
    """No row, whatever Airflow's own state and XCom say; the latter is never read (tests/support/release_desk.py)."""
    desk.prepare()
    desk.begin("collect")
    with pytest.raises(NotFound, match="go_no_go"):
        act(desk, "deploy")
    desk.begin("collect")
    release.collect()
    with pytest.raises(NotApproved, match="marking the gate as success approves nothing"):
        act(desk, "deploy")
    nothing_was_done(desk)


@pytest.mark.blocks("go_no_go")
def test_a_go_is_for_the_evidence_that_was_shown(desk: Desk) -> None:
    desk.go()
    desk.keep("tests_passing", passed({"checks": "others"}))
    with pytest.raises(NotApproved, match="other evidence of tests_passing"):
        act(desk, "deploy")
    desk.begin("collect")
    release.collect()
    with pytest.raises(NotApproved, match="an approval of other evidence"):
        act(desk, "deploy")
    nothing_was_done(desk)


@pytest.mark.blocks("go_no_go")
@pytest.mark.parametrize(("field", "value"), [("commit", "c" * 40), ("previous_commit", "d" * 40)])
def test_a_go_is_for_the_commit_that_was_shown(desk: Desk, field: str, value: str) -> None:
    desk.go()
    with psycopg.connect(desk.ops) as session:
        session.execute(
            "UPDATE ops.releases SET request = (request::jsonb || jsonb_build_object(%s::text, %s::text))::json",
            [field, value],
        )
    with pytest.raises(NotApproved, match="other evidence of request"):
        act(desk, "deploy")
    nothing_was_done(desk)


@pytest.mark.blocks("go_no_go")
@pytest.mark.parametrize("ahead", [timedelta(hours=-2), timedelta(hours=2)], ids=["over", "not begun"])
def test_a_go_holds_within_its_window(make_desk: Callable[..., Any], ahead: timedelta) -> None:
    begins = utc_now() + ahead
    with make_desk(window_from=begins, window_to=begins + timedelta(hours=1)) as desk:
        desk.go()
        with pytest.raises(NotApproved, match="the window is not open"):
            act(desk, "freeze_orders")
        nothing_was_done(desk)


@pytest.fixture
def airflow(desk: Desk, tmp_path: Path) -> Iterator[tuple[Airflow, StandIn]]:
    """An Airflow in which everything so far ended itself."""
    found = Airflow()
    for dag, run, task in (("pre_deployment", "a", "check_request"), ("deployment", desk.release.id, "collect")):
        found.tasks.append(instance(task, dag_id=dag, dag_run_id=run))
        found.log.append(ended(task, dag_id=dag, run_id=run, seconds=0.01))

    def serve(port: int, _state: Path) -> Server:
        return Server(port, found.route, lambda path: path.startswith("/api/"), {"detail": "told to fail"})

    with served(serve, tmp_path) as running:
        desk.connect("airflow_api", conn_type="http", host=running.url, login="auditor", password="a-password")
        yield found, running


@pytest.mark.blocks("bypasses")
def test_a_mark_by_hand_voids_the_go(desk: Desk, airflow: tuple[Airflow, StandIn]) -> None:
    desk.go()
    desk.begin("take_release")
    release.take_release()
    lease.end_term(desk.ops, LEASE, 1)
    airflow[0].tasks.append(instance("deploy", dag_run_id=desk.release.id))
    airflow[0].log.append(entry("patch_task_instance", "deploy", "lead", run_id=desk.release.id))
    with pytest.raises(NotApproved, match=r"set by hand[^$]*deployment deploy"):
        act(desk, "deploy")
    nothing_was_done(desk)


@pytest.mark.blocks("bypasses")
def test_an_airflow_that_is_away_lets_nothing_through(desk: Desk, airflow: tuple[Airflow, StandIn]) -> None:
    desk.go()
    airflow[1].fail(503)
    with pytest.raises(Unavailable):
        act(desk, "deploy")
    nothing_was_done(desk)


# -- acting -----------------------------------------------------------------------------------------------------


@pytest.mark.blocks("freeze_orders")
def test_orders_that_could_not_be_stopped_stop_the_release(desk: Desk) -> None:
    desk.go()
    desk.api.stand_in.fail(503)
    with pytest.raises(Unavailable):
        act(desk, "freeze_orders", last=False)
    assert desk.found("freeze_orders") is None, "Airflow tries again"
    with pytest.raises(Unavailable, match="freeze_orders could not be measured"):
        act(desk, "freeze_orders")
    found = desk.found("freeze_orders")
    assert found
    assert found.verdict is Verdict.INCONCLUSIVE
    desk.api.stand_in.fail(None)
    assert desk.takes_orders
    # Who clears the deploy alone, or marks the freeze as success, gets no further.
    desk.keep("final_backup")
    with pytest.raises(GateClosed, match="orders are not stopped any more"):
        act(desk, "deploy")
    assert desk.posts == 0


@pytest.mark.blocks("freeze_orders")
@pytest.mark.blocks("final_backup")
def test_a_freeze_or_a_backup_that_was_marked_as_success_lets_nothing_through(desk: Desk) -> None:
    """Also where nobody can look marks up: the connection to Airflow's own API is not there."""
    desk.go()
    with pytest.raises(GateClosed, match="no usable evidence for freeze_orders"):
        act(desk, "deploy")
    older = desk.keep("final_backup")
    eventually(lambda: utc_now() > older.ended, "the next second, the resolution of what is stored")
    act(desk, "freeze_orders")
    with pytest.raises(GateClosed, match="there is no final backup"):
        act(desk, "deploy")  # it is older than the freeze
    desk.keep("final_backup", FAILED)
    with pytest.raises(GateClosed, match="there is no final backup"):
        act(desk, "deploy")
    assert (desk.posts, desk.commit) == (0, OLD)
    desk.keep("final_backup")
    act(desk, "deploy")
    assert desk.posts == 1


def test_orders_that_were_stopped_by_who_then_died_are_taken_again(desk: Desk) -> None:
    def dies(*_: object) -> Orders:
        desk.api.stand_in.fail(503)
        raise Unavailable("gone")

    desk.go()
    desk.monkeypatch.setattr(orders, "_frozen", dies)
    with pytest.raises(Unavailable):
        act(desk, "freeze_orders")
    desk.api.stand_in.fail(None)
    assert not desk.takes_orders
    assert "NOT DEPLOYED" in str(endings(desk))
    assert desk.takes_orders


def test_the_terms_are_kept_while_it_works(desk: Desk) -> None:
    desk.deployed()
    soon = utc_now() + timedelta(seconds=5)
    with psycopg.connect(desk.ops) as session:
        session.execute("UPDATE ops.terms SET expires_at = %s", [soon])
    act(desk, "smoke")
    kept = {name: term.expires_at for name in (FREEZE, LEASE) if (term := desk.term(name))}
    assert kept[FREEZE] > soon + timedelta(minutes=3)
    assert kept[LEASE] > soon + timedelta(minutes=10)


def test_another_release_s_environment_is_not_touched(desk: Desk) -> None:
    desk.go()
    lease.take_term(desk.ops, LEASE, "release/another", timedelta(minutes=5))
    with pytest.raises(PaymeOpsError, match="release/another"):
        act(desk, "freeze_orders")
    assert desk.takes_orders


def test_a_worker_that_is_killed_after_the_post_posts_nothing_again(desk: Desk) -> None:
    """Also when the go does not hold any more: nothing is begun, what was begun is seen to its end."""

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    desk.go()
    desk.stop_orders()
    with desk.monkeypatch.context() as patch:
        patch.setattr(deploy, "_read_back", killed)
        with pytest.raises(KeyboardInterrupt):
            act(desk, "deploy", last=False)
    assert desk.found("deploy") is None
    desk.keep("tests_passing", FAILED)
    act(desk, "deploy")
    act(desk, "deploy")  # cleared
    assert (desk.posts, desk.commit) == (1, NEW)


@pytest.mark.blocks("deploy")
def test_an_api_that_hangs_is_not_waited_for(desk: Desk) -> None:
    assert http.CONNECT_SECONDS + http.READ_SECONDS <= 30
    desk.go()
    desk.stop_orders()
    desk.api.control(fault="hang")
    with desk.monkeypatch.context() as patch:
        patch.setattr(http, "READ_SECONDS", 0.2)
        with pytest.raises(Unavailable):
            act(desk, "deploy", last=False)
    desk.api.control(fault=None)
    assert (desk.posts, desk.commit) == (0, OLD)
    act(desk, "deploy")
    assert (desk.posts, desk.commit) == (1, NEW)


# -- well, or rolled back ---------------------------------------------------------------------------------------


def settle(desk: Desk, *, last: bool = True) -> None:
    desk.begin("settle", last=last)
    release.settle()


def test_what_was_never_posted_is_not_rolled_back(desk: Desk) -> None:
    desk.go()
    with pytest.raises(AirflowSkipException, match="nothing was deployed"):
        settle(desk)
    assert desk.posts == 0


def test_what_is_well_stays(desk: Desk) -> None:
    desk.deployed()
    act(desk, "smoke")
    settle(desk)
    assert (desk.posts, desk.commit, desk.found("rollback")) == (1, NEW, None)


@pytest.mark.blocks("deploy")
@pytest.mark.blocks("smoke")
@pytest.mark.parametrize(
    ("item", "kept"),
    [("deploy", FAILED), ("smoke", FAILED), ("smoke", None), ("deploy", "away"), ("smoke", "away")],
    ids=["deploy failed", "smoke failed", "smoke not done", "deploy not told", "smoke not told"],
)
def test_what_is_not_well_goes_back_once(desk: Desk, item: str, kept: Any) -> None:
    desk.deployed()
    if item == "deploy":
        desk.keep("smoke")
    if kept:
        desk.keep(item, away(item) if kept == "away" else kept)
    with pytest.raises(AirflowSkipException, match="nothing is left to watch"):
        settle(desk)
    assert (desk.posts, desk.commit) == (2, OLD)
    assert desk.was_told(f"{desk.release.id} was rolled back")
    # Cleared, or in the other DAG: a person is paged, and nothing is posted.
    with pytest.raises(AirflowSkipException):
        settle(desk)
    assert (desk.posts, desk.commit) == (2, OLD)
    assert desk.was_told("not well after its rollback")


@pytest.mark.blocks("rollback")
def test_without_a_rehearsal_a_person_is_paged_instead(desk: Desk) -> None:
    desk.go()
    desk.stop_orders()
    act(desk, "deploy")
    desk.keep("migrations_tested", Finding(Verdict.INCONCLUSIVE, {"rollback_safe": False}, "no way down"))
    desk.keep("smoke", FAILED)
    with pytest.raises(AirflowSkipException):
        settle(desk)
    assert (desk.posts, desk.commit) == (1, NEW)
    assert desk.was_told("could not be rolled back")


@pytest.mark.blocks("rollback")
def test_a_previous_commit_that_is_not_well_either_is_told(desk: Desk) -> None:
    desk.deployed()
    desk.keep("smoke", FAILED)
    desk.api.control(fault="unhealthy")
    with pytest.raises(AirflowSkipException):
        settle(desk)
    assert desk.posts == 2
    found = desk.found("rollback")
    assert found
    assert found.verdict is Verdict.FAIL
    assert desk.was_told("could not be rolled back")
    assert "ROLLBACK FAILED" in str(endings(desk))


@pytest.mark.parametrize("where", ["503", "another"])
def test_a_rollback_that_may_get_through_later_is_tried_again(desk: Desk, where: str) -> None:
    desk.deployed()
    desk.keep("smoke", FAILED)
    if where == "503":
        desk.api.stand_in.fail(503)
    else:
        lease.end_term(desk.ops, LEASE, 1)
        other = lease.take_term(desk.ops, LEASE, "release/another", timedelta(minutes=5))
    with pytest.raises((Unavailable, PaymeOpsError)):
        settle(desk, last=False)
    assert desk.posts == 1
    if where == "503":
        desk.api.stand_in.fail(None)
    else:
        lease.end_term(desk.ops, LEASE, other.token)
    with pytest.raises(AirflowSkipException):
        settle(desk, last=False)
    assert (desk.posts, desk.commit) == (2, OLD)


def test_at_the_last_try_it_is_told_that_nobody_knows(desk: Desk) -> None:
    desk.deployed()
    desk.keep("smoke", FAILED)
    desk.api.stand_in.fail(503)
    with pytest.raises(AirflowSkipException):
        settle(desk)
    assert desk.was_told("nobody can tell whether it was rolled back")


@pytest.mark.blocks("health")
@pytest.mark.blocks("watch")
@pytest.mark.parametrize(
    ("item", "why"),
    [("watch", "breach"), ("watch", "a no"), ("watch", "no answer"), ("health", "breach"), ("watch", "not looked at")],
)
def test_a_release_that_is_not_kept_goes_back(desk: Desk, item: str, why: str) -> None:
    desk.deployed()
    for name in {"health", "watch"} - {item}:
        desk.keep(name)
    if why == "breach":
        desk.keep(item, FAILED)
    elif why != "not looked at":
        desk.keep(item, Finding(Verdict.INCONCLUSIVE, {"coverage": 40}, "look"))
        desk.answer(item, "lead" if why == "a no" else "", item, choice="Reject")
    desk.begin("settle_watch", dag="post_deployment")
    release.settle_watch()
    assert (desk.posts, desk.commit) == (2, OLD)


def test_a_release_that_a_person_keeps_stays(desk: Desk) -> None:
    desk.deployed()
    desk.keep("health")
    desk.keep("watch", Finding(Verdict.INCONCLUSIVE, {"coverage": 90}, "look"))
    desk.answer("watch", "lead", "watch")
    desk.begin("settle_watch", dag="post_deployment")
    release.settle_watch()
    assert (desk.posts, desk.commit) == (1, NEW)


@pytest.mark.blocks("features_confirmed")
@pytest.mark.parametrize(("who", "posts"), [("lead", 2), ("", 1)], ids=["a no", "no answer"])
def test_features_that_do_not_work_take_it_back_and_silence_does_not(desk: Desk, who: str, posts: int) -> None:
    desk.deployed()
    desk.keep("features_confirmed", Finding(Verdict.INCONCLUSIVE, {}, "try"))
    desk.answer("features_confirmed", who, "features_confirmed", choice="Reject")
    desk.begin("settle_features", dag="post_deployment")
    release.settle_features()
    assert desk.posts == posts
    assert release.outcome(desk.release) == ("ROLLED BACK" if posts == 2 else "NOT WELL")


def test_a_watch_that_sees_the_rollback_after_a_no_pages_nobody(desk: Desk) -> None:
    desk.deployed()
    desk.keep("health")
    began = utc_now()
    desk.keep("features_confirmed", Finding(Verdict.INCONCLUSIVE, {}, "try"))
    desk.answer("features_confirmed", "lead", "features_confirmed", choice="Reject")
    desk.begin("settle_features", dag="post_deployment")
    release.settle_features()
    evidence.keep(desk.ops, desk.release.run, "watch", FAILED, threshold="", source="test", started=began)
    desk.begin("settle_watch", dag="post_deployment")
    release.settle_watch()
    assert (desk.posts, desk.commit, desk.takes_orders) == (2, OLD, True)
    assert desk.was_told("was rolled back")
    assert not desk.was_told("not well after its rollback")
    # What breaks only after that is another matter.
    desk.keep("watch", FAILED)
    with psycopg.connect(desk.ops) as session:
        session.execute("UPDATE ops.evidence SET started = started + interval '1 h' WHERE item = 'watch'")
    release.settle_watch()
    assert desk.was_told("not well after its rollback")


# -- endings ----------------------------------------------------------------------------------------------------


def endings(desk: Desk, dag: str = "deployment") -> GateClosed | None:
    """All of them, whatever one says, as teardowns are run; what the last says is the run's colour."""
    for name in ("resume_orders", "restore_autoscaling", "close_status_page", "keep_record", "tell_outcome"):
        desk.begin(name, dag=dag)
        try:
            getattr(release, name)()
        except AirflowSkipException:
            assert dag == "deployment"  # post_deployment does it
        except PaymeOpsError as error:
            last = error
            assert last.remedy
    desk.begin("verdict", dag=dag)
    try:
        release.verdict()
    except GateClosed as error:
        return error
    return None


def as_before(desk: Desk) -> None:
    assert desk.takes_orders
    assert payme_api.autoscaling(desk.api.asks) == BEFORE
    assert desk.term(FREEZE) is None


def records(desk: Desk) -> list[record.Record]:
    config = desk.installation.desk.settings
    store = desk.installation.store
    keys = [key for key in store.keys("") if key.endswith(".json")]
    return [record.verify(store.get(key), config.backup.verification_keys, "test") for key in keys]


def kept_word(desk: Desk) -> str:
    (made,) = records(desk)
    return made.verdict


def fix_autoscaling(desk: Desk) -> None:
    release.measure(desk.begin("autoscaling"), "autoscaling")
    assert payme_api.autoscaling(desk.api.asks) == Replicas(6, 6)


def test_after_a_no_nothing_is_left_and_the_run_is_red(desk: Desk) -> None:
    desk.prepare()
    desk.begin("collect")
    release.collect()
    desk.answer(GATES[0], "lead", choice="Reject")
    assert "NOT DEPLOYED" in str(endings(desk))
    as_before(desk)
    assert kept_word(desk) == "NOT DEPLOYED"
    assert desk.was_told(f"{desk.release.id}: NOT DEPLOYED")


def test_what_failed_before_the_freeze_leaves_the_limits_as_they_were(desk: Desk) -> None:
    desk.go()
    fix_autoscaling(desk)
    fix_autoscaling(desk)  # cleared: what it fixed itself is not taken for the limits
    assert "NOT DEPLOYED" in str(endings(desk))
    as_before(desk)


@pytest.mark.parametrize("how", ["killed", "away"])
def test_the_limits_from_before_are_known_whatever_happens_while_they_are_fixed(desk: Desk, how: str) -> None:
    desk.go()
    original = payme_api.set_autoscaling

    def killed(api: Any, wanted: Replicas) -> Replicas | None:
        original(api, wanted)
        raise KeyboardInterrupt

    if how == "killed":
        with desk.monkeypatch.context() as patch:
            patch.setattr(payme_api, "set_autoscaling", killed)
            with pytest.raises(KeyboardInterrupt):
                release.measure(desk.begin("autoscaling"), "autoscaling")
        assert desk.found("autoscaling") is None
    else:
        fix_autoscaling(desk)
        desk.api.stand_in.fail(503)
        release.measure(desk.begin("autoscaling"), "autoscaling")  # cleared
        desk.api.stand_in.fail(None)
        fix_autoscaling(desk)
    assert payme_api.autoscaling(desk.api.asks) == Replicas(6, 6)
    assert "NOT DEPLOYED" in str(endings(desk))
    as_before(desk)


@pytest.mark.parametrize("late", [False, True], ids=["at once", "after the term expired"])
def test_killed_after_freezing_without_a_word_orders_are_taken_again(desk: Desk, late: bool) -> None:
    """A setup that fails after freezing has no teardown; here any ending looks at the term, not at what was written."""

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    desk.go()
    with desk.monkeypatch.context() as patch:
        patch.setattr(release, "_keep", killed)
        with pytest.raises(KeyboardInterrupt):
            act(desk, "freeze_orders")
    assert not desk.takes_orders
    assert desk.found("freeze_orders") is None
    if late:
        with psycopg.connect(desk.ops) as session:
            session.execute("UPDATE ops.terms SET expires_at = now() - interval '1 s'")
    assert "NOT DEPLOYED" in str(endings(desk))
    as_before(desk)


def test_what_is_undone_within_the_same_second_is_undone(desk: Desk) -> None:
    """Instants are whole seconds: what came after what is told by the numbers of the evidence."""
    now = utc_now()
    desk.monkeypatch.setattr(evidence, "utc_now", lambda: now)
    desk.go()
    fix_autoscaling(desk)
    desk.stop_orders()
    assert "NOT DEPLOYED" in str(found := endings(desk))
    assert "autoscaling_restored" not in str(found)
    assert "resume_orders" not in str(found)
    as_before(desk)
    fix_autoscaling(desk)
    desk.begin("verdict")
    with pytest.raises(GateClosed, match="autoscaling_restored pass"):
        release.verdict()


def test_deployed_and_well_orders_are_taken_and_the_rest_is_for_the_watch(desk: Desk) -> None:
    desk.go()
    fix_autoscaling(desk)
    desk.stop_orders()
    for name in ("deploy", "smoke"):
        act(desk, name)
    settle(desk)
    assert endings(desk) is None
    as_before(desk)
    assert records(desk) == []
    taken = desk.term(LEASE)
    assert taken, "nobody else deploys while it is watched"
    for name in ("health", "watch", "features_confirmed"):
        desk.keep(name)
    assert endings(desk, "post_deployment") is None
    assert kept_word(desk) == "RELEASED"
    assert desk.term(LEASE) is None
    assert desk.was_told(f"{desk.release.id}: RELEASED")


@pytest.mark.blocks("watch")
def test_deployed_and_watched_by_nobody_is_red(desk: Desk) -> None:
    desk.deployed()
    desk.keep("smoke")
    desk.airflow.runs = set()
    assert "nobody watches: post_deployment was not started" in str(endings(desk))
    desk.airflow.runs = None
    with pytest.raises(Unavailable):
        endings(desk)


@pytest.mark.parametrize("missing", ["health", "watch", "features_confirmed"])
def test_without_one_confirmation_it_is_not_green(desk: Desk, missing: str) -> None:
    desk.deployed()
    desk.keep("smoke")
    for name in {"health", "watch", "features_confirmed"} - {missing}:
        desk.keep(name)
    assert "NOT CONFIRMED" in str(endings(desk, "post_deployment"))


def test_rolled_back_is_red_with_a_record_and_a_draft(desk: Desk) -> None:
    desk.go()
    fix_autoscaling(desk)
    desk.stop_orders()
    act(desk, "deploy")
    desk.keep("smoke", FAILED)
    with pytest.raises(AirflowSkipException):
        settle(desk)
    assert "ROLLED BACK" in str(endings(desk))
    as_before(desk)
    assert kept_word(desk) == "ROLLED BACK"
    assert [key for key in desk.installation.store.keys("") if key.endswith("post-mortem.md")]
    assert desk.term(LEASE) is None


def test_in_the_literal_order_they_stay_stopped_until_the_watch_is_over(make_desk: Callable[..., Any]) -> None:
    with make_desk(resume_after_watch=True) as desk:
        desk.deployed()
        desk.keep("smoke")
        assert endings(desk) is None
        assert not desk.takes_orders
        for name in ("health", "watch", "features_confirmed"):
            desk.keep(name)
        assert endings(desk, "post_deployment") is None
        as_before(desk)


def test_in_the_literal_order_a_rollback_takes_them_at_once(make_desk: Callable[..., Any]) -> None:
    with make_desk(resume_after_watch=True) as desk:
        desk.deployed()
        desk.keep("smoke", FAILED)
        with pytest.raises(AirflowSkipException):
            settle(desk)
        assert "ROLLED BACK" in str(endings(desk))
        as_before(desk)


def test_what_another_release_has_stopped_is_not_its_to_take(desk: Desk) -> None:
    desk.go()
    act(desk, "freeze_orders")
    desk.begin("resume_orders")
    release.resume_orders()
    other = releases.release(desk.ops, run="pre_deployment/b")
    orders.freeze(desk.ops, other, desk.api.asks, releases.SETTINGS)
    assert "NOT DEPLOYED" in str(endings(desk))
    assert not desk.takes_orders
    held = desk.term(FREEZE)
    assert held
    assert held.holder == other.run


@pytest.mark.blocks("resume_orders")
def test_orders_that_stay_stopped_are_red(desk: Desk) -> None:
    desk.deployed()
    desk.keep("smoke")
    desk.api.control(fault="stays_frozen")
    assert "resume_orders fail" in str(endings(desk))
    desk.api.control(fault=None)
    desk.begin("resume_orders")
    release.resume_orders()  # cleared
    as_before(desk)


@pytest.mark.blocks("resume_orders")
@pytest.mark.blocks("autoscaling_restored")
def test_an_api_that_is_away_to_the_end_is_red(desk: Desk) -> None:
    desk.go()
    fix_autoscaling(desk)
    act(desk, "freeze_orders")
    desk.api.stand_in.fail(503)
    error = str(endings(desk))
    assert "resume_orders inconclusive" in error
    assert "autoscaling_restored inconclusive" in error
    desk.api.stand_in.fail(None)
    endings(desk)  # cleared
    as_before(desk)


@pytest.mark.blocks("autoscaling_restored")
def test_limits_that_do_not_come_back_are_red(desk: Desk) -> None:
    """Somebody else sets them in between: what is read back decides."""
    desk.go()
    fix_autoscaling(desk)
    original = payme_api.set_autoscaling

    def meddled(api: Any, wanted: Replicas) -> Replicas | None:
        original(api, wanted)
        return original(api, Replicas(1, 9))

    desk.monkeypatch.setattr(payme_api, "set_autoscaling", meddled)
    assert "autoscaling_restored fail" in str(endings(desk))


@pytest.mark.blocks("status_page")
@pytest.mark.blocks("status_page_closed")
def test_users_are_told_and_what_the_page_does_not_say_back_is_asked(desk: Desk) -> None:
    context = desk.begin("status_page", dag="pre_deployment")
    told = release.measure(context, "status_page")
    assert (told.verdict, told.measured["status"]) == (Verdict.PASS, "in_progress")  # the window is open
    again = release.measure(context, "status_page")
    assert again.measured["maintenance"] == told.measured["maintenance"]
    page = connections.status_page()
    assert page
    status_page.update_incident(page, told.measured["maintenance"], status="completed", body="called off by hand")
    called_off = release.measure(context, "status_page")
    assert (called_off.verdict, called_off.measured["status"]) == (Verdict.INCONCLUSIVE, "completed")
    desk.page.fail(503)
    with pytest.raises(Unavailable):
        release.measure(desk.begin("status_page", dag="pre_deployment", last=False), "status_page")
    assert release.measure(context, "status_page").verdict is Verdict.INCONCLUSIVE
    desk.page.fail(None)
    # What was announced is known also after a look in vain.
    assert release.measure(context, "status_page").measured["maintenance"] == told.measured["maintenance"]
    desk.page.fail(500)
    release.measure(context, "status_page")
    desk.begin("close_status_page")
    with pytest.raises(Unavailable, match="status_page_closed could not be measured"):
        release.close_status_page()
    closed = desk.found("status_page_closed")
    assert closed
    assert closed.verdict is Verdict.INCONCLUSIVE
    desk.page.fail(None)
    desk.begin("close_status_page")
    release.close_status_page()
    closed = desk.found("status_page_closed")
    assert closed
    assert (closed.verdict, closed.measured["status"]) == (Verdict.PASS, "completed")
    assert len({one["id"] for one in desk.page.get("/incidents.json")}) == 1


# -- prepared ---------------------------------------------------------------------------------------------------


def test_a_form_makes_one_release_and_says_what_is_wrong(desk: Desk) -> None:
    context = desk.begin("check_request", dag="pre_deployment")
    asked = desk.release.request
    times = {name: getattr(asked, name).isoformat() for name in ("window_from", "window_to")}
    form = {"commit": NEW, "version": "2.4.1", "environment": "production", "previous_commit": OLD, "reason": "why"}
    context["params"] = {**form, **times}
    context["dag_run"].run_id = context["run_id"] = "manual__1"
    assert release.check_request() == release.check_request() == f"{desk.release.id}-2"
    context["params"] = {**context["params"], "commit": "main", "reason": None}
    with pytest.raises(PaymeOpsError, match=r"(?s)commit: .*reason: "):
        release.check_request()
    context["dag_run"].triggering_user_name = None
    context["params"] = {**form, **times}
    with pytest.raises(NotFound, match="nobody asked for this release"):
        release.check_request()


def test_the_next_dags_refuse_a_run_that_nobody_prepared(desk: Desk) -> None:
    context = desk.begin("open_deployment")
    context["run_id"] = "manual__by_hand"
    for refused in (release.open_deployment, release.open_post_deployment):
        with pytest.raises(NotFound, match="pre_deployment"):
            refused()
    desk.begin("open_post_deployment", dag="post_deployment")
    with pytest.raises(NotFound, match="was not deployed"):
        release.open_post_deployment()


def test_prepared_is_green_only_with_every_item(desk: Desk) -> None:
    desk.prepare()
    desk.begin("verdict_prepared", dag="pre_deployment")
    release.verdict_prepared()
    desk.keep("qa_sign_off", Finding(Verdict.INCONCLUSIVE, {}, "ask"))
    with pytest.raises(GateClosed, match="open: qa_sign_off"):
        release.verdict_prepared()
    desk.answer("qa_sign_off", "oncall", "qa_sign_off")
    with pytest.raises(GateClosed, match="open: qa_sign_off"):
        release.verdict_prepared()
    desk.answer("qa_sign_off", "qa", "qa_sign_off")
    release.verdict_prepared()
    desk.airflow.runs = set()
    with pytest.raises(GateClosed, match="open: start_deployment"):
        release.verdict_prepared()


def test_evidence_says_what_was_measured_and_by_whom(desk: Desk) -> None:
    desk.deployed()
    found = {one.item: one for one in evidence.of_run(desk.ops, desk.release.run)}
    assert found["deploy"].actor == f"deployment/{desk.release.id}"
    assert found["deploy"].sha256 == evidence.digest(found["deploy"].measured)
    assert json.dumps(found["deploy"].measured)
    assert failed({}, "x").verdict is Verdict.FAIL
