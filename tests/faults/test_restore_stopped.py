"""A restore and a restore test are stopped or lose the store: no opened archive, no server and no verdict remains."""

import os
import signal
import stat
from pathlib import Path

import psutil
import pytest

from payme_ops.backup import scratch
from payme_ops.backup.catalogue import State
from payme_ops.backup.manifest import Manifest
from payme_ops.foundation.objectstore import MIB
from tests.support.installation import Installation, quiet
from tests.support.proxy import Proxy
from tests.support.waiting import eventually

pytestmark = pytest.mark.long

ARCHIVE = "archive.dump.age"
COMMANDS = {
    "restore test": ("backup", "restore-test", "latest"),
    "restore": ("backup", "restore", "latest", "--into", "payme_stopped"),
}


@pytest.fixture
def done(installation: Installation) -> Manifest:
    return installation.back_up()


def folder(installation: Installation) -> Path:
    return installation.desk.settings.backup.scratch_dir


def servers(installation: Installation) -> list[psutil.Process]:
    """Throw-away servers below the scratch folder."""
    place = str(folder(installation))
    return [
        process
        for process in psutil.process_iter(["cmdline"])
        if any(place in word for word in process.info["cmdline"] or [])
    ]


@pytest.mark.usefixtures("done")
@pytest.mark.parametrize("what", COMMANDS)
def test_killed_while_the_archive_is_opened(installation: Installation, proxy: Proxy, what: str) -> None:
    held = proxy.hold("GET", ARCHIVE, done_upstream=True)
    running = installation.start(*COMMANDS[what])
    held.wait_until_seen()
    (left,) = folder(installation).iterdir()
    (opened,) = eventually(lambda: list(left.glob("*.dump")), "the opened archive")
    assert stat.S_IMODE(opened.stat().st_mode) == 0o600
    assert stat.S_IMODE(left.stat().st_mode) == (0o711 if what == "restore test" and os.geteuid() == 0 else 0o700)
    running.kill()
    held.drop()
    # The server ends by itself, before anything else has run.
    eventually(lambda: not servers(installation), "the end of the throw-away server")
    with scratch.folder(folder(installation), needed_bytes=0, report=quiet):
        assert not left.exists()
    drop(installation)
    require_untouched(installation)


@pytest.mark.usefixtures("done")
@pytest.mark.parametrize("what", COMMANDS)
@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_asked_to_stop(installation: Installation, proxy: Proxy, what: str, number: signal.Signals, code: int) -> None:
    held = proxy.hold("GET", ARCHIVE, done_upstream=True)
    running = installation.start(*COMMANDS[what])
    held.wait_until_seen()
    running.process.send_signal(number)
    held.release()
    ended = running.end()
    assert ended.code == code, ended
    require_untouched(installation)


@pytest.mark.usefixtures("done")
def test_asked_to_stop_while_pg_restore_works(installation: Installation) -> None:
    """Its workers end with it, and the half-restored database goes away."""
    with installation.site.admin("postgres") as admin:
        running = installation.start(*COMMANDS["restore"])
        loading = "SELECT 1 FROM pg_stat_activity WHERE datname = 'payme_stopped' AND query LIKE 'COPY %'"
        eventually(lambda: admin.execute(loading).fetchone(), "pg_restore's COPY", every=0.002)
        running.process.send_signal(signal.SIGTERM)
        assert running.end().code == 143
        there = admin.execute("SELECT 1 FROM pg_database WHERE datname = 'payme_stopped'").fetchone()
    assert there is None
    require_untouched(installation)


@pytest.mark.usefixtures("done", "impatient")
@pytest.mark.parametrize("what", COMMANDS)
def test_a_store_that_breaks_off_says_nothing_about_the_backup(
    installation: Installation, proxy: Proxy, what: str
) -> None:
    proxy.cut_response("GET", ARCHIVE, 2 * MIB)
    ended = installation.cli(*COMMANDS[what])
    assert ended.code == 6, ended
    require_untouched(installation)


def drop(installation: Installation) -> None:
    """The database of a killed restore: a person's to drop, as the next restore of that name says."""
    with installation.site.admin("postgres") as admin:
        admin.execute("DROP DATABASE IF EXISTS payme_stopped WITH (FORCE)")


def require_untouched(installation: Installation) -> None:
    """Nothing of ours remains, and the backup is what it was."""
    assert list(folder(installation).iterdir()) == []
    assert servers(installation) == []
    eventually(lambda: not installation.sessions(), "the end of our database sessions")
    with installation.site.admin("postgres") as admin:
        assert admin.execute("SELECT 1 FROM pg_database WHERE datname = 'payme_stopped'").fetchone() is None
    (entry,) = installation.json("backup", "list")
    assert entry["state"] == State.COMPLETE
