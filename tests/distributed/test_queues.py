"""What the workers of each queue can reach, asked by a task on each; and what no worker can."""

import hashlib
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from payme_ops.foundation import approvals
from payme_ops.foundation.errors import DatabaseError
from sandbox import airflow
from tests.distributed.farm import CONNECTIONS, QUEUES, Farm, unparsed, users

pytestmark = [pytest.mark.distributed, pytest.mark.timeout(1800)]

# Of each queue: the secrets that are nobody else's business, and its doors to databases.
POWERS = {
    "default": {"signing.pem"},
    "restore": {"drill.age-identity", "verification.pem"},
    "migration": {"encryption_key"},
    "release": set[str](),
    "desk": {"signing.pem"},
}
EVERY_WORKER = {"broker_url", "celery_result_backend", "connections.json", "postgres_ca.crt"}


def secrets(farm: Farm) -> list[Path]:
    """Every file of the host that holds a secret: as brought, and as each service has it."""
    return sorted(path for folder in (farm.secrets, *farm.root.glob("*/secrets")) for path in folder.iterdir())


@pytest.fixture(scope="module")
def reached(farm: Farm) -> dict[str, dict[str, Any]]:
    """What a task of each queue found, by queue."""
    if not users()[0]:
        pytest.skip("as root each worker has a user of its own; this process may not become another")
    farm.until(partial(unparsed, farm, "probes"), "the DAG")
    values = {path.read_text().strip() for path in secrets(farm)} - {""}
    asked = {
        "files": [str(path) for path in [*secrets(farm), *(farm.world.root / "keys").iterdir()]],
        "connections": [*sorted({one for names in CONNECTIONS.values() for one in names}), "payme_airflow_db"],
        "digests": [hashlib.sha256(value.encode()).hexdigest() for value in sorted(values)],
    }
    run, state = airflow.run_dag(farm.supervisor, farm.api, "probes", asked)
    assert state == "success"
    path = f"/dags/probes/dagRuns/{run}/taskInstances"
    return {queue: farm.api.call("GET", f"{path}/{queue}/xcomEntries/return_value")["value"] for queue in QUEUES}


@pytest.mark.parametrize("queue", QUEUES)
def test_a_worker_opens_the_secrets_of_its_service_and_no_others(
    farm: Farm, reached: dict[str, dict[str, Any]], queue: str
) -> None:
    own = farm.root / f"worker-{queue}" / "secrets"
    found = {Path(file) for file in reached[queue]["files"]}
    assert {path.parent for path in found} == {own}
    assert {path.name for path in found} - {"aws_credentials"} == EVERY_WORKER | POWERS[queue]


def test_only_restore_has_the_drill_identity_and_only_migration_the_key_of_numbers(
    reached: dict[str, dict[str, Any]],
) -> None:
    def who(name: str) -> set[str]:
        return {queue for queue, found in reached.items() if any(Path(file).name == name for file in found["files"])}

    assert (who("drill.age-identity"), who("encryption_key")) == ({"restore"}, {"migration"})
    # Airflow's own: no worker.
    assert [who(name) for name in ("sql_alchemy_conn", "fernet_key", "jwt_secret", "secret_key")] == [set()] * 4


@pytest.mark.parametrize("queue", QUEUES)
def test_no_secret_is_in_an_environment_that_it_sees(reached: dict[str, dict[str, Any]], queue: str) -> None:
    """Its own or another process's."""
    assert reached[queue]["digests"] == []


def test_no_worker_but_the_desks_writes_an_answer(farm: Farm) -> None:
    """With the ops database's role that each has in its hands; a release's questions apart."""
    run, gate = "backup_restore/manual", "approve_swap"

    def answered(queue: str) -> str | None:
        known = farm.ops_connection(f"worker-{queue}")
        conninfo = farm.desk.conninfo("payme_ops", known["login"], known["password"])
        with suppress(DatabaseError):
            return approvals.answer(
                conninfo, run=run, gate=gate, choice="Approve", responder="lead", reason="for them"
            ).choice
        return "refused"

    approvals.ask(farm.conninfo("payme_ops"), run=run, gate=gate, digest="d", requested_by="oncall")
    found = {queue: answered(queue) for queue in QUEUES}
    assert found == {"default": "refused", "migration": "refused", "restore": None, "release": None, "desk": "Approve"}


@pytest.mark.parametrize("queue", QUEUES)
def test_a_worker_knows_the_connections_of_its_queue(reached: dict[str, dict[str, Any]], queue: str) -> None:
    wanted = set(CONNECTIONS[f"worker-{queue}"]) | ({"payme_airflow_db"} if queue == "desk" else set())
    assert set(reached[queue]["connections"]) == wanted
