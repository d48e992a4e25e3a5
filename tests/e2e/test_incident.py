"""An outage in a real Airflow: its run and its thread; and whatever is killed at that moment, people are told once.

The watch looks twice a second here, so that the ten good looks that end an outage take five seconds.
"""

import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from itertools import combinations
from pathlib import Path
from typing import Any, LiteralString

import psycopg
import pytest

from payme_ops.foundation import evidence
from payme_ops.foundation.airflow_api import AirflowApi
from payme_ops.foundation.clock import utc_now
from payme_ops.monitoring import last_looks
from payme_ops.monitoring.last_looks import Airflow
from sandbox import airflow, world
from sandbox.airflow import Api
from sandbox.http import call
from sandbox.supervisor import Process, Supervisor
from sandbox.world import AUDITOR, PROJECT, World
from tests.support import applications
from tests.support.applications import Application
from tests.support.waiting import eventually

pytestmark = pytest.mark.long

DAG, SECONDS = "incident", 90.0
COMPONENTS, SERVICES = ("triggerer", "scheduler"), ("slack", "sentry")
PARTS = (*COMPONENTS, *SERVICES)
CASES = [(one,) for one in PARTS] + list(combinations(PARTS, 2))


@dataclass(frozen=True)
class Desk:
    here: World
    supervisor: Supervisor
    api: Api
    app: Application

    @property
    def ops(self) -> str:
        return self.here.conninfo("payme_ops", "payme_ops")

    def told(self, outage: int) -> list[tuple[str, str]]:
        """Occurrence and text of each message of that outage, as Slack has got them."""
        messages: list[dict[str, Any]] = call("GET", f"{self.here.url('slack')}/messages.json")[1]
        found = [(message["metadata"]["event_payload"]["occurrence"], message["text"]) for message in messages]
        return [one for one in found if one[0] in (f"outage/{outage}", f"outage/{outage}/over")]

    def threads(self) -> int:
        messages: list[dict[str, Any]] = call("GET", f"{self.here.url('slack')}/messages.json")[1]
        return len({message.get("thread_ts", message["ts"]) for message in messages})

    def is_in_sentry(self) -> bool:
        events: list[dict[str, Any]] = call("GET", f"{self.here.url('sentry')}/events.json")[1]
        return any("production is down" in str(event) for event in events)

    def ask(self, query: LiteralString, *values: object) -> Any:
        with psycopg.connect(self.ops) as connection:
            row = connection.execute(query, values).fetchone()
        return row[0] if row else None

    def is_on(self) -> int | None:
        found: int | None = self.ask("SELECT id FROM ops.outages WHERE ended_at IS NULL")
        return found

    def is_watched(self) -> bool:
        return bool(
            self.ask(
                "SELECT count(*) >= 3 FROM ops.health_samples WHERE at > now() - interval '3 s' AND state = 'healthy'"
            )
        )

    def fail(self, service: str, status: int | None) -> None:
        assert call("POST", f"{self.here.url(service)}/control", {"fail": status})[0] == 200


@pytest.fixture(scope="module")
def desk() -> Iterator[Desk]:
    """An Airflow with `incident` only, whose watch looks at an application of this process."""
    root = Path(tempfile.mkdtemp(prefix="payme-ops-incident-"))
    dags = root / "dags"
    dags.mkdir()
    shutil.copy(PROJECT / "dags" / "incident.py", dags)
    more = {
        "PAYME_OPS__MONITORING__INTERVAL_SECONDS": "0.5",
        # The watch of an asset that was lost begins again when its DAG's file is read.
        "AIRFLOW__DAG_PROCESSOR__MIN_FILE_PROCESS_INTERVAL": "5",
        # One that was killed is missed after five seconds, not after thirty.
        "AIRFLOW__TRIGGERER__JOB_HEARTBEAT_SEC": "1",
        "AIRFLOW__TRIGGERER__TRIGGERER_HEALTH_CHECK_THRESHOLD": "5",
    }
    try:
        with applications.application() as app, world.running(root / "world") as (here, supervisor):
            more["PAYME_OPS__MONITORING__ENDPOINTS"] = f"production={app.url}"
            airflow.start(here, supervisor, {**airflow.environment(here, dags=dags), **more})
            made = Desk(here, supervisor, airflow.login(here), app)
            eventually(made.is_watched, "the first looks", seconds=SECONDS, every=0.2)
            yield made
            for component in airflow.COMPONENTS:  # to stop them one after the other takes longer than a test
                supervisor.kill(f"airflow-{component}")
    finally:
        world.remove(root / "world")
        shutil.rmtree(root, ignore_errors=True)


