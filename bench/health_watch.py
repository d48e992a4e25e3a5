"""`python -m bench.health_watch`: what the health watch costs a triggerer, and how soon it tells.

The trigger itself (payme_ops.orchestration.health_watch.HealthWatch) runs in a process that has imported what a
triggerer has, against 50 addresses on loopback in another process and a real ops database. Memory is what it adds to
that process, and CPU what a round takes, spread over the 30 seconds from one round to the next. First all are well,
then all are down at once, with a burst, an outage and an alert for each.

Then, or with --faults only this: in real time, with the 30 seconds of production, one application for each fault, all
of which begin right after a look, so that the next one is as far away as can be: seconds until the verdict is
in ops.outages and until Slack's stand-in has the message. Writes bench/health_watch.json (what was not measured stays).
"""

import argparse
import asyncio
import json
import multiprocessing
import os
import ssl
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import psutil
import psycopg
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from payme_ops.foundation import opsdb
from payme_ops.foundation.clock import EAT, utc_now
from sandbox import postgres, slack, world
from sandbox.http import call
from sandbox.standin import Answer, Refused, Request, Server, Serves

FILE = Path(__file__).with_name("health_watch.json")
ENDPOINTS, EVERY_SECONDS = 50, 30.0
# Rounds are closer here: what is measured is the CPU of one, and between two the trigger sleeps.
INTERVAL, ROUNDS_WELL, ROUNDS_DOWN = 2.0, 20, 5
# What an application does from a moment on. `flap` is away for 20 seconds of each 25.
FAULTS = ("refused", "flap", "slow", "wrong_body", "redirect", "certificate", "hang")
FLAP_SECONDS, AWAY_SECONDS, SLOW_SECONDS, HANG_SECONDS = 25.0, 20.0, 2.5, 30.0
VERDICT_WITHIN, SLACK_WITHIN = 100.0, 130.0
_WATCHED_SECONDS = 150.0  # a second message would have come by then
_MB = 1_000_000
_MARK = "figures: "
_STORED = """
SELECT
    (SELECT count(*) FROM ops.outages),
    (SELECT percentile_cont(0.95) WITHIN GROUP (ORDER BY ms) FROM ops.health_samples WHERE state = 'healthy')
"""
_WELL_SLOTS = """
SELECT count(*) FROM (
    SELECT FROM ops.health_samples GROUP BY at HAVING count(*) FILTER (WHERE state = 'healthy' AND ms < 1000) = %s
) AS slots
"""


def main() -> int:
    """Measure, write, tell."""
    arguments = argparse.ArgumentParser(prog="python -m bench.health_watch", description=__doc__)
    arguments.add_argument("--faults", action="store_true", help="only how soon each fault is told, in five minutes")
    arguments.add_argument("--watch", choices=("counting", "real"), help=argparse.SUPPRESS)
    asked = arguments.parse_args()
    if asked.watch:
        asyncio.run(_count_rounds() if asked.watch == "counting" else _look())
        return 0
    day = f"{utc_now().astimezone(EAT):%Y-%m-%d}"
    found = {} if asked.faults else {**_measure(), "day": day}
    found |= {**_detect(), "day_of_faults": day}
    known = json.loads(FILE.read_text()) if FILE.exists() else {}
    FILE.write_text(json.dumps({**known, **found}, indent=1, sort_keys=True) + "\n")
    for name, value in found.items():
        print(f"{name:45} {value}{_asked(name)}")
    return 0


def _asked(name: str) -> str:
    limits = {"verdict_seconds": VERDICT_WITHIN, "slack_seconds": SLACK_WITHIN}
    limit = limits.get(name.rpartition(".")[2])
    return f"  (asked: within {limit:g})" if limit else ""


