"""The final backup is waited for with orders stopped, without a worker; what is in the catalogue decides."""

import asyncio
import json
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from airflow.sdk.exceptions import AirflowRuntimeError, ErrorType, TaskDeferred
from airflow.sdk.execution_time import task_runner
from airflow.sdk.execution_time.comms import DRCount, ErrorResponse, GetDRCount

from payme_ops.backup import run as backup
from payme_ops.backup.manifest import Manifest, Tier
from payme_ops.foundation import evidence, lease, settings
from payme_ops.foundation.clock import show, utc_now
from payme_ops.foundation.errors import GateClosed, LeaseLost, NotFound, Unavailable
from payme_ops.foundation.evidence import Evidence, Verdict
from payme_ops.orchestration import backup_wait, final_backup
from payme_ops.orchestration.final_backup import FinalBackupOperator, FinalBackupTrigger
from payme_ops.release import orders
from payme_ops.release.request import Release
from sandbox.postgres import Cluster
from tests.support import ops as opsdb
from tests.support import releases, standins
from tests.support.installation import Installation, quiet
from tests.support.standins import answering
from tests.support.waiting import eventually

RUN = "final__a__1"


@dataclass
class Airflow:
    """What a task and a trigger ask about: the run of backup_daily. None: there is no answer."""

    state: str | None = "running"

    def send(self, msg: Any) -> Any:
        assert isinstance(msg, GetDRCount)
        assert (msg.dag_id, msg.run_ids) == ("backup_daily", [RUN])
        if self.state is None:
            raise AirflowRuntimeError(ErrorResponse(error=ErrorType.API_SERVER_ERROR))
        return DRCount(count=int(self.state in (msg.states or [])))


@pytest.fixture
def airflow(monkeypatch: pytest.MonkeyPatch) -> Airflow:
    made = Airflow()
    monkeypatch.setattr(task_runner, "SUPERVISOR_COMMS", made, raising=False)
    return made


