"""What the migration's DAGs are wired of: tasks whose bodies are functions of payme_ops.orchestration.migration."""

from collections.abc import Callable
from datetime import timedelta
from typing import Any

from airflow.sdk import Param, TriggerRule, task

_PATIENCE = timedelta(days=14)  # as long as a release may take


def version(default: str, title: str, description: str) -> Param:
    """The field of a form for a version of the application."""
    return Param(default, type="string", maxLength=40, title=title, description=description)


def work(
    task_id: str,
    function: str = "",
    *,
    hours: float = 0.5,
    trigger_rule: TriggerRule = TriggerRule.ALL_SUCCESS,
    **fixed: Any,
) -> Any:
    """A task of migration workers: the function of that name, by default the task's, with these arguments."""

    @task(task_id=task_id, queue="migration", execution_timeout=timedelta(hours=hours), trigger_rule=trigger_rule)
    def run(given: dict[str, Any] | None = None) -> Any:
        return _body(function or task_id)(**fixed, **(given or {}))

    return run


def waiting(task_id: str, function: str, *, trigger_rule: TriggerRule = TriggerRule.ALL_SUCCESS, **fixed: Any) -> Any:
    """A task that holds no worker while the function says False; it looks every half minute."""
    return _sensor(task_id, function, timeout=_PATIENCE, trigger_rule=trigger_rule, **fixed)()


def waiting_work(task_id: str, *, hours: float) -> Any:
    """The same for tasks that work once they need not wait, for `expand`: so many hours with the waiting."""
    limit = timedelta(hours=hours)
    return _sensor(task_id, task_id, timeout=limit, limit=limit)


def _sensor(
    task_id: str,
    function: str,
    *,
    timeout: timedelta,
    limit: timedelta = timedelta(minutes=30),
    trigger_rule: TriggerRule = TriggerRule.ALL_SUCCESS,
    **fixed: Any,
) -> Any:
    @task.sensor(
        task_id=task_id,
        queue="migration",
        mode="reschedule",
        poke_interval=30,
        timeout=timeout.total_seconds(),
        execution_timeout=limit,
        trigger_rule=trigger_rule,
    )
    def wait(given: dict[str, Any] | None = None) -> Any:
        return _body(function)(**fixed, **(given or {}))

    return wait


def _body(name: str) -> Callable[..., Any]:
    # Not at module level: DAG files import this module.
    from payme_ops.orchestration import migration

    found: Callable[..., Any] = getattr(migration, name)
    return found
