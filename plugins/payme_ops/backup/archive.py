"""Monthly archives in Glacier, for ever, and the way back: their bytes can be read hours after they were asked for.

What a restore reads first (manifest, verification, globals) stays readable; only the archive itself goes to Glacier.
"""

import re
from datetime import datetime
from enum import StrEnum

from botocore.exceptions import ClientError

from payme_ops.backup import catalogue
from payme_ops.backup.catalogue import Catalogue, Entry, State
from payme_ops.backup.copy import copy
from payme_ops.backup.manifest import Manifest, Tier
from payme_ops.backup.run import Desk
from payme_ops.foundation.clock import EAT
from payme_ops.foundation.errors import NotFound
from payme_ops.foundation.objectstore import Bucket, speaking
from payme_ops.foundation.progress import Report

# How long S3 keeps a retrieved copy readable: a restore, and time to look at what it brought.
READABLE_DAYS = 7
# S3's own classes whose objects must be retrieved; the others answer at once.
_ARCHIVE_CLASSES = ("GLACIER", "DEEP_ARCHIVE")
_UNDER_WAY = re.compile(r'ongoing-request="true"')


class Retrieval(StrEnum):
    """Whether an object's bytes can be read. STANDARD stands for every class that answers at once."""

    STANDARD = "STANDARD"
    ARCHIVED = "ARCHIVED"
    PENDING = "PENDING"
    READY = "READY"

    @property
    def readable(self) -> bool:
        """Whether its bytes can be read now."""
        return self in (Retrieval.STANDARD, Retrieval.READY)


def state(bucket: Bucket, key: str) -> Retrieval:
    """How far an object's retrieval is, as S3 says (HeadObject). Raises NotFound, StoreUnavailable, StoreRefused."""
    head = bucket.head(key)
    if head.storage_class not in _ARCHIVE_CLASSES:
        return Retrieval.STANDARD
    if not head.restore:
        return Retrieval.ARCHIVED
    return Retrieval.PENDING if _UNDER_WAY.search(head.restore) else Retrieval.READY


def request(bucket: Bucket, key: str) -> None:
    """Ask S3 to make an archived object readable for READABLE_DAYS; for one that is, the days begin anew.

    Takes 3 to 5 hours from GLACIER and 12 from DEEP_ARCHIVE. One that is under way is no error. Raises NotFound,
    StoreUnavailable, StoreRefused.
    """
    wanted = {"Days": READABLE_DAYS, "GlacierJobParameters": {"Tier": "Standard"}}
    with speaking(f"ask for the retrieval of {key} in bucket {bucket.name}"):
        try:
            bucket.client.restore_object(Bucket=bucket.name, Key=key, RestoreRequest=wanted)  # type: ignore[arg-type]
        except ClientError as error:
            if error.response["Error"]["Code"] != "RestoreAlreadyInProgress":
                raise


def retrieve(bucket: Bucket, manifest: Manifest) -> Retrieval:
    """One step towards a backup that can be read: ask for its archive unless that is under way; how far it is.

    Calling it again and again is harmless. Raises what `state` and `request` raise.
    """
    found = state(bucket, manifest.archive.key)
    if found in (Retrieval.ARCHIVED, Retrieval.READY):
        request(bucket, manifest.archive.key)
    return Retrieval.PENDING if found is Retrieval.ARCHIVED else found


# -- which one, and there ---------------------------------------------------------------------------------------------


def made_in_month(where: Catalogue, instant: datetime) -> Manifest | None:
    """The archive that was made in that month of Nairobi, if it counts."""
    for one in catalogue.entries(where, tiers=[Tier.MONTHLY], newest_first=True):
        archived_at = one.manifest.read_back.at if one.manifest and one.manifest.read_back else None
        if one.counts and archived_at and _month(archived_at) == _month(instant):
            return one.manifest
    return None


def due(where: Catalogue) -> Entry:
    """The daily whose turn it is: of those that count and are not archived, the one that expires first.

    It may be unverified; then it is tested first, and only if it was refuted is the next one's turn. Raises NotFound.
    """
    return _oldest(where, [State.COMPLETE, State.VERIFIED])


def oldest_verified(where: Catalogue) -> Entry:
    """The VERIFIED daily that expires first and is not archived; the only ones that may be. Raises NotFound."""
    return _oldest(where, [State.VERIFIED])


def archive(desk: Desk, run: str, chosen: Entry, *, report: Report) -> Manifest:
    """Copy a VERIFIED daily to the other region and on into Glacier.

    Raises NotFound for one that is not VERIFIED, and what `copy` raises; one that is archived already is answered.
    """
    if chosen.manifest is None or chosen.state is not State.VERIFIED:
        raise NotFound(
            f"{chosen.key} cannot be archived",
            expected=State.VERIFIED,
            found=chosen.why or chosen.state,
            remedy="test it first: `python -m payme_ops backup restore-test`",
        )
    archive_class = desk.settings.backup.archive_class
    return copy(desk, run, chosen.manifest, Tier.MONTHLY, archive_class=archive_class, report=report)


def _oldest(where: Catalogue, states: list[State]) -> Entry:
    archived = {
        one.manifest.copied_from
        for one in catalogue.entries(where, tiers=[Tier.MONTHLY])
        if one.manifest and one.counts
    }
    found = [
        one
        for one in catalogue.entries(where, tiers=[Tier.DAILY])
        if one.manifest and one.state in states and one.key not in archived
    ]
    if not found:
        raise NotFound(
            f"{where.database} has no daily backup to archive",
            expected=f"one that is {' or '.join(states)} and not archived yet",
            found="none",
            remedy="look at `python -m payme_ops backup list`; trigger backup_restore_test for one",
        )
    return min(found, key=lambda one: one.started_at)


def _month(instant: datetime) -> tuple[int, int]:
    local = instant.astimezone(EAT)
    return local.year, local.month
