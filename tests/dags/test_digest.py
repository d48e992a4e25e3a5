"""The digest of one morning through a real ops database, real buckets, and stand-ins of Sentry and Slack."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psycopg
import pytest

from payme_ops.backup.verification import Outcome
from payme_ops.foundation import alert, approvals, evidence, lease
from payme_ops.foundation.alert import Alert, Severity
from payme_ops.foundation.clock import EAT, utc_now
from payme_ops.foundation.errors import Unavailable
from payme_ops.foundation.evidence import Verdict
from payme_ops.monitoring.digest import Doctor, Errors, NotKnown
from payme_ops.orchestration import digest
from sandbox.http import call
from tests.support import history
from tests.support.installation import Installation
from tests.support.ops import holder
from tests.support.standins import StandIn, sentry_stand_in, slack_stand_in

OPS, RUN = "service=payme_ops_db", "daily_digest/scheduled__2"
HOSTILE = "Boom: <!channel> `code` +254712000111\n*bold*"


@dataclass
class Morning:
    """What the digest asks and tells."""

    installation: Installation
    slack: StandIn
    sentry: StandIn
    monkeypatch: pytest.MonkeyPatch

    def run(self, number: int = 2) -> str:
        """One run of the DAG's task."""
        dag = SimpleNamespace(dag_id="daily_digest")
        dag_run = SimpleNamespace(dag_id="daily_digest", run_id=f"scheduled__{number}", clear_number=0)
        context = {"dag": dag, "dag_run": dag_run, "run_id": dag_run.run_id, "params": {"reason": None}}
        self.monkeypatch.setattr(digest, "get_current_context", lambda: context)
        return digest.tell()

    @property
    def said(self) -> str:
        """The text of the newest message."""
        message = self.slack.messages[-1]
        return str(message["blocks"][1]["text"]["text"])

    def error(self, kind: str, at: datetime | None = None, count: int = 1, project: int = 2) -> None:
        """Errors of the application, or of project 1 which is Airflow."""
        url = f"{self.sentry.url}/api/{project}/store/?sentry_key=a-key"
        values = {"values": [{"type": kind.split(": ")[0], "value": kind.partition(": ")[2]}]}
        event = {"exception": values, "transaction": "POST /orders", "level": "error"}
        for _ in range(count):
            assert call("POST", url, event | ({"timestamp": at.timestamp()} if at else {}))[0] == 200


@pytest.fixture
def morning(installation: Installation, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Morning]:
    with psycopg.connect(OPS) as session:
        session.execute("TRUNCATE ops.alerts, ops.alert_threads, ops.approvals, ops.evidence, ops.leases, ops.terms")
    with slack_stand_in(tmp_path) as slack, sentry_stand_in(tmp_path) as sentry:
        connection = {"conn_type": "slack", "password": "xoxb-test", "extra": {"base_url": f"{slack.url}/api/"}}
        monkeypatch.setenv("AIRFLOW_CONN_PAYME_SLACK", json.dumps(connection))
        extra = {"organization": "payme", "project": "api", "airflow_project": "airflow"}
        extra["dsn"] = sentry.url.replace("//", "//a-key@") + "/2"
        where = {"conn_type": "http", "host": sentry.url, "password": "token-of-the-digest", "extra": extra}
        monkeypatch.setenv("AIRFLOW_CONN_PAYME_SENTRY", json.dumps(where))
        monkeypatch.setattr(digest, "_HEARD_SECONDS", 0.0)
        yield Morning(installation, slack, sentry, monkeypatch)


def lines(said: str, head: str) -> list[str]:
    """A part of the text: its headline and the lines under it."""
    found = said.splitlines()
    at = next(number for number, line in enumerate(found) if line.startswith(head))
    rest = found[at + 1 :]
    return [found[at], *rest[: next((n for n, line in enumerate(rest) if not line.startswith("  ")), len(rest))]]


