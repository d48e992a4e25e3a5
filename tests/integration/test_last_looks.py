"""Nobody looks any more: the watchdog and doctor say so, since when, and why, as far as Airflow tells."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import psycopg
import pytest

from payme_ops.cli import doors
from payme_ops.cli import monitoring as command
from payme_ops.foundation import airflow_api, samples, settings
from payme_ops.foundation.airflow_api import AirflowApi
from payme_ops.foundation.clock import utc_now
from payme_ops.foundation.errors import ServiceRefused, SettingsError
from payme_ops.foundation.evidence import Evidence, Verdict
from payme_ops.foundation.health import State
from payme_ops.foundation.samples import Sample
from payme_ops.monitoring import last_looks
from payme_ops.monitoring.last_looks import Airflow
from payme_ops.monitoring.watchdog import Sign, Silences
from sandbox import postgres
from sandbox.standin import Answer, Refused, Request, Server
from tests.integration.test_watchdog import HEALTHY, NOW, Clock
from tests.support import standins
from tests.support.installation import Installation
from tests.support.ops import ops_database
from tests.support.standins import StandIn, slack_stand_in

NAMES = ["production", "staging"]
LOGIN, PASSWORD = "auditor", "a-password"
EARLIER = NOW - timedelta(days=1)


@dataclass
class Api:
    """What Airflow's stand-in answers: its health, and what it says of `incident` (None: it knows none)."""

    health: dict[str, Any] = field(default_factory=lambda: HEALTHY)
    incident: dict[str, Any] | None = field(default_factory=lambda: {"is_paused": False, "is_stale": False})

    def route(self, request: Request) -> Answer:
        if request.path == "/api/v2/monitor/health":
            return Answer(self.health)
        if request.path == "/auth/token":
            if request.json() != {"username": LOGIN, "password": PASSWORD}:
                raise Refused(401, {"detail": "no"})
            return Answer({"access_token": "a-token-of-airflow"}, 201)
        assert request.headers["Authorization"] == "Bearer a-token-of-airflow"
        if self.incident is None or request.path != "/api/v2/dags/incident":
            raise Refused(404, {"detail": "not found"})
        return Answer({"dag_id": "incident", **self.incident})

    def silence(self, loop: str) -> None:
        self.health = {**HEALTHY, loop: {"status": "unhealthy", f"latest_{loop}_heartbeat": None}}


@pytest.fixture
def api() -> Api:
    return Api()


@pytest.fixture
def server(api: Api, tmp_path: Path) -> Iterator[StandIn]:
    def make(port: int, _state: Path) -> Server:
        return Server(port, api.route, lambda path: path.startswith("/api/v2/dags"), {"detail": "told to fail"})

    with standins.served(make, tmp_path / "airflow") as running:
        yield running


@pytest.fixture
def airflow(server: StandIn) -> Airflow:
    return Airflow(server.url, AirflowApi(server.url, LOGIN, PASSWORD))


@pytest.fixture(scope="module")
def cluster() -> Iterator[postgres.Cluster]:
    with postgres.temporary_cluster() as running:
        yield running


@pytest.fixture
def ops(cluster: postgres.Cluster) -> Iterator[str]:
    with ops_database(cluster) as conninfo:
        yield conninfo


@pytest.fixture
def slack(tmp_path: Path) -> Iterator[StandIn]:
    with slack_stand_in(tmp_path) as running:
        yield running


def look(ops: str, name: str, at: datetime) -> None:
    samples.store(ops, name, Sample(at, State.HEALTHY, 5.0, {}))


Round = Callable[..., Sign]


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def rounds(ops: str, slack: StandIn, airflow: Airflow, clock: Clock) -> Round:
    """A round of a watchdog that began when the clock was made."""
    silences = Silences(ops, slack.client(), "me", clock)

    def once(where: str = ops, begun: datetime = NOW) -> Sign:
        sign = last_looks.look(where, NAMES, airflow, begun, clock())
        silences.take([sign])
        return sign

    return once


def told(slack: StandIn) -> list[str]:
    return [message["text"] for message in slack.messages]


# -- when it is told -----------------------------------------------------------------------------------------------


