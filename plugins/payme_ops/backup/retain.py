"""Retention: the one path by which backups are deleted. `survey` looks, `plan` decides, `apply` does what was planned.

`plan` is a pure function of what was found and the time. A deletion is a delete marker: while S3 keeps the version
under it, `undelete` brings the backup back.
"""

from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Any

from payme_ops.backup import verification
from payme_ops.backup.catalogue import RETENTION, Catalogue, Entry, State, entries, entry
from payme_ops.backup.manifest import MANIFEST_NAME, Tier, tier_prefix
from payme_ops.backup.store import Placement
from payme_ops.foundation import evidence, lease
from payme_ops.foundation.clock import parse_key_stamp, show, utc_now
from payme_ops.foundation.errors import AlreadyExists, NotApproved, NotFound
from payme_ops.foundation.evidence import Evidence, Finding, Verdict, passed
from payme_ops.foundation.objectstore import Bucket, Item, Version
from payme_ops.foundation.progress import Report
from payme_ops.foundation.settings import BackupSettings

# Items of evidence.
PLAN, APPLIED = "retention_plan", "retention_applied"

# More than this many of one tier at once is unusual: a person looks first.
MAX_DELETIONS = 3
MAX_CLOCK_SKEW = timedelta(seconds=60)
# Objects without a manifest: a run that is under way writes for hours, and its manifest comes last.
LEFTOVER_AGE = timedelta(days=7)
# How long S3 keeps what was deleted: NoncurrentDays of the buckets' lifecycle rule (docs/first-run.md).
UNDO = timedelta(days=30)


class Action(StrEnum):
    """What becomes of a backup. REFUSED and LOCKED are past their time and stay; the rule says why."""

    KEEP = "keep"
    DELETE = "delete"
    REFUSED = "refused"
    LOCKED = "locked"


@dataclass(frozen=True)
class Leftover:
    """A folder of objects without a manifest; `modified` is the newest object's."""

    prefix: str
    tier: Tier
    modified: datetime


@dataclass(frozen=True)
class Survey:
    """What the buckets hold. `held` says of folders that are due which lock their objects are under."""

    entries: list[Entry]
    leftovers: list[Leftover]
    held: Mapping[str, str]
    clock_skew: timedelta


@dataclass(frozen=True)
class Row:
    """One line of the plan. `backup` is the folder's prefix; `undo_until` None: there is nothing to undo."""

    backup: str
    tier: Tier
    action: Action
    rule: str
    evidence: str
    undo_until: datetime | None = None


@dataclass(frozen=True)
class Plan:
    """What is to happen, and why. `proof` is the newest verified backup, "" without one.

    `frozen`: why nothing may be deleted; `asks`: why a person has to agree. Both are "" on an ordinary day. `alarms`:
    frozen, and not only because no backup is old enough yet to have been tested in time.
    """

    rows: list[Row]
    proof: str
    frozen: str
    alarms: bool
    asks: str

    @property
    def deletions(self) -> list[Row]:
        """What is to be deleted, the oldest of each tier first."""
        return [row for row in self.rows if row.action is Action.DELETE]


# -- looking ----------------------------------------------------------------------------------------------------


def survey(catalogue: Catalogue, now: datetime) -> Survey:
    """Both buckets as they are: a listing a tier, two small reads a backup, a look at each object that is due.

    Raises StoreUnavailable, StoreRefused: a region that is away stops it, since it may hold the newest proof.
    """
    found = list(entries(catalogue))
    folders = {(tier, prefix): items for tier in Tier for prefix, items in _folders(catalogue, tier).items()}
    leftovers = [
        Leftover(prefix, tier, max(item.modified for item in items))
        for (tier, prefix), items in folders.items()
        if not any(item.key.endswith(f"/{MANIFEST_NAME}") for item in items)
    ]
    due = {_prefix(one) for one in found if _is_expired(one, now)} | {one.prefix for one in leftovers}
    held = {
        prefix: why
        for (tier, prefix), items in folders.items()
        if prefix in due and (why := _held(catalogue.stores.of(tier), items, now))
    }
    stores = (catalogue.stores.home, catalogue.stores.copies)
    return Survey(found, leftovers, held, max(abs(store.server_time() - utc_now()) for store in stores))


def _folders(catalogue: Catalogue, tier: Tier) -> dict[str, list[Item]]:
    """The tier's objects by folder; what is not in a folder named by a time stamp is not ours."""
    found: defaultdict[str, list[Item]] = defaultdict(list)
    root = tier_prefix(catalogue.database, tier)
    for item in catalogue.stores.of(tier).items(root):
        stamp = item.key.removeprefix(root).split("/")[0]
        if _is_stamp(stamp):
            found[f"{root}{stamp}/"].append(item)
    return found


