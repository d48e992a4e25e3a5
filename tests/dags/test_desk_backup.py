"""The desk's own databases backed up and proven by the tasks of desk_backup, on real services."""

from types import SimpleNamespace
from typing import Any

import pytest
from airflow.sdk.exceptions import AirflowSkipException

from payme_ops.backup.catalogue import State, entries
from payme_ops.backup.manifest import Tier
from payme_ops.foundation import evidence
from payme_ops.foundation.clock import utc_now
from payme_ops.foundation.errors import PreflightFailed, SettingsError
from payme_ops.foundation.evidence import Verdict
from payme_ops.orchestration import backup, desk_backup
from payme_ops.orchestration.doors import own_catalogue
from tests.support import metadata
from tests.support.installation import Installation

OPS = "service=payme_ops_db"


@pytest.fixture
def run(installation: Installation, monkeypatch: pytest.MonkeyPatch) -> str:
    """The name of a run of desk_backup on a desk that has a metadata database."""
    metadata.make(installation.site)
    dag_run = SimpleNamespace(dag_id="desk_backup", run_id=installation.bucket_name, run_after=utc_now())
    context = {"dag_run": dag_run, "params": {"reason": None}}
    for module in (backup, desk_backup):
        monkeypatch.setattr(module, "get_current_context", lambda: context)
    return f"desk_backup/{installation.bucket_name}"


def test_each_database_goes_its_own_way_and_only_the_restore_test_may_open_it(dag_bag: Any) -> None:
    dag = dag_bag.dags["desk_backup"]
    assert (dag.timetable.expression, str(dag.timetable.timezone)) == ("30 3 * * *", "Africa/Nairobi")
    stages = ["preflight", "dump_and_store", "read_back", "commit", "restore_and_compare"]
    edges = {task.task_id: sorted(task.downstream_task_ids) for task in dag.tasks}
    assert edges == {
        f"{which}.{stage}": [f"{which}.{after}" for after in stages[number + 1 : number + 2]]
        for which in ("airflow", "ops")
        for number, stage in enumerate(stages)
    }
    assert {task.task_id for task in dag.tasks if task.queue == "restore"} == {
        "airflow.restore_and_compare",
        "ops.restore_and_compare",
    }
    assert {task.queue for task in dag.tasks} == {"desk", "restore"}


def test_of_other_dags_only_questions_run_where_airflows_database_can_be_reached(dag_bag: Any) -> None:
    """And all of them do: no other worker may write an answer (tests/integration/test_ops_roles.py)."""
    tasks = [
        (dag_id, task)
        for dag_id, dag in dag_bag.dags.items()
        for task in dag.tasks
        if dag_id not in ("desk_backup", "desk_housekeeping")
    ]
    on_it = {(dag_id, task.task_id) for dag_id, task in tasks if task.queue == "desk"}
    assert on_it == {(dag_id, task.task_id) for dag_id, task in tasks if task.task_type == "ApprovalGate"}
    assert len(on_it) > 5


@pytest.mark.parametrize(
    ("which", "database", "table"), [("airflow", "airflow", "log"), ("ops", "payme_ops", "leases")]
)
def test_a_database_of_the_desk_is_backed_up_and_its_backup_is_proven(
    run: str, which: str, database: str, table: str
) -> None:
    backup.preflight(which)
    found = {item.item: item for item in evidence.of_run(OPS, f"{run}/{which}")}
    # Its owner's connection may write: that is said, not passed over.
    assert found["read_only"].verdict is Verdict.BYPASSED
    backup.dump_and_store(Tier.DAILY, which)
    backup.read_back(which)
    key = backup.commit_own(which)
    assert key.startswith(f"postgres/{database}/daily/")
    tested = desk_backup.restore_and_compare(which)
    assert (tested["manifest"], tested["verdict"]) == (key, "VERIFIED")
    (one,) = entries(own_catalogue("payme_s3_restore", which))
    assert one.state is State.VERIFIED
    assert table in {relation.name for relation in one.trusted.truth.relations}
    # A second run of the same request finds it.
    with pytest.raises(AirflowSkipException):
        backup.dump_and_store(Tier.DAILY, which)


def test_a_connection_to_another_database_is_refused_by_name(run: str, installation: Installation) -> None:
    installation.set("DESK__AIRFLOW_DATABASE", "airflow_production")
    with pytest.raises(PreflightFailed, match="PAYME_OPS__DESK__AIRFLOW_DATABASE and the connection payme_airflow_db"):
        backup.preflight("airflow")
    assert list(installation.store.keys("postgres/")) == []
    assert run


@pytest.mark.usefixtures("run")
def test_two_databases_of_one_name_are_refused(installation: Installation) -> None:
    installation.set("BACKUP__DATABASE", "airflow")
    with pytest.raises(SettingsError, match="two databases have one name"):
        backup.preflight("airflow")
