"""What was set by hand is told from what ended itself, as Airflow 3.3.2 shows both, and stays until it has run."""

import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from payme_ops.foundation import evidence
from payme_ops.foundation.airflow_api import Event, Task
from payme_ops.foundation.evidence import Evidence, Verdict
from payme_ops.release import bypass
from payme_ops.release.bypass import Call, Mark
from payme_ops.release.checklist import PREPARED

AT = datetime(2026, 12, 1, 9, 0, 0, 500_000, tzinfo=UTC)
RUNS = {"pre_deployment": "manual__1", "deployment": "production-2.4.1-aaaaaaa"}
SECOND = timedelta(seconds=1)


def event(name: str, task: str = "collect", dag: str = "deployment", run: str = "", **extra: object) -> Event:
    return Event(AT, name, "oncall", dag, run or RUNS.get(dag, ""), task, json.dumps({**extra, "method": "PATCH"}))


def task(name: str = "collect", state: str = "success", *, attempt: int = 1, dag: str = "deployment") -> Task:
    """One that was made a minute before, and ended at AT."""
    return Task(dag, RUNS[dag], name, state, attempt, -1, "_PythonDecoratedOperator", AT - 60 * SECOND, AT)


def said(one: Task, after: timedelta = timedelta(milliseconds=12)) -> Event:
    """What that task wrote in the log when it ended."""
    return Event(AT + after, one.state, "airflow", one.dag, one.run, one.task, "", one.attempt, one.index)


def shown(item: str, verdict: Verdict = Verdict.PASS, after: timedelta = timedelta(0)) -> dict[str, Evidence]:
    now = AT + after
    return {item: Evidence(item, verdict, {}, "", "", now, now, "", evidence.digest({}))}


def marks(
    tasks: list[Task],
    endings: list[Event] = [],  # noqa: B006  # read only
    calls: list[Call] = [],  # noqa: B006
    found: dict[str, Evidence] | None = None,
) -> list[Mark]:
    runs = {one.dag: one.run for one in tasks}
    return bypass.marks(tasks, endings, calls, found or {}, runs)


@pytest.mark.parametrize("state", ["success", "skipped"])
def test_what_ended_itself_is_no_mark(state: str) -> None:
    one = task(state=state)
    assert marks([one], [said(one)]) == []


@pytest.mark.blocks("bypasses")
@pytest.mark.parametrize(
    "name", ["collect", "go_no_go_first", "go_no_go_second", "take_release", "freeze_orders", "deploy"]
)
@pytest.mark.parametrize("attempt", [0, 1], ids=["before it ran", "while it ran or after it failed"])
def test_what_is_success_without_having_said_so_is_one(name: str, attempt: int) -> None:
    one = task(name, attempt=attempt)
    failed = replace(said(one), event="failed")
    (mark,) = marks([one], [failed, said(task("other"))])
    assert (mark.dag, mark.task, mark.why) == ("deployment", name, "is success, and did not end so itself")
    assert mark.by == ""  # many at once: not in the log


@pytest.mark.blocks("bypasses")
def test_a_mark_after_a_clear_is_one_though_it_looks_as_it_ended_before() -> None:
    one = task()
    again = replace(one, born=AT + SECOND)  # a clear changes nothing else
    assert marks([one], [said(one)]) == []
    assert len(marks([again], [said(one)])) == 1


@pytest.mark.blocks("bypasses")
def test_another_try_another_run_another_index_and_another_state_do_not_count() -> None:
    one, ended = task(attempt=2), said(task(attempt=2))
    others = [
        replace(ended, attempt=1),
        replace(ended, run="production-2.4.1-aaaaaaa-2"),
        replace(ended, dag="pre_deployment"),
        replace(ended, index=0),
        replace(ended, event="skipped"),
    ]
    assert len(marks([one], others)) == 1
    assert marks([one], [*others, ended]) == []


@pytest.mark.parametrize("state", ["", "running", "failed", "upstream_failed", "awaiting_input", "deferred"])
def test_what_has_not_ended_well_hides_nothing(state: str) -> None:
    assert marks([task(state=state)]) == []


def test_a_task_with_nothing_to_do_says_nothing() -> None:
    assert marks([replace(task(), operator="EmptyOperator")]) == []


