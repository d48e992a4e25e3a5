"""The callback of every DAG and task, with contexts as Airflow gives them, on real services."""

import asyncio
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psycopg
import pytest

from payme_ops.foundation import alert
from payme_ops.foundation.errors import HashMismatch
from payme_ops.foundation.settings import TargetSettings
from payme_ops.orchestration import alerting
from payme_ops.orchestration.alerting import alert_failed_run, alert_late_run, alert_run_well
from sandbox import postgres
from tests.support.standins import StandIn

PROJECT = Path(__file__).resolve().parents[2]
RUN = "manual__2026-11-24T02:00:00+00:00"


def task_context(
    error: BaseException | None = None,
    *,
    cleared: int = 0,
    run: str = RUN,
    map_index: int = -1,
    states: dict[str, str] | None = None,
) -> Any:
    """What a task's callback gets; also a DAG's, with `reason` in the place of `exception`. `states` of the run."""
    ti = SimpleNamespace(
        task_id="dump_and_store",
        try_number=3,
        map_index=map_index,
        task=SimpleNamespace(),
        end_date=datetime(2026, 11, 24, 2, 0, 13, tzinfo=UTC),
        get_task_states=lambda **_: {run: {"dump_and_store": "failed", **(states or {})}},
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


@pytest.mark.parametrize(
    ("states", "what"),
    [
        ({"preflight": "failed", "commit": "upstream_failed"}, "in preflight, then in dump_and_store, try 3"),
        ({"preflight": "success", "dump_and_store_4": "failed"}, "in dump_and_store_4, then in dump_and_store, try 3"),
        ({"preflight": "skipped"}, "in dump_and_store, try 3"),
    ],
)
def test_who_failed_first_and_could_not_tell_is_named_first(slack: StandIn, states: dict[str, str], what: str) -> None:
    """Airflow gives a DAG's callback the last that failed."""
    alert_failed_run(task_context(states=states) | {"reason": "task_failure"})
    shown, why, *_ = texts(slack.messages[0])
    assert shown == f":red_circle: backup_daily failed {what}"
    assert ("failed first; why stands in its log" in why) is ("then" in what)


def test_states_that_cannot_be_asked_for_do_not_keep_it_from_being_told(slack: StandIn) -> None:
    context = task_context(ValueError("why"))
    context["ti"].get_task_states = lambda **_: 1 / 0
    alert_failed_run(context)
    assert "failed in dump_and_store, try 3" in texts(slack.messages[0])[0]


# -- well again, and late ---------------------------------------------------------------------------------------


def well(run: str, *, scheduled: bool) -> Any:
    """What a DAG's success callback gets."""
    timetable = SimpleNamespace(expression="0 2 * * *") if scheduled else SimpleNamespace()
    dag = SimpleNamespace(dag_id="backup_daily", timetable=timetable)
    return task_context(run=run) | {"dag": dag, "reason": "success"}


def open_keys(alert_ops: postgres.Cluster) -> list[str]:
    return [one.key for one in alert.open_alerts(alert_ops.conninfo())]


@pytest.mark.parametrize(
    ("scheduled", "run", "over"), [(True, "another", True), (False, "another", False), (False, RUN, True)]
)
def test_a_run_that_does_well_is_told_where_the_failure_was(
    slack: StandIn, alert_ops: postgres.Cluster, scheduled: bool, run: str, over: bool
) -> None:
    alert_failed_run(task_context(ValueError("why")))
    for _ in range(2):
        alert_run_well(well(run, scheduled=scheduled))
    assert open_keys(alert_ops) == ([] if over else ["run_failed:backup_daily"])
    first, *rest = slack.messages
    assert [(message["thread_ts"], texts(message)[0]) for message in rest] == (
        [(first["ts"], ":large_blue_circle: backup_daily has ended well")] if over else []
    )


def test_a_run_that_does_well_says_nothing_when_nothing_was_told(slack: StandIn) -> None:
    alert_run_well(well(RUN, scheduled=True))
    assert slack.messages == []


def missed(state: str = "running") -> dict[str, Any]:
    """What Airflow gives a deadline's callback."""
    begun = "2026-11-23T23:00:00.123456Z"
    dag_run = {"dag_id": "backup_daily", "dag_run_id": RUN, "queued_at": begun, "state": state}
    return {"dag_run": dag_run, "deadline": {"id": "1", "deadline_time": datetime(2026, 11, 24, 0, 30, tzinfo=UTC)}}


def test_a_late_run_is_told_once_and_when_one_ends_well(slack: StandIn, alert_ops: postgres.Cluster) -> None:
    for _ in range(2):
        asyncio.run(alert_late_run(missed()))
    [message] = slack.messages
    what, why, since, _, to_do, links = texts(message)
    assert since == "*Since*\n2026-11-24 03:30:00 EAT"
    assert what == ":large_orange_circle: backup_daily is late: it has not ended in time"
    assert "Queued at 2026-11-24 02:00:00 EAT, to end by 2026-11-24 03:30:00 EAT; it is running." in why
    assert "docs/runbooks/backup_daily.md" in to_do
    assert "/dags/backup_daily/runs/manual__2026" in links
    assert open_keys(alert_ops) == ["late:backup_daily"]
    alert_run_well(well(RUN, scheduled=True))
    assert slack.messages[1]["thread_ts"] == message["ts"]
    assert open_keys(alert_ops) == []


def test_a_run_that_failed_before_its_deadline_is_not_late(slack: StandIn) -> None:
    """Airflow calls all the same."""
    asyncio.run(alert_late_run(missed("failed")))
    assert slack.messages == []


def test_what_is_late_is_told_before_its_target_is_missed(dag_bag: Any) -> None:
    targets = TargetSettings()
    within = {name: dag.deadline[0].interval for name, dag in dag_bag.dags.items() if dag.deadline}
    assert set(within) == {"backup_daily", "backup_restore_test"}
    assert timedelta(days=1) + within["backup_daily"] < timedelta(hours=targets.rpo_hours)
    # What it tests was taken four hours before it begins.
    assert timedelta(days=7, hours=4) + within["backup_restore_test"] < timedelta(days=targets.proof_days)
    longest = dag_bag.dags["backup_restore_test"].get_task("restore_and_compare").execution_timeout
    assert within["backup_restore_test"] >= longest


# -- Slack is away ----------------------------------------------------------------------------------------------


SAYS: list[Any] = [
    lambda context: alerting.inform(context, "something to know", "why", "look"),
    lambda context: alerting.begun(context, "frozen", "something lasts", "why", "look"),
    lambda _: asyncio.run(alert_late_run(missed())),
]


@pytest.mark.parametrize("say", SAYS, ids=["inform", "begun", "late"])
def test_what_slack_does_not_take_sentry_hears_once_and_slack_later(
    slack: StandIn, alert_ops: postgres.Cluster, stand_in: StandIn, caplog: pytest.LogCaptureFixture, say: Any
) -> None:
    slack.fail(503)
    for _ in range(2):
        say(task_context())
    [event] = stand_in.events
    assert event["message"].startswith("Slack did not take: ")
    assert (event["tags"]["dag_id"], event["tags"]["run_id"]) == ("backup_daily", RUN)
    assert "Slack did not take it: status 503" in caplog.text
    slack.fail(None)
    assert alert.send_pending(alert_ops.conninfo(), alerting.slack()) == 1
    assert len(slack.messages) == 1


def test_what_slack_takes_is_no_event(slack: StandIn, stand_in: StandIn) -> None:
    for say in SAYS:
        say(task_context())
    assert stand_in.events == []
    assert len(slack.messages) == 3


def test_neither_slack_nor_sentry_nor_the_ops_database_changes_what_the_task_does(
    slack: StandIn, stand_in: StandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    slack.fail(503)
    stand_in.fail(503)
    monkeypatch.delenv("AIRFLOW_CONN_PAYME_OPS_DB")
    for say in (*SAYS, lambda context: alert_failed_run(context | {"exception": ValueError("why")})):
        say(task_context())
    assert slack.messages == []


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
    slack: StandIn, alert_ops: postgres.Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("AIRFLOW_CONN_PAYME_SLACK")
    alert_failed_run(task_context(ValueError("why")))
    with psycopg.connect(alert_ops.conninfo()) as session:
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
