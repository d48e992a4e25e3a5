"""Airflow's metadata database on a site's PostgreSQL, made by Airflow itself, without an Airflow that runs."""

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager

import psycopg

from tests.support.site import Site


def make(site: Site) -> None:
    """`airflow db migrate` in the site's database `airflow`, unless it was done there."""
    world = site.world
    with connected(site) as connection:
        done = connection.execute("SELECT to_regclass('log')").fetchone()
    if done and done[0]:
        return
    with tempfile.TemporaryDirectory() as home:
        login = f"airflow:{world.secrets['postgres.airflow']}@127.0.0.1:{world.ports['postgres']}"
        env = {
            "PATH": os.environ["PATH"],
            "AIRFLOW_HOME": home,
            "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": f"postgresql+psycopg2://{login}/airflow",
        }
        subprocess.run([sys.executable, "-m", "airflow", "db", "migrate"], env=env, check=True, capture_output=True)


@contextmanager
def connected(site: Site) -> Iterator[psycopg.Connection]:
    """Its owner's autocommit connection."""
    with psycopg.connect(site.world.conninfo("airflow", "airflow"), autocommit=True) as connection:
        yield connection


@contextmanager
def emptied(site: Site) -> Iterator[psycopg.Connection]:
    """The same, with nothing in the tables that tests write to."""
    with connected(site) as connection:
        connection.execute("TRUNCATE log RESTART IDENTITY")
        connection.execute("TRUNCATE dag, dag_run, trigger, asset, job CASCADE")
        yield connection
