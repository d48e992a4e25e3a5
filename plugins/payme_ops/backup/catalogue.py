"""The buckets are the catalogue: a backup is listed when its manifest is there, and counts when its signature holds.

Dailies lie in the home bucket, weekly copies and monthly archives in the other region's.
"""

import itertools
import json
import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from enum import StrEnum

from payme_ops.backup import verification
from payme_ops.backup.manifest import MANIFEST_NAME, Manifest, Tier, parse, stamp_of, tier_prefix
from payme_ops.backup.verification import Outcome
from payme_ops.foundation.clock import parse_key_stamp
from payme_ops.foundation.errors import (
    IntegrityError,
    ManifestInvalid,
    NotFound,
    PaymeOpsError,
    StoreRefused,
    StoreUnavailable,
    Untrusted,
)
from payme_ops.foundation.objectstore import Bucket
from payme_ops.foundation.record import Record
from payme_ops.foundation.settings import BackupSettings
from payme_ops.foundation.signing import verify

_log = logging.getLogger("payme_ops.backup")
# How long a tier keeps a backup, from its snapshot; None: for ever.
RETENTION = {Tier.DAILY: timedelta(days=30), Tier.WEEKLY: timedelta(days=90), Tier.MONTHLY: None}
_LATEST = {"latest": list(Tier), **{f"latest {tier}": [tier] for tier in Tier}}


class State(StrEnum):
    """What a backup is worth (DESIGN.md section 2). Only COMPLETE and VERIFIED ones count."""

    COMPLETE = "COMPLETE"
    VERIFIED = "VERIFIED"
    REFUTED = "REFUTED"
    CLOSED = "CLOSED"
    UNTRUSTED = "UNTRUSTED"


@dataclass(frozen=True)
class Stores:
    """The two buckets, each through one identity's client."""

    home: Bucket
    copies: Bucket

    def of(self, tier: Tier) -> Bucket:
        """Where a tier's backups lie."""
        return self.home if tier is Tier.DAILY else self.copies


@dataclass(frozen=True)
class Catalogue:
    """Where to look, for which database, and whose signatures count."""

    stores: Stores
    database: str
    manifest_keys: list[str] = field(repr=False)
    verification_keys: list[str] = field(repr=False)

    @classmethod
    def of(cls, stores: Stores, backup: BackupSettings) -> "Catalogue":
        """The catalogue that the settings name."""
        return cls(stores, backup.database, backup.trusted_keys, backup.verification_keys)


@dataclass(frozen=True)
class Entry:
    """One backup in the catalogue. `manifest` is None when it cannot be trusted; `why` says so.

    A verification that cannot be trusted counts as none; `why` says that, too.
    """

    key: str
    tier: Tier
    started_at: datetime
    state: State
    manifest: Manifest | None
    verification: Record | None = None
    why: str = ""

    @property
    def counts(self) -> bool:
        """Whether it can be relied on."""
        return self.state in (State.COMPLETE, State.VERIFIED)

    @property
    def trusted(self) -> Manifest:
        """Its manifest. Raises Untrusted when that cannot be trusted."""
        if self.manifest is None:
            raise Untrusted(f"{self.key} is UNTRUSTED", found=self.why, remedy="find out who wrote it (docs/keys.md)")
        return self.manifest

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
    catalogue: Catalogue, *, tiers: Sequence[Tier] = tuple(Tier), newest_first: bool = False
) -> Iterator[Entry]:
    """All backups of the database, by tier and time. A listing a tier and two small reads a backup."""
    for tier in tiers:
        for key in sorted(_manifest_keys(catalogue, tier), reverse=newest_first):
            yield entry(catalogue, tier, key)


def reachable(catalogue: Catalogue) -> tuple[list[Entry], list[PaymeOpsError]]:
    """All backups of every region that answers, and what those said that did not."""
    return _each_tier(catalogue, lambda tier: entries(catalogue, tiers=[tier]))


def _each_tier(
    catalogue: Catalogue, look: Callable[[Tier], Iterable[Entry]]
) -> tuple[list[Entry], list[PaymeOpsError]]:
    """What `look` finds in the tiers of every region that answers, and what those said that did not."""
    found: list[Entry] = []
    away: dict[str, PaymeOpsError] = {}
    for tier in Tier:
        bucket = catalogue.stores.of(tier).name
        if bucket not in away:
            try:
                found += look(tier)
            except (StoreUnavailable, StoreRefused, NotFound) as error:
                away[bucket] = error
    return found, list(away.values())