def test_a_morning_with_all_that_can_be(morning: Morning) -> None:
    now = utc_now()
    morning.error("TypeError: of last week", now - timedelta(days=3), count=7)
    morning.error("KeyError: old", now - timedelta(days=20))
    morning.error("KeyError: old", now - timedelta(hours=2), count=3)
    morning.error(HOSTILE, now - timedelta(hours=1), count=2)
    morning.error("DagError: of Airflow", project=1)
    done = morning.installation.back_up()
    history.find(morning.installation, done, Outcome.VERIFIED)
    alert.raise_alert(OPS, failed_backup(now), None)
    expires = now + timedelta(hours=2)
    approvals.ask(
        OPS,
        run="backup_restore/1",
        gate="swap",
        digest="d",
        requested_by="a",
        subject="Replace payme?",
        expires_at=expires,
    )
    lease.take_term(OPS, "freeze:staging", "release/7", timedelta(minutes=9))
    with holder(OPS, "ddl:payme", "phone_encryption/3"):
        assert morning.run() == "sent"
    said = morning.said
    assert "> orders are stopped in staging for" in said.replace("&gt;", ">")
    assert lines(said, "ERRORS of api") == [
        "ERRORS of api in 24 h: 5; the 7 days before had 1.0 a day",
        "      3 x KeyError: old | POST /orders",
        "      2 x NEW Boom: &lt;!channel&gt; 'code' [phone] *bold* | POST /orders",
        "  new: 1",
        "  back after it was resolved: none",
    ]
    assert "ERRORS of airflow in 24 h: 1; the 7 days before had 0.0 a day" in said
    assert lines(said, "OPEN ALERTS") == [
        "OPEN ALERTS: 1, acknowledged 0",
        "  CRITICAL for 3 h: backup_daily failed in dump_and_store",
    ]
    assert said.endswith("NONE: silences```")
    assert lines(said, "BACKUPS")[0].startswith("BACKUPS: RPO ")
    assert "Replace payme? (backup_restore)" in lines(said, "QUESTIONS TO PEOPLE: 1")[1]
    held = lines(said, "LEASES HELD: 2")
    assert {line.split()[0] for line in held[1:]} == {"freeze:staging", "ddl:payme"}
    assert "there is no earlier digest to compare with" in lines(said, "DOCTOR: 2")[0]
    assert "+254712000111" not in json.dumps(morning.slack.messages)


def failed_backup(now: datetime) -> Alert:
    return Alert(
        key="run_failed:backup_daily",
        occurrence="backup_daily/1",
        severity=Severity.CRITICAL,
        what="backup_daily failed in dump_and_store",
        why="it failed",
        since=now - timedelta(hours=3),
        next="see",
        owner="on call",
        runbook="",
        link="",
    )


def test_a_second_run_on_the_same_day_sends_no_second_message(morning: Morning) -> None:
    assert morning.run(2) == "sent"
    assert morning.run(3) == "sent"
    [message] = morning.slack.messages
    assert message["metadata"]["event_payload"]["occurrence"] == f"{utc_now().astimezone(EAT):%Y-%m-%d}"


def test_doctor_is_compared_with_the_day_before_and_kept(morning: Morning) -> None:
    yesterday = utc_now() - timedelta(days=1)
    digest._doctor(yesterday, "daily_digest/scheduled__1")
    with psycopg.connect(OPS) as session:
        moved = "UPDATE ops.evidence SET started = started - interval '1 day' WHERE run LIKE 'daily_digest/%'"
        looked = {row[0].astimezone(EAT) for row in session.execute(f"{moved} RETURNING started")}
    morning.installation.site.store.delete_bucket_encryption(Bucket=morning.installation.bucket_name)
    morning.run()
    part = lines(morning.said, "DOCTOR")
    assert part[0].split("; ")[1] in {f"1 changed since {at:%a %H:%M}" for at in looked}
    assert part[1].startswith("  bucket_encryption: pass -")
    kept = {one.item: one.verdict for one in evidence.of_run(OPS, RUN)}
    assert kept["bucket_encryption"] is Verdict.FAIL
    # What this run found is not what the next compares itself with on the same day.
    again = digest._doctor(utc_now(), "daily_digest/scheduled__3")
    assert isinstance(again, Doctor)
    assert again.before is not None
    assert again.before["bucket_encryption"] is Verdict.PASS


def of_sentry(morning: Morning) -> Errors:
    """What Sentry says of the application."""
    soon = utc_now() + timedelta(seconds=2)  # what was reported this second counts, too
    found = digest._part("Sentry", lambda: digest._errors(soon))
    assert not isinstance(found, NotKnown)
    assert morning.slack.messages == []
    return found[0]


