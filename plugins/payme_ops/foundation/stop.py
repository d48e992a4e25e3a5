"""SIGTERM as an exception, so that whoever stops us (a service manager, "mark failed" in Airflow, which kills five
seconds later) leaves no unfinished upload, lock or session behind; and an end for who has lost its parent."""

import ctypes
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType


@contextmanager
def stoppable() -> Iterator[None]:
    """Within the block SIGTERM raises SystemExit(143) in the main thread. For the main thread only."""
    before = signal.signal(signal.SIGTERM, _leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _leave(number: int, _frame: FrameType | None) -> None:
    raise SystemExit(128 + number)


def end_with_parent(number: signal.Signals) -> Callable[[], None]:
    """What asks the kernel to send that signal as soon as the thread that started us is gone; for `preexec_fn`, too.

    Linux only; elsewhere it does nothing.
    """
    if not sys.platform.startswith("linux"):
        return lambda: None
    prctl = ctypes.CDLL(None).prctl  # looked up before a fork: after it, only plain calls are safe
    return lambda: prctl(1, int(number))  # PR_SET_PDEATHSIG
