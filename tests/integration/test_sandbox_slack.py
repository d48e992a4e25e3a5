"""The Slack stand-in answers as Slack does, keeps what it got, and shows it without running any of it."""

import http.client
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from slack_sdk import WebClient
from slack_sdk.errors import SlackApiError
from slack_sdk.webhook import WebhookClient

from sandbox.http import call
from sandbox.mrkdwn import to_html
from sandbox.postgres import free_port
from sandbox.slack import block_faults
from tests.support.standins import StandIn, slack_stand_in
from tests.support.waiting import eventually

PROJECT = Path(__file__).resolve().parents[2]
MESSAGE: list[dict[str, Any]] = [
    {"type": "header", "text": {"type": "plain_text", "text": ":red_circle: <b>failed</b>"}},
    {"type": "section", "text": {"type": "mrkdwn", "text": "*why* `x` <https://a.example/?a=1&amp;b=2|the run>"}},
    {
        "type": "section",
        "fields": [{"type": "mrkdwn", "text": "_since_\n02:00"}, {"type": "plain_text", "text": "who"}],
    },
    {"type": "divider"},
    {
        "type": "actions",
        "elements": [
            {
                "type": "button",
                "text": {"type": "plain_text", "text": "Open"},
                "url": "https://b.example/",
                "style": "primary",
            },
            {"type": "button", "text": {"type": "plain_text", "text": "Bad"}, "url": "javascript:alert(1)"},
        ],
    },
    {"type": "context", "elements": [{"type": "mrkdwn", "text": "key &lt;1&gt;"}]},
]


@pytest.fixture
def slack(tmp_path: Path) -> Iterator[StandIn]:
    with slack_stand_in(tmp_path) as running:
        yield running


def client(slack: StandIn, bearer: str = "xoxb-test") -> WebClient:
    return WebClient(bearer, base_url=f"{slack.url}/api/", timeout=5)


def post(slack: StandIn, path: str, body: bytes, kind: str, **headers: str) -> tuple[int, Any]:
    host = slack.url.removeprefix("http://")
    connection = http.client.HTTPConnection(host, timeout=5)
    connection.request("POST", path, body, {"Content-Type": kind, **headers})
    answer = connection.getresponse()
    text = answer.read().decode()
    connection.close()
    return answer.status, json.loads(text) if text.startswith("{") else text


def test_a_message_is_taken_and_kept(slack: StandIn) -> None:
    metadata = {"event_type": "alert", "event_payload": {"key": "k"}}
    answer = client(slack).chat_postMessage(channel="#payme-ops", text="hello", blocks=MESSAGE, metadata=metadata)
    assert answer["ok"] is True
    assert answer["message"]["bot_id"].startswith("B")
    [kept] = slack.messages
    assert (kept["channel"], kept["ts"]) == (answer["channel"], answer["ts"])
    assert kept["channel_name"] == "payme-ops"
    assert (kept["text"], kept["blocks"], kept["metadata"]) == ("hello", MESSAGE, metadata)


def test_a_form_is_taken_like_json(slack: StandIn) -> None:
    form = urlencode({"token": "xoxb-test", "channel": "payme-ops", "text": "hi", "blocks": json.dumps(MESSAGE)})
    status, answer = post(slack, "/api/chat.postMessage", form.encode(), "application/x-www-form-urlencoded")
    assert (status, answer["ok"]) == (200, True)
    assert slack.messages[0]["blocks"] == MESSAGE


def test_channel_by_id_or_name_is_one_channel(slack: StandIn) -> None:
    by_name = client(slack).chat_postMessage(channel="payme-ops", text="1")
    by_id = client(slack).chat_postMessage(channel=by_name["channel"], text="2")
    assert by_id["channel"] == by_name["channel"]
    assert {message["channel_name"] for message in slack.messages} == {"payme-ops"}


def test_replies_are_in_their_thread_and_orphans_in_the_channel(slack: StandIn) -> None:
    parent = client(slack).chat_postMessage(channel="payme-ops", text="parent")["ts"]
    reply = client(slack).chat_postMessage(channel="payme-ops", text="reply", thread_ts=parent, reply_broadcast=True)
    orphan = client(slack).chat_postMessage(channel="payme-ops", text="orphan", thread_ts="1.000001")
    assert reply["message"]["thread_ts"] == parent
    assert "thread_ts" not in orphan["message"], "as Slack does when the parent was deleted"