def newest(catalogue: Catalogue, tier: Tier) -> Manifest | None:
    """The newest backup of a tier that counts."""
    found = entries(catalogue, tiers=[tier], newest_first=True)
    return next((one.manifest for one in found if one.counts), None)


def find(catalogue: Catalogue, name: str) -> Entry:
    """A backup by its manifest key, its prefix, its key stamp, or `latest` (of those that count), `latest daily`.

    A stamp that several tiers share means the daily, then the weekly, then the monthly. A region that is away is
    passed over, and a warning says so: the newest may be in it. Raises NotFound saying what there is; Untrusted or
    another IntegrityError for a backup whose manifest does not count.
    """
    if name in _LATEST:
        return _latest(catalogue, _LATEST[name])
    listed: list[str] = []

    def look(tier: Tier) -> list[Entry]:
        keys = _manifest_keys(catalogue, tier)
        listed.extend(keys)
        named = [key for key in keys if name in (key, key.removesuffix(MANIFEST_NAME), stamp_of(key))]
        return [entry(catalogue, tier, key) for key in named]

    found, away = _each_tier(catalogue, look)
    _warn(away)
    if found:
        if found[0].manifest is None:  # raise what is wrong with it
            load(catalogue.stores.of(found[0].tier), found[0].key, catalogue.manifest_keys)
        return found[0]
    raise NotFound(
        f"no backup is named {name!r}",
        expected="a manifest key, a time stamp like 20260128T020000EAT, latest, or latest daily",
        found=f"none among {len(listed)}{_away(away)}",
        remedy="look at `python -m payme_ops backup list`",
    )


def copies(catalogue: Catalogue, manifest: Manifest) -> list[tuple[Bucket, Manifest]]:
    """The backup and, after it, everything in the catalogue with the same bytes and truth."""
    about = verification.binding(manifest)
    same = [
        (catalogue.stores.of(one.tier), one.manifest)
        for one in reachable(catalogue)[0]
        if one.manifest and one.key != manifest.key and verification.binding(one.manifest) == about
    ]
    return [(catalogue.stores.of(manifest.tier), manifest), *same]


def entry(catalogue: Catalogue, tier: Tier, key: str) -> Entry:
    """One backup as it stands. Raises StoreUnavailable, StoreRefused."""
    bucket = catalogue.stores.of(tier)
    try:
        started_at = parse_key_stamp(stamp_of(key))
        manifest = load(bucket, key, catalogue.manifest_keys)
    except (IntegrityError, NotFound, ValueError) as error:
        never = datetime.min  # noqa: DTZ901  # never shown
        return Entry(key, tier, never, State.UNTRUSTED, None, None, str(error))
    try:
        verified = verification.read(bucket, manifest, catalogue.verification_keys)
    except IntegrityError as error:
        return Entry(key, tier, started_at, State.COMPLETE, manifest, None, f"its verification does not count: {error}")
    state = State(Outcome(verified.verdict)) if verified else State.COMPLETE
    return Entry(key, tier, started_at, state, manifest, verified)


def _manifest_keys(catalogue: Catalogue, tier: Tier) -> list[str]:
    prefix = tier_prefix(catalogue.database, tier)
    return [key for key in catalogue.stores.of(tier).keys(prefix) if key.endswith(f"/{MANIFEST_NAME}")]


def _latest(catalogue: Catalogue, tiers: list[Tier]) -> Entry:
    """Read from the newest on, as `newest` does, and no further than the first of each tier that counts."""

    def look(tier: Tier) -> list[Entry]:
        found = entries(catalogue, tiers=[tier] if tier in tiers else [], newest_first=True)
        return list(itertools.islice((one for one in found if one.counts), 1))

    found, away = _each_tier(catalogue, look)
    _warn(away)
    if found:
        return max(found, key=lambda one: one.trusted.snapshot_at)  # of equal ones the first: dailies come first
    raise NotFound(
        f"{catalogue.database} has no backup that counts",
        expected="a manifest signed by a trusted key, not refuted",
        found=f"none{_away(away)}",
        remedy="look at `python -m payme_ops backup list`, which says why each does not count",
    )


def _warn(away: list[PaymeOpsError]) -> None:
    for error in away:
        _log.warning("a region is away and its backups are passed over: %s", error)


def _away(away: list[PaymeOpsError]) -> str:
    return f"; not everything could be looked at: {away[0].what}, {away[0].found}" if away else ""
