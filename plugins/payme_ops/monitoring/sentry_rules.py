"""The alert rules that we want in Sentry, as data, and what it takes to have them.

Sentry parts what makes an issue (a *detector*; its pages say monitor) from what tells of it (a *workflow*; alert). Each
project has a detector `issue_stream` that every issue of it comes from; "more than 5 errors a minute" is a detector of
our own. Whatever else is in Sentry is left alone: ours are known by the beginning of their names.

Each rule is the body that Sentry's API takes, so that what is wanted and what is there are read by the same functions.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from itertools import groupby
from typing import Any
from urllib.parse import quote

from payme_ops.foundation import sentry_api
from payme_ops.foundation.errors import ServiceRefused
from payme_ops.foundation.sentry_api import SentryApi

PREFIX = "payme-ops: "
ERRORS_PER_MINUTE = 5
# Issue categories of docs.sentry.io/api, create an alert. A missed check-in is an outage.
_ERROR, _OUTAGE = 1, 10
_HIGH, _RESOLVED = 75, 0
# Minutes until one issue may be told of again; one of 0, 5, 10, 30, 60, 180, 720, 1440.
_AGAIN_MINUTES = 30
_READ, _WRITE = "alerts:read", "alerts:write"
# Whose silence Sentry tells of by itself, once they have checked in for the first time (orchestration/sentry.py).
CRON_MONITORS = ("backup_daily", "backup_weekly", "backup_monthly", "backup_restore_test", "desk_backup")


class Kind(StrEnum):
    """What Sentry's API calls them."""

    DETECTOR = "detectors"
    WORKFLOW = "workflows"


class Act(StrEnum):
    """What `apply` would do."""

    CREATE = "create"
    CHANGE = "change"
    REMOVE = "remove"
    NONE = "unchanged"
    NOT_OURS = "not ours"


@dataclass(frozen=True)
class Rule:
    """A wanted rule. A workflow listens to the detector named `source`, to the project's own stream where it is ""."""

    kind: Kind
    project: str
    name: str
    body: Mapping[str, Any]
    source: str = ""


@dataclass(frozen=True)
class Step:
    """What is to be done about one rule. `changes` are (field, from, to); `id` is Sentry's, "" while it has none."""

    act: Act
    kind: Kind
    name: str
    id: str = ""
    changes: tuple[tuple[str, str, str], ...] = ()
    rule: Rule | None = None


@dataclass(frozen=True)
class Plan:
    """Detectors before the workflows that listen to them. `notes` are of cron monitors; `quiet` ones tell nobody."""

    steps: tuple[Step, ...]
    notes: tuple[str, ...] = ()
    quiet: tuple[str, ...] = ()
    streams: Mapping[str, str] = field(default_factory=dict)  # by project: the id of its detector issue_stream

    @property
    def drift(self) -> bool:
        """Whether Sentry is not as it should be."""
        return bool(self.quiet) or any(one.act not in (Act.NONE, Act.NOT_OURS) for one in self.steps)


def wanted(project: str, team_id: str = "") -> list[Rule]:
    """The rules of one project; mail goes to the team of that number, else to the owners of the issue."""
    many = f"{PREFIX}{project}: more than {ERRORS_PER_MINUTE} errors a minute"
    new_or_again = ("first_seen_event", "regression_event")
    return [
        Rule(Kind.DETECTOR, project, many, _errors_per_minute(many)),
        _workflow(project, f"{many}, tell", new_or_again, None, team_id, source=many),
        _workflow(project, f"{PREFIX}{project}: new error type", ("first_seen_event",), _ERROR, team_id),
        _workflow(project, f"{PREFIX}{project}: missed or failed check-in", new_or_again, _OUTAGE, team_id),
    ]


