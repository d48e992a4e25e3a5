"""What Sentry has heard of the application, and whether it still hears.

After a full quota Sentry takes events and drops them, so no errors means nothing by itself: a sentinel event is sent by
the application's own way in, and looked for. Every function raises Unavailable (5xx, 429) or ServiceRefused.

Lists come in pages, whose Link header says whether there is another. Only its cursor is used, never its address: the
token belongs to the host it was made for. A 429 that asks for a moment is waited out; a longer one is said.
"""

import re
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from itertools import islice
from typing import Any
from urllib.parse import quote, urlencode

from urllib3.exceptions import LocationParseError
from urllib3.util import parse_url

from payme_ops.foundation import http
from payme_ops.foundation.clock import utc_now
from payme_ops.foundation.errors import ServiceRefused, SettingsError, Unavailable

_SERVICE = "Sentry"
_CUT, _SHOWN = 80, 10
PAGE, _MAX_PAGES = 100, 50
# A 429 asks for a second or two as a rule; what asks for longer is for whoever called to say.
_SHORT_SECONDS, _WAITS = 5, 3
_LINK = re.compile(r'<[^>]*>((?:;\s*\w+="[^"]*")+)')
_LINK_FIELD = re.compile(r'(\w+)="([^"]*)"')
NO_SENTINEL = "!payme_ops.sentinel:true"
# Sentry takes a message of any level for an error, too, unless it is asked for what was raised.
ERRORS = "event.type:error"


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


@dataclass(frozen=True)
class Issue:
    """One kind of error: `count` events in the time that was asked for. `title` and `culprit` are text from outside."""

    id: str
    title: str
    culprit: str
    count: int
    first_seen: datetime


def errors_by_minute(api: SentryApi, since: datetime, until: datetime) -> dict[str, int]:
    """Errors of each minute, by its beginning (ISO, UTC); of the one that `until` is in, so far."""
    return {at.isoformat(): count for at, count in _series(api, since, until, 60).items()}


def errors_by_hour(api: SentryApi, since: datetime, until: datetime) -> dict[datetime, int]:
    """Errors of each hour, by its beginning; of the hour that `until` is in, so far."""
    return _series(api, since, until, 3600)


