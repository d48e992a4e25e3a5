"""The wiring of the migration and its way back: which gates lie before what, and that each task has its body."""

from typing import Any

import pytest

from payme_ops.migration.steps import STEPS
from payme_ops.orchestration import migration, rehearsal

CHANGES = ("expand", "encrypt", "finish", "relax", "brown_out", "drop", "end_shim", "purge_table")


def body(task: Any) -> str:
    """The name of the function that the task calls."""
    code = task.python_callable.__code__
    held = dict(
        zip(code.co_freevars, (cell.cell_contents for cell in task.python_callable.__closure__ or ()), strict=True)
    )
    return str(held.get("function") or held.get("task_id") or "")


@pytest.mark.parametrize("dag_id", ["phone_encryption", "phone_encryption_rollback"])
def test_every_task_has_its_body_on_the_queue_that_holds_its_key(dag_bag: Any, dag_id: str) -> None:
    for task in dag_bag.dags[dag_id].tasks:
        if task.task_type == "ApprovalGate":
            continue
        assert task.queue in ("migration", "restore"), task.task_id
        if name := body(task):
            assert callable(getattr(migration if task.queue == "migration" else rehearsal, name)), task.task_id


@pytest.mark.parametrize("change", CHANGES)
def test_before_each_change_there_are_the_approvals_before_it(dag_bag: Any, change: str) -> None:
    dag = dag_bag.dags["phone_encryption"]
    before = dag.get_task(change).get_flat_relative_ids(upstream=True)
    wanted = {"approve_start"}
    if change not in ("expand",):
        wanted |= {"fleet_writes_both", "canary", "approve_backfill"}
    if change in ("relax", "brown_out", "drop", "end_shim", "purge_table"):
        wanted |= {"catch_up", "verify_all", "approve_reads", "fleet_reads_ciphertext"}
    if change in ("brown_out", "drop", "end_shim", "purge_table"):
        wanted |= {"fleet_ignores_plaintext"}
    if change in ("drop", "end_shim", "purge_table"):
        wanted |= {"brown_out", "look_before_drop", "approve_drop"}
    if change in ("end_shim", "purge_table"):
        wanted |= {"fleet_final_name"}
    if change == "purge_table":
        wanted |= {"final_look", "confirm_final", "approve_purge"}
    assert wanted <= before


def test_readers_run_beside_who_holds_the_snapshot_and_the_gate_after_both(dag_bag: Any) -> None:
    dag = dag_bag.dags["phone_encryption"]
    read, gate = dag.get_task("read_snapshot"), dag.get_task("verify_all")
    assert dag.params["verify_across_workers"] is False
    before = read.get_flat_relative_ids(upstream=True)
    assert {"approve_backfill", "rewrap_legacy", "plan_reading"} <= before
    assert "hold_snapshot" not in before
    assert read.partial_kwargs["mode"] == "reschedule"  # no slot while it waits, which the holder may need
    assert gate.upstream_task_ids == {"plan_reading", "hold_snapshot", "read_snapshot"}


def test_a_rehearsal_touches_nothing_of_production(dag_bag: Any) -> None:
    dag = dag_bag.dags["phone_encryption"]
    assert dag.get_task("rehearse").upstream_task_ids == {"way"}
    assert dag.get_task("rehearse").downstream_task_ids == set()
    assert dag.get_task("rehearse").queue == "restore"
    assert dag.params["rehearsal"] is True


def test_the_last_three_run_whatever_happened_and_decide_the_colour(dag_bag: Any) -> None:
    dag = dag_bag.dags["phone_encryption"]
    ends = [dag.get_task(name) for name in ("give_back_rights", "keep_record", "verdict")]
    assert all(task.is_teardown for task in ends)
    assert dag.get_task("verdict").on_failure_fail_dagrun


def test_the_way_back_is_the_way_there_backwards(dag_bag: Any) -> None:
    dag = dag_bag.dags["phone_encryption_rollback"]
    steps = ["undo_brown_out", "reverse", "undo_relax", "undo_finish", "undo_expand"]
    for position, name in enumerate(steps):
        before = dag.get_task(name).get_flat_relative_ids(upstream=True)
        assert {"approve_rollback", *steps[:position]} <= before
    assert {name.removeprefix("undo_") for name in steps} - {"reverse"} == set(STEPS) - {"switch", "end_shim"}
