"""A process that ends with whoever started it."""

import signal
import subprocess
import sys

import psutil
import pytest

from tests.support.waiting import eventually

_CHILD = (
    "import signal, time; from payme_ops.foundation.stop import end_with_parent;"
    " end_with_parent(signal.SIGKILL)() if {asks} else None; print('ready', flush=True); time.sleep(60)"
)
_PARENT = (
    "import subprocess, sys; child = subprocess.Popen([sys.executable, '-c', sys.argv[1]], stdout=subprocess.PIPE);"
    " child.stdout.readline(); print(child.pid, flush=True); child.wait()"
)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the kernel is asked on Linux only")
@pytest.mark.parametrize("asks", [True, False])
def test_who_asked_for_it_is_killed_with_its_parent(asks: bool) -> None:
    argv = [sys.executable, "-c", _PARENT, _CHILD.format(asks=asks)]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout
        child = psutil.Process(int(parent.stdout.readline()))
        try:
            parent.send_signal(signal.SIGKILL)
            parent.wait()
            if asks:
                eventually(lambda: not child.is_running() or child.status() == psutil.STATUS_ZOMBIE, "its end")
            else:
                eventually(lambda: child.ppid() != parent.pid, "another parent")  # it would have had its signal by now
                assert child.is_running()
        finally:
            if child.is_running():
                child.kill()
