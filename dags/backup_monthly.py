"""The monthly archive on the 1st at 05:00 EAT. What it does and what to do when it pages:
docs/runbooks/backup_monthly.md."""

from datetime import timedelta

from airflow.providers.standard.operators.trigger_dagrun import TriggerDagRunOperator
from airflow.sdk import TriggerRule, dag, task

from payme_ops.orchestration.defaults import Area, Risk, at, dag_options, reason


@dag(
    schedule=at("0 5 1 * *"),
    params={"reason": reason()},
    **dag_options(
        "backup_monthly",
        "1st 05:00 EAT: the oldest daily, tested first, goes to Glacier in the other region for ever",
        area=Area.BACKUP,
        risk=Risk.READS,
    ),
)
def backup_monthly():
    @task
    def preflight():
        from payme_ops.orchestration import copies

        copies.preflight()

    @task
    def need_test():
        from payme_ops.orchestration import copies

        return copies.need_test()

    # A red test is an answer, too: the next task looks at what it came to. The name is fixed: when this task is cleared
    # it means the same run, which has retries of its own.
    restore_test = TriggerDagRunOperator(
        task_id="restore_test",
        trigger_dag_id="backup_restore_test",
        trigger_run_id="for_monthly__{{ run_id }}",
        conf={
            "manifest": "{{ ti.xcom_pull(task_ids='need_test') }}",
            "reason": "it is to be archived: {{ run_id }}",
        },
        reset_dag_run=True,
        wait_for_completion=True,
        deferrable=True,
        poke_interval=30,
        retries=0,
        allowed_states=["success", "failed"],
        failed_states=[],
        fail_when_dag_is_paused=True,
        execution_timeout=timedelta(hours=6),
    )

    @task(trigger_rule=TriggerRule.NONE_FAILED, execution_timeout=timedelta(hours=6))
    def archive():
        from payme_ops.orchestration import copies

        return copies.archive()

    preflight() >> need_test() >> restore_test >> archive()


backup_monthly()
