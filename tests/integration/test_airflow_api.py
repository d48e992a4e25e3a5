"""Airflow's log and tasks are read page by page, by an account that may only read; what it says decides on a release.

The stand-in answers as Airflow 3.3.2 was seen to; the real one: tests/e2e/test_bypasses.py.
"""

import json
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from payme_ops.foundation import airflow_api
from payme_ops.foundation.airflow_api import AirflowApi, Reader
from payme_ops.foundation.errors import ServiceRefused, Unavailable
from payme_ops.foundation.evidence import Verdict
from payme_ops.release import bypass
from payme_ops.release.request import Environment, Release, Request
from sandbox.standin import Answer, Refused, Server
from sandbox.standin import Request as Asked
from tests.support import standins
from tests.support.standins import StandIn

AT = datetime(2026, 12, 1, 9, tzinfo=UTC)
PRE, ID = "manual__2026-11-29T06:00:00+00:00", "production-2.4.1-aaaaaaa"
RUNS = {"pre_deployment": PRE, "deployment": ID}
PHONE = "+254700999888"


def entry(name: str, task: str = "collect", user: str = "airflow", seconds: float = 0.0, **more: Any) -> dict[str, Any]:
    found = {
        "when": (AT + timedelta(seconds=seconds)).isoformat(),
        "event": name,
        "owner": user,
        "dag_id": "deployment",
        "run_id": ID,
        "task_id": task,
        "map_index": None,
        "try_number": None,
        "extra": json.dumps({"new_state": "success", "note": f"paid by {PHONE}"}),
    }
    return {**found, **more}


def ended(task: str, **more: Any) -> dict[str, Any]:
    return entry("success", task, map_index=-1, try_number=1, **more)


def instance(task: str, **more: Any) -> dict[str, Any]:
    """A task that was made a minute before and is success."""
    made = int((AT - timedelta(minutes=1)).timestamp() * 1000) << 80 | 7 << 76 | 2 << 62
    found = {
        "id": str(uuid.UUID(int=made)),
        "dag_id": "deployment",
        "dag_run_id": ID,
        "task_id": task,
        "map_index": -1,
        "state": "success",
        "try_number": 1,
        "operator": "_PythonDecoratedOperator",
        "end_date": AT.isoformat(),
    }
    return {**found, **more}


@dataclass
class Airflow:
    """What the stand-in has, and what it was asked."""

    log: list[dict[str, Any]] = field(default_factory=list)
    tasks: list[dict[str, Any]] = field(default_factory=list)
    asked: list[Asked] = field(default_factory=list)

    def route(self, request: Asked) -> Answer:
        self.asked.append(request)
        if request.path == "/auth/token":
            if request.json() != {"username": "auditor", "password": "a-password"}:
                raise Refused(401, {"detail": "no"})
            return Answer({"access_token": "a-token"}, 201)
        if request.headers["Authorization"] != "Bearer a-token":
            raise Refused(401, {"detail": "no"})
        first, limit = int(request.query["offset"]), int(request.query["limit"])
        if request.path == "/api/v2/dags/~/dagRuns/~/taskInstances":
            return Answer({"task_instances": self.tasks[first : first + limit], "total_entries": len(self.tasks)})
        endings = "run_id_pattern" in request.query
        found = [one for one in self.log if (one["event"] in bypass.ENDINGS) == endings]
        return Answer({"event_logs": found[first : first + limit], "total_entries": len(found)})


@pytest.fixture
def airflow() -> Airflow:
    return Airflow()


@pytest.fixture
def server(airflow: Airflow, tmp_path: Path) -> Iterator[StandIn]:
    def make(port: int, _state: Path) -> Server:
        return Server(port, airflow.route, lambda path: path.startswith("/api/"), {"detail": "told to fail"})

    with standins.served(make, tmp_path) as running:
        yield running


@pytest.fixture
def api(server: StandIn) -> AirflowApi:
    return AirflowApi(server.url, "auditor", "a-password")


@pytest.fixture
def reader(api: AirflowApi) -> Reader:
    return airflow_api.sign_in(api)


@pytest.fixture
def examine(api: AirflowApi) -> Callable[[], Any]:
    asked = Request(
        commit="a" * 40,
        version="2.4.1",
        environment=Environment.PRODUCTION,
        window_from=AT,
        window_to=AT + timedelta(hours=2),
        previous_commit="b" * 40,
        carries_migration=False,
        resume_after_watch=False,
        reason="a test",
    )
    release = Release(ID, "oncall", AT - timedelta(days=2), asked)
    return lambda: bypass.examine(api, release, RUNS, {})


def test_every_page_of_the_log_is_read(airflow: Airflow, reader: Reader) -> None:
    airflow.log = [entry("patch_task_instance", "deploy", f"user{number}", run_id=None) for number in range(230)]
    found = airflow_api.calls(reader, ["patch_task_instance"], AT)
    assert [one.user for one in found] == [f"user{number}" for number in range(230)]
    assert (found[0].at, found[0].dag, found[0].run, found[0].task) == (AT, "deployment", "", "deploy")
    assert (found[0].attempt, found[0].index) == (None, -1)