@pytest.mark.blocks("bypasses")
@pytest.mark.parametrize("item", [name for name in PREPARED if name != "bypasses"])
def test_an_item_that_is_success_has_evidence_that_it_did_not_fail(item: str) -> None:
    one = task(item, dag="pre_deployment")
    ended = [said(one)]
    assert [mark.why for mark in marks([one], ended)] == ["is success without evidence"]
    failed = shown(item, Verdict.FAIL, -SECOND)
    assert [mark.why for mark in marks([one], ended, found=failed)] == ["is success although it failed"]
    for verdict in (Verdict.PASS, Verdict.INCONCLUSIVE):
        assert marks([one], ended, found=shown(item, verdict)) == []
    # Measured again an hour later, for the go or no-go: that task is red, this one was right.
    assert marks([one], ended, found=shown(item, Verdict.FAIL, 3600 * SECOND)) == []


@pytest.mark.blocks("bypasses")
def test_a_run_that_is_gone_cannot_be_looked_at() -> None:
    (mark,) = bypass.marks([task()], [said(task())], [], {}, RUNS)
    assert (mark.dag, mark.task) == ("pre_deployment", "")


def test_who_it_was_is_in_the_log_by_task_or_by_what_names_none() -> None:
    calls = bypass.found(
        [
            event("patch_task_instance", new_state="success"),
            replace(event("patch_task_group_instances", "", new_state="success"), user="lead"),
            replace(event("post_clear_task_instances", ""), user="approver"),
        ],
        RUNS,
    )
    assert [mark.by for mark in marks([task()], [], calls)] == ["oncall"]
    assert [mark.by for mark in marks([task("deploy")], [], calls)] == ["perhaps lead"]


@pytest.mark.blocks("bypasses")
@pytest.mark.parametrize("name", bypass.REWRITES)
def test_a_rewritten_xcom_voids_until_its_task_ran_again(name: str) -> None:
    one = task()
    calls = bypass.found([event(name, value="Approve")], RUNS)
    assert [(mark.task, mark.why, mark.by) for mark in marks([one], [said(one, -SECOND)], calls)] == [
        ("collect", "XCom rewritten", "oncall")
    ]
    assert marks([one], [said(one, SECOND)], calls) == []


@pytest.mark.parametrize("name", bypass.MARKS)
def test_a_call_to_set_a_state_is_shown_and_decides_nothing(name: str) -> None:
    # It is in the log also when it was refused; the task as it stands tells whether it was done.
    calls = bypass.found([event(name, new_state="success")], RUNS)
    assert [(one.by, one.what, one.task) for one in calls] == [("oncall", "set to success", "collect")]
    assert marks([task()], [said(task())], calls) == []


@pytest.mark.parametrize("name", bypass.CLEARS)
def test_a_clear_is_shown_and_voids_nothing(name: str) -> None:
    calls = bypass.found([event(name, task_ids=["collect"])], RUNS)
    assert [one.what for one in calls] == ["cleared"]
    assert marks([task(state="")], [said(task())], calls) == []


@pytest.mark.parametrize("name", ["trigger_dag_run", "update_hitl_detail", "get_task_instances_batch"])
def test_triggering_and_answering_are_none(name: str) -> None:
    assert bypass.found([event(name)], RUNS) == []


def test_another_run_is_not_ours_and_one_call_for_many_is() -> None:
    assert bypass.found([event("patch_task_instance", run="manual__2", new_state="success")], RUNS) == []
    assert bypass.found([event("patch_task_instance", dag="backup_daily", run="x", new_state="success")], RUNS) == []
    many = [{"action": "update", "entities": [{"dag_run_id": RUNS["deployment"], "new_state": "success"}]}]
    (found,) = bypass.found([event("bulk_dag_runs", "", dag="~", run="~", actions=many)], RUNS)
    assert found.what == "set or deleted by hand"


def test_a_note_is_no_state() -> None:
    (found,) = bypass.found([event("patch_task_instance", note="looked at it")], RUNS)
    assert found.what == "noted"


@given(
    state=st.sampled_from(["success", "skipped", "failed", "running", ""]),
    attempt=st.integers(0, 3),
    entries=st.lists(
        st.tuples(st.sampled_from(["success", "skipped", "failed"]), st.integers(0, 3), st.integers(-90, 90)),
        max_size=6,
    ),
)
def test_only_its_own_word_of_this_try_makes_a_state_count(
    state: str, attempt: int, entries: list[tuple[str, int, int]]
) -> None:
    one = task(state=state, attempt=attempt)
    endings = [replace(said(one, seconds * SECOND), event=what, attempt=number) for what, number, seconds in entries]
    itself = any(what == state and number == attempt and seconds > -60 for what, number, seconds in entries)
    assert bool(marks([one], endings)) == (state in ("success", "skipped") and not itself)
