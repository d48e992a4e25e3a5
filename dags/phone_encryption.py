"""Phone numbers become ciphertext, by hand. What it does and how to undo it: docs/runbooks/phone_encryption.md."""

from datetime import timedelta

from airflow.sdk import Param, TaskGroup, TriggerRule, dag, task

from payme_ops.orchestration.approval import ApprovalGate
from payme_ops.orchestration.defaults import Area, Risk, dag_options
from payme_ops.orchestration.migration_tasks import version, waiting, waiting_work, work


def _time(default, title):
    return Param(default, type="string", pattern=r"^\d\d:\d\d$", title=title, description="Nairobi")


def _backups(task_id, **options):
    """A task of restore workers, who hold the key of backups and none of phone numbers."""

    @task(task_id=task_id, queue="restore", execution_timeout=timedelta(hours=6), **options)
    def run():
        from payme_ops.orchestration import rehearsal

        return getattr(rehearsal, task_id)()

    return run


def _approval(task_id, subject, item):
    return ApprovalGate(task_id=task_id, subject=subject, evidence_item=item, response_timeout=timedelta(hours=24))


def _step(name, subject):
    """Look, ask a person where a check could not tell, do; answers the first and the last task."""
    look = work(f"look_before_{name}", "look", step=name)()
    do = work(name, "take", hours=6, step=name)()
    look >> _approval(f"confirm_{name}", subject, f"before_{name}") >> do
    return look, do


def _fleet(which, subject):
    """Wait without a worker until no older version is connected; ask about what no machine can tell."""

    waited = waiting(f"fleet_{which}", "fleet_runs", which=which)
    confirmed = _approval(f"confirm_{which}", subject, f"fleet_{which}")
    waited >> confirmed
    return waited, confirmed


def _group(name, title):
    return TaskGroup(name, prefix_group_id=False, group_display_name=title)


