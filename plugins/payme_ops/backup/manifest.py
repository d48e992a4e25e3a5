"""The manifest: one value that is born in dump, completed in commit and read by everything after.

A backup exists when its signed manifest.json exists. The JSON Schema of version 1 is docs/manifest.schema.json,
generated from these models and held equal by a test. Unknown newer versions are refused.
"""

import json
from datetime import datetime
from enum import StrEnum
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from payme_ops.foundation.clock import key_stamp
from payme_ops.foundation.errors import ManifestInvalid

VERSION = 1
MANIFEST_NAME = "manifest.json"


class Tier(StrEnum):
    """Where in the strategy a backup belongs."""

    DAILY = "daily"
    WEEKLY = "weekly"
    MONTHLY = "monthly"


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class RelationTruth(_Part):
    """One relation as it was in the dump's own snapshot. `rows` and `content_hash` are None where `note` says why."""

    schema_name: str
    name: str
    kind: Literal["table", "partitioned table", "materialised view", "foreign table"]
    rows: int | None
    content_hash: str | None
    note: str = ""

    @property
    def qualified(self) -> str:
        """`schema.name`, for people."""
        return f"{self.schema_name}.{self.name}"


class SequenceTruth(_Part):
    """A sequence's last value before the dump (None: never used). Sequences follow no snapshot: the dump may be ahead.

    Ahead is where `increment` points; a sequence that cycles may be anywhere.
    """

    schema_name: str
    name: str
    last_value: int | None
    increment: int
    cycles: bool


class Extension(_Part):
    """An installed extension."""

    name: str
    version: str
    schema_name: str


class Role(_Part):
    """A role without its password."""

    name: str
    attributes: str
    member_of: list[str]


class Grant(_Part):
    """Owner and privileges of one object, in comparable form."""

    name: str
    owner: str
    privileges: str


class Definition(_Part):
    """One object's definition, by the SHA-256 of its text form: an index, a constraint, a function, a column …"""

    kind: str
    name: str
    sha256: str


class LargeObjects(_Part):
    """Large objects: how many, how long together, and their content."""

    count: int
    size_bytes: int
    content_hash: str


class Truth(_Part):
    """What a restore must reproduce.

    `definitions_form` numbers the text form behind the definitions' hashes (truth.DEFINITIONS_FORM); those of another
    form cannot be compared.
    """

    hash_algorithm: Literal["hash_record_extended/1"]
    relations: list[RelationTruth]
    sequences: list[SequenceTruth]
    extensions: list[Extension]
    roles: list[Role]
    grants: list[Grant]
    large_objects: LargeObjects
    definitions: list[Definition] = []
    definitions_form: int = 0

    @property
    def rows(self) -> int:
        """Rows of all tables together."""
        return sum(relation.rows or 0 for relation in self.relations)


class Server(_Part):
    """The server that was dumped."""

    version: str
    in_recovery: bool
    size_bytes: int
    owner: str
    encoding: str
    collate: str
    ctype: str
    locale_provider: str
    locale: str
    system_identifier: str | None = None

    @property
    def major(self) -> int:
        """Major version, for example 15."""
        return int(self.version.split(".")[0])


class Dump(_Part):
    """How the archive was made. `listing` counts the archive's entries by kind."""

    tool: str
    format: Literal["custom"]
    compression: Literal["zstd:1"]
    compression_place: Literal["inside", "outside"]
    listing: dict[str, int]


class SealedObject(_Part):
    """One object in the bucket: the sealed bytes as they were before upload."""

    key: str
    size_bytes: int
    sha256: str


class Sealing(_Part):
    """age format, X25519 recipients by the part they play."""

    format: Literal["age-encryption.org/v1"]
    recipients: dict[str, str]


class ReadBack(_Part):
    """When and how fast every byte was read from the store again and found equal."""

    at: datetime
    milliseconds: int


class Manifest(_Part):
    """All that a restore needs to know, and what it must come to.

    `copied_from` is the manifest key of the daily backup whose bytes a weekly copy or monthly archive holds.
    """

    format: Literal["payme-ops/backup"]
    version: Literal[1]
    database: str
    tier: Tier
    prefix: str
    run: str
    fencing_token: int
    software: str
    started_at: datetime
    snapshot_at: datetime
    server: Server
    dump: Dump
    archive: SealedObject
    globals: SealedObject
    sealing: Sealing
    truth: Truth
    milliseconds: dict[str, int]
    read_back: ReadBack | None
    copied_from: str | None = None

    @property
    def key(self) -> str:
        """Object key of this manifest."""
        return f"{self.prefix}{MANIFEST_NAME}"

    @property
    def stamp(self) -> str:
        """The key stamp that a backup shares with its copies."""
        return stamp_of(self.prefix)


def backup_prefix(database: str, tier: Tier, started_at: datetime) -> str:
    """`postgres/<database>/<tier>/<YYYYMMDD>T<HHMMSS>EAT/`: keys of a tier sort by time."""
    return f"{tier_prefix(database, tier)}{key_stamp(started_at)}/"


def tier_prefix(database: str, tier: Tier) -> str:
    """What the keys of all backups of a tier begin with."""
    return f"postgres/{database}/{tier}/"


def stamp_of(key: str) -> str:
    """The key stamp in a key or prefix of a backup; stamps sort by time."""
    return key.split("/")[3]


def parse(document: Any) -> Manifest:
    """A manifest from its (already verified) document.

    Raises ManifestInvalid for a newer version, naming both, and for anything malformed, naming the fields.
    """
    if not isinstance(document, dict) or document.get("format") != "payme-ops/backup":
        raise ManifestInvalid("this is not a backup manifest", expected='format "payme-ops/backup"')
    version = document.get("version")
    if isinstance(version, int) and version > VERSION:
        raise ManifestInvalid(
            "the manifest is of a newer version",
            expected=f"version {VERSION} or older",
            found=f"version {version}",
            remedy="use the payme-ops release that wrote it, or a newer one",
        )
    try:
        return Manifest.model_validate_json(json.dumps(document), strict=True)
    except ValidationError as error:
        fields = ", ".join(".".join(map(str, item["loc"])) for item in error.errors(include_input=False)[:5])
        raise ManifestInvalid(
            "the manifest is malformed",
            expected="the fields of docs/manifest.schema.json",
            found=f"faults in {fields}",
            remedy="do not use this backup; find out who wrote it",
        ) from None


def document(manifest: Manifest) -> dict[str, Any]:
    """JSON form, the one that is signed."""
    data: dict[str, Any] = manifest.model_dump(mode="json")
    return data
