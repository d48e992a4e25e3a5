"""A release after its deploy: two hours of watching, rollback, record. Pages: docs/runbooks/post_deployment.md."""

from airflow.sdk import TriggerRule, dag

from payme_ops.orchestration.defaults import Area, Risk, dag_options
from payme_ops.orchestration.release_tasks import endings, healthy, item, section, watch, work


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
        health, watched, features = healthy("health", 5), watch(), item("features_confirmed")
        # A no, or a breach, is a red task: what has to run then runs after it.
        settled = work("settle_watch", "Kept, or rolled back?", trigger_rule=TriggerRule.ALL_DONE)
        tried = work("settle_features", "Features: kept, or rolled back?", trigger_rule=TriggerRule.ALL_DONE)
        opened >> health >> [watched, features]
        watched >> settled
        features >> tried

    endings(opened, [settled, tried])


post_deployment()
