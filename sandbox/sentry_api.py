"""The part of Sentry's own API that is asked of the stand-in, in the shapes of docs.sentry.io/api.

Issues, events as a time series, cron monitors; and what alerts are made of since 2026: *detectors* (the documents call
them monitors), which make issues, and *workflows* (alerts), which tell of them. The older project rules and alert-rules
answer 410, as Sentry does since September 2026. As there, a list comes in pages with a Link header, conditions come
back in another order than they were sent, numbers as decimals, and each with an id.

Organization `payme` has the projects `airflow` (number 1) and `api` (number 2).
"""

import hashlib
import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

from sandbox.standin import Answer, Journal, Record, Refused, Request

PROJECTS = {"1": "airflow", "2": "api"}
RULE = "rule"  # type of the records that say what became of a detector or workflow
_PAGE, _NEW_DAYS = 100, 7
_FREQUENCIES = (0, 5, 10, 30, 60, 180, 720, 1440)
_LOGIC = ("any", "any-short", "all", "none")
_SCOPES = {"issues": "event", "events-timeseries": "org", "events": "event"}
_GONE = ("rules", "alert-rules", "combined-rules")


@dataclass
class Access:
    """What tokens may do: one that is named only what it is told, any other everything. None: revoked."""

    scopes: dict[str, list[str] | None] = field(default_factory=dict)
    page: int = _PAGE

    def check(self, request: Request, part: str) -> None:
        """Raises Refused as Sentry does."""
        kind, _, token = request.headers.get("Authorization", "").partition(" ")
        if kind != "Bearer" or not token:
            raise Refused(401, {"detail": "Authentication credentials were not provided."})
        scopes = self.scopes.get(token, ["*"])
        if scopes is None:
            raise Refused(401, {"detail": "Invalid token"})
        needed = f"{_SCOPES.get(part, 'alerts')}:{'read' if request.method == 'GET' else 'write'}"
        if not {"*", needed, needed.replace("read", "write")} & set(scopes):
            raise Refused(403, {"detail": "You do not have permission to perform this action."})


def answer(journal: Journal, access: Access, request: Request, where: str) -> Answer:
    """The answer to a call below /api/0/; `where` is the rest of the path, without the slash at its end."""
    parts = where.split("/")
    organization, rest = parts[1] if len(parts) > 1 else "", parts[2:]
    if parts[0] == "projects":  # those that name the project in the path: issues and events
        project, rest = rest[0] if rest else "", rest[1:]
    else:
        project = request.query.get("project", "")
    part = rest[0] if rest else ""
    access.check(request, part)
    if part in _GONE:
        raise Refused(410, {"detail": "This API no longer exists."})
    if organization != "payme":
        raise Refused(404, {"detail": "The requested resource does not exist"})
    found = (
        _read(journal, access, request, project, rest) if request.method == "GET" else _write(journal, request, rest)
    )
    if found is None:
        raise Refused(404, {"detail": "The requested resource does not exist"})
    return found


def _read(journal: Journal, access: Access, request: Request, project: str, rest: list[str]) -> Answer | None:
    number = _number(project)
    match rest:
        case ["events-timeseries"]:
            return _timeseries(errors(journal, number), request)
        case ["events", event]:
            heard = any(one["payload"].get("event_id") == event for one in _events(journal, number))
            return Answer({"eventID": event}) if heard else None
        case ["issues"]:
            return _paged(_issues(journal, number, request), access.page, request)
        case ["monitors"]:
            return _paged(_monitors(journal, project), access.page, request)
        case ["detectors" | "workflows" as kind]:
            return _paged(_rules(journal, kind, project, request), access.page, request)
    return None


def _write(journal: Journal, request: Request, rest: list[str]) -> Answer | None:
    match request.method, rest:
        case "PUT", ["issues", issue]:
            _say(journal, "issues", "put", issue, request.json())
            return Answer({"status": request.json().get("status")})
        case "POST", ["projects", slug, "detectors"]:
            return Answer(_put(journal, "detectors", None, request.json(), _number(slug)), 201)
        case "POST", ["workflows"]:
            return Answer(_put(journal, "workflows", None, request.json(), ""), 201)
        case "PUT", ["detectors" | "workflows" as kind, rule] if rule in _stored(journal, kind):
            project = str(_stored(journal, kind)[rule].get("projectId", ""))
            return Answer(_put(journal, kind, rule, request.json(), project))
        case "DELETE", ["detectors" | "workflows" as kind, rule] if rule in _stored(journal, kind):
            _say(journal, kind, "delete", rule, {})
            return Answer("", 204)
    return None


