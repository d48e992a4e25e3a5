"""Wait for a condition, never for a time."""

import time
from collections.abc import Callable
from typing import Literal, TypeVar

Found = TypeVar("Found")


def eventually(
    condition: Callable[[], Found | Literal[False]], what: str, seconds: float = 15, every: float = 0.02
) -> Found:
    """The condition's first true answer. Fails naming `what` when there is none in time."""
    deadline = time.monotonic() + seconds
    while True:
        found = condition()
        if found:
            return found
        assert time.monotonic() < deadline, f"waited {seconds} s for {what}"
        time.sleep(every)
