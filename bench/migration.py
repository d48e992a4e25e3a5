"""`python -m bench.migration --rows 2000000`: the backfill against the old plan's loop and the limit; the verification.

With --growth: whether the backfill of a large table is as fast as that of a small one.
The limit is an UPDATE of the same two columns in the same batches whose values the server makes itself: nothing is
read by a client, encrypted or compared. Prints figures and writes bench/migration.json (what others measured stays).
"""

import argparse
import json
import multiprocessing
import resource
import secrets
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.synchronize import Barrier
from pathlib import Path
from statistics import median
from typing import Any

import psycopg

from bench import bed, migration_verify
from bench.measure import CommandFailed
from bench.telling import quiet
from payme_ops.foundation import opsdb
from payme_ops.foundation.settings import MigrationSettings, Settings
from payme_ops.migration import backfill, envelope, expand
from payme_ops.migration.desk import MigrationDesk
from payme_ops.migration.names import PHONE_NUMBER
from sandbox import postgres

FILE = Path(__file__).with_name("migration.json")
ROUNDS = 3
GROWTH, GROWTH_ROWS = "backfill.rate_5m_by_300k", (300_000, 5_000_000)
LOOP_ROWS = 20_000  # the loop is taken to go on as it began
_BATCH = 1_000
_DATABASE = "payme_bench"

# What 2,000,000 rows have to reach, at least.
TARGETS = {
    "backfill.of_limit": 0.8,
    "backfill.two_workers_of_limit": 1.5,
    "backfill.speedup_vs_loop": 25.0,
    GROWTH: 0.8,
    "verify.rows_per_s": 250_000.0,
}

# Columns as wide as PayMe's own. Autovacuum would strike one arm and not another.
_TEMPLATE = """
CREATE TABLE template AS
SELECT i AS id, '+25470' || lpad(((i * 7368787) %% 10000000)::text, 7, '0') AS phone_number,
       gen_random_uuid() AS public_id, 'Name Surname ' || i AS full_name, 'user' || i || '@example.co.ke' AS email,
       '{}'::jsonb AS preferences, now() AS created_at, now() AS updated_at
FROM generate_series(1::bigint, %s::bigint) AS i
"""
_FRESH = """
DROP SCHEMA IF EXISTS payme_migration CASCADE;
DROP TABLE IF EXISTS users;
CREATE TABLE users (LIKE template) WITH (autovacuum_enabled = off);
INSERT INTO users SELECT * FROM template;
ALTER TABLE users ADD PRIMARY KEY (id), ADD UNIQUE (phone_number), ALTER phone_number SET NOT NULL;
DROP FUNCTION IF EXISTS users_phone_number_stale;
"""
_LIMIT = """
UPDATE users SET phone_number_encrypted = 'v1:' || repeat('x', 63), phone_number_bidx = decode(repeat('ab', 32), 'hex')
WHERE id > %s AND id <= %s
"""


@dataclass(frozen=True)
class Place:
    """The server with the template table, and the desk that works on its copies."""

    desk: MigrationDesk
    rows: int
    secret: bytes

    @contextmanager
    def session(self) -> Iterator[psycopg.Connection]:
        """A superuser's, autocommit."""
        with psycopg.connect(self.desk.target, autocommit=True) as connection:
            yield connection

    def settle(self) -> None:
        """A fresh copy of the table, as after the first step; nothing of the arm before is left to write."""
        with self.session() as connection:
            connection.execute(_FRESH)
            expand.do_expand(self.desk, quiet)
            connection.execute("VACUUM (ANALYZE) users")
            connection.execute("CHECKPOINT")


def main() -> int:
    """Exit code: 0 measured, 1 an arm failed."""
    parser = argparse.ArgumentParser(prog="python -m bench.migration", description=__doc__)
    parser.add_argument("--rows", type=int, default=200_000, help="rows of the table; figures are asked for 2,000,000")
    parser.add_argument("--growth", action="store_true", help="only 300,000 rows against 5,000,000")
    asked = parser.parse_args()
    try:
        figures = _growth() if asked.growth else _speed(asked.rows)
    except CommandFailed as error:
        print(error, file=sys.stderr)
        return 1
    known = json.loads(FILE.read_text()) if FILE.exists() else {}
    FILE.write_text(json.dumps({**known, **figures}, indent=1, sort_keys=True) + "\n")
    for name, figure in figures.items():
        target = f"  (asked: at least {TARGETS[name]})" if name in TARGETS else ""
        spread = f"({figure['min']:,.2f} to {figure['max']:,.2f})"
        print(f"{name:35} {figure['value']:>12,.2f} {figure['unit']:7} {spread}{target}")
    return 0