def _measure() -> dict[str, Any]:
    """Start what is looked at and what is written to; then the process that watches, which tells its figures."""
    with tempfile.TemporaryDirectory(prefix="payme-bench-") as folder, postgres.temporary_cluster() as cluster:
        opsdb.migrate(cluster.conninfo())
        urls = {name: _serve(name, Path(folder)) for name in ("applications", "slack")}
        endpoints = {f"e{number:02}": f"{urls['applications']}/e{number:02}" for number in range(ENDPOINTS)}
        env = _env(Path(folder), cluster, urls["slack"], endpoints, INTERVAL)
        command = [sys.executable, "-m", "bench.health_watch", "--watch", "counting"]
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


def _env(
    folder: Path, cluster: postgres.Cluster, slack_url: str, endpoints: dict[str, str], interval: float
) -> dict[str, str]:
    """Of the process that watches."""
    where = {"conn_type": "postgres", "host": "127.0.0.1", "port": cluster.port, "schema": "postgres"}
    ops = {**where, "login": cluster.superuser, "password": cluster.password}
    told = {"conn_type": "slack", "password": "xoxb-bench", "extra": {"base_url": f"{slack_url}/api/"}}
    return {
        **world.build(folder / "world").env,
        "AIRFLOW_HOME": str(folder),
        "AIRFLOW_CONN_PAYME_OPS_DB": json.dumps(ops),
        "AIRFLOW_CONN_PAYME_SLACK": json.dumps(told),
        "PAYME_OPS__MONITORING__ENDPOINTS": ",".join(f"{name}={url}" for name, url in endpoints.items()),
        "PAYME_OPS__MONITORING__INTERVAL_SECONDS": str(interval),
        "PYTHONPATH": os.pathsep.join([str(postgres.PROJECT), str(postgres.PROJECT / "plugins")]),
    }


# -- how soon each fault is told ----------------------------------------------------------------------------------


def _detect() -> dict[str, float]:
    """Two slots in which all are well; then every fault at once, right after the second."""
    with tempfile.TemporaryDirectory(prefix="payme-bench-") as folder, postgres.temporary_cluster() as cluster:
        opsdb.migrate(cluster.conninfo())
        ours, theirs = multiprocessing.Pipe()
        multiprocessing.Process(target=_unwell, args=(Path(folder), theirs), daemon=True).start()
        slack_url, endpoints = _serve("slack", Path(folder)), ours.recv()
        env = _env(Path(folder), cluster, slack_url, endpoints, EVERY_SECONDS)
        env |= {"SSL_CERT_FILE": str(Path(folder) / "trusted.pem")}
        with _process("real", env), psycopg.connect(cluster.conninfo(), autocommit=True) as connection:
            _await_slots(connection, 2)
            begun, verdicts = time.time(), dict[str, float]()
            ours.send("now")
            while (after := time.time() - begun) < _WATCHED_SECONDS:
                # When the row is seen: opened_at has whole seconds.
                found = connection.execute("SELECT subject FROM ops.outages").fetchall()
                verdicts = {**dict.fromkeys((row[0] for row in found), after), **verdicts}
                time.sleep(0.05)
            told = [
                (one["metadata"]["event_payload"]["key"].removeprefix("health:"), float(one["ts"]) - begun)
                for one in call("GET", f"{slack_url}/messages.json")[1]
            ]
    if sorted(subject for subject, _ in told) != sorted(FAULTS) or set(verdicts) != set(FAULTS):
        raise SystemExit(f"not one outage and one message for each fault: {verdicts}, {told}")
    return {
        f"health_watch.{fault}.{name}": round(seconds[fault], 1)
        for fault in FAULTS
        for name, seconds in (("verdict_seconds", verdicts), ("slack_seconds", dict(told)))
    }


@contextmanager
def _process(how: str, env: dict[str, str]) -> Iterator[None]:
    with subprocess.Popen(
        [sys.executable, "-m", "bench.health_watch", "--watch", how], env=env, cwd=postgres.PROJECT
    ) as process:
        try:
            yield
        finally:
            process.terminate()


