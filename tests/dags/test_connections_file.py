"""Connections out of a file of the service's own: found, changed without a restart, and nothing else in their place."""

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from airflow.sdk._shared.secrets_masker import redact
from airflow.sdk.configuration import clear_secrets_backends_cache
from airflow.sdk.exceptions import AirflowNotFoundException

from payme_ops.foundation.errors import SettingsError
from payme_ops.orchestration import connections

DATABASE = {
    "conn_type": "postgres",
    "host": "db.payme.test",
    "port": 5432,
    "schema": "payme",
    "login": "payme_db_read",
    "password": "what-the-file-holds-for-the-reader",
    "extra": {"sslmode": "verify-full", "sslrootcert": "/run/secrets/ca.crt"},
}


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The file of an Airflow process of production whose backend it is."""
    place = tmp_path / "connections.json"
    for name in [name for name in os.environ if name.startswith(("AIRFLOW_CONN_", "PAYME_OPS__"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PAYME_OPS__PROFILE", "production")
    monkeypatch.setenv("AIRFLOW__WORKERS__SECRETS_BACKEND", "airflow.secrets.local_filesystem.LocalFilesystemBackend")
    monkeypatch.setenv("AIRFLOW__WORKERS__SECRETS_BACKEND_KWARGS", json.dumps({"connections_file_path": str(place)}))
    clear_secrets_backends_cache()
    yield place
    clear_secrets_backends_cache()


def test_a_connection_is_what_the_file_says_at_this_moment(file: Path) -> None:
    for password in ("first-password", "second-password"):
        file.write_text(json.dumps({"payme_db_read": {**DATABASE, "password": password}}))
        assert connections.conninfo("payme_db_read") == (
            f"host=db.payme.test port=5432 dbname=payme user=payme_db_read password={password}"
            " sslmode=verify-full sslrootcert=/run/secrets/ca.crt"
        )


def test_what_is_secret_in_it_is_masked_in_logs_also_in_its_extra(file: Path) -> None:
    key = {"aws_access_key_id": "AKIA", "aws_secret_access_key": "the-secret-of-the-key", "region_name": "af-south-1"}
    file.write_text(
        json.dumps({"payme_db_read": DATABASE, "payme_s3_write": {"conn_type": "aws", "extra": key}}),
    )
    for name in ("payme_db_read", "payme_s3_write"):
        connections.require(name)
    shown = redact("what-the-file-holds-for-the-reader, the-secret-of-the-key in af-south-1")
    assert shown == "***, *** in af-south-1"


def test_what_is_not_in_it_is_taken_from_nowhere_else(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file.write_text(json.dumps({"payme_db_read": DATABASE}))
    monkeypatch.setenv("AIRFLOW_CONN_PAYME_SLACK", json.dumps({"conn_type": "slack", "password": "xoxb-stale"}))
    with pytest.raises(AirflowNotFoundException):
        connections.require("payme_slack")
    assert connections.code_host() is None  # an optional one


def test_production_refuses_the_same_connections_as_from_elsewhere(file: Path) -> None:
    file.write_text(json.dumps({"payme_db_read": {**DATABASE, "host": "127.0.0.1"}}))
    with pytest.raises(SettingsError, match="loopback"):
        connections.require("payme_db_read")


@pytest.mark.parametrize(
    "text",
    [
        *(
            "",
            "no json, what-the-file-holds-for-the-reader",
            '["what-the-file-holds-for-the-reader"]',
            '"what-the-file-holds-for-the-reader"',
        ),
        *('{"payme_db_read": "postgres://payme:what-the-file-holds-for-the-reader@db"}', '{"payme_db_read": null}'),
        *('{"payme_db_read": {"password": "what-the-file-holds-for-the-reader"}}',),
        *('{"payme_db_read": {"conn_type": "postgres", "pasword": "what-the-file-holds-for-the-reader"}}',),
    ],
)
def test_a_file_that_is_something_else_is_named_and_not_quoted(file: Path, text: str) -> None:
    file.write_text(text)
    with pytest.raises(SettingsError) as error:
        connections.require("payme_db_read")
    assert file.name in str(error.value)
    assert "what-the-file" not in str(error.value)


def test_a_file_that_cannot_be_read_is_an_error_and_no_missing_connection(file: Path) -> None:
    with pytest.raises(SettingsError, match=file.name):  # not there
        connections.code_host()
    file.mkdir()
    with pytest.raises(SettingsError, match=file.name):
        connections.code_host()
