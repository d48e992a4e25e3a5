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
from dotenv import dotenv_values

from sandbox import s3, trial
from sandbox.http import call, silent
from tests.support import compose
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
    files = [folder / "env", *(file for file in (folder / "secrets").iterdir() if file.is_file())]
    assert [file.name for file in files if "127.0.0.1" in file.read_text()] == []
    assert connection(folder, "worker-default", "payme_db_read")["host"] == "payme-api"
    store = connection(folder, "worker-default", "payme_s3_write")["extra"]
    assert store == {"region_name": "af-south-1", "endpoint_url": "http://s3:8333"}
    assert connection(folder, "worker-release", "payme_airflow_api")["host"] == "http://api-server:8080"


def test_the_store_lets_in_who_has_a_key_of_its_file(folder: Path) -> None:
    known = json.loads((folder / "secrets" / "trial_s3.json").read_text())["identities"]
    keys = {one["name"]: one["credentials"][0]["secretKey"] for one in known}
    assert keys["payme_s3_write"] == connection(folder, "worker-default", "payme_s3_write")["password"]
    assert len(set(keys.values())) == len(keys)
    assert keys["sandbox"] != "sandbox"


def test_the_watchdog_has_the_token_of_each_api_that_it_is_told_of(folder: Path) -> None:
    told = dotenv_values(folder / "env")
    for variable, file in (("API", "payme_api_token"), ("STAGING_API", "payme_api_staging_token")):
        assert told[f"PAYME_OPS__WATCHDOG__{variable}_URL"]
        assert (folder / "secrets" / file).read_text()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files away")
def test_the_store_can_read_its_file_and_the_world_is_its_containers(folder: Path) -> None:
    services = compose.read({"PAYME_OPS_SECRETS": "/", "AIRFLOW__API__BASE_URL": "http://localhost:8080"})["services"]
    owners = {f"{(folder / 'secrets' / source).stat().st_uid}" for source, _ in compose.mounted(services["s3"])}
    assert owners == {services["s3"]["user"].split(":")[0]}
    assert f"{(folder / 'world' / 'ports.json').stat().st_uid}" == services["payme-api"]["user"].split(":")[0]


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
