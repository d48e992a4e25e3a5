"""A backup from end to end on each PostgreSQL version: what is in the bucket, what comes back, and what is refused."""

import itertools
import json
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import jsonschema  # type: ignore[import-untyped]
import psycopg
import pyrage
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from payme_ops.backup import catalogue, manifest, preflight, restore, run, store
from payme_ops.backup.catalogue import State
from payme_ops.backup.listing import count_entries
from payme_ops.backup.manifest import Tier
from payme_ops.backup.run import Superseded
from payme_ops.foundation import evidence, lease, signing
from payme_ops.foundation.clock import key_stamp, utc_now
from payme_ops.foundation.errors import (
    AlreadyExists,
    HashMismatch,
    IntegrityError,
    LeaseHeld,
    ManifestInvalid,
    NotFound,
    PreflightFailed,
    SettingsError,
    TruthMismatch,
    Untrusted,
)
from payme_ops.foundation.signing import load_private_key, sign, verify
from sandbox.payme_db.generate import CANARY_PHONE
from tests.support import manifest_schema
from tests.support.installation import Installation, quiet
from tests.support.opening import archive, as_sql, opened, schema_of
from tests.support.site import Site

_names = itertools.count(1)


@contextmanager
def new_database(installation: Installation) -> Iterator[str]:
    """A name that is free, and the database of that name dropped afterwards."""
    name = f"restored_{next(_names)}"
    try:
        yield name
    finally:
        with installation.site.admin("postgres") as admin:
            admin.execute(f"DROP DATABASE IF EXISTS {name} WITH (FORCE)")


def databases(installation: Installation) -> set[str]:
    with installation.site.admin("postgres") as admin:
        return {row[0] for row in admin.execute("SELECT datname FROM pg_database")}


def signed_again(installation: Installation, document: dict[str, Any]) -> bytes:
    key = load_private_key(installation.desk.settings.backup.signing_key_file)
    return json.dumps(sign(document, key)).encode()


def put_manifest(installation: Installation, document: dict[str, Any]) -> str:
    """A second backup made of the first one's objects, with a changed and rightly signed manifest."""
    document = {**document, "prefix": f"postgres/payme/daily/{key_stamp(utc_now() + timedelta(days=next(_names)))}/"}
    key = f"{document['prefix']}manifest.json"
    installation.store.put_if_absent(key, signed_again(installation, document))
    return key


def test_what_is_in_the_bucket(each_installation: Installation, tmp_path: Path) -> None:
    """Three objects below one prefix, sealed to both keys; the manifest says what is in them, and nothing secret."""
    before = utc_now()
    done = each_installation.back_up()
    assert done.key == f"postgres/payme/daily/{key_stamp(done.started_at)}/manifest.json"
    assert before <= done.started_at <= done.snapshot_at <= utc_now()
    inside = done.server.major >= 16
    assert done.dump.compression_place == ("inside" if inside else "outside")
    assert done.archive.key == done.prefix + ("archive.dump.age" if inside else "archive.dump.zst.age")
    keys = {done.key, done.archive.key, done.globals.key}
    assert set(each_installation.store.keys("postgres/")) == keys
    client, name = each_installation.store.client, each_installation.bucket_name
    for stored in (done.archive, done.globals):
        head = client.head_object(Bucket=name, Key=stored.key)
        assert (head["ServerSideEncryption"], head["StorageClass"]) == ("AES256", "STANDARD_IA")
        assert head["ContentLength"] == stored.size_bytes
        assert opened(each_installation, stored) == opened(each_installation, stored, key="recovery")
    sql_text = as_sql(each_installation.site.cluster, archive(each_installation, done), tmp_path)
    assert sql_text.count(CANARY_PHONE) == 1, "the search for the canary elsewhere would prove nothing"
    path = tmp_path / "archive"
    listing = subprocess.run(
        [each_installation.site.cluster.bin_dir / "pg_restore", "-l", path], capture_output=True, text=True, check=True
    ).stdout
    assert done.dump.listing == count_entries(listing)
    assert "OTHER" not in done.dump.listing
    assert sum(done.dump.listing.values()) == len([line for line in listing.splitlines() if line[:1].isdigit()])
    roles = opened(each_installation, done.globals).decode()
    assert all(f"CREATE ROLE {role};" in roles for role in ("payme_owner", "payme_app", "payme_ledger"))
    assert "PASSWORD" not in roles


