"""A word about alerts, by hand. What each means: docs/runbooks/alert_control.md."""

from airflow.sdk import Param, dag, task

from payme_ops.orchestration.defaults import Area, Risk, dag_options


@dag(
    schedule=None,
    params={
        "word": Param(
            "list",
            type="string",
            enum=["list", "acknowledge", "silence", "end silence"],
            title="Word",
            description="list only looks: open alerts and silences stand in the log",
        ),
        "key": Param(
            None,
            type=["null", "string"],
            maxLength=200,
            title="Key",
            description="As a message's last line shows it; to silence also a beginning and a *, such as health:*",
        ),
        "reason": Param(
            None,
            type=["null", "string"],
            maxLength=300,
            title="Reason",
            description="Required to silence, 10 characters at least; shown in Slack",
        ),
        "minutes": Param(60, type="integer", minimum=1, maximum=240, title="Minutes", description="Of a silence"),
    },
    **dag_options(
        "alert_control",
        "By hand: acknowledge an alert, keep some quiet for a while",
        area=Area.MONITORING,
        risk=Risk.READS,
    ),
)
def alert_control():
    @task(retries=0)
    def control():
        from payme_ops.orchestration import alert_control

        alert_control.say()

    control()


alert_control()
