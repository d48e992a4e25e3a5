"""Releases from the form to the signed record: a green one, a rejected, a bad one, and one whose worker is killed."""

import json
import os
import signal
import subprocess
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from payme_ops.foundation import evidence, record
from payme_ops.foundation.clock import utc_now
from payme_ops.foundation.objectstore import Bucket
from sandbox import airflow, postgres, s3, world
from sandbox.builds import commit_of
from sandbox.http import call
from tests.e2e.conftest import PARSED_WITHIN_SECONDS, Desk

pytestmark = [pytest.mark.long, pytest.mark.timeout(1800)]

PRE, DEPLOYMENT, POST = "pre_deployment", "deployment", "post_deployment"
WITHIN_SECONDS = 900.0  # on a busy machine; five minutes on an idle one
# What only people know, and so the only questions of a green release.
ASKED = {
    *("qa_sign_off", "rollback_plan_agreed", "support_standby"),
    *("go_no_go_first", "go_no_go_second", "features_confirmed"),
}


@dataclass
class Release:
    """One release under way, and people who answer: `lead` the second go or no-go, `approver` everything else."""

    desk: Desk
    people: tuple[airflow.Api, airflow.Api]
    run: str
    id: str = ""
    says: Mapping[str, str] = field(default_factory=dict)  # instead of a yes
    asked: dict[str, str] = field(default_factory=dict)

    @property
    def runs(self) -> dict[str, str]:
        """Run id by DAG."""
        return {PRE: self.run, DEPLOYMENT: self.id, POST: self.id}

    def left(self) -> str | None:
        """A ready condition: every DAG that was started has ended. Answers what is asked meanwhile."""
        for dag, run in self.runs.items():
            if not run or self.state(dag) is None:
                return None if self._ends_before(dag) else f"{dag} of {self.id or self.run} to begin"
            if (left := self.desk.api.unfinished(dag, run)) is not None:
                self._answer(dag, run)
                return f"{dag}: {left}"
            if not self.id:
                self.id = self._made()
        return None

    def _ends_before(self, dag: str) -> bool:
        """Whether the DAG before has ended without starting this one."""
        before = {PRE: PRE, DEPLOYMENT: PRE, POST: DEPLOYMENT}[dag]
        started = self.desk.states(self.runs[before], before).get(f"start_{dag}")
        return started in ("skipped", "upstream_failed", "failed")

    def state(self, dag: str) -> str | None:
        """None where it was not started."""
        status, found = call(
            "GET", f"{self.desk.api.url}/api/v2/dags/{dag}/dagRuns/{self.runs[dag]}", token=self.desk.api.token
        )
        return found["state"] if status == 200 else None

    def tasks(self, dag: str) -> dict[str, str]:
        return self.desk.states(self.runs[dag], dag)

    def _made(self) -> str:
        path = f"/dags/{PRE}/dagRuns/{self.run}/taskInstances/check_request/xcomEntries/return_value"
        return str(self.desk.api.call("GET", path)["value"]).strip('"')

    def _answer(self, dag: str, run: str) -> None:
        api, (approver, lead) = self.desk.api, self.people
        for task in api.tasks(dag, run):
            name = task["task_id"]
            if task["state"] != "awaiting_input" or api.not_asking(dag, run, name):
                continue
            self.asked[name] = str(api.question(dag, run, name)["body"])
            (lead if name == "go_no_go_second" else approver).answer(dag, run, name, self.says.get(name, "Approve"))

    @property
    def found(self) -> dict[str, evidence.Evidence]:
        """The newest evidence of each item."""
        ops = self.desk.world.conninfo("payme_ops", "payme_ops")
        return {one.item: one for one in evidence.of_run(ops, f"release/{self.id}")}

    @property
    def record(self) -> record.Record:
        """Its signed record, verified."""
        bucket = Bucket(s3.client(self.desk.world.url("s3")), world.HOME_BUCKET)
        keys = [self.desk.world.env["PAYME_OPS__BACKUP__VERIFICATION_KEYS"]]
        return record.verify(bucket.get(self.found["record"].measured["record"]), keys, "test")

    @property
    def logs(self) -> str:
        """What failed, as whoever is on call reads it."""
        texts = []
        for dag, run in self.runs.items():
            for task in self.desk.api.tasks(dag, run) if self.state(dag) else []:
                if task["state"] == "failed":
                    log = self.desk.api.log(dag, run, task["task_id"], task["try_number"])
                    texts.append(f"--- {dag} {task['task_id']}\n{log[-3000:]}")
        return "\n".join(texts)


