"""The restore test on Sunday at 06:00 EAT. What it proves and what to do when it pages:
docs/runbooks/backup_restore_test.md."""

from datetime import timedelta

from airflow.sdk import Asset, Param, TriggerRule, dag, task

from payme_ops.orchestration.defaults import Area, Risk, at, dag_options, reason
from payme_ops.orchestration.retrieval import ReadableOperator

PAYME_VERIFIED_BACKUP = Asset(name="payme_verified_backup", uri="payme-ops://verified-backup")


@dag(
    schedule=at("0 6 * * 0"),
    params={
        "manifest": Param(
            "latest daily",
            type="string",
            maxLength=200,
            title="Backup",
            description="A manifest key, a time stamp like 20260128T020000EAT, latest, or latest daily.",
        ),
        "reason": reason(),
    },
    **dag_options(
        "backup_restore_test",
        "Sunday 06:00 EAT: restores a backup, compares everything, and writes what it is worth",
        area=Area.BACKUP,
        risk=Risk.READS,
        within=timedelta(hours=6),  # what a test may take; 14 h are left to mend it before the last proof is 8 days old
    ),
)
def backup_restore_test():
    from airflow.providers.standard.operators.trigger_dagrun import TriggerDagRunOperator

    @task(queue="restore")
    def choose():
        from payme_ops.orchestration import restore_test

        return restore_test.choose()

    # XCom is good enough here: what is tested is what the evidence names, and it fails when that cannot be read.
    readable = ReadableOperator(task_id="readable", queue="restore", backup="{{ ti.xcom_pull(task_ids='choose') }}")

    @task(queue="restore", execution_timeout=timedelta(hours=6))
    def restore_and_compare():
        from payme_ops.orchestration import restore_test

        return restore_test.restore_and_compare()

    # Where nothing is encrypted no worker of the queue `migration` is needed.
    @task.short_circuit(queue="restore", ignore_downstream_trigger_rules=False)
    def is_migrated():
        from payme_ops.orchestration import restore_test

        return restore_test.is_migrated()

    @task(queue="migration")
    def decrypt_sample(tested):
        from payme_ops.orchestration import restore_test

        restore_test.decrypt_sample(tested["pairs"])

    @task(queue="restore", trigger_rule=TriggerRule.ONE_FAILED)
    def ask_for_fresh():
        from payme_ops.orchestration import restore_test

        restore_test.ask_for_fresh()

    # Both names are fixed: a second try means the same run.
    fresh_backup = TriggerDagRunOperator(
        task_id="fresh_backup",
        trigger_dag_id="backup_daily",
        trigger_run_id="after_refuted__{{ run_id }}",
        conf={"reason": "a restore test refuted a backup: {{ run_id }}"},
        reset_dag_run=True,
        wait_for_completion=True,
        deferrable=True,
        poke_interval=30,
        retries=0,  # a second try would take a second backup
        fail_when_dag_is_paused=True,
        execution_timeout=timedelta(hours=6),
    )
    test_fresh = TriggerDagRunOperator(
        task_id="test_fresh",
        trigger_dag_id="backup_restore_test",
        trigger_run_id="after_refuted__{{ run_id }}",
        conf={"manifest": "latest daily", "reason": "the backup before was refuted: {{ run_id }}"},
        skip_when_already_exists=True,
        fail_when_dag_is_paused=True,
    )

    @task(queue="restore", trigger_rule=TriggerRule.ALL_DONE, outlets=[PAYME_VERIFIED_BACKUP])
    def verdict():
        from payme_ops.orchestration import restore_test

        return restore_test.verdict(PAYME_VERIFIED_BACKUP)

    tested, told = restore_and_compare(), verdict()
    choose() >> readable >> tested >> ask_for_fresh() >> fresh_backup >> test_fresh >> told
    tested >> is_migrated() >> decrypt_sample(tested) >> told
    tested >> told


backup_restore_test()
