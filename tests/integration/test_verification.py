"""What a backup is worth: the record beside its manifest decides, and only a rightly signed one that fits."""

from dataclasses import replace

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from payme_ops.backup import catalogue, manifest, verification
from payme_ops.backup.catalogue import Entry, State
from payme_ops.backup.manifest import Manifest, Tier
from payme_ops.backup.verification import Outcome
from payme_ops.foundation import evidence, objectstore, record, signing
from payme_ops.foundation.errors import AlreadyExists
from tests.support.installation import Installation
from tests.support.verdicts import found, key_of, write


def entry(installation: Installation, done: Manifest) -> Entry:
    return catalogue.entry(installation.catalogue, done.tier, done.key)


def put_copy(installation: Installation, done: Manifest, tier: Tier = Tier.WEEKLY) -> Manifest:
    """The same bytes and truth as another tier's backup, rightly signed; its objects are not needed here."""
    prefix = done.prefix.replace(f"/{done.tier}/", f"/{tier}/")
    copied = done.model_copy(update={"tier": tier, "prefix": prefix, "copied_from": done.key})
    key = signing.load_private_key(installation.desk.settings.backup.signing_key_file)
    body = evidence.canonical(signing.sign(manifest.document(copied), key))
    installation.copies.put(copied.key, body)
    return copied


def test_a_backup_is_complete_until_a_test_says_more(installation: Installation) -> None:
    done = installation.back_up()
    assert entry(installation, done).state is State.COMPLETE
    write(installation, done, found(done))
    now = entry(installation, done)
    assert (now.state, now.counts, now.why) == (State.VERIFIED, True, "")
    assert now.verification is not None


def test_a_refuted_backup_never_counts_again_and_a_person_closes_it(installation: Installation) -> None:
    older, done = installation.back_up(), installation.back_up()
    write(installation, done, found(done))
    refuted = write(installation, done, found(done, Outcome.REFUTED))
    assert entry(installation, done).state is State.REFUTED
    with pytest.raises(AlreadyExists, match="was refuted"):
        write(installation, done, found(done))
    closed = write(installation, done, found(done, Outcome.CLOSED))
    assert closed.previous == record.digest(refuted)
    assert entry(installation, done).state is State.CLOSED
    with pytest.raises(AlreadyExists):
        write(installation, done, found(done))
    where = installation.catalogue
    assert catalogue.find(where, "latest").manifest == older
    assert catalogue.newest(where, Tier.DAILY) == older


def test_copies_of_the_same_bytes_share_the_verdict(installation: Installation) -> None:
    done, other = installation.back_up(), installation.back_up()
    copied, stranger = put_copy(installation, done), put_copy(installation, other)
    write(installation, done, found(done))
    assert entry(installation, copied).state is State.VERIFIED
    assert entry(installation, stranger).state is State.COMPLETE


@pytest.mark.parametrize("how", ["another key", "another backup", "not json", "unsigned", "another kind"])
def test_a_verification_that_does_not_count_is_told_and_counts_as_none(installation: Installation, how: str) -> None:
    done, other = installation.back_up(), installation.back_up()
    right, key = found(done), key_of(installation)
    body = {
        "another key": record.signed(right, Ed25519PrivateKey.generate()),
        "another backup": record.signed(found(other), key),
        "not json": b"VERIFIED",
        "unsigned": evidence.canonical(record.document(right)),
        "another kind": record.signed(replace(right, kind="release"), key),
    }[how]
    installation.store.put(verification.key(done), body)
    now = entry(installation, done)
    assert (now.state, now.verification) == (State.COMPLETE, None)
    assert now.why.startswith("its verification does not count")


def test_the_manifests_own_key_verifies_nothing(installation: Installation) -> None:
    """Who can write backups cannot say that they were tested."""
    done = installation.back_up()
    signing_key = signing.load_private_key(installation.desk.settings.backup.signing_key_file)
    installation.store.put(verification.key(done), record.signed(found(done), signing_key))
    assert entry(installation, done).state is State.COMPLETE


def test_what_cannot_be_trusted_is_not_followed(installation: Installation) -> None:
    done = installation.back_up()
    installation.store.put(verification.key(done), b"not json")
    assert write(installation, done, found(done)).previous == ""
    assert entry(installation, done).state is State.VERIFIED


def test_a_region_that_is_away_does_not_hide_the_other(installation: Installation) -> None:
    done = installation.back_up()
    copied = put_copy(installation, done)
    gone = replace(installation.catalogue.stores, home=objectstore.Bucket(installation.site.store, "no-such-bucket"))
    entries, away = catalogue.reachable(replace(installation.catalogue, stores=gone))
    assert [one.manifest for one in entries] == [copied]
    assert len(away) == 1
    assert "no-such-bucket" in str(away[0])


def test_both_regions_away_is_no_empty_catalogue(installation: Installation) -> None:
    missing = objectstore.Bucket(installation.site.store, "no-such-bucket")
    nothing = replace(installation.catalogue, stores=catalogue.Stores(missing, replace(missing, name="nor-this-one")))
    assert len(catalogue.reachable(nothing)[1]) == 2
    installation.set("BACKUP__BUCKET", "no-such-bucket")
    installation.set("BACKUP__COPY_BUCKET", "nor-this-one")
    ended = installation.cli("backup", "list")
    assert ended.code != 0
    assert "no-such-bucket" in ended.err
