"""Airflow DAGs on which tests/e2e/test_roles.py tries what each role may do: one without danger, one behind a gate.

Where it counts who may ask, and not what comes of it, the DAG is paused: its runs are made, and nothing runs.
"""

from datetime import UTC, datetime, timedelta

from airflow.sdk import Asset, dag, get_current_context, task

from payme_ops.foundation import evidence
from payme_ops.foundation.evidence import Finding, Verdict
from payme_ops.orchestration.approval import ApprovalGate, require_approval
from payme_ops.orchestration.connections import ops_db
from payme_ops.orchestration.defaults import RETRY_POLICY, Risk, at
from payme_ops.orchestration.doors import run_name


def keep(item: str, verdict: Verdict) -> None:
    run = run_name(get_current_context())
    evidence.keep(ops_db(), run, item, Finding(verdict, {"rows": 7}, ""), threshold="a person agrees", source="test")


@task
def work() -> str:
    return "what it found"


@dag(schedule=at("0 2 * * *"), start_date=datetime(2026, 1, 1, tzinfo=UTC), catchup=False, max_active_runs=16)
def harmless() -> None:
    work()


@dag(schedule=None, is_paused_upon_creation=True)
def makes_asset() -> None:
    work.override(outlets=[Asset("made")])()


@dag(schedule=None, is_paused_upon_creation=True)
def spare() -> None:
    work()


@dag(schedule=None, is_paused_upon_creation=True, tags=[Risk.WRITES_PROD])
def tagged() -> None:
    work()


@dag(
    schedule=None,
    tags=[Risk.WRITES_PROD],
    max_active_runs=16,
    default_args={"retries": 2, "retry_policy": RETRY_POLICY},
)
def dangerous() -> None:
    @task
    def measure() -> None:
        keep("plan", Verdict.INCONCLUSIVE)

    approve = ApprovalGate(
        task_id="approve", subject="Do it?", evidence_item="plan", response_timeout=timedelta(minutes=30)
    )

    @task
    def destroy() -> None:
        require_approval(get_current_context(), gate="approve", evidence_item="plan")
        keep("destroyed", Verdict.PASS)

    measure() >> approve >> destroy()


harmless()
makes_asset()
spare()
tagged()
dangerous()
