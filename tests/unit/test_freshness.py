"""Freshness against the targets: exact to the second, never green without data, and no backup too many is counted."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from payme_ops.backup import freshness
from payme_ops.backup.catalogue import Entry, State
from payme_ops.backup.freshness import Seen
from payme_ops.backup.manifest import MANIFEST_NAME, Manifest, ReadBack, Tier, backup_prefix
from payme_ops.foundation.errors import StoreRefused, StoreUnavailable
from payme_ops.foundation.evidence import Evidence, Verdict
from payme_ops.foundation.record import Record
from payme_ops.foundation.settings import TargetSettings

NOW = datetime(2026, 11, 24, 4, 30, tzinfo=UTC)
TARGETS = TargetSettings()
HOUR, DAY, SECOND = timedelta(hours=1), timedelta(days=1), timedelta(seconds=1)
AWAY = StoreUnavailable("list", found="HTTP 503")


def entry(
    tier: Tier, age: timedelta, state: State = State.COMPLETE, *, stored: timedelta | None = None, rto: Any = None
) -> Entry:
    """A backup whose snapshot is `age` old and whose bytes were read back `stored` ago; `rto` in milliseconds."""
    taken = NOW - age
    prefix = backup_prefix("payme", tier, taken)
    read_back = ReadBack(at=NOW - (age if stored is None else stored), milliseconds=1)
    manifest = Manifest.model_construct(snapshot_at=taken, tier=tier, prefix=prefix, read_back=read_back)  # type: ignore[call-arg]
    facts = {} if rto is None else {"rto_milliseconds": rto}
    key = f"{prefix}{MANIFEST_NAME}"
    found = Record(
        kind="restore_test", subject=key, run="", actor="", verdict=state, started=NOW, ended=NOW, facts=facts
    )
    return Entry(key, tier, taken, state, None if state is State.UNTRUSTED else manifest, found)


def judge(*entries: Entry, now: datetime = NOW, **away: Exception) -> dict[str, Evidence]:
    seen: Seen = {tier: away.get(tier) or [one for one in entries if one.tier is tier] for tier in Tier}  # type: ignore[misc]
    return {item.item: item for item in freshness.judge(seen, TARGETS, now, actor="test")}


def verdicts(found: dict[str, Evidence]) -> dict[str, Verdict]:
    return {name: item.verdict for name, item in found.items()}


FRESH = [
    entry(Tier.DAILY, HOUR, State.VERIFIED, rto=90_000),
    entry(Tier.WEEKLY, DAY),
    entry(Tier.MONTHLY, 40 * DAY, State.VERIFIED, stored=9 * DAY),
]


def test_without_any_backup_that_is_the_one_thing_to_say() -> None:
    found = judge()
    assert verdicts(found) == {"daily_age": Verdict.FAIL}
    assert found["daily_age"].measured == {"is": "none"}


def test_all_is_well() -> None:
    found = judge(*FRESH)
    assert set(verdicts(found).values()) == {Verdict.PASS}
    assert list(found) == ["daily_age", "weekly_age", "monthly_age", "proof_age", "rto_daily"]
    assert found["daily_age"].measured["is"] == "60.0 min"
    assert found["rto_daily"].measured == {"is": "90 s", "measured on": FRESH[0].key}


@pytest.mark.parametrize(
    ("item", "tier", "target"),
    [
        ("daily_age", Tier.DAILY, timedelta(hours=TARGETS.rpo_hours)),
        ("weekly_age", Tier.WEEKLY, 8 * DAY),
        ("monthly_age", Tier.MONTHLY, 32 * DAY),
    ],
)
def test_a_tier_is_missed_by_the_second(item: str, tier: Tier, target: timedelta) -> None:
    assert judge(entry(tier, target))[item].verdict is Verdict.PASS
    assert judge(entry(tier, target + SECOND))[item].verdict is Verdict.FAIL


def test_an_archive_is_as_old_as_its_making_and_its_content_is_older() -> None:
    assert judge(entry(Tier.MONTHLY, 60 * DAY, stored=31 * DAY))["monthly_age"].verdict is Verdict.PASS
    assert judge(entry(Tier.WEEKLY, 9 * DAY, stored=HOUR))["weekly_age"].verdict is Verdict.FAIL


@pytest.mark.parametrize("state", [State.REFUTED, State.CLOSED, State.UNTRUSTED])
def test_what_does_not_count_is_no_backup(state: State) -> None:
    found = judge(entry(Tier.DAILY, 30 * HOUR), entry(Tier.DAILY, HOUR, state, rto=1))
    assert found["daily_age"].verdict is Verdict.FAIL
    assert found["daily_age"].measured["is"] == "30.0 h"
    assert "rto_daily" not in found


def test_the_proof_is_the_newest_verified_one_in_whichever_tier() -> None:
    old = entry(Tier.DAILY, 9 * DAY, State.VERIFIED)
    assert judge(old, entry(Tier.DAILY, HOUR))["proof_age"].verdict is Verdict.FAIL
    assert judge(old, entry(Tier.WEEKLY, 8 * DAY, State.VERIFIED))["proof_age"].verdict is Verdict.PASS
    assert judge(old, entry(Tier.WEEKLY, 8 * DAY + SECOND, State.VERIFIED))["proof_age"].verdict is Verdict.FAIL


def test_what_was_never_there_is_due_when_its_time_since_the_first_backup_has_passed() -> None:
    found = judge(entry(Tier.DAILY, HOUR), entry(Tier.DAILY, 8 * DAY))
    assert found["weekly_age"].verdict is Verdict.PASS
    assert found["weekly_age"].measured == {"is": "not due yet", "due": "2026-11-24 07:30:00 EAT"}
    assert found["proof_age"].measured["is"] == "not due yet"
    found = judge(entry(Tier.DAILY, HOUR), entry(Tier.DAILY, 8 * DAY + SECOND))
    assert (found["weekly_age"].verdict, found["proof_age"].verdict) == (Verdict.FAIL, Verdict.FAIL)
    assert found["monthly_age"].verdict is Verdict.PASS


def test_a_backup_from_the_future_hides_no_silence() -> None:
    found = judge(entry(Tier.DAILY, -DAY, State.VERIFIED), entry(Tier.DAILY, 9 * DAY))
    assert (found["daily_age"].verdict, found["proof_age"].verdict) == (Verdict.FAIL, Verdict.FAIL)
    assert found["daily_age"].measured["ahead of our clock"] == 1
    assert judge(entry(Tier.DAILY, -4 * timedelta(minutes=1)))["daily_age"].verdict is Verdict.PASS
    wrong = entry(Tier.MONTHLY, 40 * DAY, stored=-DAY)
    assert judge(wrong, entry(Tier.WEEKLY, 33 * DAY))["monthly_age"].verdict is Verdict.FAIL


def test_the_time_of_a_restore_is_that_of_the_newest_tested_one() -> None:
    slow, quick = 60 * 60 * 1000 + 1, 60 * 60 * 1000
    found = judge(
        entry(Tier.DAILY, HOUR),
        entry(Tier.DAILY, DAY, State.VERIFIED, rto=quick),
        entry(Tier.DAILY, 2 * DAY, State.VERIFIED, rto=slow),
        entry(Tier.WEEKLY, 2 * DAY, State.VERIFIED, rto=slow),
        entry(Tier.MONTHLY, 40 * DAY, State.VERIFIED, stored=HOUR, rto=quick),
    )
    assert [found[f"rto_{tier}"].verdict for tier in Tier] == [Verdict.PASS, Verdict.FAIL, Verdict.PASS]
    assert found["rto_monthly"].measured["before it"] == "hours of retrieval from the archive"


@pytest.mark.parametrize("rto", ["90000", None, float("nan")])
def test_a_time_that_is_none_is_no_time(rto: object) -> None:
    assert "rto_daily" not in judge(entry(Tier.DAILY, HOUR, State.VERIFIED, rto=rto))


def test_a_region_that_is_away_is_inconclusive_and_the_other_is_measured() -> None:
    found = judge(*FRESH, daily=AWAY)
    assert found["daily_age"].verdict is Verdict.INCONCLUSIVE
    assert (found["weekly_age"].verdict, found["monthly_age"].verdict) == (Verdict.PASS, Verdict.PASS)
    assert found["proof_age"].verdict is Verdict.INCONCLUSIVE  # a newer one may be where nobody can look
    proof = entry(Tier.WEEKLY, DAY, State.VERIFIED)
    assert judge(proof, daily=AWAY)["proof_age"].verdict is Verdict.PASS
    assert verdicts(judge(daily=AWAY, weekly=AWAY, monthly=AWAY)) == dict.fromkeys(
        ("daily_age", "weekly_age", "monthly_age", "proof_age"), Verdict.INCONCLUSIVE
    )


def test_what_was_never_there_is_not_called_fine_while_a_region_is_away() -> None:
    assert judge(entry(Tier.WEEKLY, HOUR), daily=AWAY)["monthly_age"].verdict is Verdict.INCONCLUSIVE
    assert judge(entry(Tier.WEEKLY, 33 * DAY), daily=AWAY)["monthly_age"].verdict is Verdict.FAIL


def test_a_bucket_that_refuses_us_is_a_fault() -> None:
    assert judge(*FRESH, weekly=StoreRefused("list", found="HTTP 403"))["weekly_age"].verdict is Verdict.FAIL


def judge_own(*entries: Entry, first: datetime | None = NOW - 20 * DAY, away: Exception | None = None) -> list[str]:
    seen: Seen = {Tier.DAILY: away or list(entries)}  # type: ignore[dict-item]
    found = freshness.judge_own("ops", seen, first, TARGETS, NOW, actor="test")
    assert all("desk_backup" in item.remedy for item in found if item.verdict is Verdict.FAIL)
    return [f"{item.item} {item.verdict}" for item in found]


def test_the_desks_own_databases_have_the_same_targets() -> None:
    good = entry(Tier.DAILY, 26 * HOUR, State.VERIFIED)
    assert judge_own(good) == ["ops_age pass", "ops_proof_age pass"]
    assert judge_own(entry(Tier.DAILY, 26 * HOUR + SECOND)) == ["ops_age fail", "ops_proof_age pass"]
    assert judge_own(entry(Tier.DAILY, HOUR), entry(Tier.DAILY, 9 * DAY)) == ["ops_age pass", "ops_proof_age fail"]
    assert judge_own(good, entry(Tier.DAILY, HOUR, State.REFUTED)) == ["ops_age pass", "ops_proof_age pass"]
    assert judge_own(away=AWAY) == ["ops_age inconclusive", "ops_proof_age inconclusive"]


def test_one_that_never_began_is_missed_when_its_time_has_passed_since_the_first_backup_of_payme() -> None:
    assert judge_own() == ["ops_age fail", "ops_proof_age fail"]
    assert judge_own(first=NOW - 27 * HOUR) == ["ops_age fail", "ops_proof_age pass"]
    assert judge_own(first=NOW - 26 * HOUR) == ["ops_age pass", "ops_proof_age pass"]
    assert judge_own(first=None) == []


def test_in_one_line_for_people() -> None:
    line = freshness.summary(list(judge(*FRESH, entry(Tier.WEEKLY, 3 * DAY), weekly=AWAY).values()))
    assert line.startswith("daily age 60.0 min; weekly age is not known; monthly age 9.0 days; proof age 60.0 min")
    missed = freshness.summary(list(judge(entry(Tier.DAILY, 27 * HOUR)).values()))
    assert missed.startswith("daily age 27.0 h (MISSED, 26 h at most); weekly age not due yet")


BACKUPS = st.lists(
    st.builds(
        entry,
        st.sampled_from(Tier),
        st.integers(-40 * 24 * 60, 100 * 24 * 60).map(lambda minutes: timedelta(minutes=minutes)),
        st.sampled_from(State),
        rto=st.none() | st.integers(0, 10**8),
    ),
    max_size=8,
)


@settings(max_examples=300, deadline=None)
@given(BACKUPS)
def test_one_more_good_backup_never_makes_it_worse_and_time_alone_never_better(entries: list[Entry]) -> None:
    def missed(found: dict[str, Evidence]) -> set[str]:
        ages = {name: item for name, item in found.items() if name.endswith("_age")}
        return {name for name, item in ages.items() if item.verdict is not Verdict.PASS}

    before = judge(*entries)
    more = judge(*entries, entry(Tier.DAILY, SECOND, State.VERIFIED))
    assert "daily_age" not in missed(more)
    assert "proof_age" not in missed(more)
    if len(before) > 1:  # with none there is but one item
        assert missed(more) <= missed(before)
    past = [one for one in entries if one.manifest and one.manifest.snapshot_at <= NOW]
    if past:
        assert missed(judge(*past)) <= missed(judge(*past, now=NOW + DAY))
