"""The world of the compose file's profile `trial`: what it writes down, and that it is reached as that says."""

import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import psycopg
import pytest

from sandbox import s3, trial
from sandbox.http import call, silent
from tests.support.site import Site
from tests.support.waiting import eventually

PROJECT = Path(__file__).parents[2]
CONTAINER = "127.0.0.2"  # the container's own address: what listens on 127.0.0.1 is not reached by it


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    """What `make` writes."""
    with tempfile.TemporaryDirectory(prefix="payme-ops-trial-") as name:
        place = Path(name)
        place.chmod(0o711)  # PostgreSQL's own user has to pass through
        trial.make(place)
        yield place


def connection(folder: Path, service: str, name: str) -> dict[str, object]:
    found: dict[str, object] = json.loads((folder / "secrets" / f"connections_{service}.json").read_text())[name]
    return found


def test_nothing_that_is_written_down_is_of_this_machine(folder: Path) -> None:
    files = [folder / "env", *(folder / "secrets").glob("connections_*.json")]
    assert [file.name for file in files if "127.0.0.1" in file.read_text()] == []
    assert connection(folder, "worker-default", "payme_db_read")["host"] == "payme-api"
    store = connection(folder, "worker-default", "payme_s3_write")["extra"]
    assert store == {"region_name": "af-south-1", "endpoint_url": "http://s3:8333"}
    assert connection(folder, "worker-desk", "payme_airflow_api")["host"] == "http://api-server:8080"


def test_the_store_lets_in_who_has_a_key_of_its_file(folder: Path) -> None:
    known = json.loads((folder / "secrets" / "trial_s3.json").read_text())["identities"]
    keys = {one["name"]: one["credentials"][0]["secretKey"] for one in known}
    assert keys["payme_s3_write"] == connection(folder, "worker-default", "payme_s3_write")["password"]
    assert len(set(keys.values())) == len(keys)
    assert keys["sandbox"] != "sandbox"


@pytest.mark.long
def test_the_world_is_reached_from_other_containers_until_it_is_told_to_end(folder: Path, site: Site) -> None:
    store = site.world.url("s3")
    program = (
        "import sys; from pathlib import Path; from sandbox import trial; trial.serve(Path(sys.argv[1]), *sys.argv[2:])"
    )
    command = [sys.executable, "-c", program, str(folder / "world"), store, CONTAINER]
    env = {**os.environ, "PYTHONPATH": str(PROJECT / "plugins")}
    ports = json.loads((folder / "world" / "ports.json").read_text())
    url = f"http://{CONTAINER}:{ports['payme_api']}/version"
    with subprocess.Popen(command, cwd=PROJECT, env=env) as process:
        try:
            eventually(lambda: silent(url) is None, "the PayMe API at the container's address", 120)
            assert call("GET", url)[1]["status"] == "started"
            password = connection(folder, "worker-default", "payme_db_read")["password"]
            where = f"host={CONTAINER} port={ports['postgres']} user=payme_db_read dbname=payme password={password}"
            with psycopg.connect(where) as session:
                assert session.execute("SELECT count(*) > 1000 FROM users").fetchone() == (True,)
            assert s3.client(store).get_bucket_versioning(Bucket="payme-backups")["Status"] == "Enabled"
            assert trial.health(folder / "world") == 0
        finally:
            with suppress(ProcessLookupError):
                process.send_signal(signal.SIGTERM)
            assert process.wait(60) == 0
    assert trial.health(folder / "world") == 1
