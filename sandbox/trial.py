"""PayMe's world in a container, for the profile `trial` of docker-compose.yaml (docs/production.md, "Try it").

    python -m sandbox.trial make FOLDER          # its secrets and its .env; as root, so that each file has its owner
    python -m sandbox.trial serve WORLD S3       # the service payme-api: everything but S3, until stopped
    python -m sandbox.trial health WORLD

In production people write the connections into the files of the services that may have them. Here they are those of
the world, and CONNECTIONS says whose they are; docs/iam holds the same for AWS.
"""

import asyncio
import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Collection, Mapping
from functools import partial
from pathlib import Path

from sandbox import s3
from sandbox import world as worlds
from sandbox.http import silent
from sandbox.world import PROJECT, World

_API = ("payme_api", "payme_api_staging")
_EVERYBODY = ("payme_ops_db_worker", "payme_slack")
# Which service may have which connection; nobody has another.
CONNECTIONS: Mapping[str, tuple[str, ...]] = {
    "dag-processor": _EVERYBODY,
    "triggerer": (*_EVERYBODY, "payme_db_read", "payme_s3_restore", "payme_sentry", *_API),
    "worker-default": (*_EVERYBODY, "payme_db_read", "payme_s3_write", "payme_s3_prune", "payme_sentry"),
    "worker-restore": (
        *("payme_ops_db_restore", "payme_slack", "payme_db_restore", "payme_s3_restore"),
        *("payme_code_host", "payme_status_page", "payme_smtp", "payme_api"),
    ),
    "worker-migration": (*_EVERYBODY, "payme_db_migrate", "payme_api"),
    "worker-release": (
        *("payme_ops_db_release", "payme_slack"),
        *("payme_deploy", "payme_deploy_staging", "payme_code_host", "payme_secrets"),
        *("payme_airflow_api", "payme_status_page", "payme_smtp", *_API),
    ),
    "worker-desk": ("payme_ops_db", "payme_slack", "payme_airflow_db", "payme_s3_write"),
}
# The desk's own databases are beside it in docker-compose.yaml, and docker/secrets knows them.
_MADE = (
    *("payme_ops_db", "payme_ops_db_worker", "payme_ops_db_restore", "payme_ops_db_release"),
    "payme_airflow_db",
)
_HERE, _CONTAINER, _STORE = "127.0.0.1", "payme-api", "s3:8333"
_USER, _STORES_USER = 50000, 1000  # of the images


def make(folder: Path) -> None:
    """Everything that the trial's containers mount, in `folder`; what is there already is kept."""
    world = worlds.build(folder / "world")
    env = write(
        folder,
        world,
        {
            "AIRFLOW__API__BASE_URL": "http://localhost:8080",
            "AWS_ENDPOINT_URL_S3": f"http://{_STORE}",
            "PAYME_OPS__BACKUP__REGION": "us-east-1",  # SeaweedFS knows no other
            "PAYME_OPS_ENV_FILE": str(folder / "env"),
            "PAYME_OPS_TRIAL": str(folder / "world"),
        },
    )
    for file in (folder / "secrets").glob("connections_*.json"):
        known = json.loads(file.read_text())
        for name, connection in known.items():
            where = f"{_HERE}:{world.ports['s3']}", _STORE
            text = json.dumps(connection).replace(*where) if name.startswith("payme_s3_") else json.dumps(connection)
            known[name] = json.loads(text.replace(_HERE, _CONTAINER))
        _put(file, json.dumps(known, indent=1))
    dsn = folder / "secrets" / "sentry_dsn"
    _put(dsn, dsn.read_text().replace(_HERE, _CONTAINER))
    # The image has its own programs of PostgreSQL and a volume for restores.
    lines = [
        line for line in env.read_text().splitlines() if "_CLIENT_DIRS=" not in line and "_SCRATCH_DIR=" not in line
    ]
    env.write_text("\n".join(lines).replace(_HERE, _CONTAINER) + "\n")
    _put(folder / "secrets" / "trial_s3.json", json.dumps({"identities": _identities(world)}, indent=1))
    # Without a key of its own it takes no object into a bucket that is encrypted by default.
    _put(folder / "secrets" / "trial_security.toml", f'[s3.sse]\nkey = "{world.secrets["postgres.postgres"]}"\n')
    if os.geteuid() == 0:
        for name in ("trial_s3.json", "trial_security.toml"):
            shutil.chown(folder / "secrets" / name, _STORES_USER, _STORES_USER)
        for place in (folder / "world", *(folder / "world").rglob("*")):
            shutil.chown(place, _USER, 0)


