"""Whatever ends the supervisor or one of its processes, no process is left."""

import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from sandbox import supervisor, world
from sandbox.supervisor import Process, SandboxError, Supervisor

PROJECT = Path(__file__).parents[2]

# Says when it is up and when it is told to stop; has a child in a process group of its own, as an Airflow task is.
WORKER = """
import os, signal, subprocess, sys, time
name, diary = sys.argv[1:]
def write(line):
    with open(diary, "a") as f:
        f.write(line + "\\n")
def leave(*_):
    write(f"{name} stopped"); sys.exit(0)
signal.signal(signal.SIGTERM, leave)
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], process_group=0)
write(f"{name} {os.getpid()} {child.pid}")
print("hello from", name, flush=True)
while True:  # a signal that comes just before a sleep begins is seen after it
    time.sleep(0.1)
"""
STUBBORN = (
    "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('up', flush=True); time.sleep(600)"
)


def eventually(condition: Callable[[], bool], seconds: float = 15) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "not within the time"
        time.sleep(0.05)


def alive(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


class Diary:
    """What the workers wrote."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def lines(self) -> list[str]:
        return self.path.read_text().splitlines() if self.path.exists() else []

    def pids(self) -> list[int]:
        return [int(pid) for line in self.lines() for pid in line.split()[1:] if pid.isdigit()]

    def has(self, name: str) -> str | None:
        return None if any(line.split()[0] == name for line in self.lines()) else "its first line"

    def worker(self, name: str, **how: object) -> Process:
        return Process(
            name,
            [sys.executable, "-c", WORKER, name, str(self.path)],
            dict(os.environ),
            ready=lambda: self.has(name),
            **how,  # type: ignore[arg-type]
        )


@pytest.fixture
def diary(tmp_path: Path) -> Iterator[Diary]:
    diary = Diary(tmp_path / "diary")
    yield diary
    eventually(lambda: not any(map(alive, diary.pids())))


def test_starts_in_order_and_stops_in_reverse(tmp_path: Path, diary: Diary) -> None:
    said: list[str] = []
    with Supervisor(tmp_path, said.append) as running:
        running.start(diary.worker("first"))
        running.start(diary.worker("second"))
        assert len(diary.pids()) == 4
        assert all(map(alive, diary.pids()))
        assert list(running.pids()) == ["first", "second"]
    assert [line for line in diary.lines() if "stopped" in line] == ["second stopped", "first stopped"]
    assert "waiting for second: its first line" in said
    assert not any(map(alive, diary.pids()))
    assert "hello from first" in (tmp_path / "logs" / "first.log").read_text()


def test_a_killed_process_is_named_with_the_end_of_its_log(tmp_path: Path, diary: Diary) -> None:
    with (
        pytest.raises(SandboxError, match=r"(?s)second was killed by SIGKILL.*hello from second.*second\.log"),
        Supervisor(tmp_path) as running,
    ):
        running.start(diary.worker("first"))
        running.start(diary.worker("second"))
        eventually(lambda: "hello" in (tmp_path / "logs" / "second.log").read_text())
        os.kill(running.pids()["second"], signal.SIGKILL)
        running.stay()
    assert not any(map(alive, diary.pids()))


def test_one_that_is_killed_on_purpose_leaves_nothing_and_may_be_started_again(tmp_path: Path, diary: Diary) -> None:
    with Supervisor(tmp_path) as running:
        running.start(diary.worker("first"), diary.worker("second"))
        first, pids = running.pids()["first"], diary.pids()
        again = running.kill("first")
        running.check()
        assert list(running.pids()) == ["second"]
        assert not alive(first)
        assert sum(map(alive, pids)) == 2
        running.start(again)
        assert list(running.pids()) == ["second", "first"]
    assert not any(map(alive, diary.pids()))


def test_not_ready_in_time(tmp_path: Path, diary: Diary) -> None:
    never = Process(
        "never",
        [sys.executable, "-c", "import time; time.sleep(600)"],
        dict(os.environ),
        ready=lambda: "a miracle",
        within_seconds=0.5,
    )
    with (
        pytest.raises(SandboxError, match="never is not ready after 0 s; found a miracle"),
        Supervisor(tmp_path) as running,
    ):
        running.start(diary.worker("first"))
        running.start(never)
    assert not any(map(alive, diary.pids()))


def test_a_ready_condition_that_raises_stops_everything(tmp_path: Path, diary: Diary) -> None:
    with pytest.raises(ZeroDivisionError), Supervisor(tmp_path) as running:
        running.start(diary.worker("first"))
        running.until(lambda: str(1 / 0), "division", 1)
    assert not any(map(alive, diary.pids()))


def test_an_unstartable_program_is_named(tmp_path: Path) -> None:
    with pytest.raises(SandboxError, match="ghost cannot be started"), Supervisor(tmp_path) as running:
        running.start(Process("ghost", ["/no/such/program"], {}))


def test_a_program_that_ignores_sigterm_is_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervisor, "GRACE_SECONDS", 0.5)
    log = tmp_path / "logs" / "stubborn.log"
    with Supervisor(tmp_path) as running:
        running.start(
            Process(
                "stubborn",
                [sys.executable, "-c", STUBBORN],
                dict(os.environ),
                ready=lambda: None if "up" in log.read_text() else "the word",
            )
        )
        pid = running.pids()["stubborn"]
    assert not alive(pid)


def test_run_waits_for_the_end_and_reports_failure(tmp_path: Path) -> None:
    def job(code: str) -> Process:
        return Process("job", [sys.executable, "-c", code], dict(os.environ))

    with Supervisor(tmp_path) as running:
        running.run(job("print('done')"))
        with pytest.raises(SandboxError, match=r"(?s)job ended with status 3.*bad luck"):
            running.run(job("import sys; print('bad luck'); sys.exit(3)"))
        running.check()
    assert (tmp_path / "logs" / "job.log.1").read_text() == "done\n"


def test_a_second_supervisor_is_refused_and_told_who_runs(tmp_path: Path) -> None:
    with (
        Supervisor(tmp_path),
        pytest.raises(SandboxError, match=f"in use by process {os.getpid()}"),
        Supervisor(tmp_path),
    ):
        pass


def test_a_killed_guard_is_noticed(tmp_path: Path, diary: Diary) -> None:
    with pytest.raises(SandboxError, match="guard"), Supervisor(tmp_path) as running:
        running.start(diary.worker("first"))
        assert running._guard is not None
        running._guard.kill()
        running.stay()
    assert not any(map(alive, diary.pids()))


def test_marked_processes_are_found_outside_any_known_session() -> None:
    stray = subprocess.Popen(
        [sys.executable, "-c", "import time; time.sleep(600)"],
        env={**os.environ, supervisor._MARK: "this-run"},
        start_new_session=True,
    )
    eventually(lambda: psutil.Process(stray.pid).environ().get(supervisor._MARK) == "this-run")
    supervisor._kill_leftovers("another-run", ())
    assert alive(stray.pid)
    supervisor._kill_leftovers("this-run", ())
    assert stray.wait(5) == -signal.SIGKILL


SUPERVISED = textwrap.dedent("""
    import os, signal, sys
    from pathlib import Path
    from sandbox.supervisor import Process, Supervisor
    signal.signal(signal.SIGHUP, signal.SIG_DFL)  # the tests may run under nohup, which supervisors respect
    state, diary, worker = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]
    def has(name):
        return None if diary.exists() and name in diary.read_text() else "its line"
    with Supervisor(state) as running:
        for name in ("first", "second"):
            running.start(Process(name, [sys.executable, "-c", worker, name, str(diary)], dict(os.environ),
                                  ready=lambda: has(name)))
        print("up", flush=True)
        running.stay()
