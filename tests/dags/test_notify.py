"""An outage is told to Slack, the status page and support, once; what could not be told is left to a person."""

import json
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from payme_ops.foundation import opsdb, settings
from payme_ops.foundation.errors import SettingsError
from payme_ops.orchestration import connections, notify
from payme_ops.orchestration.notify import BEGAN, ENDED, Notice
from sandbox import postgres
from tests.support.ops import connection
from tests.support.standins import StandIn, mail_stand_in, slack_stand_in, status_page_stand_in

PHONE = "+254700999888"


@dataclass(frozen=True)
class Outside:
    """Who may be told."""

    slack: StandIn
    page: StandIn
    mail: StandIn
    monkeypatch: pytest.MonkeyPatch

    def incidents(self) -> list[str]:
        return [update["status"] for update in self.page.get("/incidents.json")]

    def mails(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = self.mail.get("/messages.json")
        return found


@pytest.fixture(scope="module")
def ops() -> Iterator[postgres.Cluster]:
    with postgres.temporary_cluster() as cluster:
        opsdb.migrate(cluster.conninfo())
        yield cluster


@pytest.fixture
def outside(tmp_path: Path, ops: postgres.Cluster, monkeypatch: pytest.MonkeyPatch) -> Iterator[Outside]:
    with ExitStack() as stack:
        slack = stack.enter_context(slack_stand_in(tmp_path))
        page = stack.enter_context(status_page_stand_in(tmp_path))
        mail, smtp = stack.enter_context(mail_stand_in(tmp_path))
        found: dict[str, dict[str, Any]] = {
            "ops_db": connection(ops),
            "slack": {"conn_type": "slack", "password": "xoxb-test", "extra": {"base_url": f"{slack.url}/api/"}},
            "status_page": {
                "conn_type": "http",
                "host": page.url,
                "password": "key",
                "extra": {"page_id": "payme"},
            },
            "smtp": {
                "conn_type": "smtp",
                "host": smtp.host,
                "port": smtp.port,
                "extra": {"from_email": "ops@payme.test", "disable_tls": True},
            },
        }
        for name, value in found.items():
            monkeypatch.setenv(f"AIRFLOW_CONN_PAYME_{name.upper()}", json.dumps(value))
        monkeypatch.setattr(
            settings, "load", lambda: SimpleNamespace(notify=SimpleNamespace(support_email="help@payme.test"))
        )
        yield Outside(slack, page, mail, monkeypatch)


@pytest.fixture
def context(request: pytest.FixtureRequest) -> Any:
    run = SimpleNamespace(dag_id="backup_restore", run_id=f"manual__{request.node.name}", clear_number=0)
    return {"dag": SimpleNamespace(dag_id="backup_restore"), "run_id": run.run_id, "dag_run": run, "ti": None}


def notice(phase: str) -> Notice:
    return Notice(phase, f"PayMe {phase}", f"Words for customers {PHONE}.", f"Words for us {PHONE}.")


def test_everybody_is_told_of_both_phases_and_reads_no_number(outside: Outside, context: Any) -> None:
    assert notify.tell(context, notice(BEGAN)) == []
    assert notify.tell(context, notice(ENDED)) == []
    assert outside.incidents() == ["investigating", "resolved"]
    assert [mail["subject"] for mail in outside.mails()] == ["PayMe began", "PayMe ended"]
    assert [mail["rcpt_to"] for mail in outside.mails()] == [["help@payme.test"]] * 2
    first, second = outside.slack.messages
    assert second["thread_ts"] == first["ts"]
    assert PHONE not in json.dumps([outside.slack.messages, outside.mails(), outside.page.get("/incidents.json")])


def test_told_again_is_told_once(outside: Outside, context: Any) -> None:
    for _ in range(3):
        assert notify.tell(context, notice(BEGAN)) == []
    assert outside.incidents() == ["investigating"]
    assert len(outside.mails()) == len(outside.slack.messages) == 1


def test_a_run_that_was_cleared_is_an_outage_anew(outside: Outside, context: Any) -> None:
    for cleared in (0, 1):
        context["dag_run"].clear_number = cleared
        assert notify.tell(context, notice(BEGAN)) == notify.tell(context, notice(ENDED)) == []
    assert outside.incidents() == ["investigating", "resolved"] * 2
    assert len({mail["message_id"] for mail in outside.mails()}) == 4


def test_what_is_not_configured_is_a_persons_to_tell(outside: Outside, context: Any) -> None:
    outside.monkeypatch.delenv("AIRFLOW_CONN_PAYME_STATUS_PAGE")
    outside.monkeypatch.delenv("AIRFLOW_CONN_PAYME_SMTP")
    page, mail = notify.tell(context, notice(BEGAN))
    assert "status page: tell" in page
    assert "payme_status_page is not there" in page
    assert "payme_smtp is not there" in mail


def test_what_is_away_is_a_persons_to_tell_and_is_tried_again(outside: Outside, context: Any) -> None:
    outside.page.fail(503)
    outside.mail.fail(500)
    assert len(notify.tell(context, notice(BEGAN))) == 2
    outside.page.fail(None)
    outside.mail.fail(None)
    assert notify.tell(context, notice(BEGAN)) == []
    assert outside.incidents() == ["investigating"]


def test_an_incident_that_was_not_opened_is_not_resolved(outside: Outside, context: Any) -> None:
    outside.page.fail(503, count=1)
    notify.tell(context, notice(BEGAN))
    (line,) = notify.tell(context, notice(ENDED))
    assert "was not opened by this run" in line


def test_a_connection_that_is_no_url_is_an_error_and_not_nobody(outside: Outside) -> None:
    outside.monkeypatch.setenv("AIRFLOW_CONN_PAYME_API", json.dumps({"conn_type": "http", "host": "api"}))
    with pytest.raises(SettingsError, match="no URL"):
        connections.payme_api()
    outside.monkeypatch.delenv("AIRFLOW_CONN_PAYME_API")
    assert connections.payme_api() is None
