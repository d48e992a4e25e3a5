"""Whether an API keeps docs/payme-api-contract.md: one check for each thing that the desk relies on.

`reading` changes nothing. `changing` stops the API and starts it again, stops orders and takes them again, places one
of the test merchant, and leaves all as it was: never for production. What an API does not offer (404) is not tried.
"""

import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

from payme_ops.foundation import http, payme_api
from payme_ops.foundation.errors import ServiceRefused
from payme_ops.foundation.evidence import Check, Finding, failed, passed
from payme_ops.foundation.payme_api import PaymeApi, Replicas
from payme_ops.release.smoke import healthy_in_a_row

_SERVICE = "the PayMe API"
_REMEDY = "make the API answer as docs/payme-api-contract.md says"
_HEALTHY_SECONDS = 120
_NOT_OFFERED = passed({"offered": "no, a person is asked instead"})


@dataclass(frozen=True)
class Subject:
    """The API with its token for /admin, the same with the one that deploys (None: not here), and the test merchant."""

    api: PaymeApi
    deploys: PaymeApi | None
    merchant: str


def reading(subject: Subject, environment: str = "") -> list[Check]:
    """What can be asked without changing anything."""
    return _checks(subject, environment, [_health, _commits, _metrics, _admin_token, _orders, _autoscaling, _deploys])


def changing(subject: Subject, environment: str = "") -> list[Check]:
    """What stops, starts and places orders. Every one leaves the API as it was, unless the API itself fails."""
    measures = [_stop_and_start, _previous, _unknown_version, _metrics_follow, _stop_wants_token]
    return _checks(subject, environment, [*measures, _freeze, _smoke_wants_token, _set_autoscaling, _unknown_commit])


def _checks(subject: Subject, environment: str, measures: list[Callable[[Subject], Finding]]) -> list[Check]:
    prefix = f"api_{environment}_" if environment else "api_"
    return [_check(prefix, measure, subject) for measure in measures]


def _check(prefix: str, measure: Callable[[Subject], Finding], subject: Subject) -> Check:
    threshold = (measure.__doc__ or "").rstrip(".")
    return Check(f"{prefix}{measure.__name__.removeprefix('_')}", threshold, _SERVICE, lambda: measure(subject))


def _judge(**pairs: tuple[object, object]) -> Finding:
    """(expected, found) by what it is."""
    wrong = {name: f"{found}, expected {expected}" for name, (expected, found) in pairs.items() if expected != found}
    return failed(wrong, _REMEDY) if wrong else passed({"as the contract says": list(pairs)})


# -- reading ----------------------------------------------------------------------------------------------------


def _health(subject: Subject) -> Finding:
    """Healthy, with status, database and the version that /version names, too."""
    found = payme_api.health(subject.api)
    return _judge(
        healthy=(True, found.healthy),
        status=("healthy", found.status),
        database=("connected", found.database),
        version=(payme_api.version(subject.api).version, found.version),
    )


def _commits(subject: Subject) -> Finding:
    """The commit that runs, the same in both answers, and another one before; or none at all."""
    found = payme_api.version(subject.api)
    return _judge(
        commit=(found.commit, payme_api.health(subject.api).commit),
        another_before=(True, found.commit != found.previous_commit or not found.commit),
    )


def _metrics(subject: Subject) -> Finding:
    """The version that runs, and counts of errors if any."""
    return _judge(version=(payme_api.version(subject.api).version, payme_api.metrics(subject.api.url).version))


def _admin_token(subject: Subject) -> Finding:
    """Status 401 without the token for /admin, 403 with a wrong one."""
    for path in ("/admin/orders", "/admin/autoscaling"):
        if _status(subject, "GET", path, subject.api.token) != 404:
            return _judge(
                without=(401, _status(subject, "GET", path, "")), wrong=(403, _status(subject, "GET", path, "wrong"))
            )
    return _NOT_OFFERED


def _orders(subject: Subject) -> Finding:
    """Whether orders are stopped, and how many are in flight."""
    found = payme_api.orders(subject.api)
    return passed({"frozen": found.frozen, "in_flight": found.in_flight}) if found else _NOT_OFFERED


def _autoscaling(subject: Subject) -> Finding:
    """The limits of autoscaling."""
    found = payme_api.autoscaling(subject.api)
    return passed({"minimum": found.minimum, "maximum": found.maximum}) if found else _NOT_OFFERED


def _deploys(subject: Subject) -> Finding:
    """A deploy that never was is unknown."""
    found = payme_api.deploy_state(subject.api, f"no-such-deploy-{uuid.uuid4().hex}")
    return _judge(state=("unknown", found.state)) if found else _NOT_OFFERED


def _status(subject: Subject, method: str, path: str, token: str) -> int:
    authorization = f"Bearer {token}" if token else ""
    return http.call(_SERVICE, method, f"{subject.api.url}{path}", authorization=authorization).status


# -- changing ---------------------------------------------------------------------------------------------------


def _stop_and_start(subject: Subject) -> Finding:
    """Stop and start may be repeated and name what ran."""
    api, before = subject.api, payme_api.version(subject.api)
    with _as_it_was(api):
        stopped = [payme_api.stop(api), payme_api.stop(api)]
        found = payme_api.health(api)
        started = [payme_api.start(api, before.version).version for _ in range(2)]
    return _judge(
        another_before=(True, bool(before.previous)),
        stopped=([before, before], stopped),
        health=((False, "stopped"), (found.healthy, found.status)),
        started=([before.version] * 2, started),
        afterwards=(before, payme_api.version(api)),
    )


