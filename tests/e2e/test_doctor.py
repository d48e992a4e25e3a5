"""What doctor asks of a real Airflow: its answers are understood, and what the remedy says turns red into green."""

import re
import shlex
import subprocess
from collections.abc import Iterator

import psycopg
import pytest

from payme_ops.foundation.airflow_api import AirflowApi
from payme_ops.foundation.evidence import Evidence, Verdict
from payme_ops.monitoring import airflow_desk
from sandbox import airflow
from sandbox.postgres import PROJECT
from sandbox.world import AUDITOR
from tests.e2e.conftest import Desk
from tests.support.waiting import eventually

pytestmark = pytest.mark.long

ITEMS = [
    *("airflow_health", "airflow_login", "airflow_pools", "stored_connections", "airflow_import_errors"),
    *("airflow_paused", "airflow_queues"),
]
PAUSED, POOL = "backup_retention", "default_pool"


def ask(desk: Desk, password: str = "") -> dict[str, Evidence]:
    url, password = desk.world.url("airflow"), password or desk.world.secrets[f"airflow.{AUDITOR}"]
    found = airflow_desk.examine(url, lambda: AirflowApi(url, AUDITOR, password), actor="test")
    return {item.item: item for item in found}


def verdicts(found: dict[str, Evidence]) -> dict[str, Verdict]:
    return {name: item.verdict for name, item in found.items() if item.verdict is not Verdict.PASS}


# The sandbox's account is a viewer of SimpleAuthManager, which shows it no connections; FAB's may see them.
USUAL = {"stored_connections": Verdict.INCONCLUSIVE}


@pytest.fixture
def well(desk: Desk) -> Iterator[Desk]:
    def is_well() -> bool:
        return verdicts(ask(desk)) == USUAL

    eventually(is_well, f"an Airflow that is as it should be, not {ask(desk)}", seconds=120, every=1)
    yield desk
    desk.api.call("PATCH", f"/dags/{PAUSED}", {"is_paused": False})
    slots(desk, 128)


def slots(desk: Desk, count: int) -> None:
    with psycopg.connect(desk.world.cluster.conninfo("airflow")) as session:
        session.execute("UPDATE slot_pool SET slots = %s WHERE pool = %s", [count, POOL])


def test_a_real_airflow_is_understood(well: Desk) -> None:
    found = ask(well)
    assert list(found) == ITEMS
    assert found["airflow_pools"].measured == {POOL: 128}
    assert found["airflow_paused"].measured["run by themselves"] >= 9
    assert verdicts(ask(well, "another-password")) == {"airflow_login": Verdict.FAIL}


def test_a_paused_dag_and_a_small_pool_are_red_until_the_remedy_is_followed(well: Desk) -> None:
    well.api.call("PATCH", f"/dags/{PAUSED}", {"is_paused": True})
    slots(well, 1)
    found = ask(well)
    assert verdicts(found) == USUAL | {"airflow_pools": Verdict.FAIL, "airflow_paused": Verdict.FAIL}
    assert found["airflow_paused"].measured["paused"] == [PAUSED]
    for item in ("airflow_pools", "airflow_paused"):
        for line in re.findall(r"`(airflow [^`]+)`", found[item].remedy):
            subprocess.run(
                shlex.split(line), cwd=PROJECT, env=airflow.environment(well.world), check=True, capture_output=True
            )
    assert verdicts(ask(well)) == USUAL
