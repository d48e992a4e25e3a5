"""One command, measured: wall time, CPU of everybody who worked for it, memory of its process tree.

CPU seconds are firm on a shared machine, wall seconds are not; the CPU that strangers took meanwhile tells how far
the wall seconds can be trusted. Linux only (/proc).
"""

import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

SAMPLE_SECONDS = 0.02
_PAGE = os.sysconf("SC_PAGE_SIZE")
_TICK = os.sysconf("SC_CLK_TCK")


class CommandFailed(RuntimeError):
    """An arm did not succeed, so there is nothing to compare."""


@dataclass(frozen=True)
class Sample:
    """What one run of one arm took. Memory: resident, of the whole tree; shared pages count once for each process."""

    wall_seconds: float
    client_cpu_seconds: float
    server_cpu_seconds: float
    store_cpu_seconds: float
    strangers_cpu_seconds: float
    peak_rss_bytes: int
    stored_bytes: int

    @property
    def cpu_seconds(self) -> float:
        """Client and PostgreSQL together; the store would be another machine."""
        return self.client_cpu_seconds + self.server_cpu_seconds


def run(
    command: Sequence[str | Path],
    *,
    env: Mapping[str, str],
    cwd: Path,
    log: Path,
    server_pid: int,
    store_pid: int,
    stored_bytes: Callable[[], int],
) -> Sample:
    """Run `command` to its end; what it says goes to `log`, its product to /dev/null or wherever it puts it.

    Raises CommandFailed with the log's last lines.
    """
    server, store, everybody = _tree_cpu(server_pid), _tree_cpu(store_pid), _machine_cpu()
    own = time.process_time()
    with log.open("wb") as out:
        start = time.monotonic()
        process = subprocess.Popen(
            command,
            env=env,
            cwd=cwd,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=out,
            start_new_session=True,
        )
        watch = _Watch(process.pid)
        try:
            _, status, usage = os.wait4(process.pid, 0)  # with everything it has waited for itself
        except BaseException:  # Ctrl-C: its children too
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            raise
        wall = time.monotonic() - start
    process.returncode = os.waitstatus_to_exitcode(status)
    peak = watch.end()
    if process.returncode != 0:
        tail = "\n".join(log.read_text(errors="replace").splitlines()[-10:])
        raise CommandFailed(f"{command[0]} ended with exit code {process.returncode}, saying:\n{tail}\nSee {log}.")
    client = usage.ru_utime + usage.ru_stime
    server, store = _tree_cpu(server_pid) - server, _tree_cpu(store_pid) - store
    bench = time.process_time() - own
    strangers = _machine_cpu() - everybody - client - server - store - bench
    return Sample(wall, client, server, store, max(0.0, strangers), peak, stored_bytes())


class _Watch:
    """Resident memory of a process and its descendants, looked at every 20 ms."""

    def __init__(self, pid: int) -> None:
        self._pid, self._peak = pid, 0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def end(self) -> int:
        """The peak, bytes."""
        self._stop.set()
        self._thread.join()
        return self._peak

    def _run(self) -> None:
        while not self._stop.wait(SAMPLE_SECONDS):
            self._peak = max(self._peak, _tree_resident(self._pid))


def _tree_resident(pid: int, parent: tuple[str, str] = ("", "")) -> int:
    """Bytes of the process and all below it. Reads a few files; psutil would look at every process of the machine."""
    total = 0
    with suppress(FileNotFoundError, ProcessLookupError):  # ended meanwhile
        process = Path(f"/proc/{pid}")
        virtual, resident, *_ = (process / "statm").read_text().split()
        memory = (str((process / "exe").readlink()), virtual)
        # Between vfork and exec a child runs in its parent's memory.
        if memory != parent:
            total = int(resident) * _PAGE
        for children in process.glob("task/*/children"):
            total += sum(_tree_resident(int(child), memory) for child in children.read_text().split())
    return total


def _tree_cpu(pid: int) -> float:
    """CPU seconds of a server: its own, of children that live, and of those it has waited for."""
    server = psutil.Process(pid)
    while True:
        before, seconds = server.cpu_times(), 0.0
        for child in server.children():
            with suppress(psutil.NoSuchProcess):
                times = child.cpu_times()
                seconds += times.user + times.system
        after = server.cpu_times()
        # A child that was waited for meanwhile (the session of a client that has just ended) is in neither sum.
        if (before.children_user, before.children_system) == (after.children_user, after.children_system):
            return float(seconds + sum(after[:4]))


def _machine_cpu() -> float:
    """CPU seconds spent on this machine since its start, those that its host took away included."""
    user, nice, system, _idle, _iowait, irq, softirq, steal = map(
        int, Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]
    )
    return (user + nice + system + irq + softirq + steal) / _TICK
