"""PayMe's world on one machine, built in one place for the demo and for the tests.

`build` makes everything that is only files and numbers: ports, keys, passwords, the files of both doors (libpq
services and AWS profiles for a shell, AIRFLOW_CONN_* for tasks) and the environment that names them. `running`
starts the services in it and loads PayMe's data. What is there already is kept, so a second start finds its data.
"""

import configparser
import hashlib
import io
import json
import os
import secrets
import shutil
import signal
import socket
import stat
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import psutil
import psycopg
import pyrage
from cryptography.fernet import Fernet
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from psycopg import sql

from payme_ops.foundation import opsdb, signing
from sandbox import app_secrets, payme_api, postgres, s3
from sandbox.http import silent
from sandbox.payme_db import generate
from sandbox.supervisor import Process, SandboxError, Supervisor, take_lock

PROJECT = Path(__file__).resolve().parents[1]
SERVICES = (
    *("postgres", "s3", "slack", "sentry", "airflow", "payme_api", "status_page", "mail", "smtp"),
    *("payme_api_staging", "code_host"),
)
# Who may trigger and answer; `auditor` only reads, the event log too.
USERS = ("oncall", "approver", "lead")
AUDITOR = "auditor"
(HOME_BUCKET, HOME_REGION), (COPY_BUCKET, COPY_REGION) = s3.BUCKETS.items()
SLACK_CHANNEL = "payme-ops"
SUPPORT_EMAIL = "support@payme.test"

# Below the range from which the kernel takes the ports of outgoing connections, so that a port kept from the last
# start is not in use by chance.
_PORT_RANGE = range(15000, 32000)
_PORT_VARIABLE = "PAYME_SANDBOX_PORT_"
_PORTS_FILE = "ports.json"

_OWN_DATABASES = ("airflow", "payme_ops")  # each with an owner of the same name
_PAYME_ROLES = ("payme_owner", "payme_app", "payme_db_read", "payme_db_restore", "payme_db_migrate")
# Connections to PostgreSQL that payme_ops knows by name: (role, database).
_CONNECTIONS: Mapping[str, tuple[str, str]] = {
    "payme_db_read": ("payme_db_read", "payme"),
    "payme_db_restore": ("payme_db_restore", "postgres"),
    "payme_db_migrate": ("payme_db_migrate", "payme"),
    "payme_ops_db": ("payme_ops", "payme_ops"),
    "payme_airflow_db": ("airflow", "airflow"),
}
_PROFILES = ("payme_s3_write", "payme_s3_restore", "payme_s3_prune", "payme_secrets")

# What a developer's shell may hold that must not reach the sandbox.
_FOREIGN = ("AIRFLOW_", "_AIRFLOW", "PAYME_", "PG", "AWS_", "SENTRY_", "PYTHONPATH", "PYTHONHOME", "PYTEST_")


@dataclass(frozen=True)
class World:
    """Where everything is. `env` is for a process that stands in this world: the CLI, a test, a task."""

    root: Path
    ports: Mapping[str, int]
    cluster: postgres.Cluster
    secrets: Mapping[str, str] = field(repr=False)
    env: Mapping[str, str] = field(repr=False)

    def url(self, service: str) -> str:
        """Base URL of a service with an HTTP face."""
        return f"http://127.0.0.1:{self.ports[service]}"

    @property
    def credentials(self) -> Path:
        """The file with every password, mode 0600."""
        return self.root / "credentials"

    def conninfo(self, role: str, dbname: str) -> str:
        """libpq connection string of a role."""
        return self.cluster.conninfo(dbname, role, self.secrets[f"postgres.{role}"])


def build(root: Path) -> World:
    """The world in the folder `root`; whatever is there from an earlier start is kept.

    Raises SandboxError when a port fixed by PAYME_SANDBOX_PORT_<SERVICE> is taken.
    """
    root = root.resolve()
    root.mkdir(parents=True, exist_ok=True)
    ports = _ports(_kept_ports(root))
    (root / _PORTS_FILE).write_text(json.dumps(ports, indent=1) + "\n")
    return _assemble(root, ports)


def attach(root: Path) -> World:
    """The world that runs in `root`. Raises SandboxError when none does."""
    root = root.resolve()
    ports = _kept_ports(root)
    if not ports or not is_running(root):
        raise SandboxError("the sandbox is not running", remedy="start it with make demo, in another terminal")
    return watched(_assemble(root, ports))


