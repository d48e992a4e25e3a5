"""One run for each outage that the health watch has seen. What it means and what to do: docs/runbooks/incident.md."""

from airflow.sdk import dag, task, task_group

from payme_ops.orchestration.defaults import Area, Risk, dag_options
from payme_ops.orchestration.incident import PAYME_OUTAGE, OutageOverOperator


@dag(
    schedule=[PAYME_OUTAGE],
    # Paused it would lose its watcher, and nobody would look at the applications any more.
    is_paused_upon_creation=False,
    **dag_options(
        "incident",
        "By health event: what is down since when, and how long it was when it is over",
        area=Area.MONITORING,
        risk=Risk.READS,
        max_active_runs=16,
    ),
)
def incident():
    @task
    def take():
        from payme_ops.orchestration import incident

        return incident.take()

    # Events of several applications may come to one run.
    @task_group
    def outage(number):
        @task
        def note(number):
            from payme_ops.orchestration import incident

            incident.note(number)

        @task
        def recovered(number):
            from payme_ops.orchestration import incident

            incident.recovered(number)

        note(number) >> OutageOverOperator(task_id="until_over", outage=number) >> recovered(number)

    outage.expand(number=take())


incident()
