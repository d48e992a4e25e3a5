"""Every fault strikes while PayMe's application writes, and on a database that does not fit into a pipe."""

import random
import signal
import subprocess
import sys
from collections.abc import Iterator

import pytest
from botocore.config import Config

from payme_ops.foundation import objectstore
from sandbox.postgres import PROJECT, die_with_parent
from tests.support.site import Site
from tests.support.waiting import eventually

# Incompressible, so that pg_dump is still writing while the first bytes are on their way: a pipe holds one MiB.
_BALLAST = (
    "CREATE TABLE ballast AS SELECT i AS id, gen_random_bytes(1024) AS data FROM generate_series(1, 6000) AS i;"
    "ALTER TABLE ballast OWNER TO payme_owner"
)


def _transactions(site: Site) -> int:
    with site.admin() as admin:
        row = admin.execute("SELECT count(*) FROM transactions").fetchone()
    assert row is not None
    return int(row[0])


@pytest.fixture(scope="module", autouse=True)
def _busy(site: Site) -> Iterator[None]:
    """Ballast, and writers from the first fault of a file to the last; they go on after a restart of the server."""
    with site.admin() as admin:
        admin.execute(_BALLAST)
    begun_with = _transactions(site)
    traffic = subprocess.Popen(
        [sys.executable, "-m", "sandbox.payme_db.traffic", "--service", "payme_app"],
        cwd=PROJECT,
        env=dict(site.world.env),
        stdout=subprocess.DEVNULL,
        preexec_fn=die_with_parent(signal.SIGKILL),
    )
    try:
        eventually(lambda: _transactions(site) > begun_with, "the writers")
        yield
        assert traffic.poll() is None
        last = _transactions(site)
        eventually(lambda: _transactions(site) > last, "the writers to write on")
    finally:
        traffic.kill()
        traffic.wait()
        with site.admin() as admin:
            admin.execute("DROP TABLE ballast")


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Within this process: one more try of a failing request instead of four, and short waits between attempts."""
    config = objectstore.CLIENT_CONFIG.merge(Config(retries={"mode": "standard", "max_attempts": 1}, read_timeout=2))
    monkeypatch.setattr(objectstore, "CLIENT_CONFIG", config)
    monkeypatch.setattr(random, "uniform", lambda *_: 0.2)
