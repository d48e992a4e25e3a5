"""Defects planted in stored backups, one by one: what a restore test is for is to catch each, and to name it.

Each mutant gets a copy of a good backup, with objects and a rightly signed manifest of its own, and spoils that. Where
it can, it does so as somebody who holds the backup worker's keys: bytes, lengths, hashes and signature fit again.
"""

import copy
import itertools
import json
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import psycopg
import pyrage
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from payme_ops.backup import catalogue, manifest, restore, restore_test
from payme_ops.backup.catalogue import Catalogue, State
from payme_ops.backup.manifest import Manifest
from payme_ops.backup.verification import Outcome
from payme_ops.foundation import signing
from payme_ops.foundation.evidence import Verdict, canonical, plain
from payme_ops.foundation.objectstore import Bucket
from payme_ops.foundation.settings import Settings
from sandbox import forgery

_days = itertools.count(1)


@dataclass(frozen=True)
class Ground:
    """Where mutants are planted. `source` is a superuser's conninfo of the database that `back_up` backs up."""

    where: Catalogue
    settings: Settings
    bin_dir: Path
    source: str
    back_up: Callable[[], Manifest]

    @property
    def bucket(self) -> Bucket:
        """The home bucket."""
        return self.where.stores.home

    @property
    def identity(self) -> pyrage.x25519.Identity:
        """The drill identity."""
        return restore.load_identity(self.settings.backup.identity_file)

    @property
    def signing_key(self) -> Ed25519PrivateKey:
        """The backup worker's key."""
        return signing.load_private_key(self.settings.backup.signing_key_file)


@dataclass(frozen=True)
class Mutant:
    """`plant` spoils a copy of a good backup; `names` is what the answer has to say."""

    name: str
    names: str
    plant: Callable[[Ground, Manifest], Any]


def clone(ground: Ground, good: Manifest) -> Manifest:
    """The same backup once more, under another time, with objects of its own."""
    prefix = manifest.backup_prefix(good.database, good.tier, good.started_at - timedelta(days=next(_days)))
    moved = {
        name: stored.model_copy(update={"key": prefix + stored.key.rsplit("/", 1)[1]})
        for name, stored in (("archive", good.archive), ("globals", good.globals))
    }
    for name, stored in (("archive", good.archive), ("globals", good.globals)):
        ground.bucket.copy(ground.bucket, stored.key, moved[name].key, size_bytes=stored.size_bytes)
    made = good.model_copy(update={"prefix": prefix, **moved})
    return forgery.sign_again(ground.bucket, made, signing_key=ground.signing_key)


def caught(ground: Ground, mutant: Mutant, good: Manifest, report: Callable[[str], None]) -> str | None:
    """What the desk said of the planted backup when it caught and named it; None when it did not."""
    victim = clone(ground, good)
    mutant.plant(ground, victim)
    said = verdict(ground, victim.key, report)
    return said if mutant.names in said else None


def verdict(ground: Ground, key: str, report: Callable[[str], None]) -> str:
    """`VERIFIED`, or what is wrong with the backup under that key."""
    found = catalogue.entry(ground.where, manifest.Tier.DAILY, key)
    if found.state is State.UNTRUSTED or found.manifest is None:
        return f"{found.state}: {found.why}"
    judged = restore_test.examine(
        ground.bucket, found.manifest, ground.identity, ground.settings, "drill", report=report
    )
    if judged.verdict == Outcome.VERIFIED:
        return "VERIFIED"
    wrong = [f"{one.item}: {plain(one.measured)}" for one in judged.evidence if one.verdict is Verdict.FAIL]
    return f"REFUTED: {' / '.join(wrong)}"


# --- the stored bytes -----------------------------------------------------------------------------------------------


def _bytes(spoil: Callable[[bytes], bytes]) -> Callable[[Ground, Manifest], None]:
    def plant(ground: Ground, victim: Manifest) -> None:
        ground.bucket.put(victim.archive.key, spoil(ground.bucket.get(victim.archive.key)))

    return plant


