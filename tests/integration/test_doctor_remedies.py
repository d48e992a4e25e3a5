"""Doctor as a whole: each thing broken in turn is red, that and nothing else; what its remedy says is done, and it is
green again.

A case breaks something, is given what doctor says of it, does that, and yields once more.
"""

import json
import os
import re
import shlex
import subprocess
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from functools import cache
from pathlib import Path
from typing import Any

import boto3
import botocore.session
import pytest
from typer.testing import CliRunner

from payme_ops.cli import app
from payme_ops.cli import doctor as command
from payme_ops.cli.kept_connections import Part
from payme_ops.foundation import opsdb, samples, settings
from payme_ops.foundation.clock import utc_now
from payme_ops.foundation.evidence import Evidence, Verdict, plain
from payme_ops.foundation.health import State
from payme_ops.foundation.samples import Sample
from sandbox import app_secrets, s3, sentry
from sandbox.http import call
from sandbox.postgres import PROJECT
from tests.support import airflow_stand_in, secrets, standins
from tests.support.airflow_stand_in import AirflowState
from tests.support.installation import Installation
from tests.support.proxy import proxy_before
from tests.support.site import Site
from tests.support.standins import StandIn

CHANNEL, SLACK_TOKEN, SENTRY_TOKEN = "C0PAYMEOPS1", "xoxb-of-the-doctor", "token-of-the-doctor"
OPS = "doctor_ops"
CONNECTION = {"conn_type": "postgres", "host": "db", "login": "somebody", "password": "never-shown-anywhere"}
LIFECYCLE = [
    {"ID": "aborted", "Status": "Enabled", "Filter": {}, "AbortIncompleteMultipartUpload": {"DaysAfterInitiation": 2}},
    {"ID": "old", "Status": "Enabled", "Filter": {}, "NoncurrentVersionExpiration": {"NoncurrentDays": 30}},
]


@dataclass
class Desk:
    """A desk that has every part, all of it right, and what stands around it."""

    installation: Installation
    folder: Path
    slack: StandIn
    sentry: StandIn
    airflow: AirflowState
    prefix: str
    part: Part | None = None
    said: list[Evidence] = field(default_factory=list)

    @property
    def site(self) -> Site:
        return self.installation.site

    @property
    def url(self) -> str:
        """S3, KMS and Secrets Manager."""
        return self.site.world.url("s3")

    def doctor(self) -> dict[str, Evidence]:
        self.said = command.examine(settings.load(), "test", part=self.part)
        return {item.item: item for item in self.said}

    def set(self, name: str, value: str) -> None:
        self.installation.set(name, value)

    def sql(self, *statements: str, dbname: str = "payme") -> None:
        with self.site.admin(dbname) as admin:
            for statement in statements:
                admin.execute(statement)

    def grants(self, remedy: str) -> None:
        """Run the files that a remedy names, as it says; what is there already is no error of theirs."""
        for file in re.findall(r"include/sql/grants/(\w+\.sql)", remedy):
            self._psql(PROJECT / "include" / "sql" / "grants" / file)

    def _psql(self, file: Path) -> None:
        cluster = self.site.cluster
        dbname = "postgres" if file.name in ("restore_functions.sql", "ops_database.sql") else "payme"
        subprocess.run(
            [cluster.bin_dir / "psql", "-X", "-q", "-v", "database=payme", "-f", file, cluster.conninfo(dbname)],
            capture_output=True,
            check=True,
        )

    def revoke(self, red: Evidence, role: str) -> None:
        """Take away what doctor calls too much."""
        for what in red.measured["too much"]:
            granted = what.removeprefix("member of ")
            self.sql(f"REVOKE {granted} FROM {role}" if granted != what else f"ALTER ROLE {role} NO{what}")

    def aws(self, service: str) -> Any:
        keys = {"aws_access_key_id": "sandbox", "aws_secret_access_key": "sandbox"}
        return boto3.client(service, endpoint_url=self.url, region_name="af-south-1", **keys)  # type: ignore[call-overload]

    def secret(self, name: str, value: object) -> None:
        secrets.at(self.url).put(f"{self.prefix}/{name}", value)


Case = Callable[[Desk], Generator[None, Evidence, None]]
CASES: dict[str, tuple[str, Case, frozenset[str]]] = {}


def breaks(item: str, *beside: str) -> Callable[[Case], Case]:
    """The item that is red, and those that cannot be otherwise then."""

    def remember(case: Case) -> Case:
        CASES[case.__name__] = (item, case, frozenset(beside))
        return case

    return remember


