"""A stand-in for Sentry's ingest: POST /api/<project>/envelope/ and /store/, as the SDKs send them.

    python -m sandbox.sentry --port 8091 --state .demo/sentry.jsonl

`GET /` lists issues (events with one fingerprint are one issue) with a page for each event, and the cron monitors with
their check-ins, which come in envelopes or by /api/<project>/cron/<monitor>/<key>/?status=ok. `GET /events.json` gives
the events, `GET /items.json` every envelope item (check-ins, sessions, transactions, client reports) as it came.

Project 1 is Airflow's, project 2 the application's. Sentry's own API below /api/0/ is in sandbox/sentry_api.py; `POST
/access` says what tokens may do and how long its pages are. `POST /quota {"full": true}` makes it take events and drop
them.
"""

import html
import json
import re
import uuid
from collections import Counter
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

from sandbox import sentry_api
from sandbox.sentry_api import issue_of, title_of
from sandbox.standin import Answer, Journal, Record, Refused, Request, Server, main, page

_EAT = ZoneInfo("Africa/Nairobi")
_INGEST = re.compile(r"/api/(\d+)/(envelope|store)/")
_CHECK_IN = re.compile(r"/api/(\d+)/cron/([a-z0-9_-]+)/\w+/")
_API = re.compile(r"/api/0/((?:organizations|projects)/.+)/")
_STATUSES = ("ok", "error", "in_progress")
_EVENT_PAGE = re.compile(r"/events/([0-9a-f]{32})")
_SHOWN_BREADCRUMBS = 30
_SHOWN_CHECK_INS = 20


def make_server(port: int, state: Path) -> Server:
    """A server on 127.0.0.1 (port 0: any free one), not yet serving."""
    journal, quota, access = Journal(state), {"full": False}, sentry_api.Access()

    def route(request: Request) -> Answer:
        if request.method == "POST" and request.path == "/quota":
            quota["full"] = request.json().get("full") is True
            return Answer(quota)
        if request.method == "POST" and request.path == "/access":
            return sentry_api.control(access, request)
        if found := _API.fullmatch(request.path):
            return sentry_api.answer(journal, access, request, found[1])
        if quota["full"] and request.method == "POST" and _INGEST.fullmatch(request.path):
            return Answer({})  # as Sentry does: taken, and dropped
        return _route(journal, request)

    return Server(port, route, lambda path: path.startswith("/api/"), {"detail": "told to fail"})


def _route(journal: Journal, request: Request) -> Answer:
    if request.method == "POST" and (found := _INGEST.fullmatch(request.path)):
        return _ingest(journal, request, found[1], found[2])
    if request.method in ("GET", "POST") and (found := _CHECK_IN.fullmatch(request.path)):
        return _check_in(journal, request, found[1], found[2])
    if request.method == "GET":
        return _page(journal, request)
    raise Refused(404, {"detail": f"nothing at {request.method} {request.path}"})


def _page(journal: Journal, request: Request) -> Answer:
    match request.path:
        case "/":
            return page(f"Sentry: {len(_events(journal))} events", _STYLE, _render_issues(journal.records()))
        case "/events.json":
            return Answer([record["payload"] for record in _events(journal)])
        case "/items.json":
            return Answer(journal.records())
        case path if found := _EVENT_PAGE.fullmatch(path):
            for record in _events(journal):
                if record["payload"].get("event_id") == found[1]:
                    return page(title_of(record["payload"])[0], _STYLE, _render_event(record))
    raise Refused(404, {"detail": f"nothing at {request.method} {request.path}"})


def _events(journal: Journal) -> list[Record]:
    return [record for record in journal.records() if record["type"] == "event"]


# -- taking in --------------------------------------------------------------------------------------------------


def _ingest(journal: Journal, request: Request, project: str, endpoint: str) -> Answer:
    if "sentry_key=" not in request.headers.get("X-Sentry-Auth", "") and not request.query.get("sentry_key"):
        raise Refused(403, {"detail": "missing authorization information", "causes": ["no sentry_key"]})
    try:
        if endpoint == "store":
            event = request.json()
            header, items = {"event_id": event.get("event_id")}, [("event", event)]
        else:
            header, items = parse_envelope(request.body)
    except (ValueError, AttributeError) as error:
        raise Refused(400, {"detail": "invalid event envelope", "causes": [str(error)]}) from None
    for kind, payload in items:
        _keep(journal, project, kind, payload)
    return Answer({"id": header["event_id"]} if header.get("event_id") else {})


