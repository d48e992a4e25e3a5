"""Which alerts a silence covers, and which no silence may cover."""

from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from payme_ops.backup import freshness
from payme_ops.cli.watchdog import signs
from payme_ops.foundation import silences
from payme_ops.foundation.alert import NEVER_SILENT, covers
from payme_ops.foundation.clock import utc_now
from payme_ops.foundation.errors import SettingsError

NOW = utc_now()
KEYS = st.sampled_from([*NEVER_SILENT, "silent:scheduler", "health:staging", "run_failed:backup_daily", "silence:7"])


def check(key: str, reason: str = "new disks in staging", by: str = "wanjiru", minutes: float = 30) -> None:
    silences._check(key, reason, by, NOW + timedelta(minutes=minutes), NOW)


def test_what_is_said_of_backups_is_never_silent() -> None:
    """Every key under which the watchdog tells of freshness, and retention of missing proof."""
    told = {f"silent:{item}" for item in freshness.DAGS} | {f"silent:{one.item}" for one in signs([], "")}
    retention = {f"state:backup_retention:frozen{which}" for which in ("", "_airflow", "_ops")}
    assert told == set(NEVER_SILENT) - {"silence:*"} - retention


@pytest.mark.parametrize(
    ("silence", "key", "covered"),
    [
        ("health:staging", "health:staging", True),
        ("health:staging", "health:staging2", False),
        ("health:*", "health:staging", True),
        ("health:*", "health", False),
        ("*", "health:staging", True),
        ("*", "silent:daily_age", False),
        ("silent:daily_age", "silent:daily_age", False),
        ("silent:*", "silent:scheduler", True),
        ("silence:*", "silence:7", False),
    ],
)
def test_covers(silence: str, key: str, covered: bool) -> None:
    assert covers(silence, key) is covered


@given(key=KEYS | st.text(max_size=20), cut=st.integers(0, 30), star=st.booleans())
def test_whatever_is_let_through_covers_nothing_that_is_never_silent(key: str, cut: int, star: bool) -> None:
    asked = key[:cut] + ("*" if star else "")
    try:
        check(asked)
    except SettingsError:
        return
    for never in NEVER_SILENT:
        example = never.replace("*", "12")
        assert not covers(asked, example)
        assert asked != example
        assert not (asked.endswith("*") and example.startswith(asked[:-1]))


@pytest.mark.parametrize("key", ["silent:daily_age", "silent:d*", "silent:*", "s*", "*", "silence:3", "silence:*"])
def test_what_would_cover_backups_is_refused_by_name(key: str) -> None:
    with pytest.raises(SettingsError, match="would cover what is never silent"):
        check(key)


@pytest.mark.parametrize("key", ["", "a*b", "*a", "a" * 201, "a\nb"])
def test_what_is_no_key_is_refused(key: str) -> None:
    with pytest.raises(SettingsError, match="wants a key"):
        check(key)


@pytest.mark.parametrize("minutes", [-1, 0, 240.1, 10_000])
def test_an_end_that_is_past_or_far_away_is_refused(minutes: float) -> None:
    with pytest.raises(SettingsError, match="within 4 h from now"):
        check("health:staging", minutes=minutes)


def test_no_reason_or_name_is_refused() -> None:
    for reason in ("", "too short", "long " * 100):
        with pytest.raises(SettingsError, match="wants a reason"):
            check("health:staging", reason)
    with pytest.raises(SettingsError, match="wants a name"):
        check("health:staging", by="")


def test_what_may_be_silenced() -> None:
    for key in ("health:staging", "health:*", "silent:scheduler", "silent:orders_*", "run_failed:deployment"):
        check(key)
        check(key, minutes=240)
