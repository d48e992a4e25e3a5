"""How the three DAGs of a release are wired: what Airflow does not hold is not leant on (docs/adr/0022)."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from airflow.models.dagrun import DagRun
from airflow.providers.standard.operators.hitl import HITLOperator
from airflow.sdk import BaseOperator

from payme_ops.orchestration import release
from payme_ops.orchestration.final_backup import FinalBackupOperator
from payme_ops.orchestration.item import ItemOperator, LooksItem, ReleaseGate, WatchItem
from payme_ops.release.checklist import GATES, ITEMS, Kind

PROJECT = Path(__file__).resolve().parents[2]
DAGS = ("pre_deployment", "deployment", "post_deployment")
ENDINGS = ["resume_orders", "restore_autoscaling", "close_status_page", "keep_record", "tell_outcome", "verdict"]
every_release_dag = pytest.mark.parametrize("dag_id", DAGS)


@dataclass(frozen=True)
class State:
    """As much of a task instance as a run's colour is made of."""

    task_id: str
    state: str


def deciding(dag: Any) -> set[str]:
    """The tasks whose end is the run's colour, as Airflow itself finds them."""
    tis: Any = [State(task.task_id, "failed") for task in dag.tasks]
    find: Any = DagRun._tis_for_dagrun_state
    return {ti.task_id for ti in find(None, dag=dag, tis=tis)}


def while_stopped(dag: Any) -> dict[str, BaseOperator]:
    """What may run between stopping orders and taking them again, both included."""
    first, last = dag.get_task("freeze_orders"), dag.get_task("resume_orders")
    between = first.get_flat_relative_ids(upstream=False) & last.get_flat_relative_ids(upstream=True)
    return {name: dag.get_task(name) for name in {*between, first.task_id, last.task_id}}


def test_these_are_the_dags_of_a_release(dag_bag: Any) -> None:
    assert {dag_id for dag_id, dag in dag_bag.dags.items() if "area:release" in dag.tags} == set(DAGS)


@every_release_dag
def test_the_colour_of_a_run_is_its_verdict(dag_bag: Any, dag_id: str) -> None:
    """A teardown's failure leaves a run green; one that decides hides a failed task. So the last looks at the facts."""
    dag = dag_bag.dags[dag_id]
    (last,) = dag.leaves
    assert last.task_id.startswith("verdict")
    assert (last.is_teardown, last.on_failure_fail_dagrun) == (True, True)
    assert last.task_id in deciding(dag)
    # Nothing else is an end of its own that could be green without it: only what is before the endings.
    upstream = last.get_flat_relative_ids(upstream=True)
    assert {task.task_id for task in dag.tasks} - {last.task_id} == upstream
    assert last.queue == "release"


@every_release_dag
def test_no_ending_depends_on_the_freeze(dag_bag: Any, dag_id: str) -> None:
    """A teardown is upstream_failed when its setup failed, also when that had stopped orders before."""
    dag = dag_bag.dags[dag_id]
    first = {"pre_deployment": "check_request"}.get(dag_id, f"open_{dag_id}")
    assert [task.task_id for task in dag.tasks if task.is_setup] == [first]
    endings = [task for task in dag.tasks if task.is_teardown]
    assert [task.task_id for task in endings] == (["verdict_prepared"] if dag_id == "pre_deployment" else ENDINGS)
    for task in endings:
        setups = [dag.get_task(name) for name in task.upstream_task_ids if dag.get_task(name).is_setup]
        assert [setup.task_id for setup in setups] == [first]


def test_nobody_is_waited_for_while_orders_are_stopped(dag_bag: Any) -> None:
    found = while_stopped(dag_bag.dags["deployment"])
    assert {"freeze_orders", "final_backup", "deploy", "smoke", "settle", "resume_orders"} <= set(found)
    waiting = [name for name, task in found.items() if isinstance(task, HITLOperator | WatchItem | LooksItem)]
    assert waiting == []
    # The one that waits without a worker renews the freeze meanwhile, and its end is known.
    assert [name for name, task in found.items() if hasattr(task, "defer") and _defers(task)] == ["final_backup"]


