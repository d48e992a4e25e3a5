"""Doctor: everything right is green; each thing broken in turn is red, that and nothing else, with what to do."""

import json
import os
import re
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import pyrage
import pytest

from payme_ops.backup import preflight
from payme_ops.foundation import evidence, lease
from payme_ops.foundation.errors import LeaseHeld, PreflightFailed, PreflightInconclusive
from payme_ops.foundation.evidence import Evidence, Verdict
from payme_ops.foundation.settings import is_loopback
from sandbox import s3
from tests.support.installation import Installation
from tests.support.proxy import proxy_before

ITEMS = [
    *("database", "encrypted_connection", "client_tools", "replica", "readable", "read_only", "bucket"),
    *("bucket_encryption", "bucket_versioning", "object_lock", "written_once", "clock", "recipients", "signing_key"),
    *("ops_database", "lease"),
]
ON_THE_COPIES = [
    f"copy_{item}" for item in ("bucket", "bucket_encryption", "bucket_versioning", "object_lock", "written_once")
]
ON_THE_DATABASE = set(ITEMS[: ITEMS.index("bucket")])
ON_THE_STORE = set(ITEMS[ITEMS.index("bucket") : ITEMS.index("signing_key")])
Break = Callable[[Installation, ExitStack], None]


def examine(installation: Installation, *, for_run: bool = True) -> dict[str, Evidence]:
    found = preflight.examine(installation.desk, actor="test", for_run=for_run)
    return {item.item: item for item in found}


def test_everything_is_green(each_installation: Installation) -> None:
    found = examine(each_installation)
    assert list(found) == ITEMS
    assert {name: (item.verdict, item.measured) for name, item in found.items() if item.verdict != "pass"} == {}
    preflight.require_passed(list(found.values()))
    for_copy = preflight.examine_for_copy(each_installation.desk, actor="test")
    assert [item.item for item in for_copy] == [*ON_THE_COPIES, "signing_key", "ops_database"]
    preflight.require_passed(for_copy)


def test_green_again_with_a_backup_in_the_bucket(installation: Installation) -> None:
    installation.back_up()
    assert {item.verdict for item in examine(installation).values()} == {Verdict.PASS}


# --- one thing broken at a time -----------------------------------------------------------------------------------


@contextmanager
def changed(installation: Installation, do: str, undo: str, dbname: str = "payme") -> Iterator[None]:
    with installation.site.admin(dbname) as admin:
        for statement in do.split(";"):
            admin.execute(statement)
    try:
        yield
    finally:
        with installation.site.admin(dbname) as admin:
            for statement in undo.split(";"):
                admin.execute(statement)


def in_database(do: str, undo: str) -> Break:
    return lambda installation, stack: stack.enter_context(changed(installation, do, undo))


def through_proxy(method: str, contains: str, *change: str) -> Break:
    def broken(installation: Installation, stack: ExitStack) -> None:
        proxy = stack.enter_context(proxy_before(installation.site.world.ports["s3"]))
        installation.reach_store_at(proxy.url)
        if len(change) == 1:
            proxy.without_header(method, contains, *change)
        else:
            proxy.with_answer_header(method, contains, *change)

    return broken


def setting(name: str, value: str) -> Break:
    return lambda installation, _: installation.set(name, value)


def other_database(installation: Installation, _: ExitStack) -> None:
    installation.connect_as("payme_db_read", dbname="postgres")


