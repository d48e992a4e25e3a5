"""The way back, by hand, until the plaintext was dropped: docs/runbooks/phone_encryption_rollback.md."""

from datetime import timedelta

from airflow.sdk import Param, TriggerRule, dag

from payme_ops.orchestration.approval import ApprovalGate
from payme_ops.orchestration.defaults import Area, Risk, dag_options
from payme_ops.orchestration.migration_tasks import version, waiting, work

_NONE_FAILED = TriggerRule.NONE_FAILED  # what is not there to be undone is skipped


def _gone(which, step):
    """Wait until no version that needs what is undone is connected."""
    return waiting(f"gone_{which}", "fleet_left", trigger_rule=_NONE_FAILED, which=which, step=step)


def _undo(step, trigger_rule=_NONE_FAILED):
    return work(f"undo_{step}", "undo", hours=6, trigger_rule=trigger_rule, step=step)()


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
        "writes_both": version("2.5.0", "Writes both", "First version that writes plaintext and ciphertext"),
        "reads_ciphertext": version("2.6.0", "Reads ciphertext", "First version that reads the ciphertext"),
        "ignores_plaintext": version("2.7.0", "Ignores plaintext", "First version that names no plaintext column"),
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
        # By their own trigger rule the tasks after what is skipped would run, and wait for days.
        ignore_downstream_trigger_rules=True,
    )
    plan = work("check_rollback")()
    (
        plan
        >> approve
        >> _undo("brown_out", trigger_rule=TriggerRule.ALL_SUCCESS)
        >> _gone("ignores_plaintext", "relax")
        >> work("reverse", hours=6, trigger_rule=_NONE_FAILED)()
        >> _undo("relax")
        >> _gone("reads_ciphertext", "finish")
        >> _undo("finish")
        >> _gone("writes_both", "expand")
        >> _undo("expand")
        >> work("rollback_verdict")().as_teardown(setups=plan, on_failure_fail_dagrun=True)
    )


phone_encryption_rollback()
