"""How the database bears the backfill, watched by a session of its own while the backfill works.

A gauge that is over its limit stops the backfill after its batch; it goes on when all are at most half of theirs, so
that it does not start and stop all the time. A backup stops it until the backup is done. An autovacuum of the table
makes it half as fast and never stops it: a stopped backfill would not help it, and it helps the backfill. Nor does a
standby that is lost, which may never come back; but that it is, and what WAL is kept for it, is said.
"""

import threading
import time
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field

import psycopg

from payme_ops.foundation import lease
from payme_ops.foundation.clock import show
from payme_ops.foundation.errors import GateClosed, PaymeOpsError
from payme_ops.foundation.postgres import speaking
from payme_ops.foundation.progress import size
from payme_ops.foundation.settings import MigrationSettings
from payme_ops.migration.desk import MigrationDesk, session
from payme_ops.migration.names import statement
from payme_ops.migration.shape import named

CANARY_SECONDS = 0.1
_CANARIES_A_READING = 10  # a reading each second
_CANARIES_KEPT = 100  # the last ten seconds
_CANARIES_NEEDED = 20  # fewer say nothing of a percentile
_READINGS_KEPT = 600  # a lag beyond ten minutes is told as ten minutes
_SEGMENT = 1 << 24  # WAL is kept in files of this size


@dataclass(frozen=True)
class Reading:
    """What was measured at one time."""

    replica_lag_seconds: float = 0.0
    wal_bytes_per_second: float = 0.0
    lock_waiters: int = 0
    canary_p99_ms: float = 0.0
    autovacuum: bool = False
    backup: str = ""  # who makes one, and since when
    lost: str = ""  # standbys that are gone, and slots that keep WAL for nobody


def over(reading: Reading, limits: MigrationSettings, before: frozenset[str] = frozenset()) -> dict[str, str]:
    """The gauges that stop the backfill, with words; `before`: those that did already, which have to fall to half."""
    gauges = {
        "replica lag": (reading.replica_lag_seconds, limits.replica_lag_seconds, "{:.1f} s", 1.0),
        "WAL": (reading.wal_bytes_per_second, limits.wal_bytes_per_second, "{:.1f} MB/s", 1e6),
        "sessions that wait for our locks": (reading.lock_waiters, 0, "{:.0f}", 1.0),
        "a read by key, p99": (reading.canary_p99_ms, limits.canary_p99_ms, "{:.0f} ms", 1.0),
    }
    found = {}
    for name, (value, limit, shown, unit) in gauges.items():
        allowed = limit / 2 if name in before else limit
        if not value <= allowed:  # NaN is no leave to go on
            found[name] = f"{name} {shown.format(value / unit)} (goes on at {shown.format(limit / 2 / unit)})"
    return found


def behind(history: Sequence[tuple[float, float]], replayed: float) -> float:
    """Seconds since there is WAL, by (time, position) of each reading, that a standby has not replayed."""
    return history[-1][0] - next((at for at, position in history if position > replayed), history[-1][0])


def missed(gone: Iterable[str], kept: Mapping[str, int]) -> str:
    """Words for standbys that are gone, and for slots that nobody reads, with the bytes of WAL that each keeps."""
    return ", ".join(
        [f"standby {name} is gone" for name in sorted(gone)]
        + [f"nobody reads slot {name}, which keeps {_about(count)} of WAL" for name, count in sorted(kept.items())]
    )


def _about(count: int) -> str:
    """Bytes of WAL, in words that are others when they have doubled, and not at every reading."""
    if count < _SEGMENT:
        return f"less than {size(_SEGMENT)}"
    return f"at least {size(1 << count.bit_length() - 1)}"


