"""Start processes in order, wait until each is ready, and leave none behind.

A component runs in a session of its own, so that Ctrl-C in the terminal reaches this process only and stopping
follows our order. A small guard process holds the read end of a pipe whose write end is ours: when we are gone,
however that came about, SIGKILL included, it reads end-of-file and stops what is left in the same order. (The
kernel's parent-death signal would do less: it is tied to the thread that spawned, is lost when the program
changes its uid, knows no order, and exists on Linux only.)
"""

import contextlib
import fcntl
import functools
import os
import secrets
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType, TracebackType
from typing import IO, Any, Self

import psutil

from payme_ops.foundation.errors import PaymeOpsError

GRACE_SECONDS = 20.0  # Airflow's triggerer was seen to need 17
_POLL_SECONDS = 0.1
_TAIL_LINES = 20
_TAIL_WIDTH = 300
# Given to every component: finds those that left their session, or were born in the instant we were killed.
_MARK = "PAYME_SANDBOX_RUN"

Missing = Callable[[], str | None]
"""A ready condition: None when fulfilled, else what is still missing, in words."""


class SandboxError(PaymeOpsError):
    """A part of the sandbox did not start, died, or took too long."""


@dataclass(frozen=True)
class Process:
    """One component: what to run, when it counts as ready, how it is told to stop."""

    name: str
    argv: Sequence[str]
    env: Mapping[str, str]
    ready: Missing = lambda: None
    within_seconds: float = 60.0
    stop_signal: signal.Signals = signal.SIGTERM
    cwd: Path | None = None
    popen: Mapping[str, Any] = field(default_factory=dict)  # user=, group=, extra_groups=


@dataclass(frozen=True)
class _Child:
    process: Process
    popen: "subprocess.Popen[bytes]"
    log: Path


