"""A backup whose bytes can be read: an archive is asked for and waited for without a worker."""

import asyncio
import logging
from collections.abc import AsyncIterator
from datetime import timedelta
from typing import Any

from airflow.sdk import BaseOperator, Context
from airflow.triggers.base import BaseTrigger, TriggerEvent

from payme_ops.orchestration.triggers import FIRST_SECONDS

_log = logging.getLogger("payme_ops.backup")
_S3 = "payme_s3_restore"
# S3's longest retrieval (DEEP_ARCHIVE, standard: 12 hours) and its answer being late by as much again.
_PATIENCE = timedelta(hours=24)
_EVERY_SECONDS = 60.0


class ReadableOperator(BaseOperator):
    """Succeeds, with the backup's manifest key, when its bytes can be read; asks for those of an archive and defers.

    `backup` is whatever `catalogue.find` takes. Raises what that raises, and TaskDeferralTimeout after 24 hours.
    """

    template_fields = ("backup",)

    def __init__(self, *, backup: str, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.backup = backup

    def execute(self, context: Context) -> str:  # noqa: ARG002
        """Look; ask and defer where needed."""
        return self._look(self.backup)

    def resume(self, context: Context, event: Any, backup: str) -> str:  # noqa: ARG002
        """Look again, at the same backup: `latest` may mean another one by now, and an event is only a hint."""
        return self._look(backup)

    def _look(self, backup: str) -> str:
        from payme_ops.backup import archive, catalogue
        from payme_ops.orchestration.doors import catalogue as where

        here = where(_S3)
        found = catalogue.find(here, backup)
        bucket = here.stores.of(found.tier)
        state = archive.retrieve(bucket, found.trusted)
        if not state.readable:
            _log.info("%s lies in an archive; it was asked for and can be read some hours from now", found.key)
            self.defer(
                trigger=ReadableTrigger(tier=found.tier, key=found.trusted.archive.key),
                method_name="resume",
                kwargs={"backup": found.key},
                timeout=_PATIENCE,
            )
        _log.info("the bytes of %s can be read (%s)", found.key, state)
        return found.key


class ReadableTrigger(BaseTrigger):
    """Looks every minute until an object can be read. A store that is away is looked at again."""

    def __init__(
        self, tier: str, key: str, first_seconds: float = FIRST_SECONDS, every_seconds: float = _EVERY_SECONDS
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.tier, self.key = tier, key
        self.first_seconds, self.every_seconds = first_seconds, every_seconds

    def serialize(self) -> tuple[str, dict[str, Any]]:
        """How the triggerer makes it again."""
        return (
            "payme_ops.orchestration.retrieval.ReadableTrigger",
            {
                "tier": self.tier,
                "key": self.key,
                "first_seconds": self.first_seconds,
                "every_seconds": self.every_seconds,
            },
        )

    async def run(self) -> AsyncIterator[TriggerEvent]:
        """One event, when the bytes can be read."""
        await asyncio.sleep(self.first_seconds)
        # boto3 waits for its socket: never in the event loop that all triggers share.
        while not await asyncio.to_thread(self._readable):
            await asyncio.sleep(self.every_seconds)
        yield TriggerEvent({"key": self.key})  # type: ignore[no-untyped-call]

    def _readable(self) -> bool:
        from payme_ops.backup import archive
        from payme_ops.backup.manifest import Tier
        from payme_ops.foundation.errors import Unavailable
        from payme_ops.orchestration.doors import catalogue

        try:
            found = archive.state(catalogue(_S3).stores.of(Tier(self.tier)), self.key)
        except Unavailable as error:
            self.log.warning("%s; looking again in %.0f s", error, self.every_seconds)
            return False
        self.log.info("%s is %s", self.key, found)
        return found.readable
