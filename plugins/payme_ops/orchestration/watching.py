"""A release is watched for two hours, and looked at before, without a worker."""

import asyncio
import logging
from collections.abc import AsyncIterator
from datetime import datetime, timedelta
from typing import Any

from airflow.sdk import BaseOperator, Context
from airflow.triggers.base import BaseTrigger, TriggerEvent

from payme_ops.orchestration.health import FIRST_SECONDS

_log = logging.getLogger("payme_ops.release")


class BaselineOperator(BaseOperator):
    """What is usual: looks at the release's environment, unless enough of the last day are stored."""

    def execute(self, context: Context) -> None:
        """Look, if there is too little."""
        from payme_ops.foundation import settings
        from payme_ops.foundation.clock import utc_now
        from payme_ops.orchestration import looks, release

        config, environment = settings.load().release, release.of(context).request.environment.value
        begun = utc_now()
        if (stored := len(looks.baseline(environment, begun))) >= looks.watch.MIN_BASELINE:
            _log.info("%d looks of the last day are stored", stored)
            return
        until = begun + timedelta(seconds=FIRST_SECONDS + config.baseline_samples * config.sample_seconds)
        self.defer(
            trigger=LooksTrigger(
                environment=environment,
                subject=environment,
                commit="",
                begun=begun.isoformat(),
                until=until.isoformat(),
                terms=[],
                judging=False,
            ),
            method_name="resume",
            timeout=until - begun + timedelta(minutes=10),
        )

    def resume(self, context: Context, event: Any) -> None:  # noqa: ARG002
        """Enough or not: the watch says so."""


class WatchOperator(BaseOperator):
    """Watches the release; its verdict is the evidence `watch`. Raises GateClosed after a breach.

    Run again, it goes on with the watch that was begun: what was stored counts, and the end stays where it was.
    """

    def execute(self, context: Context) -> None:
        """Begin, or go on."""
        from payme_ops.orchestration import release

        plan = release.plan_watch(context)
        self.defer(
            trigger=LooksTrigger(**plan),
            method_name="resume",
            timeout=datetime.fromisoformat(plan["until"]) - datetime.fromisoformat(plan["begun"]) + timedelta(hours=1),
        )

    def resume(self, context: Context, event: Any) -> None:  # noqa: ARG002  # an event is only a hint
        """Judge by what is stored."""
        from payme_ops.orchestration import release

        release.conclude_watch(context)


class LooksTrigger(BaseTrigger):
    """Takes a look at a time until the end, or a breach; one event. It renews the terms it is told of."""

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
        self.arguments = {
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
