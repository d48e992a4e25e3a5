"""Airflow DAGs that fail in every way a run can fail. Only tests/e2e/test_alert_once.py reads this folder."""

import logging
import os
import signal
import threading
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from airflow.sdk import ExceptionRetryPolicy, RetryAction, RetryRule, dag, task

from payme_ops.foundation.errors import IntegrityError
from payme_ops.orchestration.alerting import alert_failed_run, alert_run_well
from payme_ops.orchestration.defaults import deadline

# Given by the test, which looks for them everywhere afterwards.
PHONE, SECRET = os.environ["TEST_PHONE"], os.environ["TEST_SECRET"]

SOON = timedelta(seconds=5)
OPTIONS: dict[str, Any] = {
    "start_date": datetime(2026, 1, 1, tzinfo=UTC),
    "catchup": False,
    "on_failure_callback": alert_failed_run,
}
TASKS: dict[str, Any] = {"on_failure_callback": alert_failed_run, "retries": 1, "retry_delay": timedelta(seconds=1)}


def noise() -> None:
    """What the SDK would make events of: an error in the log, and one that ends a thread."""
    logging.getLogger("payme_ops.test").error("a line at level error")
    thread = threading.Thread(target=lambda: 1 / 0)
    thread.start()
    thread.join()


@dag("raises_every_try", default_args=TASKS, schedule=None, **OPTIONS)
def raises_every_try() -> None:
    @task
    def fail() -> None:
        noise()
        local_password = SECRET
        raise ConnectionError(f"user {PHONE} with password={local_password}")

    fail()


@dag("fails_fast", default_args=TASKS, schedule=None, **OPTIONS)
def fails_fast() -> None:
    @task(retry_policy=ExceptionRetryPolicy(rules=[RetryRule(IntegrityError, RetryAction.FAIL)]))
    def fail() -> None:
        raise IntegrityError("SHA-256 differs", expected="a", found="b", remedy="take a fresh backup")

    fail()


@dag("heals", default_args=TASKS, schedule=None, **OPTIONS)
def heals() -> None:
    @task
    def fail_once(ti: Any = None) -> None:
        if ti.try_number == 1:
            raise ConnectionError("once")

    fail_once()


@dag("is_killed", default_args={**TASKS, "retries": 0}, schedule=None, **OPTIONS)
def is_killed() -> None:
    @task
    def die() -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    die()


@dag("killed_then_raises", default_args={**TASKS, "retries": 0}, schedule=None, **OPTIONS)
def killed_then_raises() -> None:
    @task
    def die() -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    @task(trigger_rule="all_done")
    def raise_later() -> None:
        raise ValueError("told by the second")

    die() >> raise_later()


@dag("two_fail", default_args={**TASKS, "retries": 0}, schedule=None, **OPTIONS)
def two_fail() -> None:
    @task
    def first() -> None:
        raise ValueError("first")

    @task
    def second() -> None:
        raise ValueError("second")

    first()
    second()


@dag("is_late", default_args=TASKS, schedule=None, on_success_callback=alert_run_well, **deadline(SOON), **OPTIONS)
def is_late() -> None:
    @task
    def wait_to_be_told() -> None:
        waited = threading.Event()
        while not Path(os.environ["TEST_LATE_IS_TOLD"]).exists():
            waited.wait(0.5)

    wait_to_be_told()


@dag("cannot_render", default_args={**TASKS, "retries": 0}, schedule=None, **OPTIONS)
def cannot_render() -> None:
    @task.bash
    def render() -> str:
        return "echo {{ 1 / 0 }}"

    render()


@dag("has_no_callback", default_args={"retries": 1, "retry_delay": timedelta(seconds=1)}, schedule=None)
def has_no_callback() -> None:
    @task
    def fail() -> None:
        raise ValueError("nobody is told but Sentry")

    fail()


raises_every_try()
fails_fast()
heals()
is_killed()
two_fail()
killed_then_raises()
is_late()
cannot_render()
has_no_callback()