def _number(project: str) -> str:
    """The number of a project by its slug or number; that of the application where none is named."""
    found = {"": "2", **{slug: number for number, slug in PROJECTS.items()}, **{one: one for one in PROJECTS}}
    if project not in found:
        raise Refused(403, {"detail": "You do not have permission to perform this action."})
    return found[project]


# -- pages ------------------------------------------------------------------------------------------------------


def _paged(found: list[dict[str, Any]], most: int, request: Request) -> Answer:
    """One page, and where the next and the one before are: always both, `results` says whether there is anything."""
    at = int(request.query.get("cursor", "0:0:0").split(":")[1])
    size = min(most, int(request.query.get("limit") or request.query.get("per_page") or _PAGE))
    host = request.headers.get("Host", "")

    def link(rel: str, offset: int, results: bool, back: int) -> str:
        cursor = f"0:{offset}:{back}"
        return (
            f'<http://{host}{request.path}?&cursor={cursor}>; rel="{rel}";'
            f' results="{str(results).lower()}"; cursor="{cursor}"'
        )

    links = [link("previous", max(0, at - size), at > 0, 1), link("next", at + size, at + size < len(found), 0)]
    return Answer(found[at : at + size], headers={"Link": ", ".join(links)})


# -- events and issues ------------------------------------------------------------------------------------------


def _events(journal: Journal, project: str) -> list[Record]:
    return [one for one in journal.records() if one["type"] == "event" and one["project"] == project]


def errors(journal: Journal, project: str) -> list[Record]:
    """Events of that project but for sentinels."""
    return [
        one
        for one in _events(journal, project)
        if (one["payload"].get("tags") or {}).get("payme_ops.sentinel") != "true"
    ]


def moment(text: str) -> datetime:
    """A time of a query, in UTC where it names no zone."""
    try:
        found = datetime.fromisoformat(text)
    except ValueError:
        raise Refused(400, {"detail": "invalid time"}) from None
    return found if found.tzinfo else found.replace(tzinfo=UTC)


def _at(event: Record) -> datetime:
    """When it happened: what the event says, or when it came."""
    said = event["payload"].get("timestamp")
    try:
        if isinstance(said, int | float):
            return datetime.fromtimestamp(said, UTC)
        if isinstance(said, str):
            found = datetime.fromisoformat(said)
            return found if found.tzinfo else found.replace(tzinfo=UTC)
    except (ValueError, OverflowError):
        pass
    return moment(event["received"])