def test_an_outage_has_a_run_and_a_thread_and_its_end_ends_both(desk: Desk) -> None:
    desk.app.mode = "sick"
    number = eventually(lambda: desk.is_on() or False, "the outage", seconds=SECONDS)
    eventually(lambda: desk.told(number), "the alert", seconds=SECONDS)
    run = eventually(lambda: desk.ask("SELECT run FROM ops.outages WHERE id = %s", number), "its run", seconds=SECONDS)
    name = run.removeprefix(f"{DAG}/")

    def waits() -> bool:
        states = {task["task_id"]: task["state"] for task in desk.api.tasks(DAG, name)}
        return states.get("outage.until_over") == "deferred"

    eventually(waits, "the task that waits without a worker", seconds=SECONDS, every=0.5)
    desk.app.mode = "well"
    eventually(lambda: len(desk.told(number)) == 2, "the end of it", seconds=SECONDS)
    desk.supervisor.until(lambda: desk.api.unfinished(DAG, name), "the run's end", SECONDS)
    assert desk.api.state(DAG, name) == "success"
    (_, began), (_, over) = desk.told(number)
    assert began.startswith("production is down: status 503")
    assert over.startswith("production is well again after")
    assert desk.threads() == 1
    assert evidence.latest(desk.ops, run, f"outage_{number}").measured["last well"] != "never seen well"
    assert evidence.latest(desk.ops, run, f"recovery_{number}").measured["seconds"] > 0


def test_pausing_incident_is_the_cause_that_the_watchdog_names(desk: Desk) -> None:
    url = desk.here.url("airflow")
    known = Airflow(url, AirflowApi(url, AUDITOR, desk.here.secrets[f"airflow.{AUDITOR}"]))
    begun = utc_now() - timedelta(hours=1)
    desk.api.call("PATCH", f"/dags/{DAG}", {"is_paused": True})
    eventually(lambda: not desk.is_watched(), "the end of the looks", seconds=SECONDS)
    later = utc_now() + last_looks.LONGEST + timedelta(seconds=2)
    found = last_looks.look(desk.ops, ["production"], known, begun, later)
    assert found.silent
    assert found.why.startswith("incident is paused")
    desk.api.call("PATCH", f"/dags/{DAG}", {"is_paused": False})
    eventually(desk.is_watched, "looks again", seconds=SECONDS)
    assert not last_looks.look(desk.ops, ["production"], known, begun, utc_now()).silent


@pytest.mark.parametrize("parts", CASES, ids="+".join)
def test_what_is_killed_or_away_when_an_alert_is_due_delays_it_and_no_more(desk: Desk, parts: tuple[str, ...]) -> None:
    assert desk.is_on() is None
    for service in set(parts) & set(SERVICES):
        desk.fail(service, 503)
    desk.app.mode = "sick"
    number = eventually(lambda: desk.is_on() or False, "the outage", seconds=SECONDS, every=0.005)
    killed: list[Process] = [desk.supervisor.kill(f"airflow-{part}") for part in parts if part in COMPONENTS]
    if "slack" in parts:
        assert desk.told(number) == []
    if parts == ("slack",):
        eventually(desk.is_in_sentry, "the event that says what Slack did not take", seconds=SECONDS)
    if killed:
        desk.supervisor.start(*killed)
    for service in set(parts) & set(SERVICES):
        desk.fail(service, None)
    eventually(lambda: desk.told(number), f"the alert after {parts}", seconds=SECONDS)
    desk.app.mode = "well"
    eventually(lambda: len(desk.told(number)) >= 2, f"the end of it after {parts}", seconds=SECONDS)
    assert [occurrence for occurrence, _ in desk.told(number)] == [f"outage/{number}", f"outage/{number}/over"]
    assert desk.threads() == 1
