"""Connections out of AWS Secrets Manager: found, changed without a restart, and nothing else in their place."""

import json
import logging
import os
import re
import socket
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psycopg
import pyrage
import pytest
from airflow.sdk import Connection, Variable
from airflow.sdk.configuration import clear_secrets_backends_cache
from airflow.sdk.exceptions import AirflowNotFoundException, AirflowRuntimeError
from airflow.sdk.execution_time.supervisor import ensure_secrets_backend_loaded
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from payme_ops.backup import restore, seal
from payme_ops.foundation import secret, signing
from payme_ops.foundation.errors import (
    KeyRejected,
    PaymeOpsError,
    SecretForbidden,
    SecretMissing,
    SettingsError,
    Unavailable,
)
from payme_ops.migration import envelope
from payme_ops.migration.names import PHONE_NUMBER
from payme_ops.orchestration import alerting, connections, health_watch
from tests.support import secrets
from tests.support.secrets import Kept
from tests.support.site import Site
from tests.support.standins import answering, served, slack_stand_in

PROJECT = Path(__file__).resolve().parents[2]
BUCKETS: Any = SimpleNamespace(
    bucket="payme-backups", region="af-south-1", copy_bucket="copies", copy_region="eu-west-1"
)
ARN = "arn:aws:secretsmanager:af-south-1:123456789012:secret"
TOKEN, STALE = "xoxb-of-the-secret", "xoxb-stale-and-never-used"
SLACK = {"conn_type": "slack", "password": TOKEN}


@pytest.fixture(scope="module")
def server() -> Iterator[Kept]:
    with secrets.secrets_manager() as running:
        yield running


@pytest.fixture
def kept(server: Kept, monkeypatch: pytest.MonkeyPatch) -> Iterator[Kept]:
    """An Airflow process of production: no connection in its environment, and a Secrets Manager."""
    use(server.url, monkeypatch)
    yield server
    clear_secrets_backends_cache()


def use(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith(("AIRFLOW_CONN_", "AWS_", "PAYME_OPS__"))]:
        monkeypatch.delenv(name)
    for name, value in secrets.environment(url).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(secret, "_ATTEMPTS", 1)  # how often it tries again is not what is tested
    clear_secrets_backends_cache()