@pytest.fixture
def ops(installation: Installation, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """An ops database of its own: others' releases hold terms in the common one."""
    cluster: Cluster = installation.site.cluster
    with opsdb.ops_database(cluster) as conninfo:
        there = opsdb.connection(cluster, "ops_test")
        installation.set_all({"AIRFLOW_CONN_PAYME_OPS_DB": json.dumps(there)})
        monkeypatch.setattr(final_backup, "FIRST_SECONDS", 0.0)
        monkeypatch.setattr(backup_wait, "_POLL_SECONDS", 0.05)
        yield conninfo


@pytest.fixture
def release(ops: str) -> Release:
    return releases.release(ops)


def stop_orders(ops: str, release: Release, folder: Path) -> Evidence:
    """As the task freeze_orders does."""
    with releases.api(folder) as api:
        found = orders.freeze(ops, release, api.asks, releases.SETTINGS)
    assert found.verdict is Verdict.PASS
    return evidence.keep(ops, release.run, "freeze_orders", found, threshold="", source="test")


@pytest.fixture
def frozen(ops: str, release: Release, tmp_path: Path) -> Evidence:
    return stop_orders(ops, release, tmp_path)


def context(release: Release) -> Any:
    return {"dag_run": SimpleNamespace(dag_id="deployment", run_id=release.id), "run_id": release.id}


def back_up(installation: Installation, name: str) -> Manifest:
    """A whole backup of that run, in a later second than anything before."""
    begun = utc_now()
    eventually(lambda: utc_now() > begun, "the next second")
    desk = installation.desk
    installation.passed(name)
    backup.dump_and_store(desk, name, Tier.DAILY, utc_now(), report=quiet)
    backup.read_back(desk, name, report=quiet)
    return backup.commit(desk, name)


def execute(release: Release) -> None:
    FinalBackupOperator(backup_run=RUN).execute(context(release))


def begin(release: Release) -> FinalBackupTrigger:
    """Begin to wait; the trigger as the triggerer makes it."""
    with pytest.raises(TaskDeferred) as deferred:
        execute(release)
    assert deferred.value.method_name == "resume"
    path, arguments = deferred.value.trigger.serialize()
    assert path == "payme_ops.orchestration.final_backup.FinalBackupTrigger"
    return FinalBackupTrigger(**json.loads(json.dumps(arguments)))


def resume(release: Release) -> None:
    FinalBackupOperator(backup_run=RUN).resume(context(release), {"backup_run": RUN})


async def event(trigger: FinalBackupTrigger) -> Any:
    return await asyncio.wait_for(anext(trigger.run()), 60)


def kept(ops: str, release: Release) -> Evidence:
    return evidence.latest(ops, release.run, "final_backup")


def terms(ops: str, release: Release) -> dict[str, datetime]:
    """When the terms that are this release's would expire."""
    found = [lease.living_term(ops, name) for name in ("release:production", "freeze:production")]
    return {one.name: one.expires_at for one in found if one and one.holder == release.run}


def test_it_waits_for_one_that_was_taken_after_orders_were_stopped(
    installation: Installation, ops: str, release: Release, airflow: Airflow, tmp_path: Path
) -> None:
    older = back_up(installation, "backup_daily/scheduled__1")
    frozen = stop_orders(ops, release, tmp_path)
    trigger = begin(release)
    before = terms(ops, release)
    assert set(before) == {"release:production", "freeze:production"}

    async def meanwhile() -> Manifest:
        waiting = asyncio.create_task(event(trigger))
        done = await asyncio.to_thread(back_up, installation, f"backup_daily/{RUN}")
        assert not waiting.done()  # complete, but the run may still do something
        airflow.state = "success"
        assert (await waiting).payload == {"backup_run": RUN}
        return done

    done = asyncio.run(meanwhile())
    after = terms(ops, release)
    assert all(after[name] > before[name] for name in before)
    resume(release)
    found = kept(ops, release)
    assert found.verdict is Verdict.PASS
    assert done.key != older.key
    assert done.read_back
    assert found.measured == {
        "backup": done.key,
        "by": f"backup_daily/{RUN}",
        "bytes": done.archive.size_bytes,
        "archive": f"sha256 {done.archive.sha256}",
        "read back": f"equal, {show(done.read_back.at)}",
        "relations": len(done.truth.relations),
        "rows": done.truth.rows,
        "began": show(done.started_at),
        "snapshot": show(done.snapshot_at),
        "orders stopped": show(frozen.ended),
    }


def test_a_backup_that_is_there_is_not_waited_for_whoever_took_it(
    installation: Installation, ops: str, release: Release, frozen: Evidence, airflow: Airflow
) -> None:
    """The run may have been skipped since another one was newer, or marked as failed after its commit."""
    done = back_up(installation, "backup_daily/scheduled__1")
    assert done.snapshot_at > frozen.ended
    airflow.state = "failed"
    execute(release)
    assert (kept(ops, release).verdict, kept(ops, release).measured["by"]) == (Verdict.PASS, done.run)


@pytest.mark.usefixtures("frozen")
def test_it_goes_on_waiting_for_the_same_after_a_kill_or_an_event_too_early(
    ops: str, release: Release, airflow: Airflow
) -> None:
    assert airflow.state == "running"
    first, again = begin(release), begin(release)
    assert first.arguments == again.arguments
    with pytest.raises(TaskDeferred) as deferred:
        resume(release)
    assert deferred.value.trigger.serialize()[1] == first.arguments
    with pytest.raises(NotFound):
        kept(ops, release)


@pytest.mark.blocks("final_backup")
def test_a_run_that_is_over_without_a_newer_backup_blocks(
    installation: Installation, ops: str, release: Release, airflow: Airflow, tmp_path: Path
) -> None:
    older = back_up(installation, "backup_daily/scheduled__1")
    stop_orders(ops, release, tmp_path)
    for state in ("failed", "success"):
        airflow.state = "running"
        trigger = begin(release)
        airflow.state = state
        asyncio.run(event(trigger))
        with pytest.raises(GateClosed, match="final backup is not there") as closed:
            resume(release)
        assert "clear freeze_orders and what comes after it" in closed.value.remedy
        found = kept(ops, release)
        assert found.verdict is Verdict.FAIL
        assert (found.measured["state"], found.measured["newest complete"]) == (state, older.key)


@pytest.mark.blocks("final_backup")
@pytest.mark.usefixtures("airflow")
def test_patience_ends_and_says_who_was_in_front(
    ops: str, release: Release, frozen: Evidence, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    trigger = begin(release)
    assert trigger.arguments["until"] == (frozen.ended + timedelta(minutes=60)).isoformat()
    caplog.set_level(logging.INFO, "payme_ops.release")
    snapshot = f"snapshot:{settings.load().backup.database}"
    with opsdb.holder(ops, snapshot, "backup_daily/scheduled__1"):
        assert backup_wait.look(**trigger.arguments) == 0.05
        assert "it waits for backup_daily/scheduled__1 since" in caplog.text
        monkeypatch.setattr(backup_wait, "utc_now", lambda: utc_now() + timedelta(minutes=61))
        asyncio.run(event(trigger))
        with pytest.raises(GateClosed, match="in time"):
            resume(release)
    found = kept(ops, release)
    assert found.verdict is Verdict.FAIL
    assert found.measured["waits for"].startswith("backup_daily/scheduled__1 since")
    with opsdb.holder(ops, snapshot, f"backup_daily/{RUN}"):
        assert backup_wait._before(RUN) == ""


@pytest.mark.blocks("final_backup")
@pytest.mark.usefixtures("frozen", "airflow")
def test_a_freeze_that_was_lost_ends_it_at_once(installation: Installation, ops: str, release: Release) -> None:
    trigger = begin(release)
    back_up(installation, f"backup_daily/{RUN}")
    found = lease.living_term(ops, orders.term_name(release))
    assert found
    lease.end_term(ops, found.name, found.token)  # by the watchdog, which has taken orders again
    asyncio.run(event(trigger))
    for go_on in (resume, execute):
        with pytest.raises(LeaseLost, match="orders are not stopped any more"):
            go_on(release)
    with pytest.raises(NotFound):
        kept(ops, release)


@pytest.mark.blocks("final_backup")
@pytest.mark.usefixtures("airflow")
def test_without_a_try_to_stop_orders_there_is_none(ops: str, release: Release) -> None:
    with pytest.raises(NotFound, match="freeze_orders"):
        execute(release)
    with pytest.raises(NotFound):
        kept(ops, release)


def test_where_orders_cannot_be_stopped_there_is_no_freeze_to_keep(
    installation: Installation, ops: str, release: Release, airflow: Airflow
) -> None:
    warned = evidence.Finding(Verdict.INCONCLUSIVE, {**orders.NOT_STOPPED, "users warned": "no"}, "warn users")
    evidence.keep(ops, release.run, "freeze_orders", warned, threshold="", source="test")
    trigger = begin(release)
    assert [name for name, _, _ in trigger.arguments["terms"]] == ["release:production"]
    back_up(installation, f"backup_daily/{RUN}")
    airflow.state = "success"
    asyncio.run(event(trigger))
    resume(release)
    assert kept(ops, release).measured["orders stopped"].startswith("not stopped")


@pytest.mark.usefixtures("frozen")
def test_the_trigger_needs_no_key_and_lives_through_what_heals(
    installation: Installation, ops: str, release: Release, airflow: Airflow
) -> None:
    trigger = begin(release)
    held = {name: None for name in installation.site.world.env if name.startswith("AIRFLOW_CONN_")}
    held.pop("AIRFLOW_CONN_PAYME_OPS_DB")
    installation.set_all(held)
    airflow.state = None
    before = terms(ops, release)
    assert backup_wait.look(**trigger.arguments) == 0.05
    assert terms(ops, release)["freeze:production"] > before["freeze:production"]
    with installation.site.admin("postgres") as admin:
        admin.execute("ALTER DATABASE ops_test ALLOW_CONNECTIONS false")
        assert backup_wait.look(**trigger.arguments) == 0.05
        admin.execute("ALTER DATABASE ops_test ALLOW_CONNECTIONS true")
    airflow.state = "failed"
    assert backup_wait.look(**trigger.arguments) is None


def test_the_freeze_is_renewed_four_times_before_it_would_end(
    ops: str, release: Release, airflow: Airflow, frozen: Evidence, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert (airflow.state, frozen.verdict) == ("running", Verdict.PASS)
    monkeypatch.setattr(backup_wait, "_POLL_SECONDS", 10.0)
    assert backup_wait.look(**begin(release).arguments) == 10.0
    monkeypatch.setenv("PAYME_OPS__RELEASE__FREEZE_SECONDS", "8")
    assert backup_wait.look(**begin(release).arguments) == 2.0
    assert terms(ops, release)["freeze:production"] < utc_now() + timedelta(seconds=10)


@pytest.mark.usefixtures("frozen")
def test_a_store_or_an_airflow_that_is_away_is_no_verdict(
    installation: Installation, ops: str, release: Release, airflow: Airflow, tmp_path: Path
) -> None:
    airflow.state = None
    with pytest.raises(Unavailable, match="Airflow does not say"):
        execute(release)
    connection = json.loads(installation.site.world.env["AIRFLOW_CONN_PAYME_S3_RESTORE"])
    with standins.served(answering({}, 503), tmp_path) as away:
        connection["extra"]["endpoint_url"] = away.url
        installation.set_all({"AIRFLOW_CONN_PAYME_S3_RESTORE": json.dumps(connection)})
        with pytest.raises(Unavailable):
            execute(release)
    with pytest.raises(NotFound):
        kept(ops, release)