def _check_in(journal: Journal, request: Request, project: str, monitor: str) -> Answer:
    status = request.query.get("status", "")
    if status not in _STATUSES:
        raise Refused(400, {"detail": f"status {status!r} is not one of {', '.join(_STATUSES)}"})
    number = request.query.get("check_in_id") or uuid.uuid4().hex
    _keep(journal, project, "check_in", {"monitor_slug": monitor, "check_in_id": number, "status": status})
    return Answer({"id": number}, 202)


def _keep(journal: Journal, project: str, kind: str, payload: object) -> None:
    received = datetime.now(UTC).isoformat()
    journal.append(lambda: {"received": received, "project": project, "type": kind, "payload": payload})


def parse_envelope(body: bytes) -> tuple[dict[str, Any], list[tuple[str, Any]]]:
    """Header and (type, payload) of each item; a payload that is no JSON is given as its size.

    Raises ValueError for anything that is not an envelope.
    """
    line, _, rest = body.partition(b"\n")
    header = _object(line, "envelope header")
    items = []
    while rest.strip():
        line, _, rest = rest.lstrip(b"\n").partition(b"\n")
        item = _object(line, "item header")
        if "length" in item:
            size = int(item["length"])
            if size > len(rest):
                raise ValueError(f"item of {size} bytes, {len(rest)} left")
            payload, rest = rest[:size], rest[size:]
        else:
            payload, _, rest = rest.partition(b"\n")
        items.append((str(item.get("type", "")), _payload(payload)))
    return header, items


def _object(line: bytes, what: str) -> dict[str, Any]:
    found = json.loads(line)
    if not isinstance(found, dict):
        raise ValueError(f"{what} is no object")
    return found


def _payload(data: bytes) -> Any:
    try:
        return json.loads(data)
    except ValueError:
        return {"attachment_bytes": len(data)}


# -- issues and events as pages ---------------------------------------------------------------------------------


def _values(part: object) -> list[dict[str, Any]]:
    values = part.get("values", []) if isinstance(part, dict) else part
    return [value for value in values if isinstance(value, dict)] if isinstance(values, list) else []


def _time(text: object) -> str:
    try:
        moment = (
            datetime.fromtimestamp(text, UTC) if isinstance(text, int | float) else datetime.fromisoformat(str(text))
        )
    except (ValueError, OverflowError):
        return html.escape(str(text))
    return f"{moment.replace(tzinfo=moment.tzinfo or UTC).astimezone(_EAT):%d %b %H:%M:%S} EAT"


def _render_issues(records: list[Record]) -> str:
    issues: dict[str, list[Record]] = {}
    for record in records:
        if record["type"] == "event":
            issues.setdefault(issue_of(record["payload"]), []).append(record)
    newest_first = sorted(issues.values(), key=lambda events: events[-1]["received"], reverse=True)
    rows = "".join(_issue_row(events) for events in newest_first)
    others = Counter(
        record["type"] for record in records if record["type"] not in ("event", "check_in", sentry_api.RULE)
    )
    told = ", ".join(f"{count} {kind}" for kind, count in sorted(others.items())) or "none"
    head = "<tr><th>Issue</th><th>Events</th><th>First seen</th><th>Last seen</th></tr>"
    table = f"<table><thead>{head}</thead>{rows}</table>" if rows else '<p class="empty">No events yet.</p>'
    crons = _render_monitors([one for one in records if one["type"] == "check_in" and isinstance(one["payload"], dict)])
    return _frame(f"<h1>Issues</h1>{table}{crons}<p class='others'>Other envelope items: {html.escape(told)}</p>")


def _render_monitors(check_ins: list[Record]) -> str:
    """A row for each monitor; a check-in that was begun and then ended is one, as its last says."""
    monitors: dict[str, dict[str, Record]] = {}
    for record in check_ins:
        check_in = record["payload"]
        of_monitor = monitors.setdefault(str(check_in.get("monitor_slug")), {})
        of_monitor[str(check_in.get("check_in_id"))] = record
    if not monitors:
        return ""
    head = "<tr><th>Monitor</th><th>Schedule</th><th>Check-ins, newest last</th><th>Last</th></tr>"
    rows = "".join(_monitor_row(name, list(found.values())) for name, found in sorted(monitors.items()))
    return f"<h1 class='crons'>Crons</h1><table><thead>{head}</thead>{rows}</table>"


