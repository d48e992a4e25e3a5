"""Waiting for an application to be well, without a worker: an operator and a trigger of our own.

The provider's HTTP sensor was seen to ask 1,600 times in four seconds, and to hold its slot (apache/airflow#69903,
#40209). Here every look is stored in the ops database as it comes: a trigger that starts again goes on where it was,
and the operator decides by what is stored, not by the event.
"""

import asyncio
from collections.abc import AsyncIterator
from datetime import datetime, timedelta
from typing import Any

from airflow.sdk import BaseOperator, Context
from airflow.triggers.base import BaseTrigger, TriggerEvent

# An event within seconds of the deferral can meet the scheduler while it still takes in the deferral, and it then
# fails the task (apache/airflow #72716, #71580).
FIRST_SECONDS = 10.0


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


class HealthTrigger(BaseTrigger):
    """Looks at /health until so many in a row were healthy, or the time is over; one event.

    It renews the terms (name, token, seconds) that it is told of.
    """

    def __init__(
        self,
        *,
        environment: str,
        subject: str,
        commit: str,
        uptime_below: float | None,
        consecutive: int,
        interval_seconds: float,
        begun: str,
        until: str,
        terms: list[list[Any]],
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.arguments: dict[str, Any] = {
            "environment": environment,
            "subject": subject,
            "commit": commit,
            "uptime_below": uptime_below,
            "consecutive": consecutive,
            "interval_seconds": interval_seconds,
            "begun": begun,
            "until": until,
            "terms": terms,
        }

    def serialize(self) -> tuple[str, dict[str, Any]]:
        """How the triggerer makes it again; no secret is in it."""
        return "payme_ops.orchestration.health.HealthTrigger", self.arguments

    async def run(self) -> AsyncIterator[TriggerEvent]:
        """One event, when it can be decided."""
        from payme_ops.orchestration import looks

        await asyncio.sleep(FIRST_SECONDS)
        while True:
            # The client waits for its socket: never in the event loop that all triggers share.
            wait = await asyncio.to_thread(looks.health_once, **self.arguments)
            if wait is None:
                break
            await asyncio.sleep(wait)
        yield TriggerEvent({"subject": self.arguments["subject"]})  # type: ignore[no-untyped-call]