def _errors_per_minute(name: str) -> dict[str, Any]:
    source = {"aggregate": "count()", "dataset": "events", "eventTypes": ["error"], "query": "", "queryType": 0}
    return {
        "name": name,
        "type": "metric_issue",
        "enabled": True,
        "dataSources": [{**source, "timeWindow": 60, "environment": None}],
        "config": {"detectionType": "static"},
        "conditionGroup": {
            "logicType": "any",
            "conditions": [
                {"type": "gt", "comparison": ERRORS_PER_MINUTE, "conditionResult": _HIGH},
                {"type": "lte", "comparison": ERRORS_PER_MINUTE, "conditionResult": _RESOLVED},
            ],
        },
    }


def _workflow(
    project: str, name: str, when: Sequence[str], category: int | None, team_id: str, source: str = ""
) -> Rule:
    conditions = [] if category is None else [_condition("issue_category", {"value": category})]
    body = {
        "name": name,
        "enabled": True,
        "environment": None,
        "config": {"frequency": _AGAIN_MINUTES},
        "triggers": {"logicType": "any-short", "conditions": [_condition(one, True) for one in when]},
        "actionFilters": [{"logicType": "all", "conditions": conditions, "actions": [_mail(team_id)]}],
    }
    return Rule(Kind.WORKFLOW, project, name, body, source)


def _condition(kind: str, comparison: object) -> dict[str, Any]:
    return {"type": kind, "comparison": comparison, "conditionResult": True}


def _mail(team_id: str) -> dict[str, Any]:
    """The one action that needs no integration: Sentry's own notification, mail unless a person chose another way."""
    target = ("team", team_id) if team_id else ("issue_owners", None)
    return {
        "type": "email",
        "integrationId": None,
        "data": {} if team_id else {"fallthroughType": "ActiveMembers"},
        "config": {"targetType": target[0], "targetIdentifier": target[1], "targetDisplay": None},
        "status": "active",
    }


# -- what is there ----------------------------------------------------------------------------------------------


def make_plan(api: SentryApi, projects: Sequence[str], cron_project: str, team_id: str = "") -> Plan:
    """Compare. `cron_project` is whose cron monitors are looked at. Raises Unavailable, ServiceRefused."""
    rules = [rule for project in projects for rule in wanted(project, team_id)]
    # Detectors of other types are Sentry's own: one for each cron monitor, two for each project.
    there = {
        Kind.DETECTOR: list(_listed(api, Kind.DETECTOR, query="type:metric_issue")),
        Kind.WORKFLOW: list(_listed(api, Kind.WORKFLOW)),
    }
    names = {str(one.get("id")): str(one.get("name")) for one in there[Kind.DETECTOR]}
    streams = {project: stream(api, project) for project in projects}
    names |= {number: _stream_name(project) for project, number in streams.items()}
    steps = [step for kind in Kind for step in _steps(kind, there[kind], rules, projects, names)]
    notes, quiet = _cron_monitors(api, cron_project) if cron_project else ([], [])
    return Plan(tuple(steps), tuple(notes), tuple(quiet), streams)


def _listed(api: SentryApi, kind: Kind, **query: str) -> Iterator[dict[str, Any]]:
    return sentry_api.listed(api, _path(api, f"{kind}/"), query, _READ)


def _path(api: SentryApi, rest: str) -> str:
    return f"/api/0/organizations/{quote(api.organization)}/{rest}"


def stream(api: SentryApi, project: str) -> str:
    """Id of the detector that every issue of the project comes from. Raises Unavailable, ServiceRefused."""
    for one in _listed(api, Kind.DETECTOR, project=project, query="type:issue_stream"):
        if one.get("type") == "issue_stream":
            return str(one.get("id"))
    raise ServiceRefused(
        f"the project {project} has no stream of issues in Sentry",
        expected="a detector of type issue_stream, which Sentry makes with each project",
        found="none",
        remedy="see whether the token's integration may see the project, and whether this Sentry is of 2026 or newer",
    )


def _stream_name(project: str) -> str:
    return f"every issue of {project}"


