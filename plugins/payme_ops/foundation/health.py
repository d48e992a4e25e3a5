"""Is it well? One look at /health, read with its body, and the rules that make a verdict of many looks.

A look never raises. What came from a cache or by a redirect, or what nobody may ask, is unknown: it counts neither as
healthy nor as unhealthy, and a rule without enough known looks is inconclusive.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from email.utils import parsedate_to_datetime
from enum import StrEnum

from payme_ops.foundation import http, payme_api
from payme_ops.foundation.errors import Unavailable
from payme_ops.foundation.evidence import Verdict
from payme_ops.foundation.http import Answer

MAX_SKEW = timedelta(seconds=30)
MAX_WAIT_SECONDS = 300.0
_NO_CACHE = {"Cache-Control": "no-cache"}
_NOT_ASKED = (401, 403, 404, 405, 407, 429)


class State(StrEnum):
    """What one look has shown."""

    HEALTHY = "healthy"
    UNHEALTHY = "unhealthy"
    UNKNOWN = "unknown"


@dataclass(frozen=True)
class Expected:
    """What has to be so besides: the running commit, and an uptime below so many seconds; "" and None: anything."""

    commit: str = ""
    uptime_below: float | None = None


@dataclass(frozen=True)
class Look:
    """One look. `why` has no text from outside but short words of the body; `wait_seconds` is what Retry-After asks."""

    at: datetime
    state: State
    why: str
    ms: float
    commit: str = ""
    wait_seconds: float = 0.0


def look(url: str, expected: Expected, now: datetime) -> Look:
    """Ask `url`/health once. A hang is unhealthy after the client's time limits."""
    try:
        answer = http.call("the application", "GET", f"{url}/health", headers=_NO_CACHE)
    except Unavailable as error:
        return Look(now, State.UNHEALTHY, f"no answer ({error.found})", 0.0)
    state, why, commit = read(answer, expected, now)
    return Look(now, state, why, round(answer.seconds * 1000, 1), commit, retry_after(answer.headers, now))


def read(answer: Answer, expected: Expected, now: datetime) -> tuple[State, str, str]:
    """State, why, and the commit that it names."""
    said = payme_api.read_health(answer)
    if 300 <= answer.status < 400:
        return State.UNKNOWN, f"redirected (status {answer.status})", ""
    if answer.status in _NOT_ASKED:
        return State.UNKNOWN, f"not answered (status {answer.status})", ""
    if stale := _stale(answer.headers, said.at, now):
        return State.UNKNOWN, stale, said.commit
    if not said.healthy:
        return (
            State.UNHEALTHY,
            f"status {answer.status}, {_word(said.status)}, database {_word(said.database)}",
            said.commit,
        )
    if expected.commit and not said.commit:
        return State.UNKNOWN, "it does not say which commit runs", ""
    if expected.commit and said.commit != expected.commit:
        return State.UNHEALTHY, f"commit {said.commit[:12]} runs", said.commit
    if expected.uptime_below is not None and said.uptime is None:
        return State.UNKNOWN, "it does not say since when it runs", said.commit
    if expected.uptime_below is not None and said.uptime is not None and said.uptime > expected.uptime_below:
        return State.UNHEALTHY, f"it runs for {said.uptime:.0f} s, longer than since the deploy", said.commit
    return State.HEALTHY, "healthy", said.commit


def _word(text: str) -> str:
    """What can be shown and stored: no database takes a NUL or half of a surrogate pair."""
    return "".join(one if one.isprintable() else "?" for one in text[:20])


def _stale(headers: Mapping[str, str], told: datetime | None, now: datetime) -> str:
    age = headers.get("age", "0").strip()
    if age != "0":
        return f"from a cache (Age {age[:10]})"
    for name, moment in (("Date", _date(headers.get("date", ""))), ("timestamp", told)):
        if moment and abs(moment - now) > MAX_SKEW:
            return f"stale: {name} is {abs(moment - now).total_seconds():.0f} s off"
    return ""


def _date(text: str) -> datetime | None:
    try:
        found = parsedate_to_datetime(text)
    except (TypeError, ValueError):
        return None
    return found if found.tzinfo else None


def retry_after(headers: Mapping[str, str], now: datetime) -> float:
    """Seconds that the answer asks to wait, as a number or a date, five minutes at most (RFC 9110, 10.2.3)."""
    text = headers.get("retry-after", "").strip()
    moment = _date(text) if text and not text.isdigit() else None
    seconds = (
        float(text[:9]) if text.isdigit() and text.isascii() else (moment - now).total_seconds() if moment else 0.0
    )
    return min(max(seconds, 0.0), MAX_WAIT_SECONDS) if math.isfinite(seconds) else 0.0


@dataclass(frozen=True)
class Ruling:
    """A verdict, and the look (counted from 0) at which it fell; None while it has not."""

    verdict: Verdict
    index: int | None


def consecutive(states: Sequence[State], count: int) -> Ruling:
    """Passes with `count` healthy looks in a row; never fails by itself: whoever waits says how long."""
    row = 0
    for index, state in enumerate(states):
        row = row + 1 if state is State.HEALTHY else 0
        if row == count:
            return Ruling(Verdict.PASS, index)
    return Ruling(Verdict.INCONCLUSIVE, None)


def k_of_n(bad: Sequence[bool], k: int = 3, n: int = 10) -> int | None:
    """The look at which, for the first time, k of the last n were bad.

    3 of 10 at 30 s: a backend that fails every fourth request is found after 5 minutes in the median, by three in a
    row after 28; of two clean hours with 1% noise 0.7% are taken for bad (notes of the design, simulated in bench).
    """
    for index in range(len(bad)):
        if bad[index] and sum(bad[max(0, index - n + 1) : index + 1]) >= k:
            return index
    return None
