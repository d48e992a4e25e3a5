"""The watchdog against real services that fail: told once, told when it is over, and nothing stops its rounds."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg import sql

from payme_ops.backup import freshness
from payme_ops.cli import watchdog as command
from payme_ops.foundation import alert, approvals, payme_api, settings
from payme_ops.foundation.alert import Alert, Severity
from payme_ops.foundation.clock import utc_now
from payme_ops.foundation.errors import DatabaseUnavailable, SettingsError, Unavailable
from payme_ops.foundation.sql import load
from payme_ops.monitoring import airflow_health, watchdog
from payme_ops.monitoring.watchdog import Round, Sign, Silences
from payme_ops.release import orders
from sandbox import postgres
from sandbox.standin import Answer, Server
from tests.integration.test_alert import ALERT
from tests.support import releases
from tests.support.installation import Installation
from tests.support.ops import ops_database
from tests.support.proxy import Proxy
from tests.support.standins import StandIn, sentry_stand_in, served, slack_stand_in
from tests.support.waiting import eventually

NOW = datetime(2026, 11, 24, 8, 0, tzinfo=UTC)
BEAT = "2026-11-24T07:58:30.123456+00:00"
HEALTHY: dict[str, Any] = {
    "metadatabase": {"status": "healthy"},
    **{
        name: {"status": "healthy", f"latest_{name}_heartbeat": BEAT}
        for name in ("scheduler", "dag_processor", "triggerer")
    },
}


class Clock:
    """A clock that stands until it is moved."""

    def __init__(self) -> None:
        self.now = NOW

    def __call__(self) -> datetime:
        return self.now

    def move(self, seconds: float) -> None:
        self.now += timedelta(seconds=seconds)


@pytest.fixture(scope="module")
def server() -> Iterator[postgres.Cluster]:
    with postgres.temporary_cluster() as cluster:
        yield cluster


@pytest.fixture
def ops(server: postgres.Cluster) -> Iterator[str]:
    with ops_database(server) as conninfo:
        yield conninfo


@pytest.fixture
def slack(tmp_path: Path) -> Iterator[StandIn]:
    with slack_stand_in(tmp_path) as running:
        yield running


@pytest.fixture
def nowhere() -> str:
    """Conninfo of a database that does not answer."""
    return f"host=127.0.0.1 port={postgres.free_port()} dbname=payme_ops user=payme_ops"


def sign(silent: bool, item: str = "airflow_scheduler", **changed: Any) -> Sign:
    values: dict[str, Any] = {"what": "Airflow's scheduler is silent", "why": "status unhealthy", "next": "Start it"}
    return Sign(item=item, silent=silent, **{**values, **changed})


def told(slack: StandIn) -> list[str]:
    """What each message says, in few words."""
    return [message["text"].split(":")[0] for message in slack.messages]


class TestSilences:
    def test_one_alert_for_a_silence_and_one_for_its_end(self, ops: str, slack: StandIn) -> None:
        clock = Clock()
        silences = Silences(ops, slack.client(), "me", clock)
        silences.take([sign(False)])
        for _ in range(5):
            silences.take([sign(True, page="http://airflow/dags/x")])
            clock.move(30)
        silences.take([sign(False, why="status healthy")])
        silences.take([sign(False)])
        first, over = slack.messages
        assert first["metadata"]["event_payload"] == {
            "key": "silent:airflow_scheduler",
            "occurrence": "2026-11-24T08:00:00Z",
            "severity": "critical",
        }
        assert over["thread_ts"] == first["ts"]
        assert over["metadata"]["event_payload"]["severity"] == "info"
        assert over["text"] == "Over: Airflow's scheduler is silent: status healthy"

    def test_a_silence_shorter_than_its_patience_is_nobodys_business(self, ops: str, slack: StandIn) -> None:
        clock = Clock()
        silences = Silences(ops, slack.client(), "me", clock)
        patient = sign(True, patience=timedelta(minutes=2), since=NOW - timedelta(days=3))
        for _ in range(4):
            silences.take([patient])
            clock.move(30)
        silences.take([sign(False)])
        for _ in range(4):
            silences.take([patient])
            clock.move(30)
        assert told(slack) == []
        silences.take([patient])
        assert told(slack) == ["Airflow's scheduler is silent"]
        # Since when, it knows itself.
        assert slack.messages[0]["metadata"]["event_payload"]["occurrence"] == "2026-11-21T08:00:00Z"

    def test_an_item_without_a_sign_stays_as_it_was(self, ops: str, slack: StandIn) -> None:
        silences = Silences(ops, slack.client(), "me", Clock())
        silences.take([sign(True)])
        silences.take([sign(True, item="airflow_api_server", what="Airflow's API server is silent")])
        silences.take([sign(True)])
        assert told(slack) == ["Airflow's scheduler is silent", "Airflow's API server is silent"]

    def test_it_is_told_again_when_it_comes_again(self, ops: str, slack: StandIn) -> None:
        clock = Clock()
        silences = Silences(ops, slack.client(), "me", clock)
        for silent in (True, False, True, False):
            silences.take([sign(silent)])
            clock.move(60)
        assert [message["metadata"]["event_payload"]["severity"] for message in slack.messages] == [
            *("critical", "info"),
            *("critical", "info"),
        ]
        assert {message.get("thread_ts", message["ts"]) for message in slack.messages} == {slack.messages[0]["ts"]}

    def test_a_watchdog_that_was_started_again_knows_what_was_told(self, ops: str, slack: StandIn) -> None:
        clock = Clock()
        Silences(ops, slack.client(), "me", clock).take([sign(True)])
        clock.move(3600)
        Silences(ops, slack.client(), "me", clock).take([sign(True)])
        assert len(slack.messages) == 1
        Silences(ops, slack.client(), "me", clock).take([sign(False)])
        Silences(ops, slack.client(), "me", clock).take([sign(False)])
        assert told(slack) == ["Airflow's scheduler is silent", "Over"]

    def test_without_the_ops_database_people_are_told_once_all_the_same(self, nowhere: str, slack: StandIn) -> None:
        silences = Silences(nowhere, slack.client(), "me", Clock())
        for silent in (True, True, False, False):
            silences.take([sign(silent)])
        assert told(slack) == ["Airflow's scheduler is silent", "Over"]

    def test_what_slack_alone_was_told_is_remembered_when_the_ops_database_is_back(
        self, ops: str, nowhere: str, slack: StandIn
    ) -> None:
        silences = Silences(nowhere, slack.client(), "me", Clock())
        silences.take([sign(True)])
        silences._ops = ops  # it is back
        silences.take([sign(True)])
        silences.take([sign(False)])
        silences.take([sign(False)])
        assert told(slack) == ["Airflow's scheduler is silent", "Over"]

    def test_without_slack_it_is_written_and_goes_out_later_in_order(self, ops: str, slack: StandIn) -> None:
        silences = Silences(ops, slack.client(), "me", Clock())
        slack.fail(503)
        silences.take([sign(True)])
        silences.take([sign(False)])
        assert told(slack) == []
        slack.fail(None)
        assert [one.silent for one in watchdog.resend(ops, slack.client())] == [False]
        assert told(slack) == ["Airflow's scheduler is silent", "Over"]

    def test_without_both_it_says_so_and_tries_again(self, nowhere: str, slack: StandIn) -> None:
        silences = Silences(nowhere, slack.client(), "me", Clock())
        slack.fail(503)
        with pytest.raises(Unavailable, match="nobody could be told"):
            silences.take([sign(True), sign(True, item="other", what="Another thing")])
        slack.fail(None)
        silences.take([sign(True), sign(True, item="other", what="Another thing")])
        assert told(slack) == ["Airflow's scheduler is silent", "Another thing"]


class TestAlertsThatWait:
    def test_they_are_sent_again(self, ops: str, slack: StandIn) -> None:
        slack.fail(503)
        alert.raise_alert(ops, ALERT, slack.client())
        with pytest.raises(Unavailable, match=r"1 alert\(s\) wait.*run_failed:backup_daily"):
            watchdog.resend(ops, slack.client())
        slack.fail(None)
        assert not watchdog.resend(ops, slack.client())[0].silent
        assert len(slack.messages) == 1

    def test_one_that_somebody_else_is_sending_keeps_no_other(
        self, ops: str, slack: StandIn, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(alert, "_LOCK_TIMEOUT", "100ms")
        for key in (ALERT.key, "another"):
            alert.raise_alert(ops, replace(ALERT, key=key), None)
        heard: list[str] = []
        with psycopg.connect(ops, autocommit=True) as other:
            other.execute(load("ops/hold_alert_key.sql"), {"key": ALERT.key})
            with pytest.raises(Unavailable, match=r"1 alert\(s\) wait.*run_failed:backup_daily"):
                watchdog.resend(ops, slack.client(), lambda told: heard.append(told.key))
        assert [message["metadata"]["event_payload"]["key"] for message in slack.messages] == ["another"]
        assert heard == []  # it is being sent

    def test_a_slack_that_does_not_answer_is_asked_once_and_sentry_hears_of_all(self, ops: str, slack: StandIn) -> None:
        """Ten seconds for each of many would make it hear of them too late."""
        for number in range(3):
            alert.raise_alert(ops, replace(ALERT, key=f"key {number}"), None)
        alert.acknowledge(ops, "key 0", "wanjiru", "", None)  # is no alert, and nothing for Sentry
        asked: list[str] = []
        hangs = slack.client()

        def hang(**message: Any) -> None:
            asked.append(message["metadata"]["event_payload"]["key"])
            raise TimeoutError

        hangs.client.chat_postMessage = hang  # type: ignore[assignment]
        heard: list[str] = []

        def hears(told: Alert) -> str:
            heard.append(told.key)
            return "e" * 32

        for number in range(3):
            with pytest.raises(Unavailable, match=r"3 alert\(s\) wait"):
                watchdog.resend(ops, hangs, hears)
            assert asked == [f"key {one}" for one in range(number + 1)]  # each has its turn
        assert heard == ["key 0", "key 1", "key 2"]
        assert not watchdog.resend(ops, slack.client())[0].silent
        assert len(slack.messages) == 4

    def test_sentry_does_not_hear_of_what_slack_has_taken_meanwhile(self, ops: str, slack: StandIn) -> None:
        for key in (ALERT.key, "another"):
            alert.raise_alert(ops, replace(ALERT, key=key), None)
        heard: list[str] = []

        def hears(told: Alert) -> None:
            heard.append(told.key)
            alert.deliver(ops, "another", slack.client())

        alert.capture_waiting(ops, hears)
        assert heard == [ALERT.key]

    def test_a_moment_that_slack_asks_for_is_waited_and_a_longer_one_is_not(self, ops: str, slack: StandIn) -> None:
        for number in range(3):
            alert.raise_alert(ops, replace(ALERT, key=f"key {number}"), None)
        slack.fail(429, count=1, headers={"Retry-After": "600"})
        assert alert.send_pending(ops, slack.client()) == 0
        slack.fail(429, count=1)
        assert alert.send_pending(ops, slack.client()) == 2
        assert alert.send_pending(ops, slack.client()) == 1

    def test_an_ops_database_that_is_away_is_a_silence(self, nowhere: str, slack: StandIn) -> None:
        (found,) = watchdog.resend(nowhere, slack.client())
        assert found.silent
        assert found.patience == timedelta(minutes=2)


@contextmanager
def airflow(folder: Path) -> Iterator[tuple[StandIn, Callable[[object], None]]]:
    """An API server whose health is what it was last told."""
    answers: list[object] = [HEALTHY]
    server: Callable[[int, Path], Server] = lambda port, _state: Server(  # noqa: E731
        port, lambda _request: Answer(answers[-1]), lambda path: path == "/api/v2/monitor/health", "told to fail"
    )
    with served(server, folder / "airflow.jsonl") as running:
        yield running, answers.append


def silent(signs: list[Sign]) -> list[str]:
    return [one.item for one in signs if one.silent]


class TestAirflow:
    def test_healthy(self, tmp_path: Path) -> None:
        with airflow(tmp_path) as (running, _):
            signs = airflow_health.look(running.url)
        assert silent(signs) == []
        names = ("api_server", "metadatabase", "scheduler", "dag_processor", "triggerer")
        assert [one.item for one in signs] == [f"airflow_{name}" for name in names]

    @pytest.mark.parametrize("name", ["scheduler", "dag_processor", "triggerer"])
    def test_a_loop_without_a_heartbeat(self, tmp_path: Path, name: str) -> None:
        with airflow(tmp_path) as (running, answer):
            answer({**HEALTHY, name: {"status": "unhealthy", f"latest_{name}_heartbeat": BEAT}})
            signs = airflow_health.look(running.url)
        assert silent(signs) == [f"airflow_{name}"]
        (found,) = [one for one in signs if one.silent]
        assert found.since == datetime.fromisoformat(BEAT)
        assert found.why == "status unhealthy, last heartbeat 2026-11-24 10:58:30 EAT"
        assert "docs/watchdog.md" in found.next

    @pytest.mark.parametrize("part", [None, {}, "healthy", {"status": None, "latest_scheduler_heartbeat": None}, 1])
    def test_a_loop_of_which_nothing_is_known_is_silent(self, tmp_path: Path, part: object) -> None:
        with airflow(tmp_path) as (running, answer):
            answer({**HEALTHY, "scheduler": part})
            assert silent(airflow_health.look(running.url)) == ["airflow_scheduler"]

    def test_nothing_is_said_of_what_cannot_be_known(self, tmp_path: Path) -> None:
        with airflow(tmp_path) as (running, answer):
            answer({**HEALTHY, "metadatabase": {"status": "unhealthy"}, "scheduler": {"status": None}})
            assert silent(airflow_health.look(running.url)) == ["airflow_metadatabase"]
            bodies: list[object] = [{}, [], "<html>", {"status": "healthy"}]
            for body in bodies:
                answer(body)
                assert [one.item for one in airflow_health.look(running.url)] == ["airflow_api_server"]
            answer(HEALTHY)
            running.fail(503)
            assert silent(airflow_health.look(running.url)) == ["airflow_api_server"]
        (found,) = airflow_health.look(f"http://127.0.0.1:{postgres.free_port()}")
        assert found.silent


class TestRounds:
    def test_one_that_fails_or_hangs_keeps_no_other(self) -> None:
        stop, hang, done = threading.Event(), threading.Event(), []

        def fails() -> None:
            done.append("fails")
            raise MemoryError

        def hangs() -> None:
            done.append("hangs")
            hang.wait()

        short = timedelta(milliseconds=1)
        rounds = [
            Round("fails", short, fails),
            Round("hangs", short, hangs),
            Round("works", short, lambda: done.append("works")),
        ]
        beats: list[str] = []
        heartbeat = Round("heartbeat", short, lambda: beats.append("beat"))
        thread = threading.Thread(target=watchdog.run, args=(rounds, heartbeat, stop), daemon=True)
        thread.start()
        eventually(lambda: done.count("works") > 3 and done.count("fails") > 3, "rounds of the others")
        assert done.count("hangs") == 1
        assert beats == []  # not every round has got through
        stop.set()
        hang.set()
        thread.join(5)
        assert not thread.is_alive()

    def test_the_heartbeat_stops_when_a_round_no_longer_gets_through(self) -> None:
        stop, hold, beats = threading.Event(), threading.Event(), []
        now, rounds_done = [0.0], []

        def work() -> None:
            rounds_done.append(now[0])
            if hold.is_set():
                raise Unavailable("away")

        short = timedelta(milliseconds=1)
        heartbeat = Round("heartbeat", short, lambda: beats.append(now[0]))
        arguments = ([Round("one", short, work)], heartbeat, stop, lambda: now[0])
        thread = threading.Thread(target=watchdog.run, args=arguments, daemon=True)
        thread.start()
        eventually(lambda: beats, "a heartbeat")
        hold.set()
        count = len(rounds_done)
        eventually(lambda: len(rounds_done) > count + 2, "failing rounds")
        now[0] = watchdog.STUCK.total_seconds()
        eventually(lambda: beats[-1] == now[0], "a heartbeat within what a round may take")
        now[0] += 1
        count, beaten = len(rounds_done), len(beats)
        eventually(lambda: len(rounds_done) > count + 5, "failing rounds")
        assert len(beats) <= beaten + 1  # one may have been under way
        hold.clear()
        eventually(lambda: beats[-1] == now[0], "heartbeats again")
        stop.set()
        thread.join(5)

    def test_the_heartbeat_is_taken_and_its_address_is_in_no_error(self, tmp_path: Path) -> None:
        with sentry_stand_in(tmp_path) as sentry:
            url = f"{sentry.url}/api/1/cron/watchdog/abc/?status=ok"
            watchdog.ping(url)
            (item,) = sentry.get("/items.json")
            assert item["payload"]["monitor_slug"] == "watchdog"
            sentry.fail(503, count=1)
            with pytest.raises(Unavailable) as refused:
                watchdog.ping(url)
        with pytest.raises(Unavailable) as gone:
            watchdog.ping(f"http://127.0.0.1:{postgres.free_port()}/api/1/cron/watchdog/abc/")
        assert "watchdog/abc" not in f"{refused.value}{gone.value}"


class TestFreshness:
    def test_a_target_that_is_missed_and_made_good(self, installation: Installation, ops: str, slack: StandIn) -> None:
        """Whatever the reason, for example a paused DAG."""
        url = "http://127.0.0.1:8080"
        silences = Silences(ops, slack.client(), "me", Clock())
        done = installation.back_up()
        config = settings.load()
        where = installation.catalogue

        def look(at: datetime) -> list[Sign]:
            return command.signs(freshness.measure(where, config.targets, at, actor="test"), url)

        silences.take(look(utc_now()))
        assert told(slack) == []
        for _ in range(2):
            silences.take(look(done.snapshot_at + timedelta(hours=26, seconds=1)))
        (message,) = slack.messages
        assert message["text"].startswith("Backup target missed: daily age: 26.0 h, expected 26 h at most")
        shown = str(message["blocks"])
        assert "docs/runbooks/backup_daily.md" in shown
        assert f"{url}/dags/backup_daily" in shown
        installation.back_up()
        silences.take(look(utc_now()))
        assert slack.messages[-1]["text"].startswith("Over: Backup target missed: daily age")

    def test_a_store_that_is_away_is_one_alert_after_a_while(
        self, installation: Installation, proxy: Proxy, ops: str, slack: StandIn
    ) -> None:
        clock = Clock()
        silences = Silences(ops, slack.client(), "me", clock)
        installation.back_up()
        proxy.answer("GET", "", 503, "SlowDown")
        config, where = settings.load(), installation.desk.catalogue
        found = freshness.measure(where, config.targets, utc_now(), actor="test")
        for _ in range(4):
            silences.take(command.signs(found, "http://airflow"))
            clock.move(300)
        (message,) = slack.messages
        assert message["text"].startswith("Nobody can tell how fresh the backups are: daily_age: error")
        assert message["metadata"]["event_payload"]["severity"] == Severity.WARNING


class TestCommand:
    @pytest.fixture
    def ready(self, installation: Installation, tmp_path: Path, slack: StandIn) -> Installation:
        """Everything that the watchdog needs."""
        token = tmp_path / "token"
        token.write_text("xoxb-test\n")
        installation.set("SLACK__TOKEN_FILE", str(token))
        installation.set("SLACK__API_URL", f"{slack.url}/api/")
        installation.set("WATCHDOG__AIRFLOW_URL", f"http://127.0.0.1:{postgres.free_port()}")
        return installation

    @pytest.mark.parametrize("name", ["SLACK__TOKEN_FILE", "WATCHDOG__AIRFLOW_URL"])
    def test_it_does_not_start_without_what_it_needs(self, ready: Installation, name: str) -> None:
        ready.set(name, None)
        with pytest.raises(SettingsError, match=name):
            command.watchdog()

    def test_a_token_file_that_cannot_be_read(self, ready: Installation, tmp_path: Path) -> None:
        ready.set("SLACK__TOKEN_FILE", str(tmp_path / "none"))
        with pytest.raises(SettingsError, match="no such file"):
            command.watchdog()

    @pytest.mark.long
    def test_it_lives_through_everything_being_away_and_ends_when_told(
        self, ready: Installation, tmp_path: Path, slack: StandIn
    ) -> None:
        with sentry_stand_in(tmp_path) as sentry:
            ready.set("WATCHDOG__HEARTBEAT_URL", f"{sentry.url}/api/1/cron/watchdog/abc/?status=ok")
            asked, words = "service=payme_ops_db", {"subject": "Swap?", "thread": "test:watchdog"}
            until = utc_now() + timedelta(minutes=10)
            approvals.ask(asked, run="test/watchdog", gate="g", digest="d", requested_by="", expires_at=until, **words)
            with psycopg.connect(asked) as session:
                session.execute(
                    "UPDATE ops.approvals SET asked_at = now() - interval '16 min' WHERE thread LIKE 'test:%'"
                )
            # No backup yet: that is told at once, whatever else there is.
            running = ready.start("watchdog")
            missed = "Backup target missed: daily age: none, expected 26 h at most"
            # Beside it go alerts of other tests that are still unsent.
            eventually(
                lambda: missed in [message["text"] for message in slack.messages], "the alert", seconds=60, every=0.5
            )
            eventually(lambda: "Still without an answer" in told(slack), "the reminder", seconds=60, every=0.5)
            eventually(lambda: sentry.get("/items.json"), "a heartbeat", seconds=60, every=0.5)
            running.process.terminate()
            ended = running.end()
        assert ended.code == 143
        assert "Traceback" not in ended.err
        assert "xoxb" not in ended.err

        ready.connect_as("payme_ops_db", port=str(postgres.free_port()))
        ready.reach_store_at(f"http://127.0.0.1:{postgres.free_port()}")
        slack.fail(503)
        running = ready.start("watchdog")
        eventually(lambda: running.errors().count("going by memory") == 4, "a round of each", seconds=60)
        running.process.terminate()
        assert running.end().code == 143


class TestReminders:
    """Of a question asked in a thread that the run has begun."""

    RUN, THREAD, LINK = "release/production-2.4.1-aaaaaaa", "release:production-2.4.1-aaaaaaa", "http://airflow/answer"

    @pytest.fixture
    def asked(self, ops: str, slack: StandIn) -> str:
        alert.raise_alert(ops, replace(ALERT, key=self.THREAD, occurrence="the question"), slack.client())
        return self.ask(ops)

    def ask(self, ops: str, gate: str = "go_no_go_first") -> str:
        words = {"subject": f"Go or no-go? ({gate})", "link": self.LINK, "thread": self.THREAD}
        until = utc_now() + timedelta(hours=4)
        approvals.ask(ops, run=self.RUN, gate=gate, digest="d", requested_by="oncall", expires_at=until, **words)
        return ops

    def age(self, ops: str, minutes: float, column: str = "asked_at") -> None:
        """Let the questions be that old, or stand until then."""
        query = sql.SQL("UPDATE ops.approvals SET {} = now() - %s").format(sql.Identifier(column))
        with psycopg.connect(ops) as session:
            session.execute(query, [timedelta(minutes=minutes)])

    def remind(self, ops: str, slack: StandIn) -> list[dict[str, Any]]:
        """A round, as a watchdog does it that was just started; the reminders that Slack has got so far."""
        watchdog.remind(ops, slack.client(), "me")
        return [one for one in slack.messages if one["text"].startswith("Still without an answer")]

    def test_once_at_fifteen_and_once_at_thirty_minutes_in_its_thread(self, asked: str, slack: StandIn) -> None:
        counts = []
        for minutes in (14.9, 15.1, 15.6, 29.9, 30.1, 90):
            self.age(asked, minutes)
            counts.append(len(self.remind(asked, slack)))
        assert counts == [0, 1, 1, 1, 2, 2]
        question, first, second = slack.messages
        assert first["thread_ts"] == second["thread_ts"] == question["ts"]
        assert first["text"].startswith(
            "Still without an answer: Go or no-go? (go_no_go_first): Asked more than 15 minutes ago."
        )
        assert "It counts as rejected from " in second["text"]
        assert self.LINK in str(first["blocks"])

    def test_a_watchdog_that_was_away_reminds_once_of_what_is_due_now(self, asked: str, slack: StandIn) -> None:
        self.age(asked, 45)
        assert len(self.remind(asked, slack)) == 1
        assert "Asked more than 30 minutes ago" in self.remind(asked, slack)[0]["text"]

    def test_two_watchdogs_remind_once(self, asked: str, slack: StandIn) -> None:
        self.age(asked, 20)
        threads = [threading.Thread(target=self.remind, args=(asked, slack)) for _ in range(4)]
        for one in threads:
            one.start()
        for one in threads:
            one.join()
        assert len(self.remind(asked, slack)) == 1

    @pytest.mark.parametrize("choice", ["Approve", "Reject"])
    def test_nobody_is_reminded_of_what_was_answered(self, asked: str, slack: StandIn, choice: str) -> None:
        self.age(asked, 16)
        assert len(self.remind(asked, slack)) == 1
        approvals.answer(asked, run=self.RUN, gate="go_no_go_first", choice=choice, responder="lead", reason="")
        self.age(asked, 31)
        assert len(self.remind(asked, slack)) == 1

    def test_nobody_is_reminded_of_what_does_not_stand_any_more(self, asked: str, slack: StandIn) -> None:
        # A run that a person ended leaves its question without an answer for ever.
        self.age(asked, 31)
        self.age(asked, 0, "expires_at")
        assert self.remind(asked, slack) == []

    def test_a_question_asked_again_is_the_one_that_counts(self, asked: str, slack: StandIn) -> None:
        self.age(asked, 16)
        self.ask(asked)
        assert self.remind(asked, slack) == []
        self.age(asked, 16)
        assert len(self.remind(asked, slack)) == 1

    def test_each_question_has_its_own(self, asked: str, slack: StandIn) -> None:
        self.ask(asked, "go_no_go_second")
        self.age(asked, 16)
        assert len(self.remind(asked, slack)) == 2

    def test_a_question_that_says_no_thread_is_left_alone(self, ops: str, slack: StandIn) -> None:
        approvals.ask(ops, run="x/1", gate="approve_swap", digest="d", requested_by="")
        self.age(ops, 31)
        assert self.remind(ops, slack) == []

    def test_what_slack_does_not_take_goes_out_later_and_once(self, asked: str, slack: StandIn) -> None:
        self.age(asked, 16)
        slack.fail(503)
        assert self.remind(asked, slack) == []
        assert self.remind(asked, slack) == []
        slack.fail(None)
        watchdog.resend(asked, slack.client())
        assert len(self.remind(asked, slack)) == 1

    def test_without_the_ops_database_it_says_so(self, nowhere: str, slack: StandIn) -> None:
        with pytest.raises(DatabaseUnavailable):
            self.remind(nowhere, slack)


class TestOrders:
    """A release that died with orders stopped."""

    @pytest.fixture
    def api(self, tmp_path: Path) -> Iterator[releases.Api]:
        with releases.api(tmp_path) as running:
            yield running

    @pytest.fixture
    def config(self, installation: Installation) -> settings.Settings:
        installation.set("RELEASE__TEST_MERCHANT", releases.SETTINGS.test_merchant)
        return settings.load()

    def test_orders_are_taken_again_and_people_are_told_once(
        self, ops: str, slack: StandIn, api: releases.Api, config: settings.Settings
    ) -> None:
        release = releases.release(ops)
        orders.freeze(ops, release, api.asks, config.release)
        silences, apis = Silences(ops, slack.client(), "me"), {"production": api.asks}
        command.take_orders_again(ops, apis, silences, slack.client(), config)
        assert told(slack) == []
        with psycopg.connect(ops, autocommit=True) as admin:
            admin.execute("UPDATE ops.terms SET expires_at = now() - interval '1 s'")
        for _ in range(2):
            command.take_orders_again(ops, apis, silences, slack.client(), config)
        (message,) = slack.messages
        assert message["text"].startswith("The watchdog has orders taken again in production: release/production-2.4.1")
        found = payme_api.orders(api.asks)
        assert found
        assert not found.frozen

    def test_an_api_that_is_away_is_told_and_tried_until_it_is_there(
        self, ops: str, slack: StandIn, api: releases.Api, config: settings.Settings
    ) -> None:
        orders.freeze(ops, releases.release(ops), api.asks, config.release)
        silences, apis = Silences(ops, slack.client(), "me"), {"production": api.asks}

        def look() -> None:
            with psycopg.connect(ops, autocommit=True) as admin:
                admin.execute("UPDATE ops.terms SET expires_at = now() - interval '1 s' WHERE ended_at IS NULL")
            command.take_orders_again(ops, apis, silences, slack.client(), config)
            command.take_orders_again(ops, apis, silences, slack.client(), config)  # while its own try stands

        api.stand_in.fail(503)
        look()
        look()
        (message,) = slack.messages
        assert message["text"].startswith("Orders are stopped in production, and cannot be taken again: release/")
        api.stand_in.fail(None)
        look()
        assert [text.split(":")[0] for text in (one["text"] for one in slack.messages[1:])] == [
            "The watchdog has orders taken again in production",
            "Over",
        ]

    @pytest.mark.parametrize("name", ["API", "STAGING_API"])
    def test_an_api_without_a_token_is_refused(self, installation: Installation, name: str) -> None:
        installation.set(f"WATCHDOG__{name}_URL", "http://127.0.0.1:1")
        installation.set(f"WATCHDOG__{name}_TOKEN_FILE", None)
        with pytest.raises(SettingsError, match=f"WATCHDOG__{name}_TOKEN_FILE"):
            command._apis(settings.load())
