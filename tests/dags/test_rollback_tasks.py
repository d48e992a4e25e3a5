"""The task bodies of backup_restore on real services: what each one refuses, and what happens after a rejection."""

import json
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from payme_ops.backup import swap
from payme_ops.backup.rollback import PLAN
from payme_ops.foundation import approvals, evidence, payme_api
from payme_ops.foundation.errors import NotApproved, PaymeOpsError, SettingsError
from payme_ops.foundation.payme_api import PaymeApi
from payme_ops.orchestration import rollback
from tests.support.installation import Installation
from tests.support.standins import payme_api_stand_in
from tests.support.used import used_database

GATE, RUN = "approve_swap", "manual__1"
NAME = f"backup_restore/{RUN}"
OPS, SERVER = "service=payme_ops_db", "service=payme_db_restore"


@pytest.fixture
def target(installation: Installation) -> Iterator[str]:
    with used_database(installation) as name:
        yield name


@pytest.fixture
def api(installation: Installation, target: str, tmp_path: Path) -> Iterator[PaymeApi]:
    with payme_api_stand_in(tmp_path, installation.site.world.conninfo("payme_app", target)) as (_, running):
        connection = {"conn_type": "http", "host": running.url, "password": running.token}
        installation.set_all({"AIRFLOW_CONN_PAYME_API": json.dumps(connection)})
        yield running


@pytest.fixture
def context(installation: Installation, target: str, api: PaymeApi, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """As Airflow gives it; Slack, the status page and mail are not there."""
    assert api
    for name in ("SLACK", "STATUS_PAGE", "SMTP"):
        installation.set_all({f"AIRFLOW_CONN_PAYME_{name}": None})
    run = SimpleNamespace(dag_id="backup_restore", run_id=RUN, clear_number=0, triggering_user_name="oncall")
    params = {"backup": "latest", "target": target, "reason": "a test", "version": ""}
    made = {"dag": run, "run_id": RUN, "dag_run": run, "params": params, "ti": None}
    monkeypatch.setattr(rollback, "get_current_context", lambda: made)
    with installation.site.admin("payme_ops") as admin:
        admin.execute("DELETE FROM ops.evidence WHERE run = %s", [NAME])
        admin.execute("DELETE FROM ops.approvals WHERE run = %s", [NAME])
    installation.back_up()
    return made


def approve(choice: str = "Approve", item: str = PLAN, gate: str = GATE) -> None:
    """A second person's answer at a gate."""
    approvals.ask(OPS, run=NAME, gate=gate, digest=evidence.latest(OPS, NAME, item).sha256, requested_by="oncall")
    approvals.answer(OPS, run=NAME, gate=gate, choice=choice, responder="approver", reason="")


def until_the_question() -> None:
    rollback.check_request()
    rollback.stop_application()
    rollback.restore_beside()
    rollback.measure_loss()


def beside(installation: Installation, target: str) -> bool:
    with installation.site.admin("postgres") as admin:
        return swap.facts(admin, swap.beside_name(target, NAME)) is not None


def test_a_request_without_a_reason_is_refused(context: dict[str, Any]) -> None:
    context["params"]["reason"] = None
    with pytest.raises(SettingsError, match="wants a reason"):
        rollback.check_request()


@pytest.mark.usefixtures("context")
def test_no_swap_without_an_approval_whatever_was_clicked(installation: Installation, target: str) -> None:
    until_the_question()
    with pytest.raises(NotApproved):
        rollback.swap(GATE)
    approve("Reject")
    with pytest.raises(NotApproved, match="Reject by approver"):
        rollback.swap(GATE)
    assert beside(installation, target)


@pytest.mark.long
@pytest.mark.usefixtures("context")
def test_after_a_rejection_the_application_runs_and_nothing_is_left(
    installation: Installation, target: str, api: PaymeApi
) -> None:
    until_the_question()
    assert payme_api.health(api).status == "stopped"
    approve("Reject")
    rollback.start_application(GATE)
    assert payme_api.health(api).healthy
    assert not beside(installation, target)
    rollback.tell()
    with pytest.raises(PaymeOpsError, match="nothing was restored"):
        rollback.verdict("by_hand")


@pytest.mark.long
@pytest.mark.usefixtures("context")
def test_a_swap_that_failed_is_not_tried_under_an_application_that_runs_again(
    installation: Installation, target: str, api: PaymeApi
) -> None:
    until_the_question()
    approve()
    rollback.start_application(GATE)  # what runs after a swap that failed
    assert payme_api.health(api).healthy
    assert beside(installation, target), "kept for the next try"
    with pytest.raises(NotApproved, match="was started again"):
        rollback.swap(GATE)
    # From stop_application on, as the runbook says.
    rollback.stop_application()
    rollback.restore_beside()
    rollback.measure_loss()
    approve()
    assert rollback.swap(GATE)
    rollback.start_application(GATE)
    assert payme_api.version(api).version == "2.3.1"


@pytest.mark.usefixtures("context")
def test_green_is_a_swap_a_healthy_application_and_nothing_left_to_do(api: PaymeApi) -> None:
    until_the_question()
    approve()
    rollback.swap(GATE)
    rollback.start_application(GATE)
    rollback.tell()  # the status page and support are not configured
    with pytest.raises(NotApproved):
        rollback.verdict("by_hand")
    approve(item=rollback.BY_HAND, gate="by_hand")
    payme_api.stop(api)
    with pytest.raises(PaymeOpsError, match="the application is not well"):
        rollback.verdict("by_hand")
    payme_api.start(api, "2.3.1")
    rollback.verdict("by_hand")


@pytest.mark.usefixtures("context")
def test_without_an_api_a_persons_word_is_asked_before_anything_is_restored(installation: Installation) -> None:
    installation.set_all({"AIRFLOW_CONN_PAYME_API": None})
    rollback.check_request()
    rollback.stop_application()
    with pytest.raises(NotApproved):
        rollback.restore_beside()
    approve(item="application_stopped", gate="confirm_stopped")
    assert rollback.restore_beside()
