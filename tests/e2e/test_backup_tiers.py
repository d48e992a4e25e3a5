"""The strategy as it runs by itself: daily, test, copy, archive, retention; and what a bad backup does to it."""

import json
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any

import pytest

from payme_ops.backup import catalogue, restore, verification
from payme_ops.backup.catalogue import Entry, State
from payme_ops.backup.manifest import Manifest, Tier, backup_prefix
from payme_ops.foundation import signing
from payme_ops.foundation.clock import utc_now
from sandbox import forgery, postgres
from sandbox.airflow import Api
from tests.e2e.conftest import PARSED_WITHIN_SECONDS, RUN_WITHIN_SECONDS, Desk

pytestmark = pytest.mark.long

TEST, RETENTION = "backup_restore_test", "backup_retention"
DAGS = ("backup_daily", "backup_weekly", "backup_monthly", TEST, RETENTION, "backup_restore")


@pytest.fixture(autouse=True)
def _parsed(desk: Desk) -> None:
    for dag in DAGS:
        since = datetime.min.replace(tzinfo=UTC)
        desk.supervisor.until(partial(desk.api.dag_missing, dag, since), dag, PARSED_WITHIN_SECONDS)


def dailies(desk: Desk) -> list[Entry]:
    return list(catalogue.entries(desk.catalogue, tiers=[Tier.DAILY]))


def newest_daily(desk: Desk) -> Entry:
    return next(catalogue.entries(desk.catalogue, tiers=[Tier.DAILY], newest_first=True))


def told(desk: Desk, word: str) -> list[str]:
    return [text for text in map(json.dumps, desk.slack()) if word in text]


def ended(desk: Desk, dag: str, run: str) -> str:
    desk.supervisor.until(partial(desk.api.unfinished, dag, run), f"{dag} {run}", RUN_WITHIN_SECONDS)
    return desk.api.state(dag, run)


