"""A real Airflow on the sandbox's PostgreSQL: its environment, its four processes, and a small API client.

Each process runs on its own, not under `airflow standalone`: that one leaves its children behind when it gets
SIGTERM. Everything listens on 127.0.0.1; the log servers, which would listen on every interface, stay off, as
all processes share one disk.
"""

import itertools
import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any
from urllib.parse import quote

import psycopg
from psycopg import sql

from sandbox.http import call
from sandbox.supervisor import Process, SandboxError, Supervisor
from sandbox.world import AUDITOR, PROJECT, USERS, World

COMPONENTS = ("api-server", "scheduler", "dag-processor", "triggerer")
ASKED_FOR_SECONDS = 10
START_SECONDS = 180.0  # about 25 on two idle cores
_HEALTH = ("metadatabase", "scheduler", "triggerer", "dag_processor")
_DONE = ("success", "failed", "skipped", "upstream_failed")
_PAGE = 100  # the API's largest
# A task goes by its Airflow connections: without these it cannot take the shell's door unnoticed.
_NOT_FOR_TASKS = (
    "PGSERVICEFILE",
    "PGPASSFILE",
    "AWS_CONFIG_FILE",
    "AWS_SHARED_CREDENTIALS_FILE",
    "PAYME_OPS__SLACK__TOKEN_FILE",
    "PAYME_OPS__WATCHDOG__AIRFLOW_PASSWORD_FILE",
    "PAYME_OPS__WATCHDOG__API_TOKEN_FILE",
    "PAYME_OPS__WATCHDOG__STAGING_API_TOKEN_FILE",
    "PAYME_OPS__WATCHDOG__SENTRY_DSN_FILE",
    "PAYME_OPS__SENTRY__TOKEN_FILE",
)
# Two hours of watching take a minute here, and half an hour of looking before it as long.
_QUICK = {
    "PAYME_OPS__RELEASE__SAMPLE_SECONDS": "1",
    "PAYME_OPS__RELEASE__BASELINE_SAMPLES": "55",
    "PAYME_OPS__RELEASE__WATCH_MINUTES": "1",
}


def environment(world: World, *, dags: Path = PROJECT / "dags") -> dict[str, str]:
    """The environment of every Airflow process. Writes the password file of its users."""
    home = world.root / "airflow"
    home.mkdir(mode=0o700, exist_ok=True)
    logins = home / "logins.json"
    logins.touch(mode=0o600)
    logins.write_text(json.dumps({user: world.secrets[f"airflow.{user}"] for user in (*USERS, AUDITOR)}))
    dsn = f"http://{world.secrets['sentry.key']}@127.0.0.1:{world.ports['sentry']}/1"
    database = (
        f"postgresql+psycopg2://airflow:{world.secrets['postgres.airflow']}@127.0.0.1:{world.ports['postgres']}/airflow"
    )
    options: dict[str, dict[str, object]] = {
        "core": {
            "dags_folder": dags,
            "plugins_folder": PROJECT / "plugins",
            "executor": "LocalExecutor",
            "parallelism": 4,  # workers are forked at the start, 32 by default
            "default_task_retry_delay": 15,  # not five minutes: who looks on waits
            "load_examples": False,
            "dags_are_paused_at_creation": False,
            "fernet_key": world.secrets["airflow_internal.fernet_key"],
            "execution_api_server_url": f"{world.url('airflow')}/execution/",
            # `user` may trigger runs and answer approvals, and sees no connection or variable.
            "simple_auth_manager_users": ",".join([*(f"{user}:user" for user in USERS), f"{AUDITOR}:viewer"]),
            "simple_auth_manager_passwords_file": logins,
        },
        "api": {
            "host": "127.0.0.1",
            "port": world.ports["airflow"],
            "base_url": world.url("airflow"),
            "workers": 1,
            "secret_key": world.secrets["airflow_internal.secret_key"],
        },
        "api_auth": {"jwt_secret": world.secrets["airflow_internal.jwt_secret"]},
        "database": {"sql_alchemy_conn": database},
        "dag_processor": {
            "refresh_interval": 5,  # seconds between looks for new files
            "parsing_processes": 1,
        },
        "sentry": {
            "sentry_on": True,
            "sentry_dsn": dsn,
            "environment": "sandbox",
            "release": "payme-ops@sandbox",
            "traces_sample_rate": 1.0,
            # Local variables hold passwords; Sentry knows nothing of Airflow's masking.
            "include_local_variables": False,
            "send_default_pii": False,
        },
        "usage_data_collection": {"enabled": False},
    }
    tasks = {name: value for name, value in world.env.items() if name not in _NOT_FOR_TASKS}
    return {
        **tasks,
        **_QUICK,
        "AIRFLOW_HOME": str(home),
        **{
            f"AIRFLOW__{section.upper()}__{name.upper()}": str(value)
            for section, group in options.items()
            for name, value in group.items()
        },
    }