def narrow_role(installation: Installation, stack: ExitStack) -> None:
    """A role that somebody gave SELECT by hand, before the newest table came."""
    do = (
        "CREATE ROLE narrow LOGIN PASSWORD 'narrow' BYPASSRLS; GRANT CONNECT ON DATABASE payme TO narrow;"
        "GRANT USAGE ON SCHEMA public, ledger, reporting TO narrow;"
        "GRANT SELECT ON ALL TABLES IN SCHEMA public, ledger, reporting TO narrow;"
        "GRANT SELECT ON ALL SEQUENCES IN SCHEMA public, ledger, reporting TO narrow;"
        "CREATE TABLE brand_new (a int); REVOKE ALL ON brand_new FROM narrow"
    )
    undo = "DROP OWNED BY narrow; DROP ROLE narrow; DROP TABLE brand_new"
    stack.enter_context(changed(installation, do, undo))
    installation.connect_as("payme_db_read", user="narrow", password="narrow")


def use_bucket(installation: Installation, *, lock: bool, region: str = "af-south-1") -> None:
    """Another bucket, right but for what the arguments say."""
    name = f"{installation.bucket_name}-other"
    client = s3.client(installation.site.world.url("s3"), region)
    client.create_bucket(
        Bucket=name,
        CreateBucketConfiguration={"LocationConstraint": region},  # type: ignore[typeddict-item]
        ObjectLockEnabledForBucket=lock,
    )
    client.put_bucket_encryption(
        Bucket=name,
        ServerSideEncryptionConfiguration={
            "Rules": [{"ApplyServerSideEncryptionByDefault": {"SSEAlgorithm": "AES256"}}]
        },
    )
    installation.set("BACKUP__BUCKET", name)


def elsewhere(installation: Installation, _: ExitStack) -> None:
    use_bucket(installation, lock=True, region="eu-west-1")


def unencrypted(installation: Installation, _: ExitStack) -> None:
    installation.site.store.delete_bucket_encryption(Bucket=installation.bucket_name)


def unversioned(installation: Installation, _: ExitStack) -> None:
    use_bucket(installation, lock=False)


_SECRETS = "airflow.providers.amazon.aws.secrets.secrets_manager"


def in_production(installation: Installation) -> None:
    """The settings of production on what is still a sandbox."""
    installation.set("PROFILE", "production")
    installation.set_all(
        {name: None for name in installation.site.world.env if name.startswith("AIRFLOW_CONN_")}
        | {"AIRFLOW__CORE__AUTH_MANAGER": "FabAuthManager", "AIRFLOW__SENTRY__SENTRY_DSN": "https://k@sentry.io/1"}
        | {"AIRFLOW__SENTRY__ENVIRONMENT": "production", "AIRFLOW__SENTRY__RELEASE": "payme-ops@0.1.0"}
        | {"AIRFLOW__SENTRY__TRACES_SAMPLE_RATE": "0.1", "AIRFLOW__SENTRY__SENTRY_ON": "true"}
        | {name: None for name, value in os.environ.items() if name.startswith("PAYME_OPS__") and is_loopback(value)}
        | {"AIRFLOW__WORKERS__SECRETS_BACKEND": f"{_SECRETS}.SecretsManagerBackend"}
        | {"AIRFLOW__WORKERS__SECRETS_BACKEND_KWARGS": '{"connections_prefix": "payme/production/airflow/connections"}'}
    )


def without_tls(installation: Installation, _: ExitStack) -> None:
    in_production(installation)


def new_recipient(installation: Installation, _: ExitStack) -> None:
    installation.back_up()
    installation.set("BACKUP__RECIPIENT_DRILL", str(pyrage.x25519.Identity.generate().to_public()))


def same_recipient_twice(installation: Installation, _: ExitStack) -> None:
    installation.set("BACKUP__RECIPIENT_DRILL", installation.site.world.env["PAYME_OPS__BACKUP__RECIPIENT_RECOVERY"])


def mistyped_recipient(installation: Installation, _: ExitStack) -> None:
    """The right shape; only its checksum tells."""
    right = installation.site.world.env["PAYME_OPS__BACKUP__RECIPIENT_DRILL"]
    installation.set("BACKUP__RECIPIENT_DRILL", right[:-1] + ("q" if right[-1] != "q" else "p"))


