"""What the steps of phone_encryption ask of the application: its errors under the brown-out, and a person where it
tells nothing. The application is the sandbox's, on a database of its own, or a replica that says what it is told to."""

import json
import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from payme_ops.foundation import approvals, evidence, payme_api
from payme_ops.foundation.clock import utc_now
from payme_ops.foundation.errors import GateClosed, NotApproved, Unavailable
from payme_ops.foundation.evidence import Evidence, Verdict, passed
from payme_ops.foundation.payme_api import PaymeApi
from payme_ops.migration import switch
from payme_ops.migration.expand import do_expand
from payme_ops.migration.finish import do_finish
from payme_ops.migration.switch import do_relax
from payme_ops.orchestration import migration, rehearsal
from payme_ops.orchestration.migration import BROWNED_OUT, FINAL, VERIFIED
from sandbox.payme_app.versions import V1, V3, V4
from sandbox.standin import Answer, Refused, Request, Server
from tests.support.installation import Installation, quiet
from tests.support.phones import Phones, fill
from tests.support.standins import StandIn, payme_api_stand_in, served
from tests.support.steps import shape
from tests.support.waiting import eventually

RUN, OPS = "manual__1", "service=payme_ops_db"
NAME = f"phone_encryption/{RUN}"
FORM: dict[str, Any] = {
    "rehearsal": False,
    "reason": "a test",
    "window_from": "00:00",
    "window_to": "23:59",
    "workers": 1,
    "brown_out_minutes": 1,
}


@pytest.fixture
def context(
    installation: Installation, phones: Phones, dag_bag: Any, monkeypatch: pytest.MonkeyPatch
) -> dict[str, Any]:
    """As Airflow gives it; there is no Slack and, to begin with, no PayMe API."""
    connection = json.loads(installation.site.world.env["AIRFLOW_CONN_PAYME_DB_MIGRATE"])
    installation.set_all(
        {
            "AIRFLOW_CONN_PAYME_DB_MIGRATE": json.dumps({**connection, "schema": phones.name}),
            "AIRFLOW_CONN_PAYME_SLACK": None,
            "AIRFLOW_CONN_PAYME_API": None,
        }
    )
    run = SimpleNamespace(dag_id="phone_encryption", run_id=RUN, clear_number=0, triggering_user_name="oncall")
    form = {**dag_bag.dags["phone_encryption"].params.dump(), **FORM}
    made = {"dag": run, "run_id": RUN, "dag_run": run, "params": form, "ti": None}
    monkeypatch.setattr(migration, "get_current_context", lambda: made)
    monkeypatch.setattr(migration, "_WATCH_EVERY_SECONDS", 0.01)
    with installation.site.admin("payme_ops") as admin:
        for table in ("evidence", "approvals"):
            admin.execute(f"DELETE FROM ops.{table} WHERE run = %s", [NAME])  # noqa: S608
    return made


@pytest.fixture
def relaxed(phones: Phones, context: dict[str, Any]) -> Phones:
    """Every row encrypted and verified, and the plaintext may be left out; the run is at its brown-out."""
    assert context
    do_expand(phones.desk, quiet)
    do_finish(fill(phones).desk, quiet)
    migration.check_request()
    migration.verify_all()
    do_relax(phones.desk, quiet)
    for which in ("ignores_plaintext", "final_name"):  # a gate that was wrong, or a form
        migration._keep(migration._desk(), f"fleet_{which}", passed("no older session"), "")
    return phones


def at(url: str, *replicas: str) -> dict[str, str]:
    """Where the application is: the connection, and all its replicas if these are known."""
    return {
        "AIRFLOW_CONN_PAYME_API": json.dumps({"conn_type": "http", "host": url}),
        "PAYME_OPS__MIGRATION__REPLICAS": ",".join(replicas),
    }


def begin() -> None:
    """Until the brown-out, with what the application tells now."""
    migration.check_request()
    migration.look("brown_out")


def approve(gate: str, item: str) -> None:
    digest = evidence.latest(OPS, NAME, item).sha256
    approvals.ask(OPS, run=NAME, gate=gate, digest=digest, requested_by="oncall")
    approvals.answer(OPS, run=NAME, gate=gate, choice="Approve", responder="approver", reason="")