def _series(api: SentryApi, since: datetime, until: datetime, seconds: int) -> dict[datetime, int]:
    """Errors by intervals. docs.sentry.io/api: query explore events as a time series. The token needs org:read.

    An answer that lacks an interval that is over is refused: Sentry takes another one when it does not like ours.
    """
    what = {
        "dataset": "errors",
        "project": api.project,
        "yAxis": "count()",
        "interval": str(seconds),
        "query": f"{ERRORS} {NO_SENTINEL}",
        "start": _utc(since),
        "end": _utc(until),
    }
    path = f"/api/0/organizations/{quote(api.organization)}/events-timeseries/"
    found: dict[datetime, int] = {}
    match ask(api, "GET", path, "org:read", query=what).body.get("timeSeries"):
        case [{"values": list() as values}]:
            for one in values:
                match one:
                    case {"timestamp": int() | float() as at, "value": int() | float() as count} if count >= 0:
                        found[datetime.fromtimestamp(at / 1000, UTC)] = int(count)
                    case _:
                        raise _unknown("times with their counts")
        case _:
            raise _unknown("one time series")
    first, over = (int(one.timestamp()) // seconds * seconds for one in (since, until))
    wanted = {datetime.fromtimestamp(at, UTC) for at in range(first, over, seconds)}
    if missing := wanted - set(found):
        raise _unknown(f"each of {len(wanted)} intervals; {len(missing)} are missing")
    return {at: count for at, count in found.items() if at.timestamp() >= first}


def new_issues(api: SentryApi, since: datetime) -> list[NewIssue]:
    """Issues first seen since then, at most ten, the most frequent first."""
    found = issues(api, f"firstSeen:>={_utc(since)}", since, utc_now() + timedelta(minutes=1), _SHOWN)
    return [NewIssue(one.id, one.title[:_CUT]) for one in found]


def issues(api: SentryApi, query: str, since: datetime, until: datetime, most: int) -> list[Issue]:
    """Issues with events in that time, the most frequent first, at most `most` of them.

    docs.sentry.io/api: list an organization's issues. The token needs event:read.
    """
    path = f"/api/0/organizations/{quote(api.organization)}/issues/"
    what = {
        "project": api.project,
        "query": f"{query} {NO_SENTINEL}".strip(),
        "start": _utc(since),
        "end": _utc(until),
        "sort": "freq",
        "limit": str(min(most, PAGE)),
    }
    return [_issue(one) for one in islice(listed(api, path, what, "event:read"), most)]


def listed(api: SentryApi, path: str, query: Mapping[str, str], scope: str) -> Iterator[dict[str, Any]]:
    """What a list holds, page after page as it is needed."""
    cursor = ""
    for _ in range(_MAX_PAGES):
        answer = ask(api, "GET", path, scope, query={**query, **({"cursor": cursor} if cursor else {})})
        # Every list has the header, an empty one too: what has neither is no empty list, but no list.
        if not answer.items and "link" not in answer.headers:
            raise _unknown("a list")
        for one in answer.items:
            if not isinstance(one, dict):
                raise _unknown("a list of objects")
            yield one
        following = _next_cursor(answer.headers.get("link", ""))
        if following in ("", cursor):
            return
        cursor = following
    raise ServiceRefused("Sentry's list does not end", expected=f"{_MAX_PAGES} pages at most", found=f"more of {path}")


def ask(
    api: SentryApi,
    method: str,
    path: str,
    scope: str,
    *,
    query: Mapping[str, str] | None = None,
    body: object = None,
    sleep: Callable[[float], None] = time.sleep,
) -> http.Answer:
    """An answer that says yes. `scope` is what the token needs for it, named where Sentry says 401 or 403."""
    url = f"{api.url}{path}" + (f"?{urlencode(query)}" if query else "")
    for number in range(_WAITS + 1):
        answer = http.call(_SERVICE, method, url, authorization=f"Bearer {api.token}", body=body)
        if answer.status != 429:
            break
        asked = _asked_seconds(answer.headers)
        if asked is None or asked > _SHORT_SECONDS or number == _WAITS:
            raise Unavailable(
                f"Sentry asks us to wait before {method} {path}",
                expected="an answer",
                found="status 429" + (f", asked to wait {asked} s" if asked is not None else ""),
                remedy="ask again after that",
            )
        sleep(asked)
    _require(method, path, scope, answer)
    return answer


def _require(method: str, path: str, scope: str, answer: http.Answer) -> None:
    found = f"status {answer.status} {str(answer.body.get('detail') or '')[:_CUT]}".rstrip(" .")
    if answer.status == 401:
        raise ServiceRefused(
            f"Sentry does not know the token ({method} {path})",
            expected=f"a token with {scope}",
            found=found,
            remedy=f"make one in Sentry (Settings, Developer Settings, internal integration) with {scope}",
        )
    if answer.status == 403:
        raise ServiceRefused(
            f"Sentry's token may not {method} {path}",
            expected=f"the scope {scope}",
            found=found,
            remedy=f"give the token {scope}, and its integration the project",
        )
    if answer.status == 404:
        raise ServiceRefused(
            f"Sentry has nothing at {path}",
            expected="the slugs of an organization and a project",
            found=found,
            remedy="compare them with Sentry's settings; a token of another organization sees nothing, too",
        )
    if answer.status == 400:
        raise ServiceRefused(f"Sentry refused {method} {path}", expected="status 2xx", found=f"{found} {_said(answer)}")
    http.require_yes(_SERVICE, method, path, answer)


def _said(answer: http.Answer) -> str:
    """Which field Sentry does not like."""
    return "; ".join(f"{name}: {str(value)[:_CUT]}" for name, value in sorted(answer.body.items()) if name != "detail")


def _asked_seconds(headers: Mapping[str, str]) -> int | None:
    """How long a 429 asks us to wait; the documents promise the time at which the next window begins."""
    if (seconds := _natural(headers.get("retry-after", ""))) is not None:
        return seconds
    at = _natural(headers.get("x-sentry-rate-limit-reset", ""))
    return None if at is None else max(1, at - int(time.time()))


def _natural(text: str) -> int | None:
    return int(text) if text.isascii() and text.isdigit() and len(text) <= 12 else None


def _next_cursor(link: str) -> str:
    """The cursor of the next page; "" when there is none."""
    for fields in _LINK.findall(link):
        known = dict(_LINK_FIELD.findall(fields))
        if known.get("rel") == "next":
            return known.get("cursor", "") if known.get("results") == "true" else ""
    return ""


def _issue(said: Mapping[str, Any]) -> Issue:
    match said:
        case {"id": str() as number, "title": str() as title, "count": str() as count, "firstSeen": str() as first}:
            try:
                seen = datetime.fromisoformat(first)
                if count.isascii() and count.isdigit() and seen.tzinfo:
                    return Issue(number[:_CUT], title[:500], str(said.get("culprit") or "")[:500], int(count), seen)
            except ValueError:
                pass
    raise _unknown("issues with id, title, count and firstSeen")


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


def _utc(moment: datetime) -> str:
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S")


def _unknown(expected: str) -> ServiceRefused:
    return ServiceRefused("Sentry's answer is not understood", expected=expected, found="something else")
