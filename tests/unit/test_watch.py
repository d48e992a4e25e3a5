"""Two hours as one verdict: which limit broke when, and what keeps it from being a pass."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from payme_ops.foundation.clock import show
from payme_ops.foundation.evidence import Verdict
from payme_ops.foundation.health import State
from payme_ops.foundation.samples import Sample
from payme_ops.release import watch
from payme_ops.release.watch import Judgement, Limits

BEGUN, EVERY = datetime(2026, 12, 1, 9, tzinfo=UTC), timedelta(seconds=30)
CALM = {"connections_percent": 20, "slow_queries": 0, "lock_waits": 0}
USUAL = [80.0] * 60


def looks(count: int = 240, **at: Any) -> list[Sample]:
    """Good looks; `at` changes facts, a number of a look each time, or all."""
    facts = {"p95": 80.0, "database": CALM, "sentinel": True, "errors": {}, "new_issues": [], **at}
    return [Sample(BEGUN + number * EVERY, State.HEALTHY, 10.0, dict(facts)) for number in range(count)]


def judge(samples: list[Sample], baseline: list[float] = USUAL, minutes: float = 120) -> Judgement:
    until = BEGUN + timedelta(minutes=minutes)
    return watch.judge(samples, baseline, Limits(), begun=BEGUN, until=until, interval=EVERY)


def change(samples: list[Sample], numbers: range, state: State = State.HEALTHY, **facts: Any) -> list[Sample]:
    for number in numbers:
        old = samples[number]
        samples[number] = Sample(old.at, state, old.ms, {**old.facts, **facts})
    return samples


def test_two_good_hours_pass() -> None:
    found = judge(looks())
    assert (found.verdict, found.open) == (Verdict.PASS, [])
    assert (found.facts["looks"], found.facts["coverage percent"]) == ("240 of 240", 100.0)


@pytest.mark.blocks("watch")
@pytest.mark.parametrize(
    ("state", "facts", "at"),
    [
        (State.UNHEALTHY, {}, 52),
        (State.HEALTHY, {"p95": 1001.0}, 52),
        (State.HEALTHY, {"database": {**CALM, "connections_percent": 81}}, 52),
        (State.HEALTHY, {"database": {**CALM, "slow_queries": 1}}, 52),
        (State.HEALTHY, {"database": {**CALM, "lock_waits": 2}}, 52),
    ],
)
def test_a_limit_that_breaks_names_the_look(state: State, facts: dict[str, Any], at: int) -> None:
    found = judge(change(looks(), range(50, 60), state, **facts))
    assert (found.verdict, found.at) == (Verdict.FAIL, BEGUN + at * EVERY)
    assert f"look {at + 1}" in found.facts["breach"]
    # It ended with that look: what was to come is no gap.
    assert (found.facts["to"], found.facts["gaps"]) == (show(BEGUN + at * EVERY), [])
    assert found.facts["looks"] == f"{at + 1} of {at + 1}"
    assert judge(change(looks(), range(50, 52), state, **facts)).verdict is not Verdict.FAIL


def test_errors_break_it_in_two_minutes_running() -> None:
    def told(*counts: int) -> dict[str, int]:
        return {(BEGUN + timedelta(minutes=number)).isoformat(): count for number, count in enumerate(counts)}

    assert judge(change(looks(), range(6, 7), errors=told(0, 9, 5, 9))).verdict is Verdict.PASS
    found = judge(change(looks(), range(6, 7), errors=told(0, 9, 6)))
    assert (found.verdict, found.at) == (Verdict.FAIL, BEGUN + 6 * EVERY)


def test_zero_errors_before_and_a_fast_past_use_absolute_limits() -> None:
    assert judge(looks(p95=900.0), [1.0] * 60).verdict is Verdict.PASS
    assert judge(looks(p95=2900.0), [2000.0] * 60).verdict is Verdict.PASS
    assert judge(looks(p95=3100.0), [2000.0] * 60).verdict is Verdict.FAIL


@pytest.mark.parametrize(
    ("changed", "baseline", "says"),
    [
        ({"sentinel": False}, USUAL, "Sentry was not seen to hear"),
        ({"sentinel": None}, USUAL, "Sentry was not seen to hear"),
        ({"new_issues": ["TypeError"]}, USUAL, "new kinds of errors"),
        ({"database": "DatabaseUnavailable"}, USUAL, "database could not be looked at"),
        ({}, USUAL[:49], "which response times are usual"),
        ({}, [], "which response times are usual"),
    ],
)
def test_what_nobody_can_tell_is_no_pass(changed: dict[str, Any], baseline: list[float], says: str) -> None:
    found = judge(looks(**changed), baseline)
    assert found.verdict is Verdict.INCONCLUSIVE
    assert any(says in question for question in found.open)


def test_a_triggerer_that_was_away_leaves_a_named_gap() -> None:
    found = judge(looks()[:100] + looks()[110:])
    assert found.verdict is Verdict.INCONCLUSIVE
    assert found.facts["gaps"] == ["2026-12-01 12:49:30 EAT to 2026-12-01 12:55:00 EAT"]
    assert judge(looks()[:200]).verdict is Verdict.INCONCLUSIVE
    assert judge([]).verdict is Verdict.INCONCLUSIVE


def test_unknown_looks_are_neither_good_nor_bad() -> None:
    found = judge(change(looks(), range(100, 140), State.UNKNOWN))
    assert found.verdict is Verdict.INCONCLUSIVE
    assert any("could not tell" in question for question in found.open)


@given(st.lists(st.sampled_from(list(State)), max_size=60), st.integers(0, 80), st.booleans())
def test_no_data_is_never_good_news(states: list[State], baseline: int, heard: bool) -> None:
    samples = [Sample(BEGUN + number * EVERY, state, 1.0, {"sentinel": heard}) for number, state in enumerate(states)]
    assert judge(samples, [80.0] * baseline, minutes=30).verdict is not Verdict.PASS