def test_ids_grow_even_within_a_microsecond(slack: StandIn) -> None:
    for number in range(5):
        client(slack).chat_postMessage(channel="payme-ops", text=str(number))
    ids = [message["ts"] for message in slack.messages]
    assert ids == sorted(set(ids))


@pytest.mark.filterwarnings("ignore:The top-level `text` argument is missing")
@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        ({"channel": "", "text": "x"}, "channel_not_found"),
        ({"channel": "c", "text": ""}, "no_text"),
        ({"channel": "c", "text": "x" * 40_001}, "msg_too_long"),
        ({"channel": "c", "text": "x", "blocks": [{"type": "header", "text": "plain"}]}, "invalid_blocks"),
        ({"channel": "c", "text": "x", "metadata": {"event_type": "x"}}, "invalid_metadata_format"),
    ],
)
def test_what_slack_refuses_is_refused(slack: StandIn, arguments: dict[str, Any], code: str) -> None:
    with pytest.raises(SlackApiError) as refused:
        client(slack).chat_postMessage(**arguments)
    assert refused.value.response["error"] == code
    assert refused.value.response.status_code == 200
    assert slack.messages == []


@pytest.mark.parametrize(("bearer", "code"), [("", "not_authed"), ("wrong", "invalid_auth")])
def test_without_a_token(slack: StandIn, bearer: str, code: str) -> None:
    headers = {"Authorization": f"Bearer {bearer}"} if bearer else {}
    _, answer = post(slack, "/api/chat.postMessage", b'{"channel": "c", "text": "x"}', "application/json", **headers)
    assert answer == {"ok": False, "error": code}


def test_other_calls(slack: StandIn) -> None:
    assert client(slack).auth_test()["ok"] is True
    assert post(slack, "/api/chat.delete", b"", "application/json")[1]["error"] == "unknown_method"
    assert post(slack, "/api/chat.postMessage", b"[1]", "application/json")[1]["error"] == "json_not_object"
    assert post(slack, "/api/chat.postMessage", b"{", "application/json")[1]["error"] == "invalid_json"
    assert call("GET", f"{slack.url}/nowhere")[0] == 404


def test_webhook(slack: StandIn) -> None:
    hook = WebhookClient(f"{slack.url}/services/T000/B000/XXX")
    answer = hook.send(text="from a webhook", blocks=MESSAGE)
    assert (answer.status_code, answer.body) == (200, "ok")
    assert hook.send(text="").body == "no_text"
    form = urlencode({"payload": json.dumps({"text": "in a form"})}).encode()
    assert post(slack, "/services/T/B/X", form, "application/x-www-form-urlencoded") == (200, "ok")
    assert post(slack, "/services/T/B/X", b"no", "application/json") == (400, "invalid_payload")
    assert [(message["via"], message["text"]) for message in slack.messages] == [
        ("webhook", "from a webhook"),
        ("webhook", "in a form"),
    ]


def test_it_fails_as_often_as_told(slack: StandIn) -> None:
    slack.fail(503, count=2)
    for status in (503, 503, 200):
        found, _ = call("POST", f"{slack.url}/api/auth.test", {}, token="xoxb-x")
        assert found == status
    slack.fail(429)
    with pytest.raises(SlackApiError) as limited:
        client(slack).chat_postMessage(channel="c", text="x")
    assert limited.value.response.headers["Retry-After"] == "1"
    assert slack.messages == [], "pages answer meanwhile"
    slack.fail(None)
    assert client(slack).auth_test()["ok"] is True


@pytest.mark.parametrize("body", [{}, {"fail": 200}, {"fail": "503"}, {"fail": 503, "count": "2"}, [503]])
def test_a_wrong_control_request_is_refused(slack: StandIn, body: object) -> None:
    status, answer = call("POST", f"{slack.url}/control", body)
    assert status == 400
    assert "expected" in answer["error"]


