"""Airflow's event log is read page by page, by an account that may only read."""

import json
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pytest

from payme_ops.foundation import airflow_api
from payme_ops.foundation.airflow_api import AirflowApi
from payme_ops.foundation.errors import ServiceRefused, Unavailable
from sandbox.standin import Answer, Refused, Request, Server
from tests.support import standins
from tests.support.standins import StandIn

AT = datetime(2026, 12, 1, 9, tzinfo=UTC)
LOG = [
    {
        "when": AT.isoformat(),
        "event": "patch_task_instance",
        "owner": f"user{number}",
        "dag_id": "deployment",
        "run_id": None,
        "task_id": "deploy",
        "extra": json.dumps({"new_state": "success"}),
    }
    for number in range(130)
]


def route(request: Request) -> Answer:
    if request.path == "/auth/token":
        if request.json() != {"username": "auditor", "password": "a-password"}:
            raise Refused(401, {"detail": "no"})
        return Answer({"access_token": "a-token"}, 201)
    if request.headers["Authorization"] != "Bearer a-token":
        raise Refused(401, {"detail": "no"})
    first, limit = int(request.query["offset"]), int(request.query["limit"])
    return Answer({"event_logs": LOG[first : first + limit], "total_entries": len(LOG)})


@pytest.fixture
def server(tmp_path: Path) -> Iterator[StandIn]:
    def make(port: int, _state: Path) -> Server:
        return Server(port, route, lambda path: path.startswith("/api/"), {"detail": "told to fail"})

    with standins.served(make, tmp_path) as running:
        yield running


def test_every_page_is_read(server: StandIn) -> None:
    found = airflow_api.events(AirflowApi(server.url, "auditor", "a-password"), ["patch_task_instance"], AT)
    assert [one.user for one in found] == [f"user{number}" for number in range(130)]
    assert (found[0].at, found[0].dag, found[0].run, found[0].task) == (AT, "deployment", "", "deploy")


def test_a_log_longer_than_is_read_is_no_log(server: StandIn, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(airflow_api, "_MAX_PAGES", 1)
    with pytest.raises(ServiceRefused, match="longer than is read"):
        airflow_api.events(AirflowApi(server.url, "auditor", "a-password"), ["patch_task_instance"], AT)


def test_a_wrong_login_is_a_no_and_names_no_password(server: StandIn) -> None:
    api = AirflowApi(server.url, "auditor", "a-wrong-one")
    with pytest.raises(ServiceRefused, match="status 401") as refused:
        airflow_api.events(api, [], AT)
    assert "a-wrong-one" not in f"{refused.value} {api!r}"


def test_what_may_heal_is_no_empty_log(server: StandIn) -> None:
    server.fail(503)
    with pytest.raises(Unavailable):
        airflow_api.events(AirflowApi(server.url, "auditor", "a-password"), [], AT)


def test_kinds_and_time_are_asked_for(tmp_path: Path) -> None:
    asked: list[str] = []

    def note(request: Request) -> Answer:
        asked.append(request.path + "?" + "&".join(f"{name}={value}" for name, value in request.query.items()))
        return Answer({"access_token": "a-token", "event_logs": []})

    def make(port: int, _state: Path) -> Server:
        return Server(port, note, lambda _path: False, {})

    with standins.served(make, tmp_path) as there:
        assert airflow_api.events(AirflowApi(there.url, "a", "b"), ["clear_dag_run"], AT) == []
    query = parse_qs(urlsplit(asked[-1]).query)
    assert query["included_events"] == ["clear_dag_run"]
    assert query["limit"] == ["100"]
