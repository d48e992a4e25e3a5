"""The rounds of the health watch: real applications that fail in every way, a real ops database, Slack's stand-in."""

import asyncio
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg.rows import dict_row

from payme_ops.foundation import lease, opsdb
from payme_ops.foundation.errors import Unavailable
from payme_ops.foundation.settings import MonitoringSettings
from payme_ops.foundation.slack import Slack
from payme_ops.monitoring import probe, rounds
from payme_ops.monitoring.rounds import Doors, Watch
from sandbox import postgres
from tests.support import applications, releases, standins
from tests.support.applications import Application
from tests.support.standins import StandIn
from tests.support.waiting import eventually

INTERVAL = timedelta(seconds=30)
PAGE = "http://airflow.test/dags/incident"


@pytest.fixture(scope="module")
def cluster() -> Iterator[postgres.Cluster]:
    with postgres.temporary_cluster() as started:
        opsdb.migrate(started.conninfo())
        yield started


@pytest.fixture
def ops(cluster: postgres.Cluster) -> str:
    with psycopg.connect(cluster.conninfo(), autocommit=True) as connection:
        tables = "health_samples, outages, alerts, alert_threads, alert_acknowledgements, terms, releases"
        connection.execute(f"TRUNCATE {', '.join(f'ops.{name}' for name in tables.split(', '))} CASCADE")
    return cluster.conninfo()


@pytest.fixture
def app() -> Iterator[Application]:
    with applications.application() as running:
        yield running


@pytest.fixture
def slack(tmp_path: Path) -> Iterator[StandIn]:
    with standins.slack_stand_in(tmp_path) as running:
        yield running


@pytest.fixture(autouse=True)
def _short_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probe, "LIMIT_SECONDS", 0.4)


class Desk:
    """A watch with its clock in the test's hand; several may share an ops database."""

    def __init__(self, ops: str | None, slack: StandIn, **endpoints: str) -> None:
        self.doors = Doors(ops, slack.client(), "the tests", PAGE, self._capture)
        self.captured: list[str] = []
        # A whole hour, long enough ago for no real look to be later.
        self.now = datetime(2026, 3, 1, 12, tzinfo=UTC)
        self._runner = asyncio.Runner()
        self._settings = MonitoringSettings(endpoints=endpoints, slow_ms=200)
        self.restart()

    def _capture(self, alert: Any) -> str:
        self.captured.append(alert.what)
        return "an-id"

    def restart(self) -> None:
        """Another process, which remembers nothing."""
        clock: Callable[[], datetime] = lambda: self.now + timedelta(seconds=1)  # noqa: E731

        async def make() -> Watch:
            return Watch(probe.client(), self._settings, lambda: self.doors, 0.01, clock)

        self.watch = self._runner.run(make())

    def rounds(self, count: int = 1) -> list[dict[str, Any]]:
        """So many, one after the other, and everything sent; what `incident` is asked for."""
        due: list[dict[str, Any]] = []
        for _ in range(count):
            self.now += INTERVAL
            due += self._runner.run(self._one())
        return due

    async def _one(self) -> list[dict[str, Any]]:
        due = await self.watch.round(self.now)
        await self.watch.sent()
        return due

    def together(self, other: "Desk") -> None:
        """One round of both at the same time."""

        async def both() -> None:
            await asyncio.gather(self.watch.round(self.now), other.watch.round(self.now))
            await asyncio.gather(self.watch.sent(), other.watch.sent())

        self.now += INTERVAL
        other.now = self.now
        self._runner.run(both())

    def close(self) -> None:
        self.watch.close()
        self._runner.close()


@pytest.fixture
def desk(ops: str, slack: StandIn, app: Application) -> Iterator[Desk]:
    made = Desk(ops, slack, production=app.url)
    yield made
    made.close()


def outages(ops: str) -> list[dict[str, Any]]:
    with psycopg.connect(ops, row_factory=dict_row) as connection:
        return connection.execute("SELECT * FROM ops.outages ORDER BY id").fetchall()


