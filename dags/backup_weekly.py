"""The weekly copy on Sunday at 04:00 EAT. What it does and what to do when it pages: docs/runbooks/backup_weekly.md."""

from datetime import timedelta

from airflow.providers.standard.operators.trigger_dagrun import TriggerDagRunOperator
from airflow.sdk import TriggerRule, dag, task

from payme_ops.orchestration.defaults import Area, Risk, at, dag_options, reason


@dag(
    schedule=at("0 4 * * 0"),
    params={"reason": reason()},
    **dag_options(
        "backup_weekly",
        "Sunday 04:00 EAT: copies the day's backup to the other region and reads it back there; kept 90 days",
        area=Area.BACKUP,
        risk=Risk.READS,
    ),
)
def backup_weekly():
    @task
    def preflight():
        from payme_ops.orchestration import copies

        copies.preflight()

    @task
    def need_fresh():
        from payme_ops.orchestration import copies

        copies.need_fresh()

    # The name is fixed: when this task is cleared it means the same run, which has retries of its own.
    fresh_backup = TriggerDagRunOperator(
        task_id="fresh_backup",
        trigger_dag_id="backup_daily",
        trigger_run_id="for_weekly__{{ run_id }}",
        conf={"reason": "the day has no backup to copy: {{ run_id }}"},
        reset_dag_run=True,
        wait_for_completion=True,
        deferrable=True,
        poke_interval=30,
        retries=0,
        fail_when_dag_is_paused=True,
        execution_timeout=timedelta(hours=6),
    )

    @task(trigger_rule=TriggerRule.NONE_FAILED, execution_timeout=timedelta(hours=6))
    def copy():
        from payme_ops.orchestration import copies

        return copies.copy()

    preflight() >> need_fresh() >> fresh_backup >> copy()


backup_weekly()
