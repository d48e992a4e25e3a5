"""Phone numbers become ciphertext, by hand. What it does and how to undo it: docs/runbooks/phone_encryption.md."""

from datetime import timedelta

from airflow.sdk import Param, TaskGroup, TriggerRule, dag, task

from payme_ops.orchestration.approval import ApprovalGate
from payme_ops.orchestration.defaults import Area, Risk, dag_options


def _version(default, title, description):
    return Param(default, type="string", maxLength=40, title=title, description=description)


def _time(default, title):
    return Param(default, type="string", pattern=r"^\d\d:\d\d$", title=title, description="HH:MM in Nairobi")


def _work(task_id, function="", *, hours=0.5, **fixed):
    """A task of migration workers: the function of that name in payme_ops.orchestration.migration."""

    @task(task_id=task_id, queue="migration", execution_timeout=timedelta(hours=hours))
    def run(given=None):
        from payme_ops.orchestration import migration

        return getattr(migration, function or task_id)(**fixed, **(given or {}))

    return run


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
    look = _work(f"look_before_{name}", "look", step=name)()
    do = _work(name, "take", hours=6, step=name)()
    look >> _approval(f"confirm_{name}", subject, f"before_{name}") >> do
    return look, do


def _fleet(which, subject):
    """Wait without a worker until no older version is connected; ask about what no machine can tell."""

    @task.sensor(
        task_id=f"fleet_{which}",
        queue="migration",
        mode="reschedule",
        poke_interval=30,
        timeout=timedelta(days=14).total_seconds(),
    )
    def wait():
        from payme_ops.orchestration import migration

        return migration.fleet_runs(which)

    waited, confirmed = wait(), _approval(f"confirm_{which}", subject, f"fleet_{which}")
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
        "writes_both": _version("2.5.0", "Writes both", "First version that writes plaintext and ciphertext"),
        "reads_ciphertext": _version("2.6.0", "Reads ciphertext", "First version that reads the ciphertext"),
        "ignores_plaintext": _version("2.7.0", "Ignores plaintext", "First version that names no plaintext column"),
        "final_name": _version("2.8.0", "Final name", "First version that calls the ciphertext phone_number"),
        "window_from": Param(
            "01:00", type="string", pattern=r"^\d\d:\d\d$", title="Window from", description="Nairobi"
        ),
        "window_to": Param("05:00", type="string", pattern=r"^\d\d:\d\d$", title="Window to", description="Nairobi"),
        "workers": Param(
            2, type="integer", minimum=1, maximum=16, title="Workers", description="Tasks that encrypt at once"
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
            "", type="string", maxLength=300, title="Change", description="Address of the change's page; it must answer"
        ),
        "purge_free_bytes": Param(
            "",
            type="string",
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
    request = _work("check_request")()

    @task.branch(queue="migration")
    def way():
        from payme_ops.orchestration import migration

        return migration.way(rehearsal="rehearse", production=["tell", "backup_and_rehearsal"])

    chosen = way()

    with _group("before", "Before: the checklist"):
        told, backup, listed = _work("tell")(), _backups("backup_and_rehearsal")(), _work("checklist")()
        start = _approval("approve_start", "Encrypt phone numbers in production?", "before_the_migration")
        [told, backup] >> listed >> start

    with _group("step_1", "1. Add the encrypted column"):
        look_expand, expand = _step("expand", "Add the columns all the same?")

    with _group("step_2", "2. Deploy code that writes both"):
        writes, both = _fleet("writes_both", "Does every version that is connected write both?")
        moment = _work("begin_canary")()
        canary = _work("canary", hours=1)(moment)
        approve_backfill = _approval("approve_backfill", "Encrypt every row?", "dual_write")
        both >> moment
        canary >> approve_backfill

    with _group("step_3", "3. Encrypt existing rows"):
        ranges, caught_up = _work("plan")(), _work("catch_up", hours=6)()
        look_finish, finish = _step("finish", "Build the index and the checks all the same?")
        approve_backfill >> ranges
        _work("encrypt", hours=6).expand(given=ranges) >> caught_up >> look_finish

    with _group("step_4", "4. Verify: every row decrypts"):
        rewrap, verify = _work("rewrap_legacy", hours=6)(), _work("verify_all", hours=6)()
        approve_reads = _approval("approve_reads", "May the application rely on the ciphertexts?", "every_row")
        rewrap >> verify >> approve_reads

    with _group("step_5_switch", "5. Switch reads"):
        reads, confirmed_reads = _fleet("reads_ciphertext", "Does every version that is connected read the ciphertext?")
        look_relax, relax = _step("relax", "Let the plaintext be left out all the same?")
        ignores, confirmed_ignores = _fleet("ignores_plaintext", "Does no connected version name the plaintext?")
        look_brown_out, brown_out = _step("brown_out", "Take the right on the plaintext all the same?")
        confirmed_reads >> look_relax
        relax >> ignores
        confirmed_ignores >> look_brown_out

    with _group("step_5_drop", "5. Drop the plaintext"):
        look_drop, drop = _work("look_before_drop", hours=6)(), _work("drop", hours=1)()
        final, confirmed_final = _fleet("final_name", "Does every version that is connected use the final name?")
        look_end, end_shim = _step("end_shim", "Remove the view all the same?")
        look_drop >> _approval("approve_drop", "Drop the plaintext? Only a backup leads back", "before_switch") >> drop
        drop >> final
        confirmed_final >> look_end

    with _group("after", "After"):
        final_look, look_purge = _work("final_look", hours=6)(), _work("look_before_purge")()
        purge = _work("purge_table", hours=6)()
        ask = "Stop all queries on the table while it is written anew?"
        final_look >> look_purge >> _approval("approve_purge", ask, "before_purge") >> purge
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
    rights = _work("give_back_rights")().as_teardown(setups=request)
    record = _backups("keep_record")().as_teardown(setups=request)
    verdict = _work("verdict")().as_teardown(setups=request, on_failure_fail_dagrun=True)
    certificate >> rights >> record >> verdict


phone_encryption()
