"""What a gate shows, and when it does not ask. Real questions and answers: tests/e2e/test_backup_restore.py."""

import json
from collections.abc import Iterator
from datetime import timedelta
from types import SimpleNamespace
from typing import Any

import pytest
from airflow.providers.standard.operators.empty import EmptyOperator
from airflow.sdk import DAG
from airflow.sdk.exceptions import DownstreamTasksSkipped, TaskAwaitingInput

from payme_ops.foundation import approvals, evidence, opsdb
from payme_ops.foundation.clock import utc_now
from payme_ops.foundation.errors import NotApproved, NotFound
from payme_ops.foundation.evidence import Evidence, Verdict
from payme_ops.orchestration import alerting, approval
from payme_ops.orchestration.approval import ApprovalGate
from sandbox import postgres
from tests.support.ops import connection

ITEM, GATE = "restore_plan", "approve_swap"


@pytest.fixture(scope="module")
def cluster() -> Iterator[postgres.Cluster]:
    with postgres.temporary_cluster() as started:
        opsdb.migrate(started.conninfo())
        yield started


@pytest.fixture
def ops(cluster: postgres.Cluster, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("AIRFLOW_CONN_PAYME_OPS_DB", json.dumps(connection(cluster)))
    return cluster.conninfo()


@pytest.fixture
def context(request: pytest.FixtureRequest) -> Any:
    run = SimpleNamespace(
        dag_id="backup_restore", run_id=f"manual__{request.node.name}", clear_number=0, triggering_user_name="oncall"
    )
    ti = SimpleNamespace(
        id="x", dag_id=run.dag_id, run_id=run.run_id, task_id=GATE, map_index=-1, try_number=1, task=SimpleNamespace()
    )
    dag = SimpleNamespace(dag_id=run.dag_id)
    return {"dag": dag, "run_id": run.run_id, "dag_run": run, "ti": ti, "task_instance": ti}


@pytest.fixture
def gate(context: Any, monkeypatch: pytest.MonkeyPatch) -> ApprovalGate:
    """The gate, whose question goes to nobody."""
    made = ApprovalGate(task_id=GATE, subject="Swap?", evidence_item=ITEM, response_timeout=timedelta(hours=4))
    context["task"] = made
    monkeypatch.setattr("airflow.providers.standard.operators.hitl.upsert_hitl_detail", lambda **_: None)
    return made


def record(ops: str, context: Any, verdict: Verdict, measured: Any) -> Evidence:
    now = utc_now()
    made = Evidence(ITEM, verdict, measured, "a person agrees", "test", now, now, "test", evidence.digest(measured))
    evidence.record(ops, f"backup_restore/{context['run_id']}", [made])
    return made


def reply(
    gate: ApprovalGate, context: Any, choice: str, user: str | None, reason: str = "", number: str | None = None
) -> Any:
    """`number` is what FAB knows a user by; SimpleAuthManager has the name alone."""
    event = {
        "chosen_options": [choice],
        "params_input": {"break_glass_reason": reason},
        "responded_at": utc_now(),
        "responded_by_user": {"id": number or user, "name": user} if user else None,
    }
    return gate.execute_complete(context, event)


def latest(ops: str, context: Any) -> approvals.Approval:
    found = approvals.latest(ops, run=f"backup_restore/{context['run_id']}", gate=GATE)
    assert found
    return found


def test_what_has_passed_is_not_asked(ops: str, context: Any, gate: ApprovalGate) -> None:
    record(ops, context, Verdict.PASS, {"to do": "nothing"})
    assert gate.execute(context) is None
    assert approvals.latest(ops, run=f"backup_restore/{context['run_id']}", gate=GATE) is None


@pytest.mark.usefixtures("ops")
def test_without_evidence_it_fails(context: Any, gate: ApprovalGate) -> None:
    with pytest.raises(NotFound):
        gate.execute(context)


def test_another_person_approves_what_was_shown(ops: str, context: Any, gate: ApprovalGate) -> None:
    shown = record(ops, context, Verdict.INCONCLUSIVE, {"rows": 7})
    with pytest.raises(TaskAwaitingInput):
        gate.execute(context)
    assert (latest(ops, context).digest, latest(ops, context).choice) == (shown.sha256, None)
    assert gate.body == "- **rows**: 7"
    reply(gate, context, "Approve", "approver")
    assert approval.require_approval(context, gate=GATE, evidence_item=ITEM).responder == "approver"
    # What is measured anew was not agreed to.
    record(ops, context, Verdict.INCONCLUSIVE, {"rows": 8})
    with pytest.raises(NotApproved, match="other evidence"):
        approval.require_approval(context, gate=GATE, evidence_item=ITEM)


@pytest.mark.parametrize(("user", "number"), [("oncall", None), ("oncall", "7"), (None, None)])
def test_who_asked_or_nobody_cannot_approve(
    ops: str, context: Any, gate: ApprovalGate, user: str | None, number: str | None
) -> None:
    record(ops, context, Verdict.INCONCLUSIVE, {"rows": 7})
    with pytest.raises(TaskAwaitingInput):
        gate.execute(context)
    with pytest.raises(NotApproved):
        reply(gate, context, "Approve", user, reason="in a hurry", number=number)


@pytest.mark.parametrize(("user", "says"), [("approver", "Reject by approver"), (None, "Reject by nobody in time")])
def test_a_rejection_is_written_down_and_what_comes_after_it_is_skipped(
    ops: str, context: Any, monkeypatch: pytest.MonkeyPatch, user: str | None, says: str
) -> None:
    monkeypatch.setattr("airflow.providers.standard.operators.hitl.upsert_hitl_detail", lambda **_: None)
    with DAG("backup_restore", schedule=None):
        gate = ApprovalGate(task_id=GATE, subject="Swap?", evidence_item=ITEM, response_timeout=timedelta(hours=4))
        gate >> EmptyOperator(task_id="swap")
    context["task"], context["ti"].xcom_push = gate, lambda **_: None
    record(ops, context, Verdict.INCONCLUSIVE, {"rows": 7})
    with pytest.raises(TaskAwaitingInput):
        gate.execute(context)
    with pytest.raises(DownstreamTasksSkipped) as skipped:
        reply(gate, context, "Reject", user)
    assert skipped.value.tasks == ["swap"]
    with pytest.raises(NotApproved, match=says):
        approval.require_approval(context, gate=GATE, evidence_item=ITEM)


def test_break_glass_is_told_to_everybody(
    ops: str, context: Any, gate: ApprovalGate, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = list[str]()
    monkeypatch.setattr(alerting, "inform", lambda _context, what, *_, **__: told.append(what))
    record(ops, context, Verdict.INCONCLUSIVE, {"rows": 7})
    with pytest.raises(TaskAwaitingInput):
        gate.execute(context)
    reply(gate, context, "Approve", "oncall", reason="nobody else answers the phone tonight")
    assert told == ["Swap? (backup_restore waits for a person)", "Break-glass: oncall approved approve_swap alone"]


def test_who_is_asked_reads_what_for_and_opens_the_question(
    ops: str, gate: ApprovalGate, context: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[tuple[str, str]] = []
    monkeypatch.setattr(alerting, "inform", lambda _context, _what, why, *_, link, **__: told.append((why, link)))
    record(ops, context, Verdict.INCONCLUSIVE, {"rows": 7})
    with pytest.raises(TaskAwaitingInput):
        gate.execute(context)
    [(why, link)] = told
    assert f"Asked by oncall in backup_restore/{context['run_id']}." in why
    assert link.endswith(f"/dags/backup_restore/runs/{context['run_id']}/tasks/{GATE}/required_actions")


def test_marking_the_gate_as_success_approves_nothing(ops: str, context: Any) -> None:
    record(ops, context, Verdict.INCONCLUSIVE, {"rows": 7})
    with pytest.raises(NotApproved, match="nobody's answer"):
        approval.require_approval(context, gate=GATE, evidence_item=ITEM)


def test_the_body_shows_everything_and_no_text_becomes_markup() -> None:
    now = utc_now()
    measured = {
        "backup": "_a_b_",
        "gone": [],
        "tables": [{"table": "x|y", "rows": 1}, {"table": "<b>", "rows": None}],
        "rename": {"owner": "*o*", "carried": {"limit": -1}},
    }
    shown = Evidence(ITEM, Verdict.INCONCLUSIVE, measured, "", "", now, now, "", "", "[click](http://evil)")
    assert approval.to_markdown(shown) == "\n\n".join(
        [
            "- **backup**: \\_a_b\\_\n- **gone**: none",
            "## tables",
            "| table | rows |\n|---|---|\n| x\\|y | 1 |\n| \\<b\\> | none |",
            "## rename",
            "- **owner**: \\*o\\*",
            "### carried",
            "- **limit**: -1",
            "To do: \\[click\\](http://evil)",
        ]
    )


def test_a_long_table_is_cut_and_says_so() -> None:
    now, rows = utc_now(), [{"table": f"t{number}"} for number in range(100)]
    shown = Evidence(ITEM, Verdict.INCONCLUSIVE, {"tables": rows}, "", "", now, now, "", "")
    assert approval.to_markdown(shown).endswith("| t39 |\n\nand 60 more")
