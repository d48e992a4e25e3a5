"""However a run fails in a real Airflow, Slack gets one message and Sentry one event, with nothing secret in them."""

import json
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import psycopg
import pytest

from sandbox import airflow, world
from sandbox.airflow import Api
from sandbox.http import call
from sandbox.sentry_api import issue_of
from sandbox.supervisor import Supervisor
from tests.support import secrets
from tests.support.standins import slack_stand_in
from tests.support.waiting import eventually

pytestmark = pytest.mark.long

PHONE, SECRET = "+254712000111", "xoxb-never-to-be-seen"
TOLD = ("raises_every_try", "fails_fast", "is_killed", "two_fail", "killed_then_raises", "cannot_render")
DAGS = (*TOLD, "heals", "has_no_callback", "is_late")


def told(here: world.World, key: str) -> list[dict[str, Any]]:
    """The messages of a key."""
    found = call("GET", here.url("slack") + "/messages.json")[1]
    return [message for message in found if message["metadata"]["event_payload"]["key"] == key]


@dataclass(frozen=True)
class Desk:
    here: world.World
    supervisor: Supervisor
    api: Api
    runs: dict[str, str]

    def slack(self, dag: str, of: str = "run_failed") -> list[dict[str, Any]]:
        return told(self.here, f"{of}:{dag}")

    def sentry(self, dag: str) -> list[dict[str, Any]]:
        found = call("GET", self.here.url("sentry") + "/events.json")[1]
        return [event for event in found if event.get("tags", {}).get("dag_id") == dag]

    def dag_level_callbacks(self, dag: str) -> int:
        """How many callbacks of the DAG have come to their end in the DAG processor."""
        logs = (self.here.root / "airflow" / "logs" / "dag_processor").glob("2*/*/failing.py.log")
        return sum(path.read_text(errors="replace").count(f"alert run_failed:{dag} for") for path in logs)

    def settled(self, dag: str, times: int = 1) -> None:
        """Wait until both levels have had their say."""
        eventually(lambda: self.dag_level_callbacks(dag) >= times, f"the callback of DAG {dag}", seconds=60)
        eventually(lambda: self.slack(dag) and self.sentry(dag), f"news of {dag}", seconds=30)


@pytest.fixture(scope="module")
def desk() -> Iterator[Desk]:
    """A world with an Airflow in which each DAG has run once."""
    root = Path(tempfile.mkdtemp(prefix="payme-ops-alerts-"))
    try:
        with world.running(root) as (here, supervisor):
            env = airflow.environment(here, dags=Path(__file__).parent / "failing_dags")
            env = secrets.moved(here.url("s3"), env)  # as in production: an alert needs two connections
            since = datetime.now(UTC)
            late_is_told = root / "late is told"
            given = {"TEST_PHONE": PHONE, "TEST_SECRET": SECRET, "TEST_LATE_IS_TOLD": str(late_is_told)}
            airflow.start(here, supervisor, {**env, **given})
            api = airflow.login(here)
            for dag in DAGS:
                supervisor.until(partial(api.dag_missing, dag, since), dag, 120)
            # The late one first, or the others would hold every worker.
            found = Desk(here, supervisor, api, {dag: api.trigger(dag) for dag in reversed(DAGS)})
            eventually(lambda: told(here, "late:is_late"), "news of the late run", seconds=120)
            late_is_told.touch()
            for dag, run in found.runs.items():
                supervisor.until(partial(api.unfinished, dag, run), dag, 180)
            for dag in TOLD:
                found.settled(dag)
            yield found
    finally:
        world.remove(root)
        shutil.rmtree(root, ignore_errors=True)


def test_every_run_ended_as_it_should(desk: Desk) -> None:
    assert {dag: desk.api.state(dag, run) for dag, run in desk.runs.items()} == {
        dag: "success" if dag in ("heals", "is_late") else "failed" for dag in DAGS
    }


@pytest.mark.parametrize("dag", TOLD)
def test_one_message_and_one_event(desk: Desk, dag: str) -> None:
    [message], [event] = desk.slack(dag), desk.sentry(dag)
    assert event["tags"]["run_id"] == desk.runs[dag]
    assert f"/dags/{dag}/runs/" in json.dumps(message["blocks"])
    assert event["tags"]["owner"] == desk.here.env["PAYME_OPS__ALERT__OWNER"]


def test_a_run_that_healed_is_not_told(desk: Desk) -> None:
    assert desk.slack("heals") == []
    assert desk.sentry("heals") == []


def test_the_task_tells_why_and_what_to_do(desk: Desk) -> None:
    [message] = desk.slack("fails_fast")
    assert "IntegrityError: SHA-256 differs; expected a; found b" in message["blocks"][1]["text"]["text"]
    assert "Take a fresh backup; then clear" in message["blocks"][3]["text"]["text"]
    [event] = desk.sentry("fails_fast")
    assert event["exception"]["values"][-1]["type"] == "IntegrityError"
    assert event["exception"]["values"][-1]["stacktrace"]["frames"]


