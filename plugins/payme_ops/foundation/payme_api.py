"""What the desk may ask of the PayMe API: docs/payme-api-contract.md. Each call but `post_deploy` may be made again.

Every function raises Unavailable when the API does not answer or says 5xx, and ServiceRefused for any other no or an
answer that the contract does not know. Where one answers None, the API does not offer it (404).
"""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from payme_ops.foundation import http
from payme_ops.foundation.errors import ServiceRefused

_SERVICE = "the PayMe API"
_COMMIT = re.compile(r"[0-9a-f]{40}")
_NAME = re.compile(r"[\w.:-]{1,100}", re.ASCII)
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
    commit: str = ""
    uptime: float | None = None
    at: datetime | None = None


@dataclass(frozen=True)
class Version:
    """What runs, or ran until it was stopped, and what ran before that; commits "" where the API does not say."""

    version: str
    previous: str
    commit: str = ""
    previous_commit: str = ""


@dataclass(frozen=True)
class Metrics:
    """The body of /metrics of one replica.

    `database_errors` counts the database's errors since the process's start by SQLSTATE, `response_ms` has p50, p95,
    p99 and count of the last minute's requests; None when it does not tell.
    """

    version: str
    database_errors: dict[str, int] | None
    response_ms: dict[str, float] | None = None


@dataclass(frozen=True)
class Orders:
    """Whether new orders are refused, and how many are still being carried out."""

    frozen: bool
    in_flight: int


@dataclass(frozen=True)
class Placed:
    """An order of the test merchant: its id, or why it was not taken."""

    accepted: bool
    id: str
    status: str


@dataclass(frozen=True)
class Replicas:
    """The limits of autoscaling; equal ones are no autoscaling."""

    minimum: int
    maximum: int


@dataclass(frozen=True)
class DeployState:
    """What became of a deploy: unknown (the API never got it), accepted, running, done or failed."""

    state: str
    commit: str


def health(api: PaymeApi) -> Health:
    """How it is; a 503 is an answer, too. Raises Unavailable when there is none."""
    return read_health(http.call(_SERVICE, "GET", f"{api.url}/health"))


def read_health(answer: http.Answer) -> Health:
    """The answer of /health; what it does not say, or says in another form, is unknown."""
    said = answer.body
    status, database = str(said.get("status", "unknown")), str(said.get("database", "unknown"))
    good = (answer.status, status, database) == (200, "healthy", "connected")
    return Health(
        good,
        status,
        database,
        str(said.get("version", "")),
        _commit(said.get("commit")),
        _number(said.get("uptime")),
        _instant(said.get("timestamp")),
    )


def version(api: PaymeApi) -> Version:
    """Which version runs and which ran before."""
    return _version(http.expect(_SERVICE, "GET", f"{api.url}/version"))


def metrics(url: str) -> Metrics:
    """What the replica at that base URL runs, and what the database refused it."""
    return read_metrics(http.expect(_SERVICE, "GET", f"{url}/metrics"))


def read_metrics(said: dict[str, Any]) -> Metrics:
    """The body of /metrics. Raises ServiceRefused."""
    found, errors = said.get("version"), said.get("database_errors")
    if not isinstance(found, str) or not found:
        raise _unknown('"version"', _parts(said))
    if errors is not None and not _counts(errors):
        raise _unknown('"database_errors", if at all, as whole numbers by SQLSTATE', "something else")
    return Metrics(found, errors, _times(said.get("response_ms")))


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
    return Version(str(found[0]), str(found[1]), _commit(said.get("commit")), _commit(said.get("previous_commit")))


# -- orders -----------------------------------------------------------------------------------------------------


def orders(api: PaymeApi) -> Orders | None:
    """Whether new orders are refused, and how many are in flight."""
    return _orders(_offered(api, "GET", "/admin/orders"))


def freeze_orders(api: PaymeApi, release: str) -> Orders | None:
    """Refuse new orders from now on; what is in flight is carried out."""
    return _orders(_offered(api, "POST", "/admin/orders/freeze", {"release": release}))


def resume_orders(api: PaymeApi) -> Orders | None:
    """Take new orders again."""
    return _orders(_offered(api, "POST", "/admin/orders/resume", {}))


def place_order(api: PaymeApi, merchant: str, reference: str, *, amount: int = 1, smoke: bool = False) -> Placed | None:
    """Place an order (`amount` in shillings) of the test merchant; the same reference again is the same order.

    With `smoke` it is taken while orders are frozen, too.
    """
    url, body = f"{api.url}/orders", {"merchant": merchant, "amount": amount, "reference": reference}
    token = f"Bearer {api.token}" if smoke else ""
    answer = http.call(_SERVICE, "POST", url, authorization=token, body={**body, "smoke": True} if smoke else body)
    if answer.status == 404:
        return None
    if answer.status == 423:
        return Placed(False, "", str(answer.body.get("status", "frozen"))[:40])
    http.require_yes(_SERVICE, "POST", url, answer)
    return Placed(True, _text(answer.body, "id"), _text(answer.body, "status"))


