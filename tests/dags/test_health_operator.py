"""Waiting for an application to be well: with its body, bounded, without a worker, and across a restart."""

import asyncio
import itertools
import json
import time
from collections.abc import Iterator
from datetime import datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from airflow.sdk.exceptions import TaskDeferred
from airflow.triggers.base import TriggerEvent

from payme_ops.foundation import opsdb, samples
from payme_ops.foundation.clock import utc_now
from payme_ops.foundation.errors import GateClosed, Unavailable
from payme_ops.foundation.health import State
from payme_ops.orchestration import triggers
from payme_ops.orchestration.health import HealthOperator, HealthTrigger
from sandbox import postgres
from sandbox.builds import commit_of
from sandbox.standin import Answer, Request, Server
from tests.support import releases, standins
from tests.support.ops import connection
from tests.support.releases import Api


@pytest.fixture(scope="module")
def cluster() -> Iterator[postgres.Cluster]:
    with postgres.temporary_cluster() as started:
        opsdb.migrate(started.conninfo())
        yield started


@pytest.fixture
def ops(cluster: postgres.Cluster, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("AIRFLOW_CONN_PAYME_OPS_DB", json.dumps(connection(cluster)))
    monkeypatch.setattr(triggers, "FIRST_SECONDS", 0.0)
    return cluster.conninfo()


@pytest.fixture
def api(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Api]:
    with releases.api(tmp_path) as running:
        connect(monkeypatch, running.stand_in.url)
        yield running


def connect(monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    monkeypatch.setenv("AIRFLOW_CONN_PAYME_API", json.dumps({"conn_type": "http", "host": url, "password": "a-token"}))


@pytest.fixture
def context(request: pytest.FixtureRequest) -> Any:
    return {"dag_run": SimpleNamespace(dag_id="any", run_id=f"manual__{request.node.name}")}


def operator(**options: Any) -> HealthOperator:
    given = {"consecutive": 2, "interval_seconds": 1, "patience": timedelta(seconds=2), **options}
    return HealthOperator(task_id="wait", **given)


def begin(made: HealthOperator, context: Any) -> TaskDeferred:
    with pytest.raises(TaskDeferred) as deferred:
        made.execute(context)
    return deferred.value


def again(trigger: Any) -> HealthTrigger:
    """As the triggerer makes it after a restart."""
    path, arguments = trigger.serialize()
    assert path == "payme_ops.orchestration.health.HealthTrigger"
    assert "a-token" not in json.dumps(arguments)
    return HealthTrigger(**json.loads(json.dumps(arguments)))


def run(trigger: HealthTrigger, seconds: float = 60) -> TriggerEvent:
    async def first() -> TriggerEvent:
        async for event in trigger.run():
            return event
        raise AssertionError("no event")

    return asyncio.run(asyncio.wait_for(first(), seconds))


def wait(made: HealthOperator, context: Any) -> Any:
    deferred = begin(made, context)
    event = run(again(deferred.trigger))
    assert deferred.kwargs
    return made.resume(context, event.payload, **deferred.kwargs)


@pytest.mark.usefixtures("ops", "api")
def test_healthy_in_a_row_succeeds(context: Any) -> None:
    found = wait(operator(commit=commit_of("2.4.0"), patience=timedelta(seconds=30)), context)
    assert (found["in a row"], found["commit"]) == (2, commit_of("2.4.0"))


@pytest.mark.blocks("staging_healthy")
@pytest.mark.parametrize(
    ("fault", "options", "kind", "says"),
    [
        ("unhealthy", {}, GateClosed, "last status 200, unhealthy"),
        ("flapping", {}, GateClosed, "unhealthy"),
        (None, {"commit": "e" * 40}, GateClosed, "runs"),
        (None, {"uptime_below": 0.0, "patience": timedelta(0)}, GateClosed, "longer than since the deploy"),
        ("stale", {}, Unavailable, "from a cache"),
        ("redirect", {}, Unavailable, "redirected"),
        ("echo_token", {}, Unavailable, "status 403"),
    ],
)
def test_what_is_not_well_or_says_nothing_does_not(
    ops: str, api: Api, context: Any, fault: str | None, options: dict[str, Any], kind: type[Exception], says: str
) -> None:
    assert ops
    api.control(fault=fault)
    with pytest.raises(kind, match=says) as refused:
        wait(operator(**options), context)
    assert "a-token" not in str(refused.value)


@pytest.mark.usefixtures("ops")
@pytest.mark.parametrize("status", [401, 403, 429, 500, 503])
def test_it_never_asks_more_often_than_it_should(
    context: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, status: int
) -> None:
    asked: list[float] = []

    def route(_request: Request) -> Answer:
        asked.append(time.monotonic())
        return Answer({}, status, headers={"Retry-After": "3"} if status == 429 else {})

    def make(port: int, _state: Path) -> Server:
        return Server(port, route, lambda _path: False, {})

    with standins.served(make, tmp_path) as there:
        connect(monkeypatch, there.url)
        with pytest.raises((GateClosed, Unavailable)):
            wait(operator(patience=timedelta(seconds=3)), context)
    apart = 3.0 if status == 429 else 1.0
    assert len(asked) <= 3 / apart + 2
    assert all(later - earlier >= apart * 0.9 for earlier, later in itertools.pairwise(asked))


def test_a_trigger_that_is_killed_goes_on_where_it_was(ops: str, api: Api, context: Any) -> None:
    assert api
    made = operator(consecutive=3, patience=timedelta(seconds=30))
    deferred = begin(made, context)
    subject = made.subject(context)

    def stored() -> list[samples.Sample]:
        return samples.of(ops, subject, utc_now() - timedelta(minutes=1), utc_now() + timedelta(minutes=1))

    async def killed() -> None:
        task = asyncio.ensure_future(again(deferred.trigger).run().__anext__())
        while not stored():
            await asyncio.sleep(0.05)
        task.cancel()

    asyncio.run(killed())
    before = stored()
    assert before
    run(again(deferred.trigger))
    after = stored()
    assert after[: len(before)] == before
    assert [one.state for one in after] == [State.HEALTHY] * 3
    assert deferred.kwargs
    assert made.resume(context, {}, **deferred.kwargs)["in a row"] == 3


@pytest.mark.usefixtures("ops", "api")
def test_an_event_decides_nothing(context: Any) -> None:
    """Whoever sends one without a look has shown nothing."""
    made = operator()
    with pytest.raises(Unavailable, match="nobody can tell"):
        made.resume(context, {"subject": "x", "verdict": "pass"}, datetime.now().astimezone().isoformat())
