"""Waiting for an application to be well, without a worker: an operator and a trigger of our own.

The provider's HTTP sensor was seen to ask 1,600 times in four seconds, and to hold its slot (apache/airflow#69903,
#40209). Here every look is stored in the ops database as it comes: a trigger that starts again goes on where it was,
and the operator decides by what is stored, not by the event.
"""

from datetime import datetime, timedelta
from typing import Any

from airflow.sdk import BaseOperator, Context

from payme_ops.orchestration.triggers import RepeatedLook


class HealthOperator(BaseOperator):
    """Succeeds once the application was healthy `consecutive` times in a row; fails when it was not in time.

    `environment` chooses the connection (payme_api, or payme_api_<environment>); with `commit` that commit has to
    answer. Looks every `interval_seconds`, or later where the answer asks for it, for `patience`. Raises GateClosed, or
    Unavailable when the answers said nothing (caches, redirects, refused).
    """

    template_fields = ("environment", "commit")

    def __init__(
        self,
        *,
        environment: str = "production",
        commit: str = "",
        uptime_below: float | None = None,
        consecutive: int = 5,
        interval_seconds: float = 30,
        patience: timedelta = timedelta(minutes=10),
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.environment, self.commit, self.uptime_below = environment, commit, uptime_below
        self.consecutive, self.interval_seconds, self.patience = consecutive, interval_seconds, patience

    def execute(self, context: Context) -> Any:
        """Begin to look."""
        from payme_ops.foundation.clock import utc_now

        begun = utc_now()
        self.defer(
            trigger=HealthTrigger(
                environment=self.environment,
                subject=self.subject(context),
                commit=self.commit,
                uptime_below=self.uptime_below,
                consecutive=self.consecutive,
                interval_seconds=self.interval_seconds,
                begun=begun.isoformat(),
                until=(begun + self.patience).isoformat(),
                terms=[],
            ),
            method_name="resume",
            kwargs={"begun": begun.isoformat()},
            timeout=self.patience + timedelta(minutes=10),
        )

    def subject(self, context: Context) -> str:
        """What its looks are stored under."""
        from payme_ops.orchestration.doors import run_name

        return f"{run_name(context)}/{self.task_id}"

    def resume(self, context: Context, event: Any, begun: str) -> Any:  # noqa: ARG002  # an event is only a hint
        """Decide by what is stored."""
        from payme_ops.orchestration import looks

        found = looks.rule(self.subject(context), datetime.fromisoformat(begun), self.consecutive)
        return self.conclude(context, found)

    def conclude(self, context: Context, found: Any) -> Any:  # noqa: ARG002
        """What the finding means for the task."""
        from payme_ops.foundation.errors import GateClosed, Unavailable
        from payme_ops.foundation.evidence import Verdict, plain

        if found.verdict is not Verdict.PASS:
            kind = GateClosed if found.verdict is Verdict.FAIL else Unavailable
            raise kind(
                "the application is not well" if kind is GateClosed else "nobody can tell whether it is well",
                expected=f"{self.consecutive} healthy answers in a row",
                found=plain(found.measured),
                remedy=found.remedy,
            )
        return found.measured


class HealthTrigger(RepeatedLook):
    """Looks at /health until so many in a row were healthy, or the time is over."""

    function = "health_once"
