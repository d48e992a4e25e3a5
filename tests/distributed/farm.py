"""The production host of docker-compose.yaml as processes: Celery, Redis, the desk's database and a worker a queue.

Commands, environments and secrets are those of the compose file (tests/support/compose.py). PayMe's own database, S3
and API are the sandbox's: they are somewhere else, and can be struck without the desk, or the desk without them. What
is added is said in `_OWN`: short waits, so that the tests do not take hours.
"""

import functools
import json
import os
import pwd
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import psutil
import redis

from sandbox import airflow, postgres, s3, world
from sandbox.airflow import Api
from sandbox.http import call
from sandbox.supervisor import Missing, Process, SandboxError, Supervisor
from sandbox.world import AUDITOR, PROJECT, USERS, World
from tests.support import compose, secrets
from tests.support.proxy import Proxy, proxy_before
from tests.support.waiting import eventually

FIRST_ADMIN = "first_admin"
QUEUES = ("default", "restore", "migration", "release", "desk")
SERVERS = ("api-server", "scheduler", "dag-processor", "triggerer")
DAGS = Path(__file__).parent / "dags"
LOGS = "payme-airflow-logs"  # bucket; Airflow asks for names of three characters or more
HEARTBEAT_TIMEOUT_SECONDS = 20
HEALTH_SECONDS = 20.0  # of a health check, as in the compose file
START_SECONDS = 240.0  # 30 on two idle cores
PASSWORD = "sixteen characters and more"
# Who holds which connection, as docs/first-run.md has it (step 8).
_API = ("payme_api", "payme_api_staging", "payme_sentry")
_EVERYBODY = ("payme_slack", "payme_s3_logs")
CONNECTIONS = {
    "dag-processor": _EVERYBODY,
    "triggerer": (*_EVERYBODY, "payme_db_read", "payme_s3_restore", *_API),
    "worker-default": (*_EVERYBODY, "payme_db_read", "payme_s3_write", "payme_s3_prune", "payme_sentry"),
    "worker-restore": (
        *(*_EVERYBODY, *_API),
        *("payme_db_restore", "payme_s3_restore", "payme_code_host", "payme_status_page", "payme_smtp"),
    ),
    "worker-migration": (*_EVERYBODY, *_API, "payme_db_migrate"),
    "worker-release": (
        *(*_EVERYBODY, *_API, "payme_db_read", "payme_deploy", "payme_deploy_staging", "payme_code_host"),
        # Without payme_airflow_api: no pre_deployment has run, which it would tell; so a person is asked.
        *("payme_secrets", "payme_status_page", "payme_smtp"),
    ),
    "worker-desk": (*_EVERYBODY, "payme_s3_write"),
}
# This one has its connections in AWS Secrets Manager, and there the rights of docs/iam; the others in files.
IN_SECRETS_MANAGER = "worker-default"
_KEYS = ("signing.pem", "verification.pem", "drill.age-identity")  # brought to the host by people


