"""A real Airflow (scheduler, dag-processor, triggerer, API server) with the desk's DAGs, in PayMe's world."""

import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from payme_ops.backup.catalogue import Catalogue, Stores
from payme_ops.foundation.objectstore import Bucket
from sandbox import airflow, guard, s3, world
from sandbox.airflow import Api
from sandbox.http import call
from sandbox.supervisor import Supervisor
from sandbox.world import COPY_BUCKET, HOME_BUCKET, World

DAG = "backup_daily"
PARSED_WITHIN_SECONDS = 120.0
RUN_WITHIN_SECONDS = 240.0


@dataclass(frozen=True)
class Desk:
    """The running desk, and what its users see of it."""

    world: World
    supervisor: Supervisor
    api: Api

    @property
    def catalogue(self) -> Catalogue:
        """The catalogue, seen by somebody who may do everything."""
        client, env = s3.client(self.world.url("s3")), self.world.env
        keys = [[env[f"PAYME_OPS__BACKUP__{name}_KEYS"]] for name in ("TRUSTED", "VERIFICATION")]
        return Catalogue(Stores(Bucket(client, HOME_BUCKET), Bucket(client, COPY_BUCKET)), "payme", *keys)

    def run(self, dag: str = DAG, **conf: object) -> tuple[str, str]:
        """Trigger by the API once nothing runs, wait for the end; (run id, state)."""
        self.supervisor.until(partial(self.api.busy, dag), dag, RUN_WITHIN_SECONDS)
        return airflow.run_dag(self.supervisor, self.api, dag, conf, within_seconds=RUN_WITHIN_SECONDS)

    def states(self, run: str, dag: str = DAG) -> dict[str, str]:
        """State of each task of a run."""
        return {task["task_id"]: task["state"] for task in self.api.tasks(dag, run)}

    def deploy(self, version: str) -> None:
        """Let the application run as that version; for a `busy_desk`."""
        url, token = self.world.url("payme_api"), self.world.secrets["payme_api.token"]
        assert call("POST", f"{url}/admin/start", {"version": version}, token=token)[0] == 200

    def slack(self) -> list[dict[str, Any]]:
        """Messages that arrived in the stand-in."""
        messages: list[dict[str, Any]] = call("GET", f"{self.world.url('slack')}/messages.json")[1]
        return messages

    def sentry(self) -> list[dict[str, Any]]:
        """Error events that arrived in the stand-in."""
        events: list[dict[str, Any]] = call("GET", f"{self.world.url('sentry')}/events.json")[1]
        return events


@pytest.fixture(scope="session")
def desk() -> Iterator[Desk]:
    """One desk for the whole session; about half a minute to start."""
    # Not below the project: the path of a pytest temporary folder is closed to the database's own user.
    root = Path(tempfile.mkdtemp(prefix="payme-ops-e2e-"))
    try:
        with world.running(root, size="test") as (here, supervisor):
            env = airflow.environment(here)
            env["AIRFLOW__CORE__DEFAULT_TASK_RETRY_DELAY"] = "1"
            # A file that changes is read at once; to read all of them every 30 s is a fifth of a core.
            env["AIRFLOW__DAG_PROCESSOR__MIN_FILE_PROCESS_INTERVAL"] = "60"
            since = datetime.now(UTC)
            airflow.start(here, supervisor, env)
            api = airflow.login(here)
            supervisor.until(partial(api.dag_missing, DAG, since), DAG, PARSED_WITHIN_SECONDS)
            yield Desk(here, supervisor, api)
            # What is refused may look like an optional thing that is not there.
            assert call("GET", here.url("s3") + guard.PAGE)[1]["refused"] == []
    finally:
        world.remove(root)
        shutil.rmtree(root, ignore_errors=True)


@pytest.fixture(scope="session")
def desk_with_api(desk: Desk) -> Desk:
    """The same with the PayMe API's process, which has one port and so starts once."""
    desk.supervisor.start(world.application(desk.world))
    return desk


@pytest.fixture(scope="module")
def busy_desk(desk_with_api: Desk) -> Iterator[Desk]:
    """The same with PayMe's application at work as 2.4.0, until the module's end."""
    desk_with_api.deploy("2.4.0")
    yield desk_with_api
    url, token = desk_with_api.world.url("payme_api"), desk_with_api.world.secrets["payme_api.token"]
    call("POST", f"{url}/admin/stop", token=token)
