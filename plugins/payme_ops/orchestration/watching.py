"""A release's environment is looked at for a time, without a worker: what is usual before, and the watch after."""

import asyncio
from collections.abc import AsyncIterator
from datetime import timedelta
from typing import Any

from airflow.sdk import BaseOperator, Context
from airflow.triggers.base import BaseTrigger, TriggerEvent

from payme_ops.orchestration.health import FIRST_SECONDS


class BaselineOperator(BaseOperator):
    """What is usual: looks at the release's environment, unless enough of the last day are stored."""

    def execute(self, context: Context) -> None:
        """Look, if there is too little."""
        from payme_ops.orchestration import release

        plan = release.plan_baseline(context)
        if plan is not None:
            seconds = release.baseline_seconds()
            self.defer(
                trigger=LooksTrigger(**plan), method_name="resume", timeout=timedelta(seconds=seconds, minutes=10)
            )

    def resume(self, context: Context, event: Any) -> None:
        """Enough or not: the watch says so."""


class LooksTrigger(BaseTrigger):
    """Takes a look at a time until the end, or a breach; one event. It renews the terms it is told of.

    `judging`: a watch, which also asks Sentry and the database and ends with a breach. `terms`: name, token, seconds.
    """

    def __init__(
        self,
        *,
        environment: str,
        subject: str,
        commit: str,
        begun: str,
        until: str,
        terms: list[list[Any]],
        judging: bool,
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.arguments: dict[str, Any] = {
            "environment": environment,
            "subject": subject,
            "commit": commit,
            "begun": begun,
            "until": until,
            "terms": terms,
            "judging": judging,
        }

    def serialize(self) -> tuple[str, dict[str, Any]]:
        """How the triggerer makes it again; no secret is in it."""
        return "payme_ops.orchestration.watching.LooksTrigger", self.arguments

    async def run(self) -> AsyncIterator[TriggerEvent]:
        """One event, when it is over."""
        from payme_ops.orchestration import looks

        await asyncio.sleep(FIRST_SECONDS)
        # The clients wait for their sockets: never in the event loop that all triggers share.
        while (wait := await asyncio.to_thread(looks.watch_once, **self.arguments)) is not None:
            await asyncio.sleep(wait)
        yield TriggerEvent({"subject": self.arguments["subject"]})  # type: ignore[no-untyped-call]
