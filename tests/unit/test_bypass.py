"""What was set by hand is found in Airflow's event log, and voids the go until it was run after."""

import json
from datetime import UTC, datetime, timedelta

import pytest

from payme_ops.foundation import evidence
from payme_ops.foundation.airflow_api import Event
from payme_ops.foundation.evidence import Evidence, Verdict
from payme_ops.release import bypass

AT = datetime(2026, 12, 1, 9, 0, 0, 500_000, tzinfo=UTC)
RUNS = {"pre_deployment": "manual__1", "deployment": "production-2.4.1-aaaaaaa"}


def event(name: str, task: str = "code_review", dag: str = "pre_deployment", run: str = "", **extra: object) -> Event:
    return Event(AT, name, "oncall", dag, run or RUNS.get(dag, ""), task, json.dumps({**extra, "method": "PATCH"}))


def shown(item: str, after: timedelta) -> dict[str, Evidence]:
    now = AT + after
    return {item: Evidence(item, Verdict.PASS, {}, "", "", now, now, "", evidence.digest({}))}


@pytest.mark.blocks("bypasses")
@pytest.mark.parametrize("name", bypass.MARKS)
def test_a_state_set_by_hand_is_found_and_open(name: str) -> None:
    (found,) = bypass.found([event(name, new_state="success")], RUNS)
    assert (found.by, found.what, found.task, found.is_mark) == ("oncall", "set to success", "code_review", True)
    assert bypass.open_marks([found], {}) == [found]


@pytest.mark.parametrize("name", bypass.CLEARS)
def test_a_clear_is_noted_and_voids_nothing(name: str) -> None:
    (found,) = bypass.found([event(name)], RUNS)
    assert found.what == "cleared"
    assert bypass.open_marks([found], {}) == []


@pytest.mark.parametrize("name", ["trigger_dag_run", "update_hitl_detail", "get_task_instance"])
def test_triggering_and_answering_are_none(name: str) -> None:
    assert bypass.found([event(name)], RUNS) == []


def test_another_run_is_not_ours_and_one_call_for_many_is() -> None:
    assert bypass.found([event("patch_task_instance", run="manual__2", new_state="success")], RUNS) == []
    assert bypass.found([event("patch_task_instance", dag="backup_daily", run="x", new_state="success")], RUNS) == []
    many = [{"action": "update", "entities": [{"dag_run_id": RUNS["deployment"], "new_state": "success"}]}]
    (found,) = bypass.found([event("bulk_dag_runs", "", dag="~", run="~", actions=many)], RUNS)
    assert found.is_mark


def test_a_note_is_no_state() -> None:
    (found,) = bypass.found([event("patch_task_instance", note="looked at it")], RUNS)
    assert (found.what, found.is_mark) == ("noted", False)


def test_only_newer_evidence_of_that_item_makes_it_good() -> None:
    marks = bypass.found([event("patch_task_instance", new_state="success")], RUNS)
    assert bypass.open_marks(marks, shown("code_review", timedelta(seconds=-1)))
    assert bypass.open_marks(marks, shown("tests_passing", timedelta(seconds=5)))
    assert not bypass.open_marks(marks, shown("code_review", timedelta(seconds=5)))
    gate = bypass.found([event("patch_task_instance", "go_no_go_first", "deployment", new_state="success")], RUNS)
    assert bypass.open_marks(gate, shown("go_no_go", timedelta(seconds=-1)))
    assert not bypass.open_marks(gate, shown("go_no_go", timedelta(seconds=5)))