def test_for_a_killed_task_its_dag_speaks(desk: Desk) -> None:
    [message], [event] = desk.slack("is_killed"), desk.sentry("is_killed")
    assert message["blocks"][0]["text"]["text"] == ":red_circle: is_killed failed in die, try 1"
    assert "ended without reporting an error" in message["blocks"][1]["text"]["text"]
    assert event["tags"]["task_id"] == "die"
    assert "exception" not in event


def test_the_first_that_failed_is_named_also_when_it_could_not_tell(desk: Desk) -> None:
    [message] = desk.slack("killed_then_raises")
    head = message["blocks"][0]["text"]["text"]
    assert head == ":red_circle: killed_then_raises failed in die, then in raise_later, try 1"
    assert "told by the second" in message["blocks"][1]["text"]["text"]


def test_a_run_that_has_not_ended_in_time_is_told_while_it_runs_and_when_it_has_ended(desk: Desk) -> None:
    eventually(lambda: len(desk.slack("is_late", "late")) == 2, "news of its end", seconds=60)
    late, ended = desk.slack("is_late", "late")
    assert late["blocks"][0]["text"]["text"] == ":large_orange_circle: is_late is late: it has not ended in time"
    assert "it is running" in late["blocks"][1]["text"]["text"]
    assert f"/dags/is_late/runs/{desk.runs['is_late'].partition('__')[0]}" in json.dumps(late["blocks"])
    assert ended["thread_ts"] == late["ts"]
    assert desk.slack("is_late") == []


def test_nothing_but_failed_runs_makes_events(desk: Desk) -> None:
    """Not a line at level error, not a thread that ended with an error, not a try that is repeated."""
    events = call("GET", desk.here.url("sentry") + "/events.json")[1]
    assert len(events) == len(TOLD) + len(desk.sentry("has_no_callback"))


def test_a_dag_without_our_callback_still_reaches_sentry(desk: Desk) -> None:
    assert desk.slack("has_no_callback") == []
    events = desk.sentry("has_no_callback")
    assert len(events) == 2, "Airflow captures every try"
    assert len({issue_of(event) for event in events}) == 1, "and they are one issue"
    assert {event["tags"]["run_id"] for event in events} == {desk.runs["has_no_callback"]}


def test_no_secret_went_out(desk: Desk) -> None:
    items = call("GET", desk.here.url("sentry") + "/items.json")[1]
    messages = call("GET", desk.here.url("slack") + "/messages.json")[1]
    with psycopg.connect(desk.here.conninfo("payme_ops", "payme_ops")) as connection:
        alerts = connection.execute("SELECT to_jsonb(a) FROM ops.alerts a").fetchall()
    told = json.dumps([items, messages, alerts], default=str)
    assert "raises_every_try" in told
    for secret in (PHONE, SECRET):
        assert secret not in told


def test_a_cleared_run_that_fails_again_is_told_again_in_the_same_thread(desk: Desk) -> None:
    dag, run = "fails_fast", desk.runs["fails_fast"]
    [first] = desk.slack(dag)
    body = {"dag_run_id": run, "dry_run": False, "only_failed": True}
    desk.api.call("POST", f"/dags/{dag}/clearTaskInstances", body)
    desk.supervisor.until(partial(desk.api.unfinished, dag, run), dag, 120)
    desk.settled(dag, times=2)
    _, again = eventually(lambda: len(found := desk.slack(dag)) == 2 and found, "the second message")
    assert again["thread_ts"] == first["ts"]
    assert len(desk.sentry(dag)) == 2


def test_a_changed_secret_counts_without_a_restart(desk: Desk, tmp_path: Path) -> None:
    """Told by the task's process, by the DAG processor for a killed one, by the triggerer for a late one."""
    before = json.loads(desk.here.env["AIRFLOW_CONN_PAYME_SLACK"])
    kept, late_is_told = secrets.at(desk.here.url("s3")), desk.here.root / "late is told"
    late_is_told.unlink()
    with slack_stand_in(tmp_path) as other:

        def told_there(*keys: str) -> bool:
            return {one["metadata"]["event_payload"]["key"] for one in other.messages} >= set(keys)

        kept.connection("payme_slack", {**before, "extra": {"base_url": f"{other.url}/api/"}})
        runs = [(dag, desk.api.trigger(dag)) for dag in ("is_late", "fails_fast", "is_killed")]
        eventually(lambda: told_there("late:is_late"), "news of the late run", seconds=60)
        late_is_told.touch()
        for dag, run in runs:
            desk.supervisor.until(partial(desk.api.unfinished, dag, run), dag, 120)
        eventually(lambda: told_there("run_failed:fails_fast", "run_failed:is_killed"), "news of the others", 60)
