"""Every token that a release holds is searched for wherever it leaves a trace, on days when services echo them.

(Rendered fields, XCom and Airflow's own database, in a real Airflow: tests/e2e.)
"""

import json
import logging
import subprocess
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from airflow.sdk.exceptions import AirflowSkipException, TaskDeferred

from payme_ops.foundation.errors import PaymeOpsError
from payme_ops.orchestration import connections, looks, release
from payme_ops.orchestration.item import LooksItem, WatchItem
from payme_ops.release.request import Release
from sandbox import code_host
from sandbox.builds import commit_of
from sandbox.standin import Answer, Request, Server
from tests.support import standins
from tests.support.release_desk import SENTRY_KEY, SENTRY_TOKEN, SLACK_TOKEN, STATUS_KEY, Desk
from tests.support.releases import API_TOKEN, DEPLOY_TOKEN
from tests.support.standins import StandIn

HOST_TOKEN, PASSWORD, SESSION = "token-of-the-code-host", "password-of-the-auditor", "session-of-the-auditor"
TOKENS = (API_TOKEN, DEPLOY_TOKEN, HOST_TOKEN, PASSWORD, SESSION, SENTRY_KEY, SENTRY_TOKEN, SLACK_TOKEN, STATUS_KEY)


class Day:
    """What was done, and every text that came out of it."""

    def __init__(self, desk: Desk) -> None:
        self.desk, self.texts = desk, list[str]()

    def work(self, task: str, dag: str = "deployment", *, last: bool = True) -> None:
        """A task's body, whatever it comes to; what it returns would be XCom."""
        self.desk.begin(task, dag=dag, last=last)
        with suppress(AirflowSkipException):
            self.run(getattr(release, task))

    def act(self, name: str) -> None:
        self.desk.begin(name)
        self.run(lambda: release.act(name))

    def measure(self, name: str, dag: str = "pre_deployment") -> None:
        context = self.desk.begin(name, dag=dag)
        self.run(lambda: release.measure(context, name))

    def run(self, work: Callable[[], Any]) -> None:
        try:
            self.texts.append(repr(work()))
        except PaymeOpsError as error:
            self.texts += [str(error), repr(error), error.found, error.remedy]

    def watch(self, made: WatchItem | LooksItem) -> None:
        """Some looks; what a trigger is told is kept in Airflow's database."""
        context = self.desk.begin(made.task_id, dag="post_deployment")
        with pytest.raises(TaskDeferred) as deferred:
            made.execute(context)
        arguments = deferred.value.trigger.serialize()[1]
        self.texts.append(json.dumps(arguments))
        if isinstance(made, WatchItem):
            looks.watch_once(**arguments)
            self.run(lambda: release.conclude_watch(context))
        else:
            looks.health_once(**arguments)
            self.run(lambda: release.conclude_looks(context, made.item, arguments["begun"], 2))

    def endings(self, dag: str) -> None:
        for name in ("resume_orders", "restore_autoscaling", "close_status_page", "keep_record", "tell_outcome"):
            self.work(name, dag)
        self.work("verdict", dag)


@pytest.fixture
def desk(release_desk: Desk, tmp_path: Path) -> Iterator[Desk]:
    """All services are there, and each answers a no with what it was sent."""
    desk = release_desk
    assert desk.sentry
    assert desk.mail
    with (
        standins.served(code_host.make_server, tmp_path / "code_host.jsonl") as host,
        standins.served(airflow_that_echoes, tmp_path) as airflow,
    ):
        repository = {"repository": "payme/api"}
        desk.connect("code_host", conn_type="http", host=host.url, password=HOST_TOKEN, extra=repository)
        desk.connect("airflow_api", conn_type="http", host=airflow.url, login="auditor", password=PASSWORD)
        yield desk


def airflow_that_echoes(port: int, _state: Path) -> Server:
    def route(request: Request) -> Answer:
        if request.path == "/auth/token":
            return Answer({"access_token": SESSION}, 201)
        said = request.headers.get("Authorization", "").removeprefix("Bearer ")
        return Answer({"error": f"{said} may not look", "detail": said}, 403)

    return Server(port, route, lambda _path: False, {})