def may_read(phones: Phones) -> bool:
    with phones.admin() as admin:
        query = "SELECT has_column_privilege('payme_app', 'users', 'phone_number', 'SELECT')"
        return admin.execute(query).fetchone() == (True,)


def shown(item: str) -> tuple[Evidence, dict[str, tuple[str, str]]]:
    """The sum of a gate, and what it says of each check."""
    found = evidence.latest(OPS, NAME, item)
    return found, {one["item"]: (one["is"], one["found"]) for one in found.measured["checks"]}


@contextmanager
def once_it_is_taken(phones: Phones, do: Callable[[], Any]) -> Iterator[None]:
    """Do something as soon as the application has lost its right."""

    def wait() -> None:
        eventually(lambda: not may_read(phones), "the brown-out")
        do()

    thread = threading.Thread(target=wait)
    thread.start()
    try:
        yield
    finally:
        thread.join()


# -- the sandbox's application ------------------------------------------------------------------------------------


@contextmanager
def application(phones: Phones, folder: Path, version: str) -> Iterator[PaymeApi]:
    """At work on that database as that version from its first statement on."""
    deployed = {"running": True, "version": version, "previous": V1.number, "what": "deployed"}
    line = json.dumps({**deployed, "at": utc_now().isoformat()})
    (folder / "payme_api.jsonl").write_text(f"{line}\n")
    with payme_api_stand_in(folder, phones.conninfo("payme_app")) as (_, api):
        yield api


def test_a_version_that_still_names_the_plaintext_gets_its_right_back_though_its_health_is_green(
    installation: Installation, relaxed: Phones, tmp_path: Path
) -> None:
    with application(relaxed, tmp_path, V3.number) as api:
        installation.set_all(at(api.url))
        begin()
        with pytest.raises(GateClosed, match=r"its right was given back.*SQLSTATE 42501, more \d"):
            migration.take("brown_out")
        eventually(lambda: may_read(relaxed), "the right")
        assert payme_api.health(api).healthy
        assert (payme_api.metrics(api.url).database_errors or {})["42501"] > 0
        found = evidence.latest(OPS, NAME, BROWNED_OUT)
        assert (found.verdict, found.measured["errors"][0]["SQLSTATE"]) == (Verdict.FAIL, "42501")
        with pytest.raises(GateClosed, match="brown_out: errors replica"):  # whatever was marked
            migration.look_before_drop()


def test_a_version_that_does_not_name_it_is_well(
    installation: Installation, context: dict[str, Any], relaxed: Phones, tmp_path: Path
) -> None:
    context["params"]["brown_out_minutes"] = 0.03
    with application(relaxed, tmp_path, V4.number) as api, relaxed.admin() as admin:
        installation.set_all(at(api.url))
        begin()
        before = admin.execute("SELECT max(id) FROM users").fetchone()
        migration.take("brown_out")
        assert admin.execute("SELECT max(id) FROM users").fetchone() != before, "it has written"
        assert payme_api.metrics(api.url).database_errors == {}
        found = evidence.latest(OPS, NAME, BROWNED_OUT)
        assert (found.verdict, found.measured["replicas"], found.measured["not watched"]) == (Verdict.PASS, 1, [])
        assert not may_read(relaxed)
        migration.look_before_drop()
    total, checks = shown("before_switch")
    assert {verdict for verdict, _ in checks.values()} == {"pass"}, checks
    assert {"brown_out", "api_response", "error_log", "database_performance"} < checks.keys()
    assert (total.verdict, total.remedy) == (Verdict.INCONCLUSIVE, migration._DROP)


# -- replicas that say what they are told to -----------------------------------------------------------------------

PATHS = ("/health", "/metrics")


class Replica:
    """One of the application: well, and without errors."""

    def __init__(self, stand_in: StandIn, body: dict[str, Any]) -> None:
        self.stand_in, self.url, self.body = stand_in, stand_in.url, body

    def count(self, **errors: int) -> None:
        """Tell that many of each SQLSTATE, its name after an underscore."""
        self.body["database_errors"] = {name.removeprefix("_"): count for name, count in errors.items()}