# -- the desk --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module", autouse=True)
def _models_read_once() -> Iterator[None]:
    """Half of doctor's time is botocore reading its models; each session of boto3 reads them anew."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(botocore.session, "create_loader", cache(botocore.session.create_loader))
        yield


@pytest.fixture(scope="module")
def ops(site: Site) -> Iterator[str]:
    """The ops database of these tests, in which somebody has looked at the application."""
    with site.admin("postgres") as admin:
        admin.execute(f"CREATE DATABASE {OPS} OWNER payme_ops")
    conninfo = site.world.conninfo("payme_ops", OPS)
    opsdb.migrate(conninfo)
    samples.store(conninfo, "production", Sample(utc_now() + timedelta(hours=1), State.HEALTHY, 5.0, {}))
    yield conninfo
    with site.admin("postgres") as admin:
        admin.execute(f"DROP DATABASE {OPS} WITH (FORCE)")


@pytest.fixture(scope="module")
def around(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[StandIn, StandIn, StandIn, list[AirflowState]]]:
    """Slack with a message in the channel, Sentry, Airflow; the state of the last is the newest of the list."""
    folder, states = tmp_path_factory.mktemp("around"), [AirflowState()]

    def airflow(port: int, state: Path) -> Any:
        server = airflow_stand_in.make_server(states[0], port, state)
        server.route = lambda request: states[-1].route(request)
        return server

    with (
        standins.slack_stand_in(folder) as slack,
        standins.served(sentry.make_server, folder / "sentry.jsonl") as sentry_,
        standins.served(airflow, folder / "airflow") as airflow_,
    ):
        said = {"channel": CHANNEL, "text": "hello"}
        assert call("POST", f"{slack.url}/api/chat.postMessage", said, token=SLACK_TOKEN)[1]["ok"]
        yield slack, sentry_, airflow_, states


@pytest.fixture
def desk(
    installation: Installation,
    around: tuple[StandIn, StandIn, StandIn, list[AirflowState]],
    ops: str,
    tmp_path: Path,
) -> Desk:
    """Everything is right."""
    assert ops
    slack, sentry_, airflow, states = around
    states.append(AirflowState())
    call("POST", f"{slack.url}/access", {})
    call("POST", f"{sentry_.url}/access", {"scopes": {SENTRY_TOKEN: ["*"]}})
    files = {"slack": SLACK_TOKEN, "sentry": SENTRY_TOKEN, "airflow": airflow_stand_in.PASSWORD}
    files["dsn"] = f"{sentry_.url.replace('//', '//key@')}/1"
    for name, text in files.items():
        (tmp_path / name).write_text(f"{text}\n")
    prefix = f"payme/{installation.bucket_name}/connections"
    made = Desk(installation, tmp_path, slack, sentry_, states[-1], prefix)
    installation.connect_as("payme_ops_db", dbname=OPS)
    values = {
        "SLACK__CHANNEL": CHANNEL,
        "SLACK__API_URL": f"{slack.url}/api/",
        "SLACK__TOKEN_FILE": tmp_path / "slack",
        "SENTRY__URL": sentry_.url,
        "SENTRY__TOKEN_FILE": tmp_path / "sentry",
        "WATCHDOG__SENTRY_DSN_FILE": tmp_path / "dsn",
        "WATCHDOG__AIRFLOW_URL": airflow.url,
        "WATCHDOG__AIRFLOW_LOGIN": airflow_stand_in.LOGIN,
        "WATCHDOG__AIRFLOW_PASSWORD_FILE": tmp_path / "airflow",
        "MONITORING__ENDPOINTS": "production=http://127.0.0.1:1",
    }
    for name, value in values.items():
        installation.set(name, str(value))
    installation.set_all(
        {
            "AIRFLOW__WORKERS__SECRETS_BACKEND": secrets.BACKEND,
            "AIRFLOW__WORKERS__SECRETS_BACKEND_KWARGS": json.dumps(
                {"connections_prefix": prefix, "region_name": secrets.REGION, "endpoint_url": made.url}
            ),
            "AWS_ACCESS_KEY_ID": "sandbox",
            "AWS_SECRET_ACCESS_KEY": "sandbox",
        }
    )
    for name in ("payme_ops_db", "payme_slack"):
        made.secret(name, CONNECTION)
    for bucket, client in (
        (installation.bucket_name, made.site.store),
        (installation.copies_name, made.site.copy_store),
    ):
        client.put_bucket_lifecycle_configuration(Bucket=bucket, LifecycleConfiguration={"Rules": LIFECYCLE})  # type: ignore[typeddict-item]
    if not sentry_.get("/items.json"):
        assert CliRunner().invoke(app, ["sentry", "apply"]).exit_code == 0
    return made


def red(found: dict[str, Evidence]) -> dict[str, str]:
    return {name: plain(item.measured) for name, item in found.items() if item.verdict is not Verdict.PASS}


# -- the database and its roles ----------------------------------------------------------------------------------------


@breaks("database")
def another_database(desk: Desk) -> Generator[None, Evidence, None]:
    desk.installation.connect_as("payme_db_read", dbname="postgres")
    red = yield
    assert "make PAYME_OPS__BACKUP__DATABASE and the connection payme_db_read name the same" in red.remedy
    desk.installation.connect_as("payme_db_read", dbname=settings.load().backup.database)
    yield


@breaks("client_tools")
def no_client_tools(desk: Desk) -> Generator[None, Evidence, None]:
    desk.set("POSTGRES__CLIENT_DIRS", "/nowhere")
    red = yield
    assert "add their folder to PAYME_OPS__POSTGRES__CLIENT_DIRS" in red.remedy
    desk.set("POSTGRES__CLIENT_DIRS", f"/nowhere,{desk.site.cluster.bin_dir}")
    yield


def in_database(do: str, mend: str, remedy: str) -> Case:
    """A statement, and the one that the remedy asks for; run once more at the end, if the test fails between."""

    def case(desk: Desk) -> Generator[None, Evidence, None]:
        try:
            desk.sql(do)
            red = yield
            assert remedy in red.remedy
            desk.sql(mend)
            yield
        finally:
            desk.sql(mend)

    return case


CASES["row_level_security"] = (
    "readable",
    in_database("ALTER ROLE payme_db_read NOBYPASSRLS", "ALTER ROLE payme_db_read BYPASSRLS", "BYPASSRLS"),
    frozenset(),
)
CASES["large_objects_out_of_reach"] = (
    "readable",
    in_database(
        "ALTER ROLE payme_db_read RESET lo_compat_privileges",
        "ALTER ROLE payme_db_read SET lo_compat_privileges = on",
        "lo_compat_privileges",
    ),
    frozenset(),
)
CASES["a_role_that_inserts"] = (
    "read_only",
    in_database(
        "GRANT INSERT ON merchants TO payme_db_read", "REVOKE INSERT ON merchants FROM payme_db_read", "revoke it"
    ),
    frozenset(),
)
CASES["a_role_that_creates_databases"] = (
    "read_only",
    in_database("ALTER ROLE payme_db_read CREATEDB", "ALTER ROLE payme_db_read NOCREATEDB", "revoke it"),
    frozenset(),
)


def not_granted(statement: str, missing: str) -> Case:
    """Something that a file of include/sql/grants/ gives is taken away; the file is run again."""

    def case(desk: Desk) -> Generator[None, Evidence, None]:
        files = ""
        try:
            dbname = "postgres" if "payme_restore" in statement else "payme"
            desk.sql(statement, dbname=dbname)
            red = yield
            files = red.remedy
            assert (red.measured["missing"], red.measured["too much"]) == ([missing], [])
            assert files.startswith("grant what is missing as include/sql/grants/")
            desk.grants(files)
            yield
        finally:
            desk.grants(files)

    return case


def granted_too_much(statement: str, role: str, too_much: str) -> Case:
    """Something is granted that no file gives; it is revoked."""

    def case(desk: Desk) -> Generator[None, Evidence, None]:
        desk.sql(statement)
        red = yield
        assert (red.measured["missing"], red.measured["too much"]) == ([], [too_much])
        assert red.remedy == "revoke what is too much"
        desk.revoke(red, role)
        yield

    return case


for name, item, case in (
    (
        "statistics_out_of_reach",
        "read_role",
        not_granted("REVOKE pg_read_all_stats FROM payme_db_read", "member of pg_read_all_stats"),
    ),
    (
        "rows_in_the_servers_log",
        "read_role",
        not_granted("ALTER ROLE payme_db_read SET log_error_verbosity = 'verbose'", "log_error_verbosity = terse"),
    ),
    (
        "a_reader_that_is_somebody_else_too",
        "read_role",
        granted_too_much("GRANT payme_reporting TO payme_db_read", "payme_db_read", "member of payme_reporting"),
    ),
    (
        "an_owner_that_restores_cannot_hand_back_to",
        "restore_role",
        not_granted("REVOKE payme_ledger FROM payme_db_restore", "member of payme_ledger"),
    ),
    (
        "settings_that_a_swap_cannot_copy",
        "restore_role",
        not_granted(
            "REVOKE EXECUTE ON FUNCTION payme_restore.copy_settings FROM payme_db_restore",
            "EXECUTE on payme_restore.copy_settings",
        ),
    ),
    (
        "a_restorer_that_makes_roles",
        "restore_role",
        granted_too_much("ALTER ROLE payme_db_restore CREATEROLE", "payme_db_restore", "CREATEROLE"),
    ),
    (
        "triggers_that_the_backfill_fires",
        "migrate_role",
        not_granted(
            "REVOKE SET ON PARAMETER session_replication_role FROM payme_db_migrate", "SET on session_replication_role"
        ),
    ),
    (
        "a_migrator_that_reads_everything",
        "migrate_role",
        granted_too_much(
            "GRANT pg_read_all_data TO payme_db_migrate", "payme_db_migrate", "member of pg_read_all_data"
        ),
    ),
    (
        "a_desk_that_makes_databases",
        "ops_role",
        granted_too_much("ALTER ROLE payme_ops CREATEDB", "payme_ops", "CREATEDB"),
    ),
):
    CASES[name] = (item, case, frozenset())


@breaks("database_clock")
def a_database_whose_clock_is_wrong(desk: Desk) -> Generator[None, Evidence, None]:
    reset = "ALTER ROLE payme_db_read RESET search_path", "DROP SCHEMA IF EXISTS wrong CASCADE"
    try:
        desk.sql(
            "CREATE SCHEMA wrong",
            "GRANT USAGE ON SCHEMA wrong TO payme_db_read",
            "CREATE FUNCTION wrong.clock_timestamp() RETURNS timestamptz LANGUAGE sql"
            " AS $$SELECT pg_catalog.clock_timestamp() - interval '5 min'$$",
            "ALTER ROLE payme_db_read SET search_path = wrong, pg_catalog, public",
        )
        red = yield
        assert abs(red.measured["seconds"] - 300) < 10
        assert "set the clocks of the database's server" in red.remedy
        desk.sql(*reset)
        yield
    finally:
        desk.sql(*reset)


@breaks("ops_database", "lease", "last_look")
def an_ops_database_without_schema(desk: Desk) -> Generator[None, Evidence, None]:
    desk.sql("DROP DATABASE IF EXISTS bare", "CREATE DATABASE bare OWNER payme_ops", dbname="postgres")
    try:
        desk.installation.connect_as("payme_ops_db", dbname="bare")
        red = yield
        run_command(red.remedy)
        samples.store(
            desk.site.world.conninfo("payme_ops", "bare"), "production", Sample(utc_now(), State.HEALTHY, 5.0, {})
        )
        yield
    finally:
        desk.sql("DROP DATABASE bare WITH (FORCE)", dbname="postgres")


def run_command(remedy: str) -> None:
    """Run the command of ours that a remedy names."""
    (line,) = re.findall(r"`python -m payme_ops ([^`]+)`", remedy)
    ended = CliRunner().invoke(app, shlex.split(line))
    assert ended.exit_code == 0, ended.output


# -- buckets and keys --------------------------------------------------------------------------------------------------


def through_proxy(method: str, contains: str, *change: str, remedy: str) -> Case:
    """A store that is not what it should be; another one is used, as the remedy says."""

    def case(desk: Desk) -> Generator[None, Evidence, None]:
        with proxy_before(desk.site.world.ports["s3"]) as proxy:
            if len(change) == 1:
                proxy.without_header(method, contains, *change)
            else:
                proxy.with_answer_header(method, contains, *change)
            desk.installation.reach_store_at(proxy.url)
            red = yield
            assert remedy in red.remedy
            desk.installation.reach_store_at(desk.url)
            yield

    return case


CASES["a_store_that_overwrites"] = (
    "written_once",
    through_proxy("PUT", "payme-ops/probe", "If-None-Match", remedy="use one that honours it"),
    frozenset({"copy_written_once"}),
)
_LONG_AGO = format_datetime(datetime.now(UTC) - timedelta(days=10), usegmt=True)
CASES["a_clock_that_is_wrong"] = (
    "clock",
    through_proxy("HEAD", "/", "Date", _LONG_AGO, remedy="set this machine's clock (NTP)"),
    frozenset(),
)


def make_bucket(desk: Desk, *, region: str = "af-south-1", lock: bool = True) -> str:
    """Another bucket, right but for what the arguments say."""
    name = f"{desk.installation.bucket_name}-other"
    client = s3.client(desk.url, region)
    place: Any = {"LocationConstraint": region}
    client.create_bucket(Bucket=name, CreateBucketConfiguration=place, ObjectLockEnabledForBucket=lock)
    rule: Any = {"ApplyServerSideEncryptionByDefault": {"SSEAlgorithm": "AES256"}}
    client.put_bucket_encryption(Bucket=name, ServerSideEncryptionConfiguration={"Rules": [rule]})
    return name


@breaks("bucket")
def a_bucket_in_another_region(desk: Desk) -> Generator[None, Evidence, None]:
    desk.set("BACKUP__BUCKET", make_bucket(desk, region="eu-central-1"))
    red = yield
    assert "use a bucket in that region" in red.remedy
    desk.set("BACKUP__BUCKET", desk.installation.bucket_name)
    yield


@breaks("copy_bucket")
def a_copy_in_the_same_region(desk: Desk) -> Generator[None, Evidence, None]:
    desk.set("BACKUP__COPY_BUCKET", make_bucket(desk))
    red = yield
    assert "use a bucket in that region" in red.remedy
    desk.set("BACKUP__COPY_BUCKET", desk.installation.copies_name)
    yield


@breaks("bucket_encryption")
def a_bucket_without_encryption(desk: Desk) -> Generator[None, Evidence, None]:
    name, client = desk.installation.bucket_name, desk.site.store
    client.delete_bucket_encryption(Bucket=name)
    red = yield
    assert "turn on default encryption of the bucket" in red.remedy
    rule: Any = {"ApplyServerSideEncryptionByDefault": {"SSEAlgorithm": "AES256"}}
    client.put_bucket_encryption(Bucket=name, ServerSideEncryptionConfiguration={"Rules": [rule]})
    yield


@breaks("bucket_versioning")
def a_bucket_without_versions(desk: Desk) -> Generator[None, Evidence, None]:
    name = make_bucket(desk, lock=False)
    desk.set("BACKUP__BUCKET", name)
    red = yield
    assert "turn on versioning" in red.remedy
    desk.site.store.put_bucket_versioning(Bucket=name, VersioningConfiguration={"Status": "Enabled"})
    yield


def lifecycle(which: str, rule: dict[str, Any], says: str) -> Case:
    """A rule that harms what counts now, beside those that are right."""

    def case(desk: Desk) -> Generator[None, Evidence, None]:
        copies = which == "copy_"
        bucket = desk.installation.copies_name if copies else desk.installation.bucket_name
        client: Any = desk.site.copy_store if copies else desk.site.store
        harm = {"ID": "harm", "Status": "Enabled", "Filter": {"Prefix": "postgres/"}, **rule}
        rules = {"Rules": [*LIFECYCLE, harm]}
        client.put_bucket_lifecycle_configuration(Bucket=bucket, LifecycleConfiguration=rules)
        red = yield
        assert red.measured == {"rules": [says]}
        assert "take them out of the bucket" in red.remedy
        client.put_bucket_lifecycle_configuration(Bucket=bucket, LifecycleConfiguration={"Rules": LIFECYCLE})
        yield

    return case


CASES["a_rule_that_expires_backups"] = (
    "lifecycle",
    lifecycle("", {"Expiration": {"Days": 30}}, "harm expires objects"),
    frozenset(),
)
CASES["a_rule_that_archives_backups"] = (
    "copy_lifecycle",
    lifecycle(
        "copy_", {"Transitions": [{"Days": 30, "StorageClass": "GLACIER"}]}, "harm moves objects to another class"
    ),
    frozenset(),
)


@breaks("recipients")
def one_recipient_twice(desk: Desk) -> Generator[None, Evidence, None]:
    right = os.environ["PAYME_OPS__BACKUP__RECIPIENT_DRILL"]
    desk.set("BACKUP__RECIPIENT_DRILL", os.environ["PAYME_OPS__BACKUP__RECIPIENT_RECOVERY"])
    red = yield
    assert "recovery and drill are two keys" in red.remedy
    desk.set("BACKUP__RECIPIENT_DRILL", right)
    yield


@breaks("signing_key")
def a_signing_key_nobody_trusts(desk: Desk) -> Generator[None, Evidence, None]:
    desk.set("BACKUP__TRUSTED_KEYS", "q83vEjRWeJCrze8SNFZ4kKvN7xI0VniQq83vEjRWeJA=")
    red = yield
    assert "add it to PAYME_OPS__BACKUP__TRUSTED_KEYS" in red.remedy
    desk.set("BACKUP__TRUSTED_KEYS", f"{os.environ['PAYME_OPS__BACKUP__TRUSTED_KEYS']},{red.measured['public_key']}")
    yield


@breaks("kms_key")
def a_kms_key_that_is_off(desk: Desk) -> Generator[None, Evidence, None]:
    client = desk.aws("kms")
    key = client.create_key(KeyUsage="ENCRYPT_DECRYPT")["KeyMetadata"]["KeyId"]
    client.disable_key(KeyId=key)
    desk.set("BACKUP__KMS_KEY_ID", key)
    red = yield
    assert "`aws kms enable-key`" in red.remedy
    client.enable_key(KeyId=key)
    yield


@breaks("kms_key")
def a_kms_key_that_is_to_be_deleted(desk: Desk) -> Generator[None, Evidence, None]:
    client = desk.aws("kms")
    key = client.create_key(KeyUsage="ENCRYPT_DECRYPT")["KeyMetadata"]["KeyId"]
    client.schedule_key_deletion(KeyId=key, PendingWindowInDays=7)
    desk.set("BACKUP__KMS_KEY_ID", key)
    red = yield
    for line in ("`aws kms cancel-key-deletion`", "`aws kms enable-key`"):
        assert line in red.remedy
    client.cancel_key_deletion(KeyId=key)
    client.enable_key(KeyId=key)
    yield


@breaks("kms_key")
def a_kms_key_of_another_region(desk: Desk) -> Generator[None, Evidence, None]:
    desk.set("BACKUP__KMS_KEY_ID", "arn:aws:kms:eu-west-1:123456789012:key/1234abcd-12ab-34cd-56ef-1234567890ab")
    red = yield
    assert "name a key of that region in PAYME_OPS__BACKUP__KMS_KEY_ID" in red.remedy
    desk.set("BACKUP__KMS_KEY_ID", desk.aws("kms").create_key(KeyUsage="ENCRYPT_DECRYPT")["KeyMetadata"]["Arn"])
    yield


@breaks("kms_use")
def a_kms_key_that_the_writer_may_not_use(desk: Desk) -> Generator[None, Evidence, None]:
    desk.set("BACKUP__KMS_KEY_ID", desk.aws("kms").create_key(KeyUsage="ENCRYPT_DECRYPT")["KeyMetadata"]["KeyId"])
    with proxy_before(desk.site.world.ports["s3"]) as proxy:
        proxy.answer("PUT", "payme-ops/probe/kms", 403, "AccessDenied")  # as S3 says it in KMS's name
        desk.installation.reach_store_at(proxy.url)
        red = yield
        assert "allow kms:GenerateDataKey and kms:Decrypt on it to payme_s3_write" in red.remedy
        proxy.clear()
        yield


# -- connections and secrets -------------------------------------------------------------------------------------------


def put_in(desk: Desk, red: Evidence) -> None:
    assert "put in what is missing, in the form of docs/secrets.md" in red.remedy
    for name in (*red.measured["missing"], *red.measured["no connection"]):
        desk.secret(name, CONNECTION)


@breaks("kept_connections")
def a_connection_that_is_missing(desk: Desk) -> Generator[None, Evidence, None]:
    desk.part = Part.DAG_PROCESSOR
    desk.aws("secretsmanager").delete_secret(SecretId=f"{desk.prefix}/payme_slack", ForceDeleteWithoutRecovery=True)
    red = yield
    assert red.measured == {"missing": ["payme_slack"], "no connection": []}
    put_in(desk, red)
    yield


@breaks("kept_connections")
def a_connection_that_is_none(desk: Desk) -> Generator[None, Evidence, None]:
    desk.secret("payme_db_read", "postgres never-shown-anywhere")
    desk.secret("payme_api", {**CONNECTION, "dbname": "payme"})  # Airflow would read it as nothing
    red = yield
    assert red.measured == {"missing": [], "no connection": ["payme_db_read", "payme_api"]}
    put_in(desk, red)
    yield


@breaks("kept_connections")
def a_file_of_connections_that_is_not_there(desk: Desk) -> Generator[None, Evidence, None]:
    desk.part, place = Part.DAG_PROCESSOR, desk.folder / "connections.json"
    backend = "airflow.secrets.local_filesystem.LocalFilesystemBackend"
    desk.installation.set_all(
        {
            "AIRFLOW__WORKERS__SECRETS_BACKEND": backend,
            "AIRFLOW__WORKERS__SECRETS_BACKEND_KWARGS": json.dumps({"connections_file_path": str(place)}),
        }
    )
    red = yield
    assert "make it as docs/secrets.md says" in red.remedy
    place.write_text(json.dumps({"payme_ops_db": CONNECTION, "payme_slack": CONNECTION}))
    yield


@breaks("airflow_secrets")
def a_secret_of_airflows_that_is_missing(desk: Desk) -> Generator[None, Evidence, None]:
    kwargs = {"config_prefix": desk.prefix, "region_name": secrets.REGION, "endpoint_url": desk.url}
    desk.installation.set_all(
        {
            "AIRFLOW__API_AUTH__JWT_SECRET_SECRET": "jwt_secret",
            "AIRFLOW__SECRETS__BACKEND": secrets.BACKEND,
            "AIRFLOW__SECRETS__BACKEND_KWARGS": json.dumps({"connections_prefix": None, **kwargs}),
        }
    )
    red = yield
    assert f"put them below {desk.prefix}" in red.remedy
    for name in red.measured["not to be read"]:
        desk.secret(name, "never-shown-anywhere")
    yield


@breaks("application_environment")
def a_variable_of_the_application_that_is_a_placeholder(desk: Desk) -> Generator[None, Evidence, None]:
    values = app_secrets.values("production", desk.site.world.secrets)
    kept = secrets.at(desk.url)
    try:
        kept.put("payme/production/secrets", {**values, "JWT_SECRET": "changeme"})
        red = yield
        assert red.remedy
        assert {one["variable"] for one in red.measured["problems"]} == {"JWT_SECRET"}
        kept.put("payme/production/secrets", values)
        yield
    finally:
        kept.put("payme/production/secrets", values)


# -- Slack and Sentry --------------------------------------------------------------------------------------------------


@breaks("slack_token")
def a_token_that_slack_does_not_know(desk: Desk) -> Generator[None, Evidence, None]:
    (desk.folder / "slack").write_text("revoked\n")
    red = yield
    assert "put a bot token that counts into PAYME_OPS__SLACK__TOKEN_FILE" in red.remedy
    (desk.folder / "slack").write_text(SLACK_TOKEN)
    yield


@breaks("slack_token")
def a_bot_that_cannot_read_the_channel(desk: Desk) -> Generator[None, Evidence, None]:
    call("POST", f"{desk.slack.url}/access", {"scopes": ["chat:write"]})
    red = yield
    assert "give the app these scopes" in red.remedy
    (missing,) = red.measured["missing"]
    call("POST", f"{desk.slack.url}/access", {"scopes": ["chat:write", missing.split(" or ")[0]]})
    yield


@breaks("slack_channel")
def a_bot_that_is_not_in_the_channel(desk: Desk) -> Generator[None, Evidence, None]:
    call("POST", f"{desk.slack.url}/access", {"member": False})
    red = yield
    assert f"invite the bot into {CHANNEL}" in red.remedy
    call("POST", f"{desk.slack.url}/access", {"member": True})
    yield


@breaks("sentry_dsn")
def a_dsn_without_a_project(desk: Desk) -> Generator[None, Evidence, None]:
    right = (desk.folder / "dsn").read_text()
    (desk.folder / "dsn").write_text("https://sentry.io/never-shown-anywhere\n")
    red = yield
    assert "copy the DSN from Sentry" in red.remedy
    (desk.folder / "dsn").write_text(right)
    yield


@breaks("sentry_access")
def a_token_that_may_not_read_rules(desk: Desk) -> Generator[None, Evidence, None]:
    call("POST", f"{desk.sentry.url}/access", {"scopes": {SENTRY_TOKEN: ["org:read"]}})
    red = yield
    (scope,) = re.findall(r"give the token (\S+), and its integration the project", red.remedy)
    call("POST", f"{desk.sentry.url}/access", {"scopes": {SENTRY_TOKEN: ["org:read", scope]}})
    yield


@breaks("sentry_access")
def a_project_that_sentry_does_not_know(desk: Desk) -> Generator[None, Evidence, None]:
    right = os.environ["PAYME_OPS__SENTRY__ORGANIZATION"]
    desk.set("SENTRY__ORGANIZATION", "somebody-else")
    red = yield
    assert "compare them with Sentry's settings" in red.remedy
    desk.set("SENTRY__ORGANIZATION", right)
    yield


@breaks("sentry_rules")
def a_rule_that_somebody_removed(desk: Desk) -> Generator[None, Evidence, None]:
    url = f"{desk.sentry.url}/api/0/organizations/payme/workflows/"
    rule = call("GET", url, token=SENTRY_TOKEN)[1][0]
    assert call("DELETE", f"{url}{rule['id']}/", token=SENTRY_TOKEN)[0] == 204
    red = yield
    assert red.measured["to do"] == [f"create {rule['name']}"]
    run_command(red.remedy)
    yield


# -- Airflow -----------------------------------------------------------------------------------------------------------


@breaks("airflow_health")
def a_scheduler_that_stands_still(desk: Desk) -> Generator[None, Evidence, None]:
    desk.airflow.silent = {"scheduler"}
    red = yield
    assert "start what is silent again: scheduler" in red.remedy
    desk.airflow.silent = set()
    yield


@breaks("airflow_login")
def a_password_that_was_changed(desk: Desk) -> Generator[None, Evidence, None]:
    (desk.folder / "airflow").write_text("another-password\n")
    red = yield
    assert "compare the connection's address and token" in red.remedy
    (desk.folder / "airflow").write_text(airflow_stand_in.PASSWORD)
    yield


def set_pools(desk: Desk, red: Evidence) -> None:
    for name, slots in re.findall(r"`airflow pools set (\S+) (\d+) desk`", red.remedy):
        desk.airflow.pools[name] = int(slots)


@breaks("airflow_pools")
def a_pool_that_is_missing(desk: Desk) -> Generator[None, Evidence, None]:
    desk.airflow.wanted["primary"] = 1
    red = yield
    assert red.measured["missing"] == ["primary"]
    set_pools(desk, red)
    yield


@breaks("airflow_pools")
def a_pool_that_is_too_small(desk: Desk) -> Generator[None, Evidence, None]:
    desk.airflow.pools["default_pool"] = 2
    red = yield
    assert red.measured["too small"] == {"default_pool": "2 of 7"}
    set_pools(desk, red)
    yield


@breaks("stored_connections")
def a_connection_in_airflows_database(desk: Desk) -> Generator[None, Evidence, None]:
    desk.airflow.connections.append("payme_db_read")
    red = yield
    assert "`airflow connections delete NAME`" in red.remedy
    for name in red.measured["connections"]:
        desk.airflow.connections.remove(name)
    yield


@breaks("airflow_import_errors")
def a_file_that_is_no_dag(desk: Desk) -> Generator[None, Evidence, None]:
    desk.airflow.broken_files.append("backup_hourly.py")
    red = yield
    assert "mend or remove the file" in red.remedy
    for name in red.measured["files"]:
        desk.airflow.broken_files.remove(name)
    yield


def unpause(desk: Desk, red: Evidence) -> None:
    for name in re.findall(r"`airflow dags unpause (\w+)`", red.remedy):
        desk.airflow.dags[name]["is_paused"] = False


@breaks("airflow_paused")
def backups_that_are_paused(desk: Desk) -> Generator[None, Evidence, None]:
    desk.airflow.dags["backup_daily"]["is_paused"] = True
    desk.airflow.dags["backup_restore"]["is_paused"] = True  # begins by hand only
    red = yield
    assert red.measured == {"paused": ["backup_daily"], "missing": []}
    unpause(desk, red)
    yield


@breaks("airflow_paused")
def a_dag_that_airflow_does_not_know(desk: Desk) -> Generator[None, Evidence, None]:
    away = desk.airflow.dags.pop("backup_restore_test")
    red = yield
    assert "see why the file of backup_restore_test is not read" in red.remedy
    desk.airflow.dags["backup_restore_test"] = away
    yield


@breaks("incident_runs")
def nobody_who_looks(desk: Desk) -> Generator[None, Evidence, None]:
    desk.airflow.dags["incident"]["is_paused"] = True
    red = yield
    unpause(desk, red)
    yield


@breaks("airflow_queues")
def a_queue_without_a_worker(desk: Desk) -> Generator[None, Evidence, None]:
    desk.airflow.waiting = {"restore": timedelta(minutes=11), "default": timedelta(minutes=9)}
    red = yield
    assert "see that a worker of the queue restore lives" in red.remedy
    desk.airflow.waiting = {}
    yield


# -- all of it ---------------------------------------------------------------------------------------------------------


def rows() -> dict[str, str]:
    """docs/doctor.md: the row of each item."""
    text = (PROJECT / "docs" / "doctor.md").read_text().split("## Every item")[1]
    named = [(re.findall(r"`(\w+)`", row.split("|")[1]), row) for row in text.splitlines() if row.startswith("| `")]
    return {item: row for items, row in named for item in items}


def test_a_desk_that_is_right_is_green_and_each_of_its_items_is_in_the_page(desk: Desk, tmp_path: Path) -> None:
    """With all that there can be: a KMS key, secrets of Airflow's, an API that keeps the contract."""
    desk.set("BACKUP__KMS_KEY_ID", desk.aws("kms").create_key(KeyUsage="ENCRYPT_DECRYPT")["KeyMetadata"]["KeyId"])
    kwargs = {"config_prefix": desk.prefix, "region_name": secrets.REGION, "endpoint_url": desk.url}
    desk.secret("jwt_secret", "never-shown-anywhere")
    desk.installation.set_all(
        {
            "AIRFLOW__API_AUTH__JWT_SECRET_SECRET": "jwt_secret",
            "AIRFLOW__SECRETS__BACKEND_KWARGS": json.dumps(kwargs),
        }
    )
    with serving_api(desk, tmp_path):
        found = command.examine(settings.load(), "test", part=None, api=True, api_all=True)
    assert {item.item: plain(item.measured) for item in found if item.verdict is not Verdict.PASS} == {}
    assert command.exit_code(found) == 0
    assert "never-shown-anywhere" not in str(found)
    items = [re.sub("^api_(production|staging)_", "api_", item.item) for item in found]
    assert set(items) == set(rows())
    changed = [item.item for item in found if item.item.endswith(("stop_and_start", "freeze", "unknown_commit"))]
    assert {name.split("_")[1] for name in changed} == {"staging"}


