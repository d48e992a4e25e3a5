"""Databases that are not PayMe's: other locales and encodings, and every kind of object that PostgreSQL knows."""

import itertools
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg
import pytest

from payme_ops.backup import restore, restore_test
from payme_ops.backup.manifest import Manifest
from payme_ops.backup.verification import Outcome
from payme_ops.cli import doors
from payme_ops.foundation import settings
from payme_ops.foundation.evidence import Verdict
from tests.support.installation import Installation, quiet
from tests.support.opening import schema_of

pytestmark = pytest.mark.long

_numbers = itertools.count(1)

OBJECTS = (Path(__file__).parent / "every_kind_of_object.sql").read_text()


@contextmanager
def other_database(installation: Installation, options: str = "") -> Iterator[str]:
    """A database of its own that the installation backs up; its name."""
    name = f"other-{next(_numbers)}.db"
    with installation.site.admin("postgres") as admin:
        admin.execute(f'CREATE DATABASE "{name}" TEMPLATE template0 {options}')
    installation.set("BACKUP__DATABASE", name)
    installation.connect_as("payme_db_read", dbname=name)
    try:
        yield name
    finally:
        with installation.site.admin("postgres") as admin:
            admin.execute(f'DROP DATABASE "{name}" WITH (FORCE)')


@contextmanager
def restored(installation: Installation, done: Manifest) -> Iterator[str]:
    """Restored and compared with its manifest, by a superuser: what is owned by one only one can bring back."""
    name = f'restored "{next(_numbers)}" 100%'
    quoted = '"' + name.replace('"', '""') + '"'
    try:
        installation.restore(done, name, installation.site.cluster.conninfo())
        yield name
    finally:
        with installation.site.admin("postgres") as admin:
            admin.execute(f"DROP DATABASE IF EXISTS {quoted} WITH (FORCE)")


def require_verified(done: Manifest) -> None:
    """The restore test is green; the payments' rules do not apply to these databases."""
    config, desk = settings.load(), doors.desk()
    identity = restore.load_identity(config.backup.identity_file)
    found = restore_test.examine(desk.bucket, done, identity, config, "test", report=quiet)
    assert [item for item in found.evidence if item.verdict is Verdict.FAIL] == []
    assert found.verdict == Outcome.VERIFIED


def facts(installation: Installation, name: str) -> tuple[object, ...]:
    """Encoding and locale of a database."""
    with installation.site.admin("postgres") as admin:
        row = admin.execute(
            "SELECT encoding, datcollate, datctype, to_jsonb(d) ->> 'datlocprovider',"
            " coalesce(to_jsonb(d) ->> 'datlocale', to_jsonb(d) ->> 'daticulocale'), pg_get_userbyid(datdba)"
            " FROM pg_database AS d WHERE datname = %s",
            [name],
        ).fetchone()
    assert row is not None
    return row


def test_every_kind_of_object_comes_back(each_installation: Installation) -> None:
    with other_database(each_installation) as name:
        with each_installation.site.admin(name) as admin:
            admin.execute(OBJECTS)
        done = each_installation.back_up()
        assert done.database == name
        assert "OTHER" not in done.dump.listing
        cluster = each_installation.site.cluster
        with restored(each_installation, done) as copy:
            assert schema_of(cluster, copy) == schema_of(cluster, name)
            found = restore.measure(psycopg.conninfo.make_conninfo(cluster.conninfo(), dbname=copy), report=quiet)
            assert found.grants == done.truth.grants
            assert facts(each_installation, copy) == facts(each_installation, name)
        require_verified(done)


def test_a_thousand_tables(installation: Installation) -> None:
    with other_database(installation) as name:
        with installation.site.admin(name) as admin:
            admin.execute(
                "DO $$ BEGIN FOR i IN 1..1000 LOOP"
                " EXECUTE format('CREATE TABLE t_%s (id int PRIMARY KEY, v text CHECK (v <> %L))', i, '');"
                " EXECUTE format('INSERT INTO t_%s VALUES (%s, %L)', i, i, 'v');"
                " IF i % 100 = 0 THEN COMMIT; END IF; END LOOP; END $$"
            )
        done = installation.back_up()
        assert (len(done.truth.relations), done.truth.rows) == (1000, 1000)
        with restored(installation, done) as copy:
            assert schema_of(installation.site.cluster, copy) == schema_of(installation.site.cluster, name)
        require_verified(done)


