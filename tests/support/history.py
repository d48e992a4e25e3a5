"""Backups of any age in an installation's buckets, rightly signed; their bytes are a few words, and no dump."""

import hashlib
from datetime import datetime

from payme_ops.backup import verification
from payme_ops.backup.manifest import Manifest, SealedObject, Tier, backup_prefix
from payme_ops.backup.verification import Outcome
from payme_ops.foundation import record, signing
from payme_ops.foundation.objectstore import Bucket
from sandbox import forgery
from tests.support import verdicts
from tests.support.installation import Installation


def plant(
    installation: Installation, like: Manifest, taken: datetime, tier: Tier = Tier.DAILY, outcome: Outcome | None = None
) -> Manifest:
    """A backup of that time with the truth of `like`, and what a restore test found about it."""
    backup, bucket = installation.desk.settings.backup, installation.catalogue.stores.of(tier)
    prefix = backup_prefix(like.database, tier, taken)
    made = like.model_copy(
        update={
            "tier": tier,
            "prefix": prefix,
            "started_at": taken,
            "snapshot_at": taken,
            "archive": _put(bucket, f"{prefix}archive.dump.age"),
            "globals": _put(bucket, f"{prefix}globals.sql.age"),
        }
    )
    forgery.sign_again(bucket, made, signing_key=signing.load_private_key(backup.signing_key_file))
    if outcome:
        find(installation, made, outcome)
    return made


def find(installation: Installation, done: Manifest, outcome: Outcome) -> None:
    """The record of a restore test of that backup."""
    body = record.signed(verdicts.found(done, outcome), verdicts.key_of(installation))
    installation.catalogue.stores.of(done.tier).put(verification.key(done), body)


def _put(bucket: Bucket, key: str) -> SealedObject:
    body = f"the bytes of {key}".encode()  # each its own, or one verification would be about all
    bucket.put(key, body)
    return SealedObject(key=key, size_bytes=len(body), sha256=hashlib.sha256(body).hexdigest())
