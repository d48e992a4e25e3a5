"""What went silent is told, by one small process outside Airflow.

A run that fails speaks for itself; one that never began cannot. So here somebody looks, again and again, and whoever
is silent for too long is told of once, and once more when it is over. Each round has a thread of its own: one that
fails or hangs keeps no other. The heartbeat goes out only while every round gets through, so that a watchdog that is
dead, stuck or cannot reach anybody is noticed from elsewhere.
"""

import logging
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from payme_ops.foundation import alert, approvals, http, silences
from payme_ops.foundation.alert import Alert, Capture, Outcome, Severity
from payme_ops.foundation.approvals import Reminder
from payme_ops.foundation.clock import show, utc_now
from payme_ops.foundation.errors import DatabaseError, DatabaseUnavailable, PaymeOpsError, Unavailable
from payme_ops.foundation.slack import Slack

_log = logging.getLogger("payme_ops.watchdog")

# Airflow restarts, and a database fails over, in less.
PATIENCE = timedelta(minutes=2)
# Longer than a round may take whose every call runs into its time limit.
STUCK = timedelta(minutes=15)
# After which a question to people that has no answer is told again.
REMIND_AFTER_MINUTES = (15, 30)
_KEY = "silent:"


@dataclass(frozen=True, kw_only=True)
class Sign:
    """One look at one thing. `silent`: it should have been heard of, and was not.

    `since` is what the thing says itself, None where it says nothing. Nobody is told before we have seen it silent for
    `patience`: whoever starts everything at once is not told of what is still starting. `page` is the runbook's URL.
    """

    item: str
    silent: bool
    what: str
    why: str
    next: str
    severity: Severity = Severity.CRITICAL
    since: datetime | None = None
    patience: timedelta = timedelta(0)
    page: str = ""


class Silences:
    """One alert for each silence and one for its end, also across restarts: what was told stands in the ops database.

    While that is away this process goes by its memory.
    """

    def __init__(self, ops: str, slack: Slack, owner: str, clock: Callable[[], datetime] = utc_now) -> None:
        self._ops, self._slack, self._owner, self._clock = ops, slack, owner, clock
        self._since: dict[str, datetime] = {}
        self._told: dict[str, str] = {}
        self._unrecorded: dict[str, str] = {}  # told by Slack while the ops database was away
        self._blind = False

    def take(self, signs: Sequence[Sign]) -> None:
        """Tell what must be told. An item without a sign stays as it was.

        Raises Unavailable when neither the ops database nor Slack took an alert; the next call tries again.
        """
        self._remember()
        outcomes = [self._begun(sign) if sign.silent else self._over(sign) for sign in signs]
        if Outcome.LOST in outcomes:
            raise Unavailable("nobody could be told", expected="the ops database or Slack", found="neither answers")

    def _remember(self) -> None:
        try:
            self._told = alert.standing(self._ops, _KEY) | self._unrecorded
            self._blind = False
        except PaymeOpsError as error:
            if not self._blind:  # once, not every thirty seconds
                _log.error("what was told before is not known, going by memory: %s", error)
            self._blind = True

    def _begun(self, sign: Sign) -> Outcome | None:
        key, now = f"{_KEY}{sign.item}", self._clock()
        seen = self._since.setdefault(key, now)
        if key in self._told or now - seen < sign.patience:
            return None
        since = sign.since or seen
        occurrence = f"{since:%Y-%m-%dT%H:%M:%SZ}"
        outcome = self._tell(key, occurrence, sign, sign.severity, sign.what, since, sign.next)
        if outcome is not Outcome.LOST:
            self._told[key] = occurrence
        if outcome is Outcome.UNRECORDED:
            self._unrecorded[key] = occurrence
        return outcome

    def _over(self, sign: Sign) -> Outcome | None:
        key = f"{_KEY}{sign.item}"
        self._since.pop(key, None)
        if key not in self._told:
            return None
        occurrence = f"{self._told[key]}/over"
        words = f"Over: {sign.what}", self._clock(), "Nothing; what it was stands above"
        outcome = self._tell(key, occurrence, sign, Severity.INFO, *words)
        if outcome is not Outcome.LOST:
            del self._told[key]
            self._unrecorded.pop(key, None)
        return outcome

    def _tell(
        self, key: str, occurrence: str, sign: Sign, severity: Severity, what: str, since: datetime, todo: str
    ) -> Outcome:
        _log.log(logging.INFO if severity is Severity.INFO else logging.ERROR, "%s: %s", what, sign.why)
        told = Alert(
            key=key,
            occurrence=occurrence,
            severity=severity,
            what=what,
            why=sign.why,
            since=since,
            next=todo,
            owner=self._owner,
            runbook=sign.page,
            link="",
        )
        return alert.raise_alert(self._ops, told, self._slack)


