"""The form of a release: what can be meant is taken, everything else is named at once."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from payme_ops.foundation.errors import SettingsError
from payme_ops.release import request as requests
from payme_ops.release.request import Environment, Request

NOW = datetime(2026, 12, 1, 9, tzinfo=UTC)
FORM: dict[str, Any] = {
    "commit": "a" * 40,
    "version": "2.4.1",
    "environment": "production",
    "window_from": "2026-12-03T02:00:00",
    "window_to": "2026-12-03T05:00:00+03:00",
    "previous_commit": "b" * 40,
    "carries_migration": False,
    "resume_after_watch": False,
    "reason": "monthly release",
}


def test_a_whole_form_is_taken_and_a_time_without_offset_is_in_nairobi() -> None:
    found = requests.parse(FORM, NOW)
    assert found == Request(
        commit="a" * 40,
        version="2.4.1",
        environment=Environment.PRODUCTION,
        window_from=datetime(2026, 12, 2, 23, tzinfo=UTC),
        window_to=datetime(2026, 12, 3, 2, tzinfo=UTC),
        previous_commit="b" * 40,
        carries_migration=False,
        resume_after_watch=False,
        reason="monthly release",
    )
    assert requests.identify(found) == "production-2.4.1-aaaaaaa"


@pytest.mark.parametrize(
    ("field", "value", "says"),
    [
        ("commit", "a" * 39, "commit: expected 40 hexadecimal"),
        ("commit", "A" * 40, "commit: expected 40 hexadecimal"),
        ("commit", "main", "commit: expected 40 hexadecimal"),
        ("commit", None, "commit: expected 40 hexadecimal digits in lower case, found nothing"),
        ("previous_commit", "a" * 40, "previous_commit: is the commit that is to be released"),
        ("previous_commit", "", "previous_commit: expected"),
        ("version", "2.4", "version: expected major.minor.patch"),
        ("version", "2.4.1\n", None),
        ("environment", "prod", "environment: expected staging or production, found 'prod'"),
        ("window_from", "tomorrow", "window_from: expected date and time"),
        ("window_to", "2026-12-03T01:00:00", "before it begins"),
        ("window_to", "2026-12-04T02:00:00", "longer than 12 hours"),
        ("window_from", "2027-12-03T02:00:00", "more than 30 days away"),
        ("reason", "  ", "reason: expected why"),
        ("reason", "x" * 501, "reason: expected why"),
    ],
)
def test_what_cannot_be_meant_is_named(field: str, value: object, says: str | None) -> None:
    form = {**FORM, field: value}
    if says is None:
        requests.parse(form, NOW)
        return
    with pytest.raises(SettingsError) as refused:
        requests.parse(form, NOW)
    assert says in refused.value.found


def test_a_window_that_is_over_is_refused() -> None:
    with pytest.raises(SettingsError) as refused:
        requests.parse(FORM, NOW + timedelta(days=3))
    assert "is over" in refused.value.found


def test_all_faults_are_named_at_once() -> None:
    with pytest.raises(SettingsError, match=r"^7 field\(s\)") as refused:
        requests.parse({}, NOW)
    named = [fault.split(":")[0] for fault in refused.value.found.split("; ")]
    assert named == ["commit", "previous_commit", "version", "environment", "window_from", "window_to", "reason"]


@settings(suppress_health_check=[HealthCheck.too_slow])
@given(st.dictionaries(st.sampled_from(sorted(FORM)), st.one_of(st.none(), st.text(max_size=60), st.integers())))
def test_anything_else_is_refused_with_one_error(changed: dict[str, Any]) -> None:
    form = {**FORM, **changed}
    try:
        found = requests.parse(form, NOW)
    except SettingsError:
        return
    assert found.commit != found.previous_commit
    assert found.window_to > NOW
    assert found.window_from < found.window_to