def _monitor_row(name: str, check_ins: list[Record]) -> str:
    configs = [config for one in check_ins if isinstance(config := one["payload"].get("monitor_config"), dict)]
    parts = (configs[-1].get("schedule"), configs[-1].get("timezone", "")) if configs else ("", "")
    schedule = " ".join(str(part.get("value") if isinstance(part, dict) else part) for part in parts)
    shown = [str(record["payload"].get("status")) for record in check_ins[-_SHOWN_CHECK_INS:]]
    dots = "".join(
        f'<span class="level {_DOT.get(status, "")}" title="{html.escape(status)}"></span>' for status in shown
    )
    return (
        f"<tr><td><b>{html.escape(name)}</b></td><td>{html.escape(schedule)}</td><td>{dots}</td>"
        f"<td>{html.escape(shown[-1])}, {_time(check_ins[-1]['received'])}</td></tr>"
    )


_DOT = {"ok": "good", "in_progress": "info"}


def _issue_row(events: list[Record]) -> str:
    event = events[-1]["payload"]
    title, culprit = title_of(event)
    head, _, rest = title.partition(": ")
    return (
        f'<tr><td><span class="level {html.escape(str(event.get("level", "error")))}"></span>'
        f'<a href="/events/{html.escape(str(event.get("event_id")))}"><b>{html.escape(head)}</b></a>'
        f' <span class="place">{html.escape(culprit)}</span><div class="value">{html.escape(rest)}</div>'
        f'<div class="tags">{_tags(event, ("dag_id", "task_id", "environment"))}</div></td>'
        f"<td>{len(events)}</td><td>{_time(events[0]['received'])}</td><td>{_time(events[-1]['received'])}</td></tr>"
    )


def _render_event(record: Record) -> str:
    event = record["payload"]
    title, culprit = title_of(event)
    head, _, rest = title.partition(": ")
    errors = "".join(_render_error(value) for value in reversed(_values(event.get("exception"))))
    crumbs = _values(event.get("breadcrumbs"))[-_SHOWN_BREADCRUMBS:]
    lines = "".join(_render_breadcrumb(crumb) for crumb in reversed(crumbs))
    parts = [
        '<p><a href="/">&larr; Issues</a></p>',
        f'<h1>{html.escape(head)} <span class="place">{html.escape(culprit)}</span></h1>',
        f'<div class="value">{html.escape(rest)}</div><p class="others">{_time(event.get("timestamp"))},'
        f" event {html.escape(str(event.get('event_id')))}, project {html.escape(record['project'])}</p>",
        f'<div class="tags">{_tags(event)}</div>',
        errors,
        f"<h2>Breadcrumbs</h2><table class='crumbs'>{lines}</table>" if lines else "",
        f"<h2>Additional data</h2><pre>{_json(event['extra'])}</pre>" if event.get("extra") else "",
        f"<h2>Contexts</h2><pre>{_json(event['contexts'])}</pre>" if event.get("contexts") else "",
    ]
    return _frame("".join(parts))


def _render_error(error: Mapping[str, Any]) -> str:
    frames = (error.get("stacktrace") or {}).get("frames") or []
    rows = "".join(_frame_rows(frames))
    kind, value = html.escape(str(error.get("type"))), html.escape(str(error.get("value") or ""))
    return f"<h2>{kind}</h2><div class='value'>{value}</div><ol class='frames'>{rows}</ol>"


def _frame_rows(frames: list[dict[str, Any]]) -> Iterator[str]:
    for frame in reversed(frames):
        inside = " in-app" if frame.get("in_app") else ""
        file, function, line = (html.escape(str(frame.get(name))) for name in ("filename", "function", "lineno"))
        where = f"{file} in <b>{function}</b>, line {line}"
        code = html.escape(str(frame.get("context_line") or "").strip())
        variables = f"<pre>{_json(frame['vars'])}</pre>" if frame.get("vars") else ""
        yield f"<li class='frame{inside}'>{where}<code>{code}</code>{variables}</li>"