def resend(ops: str, slack: Slack, capture: Capture | None = None) -> list[Sign]:
    """Send what Slack has not taken yet; how the ops database is.

    Raises Unavailable when alerts still wait, after Sentry was told of each of them once.
    """
    try:
        silences.tell_ended(ops, slack)
        alert.send_pending(ops, slack)
        waiting = alert.waiting(ops)
        if waiting and capture is not None:
            alert.capture_waiting(ops, capture)
    except (DatabaseUnavailable, DatabaseError) as error:
        return [_ops_database(silent=True, why=str(error))]
    if waiting:
        raise Unavailable(f"{len(waiting)} alert(s) wait: Slack does not take them", found=", ".join(waiting[:5]))
    return [_ops_database(silent=False, why="it answers")]


def _ops_database(*, silent: bool, why: str) -> Sign:
    return Sign(
        item="ops_database",
        silent=silent,
        what="The ops database does not answer",
        why=why,
        next="Start it, or correct the service payme_ops_db: no backup begins without it. Runbook: docs/watchdog.md",
        patience=PATIENCE,
    )


def remind(ops: str, slack: Slack, owner: str) -> None:
    """Tell again, once for each of REMIND_AFTER_MINUTES, what people were asked and have not answered while it stands.

    It goes into the thread in which they were asked. What Slack does not take waits as any alert, and is not told anew.
    Raises DatabaseUnavailable, DatabaseError.
    """
    for one in approvals.reminders(ops, REMIND_AFTER_MINUTES):
        alert.raise_alert(ops, _reminder(one, owner), slack)


def _reminder(one: Reminder, owner: str) -> Alert:
    return Alert(
        key=one.thread,
        occurrence=one.occurrence,
        severity=Severity.WARNING,
        what=f"Still without an answer: {one.subject or one.gate}",
        why=f"Asked more than {one.minutes} minutes ago. It counts as rejected from {show(one.expires_at)}.",
        since=one.asked_at,
        next=f"Answer at {one.link}",
        owner=owner,
        runbook="",
        link=one.link,
    )


def ping(url: str) -> None:
    """The heartbeat. Raises Unavailable; the URL, by which anybody could send it, is in no text."""
    try:
        status = http.call("the heartbeat monitor", "GET", url).status
    except Unavailable as error:
        raise Unavailable("the heartbeat monitor did not answer", found=error.found) from None
    if status >= 300:
        raise Unavailable("the heartbeat monitor did not take the heartbeat", found=f"status {status}")


@dataclass(frozen=True)
class Round:
    """Something that is done again and again. Whatever it raises is logged, and it is done again."""

    name: str
    every: timedelta
    work: Callable[[], None]


def run(
    rounds: Sequence[Round], heartbeat: Round, stop: threading.Event, clock: Callable[[], float] = time.monotonic
) -> None:
    """Do the rounds until `stop` is set. The heartbeat waits until each has got through, and stops when one does not
    for STUCK longer than its interval.
    """
    last: dict[str, float] = {}

    def beat() -> None:
        if first := [one.name for one in rounds if one.name not in last]:
            _log.info("the heartbeat waits for the first end of: %s", ", ".join(first))
        elif late := [one.name for one in rounds if clock() - last[one.name] > (one.every + STUCK).total_seconds()]:
            raise Unavailable("the heartbeat is held back", found=f"no end of: {', '.join(late)}")
        else:
            heartbeat.work()

    for one in rounds:
        threading.Thread(target=_repeat, args=(one, one.work, stop, last, clock), name=one.name, daemon=True).start()
    _repeat(heartbeat, beat, stop, {}, clock)


def _repeat(
    one: Round, work: Callable[[], None], stop: threading.Event, last: dict[str, float], clock: Callable[[], float]
) -> None:
    said = ""
    while not stop.is_set():
        try:
            work()
            last[one.name] = clock()
            now = ""
        except Exception as error:
            now = f"{type(error).__name__}: {error}"
        if now != said:
            _log.log(logging.ERROR if now else logging.INFO, "round %s: %s", one.name, now or "well again")
        said = now
        stop.wait(one.every.total_seconds())