class Supervisor:
    """Owns the running components of one sandbox folder; use as a context manager, from the main thread.

    `state` receives logs/ and a lock file: a second supervisor on the same folder is refused.
    `say` is told in plain words what is being waited for.
    """

    def __init__(self, state: Path, say: Callable[[str], None] = lambda _: None) -> None:
        self._state = state
        self._say = say
        self._run = secrets.token_hex(8)
        self._groups: list[list[_Child]] = []
        self._hurry = False
        self._guard: subprocess.Popen[bytes] | None = None
        self._lock: IO[str] | None = None
        self._handlers: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Self:
        logs = self._state / "logs"
        self._state.mkdir(parents=True, exist_ok=True)
        logs.mkdir(mode=0o700, exist_ok=True)
        self._lock = take_lock(self._state, self._say)
        with (logs / "guard.log").open("wb") as log:
            self._guard = subprocess.Popen(
                [sys.executable, "-m", "sandbox.supervisor", self._run],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                # The guard shares the lock: the folder is free only when the last component is gone.
                pass_fds=[self._lock.fileno()],
                cwd=Path(__file__).parents[1],
            )
        self._catch_signals()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self.stop()
        finally:
            for number, handler in self._handlers.items():
                signal.signal(number, handler)
            if self._lock is not None:
                self._lock.close()

    def _catch_signals(self) -> None:
        if threading.current_thread() is not threading.main_thread():
            return
        # SIGINT too: a shell script's background jobs are born with it ignored. SIGHUP not if ignored: nohup.
        handlers = {signal.SIGINT: signal.default_int_handler, signal.SIGTERM: _leave}
        if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
            handlers[signal.SIGHUP] = _leave
        self._handlers = {number: signal.signal(number, handler) for number, handler in handlers.items()}

    def start(self, *processes: Process) -> None:
        """Start all at once, return when each is ready; the next call's processes may rely on these.

        Raises SandboxError when one dies or is not ready in time.
        """
        group: list[_Child] = []
        self._groups.append(group)
        for process in processes:
            group.append(self._spawn(process))
        for process in processes:
            self.until(process.ready, process.name, process.within_seconds)

    def run(self, process: Process) -> None:
        """Run to its end. Raises SandboxError when it fails, or takes longer than `within_seconds`."""
        child = self._spawn(process)
        group = [child]
        self._groups.append(group)
        self.until(
            lambda: "the end of it" if child.popen.poll() is None else None,
            process.name,
            process.within_seconds,
            except_for=child,
        )
        self._groups.remove(group)
        self._tell(f"gone {child.popen.pid}")
        if child.popen.returncode:
            raise _died(child)

    def until(self, missing: Missing, what: str, within_seconds: float, except_for: _Child | None = None) -> None:
        """Wait for a condition while every component stays alive.

        Raises SandboxError when a component dies meanwhile, or the time (in seconds) is over.
        """
        begun = time.monotonic()
        said = None
        while (found := missing()) is not None:
            self.check(except_for)
            waited = time.monotonic() - begun
            if waited > within_seconds:
                raise SandboxError(
                    f"{what} is not ready after {within_seconds:.0f} s",
                    found=found,
                    remedy=f"read the logs in {_shown(self._state / 'logs')}",
                )
            if found != said:
                self._say(f"waiting for {what}: {found}")
                said = found
            time.sleep(min(1.0, _POLL_SECONDS + waited / 20))  # looking costs the one who is waited for
        self.check(except_for)  # a stranger on the same port can answer for one that died

    def check(self, except_for: _Child | None = None) -> None:
        """Raises SandboxError, with the last lines of its log, when a component has ended by itself."""
        for child in (child for group in self._groups for child in group):
            if child is not except_for and child.popen.poll() is not None:
                raise _died(child)
        if self._guard is not None and self._guard.poll() is not None:
            raise SandboxError("the guard process that prevents orphans has ended", remedy="start again")

    def stay(self) -> None:
        """Return never: watch the components until a signal or a death ends it."""
        while True:
            self.check()
            time.sleep(0.5)

    def kill(self, name: str) -> Process:
        """Kill a component with all that it has started, as a crash does; `start` may start it again.

        One that has ended is only forgotten.
        """
        group, child = next((group, one) for group in self._groups for one in group if one.process.name == name)
        if child.popen.poll() is None:
            leader = psutil.Process(child.popen.pid)
            leader.suspend()  # or it starts others while we look for its children
            for process in [*leader.children(recursive=True), leader]:
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.kill()
            child.popen.wait()
        group.remove(child)
        self._tell(f"gone {child.popen.pid}")
        return child.process

    def stop(self) -> None:
        """Stop everything in reverse order. A signal while this runs ends the patience, not the stopping."""
        if self._guard is None:
            return
        with _signals_as(self._lose_patience):
            while self._groups:
                group = self._groups[-1]
                self._say(f"stopping {', '.join(child.process.name for child in group)}")
                _stop(
                    {child.popen.pid: child.process.stop_signal for child in group},
                    alive=functools.partial(_running, group),
                    hurry=lambda: self._hurry,
                )
                for child in group:
                    child.popen.wait()
                self._groups.pop()
            _kill_leftovers(self._run, ())
            self._tell("done")
            assert self._guard.stdin is not None  # noqa: S101
            with contextlib.suppress(BrokenPipeError):
                self._guard.stdin.close()
            self._guard.wait()
            self._guard = None

    def pids(self) -> dict[str, int]:
        """Process id of each component's leader, by name."""
        return {child.process.name: child.popen.pid for group in self._groups for child in group}

    def _lose_patience(self, _number: int, _frame: FrameType | None) -> None:
        self._hurry = True

    def _spawn(self, process: Process) -> _Child:
        log = self._state / "logs" / f"{process.name}.log"
        if log.exists():
            log.replace(log.with_suffix(".log.1"))  # what the run before left is often what one needs
        with log.open("wb") as out:
            try:
                popen = subprocess.Popen(
                    list(process.argv),
                    env={**process.env, _MARK: self._run},
                    stdin=subprocess.DEVNULL,
                    stdout=out,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                    cwd=process.cwd,
                    **process.popen,
                )
            except OSError as error:
                raise SandboxError(
                    f"{process.name} cannot be started",
                    found=f"{process.argv[0]}: {error.strerror}",
                    remedy="run make setup",
                ) from error
        self._tell(f"start {len(self._groups)} {popen.pid} {int(process.stop_signal)}")
        return _Child(process, popen, log)

    def _tell(self, line: str) -> None:
        if self._guard is not None and self._guard.stdin is not None:
            with contextlib.suppress(BrokenPipeError):  # check() reports a dead guard
                self._guard.stdin.write(f"{line}\n".encode())
                self._guard.stdin.flush()


