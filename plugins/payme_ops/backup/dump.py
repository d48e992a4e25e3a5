"""The dump: locks, one snapshot, pg_dump in it, the truth beside it, and giving way to whoever waits behind us.

The order matters (measured in PostgreSQL 15 to 17):
  1. list the relations in a transaction of its own: a listing inside would fix the snapshot before the locks;
  2. LOCK every table in ACCESS SHARE, so that no TRUNCATE or DROP comes between snapshot and dump;
  3. export the snapshot, list again, start over when the list has changed;
  4. pg_dump --snapshot, with its own lock timeout: DDL queued behind us would otherwise hang it for ever.
Whoever waits more than a second behind our locks (DDL, and the readers queued behind that) makes us let go.
"""

import os
import random
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import IO, Any

import psycopg
from backports.zstd import CompressionParameter, ZstdCompressor
from psycopg import sql
from psycopg.rows import dict_row

from payme_ops.backup import truth
from payme_ops.backup.listing import ListingTee
from payme_ops.backup.manifest import Dump, SequenceTruth, Server, Truth
from payme_ops.foundation import content
from payme_ops.foundation.clock import utc_now
from payme_ops.foundation.errors import DumpFailed, SteppedAside
from payme_ops.foundation.postgres import (
    client_environment,
    client_invocation,
    client_tool,
    connect,
    server_major,
    speaking,
    tool_failure,
    tool_version,
)
from payme_ops.foundation.progress import Report
from payme_ops.foundation.sql import load

ATTEMPTS = 3
LOCK_TIMEOUT_MS = 500
WAITER_PATIENCE_SECONDS = 1.0
_POLL_SECONDS = 0.2
_READ_BYTES = 1024 * 1024
_ZSTD_INSIDE_FROM = 16  # pg_dump learned zstd in 16


@dataclass(frozen=True)
class Source:
    """What is dumped and with which tools."""

    conninfo: str = field(repr=False)  # may hold a password
    client_dirs: list[str]
    with_truth: bool = True


@dataclass
class Dumped:
    """What one dump came to; `truth` is there once `dump` has returned."""

    started_at: datetime
    snapshot_at: datetime
    server: Server
    dump: Dump
    truth: Truth | None = None
    milliseconds: dict[str, int] = field(default_factory=dict)


class _GaveWay(Exception):
    """Somebody waited behind our locks; everything was released."""


Consume = Callable[[Iterator[bytes], Dumped], None]


def dump(source: Source, application: str, consume: Consume, *, report: Report) -> Dumped:
    """Dump `source` into `consume(chunks, dumped)`; a second call is made for every new attempt.

    `application` names our sessions on the server and must be unique to this run. `consume` must make nothing
    visible before it returns. Memory: one pipe buffer. Raises SteppedAside after three attempts that gave way,
    DumpFailed, DatabaseUnavailable, DatabaseError, and whatever `consume` raises.
    """
    for attempt in range(1, ATTEMPTS + 1):
        try:
            return _attempt(source, f"{application}:{attempt}"[:63], consume, report=report)
        except _GaveWay as reason:
            report(f"attempt {attempt} of {ATTEMPTS} gave way: {reason}; its locks are released")
            found = str(reason)
            if attempt < ATTEMPTS:
                time.sleep(random.uniform(1, 3) * attempt)  # noqa: S311  # jitter
    raise SteppedAside(
        f"the dump gave way {ATTEMPTS} times",
        expected="no session waiting behind a reader's locks",
        found=found,
        remedy="find what keeps changing the schema; run the backup again when it is done",
    )


def _attempt(source: Source, application: str, consume: Consume, *, report: Report) -> Dumped:
    started = utc_now()
    clock = time.monotonic()
    with connect(source.conninfo, application=application) as session, _watch(source.conninfo, application) as watch:
        try:
            with speaking("freeze the schema and export a snapshot"):
                frozen = _freeze(session)
            sequences = _sequences(session)
            dumped = Dumped(started, frozen.snapshot_at, frozen.server, _describe(source, frozen.major))
            dumped.milliseconds["locks"] = _since(clock)
            with (
                closing(_Measuring(session, frozen, sequences, enabled=source.with_truth, report=report)) as measuring,
                closing(_Stream(source, application, frozen, watch, measuring, dumped)) as stream,
            ):
                consume(stream.chunks(), dumped)
        except _GaveWay:
            raise
        except BaseException as error:
            watch.end_sessions()
            if watch.conflict and isinstance(error, Exception):
                raise _GaveWay(watch.conflict) from None
            raise
        return dumped


@dataclass(frozen=True)
class _Frozen:
    """An open transaction that holds its locks, and its exported snapshot."""

    snapshot: str
    snapshot_at: datetime
    relations: list[dict[str, Any]]
    server: Server
    major: int


