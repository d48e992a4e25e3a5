"""Weekly copies and monthly archives: the same bytes elsewhere, read there again; anything else commits nothing."""

import re
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from payme_ops.backup import archive, catalogue, copy, restore, store, verification
from payme_ops.backup.archive import Retrieval
from payme_ops.backup.catalogue import State
from payme_ops.backup.manifest import Manifest, Tier
from payme_ops.backup.verification import Outcome
from payme_ops.foundation import lease, objectstore
from payme_ops.foundation.clock import utc_now
from payme_ops.foundation.errors import (
    HashMismatch,
    IntegrityError,
    LeaseHeld,
    NotFound,
    StoreUnavailable,
    Untrusted,
)
from tests.support.installation import Installation, quiet
from tests.support.proxy import Proxy
from tests.support.retrievals import slow_retrievals
from tests.support.verdicts import judge


def weekly(installation: Installation, done: Manifest) -> Manifest:
    return copy.copy(installation.desk, "test/weekly", done, report=quiet)


def state(installation: Installation, done: Manifest) -> State:
    return catalogue.entry(installation.catalogue, done.tier, done.key).state


def nothing_is_committed(installation: Installation, tier: Tier = Tier.WEEKLY) -> bool:
    uploads = installation.copies.client.list_multipart_uploads(Bucket=installation.copies_name).get("Uploads", [])
    return not uploads and list(catalogue.entries(installation.catalogue, tiers=[tier])) == []


# --- what a copy is -------------------------------------------------------------------------------------------------


def test_a_copy_is_a_backup_of_its_own_with_the_same_bytes(installation: Installation) -> None:
    done = installation.back_up()
    made = weekly(installation, done)
    assert made.copied_from == done.key
    assert made.prefix == done.prefix.replace("/daily/", "/weekly/")
    assert (made.archive.sha256, made.globals.sha256) == (done.archive.sha256, done.globals.sha256)
    assert (made.truth, made.snapshot_at, made.sealing) == (done.truth, done.snapshot_at, done.sealing)
    assert made.read_back
    assert done.read_back
    assert made.read_back.at >= done.read_back.at
    (entry,) = catalogue.entries(installation.catalogue, tiers=[Tier.WEEKLY])
    assert entry.manifest == made
    assert entry.expires_at == done.snapshot_at + timedelta(days=90)
    for stored in (made.archive, made.globals):
        assert installation.copies.head(stored.key).storage_class == "STANDARD_IA"
        assert installation.copies.get(stored.key) == installation.store.get(stored.key.replace("/weekly/", "/daily/"))


def test_a_copy_inherits_what_was_verified_before_and_after_it(installation: Installation) -> None:
    done = installation.back_up()
    judge(installation, done)
    made = weekly(installation, done)
    assert state(installation, made) is State.VERIFIED
    judge(installation, made, Outcome.REFUTED)
    assert (state(installation, done), state(installation, made)) == (State.REFUTED, State.REFUTED)


def test_copying_again_changes_nothing_but_carries_over_what_is_newer(installation: Installation) -> None:
    done = installation.back_up()
    made = weekly(installation, done)
    versions = list(installation.copies.versions(made.prefix))
    assert weekly(installation, done) == made
    assert list(installation.copies.versions(made.prefix)) == versions
    # As when the other region was away during the test.
    judge(installation, done)
    installation.copies.delete(verification.key(made))
    assert state(installation, made) is State.COMPLETE
    weekly(installation, done)
    assert state(installation, made) is State.VERIFIED


