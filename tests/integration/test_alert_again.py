"""An alert that may have gone out is looked for in Slack before it is sent again; who has seen one is said once."""

import os
import signal
import socketserver
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import psycopg
import pytest
from slack_sdk import WebClient

from payme_ops.foundation import alert
from payme_ops.foundation.alert import Alert, Outcome, Severity, raise_alert, send_pending
from payme_ops.foundation.errors import NotFound, SettingsError
from payme_ops.foundation.slack import Slack
from sandbox import postgres
from tests.support.standins import CHANNEL, StandIn

ALERT = Alert(
    key="health:production",
    occurrence="outage/7",
    severity=Severity.CRITICAL,
    what="production is down",
    why="no answer",
    since=datetime(2026, 11, 23, 23, 0, 13, tzinfo=UTC),
    next="Read the runbook",
    owner="payme-ops on call",
    runbook="",
    link="",
)
# Sends like anybody, and is killed right before or right after Slack has taken the message, or stands still there.
KILLED = """
import os, signal, sys
from datetime import UTC, datetime
from slack_sdk import WebClient
from payme_ops.foundation import alert
from payme_ops.foundation.slack import Slack

ops, url, channel, key, occurrence, when = sys.argv[1:]
client = WebClient("xoxb-test", base_url=url + "/api/")
post = client.chat_postMessage

def post_and_die(**message):
    if when == "after":
        post(**message)
    os.kill(os.getpid(), signal.SIGSTOP if when == "stopped" else signal.SIGKILL)

client.chat_postMessage = post_and_die
alert._IDLE_TIMEOUT = "1s"
alert.raise_alert(ops, alert.Alert(
    key=key, occurrence=occurrence, severity=alert.Severity.CRITICAL, what="production is down", why="no answer",
    since=datetime.now(UTC), next="look", owner="on call", runbook="", link="",
), Slack(client, channel))
"""


def killed_at_the_post(ops: str, slack: StandIn, channel: str = CHANNEL, when: str = "after") -> None:
    arguments = [ops, slack.url, channel, ALERT.key, ALERT.occurrence, when]
    ended = subprocess.run([sys.executable, "-c", KILLED, *arguments], cwd=postgres.PROJECT / "plugins", check=False)
    assert ended.returncode == -signal.SIGKILL


@contextmanager
def answering(reply: bytes) -> Iterator[Slack]:
    """Slack behind something that answers every call with these bytes and hangs up."""

    class Answers(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            self.request.recv(100_000)
            self.request.sendall(reply)

    with socketserver.TCPServer(("127.0.0.1", 0), Answers) as server:
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_address[1]}/api/"
        yield Slack(WebClient("xoxb-test", base_url=url, timeout=5), CHANNEL)
        server.shutdown()


def saying(body: str, status: str = "200 OK") -> bytes:
    return f"HTTP/1.1 {status}\r\nContent-Length: {len(body)}\r\n\r\n{body}".encode()


def open_keys(ops: str) -> dict[str, str]:
    return {one.key: one.acknowledged_by for one in alert.open_alerts(ops)}


def notes(message: dict[str, Any]) -> list[str]:
    return [element["text"] for element in message["blocks"][-1]["elements"][1:]]


@pytest.mark.parametrize("channel", [CHANNEL, "C0PAYMEOPS9"])
@pytest.mark.parametrize("in_thread", [False, True])
def test_killed_between_the_post_and_the_commit_it_is_there_once(
    ops: str, slack: StandIn, channel: str, in_thread: bool
) -> None:
    client = replace(slack.client(), channel=channel)
    first = replace(ALERT, key=ALERT.key if in_thread else "another", occurrence="outage/6")
    assert raise_alert(ops, first, client) is Outcome.SENT
    killed_at_the_post(ops, slack, channel=channel)
    assert alert.waiting(ops) == [ALERT.key]
    assert send_pending(ops, client) == 1
    assert alert.waiting(ops) == []
    assert [message["metadata"]["event_payload"]["occurrence"] for message in slack.messages] == [
        "outage/6",
        "outage/7",
    ]
    # What is marked is the message that is there: the next goes into its thread.
    assert alert.message(ops, ALERT) == slack.messages[1]["ts"]
    raise_alert(ops, replace(ALERT, occurrence="outage/8"), client)
    assert slack.messages[2]["thread_ts"] == slack.messages[0 if in_thread else 1]["ts"]


def test_killed_right_before_the_post_it_is_sent_and_says_nothing_of_twice(ops: str, slack: StandIn) -> None:
    raise_alert(ops, replace(ALERT, key="another"), slack.client())
    killed_at_the_post(ops, slack, when="before")
    assert send_pending(ops, slack.client()) == 1
    assert [notes(message) for message in slack.messages] == [[], []]


def test_a_message_whose_answer_was_lost_is_found(ops: str, slack: StandIn) -> None:
    raise_alert(ops, replace(ALERT, key="another"), slack.client())
    breaks_off = slack.client()
    post = breaks_off.client.chat_postMessage

    def post_and_break(**message: Any) -> Any:
        post(**message)
        raise ConnectionResetError

    breaks_off.client.chat_postMessage = post_and_break  # type: ignore[method-assign]
    assert raise_alert(ops, ALERT, breaks_off) is Outcome.WAITING
    assert raise_alert(ops, ALERT, slack.client()) is Outcome.SENT
    assert len(slack.messages) == 2


