"""A desk at work on a release: an ops database of its own, the PayMe API and whoever is told, and Airflow's context."""

import json
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psycopg
import pytest
from airflow.sdk.exceptions import AirflowRuntimeError, ErrorType
from airflow.sdk.execution_time import task_runner
from airflow.sdk.execution_time.comms import DRCount, ErrorResponse, GetDRCount

from payme_ops.foundation import approvals, evidence, lease, payme_api
from payme_ops.foundation.approvals import APPROVE
from payme_ops.foundation.clock import utc_now
from payme_ops.foundation.evidence import Evidence, Finding, Verdict, passed
from payme_ops.foundation.lease import Term
from payme_ops.orchestration import release, triggers
from payme_ops.release import checklist, deploy, orders, smoke
from payme_ops.release.checklist import GATES, PREPARED
from payme_ops.release.request import Release
from tests.support import releases
from tests.support.installation import Installation
from tests.support.ops import connection
from tests.support.releases import API_TOKEN, DEPLOY_TOKEN, SETTINGS, Api
from tests.support.standins import StandIn, mail_stand_in, sentry_stand_in, slack_stand_in, status_page_stand_in

# What must be found nowhere; the API's two are in tests/support/releases.py.
STATUS_KEY, SENTRY_TOKEN, SENTRY_KEY = "key-of-the-status-page", "token-of-sentry", "key-of-sentry"
SLACK_TOKEN = "xoxb-token-of-slack"
FREEZE, LEASE = "freeze:production", "release:production"


@dataclass
class Airflow:
    """What a task asks Airflow about itself: which runs there are. None: it does not answer."""

    runs: set[str] | None

    def send(self, msg: Any) -> Any:
        """Only that is asked."""
        assert isinstance(msg, GetDRCount)
        if self.runs is None:
            raise AirflowRuntimeError(ErrorResponse(error=ErrorType.API_SERVER_ERROR))
        return DRCount(count=sum(f"{msg.dag_id}/{run}" in self.runs for run in msg.run_ids or []))


class Task(SimpleNamespace):
    """A task instance. What it may not do: read XCom, since anybody can rewrite it."""

    def xcom_pull(self, *_: Any, **__: Any) -> Any:
        """Nothing dangerous asks."""
        pytest.fail("XCom was read")

    def xcom_push(self, *_: Any, **__: Any) -> None:
        """Whatever is pushed decides nothing."""


@dataclass
class Desk:
    """A release to production, and all that its tasks ask and tell."""

    ops: str
    installation: Installation
    release: Release
    api: Api
    slack: StandIn
    page: StandIn
    airflow: Airflow
    folder: Path
    monkeypatch: pytest.MonkeyPatch = field(repr=False)
    stack: ExitStack = field(repr=False)

    @cached_property
    def sentry(self) -> StandIn:
        """The application's Sentry, from when it is named first."""
        running = self.stack.enter_context(sentry_stand_in(self.folder))
        dsn = running.url.replace("//", f"//{SENTRY_KEY}@") + "/2"
        where = {"organization": "payme", "project": "api", "dsn": dsn}
        self.connect("sentry", conn_type="http", host=running.url, password=SENTRY_TOKEN, extra=where)
        return running

    @cached_property
    def mail(self) -> StandIn:
        """The mail server, from when it is named first."""
        running, smtp = self.stack.enter_context(mail_stand_in(self.folder))
        sender = {"from_email": "ops@payme.test", "disable_tls": True}
        self.connect("smtp", conn_type="smtp", host=smtp.host, port=smtp.port, extra=sender)
        return running

    def begin(self, task: str = "t", *, dag: str = "deployment", last: bool = True, who: Release | None = None) -> Any:
        """The context of a task of that DAG, now the current one; `last`: it is not tried again."""
        mine = who or self.release
        run_id = "a" if dag == "pre_deployment" else mine.id
        run = SimpleNamespace(dag_id=dag, run_id=run_id, clear_number=0, triggering_user_name="somebody-else")
        ti = Task(id="x", task_id=task, map_index=-1, try_number=3 if last else 1, max_tries=2, task=None)
        ti.dag_id, ti.run_id = dag, run_id
        made = {"dag": SimpleNamespace(dag_id=dag), "run_id": run_id, "dag_run": run, "ti": ti, "task_instance": ti}
        self.monkeypatch.setattr(release, "get_current_context", lambda: made)
        return made

    def connect(self, name: str, **value: Any) -> None:
        """An Airflow connection, payme_<name>."""
        self.installation.set_all({f"AIRFLOW_CONN_PAYME_{name.upper()}": json.dumps(value)})

    def without(self, name: str) -> None:
        """It is not there."""
        self.installation.set_all({f"AIRFLOW_CONN_PAYME_{name.upper()}": None})

    # -- what was found and said

    def keep(self, item: str, finding: Finding | None = None) -> Evidence:
        """Evidence of the release, as its task keeps it."""
        found = passed({}) if finding is None else finding
        return evidence.keep(self.ops, self.release.run, item, found, threshold="", source="test")

    def found(self, item: str) -> Evidence | None:
        """The newest evidence of an item."""
        return checklist.newest(evidence.of_run(self.ops, self.release.run)).get(item)

    def prepare(self, *, rollback_safe: bool = True) -> None:
        """Everything up to the go or no-go passed."""
        found = {
            name: passed({"rollback_safe": rollback_safe} if name == "migrations_tested" else {}) for name in PREPARED
        }
        made = [
            evidence.conclude(name, one, threshold="", actor="test", source="test", started=utc_now())
            for name, one in found.items()
        ]
        evidence.record(self.ops, self.release.run, made)

    def answer(self, gate: str, who: str, item: str = "go_no_go", *, choice: str = APPROVE, reason: str = "") -> None:
        """Ask as the gate does, and answer."""
        shown = evidence.latest(self.ops, self.release.run, item)
        run, requester = self.release.run, self.release.requester
        approvals.ask(self.ops, run=run, gate=gate, digest=shown.sha256, requested_by=requester)
        approvals.answer(self.ops, run=run, gate=gate, choice=choice, responder=who, reason=reason)

    def go(self, *people: str, reason: str = "") -> None:
        """Prepared, shown, and approved by these, by default two."""
        self.prepare()
        self.begin("collect")
        release.collect()
        for gate, who in zip(GATES, people or ("approver", "lead"), strict=True):
            self.answer(gate, who, reason=reason)

    def deployed(self) -> None:
        """Go, orders stopped, deployed: every task until then."""
        self.go()
        self.stop_orders()
        self.begin("deploy")
        release.act("deploy")

    def stop_orders(self) -> None:
        """Orders stopped, and a backup after it, which nobody waits for here."""
        self.begin("freeze_orders")
        release.act("freeze_orders")
        self.keep("final_backup")

    # -- how it stands

    @property
    def commit(self) -> str:
        """What runs."""
        return payme_api.version(self.api.asks).commit

    @property
    def takes_orders(self) -> bool:
        """Whether an order of anybody is taken."""
        now = payme_api.orders(self.api.asks)
        assert now
        return not now.frozen

    @property
    def posts(self) -> int:
        """How often it was told to deploy."""
        return int(self.api.counted["posts"])

    def term(self, name: str) -> Term | None:
        """Who has it now."""
        return lease.living_term(self.ops, name)

    @property
    def told(self) -> list[str]:
        """The headline of each message in Slack, without the channel's own."""
        return [one["metadata"]["event_payload"].get("occurrence", "") for one in self.slack.messages]

    def was_told(self, words: str) -> bool:
        """Whether Slack got a message that says so."""
        return any(words in str(one.get("blocks")) for one in self.slack.messages)


