"""What a restore test would have written beside a backup, without the restore."""

from payme_ops.backup import catalogue, verification
from payme_ops.backup.manifest import Manifest
from payme_ops.backup.verification import Outcome
from payme_ops.foundation.clock import utc_now
from payme_ops.foundation.record import Record
from payme_ops.foundation.signing import load_private_key
from tests.support.installation import Installation


def judge(installation: Installation, done: Manifest, outcome: Outcome = Outcome.VERIFIED) -> Record:
    """A signed verification beside the backup and its copies."""
    where, now = installation.catalogue, utc_now()
    made = Record(
        kind=verification.KIND,
        subject=done.key,
        run="test/restore_test",
        actor="test",
        verdict=outcome,
        started=now,
        ended=now,
        facts=dict(verification.binding(done)),
    )
    key = load_private_key(installation.desk.settings.backup.verification_key_file)
    return verification.write(catalogue.copies(where, done), made, key, where.verification_keys)
