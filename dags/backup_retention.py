"""Retention at 07:30 EAT: the one path by which backups are deleted. Its rules: docs/runbooks/backup_retention.md."""

from datetime import timedelta

from airflow.sdk import Param, TaskGroup, TriggerRule, dag, task

from payme_ops.orchestration.approval import ApprovalGate
from payme_ops.orchestration.defaults import Area, Risk, at, dag_options


@dag(
    schedule=at("30 7 * * *"),
    params={
        "dry_run": Param(False, type="boolean", title="Dry run", description="Only show the plan; delete nothing."),
        "reason": Param(
            None,
            type=["null", "string"],
            maxLength=200,
            title="Reason",
            description="Why by hand? Required, except for a dry run.",
        ),
    },
    **dag_options(
        "backup_retention",
        "07:30 EAT: deletes backups whose time is over, by rules, with evidence; asks when it would be many",
        area=Area.BACKUP,
        risk=Risk.WRITES_PROD,
    ),
)
def backup_retention():
    @task(queue="restore", trigger_rule=TriggerRule.NONE_FAILED)
    def drop_replaced():
        from payme_ops.orchestration import retention

        return retention.drop_replaced()

    delete(None) >> drop_replaced()
    for which in ("airflow", "ops"):  # the desk's own databases
        with TaskGroup(which):
            delete(which)


def delete(which):
    @task.short_circuit(ignore_downstream_trigger_rules=False)
    def plan():
        from payme_ops.orchestration import retention

        return retention.plan(which)

    approve_deletions = ApprovalGate(
        task_id="approve_deletions",
        subject="Delete these backups?",
        evidence_item=f"retention_plan_{which}" if which else "retention_plan",
        response_timeout=timedelta(hours=12),
    )

    @task
    def apply():
        from payme_ops.orchestration import retention

        return retention.apply(approve_deletions.task_id, which)

    @task(trigger_rule=TriggerRule.NONE_FAILED)
    def verdict():
        from payme_ops.orchestration import retention

        return retention.verdict(approve_deletions.task_id, which)

    done = apply()
    plan() >> approve_deletions >> done >> verdict()
    return done


backup_retention()
