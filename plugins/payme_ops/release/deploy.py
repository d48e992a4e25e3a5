"""One deploy, posted once: what is meant is written down first, and who comes back looks before it acts.

The key of a deploy is made of the release and never changes, so the API can tell a second call from a second deploy.
Only one row, and only one update of it, ever leads to a POST: after a kill in between nobody knows whether it was made,
and then the API is asked, never told again. (An operator of Airflow may send a POST twice: apache/airflow#67945.)
"""

import time
from dataclasses import dataclass
from datetime import datetime, timedelta

from psycopg.rows import class_row

from payme_ops.foundation import lease, payme_api
from payme_ops.foundation.clock import show
from payme_ops.foundation.errors import NotApproved, PaymeOpsError, ServiceRefused, Unavailable
from payme_ops.foundation.evidence import Evidence, Finding, Verdict, failed, passed
from payme_ops.foundation.lease import Term
from payme_ops.foundation.payme_api import PaymeApi, Version
from payme_ops.foundation.postgres import connect, speaking
from payme_ops.foundation.progress import Report
from payme_ops.foundation.settings import ReleaseSettings
from payme_ops.foundation.sql import load
from payme_ops.release.request import Release

DEPLOY, ROLLBACK = "deploy", "rollback"
_UNKNOWN, _TAKEN, _NOT_TAKEN, _REFUSED, _DONE, _FAILED = "unknown", "taken", "not taken", "refused", "done", "failed"
_POLL_SECONDS = 1.0


@dataclass(frozen=True)
class Doors:
    """The API to ask, and the same with the token that deploys."""

    asks: PaymeApi
    deploys: PaymeApi


@dataclass(frozen=True)
class Intent:
    """What was meant to be deployed, and what came of it. `token` is the fencing token of the release's term."""

    release: str
    kind: str
    commit: str
    key: str
    token: int
    intended_at: datetime
    posted_at: datetime | None
    outcome: str
    settled_at: datetime | None


def was_posted(ops: str, release: Release) -> bool:
    """Whether its deploy may have reached the API. Raises DatabaseUnavailable."""
    found = intent(ops, release, DEPLOY)
    return found is not None and found.posted_at is not None and found.outcome not in (_NOT_TAKEN, _REFUSED)


def intent(ops: str, release: Release, kind: str) -> Intent | None:
    """The intent, if it was written down. Raises DatabaseUnavailable."""
    with (
        connect(ops, application="payme_ops:deploy") as connection,
        speaking("read the deploy"),
        connection.cursor(row_factory=class_row(Intent)) as cursor,
    ):
        return cursor.execute(load("ops/deploy_of.sql"), {"release": release.id, "kind": kind}).fetchone()


def deploy(
    ops: str, release: Release, doors: Doors, settings: ReleaseSettings, terms: list[Term], report: Report
) -> Finding:
    """Deploy the release's commit, unless that was done, and read back what runs.

    `terms` must be ours right before the POST; the first is `release:<env>`. Raises LeaseLost, Unavailable (nothing
    was taken; try again), PaymeOpsError when nobody can tell whether it was deployed.
    """
    return _bring(ops, release, DEPLOY, release.request.commit, doors, settings, terms, report)


def roll_back(
    ops: str,
    release: Release,
    doors: Doors,
    settings: ReleaseSettings,
    terms: list[Term],
    migrations: Evidence | None,
    report: Report,
) -> Finding:
    """Bring the previous commit back, once. Raises NotApproved unless a rehearsal has shown that it may go back."""
    measured = migrations.measured if migrations and migrations.verdict is Verdict.PASS else {}
    if not (isinstance(measured, dict) and measured.get("rollback_safe") is True):
        raise NotApproved(
            "the previous commit may not be brought back by itself",
            expected="migrations_tested with rollback_safe: up, down and up again on a restored backup",
            found=f"{migrations.verdict if migrations else 'no evidence'}",
            remedy="decide with the database's administrator: repair forward, or backup_restore with its own approval",
        )
    return _bring(ops, release, ROLLBACK, release.request.previous_commit, doors, settings, terms, report)


def _bring(
    ops: str,
    release: Release,
    kind: str,
    commit: str,
    doors: Doors,
    settings: ReleaseSettings,
    terms: list[Term],
    report: Report,
) -> Finding:
    begun = time.monotonic()
    values = {"release": release.id, "kind": kind, "commit": commit, "key": f"{release.id}-{kind}"}
    _execute(ops, "ops/intend_deploy.sql", {**values, "token": terms[0].token})
    meant = intent(ops, release, kind)
    if meant is None:
        raise PaymeOpsError(f"the {kind} of {release.id} could not be written down")
    posts = meant.posted_at is None or meant.outcome == _NOT_TAKEN or _never_got(doors.asks, meant)
    if posts:
        _post(ops, meant, doors, terms, report)
    report(f"{kind} {meant.key}: waiting for {commit[:12]} to answer")
    posted = "by this try" if posts else "by an earlier try, and not again"
    return _read_back(ops, meant, doors.asks, settings, begun, posted)


