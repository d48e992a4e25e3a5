"""A streaming standby of a site's server."""

import secrets
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager

from psycopg import sql

from sandbox import postgres
from tests.support.site import SETTINGS, Site
from tests.support.waiting import eventually

_SETTINGS = {**SETTINGS, "wal_retrieve_retry_interval": "200ms"}  # after a loss it is soon back


@contextmanager
def streaming(site: Site, slot: str = "") -> Iterator[postgres.Cluster]:
    """One that runs, gone after the block; its WAL is kept in the slot, if it has one."""
    password = secrets.token_urlsafe(12)
    folder = site.cluster.data_dir.with_name("standby")
    cluster = postgres.Cluster(
        site.cluster.bin_dir, folder, postgres.free_port(), site.cluster.superuser, site.cluster.password
    )
    with site.admin("postgres") as admin:
        admin.execute(sql.SQL("CREATE ROLE replicator REPLICATION LOGIN PASSWORD {}").format(sql.Literal(password)))
    try:
        # The folder above belongs to the server's user only where that is us.
        folder.mkdir(mode=0o700)
        if who := postgres.unprivileged():
            shutil.chown(folder, who["user"], who["group"])
        primary = site.cluster.conninfo("postgres", "replicator", password)
        program = site.cluster.bin_dir / "pg_basebackup"
        kept = ["-C", "-S", slot] if slot else []
        subprocess.run(
            [program, "-D", folder, "-R", "-X", "stream", "-c", "fast", *kept, "-d", primary],
            check=True,
            cwd="/",
            **postgres.unprivileged(),
        )
        start(site, cluster)
        yield cluster
    finally:
        if postgres.server_pid(cluster):
            postgres.stop(cluster, "immediate")
        shutil.rmtree(folder, ignore_errors=True)
        with site.admin("postgres") as admin:
            if slot:
                drop = "SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots WHERE slot_name = %s"
                unused = "SELECT FROM pg_replication_slots WHERE active AND slot_name = %s"
                eventually(lambda: admin.execute(unused, [slot]).rowcount == 0, "the standby's end")
                admin.execute(drop, [slot])
            admin.execute("DROP ROLE IF EXISTS replicator")


def start(site: Site, standby: postgres.Cluster) -> None:
    """Start it (again)."""
    postgres.start(
        standby.data_dir,
        bin_dir=standby.bin_dir,
        port=standby.port,
        password=standby.password,
        settings=_SETTINGS,
        log=site.world.root / "standby.log",
    )
