"""One callback for every DAG and every task: tells Slack and Sentry of a failed run, each once.

As a task's on_failure_callback it runs in the task's process and knows the error. As the DAG's it runs in the DAG
processor a little later: it finds the run told already, or speaks for a task that was killed and could not.
When Slack does not take an alert, Sentry and the log are told, and it is sent later; the task's own outcome stays what
it is.
Nothing heavy is imported here: DAG files import this module.
"""

import asyncio
import functools
import logging
import os
import re
from collections.abc import Callable, Mapping
from datetime import datetime
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, TypeVar, cast
from urllib.parse import quote

from payme_ops.foundation.clock import utc_now

if TYPE_CHECKING:
    from airflow.sdk import Context

    from payme_ops.foundation.alert import Alert, Outcome, Severity
    from payme_ops.foundation.slack import Slack

_log = logging.getLogger("payme_ops.alert")

_SLACK_SECONDS = 10
_ERROR_LINES = 12
_WITHOUT_ERROR = {
    "task_failure": "The task ended without reporting an error: it was killed, ran out of memory or lost its worker.",
    "all_tasks_deadlocked": "No task of the run can start any more.",
    "timed_out": "The run took longer than its dagrun_timeout.",
}
_Found = TypeVar("_Found")


def alert_failed_run(context: "Context") -> None:
    """on_failure_callback of tasks and DAGs."""
    from payme_ops.foundation.alert import raise_alert
    from payme_ops.orchestration import sentry

    alert, error, tags = _alert(context), _error(context), _tags(context)
    outcome = raise_alert(
        _or_none(_ops_database),
        alert,
        _or_none(slack),
        lambda told: _or_none(functools.partial(sentry.capture, told, error, tags)),
    )
    _log.info("alert %s for %s: %s", alert.key, alert.occurrence, outcome)


def alert_run_well(context: "Context") -> None:
    """on_success_callback of DAGs: what was told of failed or late runs is over.

    Of a DAG with a schedule by any run that does well; of one by hand only by the same run: another does other things.
    """
    from payme_ops.foundation.alert import Severity

    dag_id = _dag_id(context)
    for key in (f"run_failed:{dag_id}", f"late:{dag_id}"):
        told = _standing(key).get(key)
        of_this = f"{told}/".startswith(f"{dag_id}/{context['run_id']}/")
        if told and (_is_scheduled(context) or of_this):
            why = f"{told} was told of above. {occurrence(context)} has ended well."
            _say(context, key, f"{told}/over", Severity.INFO, f"{dag_id} has ended well", why, "Nothing")


async def alert_late_run(context: Mapping[str, Any]) -> None:
    """Callback of a DAG's deadline, in the triggerer: a run has not ended in time. It runs on, and is told once.

    In the triggerer, since a run may be late because no worker is free. The context is a plain one: no DAG, no task.
    """
    from payme_ops.foundation.alert import Severity
    from payme_ops.foundation.clock import show

    if context["dag_run"]["state"] not in ("queued", "running"):
        return  # it failed before, and that was told
    run, missed = context["dag_run"], _instant(context["deadline"]["deadline_time"])
    dag_id, run_id = run["dag_id"], run["dag_run_id"]
    # What the other callbacks are given, as far as they are needed here.
    found = SimpleNamespace(clear_number=0)
    known = cast("Context", {"dag": SimpleNamespace(dag_id=dag_id), "run_id": run_id, "dag_run": found})
    await asyncio.to_thread(
        _say,
        known,
        f"late:{dag_id}",
        occurrence(known),
        Severity.WARNING,
        f"{dag_id} is late: it has not ended in time",
        f"Queued at {show(_instant(run['queued_at']))}, to end by {show(missed)}; it is {run['state']}.",
        f"See at which task it is and what its log says; it runs on. Runbook: docs/runbooks/{dag_id}.md",
        since=missed,
    )


def _instant(value: datetime | str) -> datetime:
    # Airflow's context has been through JSON in parts.
    return datetime.fromisoformat(value) if isinstance(value, str) else value


def _is_scheduled(context: "Context") -> bool:
    dag: Any = context["dag"]
    return getattr(getattr(dag, "timetable", None), "expression", None) is not None


