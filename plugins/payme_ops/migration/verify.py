"""Every row decrypted under its own associated data and compared, all of them as one snapshot shows them.

Whoever verifies holds the exported snapshot and hands out ranges of keys; readers (readers.py) join it, as processes of
this one or on other workers (shared.py). Ranges are cut by counting rows, so that equal tables give equal digests,
however many readers there were.
"""

import hashlib
import re
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import psycopg

from payme_ops.foundation.errors import GateClosed, IntegrityError, UnexpectedSchema
from payme_ops.foundation.evidence import Check, Finding, Verdict, failed, passed
from payme_ops.foundation.postgres import connect, speaking
from payme_ops.foundation.progress import Progress, Report, rows
from payme_ops.migration import envelope, readers, shape
from payme_ops.migration.desk import MigrationDesk
from payme_ops.migration.envelope import Keys, Undecryptable
from payme_ops.migration.judge import Fault, Kind
from payme_ops.migration.names import Names, statement
from payme_ops.migration.readers import NAMED, Layout, Part, reading
from payme_ops.migration.shape import Stage

RANGE_ROWS = 65_536  # digests of different sizes cannot be compared
PAIRS = 100  # that a restore test hands over
_TELLING = 9  # characters that are not in a page by chance

_LOWEST = -(2**63)  # below every key
_LOST = "find the key that these were encrypted with; without it they are lost"
_REMEDIES = {
    Kind.MISSING: "missing: end the old versions that do not write it, then run the backfill again",
    Kind.STALE: "stale: find who writes the plaintext alone, empty both columns of these rows, run the backfill again",
    Kind.SURPLUS: "surplus: find who emptied the number, and empty both columns",
    Kind.UNBOUND: "legacy_bound: have the application take the id first (docs/phone-encryption.md), then rewrap",
    Kind.MALFORMED: "malformed: compare the application's format with docs/phone-encryption.md, write these rows again",
    Kind.UNDECRYPTABLE: "undecryptable: compare the application's key and key id with ours, write these rows again",
    Kind.INDEX_KEY_REUSED: "index_key_reused: derive the blind index's key as docs/phone-encryption.md says",
    Kind.WRONG_INDEX: "wrong_index: compare the application's normal form with docs/phone-encryption.md",
}


@dataclass(frozen=True)
class Seen:
    """An exported snapshot by its id: what it sees, up to which key, and where it stands in the WAL."""

    layout: Layout
    id: str
    point: str
    lsn: str
    last: int
    rows_estimated: int


@dataclass(frozen=True)
class Snapshot(Seen):
    """One that is held, and the session that holds it."""

    connection: psycopg.Connection
    names: Names


@dataclass(frozen=True)
class Verified:
    """What a verification came to. `point` is where a drift check goes on; no number is in it."""

    rows: int
    with_number: int
    snapshot: str
    point: str
    lsn: str
    digest: str
    kinds: dict[str, int]
    faults: list[Fault]
    seconds: float

    @property
    def rows_per_second(self) -> int:
        """Of all readers together."""
        return round(self.rows / max(self.seconds, 0.001))


@dataclass(frozen=True)
class Sample:
    """Of a database without the plaintext: its rows by key id, and some of them with what they store."""

    key_ids: dict[str, int]
    pairs: list[tuple[int, str]]


class Span(NamedTuple):
    """A range of keys, low exclusive, high inclusive, and how many rows are in it."""

    low: int
    high: int
    rows: int


def verify(desk: MigrationDesk, keys: Keys, *, workers: int, report: Report) -> Verified:
    """Read and judge every row, with so many processes.

    Raises Unavailable when a reader is gone, DatabaseUnavailable, DatabaseError, UnexpectedSchema when there is
    nothing to verify. What is wrong with rows is no error; `finding` is red then.
    """
    begun = time.monotonic()
    with hold_snapshot(desk) as held, ExitStack() as stack:
        job = partial(readers.reader, desk.target, held.id, keys, desk.names, held.layout)
        processes = [stack.enter_context(job()) for _ in range(workers)]
        progress = Progress("verify", total=held.rows_estimated, report=report, show=rows)
        read = _read_all(processes, spans(held), progress)
        verified = combine(held, read, seconds=time.monotonic() - begun)
    report(f"verified {verified.rows:,} rows in {verified.seconds:.1f} s, {verified.rows_per_second:,} rows/s")
    return verified


@contextmanager
def hold_snapshot(desk: MigrationDesk) -> Iterator[Snapshot]:
    """An exported snapshot for the block. Raises UnexpectedSchema when there are no ciphertexts."""
    with reading(desk.target) as connection, speaking("hold a snapshot"), connection.transaction():
        layout = find_layout(connection, desk.names)
        parts = layout.parts(desk.names)
        source = parts["source"].as_string(connection)
        query = statement(desk.names, "4_export_snapshot.sql", **parts)
        [row] = connection.execute(query, {"source": source, "lowest": _LOWEST}).fetchall()
        yield Snapshot(**vars(Seen(layout, *row)), connection=connection, names=desk.names)


