"""A release, from one hour before to orders taken again. What to do when it pages: docs/runbooks/deployment.md."""

from airflow.sdk import TriggerRule, dag

from payme_ops.orchestration.defaults import Area, Risk, dag_options
from payme_ops.orchestration.release_tasks import (
    act,
    baseline,
    endings,
    final_backup,
    gate,
    healthy,
    item,
    section,
    starts,
    wait_until,
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
    window = wait_until("wait_for_window", "Wait for the window", "{{ ti.xcom_pull(task_ids='open_deployment') }}")

    with section("days_before", "48 hours before: still so?"):
        again = [
            healthy("staging_healthy", 10, if_stale=True),
            *(
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
            ),
        ]

    with section("hour_before", "1 hour before"):
        ready = [baseline(), item("support_standby")]
        bypasses, collected = item("bypasses"), work("collect", "Evidence for the go or no-go")
        first = gate("go_no_go_first", "Go or no-go: deploy this?", "go_no_go")
        second = gate("go_no_go_second", "Go or no-go: deploy this? (another person)", "go_no_go")
        taken, scaling = work("take_release", "Nobody else deploys"), item("autoscaling")
        frozen = act("freeze_orders", "New orders stopped, or users warned")
        started, backup = final_backup()
        bypasses >> collected >> first >> second >> taken >> scaling >> frozen >> started >> backup

    with section("during", "During deployment"):
        deployed, smoke = act("deploy", "Deployed"), act("smoke", "An order and its refund")
        settled = work("settle", "Well, or rolled back?", trigger_rule=TriggerRule.ALL_DONE)
        backup >> deployed >> smoke >> settled

    watching = starts("post_deployment", "Start watching", "{{ run_id }}")
    opened >> window >> [*again, *ready]
    for one in (*again, *ready):
        one >> bypasses
    settled >> watching
    endings(opened, [settled, watching])


deployment()
