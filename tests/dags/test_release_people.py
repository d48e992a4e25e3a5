"""The team is told of a release's window by Slack, or round it by mail; what was set by hand voids the go."""

import json
import os
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import psycopg
import pytest

from payme_ops.foundation import approvals, evidence, opsdb, settings
from payme_ops.foundation.clock import show, utc_now
from payme_ops.foundation.errors import NotApproved, Unavailable
from payme_ops.foundation.evidence import Evidence, Finding, Verdict
from payme_ops.orchestration import release_people
from payme_ops.release import checklist
from payme_ops.release.checklist import GATES, PREPARED
from payme_ops.release.request import Release
from sandbox import postgres
from sandbox.standin import Server
from tests.integration.test_airflow_api import Airflow, ended, entry, instance
from tests.support import releases
from tests.support.ops import connection
from tests.support.standins import StandIn, mail_stand_in, served, slack_stand_in

if TYPE_CHECKING:
    from airflow.dag_processing.dagbag import DagBag

PHONE = "+254700999888"
PRE = "manual__2026-11-29T06:00:00+00:00"


@dataclass(frozen=True)
class Desk:
    """A release, and who can be told of it."""

    ops: str
    release: Release
    slack: StandIn
    mail: StandIn
    monkeypatch: pytest.MonkeyPatch

    def context(self, dag: str = "pre_deployment", cleared: int = 0) -> Any:
        run_id = PRE if dag == "pre_deployment" else self.release.id
        run = SimpleNamespace(dag_id=dag, run_id=run_id, clear_number=cleared)
        return {"dag": SimpleNamespace(dag_id=dag), "run_id": run_id, "dag_run": run}

    def notify(self, cleared: int = 0) -> Finding:
        """The item, kept as its operator keeps it."""
        found = release_people.team_notified(self.context(cleared=cleared), self.release)
        self.keep("team_notified", found)
        return found

    def keep(self, item: str, found: Finding) -> Evidence:
        return evidence.keep(self.ops, self.release.run, item, found, threshold="", source="test")

    def mails(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = self.mail.get("/messages.json")
        return found

    def without(self, connection: str) -> None:
        self.monkeypatch.delenv(f"AIRFLOW_CONN_PAYME_{connection}")


@pytest.fixture(scope="module")
def cluster() -> Iterator[postgres.Cluster]:
    with postgres.temporary_cluster() as started:
        opsdb.migrate(started.conninfo())
        yield started


@pytest.fixture
def desk(tmp_path: Path, cluster: postgres.Cluster, monkeypatch: pytest.MonkeyPatch) -> Iterator[Desk]:
    with psycopg.connect(cluster.conninfo()) as session:
        session.execute("TRUNCATE ops.alerts, ops.alert_threads, ops.evidence, ops.approvals, ops.releases CASCADE")
    with ExitStack() as stack:
        slack = stack.enter_context(slack_stand_in(tmp_path))
        mail, smtp = stack.enter_context(mail_stand_in(tmp_path))
        found: dict[str, dict[str, Any]] = {
            "ops_db": connection(cluster),
            "slack": {"conn_type": "slack", "password": "xoxb-test", "extra": {"base_url": f"{slack.url}/api/"}},
            "smtp": {
                "conn_type": "smtp",
                "host": smtp.host,
                "port": smtp.port,
                "extra": {"from_email": "ops@payme.test", "disable_tls": True},
            },
        }
        for name, value in found.items():
            monkeypatch.setenv(f"AIRFLOW_CONN_PAYME_{name.upper()}", json.dumps(value))
        configured(monkeypatch, "help@payme.test")
        made = releases.release(cluster.conninfo(), run=f"pre_deployment/{PRE}")
        made = replace(made, request=replace(made.request, reason=f"faster payouts, asked for by {PHONE}"))
        yield Desk(cluster.conninfo(), made, slack, mail, monkeypatch)


def configured(monkeypatch: pytest.MonkeyPatch, support: str) -> None:
    found = SimpleNamespace(
        notify=SimpleNamespace(support_email=support), slack=SimpleNamespace(channel=settings.SlackSettings().channel)
    )
    monkeypatch.setattr(settings, "load", lambda: found)


class TestTeamNotified:
    def test_slack_is_told_everything_in_the_release_s_thread(self, desk: Desk) -> None:
        found = desk.notify()
        (message,) = desk.slack.messages
        assert found == Finding(Verdict.PASS, {"slack": message["ts"], "channel": message["channel_name"]})
        assert message["metadata"]["event_payload"]["key"] == f"release:{desk.release.id}"
        asked, text = desk.release.request, str(message["blocks"])
        for expected in (
            f"PayMe 2.4.1, commit {asked.commit[:7]}, to production",
            f"From {show(asked.window_from)} to {show(asked.window_to)}",
            "Asked for by oncall: faster payouts",
            "taken again when the new version and a test order are well",
        ):
            assert expected in text
        assert asked.commit not in text
        assert PHONE not in text
        assert desk.mails() == []

    def test_the_literal_order_is_told_as_it_is(self, desk: Desk) -> None:
        asked = replace(desk.release.request, resume_after_watch=True)
        release_people.team_notified(desk.context(), replace(desk.release, request=asked))
        assert "taken again when the watch after the deploy is over" in str(desk.slack.messages[0]["blocks"])

    def test_run_again_or_cleared_it_is_told_once(self, desk: Desk) -> None:
        first = desk.notify()
        assert desk.notify() == desk.notify(cleared=1) == first
        # Killed before its evidence was kept.
        with psycopg.connect(desk.ops) as session:
            session.execute("DELETE FROM ops.evidence")
        assert desk.notify() == first
        assert len(desk.slack.messages) == 1

    @pytest.mark.blocks("team_notified")
    @pytest.mark.parametrize("status", [500, 429])
    def test_round_a_slack_that_is_away_support_gets_it_by_mail_once_and_a_person_is_asked(
        self, desk: Desk, status: int
    ) -> None:
        desk.slack.fail(status)
        found = desk.notify()
        assert desk.notify(cleared=1) == found
        (mail,) = desk.mails()
        assert "help@payme.test" in str(mail)
        assert "2.4.1 to production" in str(mail)
        assert PHONE not in str(mail)
        assert found.verdict is Verdict.INCONCLUSIVE
        assert found.measured["mail"] == "sent to support"
        assert "did not take it" in found.measured["slack"]
        assert found.remedy == "ask the team whether they know"
        kept = evidence.latest(desk.ops, desk.release.run, "team_notified")
        assert not checklist.is_settled(kept, None)

    def test_a_slack_that_is_back_counts_and_still_tells_once(self, desk: Desk) -> None:
        desk.slack.fail(500)
        desk.notify()
        desk.slack.fail(None)
        assert desk.notify().verdict is Verdict.PASS
        assert len(desk.slack.messages) == 1

    @pytest.mark.blocks("team_notified")
    def test_with_both_away_a_person_tells_and_mail_is_tried_again(self, desk: Desk) -> None:
        desk.slack.fail(500)
        smtp = json.loads(os.environ["AIRFLOW_CONN_PAYME_SMTP"])
        desk.monkeypatch.setenv("AIRFLOW_CONN_PAYME_SMTP", json.dumps({**smtp, "port": postgres.free_port()}))
        found = desk.notify()
        assert (found.verdict, found.measured["mail"]) == (Verdict.INCONCLUSIVE, "not sent")
        assert found.remedy.startswith("tell the team yourself (")
        mailed = evidence.latest(desk.ops, desk.release.run, release_people.MAILED)
        assert mailed.verdict is Verdict.INCONCLUSIVE
        desk.monkeypatch.setenv("AIRFLOW_CONN_PAYME_SMTP", json.dumps(smtp))
        assert desk.notify().measured["mail"] == "sent to support"

    @pytest.mark.blocks("team_notified")
    def test_without_slack_and_without_mail_a_person_tells(self, desk: Desk) -> None:
        desk.without("SLACK")
        configured(desk.monkeypatch, "")
        assert "PAYME_OPS__NOTIFY__SUPPORT_EMAIL is not there" in desk.notify().remedy
        configured(desk.monkeypatch, "help@payme.test")
        desk.without("SMTP")
        found = desk.notify()
        assert "connection payme_smtp is not there" in found.remedy
        assert found.verdict is Verdict.INCONCLUSIVE


@pytest.fixture
def airflow(desk: Desk, tmp_path: Path) -> Iterator[tuple[Airflow, StandIn]]:
    """An Airflow in which preparing and going ended themselves."""
    found = Airflow()
    in_pre = {"dag_id": "pre_deployment"}
    for task in ("check_request", "verdict_prepared"):
        found.tasks.append(instance(task, **in_pre, dag_run_id=PRE))
        found.log.append(ended(task, **in_pre, run_id=PRE, seconds=0.01))
    for task in ("open_deployment", "collect", *GATES):
        found.tasks.append(instance(task, dag_run_id=desk.release.id))
        found.log.append(ended(task, run_id=desk.release.id, seconds=0.01))
    found.tasks.append(instance("deploy", dag_run_id=desk.release.id, state=None, try_number=0, end_date=None))

    def make(port: int, _state: Path) -> Server:
        return Server(port, found.route, lambda path: path.startswith("/api/"), {"detail": "told to fail"})

    with served(make, tmp_path) as running:
        connection = {"conn_type": "http", "host": running.url, "login": "auditor", "password": "a-password"}
        desk.monkeypatch.setenv("AIRFLOW_CONN_PAYME_AIRFLOW_API", json.dumps(connection))
        yield found, running


class TestBypasses:
    def examine(self, desk: Desk, dag: str = "deployment") -> Finding:
        return release_people.bypasses(desk.context(dag), desk.release)

    def test_without_a_mark_it_passes(self, desk: Desk, airflow: tuple[Airflow, StandIn]) -> None:
        found = self.examine(desk)
        assert (found.verdict, found.measured["tasks looked at"]) == (Verdict.PASS, 7)
        assert airflow[0].asked[-1].query["run_id_pattern"] == f"{PRE}|{desk.release.id}"

    @pytest.mark.blocks("bypasses")
    def test_a_run_that_must_have_begun_and_is_not_there_voids(
        self, desk: Desk, airflow: tuple[Airflow, StandIn]
    ) -> None:
        airflow[0].tasks = [one for one in airflow[0].tasks if one["dag_id"] == "deployment"]
        assert self.examine(desk).verdict is Verdict.BYPASSED

    @pytest.mark.blocks("bypasses")
    @pytest.mark.blocks("go_no_go")
    @pytest.mark.parametrize("many", [False, True], ids=["one", "many at once"])
    def test_a_mark_after_the_go_voids_it_right_before_the_deploy(
        self, desk: Desk, airflow: tuple[Airflow, StandIn], many: bool
    ) -> None:
        assert self.examine(desk).verdict is Verdict.PASS
        airflow[0].tasks[-1] |= {"state": "success", "end_date": utc_now().isoformat()}
        if not many:
            airflow[0].log.append(entry("patch_task_instance", "deploy", "lead", run_id=desk.release.id))
        found = self.examine(desk)
        assert found.verdict is Verdict.BYPASSED
        ((task, by),) = [(one["task"], one["by"]) for one in found.measured["by hand"]]
        assert (task, by) == ("deployment deploy", "not in the log" if many else "lead")

    @pytest.mark.blocks("go_no_go")
    def test_gates_that_were_set_as_success_are_found_and_approve_nothing(
        self, desk: Desk, airflow: tuple[Airflow, StandIn]
    ) -> None:
        airflow[0].log = [one for one in airflow[0].log if one["task_id"] not in GATES]
        assert [one["task"] for one in self.examine(desk).measured["by hand"]] == [f"deployment {one}" for one in GATES]
        shown = desk.keep("go_no_go", Finding(Verdict.INCONCLUSIVE, {"checklist": []}))
        for gate in GATES:
            approvals.ask(desk.ops, run=desk.release.run, gate=gate, digest=shown.sha256, requested_by="oncall")
            with pytest.raises(NotApproved, match="nobody's answer"):
                approvals.require(desk.ops, run=desk.release.run, gate=gate, digest=shown.sha256)

    @pytest.mark.blocks("go_no_go")
    def test_a_bypass_closes_the_go_or_no_go_and_no_approval_opens_it(
        self, desk: Desk, airflow: tuple[Airflow, StandIn]
    ) -> None:
        kept = {name: desk.keep(name, Finding(Verdict.PASS, {})) for name in PREPARED}
        assert checklist.go_no_go(desk.release, kept, {}).verdict is Verdict.INCONCLUSIVE
        airflow[0].log = [one for one in airflow[0].log if one["task_id"] != "collect"]
        kept["bypasses"] = desk.keep("bypasses", self.examine(desk))
        closed = checklist.go_no_go(desk.release, kept, {})
        assert closed.verdict is Verdict.FAIL
        assert "bypasses: clear deployment collect" in closed.remedy
        approvals.ask(
            desk.ops, run=desk.release.run, gate="bypasses", digest=kept["bypasses"].sha256, requested_by="oncall"
        )
        given = approvals.answer(
            desk.ops, run=desk.release.run, gate="bypasses", choice="Approve", responder="lead", reason=""
        )
        assert not checklist.is_settled(kept["bypasses"], given)

    @pytest.mark.blocks("bypasses")
    def test_an_item_that_was_marked_has_no_evidence(self, desk: Desk, airflow: tuple[Airflow, StandIn]) -> None:
        airflow[0].tasks.append(instance("code_review", dag_id="pre_deployment", dag_run_id=PRE))
        airflow[0].log.append(ended("code_review", dag_id="pre_deployment", run_id=PRE, seconds=0.01))
        (found,) = self.examine(desk).measured["by hand"]
        assert (found["task"], found["why"]) == ("pre_deployment code_review", "is success without evidence")
        desk.keep("code_review", Finding(Verdict.PASS, {}))
        assert self.examine(desk).verdict is Verdict.PASS

    @pytest.mark.blocks("bypasses")
    def test_an_airflow_that_is_away_is_no_pass(self, desk: Desk, airflow: tuple[Airflow, StandIn]) -> None:
        airflow[1].fail(503)
        with pytest.raises(Unavailable):
            self.examine(desk)

    @pytest.mark.blocks("bypasses")
    def test_without_a_connection_a_person_looks(self, desk: Desk) -> None:
        found = self.examine(desk)
        assert found.verdict is Verdict.INCONCLUSIVE
        assert "Audit Log" in found.remedy

    def test_the_watch_s_run_is_looked_at_too(self, desk: Desk, airflow: tuple[Airflow, StandIn]) -> None:
        airflow[0].tasks.append(
            instance("keep_release", dag_id="post_deployment", dag_run_id=desk.release.id, end_date=late())
        )
        assert self.examine(desk).verdict is Verdict.PASS
        (found,) = self.examine(desk, "post_deployment").measured["by hand"]
        assert found["task"] == "post_deployment keep_release"


def test_no_task_of_a_release_ends_by_its_trigger(dag_bag: "DagBag") -> None:
    # Airflow writes nothing down then, and it would look as if somebody had set it.
    tasks = [one for dag in release_people.DAGS for one in dag_bag.dags[dag].tasks]
    assert len(tasks) > 30
    assert [one.task_id for one in tasks if getattr(one, "end_from_trigger", False)] == []


def late() -> str:
    return (utc_now() + timedelta(minutes=5)).isoformat()
