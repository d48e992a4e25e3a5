"""The application's variables from AWS Secrets Manager, by its API over HTTP; no value is shown."""

import json
from collections.abc import Iterator
from pathlib import Path

import boto3
import pytest
from moto.server import ThreadedMotoServer
from typer.testing import CliRunner

from payme_ops.cli import app, env
from payme_ops.foundation.errors import SettingsError, Unavailable
from payme_ops.foundation.evidence import Verdict
from payme_ops.foundation.settings import Profile
from payme_ops.release.app_env import SECRETS
from sandbox import app_secrets
from sandbox.http import call

SECRET = "payme/production/secrets"
COMMAND = ["env", "check", "--environment", "production", "--json", "--secret"]
JWT = "a-secret-that-is-too-short"


@pytest.fixture
def aws(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A server of Secrets Manager's protocol, and the AWS profile that leads to it."""
    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    assert call("POST", f"http://{host}:{port}/moto-api/reset")[0] == 200  # what it keeps is one for the process
    config, credentials = tmp_path / "config", tmp_path / "credentials"
    config.write_text(f"[profile payme_secrets]\nregion = af-south-1\nendpoint_url = http://{host}:{port}\n")
    credentials.write_text("[payme_secrets]\naws_access_key_id = a\naws_secret_access_key = b\n")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(config))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(credentials))
    try:
        yield f"http://{host}:{port}"
    finally:
        server.stop()


@pytest.mark.usefixtures("aws")
def test_a_secret_is_checked_and_not_shown() -> None:
    client = boto3.Session(profile_name="payme_secrets").client("secretsmanager")
    client.create_secret(Name=SECRET, SecretString=json.dumps({"JWT_SECRET": JWT, "PORT": 3000}))
    ended = CliRunner().invoke(app, [*COMMAND, SECRET])
    assert ended.exit_code == 3
    found = json.loads(ended.stdout)
    assert {"variable": "JWT_SECRET", "what": "is shorter than 32 characters"} in found["measured"]["problems"]
    assert "PORT" not in str(found["measured"]["problems"])
    assert JWT not in ended.output


@pytest.mark.usefixtures("aws")
def test_a_secret_nobody_has_or_that_is_none_is_refused() -> None:
    missing = CliRunner().invoke(app, [*COMMAND, "payme/nowhere"])
    assert isinstance(missing.exception, SettingsError)
    assert "ResourceNotFoundException" in str(missing.exception)
    client = boto3.Session(profile_name="payme_secrets").client("secretsmanager")
    client.create_secret(Name=SECRET, SecretString=f"JWT_SECRET={JWT}")
    text = CliRunner().invoke(app, [*COMMAND, SECRET])
    assert isinstance(text.exception, SettingsError)
    assert JWT not in str(text.exception)


@pytest.mark.usefixtures("aws")
def test_doctor_looks_at_the_secret_of_its_own_environment() -> None:
    [missing] = env.of_doctor(Profile.PRODUCTION, "doctor")
    assert (missing.item, missing.verdict) == ("application_environment", Verdict.FAIL)
    assert missing.source == "secret payme/production/secrets"
    client = boto3.Session(profile_name="payme_secrets").client("secretsmanager")
    good = app_secrets.values("staging", {"payme_api.encryption_key": "0123456789abcdef" * 4})
    client.create_secret(Name="payme/staging/secrets", SecretString=json.dumps(good))
    [found] = env.of_doctor(Profile.STAGING, "doctor")
    assert (found.verdict, found.measured["problems"]) == (Verdict.PASS, [])
    assert not any(value in str(found) for name, value in good.items() if name in SECRETS)


def test_doctor_without_the_profile_does_not_ask(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE"):
        monkeypatch.setenv(name, str(tmp_path / "none"))
    assert env.of_doctor(Profile.PRODUCTION, "doctor") == []


def test_without_the_profile_it_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE"):
        monkeypatch.setenv(name, str(tmp_path / "none"))
    ended = CliRunner().invoke(app, [*COMMAND, SECRET])
    assert isinstance(ended.exception, Unavailable)
    assert "payme_secrets" in str(ended.exception)


def test_one_source_is_asked_for(tmp_path: Path) -> None:
    both = CliRunner().invoke(app, [*COMMAND, SECRET, "--file", str(tmp_path / "x")])
    assert isinstance(both.exception, SettingsError)