@dataclass(frozen=True)
class Farm:
    """The running desk with its workers, and how to strike them."""

    world: World
    desk: postgres.Cluster
    supervisor: Supervisor
    secrets: Path
    store: Proxy  # before S3, for the desk's connections; not for logs
    payme: Proxy  # before PayMe's API
    processes: dict[str, Process] = field(default_factory=dict, repr=False)
    services: dict[str, compose.Service] = field(default_factory=dict, repr=False)

    def ops_connection(self, service: str) -> dict[str, Any]:
        """By which that service works in the ops database."""
        name = self.services[service].environment["PAYME_OPS__DESK__OPS_CONNECTION"]
        if service == IN_SECRETS_MANAGER:
            secret = f"{secrets.CONNECTIONS}/{name}"
            text = secrets.at(self.world.url("s3")).client.get_secret_value(SecretId=secret)["SecretString"]
            return dict(json.loads(text))
        return dict(connections(self.services[service])[name])

    def login(self, user: str = "oncall") -> Api:
        """Airflow's API as that user; `first_admin` is the host's."""
        password = self.secret("airflow_first_admin_password") if user == FIRST_ADMIN else PASSWORD
        url = self.world.url("airflow")
        status, answer = call("POST", f"{url}/auth/token", {"username": user, "password": password})
        assert status == 201, (user, status, answer)
        return Api(url, answer["access_token"])

    @functools.cached_property
    def api(self) -> Api:
        """The same as oncall, who triggers."""
        return self.login()

    def secret(self, name: str) -> str:
        """A secret of the host."""
        return (self.secrets / name).read_text().strip()

    def conninfo(self, database: str) -> str:
        """Of one of the desk's databases, as its owner."""
        return self.desk.conninfo(database, database, self.secret(f"{database}_db_password"))

    def broker(self) -> "redis.Redis":
        """Redis, by the way that workers take."""
        return redis.Redis.from_url(self.broker_url)

    @property
    def broker_url(self) -> str:
        """Of Redis, with its password, as the scheduler has it."""
        return (self.root / "scheduler" / "secrets" / "broker_url").read_text()

    @property
    def root(self) -> Path:
        """The host's folder; each service has one of its name in it."""
        return self.secrets.parent

    def until(self, missing: Missing, what: str, within_seconds: float = 240) -> None:
        """Wait for a condition. What ends meanwhile is started again, as the compose file asks (unless-stopped)."""
        deadline = time.monotonic() + within_seconds
        while True:
            self._start_what_ended()
            if (found := missing()) is None:
                return
            assert time.monotonic() < deadline, f"waited {within_seconds:.0f} s for {what}: {found}"
            time.sleep(0.5)

    def _start_what_ended(self) -> None:
        ended = [name for name, pid in self.supervisor.pids().items() if name in self.processes and has_ended(pid)]
        for name in ended:
            self.supervisor.kill(name)  # it is only forgotten
        with suppress(SandboxError):  # the next one has ended meanwhile
            self.start(*ended)

    def start(self, *names: str) -> None:
        """Start these, return when each is ready."""
        self.supervisor.start(*(self.processes[name] for name in names))

    def crash_database(self) -> None:
        """SIGKILL the desk's PostgreSQL and start it again, and what gives up meanwhile: the scheduler does."""
        since = datetime.now(UTC)
        self.supervisor.kill("desk-postgres")
        with suppress(SandboxError):  # one that gave up
            self.start("desk-postgres")
        self.until(partial(airflow.unhealthy, self.world, since), "Airflow, after its database")

    def cut_redis(self) -> None:
        """Drop every connection to Redis, then let it say nothing until a worker's health check misses it."""
        pid = self.supervisor.pids()["redis"]
        with self.broker() as broker:
            for kind in ("normal", "pubsub"):
                broker.client_kill_filter(_type=kind, skipme=True)
            os.kill(pid, signal.SIGSTOP)
        try:
            assert _unwell(self.services["worker-default"])
        finally:
            os.kill(pid, signal.SIGCONT)
        self.until(lambda: _unwell(self.services["worker-default"]), "the worker, after Redis")

    def stop(self, name: str, number: signal.Signals = signal.SIGTERM) -> None:
        """Stop a component as a service manager does, return when it has ended."""
        pid = self.supervisor.pids()[name]
        os.kill(pid, number)
        eventually(partial(has_ended, pid), f"{name} to end", seconds=60)
        self.supervisor.kill(name)  # it is only forgotten

    def kill_parent(self, name: str) -> None:
        """SIGKILL Celery's parent alone, as the OOM killer may do. Whether the rest lives on is for the rest to say."""
        self.stop(name, signal.SIGKILL)


