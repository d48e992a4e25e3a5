"""Releases from the form to the signed record: a green one, a rejected, a bad one, and one whose worker is killed."""

import json
import os
import signal
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any

import psutil
import pytest

from payme_ops.foundation import evidence, record
from payme_ops.foundation.clock import utc_now
from payme_ops.foundation.objectstore import Bucket
from sandbox import airflow, s3, world
from sandbox.builds import commit_of
from sandbox.http import call
from tests.e2e.conftest import PARSED_WITHIN_SECONDS, RUN_WITHIN_SECONDS, Desk

pytestmark = [pytest.mark.long, pytest.mark.timeout(1800)]

PRE, DEPLOYMENT, POST = "pre_deployment", "deployment", "post_deployment"
WITHIN_SECONDS = 420.0
# What only people know, and so the only questions of a green release.
ASKED = {"qa_sign_off", "rollback_plan_agreed", "support_standby", "go_no_go_first", "go_no_go_second"}


@dataclass
class Team:
    """People who answer: `lead` the second go or no-go, `approver` everything else, with `says` instead of a yes."""

    desk: Desk
    approver: airflow.Api
    lead: airflow.Api
    says: Mapping[str, str] = field(default_factory=dict)
    asked: dict[str, str] = field(default_factory=dict)

    def answers(self, dag: str, run: str) -> None:
        """Answer what the run asks now."""
        for task in self.desk.api.tasks(dag, run):
            name = task["task_id"]
            if task["state"] != "awaiting_input" or self.desk.api.not_asking(dag, run, name):
                continue
            self.asked[name] = str(self.desk.api.question(dag, run, name)["body"])
            who = self.lead if name == "go_no_go_second" else self.approver
            who.answer(dag, run, name, self.says.get(name, "Approve"))

    def until_ended(self, dag: str, run: str, meanwhile: Callable[[], None] = lambda: None) -> str:
        """Answer until the run ends; its state."""

        def missing() -> str | None:
            meanwhile()
            left = self.desk.api.unfinished(dag, run)
            if left is not None:
                self.answers(dag, run)
            return left

        self.desk.supervisor.until(missing, f"{dag} {run}", WITHIN_SECONDS)
        return self.desk.api.state(dag, run)


@pytest.fixture(scope="module")
def people(busy_desk: Desk) -> tuple[airflow.Api, airflow.Api]:
    """A verified backup, staging at work, the DAGs known; two people who may approve."""
    desk = busy_desk
    desk.supervisor.start(world.staging(desk.world))
    since = datetime.min.replace(tzinfo=UTC)
    for dag in (PRE, DEPLOYMENT, POST):
        desk.supervisor.until(partial(desk.api.dag_missing, dag, since), dag, PARSED_WITHIN_SECONDS)
    assert desk.run(reason="to go back to")[1] == "success"
    assert desk.run("backup_restore_test")[1] == "success"
    return airflow.login(desk.world, "approver"), airflow.login(desk.world, "lead")


def team(desk: Desk, people: tuple[airflow.Api, airflow.Api], **says: str) -> Team:
    return Team(desk, *people, says)


def api(desk: Desk, path: str, environment: str = "production", body: object = None) -> dict[str, Any]:
    """The PayMe API of that environment."""
    name = "payme_api" if environment == "production" else "payme_api_staging"
    status, found = call("POST" if body is not None else "GET", f"{desk.world.url(name)}{path}", body)
    assert status < 300, (path, status, found)
    return dict(found)


def orders(desk: Desk, environment: str = "production") -> dict[str, Any]:
    name = "payme_api" if environment == "production" else "payme_api_staging"
    found = call("GET", f"{desk.world.url(name)}/admin/orders", token=desk.world.secrets[f"{name}.token"])[1]
    return dict(found)


def ask(desk: Desk, build: str, previous: str, environment: str = "production", **form: object) -> tuple[str, str]:
    """Trigger a release, as oncall; run of pre_deployment and the release's id."""
    now = utc_now()
    asked = {
        "commit": commit_of(build),
        "version": build.split("-")[0],
        "environment": environment,
        "window_from": now.isoformat(),
        "window_to": (now + timedelta(hours=2)).isoformat(),
        "previous_commit": commit_of(previous),
        "reason": f"e2e of {build}",
        **form,
    }
    run = desk.api.trigger(PRE, asked)
    desk.supervisor.until(lambda: _not_made(desk, run), "the release", RUN_WITHIN_SECONDS)
    path = f"/dags/{PRE}/dagRuns/{run}/taskInstances/check_request/xcomEntries/return_value"
    return run, str(desk.api.call("GET", path)["value"]).strip('"')


def _not_made(desk: Desk, run: str) -> str | None:
    state = desk.states(run, PRE).get("check_request")
    return None if state == "success" else f"check_request, which is {state}"


def stage(desk: Desk, build: str) -> None:
    """Let staging run that build, as its own pipeline would."""
    url, token = desk.world.url("payme_api_staging"), desk.world.secrets["payme_api_staging.token"]
    assert call("POST", f"{url}/admin/start", {"version": build}, token=token)[0] == 200
    assert api(desk, "/version", "staging")["commit"] == commit_of(build)


def found(desk: Desk, release: str) -> dict[str, evidence.Evidence]:
    """The newest evidence of each item."""
    ops = desk.world.conninfo("payme_ops", "payme_ops")
    return {one.item: one for one in evidence.of_run(ops, f"release/{release}")}


def kept(desk: Desk, release: str) -> record.Record:
    bucket = Bucket(s3.client(desk.world.url("s3")), world.HOME_BUCKET)
    key = found(desk, release)["record"].measured["record"]
    return record.verify(bucket.get(key), [desk.world.env["PAYME_OPS__BACKUP__VERIFICATION_KEYS"]], "test")


def logs(desk: Desk, dag: str, run: str) -> str:
    """What failed of a run, as whoever is on call reads it."""
    texts = []
    for task in desk.api.tasks(dag, run):
        if task["state"] == "failed":
            texts.append(f"--- {task['task_id']}\n{desk.api.log(dag, run, task['task_id'], task['try_number'])[-3000:]}")
    return "\n".join(texts)


def test_a_green_release(busy_desk: Desk, people: tuple[airflow.Api, airflow.Api]) -> None:
    desk, everybody = busy_desk, team(busy_desk, people)
    stage(desk, "2.4.1")
    scaled = api_autoscaling(desk)
    run, release = ask(desk, "2.4.1", "2.4.0")
    assert everybody.until_ended(PRE, run) == "success", logs(desk, PRE, run)
    assert everybody.until_ended(DEPLOYMENT, release) == "success", logs(desk, DEPLOYMENT, release)
    assert everybody.until_ended(POST, release) == "success", logs(desk, POST, release)

    assert set(everybody.asked) == {*ASKED, "features_confirmed"}
    assert commit_of("2.4.1") in everybody.asked["go_no_go_first"]
    assert api(desk, "/version")["commit"] == commit_of("2.4.1")
    assert orders(desk)["frozen"] is False
    assert api_autoscaling(desk) == scaled
    made = kept(desk, release)
    assert (made.verdict, made.actor) == ("RELEASED", "oncall")
    assert {one["by"] for one in made.facts["approvals"]} == {"approver", "lead"}


def api_autoscaling(desk: Desk) -> dict[str, Any]:
    url, token = desk.world.url("payme_api"), desk.world.secrets["payme_api.token"]
    return dict(call("GET", f"{url}/admin/autoscaling", token=token)[1])
