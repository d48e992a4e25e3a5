"""A daily backup's bytes in the other region: copied inside the store, read there again, under a manifest of their own.

Weekly copies stay as they are; monthly archives go on to Glacier (payme_ops.backup.archive). A copy counts, as every
backup does, from the moment its signed manifest is there, and that is written last.
"""

import time
from datetime import datetime

from payme_ops import __version__
from payme_ops.backup import catalogue, store, verification
from payme_ops.backup.catalogue import Catalogue
from payme_ops.backup.manifest import Manifest, SealedObject, Tier, backup_prefix
from payme_ops.backup.run import Desk
from payme_ops.backup.verification import Outcome
from payme_ops.foundation import lease
from payme_ops.foundation.clock import EAT, show
from payme_ops.foundation.errors import HashMismatch, IntegrityError, NotFound
from payme_ops.foundation.objectstore import Bucket
from payme_ops.foundation.progress import Progress, Report
from payme_ops.foundation.signing import load_private_key

_ACTOR = f"payme-ops {__version__}"
# Objects on their way to an archive lie here until they were read: the only class without a least time to pay for.
_PASSING_CLASS = "STANDARD"


def of_day(where: Catalogue, instant: datetime) -> Manifest:
    """The newest daily that counts, taken since that day's midnight in Nairobi. Raises NotFound."""
    midnight = instant.astimezone(EAT).replace(hour=0, minute=0, second=0, microsecond=0)
    found = catalogue.newest(where, Tier.DAILY)
    if found is None or found.snapshot_at < midnight:
        raise NotFound(
            f"{where.database} has no backup of that day",
            expected=f"a complete one with a snapshot since {show(midnight)}, not refuted",
            found=f"the newest is of {show(found.snapshot_at)}" if found else "none",
            remedy="take one: trigger backup_daily, or `python -m payme_ops backup run`",
        )
    return found


def copy(
    desk: Desk,
    run: str,
    source: Manifest,
    tier: Tier = Tier.WEEKLY,
    *,
    archive_class: str | None = None,
    report: Report,
) -> Manifest:
    """Copy a daily into the other region; a copy that is there already is answered as it is.

    With `archive_class` its archive goes on to that S3 class once it was read, and cannot be read from then on. Raises
    LeaseHeld, HashMismatch (the bytes at the destination are others; nothing is committed), IntegrityError for a
    backup that does not count, StoreUnavailable, StoreRefused.
    """
    _require_good(desk, source)
    with lease.hold(desk.ops, f"copy:{desk.settings.backup.database}", run) as held:
        prefix = backup_prefix(source.database, tier, source.started_at)
        made = _existing(desk, source, tier)
        if made is None:
            desk.copies.abort_uploads(prefix)  # what a killed run left; the lease says that nobody else is at it
            made = _replicate(desk, run, held, source, tier, prefix, archive_class, report=report)
        else:
            report(f"{made.key} is there already")
        # After the commit: from there on a restore test of the daily finds this copy and writes beside it, too.
        _carry_verification(desk, source, made)
    return made


def _require_good(desk: Desk, source: Manifest) -> None:
    if source.tier is not Tier.DAILY:
        raise IntegrityError(f"{source.key} is a {source.tier} itself", expected="a daily backup", found=source.tier)
    found = verification.read_trusted(desk.bucket, source, desk.settings.backup.verification_keys)
    if found and found.verdict != Outcome.VERIFIED:
        raise IntegrityError(
            f"{source.key} is {found.verdict}",
            expected="a backup that is VERIFIED or COMPLETE",
            found="its restore test found that it differs from the database it was taken from",
            remedy="copy another; `python -m payme_ops backup list` shows what each is worth",
        )


def _existing(desk: Desk, source: Manifest, tier: Tier) -> Manifest | None:
    key = source.model_copy(update={"prefix": backup_prefix(source.database, tier, source.started_at)}).key
    try:
        found = catalogue.load(desk.copies, key, desk.settings.backup.trusted_keys)
    except NotFound:
        return None
    if verification.binding(found) != verification.binding(source):
        raise IntegrityError(
            f"{key} is no copy of {source.key}",
            expected=source.archive.sha256,
            found=found.archive.sha256,
            remedy="do not use it; find out who wrote it (docs/keys.md)",
        )
    return found


def _replicate(
    desk: Desk,
    run: str,
    held: lease.Lease,
    source: Manifest,
    tier: Tier,
    prefix: str,
    archive_class: str | None,
    *,
    report: Report,
) -> Manifest:
    start = time.monotonic()
    placed = desk.copy_placement.storage_class
    archive = _copy_object(desk, source.archive, prefix, _PASSING_CLASS if archive_class else placed, report=report)
    roles = _copy_object(desk, source.globals, prefix, placed, report=report)
    copied = time.monotonic()
    version = desk.copies.head(archive.key).version_id
    proof = store.read_back(desk.copies, archive, report=report)
    store.read_back(desk.copies, roles, report=report)
    if archive_class:
        _move(desk.copies, archive, version, archive_class)
    made = source.model_copy(
        update={
            "tier": tier,
            "prefix": prefix,
            "run": run,
            "fencing_token": held.token,
            "software": _ACTOR,
            "archive": archive,
            "globals": roles,
            "milliseconds": {"copy": round((copied - start) * 1000)},
            "read_back": proof,
            "copied_from": source.key,
        }
    )
    held.check()
    store.commit(desk.copy_placement, made, load_private_key(desk.settings.backup.signing_key_file))
    return made


def _copy_object(desk: Desk, stored: SealedObject, prefix: str, storage_class: str, *, report: Report) -> SealedObject:
    name = stored.key.rsplit("/", 1)[-1]
    target = stored.model_copy(update={"key": prefix + name})
    progress = Progress(f"copy {name}", total=stored.size_bytes, report=report)
    desk.copies.copy(
        desk.bucket,
        stored.key,
        target.key,
        size_bytes=stored.size_bytes,
        progress=progress.add,
        StorageClass=storage_class,
    )
    progress.finish()
    return target


def _move(bucket: Bucket, stored: SealedObject, version: str, storage_class: str) -> None:
    """Into another class: exactly the version that was read, because in an archive nobody reads it again."""
    found = bucket.head(stored.key).version_id
    if found != version:
        raise HashMismatch(
            f"{stored.key} was replaced while it was read",
            expected=f"version {version}",
            found=f"version {found}",
            remedy="find out who else writes there, then run it again",
        )
    bucket.copy(
        bucket, stored.key, stored.key, size_bytes=stored.size_bytes, version_id=version, StorageClass=storage_class
    )


def _carry_verification(desk: Desk, source: Manifest, made: Manifest) -> None:
    """A copy of the same bytes inherits what a restore test found."""
    keys = desk.settings.backup.verification_keys
    found, there = (
        verification.read_trusted(desk.bucket, source, keys),
        verification.read_trusted(desk.copies, made, keys),
    )
    if found and (there is None or found.ended > there.ended):
        desk.copies.put(verification.key(made), desk.bucket.get(verification.key(source)))
