"""The DAG files as Airflow reads them; no scheduler, and a metadata database that is empty and thrown away."""

import atexit
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

    from tests.support.installation import Installation
    from tests.support.release_desk import Desk
    from tests.support.site import Site


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
