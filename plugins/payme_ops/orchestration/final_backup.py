"""The final backup of a release is waited for without a worker, while orders are stopped."""

import asyncio
import time
from collections.abc import AsyncIterator
from datetime import datetime, timedelta
from typing import Any

from airflow.sdk import BaseOperator, Context
from airflow.triggers.base import BaseTrigger, TriggerEvent

from payme_ops.orchestration.triggers import FIRST_SECONDS
from payme_ops.release.checklist import ITEMS


class FinalBackupOperator(BaseOperator):
    """Succeeds once a backup is complete that was taken after orders were stopped; its evidence is `final_backup`.

    `backup_run` is the run of backup_daily that was started for it: when that fails, or the freeze was lost, it ends
    early. Raises GateClosed, LeaseLost, Unavailable. Run again after a kill it goes on waiting for the same.
    """

    template_fields = ("backup_run",)

    def __init__(
        self,
        *,
        backup_run: str = "{{ ti.xcom_pull(task_ids='start_backup_daily', key='trigger_run_id') }}",
        **kwargs: Any,
    ) -> None:
        item = ITEMS["final_backup"]
        # Orders are stopped, and while it waits to be tried again nobody says that they should stay so.
        options = {
            "task_id": item.name,
            "task_display_name": item.title,
            "retry_delay": timedelta(seconds=20),
            **kwargs,
        }
        super().__init__(**options)
        self.backup_run = backup_run

    def execute(self, context: Context) -> None:
        """Look whether it is there, or wait."""
        from payme_ops.orchestration import backup_wait

        if backup_wait.conclude(context, self.backup_run):
            return
        plan = backup_wait.plan(context, self.backup_run)
        self.defer(
            trigger=FinalBackupTrigger(**plan),
            method_name="resume",
            timeout=datetime.fromisoformat(plan["until"]) - datetime.now().astimezone() + timedelta(minutes=10),
        )

    def resume(self, context: Context, event: Any) -> None:  # noqa: ARG002  # an event is only a hint
        """The same: what is in the catalogue decides, and who was woken too early waits on."""
        self.execute(context)


class FinalBackupTrigger(BaseTrigger):
    """Waits until the run is over, a term was lost, or it took too long; one event. It renews the terms meanwhile."""

    def __init__(self, *, backup_run: str, terms: list[list[Any]], until: str) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.arguments: dict[str, Any] = {"backup_run": backup_run, "terms": terms, "until": until}

    def serialize(self) -> tuple[str, dict[str, Any]]:
        """How the triggerer makes it again; no secret is in it."""
        return "payme_ops.orchestration.final_backup.FinalBackupTrigger", self.arguments

    async def run(self) -> AsyncIterator[TriggerEvent]:
        """One event, when it can be decided."""
        from payme_ops.orchestration import backup_wait

        begun = time.monotonic()
        # The clients wait for their sockets: never in the event loop that all triggers share. At once: terms are short.
        while (wait := await asyncio.to_thread(backup_wait.look, **self.arguments)) is not None:
            await asyncio.sleep(wait)
        await asyncio.sleep(max(0.0, FIRST_SECONDS - (time.monotonic() - begun)))
        yield TriggerEvent({"backup_run": self.arguments["backup_run"]})  # type: ignore[no-untyped-call]
