"""The step of docs/payme-api-ci.yml against a real Airflow: what it relies on is what the API does.

Each answer by itself is tested in tests/unit/test_workflows.py. `pre_deployment` is paused, so that nothing is begun.
"""

from collections.abc import Iterator
from functools import partial
from pathlib import Path

import psycopg
import pytest

from payme_ops.foundation.clock import utc_now
from tests.e2e.conftest import PARSED_WITHIN_SECONDS, Desk
from tests.support.pipeline import ask, clone
from tests.support.standins import answering, served

pytestmark = pytest.mark.long

RUNS = "/dags/pre_deployment/dagRuns"


@pytest.fixture
def paused(desk: Desk) -> Iterator[Desk]:
    """The desk while `pre_deployment` is paused; its runs are gone afterwards."""
    desk.supervisor.until(partial(desk.api.dag_missing, "pre_deployment", utc_now()), "its file", PARSED_WITHIN_SECONDS)
    desk.api.call("PATCH", "/dags/pre_deployment", {"is_paused": True})
    yield desk
    for run in runs(desk):
        desk.api.call("DELETE", f"{RUNS}/{run}")
    desk.api.call("PATCH", "/dags/pre_deployment", {"is_paused": False})


def runs(desk: Desk) -> list[str]:
    """The ids of the runs that the step has made, oldest first."""
    found = [one["dag_run_id"] for one in desk.api.call("GET", f"{RUNS}?order_by=id")["dag_runs"]]
    return [run for run in found if run.startswith("production-2.4.1-")]


def end(desk: Desk, run: str, state: str) -> None:
    """The run is over, as the scheduler writes it."""
    with psycopg.connect(desk.world.conninfo("airflow", "airflow")) as connection:
        ended = connection.execute("UPDATE dag_run SET state = %s WHERE run_id = %s", [state, run])
    assert ended.rowcount == 1


def test_starts_it_once_joins_it_and_believes_its_state_alone(paused: Desk, tmp_path: Path) -> None:
    checkout = clone(tmp_path)
    url, password = paused.world.url("airflow"), paused.world.secrets["airflow.oncall"]
    with served(answering({"commit": checkout.before}), tmp_path / "unused") as api:
        ask_the_desk = partial(
            ask,
            url,
            checkout,
            password,
            PAYME_API_URL=api.url,
            AIRFLOW_USER="oncall",
            LIMIT_SECONDS="3",
        )
        first = ask_the_desk()
        assert (first.returncode, runs(paused)) == (1, [checkout.run]), first.stdout + first.stderr
        assert f"{checkout.run} is still queued" in first.stdout

        end(paused, checkout.run, "success")
        joined = ask_the_desk()
        assert (joined.returncode, runs(paused)) == (0, [checkout.run]), joined.stdout + joined.stderr

        end(paused, checkout.run, "failed")
        again = ask_the_desk()
        assert (again.returncode, runs(paused)) == (1, [checkout.run, f"{checkout.run}-2"]), again.stdout + again.stderr
        conf = paused.api.call("GET", f"{RUNS}/{checkout.run}-2")["conf"]
        assert (conf["commit"], conf["previous_commit"]) == (checkout.commit, checkout.before)

        refused = ask_the_desk(AIRFLOW_PASSWORD="not-" + password)
        assert refused.returncode == 1
        assert "refused the login (status 401)" in refused.stdout
