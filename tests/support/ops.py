"""A fresh ops database for one test, and a process that holds a lease in it."""

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import psycopg

from payme_ops.foundation import opsdb
from sandbox.postgres import PROJECT, Cluster

_HOLDER = """
import sys
from payme_ops.foundation import lease
conninfo, name, holder = sys.argv[1:]
with lease.hold(conninfo, name, holder) as held:
    print(held.token, flush=True)
    sys.stdin.read()
"""


@contextmanager
def database(cluster: Cluster, name: str) -> Iterator[str]:
    """The conninfo of an empty database that is dropped with the block."""
    with psycopg.connect(cluster.conninfo(), autocommit=True) as admin:
        admin.execute(f'CREATE DATABASE "{name}" TEMPLATE template0')
        try:
            yield cluster.conninfo(name)
        finally:
            admin.execute(f'DROP DATABASE "{name}" WITH (FORCE)')


def connection(cluster: Cluster, dbname: str = "postgres") -> dict[str, object]:
    """The Airflow connection to a database of the cluster, as its superuser."""
    where = {"conn_type": "postgres", "host": "127.0.0.1", "port": cluster.port, "schema": dbname}
    return {**where, "login": cluster.superuser, "password": cluster.password}


@contextmanager
def ops_database(cluster: Cluster) -> Iterator[str]:
    """The conninfo of a migrated ops database."""
    with database(cluster, "ops_test") as conninfo:
        opsdb.migrate(conninfo)
        yield conninfo


@dataclass(frozen=True)
class Holder:
    """A process that holds a lease."""

    process: "subprocess.Popen[str]"
    token: int


@contextmanager
def holder(conninfo: str, name: str, run: str) -> Iterator[Holder]:
    """Another process that holds the lease until it is killed or the block ends."""
    process = subprocess.Popen(
        [sys.executable, "-c", _HOLDER, conninfo, name, run],
        cwd=PROJECT / "plugins",
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    try:
        yield Holder(process, int(process.stdout.readline()))
    finally:
        process.kill()
        process.communicate()