def bare(_port: int, _state: Path) -> Server:
    """Echoes a token without the word before it, so that nothing tells by its shape that it is one."""

    def route(request: Request) -> Answer:
        said = request.headers.get("Authorization", "").rpartition(" ")[2]
        return Answer({"error": f"no: {said}", "detail": said, "status": said, "message": said}, 403)

    return Server(0, route, lambda _path: False, {})


def everything(day: Day, echo: Callable[[bool], None]) -> None:
    """A release on which every service refuses once before it does what it is asked."""
    desk = day.desk
    for refuse in (True, False):
        echo(refuse)
        for name in ("code_review", "tests_passing", "rollback_plan", "migrations_tested", "bypasses", "status_page"):
            day.measure(name)
    desk.slack.fail(500)
    day.measure("team_notified")
    desk.slack.fail(None)
    day.measure("team_notified")
    desk.without("airflow_api")  # else its no closes the gate
    desk.go()
    for refuse in (True, False):
        echo(refuse)
        day.work("take_release")
        day.measure("autoscaling", "deployment")
        day.act("freeze_orders")
    desk.keep("final_backup")
    day.act("deploy")
    assert desk.commit == commit_of("2.4.1")
    echo(True)
    day.act("smoke")
    day.watch(LooksItem(item="health", consecutive=2))
    day.watch(WatchItem())
    day.work("settle", last=False)
    day.work("settle")
    day.endings("deployment")
    echo(False)
    day.endings("deployment")


def traces(day: Day, logged: str) -> dict[str, str]:
    desk = day.desk
    store = desk.installation.store
    cluster = desk.installation.site.cluster
    dumped = subprocess.run(
        [cluster.bin_dir / "pg_dump", "-d", cluster.conninfo("ops_test")], capture_output=True, check=True, text=True
    ).stdout
    found = {
        "logs": logged,
        "errors, XCom, triggers": "\n".join(day.texts),
        "the ops database": dumped,
        "Slack": json.dumps(desk.slack.messages),
        "mails": json.dumps(desk.mail.get("/messages.json")),
        "the status page": json.dumps(desk.page.get("/incidents.json")),
        "Sentry": json.dumps(desk.sentry.get("/items.json")),
    }
    return {**found, **{key: store.get(key).decode() for key in store.keys("")}}


def require_no_token(found: dict[str, str]) -> None:
    for where, text in found.items():
        assert text, where
        assert [token for token in TOKENS if token in text] == [], f"in {where}"


@pytest.mark.parametrize("how", ["with its word", "bare"])
def test_no_token_anywhere(desk: Desk, caplog: pytest.LogCaptureFixture, tmp_path: Path, how: str) -> None:
    caplog.set_level(logging.DEBUG)
    day = Day(desk)
    with standins.served(bare, tmp_path / "bare") as echoing:
        everything(day, echo_of(desk, how, echoing))
    found = traces(day, caplog.text)
    assert [key for key in found if key.startswith("records/") and key.endswith(".json")]
    assert desk.release.id in found["the ops database"]
    assert "403" in found["the ops database"], "the refusals stand there"
    assert "could not be rolled back" in found["Slack"]
    require_no_token(found)


def echo_of(desk: Desk, how: str, echoing: StandIn) -> Callable[[bool], None]:
    """The switch: the API refuses, or all services but Slack do, and echo what they were sent."""
    if how == "with its word":

        def api(refuse: bool) -> None:
            desk.api.control(fault="echo_token" if refuse else None)

        return api
    real = {name: getattr(connections, name) for name in ("payme_api", "deploy_api", "code_host", "status_page")}
    real["sentry_api"] = connections.sentry_api

    def switch(refuse: bool) -> None:
        for name, find in real.items():
            desk.monkeypatch.setattr(connections, name, elsewhere(find, echoing.url) if refuse else find)

    return switch


def elsewhere(find: Callable[..., Any], url: str) -> Callable[..., Any]:
    return lambda *arguments: replace(find(*arguments), url=url)


def test_no_token_in_a_repr(desk: Desk) -> None:
    """An error tracker prints locals."""
    found: list[Any] = [connections.payme_api(), connections.deploy_api("production"), connections.code_host()]
    found += [connections.sentry_api(), connections.airflow_api(), connections.status_page(), connections.mail_server()]
    made: Release = desk.release
    require_no_token({"reprs": repr([*found, made])})
