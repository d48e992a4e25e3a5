"""What may leave for Sentry: no secret in any part of an event, and no event beside those for failed runs."""

import json
import sys
from types import SimpleNamespace
from typing import Any

import pytest
import sentry_sdk
from hypothesis import given, settings
from hypothesis import strategies as st

from payme_ops.monitoring import sentry_rules
from payme_ops.orchestration import alerting, sentry
from tests.support.standins import StandIn

PHONE, KEY, TOKEN, DSN_KEY = "+254712000111", "5e" * 32, "xoxb-1234-secret", "0123456789abcdef" * 2
PASSWORD = "hunter2-of-the-database"
SECRETS = (PHONE, KEY, TOKEN, DSN_KEY, PASSWORD)

LEAVES = st.sampled_from(
    [
        *(f"user {PHONE} failed", KEY, f"Bearer {TOKEN}", "fine", 17, None, True),
        f"sent to https://{DSN_KEY}@o1.ingest.sentry.io/2",
        f"could not connect to postgresql://payme:{PASSWORD}@db/payme",
        f"host=db password={PASSWORD}",
    ]
) | st.text(max_size=10)
PARTS = st.recursive(
    LEAVES,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["data", "note", PHONE]) | st.text(max_size=5), inner)
    ),
    max_leaves=12,
)
EVENTS = st.fixed_dictionaries(
    {"event_id": st.just("ab" * 16)},
    optional={
        "message": LEAVES,
        "logentry": PARTS,
        "exception": st.lists(
            st.fixed_dictionaries(
                {"type": st.just("ValueError"), "value": LEAVES},
                optional={
                    "stacktrace": st.lists(
                        st.fixed_dictionaries({"function": LEAVES, "context_line": LEAVES, "vars": PARTS}), max_size=3
                    ).map(lambda frames: {"frames": frames}),
                },
            ),
            max_size=2,
        ).map(lambda values: {"values": values}),
        "breadcrumbs": st.lists(PARTS, max_size=3).map(lambda values: {"values": values}),
        "extra": PARTS,
        "request": PARTS,
        "user": PARTS,
        "contexts": PARTS,
        "tags": st.dictionaries(st.sampled_from(["dag_id", PHONE]) | st.text(max_size=5), LEAVES),
        "type": st.just("transaction"),
        "transaction": LEAVES,
        "spans": st.lists(
            st.fixed_dictionaries({"op": LEAVES, "description": LEAVES}, optional={"data": PARTS, "tags": PARTS}),
            max_size=3,
        ),
        "threads": st.lists(PARTS, max_size=2).map(lambda names: {"values": [{"name": name} for name in names]}),
    },
)


@settings(deadline=None)
@given(EVENTS)
def test_no_secret_leaves_in_any_part(event: Any) -> None:
    cleaned = sentry.process(event, {})
    text = json.dumps(cleaned)
    assert not any(secret in text for secret in SECRETS)
    assert '"vars"' not in json.dumps((cleaned or {}).get("exception"))