def _defers(task: BaseOperator) -> bool:
    return isinstance(task, FinalBackupOperator) or bool(getattr(task, "deferrable", False))


def test_the_deploy_runs_on_a_worker(dag_bag: Any) -> None:
    """A trigger is run again whenever a triggerer restarts, and would post again."""
    for name in ("deploy", "settle"):
        task = dag_bag.dags["deployment"].get_task(name)
        assert task.operator_name == "@task"
        assert not _defers(task)
        assert not task.start_from_trigger
    tasks = [task for dag in DAGS for task in dag_bag.dags[dag].tasks]
    assert [task.task_id for task in tasks if task.start_from_trigger] == []
    triggers = [
        path.name
        for path in (PROJECT / "plugins" / "payme_ops" / "orchestration").glob("*.py")
        if "BaseTrigger" in path.read_text() and re.search(r"post_deploy|deploys\.|deploy_api", path.read_text())
    ]
    assert triggers == []


def test_no_http_operator_and_no_pool_anywhere(dag_bag: Any) -> None:
    for dag in dag_bag.dags.values():
        for task in dag.tasks:
            kinds = [kind.__module__ for kind in type(task).__mro__]
            assert not [kind for kind in kinds if kind.startswith("airflow.providers.http")], task.task_id
            assert (task.pool, task.pool_slots) == ("default_pool", 1), task.task_id
    sources = [*(PROJECT / "dags").glob("*.py"), *(PROJECT / "plugins").rglob("*.py")]
    assert len(sources) > 50
    assert [
        path.name for path in sources if re.search(r"^\s*(from|import) .*providers\.http", path.read_text(), re.M)
    ] == []


def test_no_deadline_and_no_asset_is_leant_on(dag_bag: Any) -> None:
    """A deadline's callback needs the triggerer and fires after failed runs, too; a run of an asset has no user."""
    for dag_id in DAGS:
        dag = dag_bag.dags[dag_id]
        assert getattr(dag, "deadline", None) is None
        assert type(dag.timetable).__name__ == "NullTimetable"


def test_each_item_is_a_task_of_its_name(dag_bag: Any) -> None:
    tasks = {task.task_id for dag in DAGS for task in dag_bag.dags[dag].tasks}
    elsewhere = {"go_no_go": "collect", "autoscaling_restored": "restore_autoscaling", "rollback": "settle"}
    elsewhere |= {"status_page_closed": "close_status_page"}
    assert {elsewhere.get(name, name) for name in ITEMS} <= tasks


def test_only_people_s_items_and_the_two_gates_are_made_to_ask(dag_bag: Any) -> None:
    """A machine's item can ask, when it could not tell (tests/dags/test_release_items.py); nothing else can at all."""
    asking = [task for dag in DAGS for task in dag_bag.dags[dag].tasks if isinstance(task, HITLOperator)]
    assert {task.task_id for task in asking if not isinstance(task, ItemOperator)} == set(GATES)
    for task in asking:
        assert isinstance(task, ReleaseGate)
        assert task.defaults == ["Reject"], "no answer in time is a no"
        assert task.response_timeout
        item = ITEMS.get(task.evidence_item)
        assert item
        assert item.ask or item.name == "go_no_go", task.task_id
        assert item.kind is not Kind.ACTION or item.name in ("team_notified", "status_page", "autoscaling")


@every_release_dag
def test_a_task_s_body_is_there(dag_bag: Any, dag_id: str) -> None:
    for task in dag_bag.dags[dag_id].tasks:
        if task.operator_name == "@task":
            name = task.task_id if task.task_id not in ("freeze_orders", "deploy", "smoke") else "act"
            assert callable(getattr(release, name)), task.task_id
