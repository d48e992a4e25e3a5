"""The source may be a read replica: the same content, its state told, and unlogged tables said to be left out."""

from collections.abc import Iterator

import psycopg
import pytest

from payme_ops.backup import preflight
from payme_ops.foundation.evidence import Verdict
from sandbox import postgres
from tests.support.installation import Installation
from tests.support.site import Site
from tests.support.standby import streaming
from tests.support.waiting import eventually

pytestmark = pytest.mark.long  # its servers take a while


@pytest.fixture(scope="module")
def standby(each_site: Site) -> Iterator[postgres.Cluster]:
    with streaming(each_site) as cluster:
        set_feedback(cluster, "on")
        yield cluster


def set_feedback(standby: postgres.Cluster, value: str) -> None:
    with psycopg.connect(standby.conninfo(), autocommit=True) as connection:
        connection.execute(f"ALTER SYSTEM SET hot_standby_feedback = {value}")
        connection.execute("SELECT pg_reload_conf()")
        read = lambda: connection.execute("SHOW hot_standby_feedback").fetchone() == (value,)  # noqa: E731
        eventually(read, "the standby to read its settings")


def on_standby(installation: Installation, standby: postgres.Cluster) -> Installation:
    """Reads go to the standby once it has everything."""
    with installation.site.admin() as admin:
        row = admin.execute("SELECT pg_current_wal_lsn()").fetchone()
    assert row is not None

    def caught_up() -> bool:
        with psycopg.connect(standby.conninfo("payme")) as connection:
            answer = connection.execute("SELECT pg_last_wal_replay_lsn() >= %s", [row[0]]).fetchone()
        return answer == (True,)

    eventually(caught_up, "the standby to catch up")
    password = installation.site.world.secrets["postgres.payme_db_read"]
    installation.connect_as("payme_db_read", port=str(standby.port), password=password)
    return installation


def test_backup_of_a_standby_restored_on_the_primary(
    each_installation: Installation, standby: postgres.Cluster
) -> None:
    installation = on_standby(each_installation, standby)
    found = {item.item: item for item in preflight.examine(installation.desk, actor="test", for_run=True)}
    assert {item.verdict for item in found.values()} == {Verdict.PASS}
    assert found["replica"].measured["role"] == "standby"
    done = installation.back_up()
    assert done.server.in_recovery
    (unlogged,) = [each for each in done.truth.relations if each.name == "rate_limits"]
    assert (unlogged.rows, unlogged.content_hash) == (None, None)
    assert "unlogged" in unlogged.note
    try:
        installation.restore(done, "restored_standby")
        with installation.site.admin("restored_standby") as admin:
            assert admin.execute("SELECT count(*) FROM rate_limits").fetchone() == (0,)
    finally:
        with installation.site.admin("postgres") as admin:
            admin.execute("DROP DATABASE IF EXISTS restored_standby")


def test_a_standby_without_feedback_is_refused(each_installation: Installation, standby: postgres.Cluster) -> None:
    installation = on_standby(each_installation, standby)
    set_feedback(standby, "off")
    try:
        found = {item.item: item for item in preflight.examine(installation.desk, actor="test", for_run=True)}
    finally:
        set_feedback(standby, "on")
    assert found["replica"].verdict is Verdict.FAIL
    assert "hot_standby_feedback" in found["replica"].remedy


def test_a_standby_far_behind_is_refused_and_an_idle_one_is_not(
    each_installation: Installation, standby: postgres.Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The age of the last replayed transaction alone says nothing: while the primary is idle it grows by itself."""
    installation = on_standby(each_installation, standby)
    monkeypatch.setattr(preflight, "REPLICA_LAG_SECONDS", -1)
    idle = {item.item: item for item in preflight.examine(installation.desk, actor="test", for_run=True)}
    assert idle["replica"].verdict is Verdict.PASS
    with psycopg.connect(standby.conninfo(), autocommit=True) as connection:
        connection.execute("SELECT pg_wal_replay_pause()")
        try:
            with installation.site.admin() as admin:
                admin.execute("CREATE TABLE later (a int)")
                admin.execute("DROP TABLE later")
                admin.execute("SELECT pg_switch_wal()")
            received = "SELECT pg_last_wal_receive_lsn() <> pg_last_wal_replay_lsn()"
            eventually(lambda: connection.execute(received).fetchone() == (True,), "WAL that is not replayed")
            found = {item.item: item for item in preflight.examine(installation.desk, actor="test", for_run=True)}
        finally:
            connection.execute("SELECT pg_wal_replay_resume()")
    assert found["replica"].verdict is Verdict.FAIL
    assert "catch up" in found["replica"].remedy