def unmigrated(installation: Installation, stack: ExitStack) -> None:
    stack.enter_context(
        changed(installation, "CREATE DATABASE bare OWNER payme_ops", "DROP DATABASE bare", dbname="postgres")
    )
    installation.connect_as("payme_ops_db", dbname="bare")


def held(installation: Installation, stack: ExitStack) -> None:
    stack.enter_context(lease.hold("service=payme_ops_db", installation.desk.lease_name, "backup_weekly/run-9"))


# What is broken, which item is red, what its evidence says, what its remedy says.
BROKEN: dict[str, tuple[Break, str, str, str]] = {
    "another database": (other_database, "database", "connected_to postgres", "payme_db_read"),
    "no client tools": (
        setting("POSTGRES__CLIENT_DIRS", "/nowhere"),
        "client_tools",
        "no pg_dump for PostgreSQL 17",
        "install the PostgreSQL 17 client tools",
    ),
    "a table made after the grants": (narrow_role, "readable", "public.brand_new: no SELECT", "backup_role.sql"),
    "row-level security": (
        in_database("ALTER ROLE payme_db_read NOBYPASSRLS", "ALTER ROLE payme_db_read BYPASSRLS"),
        "readable",
        "public.statements: row-level security hides rows",
        "BYPASSRLS",
    ),
    "large objects out of reach": (
        in_database(
            "ALTER ROLE payme_db_read RESET lo_compat_privileges",
            "ALTER ROLE payme_db_read SET lo_compat_privileges = on",
        ),
        "readable",
        "large objects: the role has no lo_compat_privileges",
        "lo_compat_privileges",
    ),
    "a role that inserts": (
        in_database("GRANT INSERT ON merchants TO payme_db_read", "REVOKE INSERT ON merchants FROM payme_db_read"),
        "read_only",
        "INSERT on public.merchants",
        "revoke it",
    ),
    "a role that creates databases": (
        in_database("ALTER ROLE payme_db_read CREATEDB", "ALTER ROLE payme_db_read NOCREATEDB"),
        "read_only",
        "role attribute CREATEDB",
        "revoke it",
    ),
    "a role that writes everything": (
        in_database("GRANT pg_write_all_data TO payme_db_read", "REVOKE pg_write_all_data FROM payme_db_read"),
        "read_only",
        "member of pg_write_all_data",
        "revoke it",
    ),
    "a role that owns a table": (
        in_database("CREATE TABLE mine (a int); ALTER TABLE mine OWNER TO payme_db_read", "DROP TABLE mine"),
        "read_only",
        "on public.mine",
        "revoke it",
    ),
    "a connection in clear in production": (without_tls, "encrypted_connection", "tls off", "sslmode=verify-full"),
    "a bucket in another region": (elsewhere, "bucket", "region eu-west-1", "PAYME_OPS__BACKUP__REGION"),
    "a bucket without encryption": (unencrypted, "bucket_encryption", "none", "default encryption"),
    "a bucket without versions": (unversioned, "bucket_versioning", "off", "turn on versioning"),
    "a store that overwrites": (
        through_proxy("PUT", "payme-ops/probe", "If-None-Match"),
        "written_once",
        "second_write accepted",
        "If-None-Match",
    ),
    "a clock that is wrong": (
        through_proxy("HEAD", "/", "Date", format_datetime(datetime.now(UTC) - timedelta(days=10), usegmt=True)),
        "clock",
        "seconds 86",  # 864000 and what has passed since this file was read
        "NTP",
    ),
    "recipients changed": (new_recipient, "recipients", "changed drill, since 20", "--accept-recipients"),
    "one recipient twice": (same_recipient_twice, "recipients", "both the same", "docs/keys.md"),
    "a mistyped recipient": (mistyped_recipient, "recipients", "the drill recipient does not parse", "drill key"),
    "no signing key": (
        setting("BACKUP__SIGNING_KEY_FILE", "/nowhere/signing.pem"),
        "signing_key",
        "no signing key",
        "openssl genpkey",
    ),
    "a signing key nobody trusts": (
        setting("BACKUP__TRUSTED_KEYS", "q83vEjRWeJCrze8SNFZ4kKvN7xI0VniQq83vEjRWeJA="),
        "signing_key",
        "trusted no",
        "PAYME_OPS__BACKUP__TRUSTED_KEYS",
    ),
    "an ops database without schema": (unmigrated, "ops_database", "schema missing", "ops-db migrate"),
    "a lease that is held": (held, "lease", "held_by backup_weekly/run-9, since 20", "one dump at a time"),
}


