"""The tasks of backup_retention on real services: who is asked and told, and what colour the run has."""

import json
import logging
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psycopg
import pytest
from airflow.sdk.exceptions import AirflowSkipException
from psycopg import sql

from payme_ops.backup.manifest import Manifest, Tier
from payme_ops.backup.retain import PLAN
from payme_ops.backup.verification import Outcome
from payme_ops.foundation import approvals, evidence
from payme_ops.foundation.clock import utc_now
from payme_ops.foundation.errors import NotApproved, NotFound, SettingsError
from payme_ops.orchestration import retention as tasks
from tests.support import history
from tests.support.installation import Installation
from tests.support.standins import StandIn, slack_stand_in

GATE, OPS = "approve_deletions", "service=payme_ops_db"
_real: list[Manifest] = []


@dataclass
class Run:
    """One run of the DAG after another, on one history."""

    installation: Installation
    monkeypatch: pytest.MonkeyPatch
    slack: StandIn
    like: Manifest
    name: str = field(init=False)

    def begin(self, number: int = 1, *, user: str | None = None, **params: Any) -> None:
        self.name = f"{self.installation.bucket_name}/{number}"
        dag_run = SimpleNamespace(
            dag_id="backup_retention",
            run_id=self.name,
            run_type="manual" if user else "scheduled",
            triggering_user_name=user,
            clear_number=0,
        )
        context = {
            "dag": SimpleNamespace(dag_id="backup_retention"),
            "dag_run": dag_run,
            "run_id": self.name,
            "params": {"dry_run": False, "reason": None, **params},
        }
        self.monkeypatch.setattr(tasks, "get_current_context", lambda: context)

    def plant(self, days: float, outcome: Outcome | None = None, tier: Tier = Tier.DAILY) -> Manifest:
        return history.plant(self.installation, self.like, self.like.snapshot_at - timedelta(days=days), tier, outcome)

    def objects(self, *backups: Manifest) -> int:
        return sum(len(list(self.installation.store.keys(one.prefix))) for one in backups)

    def ask(self, gate: str = GATE, item: str = PLAN) -> str:
        """As the gate does; returns the digest of what is shown."""
        run = f"backup_retention/{self.name}"
        digest = evidence.latest(OPS, run, item).sha256
        approvals.ask(OPS, run=run, gate=gate, digest=digest, requested_by="oncall")
        return digest

    def answer(self, choice: str, responder: str, gate: str = GATE) -> None:
        run = f"backup_retention/{self.name}"
        approvals.answer(OPS, run=run, gate=gate, choice=choice, responder=responder, reason="")


@pytest.fixture
def run(installation: Installation, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Run]:
    if not _real:
        _real.append(installation.back_up())
        for key in list(installation.store.keys("postgres/")):
            installation.store.delete(key)
    with psycopg.connect(OPS) as session:
        session.execute("TRUNCATE ops.alerts, ops.alert_threads")
    with slack_stand_in(tmp_path) as slack:
        connection = {"conn_type": "slack", "password": "xoxb-test", "extra": {"base_url": f"{slack.url}/api/"}}
        monkeypatch.setenv("AIRFLOW_CONN_PAYME_SLACK", json.dumps(connection))
        made = Run(installation, monkeypatch, slack, _real[0])
        made.begin()
        yield made


def test_an_ordinary_morning_asks_nobody(run: Run, caplog: pytest.LogCaptureFixture) -> None:
    run.plant(1, Outcome.VERIFIED)
    old = run.plant(31)
    with caplog.at_level(logging.INFO, "payme_ops.backup"):
        assert tasks.plan() is True
    assert f"delete    {old.prefix}" in caplog.text
    assert "undo until" in caplog.text
    assert tasks.apply(GATE) == {"deleted": [old.prefix], "objects in this try": 3}
    assert tasks.verdict(GATE) == "1 deleted"
    run.begin(2)
    assert tasks.plan() is False
    assert tasks.verdict(GATE) == "nothing was deleted; frozen: no"
    assert run.slack.messages == []


