"""The bucket is the catalogue: a backup is listed when its manifest is there, and counts when its signature holds."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum

from payme_ops.backup.manifest import MANIFEST_NAME, Manifest, Tier, parse
from payme_ops.foundation.clock import parse_key_stamp
from payme_ops.foundation.errors import IntegrityError, ManifestInvalid, NotFound
from payme_ops.foundation.objectstore import Bucket
from payme_ops.foundation.signing import verify

# How long a tier keeps a backup, from its snapshot; None: for ever.
RETENTION = {Tier.DAILY: timedelta(days=30), Tier.WEEKLY: timedelta(days=90), Tier.MONTHLY: None}


class State(StrEnum):
    """What a backup is worth."""

    COMPLETE = "COMPLETE"
    UNTRUSTED = "UNTRUSTED"


@dataclass(frozen=True)
class Entry:
    """One backup in the catalogue. `manifest` is None when it cannot be trusted; `why` says so."""

    key: str
    tier: Tier
    started_at: datetime
    state: State
    manifest: Manifest | None
    why: str = ""

    @property
    def expires_at(self) -> datetime | None:
        """When retention may delete it; None for archives and for what is not trusted."""
        keep = RETENTION[self.tier]
        return self.manifest.snapshot_at + keep if self.manifest and keep else None


def load(bucket: Bucket, key: str, trusted_keys: list[str]) -> Manifest:
    """One manifest, signature checked, and found under the prefix it names.

    Raises NotFound, Untrusted, ManifestInvalid.
    """
    try:
        signed = json.loads(bucket.get(key))
    except ValueError:
        raise ManifestInvalid(f"{key} is not JSON", expected="a signed manifest") from None
    manifest = parse(verify(signed, trusted_keys))
    if manifest.key != key:
        raise ManifestInvalid(
            "the manifest lies under another backup's key",
            expected=manifest.key,
            found=key,
            remedy="do not use it; somebody moved or copied it",
        )
    return manifest


def entries(
    bucket: Bucket,
    database: str,
    trusted_keys: list[str],
    *,
    tiers: list[Tier] | None = None,
    newest_first: bool = False,
) -> Iterator[Entry]:
    """All backups of a database, by tier and time. One listing and one small read per backup."""
    for tier in tiers or list(Tier):
        keys = [key for key in bucket.keys(f"postgres/{database}/{tier}/") if key.endswith(f"/{MANIFEST_NAME}")]
        for key in sorted(keys, reverse=newest_first):
            yield _entry(bucket, key, tier, trusted_keys)


def newest(bucket: Bucket, database: str, tier: Tier, trusted_keys: list[str]) -> Manifest | None:
    """The newest complete backup of a tier. What is not trusted does not count."""
    found = entries(bucket, database, trusted_keys, tiers=[tier], newest_first=True)
    return next((entry.manifest for entry in found if entry.manifest), None)


def find(bucket: Bucket, database: str, name: str, trusted_keys: list[str]) -> Manifest:
    """A backup by its manifest key, its prefix, its key stamp, or `latest`.

    Raises NotFound saying what there is, Untrusted, ManifestInvalid.
    """
    if name == "latest":
        manifests = [newest(bucket, database, tier, trusted_keys) for tier in Tier]
        present = [manifest for manifest in manifests if manifest]
        if present:
            return max(present, key=lambda manifest: manifest.snapshot_at)
        raise NotFound(
            f"{database} has no backup that counts",
            expected="a manifest signed by a trusted key",
            found="none, or only UNTRUSTED ones",
            remedy="look at `python -m payme_ops backup list`, which says why each is not trusted",
        )
    keys = [key for key in bucket.keys(f"postgres/{database}/") if key.endswith(f"/{MANIFEST_NAME}")]
    wanted = [key for key in keys if name in (key, key.removesuffix(MANIFEST_NAME), key.split("/")[3])]
    if len(wanted) == 1:
        return load(bucket, wanted[0], trusted_keys)
    raise NotFound(
        f"no single backup is named {name!r}",
        expected="a manifest key, a time stamp like 20260128T020000EAT, or latest",
        found=f"{len(wanted)} that match, {len(keys)} in all",
        remedy="look at `python -m payme_ops backup list`",
    )


def _entry(bucket: Bucket, key: str, tier: Tier, trusted_keys: list[str]) -> Entry:
    try:
        started_at = parse_key_stamp(key.split("/")[3])
        manifest = load(bucket, key, trusted_keys)
    except (IntegrityError, NotFound, ValueError) as error:
        return Entry(key, tier, datetime.min, State.UNTRUSTED, None, str(error))  # noqa: DTZ901  # never shown
    return Entry(key, tier, started_at, State.COMPLETE, manifest)
