"""What the desk may ask of the PayMe API: docs/payme-api-contract.md. Each call may be made again.

Every function raises Unavailable when the API does not answer or says 5xx, and ServiceRefused for any other no or an
answer that the contract does not know.
"""

import re
from dataclasses import dataclass, field

from payme_ops.foundation import http
from payme_ops.foundation.errors import ServiceRefused

_SERVICE = "the PayMe API"
_CODE = re.compile(r"[0-9A-Za-z_]{1,40}")  # a SQLSTATE, or what the driver calls an error without one; never a message


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


@dataclass(frozen=True)
class Metrics:
    """The body of /metrics of one replica.

    `database_errors` counts the database's errors since the process's start by SQLSTATE; None when it does not tell.
    """

    version: str
    database_errors: dict[str, int] | None


def health(api: PaymeApi) -> Health:
    """How it is; a 503 is an answer, too. Raises Unavailable when there is none."""
    answer = http.call(_SERVICE, "GET", f"{api.url}/health")
    status, database = str(answer.body.get("status", "unknown")), str(answer.body.get("database", "unknown"))
    good = (answer.status, status, database) == (200, "healthy", "connected")
    return Health(good, status, database, str(answer.body.get("version", "")))


def version(api: PaymeApi) -> Version:
    """Which version runs and which ran before."""
    return _version(http.expect(_SERVICE, "GET", f"{api.url}/version"))


def metrics(url: str) -> Metrics:
    """What the replica at that base URL runs, and what the database refused it."""
    said = http.expect(_SERVICE, "GET", f"{url}/metrics")
    found, errors = said.get("version"), said.get("database_errors")
    if not isinstance(found, str) or not found:
        raise _unknown('"version"', _parts(said))
    if errors is not None and not _counts(errors):
        raise _unknown('"database_errors", if at all, as whole numbers by SQLSTATE', "something else")
    return Metrics(found, errors)


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
        raise _unknown('"version" and "previous"', _parts(said))
    return Version(str(found[0]), str(found[1]))


def _counts(errors: object) -> bool:
    return isinstance(errors, dict) and all(
        _CODE.fullmatch(code) and type(count) is int and count >= 0 for code, count in errors.items()
    )


def _parts(said: dict[str, object]) -> str:
    return ", ".join(sorted(said))[:80] or "nothing"


def _unknown(expected: str, found: str) -> ServiceRefused:
    return ServiceRefused(
        "the PayMe API's answer is not the contract's",
        expected=expected,
        found=found,
        remedy="compare it with docs/payme-api-contract.md; tests/integration/test_payme_api.py runs against any URL",
    )