def read_order(api: PaymeApi, order: str) -> dict[str, Any]:
    """The order as it stands: id, merchant, amount, status."""
    return http.expect(_SERVICE, "GET", f"{api.url}/orders/{order}", authorization=f"Bearer {api.token}")


def refund_order(api: PaymeApi, order: str, reference: str) -> dict[str, Any]:
    """Refund it whole; the same reference again is the same refund."""
    url, body = f"{api.url}/orders/{order}/refund", {"reference": reference}
    return http.expect(_SERVICE, "POST", url, authorization=f"Bearer {api.token}", body=body)


# -- autoscaling ------------------------------------------------------------------------------------------------


def autoscaling(api: PaymeApi) -> Replicas | None:
    """The limits as they are."""
    return _replicas(_offered(api, "GET", "/admin/autoscaling"))


def set_autoscaling(api: PaymeApi, wanted: Replicas) -> Replicas | None:
    """Set the limits; answers what holds then."""
    body = {"minimum": wanted.minimum, "maximum": wanted.maximum}
    return _replicas(_offered(api, "POST", "/admin/autoscaling", body))


# -- deploys ----------------------------------------------------------------------------------------------------


def post_deploy(api: PaymeApi, commit: str, key: str) -> None:
    """Deploy that commit: the call of the deployment guide, with a key of its own. Made once, never again by itself.

    After an error nobody knows whether it was taken, unless it is ServiceRefused.
    """
    http.expect(
        _SERVICE,
        "POST",
        f"{api.url}/deploy",
        authorization=f"Bearer {api.token}",
        form={"commit": commit},
        headers={"Idempotency-Key": key},
    )


def deploy_state(api: PaymeApi, key: str) -> DeployState | None:
    """What became of the deploy with that key."""
    said = _offered(api, "GET", f"/deploys/{key}")
    if said is None:
        return None
    state = said.get("state")
    if state not in ("unknown", "accepted", "running", "done", "failed"):
        raise _unknown('"state": unknown, accepted, running, done or failed', str(state)[:40])
    return DeployState(str(state), _commit(said.get("commit")))


def _offered(api: PaymeApi, method: str, path: str, body: dict[str, Any] | None = None) -> dict[str, Any] | None:
    url = f"{api.url}{path}"
    answer = http.call(_SERVICE, method, url, authorization=f"Bearer {api.token}", body=body)
    if answer.status == 404:
        return None
    http.require_yes(_SERVICE, method, url, answer)
    return answer.body


def _orders(said: dict[str, Any] | None) -> Orders | None:
    if said is None:
        return None
    frozen, count = said.get("frozen"), said.get("in_flight")
    if not isinstance(frozen, bool) or type(count) is not int or count < 0:
        raise _unknown('"frozen" and "in_flight"', _parts(said))
    return Orders(frozen, count)


def _replicas(said: dict[str, Any] | None) -> Replicas | None:
    if said is None:
        return None
    low, high = said.get("minimum"), said.get("maximum")
    if type(low) is not int or type(high) is not int or not 0 < low <= high:
        raise _unknown('"minimum" and "maximum", the first not above the second', _parts(said))
    return Replicas(low, high)


def _text(said: dict[str, Any], name: str) -> str:
    found = said.get(name)
    if not isinstance(found, str) or not _NAME.fullmatch(found):
        raise _unknown(f'"{name}" as a name', _parts(said))
    return found


def _commit(found: object) -> str:
    return found if isinstance(found, str) and _COMMIT.fullmatch(found) else ""


def _number(found: object) -> float | None:
    if not isinstance(found, int | float) or isinstance(found, bool):
        return None
    try:
        number = float(found)
    except OverflowError:  # a whole number of hundreds of digits
        return None
    return number if math.isfinite(number) and number >= 0 else None


def _instant(found: object) -> datetime | None:
    try:
        moment = datetime.fromisoformat(found) if isinstance(found, str) else None
    except ValueError:
        return None
    return moment if moment and moment.tzinfo else None


def _times(found: object) -> dict[str, float] | None:
    if not isinstance(found, Mapping):
        return None
    times = {name: _number(found.get(name)) for name in ("p50", "p95", "p99", "count")}
    return {name: value for name, value in times.items() if value is not None} if None not in times.values() else None


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
