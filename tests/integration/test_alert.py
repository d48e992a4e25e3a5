"""Alerts on a real PostgreSQL and over HTTP: written first, sent once, one thread per key, and never in the way."""

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import psycopg
import pytest
from psycopg.rows import dict_row
from slack_sdk.errors import SlackApiError
from slack_sdk.web import SlackResponse

from payme_ops.foundation.alert import Alert, Outcome, Severity, raise_alert, send_pending
from payme_ops.foundation.slack import Slack
from sandbox import postgres
from tests.support.standins import CHANNEL, StandIn
from tests.support.waiting import eventually

ALERT = Alert(
    key="run_failed:backup_daily",
    occurrence="backup_daily/run-1",
    severity=Severity.CRITICAL,
    what="backup_daily failed in dump_and_store, try 3",
    why="DatabaseUnavailable: connect to PostgreSQL",
    since=datetime(2026, 11, 23, 23, 0, 13, tzinfo=UTC),
    next="Read the runbook",
    owner="payme-ops on call",
    runbook="http://127.0.0.1:8080/dags/backup_daily",
    link="http://127.0.0.1:8080/dags/backup_daily/runs/run-1",
)


@pytest.fixture
def nowhere() -> str:
    """Conninfo of a database that does not answer."""
    return f"host=127.0.0.1 port={postgres.free_port()} dbname=payme_ops user=payme_ops"


def rows(ops: str) -> list[dict[str, Any]]:
    with psycopg.connect(ops, row_factory=dict_row) as connection:
        return connection.execute("SELECT * FROM ops.alerts ORDER BY id").fetchall()


def occurrence(number: int, key: str = ALERT.key) -> Alert:
    return replace(ALERT, key=key, occurrence=f"{key}/run-{number}", why=f"error {number}")


def shown(message: dict[str, Any]) -> str:
    return str(message["blocks"][1]["text"]["text"]).strip("`")


def test_written_and_sent(ops: str, slack: StandIn) -> None:
    assert raise_alert(ops, ALERT, slack.client()) is Outcome.SENT
    [row] = rows(ops)
    [message] = slack.messages
    assert row["sent_at"] is not None
    assert row["slack_ts"] == message["ts"]
    assert row["attempts"] == 1
    assert message["channel_name"] == CHANNEL
    assert message["metadata"]["event_payload"] == {
        "key": ALERT.key,
        "occurrence": ALERT.occurrence,
        "severity": "critical",
    }


def test_one_occurrence_is_told_once(ops: str, slack: StandIn) -> None:
    assert raise_alert(ops, ALERT, slack.client()) is Outcome.SENT
    assert raise_alert(ops, replace(ALERT, why="task_failure"), slack.client()) is Outcome.SENT
    assert len(slack.messages) == 1
    assert rows(ops)[0]["why"] == ALERT.why


def test_many_at_once_send_one_message_and_capture_one_event(ops: str, slack: StandIn) -> None:
    captured: list[str] = []
    start = threading.Barrier(8)

    def capture(_alert: Alert) -> str:
        captured.append("e" * 32)
        return "e" * 32

    def race(_number: int) -> Outcome:
        start.wait()
        return raise_alert(ops, ALERT, slack.client(), capture)

    with ThreadPoolExecutor(8) as pool:
        assert set(pool.map(race, range(8))) == {Outcome.SENT}
    assert len(slack.messages) == 1
    assert len(captured) == 1
    assert rows(ops)[0]["sentry_event_id"] == "e" * 32


def test_two_runs_that_fail_at_once_share_one_thread(ops: str, slack: StandIn) -> None:
    start = threading.Barrier(6)

    def race(number: int) -> Outcome:
        start.wait()
        return raise_alert(ops, occurrence(number), slack.client())

    with ThreadPoolExecutor(6) as pool:
        assert set(pool.map(race, range(6))) == {Outcome.SENT}
    parents = [message for message in slack.messages if "thread_ts" not in message]
    assert len(parents) == 1
    assert {message.get("thread_ts") for message in slack.messages} == {None, parents[0]["ts"]}
    assert len(slack.messages) == 6


def test_one_key_is_one_thread_and_another_key_another(ops: str, slack: StandIn) -> None:
    for number in range(2):
        raise_alert(ops, occurrence(number), slack.client())
        raise_alert(ops, occurrence(number, key="run_failed:backup_weekly"), slack.client())
    first, other, reply, other_reply = slack.messages
    assert (reply["thread_ts"], other_reply["thread_ts"]) == (first["ts"], other["ts"])