def has_ended(pid: int) -> bool:
    """Whether nothing of the process is left but its exit code."""
    try:
        return bool(psutil.Process(pid).status() == psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return True


def process_of(task: Mapping[str, Any], *, supervisor: bool = False) -> psutil.Process | None:
    """The process of a task instance, as the API has it, or Airflow's that watches over it; None when there is none."""
    title = f"airflow {'supervisor:' if supervisor else 'worker --'} {task['id']}"
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            if " ".join(process.cmdline()).strip() == title:
                return process
    return None


def unparsed(farm: Farm, dag: str) -> str | None:
    """A ready condition: Airflow knows the DAG."""
    status, _ = call("GET", f"{farm.api.url}/api/v2/dags/{dag}", token=farm.api.token)
    return None if status == 200 else "its file to be read"


@contextmanager
def running(*, size: str = "workers") -> Iterator[Farm]:
    """The world and the host, everything healthy. A minute and a half to start on two cores."""
    folder = PROJECT / ".test"
    folder.mkdir(exist_ok=True)
    root = Path(tempfile.mkdtemp(prefix="farm-", dir=folder))
    root.chmod(0o711)
    try:
        with (
            world.running(root, size=size) as (here, supervisor),
            proxy_before(here.ports["s3"]) as store,
            proxy_before(here.ports["payme_api"]) as payme,
            ExitStack() as stack,
        ):
            # What the caller does itself, it does as the desk.
            stack.enter_context(patch.dict(os.environ, {**_ours(here), "ENCRYPTION_KEY": here.env["ENCRYPTION_KEY"]}))
            farm = _laid_out(here, supervisor, store, payme)
            farm.start("desk-postgres", "redis")
            supervisor.run(farm.processes["init"])
            _logs(farm)
            since = datetime.now(UTC)
            farm.start(*SERVERS, *(f"worker-{queue}" for queue in QUEUES))
            farm.until(partial(airflow.unhealthy, here, since), "Airflow", START_SECONDS)
            _people(farm)
            yield farm
    finally:
        world.remove(root)
        shutil.rmtree(root, ignore_errors=True)


def _laid_out(here: World, supervisor: Supervisor, store: Proxy, payme: Proxy) -> Farm:
    """Secrets, settings and processes of the host. Nothing is started but what makes them."""
    host = here.root / "host"
    host.mkdir(mode=0o711)
    kept = host / "secrets"
    made = subprocess.run([PROJECT / "docker" / "secrets", kept], capture_output=True, text=True, check=False)
    assert made.returncode in (0, 3), made.stderr
    bin_dir = postgres.debian_bin_dir(15)  # the sandbox's own has no TLS
    assert bin_dir, "PostgreSQL 15 of Debian is needed"
    desk = postgres.Cluster(
        bin_dir,
        postgres.data_home(host / "postgres") / "data",
        postgres.free_port(),
        postgres.SUPERUSER,
        (kept / "postgres_superuser").read_text().strip(),
    )
    postgres.init(desk.data_dir, bin_dir=bin_dir, password=desk.password)
    ports = {"postgres": desk.port, "redis": postgres.free_port(), "scheduler": postgres.free_port()}
    farm = Farm(here, desk, supervisor, kept, store, payme)
    _bring(farm)
    settings = host / "env"
    settings.write_text("".join(f"{name}='{value}'\n" for name, value in _settings(here, kept).items()))
    places = compose.places(postgres=ports["postgres"], redis=ports["redis"], api_server=here.ports["airflow"])
    found = compose.services(settings, host, places, own=_own(here, ports))
    _keep_in_secrets_manager(farm, found[IN_SECRETS_MANAGER])
    farm.services.update(found)
    processes = [_desk_postgres(farm), _process(found["redis"], {})]
    processes += [_process(found["init"], {}), *(_process(found[name], {}) for name in SERVERS)]
    processes += [_process(found[f"worker-{queue}"], who) for queue, who in zip(QUEUES, users(), strict=True)]
    farm.processes.update({one.name: one for one in processes})
    return farm


def _bring(farm: Farm) -> None:
    """What people bring to the host: keys, tokens and connections."""
    here, kept = farm.world, farm.secrets
    brought = {name: (here.root / "keys" / name).read_text() for name in _KEYS}
    brought["encryption_key"] = here.env["ENCRYPTION_KEY"]
    for service, names in CONNECTIONS.items():
        name = f"connections_{service}.json"
        known = json.loads((kept / name).read_text())
        brought[name] = json.dumps(known | {one: _connection(farm, one) for one in names})
    # Who that worker is for AWS.
    access = f"secrets_{IN_SECRETS_MANAGER}"
    brought[f"aws_credentials_{IN_SECRETS_MANAGER}"] = (
        f"[default]\naws_access_key_id={access}\naws_secret_access_key={access}\n"
    )
    for name, text in brought.items():
        (kept / name).write_text(text)
    for account in (AUDITOR,):
        (kept / f"airflow_{account}_password").write_text(here.secrets[f"airflow.{account}"])


def _keep_in_secrets_manager(farm: Farm, service: compose.Service) -> None:
    """Its connections, but for the logs', which its environment has."""
    url, file = farm.world.url("s3"), service.folder / "secrets" / "connections.json"
    for name, value in connections(service).items():
        if name != "payme_s3_logs":
            secrets.at(url).connection(name, value)
    file.write_text("{}")
    backend = {name: value for name, value in secrets.environment(url).items() if "WORKERS__" in name}
    service.environment.update(backend)


def connections(service: compose.Service) -> dict[str, Any]:
    """Those in the service's file."""
    return dict(json.loads((service.folder / "secrets" / "connections.json").read_text()))


def _connection(farm: Farm, name: str) -> dict[str, Any]:
    if name == "payme_s3_logs":
        return _logs_connection(farm.world)
    text = farm.world.env[f"AIRFLOW_CONN_{name.upper()}"]
    for service, proxy in (("s3", farm.store), ("payme_api", farm.payme)):
        text = text.replace(f'{farm.world.url(service)}"', f'{proxy.url}"')
    return dict(json.loads(text))


def _logs_connection(here: World) -> dict[str, Any]:
    door = {"region_name": world.HOME_REGION, "endpoint_url": here.url("s3")}
    return {"conn_type": "aws", "login": "logs", "password": "logs", "extra": door}


def _ours(here: World) -> dict[str, str]:
    """Settings of the desk that are no secret."""
    return {
        name: value
        for name, value in here.env.items()
        if name.startswith("PAYME_OPS__") and not name.endswith(("_FILE", "SCRATCH_DIR"))
    }


def _settings(here: World, kept: Path) -> dict[str, str]:
    """The .env of the host."""
    return {
        **_ours(here),
        "PAYME_OPS_SECRETS": str(kept),
        "AIRFLOW__API__BASE_URL": here.url("airflow"),
        "AIRFLOW__WORKERS__SECRETS_BACKEND": "airflow.secrets.local_filesystem.LocalFilesystemBackend",
        "AIRFLOW__WORKERS__SECRETS_BACKEND_KWARGS": '{"connections_file_path": "/run/secrets/connections.json"}',
    }


def _own(here: World, ports: Mapping[str, int]) -> dict[str, str]:
    """What a test says beside the compose file: ports of this machine, short waits, logs in S3, one DAG more."""
    bundle = "airflow.dag_processing.bundles.local.LocalDagBundle"
    bundles = [
        {"name": name, "classpath": bundle, "kwargs": {"path": str(path)}}
        for name, path in (("dags", PROJECT / "dags"), ("distributed", DAGS))
    ]
    options: dict[str, dict[str, object]] = {
        "core": {"default_task_retry_delay": 1, "dags_are_paused_at_creation": False, "parallelism": 16},
        "core ": {"plugins_folder": PROJECT / "plugins", "load_examples": False},
        "api": {"host": "127.0.0.1", "port": here.ports["airflow"], "workers": 1},
        "scheduler": {
            "task_instance_heartbeat_timeout": HEARTBEAT_TIMEOUT_SECONDS,
            "task_instance_heartbeat_timeout_detection_interval": 2,
            "scheduler_health_check_server_port": ports["scheduler"],
            "scheduler_health_check_server_host": "127.0.0.1",
        },
        "dag_processor": {"dag_bundle_config_list": json.dumps(bundles), "refresh_interval": 5, "parsing_processes": 1},
        "logging": {
            "remote_logging": True,
            "remote_base_log_folder": f"s3://{LOGS}/logs",
            "remote_log_conn_id": "payme_s3_logs",
        },
    }
    return {
        **{
            f"AIRFLOW__{section.strip().upper()}__{name.upper()}": str(value)
            for section, group in options.items()
            for name, value in group.items()
        },
        # The API server shows the logs; it has no file of connections.
        "AIRFLOW_CONN_PAYME_S3_LOGS": json.dumps(_logs_connection(here)),
        "PAYME_OPS__RELEASE__SAMPLE_SECONDS": "1",
        "PAYME_OPS__RELEASE__BASELINE_SAMPLES": "5",
        "PAYME_OPS__RELEASE__WATCH_MINUTES": "1",
        "PAYME_OPS__MIGRATION__REST_RATIO": "30",
        "NO_PROXY": "127.0.0.1,localhost",
    }


def _process(service: compose.Service, who: Mapping[str, int]) -> Process:
    """The service; its folder is its user's. Its logs are its own until they are in S3."""
    home = service.folder / "airflow"
    home.mkdir(mode=0o700)
    if service.name in CONNECTIONS:
        (service.folder / "scratch").mkdir(mode=0o700)
    for path in (service.folder, *service.folder.rglob("*")):
        if who:
            os.chown(path, who["user"], who["group"])
    env = {**service.environment, "AIRFLOW__LOGGING__BASE_LOG_FOLDER": str(home / "logs")}
    argv = [*_as(who), *service.command]
    return Process(service.name, argv, env, within_seconds=START_SECONDS, cwd=PROJECT, ready=partial(_unwell, service))


def _unwell(service: compose.Service) -> str | None:
    """Its own health check, as Compose asks it."""
    if not service.health:
        return None
    try:
        look = subprocess.run(
            service.health,
            env=service.environment,
            cwd=PROJECT,
            capture_output=True,
            text=True,
            check=False,
            timeout=HEALTH_SECONDS,
        )
    except subprocess.TimeoutExpired:
        return f"no answer in {HEALTH_SECONDS:.0f} s"
    return None if look.returncode == 0 else (look.stdout + look.stderr).strip()[-200:] or "its health check"


def _desk_postgres(farm: Farm) -> Process:
    """With the certificate of the host's secrets."""
    folder = farm.desk.data_dir.parent
    who = postgres.unprivileged()
    for name in ("postgres.crt", "postgres.key"):
        shutil.copy(farm.secrets / name, folder / name)
        (folder / name).chmod(0o600)
        if who:
            os.chown(folder / name, who["user"], who["group"])
    tls = {"ssl": "on", "ssl_cert_file": f"{folder}/postgres.crt", "ssl_key_file": f"{folder}/postgres.key"}
    return Process(
        "desk-postgres",
        postgres.command(farm.desk, tls),
        {"PATH": os.defpath, "LC_ALL": "C"},
        ready=lambda: None if postgres.accepts(farm.desk) else "a connection",
        stop_signal=signal.SIGINT,
        cwd=Path("/"),
        popen=who,
    )


def _logs(farm: Farm) -> None:
    client = s3.client(farm.world.url("s3"))
    client.create_bucket(Bucket=LOGS, CreateBucketConfiguration={"LocationConstraint": "af-south-1"})


def _people(farm: Farm) -> None:
    """Those who trigger and answer."""
    admin = farm.login(FIRST_ADMIN)
    for user in USERS:
        body = {
            "username": user,
            "email": f"{user}@payme.test",
            "first_name": user,
            "last_name": "PayMe",
            "password": PASSWORD,
            "roles": [{"name": "approver"}],
        }
        status, answer = call("POST", f"{farm.world.url('airflow')}/auth/fab/v1/users", body, token=admin.token)
        assert status == 200, (status, answer)


def users() -> list[dict[str, int]]:
    """A user of the system for each queue; none where this process may not become another, or that could run nothing.

    Users that every Debian has: PostgreSQL, which a restore test starts, wants one that has a name.
    """
    if os.geteuid() != 0 or not all(path.stat().st_mode & 0o001 for path in _NEEDED):
        return [{} for _ in QUEUES]
    if _closed() and subprocess.run(["unshare", "--mount", "true"], capture_output=True, check=False).returncode:
        return [{} for _ in QUEUES]
    named = [one for one in pwd.getpwall() if 0 < one.pw_uid < 100 and one.pw_shell.endswith("nologin")]
    return [{"user": one.pw_uid, "group": one.pw_gid} for one in named[: len(QUEUES)]]


_NEEDED = (Path(sys.base_prefix).resolve(), PROJECT)


def _closed() -> set[Path]:
    """The topmost folders on the way to Python and the project that others may not enter."""
    tops = (next((one for one in reversed(path.parents) if not one.stat().st_mode & 0o001), None) for path in _NEEDED)
    return {one for one in tops if one}


def _as(who: Mapping[str, int]) -> list[str]:
    """What runs the words after it as that user.

    Where Python or the project lie in a folder that is root's alone (/root), the process has that folder with nothing
    else in it: a namespace of its own, in which only they are mounted.
    """
    if not who:
        return []
    change = ["setpriv", f"--reuid={who['user']}", f"--regid={who['group']}", "--clear-groups", "--"]
    closed = _closed()
    if not closed:
        return change
    places = [(path, f"/mnt/{number}") for number, path in enumerate(_NEEDED)]
    hidden = [(path, stash) for path, stash in places if any(path.is_relative_to(top) for top in closed)]
    lines = [
        "set -e; umask 022; mount -t tmpfs tmpfs /mnt",
        *(f'mkdir {stash}; mount --bind "{path}" {stash}' for path, stash in hidden),
        *(f'mount -t tmpfs -o mode=0755 tmpfs "{top}"' for top in closed),
        *(f'mkdir -p "{path}"; mount --bind {stash} "{path}"' for path, stash in hidden),
        f'umount --lazy /mnt; cd "{PROJECT}"; exec "$@"',
    ]
    return ["unshare", "--mount", "/bin/sh", "-c", "\n".join(lines), "sh", *change]
