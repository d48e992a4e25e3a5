"""The policies of docs/iam: what the desk does needs each permission of them, and no other. The sandbox judges."""

import json
import re
from dataclasses import replace
from datetime import timedelta
from functools import cache
from typing import Any

import boto3
import pytest
from botocore.exceptions import ClientError

from payme_ops.backup import archive, catalogue, copy, event_log, kms, preflight, restore, retain, store, verification
from payme_ops.backup.manifest import Manifest, Tier
from payme_ops.cli import doors
from payme_ops.cli.kept_connections import NEEDED
from payme_ops.foundation import record
from payme_ops.foundation.clock import utc_now
from payme_ops.foundation.objectstore import MultipartWriter, profile_client
from sandbox import guard, iam, trial, world
from sandbox.http import call
from tests.support import history, verdicts
from tests.support.installation import Installation, quiet

WRITE, RESTORE, PRUNE = "payme_s3_write", "payme_s3_restore", "payme_s3_prune"
OPS = "service=payme_ops_db"
# The kinds of records that are kept in a bucket.
KINDS = ("release", "phone_encryption", "phone_encryption_rehearsal", "erasure_certificate")
ANY: dict[str, str] = dict.fromkeys(
    ("BUCKET", "COPY_BUCKET", "REGION", "COPY_REGION", "ACCOUNT", "PROFILE", "KMS_KEY", "COPY_KMS_KEY"), "any"
)


def permissions(*documents: str) -> set[tuple[str, ...]]:
    """Every action on every resource that these documents allow: document, statement, action, resource."""
    return {
        (rule.document, rule.sid, rule.action, rule.resource)
        for name in documents
        for rule in iam.parse(name, (guard.POLICIES / f"{name}.json").read_text(), ANY)
        if rule.allows
    }


class Judge:
    """What the sandbox has seen since it was made."""

    def __init__(self, installation: Installation) -> None:
        self._url = installation.site.world.url("s3") + guard.PAGE
        call("DELETE", self._url)

    def seen(self) -> Any:
        return call("GET", self._url)[1]

    @property
    def refused(self) -> list[dict[str, str]]:
        return list(self.seen()["refused"])

    @property
    def used(self) -> set[tuple[str, ...]]:
        return {tuple(one) for one in self.seen()["used"]}


@pytest.fixture
def judge(installation: Installation) -> Judge:
    return Judge(installation)


# --- each permission is needed, and no other ------------------------------------------------------------------------


def examine() -> None:
    """What doctor and the first task of a backup look at."""
    preflight.require_passed(preflight.examine(doors.desk(), actor="test", for_run=False))


def back_up(installation: Installation) -> Manifest:
    """A backup after a run that was killed in the middle of its upload."""
    installation.store.client.create_multipart_upload(
        Bucket=installation.bucket_name, Key="postgres/payme/daily/20200101T020000EAT/archive.dump.age"
    )
    return installation.back_up()


def copied(installation: Installation, done: Manifest) -> Manifest:
    """The weekly copy, after one that was killed."""
    prefix = done.prefix.replace("/daily/", "/weekly/")
    installation.copies.client.create_multipart_upload(Bucket=installation.copies_name, Key=f"{prefix}archive.dump.age")
    return copy.copy(doors.desk(), "test/weekly", done, report=quiet)


def restore_tested(installation: Installation, done: Manifest) -> None:
    """What a restore test reads and writes, of the daily and of its copy."""
    where, config = doors.catalogue(RESTORE), installation.desk.settings
    places = catalogue.copies(where, done)
    for bucket, manifest in places:
        identity = restore.load_identity(config.backup.identity_file)
        restore.verify(bucket, manifest, identity, config.postgres.client_dirs, report=quiet)
    verification.write(places, verdicts.found(done), verdicts.key_of(installation), where.verification_keys)


def archived() -> None:
    """The monthly archive, and its bytes asked for."""
    chosen = archive.oldest_verified(doors.catalogue(WRITE))
    made = archive.archive(doors.desk(), "test/monthly", chosen, report=quiet)
    archive.retrieve(doors.catalogue(RESTORE).stores.copies, made)