def _steps(
    kind: Kind,
    there: Sequence[Mapping[str, Any]],
    rules: Sequence[Rule],
    projects: Sequence[str],
    names: Mapping[str, str],
) -> Iterator[Step]:
    ours = tuple(f"{PREFIX}{project}: " for project in projects)
    mine = sorted((one for one in there if str(one.get("name")).startswith(ours)), key=_by_name)
    found = {name: list(group) for name, group in groupby(mine, key=lambda one: str(one["name"]))}
    for rule in (one for one in rules if one.kind is kind):
        # The oldest of several counts: a POST whose answer got lost was repeated.
        first, *others = found.pop(rule.name, [None])
        yield _compared(rule, first, names)
        yield from (Step(Act.REMOVE, kind, rule.name, str(one["id"])) for one in others if one)
    for name, group in found.items():
        yield from (Step(Act.REMOVE, kind, name, str(one["id"])) for one in group)
    for one in there:
        if not str(one.get("name")).startswith(ours):
            yield Step(Act.NOT_OURS, kind, str(one.get("name")), str(one.get("id")))


def _by_name(one: Mapping[str, Any]) -> tuple[str, int]:
    number = str(one.get("id"))
    return str(one["name"]), int(number) if number.isascii() and number.isdigit() else 0


def _compared(rule: Rule, there: Mapping[str, Any] | None, names: Mapping[str, str]) -> Step:
    facts = detector_facts if rule.kind is Kind.DETECTOR else workflow_facts
    to = facts(rule.body)
    if rule.kind is Kind.WORKFLOW:
        to |= {"listens to": rule.source or _stream_name(rule.project)}
    if there is None:
        changes = tuple((name, "", value) for name, value in to.items())
        return Step(Act.CREATE, rule.kind, rule.name, "", changes, rule)
    now = facts(there)
    if rule.kind is Kind.WORKFLOW:
        listens = [names.get(str(one), f"number {one}") for one in there.get("detectorIds") or []]
        now |= {"listens to": ", ".join(sorted(listens)) or "nothing"}
    changes = tuple((name, now[name], value) for name, value in to.items() if now[name] != value)
    return Step(Act.CHANGE if changes else Act.NONE, rule.kind, rule.name, str(there["id"]), changes, rule)


def detector_facts(body: Mapping[str, Any]) -> dict[str, str]:
    """What matters of a detector, in words; of one as it is sent, and of one as Sentry shows it."""
    facts = {"enabled": _plain(body.get("enabled")), "detection": _plain(_part(body, "config").get("detectionType"))}
    sources = body.get("dataSources") or []
    source = sources[0] if len(sources) == 1 and isinstance(sources[0], Mapping) else {}
    query = _part(_part(source, "queryObj"), "snubaQuery") or source
    for name in ("aggregate", "dataset", "query", "environment", "timeWindow"):
        facts[name] = _plain(query.get(name) or "")
    facts["eventTypes"] = ", ".join(sorted(map(str, query.get("eventTypes") or [])))
    return facts | {"conditions": _group(_part(body, "conditionGroup"))}


def workflow_facts(body: Mapping[str, Any]) -> dict[str, str]:
    """The same of a workflow."""
    filters = [one for one in body.get("actionFilters") or [] if isinstance(one, Mapping)]
    return {
        "enabled": _plain(body.get("enabled")),
        "environment": _plain(body.get("environment") or ""),
        "again after minutes": _plain(_part(body, "config").get("frequency")),
        "when": _group(_part(body, "triggers")),
        "if": " | ".join(_group(one) for one in filters),
        "then": " | ".join(", ".join(_action(act) for act in one.get("actions") or []) for one in filters),
    }


