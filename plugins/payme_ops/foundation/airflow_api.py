"""Airflow's API, read by an account that may only read: its event log, tasks of runs as they stand, what is paused,
and what doctor looks at.

The log has two kinds of entries. People's calls are written before they are checked, so a refused one is there, too;
`extra` is what the call was given. What a task came to is written when the task itself says so, and only then: nobody
can make such an entry by the API.
"""

import uuid
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any
from urllib.parse import urlencode

from payme_ops.foundation import http
from payme_ops.foundation.errors import ServiceRefused

_SERVICE = "Airflow's API"
_PAGE, _MAX_PAGES = 100, 20


@dataclass(frozen=True)
class AirflowApi:
    """Base URL, and an account of the least role that may read the event log (docs/roles.md: `auditor`)."""

    url: str
    login: str
    password: str = field(repr=False)


@dataclass(frozen=True)
class Reader:
    """The API, signed in to."""

    url: str
    token: str = field(repr=False)


@dataclass(frozen=True)
class Event:
    """One entry of the log. `extra` is what the API was given, as JSON text; `attempt` and `index` are a task's own."""

    at: datetime
    event: str
    user: str
    dag: str
    run: str
    task: str
    extra: str
    attempt: int | None = None
    index: int = -1


@dataclass(frozen=True)
class Task:
    """A task of a run as it stands. `born` is when this try of it was made: with its run, by a retry or by a clear."""

    dag: str
    run: str
    task: str
    state: str
    attempt: int
    index: int
    operator: str
    born: datetime
    ended: datetime | None


@dataclass(frozen=True)
class Dag:
    """A DAG whose file is there. `scheduled` ones begin by themselves: by time or by an asset."""

    id: str
    paused: bool
    scheduled: bool


@dataclass(frozen=True)
class Waiting:
    """A task that an executor was given and nobody has begun: its queue, and since when."""

    task: str
    queue: str
    since: datetime


def sign_in(api: AirflowApi) -> Reader:
    """Raises Unavailable, ServiceRefused."""
    body = {"username": api.login, "password": api.password}
    answer = http.expect(_SERVICE, "POST", f"{api.url}/auth/token", body=body)
    return Reader(api.url, str(answer.get("access_token", "")))


def is_paused(reader: Reader, dag: str) -> bool | None:
    """Whether a DAG is paused; None where there is none, or its file is gone. Raises as `sign_in`."""
    url = f"{reader.url}/api/v2/dags/{dag}"
    answer = http.call(_SERVICE, "GET", url, authorization=f"Bearer {reader.token}")
    if answer.status == 404:
        return None
    http.require_yes(_SERVICE, "GET", url, answer)
    paused = answer.body.get("is_paused")
    if not isinstance(paused, bool):
        raise _not_understood('"is_paused"', "something else")
    return None if answer.body.get("is_stale") else paused


def dags(reader: Reader) -> list[Dag]:
    """Every DAG whose file is there. Raises as `sign_in`."""
    found = _pages(reader, "/dags", "dags", {"exclude_stale": "true", "order_by": "dag_id"})
    return [Dag(str(one["dag_id"]), one["is_paused"] is True, bool(one.get("timetable_summary"))) for one in found]


def pools(reader: Reader) -> dict[str, int]:
    """Slots of each pool by its name; -1: without a limit. Raises as `sign_in`."""
    return {str(one["name"]): int(one["slots"]) for one in _pages(reader, "/pools", "pools", {"order_by": "id"})}


def slots_wanted(reader: Reader, dag: str) -> dict[str, int]:
    """The pools that tasks of that DAG name, and the most slots that one of them takes. Raises as `sign_in`."""
    url = f"{reader.url}/api/v2/dags/{dag}/tasks"
    answer = http.expect(_SERVICE, "GET", url, authorization=f"Bearer {reader.token}")
    found: dict[str, int] = {}
    for one in answer.get("tasks") or []:
        name = str(one.get("pool"))
        found[name] = max(found.get(name, 0), int(one.get("pool_slots") or 1))
    return found


def import_errors(reader: Reader) -> list[str]:
    """Files that cannot be read as DAGs. Raises as `sign_in`."""
    found = _pages(reader, "/importErrors", "import_errors", {"order_by": "id"})
    return [str(one.get("filename")) for one in found]


