"""Two hours of watching as a verdict: hard limits, each by one plain rule, and what nobody could tell.

A breach ends the watch as a fail. Without one, too few looks, a gap, a silent Sentry, a new kind of error or a missing
baseline make it inconclusive, and a person decides: no data is never good news.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from statistics import median, quantiles
from typing import Any

from payme_ops.foundation.clock import show
from payme_ops.foundation.evidence import Verdict
from payme_ops.foundation.health import State, k_of_n
from payme_ops.foundation.samples import Sample

MIN_BASELINE = 50  # fewer say little of a 95th percentile
MIN_COVERAGE = 0.95
GAP_INTERVALS = 3


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Milliseconds, errors a minute, percent of the database's connections."""

    p95_ratio: float = 1.5
    p95_ms: float = 1000.0
    errors_per_minute: int = 5
    connections_percent: int = 80


@dataclass(frozen=True)
class Judgement:
    """`rule` and `at` say which limit was broken by which look; `open` what could not be told."""

    verdict: Verdict
    rule: str = ""
    at: datetime | None = None
    open: list[str] = field(default_factory=list)
    facts: dict[str, Any] = field(default_factory=dict)


def judge(
    samples: Sequence[Sample],
    baseline: Sequence[float],
    limits: Limits,
    *,
    begun: datetime,
    until: datetime,
    interval: timedelta,
) -> Judgement:
    """The verdict of a watch from `begun` to `until`; `baseline` is p95 in milliseconds, look by look, from before."""
    usual = p95(baseline)
    breaches = [
        ("three of ten looks unhealthy", k_of_n([one.state is State.UNHEALTHY for one in samples])),
        ("p95 over its limit in three of ten looks", _slow(samples, usual, limits)),
        (f"more than {limits.errors_per_minute} errors a minute, twice running", _errors(samples, limits)),
        ("database over its limits in three of ten looks", k_of_n([_is_busy(one, limits) for one in samples])),
    ]
    found = [(index, rule) for rule, index in breaches if index is not None]
    if found:
        index, rule = min(found)
        last = samples[index]
        breach = f"{rule}, at {show(last.at)} (look {index + 1}): {_words(last)}"
        # It ends with that look: what was to come is no gap.
        facts = _facts(samples[: index + 1], usual, len(baseline), begun, last.at + interval, interval)
        return Judgement(Verdict.FAIL, rule, last.at, [], {"breach": breach, **facts, "to": show(last.at)})
    facts = _facts(samples, usual, len(baseline), begun, until, interval)
    left = _open(samples, len(baseline), facts)
    return Judgement(Verdict.INCONCLUSIVE if left else Verdict.PASS, "", None, left, facts)


def p95(values: Sequence[float]) -> float | None:
    """The 95th percentile of these; None of fewer than MIN_BASELINE."""
    return quantiles(values, n=20)[-1] if len(values) >= MIN_BASELINE else None


def time_of(sample: Sample) -> float:
    """Milliseconds: the p95 that the application tells, else the time of our own look."""
    told = sample.facts.get("p95")
    return float(told) if isinstance(told, int | float) else sample.ms


def _slow(samples: Sequence[Sample], usual: float | None, limits: Limits) -> int | None:
    if usual is None:
        return None
    limit = max(limits.p95_ratio * usual, limits.p95_ms)  # a baseline near zero has no ratio
    return k_of_n([one.state is not State.UNKNOWN and time_of(one) > limit for one in samples])


def _errors(samples: Sequence[Sample], limits: Limits) -> int | None:
    """The look that first told of a second minute in a row with too many."""
    minutes: dict[datetime, int] = {}
    for index, sample in enumerate(samples):
        for minute, count in (sample.facts.get("errors") or {}).items():
            minutes[datetime.fromisoformat(minute)] = int(count)
        bad = sorted(minute for minute, count in minutes.items() if count > limits.errors_per_minute)
        if any(later - earlier == timedelta(minutes=1) for earlier, later in itertools.pairwise(bad)):
            return index
    return None


def _minutes(samples: Sequence[Sample]) -> dict[str, int]:
    """Errors by minute; a minute is told by several looks, the last is right."""
    return {minute: count for one in samples for minute, count in (one.facts.get("errors") or {}).items()}


def _is_busy(sample: Sample, limits: Limits) -> bool:
    database = sample.facts.get("database")
    if not isinstance(database, dict):  # why it could not be looked at
        return False
    return bool(
        database.get("connections_percent", 0) > limits.connections_percent
        or database.get("slow_queries", 0)
        or database.get("lock_waits", 0)
    )


def _facts(
    samples: Sequence[Sample],
    usual: float | None,
    count: int,
    begun: datetime,
    until: datetime,
    interval: timedelta,
) -> dict[str, Any]:
    expected = max(1, round((until - begun) / interval))
    times = [time_of(one) for one in samples if one.state is State.HEALTHY]
    return {
        "from": show(begun),
        "to": show(until),
        "looks": f"{len(samples)} of {expected}",
        "coverage percent": round(min(100.0, 100 * len(samples) / expected), 1),
        "healthy": sum(one.state is State.HEALTHY for one in samples),
        "unhealthy": sum(one.state is State.UNHEALTHY for one in samples),
        "unknown": sum(one.state is State.UNKNOWN for one in samples),
        "p95 ms, median of looks": round(median(times), 1) if times else "not told",
        "usual p95 ms": round(usual, 1) if usual is not None else f"only {count} looks from before",
        "errors": sum(_minutes(samples).values()),
        "new kinds of errors": sorted({title for one in samples for title in one.facts.get("new_issues") or []}),
        "Sentry heard its sentinel": _last(samples, "sentinel"),
        "gaps": gaps(samples, begun, until, interval),
    }


def _last(samples: Sequence[Sample], name: str) -> Any:
    return next((one.facts[name] for one in reversed(samples) if one.facts.get(name) is not None), None)


def gaps(samples: Sequence[Sample], begun: datetime, until: datetime, interval: timedelta) -> list[str]:
    """Times without a look, longer than three intervals."""
    moments = [begun, *(one.at for one in samples), until]
    return [
        f"{show(earlier)} to {show(later)}"
        for earlier, later in itertools.pairwise(moments)
        if later - earlier > GAP_INTERVALS * interval
    ]


def _open(samples: Sequence[Sample], baseline: int, facts: dict[str, Any]) -> list[str]:
    """What keeps it from being a pass, as questions to a person."""
    left = []
    if facts["coverage percent"] < 100 * MIN_COVERAGE or facts["gaps"]:
        left.append("there are times without a look: what happened then?")
    if facts["unknown"] > len(samples) * (1 - MIN_COVERAGE):
        left.append("many looks could not tell (caches, redirects, refused): is it well?")
    if baseline < MIN_BASELINE:
        left.append("nobody knows which response times are usual: are they good?")
    if facts["Sentry heard its sentinel"] is not True:
        left.append("Sentry was not seen to hear: what does the application's log say?")
    if facts["new kinds of errors"]:
        left.append("there are new kinds of errors: may they stay?")
    if any(not isinstance(one.facts.get("database"), dict) for one in samples):
        left.append("the database could not be looked at all the time: is it well?")
    return left


def _words(sample: Sample) -> str:
    return f"{sample.state}, {time_of(sample):.0f} ms, {sample.facts.get('why', '')}"
