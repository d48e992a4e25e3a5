"""What Sentry has heard of the application, and whether it still hears.

After a full quota Sentry takes events and drops them, so no errors means nothing by itself: a sentinel event is sent by
the application's own way in, and looked for. Every function raises Unavailable (5xx, 429) or ServiceRefused.
"""

import uuid
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any
from urllib.parse import quote, urlencode

from urllib3.exceptions import LocationParseError
from urllib3.util import parse_url

from payme_ops.foundation import http
from payme_ops.foundation.errors import ServiceRefused, SettingsError

_SERVICE = "Sentry"
_CUT, _SHOWN = 80, 10


@dataclass(frozen=True)
class SentryApi:
    """Base URL, token (org:read, event:read), organization and project slugs; the DSN events are sent to."""

    url: str
    token: str = field(repr=False)
    organization: str
    project: str
    dsn: str = field(repr=False)


@dataclass(frozen=True)
class NewIssue:
    """An issue that was first seen in that time."""

    id: str
    title: str


def errors_by_minute(api: SentryApi, since: datetime, until: datetime) -> dict[str, int]:
    """Errors of each minute, by its beginning (ISO, UTC). docs.sentry.io/api: organization events as a time series."""
    query = {
        "project": api.project,
        "yAxis": "count()",
        "interval": "1m",
        "query": "event.type:error !payme_ops.sentinel:true",
        "start": _utc(since),
        "end": _utc(until),
    }
    said = _get(api, f"/api/0/organizations/{quote(api.organization)}/events-stats/", query).body.get("data")
    if not isinstance(said, list):
        raise _unknown('"data"')
    found = {}
    for row in said:
        match row:
            case [int() | float() as at, [{"count": int() as count}, *_]] if count >= 0:
                found[datetime.fromtimestamp(at, UTC).isoformat()] = count
            case _:
                raise _unknown("minutes with their counts")
    return found


def new_issues(api: SentryApi, since: datetime) -> list[NewIssue]:
    """Issues first seen since then, at most ten. docs.sentry.io/api: list a project's issues."""
    path = f"/api/0/projects/{quote(api.organization)}/{quote(api.project)}/issues/"
    query = {"query": f"firstSeen:>={_utc(since)} !payme_ops.sentinel:true", "limit": str(_SHOWN)}
    return [
        NewIssue(str(one.get("id"))[:_CUT], str(one.get("title"))[:_CUT])
        for one in _get(api, path, query).items
        if isinstance(one, dict)
    ][:_SHOWN]


def send_sentinel(api: SentryApi) -> str:
    """Send an event that only says that it is one; answers its id. By the store endpoint of the DSN."""
    try:
        parts = parse_url(api.dsn)
    except LocationParseError:
        parts = parse_url("")
    project = (parts.path or "").rsplit("/", 1)[-1]
    if not parts.auth or not parts.host or not project.isdigit():
        raise SettingsError(
            "the connection payme_sentry has no usable DSN",
            expected="https://<key>@<host>/<number> in the extra field dsn",
            found="something else",
            remedy="copy it from Sentry's project settings",
        )
    event = uuid.uuid4().hex
    port = f":{parts.port}" if parts.port else ""
    http.expect(
        _SERVICE,
        "POST",
        f"{parts.scheme}://{parts.host}{port}/api/{project}/store/",
        headers={"X-Sentry-Auth": f"Sentry sentry_version=7, sentry_key={parts.auth.split(':')[0]}"},
        body={
            "event_id": event,
            "level": "info",
            "message": "payme-ops sentinel: Sentry hears",
            "fingerprint": ["payme-ops-sentinel"],
            "tags": {"payme_ops.sentinel": "true"},
        },
    )
    return event


def heard(api: SentryApi, event: str) -> bool:
    """Whether that event can be retrieved. docs.sentry.io/api: retrieve an event for a project."""
    path = f"/api/0/projects/{quote(api.organization)}/{quote(api.project)}/events/{event}/"
    answer = http.call(_SERVICE, "GET", f"{api.url}{path}", authorization=f"Bearer {api.token}")
    if answer.status == 404:
        return False
    http.require_yes(_SERVICE, "GET", f"{api.url}{path}", answer)
    return answer.body.get("eventID") == event


def _get(api: SentryApi, path: str, query: dict[str, Any]) -> http.Answer:
    url = f"{api.url}{path}?{urlencode(query)}"
    answer = http.call(_SERVICE, "GET", url, authorization=f"Bearer {api.token}")
    http.require_yes(_SERVICE, "GET", url, answer)
    return answer


def _utc(moment: datetime) -> str:
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S")


def _unknown(expected: str) -> ServiceRefused:
    return ServiceRefused("Sentry's answer is not understood", expected=expected, found="something else")
