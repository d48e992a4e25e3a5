"""A restored backup that nobody needs, to try something out on; restore workers hold the key that opens it."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager

from payme_ops.backup import catalogue as backups
from payme_ops.backup import restore, restore_test
from payme_ops.backup.catalogue import Entry, State
from payme_ops.backup.manifest import Manifest, Tier
from payme_ops.foundation.errors import NotFound
from payme_ops.foundation.settings import Settings
from payme_ops.foundation.stop import stoppable
from payme_ops.orchestration.doors import catalogue

_S3 = "payme_s3_restore"


def newest_verified() -> Entry | None:
    """The newest daily that a restore test has verified."""
    found = backups.entries(catalogue(_S3), tiers=[Tier.DAILY], newest_first=True)
    return next((one for one in found if one.state is State.VERIFIED), None)


@contextmanager
def restored(config: Settings, log: logging.Logger) -> Iterator[tuple[str, Manifest]]:
    """That backup on a throw-away server with its roles; a superuser's conninfo, and its manifest.

    Raises NotFound without such a backup, and what `restore_test.rehearsal` raises.
    """
    newest = newest_verified()
    if newest is None:
        raise NotFound(
            "there is no verified backup to rehearse on",
            expected="a daily backup that a restore test has verified",
            found="none",
            remedy="run backup_daily, then backup_restore_test",
        )
    manifest = newest.trusted
    bucket, name = catalogue(_S3).stores.of(newest.tier), f"rehearsal_{manifest.stamp.lower()}"
    identity = restore.load_identity(config.backup.identity_file)
    with (
        stoppable(),
        restore_test.rehearsal(bucket, manifest, identity, config, name, report=log.info) as superuser,
    ):
        yield superuser, manifest
