"""Airflow's event log, read by an account that may only read: who did what to a run by hand."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any
from urllib.parse import urlencode

from payme_ops.foundation import http
from payme_ops.foundation.errors import ServiceRefused

_SERVICE = "Airflow's API"
_PAGE, _MAX_PAGES = 100, 20


@dataclass(frozen=True)
class AirflowApi:
    """Base URL, and an account of the least role that may read the event log (`viewer`)."""

    url: str
    login: str
    password: str = field(repr=False)


@dataclass(frozen=True)
class Event:
    """One entry of the log. `extra` is what the API was given, as JSON text."""

    at: datetime
    event: str
    user: str
    dag: str
    run: str
    task: str
    extra: str


def events(api: AirflowApi, kinds: Sequence[str], since: datetime) -> list[Event]:
    """Entries of these kinds since then, oldest first. Raises Unavailable, ServiceRefused; also of more than 2,000."""
    body = {"username": api.login, "password": api.password}
    token = http.expect(_SERVICE, "POST", f"{api.url}/auth/token", body=body).get("access_token", "")
    found: list[Event] = []
    # Not by DAG and run: a call for many runs at once is logged without them, and names them in its body.
    asked = {"included_events": list(kinds), "after": since.isoformat(), "limit": _PAGE, "order_by": "event_log_id"}
    for number in range(_MAX_PAGES):
        query = urlencode({**asked, "offset": number * _PAGE}, doseq=True)
        url = f"{api.url}/api/v2/eventLogs?{query}"
        page = http.expect(_SERVICE, "GET", url, authorization=f"Bearer {token}").get("event_logs")
        if not isinstance(page, list):
            raise ServiceRefused("Airflow's answer is not understood", expected='"event_logs"', found="something else")
        found += [_event(one) for one in page]
        if len(page) < _PAGE:
            return found
    raise ServiceRefused(
        "Airflow's event log is longer than is read",
        expected=f"at most {_PAGE * _MAX_PAGES} entries since {since.isoformat()}",
        found="more",
        remedy="look in the UI under Browse, Audit Log: what was not read may be what counts",
    )


def _event(one: dict[str, Any]) -> Event:
    names = ("event", "owner", "dag_id", "run_id", "task_id", "extra")
    return Event(datetime.fromisoformat(str(one["when"])), *(str(one.get(name) or "") for name in names))
