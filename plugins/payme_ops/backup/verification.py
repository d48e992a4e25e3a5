"""What a restore test found about a backup: a signed record beside its manifest, `verification.json`.

VERIFIED and REFUTED are facts about bytes and their truth, not about a place: the record is bound to both, so a copy
of the same bytes inherits it. REFUTED is for ever until a person closes it.
"""

from enum import StrEnum

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from payme_ops.backup.manifest import Manifest
from payme_ops.foundation import evidence, record
from payme_ops.foundation.clock import utc_now
from payme_ops.foundation.errors import AlreadyExists, IntegrityError, NotFound
from payme_ops.foundation.objectstore import Bucket
from payme_ops.foundation.record import Record
from payme_ops.foundation.scrub import scrub
from payme_ops.foundation.settings import Settings
from payme_ops.foundation.signing import load_private_key

NAME = "verification.json"
KIND = "restore_test"
VARIABLE = "PAYME_OPS__BACKUP__VERIFICATION_KEYS"


class Outcome(StrEnum):
    """The verdict of a verification. CLOSED: a person has looked at a REFUTED one and let it go."""

    VERIFIED = "VERIFIED"
    REFUTED = "REFUTED"
    CLOSED = "CLOSED"


def binding(manifest: Manifest) -> dict[str, str]:
    """What a verification is about; part of its facts."""
    # Without defaults: a field that a later release adds does not change what was verified.
    truth = manifest.truth.model_dump(mode="json", exclude_defaults=True)
    return {
        "archive_sha256": manifest.archive.sha256,
        "globals_sha256": manifest.globals.sha256,
        "truth_sha256": evidence.digest(truth),
    }


def signing_key(settings: Settings) -> Ed25519PrivateKey:
    """The key of restore workers. Raises SettingsError without it."""
    return load_private_key(settings.backup.verification_key_file, "PAYME_OPS__BACKUP__VERIFICATION_KEY_FILE")


def key(manifest: Manifest) -> str:
    """Object key of the verification of a backup."""
    return f"{manifest.prefix}{NAME}"


def read(bucket: Bucket, manifest: Manifest, trusted_keys: list[str]) -> Record | None:
    """The verification beside a manifest, or None. Raises Untrusted, RecordInvalid, and for another backup's record
    IntegrityError."""
    try:
        body = bucket.get(key(manifest))
    except NotFound:
        return None
    found = record.read(body, trusted_keys, VARIABLE)
    if found.kind != KIND or found.verdict not in list(Outcome):
        raise IntegrityError("this is no verification", expected=f"kind {KIND}", found=f"{found.kind} {found.verdict}")
    if any(found.facts.get(name) != value for name, value in binding(manifest).items()):
        raise IntegrityError(
            "the verification belongs to another backup",
            expected=f"archive {manifest.archive.sha256}",
            found=f"archive {found.facts.get('archive_sha256')}",
            remedy="do not trust it; test this backup by `python -m payme_ops backup restore-test`",
        )
    return found


def read_trusted(bucket: Bucket, manifest: Manifest, trusted_keys: list[str]) -> Record | None:
    """The same, where one that cannot be trusted counts as none."""
    try:
        return read(bucket, manifest, trusted_keys)
    except IntegrityError:
        return None


def write(
    places: list[tuple[Bucket, Manifest]],
    made: Record,
    signing_key: Ed25519PrivateKey,
    trusted_keys: list[str],
) -> Record:
    """Write the verification beside the backup and its copies, chained to what was there.

    `places` are the backup and the copies with the same binding, the backup first. Raises AlreadyExists when the one
    before is REFUTED or CLOSED and this one says VERIFIED. What was there and cannot be trusted is not followed. Each
    bucket's own default encrypts: a KMS key is of no use outside its region.
    """
    before = read_trusted(*places[0], trusted_keys)
    if before and before.verdict != Outcome.VERIFIED and made.verdict == Outcome.VERIFIED:
        raise AlreadyExists(
            f"{places[0][1].prefix} was refuted",
            expected="no verification but VERIFIED before this one",
            found=f"{before.verdict} by {before.run}",
            remedy="find out why it passed now; a refuted backup never counts again",
        )
    chained = record.follow(made, before)
    body = record.signed(chained, signing_key)
    for bucket, manifest in places:
        bucket.put(key(manifest), body, ContentType="application/json")
    return chained


def closing(manifest: Manifest, before: Record | None, *, by: str, reason: str) -> Record:
    """The record by which a person lets a refuted backup go; `reason` says why. Raises NotFound unless REFUTED."""
    if before is None or before.verdict != Outcome.REFUTED:
        raise NotFound(
            f"{manifest.prefix} is not refuted",
            expected=Outcome.REFUTED,
            found=before.verdict if before else "no verification",
            remedy="only a refuted backup can be closed",
        )
    now = utc_now()
    return Record(
        kind=KIND,
        subject=manifest.key,
        run=by,
        actor=by,
        verdict=Outcome.CLOSED,
        started=now,
        ended=now,
        facts={**binding(manifest), "reason": scrub(reason)},
        evidence=before.evidence,
    )
