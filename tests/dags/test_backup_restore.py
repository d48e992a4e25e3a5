"""The wiring of the restore into production: what runs whatever happened, and what a click cannot skip."""

import itertools
from typing import Any

import pytest

WAY = [
    "check_request",
    "readable",
    "stop_application",
    "confirm_stopped",
    "restore_beside",
    "measure_loss",
    "approve_swap",
    "swap",
    "start_application",
    "tell",
    "by_hand",
    "verdict",
]


@pytest.fixture
def dag(dag_bag: Any) -> Any:
    return dag_bag.dags["backup_restore"]


def test_it_is_by_hand_and_asks_why(dag: Any) -> None:
    assert dag.timetable.can_be_scheduled is False
    assert list(dag.params) == ["backup", "target", "reason", "version"]
    assert dag.params["reason"] is None
    assert "risk:writes-prod" in dag.tags


def test_the_way_is_one_line(dag: Any) -> None:
    for task, following in itertools.pairwise(WAY):
        assert following in dag.get_task(task).downstream_task_ids
    assert {task.task_id for task in dag.tasks} == set(WAY)


def test_what_was_stopped_is_started_whatever_happened_and_the_colour_is_the_truth(dag: Any) -> None:
    # Teardowns of the first task: they run after a failure, a rejection, and when a person marks the run as failed.
    teardowns = {task.task_id for task in dag.tasks if task.is_teardown}
    assert teardowns == {"start_application", "tell", "verdict"}
    assert dag.get_task("check_request").is_setup
    assert dag.get_task("verdict").on_failure_fail_dagrun
    assert dag.get_task("by_hand").trigger_rule == "all_done"


def test_power_is_on_the_restore_queue_and_gates_reject_when_nobody_answers(dag: Any) -> None:
    gates = {task for task in dag.tasks if task.task_type == "ApprovalGate"}
    assert {gate.task_id for gate in gates} == {"confirm_stopped", "approve_swap", "by_hand"}
    assert all(gate.defaults == ["Reject"] and gate.response_timeout for gate in gates)
    assert {task.queue for task in dag.tasks if task not in gates} == {"restore"}
    assert [list(gate.params) for gate in gates] == [["break_glass_reason"]] * 3
