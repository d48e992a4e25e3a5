"""Orders are stopped for a deploy, and always taken again.

The term `freeze:<env>` is taken before the API is told, and ends only when the API has said that it takes orders again.
So whatever is killed between, there is a term that nobody renews, and the watchdog ends what it stands for.
"""

import time
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta

from payme_ops.foundation import evidence, lease, payme_api
from payme_ops.foundation.clock import show, utc_now
from payme_ops.foundation.errors import LeaseLost, PaymeOpsError
from payme_ops.foundation.evidence import Evidence, Finding, Verdict, failed, passed
from payme_ops.foundation.lease import Keeper, Term
from payme_ops.foundation.payme_api import PaymeApi
from payme_ops.foundation.settings import ReleaseSettings
from payme_ops.release.request import Release

PREFIX = "freeze:"
NOT_STOPPED = {"orders": "not stopped"}  # measured where the API does not offer it
_POLL_SECONDS = 0.5
# How long the watchdog has for one try; what it could not end, it claims again.
_CLAIM = timedelta(seconds=30)


def term_name(release: Release) -> str:
    """The freeze of its environment."""
    return f"{PREFIX}{release.request.environment}"


def freeze(ops: str, release: Release, api: PaymeApi | None, settings: ReleaseSettings) -> Finding:
    """Stop new orders, wait until none is in flight, and see that an order of the test merchant is refused.

    What fails on the way takes orders again before it is told. Inconclusive, and nothing stopped, where the API does
    not offer it. Raises LeaseHeld, LeaseLost, Unavailable, ServiceRefused.
    """
    if api is None or payme_api.orders(api) is None:
        return _not_offered()
    ttl = timedelta(seconds=settings.freeze_seconds)
    term = lease.take_term(ops, term_name(release), release.run, ttl)
    try:
        with lease.keeping(ops, [term], ttl) as keeper:
            payme_api.freeze_orders(api, release.id)
            found = _frozen(api, release, settings, keeper)
    except LeaseLost:  # whoever has the term now takes orders again
        raise
    except BaseException:
        resume(ops, release, api, settings)
        raise
    if found.verdict is Verdict.FAIL:
        resume(ops, release, api, settings)
    return found


def _not_offered() -> Finding:
    todo = "the API cannot stop orders: warn users, and see that support knows"
    return Finding(Verdict.INCONCLUSIVE, NOT_STOPPED, todo)


def _frozen(api: PaymeApi, release: Release, settings: ReleaseSettings, keeper: Keeper) -> Finding:
    begun = time.monotonic()
    while (now := payme_api.orders(api)) and now.in_flight and time.monotonic() - begun < settings.drain_seconds:
        keeper.check()
        time.sleep(_POLL_SECONDS)
    measured: dict[str, object] = {"in flight": now.in_flight if now else "not told", "since": show(utc_now())}
    if now is None or not now.frozen:
        return failed({**measured, "frozen": False}, "the API does not say that orders are stopped: look at its log")
    if now.in_flight:
        todo = f"orders do not end within {settings.drain_seconds} s: see which, then clear this task"
        return failed(measured, todo)
    keeper.check()
    return _probe(api, release, settings, measured)


def _probe(api: PaymeApi, release: Release, settings: ReleaseSettings, measured: dict[str, object]) -> Finding:
    """An order of the test merchant says whether it is true."""
    if not settings.test_merchant:
        todo = "PAYME_OPS__RELEASE__TEST_MERCHANT is not set: only the API says that orders are stopped"
        return Finding(Verdict.INCONCLUSIVE, {**measured, "probe order": "not tried"}, todo)
    probe = payme_api.place_order(api, settings.test_merchant, f"{release.id}-frozen")
    if probe is None:
        return Finding(Verdict.INCONCLUSIVE, {**measured, "probe order": "not offered"}, "the API takes no test orders")
    if probe.accepted:
        payme_api.refund_order(api, probe.id, f"{release.id}-frozen")
        return failed({**measured, "probe order": f"taken as {probe.id}"}, "the API says frozen and takes orders")
    return passed({**measured, "probe order": "refused"})


