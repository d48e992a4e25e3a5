"""What tests of alerts share: a server, a fresh ops database on it for each test, and Slack."""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from sandbox.postgres import Cluster
    from tests.support.standins import StandIn


@pytest.fixture(scope="module")
def server() -> "Iterator[Cluster]":
    from sandbox import postgres

    with postgres.temporary_cluster() as cluster:
        yield cluster


@pytest.fixture
def ops(server: "Cluster") -> Iterator[str]:
    """Conninfo of a fresh ops database."""
    from tests.support.ops import ops_database

    with ops_database(server) as conninfo:
        yield conninfo


@pytest.fixture
def slack(tmp_path: Path) -> "Iterator[StandIn]":
    from tests.support.standins import slack_stand_in

    with slack_stand_in(tmp_path) as running:
        yield running
