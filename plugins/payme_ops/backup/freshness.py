"""How much would be lost now, how old the proof is, and how long the way back takes, against the targets.

Measured from the buckets alone: so it is known while Airflow is dead, and a paused DAG shows by the target it misses.
"""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

from payme_ops.backup import catalogue
from payme_ops.backup.catalogue import Catalogue, Entry, State
from payme_ops.backup.manifest import Manifest, Tier
from payme_ops.foundation.clock import show
from payme_ops.foundation.errors import PaymeOpsError
from payme_ops.foundation.evidence import Check, Evidence, Finding, Verdict, failed, passed, run_check
from payme_ops.foundation.settings import DeskSettings, TargetSettings

# A copy a week and an archive a month, each with a day to make good what failed.
_COPY, _ARCHIVE = timedelta(days=8), timedelta(days=32)
# What the clocks of two hosts may differ by.
_SKEW = timedelta(minutes=5)
# The DAG that brings what is missed, and whose runbook says how.
DAGS = {
    "daily_age": "backup_daily",
    "weekly_age": "backup_weekly",
    "monthly_age": "backup_monthly",
    "proof_age": "backup_restore_test",
    **{f"rto_{tier}": "backup_restore_test" for tier in Tier},
    **{f"{which}_{age}": "desk_backup" for which in DeskSettings().databases for age in ("age", "proof_age")},
}

_SOURCE = "the buckets"

Seen = Mapping[Tier, Sequence[Entry] | PaymeOpsError]
"""What is known of each tier: its backups, or why it could not be looked at."""


def measure(
    where: Catalogue, targets: TargetSettings, now: datetime, *, actor: str, desk: DeskSettings | None = None
) -> list[Evidence]:
    """Freshness as the buckets have it, from as few manifests as will do. A region that is away is inconclusive.

    With `desk` that of the desk's own databases, too.
    """
    seen: Seen = {tier: _look(where, tier) for tier in Tier}
    found = judge(seen, targets, now, actor=actor)
    first = _Known(seen, now).first
    for which, database in (desk.databases if desk else {}).items():
        own: Seen = {Tier.DAILY: _look(replace(where, database=database), Tier.DAILY)}
        found += judge_own(which, own, first, targets, now, actor=actor)
    return found


def judge_own(
    which: str, seen: Seen, first: datetime | None, targets: TargetSettings, now: datetime, *, actor: str
) -> list[Evidence]:
    """The age of the newest backup of one of the desk's own databases, and of its proof, by the same targets.

    They are due from `first` on, the first backup of PayMe's database; before that nothing is said of them.
    """
    if first is None:
        return []
    known, rpo, proof = _Known(seen, now, since=first), timedelta(hours=targets.rpo_hours), targets.proof_days
    checks = [
        Check(f"{which}_age", f"{targets.rpo_hours} h at most", _SOURCE, lambda: known.age(Tier.DAILY, rpo)),
        Check(f"{which}_proof_age", f"{proof} days at most", _SOURCE, lambda: known.proof(timedelta(days=proof))),
    ]
    remedy = f"see why the group {which} of desk_backup has no newer one, then run it"
    found = [run_check(check, actor=actor) for check in checks]
    return [replace(item, remedy=remedy) if item.verdict is Verdict.FAIL else item for item in found]


def judge(seen: Seen, targets: TargetSettings, now: datetime, *, actor: str) -> list[Evidence]:
    """One item each for the age of every tier and of the proof, and for the time of the last restore test of a tier.

    What was never there is missed when its time has passed since the first backup. A tier that was never tested has no
    time yet; the age of the proof speaks for it. Without any backup that is the one thing to say.
    """
    known = _Known(seen, now)
    rpo, proof = timedelta(hours=targets.rpo_hours), timedelta(days=targets.proof_days)
    checks = [
        Check("daily_age", f"{targets.rpo_hours} h at most", _SOURCE, lambda: known.age(Tier.DAILY, rpo)),
        Check("weekly_age", f"{_COPY.days} days at most", _SOURCE, lambda: known.age(Tier.WEEKLY, _COPY)),
        Check("monthly_age", f"{_ARCHIVE.days} days at most", _SOURCE, lambda: known.age(Tier.MONTHLY, _ARCHIVE)),
        Check("proof_age", f"{targets.proof_days} days at most", _SOURCE, lambda: known.proof(proof)),
    ]
    for tier in Tier:
        if tested := known.tested(tier):
            checks.append(_rto(tier, tested, targets.rto_minutes))
    if known.nothing:
        checks = checks[:1]
    return [run_check(check, actor=actor) for check in checks]


def summary(found: Sequence[Evidence]) -> str:
    """Freshness in one line, for people."""
    return "; ".join(f"{item.item.replace('_', ' ')} {_words(item)}" for item in found)


def _look(where: Catalogue, tier: Tier) -> list[Entry] | PaymeOpsError:
    """The newest backups down to a verified one, and the oldest."""
    found: list[Entry] = []
    try:
        for one in catalogue.entries(where, tiers=[tier], newest_first=True):
            found.append(one)
            if one.state is State.VERIFIED:
                break
        found += itertools.islice(catalogue.entries(where, tiers=[tier]), 1)
    except PaymeOpsError as error:
        return error
    return found


