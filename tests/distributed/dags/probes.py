"""What a task of each queue can reach: told by name and digest, never by value."""

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from airflow.sdk import Connection, Param, dag, task
from airflow.sdk.exceptions import AirflowNotFoundException

QUEUES = ("default", "restore", "migration", "release", "desk")


def opened(file: str) -> bool:
    try:
        return bool(Path(file).read_bytes())
    except OSError:
        return False


def known(name: str) -> bool:
    try:
        return bool(Connection.get(name))
    except AirflowNotFoundException:
        return False


def digests() -> Iterator[str]:
    """Of every value in the environment of every process that it may look into, its own too."""
    for file in Path("/proc").glob("[0-9]*/environ"):
        try:
            values = file.read_bytes().split(b"\0")
        except OSError:
            continue
        yield from (hashlib.sha256(value.partition(b"=")[2]).hexdigest() for value in values)


@dag(
    schedule=None,
    params={
        "files": Param([], type="array"),
        "connections": Param([], type="array"),
        "digests": Param([], type="array"),
    },
)
def probes() -> None:
    def probe(queue: str) -> None:
        @task(task_id=queue, queue=queue)
        def look(params: dict[str, Any] | None = None) -> dict[str, list[str]]:
            asked = params or {}
            return {
                "files": [file for file in asked["files"] if opened(file)],
                "connections": [name for name in asked["connections"] if known(name)],
                "digests": sorted(set(digests()) & set(asked["digests"])),
            }

        look()

    for queue in QUEUES:
        probe(queue)


probes()
