"""What a silence does to the messages in Slack, and that nothing of it is lost."""

from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import psycopg
import pytest

from payme_ops.cli import watchdog as command
from payme_ops.foundation import alert, silences
from payme_ops.foundation.alert import Alert, Outcome, Severity, raise_alert
from payme_ops.foundation.clock import utc_now
from payme_ops.foundation.errors import AlreadyExists, NotFound, SettingsError, Unavailable
from payme_ops.monitoring import watchdog
from tests.support.standins import StandIn, sentry_stand_in

REASON = "new disks in staging"
ALERT = Alert(
    key="health:staging",
    occurrence="outage/7",
    severity=Severity.CRITICAL,
    what="staging is down",
    why="no answer",
    since=utc_now(),
    next="Read the runbook",
    owner="payme-ops on call",
    runbook="",
    link="",
)
OVER = replace(ALERT, occurrence="outage/7/over", severity=Severity.INFO, what="staging is back")


def begin(ops: str, slack: StandIn | None, key: str = "health:*", minutes: int = 60) -> silences.Silence:
    until = utc_now() + timedelta(minutes=minutes)
    return silences.silence(ops, key, REASON, "wanjiru", until, slack.client() if slack else None)


def time_is_over(ops: str) -> None:
    with psycopg.connect(ops) as connection:
        connection.execute("UPDATE ops.alerts SET raised_at = raised_at - interval '2 hours'")
        connection.execute(
            "UPDATE ops.alert_silences SET began_at = began_at - interval '2 hours', until = now() - interval '1 s'"
        )


def shown(message: dict[str, Any]) -> bool:
    """In the channel, and not only in a thread."""
    return "thread_ts" not in message or message["reply_broadcast"]


def test_it_is_told_and_what_it_covers_goes_into_its_thread_unseen(ops: str, slack: StandIn) -> None:
    begun = begin(ops, slack)
    assert silences.active(ops) == [begun]
    assert (begun.key, begun.reason, begun.by) == ("health:*", REASON, "wanjiru")
    assert raise_alert(ops, ALERT, slack.client()) is Outcome.SENT
    raise_alert(ops, replace(ALERT, key="silent:scheduler"), slack.client())
    first, covered, other = slack.messages
    assert "Silenced until" in first["text"]
    assert covered["thread_ts"] == first["ts"]
    assert [shown(message) for message in (first, covered, other)] == [True, False, True]
    hushed = [str(message["blocks"][-1]).count("Silenced: not shown") for message in (first, covered, other)]
    assert hushed == [0, 1, 0]


def test_what_comes_before_a_silence_was_told_is_not_shown_either(ops: str, slack: StandIn) -> None:
    begin(ops, None)  # by a shell, which has no token of Slack's
    raise_alert(ops, ALERT, slack.client())
    first, covered = slack.messages
    assert "Silenced until" in first["text"]
    assert covered["thread_ts"] == first["ts"]
    assert not shown(covered)


def test_a_key_with_a_thread_stays_in_it_however_long_it_was_quiet(ops: str, slack: StandIn) -> None:
    raise_alert(ops, ALERT, slack.client())
    with psycopg.connect(ops) as connection:
        connection.execute("UPDATE ops.alert_threads SET last_sent_at = last_sent_at - interval '2 hours'")
    begin(ops, slack)
    raise_alert(ops, OVER, slack.client())
    first, _, covered = slack.messages
    assert covered["thread_ts"] == first["ts"]
    assert not shown(covered)


def test_what_comes_after_it_is_shown_again(ops: str, slack: StandIn) -> None:
    """Replies that nobody saw do not make a thread a busy one."""
    begin(ops, slack)
    raise_alert(ops, ALERT, slack.client())
    silences.end(ops, "health:*", "otieno", slack.client())
    raise_alert(ops, replace(ALERT, occurrence="outage/8"), slack.client())
    assert shown(slack.messages[-1])
    assert slack.messages[-1]["thread_ts"] == slack.messages[0]["ts"]


def test_its_end_says_what_happened_and_what_is_still_on(ops: str, slack: StandIn) -> None:
    raise_alert(ops, replace(ALERT, key="health:edge", what="edge is slow", severity=Severity.WARNING), slack.client())
    with psycopg.connect(ops) as connection:
        connection.execute("UPDATE ops.alerts SET raised_at = raised_at - interval '3 hours'")
    begin(ops, slack)
    raise_alert(ops, ALERT, slack.client())
    raise_alert(ops, OVER, slack.client())
    raise_alert(ops, replace(ALERT, key="health:production", what="production is down"), slack.client())
    time_is_over(ops)
    assert watchdog.resend(ops, slack.client())[0].silent is False
    end = slack.messages[-1]
    why = end["blocks"][1]["text"]["text"]
    assert end["thread_ts"] == slack.messages[1]["ts"]
    assert shown(end)
    assert end["metadata"]["event_payload"]["severity"] == "critical"
    assert "Its time is over" in why
    assert "3 alerts came meanwhile; 2 still on." in why
    assert "STILL ON: production is down" in why
    assert "STILL ON: edge is slow" in why
    assert "over: staging is down (health:staging)" in why
    assert silences.active(ops) == []
    watchdog.resend(ops, slack.client())
    assert slack.messages[-1] == end, "told once"
    assert {one.key for one in alert.open_alerts(ops)} == {"health:edge", "health:production"}


