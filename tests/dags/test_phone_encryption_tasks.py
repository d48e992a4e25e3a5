"""The task bodies of phone_encryption on a real database: what each refuses, and what a click in the UI cannot skip."""

import json
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from airflow.sdk.exceptions import AirflowSkipException, DownstreamTasksSkipped

from payme_ops.foundation import approvals, evidence
from payme_ops.foundation.clock import utc_now
from payme_ops.foundation.errors import GateClosed, NotApproved, NotFound, SettingsError
from payme_ops.foundation.evidence import Verdict
from payme_ops.migration import shared, steps
from payme_ops.migration.expand import do_expand
from payme_ops.migration.shape import Stage
from payme_ops.orchestration import migration
from payme_ops.orchestration.migration import BACKUP, BEFORE, REQUEST, VERIFIED
from tests.support.installation import Installation, quiet
from tests.support.phones import Phones, encrypted
from tests.support.standins import answering, served, slack_stand_in
from tests.support.steps import shape
from tests.support.waiting import eventually

RUN = "manual__1"
NAME, OPS = f"phone_encryption/{RUN}", "service=payme_ops_db"
ASKED: dict[str, Any] = {
    "rehearsal": False,
    "reason": "a test",
    "writes_both": "2.5.0",
    "reads_ciphertext": "2.6.0",
    "ignores_plaintext": "2.7.0",
    "final_name": "2.8.0",
    "window_from": "00:00",
    "window_to": "23:59",
    "workers": 2,
    "verify_across_workers": False,
    "brown_out_minutes": 0,
    "change_url": "",
    "purge_free_bytes": "",
}


@pytest.fixture
def api(installation: Installation, tmp_path: Path) -> Iterator[None]:
    """A PayMe API that is well and counts no error."""
    body = {"status": "healthy", "database": "connected", "version": "2.7.0", "database_errors": {}}
    with served(answering(body), tmp_path) as running:
        installation.set_all({"AIRFLOW_CONN_PAYME_API": json.dumps({"conn_type": "http", "host": running.url})})
        yield


