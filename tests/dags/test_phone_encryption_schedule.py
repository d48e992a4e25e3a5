"""Step 4 as Airflow's scheduler decides it, on a metadata database that holds one run: what a skipped task leads to."""

from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

DAG = "phone_encryption"
FILE = Path(__file__).resolve().parents[2] / "dags" / f"{DAG}.py"
STEP = ("plan_reading", "hold_snapshot", "read_snapshot", "verify_all")

# From the states of tasks (`<task>_then`: what it comes to once it is started) and how many readers are planned, what
# becomes of the step; `runs`: it would be started now.
Decide = Callable[..., dict[str, str]]


@pytest.fixture(scope="module")
def decide() -> Iterator[Decide]:
    from airflow import settings
    from airflow.dag_processing.bundles.manager import DagBundlesManager
    from airflow.dag_processing.dagbag import DagBag, sync_bag_to_db
    from airflow.models.dagrun import get_or_create_dagrun
    from airflow.models.taskmap import TaskMap
    from airflow.serialization.serialized_objects import DagSerialization
    from airflow.utils.db import initdb
    from airflow.utils.types import DagRunTriggeredByType

    initdb()
    bundles: Any = DagBundlesManager
    session_maker: Any = settings.Session
    bag = DagBag(dag_folder=str(FILE))
    dag = DagSerialization.deserialize_dag(DagSerialization.serialize_dag(bag.dags[DAG]))
    with session_maker() as session:
        bundles().sync_bundles_to_db(session=session)
        session.commit()
        sync_bag_to_db(bag, "dags-folder", None, session=session)

        def decided(run_id: str, readers: int, **states: str | None) -> dict[str, str]:
            now = datetime.now(UTC)
            run = get_or_create_dagrun(
                dag=dag,
                run_id=run_id,
                logical_date=None,
                data_interval=None,
                start_date=now,
                run_after=now,
                conf={},
                triggered_by=DagRunTriggeredByType.TEST,
                triggering_user_name="test",
                session=session,
            )
            for task in run.get_task_instances(session=session):
                task.state = states.get(task.task_id, None if task.task_id in STEP else "success")
                if task.task_id == "plan_reading" and task.state == "success":
                    session.add(TaskMap(DAG, task.task_id, run_id, -1, readers, None))
            for _ in range(len(STEP)):  # a skipped task may have the next one skipped
                session.commit()
                found = run.task_instance_scheduling_decisions(session=session)
                for task in found.schedulable_tis:
                    task.state = states.get(f"{task.task_id}_then", task.state)
            runs = {(task.task_id, task.map_index) for task in found.schedulable_tis}
            return {
                task.task_id + (f" {task.map_index}" if task.map_index >= 0 else ""): (
                    "runs" if (task.task_id, task.map_index) in runs else str(task.state)
                )
                for task in run.get_task_instances(session=session)
                if task.task_id in STEP
            }

        yield decided


def test_when_one_task_reads_all_the_gate_runs_although_two_were_skipped(decide: Decide) -> None:
    found = decide("alone", 0, plan_reading="success", hold_snapshot="skipped")
    assert (found["read_snapshot"], found["verify_all"]) == ("skipped", "runs")


def test_readers_start_while_the_snapshot_is_held_and_the_gate_waits_for_all(decide: Decide) -> None:
    found = decide("across", 2, plan_reading="success", hold_snapshot="running")
    assert (found["read_snapshot 0"], found["read_snapshot 1"], found["verify_all"]) == ("runs", "runs", "None")
    found = decide("read", 2, plan_reading="success", hold_snapshot="success", read_snapshot_then="success")
    assert (found["read_snapshot 0"], found["read_snapshot 1"], found["verify_all"]) == ("success", "success", "runs")


@pytest.mark.parametrize("red", ["hold_snapshot", "read_snapshot_then"])
def test_the_gate_is_not_run_when_one_of_them_failed(decide: Decide, red: str) -> None:
    states = {"plan_reading": "success", "hold_snapshot": "success", "read_snapshot_then": "success", red: "failed"}
    assert decide(red, 2, **states)["verify_all"] == "upstream_failed"


def test_when_the_step_was_not_come_to_all_of_it_is_skipped(decide: Decide) -> None:
    """As after a rejected approval, which skips what lies before it."""
    assert decide("rejected", 0, rewrap_legacy="skipped") == dict.fromkeys(STEP, "skipped")