@contextmanager
def replica(folder: Path, paths: tuple[str, ...] = PATHS) -> Iterator[Replica]:
    body = {"status": "healthy", "database": "connected", "version": V4.number, "database_errors": dict[str, int]()}

    def route(request: Request) -> Answer:
        if request.path not in paths:
            raise Refused(404, {})
        return Answer(dict(body))

    with served(lambda port, _state: Server(port, route, lambda _path: True, {}), folder) as stand_in:
        yield Replica(stand_in, body)


@pytest.fixture
def two(installation: Installation, context: dict[str, Any], tmp_path: Path) -> Iterator[tuple[Replica, Replica]]:
    """Both replicas of the application; the connection names the first."""
    assert context
    with replica(tmp_path) as first, replica(tmp_path) as second:
        installation.set_all(at(first.url, first.url, second.url))
        yield first, second


@pytest.mark.parametrize(
    ("before", "after", "more"),
    [
        ({}, {"_42501": 1}, 1),
        ({"_42501": 3}, {"_42501": 5}, 2),
        ({"_42501": 7}, {"_42501": 2}, 2),  # started anew
        ({"_42501": 2, "_23505": 1}, {"_42501": 2}, 2),  # started anew: the other one fell
    ],
)
def test_errors_of_one_replica_are_enough(
    relaxed: Phones, two: tuple[Replica, Replica], before: dict[str, int], after: dict[str, int], more: int
) -> None:
    two[1].count(**before)
    begin()
    with (
        once_it_is_taken(relaxed, lambda: two[1].count(**after)),
        pytest.raises(GateClosed, match=f"replica {two[1].url}, SQLSTATE 42501, more {more}"),
    ):
        migration.take("brown_out")
    assert may_read(relaxed)


def test_a_replica_that_stops_to_answer_gets_the_right_back(relaxed: Phones, two: tuple[Replica, Replica]) -> None:
    begin()
    with (
        once_it_is_taken(relaxed, lambda: two[1].stand_in.fail(503)),
        pytest.raises(GateClosed, match="did not answer GET /metrics"),
    ):
        migration.take("brown_out")
    assert may_read(relaxed)


def test_nothing_is_taken_while_a_replica_does_not_answer(relaxed: Phones, two: tuple[Replica, Replica]) -> None:
    begin()
    two[1].stand_in.fail(503)
    with pytest.raises(Unavailable):
        migration.take("brown_out")
    assert not shape(relaxed).browned_out


def test_an_unhealthy_application_gets_the_right_back(relaxed: Phones, two: tuple[Replica, Replica]) -> None:
    begin()
    with (
        once_it_is_taken(relaxed, lambda: two[0].body.update(status="unhealthy")),
        pytest.raises(GateClosed, match="status unhealthy"),
    ):
        migration.take("brown_out")
    assert may_read(relaxed)


@pytest.mark.usefixtures("two")
def test_who_is_told_to_stop_gives_the_right_back(relaxed: Phones) -> None:
    begin()
    with once_it_is_taken(relaxed, lambda: os.kill(os.getpid(), signal.SIGTERM)), pytest.raises(SystemExit):
        migration.take("brown_out")
    assert may_read(relaxed)


def killed_in_the_watch(monkeypatch: pytest.MonkeyPatch) -> None:
    """What kill -9 leaves: the right is taken, and nobody watches or gives it back."""

    def killed(*_: object) -> None:
        raise SystemExit(137)

    with monkeypatch.context() as patch, pytest.raises(SystemExit):
        patch.setattr(migration, "_watch", killed)
        patch.setattr(switch, "undo_brown_out", lambda *_: {})
        migration.take("brown_out")


def test_errors_before_a_kill_are_counted_by_the_next_try(
    relaxed: Phones, two: tuple[Replica, Replica], monkeypatch: pytest.MonkeyPatch
) -> None:
    two[0].count(_42501=1)
    begin()
    killed_in_the_watch(monkeypatch)
    assert not may_read(relaxed)
    with pytest.raises(GateClosed, match="brown_out: error no usable evidence for brown_out_watch"):
        migration.look_before_drop()  # it was marked as success
    two[0].count(_42501=3)
    with pytest.raises(GateClosed, match="SQLSTATE 42501, more 2"):
        migration.take("brown_out")
    assert may_read(relaxed)