def _is_stamp(name: str) -> bool:
    try:
        parse_key_stamp(name)
    except ValueError:
        return False
    return True


def _held(bucket: Bucket, items: list[Item], now: datetime) -> str:
    """Which lock the folder is under. A verification comes later than what it is about: its retention counts for
    nothing, or each restore test would lengthen the backup's."""
    for item in items:
        head = bucket.head(item.key)
        if head.legal_hold:
            return f"legal hold on {item.key}"
        if head.retain_until and head.retain_until > now and not item.key.endswith(f"/{verification.NAME}"):
            return f"locked until {show(head.retain_until)}"
    return ""


def _prefix(one: Entry) -> str:
    return one.key.removesuffix(MANIFEST_NAME)


def _is_expired(one: Entry, now: datetime) -> bool:
    return one.expires_at is not None and one.expires_at <= now


# -- deciding ---------------------------------------------------------------------------------------------------


def plan(found: Survey, now: datetime, *, proof_days: int, begun: Collection[str] = ()) -> Plan:
    """What to keep and what to delete, by these rules, the first that fits:

    1. What a person has to look at stays: UNTRUSTED ones, and REFUTED ones until they are closed.
    2. Monthly archives stay; dailies 30 and weeklies 90 days from their snapshot (catalogue.RETENTION).
    3. The newest verified backup of a tier stays, and the newest that counts.
    4. Without a verified backup younger than `proof_days` nothing is deleted (frozen).
    5. What is under Object Lock stays until it is not.

    Objects without a manifest go after a week, by rules 4 and 5, too; `begun` are folders whose deletion was begun
    and whose age does not count. More than three deletions in a tier, or a clock that is off, asks a person.
    """
    proof = _newest(found.entries, {State.VERIFIED}, not_after=now + MAX_CLOCK_SKEW)
    frozen = _frozen(proof, now, timedelta(days=proof_days))
    alarms = bool(frozen) and any(
        now - one.started_at >= timedelta(days=proof_days) for one in found.entries if one.manifest
    )
    floors = {
        _prefix(newest): rule
        for tier in RETENTION
        for states, rule in (
            ({State.VERIFIED, State.COMPLETE}, "the newest of its tier that counts"),
            ({State.VERIFIED}, "the newest verified of its tier"),
        )
        if (newest := _newest([one for one in found.entries if one.tier is tier], states))
    }
    rows = [_judge(one, now, floors) for one in found.entries]
    rows += [_judge_leftover(one, now, begun) for one in found.leftovers]
    rows = [_restrained(row, frozen, found.held) for row in rows]
    rows.sort(key=lambda row: (list(Tier).index(row.tier), row.backup))
    return Plan(rows, _prefix(proof) if proof else "", frozen, alarms, _asks(rows, found.clock_skew))


def _newest(candidates: Iterable[Entry], states: set[State], *, not_after: datetime | None = None) -> Entry | None:
    dated = [
        (one.manifest.snapshot_at, one.key, one)
        for one in candidates
        if one.manifest and one.state in states and (not_after is None or one.manifest.snapshot_at <= not_after)
    ]
    return max(dated, key=lambda triple: triple[:2])[2] if dated else None


def _frozen(proof: Entry | None, now: datetime, proof_age: timedelta) -> str:
    if proof is None or proof.manifest is None:
        return "no backup was ever verified by a restore test"
    if now - proof.manifest.snapshot_at < proof_age:
        return ""
    return f"the newest verified backup is of {show(proof.manifest.snapshot_at)}, {proof_age.days} days ago or more"


def _judge(one: Entry, now: datetime, floors: Mapping[str, str]) -> Row:
    prefix, keep = _prefix(one), RETENTION[one.tier]
    if one.manifest is None:
        return Row(prefix, one.tier, Action.REFUSED, "not trusted, kept until a person has looked", one.why)
    said = f"{one.state}, snapshot {show(one.manifest.snapshot_at)}"
    if one.state is State.REFUTED:
        return Row(prefix, one.tier, Action.REFUSED, "refuted, kept until a person closes it", said)
    if keep is None:
        return Row(prefix, one.tier, Action.KEEP, "for ever", said)
    rule = f"{keep.days} days from the snapshot"
    if not _is_expired(one, now):
        return Row(prefix, one.tier, Action.KEEP, rule, said)
    if prefix in floors:
        return Row(prefix, one.tier, Action.REFUSED, floors[prefix], said)
    return Row(prefix, one.tier, Action.DELETE, rule, said, now + UNDO)


