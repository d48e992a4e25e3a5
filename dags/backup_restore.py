"""The restore into production, by hand. When to use it and how to undo it: docs/runbooks/backup_restore.md."""

from datetime import timedelta

from airflow.sdk import Param, dag, task

from payme_ops.orchestration.approval import ApprovalGate
from payme_ops.orchestration.defaults import Area, Risk, dag_options
from payme_ops.orchestration.retrieval import ReadableOperator


@dag(
    schedule=None,
    params={
        "backup": Param("latest", type="string", title="Backup", description="latest, a time stamp, or a manifest key"),
        "target": Param(
            None,
            type=["null", "string"],
            maxLength=63,
            title="Target",
            description="Database to replace; empty: the one backed up",
        ),
        "reason": Param(
            None, type=["null", "string"], maxLength=200, title="Reason", description="Required. Why is it replaced?"
        ),
        "version": Param(
            None,
            type=["null", "string"],
            maxLength=40,
            title="Version",
            description="To start afterwards; empty: the one before, which after a rolled back release is the bad one",
        ),
    },
    **dag_options(
        "backup_restore",
        "By hand: restores a backup beside, shows what would be lost, and swaps when a second person approves",
        area=Area.BACKUP,
        risk=Risk.WRITES_PROD,
    ),
)
def backup_restore():
    @task(queue="restore")
    def check_request():
        from payme_ops.orchestration import rollback

        return rollback.check_request()

    # The application runs on while an archive is brought back. XCom is good enough here: what is restored is what
    # the evidence names, and that fails when it cannot be read.
    readable = ReadableOperator(
        task_id="readable", backup="{{ ti.xcom_pull(task_ids='check_request') }}", queue="restore"
    )

    @task(queue="restore")
    def stop_application():
        from payme_ops.orchestration import rollback

        rollback.stop_application()

    confirm_stopped = ApprovalGate(
        task_id="confirm_stopped",
        subject="Is the application stopped, and has it no session left?",
        evidence_item="application_stopped",
        response_timeout=timedelta(hours=4),
    )

    @task(queue="restore", execution_timeout=timedelta(hours=6))
    def restore_beside():
        from payme_ops.orchestration import rollback

        return rollback.restore_beside()

    @task(queue="restore")
    def measure_loss():
        from payme_ops.orchestration import rollback

        rollback.measure_loss()

    approve_swap = ApprovalGate(
        task_id="approve_swap",
        subject="Replace the running database by the restored one?",
        evidence_item="restore_plan",
        response_timeout=timedelta(hours=4),
    )

    @task(queue="restore")
    def swap():
        from payme_ops.orchestration import rollback

        return rollback.swap("approve_swap")

    # The last three run whatever happened before, also when somebody marks the run as failed: what was stopped is
    # started, and the run's colour is the truth.
    @task(queue="restore")
    def start_application():
        from payme_ops.orchestration import rollback

        rollback.start_application("approve_swap")

    @task(queue="restore")
    def tell():
        from payme_ops.orchestration import rollback

        rollback.tell()

    by_hand = ApprovalGate(
        task_id="by_hand",
        subject="Have you done by hand what could not be done for you?",
        evidence_item="by_hand",
        response_timeout=timedelta(hours=4),
        trigger_rule="all_done",
    )

    @task(queue="restore")
    def verdict():
        from payme_ops.orchestration import rollback

        rollback.verdict("by_hand")

    request = check_request()
    started = start_application().as_teardown(setups=request)
    told = tell().as_teardown(setups=request)
    ended = verdict().as_teardown(setups=request, on_failure_fail_dagrun=True)
    request >> readable >> stop_application() >> confirm_stopped >> restore_beside() >> measure_loss() >> approve_swap
    approve_swap >> swap() >> started >> told >> by_hand >> ended


backup_restore()
