"""What the three DAGs of a release are wired of; the bodies are functions of payme_ops.orchestration.release."""

from collections.abc import Callable
from datetime import timedelta
from typing import Any

from airflow.providers.standard.operators.trigger_dagrun import TriggerDagRunOperator
from airflow.sdk import TaskGroup, TriggerRule, task

from payme_ops.orchestration.item import ItemOperator, ReleaseGate

# Workers of the queue `release` hold the tokens that deploy and that stop orders; `restore` the key of backups.
QUEUES = {"migrations_tested": "restore", "backup_scheduled": "restore", "final_backup": "restore"}
RELEASE = "release"


def item(name: str, *, if_stale: bool = False, **options: Any) -> ItemOperator:
    """An item of the checklist as a task of that name."""
    return ItemOperator(item=name, if_stale=if_stale, queue=QUEUES.get(name, RELEASE), **options)


def gate(task_id: str, subject: str, evidence_item: str, **options: Any) -> ReleaseGate:
    """A decision of people on that evidence of the release."""
    return ReleaseGate(
        task_id=task_id,
        subject=subject,
        evidence_item=evidence_item,
        response_timeout=timedelta(hours=4),
        queue=RELEASE,
        **options,
    )


def work(
    task_id: str,
    title: str = "",
    *,
    queue: str = RELEASE,
    hours: float = 0.5,
    trigger_rule: TriggerRule = TriggerRule.ALL_SUCCESS,
    retries: int = 2,
) -> Any:
    """A task whose body is the function of that name."""

    @task(
        task_id=task_id,
        task_display_name=title or task_id,
        queue=queue,
        execution_timeout=timedelta(hours=hours),
        trigger_rule=trigger_rule,
        retries=retries,
    )
    def run() -> Any:
        return _body(task_id)()

    return run()


def starts(dag_id: str, title: str, *, run_id: str, **options: Any) -> TriggerDagRunOperator:
    """Start another DAG under that run id, once."""
    return TriggerDagRunOperator(
        task_id=f"start_{dag_id}",
        task_display_name=title,
        trigger_dag_id=dag_id,
        trigger_run_id=run_id,
        skip_when_already_exists=True,
        wait_for_completion=False,
        **options,
    )


def section(name: str, title: str) -> TaskGroup:
    """A part of the mission's checklist."""
    return TaskGroup(name, prefix_group_id=False, group_display_name=title)


def _body(name: str) -> Callable[..., Any]:
    # Not at module level: DAG files import this module.
    from payme_ops.orchestration import release

    found: Callable[..., Any] = getattr(release, name)
    return found