def _render_breadcrumb(crumb: Mapping[str, Any]) -> str:
    data = f" {json.dumps(crumb['data'], ensure_ascii=False, default=str)}" if crumb.get("data") else ""
    return (
        f"<tr><td>{html.escape(str(crumb.get('category') or crumb.get('type') or ''))}</td>"
        f"<td>{html.escape(str(crumb.get('message') or '') + data)}</td><td>{_time(crumb.get('timestamp'))}</td></tr>"
    )


def _tags(event: Mapping[str, Any], only: tuple[str, ...] = ()) -> str:
    tags = event.get("tags") or {}
    pairs = [(str(name), str(value)) for name, value in (tags.items() if isinstance(tags, dict) else tags)]
    pairs += [(name, str(event[name])) for name in ("level", "environment", "release") if event.get(name)]
    return "".join(
        f"<span><i>{html.escape(name)}</i>{html.escape(value)}</span>"
        for name, value in sorted(pairs)
        if not only or name in only
    )


def _json(value: object) -> str:
    return html.escape(json.dumps(value, indent=2, ensure_ascii=False, default=str))


def _frame(body: str) -> str:
    return f'<nav><b>S</b><p>payme-ops</p><p class="note">Stand-in for Sentry</p></nav><main>{body}</main>'


_STYLE = """
*{box-sizing:border-box}body{margin:0;min-height:100vh;display:grid;grid-template-columns:120px 1fr;color:#2b2233;
font:14px/1.5 Rubik,"Segoe UI",Roboto,"Helvetica Neue",Arial,sans-serif;background:#faf9fb}
nav{background:#2f1d4a;color:#d6d0dc;padding:16px 12px;font-size:13px}nav b{display:grid;place-items:center;width:36px;
height:36px;border-radius:8px;background:#6c5fc7;color:#fff;font-size:18px}nav .note{color:#9e8fb0;font-size:12px}
main{padding:20px 28px;max-width:1100px;min-width:0}h1{font-size:20px;margin:0 0 14px;overflow-wrap:anywhere}
h2{font-size:16px;margin:22px 0 6px}a{color:#3c74dd;text-decoration:none}a:hover{text-decoration:underline}
table{width:100%;border-collapse:collapse;background:#fff;border:1px solid #e0dce5;border-radius:6px}
th{text-align:left;font-size:11px;text-transform:uppercase;letter-spacing:.04em;color:#71637e;background:#f5f3f7}
th,td{padding:10px 14px;border-bottom:1px solid #e7e1ec;vertical-align:top}td+td,th+th{white-space:nowrap}
.level{display:inline-block;width:9px;height:9px;border-radius:50%;background:#f55459;margin-right:8px}
.level.warning{background:#ebc000}.level.info{background:#3c74dd}.level.fatal{background:#9b1c31}.level.good{background:#2ba185}.crons{margin-top:28px}
.place{color:#71637e;font-size:13px;font-weight:400}.value{overflow-wrap:anywhere;white-space:pre-wrap;margin:2px 0}
.tags{display:flex;flex-wrap:wrap;gap:4px 6px;margin:6px 0}.tags span{border:1px solid #e0dce5;border-radius:4px;
font-size:12px;background:#fff;overflow-wrap:anywhere;padding:0 6px 0 0}
.tags i{font-style:normal;color:#71637e;background:#f5f3f7;padding:0 6px;margin-right:6px}
.others,.empty{color:#71637e;font-size:13px}
.frames{list-style:none;padding:0;margin:6px 0;border:1px solid #e0dce5;border-radius:6px;background:#fff}
.frame{padding:6px 12px;border-bottom:1px solid #f0ecf3;color:#71637e;font-size:13px;overflow-wrap:anywhere}
.in-app{color:#2b2233;background:#f9f7fd}.frame code{display:block;color:#2b2233}
code,pre{font:12px/1.5 "Roboto Mono",Menlo,Consolas,"DejaVu Sans Mono",monospace}
pre{background:#fff;border:1px solid #e0dce5;border-radius:6px;padding:10px;white-space:pre-wrap;overflow-wrap:anywhere}
.crumbs td{padding:5px 12px;font-size:13px;overflow-wrap:anywhere}.crumbs td+td{white-space:normal}
.crumbs td:last-child{white-space:nowrap}
"""


if __name__ == "__main__":
    main("sentry", make_server)