def test_manifest_is_signed_and_true(each_installation: Installation) -> None:
    done = each_installation.back_up()
    desk = each_installation.desk
    signed = json.loads(each_installation.store.get(done.key))
    document = verify(signed, desk.settings.backup.trusted_keys)
    jsonschema.validate(document, json.loads(manifest_schema.FILE.read_text()))
    assert manifest.parse(document) == done
    assert done.fencing_token >= 1
    assert done.sealing.recipients == desk.recipients
    assert done.read_back is not None
    assert {"locks", "dump", "truth", "globals"} <= set(done.milliseconds)
    with each_installation.site.admin() as admin:
        for relation in done.truth.relations:
            if relation.kind == "table":
                row = admin.execute(f"SELECT count(*) FROM ONLY {relation.qualified}").fetchone()  # noqa: S608
                assert row == (relation.rows,), relation.qualified
    kinds = {relation.kind for relation in done.truth.relations}
    assert kinds == {"table", "partitioned table", "materialised view"}
    assert done.truth.large_objects.count == 20
    assert "payme_ledger" in {role.name for role in done.truth.roles}


def test_restore_brings_everything_back(each_installation: Installation) -> None:
    """Content by the manifest's truth, and definitions, owners and privileges by pg_dump of both."""
    done = each_installation.back_up()
    cluster = each_installation.site.cluster
    with new_database(each_installation) as name:
        each_installation.restore(done, name)
        assert schema_of(cluster, name) == schema_of(cluster, "payme")
        found = restore.measure(cluster.conninfo(name), report=quiet)
        assert found.grants == done.truth.grants
        with psycopg.connect(cluster.conninfo(name)) as connection:
            # What no hash covers: the view is filled, identity goes on, the generated column is computed, RLS is on.
            assert connection.execute("SELECT count(*) > 0 FROM reporting.merchant_days").fetchone() == (True,)
            assert connection.execute("SELECT nextval('users_id_seq') > max(id) FROM users").fetchone() == (True,)
            connection.execute("UPDATE transactions SET fee = 0 WHERE id = 1")
            assert connection.execute("SELECT net_amount = amount FROM transactions WHERE id = 1").fetchone() == (True,)
            owner = connection.execute("SELECT pg_get_userbyid(datdba) FROM pg_database WHERE datname = %s", [name])
            assert owner.fetchone() == ("payme_owner",)
            # A copy of customers' data is open to nobody who was not asked.
            open_to = "SELECT has_database_privilege('payme_app', %s, 'CONNECT')"
            assert connection.execute(open_to, [name]).fetchone() == (False,)
        assert each_installation.sessions() == []


def test_restore_while_the_source_moves_on(each_installation: Installation) -> None:
    """The truth is that of the snapshot, not of the live table."""
    done = each_installation.back_up()
    with each_installation.site.admin() as admin:
        admin.execute("INSERT INTO rate_limits VALUES ('later', now())")
        try:
            with new_database(each_installation) as name:
                each_installation.restore(done, name)
        finally:
            admin.execute("DELETE FROM rate_limits WHERE subject = 'later'")


def test_restore_never_touches_an_existing_database(installation: Installation) -> None:
    done = installation.back_up()
    before = schema_of(installation.site.cluster, "payme")
    with pytest.raises(AlreadyExists, match="database payme exists"):
        installation.restore(done, "payme")
    assert schema_of(installation.site.cluster, "payme") == before


def test_a_restore_that_differs_is_named_and_dropped(installation: Installation) -> None:
    done = installation.back_up()
    document = manifest.document(done)
    (users,) = [each for each in document["truth"]["relations"] if each["name"] == "users"]
    users["rows"] += 1
    key = put_manifest(installation, document)
    wrong = catalogue.load(installation.store, key, installation.desk.settings.backup.trusted_keys)
    before = databases(installation)
    named = rf"public\.users: expected {users['rows']} rows"
    with new_database(installation) as name, pytest.raises(TruthMismatch, match=named):
        installation.restore(wrong, name)
    assert databases(installation) == before


