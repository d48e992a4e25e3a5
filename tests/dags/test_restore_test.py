"""The tasks of backup_restore_test on real services: what a run is worth, and what follows a refuted backup."""

import json
import secrets
import shutil
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pytest
from airflow.sdk import Asset
from airflow.sdk.exceptions import AirflowSkipException

from payme_ops.backup import catalogue, restore
from payme_ops.backup.catalogue import State
from payme_ops.backup.manifest import Manifest
from payme_ops.backup.verification import Outcome
from payme_ops.foundation import evidence, signing
from payme_ops.foundation.errors import GateClosed, IntegrityError, NotFound, Refuted, Unavailable
from payme_ops.migration import verify
from payme_ops.migration.expand import do_expand
from payme_ops.migration.finish import do_finish
from payme_ops.migration.switch import do_brown_out, do_relax, do_switch
from payme_ops.orchestration import restore_test as tasks
from sandbox import forgery
from tests.support import verdicts
from tests.support.installation import Installation, quiet
from tests.support.phones import Phones, fill

ASSET = Asset(name="payme_verified_backup", uri="payme-ops://verified-backup")


@dataclass
class Run:
    """One run of the DAG: its context, and the asset event that it emits."""

    monkeypatch: pytest.MonkeyPatch
    name: str = ""
    event: Any = field(default_factory=lambda: SimpleNamespace(extra={}))

    def begin(self, name: str, manifest: str = "latest daily") -> None:
        self.name = f"backup_restore_test/{name}"
        context = {
            "dag_run": SimpleNamespace(dag_id="backup_restore_test", run_id=name),
            "params": {"manifest": manifest, "reason": None},
            "outlet_events": {ASSET: self.event},
        }
        self.monkeypatch.setattr(tasks, "get_current_context", lambda: context)


@pytest.fixture
def run(installation: Installation, monkeypatch: pytest.MonkeyPatch) -> Run:
    made = Run(monkeypatch)
    made.begin(f"test/{installation.bucket_name}")
    return made


def tampered(installation: Installation) -> Manifest:
    backup = installation.desk.settings.backup
    return forgery.change_content(
        installation.store,
        installation.back_up(),
        lambda connection: connection.execute("UPDATE merchants SET commission = 0 WHERE id = 1"),
        identity=restore.load_identity(backup.identity_file),
        signing_key=signing.load_private_key(backup.signing_key_file),
        bin_dir=installation.site.cluster.bin_dir,
    )


def test_the_backup_that_was_chosen_is_tested_and_emits_the_asset(installation: Installation, run: Run) -> None:
    first = installation.back_up()
    assert tasks.choose() == first.key
    installation.back_up()  # a newer one, between the tasks of the run
    found = tasks.restore_and_compare()
    assert (found["manifest"], found["verdict"]) == (first.key, "VERIFIED")
    assert (tasks.is_migrated(), found["pairs"]) == (False, [])
    with pytest.raises(AirflowSkipException, match="is VERIFIED"):
        tasks.ask_for_fresh()
    assert tasks.verdict(ASSET) == first.key
    assert run.event.extra == {"manifest": first.key}


def test_a_refuted_backup_is_named_and_followed_by_a_fresh_one_once(installation: Installation, run: Run) -> None:
    wrong = tampered(installation)
    tasks.choose()
    with pytest.raises(Refuted, match=r"table public\.merchants: expected \d+ rows with content hash .* found"):
        tasks.restore_and_compare()
    tasks.ask_for_fresh()  # does not skip
    with pytest.raises(Refuted, match=f"{wrong.key} is REFUTED"):
        tasks.verdict(ASSET)
    assert run.event.extra == {}

    fresh = tampered(installation)
    run.begin(f"again/{installation.bucket_name}")
    assert tasks.choose() == fresh.key
    with pytest.raises(Refuted):
        tasks.restore_and_compare()
    with pytest.raises(AirflowSkipException, match=f"{wrong.key} was refuted, too"):
        tasks.ask_for_fresh()


@pytest.mark.usefixtures("run")
def test_only_the_daily_before_speaks_against_a_fresh_one(installation: Installation) -> None:
    verdicts.judge(installation, installation.back_up(), Outcome.REFUTED)  # as an earlier restore test did
    installation.back_up()
    tampered(installation)
    tasks.choose()
    with pytest.raises(Refuted):
        tasks.restore_and_compare()
    tasks.ask_for_fresh()  # does not skip


@pytest.mark.usefixtures("run")
def test_a_test_that_could_not_be_done_asks_for_nothing_and_is_red(
    installation: Installation, monkeypatch: pytest.MonkeyPatch
) -> None:
    installation.back_up()
    tasks.choose()
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=1000))
    with pytest.raises(Unavailable, match="not enough room"):
        tasks.restore_and_compare()
    with pytest.raises(AirflowSkipException, match="said nothing about the backup"):
        tasks.ask_for_fresh()
    with pytest.raises(NotFound, match="no usable evidence for restore_test"):
        tasks.verdict(ASSET)


