"""A stand-in for PayMe's public status page: Statuspage's incidents API, and the page that customers would see.

    python -m sandbox.status_page --port 8093 --state .demo/status_page.json

`GET /` is the page; `GET /incidents.json` gives every update as it came.
"""

import html
import re
import secrets
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

from sandbox.standin import Answer, Journal, Record, Refused, Request, Server, main, page

STATUSES = ("investigating", "identified", "monitoring", "resolved")
PLANNED = ("scheduled", "in_progress", "verifying", "completed")
_EAT = ZoneInfo("Africa/Nairobi")
_AUTO = "scheduled_auto_in_progress"
_INCIDENTS = re.compile(r"/v1/pages/([\w-]+)/incidents(?:/([\w-]+))?")


def make_server(port: int, state: Path) -> Server:
    """A server on 127.0.0.1 (port 0: any free one), not yet serving."""
    journal = Journal(state)
    return Server(
        port, lambda request: _route(journal, request), lambda path: path.startswith("/v1/"), {"error": "told to fail"}
    )


def _route(journal: Journal, request: Request) -> Answer:
    if found := _INCIDENTS.fullmatch(request.path):
        if not request.headers.get("Authorization", "").startswith("OAuth "):
            raise Refused(401, {"error": "Could not authenticate"})
        match request.method, found[2]:
            case "GET", None:
                return Answer([_incident(journal, name) for name in reversed(_names(journal))])
            case "POST", None:
                return _create(journal, request)
            case "GET", str(name) if name in _names(journal):
                return Answer(_incident(journal, name))
            case "PATCH", str(name) if name in _names(journal):
                return _update(journal, request, name)
    elif request.method == "GET" and request.path == "/":
        return page("PayMe status", _STYLE, _render(journal))
    elif request.method == "GET" and request.path == "/incidents.json":
        return Answer(journal.records())
    raise Refused(404, {"error": f"nothing at {request.method} {request.path}"})


def _create(journal: Journal, request: Request) -> Answer:
    asked = _asked(request)
    if not asked.get("name"):
        raise Refused(422, {"error": ["Name can't be blank"]})
    name = secrets.token_hex(6)
    times = {part: asked[part] for part in ("scheduled_for", "scheduled_until", _AUTO) if part in asked}
    _keep(journal, name, asked["name"], asked.get("status", "investigating"), asked.get("body", ""), **times)
    return Answer(_incident(journal, name), 201)


def _update(journal: Journal, request: Request, name: str) -> Answer:
    now = {"body": "", **_incident(journal, name), **_asked(request)}
    _keep(journal, name, now["name"], now["status"], now["body"])
    return Answer(_incident(journal, name))


def _asked(request: Request) -> dict[str, Any]:
    try:
        asked = request.json()["incident"]
    except (ValueError, KeyError, TypeError):
        asked = None
    if not isinstance(asked, dict):
        raise Refused(400, {"error": "incident is missing"})
    if asked.get("status", "investigating") not in STATUSES + PLANNED:
        raise Refused(422, {"error": [f"Status must be one of {', '.join(STATUSES + PLANNED)}"]})
    return asked


def _keep(journal: Journal, name: str, title: str, status: str, body: str, **times: str) -> None:
    at = datetime.now(UTC).isoformat()
    journal.append(lambda: {"id": name, "name": title, "status": status, "body": body, "created_at": at, **times})


def _names(journal: Journal) -> list[str]:
    return list(dict.fromkeys(record["id"] for record in journal.records()))


def _incident(journal: Journal, name: str) -> Record:
    updates = _begun([record for record in journal.records() if record["id"] == name])
    last = updates[-1]
    shown = [{part: update[part] for part in ("status", "body", "created_at")} for update in reversed(updates)]
    return {
        "id": name,
        "name": last["name"],
        "status": last["status"],
        "created_at": updates[0]["created_at"],
        **{part: updates[0][part] for part in ("scheduled_for", "scheduled_until") if part in updates[0]},
        "incident_updates": shown,
    }


def _begun(updates: list[Record]) -> list[Record]:
    """With the update that the page makes by itself once the time of a maintenance has come."""
    first, last = updates[0], updates[-1]
    if first.get(_AUTO) != "true" or last["status"] != "scheduled":
        return updates
    due = datetime.fromisoformat(first["scheduled_for"])
    if datetime.now(UTC) < due:
        return updates
    at = max(due, datetime.fromisoformat(last["created_at"])).isoformat()
    return [*updates, {**last, "status": "in_progress", "body": "It has begun.", "created_at": at}]


def _render(journal: Journal) -> str:
    incidents = [_incident(journal, name) for name in reversed(_names(journal))]
    planned = [one for one in incidents if "scheduled_for" in one]
    others = [one for one in incidents if "scheduled_for" not in one]
    head = '<p class="banner">All systems work</p>'
    if any(one["status"] in ("in_progress", "verifying") for one in planned):
        head = '<p class="banner open">Under maintenance</p>'
    if any(one["status"] != "resolved" for one in others):
        head = '<p class="banner open">Service disruption</p>'
    shown = "".join(_render_incident(incident) for incident in others)
    works = "".join(_render_incident(incident) for incident in planned)
    maintenance = f"<h2>Scheduled maintenance</h2>{works}" if works else ""
    return f'<h1>PayMe</h1>{head}{maintenance}<h2>Incidents</h2>{shown or "<p>None.</p>"}<p class="note">Stand-in.</p>'


def _render_incident(incident: Record) -> str:
    updates = "".join(
        f"<p><b>{html.escape(update['status'].replace('_', ' ').capitalize())}</b> {html.escape(update['body'])}"
        f"<br><time>{_time(update['created_at'])}</time></p>"
        for update in incident["incident_updates"]
    )
    window = ""
    if "scheduled_for" in incident:
        window = f"<p><time>{_time(incident['scheduled_for'])} to {_time(incident['scheduled_until'])}</time></p>"
    return f"<article><h3>{html.escape(incident['name'])}</h3>{window}{updates}</article>"


def _time(text: str) -> str:
    return f"{datetime.fromisoformat(text).astimezone(_EAT):%d %b %H:%M:%S} EAT"


_STYLE = """
body{margin:0 auto;max-width:44rem;padding:2rem 1rem;font:15px/1.5 system-ui,sans-serif;color:#1c2733}
h1{font-size:26px}.banner{background:#2da44e;color:#fff;border-radius:6px;padding:14px 18px;font-weight:600}
.banner.open{background:#bf6a02}h2{font-size:17px;margin-top:30px}h3{margin:0 0 6px;font-size:16px}
article{border-top:1px solid #d0d7de;padding:14px 0}time,.note{color:#6e7781;font-size:13px}
"""


if __name__ == "__main__":
    main("status_page", make_server)
