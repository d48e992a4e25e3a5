"""An item of the checklist as a task: failed is red, what no machine can tell asks, what passed asks nobody."""

import asyncio
import json
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import psycopg
import pytest
from airflow.providers.standard.operators.empty import EmptyOperator
from airflow.sdk import DAG, RetryAction
from airflow.sdk.exceptions import TaskAwaitingInput, TaskDeferred

from payme_ops.foundation import approvals
from payme_ops.foundation.clock import utc_now
from payme_ops.foundation.errors import GateClosed, NotApproved, Unavailable
from payme_ops.foundation.evidence import Finding, Verdict, passed
from payme_ops.orchestration import release, release_items
from payme_ops.orchestration.defaults import RETRY_POLICY
from payme_ops.orchestration.health import HealthTrigger
from payme_ops.orchestration.item import ItemOperator, LooksItem, ReleaseGate
from payme_ops.release import checklist
from payme_ops.release.checklist import GATES, ITEMS, Kind
from sandbox.builds import commit_of
from tests.support.release_desk import FAILED, INCONCLUSIVE, Desk, asks
from tests.support.releases import API_TOKEN

PERSONS = [name for name, item in ITEMS.items() if item.kind is Kind.PERSON and name != "go_no_go"]


@pytest.fixture
def desk(release_desk: Desk, monkeypatch: pytest.MonkeyPatch) -> Desk:
    """Questions go to nobody: Airflow's own table is not here."""
    monkeypatch.setattr("airflow.providers.standard.operators.hitl.upsert_hitl_detail", lambda **_: None)
    return release_desk


def measures(desk: Desk, item: str, finding: Finding | Callable[[], Finding]) -> None:
    """What the item finds from now on."""
    found = finding if callable(finding) else lambda: finding
    desk.monkeypatch.setitem(release_items.FUNCTIONS, item, lambda _context, _release: found())


def begin(desk: Desk, made: ReleaseGate, *, last: bool = True) -> Any:
    dag = "pre_deployment" if made.task_id in checklist.PREPARED else "deployment"
    context = desk.begin(made.task_id, dag=dag, last=last)
    context["task"] = made
    return context


def run(desk: Desk, item: str, *, if_stale: bool = False, last: bool = True) -> Any:
    made = ItemOperator(item=item, if_stale=if_stale)
    return made.execute(begin(desk, made, last=last))


def reply(
    desk: Desk,
    made: ReleaseGate,
    choice: str,
    user: str | None,
    params: dict[str, Any] | None = None,
    pushed: list[str] | None = None,
) -> Any:
    """As Airflow resumes it, with the answer, or with its default after the time; `pushed` gets the XComs' keys."""
    context = begin(desk, made)
    context["ti"].xcom_push = lambda key, **_: [] if pushed is None else pushed.append(key)
    event = {
        "chosen_options": [choice],
        "params_input": params or {},
        "responded_at": utc_now(),
        "responded_by_user": {"id": user, "name": user} if user else None,
    }
    return made.execute_complete(context, event)


def is_final(error: BaseException) -> bool:
    assert isinstance(error, Exception)
    return RETRY_POLICY.evaluate(error, try_number=1, max_tries=2).action is RetryAction.FAIL


def test_what_failed_is_red_at_once_and_asks_nobody(desk: Desk) -> None:
    measures(desk, "tests_passing", FAILED)
    with pytest.raises(GateClosed, match="tests_passing did not pass") as refused:
        run(desk, "tests_passing", last=False)
    assert is_final(refused.value)
    assert not asks(desk, "tests_passing")


def test_what_no_machine_can_tell_asks_with_what_was_found(desk: Desk) -> None:
    measures(desk, "tests_passing", INCONCLUSIVE)
    desk.installation.set("RELEASE__APPROVAL_MINUTES", "7")
    made = ItemOperator(item="tests_passing")
    with pytest.raises(TaskAwaitingInput):
        made.execute(begin(desk, made))
    assert made.response_timeout == timedelta(minutes=7)
    assert "looked" in str(made.body)
    asked = approvals.latest(desk.ops, run=desk.release.run, gate="tests_passing")
    found = desk.found("tests_passing")
    assert asked
    assert found
    # Not whoever triggered this run: who asked for the release.
    assert (asked.requested_by, asked.digest) == ("oncall", found.sha256)
    assert desk.was_told(ITEMS["tests_passing"].ask)