""")


@pytest.fixture
def supervised(tmp_path: Path, diary: Diary) -> Iterator["subprocess.Popen[bytes]"]:
    command = [sys.executable, "-c", SUPERVISED, str(tmp_path), str(diary.path), WORKER]
    process = subprocess.Popen(
        # As a shell script starts its background jobs: with SIGINT ignored.
        ["/bin/sh", "-c", "trap '' INT; exec \"$@\"", "sh", *command],
        cwd=PROJECT,
        stdout=subprocess.PIPE,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == b"up\n"
    yield process
    if process.poll() is None:
        process.kill()
    process.stdout.close()
    process.wait()


def test_sigkill_of_the_supervisor_leaves_no_orphan(
    supervised: "subprocess.Popen[bytes]", diary: Diary, tmp_path: Path
) -> None:
    assert all(map(alive, diary.pids()))
    supervised.kill()
    eventually(lambda: not any(map(alive, diary.pids())))
    assert [line for line in diary.lines() if "stopped" in line] == ["second stopped", "first stopped"]
    eventually(lambda: not world.is_running(tmp_path))  # the folder is free again, after the guard's work


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_signals_stop_everything_in_order(
    supervised: "subprocess.Popen[bytes]", diary: Diary, number: signal.Signals, status: int
) -> None:
    supervised.send_signal(number)
    assert supervised.wait(20) == status
    assert [line for line in diary.lines() if "stopped" in line] == ["second stopped", "first stopped"]
    assert not any(map(alive, diary.pids()))


def test_ctrl_c_reaches_the_supervisor_only(supervised: "subprocess.Popen[bytes]", diary: Diary) -> None:
    supervised.send_signal(signal.SIGINT)
    assert supervised.wait(20) != 0
    assert [line for line in diary.lines() if "stopped" in line] == ["second stopped", "first stopped"]
    assert not any(map(alive, diary.pids()))
