"""Throw-away places for restores: folders that go away, and a PostgreSQL server that lives as long as one test.

A folder is locked by the process that made it. Whatever a killed run left behind, an opened archive or a server that
still runs, is found by the next run, since its lock is free, and removed before anything else.

The server is reached through a unix socket only. When we are root it runs as another user, without our environment,
so that nothing a restored dump brings along can read the identity that opened it.
"""

import contextlib
import fcntl
import os
import pwd
import secrets
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psycopg
from psycopg.conninfo import make_conninfo

from payme_ops.foundation.errors import NotFound, SettingsError, Unavailable
from payme_ops.foundation.objectstore import MIB
from payme_ops.foundation.postgres import client_tool
from payme_ops.foundation.progress import Report, size
from payme_ops.foundation.stop import end_with_parent

# No role of any source has this name: the source's superuser is restored like every other role.
SUPERUSER = "payme_ops_scratch"
_PREFIX = "payme-ops-"
_LOCK = "lock"
_START_SECONDS = 60
_REMOVE_TRIES, _REMOVE_EVERY_SECONDS = 50, 0.2
WAL_BYTES = 4 * 1024 * MIB
_SOCKET_LIMIT = 107  # bytes of a socket's path, Linux
# Nothing here has to outlive a crash. Measured on 2 cores: three quarters of the time of a server's defaults.
_SETTINGS = {
    "listen_addresses": "",
    "fsync": "off",
    "synchronous_commit": "off",
    "full_page_writes": "off",
    "wal_level": "minimal",
    "max_wal_senders": "0",
    "max_wal_size": f"{WAL_BYTES // MIB}MB",
    "autovacuum": "off",
    "archive_mode": "off",
    "shared_buffers": "256MB",
    "maintenance_work_mem": "256MB",
    "max_connections": "20",
    "max_locks_per_transaction": "1024",
    # Rows do not go into the log.
    "log_error_verbosity": "terse",
    "log_min_error_statement": "panic",
    "log_min_messages": "error",
}


@contextmanager
def folder(scratch_dir: Path, *, needed_bytes: int, report: Report) -> Iterator[Path]:
    """A folder of mode 0700 below `scratch_dir`, gone with the block. Removes first what dead runs left there.

    Raises Unavailable when less than `needed_bytes` are free.
    """
    _make(scratch_dir)
    _clear(scratch_dir, report)
    free = shutil.disk_usage(scratch_dir).free
    if free < needed_bytes:
        raise Unavailable(
            f"not enough room in {scratch_dir}",
            expected=f"{size(needed_bytes)} free",
            found=size(free),
            remedy="make room there, or name another folder in PAYME_OPS__BACKUP__SCRATCH_DIR",
        )
    made = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=scratch_dir))
    lock = (made / _LOCK).open("w")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield made
    finally:
        shutil.rmtree(made, ignore_errors=True)
        lock.close()


@contextmanager
def server(place: Path, major: int, client_dirs: list[str]) -> Iterator[str]:
    """A server of that major version with its data in the folder `place`; the superuser's conninfo.

    `place` is made by `folder`. Raises NotFound without the server's programs, SettingsError when its user cannot
    reach them, Unavailable when it does not start.
    """
    who = _unprivileged()
    base, data = place / "server", place / "server" / "data"
    socket = base / ".s.PGSQL.5432"
    if len(bytes(socket)) > _SOCKET_LIMIT:
        raise SettingsError(
            f"{socket} is too long for a unix socket",
            expected=f"at most {_SOCKET_LIMIT} bytes",
            found=f"{len(bytes(socket))}",
            remedy="name a shorter folder in PAYME_OPS__BACKUP__SCRATCH_DIR",
        )
    base.mkdir(mode=0o700)
    if who:
        os.chown(base, who["user"], who["group"])
        place.chmod(0o711)  # its user has to pass through; what lies beside is 0600 or 0700
    password = secrets.token_urlsafe(24)
    _initdb(data, client_tool("initdb", major, client_dirs), password, who)
    conninfo = make_conninfo(host=str(base), port=5432, user=SUPERUSER, password=password, dbname="postgres")
    process = _start(client_tool("postgres", major, client_dirs), base, data, who)
    try:
        _await(conninfo, process, base / "log")
        yield conninfo
    finally:
        process.send_signal(signal.SIGQUIT)
        with suppress(subprocess.TimeoutExpired):
            process.wait(20)
        process.kill()
        process.wait()


def _make(scratch_dir: Path) -> None:
    try:
        if not scratch_dir.exists():
            scratch_dir.mkdir(parents=True, exist_ok=True)
            scratch_dir.chmod(0o711)  # whatever the umask: the server's user has to pass through
    except OSError as error:
        raise SettingsError(
            f"{scratch_dir} cannot be made",
            expected="PAYME_OPS__BACKUP__SCRATCH_DIR to name a folder that this worker may write to",
            found=type(error).__name__,
        ) from None


