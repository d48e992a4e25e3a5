"""Progress: done, total, rate and what is left, at most every five seconds."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from payme_ops.foundation import progress
from payme_ops.foundation.progress import Progress, rows, size


class Clock:
    """A clock that a test moves."""

    def __init__(self) -> None:
        self.now = 100.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(progress, "time", made)
    return made


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1.0 kB"),
        (508_900_000, "508.9 MB"),
        (2_000_000_000, "2.0 GB"),
        (3_400_000_000_000, "3.4 TB"),
        (5_000_000_000_000_000, "5000.0 TB"),
    ],
)
def test_size(count: int, text: str) -> None:
    assert size(count) == text


@given(st.integers(0, 10**18))
def test_size_is_within_rounding_of_the_count(count: int) -> None:
    number, unit = size(count).split()
    factor = {"B": 1, "kB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}[unit]
    assert abs(float(number) * factor - count) <= 0.051 * factor
    assert unit in ("B", "TB") or float(number) >= 1


@given(st.integers(0, 10**12), st.integers(0, 10**12))
def test_no_number_is_shown_with_four_digits_before_its_unit_where_the_next_unit_exists(one: int, other: int) -> None:
    for count in (one, other):
        number, unit = size(count).split()
        assert unit == "TB" or float(number) < 1000


def test_reports_at_most_every_five_seconds(clock: Clock) -> None:
    lines: list[str] = []
    progress_ = Progress("store", total=1000, report=lines.append)
    for _ in range(80):
        clock.now += 0.125
        progress_.add(10)
    assert len(lines) == 2
    assert progress_.done == 800


def test_a_line_says_done_rate_share_and_what_is_left(clock: Clock) -> None:
    lines: list[str] = []
    progress_ = Progress("store", total=100_000_000, report=lines.append)
    clock.now += 10
    progress_.add(25_000_000)
    assert lines == ["store: 25.0 MB in 10.0 s, 2.5 MB/s, [#####---------------] 25% of about 100.0 MB, 30 s left"]


def test_rows_are_told_as_rows(clock: Clock) -> None:
    lines: list[str] = []
    progress_ = Progress("verify", total=4_000_000, report=lines.append, show=rows)
    clock.now += 10
    progress_.add(1_000_000)
    assert lines == [
        "verify: 1,000,000 rows in 10.0 s, 100,000 rows/s, [#####---------------] 25% of about 4,000,000 rows,"
        " 30 s left"
    ]


def test_what_slows_it_is_told_with_the_line(clock: Clock) -> None:
    lines: list[str] = []
    progress_ = Progress("encrypt", report=lines.append, show=rows)
    clock.now += 10
    progress_.add(0, slowed="replica lag 6.0 s")
    assert lines == ["encrypt: 0 rows in 10.0 s, 0 rows/s; slowed: replica lag 6.0 s"]


def test_without_a_total_or_beyond_it_there_is_no_share(clock: Clock) -> None:
    lines: list[str] = []
    clock.now += 1
    Progress("store", report=lines.append).finish()
    progress_ = Progress("store", total=10, report=lines.append)
    progress_.add(20)
    progress_.finish()
    assert all("%" not in line and "left" not in line for line in lines)


def test_the_end_is_always_reported(clock: Clock) -> None:
    lines: list[str] = []
    Progress("store", report=lines.append).finish()
    assert lines == ["store: 0 B in 0.0 s, 0 B/s"]
    assert clock.now == 100.0
