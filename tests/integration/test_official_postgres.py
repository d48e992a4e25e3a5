"""The desk's own database on a PostgreSQL 15 that is not ours, by TCP and a password, as a role that owns just that.

CI has the official image beside it and names it in PAYME_TEST_POSTGRES (a superuser's URL); elsewhere it is Debian's.
"""

import os
from collections.abc import Callable, Iterator

import psycopg
import pytest
from psycopg import sql
from psycopg.conninfo import make_conninfo

from payme_ops.foundation import evidence, lease, opsdb
from payme_ops.foundation.clock import utc_now
from payme_ops.foundation.errors import LeaseHeld
from payme_ops.foundation.evidence import Evidence, Verdict
from tests.support.site import Site

NAME, PASSWORD = "payme_ops_official", "password-of-the-tests"


@pytest.fixture
def ops(request: pytest.FixtureRequest) -> Iterator[str]:
    """The owner's conninfo of an empty database there."""
    if not (admin := os.environ.get("PAYME_TEST_POSTGRES")):
        sites: Callable[[str], Site] = request.getfixturevalue("sites")
        admin = sites("debian15").cluster.conninfo()
    name = sql.Identifier(NAME)
    with psycopg.connect(admin, autocommit=True) as connection:
        connection.execute(sql.SQL("CREATE ROLE {} LOGIN PASSWORD {}").format(name, sql.Literal(PASSWORD)))
        connection.execute(sql.SQL("CREATE DATABASE {} OWNER {} TEMPLATE template0").format(name, name))
        try:
            yield make_conninfo(admin, dbname=NAME, user=NAME, password=PASSWORD)
        finally:
            connection.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(name))
            connection.execute(sql.SQL("DROP ROLE {}").format(name))


def test_schema_lease_and_evidence(ops: str) -> None:
    with psycopg.connect(ops) as connection:
        assert connection.info.server_version // 10000 == 15
        assert connection.execute("SELECT rolsuper FROM pg_roles WHERE rolname = current_user").fetchone() == (False,)
    assert opsdb.migrate(ops)
    assert opsdb.migrate(ops) == []
    with lease.hold(ops, "snapshot:payme", "one"), pytest.raises(LeaseHeld), lease.hold(ops, "snapshot:payme", "two"):
        pass
    now = utc_now()
    measured = {"rows": 3}
    found = Evidence(
        "dump", Verdict.PASS, measured, "equal", "test", now, now, "here", evidence.digest(measured), "none"
    )
    evidence.record(ops, "run", [found])
    assert evidence.latest(ops, "run", "dump") == found
