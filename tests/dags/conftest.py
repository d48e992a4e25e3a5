"""The DAG files as Airflow reads them; no scheduler, and a metadata database that is empty and thrown away."""

import atexit
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

PROJECT = Path(__file__).resolve().parents[2]
# Before anything imports airflow, which reads its configuration at import.
os.environ["AIRFLOW_HOME"] = tempfile.mkdtemp(prefix="payme-ops-dags-")
atexit.register(shutil.rmtree, os.environ["AIRFLOW_HOME"], ignore_errors=True)
os.environ["AIRFLOW__CORE__DAGS_FOLDER"] = str(PROJECT / "dags")
os.environ["AIRFLOW__CORE__PLUGINS_FOLDER"] = str(PROJECT / "plugins")
os.environ["AIRFLOW__CORE__LOAD_EXAMPLES"] = "False"
os.environ["AIRFLOW__CORE__UNIT_TEST_MODE"] = "False"

if TYPE_CHECKING:
    from airflow.dag_processing.dagbag import DagBag

    from sandbox.postgres import Cluster
    from tests.support.installation import Installation
    from tests.support.release_desk import Desk
    from tests.support.site import Site
    from tests.support.standins import StandIn


@pytest.fixture(scope="session")
def dag_bag() -> "DagBag":
    """All files of dags/, parsed once."""
    from airflow.dag_processing.dagbag import DagBag

    return DagBag(dag_folder=str(PROJECT / "dags"))


@pytest.fixture(scope="module")
def release_ops(site: "Site") -> Iterator[str]:
    """An ops database for the releases of a module; each `release_desk` begins with an empty one."""
    from tests.support.ops import ops_database

    with ops_database(site.cluster) as conninfo:
        yield conninfo


@pytest.fixture
def make_desk(
    release_ops: str, installation: "Installation", tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> "Callable[..., AbstractContextManager[Desk]]":
    """A desk at work on a release whose form has these fields."""
    from tests.support.release_desk import at_work

    return partial(at_work, release_ops, installation, tmp_path, monkeypatch)


@pytest.fixture
def release_desk(make_desk: "Callable[..., AbstractContextManager[Desk]]") -> "Iterator[Desk]":
    """A desk at work on a release to production."""
    with make_desk() as made:
        yield made


@pytest.fixture(scope="module")
def alert_ops() -> "Iterator[Cluster]":
    """A server whose database postgres is an ops database; each `slack` begins with no alert in it."""
    from payme_ops.foundation import opsdb
    from sandbox import postgres

    with postgres.temporary_cluster() as cluster:
        opsdb.migrate(cluster.conninfo())
        yield cluster


@pytest.fixture
def slack(tmp_path: Path, alert_ops: "Cluster", monkeypatch: pytest.MonkeyPatch) -> "Iterator[StandIn]":
    """Slack, and the Airflow connections to it and to the ops database."""
    import psycopg

    from tests.support.ops import connection
    from tests.support.standins import slack_stand_in

    monkeypatch.setenv("AIRFLOW_CONN_PAYME_OPS_DB", json.dumps(connection(alert_ops)))
    monkeypatch.setenv("PAYME_OPS__ALERT__OWNER", "Wanjiru")
    monkeypatch.setenv("PAYME_OPS__SLACK__CHANNEL", "night-watch")
    monkeypatch.setenv("AIRFLOW__API__BASE_URL", "https://airflow.payme.example/")
    with psycopg.connect(alert_ops.conninfo()) as session:
        session.execute("TRUNCATE ops.alerts, ops.alert_threads, ops.alert_silences, ops.alert_acknowledgements")
    with slack_stand_in(tmp_path) as running:
        extra = {"base_url": f"{running.url}/api/"}
        monkeypatch.setenv(
            "AIRFLOW_CONN_PAYME_SLACK", json.dumps({"conn_type": "slack", "password": "xoxb-test", "extra": extra})
        )
        yield running


@pytest.fixture
def stand_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> "Iterator[StandIn]":
    """Sentry, switched on for this process as in a task's or the DAG processor's."""
    import sentry_sdk

    from payme_ops.orchestration import sentry
    from tests.support.standins import sentry_stand_in

    with sentry_stand_in(tmp_path) as running:
        monkeypatch.setenv("AIRFLOW__SENTRY__SENTRY_ON", "True")
        monkeypatch.setenv("AIRFLOW__SENTRY__SENTRY_DSN", running.url.replace("://", "://abc@") + "/1")
        sentry.install.cache_clear()
        yield running
        sentry_sdk.get_client().close(timeout=2)
        sentry_sdk.get_global_scope().set_client(None)
        sentry_sdk.get_global_scope().clear()
        sentry.install.cache_clear()
