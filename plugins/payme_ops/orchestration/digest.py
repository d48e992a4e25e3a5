"""The daily digest as a task body: ask everybody, each by itself, and tell it once a day.

What cannot be asked keeps nothing else from being told. Only a digest that nobody got fails the run.
"""

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from typing import TypeVar

from airflow.sdk import get_current_context
from airflow.sdk.exceptions import AirflowNotFoundException

from payme_ops.backup import freshness, preflight
from payme_ops.foundation import alert, approvals, evidence, lease, sentry_api, settings, silences
from payme_ops.foundation.alert import Outcome
from payme_ops.foundation.clock import EAT, utc_now
from payme_ops.foundation.errors import PaymeOpsError, Unavailable
from payme_ops.foundation.sentry_api import SentryApi
from payme_ops.monitoring import digest
from payme_ops.monitoring.digest import Digest, Doctor, Errors, NotKnown
from payme_ops.orchestration import alerting, connections
from payme_ops.orchestration.doors import catalogue, desk, log_reason, run_name

_log = logging.getLogger("payme_ops.digest")

KEY, _DAG = "digest", "daily_digest"
_TOP = 5
# Tries and seconds between them until a test event must have been heard.
_HEARD_TRIES, _HEARD_SECONDS = 6, 5.0
# A check that is always there: by it a run is known to have looked.
_ALWAYS = "database"
_Found = TypeVar("_Found")


def tell() -> str:
    """Gather and tell; answers what became of the message. Raises Unavailable when nobody got it."""
    context = get_current_context()
    log_reason(context)
    now, run = utc_now(), run_name(context)
    told = gather(now, run)
    words = digest.render(told)
    _log.info("%s\n%s", words.what, words.why)
    day = f"{told.day:%Y-%m-%d}"
    outcome = alerting.tell_once(context, KEY, day, words.what, words.why, words.next, now - timedelta(days=1))
    if outcome is Outcome.LOST:
        raise Unavailable("nobody got the digest", expected="the ops database or Slack", found="neither answers")
    return str(outcome)


def gather(now: datetime, run: str) -> Digest:
    """All that is told, each part asked by itself; doctor's checks are kept as evidence of `run`."""
    return Digest(
        at=now,
        errors=_part("Sentry", lambda: _errors(now)),
        alerts=_part("open alerts", lambda: alert.open_alerts(connections.ops_db())),
        silences=_part("silences", lambda: silences.active(connections.ops_db())),
        freshness=_part("freshness", lambda: _freshness(now, run)),
        approvals=_part("approvals", lambda: approvals.pending(connections.ops_db())),
        leases=_part("leases", lambda: lease.held(connections.ops_db())),
        doctor=_part("doctor", lambda: _doctor(now, run)),
    )


def _part(name: str, ask: Callable[[], _Found]) -> _Found | NotKnown:
    try:
        return ask()
    except PaymeOpsError as error:
        _log.error("%s: not known: %s", name, error)
        status = error.found.removeprefix("status ")
        return NotKnown(status if status != error.found else f"{error.what}, {error.found}".removesuffix(", "))
    except AirflowNotFoundException as error:  # names the connection, nothing else
        _log.error("%s: not known: %s", name, error)
        return NotKnown(str(error))
    except Exception as error:  # a part that is broken keeps no other from being told
        _log.exception("%s: not known", name)
        return NotKnown(f"{type(error).__name__}, see the log of the run")


def _errors(now: datetime) -> Sequence[Errors]:
    api = connections.sentry_api()
    if api is None:
        raise PaymeOpsError("there is no connection payme_sentry")
    sent = _part("Sentry's test event", lambda: sentry_api.send_sentinel(api)) if api.dsn else None
    found = [_of_project(api, now)]
    if airflow := connections.sentry_airflow_project():
        found.append(_of_project(replace(api, project=airflow), now))
    if sent is None:
        return found
    heard = sent if isinstance(sent, NotKnown) else _part("Sentry's test event", lambda: _heard(api, sent))
    return [replace(found[0], heard=heard), *found[1:]]


def _of_project(api: SentryApi, now: datetime) -> Errors:
    week, day = digest.window(now)
    name = f"Sentry, project {api.project}"
    since = f"{day:%Y-%m-%dT%H:%M:%S}"

    def kinds(query: str, most: int) -> Sequence[sentry_api.Issue] | NotKnown:
        return _part(name, lambda: sentry_api.issues(api, f"{sentry_api.ERRORS} {query}".strip(), day, now, most))

    return Errors(
        project=api.project,
        counts=_part(name, lambda: digest.counts(sentry_api.errors_by_hour(api, week, now), day)),
        top=kinds("", _TOP),
        new=kinds(f"firstSeen:>={since}", digest.MOST_KINDS),
        regressed=kinds("is:regressed", digest.MOST_KINDS),
    )


def _heard(api: SentryApi, event: str) -> bool:
    for number in range(_HEARD_TRIES):
        if number:
            time.sleep(_HEARD_SECONDS)
        if sentry_api.heard(api, event):
            return True
    return False


def _freshness(now: datetime, run: str) -> Sequence[evidence.Evidence]:
    config = settings.load()
    return freshness.measure(catalogue("payme_s3_write"), config.targets, now, actor=run, desk=config.desk)


def _doctor(now: datetime, run: str) -> Doctor:
    found = preflight.examine(desk(), actor=run, for_run=False)
    ops = connections.ops_db()
    today = now.astimezone(EAT).replace(hour=0, minute=0, second=0, microsecond=0)
    earlier = evidence.newest_before(ops, _DAG, _ALWAYS, today)
    evidence.record(ops, run, found)
    if earlier is None:
        return Doctor(found, None, None)
    before = {one.item: one.verdict for one in evidence.of_run(ops, earlier[0])}  # the newest of each
    return Doctor(found, before, earlier[1])
