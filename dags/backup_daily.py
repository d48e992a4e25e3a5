"""The daily backup at 02:00 EAT. What it does and what to do when it pages: docs/runbooks/backup_daily.md."""

from datetime import timedelta

from airflow.sdk import Asset, dag, task

from payme_ops.orchestration.defaults import Area, Risk, at, dag_options, reason

PAYME_BACKUP = Asset(name="payme_backup", uri="payme-ops://backup")


@dag(
    schedule=at("0 2 * * *"),
    params={"reason": reason()},
    **dag_options(
        "backup_daily",
        "02:00 EAT: dump, seal, store, read back; a signed manifest says that it is complete",
        area=Area.BACKUP,
        risk=Risk.READS,
        within=timedelta(minutes=90),  # half an hour before the one of yesterday is 26 h old, which is the RPO
    ),
)
def backup_daily():
    @task
    def preflight():
        from payme_ops.orchestration import backup

        backup.preflight()

    @task(execution_timeout=timedelta(hours=6))
    def dump_and_store():
        from payme_ops.backup.manifest import Tier
        from payme_ops.orchestration import backup

        return backup.dump_and_store(Tier.DAILY)

    @task(execution_timeout=timedelta(hours=2))
    def read_back():
        from payme_ops.orchestration import backup

        return backup.read_back()

    @task(outlets=[PAYME_BACKUP])
    def commit():
        from payme_ops.orchestration import backup

        return backup.commit(PAYME_BACKUP)

    preflight() >> dump_and_store() >> read_back() >> commit()


backup_daily()
