"""Step 3: every number gets its ciphertext, in small batches beside the application's own writes; and the way back.

A batch is read and encrypted while the one before it is written. A write is one compare-and-set statement that also
moves the range's cursor, so whatever ends the work, no row is done twice and none is left out: what changed between
read and write is left as it is, and passes are repeated until one finds nothing.
"""

import logging
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import compress, pairwise
from typing import Any

import psycopg
from psycopg.adapt import Dumper, PyFormat, Transformer
from psycopg.pq import Format

from payme_ops.foundation.errors import GateClosed, LeaseHeld, LockBudgetSpent, NotFound
from payme_ops.foundation.postgres import speaking
from payme_ops.foundation.progress import Progress, Report, rows
from payme_ops.migration import control, envelope, state
from payme_ops.migration.desk import MigrationDesk, session, silence_triggers
from payme_ops.migration.envelope import Keys, Undecryptable
from payme_ops.migration.names import Names, statement
from payme_ops.migration.shape import Stage, inspect, named, require
from payme_ops.migration.throttle import Throttle, watching

# About 1,000 rows: measured to leave the application's p99 within 2 times and its maximum as it was, while 20,000 rows
# made writers wait for 300 ms.
FIRST_SIZE, SMALLEST_SIZE, LARGEST_SIZE = 1_000, 100, 5_000
TARGET_SECONDS = 0.030
# Below the server's deadlock_timeout (1 s), after which it would end the application's transaction or ours.
_LOCK_TIMEOUT = "50ms"
_ALONE_TIMEOUT = "10s"  # the session of a killed task ends within that
_LONGEST_REST_SECONDS = 1.0  # after a batch that had to wait for a lock
_MOST_PASSES = 6
_IDS_NAMED = 50


@dataclass(frozen=True)
class Done:
    """What a range of a pass came to: rows that needed a write, those written, and those that others had meanwhile."""

    rows: int
    written: int
    refused: int


@dataclass(frozen=True)
class _Range:
    """A range of keys (low exclusive, high inclusive) of a pass, and what is done with its rows."""

    names: Names
    work: str
    pass_number: int
    low: int
    high: int

    @property
    def values(self) -> dict[str, Any]:
        """Of its row in the progress table."""
        return {
            "subject": state.subject(self.names),
            "work": self.work,
            "pass_number": self.pass_number,
            "low": self.low,
            "high": self.high,
        }

    @cached_property
    def read(self) -> bytes:
        """The statement that reads a batch."""
        return statement(self.names, _READ[self.work]).as_bytes(None)

    @cached_property
    def write(self) -> bytes:
        """The statement that writes one."""
        return statement(self.names, _WRITE[self.work]).as_bytes(None)

    def __str__(self) -> str:
        return f"{self.work} {self.names.title} {self.low:,} to {self.high:,}, pass {self.pass_number}"


class _Wire(bytes):
    """A column as PostgreSQL's protocol has it; the statement's cast says of which type."""


class _AsItIs(Dumper):
    format, oid = Format.BINARY, 0

    def dump(self, obj: _Wire) -> _Wire:
        return obj


@dataclass(frozen=True)
class _Batch:
    """Rows ready to be written: columns of the same length by their name in the statement, and the same `dumped`."""

    first: int
    done_to: int
    looked_at: int
    columns: dict[str, list[Any]]
    dumped: dict[str, "_Column"]
    faulty: list[int]


_Column = list[Any] | _Wire | str

# Rows as they were read, to columns as they are written, and the keys of rows that cannot be.
_Prepare = Callable[[list[Any]], tuple[dict[str, list[Any]], list[int]]]


def plan_ranges(desk: MigrationDesk, parts: int) -> list[tuple[int, int]]:
    """At most `parts` ranges of keys (low exclusive, high inclusive) with about as many rows each; none if no row.

    Raises DatabaseError, DatabaseUnavailable.
    """
    names = desk.names
    with session(desk, "plan") as connection, speaking("plan the backfill's ranges"):
        row = connection.execute(statement(names, "3_key_range.sql"), named(names)).fetchone()
    low, high, bounds = row or (None, None, [])
    return [] if low is None else split(low - 1, high, bounds, parts)