def stored_connections(reader: Reader) -> list[str] | None:
    """Names of connections in Airflow's own database; None where this account may not see them. Raises as `sign_in`."""
    url = f"{reader.url}/api/v2/connections"
    answer = http.call(_SERVICE, "GET", f"{url}?limit={_PAGE}", authorization=f"Bearer {reader.token}")
    if answer.status == 403:
        return None
    http.require_yes(_SERVICE, "GET", url, answer)
    found = answer.body.get("connections")
    if not isinstance(found, list):
        raise _not_understood('"connections"', "something else")
    return [str(one.get("connection_id")) for one in found]


def waiting(reader: Reader) -> list[Waiting]:
    """Tasks that wait for a worker of their queue. Raises as `sign_in`."""
    found = _pages(reader, "/dags/~/dagRuns/~/taskInstances", "task_instances", {"state": "queued", "order_by": "id"})
    return [
        Waiting(f"{one['dag_id']}.{one['task_id']}", str(one.get("queue")), datetime.fromisoformat(one["queued_when"]))
        for one in found
        if one.get("queued_when")
    ]


def calls(reader: Reader, kinds: Collection[str], since: datetime) -> list[Event]:
    """People's calls of these kinds since then, of all DAGs, oldest first. Raises as `sign_in`; also of over 2,000."""
    # Not by DAG and run: a call for many runs at once is logged without them, and names them in its body.
    asked = {"included_events": list(kinds), "after": since.isoformat(), "order_by": "event_log_id"}
    return [_event(one) for one in _pages(reader, "/eventLogs", "event_logs", asked)]


def endings(reader: Reader, runs: Sequence[str], states: Collection[str]) -> list[Event]:
    """What tasks of these runs came to, as they said themselves; other runs may be among them. Raises as `calls`."""
    asked = {"included_events": list(states), "run_id_pattern": "|".join(runs), "order_by": "event_log_id"}
    return [_event(one) for one in _pages(reader, "/eventLogs", "event_logs", asked)]


def tasks(reader: Reader, runs: Mapping[str, str]) -> list[Task]:
    """The tasks of these runs (DAG to run id). Raises as `calls`."""
    asked = {"run_id_pattern": "|".join(sorted({*runs.values()})), "order_by": "id"}
    found = [_task(one) for one in _pages(reader, "/dags/~/dagRuns/~/taskInstances", "task_instances", asked)]
    return [one for one in found if runs.get(one.dag) == one.run]


def _pages(reader: Reader, path: str, name: str, asked: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    for number in range(_MAX_PAGES):
        query = urlencode({**asked, "limit": _PAGE, "offset": number * _PAGE}, doseq=True)
        answer = http.expect(
            _SERVICE, "GET", f"{reader.url}/api/v2{path}?{query}", authorization=f"Bearer {reader.token}"
        )
        page = answer.get(name)
        if not isinstance(page, list):
            raise _not_understood(f'"{name}"', "something else")
        yield from page
        if len(page) < _PAGE:
            return
    raise ServiceRefused(
        f"Airflow's answer to {path} is longer than is read",
        expected=f"at most {_PAGE * _MAX_PAGES} entries",
        found="more",
        remedy="look in the UI under Browse, Audit Log: what was not read may be what counts",
    )


def _event(one: dict[str, Any]) -> Event:
    names, index = ("event", "owner", "dag_id", "run_id", "task_id", "extra"), one.get("map_index")
    event, user, dag, run, task, extra = (str(one.get(name) or "") for name in names)
    at, index = datetime.fromisoformat(str(one["when"])), -1 if index is None else index
    return Event(at, event, user, dag, run, task, extra, one.get("try_number"), index)


def _task(one: dict[str, Any]) -> Task:
    ended = one.get("end_date")
    return Task(
        dag=str(one["dag_id"]),
        run=str(one["dag_run_id"]),
        task=str(one["task_id"]),
        state=str(one.get("state") or ""),
        attempt=int(one["try_number"]),
        index=int(one["map_index"]),
        operator=str(one.get("operator") or ""),
        born=_born(str(one["id"])),
        ended=datetime.fromisoformat(ended) if ended else None,
    )


def _born(number: str) -> datetime:
    """A task's id is a UUID of version 7, which begins with the time; a clear gives it a new one and changes no other
    time of it.
    """
    found = uuid.UUID(number)
    if found.version != 7:
        raise _not_understood("ids of tasks that hold their time", f"version {found.version}")
    return datetime.fromtimestamp((found.int >> 80) / 1000, UTC)


def _not_understood(expected: str, found: str) -> ServiceRefused:
    return ServiceRefused("Airflow's answer is not understood", expected=expected, found=found)
