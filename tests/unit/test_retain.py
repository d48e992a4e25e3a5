"""The retention plan over random histories: exact boundaries, floors that hold, and nothing without proof."""

import os
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from payme_ops.backup import retain
from payme_ops.backup.catalogue import Entry, State
from payme_ops.backup.manifest import MANIFEST_NAME, Manifest, Tier, backup_prefix
from payme_ops.backup.retain import Action, Leftover, Plan, Survey
from payme_ops.foundation.clock import EAT
from payme_ops.foundation.evidence import Verdict

NOW = datetime(2026, 11, 24, 4, 30, tzinfo=UTC)
PROOF_DAYS = 8
DAY = 24 * 3600
KEPT_SECONDS = {Tier.DAILY: 30 * DAY, Tier.WEEKLY: 90 * DAY}
COUNTS = (State.COMPLETE, State.VERIFIED)

# Seconds around every age at which something changes, and anything in between.
_EDGES = [days * DAY + off for days in (0, 7, 8, 30, 90) for off in (-1, 0, 1)]
AGES = st.one_of(st.sampled_from(_EDGES), st.integers(0, 100 * DAY))
BACKUPS = st.tuples(st.sampled_from(Tier), st.sampled_from(State), AGES, st.booleans())
HISTORIES = st.lists(BACKUPS, max_size=14, unique_by=lambda one: (one[0], one[2]))
LEFTOVERS = st.lists(st.tuples(st.sampled_from(Tier), AGES), max_size=3, unique_by=lambda one: one)
# Midnight, the dump's hour and the run's in Nairobi, on the first day of a year, month and week, and a leap day.
CLOCKS = st.builds(
    lambda day, clock, off: datetime(*day, *clock, tzinfo=EAT) + timedelta(seconds=off),  # type: ignore[misc]
    st.sampled_from([(2026, 1, 1), (2026, 3, 1), (2026, 3, 8), (2026, 11, 1), (2026, 11, 22), (2028, 2, 29)]),
    st.sampled_from([(0, 0), (2, 0), (3, 0), (7, 30)]),
    st.sampled_from([-1, 0, 1]),
)


def entry(tier: Tier, state: State, age_seconds: int, now: datetime = NOW) -> Entry:
    taken = now - timedelta(seconds=age_seconds)
    prefix = backup_prefix("payme", tier, taken)
    manifest = Manifest.model_construct(snapshot_at=taken, tier=tier, prefix=prefix)  # type: ignore[call-arg]
    return Entry(
        f"{prefix}{MANIFEST_NAME}", tier, taken, state, None if state is State.UNTRUSTED else manifest, why="unsigned"
    )


def survey(
    *entries: Entry, leftovers: list[Leftover] | None = None, held: dict[str, str] | None = None, skew: float = 0
) -> Survey:
    return Survey(list(entries), leftovers or [], held or {}, timedelta(seconds=skew))


def plan(found: Survey, now: datetime = NOW) -> Plan:
    return retain.plan(found, now, proof_days=PROOF_DAYS)


def actions(made: Plan) -> dict[str, Action]:
    return {row.backup: row.action for row in made.rows}


def prefix(one: Entry) -> str:
    return one.key.removesuffix(MANIFEST_NAME)


PROOF = entry(Tier.DAILY, State.VERIFIED, DAY)


