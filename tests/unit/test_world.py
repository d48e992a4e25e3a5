"""The world's files: what is secret is private, what was there is kept, and every name is the agreed one."""

import configparser
import contextlib
import json
import os
import socket
import stat
import subprocess
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import boto3
import pyrage
import pytest

from payme_ops.foundation import settings, signing
from sandbox import airflow, world
from sandbox.supervisor import SandboxError
from sandbox.world import World


@pytest.fixture
def root(tmp_path: Path) -> Iterator[Path]:
    yield tmp_path / "world"
    world.remove(tmp_path / "world")


@pytest.fixture
def built(root: Path) -> World:
    before = os.umask(0)  # the least careful user
    try:
        return world.build(root)
    finally:
        os.umask(before)


@contextlib.contextmanager
def listening() -> Iterator[int]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


def test_secrets_are_private_whatever_the_umask(built: World) -> None:
    airflow.environment(built)
    private = [
        built.credentials,
        *(built.root / name for name in ("pgpass", "pg_service.conf", "aws_config", "aws_credentials", "slack_token")),
        built.root / "airflow_password",
        *(built.root / "keys" / name for name in ("recovery.age-identity", "drill.age-identity", "signing.pem")),
        built.root / "airflow" / "logins.json",
    ]
    assert {stat.S_IMODE(path.stat().st_mode) for path in private} == {0o600}
    assert stat.S_IMODE((built.root / "keys").stat().st_mode) == 0o700


def test_a_second_build_keeps_keys_passwords_and_ports(built: World) -> None:
    again = world.build(built.root)
    assert again.secrets == built.secrets
    assert again.ports == built.ports
    assert again.env == built.env


def test_a_kept_port_that_is_taken_is_replaced(built: World) -> None:
    with listening() as port:
        ports = {**built.ports, "s3": port}
        (built.root / "ports.json").write_text(json.dumps(ports))
        again = world.build(built.root)
    assert again.ports["s3"] != port
    assert {**again.ports, "s3": 0} == {**ports, "s3": 0}
    assert str(again.ports["s3"]) in (built.root / "aws_config").read_text()


