"""The process is stopped at each stage: killed, it leaves what the next run clears; asked to stop, it clears up."""

import signal

import pytest

from tests.support.installation import Installation
from tests.support.proxy import Proxy

ARCHIVE = "archive.dump.age"
# Stage; the request that it is caught at; whether the store has already done what was asked; backups afterwards.
STAGES = {
    "preflight": ("GET", "encryption", False, 0),
    "locks held and dump begun": ("POST", f"{ARCHIVE}?uploads", False, 0),
    "upload begun": ("POST", f"{ARCHIVE}?uploads", True, 0),
    "part on its way": ("PUT", "partNumber=1", False, 0),
    "part stored": ("PUT", "partNumber=1", True, 0),
    "upload about to be complete": ("POST", f"{ARCHIVE}?uploadId", False, 0),
    "upload complete": ("POST", f"{ARCHIVE}?uploadId", True, 0),
    "roles on their way": ("PUT", "globals.sql.age?uploadId", False, 0),
    "reading back": ("GET", ARCHIVE, True, 0),
    "manifest on its way": ("PUT", "/manifest.json", False, 0),
    "manifest written, nobody told": ("PUT", "/manifest.json", True, 1),
}


@pytest.mark.parametrize("stage", STAGES)
def test_killed(installation: Installation, proxy: Proxy, stage: str) -> None:
    method, contains, done_upstream, backups = STAGES[stage]
    held = proxy.hold(method, contains, done_upstream=done_upstream)
    running = installation.start("backup", "run")
    held.wait_until_seen()
    running.kill()
    held.drop()
    installation.require_recovery(running, backups=backups)


def test_killed_while_pg_dump_stands_still(installation: Installation, proxy: Proxy) -> None:
    """A pg_dump that does not run does not notice that nobody reads any more; as soon as it runs again, it ends."""
    held = proxy.hold("POST", f"{ARCHIVE}?uploads")
    running = installation.start("backup", "run")
    held.wait_until_seen()
    (pg_dump,) = running.children("pg_dump")
    pg_dump.suspend()
    running.kill()
    held.drop()
    pg_dump.resume()
    installation.require_recovery(running, backups=0)


def test_killed_three_times_in_a_row(installation: Installation, proxy: Proxy) -> None:
    for _ in range(3):
        held = proxy.hold("POST", f"{ARCHIVE}?uploads", done_upstream=True)
        running = installation.start("backup", "run")
        held.wait_until_seen()
        running.kill()
        held.drop()
        installation.require_clean(running, backups=0)
    # Each run cleared what the one before had left, but for the last.
    assert len(installation.uploads()) == 1
    installation.require_recovery(backups=0)


@pytest.mark.parametrize(
    ("number", "code", "stage"),
    [
        (signal.SIGTERM, 143, "locks held and dump begun"),
        (signal.SIGTERM, 143, "upload begun"),
        (signal.SIGTERM, 143, "part on its way"),
        (signal.SIGTERM, 143, "reading back"),
        (signal.SIGINT, 130, "part on its way"),
        (signal.SIGINT, 130, "reading back"),
    ],
)
def test_asked_to_stop(installation: Installation, proxy: Proxy, stage: str, number: signal.Signals, code: int) -> None:
    """It cleans up itself; but of an upload whose beginning it was not told of, the next run does."""
    method, contains, done_upstream, backups = STAGES[stage]
    held = proxy.hold(method, contains, done_upstream=done_upstream)
    running = installation.start("backup", "run")
    held.wait_until_seen()
    running.process.send_signal(number)
    # What is in flight is waited for, so that it cannot arrive after the upload was aborted.
    held.release()
    ended = running.end()
    assert ended.code == code, ended
    assert "Traceback" not in ended.err
    installation.require_clean(running, backups=backups)
    assert len(installation.uploads()) == (1 if contains.endswith("uploads") else 0)
    installation.require_recovery(backups=backups)
