"""The callback of every DAG and task, with contexts as Airflow gives them, on real services."""

import json
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psycopg
import pytest

from payme_ops.foundation import opsdb
from payme_ops.foundation.errors import HashMismatch
from payme_ops.orchestration.alerting import alert_failed_run
from sandbox import postgres
from tests.support.ops import connection
from tests.support.standins import StandIn, slack_stand_in

PROJECT = Path(__file__).resolve().parents[2]
RUN = "manual__2026-11-24T02:00:00+00:00"


@pytest.fixture(scope="module")
def ops() -> Iterator[postgres.Cluster]:
    with postgres.temporary_cluster() as cluster:
        opsdb.migrate(cluster.conninfo())
        yield cluster


@pytest.fixture
def slack(tmp_path: Path, ops: postgres.Cluster, monkeypatch: pytest.MonkeyPatch) -> Iterator[StandIn]:
    """Slack, and the connections to it and to the ops database."""
    monkeypatch.setenv("AIRFLOW_CONN_PAYME_OPS_DB", json.dumps(connection(ops)))
    monkeypatch.setenv("PAYME_OPS__ALERT__OWNER", "Wanjiru")
    monkeypatch.setenv("PAYME_OPS__SLACK__CHANNEL", "night-watch")
    monkeypatch.setenv("AIRFLOW__API__BASE_URL", "https://airflow.payme.example/")
    with psycopg.connect(ops.conninfo()) as session:
        session.execute("TRUNCATE ops.alerts, ops.alert_threads")
    with slack_stand_in(tmp_path) as running:
        extra = {"base_url": f"{running.url}/api/"}
        slack = {"conn_type": "slack", "password": "xoxb-test", "extra": extra}
        monkeypatch.setenv("AIRFLOW_CONN_PAYME_SLACK", json.dumps(slack))
        yield running


def task_context(error: BaseException | None = None, *, cleared: int = 0, run: str = RUN, map_index: int = -1) -> Any:
    """What a task's callback gets; also a DAG's, with `reason` in the place of `exception`."""
    ti = SimpleNamespace(
        task_id="dump_and_store",
        try_number=3,
        map_index=map_index,
        task=SimpleNamespace(),
        end_date=datetime(2026, 11, 24, 2, 0, 13, tzinfo=UTC),
    )
    dag_run = SimpleNamespace(clear_number=cleared)
    context = {"dag": SimpleNamespace(dag_id="backup_daily"), "run_id": run, "ti": ti, "dag_run": dag_run}
    return context | ({"exception": error} if error else {})


def texts(message: dict[str, Any]) -> list[str]:
    return [
        part["text"] for block in message["blocks"] for part in [block.get("text"), *block.get("fields", [])] if part
    ]


def test_a_failed_task_is_told_with_error_remedy_owner_and_links(slack: StandIn) -> None:
    error = HashMismatch("the stored archive differs", expected="sha256 a", found="sha256 b", remedy="run it again.")
    alert_failed_run(task_context(error))
    [message] = slack.messages
    assert message["channel_name"] == "night-watch"
    what, why, since, owner, to_do, links = texts(message)
    assert what == ":red_circle: backup_daily failed in dump_and_store, try 3"
    assert "HashMismatch: the stored archive differs; expected sha256 a; found sha256 b." in why
    assert since == "*Since*\n2026-11-24 05:00:13 EAT"
    assert owner == "*Who to call*\nWanjiru"
    assert "Run it again; then clear the failed task" in to_do
    page = "https://airflow.payme.example/dags/backup_daily"
    run = "manual__2026-11-24T02%3A00%3A00%2B00%3A00"
    assert links == f"<{page}/runs/{run}|Open the run> · <{page}|Runbook>"


@pytest.mark.parametrize(
    "remedy", ["clear freeze_orders and what comes after it", "see which limit was broken: clear nothing"]
)
def test_a_remedy_that_says_what_to_clear_stands_alone(slack: StandIn, remedy: str) -> None:
    alert_failed_run(task_context(HashMismatch("it differs", remedy=remedy)))
    to_do = texts(slack.messages[0])[4]
    assert f"{remedy.capitalize()}. Runbook" in to_do
    assert "then clear the failed task" not in to_do


def test_task_and_dag_tell_one_run_once(slack: StandIn) -> None:
    alert_failed_run(task_context(ValueError("why")))
    alert_failed_run(task_context() | {"reason": "task_failure"})
    [message] = slack.messages
    assert "ValueError: why" in texts(message)[1]


def test_the_dag_speaks_for_a_task_that_could_not(slack: StandIn) -> None:
    alert_failed_run(task_context() | {"reason": "task_failure"})
    assert "was killed" in texts(slack.messages[0])[1]


def test_a_dag_of_which_airflow_knows_no_task(slack: StandIn) -> None:
    context: Any = {"dag": SimpleNamespace(dag_id="backup_daily"), "run_id": RUN, "reason": "all_tasks_deadlocked"}
    alert_failed_run(context)
    what, why = texts(slack.messages[0])[:2]
    assert what == ":red_circle: backup_daily failed"
    assert "No task of the run can start any more" in why


def test_a_cleared_run_and_another_run_are_told_again_in_the_thread(slack: StandIn) -> None:
    alert_failed_run(task_context(ValueError("why")))
    alert_failed_run(task_context(ValueError("why"), cleared=1))
    alert_failed_run(task_context(ValueError("why"), run="another"))
    first, second, third = slack.messages
    assert second["thread_ts"] == third["thread_ts"] == first["ts"]


def test_a_mapped_task_is_named_with_its_index(slack: StandIn) -> None:
    alert_failed_run(task_context(ValueError("why"), map_index=4))
    assert "dump_and_store[4]" in texts(slack.messages[0])[0]


def test_a_long_error_is_cut_to_its_first_lines(slack: StandIn) -> None:
    alert_failed_run(task_context(ValueError("\n".join(f"line {number}" for number in range(100)))))
    why = texts(slack.messages[0])[1]
    assert "line 11" in why
    assert "line 12" not in why


def test_told_although_settings_and_ops_connection_are_broken(
    slack: StandIn, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("PAYME_OPS__PROFILE", "nonsense")
    monkeypatch.delenv("AIRFLOW_CONN_PAYME_OPS_DB")
    alert_failed_run(task_context(ValueError("why")))
    assert len(slack.messages) == 1
    assert "the connection of the ops database is not known" in caplog.text


def test_without_slack_it_is_written_and_nothing_is_raised(
    slack: StandIn, ops: postgres.Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("AIRFLOW_CONN_PAYME_SLACK")
    alert_failed_run(task_context(ValueError("why")))
    with psycopg.connect(ops.conninfo()) as session:
        assert session.execute("SELECT count(*) FROM ops.alerts WHERE sent_at IS NULL").fetchone() == (1,)
    assert slack.messages == []


def test_dag_files_pay_nothing_for_it() -> None:
    heavy = ("airflow", "slack_sdk", "sentry_sdk", "psycopg", "boto3", "pydantic")
    script = (
        "import sys; import payme_ops.orchestration.alerting;"
        f"print([name for name in {heavy!r} if name in sys.modules])"
    )
    run = subprocess.run(
        [sys.executable, "-c", script], cwd=PROJECT / "plugins", capture_output=True, text=True, check=True
    )
    assert run.stdout.strip() == "[]"
