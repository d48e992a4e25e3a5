"""What the desk may ask of the PayMe API: docs/payme-api-contract.md. Each call may be made again.

Every function raises Unavailable when the API does not answer or says 5xx, and ServiceRefused for any other no or an
answer that the contract does not know.
"""

from dataclasses import dataclass, field

from payme_ops.foundation import http
from payme_ops.foundation.errors import ServiceRefused

_SERVICE = "the PayMe API"


@dataclass(frozen=True)
class PaymeApi:
    """Where it is, and the token for /admin."""

    url: str
    token: str = field(repr=False)


@dataclass(frozen=True)
class Health:
    """The body of /health. `healthy` is what counts: status 200, healthy, and the database connected."""

    healthy: bool
    status: str
    database: str
    version: str


@dataclass(frozen=True)
class Version:
    """What runs, or ran until it was stopped, and what ran before that."""

    version: str
    previous: str


def health(api: PaymeApi) -> Health:
    """How it is; a 503 is an answer, too. Raises Unavailable when there is none."""
    answer = http.call(_SERVICE, "GET", f"{api.url}/health")
    status, database = str(answer.body.get("status", "unknown")), str(answer.body.get("database", "unknown"))
    good = (answer.status, status, database) == (200, "healthy", "connected")
    return Health(good, status, database, str(answer.body.get("version", "")))


def version(api: PaymeApi) -> Version:
    """Which version runs and which ran before."""
    return _version(http.expect(_SERVICE, "GET", f"{api.url}/version"))


def stop(api: PaymeApi) -> Version:
    """Stop taking requests and close every session in the database; returns when that is done."""
    return _admin(api, "stop", {}, "stopped")


def start(api: PaymeApi, wanted: str) -> Version:
    """Start as that version. Whether it is well, /health says."""
    return _admin(api, "start", {"version": wanted}, "started")


def _admin(api: PaymeApi, verb: str, body: dict[str, str], expected: str) -> Version:
    said = http.expect(_SERVICE, "POST", f"{api.url}/admin/{verb}", authorization=f"Bearer {api.token}", body=body)
    if said.get("status") != expected:
        raise _unknown(f'"status": "{expected}"', str(said.get("status"))[:80])
    return _version(said)


def _version(said: dict[str, object]) -> Version:
    found = said.get("version"), said.get("previous")
    if not all(isinstance(part, str) for part in found):
        raise _unknown('"version" and "previous"', f"{', '.join(sorted(map(str, said)))[:80] or 'nothing'}")
    return Version(str(found[0]), str(found[1]))


def _unknown(expected: str, found: str) -> ServiceRefused:
    return ServiceRefused(
        "the PayMe API's answer is not the contract's",
        expected=expected,
        found=found,
        remedy="compare it with docs/payme-api-contract.md; tests/integration/test_payme_api.py runs against any URL",
    )
