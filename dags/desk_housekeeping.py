"""Housekeeping of the desk's own database, 04:30 EAT. What it keeps and deletes: docs/runbooks/desk_housekeeping.md."""

from airflow.sdk import dag, task

from payme_ops.orchestration.defaults import Area, Risk, at, dag_options, reason


@dag(
    schedule=at("30 4 * * *"),
    params={"reason": reason()},
    **dag_options(
        "desk_housekeeping",
        "04:30 EAT: sums up the looks of ended days and months, and deletes looks that are past their time",
        area=Area.MONITORING,
        risk=Risk.READS,
    ),
)
def desk_housekeeping():
    @task
    def looks():
        from payme_ops.orchestration import housekeeping

        return housekeeping.looks()

    looks()


desk_housekeeping()