def test_what_was_away_is_tried_again_before_anybody_is_asked(desk: Desk) -> None:
    def away() -> Finding:
        raise Unavailable("the code host did not answer")

    measures(desk, "tests_passing", away)
    with pytest.raises(Unavailable) as later:
        run(desk, "tests_passing", last=False)
    assert not is_final(later.value)
    assert (desk.found("tests_passing"), asks(desk, "tests_passing")) == (None, False)
    with pytest.raises(TaskAwaitingInput):
        run(desk, "tests_passing")


@pytest.mark.parametrize("item", PERSONS)
@pytest.mark.blocks("qa_sign_off")
@pytest.mark.blocks("rollback_plan_agreed")
@pytest.mark.blocks("support_standby")
@pytest.mark.blocks("features_confirmed")
def test_what_only_people_know_always_asks_and_blocks_until_another_says_yes(desk: Desk, item: str) -> None:
    assert set(PERSONS) == {"qa_sign_off", "rollback_plan_agreed", "support_standby", "features_confirmed"}
    with pytest.raises(TaskAwaitingInput):
        run(desk, item)
    for choice, user in (("Reject", "lead"), ("Reject", None), ("Approve", None), ("Approve", "oncall")):
        with pytest.raises(TaskAwaitingInput):
            run(desk, item)
        with pytest.raises((GateClosed, NotApproved)) as refused:
            reply(desk, ItemOperator(item=item), choice, user)
        assert is_final(refused.value)
        assert not settled(desk, item)
    with pytest.raises(TaskAwaitingInput):
        run(desk, item)
    reply(desk, ItemOperator(item=item), "Approve", "lead")
    assert settled(desk, item)


def settled(desk: Desk, item: str) -> bool:
    return checklist.is_settled(desk.found(item), approvals.latest(desk.ops, run=desk.release.run, gate=item))


@pytest.mark.parametrize(
    ("params", "says"),
    [({}, "who triggered the run"), ({"break_glass_reason": "in a hurry"}, "who triggered the run")],
    ids=["nothing sent", "too short"],
)
def test_an_empty_form_is_no_break_glass(desk: Desk, params: dict[str, Any], says: str) -> None:
    """Airflow does not look at a form that was not sent."""
    with pytest.raises(TaskAwaitingInput):
        run(desk, "qa_sign_off")
    with pytest.raises(NotApproved, match=says):
        reply(desk, ItemOperator(item="qa_sign_off"), "Approve", "oncall", params)


def test_a_no_names_who_said_it(desk: Desk) -> None:
    for user, says in (("lead", "Reject by lead"), (None, "Reject by nobody in time")):
        with pytest.raises(TaskAwaitingInput):
            run(desk, "qa_sign_off")
        with pytest.raises(GateClosed, match=says):
            reply(desk, ItemOperator(item="qa_sign_off"), "Reject", user)


@pytest.mark.blocks("go_no_go")
def test_a_gate_of_the_go_is_no_different(desk: Desk) -> None:
    desk.prepare()
    desk.begin("collect")
    release.collect()
    for gate in GATES:
        made = ReleaseGate(task_id=gate, subject="Go?", evidence_item="go_no_go")
        with pytest.raises(TaskAwaitingInput):
            made.execute(begin(desk, made))
        assert str(made.body).count("pass") >= len(checklist.PREPARED)
        with pytest.raises(GateClosed, match="nobody in time"):
            reply(desk, ReleaseGate(task_id=gate, subject="Go?", evidence_item="go_no_go"), "Reject", None)


def test_a_no_leaves_nothing_that_skips_what_comes_after_it(desk: Desk) -> None:
    """Airflow reads that list of a failed task, too: freeze and deploy were skipped now and then, as if marked so."""
    desk.prepare()
    desk.begin("collect")
    release.collect()
    with DAG("a_release", schedule=None):
        made = ReleaseGate(task_id="go_no_go_first", subject="Go?", evidence_item="go_no_go")
        made >> EmptyOperator(task_id="deploy")
    with pytest.raises(TaskAwaitingInput):
        made.execute(begin(desk, made))
    pushed: list[str] = []
    with pytest.raises(GateClosed):
        reply(desk, made, "Reject", "lead", pushed=pushed)
    assert not pushed


def test_in_a_green_release_only_people_s_items_ask(desk: Desk) -> None:
    for name in release_items.FUNCTIONS:
        if name in PERSONS:
            continue
        measures(desk, name, passed({}))
        assert run(desk, name) is None
        assert not asks(desk, name), name