@dataclass
class Meter:
    """Takes readings through one session. What changes with time is kept here."""

    connection: psycopg.Connection = field(repr=False)
    desk: MigrationDesk
    canaries: deque[float] = field(default_factory=lambda: deque(maxlen=_CANARIES_KEPT))
    history: deque[tuple[float, float]] = field(default_factory=lambda: deque(maxlen=_READINGS_KEPT))
    standbys: set[str] = field(default_factory=set)  # that were seen so far

    def read(self) -> Reading:
        """Raises DatabaseUnavailable, DatabaseError, GateClosed: what is not measured must not be taken for little."""
        names = self.desk.names
        with speaking("measure how the database bears the backfill"):
            row = self.connection.execute(statement(names, "3_load.sql"), named(names)).fetchone()
        if not row or not row[0]:
            raise GateClosed(
                "how the database bears the backfill is hidden from its role",
                expected="a role that sees replica lag and others' sessions",
                found="no pg_read_all_stats",
                remedy="grant pg_monitor to the migrate role (include/sql/grants/migrate_role.sql), then run it again",
            )
        _, lag, replayed, written, waiters, autovacuum, standbys, kept = row
        self.standbys.update(standbys)
        now = time.monotonic()
        rate = (written - self.history[-1][1]) / (now - self.history[-1][0]) if self.history else 0.0
        self.history.append((now, written))
        if replayed is not None:
            lag = max(lag, behind(self.history, replayed))
        holder = lease.peek(self.desk.ops, f"snapshot:{self.desk.database}")
        return Reading(
            replica_lag_seconds=float(lag),
            wal_bytes_per_second=rate,
            lock_waiters=waiters,
            canary_p99_ms=self._p99() * 1000,
            autovacuum=autovacuum,
            backup=f"{holder.holder} since {show(holder.since)}" if holder else "",
            lost=missed(self.standbys.difference(standbys), kept),
        )

    def canary(self, key: int) -> None:
        """Read one row and keep how long it took. Raises DatabaseUnavailable, DatabaseError."""
        began = time.perf_counter()
        # A table that cannot be read at all is a slow one.
        with speaking("read one row"), suppress(psycopg.errors.LockNotAvailable):
            self.connection.execute(statement(self.desk.names, "3_canary.sql"), [key]).fetchone()
        self.canaries.append(time.perf_counter() - began)

    def _p99(self) -> float:
        if len(self.canaries) < _CANARIES_NEEDED:
            return 0.0
        ordered = sorted(self.canaries)
        return ordered[int(0.99 * (len(ordered) - 1))]


class Throttle:
    """The newest reading and what follows from it. A thread takes them; one task asks."""

    def __init__(self, meter: Meter, low: int, high: int) -> None:
        self._meter, self._limits = meter, meter.desk.settings.migration
        self._low, self._span = low, max(high - low, 1)
        self._news, self._stop = threading.Condition(), threading.Event()
        self._over: dict[str, str] = {}
        self._told = ""
        self._failure: PaymeOpsError | None = None
        self.take(meter.read())

    def take(self, reading: Reading) -> None:
        """A new reading."""
        with self._news:
            self._over = over(reading, self._limits, frozenset(self._over))
            self.backup, self.slow, self.lost = reading.backup, reading.autovacuum, reading.lost
            self._news.notify_all()

    def waits(self) -> str:
        """Why the backfill has to wait; empty when it may go on. Raises what kept the last reading from being taken."""
        with self._news:
            if self._failure:
                raise self._failure
            backup = [f"a backup is made by {self.backup}"] if self.backup else []
            return ", ".join([*backup, *self._over.values()])

    def warns(self) -> str:
        """What a person should know and the backfill does not wait for; empty when that has been said."""
        with self._news:
            before, self._told = self._told, self.lost
            return self.lost if self.lost != before else ""

    def wait_for_news(self) -> None:
        """Return with the next reading, about a second later."""
        with self._news:
            self._news.wait(CANARY_SECONDS * _CANARIES_A_READING * 2)

    def watch(self) -> None:
        """The thread: a canary each 100 ms, a reading each second, until `end`."""
        number = 0
        try:
            while not self._stop.wait(CANARY_SECONDS):
                number += 1
                self._meter.canary(self._low + number * 7_919 % self._span)
                if number % _CANARIES_A_READING == 0:
                    self.take(self._meter.read())
        except PaymeOpsError as error:
            with self._news:
                self._failure = error
                self._news.notify_all()

    def end(self) -> None:
        """Stop watching."""
        self._stop.set()


@contextmanager
def watching(desk: MigrationDesk, low: int, high: int) -> Iterator[Throttle]:
    """A throttle for the block, with its first reading. Raises DatabaseUnavailable, DatabaseError."""
    with session(desk, "watch") as connection:
        with speaking("set up the session that watches"):
            connection.execute("SET lock_timeout = '1s'")
        throttle = Throttle(Meter(connection, desk), low, high)
        thread = threading.Thread(target=throttle.watch, name="throttle", daemon=True)
        thread.start()
        try:
            yield throttle
        finally:
            throttle.end()
            thread.join()