def test_a_reply_is_shown_in_the_channel_only_after_a_quiet_hour(ops: str, slack: StandIn) -> None:
    raise_alert(ops, occurrence(1), slack.client())
    raise_alert(ops, occurrence(2), slack.client())
    with psycopg.connect(ops) as connection:
        connection.execute("UPDATE ops.alert_threads SET last_sent_at = last_sent_at - interval '61 minutes'")
    raise_alert(ops, occurrence(3), slack.client())
    assert [message.get("reply_broadcast") for message in slack.messages] == [None, False, True]


def test_a_deleted_first_message_begins_a_new_thread(ops: str, slack: StandIn) -> None:
    with psycopg.connect(ops) as connection:
        connection.execute(
            "INSERT INTO ops.alert_threads VALUES (%s, %s, '1700000000.000001', now())", [ALERT.key, CHANNEL]
        )
    for number in range(2):
        raise_alert(ops, occurrence(number), slack.client())
    orphan, reply = slack.messages
    assert "thread_ts" not in orphan
    assert reply["thread_ts"] == orphan["ts"]


@pytest.mark.parametrize("status", [429, 500, 503])
def test_slack_down_leaves_the_row_and_the_caller_alone(ops: str, slack: StandIn, status: int) -> None:
    slack.fail(status)
    assert raise_alert(ops, occurrence(1), slack.client()) is Outcome.WAITING
    [row] = rows(ops)
    assert row["sent_at"] is None
    assert (row["attempts"], row["last_error"]) == (1, f"status {status}, internal_error")
    assert send_pending(ops, slack.client()) == 0

    slack.fail(None)
    assert send_pending(ops, slack.client()) == 1
    assert send_pending(ops, slack.client()) == 0
    assert [shown(message) for message in slack.messages] == ["error 1"]
    assert rows(ops)[0]["last_error"] == ""


def test_slack_that_nobody_answers_for(ops: str) -> None:
    gone = Slack(client=_client(postgres.free_port()), channel=CHANNEL)
    assert raise_alert(ops, ALERT, gone) is Outcome.WAITING
    assert "Connection refused" in rows(ops)[0]["last_error"]


def test_slack_that_refuses_our_token(ops: str, slack: StandIn) -> None:
    refused = Slack(client=_client(int(slack.url.rpartition(":")[2]), bearer="wrong"), channel=CHANNEL)
    assert raise_alert(ops, ALERT, refused) is Outcome.WAITING
    assert rows(ops)[0]["last_error"] == "status 200, invalid_auth"


def test_what_waited_goes_out_first_and_begins_the_thread(ops: str, slack: StandIn) -> None:
    slack.fail(503, count=2)
    for number in range(3):
        raise_alert(ops, occurrence(number), slack.client())
    assert [shown(message) for message in slack.messages] == ["error 0", "error 1", "error 2"]
    assert [message.get("thread_ts") for message in slack.messages] == [None, *2 * [slack.messages[0]["ts"]]]


def test_the_second_who_raises_it_sends_what_the_first_could_not(ops: str, slack: StandIn) -> None:
    slack.fail(503, count=1)
    assert raise_alert(ops, ALERT, slack.client()) is Outcome.WAITING
    assert raise_alert(ops, ALERT, slack.client()) is Outcome.SENT
    assert len(slack.messages) == 1


def test_killed_before_sending_is_sent_by_the_next(ops: str, slack: StandIn, monkeypatch: pytest.MonkeyPatch) -> None:
    def killed(*_: object) -> int:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("payme_ops.foundation.alert._deliver", killed)
        with pytest.raises(KeyboardInterrupt):
            raise_alert(ops, ALERT, slack.client())
    assert slack.messages == []
    assert raise_alert(ops, ALERT, slack.client()) is Outcome.SENT
    assert len(slack.messages) == 1


def test_ops_database_down_still_sends(nowhere: str, slack: StandIn, caplog: pytest.LogCaptureFixture) -> None:
    captured: list[str] = []
    assert raise_alert(nowhere, ALERT, slack.client(), lambda alert: captured.append(alert.what)) is Outcome.UNRECORDED
    [message] = slack.messages
    assert "may come twice" in str(message["blocks"])
    assert captured == [ALERT.what]
    assert "connection" in caplog.text


def test_ops_database_without_tables_still_sends(server: postgres.Cluster, slack: StandIn) -> None:
    assert raise_alert(server.conninfo("postgres"), ALERT, slack.client()) is Outcome.UNRECORDED
    assert len(slack.messages) == 1


