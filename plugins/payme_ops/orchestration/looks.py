"""Looks at an application from a trigger's thread: taken, stored, and what they come to."""

import logging
import time
from datetime import datetime, timedelta
from typing import Any

import psycopg

from payme_ops.foundation import health, lease, payme_api, samples, sentry_api
from payme_ops.foundation import settings as config
from payme_ops.foundation.clock import show, utc_now
from payme_ops.foundation.errors import LeaseLost, PaymeOpsError, Unavailable
from payme_ops.foundation.evidence import Finding, Verdict, passed
from payme_ops.foundation.health import Expected, State
from payme_ops.foundation.lease import Term
from payme_ops.foundation.postgres import connect
from payme_ops.foundation.samples import Sample
from payme_ops.foundation.settings import ReleaseSettings
from payme_ops.foundation.sql import load
from payme_ops.monitoring import outages
from payme_ops.orchestration import connections
from payme_ops.orchestration.connections import ops_db
from payme_ops.release import watch
from payme_ops.release.watch import Limits

_log = logging.getLogger("payme_ops.release")

_BASELINE = timedelta(hours=24)
# Of the looks, which are 30 s apart: Sentry is asked once a minute, and heard of by a sentinel every ten.
_SENTRY_LOOKS, _SENTINEL_LOOKS = 2, 20
_SENTRY_LATE = timedelta(minutes=5)  # what it counts of a minute may still grow


def health_once(
    environment: str,
    subject: str,
    commit: str,
    uptime_below: float | None,
    consecutive: int,
    interval_seconds: float,
    begun: str,
    until: str,
    terms: list[list[Any]],
) -> float | None:
    """Look and store; how long to wait for the next look, None when it can be decided.

    The uptime allowed grows with the time since the deploy, which `uptime_below` counts at `begun`. Renews `terms`
    (name, token, seconds).
    """
    now, first = utc_now(), datetime.fromisoformat(begun)
    api = connections.payme_api(environment)
    if api is None:
        return None
    allowed = None if uptime_below is None else uptime_below + (now - first).total_seconds()
    found = health.look(api.url, Expected(commit, allowed), now)
    sample = Sample(now, found.state, found.ms, {"why": found.why, "commit": found.commit})
    try:
        samples.store(ops_db(), subject, sample)
        stored = samples.of(ops_db(), subject, first, now + timedelta(seconds=1))
        _renew(terms)
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
    found = samples.of(ops_db(), subject, begun, utc_now() + timedelta(seconds=1))
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


def outage_once(outage: int, subject: str) -> float | None:
    """Whether the outage is over; how long to wait for the next look, None when it is."""
    interval = config.load().monitoring.interval_seconds
    try:
        return interval if outages.get(ops_db(), outage).ended_at is None else None
    except Unavailable as error:
        _log.warning("outage %d of %s: %s; looking again", outage, subject, error)
        return interval


# -- the watch --------------------------------------------------------------------------------------------------


def watch_once(
    environment: str, subject: str, commit: str, begun: str, until: str, terms: list[list[Any]], judging: bool
) -> float | None:
    """One look of the watch with everything beside it; how long to wait for the next, None when it is over.

    `judging`: a watch, which also asks Sentry and the database and ends with a breach. Renews `terms` (name, token,
    seconds).
    """
    started, now = time.monotonic(), utc_now()
    settings = config.load().release
    interval = float(settings.sample_seconds)
    first, last = datetime.fromisoformat(begun), datetime.fromisoformat(until)
    try:
        stored = samples.of(ops_db(), subject, first, now + timedelta(seconds=1))
        if early := _early(stored, now, interval):  # it was started again
            return early if now + timedelta(seconds=early) <= last else None
        sample = _take(environment, commit, settings, stored, first, now, judging)
        interval = max(interval, _asked_to_wait(sample))
        samples.store(ops_db(), subject, sample)
        if not _renew(terms):
            return None
        if judging and verdict(subject, environment, first, last).verdict is Verdict.FAIL:
            return None
    except Unavailable as error:
        _log.warning("%s; looking again", error)
    if utc_now() + timedelta(seconds=interval) > last:
        return None
    return max(0.0, interval - (time.monotonic() - started))


def _early(stored: list[Sample], now: datetime, interval: float) -> float:
    """Seconds until the next look is due; 0 when it is."""
    if not stored:
        return 0.0
    left = max(interval, _asked_to_wait(stored[-1])) - (now - stored[-1].at).total_seconds()
    return left if left > interval / 4 else 0.0