def retained(installation: Installation, like: Manifest) -> None:
    """Retention of both buckets, some of it under locks, and the way back."""
    old = {
        tier: [history.plant(installation, like, utc_now() - timedelta(days=days + more), tier) for more in (1, 2)]
        for tier, days in ((Tier.DAILY, 30), (Tier.WEEKLY, 90))
    }
    for tier, (locked, _) in old.items():
        bucket = installation.catalogue.stores.of(tier)
        lock: Any = {"Mode": "GOVERNANCE", "RetainUntilDate": utc_now() + timedelta(days=2)}
        bucket.client.put_object_retention(Bucket=bucket.name, Key=locked.key, Retention=lock)
        hold: Any = {"Status": "ON"}
        bucket.client.put_object_legal_hold(Bucket=bucket.name, Key=locked.key, LegalHold=hold)
    where, now = doors.catalogue(PRUNE), utc_now()
    planned = retain.plan(retain.survey(where, now), now, proof_days=8)
    shown = retain.describe(planned, "payme", actor="test", proof_days=8)
    assert sorted(retain.planned(shown)) == sorted(gone.prefix for _, gone in old.values())
    retain.apply(where, OPS, "test/retention", shown, proof_days=8, report=quiet)
    for _, gone in old.values():
        retain.undelete(doors.catalogue(WRITE), gone.prefix, installation.desk.settings.backup, report=quiet)


def records_kept(installation: Installation, kinds: tuple[str, ...]) -> None:
    """Records of each kind, chained to the one before."""
    home, key = doors.catalogue(RESTORE).stores.home, verdicts.key_of(installation)
    now, trusted = utc_now(), installation.desk.settings.backup.verification_keys
    for kind in kinds:
        made = record.Record(
            kind=kind, subject="a", run="r", actor="a", verdict="DONE", started=now, ended=now, facts={}
        )
        record.keep(home, made, key)
        assert record.newest(home, kind, trusted, "KEYS") == made


def event_log_exported() -> None:
    """The file and the manifest of an export, read back; and one that breaks off."""
    desk = doors.desk()
    key = f"{event_log.PREFIX}00000001/{event_log.EVENTS_NAME}"
    stored = store.seal_and_store(
        iter([b"{}\n"]), desk.placement, key, desk.recipients, expected_bytes=None, report=quiet
    )
    store.read_back(desk.bucket, stored, report=quiet)
    desk.bucket.put_if_absent(f"{event_log.PREFIX}00000001/manifest.json", b"{}", **desk.placement.encryption())
    with MultipartWriter(desk.bucket, key, **desk.placement.encryption()):
        pass


def everything(installation: Installation, kinds: tuple[str, ...]) -> None:
    """All that the desk does with the buckets, with records of these kinds."""
    examine()
    done = back_up(installation)
    copied(installation, done)
    restore_tested(installation, done)
    archived()
    retained(installation, done)
    records_kept(installation, kinds)
    event_log_exported()


def test_each_permission_is_used_and_nothing_is_refused(installation: Installation, judge: Judge) -> None:
    everything(installation, KINDS)
    assert judge.refused == []
    # Without a KMS key nobody needs what the other documents allow.
    assert sorted(permissions(WRITE, RESTORE, PRUNE) ^ judge.used) == []


def test_each_permission_of_kms_is_used_and_nothing_is_refused(installation: Installation, judge: Judge) -> None:
    encrypt_by_kms(installation)
    desk = doors.desk()
    client = kms_client(installation, WRITE, world.HOME_REGION)
    found = [check.measure() for check in kms.checks(lambda: client, desk.placement, world.HOME_REGION)]
    assert [one.verdict for one in found] == ["pass", "pass"]
    everything(installation, KINDS[:1])
    assert judge.refused == []
    wanted = permissions(f"{WRITE}_kms", f"{RESTORE}_kms", f"{PRUNE}_kms")
    assert sorted(wanted - judge.used) == []


def kms_client(installation: Installation, profile: str | None, region: str) -> Any:
    """Of that profile; without one it may do everything."""
    url = installation.site.world.url("s3")
    if profile is None:
        return boto3.client(
            "kms", endpoint_url=url, region_name=region, aws_access_key_id="any", aws_secret_access_key="any"
        )
    return boto3.Session(profile_name=profile, region_name=region).client("kms")