def test_backups_of_the_desks_own_database_have_a_plan_an_approval_and_a_freeze_of_their_own(run: Run) -> None:
    gate = "airflow.approve_deletions"
    payme = run.like
    for days in (9, 31):
        run.plant(days, Outcome.VERIFIED if days == 9 else None)
    run.like = payme.model_copy(update={"database": "airflow"})
    proof = run.plant(1, Outcome.VERIFIED)
    old = [run.plant(days) for days in (31, 32, 33, 34)]
    assert tasks.plan() is False  # PayMe's proof is too old, and the desk's is none for it
    assert tasks.plan("airflow") is True
    with pytest.raises(NotApproved):
        tasks.apply(gate, "airflow")
    run.ask(gate, tasks.of(PLAN, "airflow"))
    run.answer("Approve", "approver", gate)
    assert len(tasks.apply(gate, "airflow")["deleted"]) == 4
    assert tasks.verdict(gate, "airflow") == "4 deleted"
    assert (run.objects(*old), run.objects(proof) > 0) == (0, True)
    assert [one["text"].split(":")[0] for one in run.slack.messages] == ["Retention is frozen"]


def test_a_freeze_is_told_once_and_its_end_and_told_again(run: Run) -> None:
    run.plant(9, Outcome.VERIFIED)
    old = run.plant(31)
    for number in range(3):
        run.begin(number)
        assert tasks.plan() is False
        assert tasks.verdict(GATE).startswith("nothing was deleted; frozen: the newest verified backup is of")
    assert run.objects(old) == 3
    [message] = run.slack.messages
    text = json.dumps(message)
    assert "Retention is frozen" in text
    assert "1 deletions wait" in text
    assert "docs/runbooks/backup_retention.md" in text
    proof = run.plant(1, Outcome.VERIFIED)
    for number in (3, 4):
        run.begin(number)
        assert tasks.plan() is True
    assert "no longer frozen" in json.dumps(run.slack.messages[1:])
    assert len(run.slack.messages) == 2
    # The same old proof is the newest again, and people hear of it again.
    history.find(run.installation, proof, Outcome.REFUTED)
    for number in (5, 6):
        run.begin(number)
        assert tasks.plan() is False
    assert len(run.slack.messages) == 3
    assert {one.get("thread_ts", message["ts"]) for one in run.slack.messages} == {message["ts"]}


def test_a_new_installation_is_frozen_and_nobody_is_woken(run: Run) -> None:
    run.plant(7.9)
    assert tasks.plan() is False
    assert run.slack.messages == []
    run.plant(8)
    run.begin(2)
    tasks.plan()
    assert len(run.slack.messages) == 1


def test_a_frozen_plan_cannot_be_applied_by_marking_tasks_as_success(run: Run) -> None:
    old = run.plant(31)
    tasks.plan()
    with pytest.raises(NotApproved):
        tasks.apply(GATE)
    assert run.objects(old) == 3


class TestMany:
    """Four deletions at once."""

    @pytest.fixture
    def old(self, run: Run) -> list[Manifest]:
        run.plant(1, Outcome.VERIFIED)
        made = [run.plant(31 + number) for number in range(4)]
        assert tasks.plan() is True
        return made

    def test_are_deleted_when_another_person_agreed(self, run: Run, old: list[Manifest]) -> None:
        run.ask()
        run.answer("Approve", "approver")
        assert len(tasks.apply(GATE)["deleted"]) == 4
        assert tasks.verdict(GATE) == "4 deleted"
        assert run.objects(*old) == 0

    @pytest.mark.parametrize(("choice", "who"), [("Reject", "approver"), ("Reject", ""), ("Approve", "oncall")])
    def test_stay_and_the_run_is_red_otherwise(self, run: Run, old: list[Manifest], choice: str, who: str) -> None:
        run.ask()
        run.answer(choice, who)
        for task in (tasks.apply, tasks.verdict):
            with pytest.raises(NotApproved):
                task(GATE)
        assert run.objects(*old) == 12

    def test_stay_when_nobody_was_asked(self, run: Run, old: list[Manifest]) -> None:
        with pytest.raises(NotApproved, match="marking the gate as success approves nothing"):
            tasks.apply(GATE)
        assert run.objects(*old) == 12

    def test_an_approval_of_another_plan_counts_for_nothing(self, run: Run, old: list[Manifest]) -> None:
        run.ask()
        run.answer("Approve", "approver")
        more = run.plant(36)
        tasks.plan()  # the task was cleared
        with pytest.raises(NotApproved, match="other evidence"):
            tasks.apply(GATE)
        assert run.objects(*old, more) == 15


def test_apply_marked_as_success_is_no_green_run(run: Run) -> None:
    run.plant(1, Outcome.VERIFIED)
    run.plant(31)
    tasks.plan()
    with pytest.raises(NotFound):
        tasks.verdict(GATE)