def _timeseries(found: list[Record], request: Request) -> Answer:
    if request.query.get("dataset") != "errors":
        raise Refused(400, {"detail": "dataset: errors is all that is here"})
    since, until = (moment(request.query.get(name, "")).timestamp() for name in ("start", "end"))
    interval = int(request.query.get("interval", "3600"))
    if "event.type:error" in request.query.get("query", "").split():
        found = [one for one in found if _values(one["payload"])]
    counts = Counter(int(_at(one).timestamp()) // interval * interval for one in found)
    values = [
        {"timestamp": at * 1000, "value": counts[at], "incomplete": False}
        for at in range(int(since) // interval * interval, int(until), interval)
    ]
    meta = {"valueUnit": None, "valueType": "integer", "interval": interval}
    return Answer({"timeSeries": [{"values": values, "yAxis": "count()", "groupBy": None, "meta": meta}]})


def _issues(journal: Journal, project: str, request: Request) -> list[dict[str, Any]]:
    query = request.query.get("query", "is:unresolved")
    since, until = datetime.min.replace(tzinfo=UTC), datetime.max.replace(tzinfo=UTC)
    if "start" in request.query:
        since, until = moment(request.query["start"]), moment(request.query.get("end", ""))
    groups: dict[str, list[Record]] = {}
    for one in errors(journal, project):
        groups.setdefault(issue_of(one["payload"]), []).append(one)
    resolved = _resolutions(journal)
    found = [_issue(key, group, resolved.get(key), since, until, project) for key, group in groups.items()]
    found = [one for one in found if one["count"] != "0" and _fits(one, query)]
    if request.query.get("sort") == "freq":
        found.sort(key=lambda one: (-int(one["count"]), one["id"]))
    return found


def _issue(
    key: str, group: list[Record], resolved: datetime | None, since: datetime, until: datetime, project: str
) -> dict[str, Any]:
    times = sorted(map(_at, group))
    title, culprit = title_of(group[-1]["payload"])
    came_back = resolved is not None and any(moment(one["received"]) > resolved for one in group)
    status = "resolved" if resolved and not came_back else "unresolved"
    young = times[0] > datetime.now(UTC) - timedelta(days=_NEW_DAYS)
    substatus = None if status == "resolved" else "regressed" if came_back else "new" if young else "ongoing"
    unhandled = any((one.get("mechanism") or {}).get("handled") is False for one in _values(group[-1]["payload"]))
    slug = PROJECTS[project]
    return {
        "id": key,
        "shortId": f"{slug.upper()}-{key[:3].upper()}",
        "title": title,
        "culprit": culprit,
        "count": str(sum(since <= at < until for at in times)),
        "userCount": 0,
        "firstSeen": _iso(times[0]),
        "lastSeen": _iso(times[-1]),
        "lifetime": {"count": str(len(times)), "firstSeen": _iso(times[0]), "lastSeen": _iso(times[-1])},
        "level": str(group[-1]["payload"].get("level", "error")),
        "status": status,
        "substatus": substatus,
        "isUnhandled": unhandled,
        "type": "error" if _values(group[-1]["payload"]) else "default",
        "issueCategory": "error",
        "issueType": "error",
        "permalink": f"https://payme.sentry.invalid/issues/{key}/",
        "project": {"id": project, "name": slug, "slug": slug, "platform": "python"},
    }


def _iso(at: datetime) -> str:
    return at.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def _fits(issue: Mapping[str, Any], query: str) -> bool:
    for word in query.split():
        name, _, value = word.partition(":")
        match name:
            case "is":
                if value not in (issue["status"], issue["substatus"]):
                    return False
            case "firstSeen":
                if moment(issue["firstSeen"]) < moment(value.removeprefix(">=")):
                    return False
            case "event.type":
                if issue["type"] != value:
                    return False
            case "!payme_ops.sentinel":
                pass
            case _:
                raise Refused(400, {"detail": f"Invalid query: {word}"})
    return True


def _resolutions(journal: Journal) -> dict[str, datetime]:
    return {
        one["payload"]["id"]: moment(one["received"])
        for one in journal.records()
        if one["type"] == RULE and one["payload"]["kind"] == "issues"
    }


def issue_of(event: Mapping[str, Any]) -> str:
    """Key of the issue an event belongs to: its fingerprint, or else type and place of its error."""
    title, culprit = title_of(event)
    parts = event.get("fingerprint") or ["{{ default }}"]
    default = f"{title.partition(':')[0]} {culprit}"
    text = "\0".join(str(part).replace("{{ default }}", default) for part in parts)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def title_of(event: Mapping[str, Any]) -> tuple[str, str]:
    """Headline and place of an event."""
    values = _values(event)
    if values:
        last = values[-1]
        return f"{last.get('type', 'Error')}: {last.get('value') or ''}", str(event.get("transaction") or _place(last))
    entry = event.get("logentry") or {}
    message = entry.get("formatted") or entry.get("message") or event.get("message") or "(no message)"
    return str(message), str(event.get("transaction") or event.get("logger") or "")


def _values(event: Mapping[str, Any]) -> list[dict[str, Any]]:
    part = event.get("exception")
    values = part.get("values", []) if isinstance(part, dict) else part
    return [value for value in values if isinstance(value, dict)] if isinstance(values, list) else []


def _place(error: Mapping[str, Any]) -> str:
    frames = (error.get("stacktrace") or {}).get("frames") or []
    if not frames:
        return ""
    return f"{frames[-1].get('module') or frames[-1].get('filename') or '?'} in {frames[-1].get('function')}"


# -- detectors, workflows, monitors -----------------------------------------------------------------------------


def _say(journal: Journal, kind: str, done: str, number: str, body: object) -> None:
    payload = {"kind": kind, "done": done, "id": number, "body": body}
    received = datetime.now(UTC).isoformat()
    journal.append(lambda: {"received": received, "project": "", "type": RULE, "payload": payload})


def _stored(journal: Journal, kind: str) -> dict[str, dict[str, Any]]:
    """What is there by id; each project has two detectors from the beginning."""
    found: dict[str, dict[str, Any]] = {}
    if kind == "detectors":
        for number, slug in PROJECTS.items():
            for offset, (type_, name) in enumerate((("error", "Error Monitor"), ("issue_stream", "Issue Stream"))):
                one = str(int(number) * 10 + offset)
                found[one] = {"projectId": number, "type": type_, "name": f"{name} ({slug})", "enabled": True}
    for record in journal.records():
        if record["type"] == RULE and record["payload"]["kind"] == kind:
            said = record["payload"]
            if said["done"] == "delete":
                found.pop(said["id"], None)
            else:
                found[said["id"]] = said["body"]
    return found


def _put(journal: Journal, kind: str, number: str | None, body: object, project: str) -> dict[str, Any]:
    if not isinstance(body, dict):
        raise Refused(400, {"detail": "Invalid body"})
    faults = (
        _detector_faults(body) if kind == "detectors" else _workflow_faults(body, set(_stored(journal, "detectors")))
    )
    if faults:
        raise Refused(400, faults)
    taken = [
        int(one["payload"]["id"]) for one in journal.records() if one["type"] == RULE and one["payload"]["id"].isdigit()
    ]
    number = number or str(max([1000, *taken]) + 1)
    _say(journal, kind, "put", number, {**body, **({"projectId": project} if project else {})})
    return _shown(kind, number, _stored(journal, kind)[number])


def _detector_faults(body: Mapping[str, Any]) -> dict[str, list[str]]:
    faults: dict[str, list[str]] = {}
    if not isinstance(body.get("name"), str) or not 0 < len(body["name"]) <= 200:
        faults["name"] = ["This field is required."]
    if body.get("type") != "metric_issue":
        faults["type"] = ["Unknown detector type"]
    sources = body.get("dataSources")
    if not isinstance(sources, list) or not all(isinstance(one.get("timeWindow"), int) for one in sources):
        faults["dataSources"] = ["This field is required."]
    return faults | _group_faults("conditionGroup", body.get("conditionGroup"))


def _workflow_faults(body: Mapping[str, Any], detectors: set[str]) -> dict[str, list[str]]:
    faults: dict[str, list[str]] = {}
    if not isinstance(body.get("name"), str) or not 0 < len(body["name"]) <= 256:
        faults["name"] = ["This field is required."]
    if not {str(one) for one in body.get("detectorIds") or []} <= detectors:
        faults["detectorIds"] = ["Some detectors do not exist."]
    if (body.get("config") or {}).get("frequency") not in _FREQUENCIES:
        faults["config"] = ["Invalid frequency"]
    for group in body.get("actionFilters") or []:
        faults |= _group_faults("actionFilters", group)
        if not all(
            isinstance(one, dict) and {"type", "config", "data"} <= set(one) for one in group.get("actions", [])
        ):
            faults["actions"] = ["Invalid action"]
    return faults | _group_faults("triggers", body.get("triggers"))


def _group_faults(name: str, group: object) -> dict[str, list[str]]:
    if not isinstance(group, dict) or group.get("logicType") not in _LOGIC:
        return {name: ["logicType: this field is required."]}
    conditions = group.get("conditions") or []
    if not all({"type", "comparison", "conditionResult"} <= set(one) for one in conditions):
        return {name: ["conditions: type, comparison and conditionResult are required."]}
    return {}


def _rules(journal: Journal, kind: str, project: str, request: Request) -> list[dict[str, Any]]:
    numbers = set(PROJECTS) if project in ("", "-1") else {_number(project)}
    detectors = _stored(journal, "detectors")
    found = []
    for number, body in sorted(_stored(journal, kind).items(), key=lambda item: int(item[0])):
        attached = [str(one) for one in body.get("detectorIds") or []]
        owners = (
            {body.get("projectId")}
            if kind == "detectors"
            else {detectors.get(one, {}).get("projectId") for one in attached}
        )
        wanted = re.search(r"type:(\w+)", request.query.get("query", ""))
        if (kind == "detectors" or project) and not owners & numbers:
            continue
        if wanted is None or body.get("type") == wanted[1]:
            found.append(_shown(kind, number, body))
    return found


def _shown(kind: str, number: str, body: Mapping[str, Any]) -> dict[str, Any]:
    ids = _ids(number)
    times = {"dateCreated": "2026-11-01T04:00:00.000000Z", "dateUpdated": "2026-11-01T04:00:00.000000Z"}
    common = {"id": number, "name": body["name"], "createdBy": None, **times}
    common |= {"enabled": body.get("enabled", True), "owner": body.get("owner")}
    if kind == "workflows":
        filters = [
            {**_group(one, ids), "actions": [_action(act, ids) for act in one.get("actions", [])]}
            for one in body.get("actionFilters") or []
        ]
        return {
            **common,
            "organizationId": "1",
            "triggers": _group(body["triggers"], ids),
            "actionFilters": filters,
            "environment": body.get("environment"),
            "config": body.get("config") or {},
            "detectorIds": [str(one) for one in body.get("detectorIds") or []],
            "lastTriggered": None,
        }
    group = body.get("conditionGroup")
    return {
        **common,
        "projectId": body["projectId"],
        "description": body.get("description"),
        "type": body["type"],
        "workflowIds": [],
        "dataSources": [_source(one, ids) for one in body["dataSources"]] if body.get("dataSources") else None,
        "conditionGroup": _group(group, ids) if group else None,
        "config": {"comparisonDelta": None, **body["config"]} if body.get("config") else {},
        "latestGroup": None,
    }


def _ids(seed: str) -> Iterator[str]:
    number = int(seed) * 1000
    while True:
        number += 1
        yield str(number)


def _group(group: Mapping[str, Any], ids: Iterator[str]) -> dict[str, Any]:
    conditions = [
        {"id": next(ids), **one, "comparison": _decimal(one["comparison"])} for one in group.get("conditions") or []
    ]
    return {
        "id": next(ids),
        "organizationId": "1",
        "logicType": group["logicType"],
        "conditions": conditions[::-1],
        "actions": [],
    }


def _decimal(value: object) -> object:
    return float(value) if isinstance(value, int) and not isinstance(value, bool) else value


def _action(action: Mapping[str, Any], ids: Iterator[str]) -> dict[str, Any]:
    target = {"targetDisplay": None, **action["config"]}
    target["targetIdentifier"] = target.get("targetIdentifier") or None
    return {"id": next(ids), "integrationId": None, "status": "active", **action, "config": target}


def _source(source: Mapping[str, Any], ids: Iterator[str]) -> dict[str, Any]:
    names = ("dataset", "query", "aggregate", "timeWindow", "environment", "eventTypes")
    query = {"id": next(ids), **{name: source.get(name) for name in names}, "extrapolationMode": "unknown"}
    held = {"id": next(ids), "status": 1, "subscription": None, "snubaQuery": query}
    return {
        "id": next(ids),
        "organizationId": "1",
        "type": "snuba_query_subscription",
        "sourceId": next(ids),
        "queryObj": held,
    }


def _monitors(journal: Journal, project: str) -> list[dict[str, Any]]:
    """One for each slug that has checked in."""
    numbers = set(PROJECTS) if project in ("", "-1") else {_number(project)}
    last: dict[str, Record] = {}
    configs: dict[str, dict[str, Any]] = {}
    for record in journal.records():
        if record["type"] == "check_in" and record["project"] in numbers and isinstance(record["payload"], dict):
            slug = str(record["payload"].get("monitor_slug"))
            last[slug] = record
            if isinstance(config := record["payload"].get("monitor_config"), dict):
                configs[slug] = config
    return [_monitor(slug, record, configs.get(slug, {})) for slug, record in sorted(last.items())]


def _monitor(slug: str, record: Record, config: Mapping[str, Any]) -> dict[str, Any]:
    status = str(record["payload"].get("status"))
    schedule = config.get("schedule") or {}
    environment = {
        "name": str(record["payload"].get("environment") or "production"),
        "status": "ok" if status in ("ok", "in_progress") else "error",
        "isMuted": False,
        "lastCheckIn": record["received"],
        "nextCheckIn": None,
        "activeIncident": None,
    }
    return {
        "id": hashlib.sha256(slug.encode()).hexdigest()[:8],
        "name": slug,
        "slug": slug,
        "status": "active",
        "isMuted": False,
        "isUpserting": True,
        "config": {
            "schedule_type": schedule.get("type"),
            "schedule": schedule.get("value"),
            **{name: config.get(name) for name in ("checkin_margin", "max_runtime", "timezone")},
        },
        "project": {"id": record["project"], "slug": PROJECTS[record["project"]]},
        "environments": [environment],
    }


def control(access: Access, request: Request) -> Answer:
    """POST /access {"scopes": {"<token>": ["alerts:read"] or null}, "page": 2}: what tokens may, how long a page is."""
    asked = json.loads(request.body or b"{}")
    access.scopes.update(asked.get("scopes") or {})
    access.page = int(asked.get("page") or _PAGE)
    return Answer({"page": access.page})
