"""Step 3 of phone_encryption alone, its ranges given: what the tests strike and bench/workers.py measures."""

from typing import Any

from airflow.sdk import Param, dag, task

from payme_ops.orchestration.defaults import Area, Risk, dag_options
from payme_ops.orchestration.migration_tasks import work

OPTIONS = dag_options("phone_encryption", "", area=Area.MIGRATION, risk=Risk.WRITES_PROD)


@dag(schedule=None, params={"ranges": Param([], type="array")}, **{**OPTIONS, "dag_id": "mapped_backfill"})
def mapped_backfill() -> None:
    @task(queue="migration")
    def plan(params: dict[str, Any] | None = None) -> Any:
        return (params or {})["ranges"]

    work("encrypt", hours=6).expand(given=plan())


mapped_backfill()