def _speed(rows: int) -> dict[str, dict[str, Any]]:
    with _standing(rows) as place:
        samples = _rounds(place)  # the last arm of the last round leaves every row encrypted
        verified = migration_verify.measure(place.desk, _keys(place))
    return _summarise(rows, samples) | {name: {**one, "rows": rows} for name, one in verified.items()}


def _growth() -> dict[str, dict[str, Any]]:
    """Rows a second of one worker on a large table by those on a small one."""
    rates = list[float]()
    for _ in range(ROUNDS):
        small, large = (_rate(rows) for rows in GROWTH_ROWS)
        rates.append(large / small)
        print(f"{GROWTH_ROWS[0]:,} rows: {small:,.0f} rows/s, {GROWTH_ROWS[1]:,} rows: {large:,.0f} rows/s", flush=True)
    return {GROWTH: _figure("x", GROWTH_ROWS[1], rates)}


def _rate(rows: int) -> float:
    with _standing(rows) as place:
        place.settle()
        return _one_worker(place)["one"]


@contextmanager
def _standing(rows: int) -> Iterator[Place]:
    """A server of its own, as a production server is set up, gone after the block."""
    folder = postgres.data_home(bed.ROOT / "migration")
    shutil.rmtree(folder / "data", ignore_errors=True)
    cluster = postgres.start(
        folder / "data",
        bin_dir=postgres.wheel_bin_dir(),
        port=postgres.free_port(),
        password=secrets.token_urlsafe(12),
        settings=bed.POSTGRES_SETTINGS,
    )
    try:
        with psycopg.connect(cluster.conninfo(), autocommit=True) as connection:
            connection.execute("CREATE DATABASE payme_ops")
            connection.execute(f"CREATE DATABASE {_DATABASE}")
        opsdb.migrate(cluster.conninfo("payme_ops"))
        # The throttle measures and is asked as always, but nothing here is a reason to wait.
        migration = MigrationSettings(wal_bytes_per_second=10**12, canary_p99_ms=10**6, rest_ratio=0.0)
        desk = MigrationDesk(
            Settings.model_construct(migration=migration),
            cluster.conninfo(_DATABASE),
            cluster.conninfo("payme_ops"),
            run="bench",
        )
        place = Place(desk, rows, secrets.token_bytes(32))
        with place.session() as connection:
            connection.execute(psycopg.ClientCursor(connection).mogrify(_TEMPLATE, [rows]).encode())
        yield place
    finally:
        postgres.stop(cluster, "immediate")
        shutil.rmtree(folder / "data", ignore_errors=True)


def _rounds(place: Place) -> list[dict[str, float]]:
    """Each arm once a round, every other round backwards, so that what disturbs the machine disturbs all of them."""
    arms: list[Callable[[Place], dict[str, float]]] = [_loop, _limit, _one_worker, _two_workers]
    samples = list[dict[str, float]]()
    for number in range(ROUNDS):
        sample = dict[str, float]()
        for arm in arms if number % 2 == 0 else arms[::-1]:
            place.settle()
            sample |= arm(place)
        samples.append(sample)
        print(f"round {number + 1}: " + ", ".join(f"{name} {value:,.0f}" for name, value in sample.items()), flush=True)
    return samples


def _loop(place: Place) -> dict[str, float]:
    """The old plan's: each row encrypted and updated by its id, a transaction each, under the index it makes first."""
    keys, names = _keys(place), place.desk.names
    count = min(LOOP_ROWS, place.rows)
    with place.session() as connection:
        connection.execute("CREATE INDEX ON users (phone_number_encrypted)")
        rows = connection.execute("SELECT id, phone_number FROM users WHERE id <= %s", [count]).fetchall()
        began = time.monotonic()
        for key, phone in rows:
            sealed = envelope.encrypt(keys, names.associated_data(key), phone)
            connection.execute("UPDATE users SET phone_number_encrypted = %s WHERE id = %s", [sealed, key])
        return {"loop": count / (time.monotonic() - began)}


