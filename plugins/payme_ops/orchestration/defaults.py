"""What every DAG of the desk shares: alerts, retries, time limits, tags and the runbook as its page."""

import signal
from datetime import timedelta
from enum import StrEnum
from pathlib import Path
from typing import Any

from airflow.sdk import Context, CronTriggerTimetable, ExceptionRetryPolicy, Param, RetryAction, RetryRule
from airflow.sdk.definitions.callback import AsyncCallback
from airflow.sdk.definitions.deadline import DeadlineAlert, DeadlineReference

from payme_ops.foundation.errors import LeaseHeld, LeaseLost, PaymeOpsError, Unavailable
from payme_ops.foundation.stop import end_with_parent
from payme_ops.orchestration import sentry
from payme_ops.orchestration.alerting import alert_failed_run, alert_late_run, alert_run_well

RUNBOOKS = Path(__file__).resolve().parents[3] / "docs" / "runbooks"

# What may heal by itself is tried again, after [core] default_task_retry_delay; every other error of ours says that
# trying again would not help.
RETRY_POLICY = ExceptionRetryPolicy(
    rules=[
        RetryRule([Unavailable, LeaseHeld, LeaseLost], RetryAction.RETRY, reason="may heal by itself"),
        RetryRule(PaymeOpsError, RetryAction.FAIL, reason="trying again would find the same"),
    ]
)


# What a run does it does now, whatever its date says: a backfill of last week would delete, or dump, today's.
_RUN_TYPES = ("scheduled", "manual", "operator_triggered", "asset_triggered")


class Area(StrEnum):
    """Tag: which domain a DAG belongs to."""

    BACKUP = "area:backup"
    MIGRATION = "area:migration"
    RELEASE = "area:release"
    MONITORING = "area:monitoring"


class Risk(StrEnum):
    """Tag: whether a DAG can change production."""

    READS = "risk:reads"
    WRITES_PROD = "risk:writes-prod"


def at(cron: str) -> CronTriggerTimetable:
    """A schedule in Nairobi time.

    A DAG that is new waits for its next slot: none has a start date, and of the slots before it was unpaused for the
    first time none is run. One that was paused for a while runs the newest slot it missed.
    """
    return CronTriggerTimetable(cron, timezone="Africa/Nairobi", run_immediately=timedelta(0))


def end_with_supervisor(_context: Context) -> None:
    """on_execute_callback of tasks: a task whose supervisor is killed ends with it.

    Airflow 3.3 lets it live on: beside the next try, with nobody who sends its heartbeats or reads its log (ADR 0028).
    """
    end_with_parent(signal.SIGKILL)()


def reason() -> Param:
    """The field of a form in which whoever triggers a DAG may say why."""
    return Param(None, type=["null", "string"], maxLength=200, title="Reason", description="Why by hand?")


def dag_options(
    dag_id: str, description: str, *, area: Area, risk: Risk, max_active_runs: int = 1, within: timedelta | None = None
) -> dict[str, Any]:
    """Keyword arguments for @dag. The runbook docs/runbooks/<dag_id>.md must exist: it is the DAG's page.

    A run that has not ended `within` that time of being queued is told as late; it runs on.
    """
    return {
        **(deadline(within) if within else {}),
        "dag_id": dag_id,
        "description": description,
        "doc_md": (RUNBOOKS / f"{dag_id}.md").read_text(encoding="utf-8"),
        "tags": [area, risk],
        "catchup": False,
        "allowed_run_types": _RUN_TYPES,
        "max_active_runs": max_active_runs,
        # No dagrun_timeout anywhere: it skips teardowns. Alerts hang on both levels: a killed task tells nobody.
        "on_failure_callback": [alert_failed_run, sentry.check_in_failed],
        "on_success_callback": [alert_run_well, sentry.check_in_ok],
        "default_args": {
            "on_execute_callback": [end_with_supervisor, sentry.check_in_begun],
            "on_failure_callback": [alert_failed_run],
            "owner": "payme-ops",
            "retries": 2,
            "retry_policy": RETRY_POLICY,
            "execution_timeout": timedelta(minutes=30),
        },
    }


def deadline(within: timedelta) -> dict[str, Any]:
    """Keyword arguments for @dag: a run that has not ended that time after it was queued is told as late."""
    alert = DeadlineAlert(
        reference=DeadlineReference.DAGRUN_QUEUED_AT,  # runs by hand have no logical date
        interval=within,
        callback=AsyncCallback(alert_late_run),
        name="ends in time",
    )
    return {"deadline": alert}
