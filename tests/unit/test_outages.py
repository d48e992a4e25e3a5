"""When an application counts as down: decided by its last looks and a burst, and simulated over a thousand days."""

import math
import random
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from payme_ops.foundation.health import State
from payme_ops.foundation.samples import Sample
from payme_ops.monitoring import outages, probe, rounds
from payme_ops.monitoring.outages import Kind, Outage

SLOW_MS, INTERVAL = 2000.0, 30.0
NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)
LOOKS_A_DAY = int(86_400 / INTERVAL)
DAYS, NOISE = 1_000, 0.01

kinds = st.sampled_from([None, Kind.DOWN, Kind.SLOW, Kind.UNCLEAR])


def sample(at: datetime, bad: Kind | None = None) -> Sample:
    state = {Kind.DOWN: State.UNHEALTHY, Kind.UNCLEAR: State.UNKNOWN}.get(bad or Kind.SLOW, State.HEALTHY)
    return Sample(at, state, SLOW_MS + 1 if bad is Kind.SLOW else 20.0, {})


def row(found: Sequence[Kind | None], until: datetime = NOW) -> list[Sample]:
    begun = until - timedelta(seconds=INTERVAL * (len(found) - 1))
    return [sample(begun + timedelta(seconds=INTERVAL * number), bad) for number, bad in enumerate(found)]


def outage(**given: object) -> Outage:
    values = {"id": 1, "subject": "production", "kind": Kind.DOWN, "began_at": NOW, "last_good_at": None}
    return Outage(**{**values, "opened_at": NOW, "why": "status 503", **given})  # type: ignore[arg-type]


@given(kinds)
def test_anything_but_healthy_and_quick_is_bad_and_called_what_it_is(bad: Kind | None) -> None:
    assert outages.kind(sample(NOW, bad), SLOW_MS) is bad


@given(st.lists(kinds, max_size=40))
def test_a_burst_is_due_at_a_bad_look_that_is_the_third_of_ten(found: list[Kind | None]) -> None:
    last = [one is not None for one in found[-10:]]
    assert outages.is_suspect(found) == (bool(last) and last[-1] and sum(last) >= 3)


@given(st.lists(kinds, min_size=3, max_size=3))
def test_two_of_three_confirm_it(burst: list[Kind | None]) -> None:
    assert outages.is_confirmed(burst) == (burst.count(None) <= 1)


@given(st.lists(kinds, min_size=1, max_size=10).filter(any))
def test_it_is_called_what_most_bad_looks_were(found: list[Kind | None]) -> None:
    bad = [one for one in found if one]
    assert bad.count(outages.worst(found)) == max(bad.count(one) for one in bad)


def test_down_is_worse_than_unclear_than_slow() -> None:
    assert outages.worst([Kind.SLOW, Kind.DOWN, Kind.UNCLEAR]) is Kind.DOWN
    assert outages.worst([Kind.SLOW, Kind.UNCLEAR, None]) is Kind.UNCLEAR


@given(st.lists(kinds, max_size=10))
def test_it_ends_with_ten_good_looks_in_a_row_at_the_first_of_them(found: list[Kind | None]) -> None:
    last = row(found)
    over = len(found) == 10 and not any(found)
    assert outages.end(last, SLOW_MS) == (last[0].at if over else None)
    assert outages.end(row([*found, *[None] * 10])[-10:], SLOW_MS) is not None


def test_coming_and_going_is_one_outage() -> None:
    """Nine good looks between two bad ones end nothing."""
    found = [Kind.DOWN, *[None] * 9] * 20
    samples = row(found)
    assert not any(outages.end(samples[max(0, n - 9) : n + 1], SLOW_MS) for n in range(len(samples)))


@given(st.lists(st.integers(0, 400), max_size=40))
def test_looks_from_before_a_gap_do_not_count(ages: list[int]) -> None:
    samples = [sample(NOW - timedelta(seconds=INTERVAL * age)) for age in sorted(ages, reverse=True)]
    counted = outages.counting(samples, NOW, INTERVAL)
    assert len(counted) <= 10
    assert all(NOW - one.at < timedelta(minutes=10) for one in counted)
    assert counted == [one for one in samples if NOW - one.at < timedelta(minutes=10)][-10:]


