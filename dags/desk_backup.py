"""The desk's own databases, 03:30 EAT. What it does and what to do when it pages: docs/runbooks/desk_backup.md."""

from datetime import timedelta

from airflow.sdk import dag, task, task_group

from payme_ops.orchestration.defaults import Area, Risk, at, dag_options, reason


@dag(
    schedule=at("30 3 * * *"),
    params={"reason": reason()},
    **dag_options(
        "desk_backup",
        "03:30 EAT: Airflow's metadata database and the ops database: backed up, and each backup restored and compared",
        area=Area.BACKUP,
        risk=Risk.READS,
    ),
)
def desk_backup():
    # Each by itself: what keeps one from being backed up keeps the other from nothing.
    for which in ("airflow", "ops"):
        back_up.override(group_id=which)(which)


@task_group
def back_up(which):
    @task(queue="desk")
    def preflight(which):
        from payme_ops.orchestration import backup

        backup.preflight(which)

    @task(queue="desk", execution_timeout=timedelta(hours=2))
    def dump_and_store(which):
        from payme_ops.backup.manifest import Tier
        from payme_ops.orchestration import backup

        return backup.dump_and_store(Tier.DAILY, which)

    @task(queue="desk")
    def read_back(which):
        from payme_ops.orchestration import backup

        return backup.read_back(which)

    @task(queue="desk")
    def commit(which):
        from payme_ops.orchestration import backup

        return backup.commit_own(which)

    @task(queue="restore", execution_timeout=timedelta(hours=2))
    def restore_and_compare(which):
        from payme_ops.orchestration import desk_backup

        return desk_backup.restore_and_compare(which)

    preflight(which) >> dump_and_store(which) >> read_back(which) >> commit(which) >> restore_and_compare(which)


desk_backup()