@dataclass(frozen=True)
class _Counted:
    """A backup that counts. `rto_milliseconds` of the restore test, which was done on the backup `subject`."""

    manifest: Manifest
    verified: bool
    rto_milliseconds: int | None
    subject: str


class _Known:
    """The backups that count, tier by tier, without those ahead of our clock: they would hide every later silence."""

    def __init__(self, seen: Seen, now: datetime, *, since: datetime | None = None) -> None:
        self._now, self._since = now, since
        self._errors = {tier: found for tier, found in seen.items() if isinstance(found, PaymeOpsError)}
        counting = {tier: _counting(found) for tier, found in seen.items() if not isinstance(found, PaymeOpsError)}
        self._present = {
            tier: [one for one in found if max(_taken(one), _stored(one)) <= now + _SKEW]
            for tier, found in counting.items()
        }
        self._ahead = {tier: len(counting[tier]) - len(found) for tier, found in self._present.items()}

    @property
    def nothing(self) -> bool:
        """Every region answered, and none has a backup that counts."""
        return not self._errors and not any(self._present.values())

    @property
    def first(self) -> datetime | None:
        """When the oldest of them was taken, or from when on there should be one."""
        return min((_taken(one) for found in self._present.values() for one in found), default=self._since)

    def age(self, tier: Tier, target: timedelta) -> Finding:
        """The age of a tier's newest: since its snapshot; of archives, which are made of old ones, since then."""
        if error := self._errors.get(tier):
            raise error
        when = _stored if tier is Tier.MONTHLY else _taken
        newest = max(self._present[tier], key=when, default=None)
        ahead = {"ahead of our clock": self._ahead[tier]} if self._ahead[tier] else {}
        if newest is None:
            return self._none(target, ahead, f"see why: `python -m payme_ops backup list`; then run backup_{tier}")
        at = when(newest)
        measured = {"is": _duration(self._now - at), "since": show(at), "backup": newest.manifest.key, **ahead}
        return _judged(self._now - at, target, measured, f"see why no newer one is there, then run backup_{tier}")

    def proof(self, target: timedelta) -> Finding:
        """The age of the newest verified backup's snapshot, in whichever tier."""
        remedy = "run backup_restore_test, or `python -m payme_ops backup restore-test`"
        found = [one for tier in self._present.values() for one in tier if one.verified]
        newest = max(found, key=_taken, default=None)
        if newest is not None:
            age = self._now - _taken(newest)
            measured = {"is": _duration(age), "since": show(_taken(newest)), "backup": newest.manifest.key}
            if age <= target or not self._errors:
                return _judged(age, target, measured, remedy)
        if self._errors:  # a newer one may be there
            raise next(iter(self._errors.values()))
        return self._none(target, {}, remedy)

    def tested(self, tier: Tier) -> _Counted | None:
        """The backup of the tier's last restore test that passed and was timed."""
        found = [one for one in self._present.get(tier, []) if one.rto_milliseconds is not None]
        return max(found, key=_taken, default=None)

    def _none(self, target: timedelta, more: dict[str, int], remedy: str) -> Finding:
        first = self.first
        if first is not None and self._now - first > target:
            return failed({"is": "none", **more}, remedy)
        if self._errors:  # an older one may be there
            raise next(iter(self._errors.values()))
        if first is not None:
            return passed({"is": "not due yet", "due": show(first + target), **more})
        return failed({"is": "none", **more}, remedy)


def _rto(tier: Tier, tested: _Counted, target_minutes: int) -> Check:
    def measure() -> Finding:
        took = timedelta(milliseconds=tested.rto_milliseconds or 0)
        measured: dict[str, object] = {"is": _duration(took), "measured on": tested.subject}
        if tier is Tier.MONTHLY:
            measured["before it"] = "hours of retrieval from the archive"
        remedy = "find the slow stage: `python -m payme_ops backup report`; a larger or nearer restore host is quicker"
        return _judged(took, timedelta(minutes=target_minutes), measured, remedy)

    return Check(f"rto_{tier}", f"{target_minutes} min at most", _SOURCE, measure)


def _judged(found: timedelta, target: timedelta, measured: Mapping[str, object], remedy: str) -> Finding:
    return passed(measured) if found <= target else failed(measured, remedy)


def _counting(found: Sequence[Entry]) -> list[_Counted]:
    counted = []
    for one in found:
        if one.manifest and one.counts:
            record = one.verification if one.state is State.VERIFIED else None
            took = record.facts.get("rto_milliseconds") if record else None
            milliseconds = took if isinstance(took, int) else None
            counted.append(_Counted(one.manifest, record is not None, milliseconds, record.subject if record else ""))
    return counted


def _taken(one: _Counted) -> datetime:
    return one.manifest.snapshot_at


def _stored(one: _Counted) -> datetime:
    read_back = one.manifest.read_back
    return read_back.at if read_back else one.manifest.snapshot_at


def _words(item: Evidence) -> str:
    words = str(item.measured.get("is", "is not known"))
    return f"{words} (MISSED, {item.threshold})" if item.verdict is Verdict.FAIL else words


def _duration(span: timedelta) -> str:
    """`3.2 h`, with the unit that fits."""
    seconds = span.total_seconds()
    for unit, length in (("days", 86400.0), ("h", 3600.0), ("min", 60.0)):
        if abs(seconds) >= 2 * length:
            return f"{seconds / length:.1f} {unit}"
    return f"{seconds:.0f} s"