def _never_got(api: PaymeApi, meant: Intent) -> bool:
    """Whether the API says that the POST of a task that was killed has not reached it."""
    if meant.outcome != _UNKNOWN:
        return False
    if (found := _running(api)) and found.commit == meant.commit:
        return False
    state = payme_api.deploy_state(api, meant.key)
    return state is not None and state.state == _UNKNOWN


def _post(ops: str, meant: Intent, doors: Doors, terms: list[Term], report: Report) -> None:
    if meant.outcome == _UNKNOWN:
        _say(ops, meant, _NOT_TAKEN)
    for term in terms:  # fencing: what was taken over since is noticed here, not after
        lease.renew_term(ops, term, max(term.expires_at - term.taken_at, timedelta(seconds=60)))
    values = {"release": meant.release, "kind": meant.kind, "token": terms[0].token}
    if _execute(ops, "ops/claim_post.sql", values) != 1:
        return  # another process of this task posts, or has posted
    report(f"POST /deploy {meant.commit} with key {meant.key}")
    try:
        payme_api.post_deploy(doors.deploys, meant.commit, meant.key)
    except ServiceRefused as error:
        _say(ops, meant, _REFUSED)
        raise ServiceRefused(
            "the API refused to deploy",
            expected="status 2xx, without a redirect",
            found=error.found.split(" ", 2)[1] if error.found.startswith("status ") else "another answer",
            remedy="nothing was deployed: compare connection, token and commit with the API's log",
        ) from None
    except Unavailable as error:
        report(f"no answer to the POST: {error.found}")
        if _never_got(doors.asks, meant_with(meant, _UNKNOWN)):
            _say(ops, meant, _NOT_TAKEN)
            raise Unavailable(
                "the API did not take the deploy", found=error.found, remedy="it is tried again"
            ) from None
        return
    _say(ops, meant, _TAKEN)


def meant_with(meant: Intent, outcome: str) -> Intent:
    """The same intent with that outcome."""
    return Intent(**{**meant.__dict__, "outcome": outcome})


def _read_back(ops: str, meant: Intent, api: PaymeApi, settings: ReleaseSettings, begun: float, posted: str) -> Finding:
    """Wait until that commit runs; end early when the API says that it failed, or is done with another."""
    deadline, last = time.monotonic() + settings.settle_seconds, "no answer"
    while True:
        state, found = _state(api, meant.key), _running(api)
        measured = {
            "commit": found.commit or "not told" if found else "no answer",
            "version": found.version if found else "no answer",
            "deploy": state or "not told",
            "key": meant.key,
            "posted": posted,
            "intended": show(meant.intended_at),
            "seconds": round(time.monotonic() - begun, 1),
        }
        if found and found.commit == meant.commit:
            _say(ops, meant, _DONE)
            return passed(measured)
        if state == _FAILED or (state == _DONE and found and found.commit):
            _say(ops, meant, _FAILED)
            return failed(measured, f"the API is done and does not run {meant.commit[:12]}: read its log")
        if state == _DONE and found:
            return Finding(Verdict.INCONCLUSIVE, measured, "the API does not say which commit runs: look yourself")
        last = str(measured["commit"])
        if time.monotonic() > deadline:
            break
        time.sleep(_POLL_SECONDS)
    if state is None:
        raise PaymeOpsError(
            "it cannot be told whether it was deployed",
            expected=f"commit {meant.commit[:12]} within {settings.settle_seconds} s",
            found=last,
            remedy="see which commit runs; it is not posted again by itself, and must not be before you know",
        )
    return failed({**measured, "deploy": state}, f"not there after {settings.settle_seconds} s: read the API's log")


def _state(api: PaymeApi, key: str) -> str | None:
    try:
        found = payme_api.deploy_state(api, key)
    except Unavailable:
        return "no answer"
    return found.state if found else None


def _running(api: PaymeApi) -> Version | None:
    try:
        return payme_api.version(api)
    except Unavailable:  # it is being restarted
        return None


def _say(ops: str, meant: Intent, outcome: str) -> None:
    _execute(ops, "ops/say_deploy.sql", {"release": meant.release, "kind": meant.kind, "outcome": outcome})


def _execute(ops: str, query: str, values: dict[str, object]) -> int:
    with connect(ops, application="payme_ops:deploy") as connection, speaking("write the deploy down"):
        return connection.execute(load(query), values).rowcount