def _judge_leftover(one: Leftover, now: datetime, begun: Collection[str]) -> Row:
    rule, said = f"{LEFTOVER_AGE.days} days without a manifest", f"newest object of {show(one.modified)}"
    if one.prefix in begun:
        rule = "what an interrupted deletion left"
    elif now - one.modified < LEFTOVER_AGE:
        return Row(one.prefix, one.tier, Action.KEEP, rule, said)
    return Row(one.prefix, one.tier, Action.DELETE, rule, said, now + UNDO)


def _restrained(row: Row, frozen: str, held: Mapping[str, str]) -> Row:
    """What would be deleted but for the freeze, or a lock."""
    if row.action is Action.DELETE and frozen:
        return replace(row, action=Action.REFUSED, rule=f"frozen: {frozen}", undo_until=None)
    if row.action is Action.DELETE and row.backup in held:
        return replace(row, action=Action.LOCKED, rule=held[row.backup], undo_until=None)
    return row


def _asks(rows: list[Row], clock_skew: timedelta) -> str:
    counts = Counter(row.tier for row in rows if row.action is Action.DELETE)
    reasons = [
        f"{count} deletions of {tier} backups at once, {MAX_DELETIONS} are usual"
        for tier, count in counts.items()
        if count > MAX_DELETIONS
    ]
    if counts and clock_skew > MAX_CLOCK_SKEW:
        reasons.append(
            f"this machine's clock is {clock_skew.total_seconds():.0f} s off the store's,"
            f" {MAX_CLOCK_SKEW.total_seconds():.0f} s are allowed"
        )
    return "; ".join(reasons)


# -- evidence ---------------------------------------------------------------------------------------------------


def describe(made: Plan, database: str, *, actor: str, proof_days: int, item: str = PLAN) -> Evidence:
    """The plan as evidence `item`: PASS when it may be applied as it is, INCONCLUSIVE when a person has to agree, FAIL
    when it is frozen. What changes something comes first."""
    order = [Action.DELETE, Action.LOCKED, Action.REFUSED, Action.KEEP]
    measured: dict[str, Any] = {
        "database": database,
        "rows by action": {action: sum(row.action is action for row in made.rows) for action in order},
        "newest verified": made.proof or "none",
        "frozen": made.frozen or "no",
        "a person is asked because": made.asks or "nothing unusual",
        "rows": [_cells(row) for row in sorted(made.rows, key=lambda row: order.index(row.action))],
    }
    verdict = Verdict.FAIL if made.frozen else Verdict.INCONCLUSIVE if made.asks else Verdict.PASS
    remedy = (
        "get a restore test to pass (docs/runbooks/backup_retention.md)"
        if made.frozen
        else "approve only if you know why these are so many, or after the clock was set"
        if made.asks
        else ""
    )
    finding = Finding(verdict, measured, remedy)
    threshold = (
        f"a verified backup younger than {proof_days} days; at most {MAX_DELETIONS} deletions a tier;"
        f" the clock within {MAX_CLOCK_SKEW.total_seconds():.0f} s of the store's"
    )
    source = "payme_ops.backup.retain"
    return evidence.conclude(item, finding, threshold=threshold, actor=actor, source=source, started=utc_now())


def _cells(row: Row) -> dict[str, str]:
    return {
        "action": row.action,
        "backup": row.backup,
        "rule": row.rule,
        "evidence": row.evidence,
        "undo until": show(row.undo_until) if row.undo_until else "",
    }


def planned(shown: Evidence) -> list[str]:
    """The folders that a described plan deletes."""
    return [str(row["backup"]) for row in shown.measured["rows"] if row["action"] == Action.DELETE]


# -- doing ------------------------------------------------------------------------------------------------------


def apply(
    catalogue: Catalogue,
    ops: str,
    run: str,
    shown: Evidence,
    *,
    proof_days: int,
    report: Report,
    item: str = APPLIED,
) -> Evidence:
    """Delete what the described plan says, manifests first, and record it as `item`. Killed and run again it goes on.

    Plans again right before. What would be deleted by now but was not planned waits for the next plan; if anything
    planned would be kept by now, or a plan that asked nobody would ask by now, nothing is deleted. The caller has made
    sure that a person agreed where the plan asks.
    Raises NotApproved when the plan changed, LeaseHeld, LeaseLost, StoreUnavailable, StoreRefused.
    """
    started, wanted = utc_now(), planned(shown)
    with lease.hold(ops, f"retention:{catalogue.database}"[:63], run) as held:
        again = plan(survey(catalogue, started), started, proof_days=proof_days, begun=wanted)
        _require_unchanged(shown, again)
        objects = 0
        for row in again.deletions:
            if row.backup in wanted:
                held.check()
                objects += _delete(catalogue.stores.of(row.tier), row.backup)
                report(f"deleted {row.backup}, undo until {show(row.undo_until or started)}: {row.rule}")
    finding = passed({"deleted": wanted, "objects in this try": objects})
    threshold, source = "what was planned", catalogue.database
    return evidence.keep(ops, run, item, finding, threshold=threshold, source=source, started=started)