@dag(
    schedule=None,
    params={
        "rehearsal": Param(
            True,
            type="boolean",
            title="Rehearsal",
            description="On: all steps and undos on a scratch restore of the newest verified backup. Off: production",
        ),
        "reason": Param(
            None, type=["null", "string"], maxLength=200, title="Reason", description="Required. Why is it done now?"
        ),
        "writes_both": version("2.5.0", "Writes both", "First version that writes plaintext and ciphertext"),
        "reads_ciphertext": version("2.6.0", "Reads ciphertext", "First version that reads the ciphertext"),
        "ignores_plaintext": version("2.7.0", "Ignores plaintext", "First version that names no plaintext column"),
        "final_name": version("2.8.0", "Final name", "First version that calls the ciphertext phone_number"),
        "window_from": _time("01:00", "Window from"),
        "window_to": _time("05:00", "Window to"),
        "workers": Param(
            2, type="integer", minimum=1, maximum=16, title="Workers", description="Tasks that encrypt at once"
        ),
        "verify_across_workers": Param(
            False,
            type="boolean",
            title="Verify across workers",
            description="Off: one task reads all, with as many processes. On: as many tasks read, on any worker",
        ),
        "brown_out_minutes": Param(
            60,
            type="number",
            minimum=0,
            maximum=300,
            title="Brown-out minutes",
            description="How long the application must be well without the plaintext before it may be dropped",
        ),
        "change_url": Param(
            None,
            type=["null", "string"],
            maxLength=300,
            title="Change",
            description="Address of the change's page; if there is one, it must answer",
        ),
        "purge_free_bytes": Param(
            None,
            type=["null", "string"],
            pattern=r"^\d*$",
            title="Free bytes",
            description="On the server's disk, for VACUUM FULL at the end, which stops all queries. Empty: no purge",
        ),
    },
    **dag_options(
        "phone_encryption",
        "By hand: users.phone_number becomes ciphertext in five steps without downtime, each with gates and an undo",
        area=Area.MIGRATION,
        risk=Risk.WRITES_PROD,
    ),
)
def phone_encryption():
    request = work("check_request")()

    @task.branch(queue="migration")
    def way():
        from payme_ops.orchestration import migration

        return migration.way(rehearsal="rehearse", production=["tell", "backup_and_rehearsal"])

    chosen = way()

    with _group("before", "Before: the checklist"):
        told, backup, listed = work("tell")(), _backups("backup_and_rehearsal")(), work("checklist")()
        start = _approval("approve_start", "Encrypt phone numbers in production?", "before_the_migration")
        [told, backup] >> listed >> start

    with _group("step_1", "1. Add the encrypted column"):
        look_expand, expand = _step("expand", "Add the columns all the same?")

    with _group("step_2", "2. Deploy code that writes both"):
        writes, both = _fleet("writes_both", "Does every version that is connected write both?")
        moment = work("begin_canary")()
        canary = work("canary", hours=1)(moment)
        approve_backfill = _approval("approve_backfill", "Encrypt every row?", "dual_write")
        both >> moment
        canary >> approve_backfill

    with _group("step_3", "3. Encrypt existing rows"):
        ranges, caught_up = work("plan")(), work("catch_up", hours=6)()
        look_finish, finish = _step("finish", "Build the index and the checks all the same?")
        approve_backfill >> ranges
        work("encrypt", hours=6).expand(given=ranges) >> caught_up >> look_finish

    with _group("step_4", "4. Verify: every row decrypts"):
        rewrap, readers = work("rewrap_legacy", hours=6)(), work("plan_reading")()
        held = work("hold_snapshot", hours=6)()
        # Beside the task that holds the snapshot, never after it.
        read = waiting_work("read_snapshot", hours=6).expand(given=readers)
        # Also when one task reads all and those two are skipped; not when this step was not come to.
        verify = work("verify_all", hours=6, trigger_rule=TriggerRule.NONE_FAILED_MIN_ONE_SUCCESS)()
        approve_reads = _approval("approve_reads", "May the application rely on the ciphertexts?", "every_row")
        rewrap >> readers >> held
        [readers, held, read] >> verify >> approve_reads

    with _group("step_5_switch", "5. Switch reads"):
        reads, confirmed_reads = _fleet("reads_ciphertext", "Does every version that is connected read the ciphertext?")
        look_relax, relax = _step("relax", "Let the plaintext be left out all the same?")
        ignores, confirmed_ignores = _fleet("ignores_plaintext", "Does no connected version name the plaintext?")
        look_brown_out, brown_out = _step("brown_out", "Take the right on the plaintext all the same?")
        confirmed_reads >> look_relax
        relax >> ignores
        confirmed_ignores >> look_brown_out

    with _group("step_5_drop", "5. Drop the plaintext"):
        look_drop, drop = work("look_before_drop", hours=6)(), work("drop", hours=1)()
        final, confirmed_final = _fleet("final_name", "Does every version that is connected use the final name?")
        look_end, end_shim = _step("end_shim", "Remove the view all the same?")
        look_drop >> _approval("approve_drop", "Drop the plaintext? Only a backup leads back", "before_switch") >> drop
        drop >> final
        confirmed_final >> look_end

    with _group("after", "After"):
        final_look, look_purge = work("final_look", hours=6)(), work("look_before_purge")()
        purge = work("purge_table", hours=6)()
        ask = "Stop all queries on the table while it is written anew?"
        confirmed = _approval("confirm_final", "Is the application well without the plaintext?", "final_drift")
        final_look >> confirmed >> look_purge >> _approval("approve_purge", ask, "before_purge") >> purge
        # Also without a purge, which it then says; not without the drop.
        certificate = _backups("certificate", trigger_rule=TriggerRule.NONE_FAILED_MIN_ONE_SUCCESS)()
        [drop, purge] >> certificate

    request >> chosen >> [_backups("rehearse")(), told, backup]
    start >> look_expand
    expand >> writes
    finish >> rewrap
    approve_reads >> reads
    brown_out >> look_drop
    end_shim >> final_look
    # The last three run whatever happened before, also when somebody marks the run as failed.
    rights = work("give_back_rights")().as_teardown(setups=request)
    record = _backups("keep_record")().as_teardown(setups=request)
    verdict = work("verdict")().as_teardown(setups=request, on_failure_fail_dagrun=True)
    certificate >> rights >> record >> verdict


phone_encryption()