def until_ended(*releases: Release, meanwhile: Callable[[], None] = lambda: None) -> None:
    """Answer what they ask until all have ended."""

    def missing() -> str | None:
        meanwhile()
        return "; ".join(filter(None, [one.left() for one in releases])) or None

    releases[0].desk.supervisor.until(missing, "the releases", WITHIN_SECONDS)


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


def api(desk: Desk, path: str, environment: str = "production", body: object = None) -> dict[str, Any]:
    """The PayMe API of that environment."""
    name = "payme_api" if environment == "production" else "payme_api_staging"
    method, token = ("GET" if body is None else "POST"), desk.world.secrets[f"{name}.token"]
    status, found = call(method, f"{desk.world.url(name)}{path}", body, token=token)
    assert status < 300, (path, status, found)
    return dict(found)


def ask(
    desk: Desk,
    people: tuple[airflow.Api, airflow.Api],
    build: str,
    previous: str,
    environment: str = "production",
    **says: str,
) -> Release:
    """Trigger a release, as oncall."""
    now = utc_now()
    asked = {
        "commit": commit_of(build),
        "version": build.split("-")[0],
        "environment": environment,
        "window_from": now.isoformat(),
        "window_to": (now + timedelta(hours=2)).isoformat(),
        "previous_commit": commit_of(previous),
        "reason": f"e2e of {build}",
    }
    return Release(desk, people, desk.api.trigger(PRE, asked), says=says)


def stage(desk: Desk, build: str) -> None:
    """Let staging run that build, as its own pipeline would."""
    api(desk, "/admin/start", "staging", {"version": build})
    assert api(desk, "/version", "staging")["commit"] == commit_of(build)


def test_one_goes_and_another_is_refused(busy_desk: Desk, people: tuple[airflow.Api, airflow.Api]) -> None:
    desk = busy_desk
    stage(desk, "2.4.1")
    before = api(desk, "/admin/autoscaling")
    green = ask(desk, people, "2.4.1", "2.4.0")
    refused = ask(desk, people, "2.5.0", "2.4.1", "staging", go_no_go_first="Reject")
    until_ended(green, refused)

    assert [green.state(dag) for dag in green.runs] == ["success"] * 3, green.logs
    assert set(green.asked) == ASKED  # and no machine's item asked anybody
    assert commit_of("2.4.1") in green.asked["go_no_go_first"]
    assert api(desk, "/version")["commit"] == commit_of("2.4.1")
    assert api(desk, "/admin/orders")["frozen"] is False
    assert api(desk, "/admin/autoscaling") == before
    assert (green.record.verdict, green.record.actor) == ("RELEASED", "oncall")
    assert {one["by"] for one in green.record.facts["approvals"]} == {"approver", "lead"}

    assert (refused.state(DEPLOYMENT), refused.state(POST)) == ("failed", None)
    tasks = refused.tasks(DEPLOYMENT)
    assert (tasks["go_no_go_first"], tasks["freeze_orders"], tasks["deploy"]) == (
        "failed",
        "upstream_failed",
        "upstream_failed",
    )
    assert api(desk, "/version", "staging")["commit"] == commit_of("2.4.1")
    assert api(desk, "/control", "staging")["posts"] == 0
    assert refused.record.verdict == "NOT DEPLOYED"