def encrypt_by_kms(installation: Installation) -> None:
    """A key in each region, by which its bucket encrypts what comes without a word about it."""
    for bucket, region in ((installation.store, world.HOME_REGION), (installation.copies, world.COPY_REGION)):
        key = kms_client(installation, None, region).create_key(KeyUsage="ENCRYPT_DECRYPT")["KeyMetadata"]["Arn"]
        rule: Any = {"ApplyServerSideEncryptionByDefault": {"SSEAlgorithm": "aws:kms", "KMSMasterKeyID": key}}
        bucket.client.put_bucket_encryption(Bucket=bucket.name, ServerSideEncryptionConfiguration={"Rules": [rule]})
        if bucket.name == installation.bucket_name:
            installation.set("BACKUP__KMS_KEY_ID", key)


@cache
def client_of(profile: str) -> Any:
    """Making one takes longer than what is asked of it."""
    return profile_client(profile)


# --- what nobody may ------------------------------------------------------------------------------------------------


DAILY, MONTHLY = "postgres/payme/daily/20260101T020000EAT/", "postgres/payme/monthly/20260101T020000EAT/"
ARCHIVE, FOUND = f"{DAILY}archive.dump.age", f"{DAILY}verification.json"
EVENTS = f"{event_log.PREFIX}00000001/manifest.json"
LATER = utc_now() + timedelta(days=1)
Forbidden = tuple[tuple[str, ...], str, str, dict[str, Any]]
# Who, the method of the client, the permission that it lacks, and what is asked.
FORBIDDEN: list[Forbidden] = [
    ((WRITE, RESTORE), "delete_object", "s3:DeleteObject", {"Key": ARCHIVE}),
    ((WRITE, RESTORE), "delete_object", "s3:DeleteObject", {"Key": EVENTS}),
    ((WRITE, RESTORE, PRUNE), "delete_object", "s3:DeleteObjectVersion", {"Key": ARCHIVE, "VersionId": "VERSION"}),
    ((PRUNE,), "delete_object", "s3:BypassGovernanceRetention", {"Key": ARCHIVE, "BypassGovernanceRetention": True}),
    ((PRUNE,), "delete_object", "s3:DeleteObject", {"Key": f"{MONTHLY}manifest.json"}),
    ((PRUNE,), "delete_object", "s3:DeleteObject", {"Key": "records/release/a.json"}),
    ((WRITE, RESTORE, PRUNE), "delete_objects", "unknown", {"Delete": {"Objects": [{"Key": ARCHIVE}]}}),
    ((RESTORE, PRUNE), "put_object", "s3:PutObject", {"Key": ARCHIVE}),
    ((RESTORE, PRUNE), "put_object", "s3:PutObject", {"Key": f"{DAILY}manifest.json"}),
    ((PRUNE,), "put_object", "s3:PutObject", {"Key": FOUND}),
    ((RESTORE, PRUNE), "put_object", "s3:PutObject", {"Key": EVENTS}),
    ((WRITE, PRUNE), "put_object", "s3:PutObject", {"Key": "records/release/a.json"}),
    ((RESTORE, PRUNE), "create_multipart_upload", "s3:PutObject", {"Key": ARCHIVE}),
    ((RESTORE, PRUNE), "copy_object", "s3:PutObject", {"Key": ARCHIVE, "CopySource": f"BUCKET/{FOUND}"}),
    ((WRITE,), "put_object", "s3:PutObjectRetention", {"Key": ARCHIVE, "ObjectLockMode": "GOVERNANCE"}),
    (
        (WRITE, RESTORE, PRUNE),
        "put_object_retention",
        "s3:PutObjectRetention",
        {"Key": ARCHIVE, "Retention": {"Mode": "GOVERNANCE", "RetainUntilDate": LATER}},
    ),
    (
        (WRITE, RESTORE, PRUNE),
        "put_bucket_lifecycle_configuration",
        "s3:PutLifecycleConfiguration",
        {"LifecycleConfiguration": {"Rules": [{"Status": "Enabled", "Prefix": "", "Expiration": {"Days": 1}}]}},
    ),
    ((WRITE, RESTORE, PRUNE), "delete_bucket_lifecycle", "s3:PutLifecycleConfiguration", {}),
    (
        (WRITE, RESTORE, PRUNE),
        "put_bucket_versioning",
        "s3:PutBucketVersioning",
        {"VersioningConfiguration": {"Status": "Suspended"}},
    ),
    (
        (WRITE, RESTORE, PRUNE),
        "put_object_lock_configuration",
        "s3:PutBucketObjectLockConfiguration",
        {"ObjectLockConfiguration": {"ObjectLockEnabled": "Enabled"}},
    ),
    ((WRITE, RESTORE, PRUNE), "put_bucket_policy", "s3:PutBucketPolicy", {"Policy": "{}"}),
    ((WRITE, RESTORE, PRUNE), "delete_bucket", "s3:DeleteBucket", {}),
    ((RESTORE,), "get_object", "s3:GetObject", {"Key": EVENTS}),
    ((WRITE, PRUNE), "restore_object", "s3:RestoreObject", {"Key": f"{MONTHLY}archive.dump.age"}),
]