def test_two_minutes_without_a_look_are_told_once_and_so_is_the_end(
    ops: str, slack: StandIn, api: Api, rounds: Round, clock: Clock
) -> None:
    for name in NAMES:
        look(ops, name, NOW)
    api.incident = {"is_paused": True, "is_stale": False}
    for _ in range(8):
        rounds()
        assert told(slack) == []
        clock.move(15)
    rounds()
    assert told(slack) == []  # two minutes, not more
    for _ in range(3):
        clock.move(15)
        rounds()
    (message,) = slack.messages
    assert message["text"].startswith("Nobody looks at the applications: incident is paused")
    assert "production: last look 2026-11-24 11:00:00 EAT; staging: last look" in str(message["blocks"])
    assert message["metadata"]["event_payload"] == {
        "key": "silent:health_samples",
        "occurrence": "2026-11-24T08:00:00Z",
        "severity": "critical",
    }
    assert "airflow dags unpause incident" in str(message["blocks"])
    look(ops, "production", clock())
    rounds()
    assert len(told(slack)) == 1  # one is still silent
    look(ops, "staging", clock())
    rounds()
    assert told(slack)[1:] == ["Over: Nobody looks at the applications: they are looked at"]


def test_what_was_just_configured_has_two_minutes_from_the_watchdogs_begin(
    slack: StandIn, rounds: Round, clock: Clock
) -> None:
    for _ in range(8):
        rounds()
        clock.move(15)
    assert told(slack) == []
    rounds()
    (message,) = slack.messages
    assert "production: never a look; staging: never a look" in str(message["blocks"])


def test_a_watchdog_started_again_does_not_say_that_it_is_over(
    ops: str, slack: StandIn, rounds: Round, clock: Clock
) -> None:
    for name in NAMES:
        look(ops, name, EARLIER)
    clock.move(121)
    rounds()
    assert len(told(slack)) == 1
    for _ in range(3):
        rounds(begun=clock())
        clock.move(60)
    assert len(told(slack)) == 1


def test_a_restart_of_all_is_let_pass(ops: str, slack: StandIn, rounds: Round, clock: Clock) -> None:
    for name in NAMES:
        look(ops, name, EARLIER)
    rounds()
    clock.move(100)
    rounds()
    for name in NAMES:
        look(ops, name, clock())
    clock.move(60)
    rounds()
    assert told(slack) == []


def test_an_ops_database_that_is_away_is_the_cause(slack: StandIn, rounds: Round, clock: Clock) -> None:
    nowhere = f"host=127.0.0.1 port={postgres.free_port()} dbname=payme_ops user=payme_ops"
    rounds(nowhere)
    clock.move(119)
    rounds(nowhere)
    assert told(slack) == []
    clock.move(1)
    rounds(nowhere)
    (message,) = slack.messages
    assert "what is seen of production, staging cannot be stored or read" in message["text"]
    assert "Start the ops database" in str(message["blocks"])


def test_nobody_to_look_at_is_no_silence_whatever_is_away(ops: str, airflow: Airflow) -> None:
    nowhere = f"host=127.0.0.1 port={postgres.free_port()} dbname=payme_ops user=payme_ops"
    assert not any(last_looks.look(where, [], airflow, EARLIER, NOW).silent for where in (ops, nowhere))


# -- why -----------------------------------------------------------------------------------------------------------


def why(airflow: Airflow, others: list[str] | None = None) -> str:
    found = last_looks.cause(airflow, others or [])
    return f"{found.why}. {found.next}"


def test_the_cause_is_what_airflow_says(server: StandIn, api: Api, airflow: Airflow) -> None:
    assert "the triggerer lives and incident is not paused. Read the triggerer's log" in why(airflow)
    api.incident = {"is_paused": True, "is_stale": False}
    assert why(airflow).startswith("incident is paused")
    assert f"Unpause it: {server.url}/dags/incident or `airflow dags unpause incident`" in why(airflow)
    for missing in (None, {"is_paused": False, "is_stale": True}):
        api.incident = missing
        assert why(airflow).startswith("Airflow knows no DAG incident")
    for part in ("triggerer", "metadatabase"):
        api.silence(part)
        assert why(airflow).startswith(f"Airflow's {part} is silent; the triggerer is what looks")
    api.silence("scheduler")  # it does not look
    assert why(airflow).startswith("Airflow knows no DAG incident")


def test_others_that_are_looked_at_say_that_the_trigger_lives(api: Api, airflow: Airflow) -> None:
    api.incident = {"is_paused": True, "is_stale": False}  # read from settings that are not the triggerer's
    assert why(airflow, ["staging"]).startswith("staging is looked at, so the triggerer lives. Is it among PAYME_OPS__")