def test_a_sender_whose_host_is_cut_off_holds_its_key_no_longer(
    ops: str, slack: StandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(alert, "_LOCK_TIMEOUT", "10s")
    raise_alert(ops, replace(ALERT, key="another"), slack.client())
    arguments = [ops, slack.url, CHANNEL, ALERT.key, ALERT.occurrence, "stopped"]
    sender = subprocess.Popen([sys.executable, "-c", KILLED, *arguments], cwd=postgres.PROJECT / "plugins")
    try:
        os.waitpid(sender.pid, os.WUNTRACED)  # it has its key, and its session stays
        assert send_pending(ops, slack.client()) == 1
    finally:
        sender.kill()
        sender.wait()
    assert len(slack.messages) == 2


def test_whoever_raises_it_again_finds_it_too(ops: str, slack: StandIn) -> None:
    raise_alert(ops, replace(ALERT, key="another"), slack.client())
    killed_at_the_post(ops, slack)
    assert raise_alert(ops, ALERT, slack.client()) is Outcome.SENT
    assert len(slack.messages) == 2


def test_when_slack_cannot_be_asked_the_second_says_so_in_the_same_thread(ops: str, slack: StandIn) -> None:
    raise_alert(ops, replace(ALERT, occurrence="outage/6"), slack.client())
    killed_at_the_post(ops, slack)
    slack.fail(503, count=1)  # the look; the message is taken
    assert send_pending(ops, slack.client()) == 1
    first, sent, again = slack.messages
    assert sent["thread_ts"] == again["thread_ts"] == first["ts"]
    assert notes(sent) == []
    assert notes(again) == ["Slack could not be asked whether this was sent before: it may be here twice."]


def test_the_first_message_of_all_cannot_be_looked_for_by_a_channel_name(ops: str, slack: StandIn) -> None:
    killed_at_the_post(ops, slack)
    assert send_pending(ops, slack.client()) == 1
    assert [len(notes(message)) for message in slack.messages] == [0, 1]


def test_it_is_looked_for_on_every_page(ops: str, slack: StandIn, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("payme_ops.foundation.slack._PAGE", 2)
    killed_at_the_post(ops, slack, channel="C0PAYMEOPS9")
    client = replace(slack.client(), channel="C0PAYMEOPS9")
    for number in range(5):
        raise_alert(ops, replace(ALERT, key=f"another {number}"), client)
    assert send_pending(ops, client) == 1
    assert len(slack.messages) == 6


def test_too_many_pages_are_not_looked_through(ops: str, slack: StandIn, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("payme_ops.foundation.slack._PAGE", 1)
    killed_at_the_post(ops, slack, channel="C0PAYMEOPS9")
    client = replace(slack.client(), channel="C0PAYMEOPS9")
    for number in range(5):
        raise_alert(ops, replace(ALERT, key=f"another {number}"), client)
    assert send_pending(ops, client) == 1
    assert len(notes(slack.messages[-1])) == 1


@pytest.mark.parametrize(("status", "maybe"), [(429, False), (500, True), (503, True)])
def test_what_slack_refused_is_not_looked_for(ops: str, slack: StandIn, status: int, maybe: bool) -> None:
    slack.fail(status)
    assert raise_alert(ops, ALERT, slack.client()) is Outcome.WAITING
    with psycopg.connect(ops) as connection:
        assert connection.execute("SELECT attempted_at IS NOT NULL FROM ops.alerts").fetchone() == (maybe,)


def test_an_answer_that_is_none_gets_out_nowhere_and_nobody_knows(ops: str) -> None:
    replies = {
        b'HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\n{"ok": true': True,  # broke off
        b"HTTP/1.1 502 Bad Gateway\r\nContent-Length: 99\r\n\r\n<html>": True,
        b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\n\xff": True,
        b"nonsense\r\n\r\n": True,
        saying("[1]"): True,
        saying("<html>password=hunter2</html>"): True,
        saying('{"ok": true, "ts": "17'): True,
        saying('{"ok": false, "error": "internal_error"}'): True,
        saying('{"ok": false, "error": "fatal_error"}'): True,
        saying('{"ok": false, "error": "is_archived"}'): False,
        saying('{"ok": false, "error": "ratelimited"}', "429 Too Many Requests"): False,
    }
    for reply in replies:
        with answering(reply) as broken:
            assert raise_alert(ops, replace(ALERT, key=str(reply)), broken) is Outcome.WAITING
            assert raise_alert(None, ALERT, broken) is Outcome.LOST
    with psycopg.connect(ops) as connection:
        asked = "SELECT attempted_at IS NOT NULL, last_error FROM ops.alerts ORDER BY id"
        found = connection.execute(asked).fetchall()
    assert [row[0] for row in found] == list(replies.values())
    assert "hunter2" not in str(found)


def test_what_may_have_gone_out_stays_so_until_slack_was_asked(ops: str, slack: StandIn) -> None:
    """Slack took it, its answer was lost, and then nobody answered at all."""
    raise_alert(ops, replace(ALERT, key="another"), slack.client())
    killed_at_the_post(ops, slack)
    gone = Slack(WebClient("xoxb-test", base_url=f"http://127.0.0.1:{postgres.free_port()}/api/"), CHANNEL)
    assert send_pending(ops, gone) == 0
    assert send_pending(ops, slack.client()) == 1
    assert len(slack.messages) == 2


def test_a_message_whose_answer_was_lost_is_not_repeated_by_the_client(ops: str) -> None:
    """The SDK sends again what broke off, unless it is told not to."""
    asked: list[bytes] = []

    class BreaksOff(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            asked.append(self.request.recv(100))

    with socketserver.TCPServer(("127.0.0.1", 0), BreaksOff) as broken:
        threading.Thread(target=broken.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        url = f"http://127.0.0.1:{broken.server_address[1]}/api/"
        assert raise_alert(ops, ALERT, Slack(WebClient("xoxb-test", base_url=url), CHANNEL)) is Outcome.WAITING
        broken.shutdown()
    assert len(asked) == 1


# -- who has seen it --------------------------------------------------------------------------------------------


def test_an_acknowledgement_shows_once_in_the_thread_and_says_who_and_why(ops: str, slack: StandIn) -> None:
    raise_alert(ops, ALERT, slack.client())
    assert (
        alert.acknowledge(ops, ALERT.key, "wanjiru", "the <database> is full", slack.client()).acknowledged_by
        == "wanjiru"
    )
    assert alert.acknowledge(ops, ALERT.key, "otieno", "", slack.client()).acknowledged_by == "wanjiru"
    first, seen = slack.messages
    assert seen["thread_ts"] == first["ts"]
    assert not seen["reply_broadcast"]
    assert seen["blocks"][0]["text"]["text"] == "*Seen by wanjiru*: the &lt;database&gt; is full"
    assert open_keys(ops) == {ALERT.key: "wanjiru"}


def test_two_at_once_acknowledge_one_alert_once(ops: str, slack: StandIn) -> None:
    raise_alert(ops, ALERT, slack.client())
    start, seen_by = threading.Barrier(4), []

    def race(who: str) -> None:
        start.wait()
        seen_by.append(alert.acknowledge(ops, ALERT.key, who, "", slack.client()).acknowledged_by)

    people = [threading.Thread(target=race, args=(f"person {number}",)) for number in range(4)]
    for one in people:
        one.start()
    for one in people:
        one.join()
    assert len(set(seen_by)) == 1
    assert len(slack.messages) == 2


def test_what_was_seen_is_open_until_it_is_over_and_open_anew_when_it_comes_again(ops: str) -> None:
    raise_alert(ops, ALERT, None)
    alert.acknowledge(ops, ALERT.key, "wanjiru", "", None)
    assert alert.standing(ops, "health:") == {ALERT.key: "outage/7"}
    raise_alert(ops, replace(ALERT, occurrence="outage/7/over", severity=Severity.INFO), None)
    assert open_keys(ops) == {}
    raise_alert(ops, replace(ALERT, occurrence="outage/8"), None)
    assert open_keys(ops) == {ALERT.key: ""}


def test_what_has_no_end_is_open_until_seen_and_a_warning_for_a_day(ops: str) -> None:
    for key, severity in (("run_failed:x", "critical"), ("run_says:x", "warning"), ("state:x", "warning")):
        raise_alert(ops, replace(ALERT, key=key, severity=Severity(severity)), None)
    assert set(open_keys(ops)) == {"run_failed:x", "run_says:x", "state:x"}
    with psycopg.connect(ops) as session:
        session.execute("UPDATE ops.alerts SET raised_at = raised_at - interval '25 hours'")
    assert set(open_keys(ops)) == {"run_failed:x", "state:x"}
    for key in ("run_failed:x", "state:x"):
        alert.acknowledge(ops, key, "wanjiru", "", None)
    assert open_keys(ops) == {"state:x": "wanjiru"}


def test_what_is_not_open_or_by_nobody_is_not_acknowledged(ops: str) -> None:
    raise_alert(ops, ALERT, None)
    with pytest.raises(NotFound, match="no alert health:staging is open; expected one of: health:production"):
        alert.acknowledge(ops, "health:staging", "wanjiru", "", None)
    with pytest.raises(SettingsError, match="wants a name"):
        alert.acknowledge(ops, ALERT.key, " ", "", None)
    assert open_keys(ops) == {ALERT.key: ""}


def test_written_in_a_transaction_it_is_sent_after_it_or_never_was(ops: str, slack: StandIn) -> None:
    with psycopg.connect(ops) as session:
        assert alert.write(session, ALERT)
        assert alert.deliver(ops, ALERT.key, slack.client()) == 0
        session.rollback()
        assert alert.write(session, replace(ALERT, why="password=hunter2"))
        assert not alert.write(session, ALERT)
    assert alert.deliver(ops, ALERT.key, slack.client()) == 1
    assert "hunter2" not in str(slack.messages)
