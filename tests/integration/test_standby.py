"""The source may be a read replica: a backup of a real hot standby, and what preflight says of one."""

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg
import pytest

from payme_ops.backup import preflight
from payme_ops.foundation.evidence import Evidence, Verdict
from sandbox import postgres
from sandbox.postgres import Cluster
from tests.support.installation import Installation
from tests.support.site import SETTINGS, Site
from tests.support.waiting import eventually


@contextmanager
def standby(site: Site, **settings: str) -> Iterator[Cluster]:
    """A streaming replica of the site's server."""
    primary = site.cluster
    folder = Path(tempfile.mkdtemp(prefix="payme-standby-"))
    folder.chmod(0o711)
    data = folder / "data"
    who = postgres.unprivileged()
    data.mkdir(mode=0o700)
    if who:
        os.chown(data, who["user"], who["group"])
    try:
        subprocess.run(
            [
                primary.bin_dir / "pg_basebackup",
                f"--pgdata={data}",
                "--write-recovery-conf",
                "--checkpoint=fast",
                "--host=127.0.0.1",
                f"--port={primary.port}",
                f"--username={primary.superuser}",
            ],
            env={"PGPASSWORD": primary.password, "PATH": os.defpath},
            check=True,
            capture_output=True,
            cwd="/",
            **who,
        )
        cluster = postgres.start(
            data,
            bin_dir=primary.bin_dir,
            port=postgres.free_port(),
            password=primary.password,
            settings={**SETTINGS, "hot_standby_feedback": "on", **settings},
        )
        try:
            yield cluster
        finally:
            postgres.stop(cluster, "immediate")
    finally:
        shutil.rmtree(folder)


def read_from(installation: Installation, cluster: Cluster) -> None:
    """Point payme_db_read at another server; the password file names ports."""
    password = installation.site.world.secrets["postgres.payme_db_read"]
    installation.connect_as("payme_db_read", port=str(cluster.port), password=password)


@pytest.fixture
def replica(installation: Installation) -> Iterator[Cluster]:
    with standby(installation.site) as cluster:
        read_from(installation, cluster)
        yield cluster


def found_replica(installation: Installation) -> Evidence:
    found = preflight.examine(installation.desk, actor="test", for_run=True)
    return next(item for item in found if item.item == "replica")


@pytest.mark.usefixtures("replica")
def test_a_standby_is_backed_up_and_restores(installation: Installation) -> None:
    ended = installation.cli("backup", "run")
    assert ended.code == 0, ended
    (manifest,) = installation.manifests()
    assert manifest.server.in_recovery
    notes = {relation.qualified: relation.note for relation in manifest.truth.relations}
    assert notes["public.rate_limits"].startswith("unlogged")
    ended = installation.cli("backup", "restore", manifest.key, "--into", "from_standby")
    assert ended.code == 0, ended
    with installation.site.admin("postgres") as connection:
        connection.execute("DROP DATABASE from_standby")


@pytest.mark.usefixtures("replica")
def test_an_idle_standby_is_not_called_late(installation: Installation) -> None:
    assert found_replica(installation).verdict is Verdict.PASS


def test_a_late_standby_is_refused(
    installation: Installation, replica: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(preflight, "REPLICA_LAG_SECONDS", 0)
    with psycopg.connect(replica.conninfo(), autocommit=True) as connection:
        connection.execute("SELECT pg_wal_replay_pause()")
        eventually(
            lambda: connection.execute("SELECT pg_get_wal_replay_pause_state() = 'paused'").fetchone() == (True,),
            "replay to pause",
        )
        with installation.site.admin() as primary:
            primary.execute("UPDATE users SET full_name = full_name WHERE id <= 10")
        late = eventually(
            lambda: found if (found := found_replica(installation)).verdict is not Verdict.PASS else None,
            "the lag to be seen",
        )
    assert late.verdict is Verdict.FAIL
    assert "catch up" in late.remedy


def test_a_standby_without_feedback_is_refused(installation: Installation) -> None:
    with standby(installation.site, hot_standby_feedback="off") as cluster:
        read_from(installation, cluster)
        found = found_replica(installation)
    assert (found.verdict, found.measured["hot_standby_feedback"]) == (Verdict.FAIL, False)