def find_layout(connection: psycopg.Connection, names: Names) -> Layout:
    """Where the columns stand now. Raises UnexpectedSchema when there are no ciphertexts."""
    found = shape.inspect(connection, names)
    if not (found.has_ciphertext or found.switched):
        raise UnexpectedSchema(
            f"{names.schema}.{names.table} has no ciphertexts",
            expected=f"a column {names.ciphertext}",
            found=f"stage {found.stage}",
            remedy="run the expand step first",
        )
    # Once it is relaxed, versions of the application leave the plaintext as it was.
    compare = found.has_plaintext and not found.reached(Stage.RELAXED)
    return Layout(base=found.shim, renamed=found.switched, plaintext=found.has_plaintext, compare=compare)


def spans(held: Snapshot) -> Generator[Span, None, None]:
    """All rows of the snapshot in ranges of RANGE_ROWS, cut the same way each time."""
    low = _LOWEST
    query = statement(held.names, "4_next_range.sql", **held.layout.parts(held.names))
    while True:
        with speaking("find the next range of rows"):
            row = held.connection.execute(query, {"low": low, "rows": RANGE_ROWS}).fetchone() or (0, None)
        if not row[0]:
            return
        yield Span(low, row[1], row[0])
        low = row[1]


def _read_all(
    processes: Sequence["subprocess.Popen[str]"], ranges: Generator[Span, None, None], progress: Progress
) -> list[tuple[Span, Part]]:
    """Each reader takes the next range when it has answered the last one."""
    lock = threading.Lock()

    def work(process: "subprocess.Popen[str]") -> list[tuple[Span, Part]]:
        found = []
        try:
            while span := _next(ranges, lock):
                found.append((span, readers.ask(process, span.low, span.high)))
                with lock:
                    progress.add(span.rows)
        except BaseException:
            with lock:
                ranges.close()  # the others end with the range they are at
            raise
        return found

    with ThreadPoolExecutor(len(processes)) as pool:
        working = [pool.submit(work, process) for process in processes]
        try:
            return sorted((pair for future in working for pair in future.result()), key=lambda pair: pair[0])
        except BaseException:
            for process in processes:
                process.kill()
            raise


def _next(ranges: Generator[Span, None, None], lock: threading.Lock) -> Span | None:
    with lock:
        return next(ranges, None)


def combine(seen: Seen, read: Sequence[tuple[Span, Part]], *, seconds: float) -> Verified:
    """One answer from those of all readers, in the order of the ranges.

    Raises IntegrityError for one that saw another snapshot, another range, or not as many rows as are in it, and when
    one is missing.
    """
    kinds: Counter[str] = Counter()
    digest, low = hashlib.sha256(), _LOWEST
    for span, part in read:
        if (part.snapshot, part.low, part.high, part.judged.rows) != (seen.id, *span) or span.low != low:
            raise _not_seen(
                f"snapshot {seen.id}, keys over {low} to {span.high}, {span.rows} rows",
                f"snapshot {part.snapshot}, keys over {part.low} to {part.high}, {part.judged.rows} rows",
            )
        low = span.high
        kinds.update(part.judged.kinds)
        digest.update(bytes.fromhex(part.judged.digest))
    if low != seen.last:
        raise _not_seen(f"all rows, up to key {seen.last}", f"none over key {low}")
    return Verified(
        rows=sum(part.judged.rows for _, part in read),
        with_number=sum(part.judged.with_number for _, part in read),
        snapshot=seen.id,
        point=seen.point,
        lsn=seen.lsn,
        digest=digest.hexdigest(),
        kinds=dict(kinds),
        faults=[fault for _, part in read for fault in part.judged.faults][:NAMED],
        seconds=seconds,
    )


def _not_seen(expected: str, found: str) -> IntegrityError:
    return IntegrityError(
        "a reader did not see what it was to see",
        expected=expected,
        found=found,
        remedy="verify again; if it stays so, run amcheck on the primary key",
    )


def check(desk: MigrationDesk, keys: Keys, *, workers: int, report: Report) -> Check:
    """The gate between backfill and switch."""
    return Check(
        "every_row_decrypts",
        "every row decrypts to its number and has its blind index",
        f"database {desk.database}, one snapshot",
        lambda: finding(verify(desk, keys, workers=workers, report=report)),
    )


