"""The Sentry stand-in takes what the SDK sends, groups it as Sentry does, and shows it without running any of it."""

import gzip
import http.client
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import sentry_sdk
from sentry_sdk.utils import event_from_exception

from sandbox.sentry import parse_envelope
from sandbox.sentry_api import issue_of
from tests.support.standins import StandIn, sentry_stand_in

AUTH = {"X-Sentry-Auth": "Sentry sentry_version=7, sentry_key=abc, sentry_client=test/1"}
EVENT_ID = "0123456789abcdef0123456789abcdef"


@pytest.fixture
def sentry(tmp_path: Path) -> Iterator[StandIn]:
    with sentry_stand_in(tmp_path) as running:
        yield running


@pytest.fixture
def sdk(sentry: StandIn) -> Iterator[sentry_sdk.Client]:
    """A client of the SDK that is not the process's own."""
    host = sentry.url.removeprefix("http://")
    client = sentry_sdk.Client(dsn=f"http://abc@{host}/1", environment="test", default_integrations=False)
    yield client
    client.close(timeout=2)


def send(sentry: StandIn, body: bytes, path: str = "/api/1/envelope/", headers: dict[str, str] | None = None) -> Any:
    connection = http.client.HTTPConnection(sentry.url.removeprefix("http://"), timeout=5)
    connection.request("POST", path, body, AUTH if headers is None else headers)
    answer = connection.getresponse()
    text = answer.read()
    connection.close()
    return answer.status, json.loads(text)


def capture(sdk: sentry_sdk.Client, error: Exception, **tags: str) -> None:
    try:
        raise error
    except Exception as raised:
        event, hint = event_from_exception(raised, sdk.options)
    sdk.capture_event({**event, "tags": tags}, hint)


def test_it_takes_what_the_sdk_sends(sentry: StandIn, sdk: sentry_sdk.Client) -> None:
    capture(sdk, ConnectionError("refused"), dag_id="backup_daily")
    sdk.flush(timeout=5)
    [event] = sentry.events
    assert event["exception"]["values"][0]["type"] == "ConnectionError"
    assert event["tags"] == {"dag_id": "backup_daily"}
    assert event["environment"] == "test"


def test_envelope_with_many_items() -> None:
    attachment = b"\x00\xff\n{}"
    body = b"\n".join(
        [
            json.dumps({"event_id": EVENT_ID}).encode(),
            b'{"type": "event"}',
            json.dumps({"event_id": EVENT_ID, "message": "x"}).encode(),
            b'{"type": "attachment", "length": %d}' % len(attachment),
            attachment,
            b'{"type": "check_in", "length": 13}',
            b'{"status":"1"}'[:13],
            b"",
        ]
    ).replace(b'{"status":"1"', b'{"status": 1}')
    header, items = parse_envelope(body)
    assert header == {"event_id": EVENT_ID}
    assert items == [
        ("event", {"event_id": EVENT_ID, "message": "x"}),
        ("attachment", {"attachment_bytes": 5}),
        ("check_in", {"status": 1}),
    ]


@pytest.mark.parametrize("body", [b"", b"no", b"[1]", b'{}\n{"type":"event","length":99}\n{}', b"{}\n[]\n{}"])
def test_what_is_no_envelope_is_refused(sentry: StandIn, body: bytes) -> None:
    status, answer = send(sentry, body)
    assert status == 400
    assert answer["detail"] == "invalid event envelope"
    assert sentry.events == []


def test_gzip_and_what_only_claims_to_be(sentry: StandIn) -> None:
    body = b'{}\n{"type":"event"}\n{"event_id":"%s","message":"x"}' % EVENT_ID.encode()
    assert send(sentry, gzip.compress(body), headers={**AUTH, "Content-Encoding": "gzip"})[0] == 200
    assert send(sentry, body, headers={**AUTH, "Content-Encoding": "gzip"})[0] == 400
    assert send(sentry, body, headers={**AUTH, "Content-Encoding": "br"})[0] == 415
    assert len(sentry.events) == 1


def test_without_a_key(sentry: StandIn) -> None:
    assert send(sentry, b"{}", headers={})[0] == 403
    assert send(sentry, b"{}", path="/api/1/envelope/?sentry_key=abc", headers={})[0] == 200


def test_store_and_answer(sentry: StandIn) -> None:
    event = {"event_id": EVENT_ID, "message": "by the old way"}
    assert send(sentry, json.dumps(event).encode(), path="/api/1/store/") == (200, {"id": EVENT_ID})
    assert sentry.events == [event]


