"""Sessions that work beside a backup, and what they had to wait for it."""

import random
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import psycopg

from tests.support.waiting import eventually


class Statement:
    """One statement in a session of its own; how long it took."""

    def __init__(self, conninfo: str, statement: str) -> None:
        self._connection = psycopg.connect(conninfo, autocommit=True)
        self._statement = statement
        self.pid = self._connection.info.backend_pid
        self.seconds = 0.0
        self.error: psycopg.Error | None = None
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        start = time.monotonic()
        try:
            self._connection.execute(self._statement)
        except psycopg.Error as error:
            self.error = error
        self.seconds = time.monotonic() - start
        self._connection.close()

    def wait_until_it_waits(self, conninfo: str) -> None:
        """Return when the server has it waiting for a lock."""
        with psycopg.connect(conninfo, autocommit=True) as connection:
            query = "SELECT FROM pg_stat_activity WHERE pid = %s AND wait_event_type = 'Lock'"
            eventually(
                lambda: connection.execute(query, [self.pid]).rowcount, f"{self._statement} to wait", every=0.005
            )

    def end(self, seconds: float = 20) -> None:
        """Wait for its end."""
        self._thread.join(seconds)
        assert not self._thread.is_alive(), f"{self._statement} still waits"


@contextmanager
def repeated(conninfo: str, work: Callable[[psycopg.Connection], None], *, pause: float = 0.0) -> Iterator[list[float]]:
    """`work` again and again in a session of its own during the block; yields how long each time took, in seconds.

    An error of the server ends one time, not the whole.
    """
    times: list[float] = []
    failure: list[BaseException] = []
    stop = threading.Event()

    def run() -> None:
        try:
            with psycopg.connect(conninfo, autocommit=True) as connection:
                while not stop.is_set():
                    start = time.monotonic()
                    try:
                        with connection.transaction():
                            work(connection)
                    except (psycopg.errors.LockNotAvailable, psycopg.errors.DeadlockDetected):
                        continue
                    finally:
                        times.append(time.monotonic() - start)
                    stop.wait(pause * random.uniform(0.5, 1.5))  # noqa: S311
        except BaseException as error:
            failure.append(error)
            raise

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    try:
        eventually(lambda: times or failure, "the first time")
        yield times
    finally:
        stop.set()
        thread.join(30)
    assert not thread.is_alive()
    assert not failure, failure
