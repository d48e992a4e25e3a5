"""`make workers`: the backfill on one, two and four workers, through Celery, as rows a second.

The host of docker-compose.yaml as processes (tests/distributed/farm.py): the mapped tasks of step 3 go by Redis to so
many workers of the queue `migration`, one task each at a time. Twice: with the rest that a backfill takes for the
application, as shipped, and without it. Rows a second are over the time from the first range's begin to the last one's
end, so Airflow's own seconds (a task takes some to begin) stand beside them. Writes bench/workers.json and
the table in bench/README.md.
"""

import argparse
import json
import os
import socket
import sys
import time
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import psycopg
from celery import Celery

from bench.telling import publish
from payme_ops.migration import backfill, expand
from payme_ops.migration.desk import MigrationDesk
from tests.distributed import farm as host
from tests.distributed.farm import Farm, unparsed
from tests.distributed.work import WITHIN_SECONDS, mapped_backfill

FILE = Path(__file__).with_name("workers.json")
PAGE = Path(__file__).with_name("README.md")
WORKERS = (1, 2, 4)
RESTS = {"as shipped": "9", "without rest": "0"}  # PAYME_OPS__MIGRATION__REST_RATIO
_BUSY = 0.9  # of the machine's cores: then these are what bounds it
_SPAN = (
    "SELECT sum(rows)::float8, extract(epoch FROM max(ended_at) - min(began_at))::float8 FROM payme_migration.progress"
    " WHERE pass_number = 1 AND work = 'encrypt'"
)


def main() -> int:
    """Measure, write, tell."""
    parser = argparse.ArgumentParser(prog="python -m bench.workers", description=__doc__)
    parser.add_argument("--size", default="bench_full", help="of the made-up data (sandbox/payme_db/generate.py)")
    size: str = parser.parse_args().size
    with host.running(size=size) as farm:
        desk = mapped_backfill(farm, []).desk
        expand.do_expand(desk, lambda _: None)
        with psycopg.connect(farm.world.cluster.conninfo("payme"), autocommit=True) as connection:
            connection.execute("ANALYZE users")
        farm.until(partial(unparsed, farm, "mapped_backfill"), "the DAG")
        rows = [_measure(farm, desk, count, name) for name in RESTS for count in WORKERS]
    found = {"cores": os.cpu_count(), "size": size, "runs": rows}
    FILE.write_text(json.dumps(found, indent=1) + "\n")
    publish(PAGE, "workers", table(found))
    print(table(found))
    return 0


def _measure(farm: Farm, desk: MigrationDesk, count: int, rest: str) -> dict[str, Any]:
    """The backfill of all rows by so many workers, each of which has started before."""
    names = _workers(farm, count, RESTS[rest])
    try:
        work = mapped_backfill(farm, backfill.plan_ranges(desk, count))
        begun, busy = time.monotonic(), psutil.cpu_times()
        work.begin()
        farm.until(work.left, "the backfill", WITHIN_SECONDS)
        wall, cores = time.monotonic() - begun, _cores(busy)
        if work.state != "success":
            raise SystemExit(f"the backfill by {count} ended as {work.state}: read the logs of its tasks in Airflow")
        with psycopg.connect(farm.world.cluster.conninfo("payme")) as connection:
            rows, seconds = connection.execute(_SPAN).fetchone() or (0, 0.0)
        backfill.clear_range(desk, 0, 2**62)
    finally:
        for name in names:
            farm.stop(name)
    return {
        "workers": count,
        "rest": rest,
        "rows": int(rows),
        "rows_per_s": round(rows / seconds),
        "seconds": round(seconds, 1),
        "run_seconds": round(wall, 1),
        "busy_cores": round(cores, 2),
    }


def _workers(farm: Farm, count: int, rest: str) -> list[str]:
    """So many services like the compose file's, one task each at a time, started; their names."""
    if "worker-migration" in farm.supervisor.pids():
        farm.stop("worker-migration")
    template = farm.processes["worker-migration"]
    names = [f"worker-migration-{number}" for number in range(1, count + 1)]
    for name in names:
        words = [word.replace("migration@", f"{name}@") for word in template.argv]
        words[words.index("--concurrency") + 1] = "1"
        env = {**template.env, "PAYME_OPS__MIGRATION__REST_RATIO": rest}
        farm.processes[name] = replace(template, name=name, argv=words, env=env, ready=partial(_silent, farm, name))
    farm.start(*names)
    return names


def _silent(farm: Farm, name: str) -> str | None:
    """A ready condition: that worker answers a ping by way of Redis."""
    with Celery(broker=farm.broker_url) as app:
        found = app.control.ping(destination=[f"{name}@{socket.gethostname()}"], timeout=2)
    return None if found else "an answer by way of Redis"


def _cores(before: Any) -> float:
    """How many of the machine's cores were at work since then, on average."""
    now = psutil.cpu_times()
    total, idle = sum(now) - sum(before), now.idle - before.idle + now.iowait - before.iowait
    return float((os.cpu_count() or 1) * (1 - idle / total))


def table(found: Mapping[str, Any]) -> str:
    """What was found, as bench/README.md shows it."""
    rows = found["runs"]
    one = {row["rest"]: row["rows_per_s"] for row in rows if row["workers"] == 1}
    lines = [
        f"{rows[0]['rows']:,} rows, {found['cores']} cores; Python, Celery and PostgreSQL share them.\n",
        "| workers | rest | rows/s | times one | seconds of writing, of the run | cores at work | bound by |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        times, seconds = row["rows_per_s"] / one[row["rest"]], f"{row['seconds']:g} of {row['run_seconds']:g}"
        cells = (row["workers"], row["rest"], f"{row['rows_per_s']:,}", f"{times:.1f}", seconds, row["busy_cores"])
        lines.append(f"| {' | '.join(map(str, cells))} | {bound(row, found['cores'])} |")
    return "\n".join([*lines, ""])


def bound(row: Mapping[str, Any], cores: int) -> str:
    """What kept it from being faster."""
    if row["busy_cores"] > _BUSY * cores:
        return "the machine's cores"
    return "its own rest" if row["rest"] == "as shipped" else "the database: WAL, commits"


if __name__ == "__main__":
    sys.exit(main())