def finding(verified: Verified) -> Finding:
    """Green when every row is right; without rows there is nothing to be green about. Rows are named by key."""
    measured = {
        "rows": verified.rows,
        "with_number": verified.with_number,
        "snapshot": verified.snapshot,
        "lsn": verified.lsn,
        "content": f"sha256:{verified.digest}",
        "faults": verified.kinds,
        "first": [f"{fault.id} {fault.kind}" for fault in verified.faults],
    }
    if verified.kinds:
        return failed(measured, ". ".join(_REMEDIES[kind] for kind in Kind if kind in verified.kinds))
    if not verified.rows:
        return Finding(Verdict.INCONCLUSIVE, measured, "the table is empty; compare the connection's database")
    return passed(measured)


def drift(desk: MigrationDesk, keys: Keys, since: str) -> Verified:
    """Judge the rows written since a point, that of an earlier verification or drift check.

    It reads the whole table once, without an index, and decrypts only what was written since. Raises GateClosed for
    a point that rows cannot be told by.
    """
    begun = time.monotonic()
    with hold_snapshot(desk) as held, speaking("read the rows written since the last look"):
        oldest = transactions_since(held, since)
        query = statement(desk.names, "4_changed_rows.sql", **held.layout.parts(desk.names))
        judged = readers.judge_query(held.connection, query, {"since": oldest}, keys, desk.names, held.layout)
    return Verified(**vars(judged), snapshot=held.id, point=held.point, lsn=held.lsn, seconds=time.monotonic() - begun)


def transactions_since(held: Snapshot, since: str) -> int:
    """The oldest transaction that was running at the point `since`: no row written after it has an older writer.

    Raises GateClosed for a point that is not one of this server, or too old to tell rows by.
    """
    found = [re.fullmatch(r"([0-9]{1,20}):([0-9]{1,20}):[0-9,]*", point) for point in (since, held.point)]
    if not found[0] or not found[1] or not 0 <= int(found[1][2]) - int(found[0][1]) < 2**31:
        raise GateClosed(
            "rows cannot be told by this point",
            expected="a point of this server, less than 2^31 transactions old",
            found=f"{since[:60]}; now it is {held.point[:60]}",
            remedy="verify all rows, and go on from its point",
        )
    return int(found[0][1])


def sample(conninfo: str, names: Names) -> Sample | None:
    """Up to PAIRS rows by chance, for a worker that has the key; None while there is a plaintext.

    Raises NotFound where there is no such column, UnexpectedSchema where nobody can tell whose name it is,
    DatabaseUnavailable, DatabaseError.
    """
    with connect(conninfo, application="payme_ops:migration:sample") as connection:
        found = shape.inspect(connection, names)
        # A blind index is without a ciphertext only after the rename, although the check that tells so was dropped.
        renamed = found.has_blind_index and not found.has_ciphertext
        if not (renamed or found.reached(Stage.SHIMMED)):
            return None
        parts = find_layout(connection, names).parts(names)
        with speaking("read some ciphertexts"):
            key_ids = connection.execute(statement(names, "6_key_ids.sql", **parts)).fetchall()
            pairs = connection.execute(statement(names, "6_pairs.sql", **parts), {"pairs": PAIRS}).fetchall()
    return Sample(dict(key_ids), pairs)


def canaries(desk: MigrationDesk, keys: Keys) -> list[str]:
    """Numbers that the file of before the drop holds; they stay in memory. What does not open is left out."""
    taken = sample(desk.target, desk.names)
    found = []
    for key, stored in taken.pairs if taken else []:
        with suppress(Undecryptable):
            found.append(envelope.decrypt(keys, desk.names.associated_data(key), stored))
    return [number for number in found if len(number) >= _TELLING]  # a short text is in any page


def check_sample(keys: Keys, names: Names, taken: Sample) -> Finding:
    """Is every row of our key, and do those of the sample open?"""
    found = check_pairs(keys, names, taken.pairs)
    others = {key_id: count for key_id, count in taken.key_ids.items() if key_id != keys.key_id}
    if not others:
        return found
    return failed({**found.measured, "rows of another key": others}, _LOST)


def check_pairs(keys: Keys, names: Names, pairs: Sequence[tuple[int, str]]) -> Finding:
    """Do the ciphertexts of a restored database open? Each with its row's key; up to PAIRS are looked at."""
    ids: Counter[str] = Counter()
    wrong = []
    for key, stored in pairs[:PAIRS]:
        try:
            ids[envelope.parse(stored)[0]] += 1
            envelope.decrypt(keys, names.associated_data(key), stored)
        except Undecryptable as error:
            wrong.append(f"{key}: {error.what}")
    measured = {"pairs": min(len(pairs), PAIRS), "key_ids": dict(ids), "wrong": wrong}
    if wrong:
        return failed(measured, _LOST)
    if not pairs:
        return Finding(Verdict.INCONCLUSIVE, measured, "take ciphertexts from the restored database")
    return passed(measured)