@given(st.integers(0, 10_000))
def test_reminders_are_further_and_further_apart(minutes: int) -> None:
    due = outages.reminder(outage(), NOW + timedelta(minutes=minutes))
    if minutes < 15:
        assert due is None
    else:
        assert due is not None
        assert due in (15, 30, 60, 120) or due % 240 == 0
        assert due <= minutes < max(2 * due, due + 240)


def test_reminders_of_an_outage_that_was_muted_count_from_the_end_of_that() -> None:
    muted = outage(muted_until=NOW + timedelta(hours=1), muted_by="production-2.4.1")
    assert outages.reminder(muted, NOW + timedelta(minutes=74)) is None
    assert outages.reminder(muted, NOW + timedelta(minutes=75)) == 15


def test_what_was_slow_is_down_once_three_of_ten_were() -> None:
    last = [Kind.SLOW, None, Kind.DOWN, Kind.DOWN, None, Kind.DOWN]
    assert outages.has_worsened(outage(kind=Kind.SLOW), last)
    assert not outages.has_worsened(outage(kind=Kind.SLOW), last[:-1])
    assert not outages.has_worsened(outage(kind=Kind.DOWN), last)


# -- a thousand days of noise -----------------------------------------------------------------------------------


def bad_looks(chance: random.Random, noise: float) -> Iterator[int]:
    """Numbers of the looks that fail in DAYS, each by itself: from one to the next the distance is geometric."""
    number = -1
    while True:
        number += 1 + int(math.log(1 - chance.random()) / math.log(1 - noise))
        if number >= DAYS * LOOKS_A_DAY:
            return
        yield number


def alarms(noise: float, *, with_burst: bool, seed: int = 7) -> float:
    """False alerts per year of one endpoint. Only a bad look can raise one, so only these are looked at."""
    chance = random.Random(seed)  # noqa: S311  # a simulation
    recent, count, quiet_until = list[int](), 0, -1
    for number in bad_looks(chance, noise):
        recent = [one for one in recent if number - one < outages.OF] + [number]
        last = [Kind.DOWN if number - outages.OF + 1 + place in recent else None for place in range(outages.OF)]
        if number <= quiet_until or not outages.is_suspect(last):
            continue
        burst = [Kind.DOWN if chance.random() < noise else None for _ in range(outages.BURST)]
        if not with_burst or outages.is_confirmed(burst):
            count, quiet_until = count + 1, number + outages.OF  # one outage until ten good looks
    return count * 365 / DAYS


def test_a_thousand_days_of_noise_raise_at_most_one_alert_a_year() -> None:
    assert alarms(NOISE, with_burst=True) <= 1


def test_without_the_burst_there_would_be_one_every_fortnight_and_at_much_noise_the_burst_is_not_enough() -> None:
    assert alarms(NOISE, with_burst=False) > 20
    assert alarms(0.1, with_burst=True) > 20


@pytest.mark.parametrize("after_look", [0.001, 15.0, 29.999])
@pytest.mark.parametrize("hangs", [True, False])
def test_a_total_failure_is_decided_within_a_hundred_seconds(after_look: float, hangs: bool) -> None:
    """In simulated time, from the failure to the end of the burst, every look as long as its limit lets it."""
    takes = probe.LIMIT_SECONDS if hangs else 0.0
    found: list[Kind | None] = [None] * 10
    begins = 0.0
    while not outages.is_suspect(found):
        begins += INTERVAL
        found = [*found, Kind.DOWN][-10:]
    stored = begins + rounds.SPREAD_SECONDS + takes
    decided = stored + (outages.BURST - 1) * outages.BURST_SECONDS + takes
    assert outages.is_confirmed([Kind.DOWN] * outages.BURST)
    assert decided - after_look < 100
    assert begins == 3 * INTERVAL