def watched(world: World) -> World:
    """The world in which the health watch looks at the PayMe API, which has to run: without it, it would be told."""
    return replace(world, env={**world.env, "PAYME_OPS__MONITORING__ENDPOINTS": f"production={world.url('payme_api')}"})


def is_running(root: Path) -> bool:
    """Whether a supervisor holds the folder."""
    if not root.exists():
        return False
    try:
        take_lock(root).close()
    except SandboxError:
        return True
    return False


def _assemble(root: Path, ports: dict[str, int]) -> World:
    keys = root / "keys"
    keys.mkdir(mode=0o700, exist_ok=True)
    passwords = _passwords(root / "credentials")
    cluster = postgres.Cluster(
        bin_dir=postgres.wheel_bin_dir(),
        data_dir=_data_home(root) / "data",
        port=ports["postgres"],
        superuser=postgres.SUPERUSER,
        password=passwords["postgres.postgres"],
    )
    _write_doors(root, ports, passwords)
    env = {
        **_base_environment(),
        **_settings(root, keys),
        "ENCRYPTION_KEY": passwords["payme_api.encryption_key"],
        **_watchdog(root, ports, passwords),
        **_shell_door(root),
        **_airflow_door(ports, passwords),
    }
    return World(root, ports, cluster, passwords, env)


@contextmanager
def running(
    root: Path, *, size: str = "test", say: Callable[[str], None] = lambda _: None
) -> Iterator[tuple[World, Supervisor]]:
    """The world with its services started, its databases made and PayMe's data of that size loaded.

    More processes can be given to the supervisor; all are stopped at the end.
    """
    with Supervisor(root, say) as supervisor:
        world = build(root)
        postgres.init(world.cluster.data_dir, bin_dir=world.cluster.bin_dir, password=world.cluster.password)
        supervisor.start(*services(world))
        say("PayMe's databases and buckets")
        prepare(world, size=size)
        yield world, supervisor


def services(world: World) -> list[Process]:
    """PostgreSQL, S3, and the stand-ins of Slack, Sentry, status page and mail; they do not need each other."""
    pages = {
        "s3": "/moto-api/",
        "slack": "/messages.json",
        "sentry": "/events.json",
        "status_page": "/incidents.json",
        "mail": "/messages.json",
        "code_host": "/",
    }
    states = {name: world.root / ("s3" if name == "s3" else f"{name}.json") for name in pages}
    others = {"mail": ["--smtp-port", str(world.ports["smtp"])]}
    return [
        Process(
            "postgres",
            postgres.command(world.cluster, {}),
            {"PATH": os.defpath, "LC_ALL": "C"},  # no secret of the environment reaches the server
            ready=lambda: None if postgres.accepts(world.cluster) else "a connection",
            stop_signal=signal.SIGINT,  # fast shutdown; SIGTERM would wait for clients
            cwd=Path("/"),
            popen=postgres.unprivileged(),
        ),
        *(
            Process(
                name,
                [
                    sys.executable,
                    "-m",
                    f"sandbox.{name}",
                    "--port",
                    str(world.ports[name]),
                    "--state",
                    str(state),
                    *others.get(name, []),
                ],
                _base_environment(),
                ready=partial(silent, world.url(name) + pages[name]),
                cwd=PROJECT,
            )
            for name, state in states.items()
        ),
    ]


def application(world: World) -> Process:
    """The PayMe API, which writes to its database as long as it is started. The database must be prepared."""
    return _api(world, "payme_api", {})


def staging(world: World) -> Process:
    """The PayMe API of staging, which has no database here."""
    return _api(world, "payme_api_staging", {payme_api.QUIET_VARIABLE: "1"})


def _api(world: World, name: str, more: Mapping[str, str]) -> Process:
    port, state = str(world.ports[name]), str(world.root / f"{name}.json")
    tokens = {
        payme_api.TOKEN_VARIABLE: world.secrets[f"{name}.token"],
        payme_api.DEPLOY_TOKEN_VARIABLE: world.secrets[f"{name}.deploy_token"],
    }
    return Process(
        name,
        [sys.executable, "-m", "sandbox.payme_api", "--port", port, "--state", state],
        {**world.env, **tokens, **more},
        ready=partial(silent, world.url(name) + "/version"),
        cwd=PROJECT,
    )


