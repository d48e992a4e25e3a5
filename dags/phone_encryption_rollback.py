"""The way back, by hand, until the plaintext was dropped: docs/runbooks/phone_encryption_rollback.md."""

from datetime import timedelta

from airflow.sdk import Param, dag, task

from payme_ops.orchestration.approval import ApprovalGate
from payme_ops.orchestration.defaults import Area, Risk, dag_options


def _version(default, title, description):
    return Param(default, type="string", maxLength=40, title=title, description=description)


def _work(task_id, function="", *, hours=6.0, trigger_rule="none_failed", **fixed):
    """A task of migration workers: the function of that name in payme_ops.orchestration.migration."""

    @task(task_id=task_id, queue="migration", execution_timeout=timedelta(hours=hours), trigger_rule=trigger_rule)
    def run():
        from payme_ops.orchestration import migration

        return getattr(migration, function or task_id)(**fixed)

    return run()


def _gone(which, step):
    """Wait without a worker until no version that needs what is undone is connected."""

    @task.sensor(
        task_id=f"gone_{which}",
        queue="migration",
        mode="reschedule",
        poke_interval=30,
        timeout=timedelta(days=14).total_seconds(),
        trigger_rule="none_failed",
    )
    def wait():
        from payme_ops.orchestration import migration

        return migration.fleet_left(which, step)

    return wait()


@dag(
    schedule=None,
    params={
        "reason": Param(
            None, type=["null", "string"], maxLength=200, title="Reason", description="Required. Why is it undone?"
        ),
        "back_to": Param(
            "relax",
            type="string",
            enum=["relax", "finish", "expand"],
            title="Undo back to",
            description="The last step that is undone; expand: no ciphertext is left",
        ),
        "writes_both": _version("2.5.0", "Writes both", "First version that writes plaintext and ciphertext"),
        "reads_ciphertext": _version("2.6.0", "Reads ciphertext", "First version that reads the ciphertext"),
        "ignores_plaintext": _version("2.7.0", "Ignores plaintext", "First version that names no plaintext column"),
    },
    **dag_options(
        "phone_encryption_rollback",
        "By hand: undoes the steps of phone_encryption, the last one first, until the plaintext was dropped",
        area=Area.MIGRATION,
        risk=Risk.WRITES_PROD,
    ),
)
def phone_encryption_rollback():
    approve = ApprovalGate(
        task_id="approve_rollback",
        subject="Undo these steps of the migration?",
        evidence_item="rollback_plan",
        response_timeout=timedelta(hours=24),
    )
    plan = _work("check_rollback", hours=0.5)
    ended = _work("rollback_verdict", hours=0.5).as_teardown(setups=plan, on_failure_fail_dagrun=True)
    (
        plan
        >> approve
        >> _work("undo_brown_out", "undo", step="brown_out", trigger_rule="all_success")
        >> (_gone("ignores_plaintext", "relax"))
        >> _work("reverse")
        >> _work("undo_relax", "undo", step="relax")
        >> _gone("reads_ciphertext", "finish")
        >> (_work("undo_finish", "undo", step="finish"))
        >> _gone("writes_both", "expand")
        >> _work("undo_expand", "undo", step="expand")
        >> ended
    )


phone_encryption_rollback()