def _previous(subject: Subject) -> Finding:
    """Another version makes the last one the previous."""
    before = payme_api.version(subject.api)
    with _as_it_was(subject.api):
        after = payme_api.start(subject.api, before.previous)
    return _judge(versions=((before.previous, before.version), (after.version, after.previous)))


def _unknown_version(subject: Subject) -> Finding:
    """A version that there is not is refused with 422, and nothing changes."""
    before = payme_api.version(subject.api)
    with _as_it_was(subject.api):
        refused = _refused(lambda: payme_api.start(subject.api, "no such version"))
        found = payme_api.version(subject.api), payme_api.health(subject.api).healthy
    return _judge(refused=(True, "status 422" in refused), afterwards=((before, True), found))


def _metrics_follow(subject: Subject) -> Finding:
    """The metrics name each version that runs."""
    before = payme_api.version(subject.api)
    with _as_it_was(subject.api):
        payme_api.start(subject.api, before.previous)
        found = payme_api.metrics(subject.api.url).version
    return _judge(version=(before.previous, found))


def _stop_wants_token(subject: Subject) -> Finding:
    """Nobody stops it without the token."""
    with _as_it_was(subject.api):
        found = [_status(subject, "POST", "/admin/stop", token) for token in ("", "wrong")]
        healthy = payme_api.health(subject.api).healthy
    return _judge(statuses=([401, 403], found), healthy=(True, healthy))


def _freeze(subject: Subject) -> Finding:
    """Stopped orders are refused except a smoke order, and taken again; what is repeated is done once."""
    if payme_api.orders(subject.api) is None:
        return _NOT_OFFERED
    if not subject.merchant:
        return passed({"tried": "no, PAYME_OPS__RELEASE__TEST_MERCHANT is not set"})
    api, name = subject.api, f"contract-{uuid.uuid4().hex[:12]}"
    try:
        frozen = [_frozen(payme_api.freeze_orders(api, name)) for _ in range(2)]
        refused = payme_api.place_order(api, subject.merchant, f"{name}-refused")
        taken = payme_api.place_order(api, subject.merchant, f"{name}-smoke", smoke=True)
    finally:
        resumed = [_frozen(payme_api.resume_orders(api)) for _ in range(2)]
    if refused is None or taken is None:
        return failed({"orders": "not offered, though they can be stopped"}, _REMEDY)
    again = payme_api.place_order(api, subject.merchant, f"{name}-smoke", smoke=True)
    refunds = [payme_api.refund_order(api, taken.id, name).get("id") for _ in range(2)]
    return _judge(
        frozen=([True, True], frozen),
        refused=((False, "frozen"), (refused.accepted, refused.status)),
        smoke_order=(True, taken.accepted),
        resumed=([False, False], resumed),
        same_order=(taken.id, again.id if again else None),
        same_refund=(refunds[0], refunds[1]),
        afterwards=("refunded", payme_api.read_order(api, taken.id).get("status")),
    )


def _smoke_wants_token(subject: Subject) -> Finding:
    """A smoke order wants the token."""
    if payme_api.orders(subject.api) is None:
        return _NOT_OFFERED
    stranger = replace(subject.api, token="wrong")  # noqa: S106  # no token
    refused = _refused(lambda: payme_api.place_order(stranger, subject.merchant, "no-token", smoke=True))
    return _judge(refused=(True, "status 401" in refused or "status 403" in refused))


def _set_autoscaling(subject: Subject) -> Finding:
    """Limits of autoscaling are kept as they are set."""
    before = payme_api.autoscaling(subject.api)
    if before is None:
        return _NOT_OFFERED
    fixed = Replicas(before.maximum, before.maximum)
    try:
        found = payme_api.set_autoscaling(subject.api, fixed), payme_api.autoscaling(subject.api)
    finally:
        after = payme_api.set_autoscaling(subject.api, before)
    return _judge(fixed=((fixed, fixed), found), afterwards=(before, after))


def _unknown_commit(subject: Subject) -> Finding:
    """A commit that it has no build of is refused with 422."""
    deploys = subject.deploys
    if deploys is None:
        return passed({"tried": "no, the token that deploys is not here"})
    if payme_api.deploy_state(subject.api, "no-such-deploy") is None:
        return _NOT_OFFERED
    refused = _refused(lambda: payme_api.post_deploy(deploys, "0" * 40, f"contract-{uuid.uuid4().hex}"))
    return _judge(refused=(True, "status 422" in refused))


def _frozen(orders: payme_api.Orders | None) -> bool | None:
    return orders.frozen if orders else None


def _refused(ask: Callable[[], object]) -> str:
    """What it said no with; "" where it said yes."""
    try:
        ask()
    except ServiceRefused as error:
        return error.found
    return ""


@contextmanager
def _as_it_was(api: PaymeApi) -> Iterator[None]:
    """The version of the beginning runs again afterwards, and is well."""
    before = payme_api.version(api)
    try:
        yield
    finally:
        if payme_api.version(api) != before or not payme_api.health(api).healthy:
            payme_api.start(api, before.version)
            healthy_in_a_row(api, 1, _HEALTHY_SECONDS)
