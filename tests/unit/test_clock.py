"""Business time is EAT, whatever the host believes."""

import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from payme_ops.foundation import clock

PROJECT = Path(__file__).parents[2]
SECONDS = st.integers(86_400, 7_258_118_400).map(lambda at: datetime.fromtimestamp(at, UTC))  # 1970 to 2200
EDGES = [
    # 02:00 EAT is 23:00 UTC of the day before.
    (datetime(2026, 1, 27, 23, tzinfo=UTC), "20260128T020000EAT"),
    # Sunday's weekly at 04:00 is Sunday in UTC, too; its daily is UTC Saturday.
    (datetime(2026, 1, 31, 23, tzinfo=UTC), "20260201T020000EAT"),
    (datetime(2026, 2, 1, 1, tzinfo=UTC), "20260201T040000EAT"),
    # The last second of an EAT day, and the first of the next month.
    (datetime(2026, 2, 28, 20, 59, 59, tzinfo=UTC), "20260228T235959EAT"),
    (datetime(2026, 2, 28, 21, tzinfo=UTC), "20260301T000000EAT"),
    # A leap day, and a new year.
    (datetime(2028, 2, 28, 22, tzinfo=UTC), "20280229T010000EAT"),
    (datetime(2026, 12, 31, 21, tzinfo=UTC), "20270101T000000EAT"),
    # When New York and London change their clocks, Nairobi does not.
    (datetime(2026, 3, 8, 7, 30, tzinfo=UTC), "20260308T103000EAT"),
    (datetime(2026, 10, 25, 1, 30, tzinfo=UTC), "20261025T043000EAT"),
]


@pytest.mark.parametrize(("instant", "stamp"), EDGES)
def test_edges(instant: datetime, stamp: str) -> None:
    assert clock.key_stamp(instant) == stamp
    assert clock.parse_key_stamp(stamp) == instant


@pytest.mark.parametrize("zone", ["UTC", "America/New_York", "Africa/Nairobi"])
def test_keys_do_not_depend_on_the_hosts_zone(zone: str) -> None:
    code = (
        "from datetime import UTC, datetime\n"
        "from payme_ops.foundation.clock import key_stamp, parse_key_stamp, show, utc_now\n"
        f"for at, stamp in {[(instant.timestamp(), stamp) for instant, stamp in EDGES]!r}:\n"
        "    instant = datetime.fromtimestamp(at, UTC)\n"
        "    assert key_stamp(instant) == key_stamp(instant.astimezone()) == stamp, stamp\n"
        "    assert parse_key_stamp(stamp) == instant\n"
        "    assert show(instant.astimezone()).replace('-', '').replace(':', '').replace(' EAT', 'EAT')"
        ".replace(' ', 'T') == stamp\n"
        "now = utc_now()\n"
        "assert now.utcoffset().total_seconds() == 0 and now.microsecond == 0\n"
        "assert abs((datetime.now(UTC) - now).total_seconds()) < 2\n"
    )
    subprocess.run(
        [sys.executable, "-c", code],
        env={"TZ": zone, "PYTHONPATH": str(PROJECT / "plugins"), "PATH": "/usr/bin:/bin"},
        check=True,
    )


@given(SECONDS)
def test_a_stamp_names_its_instant(instant: datetime) -> None:
    assert clock.parse_key_stamp(clock.key_stamp(instant)) == instant


@given(SECONDS, SECONDS)
def test_stamps_sort_as_instants_do(one: datetime, other: datetime) -> None:
    assert (clock.key_stamp(one) < clock.key_stamp(other)) == (one < other)


@given(SECONDS)
def test_eat_is_three_hours_ahead_all_year(instant: datetime) -> None:
    assert instant.astimezone(clock.EAT).utcoffset() == timedelta(hours=3)


@given(st.text() | st.from_regex(r"[0-2]\d{5,8}T\d{3,7}EAT", fullmatch=True))
def test_any_other_text_is_no_stamp(text: str) -> None:
    try:
        instant = clock.parse_key_stamp(text)
    except ValueError:
        return
    assert clock.key_stamp(instant) == text


def test_show_is_for_people() -> None:
    assert clock.show(datetime(2026, 1, 27, 23, tzinfo=UTC)) == "2026-01-28 02:00:00 EAT"