@pytest.mark.parametrize("what", BROKEN)
def test_one_thing_broken_is_red_alone(installation: Installation, what: str) -> None:
    broken, item, says, remedy = BROKEN[what]
    with ExitStack() as stack:
        broken(installation, stack)
        found = examine(installation)
    red = {name: evidence.plain(each.measured) for name, each in found.items() if each.verdict is not Verdict.PASS}
    # Without its schema the ops database cannot be asked for the lease either. All connections are in clear at once.
    beside = {"ops_database": {"lease"}, "encrypted_connection": {"ops_database"}}.get(item, set())
    assert set(red) == {item} | beside, red
    assert found[item].verdict is Verdict.FAIL
    assert says in red[item]
    assert remedy in found[item].remedy
    kind = LeaseHeld if item == "lease" else PreflightFailed
    with pytest.raises(kind) as caught:
        preflight.require_passed(list(found.values()))
    assert remedy in str(caught.value)


def test_production_wants_object_lock(installation: Installation) -> None:
    use_bucket(installation, lock=False)
    assert examine(installation)["object_lock"].verdict is Verdict.PASS
    in_production(installation)
    found = examine(installation)["object_lock"]
    assert (found.verdict, found.measured) == (Verdict.FAIL, {"object_lock": "off"})
    assert found.remedy


def test_doctor_reports_a_held_lease_and_is_not_alarmed(installation: Installation) -> None:
    with ExitStack() as stack:
        held(installation, stack)
        found = examine(installation, for_run=False)
    assert found["lease"].verdict is Verdict.PASS
    assert "backup_weekly/run-9 since 20" in evidence.plain(found["lease"].measured)


def test_a_missing_bucket_fails_with_the_name_to_correct(installation: Installation) -> None:
    installation.set("BACKUP__BUCKET", "payme-nowhere")
    found = examine(installation)
    assert found["bucket"].verdict is Verdict.FAIL
    assert "PAYME_OPS__BACKUP__BUCKET" in found["bucket"].remedy
    assert {name for name, item in found.items() if item.verdict is not Verdict.PASS} <= ON_THE_STORE


def test_the_other_regions_bucket_is_doctors_and_the_copys_not_the_dailys(installation: Installation) -> None:
    installation.set("BACKUP__COPY_BUCKET", installation.bucket_name)
    assert {item.verdict for item in examine(installation).values()} == {Verdict.PASS}
    found = examine(installation, for_run=False)
    assert found["copy_bucket"].measured == {"region": "af-south-1", "settings_say": "eu-west-1"}
    assert "PAYME_OPS__BACKUP__COPY_REGION" in found["copy_bucket"].remedy
    for_copy = {item.item: item.verdict for item in preflight.examine_for_copy(installation.desk, actor="test")}
    assert for_copy["copy_bucket"] is Verdict.FAIL


def test_a_database_that_does_not_answer_is_inconclusive(installation: Installation) -> None:
    installation.connect_as("payme_db_read", port="1")
    found = examine(installation)
    silent = {name for name, item in found.items() if item.verdict is Verdict.INCONCLUSIVE}
    assert silent == ON_THE_DATABASE
    assert {item.verdict for name, item in found.items() if name not in silent} == {Verdict.PASS}
    with pytest.raises(PreflightInconclusive):
        preflight.require_passed(list(found.values()))


