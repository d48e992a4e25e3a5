"""A release, 48 hours before. What it does and what to do when it pages: docs/runbooks/pre_deployment.md."""

from airflow.sdk import Param, dag

from payme_ops.orchestration.defaults import Area, Risk, dag_options
from payme_ops.orchestration.release_tasks import gate, item, section, staging_health, starts, work


def _commit(title, description):
    return Param(
        None, type=["null", "string"], pattern=r"^[0-9a-f]{40}$", title=title, description=f"Required. {description}"
    )


def _time(title):
    return Param(None, type=["null", "string"], format="date-time", title=title, description="Required. Nairobi")


@dag(
    schedule=None,
    params={
        "commit": _commit("Commit", "40 hexadecimal digits: what is released"),
        "version": Param(
            None,
            type=["null", "string"],
            pattern=r"^\d+\.\d+\.\d+$",
            title="Version",
            description="Required. Of that commit: major.minor.patch",
        ),
        "environment": Param("production", type="string", enum=["staging", "production"], title="Environment"),
        "window_from": _time("Window from"),
        "window_to": _time("Window to"),
        "previous_commit": _commit("Previous commit", "What runs now, and is gone back to"),
        "carries_migration": Param(
            False, type="boolean", title="Carries a migration", description="Of the database; it is looked up, too"
        ),
        "resume_after_watch": Param(
            False,
            type="boolean",
            title="Resume after the watch",
            description="Off: orders are taken again once health and a test order pass. On: after two hours of watching",
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
        staging, confirm_staging = staging_health()
        plan = item("rollback_plan")
        checks = [
            item("code_review"),
            item("tests_passing"),
            item("migrations_tested"),
            item("backup_scheduled"),
            item("application_environment"),
        ]
        told = [item("team_notified"), item("status_page")]
        staging >> confirm_staging >> item("qa_sign_off") >> told
        plan >> item("rollback_plan_agreed") >> told
        for check in checks:
            check >> told

    start = starts("deployment", "Wait for the window", run_id="{{ ti.xcom_pull(task_ids='check_request') }}")
    verdict = work("verdict_prepared", "Verdict").as_teardown(setups=request, on_failure_fail_dagrun=True)
    request >> [staging, plan, *checks]
    told >> start >> verdict


pre_deployment()