@contextmanager
def at_work(
    ops: str, installation: Installation, folder: Path, monkeypatch: pytest.MonkeyPatch, **asked: Any
) -> Iterator[Desk]:
    """The desk, for the block, in that ops database, which is emptied; `asked` are fields of the release's form."""
    cluster = installation.site.cluster
    with psycopg.connect(ops) as session:
        session.execute(
            "TRUNCATE ops.alerts, ops.alert_threads, ops.approvals, ops.deploys, ops.evidence, ops.releases, ops.terms,"
            " ops.health_samples CASCADE"
        )
    with ExitStack() as stack:
        slack, page = (stack.enter_context(stand_in(folder)) for stand_in in (slack_stand_in, status_page_stand_in))
        api = stack.enter_context(releases.api(folder))
        made = releases.release(ops, **asked)
        airflow = Airflow({f"{dag}/{made.id}" for dag in ("deployment", "post_deployment")})
        monkeypatch.setattr(task_runner, "SUPERVISOR_COMMS", airflow, raising=False)
        desk = Desk(ops, installation, made, api, slack, page, airflow, folder, monkeypatch, stack)
        desk.connect("ops_db", **connection(cluster, "ops_test"))
        desk.connect("slack", conn_type="slack", password=SLACK_TOKEN, extra={"base_url": f"{slack.url}/api/"})
        page_id = {"page_id": "payme"}
        desk.connect("status_page", conn_type="http", host=page.url, password=STATUS_KEY, extra=page_id)
        desk.connect("api", conn_type="http", host=api.stand_in.url, password=API_TOKEN)
        desk.connect("deploy", conn_type="http", host=api.stand_in.url, password=DEPLOY_TOKEN)
        for name in ("airflow_api", "code_host", "secrets", "sentry", "smtp"):
            desk.without(name)
        for name, value in (("TEST_MERCHANT", SETTINGS.test_merchant), ("DRAIN_SECONDS", "1"), ("SETTLE_SECONDS", "5")):
            installation.set(f"RELEASE__{name}", value)
        # Making a client for S3 takes longer than the rest of a test; the site has one.
        monkeypatch.setattr(release, "catalogue", lambda _conn_id: installation.catalogue)
        _quick(monkeypatch)
        yield desk


def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """How long anybody waits between two looks is not what is tested."""
    for module in (triggers, release):
        monkeypatch.setattr(module, "FIRST_SECONDS", 0.0)
    for module in (deploy, orders):
        monkeypatch.setattr(module, "_POLL_SECONDS", 0.05)
    monkeypatch.setattr(smoke, "_BETWEEN_SECONDS", 0.02)
    monkeypatch.setattr(smoke, "healthy_in_a_row", partial(smoke.healthy_in_a_row, patience_seconds=1))


def asks(desk: Desk, item: str) -> bool:
    """Whether a question of that gate stands, or stood."""
    return approvals.latest(desk.ops, run=desk.release.run, gate=item) is not None


INCONCLUSIVE = Finding(Verdict.INCONCLUSIVE, {"looked": "in vain"}, "look yourself")
FAILED = Finding(Verdict.FAIL, {"looked": "bad"}, "repair it")