def inform(
    context: "Context", what: str, why: str, todo: str, *, good: bool = False, thread: str = "", link: str = ""
) -> str | None:
    """Tell the on-call channel something of a run that is no failure (`good`: nobody has to look).

    `thread` is the key of its thread, by default one a DAG; `link` is what "Open the run" opens instead. Told once for
    one run and `what`. Like an alert it is written first, and never stops the task. Answers Slack's time stamp of the
    message, None while Slack has not taken it.
    """
    from payme_ops.foundation.alert import Severity, message

    severity, key = Severity.INFO if good else Severity.WARNING, thread_of(context, thread)
    told, _ = _say(context, key, f"{occurrence(context)}/{what}", severity, what, why, todo, link)
    return _or_none(lambda: message(_ops_database(), told))


def tell_once(
    context: "Context", key: str, occurrence: str, what: str, why: str, todo: str, since: datetime
) -> "Outcome":
    """Tell something good to know, once for that occurrence, whichever run says it. Answers what became of it."""
    from payme_ops.foundation.alert import Severity

    return _say(context, key, occurrence, Severity.INFO, what, why, todo, since=since)[1]


def thread_of(context: "Context", thread: str = "") -> str:
    """The key under which a run says something."""
    return thread or f"run_says:{_dag_id(context)}"


def answer_page(context: "Context") -> str:
    """Where a question of this task is answered."""
    return f"{_pages(context)[2]}/tasks/{context['ti'].task_id}/required_actions"


def begun(context: "Context", state: str, what: str, why: str, todo: str) -> None:
    """Tell of a state that lasts, once until `over`, however many runs find it; it has a thread of its own."""
    from payme_ops.foundation.alert import Severity

    key = _state_key(context, state)
    if key not in _standing(key):
        _say(context, key, occurrence(context), Severity.CRITICAL, what, why, todo)


def over(context: "Context", state: str, what: str) -> None:
    """Tell that the state has ended, if anybody was told that it had begun."""
    from payme_ops.foundation.alert import Severity

    key = _state_key(context, state)
    if key in (told := _standing(key)):
        _say(context, key, f"{told[key]}/over", Severity.INFO, what, "What it was stands above.", "Nothing")


def _state_key(context: "Context", state: str) -> str:
    return f"state:{_dag_id(context)}:{state}"


def _standing(key: str) -> dict[str, str]:
    """What was begun and is not over; nothing while the ops database is away: twice is better than never."""
    from payme_ops.foundation.alert import standing

    return _or_none(lambda: standing(_ops_database(), key)) or {}


def _say(
    context: "Context",
    key: str,
    occurrence: str,
    severity: "Severity",
    what: str,
    why: str,
    todo: str,
    link: str = "",
    since: datetime | None = None,
) -> "tuple[Alert, Outcome]":
    from payme_ops.foundation.alert import Alert, raise_alert
    from payme_ops.foundation.settings import AlertSettings
    from payme_ops.orchestration import sentry

    _, page, run = _pages(context)
    alert = Alert(
        key=key,
        occurrence=occurrence,
        severity=severity,
        what=what,
        why=why,
        since=since or utc_now(),
        next=todo,
        owner=_setting("PAYME_OPS__ALERT__OWNER", AlertSettings().owner),
        runbook=page,
        link=link or run,
    )
    tags = _tags(context)
    outcome = raise_alert(
        _or_none(_ops_database),
        alert,
        _or_none(slack),
        lambda told: _or_none(functools.partial(sentry.capture_unsent, told, tags)),
        capture_if_waiting=True,
    )
    _log.info("alert %s for %s: %s", alert.key, alert.occurrence, outcome)
    return alert, outcome


def _pages(context: "Context") -> tuple[str, str, str]:
    """The DAG, its page (Airflow shows the runbook there as its documentation), and the run's."""
    from airflow.sdk.configuration import conf

    dag_id = _dag_id(context)
    page = f"{conf.get('api', 'base_url', fallback='http://localhost:8080').rstrip('/')}/dags/{dag_id}"
    return dag_id, page, f"{page}/runs/{quote(context['run_id'], safe='')}"


def _or_none(find: Callable[[], _Found]) -> _Found | None:
    """What cannot be found out must not keep the rest from being told."""
    try:
        return find()
    except Exception:
        _log.exception("%s failed; the alert goes on without", getattr(find, "__name__", "a part of the alert"))
        return None


def _ops_database() -> str:
    from payme_ops.orchestration.connections import ops_db

    return ops_db()