def _freeze(session: psycopg.Connection) -> _Frozen:
    content.pin_settings(session)
    for _ in range(5):
        relations = content.list_relations(session)
        session.execute("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY")
        try:
            _lock(session, relations)
        except psycopg.errors.LockNotAvailable:
            raise _GaveWay("another session holds a table exclusively") from None
        except psycopg.errors.UndefinedTable:  # dropped since it was listed
            session.execute("ROLLBACK")
            continue
        # By our own clock, which also says when a run was asked for, and never later than the snapshot is.
        snapshot_at = utc_now()
        row = session.execute("SELECT pg_export_snapshot()").fetchone()
        if row is not None and content.list_relations(session) == relations:
            return _Frozen(row[0], snapshot_at, relations, _server(session), server_major(session))
        session.execute("ROLLBACK")
    raise _GaveWay("tables are being created or dropped all the time")


def _lock(session: psycopg.Connection, relations: list[dict[str, Any]]) -> None:
    """ACCESS SHARE on every table; materialised views and foreign tables cannot be locked."""
    names = [sql.Identifier(r["schema"], r["name"]) for r in relations if r["kind"] in ("r", "p")]
    session.execute(sql.SQL("SET LOCAL lock_timeout = {}").format(sql.Literal(LOCK_TIMEOUT_MS)))
    if names:
        tables = sql.SQL(", ").join(sql.SQL("ONLY {}").format(name) for name in names)
        session.execute(sql.SQL("LOCK TABLE {} IN ACCESS SHARE MODE").format(tables))


def _server(session: psycopg.Connection) -> Server:
    with session.cursor(row_factory=dict_row) as cursor:
        facts = cursor.execute(load("backup/server_facts.sql")).fetchone() or {}
    facts.pop("database", None)
    return Server(**facts)


def _sequences(session: psycopg.Connection) -> list[SequenceTruth]:
    with speaking("read sequences"):
        return truth.list_sequences(session)


def _describe(source: Source, major: int) -> Dump:
    version = tool_version(client_tool("pg_dump", major, source.client_dirs))
    return Dump(
        tool=f"pg_dump {version[0]}.{version[1]}",
        format="custom",
        compression="zstd:1",
        compression_place="inside" if major >= _ZSTD_INSIDE_FROM else "outside",
        listing={},
    )


def _since(start: float) -> int:
    return round((time.monotonic() - start) * 1000)


class _Watch:
    """Looks five times a second for sessions that wait behind ours; pulls the plug when one has waited too long."""

    def __init__(self, connection: psycopg.Connection, application: str) -> None:
        self._connection, self._application = connection, application
        self._pull: list[Callable[[], None]] = []
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="lock watch", daemon=True)
        self.conflict = ""
        self._thread.start()

    def on_conflict(self, pull: Callable[[], None]) -> None:
        """Register what lets go of the locks."""
        self._pull.append(pull)
        if self.conflict:
            pull()

    def end_sessions(self) -> None:
        """End what is left of this attempt on the server, so that no lock outlives it."""
        with suppress(psycopg.Error):  # a server that is down has no sessions of ours
            self._connection.execute(load("backup/end_dump_sessions.sql"), {"pattern": self._application})

    def close(self) -> None:
        """Stop looking."""
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        first_seen: dict[int, float] = {}
        while not self._stop.wait(_POLL_SECONDS):
            try:
                rows = self._connection.execute(
                    load("backup/blocked_by_us.sql"), {"application": self._application}
                ).fetchall()
            except psycopg.Error:
                self._let_go("the session that watches for waiters was lost")
                return
            now = time.monotonic()
            first_seen = {pid: first_seen.get(pid, now) for pid, _, _ in rows}
            late = [row for row in rows if now - first_seen[row[0]] >= WAITER_PATIENCE_SECONDS]
            if late:
                self._let_go(f"session {late[0][0]} waits for {late[0][2]} on {late[0][1]}")
                return

    def _let_go(self, reason: str) -> None:
        self.conflict = reason
        for pull in self._pull:
            pull()
        self.end_sessions()


@contextmanager
def _watch(conninfo: str, application: str) -> Iterator[_Watch]:
    with connect(conninfo, application=f"payme_ops:watch:{application}"[:63]) as connection:
        watch = _Watch(connection, application)
        try:
            yield watch
        finally:
            watch.close()