def start(world: World, supervisor: Supervisor, env: Mapping[str, str]) -> None:
    """Bring the metadata database up to date, start the four processes, return when all are healthy.

    Raises SandboxError.
    """
    migrate(world, supervisor, env)
    since = datetime.now(UTC)
    supervisor.start(
        *(
            Process(f"airflow-{name}", _command(name), env, within_seconds=START_SECONDS, cwd=PROJECT)
            for name in COMPONENTS
        )
    )
    supervisor.until(partial(unhealthy, world, since), "Airflow", START_SECONDS)


def migrate(world: World, supervisor: Supervisor, env: Mapping[str, str]) -> None:
    """`airflow db migrate`, unless this version has done it (it takes ten seconds to find nothing to do)."""
    mark = f"migrated to {version('apache-airflow')}"
    with psycopg.connect(world.conninfo("airflow", "airflow"), autocommit=True) as connection:
        query = "SELECT shobj_description(oid, 'pg_database') FROM pg_database WHERE datname = current_database()"
        row = connection.execute(query).fetchone()
        if row is not None and row[0] == mark:
            return
        supervisor.run(
            Process("airflow-migrate", _airflow("db", "migrate"), env, within_seconds=START_SECONDS, cwd=PROJECT)
        )
        # The mark is in the database itself: it goes when the database goes.
        connection.execute(sql.SQL("COMMENT ON DATABASE airflow IS {}").format(sql.Literal(mark)))


def _airflow(*words: str) -> list[str]:
    return [sys.executable, "-m", "airflow", *words]


def _command(component: str) -> list[str]:
    serves_logs = component in ("scheduler", "triggerer")
    return _airflow(component, *(["--skip-serve-logs"] if serves_logs else []))


def unhealthy(world: World, since: datetime) -> str | None:
    """What is not healthy yet; None when all is. A heartbeat older than `since` is one of the last start."""
    try:
        status, health = call("GET", f"{world.url('airflow')}/api/v2/monitor/health")
    except OSError:
        return "its API server"
    if status != 200:
        return f"its API server (status {status})"
    waiting = [name for name in _HEALTH if not _beats(health[name], name, since)]
    return ", ".join(waiting).replace("_", "-") or None


def _beats(part: Mapping[str, Any], name: str, since: datetime) -> bool:
    if part["status"] != "healthy":
        return False
    beat = part.get(f"latest_{name}_heartbeat")
    return name == "metadatabase" or (beat is not None and datetime.fromisoformat(beat) >= since)


