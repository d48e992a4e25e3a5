"""The daily digest at 07:00 EAT: one message of all that is worth a look. Runbook: docs/runbooks/daily_digest.md."""

from airflow.sdk import dag, task

from payme_ops.orchestration.defaults import Area, Risk, at, dag_options, reason


@dag(
    schedule=at("0 7 * * *"),
    params={"reason": reason()},
    **dag_options(
        "daily_digest",
        "07:00 EAT: errors, open alerts, silences, backups, questions, leases and doctor's changes in one message",
        area=Area.MONITORING,
        risk=Risk.READS,
    ),
)
def daily_digest():
    @task
    def tell():
        from payme_ops.orchestration import digest

        return digest.tell()

    tell()


daily_digest()