def calls(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names that are asked for from now on."""
    asked: list[str] = []
    (backend,) = [one for one in ensure_secrets_backend_loaded() if type(one).__name__ == "SecretsManagerBackend"]
    find = backend._get_secret_value  # type: ignore[attr-defined]

    def noted(name: str, path: str) -> Any:
        asked.append(path)
        return find(name, path)

    monkeypatch.setattr(backend, "_get_secret_value", noted)
    return asked


def test_every_connection_of_the_desk_is_found(kept: Kept, site: Site) -> None:
    door = {name: value for name, value in site.world.env.items() if name.startswith("AIRFLOW_CONN_")}
    shown = re.findall(r"^# (payme_\w+): ", (PROJECT / ".env.example").read_text(), flags=re.MULTILINE)
    assert {f"AIRFLOW_CONN_{name.upper()}" for name in shown} == set(door)
    for name, value in door.items():
        conn_id = name.removeprefix("AIRFLOW_CONN_").lower()
        kept.connection(conn_id, value)
        found, meant = connections.require(conn_id), Connection.from_json(value, conn_id=conn_id)
        parts = ("conn_type", "host", "port", "schema", "login", "password", "extra_dejson")
        assert [getattr(found, part) for part in parts] == [getattr(meant, part) for part in parts]
    with psycopg.connect(connections.conninfo("payme_db_read")) as session:
        assert session.info.user == "payme_db_read"
    stores = connections.stores("payme_s3_write", BUCKETS)
    stores.home.client.head_bucket(Bucket=stores.home.name)
    doors: tuple[Callable[[], Any], ...] = (
        *(connections.payme_api, lambda: connections.payme_api("staging"), lambda: connections.deploy_api("staging")),
        *(connections.code_host, connections.sentry_api, connections.airflow_api, connections.status_page),
        *(connections.mail_server, connections.secrets_manager),
    )
    assert all(door() is not None for door in doors)


def test_what_is_not_kept_there_is_looked_for_without_a_call(kept: Kept, monkeypatch: pytest.MonkeyPatch) -> None:
    kept.connection("payme_slack", SLACK)
    asked = calls(monkeypatch)
    with pytest.raises(AirflowNotFoundException):
        Connection.get("aws_default")
    with pytest.raises(AirflowRuntimeError):
        Variable.get("payme_anything")
    assert asked == []
    assert connections.require("payme_slack").password == TOKEN
    assert asked == [f"{secrets.CONNECTIONS}/payme_slack"]


def test_a_changed_token_counts_at_the_next_message(kept: Kept, tmp_path: Path) -> None:
    with slack_stand_in(tmp_path) as slack:
        extra = {"base_url": f"{slack.url}/api/"}
        for token in ("xoxb-first", "xoxb-second"):
            kept.connection("payme_slack", {**SLACK, "password": token, "extra": extra})
            client = alerting.slack().client
            assert client.token == token
            assert client.chat_postMessage(channel="payme-ops", text="x")["ok"]


def test_a_changed_password_counts_at_the_next_session(kept: Kept, site: Site) -> None:
    where = {"conn_type": "postgres", "host": "127.0.0.1", "port": site.cluster.port, "schema": "postgres"}
    with site.admin() as admin:
        admin.execute("CREATE ROLE rotated LOGIN")
        try:
            for password in ("one-password", "another-password"):
                admin.execute(f"ALTER ROLE rotated PASSWORD '{password}'")
                kept.connection("payme_db_read", {**where, "login": "rotated", "password": password})
                with psycopg.connect(connections.conninfo("payme_db_read")) as session:
                    assert session.info.user == "rotated"
        finally:
            admin.execute("DROP ROLE rotated")


@pytest.mark.usefixtures("kept")
def test_one_that_is_not_there_is_optional_or_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AIRFLOW_CONN_PAYME_NOWHERE", json.dumps({**SLACK, "password": STALE}))
    assert connections._optional("payme_nowhere") is None
    with pytest.raises(AirflowNotFoundException, match="airflow/connections/payme_nowhere"):
        connections.require("payme_nowhere")


# What Secrets Manager may answer instead of the secret: status and body, and what its reader makes of it.
ANSWERS = {
    "an error of its own": (500, {"__type": "InternalServiceError"}, Unavailable, "InternalServiceError"),
    "overloaded": (503, {}, Unavailable, "503"),
    "too many calls": (400, {"__type": "ThrottlingException"}, Unavailable, "ThrottlingException"),
    "a token that is over": (400, {"__type": "ExpiredTokenException"}, Unavailable, "ExpiredTokenException"),
    "not for this role": (400, {"__type": "AccessDeniedException"}, SecretForbidden, "AccessDeniedException"),
    "a key that is disabled": (400, {"__type": "DecryptionFailure"}, SettingsError, "DecryptionFailure"),
    "to be deleted": (400, {"__type": "InvalidRequestException"}, SettingsError, "InvalidRequestException"),
}


@contextmanager
def answered(what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[type[PaymeOpsError], str]]:
    """Secrets Manager says that to whatever is asked, or nothing; the error that it is to come to, and its word."""
    status, body, kind, code = ANSWERS.get(what, (0, {}, Unavailable, "EndpointConnectionError"))
    with ExitStack() as stack:
        url = "http://127.0.0.1:1"
        if what in ANSWERS:
            url = stack.enter_context(served(answering(body, status), tmp_path / "answers")).url
        use(url, monkeypatch)
        stack.callback(clear_secrets_backends_cache)
        yield kind, code


@pytest.mark.parametrize("what", [*ANSWERS, "nothing"])
def test_no_answer_is_said_and_nothing_else_is_used(
    what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with answered(what, tmp_path, monkeypatch) as (kind, code):
        # What Airflow would take instead: the environment, and the machine's own identity.
        for name in ("SLACK", "API", "S3_PRUNE", "OPS_DB"):
            monkeypatch.setenv(f"AIRFLOW_CONN_PAYME_{name}", json.dumps({**SLACK, "password": STALE}))
        asked: dict[str, Callable[[], Any]] = {
            "payme_slack": lambda: connections.slack_client(1),
            "payme_api": connections.payme_api,
            "payme_s3_prune": lambda: connections.stores("payme_s3_prune", BUCKETS),
            "payme_ops_db": connections.ops_db,
        }
        if kind is SecretForbidden:  # no power of this machine's is as good as not there, and a person is asked
            assert asked.pop("payme_api")() is None
            assert "airflow/connections/payme_api" in caplog.text
        for name, ask in asked.items():
            with pytest.raises(PaymeOpsError) as caught:
                ask()
            text = str(caught.value)
            assert type(caught.value) is kind, text
            assert f"airflow/connections/{name}" in text
            assert code in text
            assert caught.value.remedy
            assert STALE not in text + caplog.text


def test_packets_that_get_lost_are_waited_for_seconds_not_minutes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(secret, "_READ_SECONDS", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as silent, ThreadPoolExecutor() as threads:
        use(f"http://127.0.0.1:{silent.getsockname()[1]}", monkeypatch)
        monkeypatch.setattr(secret, "_ATTEMPTS", 2)
        answer = threads.submit(connections.ops_db)
        try:
            with pytest.raises(Unavailable, match="ReadTimeoutError"):
                answer.result(timeout=20)
        finally:
            clear_secrets_backends_cache()


def test_a_machine_that_knows_no_region_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    use("http://127.0.0.1:1", monkeypatch)
    monkeypatch.setenv("AIRFLOW__WORKERS__SECRETS_BACKEND_KWARGS", json.dumps({"connections_prefix": "payme"}))
    monkeypatch.setenv("AWS_CONFIG_FILE", os.devnull)
    try:
        with pytest.raises(Unavailable, match="NoRegionError"):
            connections.ops_db()
    finally:
        clear_secrets_backends_cache()


def test_at_level_debug_no_connection_is_logged(kept: Kept, caplog: pytest.LogCaptureFixture) -> None:
    kept.connection("payme_slack", SLACK)
    with caplog.at_level(logging.DEBUG), caplog.at_level(logging.DEBUG, "botocore.parsers"):
        assert connections.require("payme_slack").password == TOKEN
    assert "GetSecretValue" in caplog.text
    assert TOKEN not in caplog.text


def test_a_round_of_the_health_watch_asks_for_two(kept: Kept, site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in site.world.env.items():
        if name.startswith("PAYME_OPS__"):
            monkeypatch.setenv(name, value)
    for name in ("payme_ops_db", "payme_slack"):
        kept.connection(name, site.world.env[f"AIRFLOW_CONN_{name.upper()}"])
    asked = calls(monkeypatch)
    for _ in range(2):
        doors = health_watch._doors()
        assert doors.ops
        assert doors.slack
    assert [path.rpartition("/")[2] for path in asked] == ["payme_ops_db", "payme_slack"] * 2
    page = (PROJECT / "docs" / "secrets.md").read_text()
    assert f"{2 * 24 * 60 * 2:,} calls a day" in page


@pytest.mark.parametrize(
    "content",
    ["{not json", '["a", "list"]', '{"conn_type": "slack", "extra": "{nonsense"}', "no connection at all"],
)
def test_a_secret_that_is_no_connection_is_said_without_its_content(kept: Kept, content: str) -> None:
    kept.connection("payme_broken", content)
    with pytest.raises((SettingsError, AirflowNotFoundException)) as caught:
        connections.conninfo("payme_broken")
    assert "payme_broken" in str(caught.value)
    assert content not in str(caught.value)


# -- production ---------------------------------------------------------------------------------------------------

VERIFIED = {"sslmode": "verify-full"}
UNFIT: dict[str, tuple[dict[str, Any], str]] = {
    "PostgreSQL on loopback": ({"conn_type": "postgres", "host": "127.0.0.1", "extra": VERIFIED}, "loopback"),
    "a socket": ({"conn_type": "postgres", "host": "/var/run/postgresql", "extra": VERIFIED}, "loopback"),
    "PostgreSQL in clear": ({"conn_type": "postgres", "host": "db.test"}, "sslmode not set"),
    "any server": ({"conn_type": "postgres", "host": "db.test", "extra": {"sslmode": "require"}}, "sslmode require"),
    "a sandbox's store": ({"conn_type": "aws", "extra": {"endpoint_url": "http://localhost:9000"}}, "loopback"),
    "a store in clear": ({"conn_type": "aws", "extra": {"endpoint_url": "http://store.test"}}, "http://"),
    "a sandbox's Slack": ({"conn_type": "slack", "extra": {"base_url": "http://127.0.0.1:1/api/"}}, "loopback"),
    "an API in clear": ({"conn_type": "http", "host": "http://api.test"}, "http://"),
    "an address in clear": ({"conn_type": "http", "host": "http://[2001:db8::5]:3000"}, "http://"),
    "a sandbox's API": ({"conn_type": "http", "host": "https://localhost"}, "loopback"),
    "a DSN on loopback": (
        {"conn_type": "http", "host": "https://sentry.test", "extra": {"dsn": "https://k@[::1]/2"}},
        "loopback",
    ),
    "mail in clear": ({"conn_type": "smtp", "host": "mail.test", "extra": {"disable_tls": True}}, "disable_tls"),
}
FIT = (
    {"conn_type": "postgres", "host": "db.test", "extra": VERIFIED},
    {"conn_type": "aws", "extra": {"region_name": "af-south-1"}},
    {"conn_type": "slack", "password": TOKEN},
    {"conn_type": "http", "host": "https://api.test"},
    {"conn_type": "http", "host": "http://api-server:8080"},
    {"conn_type": "smtp", "host": "mail.test", "port": 587},
)


@pytest.mark.parametrize("what", UNFIT)
def test_production_refuses_a_connection(kept: Kept, monkeypatch: pytest.MonkeyPatch, what: str) -> None:
    value, says = UNFIT[what]
    kept.connection("payme_unfit", {**value, "password": TOKEN})
    assert connections.require("payme_unfit").password == TOKEN
    monkeypatch.setenv("PAYME_OPS__PROFILE", "production")
    with pytest.raises(SettingsError) as caught:
        connections.require("payme_unfit")
    assert says in caught.value.found
    assert "docs/secrets.md" in caught.value.remedy
    assert TOKEN not in str(caught.value)


def test_production_takes_connections_that_are_fit(kept: Kept, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PAYME_OPS__PROFILE", "production")
    for value in FIT:
        kept.connection("payme_fit", value)
        assert connections.require("payme_fit").conn_type == value["conn_type"]


# -- keys that are read by the worker that may --------------------------------------------------------------------


def identity() -> tuple[str, str]:
    made = pyrage.x25519.Identity.generate()
    return str(made), str(made.to_public())


def signing_key() -> tuple[str, str]:
    made = Ed25519PrivateKey.generate()
    pem = made.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    return pem.decode(), signing.public_key(made)


def test_a_key_by_its_arn_is_read_at_each_use_and_shown_nowhere(
    kept: Kept, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    text = []
    for _ in range(2):  # rotated in between
        (private, public), (pem, signs) = identity(), signing_key()
        drill = Path(kept.put("payme/production/keys/drill", f"# made offline\n{private}\n"))
        writer = Path(kept.put("payme/production/keys/signing", pem))
        with caplog.at_level(logging.DEBUG), caplog.at_level(logging.DEBUG, "botocore"):
            assert str(restore.load_identity(drill).to_public()) == public
            assert signing.public_key(signing.load_private_key(writer)) == signs
        text += [private, pem.splitlines()[1]]
    assert "GetSecretValue" in caplog.text
    assert not [one for one in text if one in caplog.text]
    assert list(tmp_path.iterdir()) == []


def test_the_encryption_key_may_be_an_arn(kept: Kept) -> None:
    for key in ("0f" * 8 + "5e17" * 12, "17" * 8 + "5e0f" * 12):
        variables = {"ENCRYPTION_KEY": kept.put("payme/production/keys/encryption", key), "JWT_SECRET": "another"}
        assert envelope.load_keys(variables, key_id="k1", names=PHONE_NUMBER).secret.hex() == key
        with pytest.raises(KeyRejected, match="JWT_SECRET"):
            envelope.load_keys({**variables, "JWT_SECRET": key}, key_id="k1", names=PHONE_NUMBER)


@pytest.mark.parametrize("what", [*ANSWERS, "nothing"])
def test_a_key_by_its_arn_that_cannot_be_read_is_said(
    what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with answered(what, tmp_path, monkeypatch) as (kind, code), pytest.raises(PaymeOpsError, match=code) as caught:
        restore.load_identity(Path(f"{ARN}:payme/production/keys/drill-AbCdEf"))
    assert type(caught.value) is kind
    assert caught.value.remedy


def test_an_arn_that_leads_nowhere_is_said(kept: Kept) -> None:
    with pytest.raises(SecretMissing) as caught:
        secret.find(Path(f"{ARN}:payme/production/keys/nobody-AbCdEf"))
    assert "payme/production/keys/nobody" in str(caught.value)
    assert "123456789012" not in str(caught.value)
    with pytest.raises(SettingsError, match="names no secret"):
        secret.find(Path("arn:aws:s3:::payme-backups"))
    kept.put("payme/production/keys/empty", "no key\n")
    arn = kept.client.describe_secret(SecretId="payme/production/keys/empty")["ARN"]
    with pytest.raises(SettingsError, match="no usable key"):
        restore.load_identity(Path(arn))
    with pytest.raises(SettingsError, match="not a signing key"):
        signing.load_private_key(Path(arn))


def test_no_connection_or_variable_of_the_desk_holds_a_key(site: Site) -> None:
    keys = {path.name: path.read_text().strip().splitlines() for path in (site.world.root / "keys").iterdir()}
    assert len([lines for lines in keys.values() if any("PRIVATE" in line or "SECRET" in line for line in lines)]) >= 4
    private = [line for lines in keys.values() for line in lines if len(line) > 40 and not line.startswith("#")]
    private.append(site.world.env["ENCRYPTION_KEY"])
    held = {n: v for n, v in site.world.env.items() if n.startswith(("AIRFLOW_CONN_", "AIRFLOW_VAR_"))}
    assert held
    assert not [name for name, value in held.items() if any(one in value for one in private)]
    code = [*(PROJECT / "dags").glob("*.py"), *(PROJECT / "plugins").rglob("*.py")]
    assert not [
        path.name for path in code if "Variable.get" in path.read_text() or "import Variable" in path.read_text()
    ]


def test_what_seals_opens_with_an_identity_by_its_arn(kept: Kept) -> None:
    private, public = identity()
    arn = kept.put("payme/production/keys/drill", private)
    sealed = pyrage.encrypt(b"rows", [seal.parse_recipient("drill", public)])
    assert pyrage.decrypt(sealed, [restore.load_identity(Path(arn))]) == b"rows"


def test_connections_are_asked_for_in_one_place() -> None:
    """Everything else would take what Airflow takes when Secrets Manager is away."""
    folder = PROJECT / "plugins" / "payme_ops"
    code = {path.name: path.read_text() for path in [*folder.rglob("*.py"), *(PROJECT / "dags").glob("*.py")]}
    asks = re.compile(r"Connection\.(?:async_)?get\(|get_connection\(|\w+Hook\(|Variable\.get")
    assert [name for name, text in code.items() if asks.search(text)] == ["connections.py"]