def _require_unchanged(shown: Evidence, again: Plan) -> None:
    wanted = planned(shown)
    now_kept = [row for row in again.rows if row.backup in wanted and row.action is not Action.DELETE]
    if now_kept:
        raise NotApproved(
            f"the plan no longer holds for {len(now_kept)} of {len(wanted)} deletions; nothing was deleted",
            expected="every planned deletion to be due still",
            found="; ".join(f"{row.backup} {row.action}, {row.rule}" for row in now_kept[:MAX_DELETIONS]),
            remedy="trigger the DAG again: it makes a new plan",
        )
    if wanted and again.asks and shown.verdict is Verdict.PASS:
        raise NotApproved(
            "the plan would ask a person by now; nothing was deleted",
            expected="nothing unusual since it was made",
            found=again.asks,
            remedy="trigger the DAG again: it makes a new plan, and asks",
        )


def _delete(bucket: Bucket, prefix: str) -> int:
    """The manifest first: from then on it is no backup, and what is left of a killed try is a leftover."""
    keys = sorted(bucket.keys(prefix), key=lambda key: not key.endswith(f"/{MANIFEST_NAME}"))
    for key in keys:
        bucket.delete(key)
    return len(keys)


# -- undoing ----------------------------------------------------------------------------------------------------


def undelete(catalogue: Catalogue, name: str, backup: BackupSettings, *, report: Report) -> Entry:
    """Bring a deleted backup back from its last versions, the manifest last; `name` is its stamp, prefix or key.

    Needs an identity that may list and read versions, and write. A backup past its time is planned for deletion
    again by the next run. Killed and run again it goes on. Raises NotFound when no version is left, AlreadyExists
    when it is not deleted, StoreUnavailable, StoreRefused.
    """
    tier, prefix, deleted = _deleted(catalogue, name)
    bucket = catalogue.stores.of(tier)
    elsewhere = tier is not Tier.DAILY
    encryption = Placement(bucket, backup.storage_class, backup.kms_key_id, by_bucket=elsewhere).encryption()
    for one in sorted(deleted, key=lambda version: version.key.endswith(f"/{MANIFEST_NAME}")):
        extra: dict[str, Any] = dict(encryption)
        extra |= (
            {"ContentType": "application/json"} if one.key.endswith(".json") else {"StorageClass": backup.storage_class}
        )
        bucket.copy(bucket, one.key, one.key, size_bytes=one.size_bytes, version_id=one.version_id, **extra)
        report(f"brought back {one.key}, {one.size_bytes} bytes of {show(one.modified)}")
    return entry(catalogue, tier, f"{prefix}{MANIFEST_NAME}")


def _deleted(catalogue: Catalogue, name: str) -> tuple[Tier, str, list[Version]]:
    """The folder that `name` means, and the newest version of each of its objects that is deleted."""
    there = ""
    for tier in Tier:
        root = tier_prefix(catalogue.database, tier)
        stamp = name.removeprefix(root).split("/")[0]
        if not _is_stamp(stamp):
            continue
        prefix = f"{root}{stamp}/"
        by_key: defaultdict[str, list[Version]] = defaultdict(list)
        for version in catalogue.stores.of(tier).versions(prefix):
            by_key[version.key].append(version)  # the latest of a key comes first
        found = [
            next(one for one in versions if not one.marker)
            for versions in by_key.values()
            if versions[0].marker and not all(one.marker for one in versions)
        ]
        if found:
            return tier, prefix, found
        there = there or (prefix if by_key else "")
    if there:
        raise AlreadyExists(f"{there} is not deleted", remedy="look at `python -m payme_ops backup list`")
    raise NotFound(
        f"nothing deleted is named {name!r}",
        expected=f"a time stamp, prefix or manifest key of a backup deleted less than {UNDO.days} days ago",
        found="no version",
        remedy="the evidence of backup_retention's runs names what was deleted",
    )