class TestForTheGo:
    """With if_stale only what is too old, or did not pass, is measured again."""

    def older(self, desk: Desk, item: str, age: timedelta) -> None:
        with psycopg.connect(desk.ops) as session:
            session.execute("UPDATE ops.evidence SET ended = ended - %s WHERE item = %s", [age, item])

    def never(self) -> Finding:
        pytest.fail("measured again")

    def test_what_holds_is_left_alone(self, desk: Desk) -> None:
        desk.keep("code_review")
        self.older(desk, "code_review", timedelta(hours=23))
        measures(desk, "code_review", self.never)
        assert run(desk, "code_review", if_stale=True) is None

    @pytest.mark.blocks("code_review")
    def test_what_is_too_old_is_measured_again(self, desk: Desk) -> None:
        desk.keep("code_review")
        self.older(desk, "code_review", timedelta(hours=25))
        measures(desk, "code_review", FAILED)
        with pytest.raises(GateClosed):
            run(desk, "code_review", if_stale=True)

    def test_what_was_approved_holds_and_what_was_not_does_not(self, desk: Desk) -> None:
        desk.keep("code_review", INCONCLUSIVE)
        desk.answer("code_review", "lead", "code_review")
        measures(desk, "code_review", self.never)
        assert run(desk, "code_review", if_stale=True) is None
        desk.keep("code_review", Finding(Verdict.INCONCLUSIVE, {"looked": "at another"}))
        measures(desk, "code_review", FAILED)
        with pytest.raises(GateClosed):
            run(desk, "code_review", if_stale=True)


class TestLooks:
    """Items that look at /health by a trigger: decided by what is stored."""

    @pytest.fixture(autouse=True)
    def _staging(self, desk: Desk) -> None:
        desk.connect("api_staging", conn_type="http", host=desk.api.stand_in.url, password=API_TOKEN)
        desk.installation.set("RELEASE__SAMPLE_SECONDS", "1")

    def looked(self, desk: Desk, item: str) -> Any:
        """Defer, let the trigger run as a triggerer makes it, resume."""
        made = LooksItem(item=item, consecutive=2)
        with pytest.raises(TaskDeferred) as deferred:
            made.execute(begin(desk, made))
        path, arguments = deferred.value.trigger.serialize()
        assert path == "payme_ops.orchestration.health.HealthTrigger"
        assert API_TOKEN not in json.dumps(arguments)
        arguments["until"] = arguments["begun"]  # patience is not what is tested

        async def one() -> None:
            async for _ in HealthTrigger(**arguments).run():
                return

        asyncio.run(asyncio.wait_for(one(), 30))
        again = LooksItem(item=item, consecutive=2)
        return again.looked(begin(desk, again), {"verdict": "pass"}, **(deferred.value.kwargs or {}))

    @pytest.mark.blocks("staging_healthy")
    def test_staging_has_to_run_this_commit(self, desk: Desk) -> None:
        with pytest.raises(GateClosed, match="runs"):
            self.looked(desk, "staging_healthy")

    @pytest.mark.blocks("health")
    @pytest.mark.parametrize("fault", ["unhealthy", "wrong_sha"])
    def test_what_is_not_well_after_the_deploy_is_red(self, desk: Desk, fault: str) -> None:
        desk.deployed()
        desk.api.control(fault=fault)
        with pytest.raises(GateClosed, match="health did not pass"):
            self.looked(desk, "health")

    @pytest.mark.blocks("health")
    def test_an_uptime_longer_than_since_the_deploy_is_red(self, desk: Desk) -> None:
        """It says healthy, and was never restarted: nothing was deployed there."""
        desk.deployed()
        with psycopg.connect(desk.ops) as session:
            session.execute("UPDATE ops.deploys SET intended_at = now() + interval '1 hour'")
        with pytest.raises(GateClosed, match="longer than since the deploy"):
            self.looked(desk, "health")

    @pytest.mark.blocks("health")
    @pytest.mark.parametrize("fault", ["stale", "redirect", "too_many", "echo_token"])
    def test_what_says_nothing_asks(self, desk: Desk, fault: str) -> None:
        desk.deployed()
        desk.api.control(fault=fault)
        with pytest.raises(TaskAwaitingInput):
            self.looked(desk, "health")

    def test_well_asks_nobody(self, desk: Desk) -> None:
        desk.deployed()
        made = LooksItem(item="health", consecutive=2)
        with pytest.raises(TaskDeferred) as deferred:
            made.execute(begin(desk, made))

        async def one() -> None:
            async for _ in HealthTrigger(**deferred.value.trigger.serialize()[1]).run():
                return

        asyncio.run(asyncio.wait_for(one(), 30))
        assert made.looked(begin(desk, made), {}, **(deferred.value.kwargs or {})) is None
        found = desk.found("health")
        assert found
        assert (found.measured["commit"], found.measured["looks"]) == (commit_of("2.4.1"), 2)
        assert not asks(desk, "health")