def test_a_fixed_port_that_is_taken_is_refused_naming_its_holder(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with listening() as port:
        monkeypatch.setenv("PAYME_SANDBOX_PORT_AIRFLOW", str(port))
        with pytest.raises(SandboxError, match=rf"port {port} .*airflow.*held by process {os.getpid()} \(\S"):
            world.build(root)


def test_a_fixed_port_that_is_free_is_used(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with listening() as port:
        pass
    monkeypatch.setenv("PAYME_SANDBOX_PORT_AIRFLOW", str(port))
    assert world.build(root).ports["airflow"] == port


def test_a_fixed_port_that_is_no_port_is_refused(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PAYME_SANDBOX_PORT_S3", "http")
    with pytest.raises(SandboxError, match="PAYME_SANDBOX_PORT_S3 is no port"):
        world.build(root)


def test_the_settings_of_the_world_are_accepted(built: World, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in built.env.items():
        monkeypatch.setenv(name, value)
    loaded = settings.load()
    assert loaded.profile == "sandbox"
    identity = pyrage.x25519.Identity.from_str(
        (built.root / "keys" / "drill.age-identity").read_text().splitlines()[-1]
    )
    assert str(identity.to_public()) == loaded.backup.recipient_drill != loaded.backup.recipient_recovery
    assert loaded.backup.signing_key_file is not None
    key = signing.load_private_key(loaded.backup.signing_key_file)
    assert loaded.backup.trusted_keys == [signing.public_key(key)]


def test_both_doors_lead_to_the_same_databases(built: World) -> None:
    services = configparser.ConfigParser()
    services.read(built.env["PGSERVICEFILE"])
    passwords = dict(line.split(":")[3:] for line in Path(built.env["PGPASSFILE"]).read_text().splitlines())
    for name in ("payme_db_read", "payme_db_restore", "payme_ops_db"):
        connection = json.loads(built.env[f"AIRFLOW_CONN_{name.upper()}"])
        assert dict(services[name]) == {
            "host": connection["host"],
            "port": str(connection["port"]),
            "dbname": connection["schema"],
            "user": connection["login"],
        }
        assert passwords[connection["login"]] == connection["password"]
    assert "postgres" not in passwords, "the superuser's password is in no tool's reach"


def test_both_doors_lead_to_the_same_store(built: World, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE"):
        monkeypatch.setenv(name, built.env[name])
    for name in ("payme_s3_write", "payme_s3_restore"):
        connection = json.loads(built.env[f"AIRFLOW_CONN_{name.upper()}"])
        session = boto3.Session(profile_name=name)
        assert session.client("s3").meta.endpoint_url == connection["extra"]["endpoint_url"] == built.url("s3")
        assert session.region_name == connection["extra"]["region_name"]
        keys = session.get_credentials()
        assert keys is not None
        assert (keys.access_key, keys.secret_key) == (connection["login"], connection["password"])


def test_slack_is_the_stand_in(built: World) -> None:
    connection = json.loads(built.env["AIRFLOW_CONN_PAYME_SLACK"])
    assert connection["extra"]["base_url"] == built.env["PAYME_OPS__SLACK__API_URL"] == built.url("slack") + "/api/"
    token = Path(built.env["PAYME_OPS__SLACK__TOKEN_FILE"]).read_text()
    assert token.strip() == connection["password"]


def test_a_users_own_variables_do_not_steer_the_sandbox(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    foreign = {
        "AIRFLOW__CORE__EXECUTOR": "CeleryExecutor",
        "AIRFLOW_CONN_PAYME_DB_READ": "postgres://production",
        "PGHOST": "production",
        "AWS_PROFILE": "production",
        "SENTRY_DSN": "https://production",
        "PAYME_OPS__BACKUP__KMS_KEY_ID": "production",
    }
    for name, value in foreign.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("NO_PROXY", "intranet")
    env = world.build(root).env
    assert not [name for name, value in env.items() if "production" in value or value == "CeleryExecutor"]
    assert env["NO_PROXY"] == "intranet,127.0.0.1,localhost"


def test_no_secret_is_shown_by_repr(built: World) -> None:
    shown = repr(built)
    assert not [name for name, value in built.secrets.items() if value in shown]


def test_age_keygen_reads_the_identities(built: World) -> None:
    try:
        read = subprocess.run(
            ["age-keygen", "-y", str(built.root / "keys" / "recovery.age-identity")],
            capture_output=True,
            text=True,
            check=True,
        )
    except FileNotFoundError:
        pytest.skip("age is not installed")
    assert read.stdout.strip() == built.env["PAYME_OPS__BACKUP__RECIPIENT_RECOVERY"]


def test_tasks_have_one_door(built: World) -> None:
    env = airflow.environment(built)
    for name in ("PGSERVICEFILE", "PGPASSFILE", "AWS_CONFIG_FILE", "PAYME_OPS__SLACK__TOKEN_FILE"):
        assert name in built.env
        assert name not in env
    assert env["AIRFLOW_CONN_PAYME_DB_READ"] == built.env["AIRFLOW_CONN_PAYME_DB_READ"]


def test_airflow_is_told_to_stay_on_loopback_and_to_keep_locals_from_sentry(built: World) -> None:
    env = airflow.environment(built)
    assert env["AIRFLOW__API__HOST"] == "127.0.0.1"
    for name in ("AIRFLOW__API__BASE_URL", "AIRFLOW__CORE__EXECUTION_API_SERVER_URL", "AIRFLOW__SENTRY__SENTRY_DSN"):
        assert urlsplit(env[name]).hostname == "127.0.0.1"
    assert env["AIRFLOW__SENTRY__INCLUDE_LOCAL_VARIABLES"] == "False"
    assert env["AIRFLOW__SENTRY__SEND_DEFAULT_PII"] == "False"
    assert env["AIRFLOW__CORE__LOAD_EXAMPLES"] == "False"
    logins = json.loads(Path(env["AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_PASSWORDS_FILE"]).read_text())
    assert set(logins) == {"oncall", "approver", "lead", "auditor"}
    assert env["AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_USERS"].endswith(",auditor:viewer")


def test_remove_leaves_nothing(built: World) -> None:
    world.remove(built.root)
    assert not built.root.exists()
    assert not built.cluster.data_dir.parent.exists()
    world.remove(built.root)