def test_an_end_that_is_told_late_counts_what_came_until_then(ops: str, slack: StandIn) -> None:
    begin(ops, slack)
    raise_alert(ops, ALERT, slack.client())
    time_is_over(ops)
    raise_alert(ops, OVER, slack.client())
    raise_alert(ops, replace(ALERT, key="health:production"), slack.client())
    assert [shown(message) for message in slack.messages] == [True, False, True, True]
    silences.tell_ended(ops, slack.client())
    assert "1 alert came meanwhile; 1 still on." in slack.messages[-1]["blocks"][1]["text"]["text"]


def test_ended_by_hand_with_nothing_to_say(ops: str, slack: StandIn) -> None:
    begin(ops, slack, "health:staging")
    silences.end(ops, "health:staging", "otieno", slack.client())
    end = slack.messages[-1]
    assert "Ended by otieno" in end["blocks"][1]["text"]["text"]
    assert "No alerts came meanwhile; nothing of it is on." in end["blocks"][1]["text"]["text"]
    with pytest.raises(NotFound, match="no silence of health:staging; found none at all"):
        silences.end(ops, "health:staging", "otieno", slack.client())


def test_slack_down_at_both_ends_both_are_told_later(ops: str, slack: StandIn) -> None:
    slack.fail(429)
    begin(ops, slack)
    silences.end(ops, "health:*", "otieno", slack.client())
    slack.fail(None)
    assert alert.send_pending(ops, slack.client()) == 2
    begun, ended = slack.messages
    assert ended["thread_ts"] == begun["ts"]


def test_one_silence_of_a_key_at_a_time_and_a_new_one_when_it_is_over(ops: str) -> None:
    begin(ops, None)
    with pytest.raises(AlreadyExists, match=r"health:\* is silenced already"):
        begin(ops, None)
    time_is_over(ops)
    assert begin(ops, None).thread != "silence:1"


def test_what_is_refused_is_not_written(ops: str) -> None:
    with pytest.raises(SettingsError):
        begin(ops, None, "silent:*")
    with pytest.raises(SettingsError):
        begin(ops, None, minutes=241)
    with psycopg.connect(ops) as connection:
        counts = "SELECT (SELECT count(*) FROM ops.alert_silences), (SELECT count(*) FROM ops.alerts)"
        assert connection.execute(counts).fetchone() == (0, 0)


def test_a_row_that_nobody_checked_does_not_keep_backups_quiet(ops: str, slack: StandIn) -> None:
    with psycopg.connect(ops) as connection:
        connection.execute(
            "INSERT INTO ops.alert_silences (key, reason, by, began_at, until)"
            " VALUES ('*', 'written by hand', 'x', now(), now() + interval '1 hour')"
        )
    raise_alert(ops, replace(ALERT, key="silent:daily_age"), slack.client())
    raise_alert(ops, replace(ALERT, key="silent:daily_age", occurrence="2"), slack.client())
    with psycopg.connect(ops) as connection:
        quiet = connection.execute("SELECT last_sent_at < now() - interval '1 day' FROM ops.alert_threads").fetchone()
    assert quiet == (False,)


def test_secrets_in_a_reason_reach_neither_slack_nor_the_database(ops: str, slack: StandIn) -> None:
    until = utc_now() + timedelta(minutes=5)
    silences.silence(ops, "health:*", "because password=hunter2", "wanjiru", until, slack.client())
    with psycopg.connect(ops) as connection:
        told = str(connection.execute("SELECT s, a FROM ops.alert_silences s, ops.alerts a").fetchall())
    assert "hunter2" not in told + str(slack.messages)


def test_what_slack_does_not_take_the_watchdog_tells_sentry_once_each(ops: str, slack: StandIn, tmp_path: Path) -> None:
    with sentry_stand_in(tmp_path) as sentry:
        (tmp_path / "dsn").write_text(sentry.url.replace("://", "://abc@") + "/1\n")
        hears = command.sentry_hears(tmp_path / "dsn", "sandbox")
        raise_alert(ops, ALERT, None)
        raise_alert(ops, replace(ALERT, key="silent:scheduler"), None)
        slack.fail(503)
        sentry.fail(503)  # it is not told for what it does not take
        with pytest.raises(Unavailable, match=r"2 alert\(s\) wait"):
            watchdog.resend(ops, slack.client(), hears)
        sentry.fail(None)
        for _ in range(2):
            with pytest.raises(Unavailable, match=r"2 alert\(s\) wait"):
                watchdog.resend(ops, slack.client(), hears)
        assert sorted(event["tags"]["alert"] for event in sentry.events) == [ALERT.key, "silent:scheduler"]
        slack.fail(None)
        watchdog.resend(ops, slack.client(), hears)
        assert len(slack.messages) == len(sentry.events) == 2