def test_the_page_shows_blocks_and_threads(slack: StandIn) -> None:
    parent = client(slack).chat_postMessage(channel="payme-ops", text="x", blocks=MESSAGE)["ts"]
    client(slack).chat_postMessage(channel="payme-ops", text="*again*", thread_ts=parent)
    page = slack.get("/")
    assert '<h3><span class="dot red_circle"></span> &lt;b&gt;failed&lt;/b&gt;</h3>' in page
    assert (
        '<strong>why</strong> <code>x</code> <a href="https://a.example/?a=1&amp;b=2" rel="noreferrer">the run</a>'
        in page
    )
    assert "<em>since</em><br>02:00" in page
    assert '<a class="button primary" href="https://b.example/" rel="noreferrer">Open</a>' in page
    assert '<span class="button">Bad</span>' in page
    assert "key &lt;1&gt;" in page
    assert "1 reply" in page
    assert "<strong>again</strong>" in page


HOSTILE = (
    '<script>alert(1)</script>&lt;img src=x onerror=alert(1)&gt;"\'><javascript:alert(1)|x> <https://a/"onclick=1|x>'
)


def test_nothing_hostile_gets_into_the_page(slack: StandIn) -> None:
    blocks: list[dict[str, Any]] = [
        {"type": "header", "text": {"type": "plain_text", "text": HOSTILE}},
        {
            "type": "section",
            "text": {"type": "mrkdwn", "text": HOSTILE},
            "fields": [{"type": "mrkdwn", "text": HOSTILE}],
        },
        {"type": "context", "elements": [{"type": "mrkdwn", "text": f"```{HOSTILE}``` `{HOSTILE}`"}]},
    ]
    client(slack).chat_postMessage(channel=HOSTILE, text=HOSTILE, blocks=blocks)
    client(slack).chat_postMessage(channel="c", text=HOSTILE)
    page = slack.get("/")
    assert "<script" not in page
    assert "<img" not in page
    assert 'href="javascript' not in page
    assert '"onclick' not in page


@settings(deadline=None)
@given(st.text(alphabet="<>&;|*_~`:!@#x \n\"'", max_size=60) | st.text(max_size=40))
def test_mrkdwn_makes_no_tag_but_its_own(text: str) -> None:
    html = to_html(text)
    for tag in ("strong", "em", "del", "code", "pre", "blockquote", "br", "a", "span"):
        html = html.replace(f"<{tag}>", "").replace(f"</{tag}>", "")
    html = html.replace('<span class="mention">', "")
    assert "<" not in html.replace('<a href="', "")


@pytest.mark.parametrize(
    ("block", "fault"),
    [
        ({"type": "section"}, "missing required field"),
        ({"type": "section", "text": {"type": "mrkdwn", "text": "x" * 3001}}, "less than 3001"),
        ({"type": "section", "fields": [{"type": "mrkdwn", "text": "x"}] * 11}, "no more than 10"),
        ({"type": "section", "fields": [{"type": "mrkdwn", "text": "x" * 2001}]}, "less than 2001"),
        ({"type": "section", "text": {"type": "mrkdwn", "text": ""}}, "more than 0"),
        ({"type": "header", "text": {"type": "mrkdwn", "text": "x"}}, "plain_text"),
        ({"type": "header", "text": {"type": "plain_text", "text": "x" * 151}}, "less than 151"),
        ({"type": "context", "elements": []}, "1 to 10"),
        ({"type": "actions", "elements": [{"type": "datepicker"}]}, "buttons only"),
        ({"type": "video"}, "unsupported type"),
        ("text", "unsupported type"),
    ],
)
def test_block_kit_limits(block: object, fault: str) -> None:
    assert fault in block_faults([block])[0]


