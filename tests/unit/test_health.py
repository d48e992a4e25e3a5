"""What one answer of /health is worth, and what many come to."""

from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from payme_ops.foundation import health
from payme_ops.foundation.evidence import Verdict
from payme_ops.foundation.health import Expected, State
from payme_ops.foundation.http import Answer

NOW = datetime(2026, 12, 1, 9, tzinfo=UTC)
COMMIT = "a" * 40
WELL = {"status": "healthy", "database": "connected", "version": "2.4.1", "commit": COMMIT, "uptime": 30.0}
H, U, X = State.HEALTHY, State.UNHEALTHY, State.UNKNOWN


ANY = Expected()


def read(code: int, changed: dict[str, Any], headers: dict[str, str] | None = None, expected: Expected = ANY) -> State:
    body = {**WELL, "timestamp": NOW.isoformat(), **changed}
    return health.read(Answer(code, body, headers=headers or {}), expected, NOW)[0]


@pytest.mark.blocks("health")
@pytest.mark.parametrize(
    ("status", "changed", "headers", "state"),
    [
        (200, {}, {}, H),
        (200, {"status": "unhealthy"}, {}, U),
        (200, {"status": 7}, {}, U),
        (200, {"database": "disconnected"}, {}, U),
        (503, {}, {}, U),
        (500, {}, {}, U),
        (301, {}, {"location": "/x"}, X),
        *((status, {}, {}, X) for status in (401, 403, 404, 429)),
        (200, {}, {"age": "600"}, X),
        (200, {"timestamp": (NOW - timedelta(minutes=10)).isoformat()}, {}, X),
        (200, {}, {"date": format_datetime(NOW - timedelta(seconds=31), usegmt=True)}, X),
        (200, {}, {"date": format_datetime(NOW - timedelta(seconds=29), usegmt=True), "age": "0"}, H),
        (200, {"timestamp": "yesterday"}, {"date": "nonsense"}, H),
    ],
)
def test_an_answer_is_read_with_its_body(
    status: int, changed: dict[str, Any], headers: dict[str, str], state: State
) -> None:
    assert read(status, changed, headers) is state


@pytest.mark.parametrize(
    ("expected", "changed", "state"),
    [
        (Expected(COMMIT), {}, H),
        (Expected("b" * 40), {}, U),
        (Expected(COMMIT), {"commit": None}, X),
        (Expected(COMMIT), {"commit": "a" * 39}, X),
        (Expected(uptime_below=31), {}, H),
        (Expected(uptime_below=29), {}, U),
        *((Expected(uptime_below=29), {"uptime": uptime}, X) for uptime in (None, "30", float("nan"), True, -1)),
    ],
)
def test_what_runs_and_since_when(expected: Expected, changed: dict[str, Any], state: State) -> None:
    assert read(200, changed, expected=expected) is state


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("", 0),
        ("7", 7),
        ("99999", 300),
        ("-3", 0),
        ("soon", 0),
        ("²", 0),
        (format_datetime(NOW + timedelta(seconds=40), usegmt=True), 40),
        (format_datetime(NOW - timedelta(seconds=40), usegmt=True), 0),
    ],
)
def test_how_long_it_asks_to_wait(text: str, seconds: float) -> None:
    assert health.retry_after({"retry-after": text}, NOW) == seconds


@given(st.dictionaries(st.sampled_from(["retry-after", "age", "date"]), st.text(max_size=30)), st.integers(100, 599))
def test_no_header_breaks_a_look(headers: dict[str, str], status: int) -> None:
    assert read(status, {}, headers) is not H or status == 200
    assert 0 <= health.retry_after(headers, NOW) <= health.MAX_WAIT_SECONDS


@pytest.mark.parametrize(
    ("states", "count", "verdict", "index"),
    [
        ([H, H, H], 3, Verdict.PASS, 2),
        ([H, H, U, H, H, H, H], 3, Verdict.PASS, 5),
        ([H, H, X, H, H], 3, Verdict.INCONCLUSIVE, None),
        ([], 1, Verdict.INCONCLUSIVE, None),
    ],
)
def test_so_many_in_a_row(states: list[State], count: int, verdict: Verdict, index: int | None) -> None:
    assert health.consecutive(states, count) == health.Ruling(verdict, index)


@pytest.mark.parametrize(
    ("flaps", "index"),
    [
        ("...............", None),
        ("x.x.x", 4),
        ("x........x........x", None),
        ("xx.......x", 9),
        ("xx........x", None),
        ("..xxx", 4),
        ("x.........xx.......x.x", 19),
    ],
)
def test_three_of_ten_on_replayed_flaps(flaps: str, index: int | None) -> None:
    assert health.k_of_n([mark == "x" for mark in flaps]) == index


@given(st.lists(st.booleans(), max_size=60))
def test_three_of_ten_falls_at_the_first_look_that_makes_it_so(bad: list[bool]) -> None:
    index = health.k_of_n(bad)
    windows = [number for number in range(len(bad)) if sum(bad[max(0, number - 9) : number + 1]) >= 3]
    assert index == (windows[0] if windows else None)
