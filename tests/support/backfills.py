"""What the tests of the backfill share: a place between reading and writing a batch, and a backfill beside the test."""

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager

import psycopg
import pytest

from payme_ops.migration import backfill, control
from payme_ops.migration.backfill import Done
from payme_ops.migration.names import Names
from tests.support.phones import Phones

BATCH = 100


def small_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    """Batches of 100 rows, however fast they are."""
    monkeypatch.setattr(backfill, "FIRST_SIZE", BATCH)
    monkeypatch.setattr(backfill, "LARGEST_SIZE", BATCH)


def before_batch(monkeypatch: pytest.MonkeyPatch, number: int, act: Callable[[], None]) -> None:
    """Do something when the batch of that number (1 is the first) has been read and not yet written."""
    counted, original = 0, control.waits

    def waits(connection: psycopg.Connection, names: Names) -> str:
        nonlocal counted
        counted += 1
        if counted == number:
            act()
        return original(connection, names)

    monkeypatch.setattr(control, "waits", waits)


class Beside:
    """A backfill of the whole table in a thread, and what it reported."""

    def __init__(self, phones: Phones, pool: ThreadPoolExecutor) -> None:
        self.lines: list[str] = []
        self._said = threading.Condition()
        self.future: Future[Done] = pool.submit(encrypt_all, phones, self._report)

    def _report(self, line: str) -> None:
        with self._said:
            self.lines.append(line)
            self._said.notify_all()

    def says(self, part: str) -> str:
        """The line that has this in it, as soon as there is one; or the backfill's error."""
        with self._said:
            assert self._said.wait_for(lambda: self._found(part) or self.future.done(), 15), f"no line has {part!r}"
        if not self._found(part):
            self.future.result()
        return self._found(part)

    def _found(self, part: str) -> str:
        return next((line for line in self.lines if part in line), "")


@contextmanager
def beside(phones: Phones) -> Iterator[Beside]:
    """Run the backfill while the block runs; an error of the block leaves it to end by itself."""
    with ThreadPoolExecutor(1) as pool:
        yield Beside(phones, pool)


def encrypt_all(phones: Phones, report: Callable[[str], None] | None = None) -> Done:
    """The first pass, in one range."""
    ((low, high),) = backfill.plan_ranges(phones.desk, 1)
    return backfill.encrypt_range(phones.desk, phones.keys, low, high, pass_number=1, report=report)


def cursor(phones: Phones) -> tuple[int, int]:
    """How far the newest range has come, if it has begun: rows up to this key, and how many were written."""
    with phones.admin() as connection:
        row = connection.execute(
            "SELECT done_to, written FROM payme_migration.progress ORDER BY began_at DESC LIMIT 1"
        ).fetchone()
    return (row[0], row[1]) if row else (0, 0)


def stored(phones: Phones) -> dict[int, str | None]:
    """The ciphertexts as they are, by id."""
    with phones.admin() as connection:
        return dict(connection.execute("SELECT id, phone_number_encrypted FROM users").fetchall())
