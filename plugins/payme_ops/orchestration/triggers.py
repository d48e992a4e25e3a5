"""What triggers that look again and again share."""

import asyncio
from collections.abc import AsyncIterator, Mapping
from datetime import datetime, timedelta
from typing import Any, ClassVar

from airflow.triggers.base import BaseTrigger, TriggerEvent

# An event within seconds of the deferral can meet the scheduler while it still takes in the deferral, and it then
# fails the task (apache/airflow #72716, #71580).
FIRST_SECONDS = 10.0
_SLACK = timedelta(minutes=10)


def patience(plan: Mapping[str, Any]) -> timedelta:
    """How long a task may be deferred whose trigger works from `begun` to `until` (ISO) of its arguments."""
    return datetime.fromisoformat(plan["until"]) - datetime.fromisoformat(plan["begun"]) + _SLACK


class RepeatedLook(BaseTrigger):
    """Calls a function of payme_ops.orchestration.looks until it answers None, not seconds to wait; then one event.

    The constructor takes the function's arguments; `subject` is one of them, and what the event names.
    """

    function: ClassVar[str]

    def __init__(self, **arguments: Any) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.arguments = arguments

    def serialize(self) -> tuple[str, dict[str, Any]]:
        """How the triggerer makes it again; no secret is in it."""
        return f"{type(self).__module__}.{type(self).__qualname__}", self.arguments

    async def run(self) -> AsyncIterator[TriggerEvent]:
        """One event, when it can be decided."""
        from payme_ops.orchestration import looks

        await asyncio.sleep(FIRST_SECONDS)
        # The clients wait for their sockets: never in the event loop that all triggers share.
        while (wait := await asyncio.to_thread(getattr(looks, self.function), **self.arguments)) is not None:
            await asyncio.sleep(wait)
        yield TriggerEvent({"subject": self.arguments["subject"]})  # type: ignore[no-untyped-call]
