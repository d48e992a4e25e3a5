"""Looks at an application from a trigger's thread: taken, stored, and what they come to."""

import logging
from datetime import datetime, timedelta

from payme_ops.foundation import health, samples
from payme_ops.foundation.clock import show, utc_now
from payme_ops.foundation.errors import Unavailable
from payme_ops.foundation.evidence import Finding, Verdict, passed
from payme_ops.foundation.health import Expected, State
from payme_ops.foundation.samples import Sample
from payme_ops.orchestration import connections

_log = logging.getLogger("payme_ops.health")


def _ops() -> str:
    return connections.conninfo("payme_ops_db")


def health_once(
    environment: str,
    subject: str,
    commit: str,
    uptime_below: float | None,
    consecutive: int,
    interval_seconds: float,
    begun: str,
    until: str,
) -> float | None:
    """Look and store; how long to wait for the next look, None when it can be decided.

    The uptime allowed grows with the time since the deploy, which `uptime_below` counts at `begun`.
    """
    now, first = utc_now(), datetime.fromisoformat(begun)
    api = connections.payme_api(environment)
    if api is None:
        return None
    allowed = None if uptime_below is None else uptime_below + (now - first).total_seconds()
    found = health.look(api.url, Expected(commit, allowed), now)
    sample = Sample(now, found.state, found.ms, {"why": found.why, "commit": found.commit})
    try:
        samples.store(_ops(), subject, sample)
        stored = samples.of(_ops(), subject, first, now + timedelta(seconds=1))
    except Unavailable as error:
        _log.warning("%s; looking again", error)
        return interval_seconds
    _log.info("%s: %s (%s)", environment, found.state, found.why)
    if health.consecutive([one.state for one in stored], consecutive).verdict is Verdict.PASS:
        return None
    if now >= datetime.fromisoformat(until):
        return None
    return max(interval_seconds, found.wait_seconds)


def rule(subject: str, begun: datetime, consecutive: int) -> Finding:
    """What the stored looks come to: pass, fail when one of the last was unhealthy, else nobody could tell."""
    found = samples.of(_ops(), subject, begun, utc_now() + timedelta(seconds=1))
    if not found:
        return Finding(Verdict.INCONCLUSIVE, {"looks": 0}, "nobody could look: is the connection there?")
    states = [one.state for one in found]
    measured = {
        "looks": len(found),
        "healthy": states.count(State.HEALTHY),
        "unhealthy": states.count(State.UNHEALTHY),
        "unknown": states.count(State.UNKNOWN),
        "last": found[-1].facts.get("why", ""),
        "commit": found[-1].facts.get("commit") or "not told",
        "ms": found[-1].ms,
        "at": show(found[-1].at),
    }
    if health.consecutive(states, consecutive).verdict is Verdict.PASS:
        return passed({**measured, "in a row": consecutive})
    if State.UNHEALTHY in states[-consecutive:]:
        return Finding(Verdict.FAIL, measured, "read the application's log: it does not get well")
    return Finding(Verdict.INCONCLUSIVE, measured, "look at the application yourself: these answers say nothing")
