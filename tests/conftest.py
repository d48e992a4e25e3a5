"""Real parts for the tests, started when the first test asks for them and stopped at the end."""

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:  # unit tests need none of it, and start faster without
    from sandbox.postgres import Cluster
    from tests.support.installation import Installation
    from tests.support.phones import Phones
    from tests.support.proxy import Proxy
    from tests.support.site import Site

SERVERS = ("wheel", "debian15")

# A job in a shell's background ignores SIGINT, and so would every process that a test starts and interrupts.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def sites() -> "Iterator[Callable[[str], Site]]":
    """Sites by kind of server, each started once."""
    from sandbox import postgres
    from tests.support import site

    started: dict[str, Site] = {}
    with ExitStack() as stack:

        def get(server: str) -> "Site":
            if server not in started:
                bin_dir = postgres.wheel_bin_dir() if server == "wheel" else postgres.debian_bin_dir(15)
                if bin_dir is None:
                    missing = "PostgreSQL 15 is not in /usr/lib/postgresql/15/bin; install postgresql-15"
                    if os.environ.get("CI") == "true":
                        pytest.fail(missing)
                    pytest.skip(missing)
                started[server] = stack.enter_context(site.running(bin_dir))
            return started[server]

        yield get


@pytest.fixture(scope="session")
def site(sites: "Callable[[str], Site]") -> "Site":
    """PayMe's world on the wheel's PostgreSQL."""
    return sites("wheel")


@pytest.fixture(scope="session", params=SERVERS)
def each_site(request: pytest.FixtureRequest, sites: "Callable[[str], Site]") -> "Site":
    """PayMe's world on the wheel's PostgreSQL and on Debian's 15, one after the other."""
    return sites(request.param)


@pytest.fixture(scope="session")
def cluster(each_site: "Site") -> "Cluster":
    """A PostgreSQL cluster of each version."""
    return each_site.cluster


@pytest.fixture
def installation(site: "Site", tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> "Iterator[Installation]":
    """payme-ops on the wheel's PostgreSQL with a bucket of its own; this process's environment is its own, too."""
    from tests.support.installation import Installation

    with closing(Installation(site, tmp_path, monkeypatch)) as made:
        yield made


@pytest.fixture
def each_installation(each_site: "Site", tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> "Iterator[Installation]":
    """The same on each PostgreSQL version."""
    from tests.support.installation import Installation

    with closing(Installation(each_site, tmp_path, monkeypatch)) as made:
        yield made


@pytest.fixture
def proxy(installation: "Installation") -> "Iterator[Proxy]":
    """A proxy in front of the installation's store that can fail in every way."""
    from tests.support.proxy import proxy_before

    with proxy_before(installation.site.world.ports["s3"]) as running:
        installation.reach_store_at(running.url)
        yield running


@pytest.fixture
def phones(installation: "Installation") -> "Iterator[Phones]":
    """A copy of PayMe's database whose phone numbers are to be encrypted, on the wheel's PostgreSQL."""
    from tests.support import phones

    with phones.database(installation.site) as made:
        yield made


@pytest.fixture
def each_phones(each_installation: "Installation") -> "Iterator[Phones]":
    """The same on each PostgreSQL version."""
    from tests.support import phones

    with phones.database(each_installation.site) as made:
        yield made
