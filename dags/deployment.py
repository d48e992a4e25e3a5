"""A release, from one hour before to orders taken again. What to do when it pages: docs/runbooks/deployment.md."""

from airflow.sdk import TriggerRule, dag

from payme_ops.orchestration.defaults import Area, Risk, dag_options
from payme_ops.orchestration.release_tasks import (
    act,
    baseline,
    final_backup,
    gate,
    item,
    section,
    staging_health,
    starts,
    wait_for_window,
    work,
)


@dag(
    schedule=None,
    **dag_options(
        "deployment",
        "Started by pre_deployment: waits for the window, go or no-go, deploys once, takes orders again",
        area=Area.RELEASE,
        risk=Risk.WRITES_PROD,
        max_active_runs=16,
    ),
)
def deployment():
    opened = work("open_deployment", "Release")
    window = wait_for_window()

    with section("days_before", "48 hours before: still so?"):
        staging, confirm_staging = staging_health(if_stale=True)
        staging >> confirm_staging
        again = [
            item(name, if_stale=True)
            for name in (
                "code_review",
                "tests_passing",
                "migrations_tested",
                "backup_scheduled",
                "rollback_plan",
                "application_environment",
                "status_page",
            )
        ]

    with section("hour_before", "1 hour before"):
        usual, standby, bypasses, scaling = baseline(), item("support_standby"), item("bypasses"), item("autoscaling")
        collected = work("collect", "Evidence for the go or no-go")
        first = gate("go_no_go_first", "Go or no-go: deploy this?", "go_no_go")
        second = gate("go_no_go_second", "Go or no-go: deploy this? (another person)", "go_no_go")
        taken = work("take_release", "Nobody else deploys")
        frozen = act("freeze_orders")
        started = starts("backup_daily", "Start the final backup", run_id="final__{{ run_id }}", final=True)
        backup = final_backup()
        [first, second] >> scaling >> taken >> frozen >> started >> backup

    with section("during", "During deployment"):
        deployed, smoke = act("deploy", retries=3), act("smoke")
        settled = work("settle", "Well, or rolled back?", trigger_rule=TriggerRule.ALL_DONE)
        backup >> deployed >> smoke >> settled

    watch = starts("post_deployment", "Start watching", run_id="{{ run_id }}")
    # The last ones run whatever happened before, also when somebody marks the run as failed.
    resumed = work("resume_orders", "Orders are taken again").as_teardown(setups=opened)
    restored = work("restore_autoscaling", "Autoscaling restored").as_teardown(setups=opened)
    record = work("keep_record_without_deploy", "Record", queue="restore").as_teardown(setups=opened)
    verdict = work("verdict_deployed", "Verdict").as_teardown(setups=opened, on_failure_fail_dagrun=True)
    opened >> window >> [staging, *again, usual, standby] >> bypasses >> collected >> [first, second]
    confirm_staging >> bypasses
    settled >> [resumed, watch]
    resumed >> restored >> record >> verdict
    watch >> verdict


deployment()