def watchdog(world: World) -> Process:
    """What tells who has gone silent. Airflow should run, and the first backup be there, or that is what it tells."""
    return Process("watchdog", [sys.executable, "-m", "payme_ops", "watchdog"], world.env, cwd=PROJECT)


def prepare(world: World, *, size: str) -> None:
    """Roles, databases, schema, data and buckets, each unless it is there. The services must run."""
    with psycopg.connect(world.cluster.conninfo(), autocommit=True) as connection:
        for name in _OWN_DATABASES:
            _role(connection, name, world.secrets[f"postgres.{name}"])
            _database(connection, name)
    opsdb.migrate(world.conninfo("payme_ops", "payme_ops"))
    s3.create_buckets(world.url("s3"))
    app_secrets.put(world.url("s3"), world.secrets)
    rows = generate.SIZES[size]
    generate.create(
        world.cluster.conninfo(),
        users=rows.users,
        transactions=rows.transactions,
        seed=1,
        passwords={role: world.secrets[f"postgres.{role}"] for role in _PAYME_ROLES},
    )


def remove(root: Path) -> None:
    """Delete a world with its databases and objects. Raises SandboxError while it runs."""
    if root.exists():
        with take_lock(root):
            shutil.rmtree(_data_home(root.resolve()))
            shutil.rmtree(root)


def _role(connection: psycopg.Connection, role: str, password: str) -> None:
    """Make the role unless it is there; give it its password. The server never sees the password in clear."""
    name = sql.Identifier(role)
    if connection.execute("SELECT FROM pg_roles WHERE rolname = %s", [role]).fetchone() is None:
        connection.execute(sql.SQL("CREATE ROLE {} LOGIN").format(name))
    secret = connection.pgconn.encrypt_password(password.encode(), role.encode(), b"scram-sha-256").decode()
    connection.execute(sql.SQL("ALTER ROLE {} PASSWORD {}").format(name, sql.Literal(secret)))


def _database(connection: psycopg.Connection, name: str) -> None:
    if connection.execute("SELECT FROM pg_database WHERE datname = %s", [name]).fetchone() is None:
        query = sql.SQL("CREATE DATABASE {} OWNER {}").format(sql.Identifier(name), sql.Identifier(name))
        connection.execute(query)


def _data_home(root: Path) -> Path:
    # Named after the whole path: outside the project, where the server's user may need it, worlds would collide.
    return postgres.data_home(root / f"postgres-{hashlib.sha256(bytes(root)).hexdigest()[:8]}")


def _kept_ports(root: Path) -> dict[str, int]:
    kept = root / _PORTS_FILE
    return dict(json.loads(kept.read_text())) if kept.exists() else {}


def _ports(before: Mapping[str, int]) -> dict[str, int]:
    ports: dict[str, int] = {}
    for service in SERVICES:
        ports[service] = _port(service, before.get(service), set(ports.values()))
    return ports


def _port(service: str, before: int | None, taken: set[int]) -> int:
    variable = _PORT_VARIABLE + service.upper()
    if fixed := os.environ.get(variable):
        if not fixed.isdigit() or not 0 < int(fixed) < 65536:
            raise SandboxError(f"{variable} is no port", expected="a number from 1 to 65535", found=repr(fixed))
        if int(fixed) in taken or not _free(int(fixed)):
            raise SandboxError(
                f"port {fixed} of 127.0.0.1, wanted for {service}, is in use",
                found=f"it is held by {_holder(int(fixed))}",
                remedy=f"stop that process, or set {variable} to another port",
            )
        return int(fixed)
    if before is not None and before not in taken and _free(before):
        return before
    while True:
        port = _PORT_RANGE[secrets.randbelow(len(_PORT_RANGE))]
        if port not in taken and _free(port):
            return port


def _free(port: int) -> bool:
    with socket.socket() as probe:
        # As servers do: lingering connections of a former one are no obstacle.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except PermissionError:
            raise SandboxError(f"port {port} is only for root", remedy="choose a port from 1024") from None
        except OSError:
            return False
    return True


def _holder(port: int) -> str:
    try:
        for connection in psutil.net_connections("tcp"):
            listens = connection.status == psutil.CONN_LISTEN and getattr(connection.laddr, "port", 0) == port
            if listens and connection.pid:
                return f"process {connection.pid} ({psutil.Process(connection.pid).name()})"
    except psutil.Error:
        pass  # macOS shows other processes' connections to root only
    return "a process of another user"