def test_it_keeps_what_it_got_over_a_kill(tmp_path: Path) -> None:
    state, port = tmp_path / "deep" / "slack.jsonl", free_port()

    def start() -> subprocess.Popen[bytes]:
        process = subprocess.Popen(
            [sys.executable, "-m", "sandbox.slack", "--port", str(port), "--state", str(state)],
            cwd=PROJECT,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        eventually(lambda: answers(port), "the stand-in to answer")
        return process

    process = start()
    WebClient("xoxb-test", base_url=f"http://127.0.0.1:{port}/api/").chat_postMessage(channel="c", text="kept")
    process.kill()
    process.wait()
    with state.open("a") as file:
        file.write('{"ts": "17')  # a writer that was killed in the middle of a line
    process = start()
    try:
        assert [message["text"] for message in call("GET", f"http://127.0.0.1:{port}/messages.json")[1]] == ["kept"]
    finally:
        process.terminate()
        assert process.wait(10) == 0


def answers(port: int) -> bool:
    try:
        return call("GET", f"http://127.0.0.1:{port}/messages.json")[0] == 200
    except OSError:
        return False


def test_a_taken_port_is_told(slack: StandIn, tmp_path: Path) -> None:
    port = slack.url.rpartition(":")[2]
    run = subprocess.run(
        [sys.executable, "-m", "sandbox.slack", "--port", port, "--state", str(tmp_path / "s")],
        cwd=PROJECT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 1
    assert f"port {port} cannot be used" in run.stderr


# -- reading ----------------------------------------------------------------------------------------------------


def told(slack: StandIn, text: str, **more: Any) -> str:
    metadata = {"event_type": "told", "event_payload": {"text": text}}
    answer = client(slack).chat_postMessage(channel="payme-ops", text=text, metadata=metadata, **more)
    return str(answer["ts"])


def texts(answer: Any) -> list[str]:
    return [message["text"] for message in answer["messages"]]


def channel_id(slack: StandIn) -> str:
    return str(slack.messages[0]["channel"])


def test_a_channel_is_read_newest_first_page_by_page_without_replies(slack: StandIn) -> None:
    first = told(slack, "1")
    for number in range(2, 6):
        told(slack, str(number))
    told(slack, "reply", thread_ts=first)
    told(slack, "shown reply", thread_ts=first, reply_broadcast=True)
    where: dict[str, Any] = {"channel": channel_id(slack), "limit": 4}
    page = client(slack).conversations_history(**where)
    assert texts(page) == ["shown reply", "5", "4", "3"]
    assert page["has_more"]
    rest = client(slack).conversations_history(**where, cursor=page["response_metadata"]["next_cursor"])
    assert texts(rest) == ["2", "1"]
    assert (rest["has_more"], rest["response_metadata"]["next_cursor"]) == (False, "")
    since = client(slack).conversations_history(channel=channel_id(slack), oldest=slack.messages[2]["ts"])
    assert texts(since) == ["shown reply", "5", "4"]


def test_a_thread_is_read_oldest_first_with_its_first_message_in_any_case(slack: StandIn) -> None:
    first = told(slack, "first")
    told(slack, "another")
    replies = [told(slack, f"reply {number}", thread_ts=first) for number in range(3)]
    where: dict[str, Any] = {"channel": channel_id(slack), "ts": first}
    assert texts(client(slack).conversations_replies(**where)) == ["first", "reply 0", "reply 1", "reply 2"]
    assert texts(client(slack).conversations_replies(**where, oldest=replies[1])) == ["first", "reply 2"]


def test_metadata_is_shown_to_who_asks_for_it(slack: StandIn) -> None:
    told(slack, "it")
    [plain] = client(slack).conversations_history(channel=channel_id(slack))["messages"]
    [full] = client(slack).conversations_history(channel=channel_id(slack), include_all_metadata=True)["messages"]
    assert "metadata" not in plain
    assert full["metadata"] == {"event_type": "told", "event_payload": {"text": "it"}}


@pytest.mark.parametrize(
    ("method", "more", "error"),
    [
        ("conversations_history", {"channel": "payme-ops"}, "channel_not_found"),
        ("conversations_history", {"channel": "C0NOTTHERE1"}, "channel_not_found"),
        ("conversations_history", {"limit": 1000}, "invalid_limit"),
        ("conversations_history", {"cursor": "no cursor"}, "invalid_cursor"),
        ("conversations_replies", {"ts": "1700000000.000001"}, "thread_not_found"),
    ],
)
def test_it_refuses_to_read_as_slack_does(slack: StandIn, method: str, more: dict[str, Any], error: str) -> None:
    told(slack, "it")
    with pytest.raises(SlackApiError) as raised:
        getattr(client(slack), method)(**{"channel": channel_id(slack), **more})
    assert raised.value.response["error"] == error