def _asked_to_wait(sample: Sample) -> float:
    """Seconds, by the answer's Retry-After."""
    return float(sample.facts.get("wait", 0.0))


def _renew(terms: list[list[Any]]) -> bool:
    """Keep what is ours; False when the release's was taken over: another release decides now."""
    ours = True
    for name, token, seconds in terms:
        try:
            lease.renew_term(ops_db(), Term(name, "the watch", token, utc_now(), utc_now()), timedelta(seconds=seconds))
        except LeaseLost as error:
            _log.error("%s", error)
            ours = ours and not name.startswith("release:")
    return ours


def _take(
    environment: str,
    commit: str,
    settings: ReleaseSettings,
    stored: list[Sample],
    begun: datetime,
    now: datetime,
    judging: bool,
) -> Sample:
    api = connections.payme_api(environment)
    if api is None:
        return Sample(now, State.UNKNOWN, 0.0, {"why": "no connection to the API"})
    found = health.look(api.url, Expected(commit), now)
    facts: dict[str, Any] = {"why": found.why, "commit": found.commit}
    facts |= {"wait": found.wait_seconds} if found.wait_seconds else {}
    try:
        told = payme_api.metrics(api.url).response_ms
        facts |= {"p95": told["p95"]} if told else {}
    except PaymeOpsError as error:
        facts["metrics"] = type(error).__name__
    if judging:
        facts |= _sentry(stored, begun, now, settings.sample_seconds)
        facts |= _database(environment, settings)
    return Sample(now, found.state, found.ms, facts)


def _sentry(stored: list[Sample], begun: datetime, now: datetime, interval: float) -> dict[str, Any]:
    """Errors by minute and new kinds of them, at every second look; a sentinel at every twentieth."""
    asked = [one for one in stored if "sentry" in one.facts]
    if asked and (now - asked[-1].at).total_seconds() < (_SENTRY_LOOKS - 0.5) * interval:
        return {}
    sent = [one for one in asked if one.facts.get("sent")]
    try:
        api = connections.sentry_api()
        if api is None:
            return {"sentry": "not configured"}
        facts: dict[str, Any] = {"sentry": "asked"}
        if sent:
            facts["sentinel"] = sentry_api.heard(api, sent[-1].facts["sent"])
        if not sent or (now - sent[-1].at).total_seconds() > _SENTINEL_LOOKS * interval or not facts["sentinel"]:
            facts["sent"] = sentry_api.send_sentinel(api)
        facts["errors"] = sentry_api.errors_by_minute(api, max(begun, now - _SENTRY_LATE), now)
        facts["new_issues"] = [one.title for one in sentry_api.new_issues(api, begun)]
    except PaymeOpsError as error:
        _log.warning("Sentry: %s", error)
        return {"sentry": type(error).__name__, "sentinel": False}
    return facts


def _database(environment: str, settings: ReleaseSettings) -> dict[str, Any]:
    if environment != "production":
        return {"database": {}}  # nobody has a door to staging's
    values = {"query_seconds": settings.query_seconds, "lock_seconds": settings.lock_seconds}
    try:
        with connect(connections.conninfo("payme_db_read"), application="payme_ops:watch") as session:
            row = session.execute(load("release/database_load.sql"), values).fetchone()
    except (PaymeOpsError, psycopg.Error) as error:
        return {"database": type(error).__name__}
    if row is None or not row[4]:
        return {"database": "the role may not see other sessions: grant pg_read_all_stats"}
    percent = round(100 * row[0] / max(1, row[1]))
    return {"database": {"connections_percent": percent, "slow_queries": row[2], "lock_waits": row[3]}}


def verdict(subject: str, environment: str, begun: datetime, until: datetime) -> watch.Judgement:
    """What the stored looks of a watch come to. Raises DatabaseUnavailable."""
    settings = config.load().release
    limits = Limits(
        p95_ms=settings.p95_ms,
        errors_per_minute=settings.errors_per_minute,
        connections_percent=settings.connections_percent,
    )
    return watch.judge(
        samples.of(ops_db(), subject, begun, until + timedelta(minutes=1)),
        baseline(environment, begun),
        limits,
        begun=begun,
        until=until,
        interval=timedelta(seconds=settings.sample_seconds),
    )


def baseline(environment: str, until: datetime) -> list[float]:
    """p95 in milliseconds of the healthy looks of the day before, stored under the environment's name."""
    found = samples.of(ops_db(), environment, until - _BASELINE, until)
    return [watch.time_of(one) for one in found if one.state is State.HEALTHY]
