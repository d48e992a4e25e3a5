"""PayMe's world for tests: one PostgreSQL of one major version and one S3, in a folder of its own that goes away."""

import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING

import psycopg
from psycopg import sql

from sandbox import postgres, s3, world
from sandbox.http import silent
from sandbox.payme_db.generate import DATABASE
from tests.support.waiting import eventually

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

UNTOUCHED = "payme_untouched"
SETTINGS = {
    **postgres.TEST_SETTINGS,
    "log_statement": "none",
    "log_lock_waits": "on",
    "deadlock_timeout": "300ms",
    "max_prepared_transactions": "2",
}


@dataclass(frozen=True)
class Site:
    """A world whose services run."""

    world: world.World

    @property
    def cluster(self) -> postgres.Cluster:
        """Its PostgreSQL."""
        return self.world.cluster

    @property
    def log(self) -> Path:
        """PostgreSQL's log."""
        return self.world.root / "postgres.log"

    @cached_property
    def store(self) -> "S3Client":
        """A client of its S3 that may do everything. Making one takes a while."""
        return s3.client(self.world.url("s3"))

    @cached_property
    def copy_store(self) -> "S3Client":
        """The same in the other region."""
        return s3.client(self.world.url("s3"), world.COPY_REGION)

    @contextmanager
    def admin(self, dbname: str = "payme") -> Iterator[psycopg.Connection]:
        """A superuser's autocommit connection."""
        with psycopg.connect(self.cluster.conninfo(dbname), autocommit=True) as connection:
            yield connection

    def copy_payme(self, name: str) -> None:
        """PayMe's database of size `test` (2,000 users) once more, under that name, without what tests wrote to it."""
        self._copy(UNTOUCHED, name)

    def keep_untouched(self) -> None:
        """Make what is copied: of its own, since one that is written to, or connected to, is no template."""
        self._copy(DATABASE, UNTOUCHED)

    def _copy(self, template: str, name: str) -> None:
        with self.admin("postgres") as connection:
            connection.execute(
                sql.SQL("CREATE DATABASE {} OWNER payme_owner TEMPLATE {}").format(
                    sql.Identifier(name), sql.Identifier(template)
                )
            )

    def start_postgres(self) -> None:
        """Start the server (again)."""
        cluster = self.cluster
        postgres.start(
            cluster.data_dir,
            bin_dir=cluster.bin_dir,
            port=cluster.port,
            password=cluster.password,
            settings=SETTINGS,
            log=self.log,
        )


@contextmanager
def running(bin_dir: Path) -> Iterator[Site]:
    """A site for the block, with PayMe's data of size `test`."""
    folder = Path(tempfile.mkdtemp(prefix="payme-site-"))
    folder.chmod(0o711)  # the server's user has to pass through
    try:
        built = world.build(folder / "world")
        site = Site(replace(built, cluster=replace(built.cluster, bin_dir=bin_dir)))
        site.start_postgres()
        try:
            with _s3(site):
                world.prepare(site.world, size="test")
                site.keep_untouched()
                yield site
        finally:
            postgres.stop(site.cluster, "immediate")
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def _s3(site: Site) -> Iterator[None]:
    port, state = site.world.ports["s3"], site.world.root / "s3"
    process = subprocess.Popen(
        [sys.executable, "-m", "sandbox.s3", "--port", str(port), "--state", str(state)],
        cwd=postgres.PROJECT,
        stdout=subprocess.DEVNULL,
        preexec_fn=postgres.die_with_parent(signal.SIGKILL),
    )
    try:
        ready = partial(silent, site.world.url("s3") + "/moto-api/")
        eventually(lambda: process.poll() is not None or ready() is None, "the S3 server")
        assert process.poll() is None, "the S3 server ended"
        yield
    finally:
        process.kill()  # nothing has to be saved
        process.wait()
