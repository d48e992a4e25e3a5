"""A word to the backfill, by hand. What each means: docs/runbooks/phone_encryption_control.md."""

from airflow.sdk import Param, dag, task

from payme_ops.orchestration.defaults import Area, Risk, dag_options


@dag(
    schedule=None,
    params={
        "word": Param(
            "status",
            type="string",
            enum=["status", "pause", "run", "abort"],
            title="Word",
            description="Heard before the next batch; stays until another one is said",
        ),
        "reason": Param(
            None, type=["null", "string"], maxLength=200, title="Reason", description="Required, but for status"
        ),
    },
    **dag_options(
        "phone_encryption_control",
        "By hand: pause, run or abort the backfill of phone_encryption",
        area=Area.MIGRATION,
        risk=Risk.WRITES_PROD,
    ),
)
def phone_encryption_control():
    @task(queue="migration")
    def control():
        from payme_ops.orchestration import migration

        return migration.control_backfill()

    control()


phone_encryption_control()