def split(low: int, high: int, bounds: list[int], parts: int) -> list[tuple[int, int]]:
    """Ranges, one after the other from `low` to `high`. `bounds` part the rows evenly; without them, the keys do."""
    if parts < 1 or low >= high:
        raise ValueError(f"{parts} parts of {low} to {high}")
    inner = sorted({bound for bound in bounds if low < bound < high})
    points = [low, *inner, high]
    if inner:
        cuts = [points[number * (len(points) - 1) // parts] for number in range(parts)]
    else:
        cuts = [low + number * (high - low) // parts for number in range(parts)]
    ends = sorted({*cuts, low, high})
    return list(pairwise(ends))


def next_size(size: int, written: int, seconds: float, target: float = TARGET_SECONDS) -> int:
    """Rows of the next batch, from the time that the last one took: half of the way to `target`, within the limits."""
    if written < size:  # the rest of a range says little of a whole batch
        return size
    ideal = written * target / max(seconds, 0.001)
    return round(min(max((size + ideal) / 2, size / 2, SMALLEST_SIZE), size * 2, LARGEST_SIZE))


def encrypt_range(
    desk: MigrationDesk, keys: Keys, low: int, high: int, *, pass_number: int, report: Report | None = None
) -> Done:
    """Give the rows of a range their ciphertext and blind index. A range that is done in this pass is not done again.

    Raises UnexpectedSchema before step 1 and after step 5b, Aborted, LeaseHeld (another task has this range),
    LockBudgetSpent, DatabaseUnavailable, DatabaseError. Run again after anything: it goes on where it was, and answers
    for the whole range.
    """
    part = _Range(desk.names, "encrypt", pass_number, low, high)
    return _work(desk, part, partial(_encrypted, keys, desk.names), report)


def reverse_range(
    desk: MigrationDesk, keys: Keys, low: int, high: int, *, pass_number: int, report: Report | None = None
) -> Done:
    """Write the decrypted number into the plaintext column where it differs or is missing, with a fresh ciphertext.

    For the undo of steps 5a and 5b, while no version writes that does not know the plaintext. Raises Undecryptable at
    the range's end if rows do not open, or have a plaintext and no ciphertext; otherwise as encrypt_range.
    """
    part = _Range(desk.names, "decrypt", pass_number, low, high)
    return _work(desk, part, partial(_decrypted, keys, desk.names), report)


def catch_up(desk: MigrationDesk, keys: Keys, report: Report | None = None) -> int:
    """Pass over the whole table until a pass finds every number encrypted; answers how many it took.

    Finds what ranges left: rows changed or locked by others meanwhile, and rows committed late under lower keys.
    Raises GateClosed when there is always something new: somebody still writes the plaintext alone.
    """
    return _until_nothing_is_left(desk, "encrypt", partial(encrypt_range, desk, keys, report=report))


def reverse(desk: MigrationDesk, keys: Keys, report: Report | None = None) -> int:
    """Pass over the whole table until a pass finds every plaintext as the ciphertext has it; answers how many.

    Raises GateClosed when there is always something new: somebody still writes the ciphertext alone.
    """
    return _until_nothing_is_left(desk, "decrypt", partial(reverse_range, desk, keys, report=report))


def triggers_fired(desk: MigrationDesk) -> list[str]:
    """The table's own triggers that each row of the backfill fires: none where the role may keep them from it."""
    with session(desk, "plan") as connection, speaking("look at the table's triggers"):
        silence_triggers(connection)
        return _fired(connection, desk.names)


def clear_range(desk: MigrationDesk, low: int, high: int, *, report: Report | None = None) -> int:
    """Take ciphertext and blind index away from the rows of a range; answers of how many. Locked rows keep theirs.

    The undo of step 3 needs it not: until reads are switched nobody uses them. Raises UnexpectedSchema when the
    plaintext may be the older of the two.
    """
    state.ensure(desk)
    names, progress = desk.names, Progress("clear", report=report, show=rows)
    part = _Range(names, "encrypt", 0, low, high)
    with session(desk, "backfill") as connection, speaking("clear a range"):
        _require(connection, part)
        connection.execute(statement(names, "3_forget.sql"), {**part.values, "pass_number": None})
        silence_triggers(connection)
        after: int | None = low
        while after is not None:
            values = {"after": after, "high": high, "size": FIRST_SIZE}
            count, after = connection.execute(statement(names, "3_clear_batch.sql"), values).fetchone() or (0, None)
            progress.add(count)
    progress.finish()
    return progress.done


def _until_nothing_is_left(desk: MigrationDesk, work: str, run: Callable[..., Done]) -> int:
    state.ensure(desk)
    found: list[int] = []
    while len(found) < _MOST_PASSES:
        with session(desk, "plan") as connection, speaking("begin a pass"):
            row = connection.execute(
                statement(desk.names, "3_last_pass.sql"), {"subject": state.subject(desk.names), "work": work}
            ).fetchone()
        low, high = (plan_ranges(desk, 1) or [(0, 0)])[0]
        found.append(run(low, high, pass_number=(row[0] if row else 0) + 1).rows)
        if found[-1] == 0:
            return len(found)
    raise GateClosed(
        f"the backfill of {desk.names.title} does not come to an end",
        expected="a pass over the table that finds nothing to do",
        found=f"{rows(found[-1])} in the last pass; in all {len(found)}: {', '.join(f'{each:,}' for each in found)}",
        remedy="find who writes only one of the columns (the fleet gate names old versions of the application), or"
        " holds these rows locked; then run it again",
    )


def _encrypted(keys: Keys, names: Names, read: list[Any]) -> tuple[dict[str, list[Any]], list[int]]:
    return {
        "key": [key for key, _ in read],
        "old": [text for _, text in read],
        "ciphertext": [envelope.encrypt(keys, names.associated_data(key), text) for key, text in read],
        "blind_index": [envelope.blind_index(keys, text) for _, text in read],
    }, []


def _decrypted(keys: Keys, names: Names, read: list[Any]) -> tuple[dict[str, list[Any]], list[int]]:
    faulty, differ = [], []
    for key, plaintext, stored in read:
        try:
            text = None if stored is None else envelope.decrypt(keys, names.associated_data(key), stored)
        except Undecryptable:
            text = None
        if text is None:
            faulty.append(key)
        elif text != plaintext:
            differ.append((key, stored, text))
    columns, _ = _encrypted(keys, names, [(key, text) for key, _, text in differ])
    return {**columns, "plaintext": columns["old"], "old": [stored for _, stored, _ in differ]}, faulty


_READ = {"encrypt": "3_read_batch.sql", "decrypt": "3_read_batch_back.sql"}
_WRITE = {"encrypt": "3_write_batch.sql", "decrypt": "3_write_batch_back.sql"}


def _work(desk: MigrationDesk, part: _Range, prepare: _Prepare, report: Report | None) -> Done:
    state.ensure(desk)
    say = report or logging.getLogger("payme_ops").info
    with ExitStack() as stack:
        stack.enter_context(speaking(str(part)))
        writer = stack.enter_context(_writing(desk, part))
        done_to, *_, ended = writer.execute(statement(desk.names, "3_begin_range.sql"), part.values).fetchone() or ()
        if not ended:
            _require(writer, part)
            reader = stack.enter_context(_reading(desk))
            throttle = stack.enter_context(watching(desk, part.low, part.high))
            total = _estimate(reader, part, done_to)
            progress = Progress(str(part), total=total, report=say, show=rows)
            _tell_triggers(writer, desk.names, say)
            read = partial(_read, reader, part, prepare)
            _write_all(desk, part, writer, read, done_to, throttle, progress, say)
            progress.finish()
        return _end(writer, part)


def _require(connection: psycopg.Connection, part: _Range) -> None:
    """Once relaxed the plaintext may be the older of the two, once dropped there is none. Raises UnexpectedSchema."""
    too_late = Stage.RELAXED if part.work == "encrypt" else Stage.SHIMMED
    require(inspect(connection, part.names), part.names, Stage.EXPANDED, before=too_late)


def _write_all(
    desk: MigrationDesk,
    part: _Range,
    writer: psycopg.Connection,
    read: Callable[[int, int], _Batch | None],
    done_to: int,
    throttle: Throttle,
    progress: Progress,
    say: Report,
) -> None:
    rest = desk.settings.migration.rest_ratio
    target = TARGET_SECONDS / (1 + rest)  # short and often: as many rows, and commits wait for less WAL of ours
    size = FIRST_SIZE
    with ThreadPoolExecutor(1, thread_name_prefix="read ahead") as ahead:
        coming = ahead.submit(read, done_to, size)
        while batch := coming.result():
            _wait(writer, part, throttle, progress, say)
            coming = ahead.submit(read, batch.done_to, size)
            began = time.monotonic()
            _write(writer, part, batch, desk.settings.migration.lock_budget_seconds)
            seconds = time.monotonic() - began
            size = next_size(size, batch.looked_at, seconds, target)
            progress.add(batch.looked_at, slowed="autovacuum" if throttle.slow else "")
            time.sleep(min(seconds * (rest + throttle.slow), _LONGEST_REST_SECONDS))


def _wait(writer: psycopg.Connection, part: _Range, throttle: Throttle, progress: Progress, say: Report) -> None:
    """Return when nothing and nobody wants the backfill to wait. Raises Aborted."""
    waited = False
    while why := control.waits(writer, part.names) or throttle.waits():
        _warn(part, throttle, say)
        if not waited:
            say(f"{part} waits: {why}")
        waited = True
        progress.add(0, slowed=why)
        throttle.wait_for_news()
    _warn(part, throttle, say)
    if waited:
        say(f"{part} goes on")


def _warn(part: _Range, throttle: Throttle, say: Report) -> None:
    if news := throttle.warns():
        say(f"{part} does not wait for this: {news}")


def _read(reader: psycopg.Connection, part: _Range, prepare: _Prepare, after: int, size: int) -> _Batch | None:
    values = {"after": after, "high": part.high, "size": size}
    with _lock_budget(part), reader.cursor(binary=True) as cursor:
        found = cursor.execute(part.read, values, prepare=True).fetchall()
    if not found:
        return None
    columns, faulty = prepare(found)
    return _Batch(found[0][0], found[-1][0], len(found), columns, _dumped(reader, columns), faulty)


def _dumped(connection: psycopg.Connection, columns: Mapping[str, list[Any]]) -> dict[str, _Column]:
    """While the batch before is written, not while the server waits for it."""
    to_wire = Transformer(connection)

    def wire(column: list[Any]) -> _Wire | list[Any]:
        return _Wire(to_wire.get_dumper(column, PyFormat.BINARY).dump(column) or b"") if column else column

    # Keys as text: in binary their type would be the smallest that fits, and not the statement's.
    keys = f"{{{','.join(map(str, columns['key']))}}}"
    return {**{name: wire(column) for name, column in columns.items()}, "key": keys}


def _write(writer: psycopg.Connection, part: _Range, batch: _Batch, budget_seconds: int) -> None:
    try:
        _set(writer, part, batch, batch.dumped)
    except (psycopg.errors.LockNotAvailable, psycopg.errors.DeadlockDetected):
        _write_free(writer, part, batch, budget_seconds)


def _write_free(writer: psycopg.Connection, part: _Range, batch: _Batch, budget_seconds: int) -> None:
    """Write the rows that nobody else has locked."""
    with _lock_budget(part), writer.transaction():
        # Holding nothing, it may wait as long for a change of the table, and waits for no row.
        writer.execute(f"SET LOCAL lock_timeout = '{budget_seconds}s'")
        query = statement(part.names, "3_lock_free.sql")
        free = {row[0] for row in writer.execute(query, {"key": batch.columns["key"]})}
        writer.execute(f"SET LOCAL lock_timeout = '{_LOCK_TIMEOUT}'")
        chosen = [key in free for key in batch.columns["key"]]
        columns = {name: list(compress(column, chosen)) for name, column in batch.columns.items()}
        _set(writer, part, batch, columns)


@contextmanager
def _lock_budget(part: _Range) -> Iterator[None]:
    try:
        yield
    except psycopg.errors.LockNotAvailable:
        raise LockBudgetSpent(
            f"{part} did not get its locks",
            expected="a table that can be read and written within the lock budget",
            found="a change of the table, or an unfinished write of the same number",
            remedy="run it again: it goes on where it was",
        ) from None


def _set(writer: psycopg.Connection, part: _Range, batch: _Batch, columns: Mapping[str, _Column]) -> None:
    values = {
        **part.values,
        **columns,
        "first": batch.first,
        "done_to": batch.done_to,
        "rows": len(batch.columns["key"]),
        "faults": len(batch.faulty),
        "faulty": batch.faulty[:_IDS_NAMED],
    }
    if not writer.execute(part.write, values, prepare=True).rowcount:
        raise NotFound(
            f"{part} has lost its cursor",
            expected="its row in the progress table",
            found="none",
            remedy="somebody undid the step meanwhile; if that was not intended, run it again",
        )


def _end(writer: psycopg.Connection, part: _Range) -> Done:
    writer.execute("RESET synchronous_commit")
    row = writer.execute(statement(part.names, "3_end_range.sql"), part.values).fetchone()
    found, written, refused, faults, faulty = row or (0, 0, 0, 0, [])
    if faults:
        writer.execute(statement(part.names, "3_forget.sql"), part.values)  # to be looked at again
        raise Undecryptable(
            f"{rows(faults)} cannot be decrypted",
            expected="ciphertexts that this key opens for their rows, one for each plaintext",
            found=f"others in {part.names.key} {', '.join(map(str, faulty))}" + (" and more" * (faults > len(faulty))),
            remedy="all other rows are written; look at these (the verification says what is wrong), then run it again",
        )
    return Done(found, written, refused)


@contextmanager
def _writing(desk: MigrationDesk, part: _Range) -> Iterator[psycopg.Connection]:
    """The session that writes. It has the range for itself: a killed task's may still be ending."""
    with session(desk, "backfill") as connection:
        connection.adapters.register_dumper(_Wire, _AsItIs)
        silence_triggers(connection)
        _set_up(connection)
        connection.execute(f"SET lock_timeout = '{_ALONE_TIMEOUT}'")
        try:
            connection.execute("SELECT pg_advisory_lock(hashtextextended(%s, 0))", [f"payme_migration {part}"])
        except psycopg.errors.LockNotAvailable:
            raise LeaseHeld(
                f"{part} is at work already",
                expected="one task a range",
                found="another session with its lock",
                remedy="wait for that task to end, or stop it",
            ) from None
        connection.execute(f"SET lock_timeout = '{_LOCK_TIMEOUT}'")
        # No batch waits for the disk or a standby with its rows locked. A crash of the server may lose the last ones,
        # with their cursor, so they are done again. The range's end waits for all of them.
        connection.execute("SET synchronous_commit = off")
        yield connection


@contextmanager
def _reading(desk: MigrationDesk) -> Iterator[psycopg.Connection]:
    """The session that reads ahead."""
    with session(desk, "backfill:read") as connection:
        _set_up(connection)
        connection.execute(f"SET lock_timeout = '{desk.settings.migration.lock_budget_seconds}s'")
        yield connection


def _set_up(connection: psycopg.Connection) -> None:
    connection.execute("SET row_security = off")  # a policy that hides rows is an error
    connection.execute("SET plan_cache_mode = force_custom_plan")  # for this very range of keys, not for any


def _fired(connection: psycopg.Connection, names: Names) -> list[str]:
    """The table's own triggers that each row that is written in this session fires."""
    values = {**named(names), "columns": [names.ciphertext, names.blind_index]}
    return [row[0] for row in connection.execute(statement(names, "3_triggers.sql"), values)]


def _tell_triggers(writer: psycopg.Connection, names: Names, say: Report) -> None:
    if fired := _fired(writer, names):
        say(f"triggers_fired: {', '.join(fired)}; the role may not set session_replication_role")


def _estimate(connection: psycopg.Connection, part: _Range, after: int) -> int:
    values = {"low": after, "high": part.high}
    row = connection.execute(statement(part.names, "3_estimate.sql"), values).fetchone()
    return int(row[0][0]["Plan"]["Plan Rows"]) if row else 0