API_DATABASE = "payme_doctor_api"


@contextmanager
def serving_api(desk: Desk, folder: Path) -> Iterator[StandIn]:
    """One API, as production's and as staging's; on a copy of PayMe's database: other tests count on theirs."""
    desk.site.copy_payme(API_DATABASE)
    try:
        with standins.payme_api_stand_in(folder, desk.site.world.conninfo("payme_app", API_DATABASE)) as (running, api):
            (desk.folder / "api").write_text(api.token)
            for name in ("API", "STAGING_API"):
                desk.set(f"WATCHDOG__{name}_URL", api.url)
                desk.set(f"WATCHDOG__{name}_TOKEN_FILE", str(desk.folder / "api"))
            yield running
    finally:
        with desk.site.admin("postgres") as admin:
            admin.execute(f"DROP DATABASE {API_DATABASE} WITH (FORCE)")


def test_an_api_that_is_away_is_one_line_and_one_without_a_token_says_so(desk: Desk, tmp_path: Path) -> None:
    with serving_api(desk, tmp_path) as running:
        running.fail(503)
        desk.set("WATCHDOG__STAGING_API_TOKEN_FILE", "/nowhere/token")
        found = {one.item: one for one in command.examine(settings.load(), "test", api=True) if "api_" in one.item}
        assert list(found) == ["api_production_token", "api_production_health", "api_staging_token"]
        assert found["api_production_health"].verdict is Verdict.INCONCLUSIVE
        assert "correct PAYME_OPS__WATCHDOG__STAGING_API_TOKEN_FILE" in found["api_staging_token"].remedy