def _running(group: Sequence[_Child], pid: int) -> bool:
    return any(child.popen.pid == pid and child.popen.poll() is None for child in group)


def _died(child: _Child) -> SandboxError:
    code = child.popen.returncode
    how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with status {code}"
    lines = child.log.read_text(errors="replace").splitlines()[-_TAIL_LINES:]
    tail = "\n    ".join(line[:_TAIL_WIDTH] for line in lines) or "(nothing)"
    return SandboxError(
        f"{child.process.name} {how}",
        found=f"at the end of its log:\n    {tail}",
        remedy=f"read {_shown(child.log)}; everything else was stopped",
    )


def _shown(path: Path) -> Path:
    """Relative to where the user stands, when it is below."""
    here = Path.cwd()
    return path.relative_to(here) if path.is_relative_to(here) else path


def _leave(number: int, _frame: FrameType | None) -> None:
    raise SystemExit(128 + number)


@contextlib.contextmanager
def _signals_as(handler: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, handler) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, previous in before.items():
            signal.signal(number, previous)


def take_lock(state: Path, say: Callable[[str], None] = lambda _: None) -> IO[str]:
    """The folder's lock, held as long as any component lives. Raises SandboxError when another has it."""
    lock = (state / "supervisor.lock").open("a+")
    deadline = time.monotonic() + 3 * GRACE_SECONDS
    said = False
    while True:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            break
        except BlockingIOError:
            lock.seek(0)
            holder = lock.read().strip()
            stopping = holder.isdigit() and not psutil.pid_exists(int(holder))
            if not stopping or time.monotonic() > deadline:
                lock.close()
                raise SandboxError(
                    f"the sandbox in {_shown(state)} is in use by process {holder}",
                    remedy=f"stop it (kill {holder}), or use the one that runs",
                ) from None
            if not said:
                say("waiting for the run before, which was killed, to be cleared away")
                said = True
            time.sleep(_POLL_SECONDS)
    lock.seek(0)
    lock.truncate()
    lock.write(f"{os.getpid()}\n")
    lock.flush()
    return lock


def _stop(
    leaders: Mapping[int, signal.Signals],
    *,
    alive: Callable[[int], bool],
    hurry: Callable[[], bool] = lambda: False,
) -> None:
    """Tell each leader to stop, wait, then kill what is left of its session.

    Only the leader is told: Airflow's scheduler hung when its workers got the signal too.
    """
    for pid, number in leaders.items():
        if alive(pid):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)
    deadline = time.monotonic() + GRACE_SECONDS
    while any(alive(pid) for pid in leaders) and time.monotonic() < deadline and not hurry():
        time.sleep(_POLL_SECONDS)
    _kill_leftovers(None, leaders)


def _kill_leftovers(run: str | None, leaders: Collection[int]) -> None:
    """SIGKILL every process in the leaders' sessions, or (with `run`) marked as part of this run.

    Sessions, not process groups: Airflow puts each task in a group of its own.
    """
    for process in psutil.process_iter():
        # Gone meanwhile, or not ours to look at.
        with contextlib.suppress(psutil.Error, OSError):
            if process.pid == os.getpid() or process.status() == psutil.STATUS_ZOMBIE:
                continue
            if os.getsid(process.pid) in leaders or (run and process.environ().get(_MARK) == run):
                process.kill()


def _guard(run: str) -> None:
    """Follow the supervisor's account of what runs; when it breaks off, stop what is left."""
    for signal_number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(signal_number, signal.SIG_IGN)
    groups: dict[int, dict[int, signal.Signals]] = {}
    for line in sys.stdin:
        verb, *rest = line.split()
        if verb == "done":
            return
        if verb == "gone":
            for group in groups.values():
                group.pop(int(rest[0]), None)
        else:
            order, pid, number = map(int, rest)
            groups.setdefault(order, {})[pid] = signal.Signals(number)
    for order in sorted(groups, reverse=True):
        _stop(groups[order], alive=_exists)
    _kill_leftovers(run, ())


def _exists(pid: int) -> bool:
    try:
        return bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
    except psutil.Error:
        return False


if __name__ == "__main__":
    _guard(sys.argv[1])