def samples(ops: str) -> list[dict[str, Any]]:
    with psycopg.connect(ops, row_factory=dict_row) as connection:
        return connection.execute("SELECT * FROM ops.health_samples ORDER BY subject, at").fetchall()


def texts(slack: StandIn) -> list[str]:
    return [message["text"] for message in slack.messages]


def threads(slack: StandIn) -> int:
    return len({message.get("thread_ts", message["ts"]) for message in slack.messages})


# -- one outage, one thread, the right words ----------------------------------------------------------------------

WAYS = {
    "sick": ("down", "production is down: status 503, unhealthy, database disconnected."),
    "wrong": ("down", "production is down: status 200, unknown, database unknown."),
    "large": ("down", "production is down: no answer (more than 200000 bytes)."),
    "hang": ("down", "production is down: no whole answer within 0.4 s."),
    "drip": ("down", "production is down: no whole answer within 0.4 s."),
    "redirect": ("unclear", "production does not say how it is: redirected (status 302)."),
    "login": ("unclear", "production does not say how it is: not answered (status 401)."),
    "slow": ("slow", "production is slow: healthy after"),
}


@pytest.mark.parametrize("mode", WAYS)
def test_every_way_to_be_unwell_is_one_outage_in_one_thread(
    desk: Desk, ops: str, slack: StandIn, app: Application, mode: str
) -> None:
    kind, words = WAYS[mode]
    desk.rounds(2)
    app.mode = mode
    due = desk.rounds(2)
    assert (due, texts(slack)) == ([], [])
    due = desk.rounds(3)
    [found] = outages(ops)
    assert due == [{"outage": found["id"], "subject": "production"}]
    assert (found["kind"], found["p95"], found["ended_at"]) == (kind, applications.P95, None)
    assert found["began_at"] - found["last_good_at"] == INTERVAL
    app.mode = "well"
    desk.rounds(11)
    first, over = texts(slack)
    assert first.startswith(words)
    assert over.startswith("production is well again after 2 min 30 s")
    assert threads(slack) == 1
    [found] = outages(ops)
    assert found["ended_at"] - found["began_at"] == timedelta(seconds=150)
    shown = str(slack.messages[0]["blocks"])
    assert "last seen well at 2026-03-01 15:01:00 EAT; p95 as last told: 120 ms" in shown
    assert "docs/runbooks/incident.md" in shown
    assert "3 of 3 right after them" in shown


@pytest.mark.parametrize("p95", [10**400, 1e300, 1e-300])
def test_an_answer_that_no_database_takes_is_told_and_keeps_no_other_from_it(
    ops: str, slack: StandIn, app: Application, p95: float
) -> None:
    app.mode, app.p95 = "odd", p95
    with applications.application() as other, closing(Desk(ops, slack, production=app.url, staging=other.url)) as desk:
        other.mode = "sick"
        desk.rounds(3)
    assert {one["subject"] for one in outages(ops)} == {"production", "staging"}
    assert len(samples(ops)) == 6
    assert sorted(text.split(".")[0] for text in texts(slack)) == [
        "production is down: status 503, ???&lt;!channel&gt;, database unknown",
        "staging is down: status 503, unhealthy, database disconnected",
    ]