def test_a_store_that_does_not_answer_is_inconclusive(installation: Installation) -> None:
    installation.reach_store_at("http://127.0.0.1:1")
    found = examine(installation)
    silent = {name for name, item in found.items() if item.verdict is Verdict.INCONCLUSIVE}
    assert silent == ON_THE_STORE
    assert {item.verdict for name, item in found.items() if name not in silent} == {Verdict.PASS}


def test_a_failure_beside_something_inconclusive_is_a_failure(installation: Installation) -> None:
    installation.connect_as("payme_db_read", port="1")
    installation.set("BACKUP__SIGNING_KEY_FILE", "/nowhere")
    with pytest.raises(PreflightFailed) as caught:
        preflight.require_passed(list(examine(installation).values()))
    assert "signing_key (fail)" in caught.value.what
    assert "database (inconclusive)" in caught.value.what
    assert "nothing was touched" in caught.value.what


def test_recipients_accepted_once_are_the_new_ones(installation: Installation) -> None:
    with ExitStack() as stack:
        new_recipient(installation, stack)
    found = preflight.examine(installation.desk, actor="test", for_run=True, bypass=frozenset({"recipients"}))
    (recipients,) = [item for item in found if item.item == "recipients"]
    assert recipients.verdict is Verdict.BYPASSED
    assert recipients.remedy
    preflight.require_passed(found)
    installation.back_up(bypass=frozenset({"recipients"}))
    assert examine(installation)["recipients"].verdict is Verdict.PASS


def test_bypassing_hides_nothing_else(installation: Installation) -> None:
    installation.set("BACKUP__SIGNING_KEY_FILE", "/nowhere")
    found = preflight.examine(installation.desk, actor="test", for_run=True, bypass=frozenset({"recipients"}))
    assert {item.item: item.verdict for item in found}["recipients"] is Verdict.PASS
    with pytest.raises(PreflightFailed):
        preflight.require_passed(found)


def test_an_untrusted_manifest_does_not_count_as_the_last(installation: Installation) -> None:
    done = installation.back_up()
    forged = json.loads(installation.store.get(done.key))
    forged["document"]["sealing"]["recipients"]["drill"] = "age1forged"
    later = done.key.replace(done.prefix.split("/")[3], "20990101T000000EAT")
    installation.store.put_if_absent(later, json.dumps(forged).encode())
    assert examine(installation)["recipients"].verdict is Verdict.PASS


def test_doctor_on_a_shell(installation: Installation) -> None:
    installation.alone()
    ended = installation.cli("doctor")
    assert ended.code == 0, ended
    others = ("doors", "database_clock", "lifecycle", "restore_role", "application_environment", "monitored_endpoints")
    assert all(f" {item}: " in ended.out for item in [*ITEMS, *ON_THE_COPIES, *others])
    assert "\x1b" not in ended.out  # nor a table: nobody may be there to look
    assert "│" not in ended.out
    installation.set("BACKUP__SIGNING_KEY_FILE", "/nowhere/signing.pem")
    ended = installation.cli("doctor")
    assert ended.code == 3
    assert re.search(r"^fail +signing_key: .*\n +expected: .*; to do: .*openssl genpkey", ended.out, re.MULTILINE)
    ended = installation.cli("doctor", "--json")
    assert ended.code == 3
    (red,) = [item for item in json.loads(ended.out) if item["verdict"] != "pass"]
    assert red["item"] == "signing_key"
    assert red["remedy"]


def test_probe_is_written_once_and_stays_out_of_the_catalogue(installation: Installation) -> None:
    examine(installation)
    examine(installation)
    versions = installation.site.store.list_object_versions(Bucket=installation.bucket_name)["Versions"]
    assert [version["Key"] for version in versions] == [preflight.PROBE_KEY]
    assert installation.manifests() == []
