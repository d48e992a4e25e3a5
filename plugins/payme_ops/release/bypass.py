"""Who set a task of a release by hand, by Airflow's event log.

Marking a task as success makes no evidence, so nothing dangerous goes on by it; but it may hide that something was not
looked at. So it is found, stands in the record, and the go or no-go is void until the task has been run after it. The
names of events are those of Airflow 3.3.2's API functions (core_api/routes/public).

The log has limits: 3.3.2 does not write down a call that sets many tasks at once (bulk_task_instances), nor one that
deletes a task (delete_task_instance), and it does write down calls that were then refused.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

from payme_ops.foundation import airflow_api
from payme_ops.foundation.airflow_api import AirflowApi, Event
from payme_ops.foundation.clock import show
from payme_ops.foundation.evidence import Evidence, Finding, Verdict, passed
from payme_ops.release.request import Release

MARKS = (
    *("patch_task_instance", "patch_task_group_instances"),
    *("patch_dag_run", "bulk_dag_runs", "delete_dag_run"),
)
CLEARS = ("post_clear_task_instances", "clear_dag_run", "clear_dag_runs")


@dataclass(frozen=True)
class Bypass:
    """One thing done by hand. `task` is "" for a whole run or several tasks."""

    at: datetime
    by: str
    what: str
    dag: str
    task: str

    @property
    def is_mark(self) -> bool:
        """Whether a state was set; a clear only lets it run again."""
        return self.what.startswith("set")


def found(events: Sequence[Event], runs: Mapping[str, str]) -> list[Bypass]:
    """What was done by hand to these runs (DAG to run id)."""
    return [
        Bypass(one.at, one.user, _words(one), one.dag if one.dag in runs else "", one.task)
        for one in events
        if one.event in (*MARKS, *CLEARS) and _is_ours(one, runs)
    ]


def _is_ours(one: Event, runs: Mapping[str, str]) -> bool:
    if one.dag in runs:
        return one.run in (runs[one.dag], "", "~")
    return one.dag in ("", "~") and any(run in one.extra for run in runs.values())


def _words(one: Event) -> str:
    if one.event in CLEARS:
        return "cleared"
    try:
        said = json.loads(one.extra)
    except ValueError:
        said = {}
    state = said.get("new_state") or said.get("state") if isinstance(said, dict) else None
    if not state and one.event in ("patch_task_instance", "patch_dag_run"):
        return "noted" if isinstance(said, dict) and "note" in said else "set by hand"
    return f"set to {str(state)[:20]}" if state else "set or deleted by hand"


def open_marks(done: Sequence[Bypass], evidence: Mapping[str, Evidence]) -> list[Bypass]:
    """Marks that no newer evidence makes good: of the task's item, or of the go or no-go for everything else."""
    return [one for one in done if one.is_mark and not _is_newer(evidence.get(one.task, evidence.get("go_no_go")), one)]


def _is_newer(shown: Evidence | None, mark: Bypass) -> bool:
    return shown is not None and shown.ended > mark.at


def examine(api: AirflowApi, release: Release, runs: Mapping[str, str], evidence: Mapping[str, Evidence]) -> Finding:
    """Whether something of the release was set by hand and not run since. Raises Unavailable, ServiceRefused."""
    done = found(airflow_api.events(api, (*MARKS, *CLEARS), release.created), runs)
    left = open_marks(done, evidence)
    measured = {
        "by hand": [
            {"at": show(one.at), "by": one.by, "what": one.what, "task": f"{one.dag} {one.task}".strip() or "several"}
            for one in done
        ],
        "not run since": [one.task or one.dag or "several" for one in left],
    }
    if left:
        tasks = ", ".join(sorted({one.task or "the run" for one in left}))
        todo = f"clear {tasks}, then collect and what comes after it: a state set by hand is no evidence"
        return Finding(Verdict.BYPASSED, measured, todo)
    return passed(measured)
