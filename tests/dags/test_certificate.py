"""The erasure certificate on real services: what it says with and without a purge, and of each backup from before."""

import itertools
import json
from datetime import timedelta
from types import SimpleNamespace
from typing import Any

import pytest

from payme_ops.backup.manifest import Tier
from payme_ops.backup.retain import UNDO
from payme_ops.foundation import approvals, evidence, record, settings
from payme_ops.foundation.clock import show, utc_now
from payme_ops.foundation.errors import GateClosed, NotFound
from payme_ops.foundation.evidence import Verdict
from payme_ops.foundation.record import Record
from payme_ops.migration import certificate, steps
from payme_ops.migration.expand import do_expand
from payme_ops.migration.finish import do_finish
from payme_ops.migration.switch import do_brown_out, do_relax
from payme_ops.orchestration import migration, rehearsal
from sandbox.payme_db.generate import phone_number
from tests.support.installation import Installation, quiet
from tests.support.phones import Phones, fill
from tests.support.steps import with_budget

OPS = "service=payme_ops_db"
_numbers = itertools.count(1)


@pytest.fixture
def name(installation: Installation, phones: Phones, monkeypatch: pytest.MonkeyPatch) -> str:
    """Name of a run of phone_encryption in production."""
    connection = json.loads(installation.site.world.env["AIRFLOW_CONN_PAYME_DB_MIGRATE"])
    installation.set_all({"AIRFLOW_CONN_PAYME_DB_MIGRATE": json.dumps({**connection, "schema": phones.name})})
    run = SimpleNamespace(
        dag_id="phone_encryption", run_id=f"{phones.name}_{next(_numbers)}", triggering_user_name="oncall"
    )
    for module in (migration, rehearsal):
        monkeypatch.setattr(module, "get_current_context", lambda: {"dag_run": run})
    return f"{run.dag_id}/{run.run_id}"


@pytest.fixture
def dropped(phones: Phones, name: str, installation: Installation) -> Phones:
    """A backup, then the drop and the end of the shim, with the run's evidence of it."""
    do_expand(phones.desk, quiet)
    do_finish(fill(phones).desk, quiet)
    for step in (do_relax, do_brown_out):
        step(phones.desk, quiet)
    installation.back_up()
    desk = migration._desk()
    assert desk.run == name
    for one in (steps.SWITCH, steps.END_SHIM):
        steps.take(with_budget(desk, 60), one, quiet)
    return phones


def made(installation: Installation) -> Record:
    """Make one, and read what was kept."""
    rehearsal.certificate()
    trusted = settings.load().backup.verification_keys
    found = record.newest(installation.store, certificate.KIND, trusted, "test")
    assert found is not None
    assert not [number for number in map(phone_number, range(1, 2001)) if number in repr(found)]
    return found


def by_item(found: Record) -> dict[str, evidence.Evidence]:
    return {item.item: item for item in found.evidence}


@pytest.mark.usefixtures("dropped")
def test_without_a_purge_the_plaintext_remains_and_every_backup_from_before_is_listed(
    installation: Installation, name: str
) -> None:
    installation.next_second()
    after = installation.back_up()
    [before] = [done for done in installation.manifests() if done.key != after.key]
    found = made(installation)
    assert (found.kind, found.verdict, found.run) == ("erasure_certificate", certificate.REMAINS, name)
    assert found.started == evidence.latest(OPS, name, "after_switch").ended
    items = by_item(found)
    assert items["table_file"].verdict is Verdict.FAIL
    assert items["heap_scan"].verdict is Verdict.BYPASSED
    assert items["statistics"].verdict is items["wal"].verdict is Verdict.INCONCLUSIVE
    assert "plaintext remains until" in items["wal"].measured
    expires = before.snapshot_at + timedelta(days=30)
    [row] = items["backups_daily"].measured["rows"]
    assert (row["backup"], row["plaintext remains"]) == (before.key, f"until {show(expires + UNDO)}")
    assert f"expires {show(expires)}" in row["because"]
    assert items["backups_weekly"].verdict is items["backups_monthly"].verdict is Verdict.PASS
    assert found.facts["plaintext remains in backups until"] == show(expires + UNDO)
    assert evidence.latest(OPS, name, certificate.KIND).verdict is Verdict.FAIL


def test_after_the_purge_the_table_is_rid_of_it(installation: Installation, dropped: Phones, name: str) -> None:
    first = made(installation)
    installation.next_second()
    asked = evidence.conclude(
        migration.REQUEST,
        evidence.passed({"purge_free_bytes": str(10**9)}),
        threshold="",
        actor="test",
        source="",
        started=first.ended,
    )
    evidence.record(OPS, name, [asked])
    migration.look_before_purge()
    digest = evidence.latest(OPS, name, "before_purge").sha256
    approvals.ask(OPS, run=name, gate="approve_purge", digest=digest, requested_by="oncall")
    approvals.answer(OPS, run=name, gate="approve_purge", choice="Approve", responder="approver", reason="")
    migration.purge_table()
    purged = evidence.latest(OPS, name, migration.PURGED).measured
    assert purged["file"] != purged["file_with_plaintext"]

    found = made(installation)
    items = by_item(found)
    assert (found.verdict, found.previous) == (certificate.ERASED, record.digest(first))
    assert items["table_file"].measured == purged
    assert items["heap_scan"].verdict is Verdict.BYPASSED  # the migrate role may read no pages, and it says so
    assert purged["wal_segment"] in items["wal"].measured["segments that may hold it"]
    assert items["backups_daily"].verdict is Verdict.FAIL
    assert dropped.decrypted("phone_number")[1] == phone_number(1)


@pytest.mark.usefixtures("name")
def test_without_the_drop_there_is_none(installation: Installation, phones: Phones) -> None:
    with pytest.raises(NotFound, match="no usable evidence for after_switch"):
        rehearsal.certificate()
    with pytest.raises(GateClosed):
        steps._gate(migration._desk(), "after_switch", steps.SWITCH.after(phones.desk), "")
    with pytest.raises(GateClosed, match="the plaintext was not dropped"):
        rehearsal.certificate()
    assert list(installation.store.keys("records/")) == []


def test_what_does_not_expire_by_itself_is_said_to_remain() -> None:
    copies = [
        certificate.Copy("a", Tier.MONTHLY, None, "an archive never expires"),
        certificate.Copy("b", Tier.WEEKLY, utc_now(), "expires"),
    ]
    found = {item.item: item for item in certificate.items(utc_now(), None, copies, tiers=list(Tier), actor="test")}
    assert found["backups_monthly"].measured["rows"] == [
        {"backup": "a", "plaintext remains": "for ever", "because": "an archive never expires"}
    ]
    assert "a person deletes" in found["backups_monthly"].remedy
    assert found["backups_daily"].verdict is Verdict.PASS
    assert certificate.remains_until(copies) == "for ever"
    assert certificate.remains_until([]) == "no backup holds it"


def test_its_task_runs_without_a_purge_and_not_without_the_drop(dag_bag: Any) -> None:
    dag = dag_bag.dags["phone_encryption"]
    task = dag.get_task("certificate")
    assert task.upstream_task_ids == {"drop", "purge_table"}
    assert task.trigger_rule == "none_failed_min_one_success"
    assert task.queue == "restore"
    assert "keep_record" in task.get_flat_relative_ids()  # whose record names it
    assert not dag.get_task("approve_purge").ignore_downstream_trigger_rules