@pytest.mark.parametrize("what", CASES)
def test_what_is_broken_is_red_alone_and_its_remedy_turns_it_green(desk: Desk, what: str) -> None:
    item, case, beside = CASES[what]
    running = case(desk)
    try:
        next(running)
        found = desk.doctor()
        assert set(red(found)) == {item} | beside, red(found)
        assert found[item].verdict is Verdict.FAIL
        assert command.exit_code(desk.said) == 3
        assert "never-shown-anywhere" not in str(desk.said)
        for line in re.findall(r"`([^`]+)`", found[item].remedy):  # the page names each command that it names
            assert " ".join(line.split()[:3]) in rows()[item]
        running.send(found[item])
        assert red(desk.doctor()) == {}
    finally:
        running.close()


# -- machines that do not have every part ------------------------------------------------------------------------------


def test_what_a_machine_has_no_door_to_is_left_out_and_not_red(desk: Desk, tmp_path: Path) -> None:
    """A machine that has the ops database alone."""
    service = f"[payme_ops_db]\nhost=127.0.0.1\nport={desk.site.cluster.port}\ndbname={OPS}\nuser=payme_ops\n"
    (tmp_path / "services").write_text(service)
    (tmp_path / "nothing").write_text("")
    gone = ("SLACK__TOKEN_FILE", "SENTRY__TOKEN_FILE", "WATCHDOG__SENTRY_DSN_FILE", "WATCHDOG__AIRFLOW_URL")
    for name in gone:
        desk.installation.set(name, None)
    desk.installation.set("MONITORING__ENDPOINTS", None)
    desk.installation.set_all(
        {
            "PGSERVICEFILE": str(tmp_path / "services"),
            "AWS_CONFIG_FILE": str(tmp_path / "nothing"),
            "AWS_SHARED_CREDENTIALS_FILE": str(tmp_path / "nothing"),
            "AIRFLOW__WORKERS__SECRETS_BACKEND": None,
        }
    )
    found = desk.doctor()
    assert list(found) == ["doors", "ops_role", "monitored_endpoints"]
    assert found["doors"].verdict is Verdict.INCONCLUSIVE
    assert found["doors"].measured["here"] == ["payme_ops_db"]
    assert {"payme_db_read", "payme_s3_write", "kms", "slack", "airflow"} <= set(found["doors"].measured["not here"])
    assert [name for name, one in found.items() if one.verdict is not Verdict.PASS] == ["doors"]
    assert command.exit_code(desk.said) == 6


