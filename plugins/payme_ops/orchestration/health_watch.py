"""The health watch: one trigger that looks at every application at each slot, without a worker and without a run.

It is the watcher of the asset on which `incident` is scheduled, and gives that DAG one event for each outage. What was
seen, what is on and what people are told of it is in the ops database before the event, so whoever kills this, or the
scheduler, delays a run of `incident` and no alert.
"""

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, TypeVar

from airflow.triggers.base import BaseEventTrigger, TriggerEvent

from payme_ops.foundation.errors import PaymeOpsError

if TYPE_CHECKING:
    from payme_ops.foundation.alert import Alert
    from payme_ops.monitoring.rounds import Doors, Watch

DAG = "incident"
_log = logging.getLogger("payme_ops.health_watch")
_Found = TypeVar("_Found")
_PAUSE_SECONDS = 60.0  # when there is nothing that could be looked at
# The event loop's own threads look up names, and there are six of them on two cores: three applications whose name
# nobody answers for would hold up the looks at all others, which then would be told as down. Begun as they are needed.
_LOOP_THREADS = 128


class HealthWatch(BaseEventTrigger):
    """Looks at the endpoints of the settings for ever. Its events are `outage` (id in ops.outages) and `subject`."""

    def serialize(self) -> tuple[str, dict[str, Any]]:
        """How the triggerer makes it again: what it looks at stands in the triggerer's settings."""
        return f"{type(self).__module__}.{type(self).__qualname__}", {}

    async def run(self) -> AsyncIterator[TriggerEvent]:
        """Events for ever; whatever goes wrong is logged, and the next slot comes."""
        from payme_ops.foundation import settings
        from payme_ops.foundation.errors import SettingsError
        from payme_ops.monitoring import probe
        from payme_ops.monitoring.rounds import Watch

        try:
            config = settings.load().monitoring
        except SettingsError as error:
            _log.error("nothing is looked at until the triggerer is started with other settings: %s", error)
            while True:
                await asyncio.sleep(_PAUSE_SECONDS)
        asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(_LOOP_THREADS))
        await asyncio.to_thread(_doors)  # imports what a round needs, or the first looks would time that
        async with probe.client() as asked:
            watch = Watch(asked, config, _doors)
            try:
                while True:
                    slot = await _next_slot(config.interval_seconds)
                    for due in await _round(watch, slot):
                        yield TriggerEvent(due)  # type: ignore[no-untyped-call]
                    while not config.endpoints:  # outages of what was looked at before have been ended
                        await asyncio.sleep(_PAUSE_SECONDS)
            finally:
                watch.close()


async def _round(watch: "Watch", slot: datetime) -> list[dict[str, Any]]:
    try:
        return await watch.round(slot)
    except Exception:
        _log.exception("a round of the health watch failed; the next one comes")
        return []


async def _next_slot(interval: float) -> datetime:
    """Waits for the next slot to begin; UTC time is cut into slots of `interval` seconds."""
    number = time.time() // interval + 1
    await asyncio.sleep(max(0.0, number * interval - time.time()))
    return datetime.fromtimestamp(round(number * interval, 6), UTC)


def _doors() -> "Doors":
    """What a round goes by, asked for in a thread each time."""
    from airflow.sdk.configuration import conf

    from payme_ops.foundation import settings
    from payme_ops.monitoring.rounds import Doors
    from payme_ops.orchestration import alerting
    from payme_ops.orchestration.connections import ops_db

    base = conf.get("api", "base_url", fallback="http://localhost:8080").rstrip("/")
    return Doors(
        _or_none(ops_db), _or_none(alerting.slack), settings.load().alert.owner, f"{base}/dags/{DAG}", _capture
    )


def _or_none(find: Callable[[], _Found]) -> _Found | None:
    try:
        return find()
    except PaymeOpsError as error:  # says what to do, and holds no secret
        _log.error("a connection cannot be looked up: %s", error)
        return None
    except Exception as error:
        _log.error("a connection cannot be looked up: %s", type(error).__name__)
        return None


def _capture(alert: "Alert") -> str | None:
    """Tell Sentry what Slack did not take."""
    from payme_ops.orchestration import sentry

    return sentry.capture(alert, None, {"dag_id": DAG, "task_id": alert.key})