@pytest.mark.parametrize("forbidden", FORBIDDEN, ids=lambda one: f"{one[1]} {one[3].get('Key', '')}")
def test_what_is_not_theirs_is_refused_in_both_buckets(installation: Installation, forbidden: Forbidden) -> None:
    who, method, action, asked = forbidden
    for bucket in (installation.store, installation.copies):
        if action == "s3:DeleteObject" and MONTHLY in asked["Key"] and bucket.name == installation.bucket_name:
            continue  # archives are in the other region
        bucket.put(ARCHIVE, b"bytes")
        before = list(bucket.versions(""))
        filled = json.loads(json.dumps(asked, default=str).replace("BUCKET/", f"{bucket.name}/"))
        if "VersionId" in filled:
            filled["VersionId"] = bucket.head(ARCHIVE).version_id
        for name in who:
            client = client_of(name)
            with pytest.raises(ClientError) as refused:
                getattr(client, method)(Bucket=bucket.name, **filled)
            error = refused.value.response["Error"]
            assert (error["Code"], f"to perform: {action} on" in error["Message"]) == ("AccessDenied", True), error
        assert list(bucket.versions("")) == before


# --- what S3 does not tell --------------------------------------------------------------------------------------------


def test_who_may_not_list_is_not_told_that_something_is_missing(installation: Installation) -> None:
    """403 in place of 404: a policy without s3:ListBucket would look like a store that is broken."""
    url = installation.site.world.url("s3")
    admin = boto3.client(
        "iam", endpoint_url=url, region_name="us-east-1", aws_access_key_id="any", aws_secret_access_key="any"
    )
    name = installation.bucket_name
    admin.create_user(UserName=name)
    made = admin.create_access_key(UserName=name)["AccessKey"]
    reader = boto3.client(
        "s3",
        endpoint_url=url,
        region_name=world.HOME_REGION,
        aws_access_key_id=made["AccessKeyId"],
        aws_secret_access_key=made["SecretAccessKey"],
    )

    def allow(*statements: dict[str, str]) -> None:
        policy = {"Version": "2012-10-17", "Statement": [{"Effect": "Allow", **one} for one in statements]}
        admin.put_user_policy(UserName=name, PolicyName="p", PolicyDocument=json.dumps(policy))

    def status() -> int:
        with pytest.raises(ClientError) as answer:
            reader.head_object(Bucket=name, Key="missing")
        return int(answer.value.response["ResponseMetadata"]["HTTPStatusCode"])

    read = {"Action": "s3:GetObject", "Resource": f"arn:aws:s3:::{name}/*"}
    allow(read)
    assert status() == 403
    allow(read, {"Action": "s3:ListBucket", "Resource": f"arn:aws:s3:::{name}"})
    assert status() == 404


def test_locks_are_shown_to_whom_they_concern(installation: Installation) -> None:
    bucket = installation.store
    bucket.put(ARCHIVE, b"bytes")
    lock: Any = {"Mode": "GOVERNANCE", "RetainUntilDate": LATER}
    bucket.client.put_object_retention(Bucket=bucket.name, Key=ARCHIVE, Retention=lock)
    seen = {name: replace(bucket, client=client_of(name)).head(ARCHIVE).retain_until for name in (WRITE, PRUNE)}
    assert seen[WRITE] is None
    assert seen[PRUNE] is not None


# --- secrets ---------------------------------------------------------------------------------------------------------


README = (guard.POLICIES / "README.md").read_text()
CONFIG = ("sql_alchemy_conn", "fernet_key", "jwt_secret", "secret_key")