def test_tasks_of_other_runs_are_left_out(airflow: Airflow, reader: Reader) -> None:
    others = [instance("x", dag_run_id=f"{ID}-2"), instance("y", dag_id="backup_daily", dag_run_id=f"final__{ID}")]
    airflow.tasks = [*others, instance("deploy", state=None, end_date=None)]
    (found,) = airflow_api.tasks(reader, RUNS)
    assert (found.task, found.state, found.ended, found.born) == ("deploy", "", None, AT - timedelta(minutes=1))


def test_a_log_longer_than_is_read_is_no_log(airflow: Airflow, reader: Reader, monkeypatch: pytest.MonkeyPatch) -> None:
    airflow.log = [entry("patch_task_instance")] * 130
    monkeypatch.setattr(airflow_api, "_MAX_PAGES", 1)
    with pytest.raises(ServiceRefused, match="longer than is read"):
        airflow_api.calls(reader, ["patch_task_instance"], AT)


def test_an_id_without_its_time_is_not_understood(airflow: Airflow, reader: Reader) -> None:
    airflow.tasks = [instance("deploy", id=str(uuid.uuid4()))]
    with pytest.raises(ServiceRefused, match="not understood"):
        airflow_api.tasks(reader, RUNS)


def test_a_wrong_login_is_a_no_and_names_no_password(server: StandIn) -> None:
    api = AirflowApi(server.url, "auditor", "a-wrong-one")
    with pytest.raises(ServiceRefused, match="status 401") as refused:
        airflow_api.sign_in(api)
    assert "a-wrong-one" not in f"{refused.value} {api!r}"


@pytest.mark.blocks("bypasses")
def test_what_may_heal_is_no_empty_log(server: StandIn, examine: Callable[[], Any]) -> None:
    server.fail(503)
    with pytest.raises(Unavailable):
        examine()


def test_kinds_time_and_runs_are_asked_for(airflow: Airflow, reader: Reader) -> None:
    airflow_api.calls(reader, ["clear_dag_run"], AT)
    airflow_api.endings(reader, sorted(RUNS.values()), ["success"])
    airflow_api.tasks(reader, RUNS)
    calls, endings, tasks = (one.query for one in airflow.asked[-3:])
    assert (calls["included_events"], calls["after"], calls["limit"]) == ("clear_dag_run", AT.isoformat(), "100")
    assert (endings["included_events"], endings["run_id_pattern"]) == ("success", f"{PRE}|{ID}")
    assert tasks["run_id_pattern"] == f"{PRE}|{ID}"


def test_a_release_that_ended_itself_passes_and_says_who_else_tried(
    airflow: Airflow, examine: Callable[[], Any]
) -> None:
    airflow.tasks = [instance("check_request", dag_id="pre_deployment", dag_run_id=PRE), instance("collect")]
    airflow.log = [
        ended("check_request", dag_id="pre_deployment", run_id=PRE, seconds=0.01),
        ended("collect", seconds=0.01),
        entry("patch_task_instance", "collect", "auditor", seconds=5),  # refused with 403
    ]
    found = examine()
    assert (found.verdict, found.measured["tasks looked at"], found.measured["by hand"]) == (Verdict.PASS, 2, [])
    assert [one["by"] for one in found.measured["calls by hand in the log"]] == ["auditor"]
    assert len(airflow.asked) == 4


@pytest.mark.blocks("bypasses")
def test_what_was_set_is_named_with_who_and_what_to_do_and_nothing_else_of_the_call(
    airflow: Airflow, examine: Callable[[], Any]
) -> None:
    airflow.tasks = [
        instance("check_request", dag_id="pre_deployment", dag_run_id=PRE),
        instance("collect"),
        instance("go_no_go_first", try_number=0),
    ]
    airflow.log = [
        ended("check_request", dag_id="pre_deployment", run_id=PRE, seconds=0.01),
        entry("patch_task_instance", "collect", "oncall"),
    ]
    found = examine()
    assert found.verdict is Verdict.BYPASSED
    assert [(one["task"], one["by"]) for one in found.measured["by hand"]] == [
        ("deployment collect", "oncall"),
        ("deployment go_no_go_first", "not in the log"),
    ]
    assert found.remedy.startswith("clear deployment collect, deployment go_no_go_first, then collect")
    assert PHONE not in str(found)


@pytest.mark.blocks("bypasses")
def test_a_run_that_was_deleted_wants_a_new_release(airflow: Airflow, examine: Callable[[], Any]) -> None:
    airflow.tasks, airflow.log = [instance("collect")], [ended("collect", seconds=0.01)]
    found = examine()
    assert found.verdict is Verdict.BYPASSED
    assert "the run of pre_deployment was deleted" in found.remedy
