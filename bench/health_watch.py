"""`python -m bench.health_watch`: what the health watch costs a triggerer that looks at 50 applications.

The trigger itself (payme_ops.orchestration.health_watch.HealthWatch) runs in a process that has imported what a
triggerer has, against 50 addresses on loopback in another process and a real ops database. Memory is what it adds to
that process, and CPU what a round takes, spread over the 30 seconds from one round to the next. First all are well,
then all are down at once, with a burst, an outage and an alert for each. Writes bench/health_watch.json.
"""

import argparse
import asyncio
import json
import multiprocessing
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import psutil
import psycopg

from payme_ops.foundation import opsdb
from payme_ops.foundation.clock import EAT, utc_now
from sandbox import postgres, slack, world
from sandbox.http import call
from sandbox.standin import Answer, Refused, Request, Server, Serves

FILE = Path(__file__).with_name("health_watch.json")
ENDPOINTS, EVERY_SECONDS = 50, 30.0
# Rounds are closer here: what is measured is the CPU of one, and between two the trigger sleeps.
INTERVAL, ROUNDS_WELL, ROUNDS_DOWN = 2.0, 20, 5
_MB = 1_000_000
_MARK = "figures: "
_STORED = """
SELECT
    (SELECT count(*) FROM ops.outages),
    (SELECT percentile_cont(0.95) WITHIN GROUP (ORDER BY ms) FROM ops.health_samples WHERE state = 'healthy')
"""


def main() -> int:
    """Measure, write, tell."""
    arguments = argparse.ArgumentParser(prog="python -m bench.health_watch", description=__doc__)
    arguments.add_argument("--watch", action="store_true", help=argparse.SUPPRESS)
    if arguments.parse_args().watch:
        _watch()
        return 0
    found = {**_measure(), "day": f"{utc_now().astimezone(EAT):%Y-%m-%d}"}
    FILE.write_text(json.dumps(found, indent=1, sort_keys=True) + "\n")
    for name, value in found.items():
        print(f"{name:40} {value}")
    return 0


def _measure() -> dict[str, Any]:
    """Start what is looked at and what is written to; then the process that watches, which tells its figures."""
    with tempfile.TemporaryDirectory(prefix="payme-bench-") as folder, postgres.temporary_cluster() as cluster:
        opsdb.migrate(cluster.conninfo())
        urls = {name: _serve(name, Path(folder)) for name in ("applications", "slack")}
        env = {**world.build(Path(folder) / "world").env, **_doors(cluster, urls), "AIRFLOW_HOME": folder}
        command = [sys.executable, "-m", "bench.health_watch", "--watch"]
        with subprocess.Popen(
            command, env=env, cwd=postgres.PROJECT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        ) as process:
            assert process.stdin  # noqa: S101
            assert process.stdout  # noqa: S101
            well = _figures(process.stdout)
            call("POST", f"{urls['applications']}/control", {"fail": 503, "count": None})
            process.stdin.write("down\n")
            process.stdin.flush()
            down = _figures(process.stdout)
        with psycopg.connect(cluster.conninfo()) as connection:
            row = connection.execute(_STORED).fetchone()
        opened, took = row if row else (0, 0.0)
    if opened != ENDPOINTS:
        raise SystemExit(f"{opened} of {ENDPOINTS} outages were opened: these figures are of something else")
    return {
        "health_watch.endpoints": ENDPOINTS,
        "health_watch.worker_slots": 0,  # by construction: it is a trigger, and starts no run for a look
        "health_watch.rounds": well["rounds"],
        "health_watch.look_ms_p95": round(took, 1),
        "health_watch.added_mb": round(max(well["added"], down["added"]) / _MB, 1),
        "health_watch.core_percent": round(100 * well["cpu"] / well["rounds"] / EVERY_SECONDS, 2),
        "health_watch.core_percent_all_down": round(100 * down["cpu"] / down["rounds"] / EVERY_SECONDS, 2),
    }