def services() -> dict[str, set[str]]:
    """Of each row of the README's table, the names of the secrets."""
    rows = re.findall(r"^\| `([a-z-]+)` \| (.*) \| (.*) \| (yes|-) \|$", README, re.MULTILINE)
    return {
        service: {
            *(f"airflow/connections/{name}" for name in re.findall(r"`(\w+)`", names)),
            *(f"keys/{name}" for name in re.findall(r"`([\w.-]+)`", keys)),
            *(f"airflow/config/{name}" for name in CONFIG if own == "yes"),
        }
        for service, names, keys, own in rows
    }


def secrets_client(installation: Installation, access_key: str) -> Any:
    return boto3.client(
        "secretsmanager",
        endpoint_url=installation.site.world.url("s3"),
        region_name=world.HOME_REGION,
        aws_access_key_id=access_key,
        aws_secret_access_key="any",
    )


def may_read(client: Any, secret_id: str) -> bool:
    try:
        client.get_secret_value(SecretId=secret_id)
    except ClientError as error:
        if error.response["Error"]["Code"] != "AccessDeniedException":
            raise
        return False
    return True


def readable(client: Any, arns: dict[str, str]) -> set[str]:
    """Which of these that client may read, by name and by ARN."""
    found = {name for name in arns if may_read(client, name)}
    assert {name for name, arn in arns.items() if may_read(client, arn)} == found
    return found


@pytest.fixture
def arns(installation: Installation) -> dict[str, str]:
    """Every secret that the desk knows, of production, and the application's; and ARN of each."""
    names = {f"payme/production/{name}" for wanted in services().values() for name in wanted}
    names |= {"payme/production/airflow/connections/payme_db_read_of_another"}
    admin = secrets_client(installation, "any")
    made = {name: put_secret(admin, name) for name in sorted(names)}
    return made | {name: put_secret(admin, name) for name in ("payme/production/secrets", "payme/staging/secrets")}


def put_secret(admin: Any, name: str) -> str:
    try:
        return str(admin.create_secret(Name=name, SecretString="{}")["ARN"])
    except admin.exceptions.ResourceExistsException:
        return str(admin.describe_secret(SecretId=name)["ARN"])


def test_each_service_reads_its_secrets_and_no_other(
    installation: Installation, arns: dict[str, str], judge: Judge
) -> None:
    assert {f"secrets_{name}" for name in [*services(), "one-machine"]} == {
        path.stem for path in guard.POLICIES.glob("secrets_*.json")
    }
    for service, wanted in services().items():
        found = readable(secrets_client(installation, f"secrets_{service}"), arns)
        assert found == {f"payme/production/{name}" for name in wanted}, service
    assert readable(secrets_client(installation, "payme_secrets"), arns) == {
        "payme/production/secrets",
        "payme/staging/secrets",
    }
    documents = [*(f"secrets_{service}" for service in services()), "payme_secrets"]
    assert sorted(permissions(*documents) ^ judge.used) == []


def test_on_one_host_each_service_has_the_same_connections_in_its_file() -> None:
    prefix = "airflow/connections/"
    wanted = {
        service: {name.removeprefix(prefix) for name in names if name.startswith(prefix)}
        for service, names in services().items()
    }
    assert {service: names for service, names in wanted.items() if names} == {
        service: set(names) for service, names in trial.CONNECTIONS.items()
    }
    for part, needed in NEEDED.items():  # by doctor there
        service = part if part in wanted else f"worker-{part}"
        # Its own role's connection to the ops database stands for that.
        assert set(needed) - {"payme_ops_db"} <= wanted[service]
        assert len([name for name in wanted[service] if name.startswith("payme_ops_db")]) == 1


@pytest.mark.parametrize("service", ["worker-default", "worker-release", "worker-desk", "triggerer"])
def test_what_opens_backups_and_phone_numbers_stays_with_its_worker(service: str) -> None:
    assert services()[service].isdisjoint(
        {"keys/drill.age-identity", "keys/encryption_key", "airflow/connections/payme_db_migrate"}
    )


@pytest.mark.parametrize("service", [name for name in services() if name.startswith("worker-")])
def test_no_worker_reads_airflows_own_secrets(service: str) -> None:
    assert [name for name in services()[service] if name.startswith("airflow/config/")] == []