@pytest.fixture
def context(installation: Installation, phones: Phones, api: None, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """As Airflow gives it; there is no Slack, and the database is the test's own."""
    assert api is None
    installation.set_all({"AIRFLOW_CONN_PAYME_SLACK": None})
    connection = json.loads(installation.site.world.env["AIRFLOW_CONN_PAYME_DB_MIGRATE"])
    installation.set_all({"AIRFLOW_CONN_PAYME_DB_MIGRATE": json.dumps({**connection, "schema": phones.name})})
    run = SimpleNamespace(dag_id="phone_encryption", run_id=RUN, clear_number=0, triggering_user_name="oncall")
    made = {"dag": run, "run_id": RUN, "dag_run": run, "params": dict(ASKED), "ti": None}
    monkeypatch.setattr(migration, "get_current_context", lambda: made)
    monkeypatch.setattr(migration, "_BETWEEN_OBSERVATIONS_SECONDS", 0.01)
    monkeypatch.setattr(migration, "_WATCH_EVERY_SECONDS", 0.01)
    with installation.site.admin("payme_ops") as admin:
        admin.execute("DELETE FROM ops.evidence WHERE run = %s", [NAME])
        admin.execute("DELETE FROM ops.approvals WHERE run = %s", [NAME])
        for table in ("alerts", "alert_threads"):
            admin.execute(f"DELETE FROM ops.{table} WHERE key = 'run_says:phone_encryption'")  # noqa: S608
    return made


def approve(gate: str, item: str, responder: str = "approver") -> None:
    """An answer at a gate, to what is true now."""
    digest = evidence.latest(OPS, NAME, item).sha256
    approvals.ask(OPS, run=NAME, gate=gate, digest=digest, requested_by="oncall")
    approvals.answer(OPS, run=NAME, gate=gate, choice="Approve", responder=responder, reason="")


@pytest.mark.parametrize(
    ("field", "value", "says"),
    [
        ("reason", None, "wants a reason"),
        ("reason", "  ", "wants a reason"),
        ("writes_both", "two", "not a sequence"),
        ("reads_ciphertext", "2.4.9", "not a sequence"),
        ("window_to", "5 o'clock", "HH:MM"),
    ],
)
def test_a_request_that_cannot_be_meant_is_refused(context: dict[str, Any], field: str, value: Any, says: str) -> None:
    context["params"][field] = value
    with pytest.raises(SettingsError, match=says):
        migration.check_request()
    with pytest.raises(NotFound):
        evidence.latest(OPS, NAME, REQUEST)


@pytest.mark.usefixtures("context")
def test_the_checklist_is_red_without_backup_and_rehearsal(phones: Phones) -> None:
    migration.check_request()
    with pytest.raises(NotFound):  # the task that announces it was marked as success
        migration.checklist()
    migration.tell()
    with pytest.raises(NotFound):  # the task that measures them was
        migration.checklist()
    measured = {"checks": [{"item": "rehearsal_green", "is": "fail", "found": "no rehearsal"}]}
    check = evidence.Check(BACKUP, "green", "test", lambda: evidence.failed(measured, "rehearse"))
    evidence.record(OPS, NAME, [evidence.run_check(check, actor="test")])
    with pytest.raises(GateClosed, match="no rehearsal"):
        migration.checklist()
    assert shape(phones).stage is Stage.START


@pytest.mark.usefixtures("context")
def test_the_checklist_shows_the_announcement_and_asks_while_slack_has_not_taken_it(
    installation: Installation, tmp_path: Path
) -> None:
    def shown() -> tuple[str, str, str]:
        migration.checklist()
        found = evidence.latest(OPS, NAME, BEFORE)
        [told] = [one for one in found.measured["checks"] if one["item"] == "stakeholders_told"]
        return told["is"], told["found"], found.remedy

    migration.check_request()
    check = evidence.Check("backup_fresh", "green", "test", lambda: evidence.passed("fresh"))
    steps.gate(migration._desk(), BACKUP, [check])
    with slack_stand_in(tmp_path) as slack:
        connection = {"conn_type": "slack", "password": "xoxb-test", "extra": {"base_url": f"{slack.url}/api/"}}
        installation.set_all({"AIRFLOW_CONN_PAYME_SLACK": json.dumps(connection)})
        slack.fail(503)
        migration.tell()
        verdict, found, remedy = shown()
        assert (verdict, found) == ("inconclusive", "Slack has not taken the announcement")
        assert "announce the change yourself" in remedy
        assert slack.messages == []
        slack.fail(None)
        migration.tell()
        migration.tell()
        [message] = slack.messages
        verdict, found, remedy = shown()
    assert (verdict, found) == ("pass", f"message {message['ts']}")
    assert "announce the change yourself" not in remedy


@pytest.mark.usefixtures("context")
def test_a_step_wants_its_gate_and_where_that_could_not_tell_a_person(phones: Phones) -> None:
    migration.check_request()
    with pytest.raises(NotFound):
        migration.take("expand")
    with phones.admin() as admin:
        admin.execute("CREATE PUBLICATION everything FOR TABLE users")
    migration.look("expand")
    assert evidence.latest(OPS, NAME, "before_expand").verdict is Verdict.INCONCLUSIVE
    with pytest.raises(NotApproved):
        migration.take("expand")
    approve("confirm_expand", "before_expand", responder="oncall")
    with pytest.raises(NotApproved):  # by who triggered it
        migration.take("expand")
    assert shape(phones).stage is Stage.START
    approve("confirm_expand", "before_expand")
    migration.take("expand")
    assert shape(phones).stage is Stage.EXPANDED


@pytest.mark.usefixtures("context")
def test_the_fleet_gate_waits_for_an_old_version_and_asks_about_an_unknown_one(phones: Phones) -> None:
    migration.check_request()
    with phones.app("payme-api/2.4.0"):
        assert migration.fleet_runs("writes_both") is False
    with phones.app("payme-api/2.5.0"), phones.app("pgbouncer"):
        assert migration.fleet_runs("writes_both") is True
    assert evidence.latest(OPS, NAME, "fleet_writes_both").verdict is Verdict.INCONCLUSIVE
    with pytest.raises(NotApproved):
        migration.begin_canary()


@pytest.mark.usefixtures("context")
def test_from_the_canary_to_the_drop(phones: Phones) -> None:
    """The whole way on a database; whatever is skipped is noticed by the next."""
    migration.check_request()
    migration.look("expand")
    migration.take("expand")
    with phones.app("payme-api/2.5.0") as app:
        assert migration.fleet_runs("writes_both")
        given = migration.begin_canary()
        migration.canary(**given)
        with pytest.raises(NotApproved):
            migration.plan()
        assert evidence.latest(OPS, NAME, "dual_write").verdict is Verdict.INCONCLUSIVE
        approve("approve_backfill", "dual_write")
        for part in migration.plan():
            migration.encrypt(**part)
        app.execute("UPDATE users SET phone_number = '+254799000001' WHERE id = 7")  # an old one, after all
        migration.catch_up()
        migration.look("finish")
        migration.take("finish")
    migration.rewrap_legacy()
    migration.verify_all()
    with phones.app("payme-api/2.7.0"):
        assert migration.fleet_runs("reads_ciphertext")
        assert migration.fleet_runs("ignores_plaintext")
        migration.look("relax")
        with pytest.raises(NotApproved):
            migration.take("relax")
        approve("approve_reads", VERIFIED)
        migration.take("relax")
        migration.look("brown_out")
        migration.take("brown_out")
        migration.look_before_drop()
        with pytest.raises(NotApproved):
            migration.drop()
        migration.give_back_rights()
        assert not shape(phones).browned_out
        migration.take("brown_out")
        migration.look_before_drop()
        approve("approve_drop", "before_switch")
        migration.drop()
    with phones.app("payme-api/2.8.0"):
        assert migration.fleet_runs("final_name")
        migration.look("end_shim")
        migration.take("end_shim")
    with pytest.raises(NotApproved):
        migration.verdict()
    migration.final_look()
    migration.verdict()
    assert phones.decrypted("phone_number")[7] == "+254799000001"


@pytest.mark.usefixtures("context")
def test_one_wrong_row_closes_the_gate_and_is_named(phones: Phones) -> None:
    migration.check_request()
    migration.look("expand")
    migration.take("expand")
    with phones.app("payme-api/2.5.0"):
        migration.fleet_runs("writes_both")
        migration.canary(**migration.begin_canary())
    approve("approve_backfill", "dual_write")
    for part in migration.plan():
        migration.encrypt(**part)
    with phones.admin() as admin:
        admin.execute("UPDATE users SET phone_number_encrypted = left(phone_number_encrypted, -1) || 'A' WHERE id = 42")
        admin.execute("UPDATE users SET phone_number_encrypted = left(phone_number_encrypted, -1) || 'Q' WHERE id = 42")
    with pytest.raises(GateClosed, match="42 undecryptable"):
        migration.verify_all()
    assert evidence.latest(OPS, NAME, VERIFIED).verdict is Verdict.FAIL


@pytest.mark.usefixtures("context")
def test_when_one_task_reads_all_none_is_planned_and_no_snapshot_held() -> None:
    migration.check_request()
    assert migration.plan_reading() == []
    with pytest.raises(AirflowSkipException):
        migration.hold_snapshot()


def test_across_workers_the_gate_is_about_what_the_readers_found(context: dict[str, Any], phones: Phones) -> None:
    encrypted(phones)
    context["params"]["verify_across_workers"] = True
    migration.check_request()
    one, other = migration.plan_reading()
    assert migration.read_snapshot(**one) is False
    with pytest.raises(NotFound, match="no snapshot"):  # those tasks were marked as success
        migration.verify_all()
    with ThreadPoolExecutor(1) as pool:
        holder = pool.submit(shared.hold, migration._desk(), quiet)
        eventually(lambda: migration.read_snapshot(**one), "every range to be read")
        holder.result()
    migration.hold_snapshot()  # once more, as after a kill: there is nothing left to do
    assert migration.read_snapshot(**other) is True
    migration.verify_all()
    found = evidence.latest(OPS, NAME, VERIFIED)
    assert (found.verdict, found.measured["rows"], found.measured["faults"]) == (Verdict.INCONCLUSIVE, 2000, {})
    assert migration.plan_reading() == [one, other]
    with pytest.raises(NotFound, match="no snapshot"):
        migration.verify_all()


@pytest.mark.parametrize(("user", "says"), [("approver", "Reject by approver"), (None, "Reject by nobody in time")])
def test_a_rollback_that_is_not_approved_ends_at_once_and_touches_nothing(
    context: dict[str, Any], phones: Phones, dag_bag: Any, user: str | None, says: str
) -> None:
    do_expand(phones.desk, quiet)
    before = shape(phones)
    context["params"]["back_to"] = "expand"
    migration.check_rollback()
    plan = evidence.latest(OPS, NAME, "rollback_plan")
    approvals.ask(OPS, run=NAME, gate="approve_rollback", digest=plan.sha256, requested_by="oncall")
    dag = dag_bag.dags["phone_encryption_rollback"]
    gate = dag.get_task("approve_rollback")
    person = {"id": user, "name": user} if user else None
    event = {"chosen_options": ["Reject"], "params_input": {}, "responded_at": utc_now(), "responded_by_user": person}
    ti = SimpleNamespace(map_index=-1, xcom_push=lambda **_: None)
    with pytest.raises(DownstreamTasksSkipped) as skipped:
        gate.execute_complete({**context, "task": gate, "ti": ti}, event)
    rest = {"check_rollback", "approve_rollback", "rollback_verdict"}
    assert set(skipped.value.tasks) == set(dag.task_ids) - rest
    # Nor does any of them without its answer, whatever is marked or cleared.
    bodies: list[Callable[[], object]] = [migration.reverse, partial(migration.fleet_left, "writes_both", "expand")]
    bodies += [partial(migration.undo, step) for step in ("brown_out", "relax", "finish", "expand")]
    for body in bodies:
        with phones.app("payme-api/2.5.0"), pytest.raises(NotApproved, match=says):
            body()
    with pytest.raises(NotApproved, match=f"nothing was changed; .*{says}; the table is expanded"):
        migration.rollback_verdict()
    assert shape(phones) == before