def test_in_parts_above_what_one_copy_takes(installation: Installation, monkeypatch: pytest.MonkeyPatch) -> None:
    done = installation.back_up()
    monkeypatch.setattr(objectstore, "SINGLE_COPY_BYTES", 1000)
    monkeypatch.setattr(objectstore, "COPY_PART_BYTES", max(5 * objectstore.MIB, done.archive.size_bytes // 3 + 1))
    made = weekly(installation, done)
    head = installation.copies.client.head_object(Bucket=installation.copies_name, Key=made.archive.key)
    assert "-" in head["ETag"]  # S3's mark of an object made of parts
    assert installation.copies.get(made.archive.key) == installation.store.get(done.archive.key)


# --- what makes none ------------------------------------------------------------------------------------------------


def test_other_bytes_at_the_destination_commit_nothing(installation: Installation, proxy: Proxy) -> None:
    done = installation.back_up()
    proxy.flip("GET", done.archive.key.replace("/daily/", "/weekly/"), at_byte=done.archive.size_bytes // 2, times=1)
    with pytest.raises(HashMismatch, match="weekly"):
        weekly(installation, done)
    assert nothing_is_committed(installation)
    proxy.clear()
    assert weekly(installation, done).copied_from == done.key


@pytest.mark.parametrize("at", ["start", "middle", "end"])
def test_a_damaged_daily_is_not_copied(installation: Installation, at: str) -> None:
    done = installation.back_up()
    body = bytearray(installation.store.get(done.archive.key))
    body[{"start": 0, "middle": len(body) // 2, "end": -1}[at]] ^= 1
    installation.store.put(done.archive.key, bytes(body))
    with pytest.raises(HashMismatch):
        weekly(installation, done)
    assert nothing_is_committed(installation)


def test_a_store_that_fails_while_copying(installation: Installation, proxy: Proxy) -> None:
    done = installation.back_up()
    proxy.answer("PUT", "/weekly/", 503, "SlowDown")
    with pytest.raises(StoreUnavailable):
        weekly(installation, done)
    proxy.clear()
    assert nothing_is_committed(installation)
    assert lease.peek("service=payme_ops_db", "copy:payme") is None
    weekly(installation, done)


def test_the_answer_to_the_commit_is_lost(installation: Installation, proxy: Proxy) -> None:
    """The manifest is there, and the run did not hear of it; the next try takes it as it is."""
    done = installation.back_up()
    proxy.lose_answer("PUT", "manifest.json", times=1)
    made = weekly(installation, done)
    assert len(list(catalogue.entries(installation.catalogue, tiers=[Tier.WEEKLY]))) == 1
    assert weekly(installation, done) == made


def test_refuted_ones_copies_and_somebody_elses_are_not_copied(installation: Installation) -> None:
    done = installation.back_up()
    made = weekly(installation, done)
    with pytest.raises(IntegrityError, match="is a weekly itself"):
        weekly(installation, made)
    judge(installation, done, Outcome.REFUTED)
    with pytest.raises(IntegrityError, match="is REFUTED"):
        weekly(installation, done)
    other = installation.back_up()
    installation.copies.put(other.key.replace("/daily/", "/weekly/"), b'{"document": {}, "signature": "x"}')
    with pytest.raises(Untrusted):
        weekly(installation, other)


def test_one_at_a_time(installation: Installation) -> None:
    done = installation.back_up()
    with lease.hold("service=payme_ops_db", "copy:payme", "somebody"), pytest.raises(LeaseHeld, match="somebody"):
        weekly(installation, done)


# --- which day ------------------------------------------------------------------------------------------------------


def test_of_that_day_in_nairobi(installation: Installation) -> None:
    with pytest.raises(NotFound, match="no backup of that day"):
        copy.of_day(installation.catalogue, utc_now())
    done = installation.back_up()
    newer = installation.back_up()
    assert copy.of_day(installation.catalogue, utc_now()) == newer
    judge(installation, newer, Outcome.REFUTED)
    assert copy.of_day(installation.catalogue, utc_now()) == done
    with pytest.raises(NotFound, match="the newest is of"):
        copy.of_day(installation.catalogue, utc_now() + timedelta(days=1))


# --- archives -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("glacier", ["GLACIER", "DEEP_ARCHIVE"])
def test_an_archive_is_read_before_it_goes_to_glacier_and_comes_back_whole(
    installation: Installation, glacier: str
) -> None:
    installation.set("BACKUP__ARCHIVE_CLASS", glacier)
    done = installation.back_up()
    judge(installation, done)
    chosen = archive.oldest_verified(installation.catalogue)
    made = archive.archive(installation.desk, "test/monthly", chosen, report=quiet)
    assert (made.tier, made.copied_from) == (Tier.MONTHLY, done.key)
    head = installation.copies.head(made.archive.key)
    assert (head.storage_class, head.size_bytes) == (glacier, done.archive.size_bytes)
    assert {version.size_bytes for version in installation.copies.versions(made.archive.key)} == {head.size_bytes}
    # All but the archive stays readable.
    (entry,) = catalogue.entries(installation.catalogue, tiers=[Tier.MONTHLY])
    assert (entry.state, entry.expires_at) == (State.VERIFIED, None)
    assert installation.copies.get(made.globals.key) == installation.store.get(done.globals.key)
    assert archive.state(installation.copies, made.archive.key) is Retrieval.ARCHIVED
    assert archive.retrieve(installation.copies, made) is Retrieval.PENDING
    assert archive.retrieve(installation.copies, made) is Retrieval.READY
    config = installation.desk.settings
    identity = restore.load_identity(config.backup.identity_file)
    restore.verify(installation.copies, made, identity, config.postgres.client_dirs, report=quiet)


def test_other_bytes_never_reach_glacier(installation: Installation, proxy: Proxy) -> None:
    done = installation.back_up()
    judge(installation, done)
    chosen = archive.oldest_verified(installation.catalogue)
    proxy.flip("GET", done.archive.key.replace("/daily/", "/monthly/"), at_byte=0, times=1)
    with pytest.raises(HashMismatch):
        archive.archive(installation.desk, "test/monthly", chosen, report=quiet)
    assert nothing_is_committed(installation, Tier.MONTHLY)
    items = list(installation.copies.items("postgres/payme/monthly/"))
    assert {installation.copies.head(item.key).storage_class for item in items} <= {"STANDARD", "STANDARD_IA"}


def test_what_is_replaced_while_it_is_read_never_reaches_glacier(installation: Installation, proxy: Proxy) -> None:
    done = installation.back_up()
    judge(installation, done)
    chosen = archive.oldest_verified(installation.catalogue)
    key = done.archive.key.replace("/daily/", "/monthly/")
    held = proxy.hold("GET", key, done_upstream=True)
    with ThreadPoolExecutor(1) as pool:
        archiving = pool.submit(archive.archive, installation.desk, "test/monthly", chosen, report=quiet)
        held.wait_until_seen()
        installation.copies.put(key, b"other bytes")
        held.release()
        with pytest.raises(HashMismatch, match="replaced while it was read"):
            archiving.result()
    assert nothing_is_committed(installation, Tier.MONTHLY)


def test_only_verified_ones_oldest_first_and_each_once(installation: Installation) -> None:
    where = installation.catalogue
    with pytest.raises(NotFound, match="no daily backup to archive"):
        archive.due(where)
    refuted, first, second = (installation.back_up() for _ in range(3))
    judge(installation, refuted, Outcome.REFUTED)
    assert archive.due(where).key == first.key
    with pytest.raises(NotFound, match="VERIFIED"):
        archive.oldest_verified(where)
    with pytest.raises(NotFound, match="restore-test"):
        archive.archive(installation.desk, "test", archive.due(where), report=quiet)
    judge(installation, first)
    judge(installation, second)
    assert archive.oldest_verified(where).key == first.key
    archive.archive(installation.desk, "test", archive.oldest_verified(where), report=quiet)
    assert archive.oldest_verified(where).key == second.key
    assert archive.due(where).key == second.key


NEW_YEAR = datetime(2026, 12, 31, 21, 0, tzinfo=UTC)  # midnight in Nairobi


@pytest.mark.parametrize(
    ("archived_at", "looked_at", "there"),
    [
        (NEW_YEAR, NEW_YEAR + timedelta(days=30), True),
        (NEW_YEAR - timedelta(seconds=1), NEW_YEAR, False),
        (NEW_YEAR - timedelta(seconds=1), NEW_YEAR - timedelta(days=30), True),
        (NEW_YEAR, NEW_YEAR + timedelta(days=31), False),
        (NEW_YEAR - timedelta(days=365), NEW_YEAR + timedelta(days=1), False),
    ],
)
def test_once_a_month_of_nairobi(
    installation: Installation,
    monkeypatch: pytest.MonkeyPatch,
    archived_at: datetime,
    looked_at: datetime,
    there: bool,
) -> None:
    done = installation.back_up()
    judge(installation, done)
    read_back: Any = store.read_back

    def at_that_time(*args: Any, **options: Any) -> Any:
        return read_back(*args, **options).model_copy(update={"at": archived_at})

    monkeypatch.setattr(store, "read_back", at_that_time)
    made = archive.archive(installation.desk, "test", archive.oldest_verified(installation.catalogue), report=quiet)
    assert archive.made_in_month(installation.catalogue, looked_at) == (made if there else None)


# --- on a shell -----------------------------------------------------------------------------------------------------


def test_a_copy_and_an_archive_and_its_way_back_by_hand(installation: Installation) -> None:
    first = installation.back_up()
    ended = installation.cli("backup", "copy")
    assert ended.code == 0, ended.err
    assert re.search(rf"copied from +│ {re.escape(first.key)}", ended.out), ended.out
    stamp = first.prefix.split("/")[3]
    ended = installation.cli("backup", "archive")
    assert ended.code == 1
    assert "expected VERIFIED; found COMPLETE" in ended.err
    assert "restore-test" in ended.err
    judge(installation, first)
    ended = installation.cli("backup", "archive")
    assert ended.code == 0, ended.err
    states = {entry["tier"]: entry["state"] for entry in installation.json("backup", "list")}
    assert states == {"daily": "VERIFIED", "weekly": "VERIFIED", "monthly": "VERIFIED"}
    ended = installation.cli("backup", "archive")
    assert (ended.code, "this month has its archive" in ended.err) == (0, True)
    name = first.prefix.replace("/daily/", "/monthly/")
    assert "backup retrieve" in installation.cli("backup", "verify", name).err
    with slow_retrievals(installation.site.world.url("s3")) as end:
        for _ in range(2):
            ended = installation.cli("backup", "retrieve", name)
            assert (ended.code, "run this again" in ended.out) == (6, True), ended.err
        end()
        ended = installation.cli("backup", "retrieve", name)
        assert (ended.code, "can be read (READY)" in ended.out) == (0, True), ended.err
        assert installation.cli("backup", "verify", name).code == 0
    assert "can be read (STANDARD)" in installation.cli("backup", "retrieve", stamp).out


def test_a_copy_by_hand_looks_at_the_bucket_first(installation: Installation) -> None:
    installation.back_up()
    installation.set("BACKUP__COPY_BUCKET", installation.bucket_name)
    ended = installation.cli("backup", "copy")
    assert ended.code == 3
    assert "copy_bucket (fail)" in ended.err