def _figures(lines: Iterable[str]) -> dict[str, Any]:
    """The next that it tells, between lines of its log."""
    line = next(one for one in lines if one.startswith(_MARK))
    return dict(json.loads(line.removeprefix(_MARK)))


def _doors(cluster: postgres.Cluster, urls: dict[str, str]) -> dict[str, str]:
    where = {"conn_type": "postgres", "host": "127.0.0.1", "port": cluster.port, "schema": "postgres"}
    ops = {**where, "login": cluster.superuser, "password": cluster.password}
    told = {"conn_type": "slack", "password": "xoxb-bench", "extra": {"base_url": f"{urls['slack']}/api/"}}
    endpoints = [f"e{number:02}={urls['applications']}/e{number:02}" for number in range(ENDPOINTS)]
    return {
        "AIRFLOW_CONN_PAYME_OPS_DB": json.dumps(ops),
        "AIRFLOW_CONN_PAYME_SLACK": json.dumps(told),
        "PAYME_OPS__MONITORING__ENDPOINTS": ",".join(endpoints),
        "PAYME_OPS__MONITORING__INTERVAL_SECONDS": str(INTERVAL),
        "PYTHONPATH": os.pathsep.join([str(postgres.PROJECT), str(postgres.PROJECT / "plugins")]),
    }


# -- what is looked at, in a process of its own ------------------------------------------------------------------


def _serve(name: str, folder: Path) -> str:
    ours, theirs = multiprocessing.Pipe()
    multiprocessing.Process(target=_server, args=(name, folder, theirs), daemon=True).start()
    url: str = ours.recv()
    return url


def _server(name: str, folder: Path, told: Connection) -> None:
    sys.stderr = Path(os.devnull).open("w")  # noqa: SIM115  # a line for each request
    Server.request_queue_size = 10 * ENDPOINTS  # 50 applications would have 50 queues
    server: Serves = (
        slack.make_server(0, folder / "slack.jsonl")
        if name == "slack"
        else Server(0, _well, lambda path: path.endswith("/health"), {"status": "unhealthy"})
    )
    told.send(server.url)
    server.serve_forever()


def _well(request: Request) -> Answer:
    match request.path.rpartition("/")[2]:
        case "health":
            return Answer({"status": "healthy", "database": "connected", "version": "2.4.0"})
        case "metrics":
            return Answer({"version": "2.4.0", "response_ms": {"p50": 20, "p95": 120, "p99": 300, "count": 60}})
    raise Refused(404, {})


# -- the process that watches -------------------------------------------------------------------------------------


def _watch() -> None:
    """Rounds while all are well, figures to stdout, a line from stdin, rounds while all are down, figures."""
    import airflow.jobs.triggerer_job_runner  # noqa: F401, TID251  # what is there before the watch begins

    from payme_ops.monitoring import rounds
    from payme_ops.orchestration.health_watch import HealthWatch

    process, done = psutil.Process(), 0
    bare = process.memory_info().rss
    whole = rounds.Watch.round

    async def counted(self: rounds.Watch, slot: Any) -> Any:
        nonlocal done
        due = await whole(self, slot)
        await self.sent()
        done += 1
        return due

    rounds.Watch.round = counted  # type: ignore[method-assign]

    async def take(wanted: int) -> None:
        before, cpu = done, time.process_time()
        while done < before + wanted:
            await asyncio.sleep(0.05)
        figures = {"rounds": done - before, "cpu": time.process_time() - cpu}
        print(_MARK + json.dumps({**figures, "added": process.memory_info().rss - bare}), flush=True)

    async def run() -> None:
        async def forever() -> None:
            async for _ in HealthWatch().run():  # type: ignore[no-untyped-call]
                pass

        task = asyncio.create_task(forever())
        while not done:  # the first round imports what it needs
            await asyncio.sleep(0.05)
        await take(ROUNDS_WELL)
        await asyncio.to_thread(sys.stdin.readline)
        await take(ROUNDS_DOWN)
        task.cancel()

    asyncio.run(run())


if __name__ == "__main__":
    sys.exit(main())