def test_ops_database_that_dies_before_sending_is_sent_later(
    ops: str, slack: StandIn, server: postgres.Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    from payme_ops.foundation import alert as module

    deliver = module._deliver

    def cut(session: Any, *rest: Any) -> int:
        with psycopg.connect(server.conninfo(), autocommit=True) as admin:
            admin.execute("SELECT pg_terminate_backend(%s)", [session.connection.info.backend_pid])
        return deliver(session, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(module, "_deliver", cut)
        assert raise_alert(ops, ALERT, slack.client()) is Outcome.WAITING
    assert slack.messages == []
    assert send_pending(ops, slack.client()) == 1


def test_nothing_reachable_is_logged_and_raises_nothing(nowhere: str, caplog: pytest.LogCaptureFixture) -> None:
    gone = Slack(client=_client(postgres.free_port()), channel=CHANNEL)
    assert raise_alert(nowhere, ALERT, gone) is Outcome.LOST
    assert raise_alert(None, ALERT, None) is Outcome.LOST
    assert "is lost" in caplog.text


def test_slack_not_configured_is_written(ops: str) -> None:
    assert raise_alert(ops, ALERT, None) is Outcome.WAITING
    assert rows(ops)[0]["sent_at"] is None


def test_slack_that_no_longer_takes_our_blocks_gets_plain_words(
    ops: str, slack: StandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("payme_ops.foundation.alert_message.blocks", lambda *_: [{"type": "gone"}])
    assert raise_alert(ops, ALERT, slack.client()) is Outcome.SENT
    [message] = slack.messages
    assert "blocks" not in message
    assert message["text"] == f"{ALERT.what}: {ALERT.why}"


@pytest.mark.parametrize(
    ("refusal", "gone"),
    [
        ("msg_blocks_too_long", {"blocks"}),
        ("cannot_reply_to_message", {"thread_ts", "reply_broadcast"}),
    ],
)
def test_what_slack_refuses_for_ever_of_a_message_is_left_out_and_the_rest_goes_on(
    ops: str, slack: StandIn, refusal: str, gone: set[str]
) -> None:
    raise_alert(ops, occurrence(1), slack.client())
    refuses = slack.client()
    post: Callable[..., Any] = refuses.client.chat_postMessage

    def refuse(**arguments: Any) -> Any:
        if gone & set(arguments) and "run-2" in str(arguments):
            raise SlackApiError("no", _refusal(refuses, refusal))  # type: ignore[no-untyped-call]
        return post(**arguments)

    refuses.client.chat_postMessage = refuse  # type: ignore[method-assign]
    assert [raise_alert(ops, occurrence(number), refuses) for number in (2, 3)] == 2 * [Outcome.SENT]
    first, second, third = slack.messages
    assert not gone & set(second)
    # A new thread where the old one takes no replies.
    assert third["thread_ts"] == (second if "thread_ts" in gone else first)["ts"]


def test_a_slow_slack_does_not_let_another_send_the_same(ops: str, slack: StandIn) -> None:
    """The second waits for the first one's lock, then finds nothing to do."""
    asked, go_on = threading.Event(), threading.Event()
    slow = slack.client()
    post: Callable[..., Any] = slow.client.chat_postMessage

    def hold(**arguments: Any) -> Any:
        asked.set()
        assert go_on.wait(10)
        return post(**arguments)

    slow.client.chat_postMessage = hold  # type: ignore[method-assign]
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(raise_alert, ops, ALERT, slow)
        assert asked.wait(10)
        second = pool.submit(raise_alert, ops, ALERT, slack.client())
        with psycopg.connect(ops, autocommit=True) as watch:
            eventually(
                lambda: watch.execute("SELECT count(*) FROM pg_locks WHERE NOT granted").fetchone() == (1,),
                "the second to wait",
            )
        go_on.set()
        assert {first.result(), second.result()} == {Outcome.SENT}
    assert len(slack.messages) == 1


def test_secrets_reach_neither_the_database_nor_slack(ops: str, slack: StandIn) -> None:
    phone, key = "+254 712 345 678", "ab" * 32
    leaky = replace(
        ALERT,
        key=f"run {phone}",
        occurrence=f"run {key}",
        what=f"failed for {phone}",
        why=f"password=hunter2 {phone} {key}",
        next=phone,
        owner=phone,
        link=f"http://x/{key}",
    )
    assert raise_alert(ops, leaky, slack.client()) is Outcome.SENT
    told = str(slack.messages) + str(rows(ops))
    for secret in (phone, key, "hunter2"):
        assert secret not in told


def _refusal(slack: Slack, code: str) -> SlackResponse:
    data = {"ok": False, "error": code}
    return SlackResponse(
        client=slack.client, http_verb="POST", api_url="", req_args={}, data=data, headers={}, status_code=200
    )


def _client(port: int, bearer: str = "xoxb-test") -> Any:
    from slack_sdk import WebClient

    return WebClient(bearer, base_url=f"http://127.0.0.1:{port}/api/", timeout=2, retry_handlers=[])
