"""SIGTERM as an exception, so that whoever stops us (a service manager, "mark failed" in Airflow, which kills five
seconds later) leaves no unfinished upload, lock or session behind."""

import signal
from collections.abc import Iterator
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
