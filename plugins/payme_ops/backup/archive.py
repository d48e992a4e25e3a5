"""Monthly archives in Glacier, and the way back: their bytes can be read only some hours after they were asked for."""

import re
from enum import StrEnum

from botocore.exceptions import ClientError

from payme_ops.backup.manifest import Manifest
from payme_ops.foundation.objectstore import Bucket, speaking

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
