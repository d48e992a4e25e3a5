"""Whether one service of docker-compose.yaml does its work: `python docker/health.py SERVICE …`; 0 or 1.

Light, as it is run every half minute for each container: nothing of Airflow is imported (that takes four seconds of a
core). The DAG processor and the triggerer have no port of their own, so Airflow is asked for their heartbeats.
"""

import json
import os
import socket
import sys
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path

SECONDS = 5.0
HEARTBEAT_SECONDS = 90.0  # the watchdog's is every 30 s


def api(part: str) -> str:
    """What Airflow's API server says of a part; "" when it is well."""
    base = os.environ["AIRFLOW__CORE__EXECUTION_API_SERVER_URL"].removesuffix("/execution/")
    with urllib.request.urlopen(f"{base}/api/v2/monitor/health", timeout=SECONDS) as answer:  # noqa: S310  # our own
        status = json.load(answer)[part]["status"]
    return "" if status == "healthy" else f"{part} is {status}"


def scheduler() -> str:
    """Whether this container's scheduler has a young heartbeat, by its own port, which answers 200 or 503."""
    port = os.environ.get("AIRFLOW__SCHEDULER__SCHEDULER_HEALTH_CHECK_SERVER_PORT", "8974")
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=SECONDS):
        return ""


def worker(queue: str, broker: str) -> str:
    """Whether the worker of that queue answers a ping by way of Redis, whose URL is in the file `broker`."""
    from celery import Celery

    name = f"{queue}@{socket.gethostname()}"
    with Celery(broker=Path(broker).read_text()) as app:
        return "" if app.control.ping(destination=[name], timeout=SECONDS) else f"{name} does not answer"


def watchdog(file: str) -> str:
    """Whether its last heartbeat is young."""
    age = time.time() - Path(file).stat().st_mtime
    return "" if age < HEARTBEAT_SECONDS else f"the last heartbeat is {age:.0f} s old"


def main(service: str, *arguments: str) -> int:
    """0 when the service is well; otherwise 1, with what is wrong on stdout, where `docker inspect` shows it."""
    looks: dict[str, Callable[..., str]] = {
        "api-server": lambda: api("metadatabase"),
        "scheduler": scheduler,
        "dag-processor": lambda: api("dag_processor"),
        "triggerer": lambda: api("triggerer"),
        "worker": worker,
        "watchdog": watchdog,
    }
    try:
        wrong = looks[service](*arguments)
    except (OSError, ValueError, LookupError) as error:
        wrong = f"{type(error).__name__}: {error}"
    print(wrong or "well")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
