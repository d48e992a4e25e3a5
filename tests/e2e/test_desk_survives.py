"""The desk's own databases in a real Airflow, at work on the very database that is backed up, exported and cleaned."""

import json
import subprocess
from datetime import UTC, datetime
from functools import partial

import pytest

from payme_ops.backup import catalogue, event_log
from payme_ops.backup.catalogue import State
from payme_ops.backup.manifest import Tier
from tests.e2e.conftest import PARSED_WITHIN_SECONDS, Desk
from tests.support import document

pytestmark = pytest.mark.long

BACKUP, HOUSEKEEPING = "desk_backup", "desk_housekeeping"


def test_both_databases_are_proven_and_who_triggered_what_is_exported(desk: Desk) -> None:
    document.require("age", "zstd")
    for dag in (BACKUP, HOUSEKEEPING):
        any_time = datetime.fromtimestamp(0, UTC)
        desk.supervisor.until(partial(desk.api.dag_missing, dag, any_time), dag, PARSED_WITHIN_SECONDS)
    run, state = desk.run(BACKUP, reason="end-to-end test")
    assert state == "success", desk.states(run, BACKUP)
    for database in ("airflow", "payme_ops"):
        where = catalogue.Catalogue(
            desk.catalogue.stores, database, desk.catalogue.manifest_keys, desk.catalogue.verification_keys
        )
        newest = next(catalogue.entries(where, tiers=[Tier.DAILY], newest_first=True))
        assert newest.state is State.VERIFIED

    run, state = desk.run(HOUSEKEEPING, reason="end-to-end test")
    assert state == "success", desk.states(run, HOUSEKEEPING)
    made = next(event_log.chain(desk.catalogue.stores.home, desk.catalogue.manifest_keys))
    identity = desk.world.root / "keys" / "recovery.age-identity"
    sealed = desk.catalogue.stores.home.get(made.events.key)
    plain = subprocess.run(["age", "--decrypt", "--identity", identity], input=sealed, capture_output=True, check=True)
    text = subprocess.run(["zstd", "-d", "-c"], input=plain.stdout, capture_output=True, check=True).stdout
    entries = [json.loads(line) for line in text.splitlines()]
    assert len(entries) == made.rows
    triggered = [(one["dag_id"], one["owner"]) for one in entries if one["event"] == "trigger_dag_run"]
    assert {(BACKUP, "oncall"), (HOUSEKEEPING, "oncall")} <= {*triggered}
    assert "Checking table log" in desk.api.log(HOUSEKEEPING, run, "clean_airflow")