@pytest.fixture(params=["UTC", "America/New_York", "Africa/Nairobi"])
def host_zone(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.setenv("TZ", request.param)
    time.tzset()
    yield request.param
    monkeypatch.undo()
    time.tzset()


@settings(max_examples=3400, deadline=None)
@given(now=CLOCKS, history=HISTORIES, abandoned=LEFTOVERS, skew=st.sampled_from([0, 60, 61]))
def _any_history(
    now: datetime, history: list[tuple[Tier, State, int, bool]], abandoned: list[tuple[Tier, int]], skew: int
) -> None:
    backups = {prefix(made): (made, one) for one in history for made in [entry(*one[:3], now)]}
    leftovers = {
        made.prefix: (made, age)
        for tier, age in abandoned
        for made in [
            Leftover(f"postgres/payme/{tier}/left-{age}/", tier, now - timedelta(seconds=age)),
        ]
    }
    held = {name: "legal hold" for name, (_, one) in backups.items() if one[3]}
    found = Survey(
        [made for made, _ in backups.values()],
        [made for made, _ in leftovers.values()],
        held,
        timedelta(seconds=skew),
    )
    made = plan(found, now)
    what = actions(made)
    assert set(what) == set(backups) | set(leftovers)  # everything is in the plan, once
    assert len(made.rows) == len(what)

    # Nothing without proof, and then nothing at all.
    proven = any(state is State.VERIFIED and age < PROOF_DAYS * DAY for _, state, age, _ in history)
    assert bool(made.frozen) is not proven
    deleted = {name for name, action in what.items() if action is Action.DELETE}
    assert proven or not deleted

    # Exact ages: only past 30 and 90 days, never an archive; and past them whatever no rule protects.
    for name, (_, (tier, state, age, locked)) in backups.items():
        expired = tier is not Tier.MONTHLY and age >= KEPT_SECONDS[tier]
        same = [(other, theirs) for t, other, theirs, _ in history if t is tier]
        newest = state in COUNTS and age == min(theirs for other, theirs in same if other in COUNTS)
        newest_verified = state is State.VERIFIED and age == min(a for other, a in same if other is State.VERIFIED)
        waits_for_a_person = state in (State.REFUTED, State.UNTRUSTED)
        goes = expired and not (newest or newest_verified or waits_for_a_person or locked) and proven
        assert (what[name] is Action.DELETE) is goes, (tier, state, age)
        if not waits_for_a_person:
            assert (what[name] is Action.KEEP) is not expired
    for name, (_, age) in leftovers.items():
        assert (what[name] is Action.DELETE) is (proven and age >= 7 * DAY)

    # A person is asked for exactly what is unusual.
    counts = [sum(row.tier is tier for row in made.deletions) for tier in Tier]
    assert bool(made.asks) is (max(counts) > 3 or (skew > 60 and bool(deleted)))

    # Idempotent: when it is done there is nothing left to do, and the proof is the same.
    rest = Survey(
        [one for name, (one, _) in backups.items() if name not in deleted],
        [one for name, (one, _) in leftovers.items() if name not in deleted],
        held,
        found.clock_skew,
    )
    again = plan(rest, now)
    assert again.deletions == []
    assert (again.proof, again.frozen) == (made.proof, made.frozen)
    assert actions(again) == {name: action for name, action in what.items() if name not in deleted}

    # Monotone: what may go today may go tomorrow, as long as there is proof.
    tomorrow = plan(found, now + timedelta(days=1))
    assert tomorrow.frozen or deleted <= {row.backup for row in tomorrow.deletions}


def test_ten_thousand_random_histories(host_zone: str) -> None:
    assert os.environ["TZ"] == host_zone
    _any_history()


@pytest.mark.parametrize(("tier", "days"), [(Tier.DAILY, 30), (Tier.WEEKLY, 90)])
@pytest.mark.parametrize(("off", "action"), [(-1, Action.KEEP), (0, Action.DELETE), (1, Action.DELETE)])
def test_a_backup_goes_in_the_second_in_which_its_time_is_over(tier: Tier, days: int, off: int, action: Action) -> None:
    newer, old = entry(tier, State.VERIFIED, DAY), entry(tier, State.VERIFIED, days * DAY + off)
    made = plan(survey(newer, old))
    assert actions(made) == {prefix(newer): Action.KEEP, prefix(old): action}
    assert [row.undo_until for row in made.deletions] == [NOW + timedelta(days=30)] * (action is Action.DELETE)


def test_an_archive_stays_for_ever() -> None:
    archive = entry(Tier.MONTHLY, State.VERIFIED, 40 * 365 * DAY)
    newer = entry(Tier.MONTHLY, State.VERIFIED, DAY)
    assert actions(plan(survey(PROOF, newer, archive)))[prefix(archive)] is Action.KEEP


def test_each_protected_backup_is_named_with_its_rule() -> None:
    weekly = [entry(Tier.WEEKLY, state, age * DAY) for state, age in [(State.COMPLETE, 100), (State.VERIFIED, 101)]]
    daily = [entry(Tier.DAILY, state, age * DAY) for state, age in [(State.REFUTED, 31), (State.UNTRUSTED, 32)]]
    closed = entry(Tier.DAILY, State.CLOSED, 33 * DAY)
    rules = {row.backup: (row.action, row.rule) for row in plan(survey(PROOF, *weekly, *daily, closed)).rows}
    assert rules[prefix(weekly[0])] == (Action.REFUSED, "the newest of its tier that counts")
    assert rules[prefix(weekly[1])] == (Action.REFUSED, "the newest verified of its tier")
    assert rules[prefix(daily[0])] == (Action.REFUSED, "refuted, kept until a person closes it")
    assert rules[prefix(daily[1])] == (Action.REFUSED, "not trusted, kept until a person has looked")
    assert rules[prefix(closed)] == (Action.DELETE, "30 days from the snapshot")


def test_no_proof_for_eight_days_freezes_everything_and_says_since_when() -> None:
    old = entry(Tier.DAILY, State.COMPLETE, 31 * DAY)
    left = Leftover("postgres/payme/daily/20260101T020000EAT/", Tier.DAILY, NOW - timedelta(days=9))
    made = plan(survey(entry(Tier.DAILY, State.VERIFIED, 8 * DAY), old, leftovers=[left]))
    assert made.deletions == []
    assert made.frozen == "the newest verified backup is of 2026-11-16 07:30:00 EAT, 8 days ago or more"
    assert {row.rule for row in made.rows if row.action is Action.REFUSED} == {f"frozen: {made.frozen}"}
    assert plan(survey(old)).frozen == "no backup was ever verified by a restore test"


def test_a_copy_of_a_verified_backup_is_proof() -> None:
    old = entry(Tier.DAILY, State.COMPLETE, 31 * DAY)
    newer = entry(Tier.DAILY, State.COMPLETE, DAY)
    made = plan(survey(entry(Tier.WEEKLY, State.VERIFIED, 2 * DAY), old, newer))
    assert [row.backup for row in made.deletions] == [prefix(old)]


def test_a_backup_of_the_future_proves_nothing() -> None:
    """Or one with a wrong clock would keep pruning alive for as long as it is ahead."""
    assert plan(survey(entry(Tier.DAILY, State.VERIFIED, -3600))).frozen


def test_more_than_three_of_a_tier_asks_and_three_do_not() -> None:
    old = [entry(Tier.DAILY, State.VERIFIED, (30 + n) * DAY) for n in range(4)]
    weekly = [entry(Tier.WEEKLY, State.VERIFIED, (n or 1) * DAY) for n in (0, 91, 92, 93)]
    assert plan(survey(PROOF, *old[:3], *weekly)).asks == ""
    assert plan(survey(PROOF, *old)).asks == "4 deletions of daily backups at once, 3 are usual"


def test_a_clock_that_is_off_asks_before_it_deletes() -> None:
    old = entry(Tier.DAILY, State.VERIFIED, 31 * DAY)
    assert plan(survey(PROOF, old, skew=60)).asks == ""
    assert plan(survey(PROOF, old, skew=61)).asks == "this machine's clock is 61 s off the store's, 60 s are allowed"
    assert plan(survey(PROOF, skew=61)).asks == ""


def test_a_lock_is_reported_and_counts_as_no_deletion() -> None:
    old = entry(Tier.DAILY, State.VERIFIED, 31 * DAY)
    made = plan(survey(PROOF, old, held={prefix(old): "legal hold on it"}))
    assert (made.deletions, made.frozen, made.asks) == ([], "", "")
    assert (Action.LOCKED, "legal hold on it") in [(row.action, row.rule) for row in made.rows]


def test_what_an_interrupted_deletion_left_goes_whatever_its_age() -> None:
    left = Leftover("postgres/payme/daily/20260101T020000EAT/", Tier.DAILY, NOW)
    found = survey(PROOF, leftovers=[left])
    assert plan(found).deletions == []
    assert [row.backup for row in retain.plan(found, NOW, proof_days=8, begun=[left.prefix]).deletions] == [left.prefix]


@pytest.mark.parametrize(
    ("found", "verdict"),
    [
        (survey(PROOF), Verdict.PASS),
        (survey(PROOF, *[entry(Tier.DAILY, State.VERIFIED, (30 + n) * DAY) for n in range(4)]), Verdict.INCONCLUSIVE),
        (survey(), Verdict.FAIL),
    ],
)
def test_the_evidence_says_whether_a_person_is_needed(found: Survey, verdict: Verdict) -> None:
    shown = retain.describe(plan(found), "payme", actor="test", proof_days=PROOF_DAYS)
    assert shown.verdict is verdict
    assert retain.planned(shown) == [row.backup for row in plan(found).deletions]
    assert bool(shown.remedy) is (verdict is not Verdict.PASS)


def test_what_is_deleted_is_shown_first() -> None:
    old = entry(Tier.DAILY, State.VERIFIED, 31 * DAY)
    archive = entry(Tier.MONTHLY, State.VERIFIED, 31 * DAY)
    shown = retain.describe(plan(survey(archive, PROOF, old)), "payme", actor="test", proof_days=PROOF_DAYS)
    assert [row["action"] for row in shown.measured["rows"]] == ["delete", "keep", "keep"]
    assert shown.measured["rows by action"] == {"delete": 1, "locked": 0, "refused": 0, "keep": 2}