def test_it_fails_when_told(sentry: StandIn) -> None:
    sentry.fail(429, count=1)
    assert send(sentry, b"{}")[0] == 429
    assert send(sentry, b"{}")[0] == 200


def test_events_of_one_fingerprint_are_one_issue() -> None:
    first = {"fingerprint": ["failed run", "a"], "message": "try 1"}
    assert issue_of(first) == issue_of({**first, "message": "try 2"})
    assert issue_of(first) != issue_of({**first, "fingerprint": ["failed run", "b"]})
    error = {"exception": {"values": [{"type": "ValueError", "value": "a"}]}}
    assert issue_of(error) == issue_of({"exception": {"values": [{"type": "ValueError", "value": "b"}]}})
    assert issue_of(error) != issue_of({"exception": {"values": [{"type": "KeyError", "value": "a"}]}})


def test_the_pages(sentry: StandIn, sdk: sentry_sdk.Client) -> None:
    for _ in range(2):
        capture(sdk, ConnectionError("refused"), dag_id="backup_daily", task_id="dump")
    sdk.flush(timeout=5)
    issues = sentry.get("/")
    assert "<b>ConnectionError</b>" in issues
    assert "<td>2</td>" in issues
    page = sentry.get(f"/events/{sentry.events[0]['event_id']}")
    assert "<i>task_id</i>dump" in page
    assert "test_sandbox_sentry.py in <b>capture</b>" in page


def test_monitors_are_shown_with_their_check_ins(sentry: StandIn, sdk: sentry_sdk.Client) -> None:
    config = {"schedule": {"type": "crontab", "value": "0 2 * * *"}, "timezone": "Africa/Nairobi"}
    for number, status in ((1, "in_progress"), (1, "ok"), (2, "in_progress"), (2, "error"), (3, "in_progress")):
        check_in = {"monitor_slug": "backup_daily", "check_in_id": f"{number:032}", "status": status}
        sdk.capture_event({"type": "check_in", **check_in, "monitor_config": config})  # type: ignore[typeddict-item]
    sdk.flush(timeout=5)
    page = sentry.get("/")
    assert "<td><b>backup_daily</b></td><td>0 2 * * * Africa/Nairobi</td>" in page
    assert re.findall(r'title="(\w+)"', page) == ["ok", "error", "in_progress"]
    assert "check_in" not in page.split("Other envelope items")[1]


def test_check_in_by_address(sentry: StandIn) -> None:
    assert send(sentry, b"", path="/api/1/cron/watchdog/abc/?status=ok", headers={})[0] == 202
    assert "<b>watchdog</b>" in sentry.get("/")
    assert send(sentry, b"", path="/api/1/cron/watchdog/abc/?status=fine", headers={})[0] == 400
    assert send(sentry, b"", path="/api/1/cron/Bad Slug/abc/".replace(" ", "%20"), headers={})[0] == 404


def test_nothing_hostile_gets_into_the_pages(sentry: StandIn) -> None:
    bad = "<script>alert(1)</script>\"'"
    frame = {"filename": bad, "function": bad, "lineno": bad, "context_line": bad, "vars": {bad: bad}, "module": bad}
    event = {
        "event_id": EVENT_ID,
        "level": bad,
        "timestamp": bad,
        "environment": bad,
        "tags": {bad: bad, "dag_id": bad},
        "exception": {"values": [{"type": bad, "value": bad, "stacktrace": {"frames": [frame]}}]},
        "breadcrumbs": {"values": [{"category": bad, "message": bad, "data": {bad: bad}, "timestamp": bad}]},
        "extra": {bad: bad},
        "contexts": {bad: {bad: bad}},
    }
    body = b'{}\n{"type":"event"}\n' + json.dumps(event).encode() + b'\n{"type":"<script>"}\n{}'
    assert send(sentry, body)[0] == 200
    config = {"schedule": {"value": bad}, "timezone": bad}
    for check_in in (
        {"monitor_slug": bad, "status": bad, "monitor_config": config},
        {"monitor_config": {"schedule": bad}},
        {"monitor_config": bad},
        [bad],
    ):
        body = b'{}\n{"type":"check_in"}\n' + json.dumps(check_in).encode()
        assert send(sentry, body)[0] == 200
    for path in ("/", f"/events/{EVENT_ID}"):
        assert "<script" not in sentry.get(path)