def test_without_an_answer_it_says_how_to_look(server: StandIn, airflow: Airflow) -> None:
    by_hand = f"Is incident paused? Look at {server.url}/dags/incident; then `airflow dags unpause incident`"
    assert f"whether incident is paused is not known here. {by_hand}" in why(Airflow(server.url, None))
    assert "Look at the DAG incident in Airflow" in why(Airflow("", None))
    wrong = AirflowApi(server.url, LOGIN, "wrong-password")
    assert "cannot be told (Airflow's API refused POST /auth/token)" in why(Airflow(server.url, wrong))
    server.fail(503)
    assert f"cannot be told (Airflow's API did not answer GET /api/v2/dags/incident). {by_hand}" in why(airflow)
    assert PASSWORD not in why(airflow)
    assert "wrong-password" not in why(Airflow(server.url, wrong))


def test_an_answer_that_says_nothing_of_a_pause_is_not_taken_for_a_no(api: Api, airflow: Airflow) -> None:
    assert airflow.api
    api.incident = {"is_paused": "false"}
    with pytest.raises(ServiceRefused, match="not understood"):
        airflow_api.is_paused(airflow_api.sign_in(airflow.api), "incident")
    assert why(airflow).startswith("the triggerer lives; whether incident is paused cannot be told")


# -- doctor --------------------------------------------------------------------------------------------------------


@pytest.fixture
def desk(
    ops: str, server: StandIn, installation: Installation, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Installation:
    """A desk that looks at two applications, and may ask Airflow."""
    (tmp_path / "password").write_text(f"{PASSWORD}\n")
    monkeypatch.setattr(doors, "OPS", ops)
    installation.set("MONITORING__ENDPOINTS", "production=http://127.0.0.1:1,staging=http://127.0.0.1:2")
    installation.set("WATCHDOG__AIRFLOW_URL", server.url)
    installation.set("WATCHDOG__AIRFLOW_LOGIN", LOGIN)
    installation.set("WATCHDOG__AIRFLOW_PASSWORD_FILE", str(tmp_path / "password"))
    return installation


def doctor() -> dict[str, Evidence]:
    return {item.item: item for item in command.of_doctor(settings.load(), "test")}


def red() -> dict[str, str]:
    return {name: item.remedy for name, item in doctor().items() if item.verdict is not Verdict.PASS}


def test_each_thing_broken_is_red_with_what_turns_it_green(
    desk: Installation, ops: str, server: StandIn, api: Api, tmp_path: Path
) -> None:
    for name in NAMES:
        look(ops, name, utc_now())
    assert list(doctor()) == ["monitored_endpoints", "last_look", "incident_runs"]
    assert red() == {}
    api.incident = {"is_paused": True, "is_stale": False}
    (item,) = red().items()
    assert item[0] == "incident_runs"
    assert "airflow dags unpause incident" in item[1]
    with psycopg.connect(ops) as session:
        session.execute("UPDATE ops.health_samples SET at = at - interval '1 h'")
    assert set(red()) == {"last_look", "incident_runs"}
    assert "airflow dags unpause incident" in red()["last_look"]
    api.incident = {"is_paused": False, "is_stale": False}
    assert list(red()) == ["last_look"]
    for name in NAMES:
        look(ops, name, utc_now())
    assert red() == {}
    server.fail(503)
    assert doctor()["incident_runs"].verdict is Verdict.INCONCLUSIVE
    desk.set("WATCHDOG__AIRFLOW_PASSWORD_FILE", str(tmp_path / "none"))
    assert doctor()["incident_runs"].verdict is Verdict.FAIL
    assert "PAYME_OPS__WATCHDOG__AIRFLOW_LOGIN" in red()["incident_runs"]
    with pytest.raises(SettingsError, match="no such file"):
        command.airflow(settings.load())


def test_without_a_login_fresh_looks_are_proof_enough(desk: Installation, ops: str) -> None:
    desk.set("WATCHDOG__AIRFLOW_LOGIN", None)
    assert list(red()) == ["last_look"]
    assert "Is incident paused?" in red()["last_look"]
    for name in NAMES:
        look(ops, name, utc_now())
    assert [item.verdict for item in doctor().values()] == [Verdict.PASS, Verdict.PASS]


def test_a_desk_that_looks_at_nobody_is_asked_nothing_but_in_production(desk: Installation) -> None:
    desk.set("MONITORING__ENDPOINTS", None)
    assert [(name, item.verdict) for name, item in doctor().items()] == [("monitored_endpoints", Verdict.PASS)]
    config = settings.load().model_copy(update={"profile": settings.Profile.PRODUCTION})
    (found,) = command.of_doctor(config, "test")
    assert found.verdict is Verdict.FAIL
    assert "PAYME_OPS__MONITORING__ENDPOINTS" in found.remedy