def _passwords(path: Path) -> dict[str, str]:
    """`section.name` -> secret. Names that a newer version needs are added to the file, none is changed."""
    wanted: dict[str, Callable[[], str]] = {
        **{f"airflow.{user}": lambda: secrets.token_urlsafe(12) for user in (*USERS, AUDITOR)},
        **{
            f"postgres.{role}": lambda: secrets.token_urlsafe(24)
            for role in (postgres.SUPERUSER, *_OWN_DATABASES, *_PAYME_ROLES)
        },
        **{f"s3.{profile}": lambda: secrets.token_urlsafe(30) for profile in _PROFILES},
        "slack.token": lambda: f"xoxb-sandbox-{secrets.token_hex(16)}",
        "sentry.key": lambda: secrets.token_hex(16),
        **{
            f"{name}.{token}": lambda: secrets.token_hex(16)
            for name in ("payme_api", "payme_api_staging")
            for token in ("token", "deploy_token")
        },
        "code_host.token": lambda: secrets.token_hex(16),
        "payme_api.encryption_key": lambda: secrets.token_hex(32),
        "status_page.key": lambda: secrets.token_hex(16),
        "airflow_internal.fernet_key": lambda: Fernet.generate_key().decode(),
        "airflow_internal.jwt_secret": lambda: secrets.token_hex(64),
        "airflow_internal.secret_key": lambda: secrets.token_hex(32),
    }
    file = configparser.ConfigParser(interpolation=None)
    file.read(path)
    for name, make in wanted.items():
        section, key = name.split(".")
        if not file.has_option(section, key):
            if not file.has_section(section):
                file.add_section(section)
            file.set(section, key, make())
    out = io.StringIO()
    out.write("# Made by the sandbox. [airflow] holds the logins of the Airflow UI.\n\n")
    file.write(out)
    _write_private(path, out.getvalue())
    return {f"{section}.{key}": value for section in file.sections() for key, value in file.items(section)}


def _settings(root: Path, keys: Path) -> dict[str, str]:
    client_dirs = [str(postgres.wheel_bin_dir()), "/usr/lib/postgresql/{major}/bin"]
    return {
        "PAYME_OPS__PROFILE": "sandbox",
        "PAYME_OPS__BACKUP__DATABASE": "payme",
        "PAYME_OPS__BACKUP__BUCKET": HOME_BUCKET,
        "PAYME_OPS__BACKUP__REGION": HOME_REGION,
        "PAYME_OPS__BACKUP__COPY_BUCKET": COPY_BUCKET,
        "PAYME_OPS__BACKUP__COPY_REGION": COPY_REGION,
        "PAYME_OPS__BACKUP__STORAGE_CLASS": "STANDARD_IA",
        "PAYME_OPS__BACKUP__RECIPIENT_RECOVERY": _age_recipient(keys / "recovery.age-identity"),
        "PAYME_OPS__BACKUP__RECIPIENT_DRILL": _age_recipient(keys / "drill.age-identity"),
        "PAYME_OPS__BACKUP__SIGNING_KEY_FILE": str(keys / "signing.pem"),
        "PAYME_OPS__BACKUP__TRUSTED_KEYS": _trusted_key(keys / "signing.pem"),
        "PAYME_OPS__BACKUP__IDENTITY_FILE": str(keys / "drill.age-identity"),
        "PAYME_OPS__BACKUP__VERIFICATION_KEY_FILE": str(keys / "verification.pem"),
        "PAYME_OPS__BACKUP__VERIFICATION_KEYS": _trusted_key(keys / "verification.pem"),
        "PAYME_OPS__BACKUP__SCRATCH_DIR": str(_data_home(root) / "scratch"),
        "PAYME_OPS__POSTGRES__CLIENT_DIRS": ",".join(client_dirs),
        "PAYME_OPS__SLACK__CHANNEL": SLACK_CHANNEL,
        "PAYME_OPS__ALERT__OWNER": "PayMe on call (sandbox)",
        "PAYME_OPS__NOTIFY__SUPPORT_EMAIL": SUPPORT_EMAIL,
        "PAYME_OPS__RELEASE__TEST_MERCHANT": payme_api.TEST_MERCHANT,
    }


