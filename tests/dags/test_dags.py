"""What every DAG must have, and what each one is."""

import ast
import re
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from payme_ops.orchestration.approval import ApprovalGate
from payme_ops.orchestration.defaults import end_with_supervisor

PROJECT = Path(__file__).resolve().parents[2]
FILES = sorted((PROJECT / "dags").glob("*.py"))


def test_every_file_is_one_dag_of_its_name(dag_bag: Any) -> None:
    assert dag_bag.import_errors == {}
    assert sorted(dag_bag.dags) == [path.stem for path in FILES]


@pytest.mark.parametrize("dag_id", [path.stem for path in FILES])
class TestEveryDag:
    def test_page_is_the_runbook(self, dag_bag: Any, dag_id: str) -> None:
        # Airflow shows the path as text when doc_md names a file that is missing.
        text = (PROJECT / "docs" / "runbooks" / f"{dag_id}.md").read_text()
        assert dag_bag.dags[dag_id].doc_md == text

    def test_has_area_and_risk(self, dag_bag: Any, dag_id: str) -> None:
        tags = dag_bag.dags[dag_id].tags
        assert len([tag for tag in tags if tag.startswith("area:")]) == 1
        assert len(tags & {"risk:reads", "risk:writes-prod"}) == 1

    def test_alerts_at_both_levels(self, dag_bag: Any, dag_id: str) -> None:
        # A killed task never runs its own callback; the DAG's is the net below it.
        dag = dag_bag.dags[dag_id]
        assert dag.on_failure_callback
        assert all(task.on_failure_callback for task in dag.tasks)

    def test_never_runs_twice_at_once_nor_catches_up(self, dag_bag: Any, dag_id: str) -> None:
        dag = dag_bag.dags[dag_id]
        # Several releases may be in preparation; what must not meet is kept apart by leases.
        # Several applications may be down.
        assert dag.max_active_runs == (16 if "area:release" in dag.tags or dag_id == "incident" else 1)
        assert dag.catchup is False
        assert {kind.value for kind in dag.allowed_run_types}.isdisjoint({"backfill", "asset_materialization"})
        assert dag.dagrun_timeout is None  # it would skip teardowns

    def test_every_task_ends_and_retries_what_may_heal(self, dag_bag: Any, dag_id: str) -> None:
        for task in dag_bag.dags[dag_id].tasks:
            assert timedelta(0) < task.execution_timeout <= timedelta(hours=6), task.task_id
            assert task.retry_policy is not None, task.task_id
            assert task.owner != "airflow", task.task_id

    def test_every_task_ends_with_its_supervisor(self, dag_bag: Any, dag_id: str) -> None:
        for task in dag_bag.dags[dag_id].tasks:
            assert end_with_supervisor in task.on_execute_callback, task.task_id

    def test_its_forms_can_be_sent_as_they_open(self, dag_bag: Any, dag_id: str) -> None:
        # To Airflow's page an empty text is a missing one: the buttons stay grey unless the field may be null.
        dag = dag_bag.dags[dag_id]
        asked = [task.params for task in dag.tasks if isinstance(task, ApprovalGate)]
        for params in (dag.params, *asked):
            for param in map(params.get_param, params):
                if param.value in (None, ""):
                    assert "null" in param.schema["type"], param.schema["title"]


@pytest.mark.parametrize("path", FILES, ids=[path.stem for path in FILES])
def test_file_is_wiring_only(path: Path) -> None:
    """A DAG file's module level imports Airflow's public parts and the desk's orchestration, nothing heavy."""
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.Import):
            pytest.fail(f"{path.name} imports {node.names[0].name} as a module")
        if isinstance(node, ast.ImportFrom):
            allowed = ("airflow.sdk", "airflow.providers.standard", "payme_ops.orchestration", "datetime")
            assert (node.module or "").startswith(allowed), f"{path.name} imports {node.module}"


def test_backup_daily_is_four_stages_at_two_in_nairobi(dag_bag: Any) -> None:
    dag = dag_bag.dags["backup_daily"]
    assert (dag.timetable.expression, str(dag.timetable.timezone)) == ("0 2 * * *", "Africa/Nairobi")
    edges = {task.task_id: sorted(task.downstream_task_ids) for task in dag.tasks}
    assert edges == {
        "preflight": ["dump_and_store"],
        "dump_and_store": ["read_back"],
        "read_back": ["commit"],
        "commit": [],
    }
    assert list(dag.params) == ["reason"]


def test_the_table_of_dags_is_the_code(dag_bag: Any) -> None:
    page = (PROJECT / "docs" / "architecture.md").read_text()
    rows = re.findall(r"^\| \[(\w+)\]\(runbooks/(\w+)\.md\) \| `([^`]+)` \|", page, re.MULTILINE)
    code = [
        (dag_id, dag_id, getattr(dag.timetable, "expression", "by health event" if dag_id == "incident" else "by hand"))
        for dag_id, dag in sorted(dag_bag.dags.items())
    ]
    assert sorted(rows) == code
    assert {str(dag.timetable.timezone) for dag in dag_bag.dags.values() if hasattr(dag.timetable, "timezone")} == {
        "Africa/Nairobi"
    }


def test_what_may_heal_is_tried_again_and_what_cannot_is_not() -> None:
    from airflow.sdk import RetryAction

    from payme_ops.foundation import errors
    from payme_ops.orchestration.defaults import RETRY_POLICY

    def action(error: Exception) -> RetryAction:
        return RETRY_POLICY.evaluate(error, try_number=1, max_tries=2).action

    for kind in (errors.DatabaseUnavailable, errors.StoreUnavailable, errors.SteppedAside, errors.LeaseHeld):
        assert action(kind("x")) is RetryAction.RETRY, kind
    for never in (errors.HashMismatch, errors.Untrusted, errors.PreflightFailed, errors.SettingsError):
        assert action(never("x")) is RetryAction.FAIL, never
    assert action(MemoryError()) is RetryAction.DEFAULT


@pytest.mark.parametrize(
    ("dag_id", "schedule", "stages"),
    [
        ("backup_weekly", "0 4 * * 0", ["preflight", "need_fresh", "fresh_backup", "copy"]),
        ("backup_monthly", "0 5 1 * *", ["preflight", "need_test", "restore_test", "archive"]),
    ],
)
def test_copies_run_another_dag_first_where_one_is_needed(
    dag_bag: Any, dag_id: str, schedule: str, stages: list[str]
) -> None:
    dag = dag_bag.dags[dag_id]
    assert (dag.timetable.expression, str(dag.timetable.timezone)) == (schedule, "Africa/Nairobi")
    edges = {task.task_id: list(task.downstream_task_ids) for task in dag.tasks}
    assert edges == {stage: stages[number + 1 : number + 2] for number, stage in enumerate(stages)}
    first, last = dag.get_task(stages[2]), dag.get_task(stages[3])
    assert last.trigger_rule == "none_failed"  # what is not needed is skipped
    assert (first.deferrable, first.wait_for_completion) == (True, True)
    assert first.trigger_dag_id in dag_bag.dags
    assert "{{ run_id }}" in first.trigger_run_id