def _limit(place: Place) -> dict[str, float]:
    with place.session() as connection:
        began = time.monotonic()
        for low in range(0, place.rows, _BATCH):
            connection.execute(_LIMIT, [low, low + _BATCH])
        return {"limit": place.rows / (time.monotonic() - began)}


def _one_worker(place: Place) -> dict[str, float]:
    with place.session() as connection:
        before = _wal_bytes(connection)
        seconds, peak = _ours(place, 1)
        written = _wal_bytes(connection) - before
    return {"one": place.rows / seconds, "peak_mb": peak / 1e6, "wal_bytes_per_row": written / place.rows}


def _two_workers(place: Place) -> dict[str, float]:
    return {"two": place.rows / _ours(place, 2)[0]}


def _ours(place: Place, workers: int) -> tuple[float, int]:
    """Seconds from all workers' readiness to the last one's end, and the largest memory of one."""
    context = multiprocessing.get_context("spawn")  # as tasks are: nothing of ours is in their memory
    ready, peaks = context.Barrier(workers + 1), context.SimpleQueue()
    ranges = backfill.plan_ranges(place.desk, workers)
    started = [context.Process(target=_worker, args=(place, each, ready, peaks)) for each in ranges]
    for process in started:
        process.start()
    ready.wait(60)
    began = time.monotonic()
    for process in started:
        process.join()
    seconds = time.monotonic() - began
    with place.session() as connection:
        row = connection.execute("SELECT count(phone_number_encrypted), count(phone_number_bidx) FROM users").fetchone()
    if row != (place.rows, place.rows):
        raise CommandFailed(f"the backfill wrote {row} of {place.rows} rows")
    return seconds, max(peaks.get() for _ in started)


def _worker(place: Place, part: tuple[int, int], ready: Barrier, peaks: Any) -> None:
    ready.wait(60)
    backfill.encrypt_range(place.desk, _keys(place), *part, pass_number=1, report=quiet)
    peaks.put(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)


def _keys(place: Place) -> envelope.Keys:
    return envelope.derive(place.secret, key_id="k1", names=PHONE_NUMBER)


def _wal_bytes(connection: psycopg.Connection) -> int:
    row = connection.execute("SELECT pg_wal_lsn_diff(pg_current_wal_lsn(), '0/0')").fetchone()
    return int(row[0]) if row else 0


def _summarise(rows: int, samples: list[dict[str, float]]) -> dict[str, dict[str, Any]]:
    """Ratios are taken within a round; values are medians, a peak is the largest."""

    def figure(unit: str, values: list[float], middle: Callable[[list[float]], float] = median) -> dict[str, Any]:
        return _figure(unit, rows, values, middle)

    def ratio(name: str, to: str) -> list[float]:
        return [each[name] / each[to] for each in samples]

    def plain(name: str) -> list[float]:
        return [each[name] for each in samples]

    return {
        "backfill.rows_per_s": figure("rows/s", plain("one")),
        "backfill.two_workers_rows_per_s": figure("rows/s", plain("two")),
        "backfill.of_limit": figure("x", ratio("one", "limit")),
        "backfill.two_workers_of_limit": figure("x", ratio("two", "limit")),
        "backfill.scale_2_workers": figure("x", ratio("two", "one")),
        "backfill.speedup_vs_loop": figure("x", ratio("two", "loop")),  # the DAG's form says two
        "backfill.one_worker_vs_loop": figure("x", ratio("one", "loop")),
        "backfill.wal_bytes_per_row": figure("B", plain("wal_bytes_per_row")),
        "backfill.peak_rss_mb": figure("MB", plain("peak_mb"), max),
        "limit.backfill_rows_per_s": figure("rows/s", plain("limit")),
        "loop.backfill_rows_per_s": figure("rows/s", plain("loop")),
    }


def _figure(
    unit: str, rows: int, values: list[float], middle: Callable[[list[float]], float] = median
) -> dict[str, Any]:
    shown = {"value": middle(values), "min": min(values), "max": max(values)}
    return {"unit": unit, "runs": len(values), "rows": rows, **{k: round(v, 3) for k, v in shown.items()}}


if __name__ == "__main__":
    sys.exit(main())
