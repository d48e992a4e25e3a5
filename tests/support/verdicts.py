"""What a restore test would have written beside a backup, without the restore."""

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from payme_ops.backup import catalogue, verification
from payme_ops.backup.manifest import Manifest
from payme_ops.backup.verification import Outcome
from payme_ops.foundation.clock import utc_now
from payme_ops.foundation.record import Record
from payme_ops.foundation.signing import load_private_key
from tests.support.installation import Installation


def found(done: Manifest, outcome: Outcome = Outcome.VERIFIED, **facts: object) -> Record:
    """The record of a restore test of that backup."""
    now = utc_now()
    return Record(
        kind=verification.KIND,
        subject=done.key,
        run="test/restore_test",
        actor="test",
        verdict=outcome,
        started=now,
        ended=now,
        facts={**verification.binding(done), **facts},
    )


def key_of(installation: Installation) -> Ed25519PrivateKey:
    """The restore worker's key."""
    return load_private_key(installation.desk.settings.backup.verification_key_file)


def write(installation: Installation, done: Manifest, made: Record) -> Record:
    """Written beside the backup and its copies."""
    where = installation.catalogue
    return verification.write(catalogue.copies(where, done), made, key_of(installation), where.verification_keys)


def judge(installation: Installation, done: Manifest, outcome: Outcome = Outcome.VERIFIED) -> Record:
    """A signed verification beside the backup and its copies."""
    return write(installation, done, found(done, outcome))
