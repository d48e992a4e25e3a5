"""PayMe's public status page, in Statuspage's incidents API; what is posted is scrubbed.

Raises Unavailable, ServiceRefused.
"""

from dataclasses import dataclass, field

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
    said = _call(page, "POST", "", {"name": name, "status": "investigating", "body": body})
    found = said.get("id")
    if not isinstance(found, str):
        raise ServiceRefused("the status page named no incident", expected="an id", found="none")
    return found


def update_incident(page: StatusPage, incident: str, *, status: str, body: str) -> None:
    """Add an update: `identified`, `monitoring` or `resolved`."""
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