def _part(body: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    found = body.get(name)
    return found if isinstance(found, Mapping) else {}


def _group(group: Mapping[str, Any]) -> str:
    found = [one for one in group.get("conditions") or [] if isinstance(one, Mapping)]
    conditions = sorted(map(_condition_words, found))
    # Of one condition any and all are the same; any-short is any that stops at the first.
    logic = str(group.get("logicType")).removesuffix("-short")
    logic = "" if len(conditions) == 1 and logic in ("any", "all") else logic
    return f"{logic} {'; '.join(conditions)}".strip() if conditions else "always"


def _condition_words(one: Mapping[str, Any]) -> str:
    comparison = "" if one.get("comparison") is True else f" {_plain(one.get('comparison'))}"
    result = "" if one.get("conditionResult") is True else f" -> {_plain(one.get('conditionResult'))}"
    return f"{one.get('type')}{comparison}{result}"


def _action(action: Mapping[str, Any]) -> str:
    config = _part(action, "config")
    target = f"{config.get('targetType')} {config.get('targetIdentifier') or ''}".strip()
    more = _part(action, "data").get("fallthroughType")
    return f"{action.get('type')} to {target}" + (f", else {more}" if more else "")


def _plain(value: object) -> str:
    """A value as it is compared: Sentry answers 5.0 to 5, and says that it includes what it includes."""
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    if isinstance(value, Mapping):
        held = sorted((name, _plain(one)) for name, one in value.items() if (name, one) != ("include", True))
        return ", ".join(f"{name} {one}" for name, one in held)
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _cron_monitors(api: SentryApi, project: str) -> tuple[list[str], list[str]]:
    path, query = _path(api, "monitors/"), {"project": project}
    there = {str(one.get("slug")): one for one in sentry_api.listed(api, path, query, _READ)}
    notes, quiet = [], []
    for slug in CRON_MONITORS:
        found = there.get(slug)
        if found is None:
            notes.append(f"{slug} has not checked in yet: Sentry cannot miss it before it has")
        elif found.get("isMuted") or found.get("status") != "active":
            state = "muted" if found.get("isMuted") else str(found.get("status"))
            quiet.append(f"{slug} is {state} in Sentry: a missed one is told to nobody. Unmute it under Crons")
    return notes, quiet


# -- doing it ---------------------------------------------------------------------------------------------------


def apply(api: SentryApi, plan: Plan) -> Iterator[Step]:
    """Do what the plan says, each step yielded when it is done. Never touches what is not ours.

    Raises Unavailable, ServiceRefused; what was done before stays, and the next plan begins there.
    """
    ids = {one.name: one.id for one in plan.steps if one.kind is Kind.DETECTOR and one.rule and one.id}
    for step in plan.steps:
        if step.act is Act.REMOVE:
            sentry_api.ask(api, "DELETE", _path(api, f"{step.kind}/{quote(step.id)}/"), _WRITE)
            yield step
        elif step.rule and step.act in (Act.CREATE, Act.CHANGE):
            number = _write(api, step, step.rule, ids, plan.streams)
            if step.kind is Kind.DETECTOR:
                ids[step.name] = number
            yield replace(step, id=number)


def _write(api: SentryApi, step: Step, rule: Rule, ids: Mapping[str, str], streams: Mapping[str, str]) -> str:
    body = dict(rule.body)
    if rule.kind is Kind.WORKFLOW:
        body["detectorIds"] = [int(ids[rule.source] if rule.source else streams[rule.project])]
    if step.id:
        path, method = _path(api, f"{rule.kind}/{quote(step.id)}/"), "PUT"
        body |= {"id": step.id} if rule.kind is Kind.WORKFLOW else {}
    elif rule.kind is Kind.DETECTOR:
        path, method = _path(api, f"projects/{quote(rule.project)}/detectors/"), "POST"
    else:
        path, method = _path(api, "workflows/"), "POST"
    number = sentry_api.ask(api, method, path, _WRITE, body=body).body.get("id")
    if not isinstance(number, str) or not number.isdigit():
        raise ServiceRefused("Sentry's answer is not understood", expected="the rule with its id", found="no id")
    return number