def _await_slots(connection: psycopg.Connection, count: int) -> None:
    """Returns right after the looks of the `count`-th slot in which all are well."""
    until = time.monotonic() + 6 * EVERY_SECONDS
    while time.monotonic() < until:
        row = connection.execute(_WELL_SLOTS, [len(FAULTS)]).fetchone()
        if row and row[0] >= count:
            return
        time.sleep(0.05)
    raise SystemExit("the applications are not seen well: these figures would be of something else")


def _unwell(folder: Path, told: Connection) -> None:
    """An application for each fault; tells their URLs, and lets all faults begin when it hears a word."""
    sys.stderr = Path(os.devnull).open("w")  # noqa: SIM115  # a line for each request
    begun: list[float] = []
    expired, context = _certificates(folder)
    servers = {fault: Server(0, _route(fault, begun), lambda _: False, {}) for fault in FAULTS}
    secured = servers["certificate"]
    secured.socket = context.wrap_socket(secured.socket, server_side=True, do_handshake_on_connect=False)
    for server in servers.values():
        threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    urls = {fault: server.url for fault, server in servers.items()}
    told.send({**urls, "certificate": secured.url.replace("http://", "https://")})
    told.recv()
    begun.append(time.monotonic())
    context.load_cert_chain(expired)
    servers["refused"].shutdown()
    servers["refused"].server_close()
    threading.Event().wait()  # until the process that asked ends


def _route(fault: str, begun: list[float]) -> Callable[[Request], Answer]:
    def route(request: Request) -> Answer:
        if not begun or not request.path.endswith("/health"):
            return _well(request)
        match fault:
            case "flap" if (time.monotonic() - begun[0]) % FLAP_SECONDS < AWAY_SECONDS:
                raise Refused(503, {"status": "unhealthy"})
            case "slow":
                time.sleep(SLOW_SECONDS)
            case "wrong_body":
                return Answer("<html>It works!</html>")
            case "redirect":
                return Answer("", 302, headers={"Location": "/login"})
            case "hang":
                time.sleep(HANG_SECONDS)
        return _well(request)

    return route


def _certificates(folder: Path) -> tuple[Path, ssl.SSLContext]:
    """The file of an expired certificate with its key, and a server's TLS with a good one; the watch trusts both."""
    key, now = ec.generate_private_key(ec.SECP256R1()), datetime.now(UTC)
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "payme.test")])
    secret = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    trusted = b""
    for file, ends in (("expired.pem", now - timedelta(hours=1)), ("good.pem", now + timedelta(days=1))):
        made = (
            x509.CertificateBuilder()
            .subject_name(name)
            .issuer_name(name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - timedelta(days=1))
            .not_valid_after(ends)
            .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1"))]), critical=False)
            .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
            .sign(key, hashes.SHA256())
            .public_bytes(serialization.Encoding.PEM)
        )
        (folder / file).write_bytes(made + secret)
        trusted += made
    (folder / "trusted.pem").write_bytes(trusted)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / "good.pem")
    return folder / "expired.pem", context


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


async def _look() -> None:
    """Rounds for ever, as a triggerer does them."""
    from payme_ops.orchestration.health_watch import HealthWatch

    async for _ in HealthWatch().run():  # type: ignore[no-untyped-call]
        pass


async def _count_rounds() -> None:
    """Rounds while all are well, figures to stdout, a line from stdin, rounds while all are down, figures."""
    import airflow.jobs.triggerer_job_runner  # noqa: F401, TID251  # what is there before the watch begins

    from payme_ops.monitoring import rounds

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

    task = asyncio.create_task(_look())
    while not done:  # the first round imports what it needs
        await asyncio.sleep(0.05)
    await take(ROUNDS_WELL)
    await asyncio.to_thread(sys.stdin.readline)
    await take(ROUNDS_DOWN)
    task.cancel()


if __name__ == "__main__":
    sys.exit(main())