def runs(api: Api, dag: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = api.call("GET", f"/dags/{dag}/dagRuns")["dag_runs"]
    return found


def signing_key(desk: Desk) -> Any:
    return signing.load_private_key(desk.world.root / "keys" / "signing.pem")


def identity(desk: Desk) -> Any:
    return restore.load_identity(desk.world.root / "keys" / "drill.age-identity")


def test_no_scheduled_dag_has_run_by_itself(desk: Desk) -> None:
    """A DAG that is new waits for its next slot: archive and deletion do not begin with a desk that just started."""
    for dag in DAGS:
        assert [run for run in runs(desk.api, dag) if run["run_type"] == "scheduled"] == [], dag


def test_from_a_backup_to_its_proof_its_copy_its_archive_and_a_plan_all_green(desk: Desk) -> None:
    assert desk.run(reason="tiers")[1] == "success"
    run, state = desk.run(TEST, reason="tiers")
    assert state == "success", desk.states(run, TEST)
    assert newest_daily(desk).state is State.VERIFIED
    run, state = desk.run("backup_weekly", reason="tiers")
    assert state == "success", desk.states(run, "backup_weekly")
    (copy,) = catalogue.entries(desk.catalogue, tiers=[Tier.WEEKLY])
    assert copy.state is State.VERIFIED, "it inherits the proof of the same bytes"
    run, state = desk.run("backup_monthly", reason="tiers")
    assert state == "success", desk.states(run, "backup_monthly")
    (archive,) = catalogue.entries(desk.catalogue, tiers=[Tier.MONTHLY])
    assert archive.state is State.VERIFIED
    assert archive.manifest is not None
    assert desk.catalogue.stores.copies.head(archive.manifest.archive.key).storage_class == "GLACIER"
    before = len(dailies(desk))
    run, state = desk.run(RETENTION, reason="tiers")
    assert state == "success", desk.states(run, RETENTION)
    assert len(dailies(desk)) == before


@pytest.fixture
def forged(desk: Desk) -> Manifest:
    """A fresh backup in which somebody with the backup worker's keys changed one cell."""
    assert desk.run(reason="to be forged")[1] == "success"
    good = newest_daily(desk).manifest
    assert good is not None
    return forgery.change_content(
        desk.catalogue.stores.home,
        good,
        lambda connection: connection.execute("UPDATE merchants SET commission = 0 WHERE id = 1"),
        identity=identity(desk),
        signing_key=signing_key(desk),
        bin_dir=postgres.wheel_bin_dir(),
    )


def test_a_changed_cell_is_refuted_told_once_and_replaced_by_a_proven_backup(desk: Desk, forged: Manifest) -> None:
    run, state = desk.run(TEST, manifest=forged.key, reason="tiers")
    assert state == "failed"
    found = {one.key: one for one in dailies(desk)}
    assert found[forged.key].state is State.REFUTED
    # The run that tests its replacement has a name that follows from ours.
    (follow,) = [each["dag_run_id"] for each in runs(desk.api, TEST) if run in each["dag_run_id"] != run]
    assert ended(desk, TEST, follow) == "success"
    assert newest_daily(desk).state is State.VERIFIED
    # Our failure, told once; and that the DAG is well again, once its replacement is proven.
    desk.supervisor.until(
        lambda: None if len(told(desk, f"{TEST}/{run}")) > 1 else "one message", "the second", RUN_WITHIN_SECONDS
    )
    message, over = told(desk, f"{TEST}/{run}")
    assert f"{TEST} has ended well" in over
    assert follow in over
    assert "table public.merchants" in message
    assert "expected" in message
    assert "docs/runbooks/backup_restore_test.md" in message
    assert len([event for event in desk.sentry() if run in json.dumps(event)]) == 1
    log = "\n".join(
        desk.api.log(TEST, run, task["task_id"], max(task["try_number"], 1))
        for task in desk.api.tasks(TEST, run)
        if task["state"] in ("success", "failed")
    )
    assert "table public.merchants" in log


def old(desk: Desk, good: Manifest, age: timedelta) -> Manifest:
    """A backup as it would lie there after that time, with objects of its own and no verification."""
    home = desk.catalogue.stores.home
    started = utc_now() - age
    prefix = backup_prefix(good.database, good.tier, started)
    moved = {}
    for name, stored in (("archive", good.archive), ("globals", good.globals)):
        key = prefix + stored.key.rsplit("/", 1)[1]
        home.copy(home, stored.key, key, size_bytes=stored.size_bytes)
        moved[name] = stored.model_copy(update={"key": key})
    made = good.model_copy(update={"prefix": prefix, "started_at": started, "snapshot_at": started, **moved})
    return forgery.sign_again(home, made, signing_key=signing_key(desk))


def test_without_a_proof_nothing_is_deleted_and_people_are_told_once(desk: Desk) -> None:
    good = newest_daily(desk).manifest
    assert good is not None
    expired = [old(desk, good, timedelta(days=days)) for days in (40, 41)]
    stores, verified = desk.catalogue.stores, []
    for one in catalogue.reachable(desk.catalogue)[0]:
        if one.manifest and one.verification:  # as if no restore test had ever passed
            verified.append((stores.of(one.tier), verification.key(one.manifest)))
    kept = [(bucket, key, bucket.get(key)) for bucket, key in verified]
    for bucket, key in verified:
        bucket.delete(key)
    before = {one.key for one in dailies(desk)}
    try:
        for _ in range(2):
            run, state = desk.run(RETENTION, reason="tiers")
            assert state == "success", desk.states(run, RETENTION)
        assert {one.key for one in dailies(desk)} == before
        assert {one.key for one in expired} <= before
        assert len(told(desk, "Retention is frozen")) == 1
    finally:
        for bucket, key, body in kept:
            bucket.put(key, body)
    run, state = desk.run(RETENTION, reason="the proof is back")
    assert state == "success", desk.states(run, RETENTION)
    assert {one.key for one in dailies(desk)} == before - {one.key for one in expired}
    gone = [version for version in stores.home.versions(expired[0].prefix) if version.marker and version.latest]
    assert len(gone) == 3, "delete markers; the bytes are still there"
