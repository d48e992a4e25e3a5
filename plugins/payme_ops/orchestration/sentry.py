"""What leaves for Sentry from an Airflow process: one event for a failed run, with nothing secret in it.

Airflow's own integration (sdk/execution_time/sentry) sets Sentry up in each task process and captures the error of
every failed try, also of those that will be tried again. Here the last word is spoken: `process` drops that event
where the run's failure is reported by `alerting.alert_failed_run`, which captures one event for the run, in the task
process or, after a SIGKILL, in the DAG processor. Errors of tasks without that callback pass. Log lines are
breadcrumbs, not events.

A scheduled DAG checks in to a cron monitor of its name: when its first task begins and when the run ends. Sentry makes
the monitor by the first check-in, and tells when one fails or does not come.

`[sentry] before_send` cannot do this: Airflow 3.3 hands it to the SDK as a string, and then every event is dropped.
"""

import functools
import logging
import uuid
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, cast

from payme_ops.foundation.scrub import scrub_all
from payme_ops.orchestration import internals

if TYPE_CHECKING:
    from airflow.sdk import Context
    from sentry_sdk._types import Event, Hint, MonitorConfig

    from payme_ops.foundation.alert import Alert

_log = logging.getLogger("payme_ops.sentry")

_OURS = "payme_ops"  # mechanism of the events captured here
_BY_CAPTURE_EXCEPTION = "generic"  # mechanism of sentry_sdk.capture_exception, which Airflow calls
_FLUSH_SECONDS = 5.0
# Minutes. A run may wait for a slot; a dump may be tried three times, six hours each.
_CHECK_IN_MARGIN, _MAX_RUNTIME = 60, 20 * 60


@functools.cache
def install() -> None:
    """Have every event of this process and its children go through `process`; does nothing when Sentry is off.

    Processors of the global scope run after all others, and are kept when Airflow sets Sentry up later.
    """
    if _is_on():
        import sentry_sdk

        sentry_sdk.get_global_scope().add_event_processor(process)


def capture(alert: "Alert", error: BaseException | None, tags: Mapping[str, str]) -> str | None:
    """One event for a failed run. Answers its id; None when Sentry is off or took nothing."""
    if not _is_on():
        return None
    import sentry_sdk
    from sentry_sdk.utils import event_from_exception

    _set_up()
    event: Event = {"message": f"{alert.what}: {alert.why}", "level": "error"}
    if error is not None:
        options = sentry_sdk.get_client().options
        event, _ = event_from_exception(error, options, mechanism={"type": _OURS, "handled": False})
    event["tags"] = {**tags, "owner": alert.owner}
    # Repeated failures of one task with one error are one issue, whatever the message says.
    kind = type(error).__name__ if error is not None else "no error reported"
    event["fingerprint"] = ["failed run", tags.get("dag_id", ""), tags.get("task_id", ""), kind]
    # Without a hint: the SDK would drop the error as one that it has seen, when Airflow captured it.
    event_id = sentry_sdk.capture_event(event)
    sentry_sdk.flush(timeout=_FLUSH_SECONDS)
    return event_id


def capture_unsent(alert: "Alert", tags: Mapping[str, str]) -> str | None:
    """One event for an alert that Slack has not taken; it is sent later. Answers its id, None when Sentry is off."""
    if not _is_on():
        return None
    import sentry_sdk

    _set_up()
    event: Event = {"message": f"Slack did not take: {alert.what}: {alert.why}", "level": "error"}
    event["tags"] = {**tags, "owner": alert.owner, "alert": alert.key}
    event["fingerprint"] = ["alert not sent", alert.key]
    event_id = sentry_sdk.capture_event(event)
    sentry_sdk.flush(timeout=_FLUSH_SECONDS)
    return event_id


def check_in_begun(context: "Context") -> None:
    """on_execute_callback of tasks: the run begins with those that wait for no other."""
    if not context["ti"].task.upstream_task_ids:
        _check_in(context, "in_progress")


def check_in_ok(context: "Context") -> None:
    """on_success_callback of DAGs."""
    _check_in(context, "ok")


def check_in_failed(context: "Context") -> None:
    """on_failure_callback of DAGs."""
    _check_in(context, "error")


def _check_in(context: "Context", status: str) -> None:
    dag: Any = context["dag"]
    cron = getattr(dag.timetable, "expression", None)
    if cron is None or not _is_on():
        return
    import sentry_sdk
    from sentry_sdk.crons import capture_checkin

    from payme_ops.orchestration.alerting import occurrence

    _set_up()
    config: MonitorConfig = {
        "schedule": {"type": "crontab", "value": cron},
        "timezone": str(dag.timetable.timezone),
        "checkin_margin": _CHECK_IN_MARGIN,
        "max_runtime": _MAX_RUNTIME,
        "failure_issue_threshold": 1,
        "recovery_threshold": 1,
    }
    # The end of a run is told in another process than its beginning: both must come to the same id.
    number = uuid.uuid5(uuid.NAMESPACE_URL, occurrence(context)).hex
    capture_checkin(monitor_slug=dag.dag_id, check_in_id=number, status=status, monitor_config=config)
    sentry_sdk.flush(timeout=_FLUSH_SECONDS)


def process(event: "Event", hint: "Hint") -> "Event | None":
    """The event as it may leave, or None. An event that cannot be cleaned is replaced by the news of that."""
    try:
        if event.get("type") != "transaction" and _is_dropped(event, hint):
            return None
        return _clean(event)
    except Exception as error:  # the SDK sends the event as it was when a processor raises
        _log.error("a Sentry event could not be cleaned: %s", type(error).__name__)
        return {
            "event_id": event.get("event_id", ""),
            "level": "error",
            "message": f"an event was withheld, cleaning it failed with {type(error).__name__}",
        }


def _set_up() -> None:
    import sentry_sdk

    install()
    if not sentry_sdk.get_client().is_active():  # the DAG processor: Airflow sets Sentry up for tasks only
        internals.set_sentry_up()


def _is_on() -> bool:
    from airflow.sdk.configuration import conf

    return bool(conf.getboolean("sentry", "sentry_on", fallback=False))


def _is_dropped(event: "Event", hint: "Hint") -> bool:
    errors = (event.get("exception") or {}).get("values") or []
    mechanisms = {(error.get("mechanism") or {}).get("type") for error in errors}
    if _OURS in mechanisms:
        return False
    if event.get("logger") or mechanisms - {_BY_CAPTURE_EXCEPTION, "chained", None}:
        return True  # captured by the SDK from a log line, a thread or the interpreter's end
    exc_info = hint.get("exc_info")
    task_instance = internals.failed_task(exc_info[2]) if exc_info else None
    if task_instance is None:
        return False
    from payme_ops.orchestration.alerting import alert_failed_run

    if alert_failed_run in task_instance.task.on_failure_callback:
        return True
    tags = dict(event.get("tags") or {})
    event["tags"] = {**tags, "run_id": task_instance.run_id, "owner": str(task_instance.task.owner)}
    event["fingerprint"] = [
        "failed task",
        task_instance.dag_id,
        task_instance.task_id,
        str(errors[-1].get("type")) if errors else "",
    ]
    return False


def _clean(event: "Event") -> "Event":
    cleaned: dict[str, Any] = scrub_all(event)
    for holder in ("exception", "threads"):
        for value in (cleaned.get(holder) or {}).get("values") or []:
            for frame in (value.get("stacktrace") or {}).get("frames") or []:
                frame.pop("vars", None)  # local variables: connections, rows
    return cast("Event", cleaned)
