"""The night's housekeeping as its task does it, on a real ops database."""

import json
from datetime import timedelta
from typing import Any

import psycopg
import pytest

from payme_ops.foundation import samples
from payme_ops.foundation.clock import utc_now
from payme_ops.foundation.health import State
from payme_ops.foundation.samples import Sample
from payme_ops.orchestration import housekeeping
from tests.support import ops
from tests.support.installation import Installation


def test_it_runs_at_half_past_four_in_nairobi(dag_bag: Any) -> None:
    dag = dag_bag.dags["desk_housekeeping"]
    assert (dag.timetable.expression, str(dag.timetable.timezone)) == ("30 4 * * *", "Africa/Nairobi")
    assert [task.task_id for task in dag.tasks] == ["looks"]


def test_what_is_old_is_summed_and_then_deleted_and_a_second_night_finds_nothing(
    installation: Installation, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(housekeeping, "get_current_context", lambda: {"params": {"reason": None}})
    cluster = installation.site.cluster
    with ops.ops_database(cluster) as conninfo:
        installation.set_all({"AIRFLOW_CONN_PAYME_OPS_DB": json.dumps(ops.connection(cluster, "ops_test"))})
        now = utc_now()
        for subject in ("production", "release/x"):
            for days in (0, 20, 100):
                samples.store(conninfo, subject, Sample(now - timedelta(days=days), State.HEALTHY, 5.0, {}))
        done = housekeeping.looks()
        assert done["looks deleted"] == 2
        assert done["summed"] >= 3  # two days, and the month of the older one
        assert housekeeping.looks() == {"summed": 0, "not summed": [], "looks deleted": 0}
        with psycopg.connect(conninfo) as session:
            assert session.execute("SELECT count(*) FROM ops.health_samples").fetchone() == (4,)