def test_a_plan_made_again_after_apply_is_no_green_run(run: Run) -> None:
    run.plant(1, Outcome.VERIFIED)
    run.plant(31)
    tasks.plan()
    tasks.apply(GATE)
    run.plant(32)
    tasks.plan()
    with pytest.raises(NotFound, match="the newest plan was not applied"):
        tasks.verdict(GATE)


def test_a_dry_run_deletes_nothing(run: Run) -> None:
    run.plant(1, Outcome.VERIFIED)
    old = run.plant(31)
    run.begin(user="oncall", dry_run=True)
    assert tasks.plan() is False
    with pytest.raises(AirflowSkipException):
        tasks.apply(GATE)
    with pytest.raises(AirflowSkipException):
        tasks.drop_replaced()
    assert tasks.verdict(GATE) == "dry run: nothing was deleted"
    assert run.objects(old) == 3


def test_by_hand_it_wants_a_reason_before_anything_is_touched(run: Run) -> None:
    run.begin(user="oncall")
    with pytest.raises(SettingsError, match="wants a reason"):
        tasks.plan()
    with pytest.raises(NotFound):  # and what follows finds no plan
        tasks.drop_replaced()
    run.begin(user="oncall", reason="the bucket is full")
    assert tasks.plan() is False


def test_a_replaced_database_goes_when_its_days_are_over(run: Run) -> None:
    site, name = run.installation.site, "payme_replaced_20260101_020000"
    days = run.installation.desk.settings.backup.keep_replaced_days
    with site.admin("postgres") as admin:
        admin.execute(f"CREATE DATABASE {name} OWNER payme_db_restore")
    try:
        with site.admin("postgres") as admin:
            put_aside(admin, name, utc_now() - timedelta(days=days, minutes=5))
        tasks.plan()
        with pytest.raises(AirflowSkipException, match="frozen"):
            tasks.drop_replaced()
        run.plant(1, Outcome.VERIFIED)
        run.begin(2)
        tasks.plan()
        for minutes, dropped in ((-5, []), (5, [name])):
            with site.admin("postgres") as admin:
                put_aside(admin, name, utc_now() - timedelta(days=days, minutes=minutes))
            assert tasks.drop_replaced() == dropped
    finally:
        with site.admin("postgres") as admin:
            admin.execute(f"DROP DATABASE IF EXISTS {name}")


def put_aside(admin: psycopg.Connection, name: str, at: datetime) -> None:
    """As a swap marks the database that it replaced."""
    said = {"state": "replaced", "target": "payme", "run": "test", "at": at.isoformat(), "backup": "test"}
    text = sql.Literal(f"payme-ops {json.dumps(said)}")
    admin.execute(sql.SQL("COMMENT ON DATABASE {} IS {}").format(sql.Identifier(name), text))


def test_the_dag_asks_between_plan_and_apply_and_ends_in_its_verdict(dag_bag: Any) -> None:
    dag = dag_bag.dags["backup_retention"]
    assert dag.timetable.expression == "30 7 * * *"
    edges = {task.task_id: sorted(task.downstream_task_ids) for task in dag.tasks}
    assert edges == {
        "plan": ["approve_deletions"],
        "approve_deletions": ["apply"],
        "apply": ["drop_replaced", "verdict"],
        "drop_replaced": [],
        "verdict": [],
        # The desk's own databases, each by itself.
        **{
            f"{which}.{task}": [f"{which}.{after}" for after in downstream]
            for which in ("airflow", "ops")
            for task, downstream in {
                "plan": ["approve_deletions"],
                "approve_deletions": ["apply"],
                "apply": ["verdict"],
                "verdict": [],
            }.items()
        },
    }
    for which in ("airflow", "ops"):  # what the gate shows is what the plan of that database wrote
        assert dag.get_task(f"{which}.approve_deletions").evidence_item == tasks.of(PLAN, which)
    assert dag.get_task("approve_deletions").defaults == ["Reject"]
    assert dag.get_task("drop_replaced").queue == "restore"
    # One that was rejected or is frozen has skipped tasks before both leaves; one that failed is red without them.
    assert {dag.get_task(leaf).trigger_rule for leaf in ("drop_replaced", "verdict")} == {"none_failed"}
    assert dag.get_task("plan").ignore_downstream_trigger_rules is False