def _watchdog(root: Path, ports: Mapping[str, int], passwords: Mapping[str, str]) -> dict[str, str]:
    """What a shell needs besides: Slack and Sentry without Airflow, and a heartbeat monitor, one of Sentry's here."""
    token, auditor = root / "slack_token", root / "airflow_password"
    _write_private(token, passwords["slack.token"] + "\n")
    _write_private(auditor, passwords[f"airflow.{AUDITOR}"] + "\n")
    apis = {}
    for name, variable in (("payme_api", "API"), ("payme_api_staging", "STAGING_API")):
        file = root / f"{name}_token"
        _write_private(file, passwords[f"{name}.token"] + "\n")
        apis[f"PAYME_OPS__WATCHDOG__{variable}_URL"] = f"http://127.0.0.1:{ports[name]}"
        apis[f"PAYME_OPS__WATCHDOG__{variable}_TOKEN_FILE"] = str(file)
    sentry_token = root / "sentry_token"
    _write_private(sentry_token, passwords["sentry.key"] + "\n")
    dsn = root / "sentry_dsn"
    _write_private(dsn, f"http://{passwords['sentry.key']}@127.0.0.1:{ports['sentry']}/1\n")
    monitor = f"api/1/cron/watchdog/{passwords['sentry.key']}/?status=ok"
    return {
        "PAYME_OPS__SLACK__TOKEN_FILE": str(token),
        "PAYME_OPS__SLACK__API_URL": f"http://127.0.0.1:{ports['slack']}/api/",
        "PAYME_OPS__WATCHDOG__AIRFLOW_URL": f"http://127.0.0.1:{ports['airflow']}",
        "PAYME_OPS__WATCHDOG__AIRFLOW_LOGIN": AUDITOR,
        "PAYME_OPS__WATCHDOG__AIRFLOW_PASSWORD_FILE": str(auditor),
        "PAYME_OPS__WATCHDOG__HEARTBEAT_URL": f"http://127.0.0.1:{ports['sentry']}/{monitor}",
        "PAYME_OPS__WATCHDOG__SENTRY_DSN_FILE": str(dsn),
        "PAYME_OPS__SENTRY__URL": f"http://127.0.0.1:{ports['sentry']}",
        "PAYME_OPS__SENTRY__ORGANIZATION": "payme",
        "PAYME_OPS__SENTRY__PROJECT": "api",
        "PAYME_OPS__SENTRY__AIRFLOW_PROJECT": "airflow",
        "PAYME_OPS__SENTRY__TOKEN_FILE": str(sentry_token),
        **apis,
    }


def _age_recipient(path: Path) -> str:
    """The public half of the identity in `path`, in the form age-keygen writes it; made when it is not there."""
    if not path.exists():
        made = pyrage.x25519.Identity.generate()
        _write_private(path, f"# public key: {made.to_public()}\n{made}\n")
    identity = pyrage.x25519.Identity.from_str(path.read_text().splitlines()[-1])
    return str(identity.to_public())


def _trusted_key(path: Path) -> str:
    """The raw public half of the Ed25519 key in `path`, Base64; made when it is not there."""
    if not path.exists():
        pem = Ed25519PrivateKey.generate().private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        _write_private(path, pem.decode())
    return signing.public_key(signing.load_private_key(path))


def _write_doors(root: Path, ports: Mapping[str, int], passwords: Mapping[str, str]) -> None:
    """The files of the shell's door: libpq services with their passwords, AWS profiles with their keys."""
    named = {"payme_owner": ("payme_owner", "payme"), "payme_app": ("payme_app", "payme"), **_CONNECTIONS}
    _write_private(
        root / "pg_service.conf",
        "\n".join(
            f"[{name}]\nhost=127.0.0.1\nport={ports['postgres']}\ndbname={database}\nuser={role}\n"
            for name, (role, database) in named.items()
        ),
    )
    roles = sorted({role for role, _ in named.values()})
    _write_private(
        root / "pgpass",
        "".join(f"127.0.0.1:{ports['postgres']}:*:{role}:{passwords[f'postgres.{role}']}\n" for role in roles),
    )
    _write_private(
        root / "aws_config",
        "\n".join(
            f"[profile {name}]\nregion = {HOME_REGION}\nendpoint_url = http://127.0.0.1:{ports['s3']}\n"
            for name in _PROFILES
        ),
    )
    _write_private(
        root / "aws_credentials",
        "\n".join(
            f"[{name}]\naws_access_key_id = {name}\naws_secret_access_key = {passwords[f's3.{name}']}\n"
            for name in _PROFILES
        ),
    )