@dataclass(frozen=True)
class Api:
    """Airflow's REST API as one user."""

    url: str
    token: str = field(repr=False)

    def call(self, method: str, path: str, body: object = None) -> Any:
        """The answer's body. Raises SandboxError for any status from 400, with what the API said."""
        status, answer = call(method, f"{self.url}/api/v2{path}", body, token=self.token)
        if status >= 400:
            raise SandboxError(f"Airflow's API answered {status} to {method} {path}", found=str(answer)[:500])
        return answer

    def dag_missing(self, dag: str, since: datetime) -> str | None:
        """A ready condition: the DAG's file has been read since then. Import errors are told at once."""
        errors = self.call("GET", "/importErrors")["import_errors"]
        if errors:
            raise SandboxError(
                f"{errors[0]['filename']} cannot be imported by Airflow",
                found=errors[0]["stack_trace"].strip().splitlines()[-1],
            )
        status, answer = call("GET", f"{self.url}/api/v2/dags/{dag}", token=self.token)
        parsed = answer.get("last_parsed_time") if status == 200 else None
        if parsed is None or datetime.fromisoformat(parsed) < since:
            return "its file to be read by the dag-processor"
        return None

    def busy(self, dag: str) -> str | None:
        """A ready condition: no run of the DAG is active or due. After a pause a missed slot is due at once."""
        runs = self.call("GET", f"/dags/{dag}/dagRuns?state=queued&state=running&limit=1")["dag_runs"]
        if runs:
            return f"the end of {runs[0]['dag_run_id']}"
        due = self.call("GET", f"/dags/{dag}")["next_dagrun_run_after"]
        if due is not None and datetime.fromisoformat(due) <= datetime.now(UTC):
            return "the run of the slot it missed"
        return None

    def trigger(self, dag: str, conf: Mapping[str, object] | None = None) -> str:
        """Start a run; returns its id."""
        body = {"logical_date": None, "conf": dict(conf or {})}
        return str(self.call("POST", f"/dags/{dag}/dagRuns", body)["dag_run_id"])

    def state(self, dag: str, run: str) -> str:
        """queued, running, success or failed."""
        return str(self.call("GET", f"/dags/{dag}/dagRuns/{quote(run)}")["state"])

    def tasks(self, dag: str, run: str) -> list[dict[str, Any]]:
        """Task instances of a run, in the order in which they started; those that did not are last."""
        found: list[dict[str, Any]] = []
        for number in itertools.count():
            where = f"limit={_PAGE}&offset={number * _PAGE}&order_by=id"
            page = self.call("GET", f"/dags/{dag}/dagRuns/{quote(run)}/taskInstances?{where}")["task_instances"]
            found += page
            if len(page) < _PAGE:
                break
        return sorted(found, key=lambda task: task["start_date"] or "9")

    def unfinished(self, dag: str, run: str) -> str | None:
        """A ready condition: the run has ended, well or not."""
        if self.state(dag, run) in ("success", "failed"):
            return None
        tasks = self.tasks(dag, run)
        done = sum(task["state"] in _DONE for task in tasks)
        return f"{done} of {len(tasks)} tasks done"

    def not_asking(self, dag: str, run: str, task: str) -> str | None:
        """A ready condition: the task waits for a person's answer. Raises SandboxError when the run has ended."""
        if self.unfinished(dag, run) is None:
            raise SandboxError(f"{dag} ended as {self.state(dag, run)} before {task} asked anybody")
        found = next((one for one in self.tasks(dag, run) if one["task_id"] == task), None)
        if found is None or found["state"] != "awaiting_input":
            return f"{task} to ask, which is {found['state'] if found else 'not there'}"
        if may_be_answered(self.question(dag, run, task), datetime.now(UTC)):
            return None
        return f"{task} to have asked for {ASKED_FOR_SECONDS} s"

    def question(self, dag: str, run: str, task: str) -> dict[str, Any]:
        """What the person is asked: subject, body, options, params, created_at."""
        path = f"/dags/{dag}/dagRuns/{quote(run)}/taskInstances/{task}/-1/hitlDetails"
        found: dict[str, Any] = self.call("GET", path)
        return found

    def answer(self, dag: str, run: str, task: str, choice: str, **params: object) -> None:
        """Choose, and fill in the form."""
        path = f"/dags/{dag}/dagRuns/{quote(run)}/taskInstances/{task}/-1/hitlDetails"
        self.call("PATCH", path, {"chosen_options": [choice], "params_input": params})

    def log(self, dag: str, run: str, task: str, attempt: int = 1, map_index: int = -1) -> str:
        """The log of one attempt, as text."""
        path = f"/dags/{dag}/dagRuns/{quote(run)}/taskInstances/{task}/logs/{attempt}?map_index={map_index}"
        return "\n".join(_log_line(line) for line in self.call("GET", path)["content"])


def may_be_answered(question: Mapping[str, Any], now: datetime) -> bool:
    """Whether the scheduler has settled the task that asks: an answer within seconds of the question can be lost."""
    return now - datetime.fromisoformat(question["created_at"]) > timedelta(seconds=ASKED_FOR_SECONDS)


def _log_line(line: str | dict[str, Any]) -> str:
    if isinstance(line, str):
        return line
    errors = [f"{error['exc_type']}: {error['exc_value']}" for error in line.get("error_detail") or []]
    return "\n".join([str(line.get("event", line)), *errors])


def login(world: World, user: str = "oncall") -> Api:
    """The API as that user."""
    url = world.url("airflow")
    body = {"username": user, "password": world.secrets[f"airflow.{user}"]}
    status, answer = call("POST", f"{url}/auth/token", body)
    if status != 201:
        raise SandboxError(f"Airflow refused the login of {user}", expected="status 201", found=f"status {status}")
    return Api(url, answer["access_token"])


def run_dag(
    supervisor: Supervisor, api: Api, dag: str, conf: Mapping[str, object] | None = None, within_seconds: float = 300
) -> tuple[str, str]:
    """Trigger a run and wait for its end; returns its id and its state.

    Raises SandboxError when it has not ended in time, or a component died.
    """
    run = api.trigger(dag, conf)
    supervisor.until(partial(api.unfinished, dag, run), f"{dag} to finish", within_seconds)
    return run, api.state(dag, run)