def test_sentrys_429_is_of_the_part_that_it_answered(morning: Morning) -> None:
    morning.sentry.fail(429, path="/issues/", headers={"Retry-After": "60"})
    morning.error("KeyError: some", count=2)
    found = of_sentry(morning)
    assert found.counts == (2, 0.0)
    assert found.top == found.new == found.regressed == NotKnown("429, asked to wait 60 s")


@pytest.mark.parametrize(
    ("status", "says"),
    [(401, "401 told to fail"), (403, "403 told to fail"), (503, "503"), (429, "429, asked to wait 90 s")],
)
def test_nothing_of_sentry_is_no_zero(morning: Morning, status: int, says: str) -> None:
    morning.sentry.fail(status, headers={"Retry-After": "90"})
    found = of_sentry(morning)
    assert {found.counts, found.top, found.new, found.regressed} == {NotKnown(says)}
    assert isinstance(found.heard, NotKnown)


def test_new_and_regressed_are_counted_over_all_pages(morning: Morning) -> None:
    assert call("POST", f"{morning.sentry.url}/access", {"page": 2})[0] == 200
    for number in range(7):
        morning.error(f"Kind{number}: new", count=number + 1)
    found = of_sentry(morning)
    assert not isinstance(found.new, NotKnown)
    assert [one.count for one in found.new] == [7, 6, 5, 4, 3, 2, 1]
    resolved = f"{morning.sentry.url}/api/0/organizations/payme/issues/{found.new[0].id}/"
    assert call("PUT", resolved, {"status": "resolved"}, token="any")[0] == 200
    morning.error("Kind6: again")
    found = of_sentry(morning)
    assert not isinstance(found.regressed, NotKnown)
    assert [(one.title, one.count) for one in found.regressed] == [("Kind6: again", 8)]
    assert found.heard is True


def test_a_message_is_no_error(morning: Morning) -> None:
    url = f"{morning.sentry.url}/api/2/store/?sentry_key=a-key"
    assert call("POST", url, {"message": "started", "level": "info"})[0] == 200
    found = of_sentry(morning)
    assert (found.counts, found.top, found.new) == ((0, 0.0), [], [])


def test_errors_that_sentry_drops_are_not_taken_for_none(morning: Morning) -> None:
    assert call("POST", f"{morning.sentry.url}/quota", {"full": True})[0] == 200
    assert of_sentry(morning).heard is False


def test_without_an_ops_database_it_is_told_what_is_not_known(morning: Morning) -> None:
    morning.monkeypatch.setenv(
        "AIRFLOW_CONN_PAYME_OPS_DB",
        json.dumps({"conn_type": "postgres", "host": "127.0.0.1", "port": 1, "schema": "x"}),
    )
    assert morning.run() == "sent, not written"
    for head in ("OPEN ALERTS", "SILENCES", "QUESTIONS TO PEOPLE", "LEASES HELD"):
        assert f"{head}: not known" in morning.said
    assert "BACKUPS: not known" not in morning.said
    # Nobody at all: this digest is the only thing that is lost, and the run says so.
    morning.slack.fail(503)
    with pytest.raises(Unavailable, match="nobody got the digest"):
        morning.run()


def test_without_sentry_and_buckets_the_rest_is_told_and_waits_for_slack(morning: Morning) -> None:
    morning.monkeypatch.delenv("AIRFLOW_CONN_PAYME_SENTRY")
    morning.monkeypatch.delenv("AIRFLOW_CONN_PAYME_S3_WRITE")
    morning.slack.fail(503)
    assert morning.run() == "written, not sent"
    morning.slack.fail(None)
    assert alert.send_pending(OPS, morning.slack.client()) == 1
    assert "ERRORS: not known, there is no connection payme_sentry" in morning.said
    assert "BACKUPS: not known, The conn_id 'payme_s3_write' isn't defined" in morning.said
    assert "NONE: open alerts, questions to people, leases held, silences" in morning.said


def test_it_is_at_seven_in_nairobi(dag_bag: Any) -> None:
    dag = dag_bag.dags["daily_digest"]
    assert (dag.timetable.expression, str(dag.timetable.timezone)) == ("0 7 * * *", "Africa/Nairobi")
    assert [task.task_id for task in dag.tasks] == ["tell"]
