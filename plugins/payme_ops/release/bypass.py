"""Whose tasks of a release were set by hand, by Airflow's tasks and its event log.

Marking a task as success makes no evidence, so nothing dangerous goes on by it; but it may hide that something was not
looked at. So it is found, stands in the record, and the go or no-go is void until the task has been run.

A task that ends itself says so in the log, with its try, after that try was made. A task that is `success` or `skipped`
without having said so was set. Seen on Airflow 3.3.2 (tests/e2e/test_bypasses.py does it again):

| what was done                                  | in the log                  | the task then                        |
|------------------------------------------------|-----------------------------|--------------------------------------|
| it ran, asked, was deferred, or skipped itself | its state, with its try     | that state, start, end, process      |
| marked as success, not started                 | patch_task_instance         | success, try 0, no process           |
| marked as success, running or failed           | patch_task_instance         | success, try and process of that try |
| many marked at once (bulk_task_instances)      | nothing                     | as one marked                        |
| a task group marked                            | patch_task_group_instances  | as one marked; no task is named      |
| the whole run marked as success                | patch_dag_run               | running ones success, as one marked  |
| a question marked as success                   | patch_task_instance         | success, try and process of asking   |
| cleared, then marked before it ran again       | the clear; not a bulk mark  | as it ended before, with a new id    |
| cleared and run again                          | the clear; its state, try 2 | success, try 2                       |
| ended by its trigger (end_from_trigger)        | nothing                     | as one marked                        |
| skipped by the scheduler after a rejection     | nothing                     | skipped, try 0: as one marked        |
| deleted (delete_task_instance)                 | nothing                     | not there; its evidence is kept      |
| refused with 403                               | as if it had been done      | unchanged                            |
| its XCom rewritten                             | update_xcom_entry           | unchanged                            |

What the scheduler skips looks like a mark, and counts as one: before a deploy nothing of a release is skipped unless
somebody rejected something, and then that has to be cleared in any case. No task of a release may end by its trigger.
The names of calls are those of Airflow's API functions (core_api/routes/public).
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from payme_ops.foundation import airflow_api
from payme_ops.foundation.airflow_api import AirflowApi, Event, Task
from payme_ops.foundation.clock import show
from payme_ops.foundation.evidence import Evidence, Finding, Verdict, passed
from payme_ops.release.checklist import PREPARED
from payme_ops.release.request import Release

MARKS = (
    *("patch_task_instance", "patch_task_group_instances"),
    *("patch_dag_run", "bulk_dag_runs", "delete_dag_run"),
)
CLEARS = ("post_clear_task_instances", "clear_dag_run", "clear_dag_runs", "clear_dag_run_partitions")
REWRITES = ("create_xcom_entry", "update_xcom_entry", "delete_xcom_entry")
ENDINGS = ("success", "skipped")

# The scheduler itself ends a task that has nothing to do, and says nothing.
_NEVER_RUN = "EmptyOperator"
# Clocks of workers, API server and ops database may differ that much.
_SKEW = timedelta(minutes=1)
_MAX_CALLS = 40


@dataclass(frozen=True)
class Call:
    """What somebody asked Airflow to do, also when it refused. `task` is "" for a whole run or several tasks."""

    at: datetime
    by: str
    what: str
    dag: str
    task: str


@dataclass(frozen=True)
class Mark:
    """A task that does not stand as it ended. `by` is "" where the log does not say."""

    dag: str
    task: str
    why: str
    at: datetime | None
    by: str


def found(events: Sequence[Event], runs: Mapping[str, str]) -> list[Call]:
    """What was asked for by hand of these runs (DAG to run id)."""
    return [
        Call(one.at, one.user, _words(one), one.dag if one.dag in runs else "", one.task)
        for one in events
        if one.event in (*MARKS, *CLEARS, *REWRITES) and _is_ours(one, runs)
    ]


def _is_ours(one: Event, runs: Mapping[str, str]) -> bool:
    if one.dag in runs:
        return one.run in (runs[one.dag], "", "~")
    return one.dag in ("", "~") and any(run in one.extra for run in runs.values())


def _words(one: Event) -> str:
    if one.event in CLEARS:
        return "cleared"
    if one.event in REWRITES:
        return "XCom rewritten"
    try:
        said = json.loads(one.extra)
    except ValueError:
        said = {}
    state = said.get("new_state") or said.get("state") if isinstance(said, dict) else None
    if not state and one.event in ("patch_task_instance", "patch_dag_run"):
        return "noted" if isinstance(said, dict) and "note" in said else "set by hand"
    return f"set to {str(state)[:20]}" if state else "set or deleted by hand"


def marks(
    tasks: Sequence[Task],
    endings: Sequence[Event],
    done: Sequence[Call],
    evidence: Mapping[str, Evidence],
    runs: Mapping[str, str],
) -> list[Mark]:
    """What was set or rewritten by hand and has not been run since; a run that is gone is one, too."""
    gone = [
        Mark(dag, "", "the run is not there", None, _who(done, dag, ""))
        for dag in runs
        if all(one.dag != dag for one in tasks)
    ]
    hidden = [
        Mark(one.dag, one.task, why, one.ended, _who(done, one.dag, one.task))
        for one in tasks
        if (why := _not_as_it_ended(one, endings) or _without_evidence(one, evidence))
    ]
    rewritten = [
        Mark(one.dag, one.task, one.what, one.at, one.by)
        for one in done
        if one.what == "XCom rewritten" and not _ran_after(one, endings)
    ]
    return [*gone, *hidden, *rewritten]


def _not_as_it_ended(one: Task, endings: Sequence[Event]) -> str:
    if one.state not in ENDINGS or one.operator == _NEVER_RUN:
        return ""
    itself = any(
        (said.dag, said.run, said.task, said.index) == (one.dag, one.run, one.task, one.index)
        and (said.event, said.attempt) == (one.state, one.attempt)
        and said.at > one.born
        for said in endings
    )
    return "" if itself else f"is {one.state}, and did not end so itself"


def _without_evidence(one: Task, evidence: Mapping[str, Evidence]) -> str:
    if one.task not in PREPARED or one.state != "success":
        return ""
    shown = evidence.get(one.task)
    if shown is None:
        return "is success without evidence"
    failed = shown.verdict is Verdict.FAIL and one.ended is not None and shown.ended <= one.ended + _SKEW
    return "is success although it failed" if failed else ""


def _ran_after(one: Call, endings: Sequence[Event]) -> bool:
    return any((said.dag, said.task) == (one.dag, one.task) and said.at > one.at for said in endings)


def _who(done: Sequence[Call], dag: str, task: str) -> str:
    """Those who asked for it by name, or perhaps those whose call names no task."""
    asked = [one for one in done if one.dag in (dag, "") and one.what.startswith("set")]
    if named := {one.by for one in asked if task and one.task == task}:
        return ", ".join(sorted(named))
    if others := {one.by for one in asked if not one.task}:
        return f"perhaps {', '.join(sorted(others))}"
    return ""


def examine(api: AirflowApi, release: Release, runs: Mapping[str, str], evidence: Mapping[str, Evidence]) -> Finding:
    """Whether a task of these runs (DAG to run id, those that have begun) was set by hand and not run since.

    `evidence` is the newest of each item of the release. Four short requests. Raises Unavailable, ServiceRefused.
    """
    reader = airflow_api.sign_in(api)
    done = found(airflow_api.calls(reader, (*MARKS, *CLEARS, *REWRITES), release.created - _SKEW), runs)
    endings = airflow_api.endings(reader, sorted({*runs.values()}), ENDINGS)
    tasks = airflow_api.tasks(reader, runs)
    left = marks(tasks, endings, done, evidence, runs)
    measured: dict[str, Any] = {
        "tasks looked at": len(tasks),
        "by hand": [
            {
                "task": f"{one.dag} {one.task}".strip(),
                "why": one.why,
                "at": show(one.at) if one.at else "",
                "by": one.by or "not in the log",
            }
            for one in left
        ],
        "calls by hand in the log": [
            {"at": show(one.at), "by": one.by, "what": one.what, "task": f"{one.dag} {one.task}".strip() or "several"}
            for one in done[-_MAX_CALLS:]
        ],
    }
    return Finding(Verdict.BYPASSED, measured, _todo(left)) if left else passed(measured)


def _todo(left: Sequence[Mark]) -> str:
    if gone := sorted(one.dag for one in left if not one.task):
        missing = f"the run of {', '.join(gone)} was deleted, or the account may not see it"
        return f"trigger a new release, since nobody can tell what was in it: {missing}"
    tasks = ", ".join(sorted({f"{one.dag} {one.task}" for one in left}))
    return f"clear {tasks}, then collect and what comes after it: a state set by hand is no evidence"
