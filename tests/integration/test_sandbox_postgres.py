"""The sandbox's PostgreSQL: it starts anywhere, leaks nothing into its log and never outlives its parent."""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest
from psycopg import sql

from sandbox import postgres

BIN_DIRS = [
    pytest.param(postgres.wheel_bin_dir(), id="wheel"),
    pytest.param(
        postgres.debian_bin_dir(15),
        id="debian-15",
        marks=pytest.mark.skipif(postgres.debian_bin_dir(15) is None, reason="PostgreSQL 15 is not installed"),
    ),
]


@pytest.fixture(params=BIN_DIRS)
def cluster(request: pytest.FixtureRequest) -> Iterator[postgres.Cluster]:
    with postgres.temporary_cluster(bin_dir=request.param) as running:
        yield running


def log_of(cluster: postgres.Cluster) -> Path:
    return cluster.data_dir.with_name("data.log")


def await_end(pid: int) -> None:
    deadline = time.monotonic() + 20
    while postgres._alive(pid):
        assert time.monotonic() < deadline, f"process {pid} is still alive"
        time.sleep(0.02)


def restart(cluster: postgres.Cluster) -> postgres.Cluster:
    return postgres.start(
        cluster.data_dir,
        bin_dir=cluster.bin_dir,
        port=cluster.port,
        password=cluster.password,
        settings=postgres.TEST_SETTINGS,
    )


def test_extensions_checksums_and_loopback(cluster: postgres.Cluster) -> None:
    with psycopg.connect(cluster.conninfo(), autocommit=True) as conn:
        conn.execute("CREATE EXTENSION pgcrypto")
        conn.execute("CREATE TABLE note (body text COMPRESSION lz4)")
        conn.execute("INSERT INTO note SELECT repeat('payme ', 10000)")
        assert conn.execute("SELECT pg_column_compression(body) FROM note").fetchone() == ("lz4",)
        shown = {
            name: conn.execute(f"SHOW {name}").fetchone()[0]  # type: ignore[index]
            for name in ("data_checksums", "listen_addresses", "unix_socket_directories", "server_encoding")
        }
    assert shown == {
        "data_checksums": "on",
        "listen_addresses": "127.0.0.1",
        "unix_socket_directories": "",
        "server_encoding": "UTF8",
    }


def test_pg_dump_of_the_wheel_compresses_with_zstd_and_lz4() -> None:
    with postgres.temporary_cluster() as cluster:
        for method in ("zstd:1", "lz4"):
            dump = subprocess.run(
                [cluster.bin_dir / "pg_dump", "-Fc", f"--compress={method}", "-d", cluster.conninfo()],
                capture_output=True,
                check=True,
            )
            assert dump.stdout.startswith(b"PGDMP")


def test_every_connection_needs_the_password(cluster: postgres.Cluster) -> None:
    with pytest.raises(psycopg.OperationalError, match="no password supplied"):
        psycopg.connect(cluster.conninfo(user="postgres"), passfile=os.devnull)
    with pytest.raises(postgres.ClusterError, match="another password"):
        postgres.accepts(
            postgres.Cluster(cluster.bin_dir, cluster.data_dir, cluster.port, "postgres", "not the password")
        )


def test_server_log_holds_no_row_data(cluster: postgres.Cluster) -> None:
    phone = "+254700999888"
    with psycopg.connect(cluster.conninfo(), autocommit=True) as conn:
        conn.execute("CREATE TABLE users (phone_number text CHECK (length(phone_number) < 5) UNIQUE)")
        with pytest.raises(psycopg.errors.CheckViolation):
            conn.execute(sql.SQL("INSERT INTO users VALUES ({})").format(phone))
        with pytest.raises(psycopg.errors.CheckViolation), conn.cursor().copy("COPY users FROM STDIN") as copy:
            copy.write(phone)
    log = log_of(cluster).read_text()
    assert "violates check constraint" in log
    assert phone not in log


def test_killed_server_starts_again_with_its_data(cluster: postgres.Cluster) -> None:
    with psycopg.connect(cluster.conninfo(), autocommit=True) as conn:
        conn.execute("CREATE TABLE kept AS SELECT 7 AS n")
    # A backend in the middle of a query does not notice by itself that its server is gone.
    busy = psycopg.connect(cluster.conninfo(), autocommit=True)
    busy.pgconn.send_query(b"SELECT sum(n) FROM generate_series(1, 1000000000) n")
    with psycopg.connect(cluster.conninfo(), autocommit=True) as conn:
        state = "SELECT state FROM pg_stat_activity WHERE pid = %s"
        while conn.execute(state, [busy.info.backend_pid]).fetchone() != ("active",):
            time.sleep(0.02)
    postgres.kill(cluster)
    busy.close()
    restart(cluster)
    with psycopg.connect(cluster.conninfo()) as conn:
        assert conn.execute("SELECT n FROM kept").fetchone() == (7,)
    assert "database system was not properly shut down" in log_of(cluster).read_text()


def test_stop_ends_the_server_and_can_be_repeated(cluster: postgres.Cluster) -> None:
    pid = postgres.server_pid(cluster)
    assert pid is not None
    postgres.stop(cluster)
    assert not postgres._alive(pid)
    postgres.stop(cluster)
    assert "database system is shut down" in log_of(cluster).read_text()


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only Linux tells children of a parent's death")
def test_server_ends_when_its_parent_is_killed() -> None:
    parent = subprocess.Popen(
        [
            sys.executable,
            "-c",
            "import time\n"
            "from sandbox import postgres\n"
            "with postgres.temporary_cluster() as cluster:\n"
            "    print(postgres.server_pid(cluster), cluster.data_dir.parent, flush=True)\n"
            "    time.sleep(600)\n",
        ],
        cwd=postgres.PROJECT,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert parent.stdout is not None
    pid, folder = parent.stdout.readline().split()
    try:
        assert postgres._alive(int(pid))
        parent.send_signal(signal.SIGKILL)
        await_end(int(pid))
    finally:
        parent.kill()
        parent.wait()
        parent.stdout.close()
        shutil.rmtree(folder)


def test_cluster_of_another_major_is_refused(cluster: postgres.Cluster) -> None:
    postgres.stop(cluster)
    (cluster.data_dir / "PG_VERSION").write_text("9\n")
    with pytest.raises(postgres.ClusterError, match="was made by PostgreSQL 9"):
        restart(cluster)


def test_port_in_use_is_named(cluster: postgres.Cluster) -> None:
    with pytest.raises(postgres.ClusterError, match=f"port {cluster.port}"):
        postgres.start(
            cluster.data_dir.with_name("second"), bin_dir=cluster.bin_dir, port=cluster.port, password="another"
        )


@pytest.mark.skipif(os.geteuid() != 0, reason="only root has privileges to drop")
def test_root_finds_a_folder_that_the_server_can_reach(tmp_path: Path) -> None:
    assert postgres.unprivileged()["user"] != 0
    private = tmp_path / "private"
    private.mkdir(mode=0o700)
    assert not postgres.reachable(private)
    home = postgres.data_home(private)
    try:
        assert home != private
        assert postgres.reachable(home)
        with pytest.raises(postgres.ClusterError, match="cannot reach"):
            postgres.init(private / "data", bin_dir=postgres.wheel_bin_dir(), password="p")
    finally:
        for folder in (home, home.parent, home.parent.parent):
            with contextlib.suppress(OSError):  # not empty: a demo lives there
                folder.rmdir()