def _flipped(place: float) -> Callable[[bytes], bytes]:
    def spoil(data: bytes) -> bytes:
        spoiled = bytearray(data)
        spoiled[min(int(len(data) * place), len(data) - 1)] ^= 1
        return bytes(spoiled)

    return spoil


def _without_middle(data: bytes) -> bytes:
    third = len(data) // 3
    return data[:third] + data[2 * third :]


def _swapped(ground: Ground, victim: Manifest) -> None:
    other = ground.back_up()
    for stored, theirs in ((victim.archive, other.archive), (victim.globals, other.globals)):
        ground.bucket.copy(ground.bucket, theirs.key, stored.key, size_bytes=theirs.size_bytes)


# --- the manifest ---------------------------------------------------------------------------------------------------


def _edited(edit: Callable[[dict[str, Any]], None], *, signed: bool) -> Callable[[Ground, Manifest], None]:
    """The manifest's document changed; signed again by the backup worker's key, or not."""

    def plant(ground: Ground, victim: Manifest) -> None:
        stored = json.loads(ground.bucket.get(victim.key))
        document = copy.deepcopy(stored["document"])
        edit(document)
        new = signing.sign(document, ground.signing_key) if signed else {**stored, "document": document}
        ground.bucket.put(victim.key, canonical(new))

    return plant


