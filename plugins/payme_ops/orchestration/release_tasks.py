"""What the three DAGs of a release are wired of; the bodies are functions of payme_ops.orchestration.release."""

from collections.abc import Callable
from datetime import timedelta
from typing import Any

from airflow.providers.standard.operators.trigger_dagrun import TriggerDagRunOperator
from airflow.providers.standard.sensors.date_time import DateTimeSensorAsync
from airflow.sdk import Param, TaskGroup, TriggerRule, chain, task

from payme_ops.orchestration.final_backup import FinalBackupOperator
from payme_ops.orchestration.item import ItemOperator, LooksItem, ReleaseGate, WatchItem
from payme_ops.orchestration.watching import BaselineOperator

# Workers of the queue `release` hold the tokens that deploy and that stop orders; of `restore` the keys of backups.
RELEASE, RESTORE = "release", "restore"
_ON_RESTORE = ("migrations_tested", "backup_scheduled")
# Orders are stopped meanwhile: what heals by itself has to heal soon.
_SOON = timedelta(seconds=20)


def commit_field(title: str, description: str) -> Param:
    """The field of a form for a commit."""
    return Param(
        None, type=["null", "string"], pattern=r"^[0-9a-f]{40}$", title=title, description=f"Required. {description}"
    )


def time_field(title: str) -> Param:
    """The field of a form for a time."""
    description = "Required. In the time zone of this page (lower left); by the API, without an offset, in Nairobi's"
    return Param(None, type=["null", "string"], format="date-time", title=title, description=description)


def item(name: str, *, if_stale: bool = False) -> ItemOperator:
    """An item of the checklist as a task of that name."""
    # Migrations are tried on a whole restored backup.
    limit = timedelta(hours=6 if name == "migrations_tested" else 0.5)
    queue = RESTORE if name in _ON_RESTORE else RELEASE
    return ItemOperator(item=name, if_stale=if_stale, queue=queue, execution_timeout=limit)


def healthy(name: str, consecutive: int, *, if_stale: bool = False) -> LooksItem:
    """The same for one that passes with so many healthy looks in a row."""
    return LooksItem(item=name, consecutive=consecutive, if_stale=if_stale, queue=RELEASE)


def watch() -> WatchItem:
    """The watch after a release."""
    return WatchItem(queue=RELEASE)


def baseline() -> BaselineOperator:
    """What is usual before it."""
    return BaselineOperator(task_id="baseline", task_display_name="What is usual", queue=RELEASE)


def gate(task_id: str, subject: str, evidence_item: str) -> ReleaseGate:
    """A decision of people on that evidence of the release."""
    return ReleaseGate(task_id=task_id, subject=subject, evidence_item=evidence_item, queue=RELEASE)


def work(
    task_id: str,
    title: str,
    function: str = "",
    *,
    queue: str = RELEASE,
    trigger_rule: TriggerRule = TriggerRule.ALL_SUCCESS,
    **fixed: Any,
) -> Any:
    """A task whose body is the function of that name, by default the task's, with these arguments."""

    @task(
        task_id=task_id,
        task_display_name=title,
        queue=queue,
        execution_timeout=timedelta(hours=0.5),
        trigger_rule=trigger_rule,
        retry_delay=_SOON,
    )
    def run() -> Any:
        return _body(function or task_id)(**fixed)

    return run()


def act(name: str, title: str) -> Any:
    """An item that is done rather than asked for, orders stopped perhaps."""
    return work(name, title, "act", name=name)


def wait_until(task_id: str, title: str, moment: str) -> DateTimeSensorAsync:
    """Wait for the moment (ISO, a template), without a worker."""
    return DateTimeSensorAsync(
        task_id=task_id, task_display_name=title, target_time=moment, timeout=timedelta(days=31), queue=RELEASE
    )


def starts(dag_id: str, title: str, run_id: str) -> TriggerDagRunOperator:
    """Start the next DAG under that run id (a template), once."""
    return TriggerDagRunOperator(
        task_id=f"start_{dag_id}",
        task_display_name=title,
        trigger_dag_id=dag_id,
        trigger_run_id=run_id,
        skip_when_already_exists=True,
        queue=RELEASE,
    )


def final_backup() -> tuple[TriggerDagRunOperator, FinalBackupOperator]:
    """A backup of its own, and the wait for it without a worker."""
    # A number, since after a second freeze there has to be a second backup.
    run_id = "final__{{ run_id }}__{{ ti.try_number }}"
    start_backup_daily = TriggerDagRunOperator(
        task_id="start_backup_daily",
        task_display_name="Start the final backup",
        trigger_dag_id="backup_daily",
        trigger_run_id=run_id,
        conf={"reason": "final backup of {{ run_id }}"},
        queue=RELEASE,
    )
    return start_backup_daily, FinalBackupOperator(queue=RESTORE)


def endings(opened: Any, before: list[Any]) -> None:
    """What runs whatever happened before, also when somebody marks the run as failed; the last is the run's colour."""
    tasks = [
        work("resume_orders", "Orders are taken again"),
        work("restore_autoscaling", "Autoscaling restored"),
        work("close_status_page", "Status page closed"),
        work("keep_record", "Record", queue=RESTORE),
        work("tell_outcome", "Team told"),
        work("verdict", "Verdict"),
    ]
    for one in tasks[:-1]:
        one.as_teardown(setups=opened)
    tasks[-1].as_teardown(setups=opened, on_failure_fail_dagrun=True)
    chain(before, *tasks)


def section(name: str, title: str) -> TaskGroup:
    """A part of the mission's checklist."""
    return TaskGroup(name, prefix_group_id=False, group_display_name=title)


def _body(name: str) -> Callable[..., Any]:
    # Not at module level: DAG files import this module.
    from payme_ops.orchestration import release

    found: Callable[..., Any] = getattr(release, name)
    return found