def test_an_empty_database(each_installation: Installation) -> None:
    with other_database(each_installation):
        done = each_installation.back_up()
        assert done.truth.relations == []
        assert done.truth.rows == 0
        with restored(each_installation, done):
            pass
        require_verified(done)


LOCALES = [
    "ENCODING 'LATIN1' LC_COLLATE 'C' LC_CTYPE 'C'",
    "ENCODING 'SQL_ASCII' LC_COLLATE 'C' LC_CTYPE 'C'",
    "LOCALE_PROVIDER builtin BUILTIN_LOCALE 'C.UTF-8'",
    "LOCALE_PROVIDER icu ICU_LOCALE 'sw-KE'",
]


@pytest.mark.parametrize("options", LOCALES, ids=["latin1", "sql_ascii", "builtin", "icu"])
def test_encodings_and_locales(each_installation: Installation, options: str) -> None:
    try:
        with other_database(each_installation, options) as name:
            with each_installation.site.admin(name) as admin:
                admin.execute("SET client_encoding = 'UTF8'")
                admin.execute('CREATE TABLE "ümlaut" (v text)')
                admin.execute("INSERT INTO \"ümlaut\" VALUES ('Nyong''o'), ('äöü')")
            done = each_installation.back_up()
            assert [relation.name for relation in done.truth.relations] == ["ümlaut"]
            assert done.truth.rows == 2
            with restored(each_installation, done) as copy:
                assert facts(each_installation, copy) == facts(each_installation, name)
    except (psycopg.errors.FeatureNotSupported, psycopg.errors.InvalidParameterValue, psycopg.errors.SyntaxError):
        pytest.skip("this PostgreSQL has no such locale provider")
    except psycopg.errors.InvalidObjectDefinition:
        pytest.skip("this PostgreSQL has no such locale provider")


def test_foreign_tables_are_definitions(each_installation: Installation) -> None:
    with other_database(each_installation) as name:
        with each_installation.site.admin(name) as admin:
            try:
                admin.execute("CREATE EXTENSION postgres_fdw")
            except psycopg.errors.FeatureNotSupported:
                pytest.skip("this PostgreSQL comes without postgres_fdw")
            admin.execute(
                "CREATE SERVER elsewhere FOREIGN DATA WRAPPER postgres_fdw OPTIONS (host '127.0.0.1', port '1');"
                "CREATE FOREIGN TABLE far (a int) SERVER elsewhere; CREATE TABLE near (a int)"
            )
        done = each_installation.back_up()
        notes = {relation.name: relation for relation in done.truth.relations}
        assert notes["far"].kind == "foreign table"
        assert (notes["far"].rows, notes["far"].content_hash) == (None, None)
        assert "another server" in notes["far"].note
        with restored(each_installation, done):
            pass
        require_verified(done)


def test_two_databases_share_nothing_but_the_bucket(each_installation: Installation) -> None:
    """Neither lease nor catalogue nor what a killed run left is the other's."""
    first = each_installation.back_up()
    with other_database(each_installation) as name:
        client, bucket = each_installation.store.client, each_installation.bucket_name
        client.create_multipart_upload(Bucket=bucket, Key="postgres/payme/daily/20260128T020000EAT/archive.dump.age")
        second = each_installation.back_up()
        assert second.key.startswith(f"postgres/{name}/")
        assert [manifest.key for manifest in each_installation.manifests()] == [second.key]
        assert len(each_installation.uploads()) == 1, "the upload of the other database is not ours to abort"
        each_installation.set("BACKUP__DATABASE", "payme")
        assert [manifest.key for manifest in each_installation.manifests()] == [first.key]
