"""The backfill's plans: ranges that leave no row out and do none twice, and batches that stay within their time."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from payme_ops.foundation.settings import MigrationSettings
from payme_ops.migration.backfill import LARGEST_SIZE, SMALLEST_SIZE, TARGET_SECONDS, next_size, split
from payme_ops.migration.throttle import Reading, behind, missed, over

KEYS = st.sets(st.integers(-(2**63) + 1, 2**63 - 1) | st.integers(1, 5_000), min_size=1, max_size=200)


@given(keys=KEYS, stale=KEYS, parts=st.integers(1, 40), analysed=st.booleans())
def test_ranges_cover_every_key_once_in_order(keys: set[int], stale: set[int], parts: int, analysed: bool) -> None:
    """Whatever ANALYZE saw: the table may have grown or shrunk since."""
    low, high = min(keys) - 1, max(keys)
    ranges = split(low, high, sorted(stale) if analysed else [], parts)
    assert 1 <= len(ranges) <= parts
    assert all(begin < end for begin, end in ranges)
    assert (ranges[0][0], ranges[-1][1]) == (low, high)
    assert all(before[1] == after[0] for before, after in pairwise(ranges))
    assert [sum(begin < key <= end for begin, end in ranges) for key in keys] == [1] * len(keys)


@given(keys=st.sets(st.integers(1, 10**12), min_size=101, max_size=400), parts=st.integers(1, 20))
def test_with_statistics_the_rows_are_parted_evenly(keys: set[int], parts: int) -> None:
    ordered = sorted(keys)
    bounds = [ordered[number * (len(ordered) - 1) // 100] for number in range(101)]
    ranges = split(ordered[0] - 1, ordered[-1], bounds, parts)
    counts = [sum(begin < key <= end for key in ordered) for begin, end in ranges]
    assert len(ranges) == parts
    # A hundredth of the rows is what the bounds can tell apart.
    assert max(counts) - min(counts) <= 2 + 2 * len(ordered) / 100


@pytest.mark.parametrize(("low", "high", "parts"), [(0, 10, 0), (5, 5, 1), (6, 5, 1)])
def test_what_cannot_be_parted_is_refused(low: int, high: int, parts: int) -> None:
    with pytest.raises(ValueError, match="parts of"):
        split(low, high, [], parts)


@given(size=st.integers(SMALLEST_SIZE, LARGEST_SIZE), seconds=st.floats(0, 1000))
def test_a_batch_is_never_outside_the_limits_and_moves_by_half_at_most_downwards(size: int, seconds: float) -> None:
    following = next_size(size, size, seconds)
    assert SMALLEST_SIZE <= following <= LARGEST_SIZE
    assert size // 2 <= following <= 2 * size


@pytest.mark.parametrize("micros", [6, 15, 30, 100, 290])
def test_batches_come_to_take_the_time_they_should(micros: int) -> None:
    size = 1_000
    for _ in range(20):
        size = next_size(size, size, size * micros / 1e6)
    assert size * micros / 1e6 == pytest.approx(TARGET_SECONDS, rel=0.02)


def test_the_rest_of_a_range_says_nothing_of_a_whole_batch() -> None:
    assert next_size(1_000, 3, 0.002) == 1_000


LIMITS = MigrationSettings(replica_lag_seconds=5, wal_bytes_per_second=50_000_000, canary_p99_ms=200)


@pytest.mark.parametrize(
    ("reading", "words"),
    [
        (Reading(replica_lag_seconds=5.1), "replica lag 5.1 s (goes on at 2.5 s)"),
        (Reading(wal_bytes_per_second=60e6), "WAL 60.0 MB/s (goes on at 25.0 MB/s)"),
        (Reading(lock_waiters=1), "sessions that wait for our locks 1 (goes on at 0)"),
        (Reading(canary_p99_ms=201), "a read by key, p99 201 ms (goes on at 100 ms)"),
        (Reading(replica_lag_seconds=float("nan")), "replica lag nan s (goes on at 2.5 s)"),
    ],
)
def test_each_gauge_stops_the_backfill_and_says_so(reading: Reading, words: str) -> None:
    assert list(over(reading, LIMITS).values()) == [words]


def test_at_the_limit_it_runs_and_once_stopped_it_waits_for_half() -> None:
    assert over(Reading(replica_lag_seconds=5.0), LIMITS) == {}
    stopped = frozenset({"replica lag"})
    assert over(Reading(replica_lag_seconds=2.6), LIMITS, stopped)
    assert not over(Reading(replica_lag_seconds=2.5), LIMITS, stopped)


def test_an_autovacuum_stops_nothing() -> None:
    assert over(Reading(autovacuum=True), LIMITS) == {}


def test_a_standby_that_stopped_to_replay_is_further_behind_with_every_reading() -> None:
    history = [(0.0, 100.0), (1.0, 200.0), (2.0, 300.0), (9.0, 300.0)]
    assert [behind(history[:count], 100.0) for count in (1, 2, 3, 4)] == [0.0, 0.0, 1.0, 8.0]
    assert behind(history, 300.0) == 0.0


def test_what_is_lost_is_told_again_when_twice_as_much_wal_is_kept() -> None:
    told = [missed([], {"b": count}) for count in (1, 2**24, 2**25 - 1, 2**25)]
    assert told[0] == "nobody reads slot b, which keeps less than 16.8 MB of WAL"
    assert told[1] == told[2] == "nobody reads slot b, which keeps at least 16.8 MB of WAL"
    assert told[3] == "nobody reads slot b, which keeps at least 33.6 MB of WAL"
    assert missed({"r at ::1"}, {}) == "standby r at ::1 is gone"
    assert missed(set(), {}) == ""
