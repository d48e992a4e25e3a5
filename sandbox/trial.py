"""The secrets and the .env of docker-compose.yaml for a world that is made up: `python -m sandbox.trial FOLDER`.

In production people write the connections into the files of the services that may have them (docs/production.md). Here
they are those of a sandbox's world, and CONNECTIONS says whose they are: docs/iam holds the same for AWS.
"""

import json
import subprocess
from collections.abc import Mapping
from pathlib import Path

from sandbox.world import PROJECT, World

_API = ("payme_api", "payme_api_staging")
_EVERYBODY = ("payme_ops_db", "payme_slack")
# Which service may have which connection; nobody has another.
CONNECTIONS: Mapping[str, tuple[str, ...]] = {
    "dag-processor": _EVERYBODY,
    "triggerer": (*_EVERYBODY, "payme_db_read", "payme_s3_restore", "payme_sentry", *_API),
    "worker-default": (*_EVERYBODY, "payme_db_read", "payme_s3_write", "payme_s3_prune", "payme_sentry"),
    "worker-restore": (
        *(*_EVERYBODY, "payme_db_restore", "payme_s3_restore", "payme_code_host", "payme_status_page", "payme_smtp"),
        *_API,
    ),
    "worker-migration": (*_EVERYBODY, "payme_db_migrate", *_API),
    "worker-release": (
        *(*_EVERYBODY, "payme_deploy", "payme_deploy_staging", "payme_code_host", "payme_secrets"),
        *("payme_airflow_api", "payme_status_page", "payme_smtp", *_API),
    ),
    "worker-desk": (*_EVERYBODY, "payme_airflow_db", "payme_s3_write", "payme_airflow_api"),
}
# The desk's own databases are beside it in docker-compose.yaml, and docker/secrets knows them.
_MADE = ("payme_ops_db", "payme_airflow_db")


def write(folder: Path, world: World, more: Mapping[str, str]) -> Path:
    """Fill `folder`/secrets for that world; answers the file `folder`/env, with `more` in it.

    What is there already is replaced, but for what docker/secrets keeps.
    """
    secrets = folder / "secrets"
    made = subprocess.run([PROJECT / "docker" / "secrets", secrets], check=False, capture_output=True, text=True)
    if made.returncode not in (0, 3):  # 3: what is written here is not there yet
        raise RuntimeError(made.stderr)
    for service, wanted in CONNECTIONS.items():
        file = secrets / f"connections_{service}.json"
        kept = {name: value for name, value in json.loads(file.read_text()).items() if name in _MADE}
        given = {name: json.loads(world.env[f"AIRFLOW_CONN_{name.upper()}"]) for name in wanted if name not in _MADE}
        _put(file, json.dumps({**kept, **given}, indent=1))
    keys = world.root / "keys"
    for name in ("signing.pem", "verification.pem", "drill.age-identity"):
        _put(secrets / name, (keys / name).read_text())
    _put(secrets / "encryption_key", world.env["ENCRYPTION_KEY"])
    for variable, name in (
        ("PAYME_OPS__SLACK__TOKEN_FILE", "slack_token"),
        ("PAYME_OPS__WATCHDOG__API_TOKEN_FILE", "payme_api_token"),
        ("PAYME_OPS__WATCHDOG__SENTRY_DSN_FILE", "sentry_dsn"),
    ):
        _put(secrets / name, Path(world.env[variable]).read_text())
    credentials = Path(world.env["AWS_SHARED_CREDENTIALS_FILE"]).read_text()
    for service in ("init", "watchdog"):
        _put(secrets / f"aws_credentials_{service}", credentials)
    named = {n: v for n, v in world.env.items() if n.startswith("PAYME_OPS__") and not n.endswith(("_FILE", "_LOGIN"))}
    said = {
        **named,
        "PAYME_OPS_SECRETS": str(secrets),
        "AIRFLOW__WORKERS__SECRETS_BACKEND": "airflow.secrets.local_filesystem.LocalFilesystemBackend",
        "AIRFLOW__WORKERS__SECRETS_BACKEND_KWARGS": '{"connections_file_path": "/run/secrets/connections.json"}',
        "AWS_ENDPOINT_URL_S3": world.url("s3"),
        **more,
    }
    env = folder / "env"
    env.write_text("".join(f"{name}='{value}'\n" for name, value in said.items()))
    return env


def _put(file: Path, text: str) -> None:
    """In place of what is there, with its owner and mode."""
    file.chmod(0o600)
    file.write_text(text)
    file.chmod(0o400)