def _users(document: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = next(one for one in document["truth"]["relations"] if one["name"] == "users")
    return found


def _another_count(document: dict[str, Any]) -> None:
    _users(document)["rows"] += 1


def _another_hash(document: dict[str, Any]) -> None:
    _users(document)["content_hash"] = "1"


def _stale(ground: Ground, victim: Manifest) -> None:
    """The manifest of an older backup in the place of this one's."""
    older = clone(ground, victim)
    ground.bucket.put(victim.key, ground.bucket.get(older.key))


def _unsigned(ground: Ground, victim: Manifest) -> None:
    ground.bucket.put(victim.key, canonical(json.loads(ground.bucket.get(victim.key))["document"]))


def _newer(document: dict[str, Any]) -> None:
    document["version"] = 2


def _unknown_key(ground: Ground, victim: Manifest) -> None:
    """A dump, its truth and a manifest that all fit together, signed by somebody else."""
    forgery.sign_again(ground.bucket, victim, signing_key=Ed25519PrivateKey.generate())


# --- what is inside -------------------------------------------------------------------------------------------------


def _content(statement: str) -> Callable[[Ground, Manifest], None]:
    """Restored, changed, dumped and sealed again; length, SHA-256, contents list and signature fit, the truth stays."""

    def plant(ground: Ground, victim: Manifest) -> None:
        def change(connection: psycopg.Connection) -> None:
            connection.execute(statement.encode())

        forgery.change_content(
            ground.bucket,
            victim,
            change,
            identity=ground.identity,
            signing_key=ground.signing_key,
            bin_dir=ground.bin_dir,
        )

    return plant


def _without_role(ground: Ground, victim: Manifest) -> None:
    script = forgery.opened(ground.bucket, victim.globals, ground.identity).decode()
    kept = [line for line in script.splitlines(keepends=True) if "payme_app" not in line]
    forgery.replace_globals(ground.bucket, victim, "".join(kept).encode(), signing_key=ground.signing_key)


def _strangers_key(ground: Ground, victim: Manifest) -> None:
    stranger = {"drill": str(pyrage.x25519.Identity.generate().to_public())}
    data = forgery.opened(ground.bucket, victim.archive, ground.identity)
    forgery.replace_archive(ground.bucket, victim, data, signing_key=ground.signing_key, recipients=stranger)


def _unbalanced(ground: Ground, victim: Manifest) -> None:
    """In production, before the dump: truth and dump agree, and the books do not balance."""
    change = b"""UPDATE ledger.entries SET amount = amount + %s WHERE (transaction_id, account_id) =
        (SELECT transaction_id, account_id FROM ledger.entries ORDER BY transaction_id, account_id LIMIT 1)"""
    with psycopg.connect(ground.source, autocommit=True) as connection:
        connection.execute(change, [5])
        try:
            spoiled = ground.back_up()
        finally:
            connection.execute(change, [-5])
    forgery.sign_again(
        ground.bucket, spoiled.model_copy(update={"prefix": victim.prefix}), signing_key=ground.signing_key
    )


_EMPTY = "DROP SCHEMA public, ledger, reporting CASCADE; CREATE SCHEMA public"
_OTHER = f"{_EMPTY}; CREATE TABLE public.somebody_elses (id int)"

MUTANTS = [
    Mutant("truncated object", "is not what was uploaded", _bytes(lambda data: data[:-100])),
    Mutant("one flipped byte at the start", "is not what was uploaded", _bytes(_flipped(0))),
    Mutant("one flipped byte in the middle", "is not what was uploaded", _bytes(_flipped(0.5))),
    Mutant("one flipped byte at the end", "is not what was uploaded", _bytes(_flipped(1))),
    Mutant("missing part of the object", "is not what was uploaded", _bytes(_without_middle)),
    Mutant("missing object", "an object of the backup is missing", lambda g, v: g.bucket.delete(v.archive.key)),
    Mutant("swapped objects of two backups", "is not what was uploaded", _swapped),
    Mutant("stale manifest", "under another backup's key", _stale),
    Mutant("tampered row count", "the signature does not match", _edited(_another_count, signed=False)),
    Mutant("tampered content hash", "the signature does not match", _edited(_another_hash, signed=False)),
    Mutant("tampered row count, signed again", "table public.users", _edited(_another_count, signed=True)),
    Mutant("tampered content hash, signed again", "table public.users", _edited(_another_hash, signed=True)),
    Mutant("unsigned manifest", "is not signed", _unsigned),
    Mutant("crafted dump, signed by an unknown key", "a key that is not trusted", _unknown_key),
    Mutant("manifest newer than the code", "version 2", _edited(_newer, signed=True)),
    Mutant("dropped table", "table public.statements", _content("DROP TABLE statements")),
    Mutant("dropped index", "index public.users_email_idx", _content("DROP INDEX users_email_idx")),
    Mutant(
        "dropped constraint",
        "constraint public.transactions.transactions_fee_within_amount",
        _content("ALTER TABLE transactions DROP CONSTRAINT transactions_fee_within_amount"),
    ),
    Mutant(
        "dropped trigger",
        "trigger public.users.users_touch_updated_at",
        _content("DROP TRIGGER users_touch_updated_at ON users"),
    ),
    Mutant(
        "changed function",
        "function public.touch_updated_at()",
        _content(
            "CREATE OR REPLACE FUNCTION touch_updated_at() RETURNS trigger LANGUAGE plpgsql AS"
            " $$ BEGIN RETURN NULL; END $$"
        ),
    ),
    Mutant(
        "dropped row-level policy",
        "policy public.statements.statements_issued",
        _content("DROP POLICY statements_issued ON statements"),
    ),
    Mutant(
        "missing row",
        "table public.mpesa_receipts",
        _content("DELETE FROM mpesa_receipts WHERE receipt_no = (SELECT min(receipt_no) FROM mpesa_receipts)"),
    ),
    Mutant("changed cell", "table public.merchants", _content("UPDATE merchants SET commission = 0 WHERE id = 1")),
    Mutant("lost sequence value", "sequence public.merchants_id_seq", _content("SELECT setval('merchants_id_seq', 1)")),
    Mutant("lost role", 'role "payme_app"', _without_role),
    Mutant("lost grant", "grants of table public.users", _content("REVOKE SELECT ON users FROM payme_app")),
    Mutant(
        "lost large object",
        "large objects",
        _content("SELECT lo_unlink((SELECT min(oid) FROM pg_largeobject_metadata))"),
    ),
    Mutant("missing extension", "extension pgcrypto", _content("DROP EXTENSION pgcrypto CASCADE")),
    Mutant("sealed to another key", "cannot be opened", _strangers_key),
    Mutant("another database's dump", "table public.users", _content(_OTHER)),
    Mutant("empty dump", "table public.users", _content(_EMPTY)),
    Mutant(
        "table emptied between snapshot and dump",
        "table public.mpesa_receipts",
        _content("TRUNCATE mpesa_receipts"),
    ),
    Mutant("payments rule broken", "ledger_balance", _unbalanced),
]