def _shell_door(root: Path) -> dict[str, str]:
    return {
        "PGSERVICEFILE": str(root / "pg_service.conf"),
        "PGPASSFILE": str(root / "pgpass"),
        "AWS_CONFIG_FILE": str(root / "aws_config"),
        "AWS_SHARED_CREDENTIALS_FILE": str(root / "aws_credentials"),
    }


def _airflow_door(ports: Mapping[str, int], passwords: Mapping[str, str]) -> dict[str, str]:
    connections: dict[str, dict[str, object]] = {
        name: {
            "conn_type": "postgres",
            "host": "127.0.0.1",
            "port": ports["postgres"],
            "login": role,
            "password": passwords[f"postgres.{role}"],
            "schema": database,
        }
        for name, (role, database) in _CONNECTIONS.items()
    }
    connections |= {
        name: {
            "conn_type": "aws",
            "login": name,
            "password": passwords[f"s3.{name}"],
            "extra": {"region_name": HOME_REGION, "endpoint_url": f"http://127.0.0.1:{ports['s3']}"},
        }
        for name in _PROFILES
    }
    connections["payme_slack"] = {
        "conn_type": "slack",
        "password": passwords["slack.token"],
        "extra": {"base_url": f"http://127.0.0.1:{ports['slack']}/api/"},
    }
    for name, suffix in (("payme_api", ""), ("payme_api_staging", "_staging")):
        host = {"conn_type": "http", "host": f"http://127.0.0.1:{ports[name]}"}
        connections[f"payme_api{suffix}"] = {**host, "password": passwords[f"{name}.token"]}
        connections[f"payme_deploy{suffix}"] = {**host, "password": passwords[f"{name}.deploy_token"]}
    connections["payme_code_host"] = {
        "conn_type": "http",
        "host": f"http://127.0.0.1:{ports['code_host']}",
        "password": passwords["code_host.token"],
        "extra": {"repository": "payme/api"},
    }
    connections["payme_sentry"] = {
        "conn_type": "http",
        "host": f"http://127.0.0.1:{ports['sentry']}",
        "password": passwords["sentry.key"],
        "extra": {
            "organization": "payme",
            "project": "api",
            "airflow_project": "airflow",
            "dsn": f"http://{passwords['sentry.key']}@127.0.0.1:{ports['sentry']}/2",
        },
    }
    connections["payme_airflow_api"] = {
        "conn_type": "http",
        "host": f"http://127.0.0.1:{ports['airflow']}",
        "login": AUDITOR,
        "password": passwords[f"airflow.{AUDITOR}"],
    }
    connections["payme_status_page"] = {
        "conn_type": "http",
        "host": f"http://127.0.0.1:{ports['status_page']}",
        "password": passwords["status_page.key"],
        "extra": {"page_id": "payme"},
    }
    connections["payme_smtp"] = {
        "conn_type": "smtp",
        "host": "127.0.0.1",
        "port": ports["smtp"],
        "extra": {"from_email": "ops@payme.test", "disable_tls": True},
    }
    return {f"AIRFLOW_CONN_{name.upper()}": json.dumps(value) for name, value in connections.items()}


def _base_environment() -> dict[str, str]:
    """The user's environment without what would steer our programs elsewhere."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(_FOREIGN)}
    kept["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), kept.get("PATH", os.defpath)])
    beside = kept.get("NO_PROXY") or kept.get("no_proxy") or ""
    kept["NO_PROXY"] = kept["no_proxy"] = ",".join(filter(None, [beside, "127.0.0.1", "localhost"]))
    return kept


def _write_private(path: Path, text: str) -> None:
    """Write a file that only its owner can read, at no instant otherwise; no half-written file is ever seen."""
    unfinished = path.with_name(f".{path.name}.unfinished")
    unfinished.unlink(missing_ok=True)
    with os.fdopen(os.open(unfinished, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        os.fchmod(file.fileno(), stat.S_IRUSR | stat.S_IWUSR)  # whatever the umask
        file.write(text)
    unfinished.replace(path)
