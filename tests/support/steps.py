"""For tests of the migration's changes of the schema: what the table is, who waits, and cuts between statements."""

import itertools
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import psycopg
import pytest

from payme_ops.foundation import evidence
from payme_ops.foundation.errors import LeaseLost, Unavailable
from payme_ops.foundation.evidence import Check, Evidence, Verdict
from payme_ops.migration.desk import MigrationDesk
from payme_ops.migration.shape import Shape, inspect
from tests.support.phones import Phones
from tests.support.waiting import eventually


def shape(phones: Phones) -> Shape:
    """Of the table now."""
    with phones.admin() as connection:
        return inspect(connection, phones.names)


def with_budget(desk: MigrationDesk, seconds: int) -> MigrationDesk:
    """The desk with another budget for locks."""
    migration = desk.settings.migration.model_copy(update={"lock_budget_seconds": seconds})
    return replace(desk, settings=desk.settings.model_copy(update={"migration": migration}))


def examine(checks: list[Check]) -> dict[str, Evidence]:
    """The checks' evidence by item."""
    return {check.item: evidence.run_check(check, actor="test") for check in checks}


def verdicts(checks: list[Check]) -> dict[str, Verdict]:
    """Their verdicts by item."""
    return {item: found.verdict for item, found in examine(checks).items()}


class Canary:
    """Reads one user again and again, as the application does, by default at the primary; the longest that one read
    took."""

    def __init__(self, phones: Phones, conninfo: str = "") -> None:
        self.slowest, self.reads, self.failed = 0.0, 0, list[str]()
        self._conninfo = conninfo or phones.conninfo("payme_app")
        self._stop = threading.Event()

    def _run(self) -> None:
        with psycopg.connect(self._conninfo, autocommit=True) as connection:
            while not self._stop.is_set():
                began = time.monotonic()
                try:
                    connection.execute("SELECT id, full_name FROM users WHERE id = 1")
                except psycopg.Error as error:
                    self.failed.append(str(error))
                self.slowest = max(self.slowest, time.monotonic() - began)
                self.reads += 1
                self._stop.wait(0.005)

    @contextmanager
    def running(self) -> Iterator["Canary"]:
        """Read during the block."""
        thread = threading.Thread(target=self._run)
        thread.start()
        try:
            eventually(lambda: self.reads > 3, "the canary")
            self.slowest = 0.0  # its connection's first reads fill caches
            yield self
        finally:
            self._stop.set()
            thread.join()


def cut_until_done(monkeypatch: pytest.MonkeyPatch, step: Callable[[], Any]) -> int:
    """Run a step with its connection cut before its first statement, then before its second and so on, until one run
    is left whole: what a cut leaves is what the next run begins with. Answers how many were cut."""
    for number in itertools.count(1):
        with monkeypatch.context() as patch:
            _cut_before(patch, number)
            try:
                step()
            except (Unavailable, LeaseLost, psycopg.OperationalError):
                continue
            return number - 1
    raise AssertionError


def _cut_before(patch: pytest.MonkeyPatch, number: int) -> None:
    original, count = psycopg.Connection.execute, itertools.count(1)

    def execute(self: psycopg.Connection, *args: Any, **kwargs: Any) -> Any:
        # A lease's renewer has a thread of its own.
        if threading.current_thread() is threading.main_thread() and next(count) == number:
            self.close()
        return original(self, *args, **kwargs)

    patch.setattr(psycopg.Connection, "execute", execute)
