"""docs/growth.md says what its code computes, and the code computes from what was measured."""

import json
import re
from datetime import timedelta

import pytest

from bench import growth
from payme_ops.backup import restore_test
from payme_ops.foundation.objectstore import LARGEST_OBJECT_BYTES, PART_PLAN

RESULTS = json.loads((growth.PAGE.parents[1] / "bench" / "results.json").read_text())


@pytest.fixture
def _doubled(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if a backup took twice as long and stored twice as much."""
    rates = growth.measured()
    more = {name: 2 * rates[name] for name in ("backup.wall_seconds", "backup.stored_mb")}
    monkeypatch.setattr(growth, "measured", lambda: rates | more)


def test_the_page_is_what_the_code_computes() -> None:
    page = growth.PAGE.read_text()
    written = page.split("<!-- growth: written by make growth -->\n")[1].split("<!-- /growth -->")[0]
    assert written == growth.tables()


@pytest.mark.usefixtures("_doubled")
def test_the_page_follows_the_measurements() -> None:
    assert growth.tables() not in growth.PAGE.read_text()


def test_at_the_measured_size_a_backup_takes_and_stores_what_was_measured() -> None:
    gb = RESULTS["database.size_mb"]["value"] / 1000
    assert growth.stored_gb(gb) == pytest.approx(RESULTS["backup.stored_mb"]["value"] / 1000)
    # The measured disk is faster than the assumed one, which is what counts here.
    assert growth.backup_seconds(gb) == pytest.approx(gb * 1000 / 125)
    assert growth.backup_seconds(1000 * gb) == pytest.approx(
        1000 * RESULTS["backup.wall_seconds"]["value"], rel=0.11
    )  # without the start and the end, a thousand times
    assert growth.restore_seconds(gb) == pytest.approx(2 * gb * 1000 / 125)
    assert growth.restore_seconds(1000 * gb) == pytest.approx(1000 * RESULTS["restore.wall_seconds"]["value"])


def test_the_desks_own_limits_are_those_of_its_code() -> None:
    assert growth.ROOM == restore_test._ROOM
    daily, tested = (growth.PAGE.parents[1] / "dags" / f"{name}.py" for name in ("backup_daily", "backup_restore_test"))
    assert f"within=timedelta(minutes={growth.LATE // timedelta(minutes=1)})" in daily.read_text()
    for file in (daily, tested):
        assert f"execution_timeout=timedelta(hours={growth.TASK // timedelta(hours=1)})" in file.read_text()


@pytest.mark.usefixtures("_doubled")
def test_a_limit_is_the_first_size_beyond_it() -> None:
    size = growth.limits()["one object in S3, rows compress as here"][1]
    assert size
    assert growth.stored_gb(size - 1) <= LARGEST_OBJECT_BYTES / 1e9 < growth.stored_gb(size)


def test_requests_cost_as_little_as_the_page_says() -> None:
    left, parts = growth.stored_gb(1000) * 1e9, 0.0
    for count, size in PART_PLAN:
        parts += min(count, left / size)
        left = max(0.0, left - count * size)
    assert left == 0
    assert parts * 365 / 12 * 0.01 / 1000 < 2  # a thousand PUTs into STANDARD_IA are a cent


def test_what_the_page_says_in_words_is_in_its_tables() -> None:
    page = growth.PAGE.read_text()
    limits = growth.limits()
    rto = next(gb for name, (_, gb) in limits.items() if "RTO_MINUTES" in name)
    half = next(gb for name, (_, gb) in limits.items() if "to a half" in name)
    switched = [int(gb) for gb in re.findall(r"^\| (\d+) GB \|", page, re.MULTILINE)]
    assert rto
    assert half
    assert min(abs(gb - rto) for gb in switched) < 5
    assert max(switched) <= half  # told before it is too late, even where rows compress badly
    assert switched == sorted(switched)