def test_a_verification_that_nobody_trusts_is_no_green_run(installation: Installation, run: Run) -> None:
    installation.back_up()
    tasks.choose()
    tasks.restore_and_compare()
    installation.set("BACKUP__VERIFICATION_KEYS", installation.desk.settings.backup.trusted_keys[0])
    with pytest.raises(IntegrityError, match="does not count as verified"):
        tasks.verdict(ASSET)
    assert run.event.extra == {}


# -- once the plaintext is dropped ------------------------------------------------------------------------------


@pytest.fixture
def migrated(installation: Installation, phones: Phones) -> None:
    """A database without the plaintext, which is the one that is backed up."""
    do_expand(phones.desk, quiet)
    do_finish(fill(phones).desk, quiet)
    for step in (do_relax, do_brown_out, do_switch):
        step(phones.desk, quiet)
    installation.set("BACKUP__DATABASE", phones.name)
    installation.connect_as("payme_db_read", dbname=phones.name)


def handed_over(found: dict[str, Any]) -> Any:
    """As XCom gives it to the next task."""
    return json.loads(json.dumps(found["pairs"]))


@pytest.mark.usefixtures("migrated")
def test_a_worker_with_the_key_opens_a_hundred(installation: Installation, run: Run) -> None:
    done = installation.back_up()
    tasks.choose()
    found = tasks.restore_and_compare()
    assert tasks.is_migrated()
    pairs = handed_over(found)
    assert len({key for key, _ in pairs}) == 100
    assert all(stored.startswith("v1:k1:") for _, stored in pairs)
    with pytest.raises(NotFound, match="no usable evidence for ciphertexts_opened"):
        tasks.verdict(ASSET)  # decrypt_sample was marked as success
    tasks.decrypt_sample(pairs)
    assert tasks.verdict(ASSET) == done.key
    opened = evidence.latest("service=payme_ops_db", run.name, tasks.OPENED)
    assert opened.measured == {"manifest": done.key, "pairs": 100, "key_ids": {"k1": 100}, "wrong": []}


@pytest.mark.usefixtures("migrated")
def test_what_does_not_open_is_red_and_the_backup_is_verified_all_the_same(
    installation: Installation, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    done = installation.back_up()
    tasks.choose()
    pairs = handed_over(tasks.restore_and_compare())
    with pytest.raises(IntegrityError, match="not the ciphertexts that were taken"):
        tasks.decrypt_sample(pairs[:99])  # somebody rewrote XCom
    monkeypatch.setenv("ENCRYPTION_KEY", secrets.token_hex(32))
    with pytest.raises(GateClosed, match=rf"do not open; .* wrong {pairs[0][0]}: a stored value does not open"):
        tasks.decrypt_sample(pairs)
    with pytest.raises(GateClosed, match="is VERIFIED, but its ciphertexts do not open"):
        tasks.verdict(ASSET)
    assert run.event.extra == {}
    assert catalogue.find(installation.catalogue, done.key).state is State.VERIFIED


@pytest.mark.usefixtures("run", "migrated")
def test_ciphertexts_that_could_not_be_taken_are_not_taken_for_none(
    installation: Installation, monkeypatch: pytest.MonkeyPatch
) -> None:
    done = installation.back_up()
    tasks.choose()
    monkeypatch.setattr(verify, "PAIRS", -1)  # the server refuses it
    pairs = tasks.restore_and_compare()["pairs"]
    assert catalogue.find(installation.catalogue, done.key).state is State.VERIFIED
    assert tasks.is_migrated()
    with pytest.raises(GateClosed, match="no ciphertexts could be taken"):
        tasks.decrypt_sample(pairs)
    with pytest.raises(NotFound):
        tasks.verdict(ASSET)


def test_its_tasks_hold_their_power_on_the_restore_queue_only(dag_bag: Any) -> None:
    dag = dag_bag.dags["backup_restore_test"]
    edges = {task.task_id: sorted(task.downstream_task_ids) for task in dag.tasks}
    assert edges == {
        "choose": ["readable"],
        "readable": ["restore_and_compare"],
        "restore_and_compare": ["ask_for_fresh", "decrypt_sample", "is_migrated", "verdict"],
        "is_migrated": ["decrypt_sample"],
        "decrypt_sample": ["verdict"],
        "ask_for_fresh": ["fresh_backup"],
        "fresh_backup": ["test_fresh"],
        "test_fresh": ["verdict"],
        "verdict": [],
    }
    queues = {task.task_id: task.queue for task in dag.tasks}
    assert {name for name, queue in queues.items() if queue == "restore"} == {
        *("choose", "readable", "restore_and_compare", "is_migrated", "ask_for_fresh", "verdict")
    }
    assert queues["decrypt_sample"] == "migration"
    assert not dag.get_task("is_migrated").ignore_downstream_trigger_rules  # or it would skip the verdict
    assert (dag.timetable.expression, str(dag.timetable.timezone)) == ("0 6 * * 0", "Africa/Nairobi")