def test_a_restore_into_another_major_version_is_refused(
    each_installation: Installation, sites: Callable[[str], Site]
) -> None:
    done = each_installation.back_up()
    other = sites("debian15" if done.server.major == 17 else "wheel")
    password = other.world.secrets["postgres.payme_db_restore"]
    each_installation.connect_as("payme_db_restore", port=str(other.cluster.port), password=password)
    with pytest.raises(SettingsError, match="another major version"):
        each_installation.restore(done, "never_made")


def test_a_restore_without_the_owner_role_says_where_the_roles_are(installation: Installation) -> None:
    document = manifest.document(installation.back_up())
    document["server"]["owner"] = "nobody_here"
    key = put_manifest(installation, document)
    done = catalogue.load(installation.store, key, installation.desk.settings.backup.trusted_keys)
    with pytest.raises(NotFound, match="no role nobody_here") as caught:
        installation.restore(done, "never_made")
    assert "globals.sql.age" in caught.value.remedy


@pytest.mark.parametrize("place", ["start", "middle", "end"])
def test_a_flipped_byte_is_found_by_verify_and_by_restore(installation: Installation, place: str) -> None:
    done = installation.back_up()
    data = bytearray(installation.store.get(done.archive.key))
    data[{"start": 0, "middle": len(data) // 2, "end": -1}[place]] ^= 1
    client, name = installation.store.client, installation.bucket_name
    client.put_object(Bucket=name, Key=done.archive.key, Body=bytes(data))
    desk = installation.desk
    identity = restore.load_identity(desk.settings.backup.identity_file)
    with pytest.raises(HashMismatch, match="is not what was uploaded"):
        restore.verify(desk.bucket, done, identity, desk.settings.postgres.client_dirs, report=quiet)
    before = databases(installation)
    with pytest.raises(HashMismatch):
        installation.restore(done, "damaged")
    assert databases(installation) == before
    assert installation.sessions() == []


def test_a_truncated_object_is_found(installation: Installation) -> None:
    done = installation.back_up()
    data = installation.store.get(done.archive.key)
    client, name = installation.store.client, installation.bucket_name
    client.put_object(Bucket=name, Key=done.archive.key, Body=data[:-100])
    desk = installation.desk
    identity = restore.load_identity(desk.settings.backup.identity_file)
    with pytest.raises(HashMismatch, match=f"{len(data) - 100} bytes"):
        restore.verify(desk.bucket, done, identity, desk.settings.postgres.client_dirs, report=quiet)


def test_anothers_identity_opens_nothing_although_the_bytes_are_right(installation: Installation) -> None:
    done = installation.back_up()
    desk = installation.desk
    with pytest.raises(IntegrityError, match="cannot be opened"):
        restore.verify(
            desk.bucket, done, pyrage.x25519.Identity.generate(), desk.settings.postgres.client_dirs, report=quiet
        )


def test_verify_changes_nothing_and_accepts_a_good_one(each_installation: Installation) -> None:
    done = each_installation.back_up()
    desk = each_installation.desk
    identity = restore.load_identity(desk.settings.backup.identity_file)
    before = databases(each_installation)
    restore.verify(desk.bucket, done, identity, desk.settings.postgres.client_dirs, report=quiet)
    assert databases(each_installation) == before


# --- the catalogue --------------------------------------------------------------------------------------------------


def test_only_what_is_signed_and_in_its_place_counts(installation: Installation) -> None:
    done = installation.back_up()
    where = installation.catalogue
    good = installation.store.get(done.key)
    document = json.loads(good)["document"]
    changed = json.dumps({**json.loads(good), "document": {**document, "run": "somebody"}}).encode()
    bad = {
        "20990101T000001EAT": good,  # moved: it lies under another key
        "20990101T000002EAT": changed,
        "20990101T000003EAT": b"not json",
        "20990101T000004EAT": json.dumps(document).encode(),  # unsigned
        "20990101T000005EAT": b"[]",
        "99990101T000006EAT": good,  # a time that no clock shows
        "today": good,
    }
    for stamp, body in bad.items():
        installation.store.put_if_absent(f"postgres/payme/daily/{stamp}/manifest.json", body)
    installation.store.put_if_absent("postgres/payme/daily/manifest.json", good)
    found = {entry.key: entry for entry in catalogue.entries(where)}
    assert len(found) == len(bad) + 2
    assert [key for key, entry in found.items() if entry.state is State.COMPLETE] == [done.key]
    assert all(entry.why and entry.manifest is None for key, entry in found.items() if key != done.key)
    assert catalogue.newest(where, Tier.DAILY) == done
    assert catalogue.find(where, "latest").manifest == done
    with pytest.raises(ManifestInvalid, match="another backup's key"):
        catalogue.find(where, "20990101T000001EAT")
    with pytest.raises(Untrusted):
        catalogue.find(where, "20990101T000002EAT")


def test_a_newer_manifest_is_named_as_that(installation: Installation) -> None:
    document = manifest.document(installation.back_up())
    key = put_manifest(installation, {**document, "version": 2, "engine": "physical"})
    trusted = installation.desk.settings.backup.trusted_keys
    with pytest.raises(ManifestInvalid, match="newer version"):
        catalogue.load(installation.store, key, trusted)
    (entry,) = [each for each in catalogue.entries(installation.catalogue) if each.key == key]
    assert entry.state is State.UNTRUSTED
    assert "version 2" in entry.why


def test_a_retired_key_still_counts_as_long_as_it_is_listed(installation: Installation) -> None:
    done = installation.back_up()
    new = signing.public_key(Ed25519PrivateKey.generate())
    where = installation.catalogue
    assert catalogue.newest(replace(where, manifest_keys=[new, *where.manifest_keys]), Tier.DAILY) == done
    assert catalogue.newest(replace(where, manifest_keys=[new]), Tier.DAILY) is None


def test_a_backup_is_found_by_key_prefix_stamp_or_latest(installation: Installation) -> None:
    first, second = installation.back_up(), installation.back_up()
    where = installation.catalogue
    for name in (first.key, first.prefix, first.prefix.split("/")[3]):
        assert catalogue.find(where, name).manifest == first
    assert catalogue.find(where, "latest").manifest == second
    for name in ("nope", "", "postgres/"):
        with pytest.raises(NotFound, match="none among 2"):
            catalogue.find(where, name)


def test_no_backup_at_all(installation: Installation) -> None:
    where = installation.catalogue
    assert list(catalogue.entries(where)) == []
    assert catalogue.newest(where, Tier.DAILY) is None
    with pytest.raises(NotFound):
        catalogue.find(where, "latest")


def test_expiry_by_tier(installation: Installation) -> None:
    done = installation.back_up()
    (entry,) = catalogue.entries(installation.catalogue)
    assert entry.expires_at == done.snapshot_at + timedelta(days=30)
    assert entry.started_at == done.started_at


# --- stages, in order or not at all ---------------------------------------------------------------------------------


def test_a_dump_without_a_preflight_that_passed_is_refused(installation: Installation) -> None:
    """Marking the task as success by a click produces no evidence."""
    desk = installation.desk
    with pytest.raises(NotFound, match="no usable evidence for preflight"):
        run.dump_and_store(desk, "skipped", Tier.DAILY, utc_now(), report=quiet)
    installation.set("BACKUP__SIGNING_KEY_FILE", "/nowhere")
    preflight.record(desk, "failed", preflight.examine(installation.desk, actor="test", for_run=True))
    with pytest.raises(PreflightFailed):
        run.dump_and_store(desk, "failed", Tier.DAILY, utc_now(), report=quiet)
    assert list(installation.store.keys("postgres/")) == []


def test_commit_without_a_dump_or_without_a_read_back_is_refused(installation: Installation) -> None:
    desk = installation.desk
    with pytest.raises(NotFound, match="no usable evidence for dump_and_store"):
        run.commit(desk, "never ran")
    run.dump_and_store(desk, installation.passed("half"), Tier.DAILY, utc_now(), report=quiet)
    with pytest.raises(NotFound, match="no usable evidence for read_back"):
        run.commit(desk, "half")
    assert installation.manifests() == []


def test_a_second_commit_of_the_same_run_is_content_and_anothers_is_refused(installation: Installation) -> None:
    done = installation.back_up()
    desk = installation.desk
    assert run.commit(desk, done.run) == done
    versions = installation.store.client.list_object_versions(Bucket=installation.bucket_name, Prefix=done.key)
    assert len(versions["Versions"]) == 1
    key = load_private_key(desk.settings.backup.signing_key_file)
    with pytest.raises(AlreadyExists):
        store.commit(desk.placement, done.model_copy(update={"run": "another"}), key)


def test_a_read_back_of_another_dump_is_not_taken(installation: Installation) -> None:
    """A retry of the dump after the read-back: the old proof must not stand for the new object."""
    desk = installation.desk
    run.dump_and_store(desk, installation.passed("again"), Tier.DAILY, utc_now(), report=quiet)
    run.read_back(desk, "again", report=quiet)
    installation.next_second()
    installation.next_second()
    run.dump_and_store(desk, installation.passed("again"), Tier.DAILY, utc_now(), report=quiet)
    with pytest.raises(IntegrityError, match="belongs to another dump"):
        run.commit(desk, "again")
    run.read_back(desk, "again", report=quiet)
    run.commit(desk, "again")
    assert len(installation.manifests()) == 1


def test_evidence_that_was_changed_is_not_committed(installation: Installation) -> None:
    desk = installation.desk
    run.dump_and_store(desk, installation.passed("changed"), Tier.DAILY, utc_now(), report=quiet)
    run.read_back(desk, "changed", report=quiet)
    with installation.site.admin("payme_ops") as admin:
        admin.execute(
            "UPDATE ops.evidence SET measured = replace(measured::text, '\"daily\"', '\"weekly\"')::json"
            " WHERE run = 'changed'"
        )
    with pytest.raises(NotFound, match="digest does not match"):
        run.commit(desk, "changed")


def test_a_request_older_than_the_newest_snapshot_is_superseded_by_name(installation: Installation) -> None:
    asked = utc_now() - timedelta(minutes=1)
    done = installation.back_up()
    with pytest.raises(Superseded) as caught:
        run.dump_and_store(installation.desk, installation.passed("late"), Tier.DAILY, asked, report=quiet)
    assert done.key in caught.value.found
    assert [each.key for each in installation.manifests()] == [done.key]
    # Of another tier it is not superseded, and what was asked for later is made.
    run.dump_and_store(installation.desk, installation.passed("weekly"), Tier.WEEKLY, asked, report=quiet)
    installation.back_up()


def test_what_is_not_trusted_supersedes_nothing(installation: Installation) -> None:
    done = installation.back_up()
    forged = json.loads(installation.store.get(done.key))
    forged["document"]["snapshot_at"] = "2099-01-01T00:00:00Z"
    installation.store.put_if_absent(
        "postgres/payme/daily/20990101T000000EAT/manifest.json", json.dumps(forged).encode()
    )
    installation.next_second()
    run.dump_and_store(installation.desk, installation.passed("next"), Tier.DAILY, utc_now(), report=quiet)


def test_stages_leave_evidence_with_digest_and_source(installation: Installation) -> None:
    done = installation.back_up()
    for item in ("dump_and_store", "read_back"):
        proof = evidence.latest("service=payme_ops_db", done.run, item)
        assert proof.verdict == "pass"
        assert proof.source == done.archive.key
        assert proof.sha256 == evidence.digest(proof.measured)
    assert evidence.latest("service=payme_ops_db", done.run, "read_back").measured == manifest.document(done)


def test_one_dump_at_a_time_whoever_asks(installation: Installation) -> None:
    desk = installation.desk
    with (
        lease.hold("service=payme_ops_db", desk.lease_name, "backup_weekly/run-9"),
        pytest.raises(LeaseHeld, match="backup_weekly/run-9 since"),
    ):
        run.dump_and_store(desk, installation.passed("second"), Tier.DAILY, utc_now(), report=quiet)
    assert list(installation.store.keys("postgres/")) == []


def test_kms_and_storage_class_of_the_settings_are_used(installation: Installation) -> None:
    installation.set("BACKUP__KMS_KEY_ID", "alias/payme-backups")
    installation.set("BACKUP__STORAGE_CLASS", "INTELLIGENT_TIERING")
    done = installation.back_up()
    client, name = installation.store.client, installation.bucket_name
    for key in (done.archive.key, done.globals.key, done.key):
        head = client.head_object(Bucket=name, Key=key)
        assert (head["ServerSideEncryption"], head["SSEKMSKeyId"]) == ("aws:kms", "alias/payme-backups")
    assert client.head_object(Bucket=name, Key=done.archive.key)["StorageClass"] == "INTELLIGENT_TIERING"