@pytest.mark.parametrize("service", ["airflow", "slack", "sentry"])
def test_a_service_that_is_away_is_inconclusive(desk: Desk, service: str) -> None:
    stand_in = {"slack": desk.slack, "sentry": desk.sentry}.get(service)
    if stand_in is None:
        desk.set("WATCHDOG__AIRFLOW_URL", "http://127.0.0.1:1")
    else:
        stand_in.fail(503)
    try:
        found = desk.doctor()
    finally:
        if stand_in:
            stand_in.fail(None)
    items = {"airflow": "airflow_health", "slack": "slack_token", "sentry": "sentry_access"}
    assert {name: one.verdict for name, one in found.items() if one.verdict is not Verdict.PASS} == {
        items[service]: Verdict.INCONCLUSIVE
    }
    assert command.exit_code(desk.said) == 6


def test_an_account_that_may_not_see_connections_is_inconclusive(desk: Desk) -> None:
    desk.airflow.may_see_connections = False
    found = desk.doctor()
    assert list(red(found)) == ["stored_connections"]
    assert found["stored_connections"].verdict is Verdict.INCONCLUSIVE
    assert "can_read on Connections" in found["stored_connections"].remedy


def test_a_channel_that_is_only_named_is_inconclusive(desk: Desk) -> None:
    desk.set("SLACK__CHANNEL", "somewhere")
    found = desk.doctor()
    assert list(red(found)) == ["slack_channel"]
    assert found["slack_channel"].verdict is Verdict.INCONCLUSIVE


