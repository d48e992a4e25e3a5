"""The desk's own databases at night, 04:30 EAT. What it keeps and deletes: docs/runbooks/desk_housekeeping.md."""

from datetime import timedelta

from airflow.sdk import TriggerRule, dag, task

from payme_ops.orchestration.defaults import Area, Risk, at, dag_options, reason


@dag(
    schedule=at("30 4 * * *"),
    params={"reason": reason()},
    **dag_options(
        "desk_housekeeping",
        "04:30 EAT: deletes old looks, summed up, and old logs; exports Airflow's event log, then cleans its database",
        area=Area.MONITORING,
        risk=Risk.READS,
    ),
)
def desk_housekeeping():
    @task
    def looks():
        from payme_ops.orchestration import housekeeping

        return housekeeping.looks()

    @task(queue="desk", execution_timeout=timedelta(hours=2))
    def export_event_log():
        from payme_ops.orchestration import housekeeping

        return housekeeping.export_event_log()

    # Nothing new to export is no reason not to clean; an export that failed is.
    @task(queue="desk", execution_timeout=timedelta(hours=2), trigger_rule=TriggerRule.NONE_FAILED)
    def clean_airflow():
        from payme_ops.orchestration import housekeeping

        return housekeeping.clean_airflow()

    @task(queue="desk")
    def old_logs():
        from payme_ops.orchestration import housekeeping

        return housekeeping.old_logs()

    looks()
    old_logs()
    export_event_log() >> clean_airflow()


desk_housekeeping()