def write(folder: Path, world: World, more: Mapping[str, str]) -> Path:
    """Fill `folder`/secrets with what that world has; answers the file `folder`/env, with `more` in it.

    What is there already is replaced, but for what docker/secrets keeps.
    """
    secrets = folder / "secrets"
    made = subprocess.run([PROJECT / "docker" / "secrets", secrets], check=False, capture_output=True, text=True)
    if made.returncode not in (0, 3):  # 3: what is written below is not there yet
        raise RuntimeError(made.stderr)
    for service, wanted in CONNECTIONS.items():
        file = secrets / f"connections_{service}.json"
        kept = {name: value for name, value in json.loads(file.read_text()).items() if name in _MADE}
        given = {name: json.loads(world.env[f"AIRFLOW_CONN_{name.upper()}"]) for name in wanted if name not in _MADE}
        if auditor := given.get("payme_airflow_api"):
            auditor |= {
                "host": "http://api-server:8080",
                "password": (secrets / "airflow_auditor_password").read_text().strip(),
            }
        _put(file, json.dumps({**kept, **given}, indent=1))
    for name in ("signing.pem", "verification.pem", "drill.age-identity"):
        _put(secrets / name, (world.root / "keys" / name).read_text())
    _put(secrets / "encryption_key", world.env["ENCRYPTION_KEY"])
    for variable, name in (
        ("PAYME_OPS__SLACK__TOKEN_FILE", "slack_token"),
        ("PAYME_OPS__WATCHDOG__API_TOKEN_FILE", "payme_api_token"),
        ("PAYME_OPS__WATCHDOG__STAGING_API_TOKEN_FILE", "payme_api_staging_token"),
        ("PAYME_OPS__WATCHDOG__SENTRY_DSN_FILE", "sentry_dsn"),
    ):
        _put(secrets / name, Path(world.env[variable]).read_text())
    for service in ("init", "watchdog"):
        _put(secrets / f"aws_credentials_{service}", Path(world.env["AWS_SHARED_CREDENTIALS_FILE"]).read_text())
    # Files and logins are the services' own; the rest is one for all.
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
    """In place of what is there, if anything is, with its owner."""
    file.touch(mode=0o600)
    file.chmod(0o600)
    file.write_text(text)
    file.chmod(0o400)


def _identities(world: World) -> list[dict[str, object]]:
    """Who SeaweedFS lets in. All may do all: it shows a bucket's encryption and Object Lock to an Admin only."""
    names = ("payme_s3_write", "payme_s3_restore", "payme_s3_prune")
    keys = {"sandbox": world.secrets["postgres.postgres"], **{name: world.secrets[f"s3.{name}"] for name in names}}
    return [
        {
            "name": name,
            "credentials": [{"accessKey": name, "secretKey": key}],
            "actions": ["Admin", "Read", "List", "Write", "Tagging"],
        }
        for name, key in keys.items()
    ]


def serve(root: Path, store: str, address: str) -> None:
    """The world without its S3, reached from other containers at `address`, until SIGTERM.

    The sandbox listens on 127.0.0.1 only, so each port of that address is forwarded to it.
    """
    with worlds.running(root, say=print) as (world, supervisor):
        os.environ[s3.PASSWORD_VARIABLE] = world.secrets["postgres.postgres"]
        s3.create_buckets(store)
        supervisor.start(worlds.application(world), worlds.staging(world))
        asyncio.run(_forward(address, world.ports.values()))


async def _forward(address: str, ports: Collection[int]) -> None:
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    servers = [await asyncio.start_server(partial(_accept, port), address, port) for port in ports]
    print("payme-api: the world is there", flush=True)
    await stop.wait()
    for server in servers:
        server.close()


async def _accept(port: int, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):  # one side is gone: so is the connection
        there_reader, there_writer = await asyncio.open_connection(_HERE, port)
        await asyncio.gather(_copy(reader, there_writer), _copy(there_reader, writer))
    writer.close()


async def _copy(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
    while data := await source.read(65536):
        sink.write(data)
        await sink.drain()
    sink.write_eof()


def health(root: Path) -> int:
    """0 when the PayMe API answers."""
    port = json.loads((root / "ports.json").read_text())["payme_api"]
    wrong = silent(f"http://{_HERE}:{port}/version")
    print(wrong or "well")
    return 1 if wrong else 0


if __name__ == "__main__":
    what, folder = sys.argv[1], Path(sys.argv[2])
    if what == "make":
        make(folder.resolve())
    elif what == "serve":
        serve(folder, sys.argv[3], socket.gethostbyname(socket.gethostname()))
    else:
        sys.exit(health(folder))
