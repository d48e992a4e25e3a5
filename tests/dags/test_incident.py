"""The health watch as Airflow's trigger, and what a run of `incident` keeps of an outage."""

import asyncio
import json
import socket
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psycopg
import pytest
from airflow.sdk.exceptions import TaskDeferred

from payme_ops.foundation import evidence
from payme_ops.foundation.errors import GateClosed
from payme_ops.foundation.evidence import Verdict
from payme_ops.foundation.sql import load
from payme_ops.monitoring import outages, probe
from payme_ops.orchestration import incident, triggers
from payme_ops.orchestration.health_watch import HealthWatch
from payme_ops.orchestration.incident import OutageOverOperator
from tests.support import applications, standins
from tests.support.applications import Application
from tests.support.installation import Installation
from tests.support.ops import ops_database
from tests.support.standins import StandIn

BEGAN = datetime(2026, 3, 1, 12, tzinfo=UTC)


@pytest.fixture
def ops(installation: Installation, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.setattr(triggers, "FIRST_SECONDS", 0.0)
    with ops_database(installation.site.cluster) as conninfo:
        kept = json.loads(installation.site.world.env["AIRFLOW_CONN_PAYME_OPS_DB"])
        cluster = installation.site.cluster
        kept |= {"schema": "ops_test", "login": cluster.superuser, "password": cluster.password}
        monkeypatch.setenv("AIRFLOW_CONN_PAYME_OPS_DB", json.dumps(kept))
        installation.set("MONITORING__INTERVAL_SECONDS", "0.2")
        yield conninfo


@pytest.fixture
def slack(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[StandIn]:
    with standins.slack_stand_in(tmp_path) as running:
        kept = {"conn_type": "slack", "password": "xoxb-test", "extra": {"base_url": f"{running.url}/api/"}}
        monkeypatch.setenv("AIRFLOW_CONN_PAYME_SLACK", json.dumps(kept))
        yield running


@pytest.fixture
def app(installation: Installation, monkeypatch: pytest.MonkeyPatch) -> Iterator[Application]:
    monkeypatch.setattr(probe, "LIMIT_SECONDS", 0.5)
    with applications.application() as running:
        installation.set("MONITORING__ENDPOINTS", f"production={running.url}")
        yield running


def test_it_is_never_paused_and_its_asset_has_the_watch(dag_bag: Any) -> None:
    dag = dag_bag.dags["incident"]
    assert dag.is_paused_upon_creation is False
    [watcher] = incident.PAYME_OUTAGE.watchers
    path, arguments = watcher.trigger.serialize()
    assert path == "payme_ops.orchestration.health_watch.HealthWatch"
    assert arguments == {}, "no secret, and one trigger whatever the settings are"


@pytest.mark.usefixtures("slack")
def test_the_watch_yields_an_event_for_an_outage_that_is_written(ops: str, app: Application) -> None:
    app.mode = "sick"

    async def first() -> Any:
        return await asyncio.wait_for(anext(HealthWatch().run()), 20)  # type: ignore[no-untyped-call]

    event = asyncio.run(first())
    with psycopg.connect(ops) as connection:
        found = connection.execute("SELECT id, subject FROM ops.outages").fetchall()
        slots = connection.execute("SELECT extract(epoch FROM at) % 0.2 FROM ops.health_samples").fetchall()
        told = connection.execute("SELECT key, severity FROM ops.alerts").fetchall()
    assert found == [(event.payload["outage"], event.payload["subject"])]
    assert told == [("health:production", "critical")]
    assert {row[0] for row in slots} == {0}


@pytest.mark.usefixtures("ops", "slack")
def test_a_round_that_fails_and_settings_that_cannot_be_read_do_not_end_it(
    app: Application, installation: Installation, monkeypatch: pytest.MonkeyPatch
) -> None:
    app.mode = "sick"
    rounds, broken = 0, probe.look

    async def fails_at_first(*arguments: Any) -> Any:
        nonlocal rounds
        rounds += 1
        if rounds == 1:
            raise RuntimeError("not foreseen")
        return await broken(*arguments)

    monkeypatch.setattr(probe, "look", fails_at_first)

    async def first(seconds: float) -> Any:
        running = HealthWatch().run()  # type: ignore[no-untyped-call]
        return await asyncio.wait_for(anext(running), seconds)

    assert asyncio.run(first(20)).payload["subject"] == "production"
    installation.set("MONITORING__ENDPOINTS", "no name")
    with pytest.raises(TimeoutError):
        asyncio.run(first(0.5))


@pytest.mark.usefixtures("slack")
def test_names_that_nobody_answers_for_hold_up_no_look_at_others(
    ops: str, app: Application, installation: Installation, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = socket.getaddrinfo

    def slow(host: Any, *arguments: Any, **named: Any) -> Any:
        name = host.decode() if isinstance(host, bytes) else host
        if str(name).startswith("silent"):
            time.sleep(1.5)
            raise socket.gaierror("no answer")
        return asked("127.0.0.1" if name == "well.test" else host, *arguments, **named)

    monkeypatch.setattr(socket, "getaddrinfo", slow)
    silent = [f"a{number}=http://silent{number}.test" for number in range(8)]
    well = app.url.replace("127.0.0.1", "well.test")
    installation.set("MONITORING__ENDPOINTS", ",".join([*silent, f"production={well}"]))

    async def some() -> None:
        watching = HealthWatch().run()  # type: ignore[no-untyped-call]
        await anext(watching)

    asyncio.run(asyncio.wait_for(some(), 60))
    with psycopg.connect(ops) as connection:
        rows = connection.execute("SELECT state FROM ops.health_samples WHERE subject = 'production'")
        assert ("healthy",) in rows.fetchall()


# -- the run -----------------------------------------------------------------------------------------------------


def outage(ops: str, subject: str) -> int:
    values: dict[str, Any] = {
        "subject": subject,
        "kind": "down",
        "began_at": BEGAN,
        "opened_at": BEGAN + timedelta(minutes=1),
        "why": "status 503",
        "slow_ms": 2000,
        "muted_until": None,
        "muted_by": None,
    }
    with psycopg.connect(ops, autocommit=True) as connection:
        connection.execute(
            "INSERT INTO ops.health_samples VALUES (%s, %s, 'healthy', 20, '{\"p95\": 120.0}')",
            [subject, BEGAN - timedelta(seconds=30)],
        )
        row = connection.execute(load("health_watch/open_outage.sql"), values).fetchone()
    assert row
    return int(row[0])


def end(ops: str, number: int, after: timedelta) -> None:
    with psycopg.connect(ops, autocommit=True) as connection:
        connection.execute(load("health_watch/end_outage.sql"), {"id": number, "ended_at": BEGAN + after})


def run(monkeypatch: pytest.MonkeyPatch, name: str, *told: int) -> str:
    """A run that the watch's events of these outages have started."""
    events = [SimpleNamespace(extra={"from_trigger": True, "payload": {"outage": one}}) for one in told]
    odd = [SimpleNamespace(extra={}), SimpleNamespace(extra={"payload": "x"})]
    made = {
        "dag_run": SimpleNamespace(dag_id="incident", run_id=name),
        "triggering_asset_events": {incident.PAYME_OUTAGE: [*events, *odd]},
    }
    monkeypatch.setattr(incident, "get_current_context", lambda: made)
    return f"incident/{name}"


def test_a_run_takes_what_it_was_told_of_and_what_nobody_has_taken_once(
    ops: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    over, first, second = (outage(ops, name) for name in ("a", "b", "c"))
    end(ops, over, timedelta(minutes=5))
    run(monkeypatch, "one", over, first)
    assert incident.take() == [over, first, second]
    assert incident.take() == [over, first, second], "tried again"
    run(monkeypatch, "two", first)
    assert incident.take() == [], "another run has it"


def test_what_was_seen_and_how_long_it_was_is_kept(ops: str, monkeypatch: pytest.MonkeyPatch) -> None:
    number = outage(ops, "production")
    name = run(monkeypatch, "one", number)
    incident.take()
    incident.note(number)
    noted = evidence.latest(ops, name, f"outage_{number}")
    assert noted.verdict is Verdict.FAIL
    assert noted.measured == {
        "outage": number,
        "application": "production",
        "kind": "down",
        "why": "status 503",
        "since": "2026-03-01 15:00:00 EAT",
        "last well": "2026-03-01 14:59:30 EAT",
        "p95 ms": 120.0,
        "muted by": None,
    }
    end(ops, number, timedelta(minutes=12, seconds=30))
    incident.recovered(number)
    kept = evidence.latest(ops, name, f"recovery_{number}")
    assert (kept.verdict, kept.measured["lasted"], kept.measured["seconds"]) == (Verdict.PASS, "12 min 30 s", 750.0)


def test_a_run_is_not_green_while_the_outage_is_on(ops: str, monkeypatch: pytest.MonkeyPatch) -> None:
    number = outage(ops, "production")
    run(monkeypatch, "one", number)
    with pytest.raises(GateClosed, match="production is not well"):
        incident.recovered(number)


def test_it_waits_without_a_worker_until_the_row_says_that_it_is_over(ops: str) -> None:
    number = outage(ops, "production")
    made = OutageOverOperator(task_id="until_over", outage=number)
    with pytest.raises(TaskDeferred) as deferred:
        made.execute({})
    path, arguments = deferred.value.trigger.serialize()
    assert path == "payme_ops.orchestration.incident.OutageTrigger"
    with pytest.raises(TaskDeferred):
        made.resume({}, {"subject": "production"})

    async def over() -> Any:
        waiting = asyncio.ensure_future(anext(incident.OutageTrigger(**arguments).run()))
        await asyncio.sleep(0.5)
        assert not waiting.done()
        end(ops, number, timedelta(minutes=1))
        return await asyncio.wait_for(waiting, 10)

    assert asyncio.run(over()).payload == {"subject": "production"}
    made.resume({}, {})
    assert outages.get(ops, number).ended_at is not None
