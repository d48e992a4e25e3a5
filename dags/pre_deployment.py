"""A release, 48 hours before. What it does and what to do when it pages: docs/runbooks/pre_deployment.md."""

from airflow.sdk import Param, dag

from payme_ops.orchestration.defaults import Area, Risk, dag_options
from payme_ops.orchestration.release_tasks import commit_field, healthy, item, section, starts, time_field, work


@dag(
    schedule=None,
    params={
        "commit": commit_field("Commit", "40 hexadecimal digits: exactly what is released"),
        "version": Param(
            None,
            type=["null", "string"],
            pattern=r"^\d+\.\d+\.\d+$",
            title="Version",
            description="Required. Of that commit: major.minor.patch",
        ),
        "environment": Param("production", type="string", enum=["staging", "production"], title="Environment"),
        "window_from": time_field("Window from"),
        "window_to": time_field("Window to"),
        "previous_commit": commit_field("Previous commit", "What runs now, and is gone back to"),
        "carries_migration": Param(
            False, type="boolean", title="Carries a migration", description="Of the database; it is looked up, too"
        ),
        "resume_after_watch": Param(
            False,
            type="boolean",
            title="Resume after the watch",
            description="Off: orders are taken again once a test order passes. On: after two hours of watching",
        ),
        "reason": Param(
            None, type=["null", "string"], maxLength=500, title="Reason", description="Required. What is released, why"
        ),
    },
    **dag_options(
        "pre_deployment",
        "By hand, 48 hours before: proves a release's checklist item by item, tells the team, starts deployment",
        area=Area.RELEASE,
        risk=Risk.WRITES_PROD,
        max_active_runs=16,
    ),
)
def pre_deployment():
    request = work("check_request", "Request")

    with section("days_before", "48 hours before"):
        staging, qa = healthy("staging_healthy", 10), item("qa_sign_off")
        plan, agreed = item("rollback_plan"), item("rollback_plan_agreed")
        checks = [
            item("code_review"),
            item("tests_passing"),
            item("migrations_tested"),
            item("backup_scheduled"),
            item("application_environment"),
        ]
        told = [item("team_notified"), item("status_page")]
        staging >> qa
        plan >> agreed
        for check in (qa, agreed, *checks):
            check >> told

    start = starts("deployment", "Wait for the window", "{{ ti.xcom_pull(task_ids='check_request') }}")
    verdict = work("verdict_prepared", "Verdict").as_teardown(setups=request, on_failure_fail_dagrun=True)
    request >> [staging, plan, *checks]
    told >> start >> verdict


pre_deployment()