def are_stopped(frozen: Evidence) -> bool:
    """Whether that evidence of the freeze says so, or may: not where the API does not offer it."""
    return not (isinstance(frozen.measured, dict) and frozen.measured.get("orders") == NOT_STOPPED["orders"])


def require_frozen(ops: str, release: Release) -> Term:
    """The freeze of this release. Raises LeaseLost when it has ended: orders may be taken by now."""
    found = lease.living_term(ops, term_name(release))
    if found is None or found.holder != release.run:
        raise LeaseLost(
            "orders are not stopped any more",
            expected=f"the freeze of {release.run}",
            found=f"one of {found.holder}" if found else "none: it was not renewed in time",
            remedy="clear freeze_orders and what comes after it",
        )
    return found


def resume(ops: str, release: Release, api: PaymeApi | None, settings: ReleaseSettings) -> Finding:
    """Take orders again, see that one is taken, and only then end the freeze. May be run again.

    Raises Unavailable, ServiceRefused: orders may still be stopped, and the watchdog goes on trying.
    """
    if api is None:
        return _not_offered()
    told = payme_api.resume_orders(api)
    if told is None:
        return passed({"orders": "were not stopped"})
    if told.frozen:
        return failed({"frozen": True}, "the API does not take orders again: look at its log, then clear this task")
    measured = _taken(api, release.id, settings.test_merchant)
    if found := _ours(ops, release):
        lease.end_term(ops, found.name, found.token)
    if measured.get("probe order") == "refused":
        return failed(measured, "the API says that it takes orders, and refuses one: look at its log")
    return passed({**measured, "since": show(utc_now())})


def _ours(ops: str, release: Release) -> Term | None:
    """Our term, also one that has expired and that nobody has taken over yet."""
    try:
        return lease.take_term(ops, term_name(release), release.run, timedelta(seconds=60))
    except PaymeOpsError:
        return None


def _taken(api: PaymeApi, name: str, merchant: str) -> dict[str, object]:
    """An order of the test merchant and its refund."""
    reference = f"{name}-resumed"
    probe = payme_api.place_order(api, merchant, reference) if merchant else None
    if probe is None:
        return {"frozen": False, "probe order": "not tried"}
    if not probe.accepted:
        return {"frozen": False, "probe order": "refused"}
    payme_api.refund_order(api, probe.id, reference)
    return {"frozen": False, "probe order": "taken", "id": probe.id}


@dataclass(frozen=True)
class Expired:
    """A freeze that nobody renewed, and what became of it: `error` "" means that orders are taken again."""

    environment: str
    holder: str
    since: str
    error: str


def resume_expired(ops: str, apis: Mapping[str, PaymeApi], who: str, merchant: str) -> list[Expired]:
    """Take orders again wherever a freeze was not renewed; for the watchdog, which tries what failed again.

    Raises DatabaseUnavailable.
    """
    done = []
    for term in lease.claim_expired(ops, PREFIX, who, _CLAIM):
        environment = term.name.removeprefix(PREFIX)
        api, error = apis.get(environment), ""
        try:
            if api is None:
                raise PaymeOpsError(f"nobody has told {who} where the API of {environment} is")
            told = payme_api.resume_orders(api)
            if told is not None and told.frozen:
                raise PaymeOpsError("the API does not take orders again")
            measured = _taken(api, f"{environment}-{term.token}", merchant) if told is not None else {}
            lease.end_term(ops, term.name, term.token)
            if term.holder.startswith("release/"):
                finding = passed({**measured, "by": who, "because": "the freeze was not renewed"})
                _keep(ops, term.holder, finding)
        except PaymeOpsError as problem:
            error = str(problem)
        done.append(Expired(environment, term.holder, show(term.taken_at), error))
    return done


def _keep(ops: str, run: str, finding: Finding) -> None:
    evidence.keep(ops, run, "resume_orders", finding, threshold="orders are taken again", source="watchdog")
