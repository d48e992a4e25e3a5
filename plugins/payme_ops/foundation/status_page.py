"""PayMe's public status page, in Statuspage's incidents API; what is posted is scrubbed.

A scheduled maintenance is an incident there, too (developer.statuspage.io, incidents). Raises Unavailable,
ServiceRefused.
"""

from dataclasses import dataclass, field
from datetime import UTC, datetime

from payme_ops.foundation import http
from payme_ops.foundation.errors import ServiceRefused
from payme_ops.foundation.scrub import scrub_all

_SERVICE = "the status page"


@dataclass(frozen=True)
class StatusPage:
    """Base URL (https://api.statuspage.io), page id, API key."""

    url: str
    page_id: str
    key: str = field(repr=False)


def open_incident(page: StatusPage, *, name: str, body: str) -> str:
    """A new incident, `investigating`; answers its id."""
    return _id(_call(page, "POST", "", {"name": name, "status": "investigating", "body": body}))


def _id(said: dict[str, object]) -> str:
    found = said.get("id")
    if not isinstance(found, str):
        raise ServiceRefused("the status page named no incident", expected="an id", found="none")
    return found


@dataclass(frozen=True)
class Maintenance:
    """A scheduled maintenance as it stands on the page: scheduled, in_progress, verifying or completed."""

    status: str
    begins: datetime | None
    ends: datetime | None


def schedule_maintenance(page: StatusPage, *, name: str, body: str, begins: datetime, ends: datetime) -> str:
    """Announce a maintenance; answers its id. Reminders and the change to in_progress are the page's own."""
    said = _call(
        page,
        "POST",
        "",
        {
            "name": name,
            "status": "scheduled",
            "body": body,
            "scheduled_for": begins.astimezone(UTC).isoformat(),
            "scheduled_until": ends.astimezone(UTC).isoformat(),
            "scheduled_auto_in_progress": "true",
        },
    )
    return _id(said)


def maintenance(page: StatusPage, incident: str) -> Maintenance:
    """How it stands there now."""
    said = http.expect(_SERVICE, "GET", f"{_url(page)}/{incident}", authorization=f"OAuth {page.key}")
    return Maintenance(
        str(said.get("status", "not told"))[:40], _moment(said, "scheduled_for"), _moment(said, "scheduled_until")
    )


def _moment(said: dict[str, object], name: str) -> datetime | None:
    try:
        found = datetime.fromisoformat(str(said.get(name)))
    except ValueError:
        return None
    return found if found.tzinfo else None


def update_incident(page: StatusPage, incident: str, *, status: str, body: str) -> None:
    """Add an update: `identified`, `monitoring` or `resolved`; of a maintenance `in_progress` or `completed`."""
    _call(page, "PATCH", f"/{incident}", {"status": status, "body": body})


def _call(page: StatusPage, method: str, path: str, incident: dict[str, str]) -> dict[str, object]:
    return http.expect(
        _SERVICE,
        method,
        f"{_url(page)}{path}",
        authorization=f"OAuth {page.key}",
        body={"incident": scrub_all(incident)},
    )


def _url(page: StatusPage) -> str:
    return f"{page.url}/v1/pages/{page.page_id}/incidents"
