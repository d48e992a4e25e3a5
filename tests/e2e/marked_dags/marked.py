"""Tasks in every state in which a person can set them, for tests/e2e/test_bypasses.py."""

import time
from datetime import timedelta
from typing import Any

from airflow.providers.standard.operators.hitl import ApprovalOperator
from airflow.providers.standard.operators.trigger_dagrun import TriggerDagRunOperator
from airflow.providers.standard.sensors.time_delta import TimeDeltaSensor
from airflow.sdk import TaskGroup, dag, task


@task
def fine() -> str:
    return "what it found"


@task(retries=1, retry_delay=timedelta(seconds=1))
def second_try(ti: Any = None) -> None:
    if ti.try_number == 1:
        raise ValueError("the first try fails")


@task
def fails() -> None:
    raise ValueError("it always does")


@task
def hangs() -> None:
    time.sleep(600)


def asks(name: str) -> ApprovalOperator:
    return ApprovalOperator(task_id=name, subject="Go on?", defaults="Reject", response_timeout=timedelta(hours=1))


def waits(name: str, **options: Any) -> TimeDeltaSensor:
    """Until 40 seconds after the run began; it starts with the run, or there would be nothing left to wait for."""
    return TimeDeltaSensor(task_id=name, delta=timedelta(seconds=40), deferrable=True, **options)


@dag(schedule=None)
def pre_deployment() -> None:
    first, hanging = fine(), hangs()
    # These end themselves, in each of the ways in which a task of a release does.
    waits("waits")
    starts_again = TriggerDagRunOperator(
        task_id="starts_again",
        trigger_dag_id="pre_deployment",
        trigger_run_id="{{ run_id }}",
        skip_when_already_exists=True,
    )
    first >> [second_try(), starts_again, asks("answered"), asks("asks")]
    # These do not say so though nobody set them.
    waits("ends_in_trigger", end_from_trigger=True)
    first >> asks("rejected") >> fine.override(task_id="after_rejection")()
    # These are set by hand.
    for name in ("cleared", "rewritten"):
        fine.override(task_id=name)()
    fails()
    fails.override(task_id="fails_many")()
    hangs.override(task_id="hangs_many")()
    hanging >> [fine.override(task_id=name)() for name in ("waiting", "waiting_many", "waiting_skipped")]
    with TaskGroup("group", prefix_group_id=False):
        hanging >> fine.override(task_id="in_group")()


pre_deployment()