def test_an_event_that_cannot_be_cleaned_is_withheld(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(_value: object) -> object:
        raise RuntimeError(PHONE)

    monkeypatch.setattr(sentry, "scrub_all", broken)
    cleaned = sentry.process({"event_id": "ab" * 16, "message": PHONE}, {})
    assert cleaned is not None
    assert cleaned["message"] == "an event was withheld, cleaning it failed with RuntimeError"
    assert PHONE not in json.dumps(cleaned)


@pytest.mark.parametrize(
    "event",
    [
        {"logger": "boto3", "level": "error", "logentry": {"message": "a line in the log"}},
        {"exception": {"values": [{"type": "ValueError", "mechanism": {"type": "threading", "handled": False}}]}},
        {"exception": {"values": [{"type": "ValueError", "mechanism": {"type": "excepthook", "handled": False}}]}},
    ],
)
def test_what_the_sdk_captures_by_itself_is_no_event(event: Any) -> None:
    assert sentry.process(event, {}) is None


def test_messages_and_transactions_pass() -> None:
    assert sentry.process({"message": "a sentinel"}, {}) == {"message": "a sentinel"}
    assert sentry.process({"type": "transaction", "transaction": f"for {PHONE}"}, {}) == {
        "type": "transaction",
        "transaction": "for [phone]",
    }


def _captured_by_airflow(callbacks: list[Any]) -> tuple[Any, Any]:
    """Event and hint as Airflow's integration makes them: the traceback begins where `ti` is a local variable."""
    task = SimpleNamespace(on_failure_callback=callbacks, owner="payme-ops")
    ti = SimpleNamespace(task=task, dag_id="a_dag", task_id="a_task", run_id="a_run")
    runner = "def run(ti):\n    raise ValueError('failed')"
    module = {"__name__": "airflow.sdk.execution_time.task_runner"}
    exec(runner, module)  # noqa: S102  # a stand-in for Airflow's module of that name
    try:
        module["run"](ti)  # type: ignore[operator]
    except ValueError:
        exc_info = sys.exc_info()
    event = {"exception": {"values": [{"type": "ValueError", "mechanism": {"type": "generic", "handled": True}}]}}
    return event, {"exc_info": exc_info}


def test_airflows_own_event_is_dropped_where_the_run_is_told() -> None:
    event, hint = _captured_by_airflow([alerting.alert_failed_run])
    assert sentry.process(event, hint) is None


def test_airflows_own_event_passes_where_nobody_else_tells() -> None:
    event, hint = _captured_by_airflow([])
    cleaned = sentry.process(event, hint)
    assert cleaned is not None
    assert cleaned["tags"] == {"run_id": "a_run", "owner": "payme-ops"}
    assert cleaned["fingerprint"] == ["failed task", "a_dag", "a_task", "ValueError"]


def test_an_event_names_task_and_installation_and_no_error_is_sampled(
    stand_in: StandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in (("ENVIRONMENT", "staging"), ("RELEASE", "payme-ops@0.1.0"), ("TRACES_SAMPLE_RATE", "0.1")):
        monkeypatch.setenv(f"AIRFLOW__SENTRY__{name}", value)
    ti = SimpleNamespace(task_id="dump", try_number=2, map_index=-1, task=SimpleNamespace(), end_date=None)
    where: Any = {"dag": SimpleNamespace(dag_id="backup_daily"), "run_id": "a_run", "ti": ti}
    told = alerting._alert(where)
    assert sentry.capture(told, ValueError("no"), alerting._tags(where)) is not None
    [event] = stand_in.events
    assert (event["environment"], event["release"]) == ("staging", "payme-ops@0.1.0")
    expected = {"dag_id": "backup_daily", "task_id": "dump", "run_id": "a_run", "try_number": "2", "owner": told.owner}
    assert expected.items() <= event["tags"].items()
    options = sentry_sdk.get_client().options
    assert (options["traces_sample_rate"], options["sample_rate"]) == (0.1, 1.0)


def check_ins(stand_in: StandIn) -> list[Any]:
    return [item["payload"] for item in stand_in.get("/items.json") if item["type"] == "check_in"]


def context(dag: Any, task: str, clear_number: int = 0) -> Any:
    run = SimpleNamespace(clear_number=clear_number)
    return {"dag": dag, "run_id": "scheduled__1", "dag_run": run, "ti": SimpleNamespace(task=dag.get_task(task))}


def test_a_scheduled_run_checks_in_when_it_begins_and_when_it_ends(dag_bag: Any, stand_in: StandIn) -> None:
    dag = dag_bag.dags["backup_daily"]
    for task in ("preflight", "dump_and_store"):
        for callback in dag.get_task(task).on_execute_callback:
            callback(context(dag, task))
    for callback in dag.on_success_callback:
        callback(context(dag, "commit"))
    begun, ended = check_ins(stand_in)
    assert (begun["monitor_slug"], begun["status"], ended["status"]) == ("backup_daily", "in_progress", "ok")
    assert begun["check_in_id"] == ended["check_in_id"]
    config = begun["monitor_config"]
    assert config["schedule"] == {"type": "crontab", "value": "0 2 * * *"}
    assert config["timezone"] == "Africa/Nairobi"
    assert config["max_runtime"] >= 3 * 6 * 60
    assert stand_in.events == []


def test_a_run_that_fails_or_is_cleared_checks_in_as_what_it_is(dag_bag: Any, stand_in: StandIn) -> None:
    dag = dag_bag.dags["backup_daily"]
    assert sentry.check_in_failed in dag.on_failure_callback
    sentry.check_in_failed(context(dag, "commit"))
    sentry.check_in_begun(context(dag, "preflight", clear_number=1))
    failed, again = check_ins(stand_in)
    assert (failed["status"], again["status"]) == ("error", "in_progress")
    assert failed["check_in_id"] != again["check_in_id"]  # Sentry takes no news of a check-in that has ended


def test_a_try_that_comes_again_is_the_same_check_in(dag_bag: Any, stand_in: StandIn) -> None:
    dag = dag_bag.dags["backup_restore_test"]
    [first] = [task for task in dag.tasks if not task.upstream_task_ids]
    for _ in range(3):  # two retries, or a task that comes back from being deferred
        sentry.check_in_begun(context(dag, first.task_id))
    sentry.check_in_failed(context(dag, first.task_id))
    found = check_ins(stand_in)
    assert [one["status"] for one in found] == ["in_progress"] * 3 + ["error"]
    assert len({one["check_in_id"] for one in found}) == 1


@pytest.mark.parametrize("dag_id", sentry_rules.CRON_MONITORS)
def test_sentry_knows_by_itself_when_a_backup_or_restore_test_is_due(
    dag_bag: Any, stand_in: StandIn, dag_id: str
) -> None:
    dag = dag_bag.dags[dag_id]
    assert sentry.check_in_ok in dag.on_success_callback
    assert sentry.check_in_failed in dag.on_failure_callback
    roots = [task for task in dag.tasks if not task.upstream_task_ids]
    assert all(sentry.check_in_begun in task.on_execute_callback for task in roots)
    sentry.check_in_begun(context(dag, roots[0].task_id))
    [begun] = check_ins(stand_in)
    config = begun["monitor_config"]
    # What tells of a missed one without Airflow: when the next is due, how late it may be, and that one is enough.
    assert (begun["monitor_slug"], config["schedule"]["value"]) == (dag_id, dag.timetable.expression)
    assert 0 < config["checkin_margin"] <= 60
    assert config["failure_issue_threshold"] == 1


def test_every_backup_with_a_schedule_is_one_that_sentry_can_miss(dag_bag: Any) -> None:
    scheduled = {name for name, dag in dag_bag.dags.items() if hasattr(dag.timetable, "expression")}
    backups = {name for name in scheduled if "area:backup" in dag_bag.dags[name].tags}
    assert backups - {"backup_retention"} == set(sentry_rules.CRON_MONITORS)


def test_what_has_no_schedule_does_not_check_in(dag_bag: Any, stand_in: StandIn) -> None:
    dag = dag_bag.dags["backup_restore"]
    sentry.check_in_failed(context(dag, "check_request"))
    assert check_ins(stand_in) == []


def test_nothing_is_sent_where_sentry_is_off(dag_bag: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sentry, "_set_up", lambda: pytest.fail("set up"))
    sentry.check_in_ok(context(dag_bag.dags["backup_daily"], "commit"))
