"""A release after its deploy: two hours of watching, rollback, record. Pages: docs/runbooks/post_deployment.md."""

from airflow.sdk import TriggerRule, dag

from payme_ops.orchestration.defaults import Area, Risk, dag_options
from payme_ops.orchestration.release_tasks import gate, health_after, item, section, two_hours, went_on, work


@dag(
    schedule=None,
    **dag_options(
        "post_deployment",
        "Started by deployment: health, two hours of watching, one rollback if it must be, the signed record",
        area=Area.RELEASE,
        risk=Risk.WRITES_PROD,
        max_active_runs=16,
    ),
)
def post_deployment():
    opened = work("open_post_deployment", "Release")

    with section("after", "After deployment"):
        health, watched = health_after(), two_hours()
        confirmed = gate("confirm_health", "Is the application well, with the right commit?", "health")
        kept = gate("keep_release", "Keep this release? A rejection, or no answer, rolls it back", "watch")
        features = item("features_confirmed")
        # A rejection skips what follows directly, so what has to run then follows one task later.
        settled = work("settle_watch", "Kept, or rolled back?", trigger_rule=TriggerRule.ALL_DONE)
        tried = work("settle_features", "Features: kept, or rolled back?", trigger_rule=TriggerRule.ALL_DONE)
        opened >> health >> confirmed >> [features, watched]
        watched >> kept >> went_on("kept") >> settled
        features >> went_on("features_work") >> tried

    # All of these run whatever happened before, also when somebody marks the run as failed.
    resumed = work("resume_orders", "Orders are taken again").as_teardown(setups=opened)
    closed = work("close_status_page", "Status page closed").as_teardown(setups=opened)
    record = work("keep_record", "Record", queue="restore").as_teardown(setups=opened)
    told = work("tell_outcome", "Team told").as_teardown(setups=opened)
    verdict = work("verdict_released", "Verdict").as_teardown(setups=opened, on_failure_fail_dagrun=True)
    settled >> resumed
    [tried, resumed] >> closed >> record >> told >> verdict


post_deployment()