def test_a_bad_one_goes_back_and_a_killed_worker_deploys_once(
    busy_desk: Desk, people: tuple[airflow.Api, airflow.Api]
) -> None:
    """Production gets a slow build; on staging the worker is killed right after its POST."""
    desk = busy_desk
    stage(desk, "2.4.4-slow")
    posts = {name: api(desk, "/control", name)["posts"] for name in ("production", "staging")}
    bad = ask(desk, people, "2.4.4-slow", "2.4.1")
    desk.supervisor.until(lambda: None if "staging_healthy" in seen(bad) else "staging", "its look", WITHIN_SECONDS)
    api(desk, "/control", "staging", {"deploy_seconds": 20})
    killed = ask(desk, people, "2.5.0", "2.4.4-slow", "staging")
    pids: list[int] = []

    def strike() -> None:
        if not pids and api(desk, "/control", "staging")["posts"] > posts["staging"]:
            [task] = [one for one in desk.api.tasks(DEPLOYMENT, killed.id) if one["task_id"] == "deploy"]
            os.kill(task["pid"], signal.SIGKILL)
            pids.append(task["pid"])

    until_ended(bad, killed, meanwhile=strike)

    assert (bad.state(DEPLOYMENT), bad.state(POST)) == ("success", "failed"), bad.logs
    assert "p95" in bad.found["watch"].measured["breach"]
    assert bad.record.verdict == "ROLLED BACK"
    assert api(desk, "/version")["commit"] == commit_of("2.4.1")
    assert api(desk, "/control")["posts"] == posts["production"] + 2  # there and back
    assert api(desk, "/admin/orders")["frozen"] is False

    assert pids
    deploy = [one for one in desk.api.tasks(DEPLOYMENT, killed.id) if one["task_id"] == "deploy"]
    assert [(one["state"], one["try_number"]) for one in deploy] == [("success", 2)]
    assert api(desk, "/control", "staging")["posts"] == posts["staging"] + 1
    assert [killed.state(dag) for dag in killed.runs] == ["success"] * 3, killed.logs
    assert killed.record.verdict == "RELEASED"


def seen(release: Release) -> dict[str, evidence.Evidence]:
    """Its evidence as soon as there is a release."""
    release.left()
    return release.found if release.id else {}


def test_no_token_is_anywhere(busy_desk: Desk) -> None:
    """Neither in logs nor in what Airflow (rendered fields, XCom, the event log) and the desk keep, or people see."""
    desk = busy_desk
    tokens = {
        *(f"{name}.{token}" for name in ("payme_api", "payme_api_staging") for token in ("token", "deploy_token")),
        *("code_host.token", "status_page.key", "slack.token", "airflow.auditor", "payme_api.encryption_key"),
    }
    secrets = [desk.world.secrets[name] for name in tokens]
    places = {path.name: path.read_text(errors="replace") for path in logs(desk)}
    for database, role in (("airflow", "airflow"), ("payme_ops", "payme_ops")):
        command = [str(postgres.wheel_bin_dir() / "pg_dump"), "--data-only", desk.world.conninfo(role, database)]
        places[database] = subprocess.run(command, capture_output=True, check=True, text=True).stdout
    places["slack"], places["sentry"] = json.dumps(desk.slack()), json.dumps(desk.sentry())
    assert "freeze_orders" in places["airflow"]
    assert "freeze_orders" in places["payme_ops"]
    assert {name for name, text in places.items() if any(secret in text for secret in secrets)} == set()


def logs(desk: Desk) -> list[Path]:
    """Of tasks and triggers, and of Airflow's processes."""
    found = [path for folder in ("airflow/logs", "logs") for path in (desk.world.root / folder).rglob("*.log*")]
    assert any("deploy" in str(path) for path in found)
    return [path for path in found if path.is_file()]
