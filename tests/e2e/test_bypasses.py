"""What a real Airflow shows of tasks that people set by hand, each way in turn: the table of release/bypass.py."""

import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

from payme_ops.foundation.airflow_api import AirflowApi
from payme_ops.foundation.evidence import Finding, Verdict
from payme_ops.release import bypass
from payme_ops.release.request import Release
from sandbox import airflow, world
from sandbox.airflow import Api
from sandbox.http import call
from sandbox.supervisor import Supervisor
from sandbox.world import AUDITOR
from tests.support import releases
from tests.support.waiting import eventually

pytestmark = [pytest.mark.long, pytest.mark.blocks("bypasses")]

DAG = "pre_deployment"
ITSELF = {
    **dict.fromkeys(("fine", "second_try", "waits", "ends_in_trigger", "cleared", "rewritten"), "success"),
    "starts_again": "skipped",
    **dict.fromkeys(("answered", "rejected", "asks"), "awaiting_input"),
    **dict.fromkeys(("fails", "fails_many"), "failed"),
    **dict.fromkeys(("hangs", "hangs_many"), "running"),
}


@dataclass(frozen=True)
class Run:
    """A run of the DAG of tests/e2e/marked_dags, in which nothing was set by hand yet."""

    supervisor: Supervisor
    api: Api
    auditor: Api
    release: Release
    reads: AirflowApi
    id: str

    def examine(self) -> Finding:
        return bypass.examine(self.reads, self.release, {DAG: self.id}, {})

    def marks(self) -> dict[str, str]:
        """Who set which task."""
        return {one["task"].removeprefix(f"{DAG} "): one["by"] for one in self.examine().measured["by hand"]}

    def states(self) -> dict[str, str]:
        return {one["task_id"]: one["state"] for one in self.api.tasks(DAG, self.id)}

    def become(self, expected: dict[str, str]) -> None:
        def missing() -> str | None:
            found = self.states()
            return (
                ", ".join(f"{name} {found.get(name)}" for name in expected if found.get(name) != expected[name]) or None
            )

        self.supervisor.until(missing, f"{', '.join(expected)}", 120)

    def patch(self, path: str, body: object) -> None:
        self.api.call("PATCH", f"/dags/{DAG}/dagRuns/{quote(self.id)}{path}", body)

    def set(self, task: str, state: str = "success") -> None:
        self.patch(f"/taskInstances/{task}", {"new_state": state})

    def set_many(self, *tasks: str) -> None:
        entities = [{"task_id": task, "new_state": "success"} for task in tasks]
        self.patch("/taskInstances", {"actions": [{"action": "update", "entities": entities}]})

    def clear(self, *tasks: str) -> None:
        body = {"dry_run": False, "dag_run_id": self.id, "task_ids": tasks, "only_failed": False}
        self.api.call("POST", f"/dags/{DAG}/clearTaskInstances", body)

    def pause(self, paused: bool) -> None:
        self.api.call("PATCH", f"/dags/{DAG}", {"is_paused": paused})


@pytest.fixture(scope="module")
def run() -> Iterator[Run]:
    root = Path(tempfile.mkdtemp(prefix="payme-ops-marked-"))
    try:
        with world.running(root) as (here, supervisor):
            env = airflow.environment(here, dags=Path(__file__).parent / "marked_dags")
            env["AIRFLOW__CORE__PARALLELISM"] = "8"
            since = datetime.now(UTC)
            airflow.start(here, supervisor, env)
            api = airflow.login(here)
            supervisor.until(partial(api.dag_missing, DAG, since), DAG, 120)
            release = releases.release(here.conninfo("payme_ops", "payme_ops"))
            reads = AirflowApi(here.url("airflow"), AUDITOR, here.secrets[f"airflow.{AUDITOR}"])
            made = Run(supervisor, api, airflow.login(here, AUDITOR), release, reads, api.trigger(DAG))
            made.become(ITSELF)
            for task in ("answered", "rejected", "asks"):
                supervisor.until(partial(api.not_asking, DAG, made.id, task), task, 60)
            yield made
    finally:
        world.remove(root)
        shutil.rmtree(root, ignore_errors=True)


def test_each_way_of_setting_a_task_is_found_and_no_way_of_ending_itself(run: Run) -> None:
    run.api.answer(DAG, run.id, "answered", "Approve")
    run.api.answer(DAG, run.id, "rejected", "Reject")
    run.become({"answered": "success", "rejected": "success", "after_rejection": "skipped"})
    unsaid = dict.fromkeys(("after_rejection", "ends_in_trigger"), "not in the log")
    assert run.marks() == unsaid

    # Refused, and in the log all the same.
    path = f"{run.api.url}/api/v2/dags/{DAG}/dagRuns/{quote(run.id)}/taskInstances/fails"
    assert call("PATCH", path, {"new_state": "success"}, token=run.auditor.token)[0] == 403
    assert ([one["by"] for one in calls(run.examine())], run.marks()) == ([AUDITOR], unsaid)

    run.set("waiting")
    run.set("hangs")
    run.set("fails")
    run.set("asks")
    run.set("waiting_skipped", "skipped")
    run.patch("/taskGroupInstances/group", {"new_state": "success"})
    run.set_many("waiting_many", "hangs_many", "fails_many")
    run.patch("/taskInstances/rewritten/xcomEntries/return_value", {"value": "another", "map_index": -1})
    run.pause(True)
    run.clear("cleared")
    run.set_many("cleared")
    run.pause(False)
    # Nothing in the log names the second ones; the call for the group names no task, and may have been it.
    unnamed = ("in_group", "waiting_many", "hangs_many", "fails_many", "cleared", *unsaid)
    expected = {
        **dict.fromkeys(("waiting", "hangs", "asks", "waiting_skipped", "rewritten"), "oncall"),
        "fails": f"{AUDITOR}, oncall",
        **dict.fromkeys(unnamed, "perhaps oncall"),
    }
    assert run.examine().verdict is Verdict.BYPASSED
    assert run.marks() == expected

    run.clear("rewritten", "cleared", "waiting")
    eventually(lambda: {*run.marks()}.isdisjoint({"rewritten", "cleared", "waiting"}), "them to run", 90, every=1)
    assert {*run.marks()} == {*expected} - {"rewritten", "cleared", "waiting"}


def test_a_run_that_is_deleted_is_found(run: Run) -> None:
    run.patch("", {"state": "failed"})
    run.become({"hangs_many": "success"})
    run.api.call("PATCH", f"/dags/{DAG}/dagRuns", {"actions": [{"action": "delete", "entities": [run.id]}]})
    found = run.examine()
    assert found.verdict is Verdict.BYPASSED
    assert "was deleted" in found.remedy


def calls(found: Finding) -> list[dict[str, Any]]:
    listed: list[dict[str, Any]] = found.measured["calls by hand in the log"]
    return listed
