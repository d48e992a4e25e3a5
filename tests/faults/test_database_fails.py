"""The database goes away in the middle, whole or a session of ours at a time; so does pg_dump."""

from collections.abc import Callable, Iterator

import pytest

from payme_ops.backup import globals as globals_
from payme_ops.foundation import lease
from payme_ops.foundation.errors import DatabaseUnavailable
from sandbox import postgres
from tests.support.installation import Installation, Running
from tests.support.proxy import Held, Proxy
from tests.support.site import Site
from tests.support.waiting import eventually


@pytest.fixture
def source(installation: Installation, sites: Callable[[str], Site]) -> Iterator[Site]:
    """Another server as the source, so that it can go without taking the ops database along."""
    made = sites("debian15")
    with made.admin() as admin:
        admin.execute("CREATE TABLE ballast AS SELECT gen_random_bytes(1024) AS data FROM generate_series(1, 6000)")
    password = made.world.secrets["postgres.payme_db_read"]
    installation.connect_as("payme_db_read", port=str(made.cluster.port), password=password)
    yield made
    if postgres.server_pid(made.cluster) is None:
        made.start_postgres()
    with made.admin() as admin:
        admin.execute("DROP TABLE ballast")


def caught(installation: Installation, proxy: Proxy) -> tuple[Running, Held]:
    """A run held at the proxy when locks and snapshot are held, and pg_dump waits for a reader."""
    held = proxy.hold("POST", "?uploads")
    running = installation.start("backup", "run")
    held.wait_until_seen()
    return running, held


@pytest.mark.parametrize("mode", ["fast", "immediate"])
def test_source_restarted_in_the_middle(installation: Installation, proxy: Proxy, source: Site, mode: str) -> None:
    """Who notices first decides: the watch, and the next attempt finds the server again; or pg_dump, worth a retry."""
    running, held = caught(installation, proxy)
    postgres.stop(source.cluster, mode)
    source.start_postgres()
    held.release()
    ended = running.end()
    assert (ended.code, "attempt 1 of 3 gave way" in ended.err) in [(0, True), (6, False)], ended
    installation.require_clean(running, backups=1 if ended.code == 0 else 0)
    assert installation.uploads() == []
    installation.require_recovery(running, backups=1 if ended.code == 0 else 0)


def test_source_gone_in_the_middle(installation: Installation, proxy: Proxy, source: Site) -> None:
    running, held = caught(installation, proxy)
    postgres.kill(source.cluster)
    held.release()
    ended = running.end()
    assert ended.code == 6, ended
    assert "To do: " in ended.err
    assert "Traceback" not in ended.err
    installation.require_clean(running, backups=0)
    assert installation.uploads() == []
    source.start_postgres()
    installation.require_recovery(running, backups=0)


def test_one_server_for_both_restarted_in_the_middle(installation: Installation, proxy: Proxy) -> None:
    """With the ops database the lease goes: whatever the dump came to, it is not committed."""
    running, held = caught(installation, proxy)
    postgres.stop(installation.site.cluster, "fast")
    installation.site.start_postgres()
    held.release()
    ended = running.end()
    assert ended.code not in (0, 2), ended
    assert "Traceback" not in ended.err
    installation.require_recovery(running, backups=0)


def test_pg_dump_killed(installation: Installation, proxy: Proxy) -> None:
    running, held = caught(installation, proxy)
    (pg_dump,) = running.children("pg_dump")
    pg_dump.kill()
    held.release()
    ended = running.end()
    assert ended.code == 1, ended
    assert "pg_dump failed; expected exit code 0; found signal 9" in " ".join(ended.err.split())
    installation.require_clean(running, backups=0)
    assert installation.uploads() == []
    installation.require_recovery(backups=0)


def end_session(site: Site, pattern: str, query: str = "%", dbname: str = "payme") -> None:
    """End one session of ours, as an administrator or a failover would."""
    with site.admin(dbname) as admin:
        pids = eventually(
            lambda: [
                row[0]
                for row in admin.execute(
                    "SELECT pid FROM pg_stat_activity WHERE application_name LIKE %s AND query LIKE %s"
                    " AND pid <> pg_backend_pid()",
                    [pattern, query],
                )
            ],
            f"a session like {pattern}",
        )
        for pid in pids:
            admin.execute("SELECT pg_terminate_backend(%s, 5000)", [pid])


def test_session_of_pg_dump_ended(installation: Installation, proxy: Proxy) -> None:
    running, held = caught(installation, proxy)
    end_session(installation.site, "payme_ops:dump:%", "COPY%")
    held.release()
    ended = running.end()
    assert ended.code == 6, ended
    assert "pg_dump lost its connection" in ended.err
    installation.require_recovery(running, backups=0)


def test_session_that_watches_for_waiters_ended(installation: Installation, proxy: Proxy) -> None:
    """Nobody would see those who wait behind us: the attempt lets go, the next one has a watch again."""
    running, held = caught(installation, proxy)
    end_session(installation.site, "payme_ops:watch:%")
    eventually(lambda: not running.children("pg_dump"), "the end of the attempt")
    held.release()
    ended = running.end()
    assert ended.code == 0, ended
    assert "the session that watches for waiters was lost" in " ".join(ended.err.split())
    installation.require_recovery(running, backups=1)


def test_session_of_the_lease_ended(installation: Installation, proxy: Proxy) -> None:
    """Another run may have begun meanwhile: this one stops before it records anything."""
    running, held = caught(installation, proxy)
    end_session(installation.site, "payme_ops:lease:%", dbname="payme_ops")
    with lease.hold("service=payme_ops_db", installation.desk.lease_name, "the next"):
        held.release()
        ended = running.end()
    assert ended.code == 1, ended
    assert "lease snapshot:payme was lost" in ended.err
    installation.require_recovery(running, backups=0)


def test_a_role_made_after_the_snapshot(installation: Installation, proxy: Proxy) -> None:
    """It would be among the globals and not in the truth: a restore test would refute a good backup for ever."""
    running, held = caught(installation, proxy)
    with installation.site.admin() as admin:
        admin.execute("CREATE ROLE newcomer")
        try:
            held.release()
            ended = running.end()
            assert ended.code == 6, ended
            assert "changes in newcomer" in ended.err
        finally:
            admin.execute("DROP ROLE newcomer")
    installation.require_recovery(running, backups=0)


def test_ops_database_away_at_the_end(installation: Installation, proxy: Proxy, source: Site) -> None:
    """The dump is stored and nobody can record it: it does not count, and says why."""
    assert source
    held = proxy.hold("POST", "globals.sql.age?uploadId", done_upstream=True)
    running = installation.start("backup", "run")
    held.wait_until_seen()
    postgres.kill(installation.site.cluster)
    held.release()
    ended = running.end()
    assert ended.code in (1, 6), ended
    assert "Traceback" not in ended.err
    installation.site.start_postgres()
    installation.require_recovery(running, backups=0)


def test_roles_that_nobody_can_read_are_no_endless_wait(
    installation: Installation, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(globals_, "TIMEOUT_SECONDS", 1)
    with installation.site.admin() as admin, admin.transaction():
        admin.execute("LOCK TABLE pg_auth_members IN ACCESS EXCLUSIVE MODE")
        with pytest.raises(DatabaseUnavailable, match="pg_dumpall did not end"):
            globals_.dump_globals(installation.desk.source, 17, "payme_ops:test")
    assert b"CREATE ROLE payme_app" in globals_.dump_globals(installation.desk.source, 17, "payme_ops:test")