def _clear(scratch_dir: Path, report: Report) -> None:
    for left in scratch_dir.glob(f"{_PREFIX}*"):
        try:
            lock = (left / _LOCK).open("r+")
        except OSError:  # just being made, or just gone
            continue
        with lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                continue  # its run lives
            _end_server(left / "server")
            if _remove(left):
                report(f"removed {left.name}, left by a run that was killed")


def _remove(left: Path) -> bool:
    """The lock goes last: what cannot be removed yet, a dying server still writes, is found again by the next run."""
    for _ in range(_REMOVE_TRIES):
        for child in [child for child in left.iterdir() if child.name != _LOCK]:
            if child.is_dir():
                shutil.rmtree(child, ignore_errors=True)
            else:
                child.unlink(missing_ok=True)
        if [child.name for child in left.iterdir()] == [_LOCK]:
            shutil.rmtree(left, ignore_errors=True)
            return True
        time.sleep(_REMOVE_EVERY_SECONDS)
    return False


def _end_server(base: Path) -> None:
    """End a server that outlived its run; only if it is still the one of this folder."""
    try:
        pid = int((base / "data" / "postmaster.pid").read_text().splitlines()[0])
        if os.path.realpath(f"/proc/{pid}/cwd") != os.path.realpath(base / "data"):
            return
        os.kill(pid, signal.SIGQUIT)
        for _ in range(200):
            os.kill(pid, 0)
            time.sleep(0.05)
        os.kill(pid, signal.SIGKILL)
    except (OSError, ValueError, IndexError):
        return


def _unprivileged() -> dict[str, Any]:
    """Popen arguments that drop root's power; empty when there is none to drop."""
    if os.geteuid() != 0:
        return {}
    try:
        entry = pwd.getpwnam("nobody")
    except KeyError:
        raise NotFound(
            "PostgreSQL does not run as root",
            expected="a user nobody to run it as",
            remedy="run this worker as an ordinary user, or add that user",
        ) from None
    return {"user": entry.pw_uid, "group": entry.pw_gid, "extra_groups": []}


def _environment() -> dict[str, str]:
    return {"PATH": os.defpath, "LC_ALL": "C", "TZ": "UTC"}


def _initdb(data: Path, initdb: Path, password: str, who: dict[str, Any]) -> None:
    read_end, write_end = os.pipe()  # the password in no file and on no command line
    try:
        if who:
            os.fchown(read_end, who["user"], who["group"])
        os.write(write_end, password.encode())
        os.close(write_end)
        ended = subprocess.run(
            [
                *(initdb, "--pgdata", data, "--username", SUPERUSER, "--auth", "scram-sha-256"),
                *(f"--pwfile=/dev/fd/{read_end}", "--encoding", "UTF8", "--no-locale", "--no-sync"),
            ],
            pass_fds=[read_end],
            cwd="/",
            env=_environment(),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            check=False,
            **who,
        )
    except PermissionError:
        raise _unreachable(initdb) from None
    finally:
        os.close(read_end)
    if ended.returncode != 0:
        said = ended.stderr.decode(errors="replace").strip()[-300:]
        raise Unavailable(
            "initdb failed",
            expected="a new cluster",
            found=f"exit code {ended.returncode}: {said}",
            remedy="as root it runs as nobody, who has to pass through every folder above the scratch folder",
        )


def _start(postgres: Path, base: Path, data: Path, who: dict[str, Any]) -> "subprocess.Popen[bytes]":
    options = {**_SETTINGS, "unix_socket_directories": str(base), "unix_socket_permissions": "0700"}
    arguments = [word for name, value in options.items() for word in ("-c", f"{name}={value}")]
    with (base / "log").open("wb") as log:
        return subprocess.Popen(
            [postgres, "-D", data, "-p", "5432", *arguments],
            cwd=data,
            env=_environment(),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
            preexec_fn=end_with_parent(signal.SIGQUIT),  # or, elsewhere, the next run ends it
            **who,
        )


def _await(conninfo: str, process: "subprocess.Popen[bytes]", log: Path) -> None:
    deadline = time.monotonic() + _START_SECONDS
    while process.poll() is None and time.monotonic() < deadline:
        with contextlib.suppress(psycopg.OperationalError), psycopg.connect(conninfo, connect_timeout=5):
            return
        time.sleep(0.05)
    said = log.read_text(errors="replace").strip().splitlines()[-3:]
    raise Unavailable(
        "the throw-away server does not start",
        expected=f"a connection within {_START_SECONDS} s",
        found=" / ".join(said)[:300] or "it said nothing",
        remedy="look at the room and the memory of this worker",
    )


def _unreachable(path: Path) -> SettingsError:
    return SettingsError(
        f"the user nobody cannot run {path}",
        expected="PostgreSQL's programs where every user can reach them",
        remedy="install them outside root's home, or correct PAYME_OPS__POSTGRES__CLIENT_DIRS",
    )