class _Measuring:
    """The truth, measured in the frozen transaction on a thread of its own, while pg_dump runs."""

    def __init__(
        self,
        session: psycopg.Connection,
        frozen: _Frozen,
        sequences: list[SequenceTruth],
        *,
        enabled: bool,
        report: Report,
    ) -> None:
        self._session, self._frozen, self._sequences, self._report = session, frozen, sequences, report
        self._enabled = enabled
        self._truth: Truth | None = None
        self._error: psycopg.Error | None = None
        self._milliseconds = 0
        self._thread = threading.Thread(target=self._run, name="truth", daemon=True)
        self._thread.start()

    def result(self) -> tuple[Truth | None, int]:
        """(truth, milliseconds) once measured. Raises DatabaseUnavailable, DatabaseError."""
        self._thread.join()
        with speaking("measure rows and content"):
            if self._error:
                raise self._error
        return self._truth, self._milliseconds

    def cancel(self) -> None:
        """Ask the server to stop the running statement."""
        if self._thread.is_alive():
            with suppress(psycopg.Error):
                self._session.cancel_safe(timeout=5)

    def close(self) -> None:
        """Cancel if it still runs, and wait for the thread."""
        self.cancel()
        self._thread.join()

    def _run(self) -> None:
        if not self._enabled:
            return
        start = time.monotonic()
        try:
            self._truth = truth.measure(
                self._session,
                self._frozen.relations,
                self._sequences,
                skip_unlogged=self._frozen.server.in_recovery,
                report=self._report,
            )
        except psycopg.Error as error:
            self._error = error
        self._milliseconds = _since(start)


class _Stream:
    """pg_dump's output. The iterator ends only when pg_dump succeeded and the truth is complete."""

    def __init__(
        self,
        source: Source,
        application: str,
        frozen: _Frozen,
        watch: _Watch,
        measuring: _Measuring,
        dumped: Dumped,
    ) -> None:
        self._dumped, self._measuring = dumped, measuring
        self._outside = frozen.major < _ZSTD_INSIDE_FROM
        pg_restore = client_tool("pg_restore", frozen.major, source.client_dirs)
        self._start = time.monotonic()
        self._process = _start_pg_dump(source, application, frozen)
        self._stderr = _Tail(self._process.stderr)
        self._tee = ListingTee(pg_restore)
        watch.on_conflict(self._process.kill)
        watch.on_conflict(measuring.cancel)

    def chunks(self) -> Iterator[bytes]:
        """The archive, compressed. Raises DumpFailed, DatabaseUnavailable, DatabaseError instead of ending."""
        compressor = ZstdCompressor(options={CompressionParameter.compression_level: 1}) if self._outside else None
        for chunk in self._raw():
            data = compressor.compress(chunk) if compressor else chunk
            if data:
                yield data
        if compressor:
            yield compressor.flush()
        self._dumped.milliseconds["dump"] = _since(self._start)
        listing = self._tee.counts()
        if listing is None:
            raise DumpFailed("the archive has no table of contents", expected="an archive in custom format")
        self._dumped.dump = self._dumped.dump.model_copy(update={"listing": listing})
        self._dumped.truth, self._dumped.milliseconds["truth"] = self._measuring.result()

    def close(self) -> None:
        """End pg_dump if it still runs."""
        if self._process.poll() is None:
            self._process.kill()
        self._process.wait()
        self._stderr.join()
        if self._process.stdout is not None:
            self._process.stdout.close()
        self._tee.kill()

    def _raw(self) -> Iterator[bytes]:
        if self._process.stdout is None:
            raise DumpFailed("pg_dump has no output")
        descriptor = self._process.stdout.fileno()
        while chunk := os.read(descriptor, _READ_BYTES):
            self._tee.feed(chunk)
            yield chunk
        if self._process.wait() != 0:
            said = self._stderr.text()
            # --lock-wait-timeout is a statement_timeout for as long as pg_dump takes its locks.
            if "due to statement timeout" in said or "could not obtain lock" in said:
                raise _GaveWay("pg_dump met somebody's lock")
            raise tool_failure("pg_dump", self._process.returncode, said)


class _Tail:
    """Keeps the first 16 KiB that a process says on stderr."""

    def __init__(self, stream: IO[bytes] | None) -> None:
        self._text = b""
        self._stream = stream
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def text(self) -> str:
        """What was said, once the process has ended."""
        self._thread.join()
        return self._text.decode(errors="replace")

    def join(self) -> None:
        """Wait for the end of the stream."""
        self._thread.join()

    def _read(self) -> None:
        if self._stream is None:
            return
        with self._stream:
            while piece := self._stream.read(4096):
                if len(self._text) < 16384:
                    self._text += piece


def _start_pg_dump(source: Source, application: str, frozen: _Frozen) -> subprocess.Popen[bytes]:
    dbname, secrets = client_invocation(source.conninfo, application=application)
    command: list[str | Path] = [
        client_tool("pg_dump", frozen.major, source.client_dirs),
        "--format=custom",
        "--compress=0" if frozen.major < _ZSTD_INSIDE_FROM else "--compress=zstd:1",
        f"--snapshot={frozen.snapshot}",
        f"--lock-wait-timeout={int(WAITER_PATIENCE_SECONDS * 1000)}",
        "--no-password",
        f"--dbname={dbname}",
    ]
    if frozen.server.in_recovery:
        command.append("--no-unlogged-table-data")
    return subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        bufsize=0,
        pipesize=_READ_BYTES,
        env=client_environment(secrets),
    )