def slack() -> "Slack":
    """The on-call channel, by the connection payme_slack as it is now. Raises as connections.require does."""
    from payme_ops.foundation.settings import SlackSettings
    from payme_ops.foundation.slack import Slack
    from payme_ops.orchestration.connections import slack_client

    channel = _setting("PAYME_OPS__SLACK__CHANNEL", SlackSettings().channel)
    return Slack(slack_client(_SLACK_SECONDS), channel)


def slack_or_none() -> "Slack | None":
    """Slack, or None where its connection cannot be had: what is written is sent by the watchdog then."""
    return _or_none(slack)


def _setting(variable: str, default: str) -> str:
    # Not through settings.load(): a run that failed because of its settings has to be told too.
    return os.environ.get(variable) or default


def _alert(context: "Context") -> "Alert":
    from payme_ops.foundation.alert import Alert, Severity
    from payme_ops.foundation.settings import AlertSettings

    task, error, before = context.get("ti"), _error(context), _failed_before(context)
    dag_id, page, link = _pages(context)
    first = f"{', '.join(before)} failed first; why stands in its log.\n" if before else ""
    return Alert(
        key=f"run_failed:{dag_id}",
        occurrence=occurrence(context),
        severity=Severity.CRITICAL,
        what=f"{dag_id} failed{_in_task(task, before)}",
        why=first + _why(context, error),
        since=_failed_at(task),
        next=_next(dag_id, getattr(error, "remedy", "")),
        owner=_setting("PAYME_OPS__ALERT__OWNER", AlertSettings().owner),
        runbook=page,
        link=link,
    )


def _next(dag_id: str, remedy: str) -> str:
    first = f"{remedy[:1].upper()}{remedy[1:].rstrip('.')}" or "Look at the first three things in the runbook"
    # Some say themselves what to clear, perhaps another task or none.
    again = "" if re.search(r"\bclear\b", remedy) else "; then clear the failed task to run it again"
    return f"{first}{again}. Runbook: docs/runbooks/{dag_id}.md"


def _dag_id(context: "Context") -> str:
    return str(context["dag"].dag_id)


def occurrence(context: "Context") -> str:
    """One run; one that was cleared and fails again is told again."""
    cleared = getattr(context.get("dag_run"), "clear_number", 0) or 0
    return f"{_dag_id(context)}/{context['run_id']}" + (f"/cleared {cleared}" if cleared else "")


def _in_task(task: Any, before: list[str]) -> str:
    if task is None:
        return ""
    first = f" in {', '.join(before)}, then" if before else ""
    mapped = f"[{task.map_index}]" if (task.map_index or 0) >= 0 and task.map_index is not None else ""
    return f"{first} in {task.task_id}{mapped}, try {task.try_number}"


def _failed_before(context: "Context") -> list[str]:
    """Tasks of the run that had failed before the one that we are told of: they were killed and told nobody, or speak
    at this moment. As a DAG's callback we are told of the last that failed.
    """
    task, run_id = context.get("ti"), context["run_id"]
    if task is None:
        return []
    states = _or_none(lambda: task.get_task_states(dag_id=_dag_id(context), run_ids=[run_id])[run_id]) or {}
    of_us = (task.task_id, f"{task.task_id}_{task.map_index}")
    return sorted(name for name, state in states.items() if state == "failed" and name not in of_us)


def _error(context: "Context") -> BaseException | None:
    error = context.get("exception")
    return error if isinstance(error, BaseException) else None


def _why(context: "Context", error: BaseException | None) -> str:
    if error is None:
        reason = str(context.get("reason") or "task_failure")
        return _WITHOUT_ERROR.get(reason, reason)
    lines = f"{type(error).__name__}: {error}".strip().splitlines()
    return "\n".join(lines[:_ERROR_LINES])


def _failed_at(task: Any) -> datetime:
    ended = getattr(task, "end_date", None)
    return ended if isinstance(ended, datetime) else utc_now()


def _tags(context: "Context") -> dict[str, str]:
    tags = {"dag_id": _dag_id(context), "run_id": str(context["run_id"])}
    task = context.get("ti")
    if task is not None:
        tags |= {"task_id": task.task_id, "try_number": str(task.try_number), "operator": type(task.task).__name__}
        if task.map_index is not None and task.map_index >= 0:
            tags["map_index"] = str(task.map_index)
    return tags