def test_a_look_that_fails_in_itself_is_one_that_says_nothing(
    ops: str, slack: StandIn, app: Application, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = probe._p95

    async def broken(asked: Any, url: str) -> float | None:
        if url == app.url:
            raise RuntimeError("not foreseen")
        return await whole(asked, url)

    monkeypatch.setattr(probe, "_p95", broken)
    with applications.application() as other, closing(Desk(ops, slack, production=app.url, staging=other.url)) as desk:
        other.mode = "sick"
        desk.rounds(3)
    assert sorted(text.split(".")[0] for text in texts(slack)) == [
        "production does not say how it is: what it answers cannot be read (RuntimeError)",
        "staging is down: status 503, unhealthy, database disconnected",
    ]


def test_a_refused_connection_and_what_was_never_well(ops: str, slack: StandIn) -> None:
    desk = Desk(ops, slack, staging=f"http://127.0.0.1:{postgres.free_port()}")
    desk.rounds(3)
    assert texts(slack) == [
        "staging is down: no answer (connection refused). Bad were 3 of the last 3 looks and 3 of 3 right after them."
    ]
    assert ":large_orange_circle:" in str(slack.messages[0]["blocks"][0])  # nobody is woken by staging
    assert outages(ops)[0]["last_good_at"] is None
    assert "never seen well" in str(slack.messages[0]["blocks"])
    desk.close()


def test_a_certificate_that_nobody_signed_is_told_and_one_that_is_trusted_is_well(
    ops: str, slack: StandIn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    context, certificate = applications.self_signed(tmp_path)
    with applications.application(tls=context) as app, ExitStack() as stack:
        desk = Desk(ops, slack, production=app.url)
        stack.callback(desk.close)
        desk.rounds(3)
        assert texts(slack)[0].startswith("production is down: no answer (its certificate is refused: self-signed")
        monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
        desk.restart()
        desk.rounds(10)
        assert texts(slack)[1].startswith("production is well again")


def test_coming_and_going_is_one_outage(desk: Desk, ops: str, slack: StandIn, app: Application) -> None:
    for mode in ("sick", "sick", "sick", "well", "well", "slow", "well", "sick", "well", "redirect") * 2:
        app.mode = mode
        desk.rounds()
    app.mode = "well"
    desk.rounds(10)
    assert len(outages(ops)) == 1
    assert [text.split(":")[0].split(" after ")[0] for text in texts(slack)] == [
        "production is down",
        "production is well again",
    ]


def test_noise_that_a_burst_does_not_confirm_is_told_to_nobody(
    desk: Desk, ops: str, slack: StandIn, app: Application, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = probe.look

    async def in_rounds_only(asked: Any, url: str, at: datetime) -> Any:
        app.mode = "sick" if at == desk.now else "well"
        return await whole(asked, url, at)

    monkeypatch.setattr(probe, "look", in_rounds_only)
    desk.rounds(6)
    assert (outages(ops), texts(slack)) == ([], [])
    assert {one["state"] for one in samples(ops)} == {"unhealthy"}


def test_what_was_slow_and_goes_down_is_told_as_that(desk: Desk, slack: StandIn, app: Application, ops: str) -> None:
    app.mode = "slow"
    desk.rounds(3)
    app.mode = "sick"
    desk.rounds(4)
    assert [text.split(":")[0] for text in texts(slack)] == ["production is slow", "production is down by now"]
    assert threads(slack) == 1
    assert slack.messages[1]["reply_broadcast"]
    assert outages(ops)[0]["kind"] == "down"


def test_who_is_down_again_soon_after_and_each_reminder_is_shown_in_the_channel(
    desk: Desk, slack: StandIn, app: Application
) -> None:
    for _ in range(2):
        app.mode = "sick"
        desk.rounds(3)
        desk.now += timedelta(minutes=16)
        desk.rounds()
        app.mode = "well"
        desk.rounds(10)
    shown = [message.get("reply_broadcast") for message in slack.messages]
    assert shown == [None, True, False, True, True, False]


def test_the_sandbox_s_api_is_well_and_tells_its_p95(ops: str, slack: StandIn, tmp_path: Path) -> None:
    with releases.api(tmp_path) as api, closing(Desk(ops, slack, production=api.stand_in.url)) as desk:
        desk.rounds(2)
    one, _ = samples(ops)
    assert one["state"] == "healthy", one
    assert set(one["facts"]) == {"p95"}


# -- what is stored ------------------------------------------------------------------------------------------------


def test_a_look_is_stored_compactly_at_its_slot(desk: Desk, ops: str, app: Application) -> None:
    desk.rounds()
    app.mode = "sick"
    desk.rounds()
    well, sick = samples(ops)
    assert (well["subject"], well["at"], well["state"], well["facts"]) == (
        "production",
        desk.now - INTERVAL,
        "healthy",
        {"p95": applications.P95},
    )
    assert sick["facts"] == {"p95": applications.P95, "why": "status 503, unhealthy, database disconnected"}


def test_two_watches_at_once_count_and_open_once(ops: str, slack: StandIn, app: Application) -> None:
    one, two = Desk(ops, slack, production=app.url), Desk(ops, slack, production=app.url)
    app.mode = "sick"
    for _ in range(5):
        one.together(two)
    app.mode = "well"
    for _ in range(10):
        one.together(two)
    assert len(samples(ops)) == 15
    assert len(outages(ops)) == 1
    assert [text.split(":")[0].split(" after ")[0] for text in texts(slack)] == [
        "production is down",
        "production is well again",
    ]
    one.close()
    two.close()


def test_after_a_restart_it_goes_on_and_a_gap_counts_neither_as_bad_nor_as_good(
    desk: Desk, ops: str, slack: StandIn, app: Application
) -> None:
    app.mode = "sick"
    desk.rounds(2)
    desk.restart()
    desk.rounds()
    assert len(texts(slack)) == 1
    app.mode = "well"
    desk.rounds(9)
    desk.now += timedelta(hours=1)  # nobody has looked
    desk.restart()
    desk.rounds(9)
    assert outages(ops)[0]["ended_at"] is None
    assert texts(slack)[1:] == ["production is down for more than 1 h: By now: healthy, not yet ten times in a row."]
    desk.rounds()
    assert "well again after 1 h 6 min" in texts(slack)[2]
    app.mode = "sick"
    desk.rounds(2)
    desk.now += timedelta(hours=1)
    desk.rounds(2)
    assert len(outages(ops)) == 1, "two bad looks before the gap are none of the last ten after it"
    desk.rounds()
    assert len(outages(ops)) == 2


def test_looks_of_a_release_at_other_times_do_not_count(desk: Desk, ops: str, app: Application) -> None:
    with psycopg.connect(ops, autocommit=True) as connection:
        for second in range(1, 28):
            values = [desk.now + timedelta(seconds=second)]
            connection.execute("INSERT INTO ops.health_samples VALUES ('production', %s, 'unhealthy', 0, '{}')", values)
    app.mode = "sick"
    desk.rounds(2)
    assert outages(ops) == []


# -- telling -------------------------------------------------------------------------------------------------------


def test_reminders_back_off_until_somebody_has_seen_it(desk: Desk, ops: str, slack: StandIn, app: Application) -> None:
    app.mode = "sick"
    desk.rounds(3)
    begun = desk.now
    for minutes in (10, 16, 20, 31, 62, 90, 125, 241, 300, 481):
        desk.now = begun + timedelta(minutes=minutes) - INTERVAL
        desk.rounds()
    spans = [text.split(" for more than ")[1].split(":")[0] for text in texts(slack)[1:]]
    assert spans == ["15 min", "30 min", "1 h", "2 h", "4 h", "8 h"]
    assert threads(slack) == 1
    with psycopg.connect(ops, autocommit=True) as connection:
        connection.execute(
            "INSERT INTO ops.alert_acknowledgements (key, episode, by, why) VALUES (%s, %s, 'oncall', 'on it')",
            ["health:production", f"outage/{outages(ops)[0]['id']}"],
        )
    desk.now = begun + timedelta(hours=20)
    desk.rounds()
    assert len(texts(slack)) == 7


def test_who_has_seen_that_it_is_slow_is_reminded_when_it_is_down(
    desk: Desk, ops: str, slack: StandIn, app: Application
) -> None:
    def seen(episode: str) -> None:
        with psycopg.connect(ops, autocommit=True) as connection:
            connection.execute(
                "INSERT INTO ops.alert_acknowledgements (key, episode, by, why) VALUES (%s, %s, 'oncall', 'on it')",
                ["health:production", episode],
            )

    app.mode = "slow"
    desk.rounds(3)
    [found] = outages(ops)
    seen(f"outage/{found['id']}")
    desk.now += timedelta(hours=3)
    app.mode = "sick"
    desk.rounds(4)
    desk.now += timedelta(minutes=16)
    desk.rounds(2)
    assert [text.split(":")[0] for text in texts(slack)] == [
        "production is slow",
        "production is down by now",
        "production is down for more than 15 min",
    ]
    seen(f"outage/{found['id']}/down")
    desk.now += timedelta(hours=5)
    desk.rounds(2)
    assert len(texts(slack)) == 3


def at_work(ops: str, desk: Desk, minutes: int) -> str:
    """A release to production at work, whose window ends in so many minutes; its id."""
    made = releases.release(ops, window_from=desk.now - INTERVAL, window_to=desk.now + timedelta(minutes=minutes))
    lease.take_term(ops, made.lease, made.run, timedelta(days=4000))
    return made.id


def test_a_release_at_work_mutes_and_says_so_until_its_window_ends(
    desk: Desk, ops: str, slack: StandIn, app: Application
) -> None:
    name = at_work(ops, desk, minutes=20)
    app.mode = "sick"
    desk.rounds(6)
    [muted] = slack.messages
    assert muted["text"].startswith(f"production is down, muted by the release {name}")
    assert ":large_blue_circle:" in str(muted["blocks"][0])
    assert "Muted until 2026-03-01 15:20:00 EAT" in str(muted["blocks"])
    assert outages(ops)[0]["muted_by"] == name
    desk.now += timedelta(minutes=20)
    desk.rounds(2)
    _, full = slack.messages
    assert full["text"].startswith("production is down: status 503")
    assert f"muted by the release {name}, whose window is over" in str(full["blocks"])
    assert full["reply_broadcast"], "in a thread alone nobody would see it"
    assert threads(slack) == 1


def test_who_is_well_again_at_the_window_s_end_wakes_nobody_and_who_is_unwell_again_does(
    desk: Desk, ops: str, slack: StandIn, app: Application
) -> None:
    at_work(ops, desk, minutes=20)
    app.mode = "sick"
    desk.rounds(3)
    desk.now += timedelta(minutes=20)
    app.mode = "well"
    desk.rounds(5)
    assert [text.split(",")[0] for text in texts(slack)] == ["production is down"], "it is muted"
    app.mode = "sick"
    desk.rounds()
    assert texts(slack)[1].startswith("production is down: status 503")


def test_what_was_slow_before_a_release_and_is_down_after_it_is_told_in_full_at_its_window_s_end(
    desk: Desk, ops: str, slack: StandIn, app: Application
) -> None:
    app.mode = "slow"
    desk.rounds(3)
    name = at_work(ops, desk, minutes=20)
    app.mode = "sick"
    desk.rounds(5)
    desk.now += timedelta(minutes=20)
    desk.rounds(3)
    _, muted, full = slack.messages
    assert muted["text"].startswith("production is down by now")
    assert ":large_blue_circle:" in str(muted["blocks"][0])
    assert f"Muted by the release {name}" in str(muted["blocks"])
    assert full["text"].startswith("production is down by now")
    assert ":red_circle:" in str(full["blocks"][0])
    assert full["reply_broadcast"], "in a thread alone nobody would see it"


def test_a_release_that_is_over_mutes_nothing(desk: Desk, ops: str, slack: StandIn, app: Application) -> None:
    at_work(ops, desk, minutes=60)
    app.mode = "sick"
    desk.rounds(3)
    with psycopg.connect(ops, autocommit=True) as connection:
        connection.execute("UPDATE ops.terms SET ended_at = now()")
    desk.rounds()
    assert [text.split(":")[0].split(",")[0] for text in texts(slack)] == ["production is down", "production is down"]
    assert ":red_circle:" in str(slack.messages[1]["blocks"][0])


def test_what_is_not_looked_at_any_more_has_no_outage(desk: Desk, ops: str, slack: StandIn, app: Application) -> None:
    app.mode = "sick"
    desk.rounds(3)
    without = Desk(ops, slack)
    without.now = desk.now
    without.rounds()
    assert outages(ops)[0]["ended_at"] is not None
    assert texts(slack)[1].startswith("production is not looked at any more")
    without.close()


# -- what is away --------------------------------------------------------------------------------------------------


def test_slack_away_at_that_moment_is_told_to_sentry_and_sent_later_once(
    desk: Desk, ops: str, slack: StandIn, app: Application
) -> None:
    app.mode = "sick"
    slack.fail(503)
    desk.rounds(4)
    assert desk.captured == ["production is down"]
    assert len(outages(ops)) == 1
    desk.restart()
    slack.fail(None)
    desk.rounds(3)
    assert len(texts(slack)) == 1


def test_sentry_is_told_of_each_where_nobody_knows_the_connection_of_slack(
    ops: str, slack: StandIn, app: Application
) -> None:
    app.mode = "sick"
    with closing(Desk(ops, slack, production=app.url, staging=app.url)) as desk:
        known = desk.doors
        desk.doors = replace(known, slack=None)
        desk.rounds(4)
        assert desk.captured == ["production is down", "staging is down"]
        desk.doors = known
        desk.rounds()
    assert len(texts(slack)) == 2


def test_without_the_ops_database_it_goes_by_memory_and_invents_nothing(
    desk: Desk, ops: str, slack: StandIn, app: Application
) -> None:
    here = desk.doors
    app.mode = "sick"
    desk.rounds()
    desk.doors = Doors("host=127.0.0.1 port=1 dbname=none", here.slack, here.owner, here.page)
    assert desk.rounds(4) == []
    [told] = slack.messages
    assert told["text"].startswith("production is down")
    assert "The ops database did not take this alert" in str(told["blocks"])
    assert len(samples(ops)) == 1
    desk.doors = here
    due = desk.rounds()
    [found] = outages(ops)
    assert due == [{"outage": found["id"], "subject": "production"}]
    assert found["began_at"] == datetime(2026, 3, 1, 12, 0, 30, tzinfo=UTC)
    app.mode = "well"
    desk.rounds(10)
    assert "well again" in texts(slack)[-1]


def test_an_outage_told_without_the_ops_database_is_not_forgotten_when_it_cannot_be_written_at_once(
    desk: Desk, ops: str, slack: StandIn, app: Application, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = desk.doors
    desk.doors = Doors("host=127.0.0.1 port=1 dbname=none", here.slack, here.owner)
    app.mode = "sick"
    desk.rounds(3)
    desk.doors, app.mode = here, "well"

    def refuses(*_: Any) -> None:
        raise Unavailable("not yet")

    with monkeypatch.context() as context:
        context.setattr(desk.watch, "_write", refuses)
        desk.rounds()
    desk.rounds(9)
    assert "production is well again" in texts(slack)[-1]
    assert len(outages(ops)) == 1


def test_a_window_that_ends_while_the_ops_database_is_away_mutes_nothing_after_it(
    desk: Desk, ops: str, slack: StandIn, app: Application
) -> None:
    at_work(ops, desk, minutes=5)
    desk.rounds()
    desk.doors = Doors("host=127.0.0.1 port=1 dbname=none", desk.doors.slack, "the tests")
    desk.now += timedelta(minutes=5)
    app.mode = "sick"
    desk.rounds(3)
    assert [text.split(":")[0] for text in texts(slack)] == ["production is down"]


def test_an_outage_that_is_over_while_the_ops_database_is_away_is_told_as_over(
    desk: Desk, ops: str, slack: StandIn, app: Application
) -> None:
    desk.doors = Doors(None, desk.doors.slack, "the tests")
    app.mode = "sick"
    desk.rounds(4)
    app.mode = "well"
    desk.rounds(12)
    assert [text.split(":")[0].split(" after ")[0] for text in texts(slack)] == [
        "production is down",
        "production is well again",
    ]
    assert samples(ops) == []


def test_an_ops_database_that_never_answers_is_away_too(
    desk: Desk, slack: StandIn, app: Application, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rounds, "DATABASE_SECONDS", 0.2)
    app.mode = "sick"
    with socket.create_server(("127.0.0.1", 0)) as silent:
        desk.doors = Doors(f"host=127.0.0.1 port={silent.getsockname()[1]} dbname=x", desk.doors.slack, "the tests")
        desk.rounds(3)
    assert [text.split(":")[0] for text in texts(slack)] == ["production is down"]


def test_an_ops_database_that_hangs_for_long_keeps_nobody_from_being_told(
    desk: Desk, slack: StandIn, app: Application, monkeypatch: pytest.MonkeyPatch
) -> None:
    released, answered = threading.Event(), list[bool]()
    monkeypatch.setattr(rounds, "DATABASE_SECONDS", 0.1)
    monkeypatch.setattr(desk.watch, "_store_and_read", lambda *_: answered.append(released.wait(10)))
    try:
        desk.rounds(5)  # it has four threads
        app.mode = "sick"
        desk.rounds(3)
        assert [text.split(":")[0] for text in texts(slack)] == ["production is down"]
        assert answered == [], "nobody is told before it is back"
    finally:
        released.set()


def test_a_round_that_has_given_the_ops_database_up_leaves_no_statement_behind(
    desk: Desk, ops: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rounds, "DATABASE_SECONDS", 0.3)
    with psycopg.connect(ops) as other, psycopg.connect(ops, autocommit=True) as asked:
        other.execute("LOCK TABLE ops.health_samples")
        desk.rounds(2)
        waiting = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'payme_ops:health_watch'"
        eventually(lambda: asked.execute(waiting).fetchone() == (0,), "its end")
    assert samples(ops) == []
    desk.rounds()
    assert len(samples(ops)) == 1


def test_connections_that_nobody_can_look_up_any_more_are_those_of_before(
    desk: Desk, ops: str, slack: StandIn, app: Application
) -> None:
    desk.rounds()
    desk.doors = Doors(None, None, "the tests", PAGE)
    app.mode = "sick"
    desk.rounds(3)
    assert len(outages(ops)) == 1
    assert len(texts(slack)) == 1


def test_connections_that_are_asked_for_and_never_answered_take_no_more_than_one_thread(
    desk: Desk, ops: str, slack: StandIn, app: Application, monkeypatch: pytest.MonkeyPatch
) -> None:
    desk.rounds()
    known, released = desk.doors, threading.Event()

    def unanswered() -> Doors:
        released.wait(30)
        return known

    monkeypatch.setattr(rounds, "DATABASE_SECONDS", 0.3)
    monkeypatch.setattr(desk.watch, "_doors", unanswered)
    app.mode = "sick"
    try:
        desk.rounds(5)  # it has four threads
        assert len(outages(ops)) == 1
        assert [text.split(":")[0] for text in texts(slack)] == ["production is down"]
        assert len(samples(ops)) == 6
    finally:
        released.set()


def test_incident_is_asked_for_again_until_it_has_taken_the_outage(desk: Desk, ops: str, app: Application) -> None:
    app.mode = "sick"
    assert len(desk.rounds(3)) == 1
    assert desk.rounds(9) == []
    assert len(desk.rounds(2)) == 1, "after five minutes: the event was lost"
    desk.restart()
    app.mode = "well"
    assert len(desk.rounds(10)) == 1, "another process does not know whether it was sent"
    desk.restart()
    assert len(desk.rounds()) == 1, "nor when it is over by now"
    with psycopg.connect(ops, autocommit=True) as connection:
        connection.execute("UPDATE ops.outages SET run = 'incident/x'")
    desk.now += timedelta(minutes=30)
    assert desk.rounds(2) == []


def test_a_slack_that_takes_long_keeps_no_round_waiting(desk: Desk, app: Application, ops: str) -> None:
    class Stuck:
        def chat_postMessage(self, **_: Any) -> Any:
            time.sleep(1.0)
            raise OSError("timed out")

    desk.doors = Doors(ops, Slack(Stuck(), "payme-ops"), "the tests")  # type: ignore[arg-type]
    app.mode = "sick"

    async def three() -> bool:
        for _ in range(3):
            desk.now += INTERVAL
            await desk.watch.round(desk.now)
        sending = desk.watch._sending
        assert sending is not None
        waits = not sending.done()
        await sending
        return waits

    assert desk._runner.run(three())