@pytest.mark.usefixtures("two")
def test_a_watch_counts_for_its_own_brown_out_only(
    context: dict[str, Any], relaxed: Phones, monkeypatch: pytest.MonkeyPatch
) -> None:
    context["params"]["brown_out_minutes"] = 0
    begin()
    migration.take("brown_out")
    migration.look_before_drop()
    migration.give_back_rights()
    assert may_read(relaxed)
    killed_in_the_watch(monkeypatch)
    with pytest.raises(GateClosed, match="not watched to its end"):
        migration.look_before_drop()
    migration.take("brown_out")
    migration.look_before_drop()


def test_errors_since_the_run_began_close_the_next_gate_until_their_cause_is_gone(
    relaxed: Phones, two: tuple[Replica, Replica]
) -> None:
    two[0].count(_42703=4, _23505=1)
    begin()
    two[0].count(_42703=4, _23505=9, _57014=2)
    migration.look("brown_out")
    two[0].count(_42703=6, _23505=9, _57014=2)
    with pytest.raises(GateClosed, match=f"error_log: risen replica {two[0].url}, SQLSTATE 42703, more 2"):
        migration.look("brown_out")
    migration.check_request()
    migration.look("brown_out")
    assert shown("before_brown_out")[1]["error_log"] == ("pass", "risen none, replicas 2")
    assert not shape(relaxed).browned_out


# -- an application that tells nothing -----------------------------------------------------------------------------


@pytest.mark.parametrize("tells", [("/health",), PATHS], ids=["no metrics", "metrics without errors"])
def test_where_errors_are_not_told_the_watch_says_so_and_who_approves_the_drop_reads_it(
    installation: Installation, context: dict[str, Any], relaxed: Phones, tmp_path: Path, tells: tuple[str, ...]
) -> None:
    context["params"]["brown_out_minutes"] = 0
    with replica(tmp_path, tells) as only:
        only.body.pop("database_errors")
        installation.set_all(at(only.url))
        begin()
        assert shown("before_brown_out")[1]["error_log"][0] == "inconclusive"
        with pytest.raises(NotApproved):
            migration.take("brown_out")
        approve("confirm_brown_out", "before_brown_out")
        migration.take("brown_out")
        found = evidence.latest(OPS, NAME, BROWNED_OUT)
        assert (found.verdict, found.measured["not watched"]) == (Verdict.INCONCLUSIVE, [f"/metrics of {only.url}"])
        migration.look_before_drop()
    total, checks = shown("before_switch")
    assert checks["brown_out"] == ("inconclusive", f"minutes 0.0, replicas 1, not watched /metrics of {only.url}")
    assert checks["api_response"][0] == "pass"
    assert "SQLSTATE 42501" in total.remedy
    assert not may_read(relaxed)


def test_without_a_connection_a_person_is_asked_at_each_step_until_the_last(
    context: dict[str, Any], relaxed: Phones
) -> None:
    def ask(gate: str, item: str, task: Callable[[], None]) -> None:
        _, checks = shown(item)
        asked = {"api_response", "error_log"}
        assert asked <= {name for name, (verdict, _) in checks.items() if verdict == "inconclusive"}
        assert checks["database_performance"][0] == "pass"
        with pytest.raises(NotApproved):
            task()
        approve(gate, item)
        task()

    context["params"]["brown_out_minutes"] = 0
    begin()
    ask("confirm_brown_out", "before_brown_out", lambda: migration.take("brown_out"))
    found = evidence.latest(OPS, NAME, BROWNED_OUT)
    assert (found.verdict, found.measured["not watched"]) == (Verdict.INCONCLUSIVE, ["/health", "/metrics"])
    migration.look_before_drop()
    ask("approve_drop", "before_switch", migration.drop)
    migration.look("end_shim")
    ask("confirm_end_shim", "before_end_shim", lambda: migration.take("end_shim"))
    migration.final_look()
    done = [rehearsal._is_done(context, OPS, NAME)]  # type: ignore[arg-type]
    ask("confirm_final", FINAL, migration.verdict)
    done.append(rehearsal._is_done(context, OPS, NAME))  # type: ignore[arg-type]
    assert done == [False, True]
    assert evidence.latest(OPS, NAME, VERIFIED).measured["point"]
    assert shape(relaxed).switched