def test_a_part_needs_its_connections(desk: Desk) -> None:
    needed = {"payme_db_restore", "payme_s3_restore"}
    assert desk.doctor()["kept_connections"].verdict is Verdict.PASS  # nobody said what runs here
    desk.part = Part.RESTORE
    assert set(desk.doctor()["kept_connections"].measured["missing"]) == needed
    for name in needed:
        desk.secret(name, CONNECTION)
    assert desk.doctor()["kept_connections"].verdict is Verdict.PASS


@pytest.mark.parametrize(
    ("backend", "kwargs"),
    [
        ("SecretsManagerBackend", {"connections_prefix": "payme/elsewhere", "region_name": secrets.REGION}),
        ("LocalFilesystemBackend", {"connections_file_path": "/nowhere/connections.json"}),
    ],
)
def test_where_no_task_runs_there_need_be_no_connection(desk: Desk, backend: str, kwargs: dict[str, str]) -> None:
    desk.installation.set_all(
        {
            "AIRFLOW__WORKERS__SECRETS_BACKEND": f"airflow.{backend}",
            "AIRFLOW__WORKERS__SECRETS_BACKEND_KWARGS": json.dumps({**kwargs, "endpoint_url": desk.url}),
        }
    )
    found = desk.doctor()
    assert red(found).keys() == {"kept_connections"}
    assert found["kept_connections"].verdict is Verdict.INCONCLUSIVE
    desk.part = Part.DAG_PROCESSOR
    assert desk.doctor()["kept_connections"].verdict is Verdict.FAIL
