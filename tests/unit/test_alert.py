"""The Slack message of an alert: within Slack's limits, escaped and scrubbed whatever the texts are."""

import re
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from payme_ops.foundation.alert import Alert, Severity
from payme_ops.foundation.alert_message import blocks, notification
from sandbox.slack import block_faults

ALERT = Alert(
    key="run_failed:backup_daily",
    occurrence="backup_daily/manual__2026-11-24T02:00:00+00:00",
    severity=Severity.CRITICAL,
    what="backup_daily failed in dump_and_store, try 3",
    why="DatabaseUnavailable: connect to PostgreSQL\nexpected a working connection",
    since=datetime(2026, 11, 23, 23, 0, 13, tzinfo=UTC),
    next="Read the runbook",
    owner="payme-ops on call",
    runbook="http://127.0.0.1:8080/dags/backup_daily",
    link="http://127.0.0.1:8080/dags/backup_daily/runs/manual__2026-11-24T02%3A00%3A00%2B00%3A00",
)

TEXTS = st.text(max_size=50) | st.text(alphabet="&<>`*_\n ", max_size=40).map(lambda text: text * 120)


@st.composite
def alerts(draw: st.DrawFn) -> Alert:
    texts = {name: draw(TEXTS) for name in ("key", "occurrence", "what", "why", "next", "owner", "runbook", "link")}
    urls = draw(st.sampled_from(["", "http://", "https://x/"]))
    texts["link"] = urls + texts["link"]
    return Alert(**texts, severity=draw(st.sampled_from(Severity)), since=ALERT.since)


def mrkdwn(message: list[dict[str, Any]]) -> list[str]:
    """Every text that Slack formats."""
    texts = []
    for block in message:
        for part in [block.get("text"), *block.get("fields", []), *block.get("elements", [])]:
            if part and part["type"] == "mrkdwn":
                texts.append(part["text"])
    return texts


@settings(deadline=None)
@given(alert=alerts(), note=TEXTS)
def test_slack_takes_every_message(alert: Alert, note: str) -> None:
    assert block_faults(blocks(alert, note)) == []


@settings(deadline=None)
@given(alerts())
def test_outside_text_makes_no_link_or_mention(alert: Alert) -> None:
    for text in mrkdwn(blocks(alert)):
        outside = re.sub(r"<https?://[^<>|\s\"]*\|(?:Open the run|Runbook)>", "", text)
        assert "<" not in outside
        assert ">" not in outside
        assert not re.search(r"&(?!amp;|lt;|gt;)", outside), "cut in the middle of an entity"
    assert "<" not in notification(alert)


@settings(deadline=None)
@given(alerts())
def test_an_error_cannot_leave_its_code_block(alert: Alert) -> None:
    code = blocks(alert)[1]["text"]["text"]
    assert code.startswith("```")
    assert code.endswith("```")
    assert "`" not in code[3:-3]


def test_the_message_says_what_why_since_whom_and_where() -> None:
    header, why, facts, to_do, links, context = blocks(ALERT)
    assert header["text"]["text"] == ":red_circle: backup_daily failed in dump_and_store, try 3"
    assert why["text"]["text"].strip("`").startswith("DatabaseUnavailable: connect to PostgreSQL")
    assert [field["text"] for field in facts["fields"]] == [
        "*Since*\n2026-11-24 02:00:13 EAT",
        "*Who to call*\npayme-ops on call",
    ]
    assert to_do["text"]["text"] == "*What to do*\nRead the runbook"
    assert links["text"]["text"] == f"<{ALERT.link}|Open the run> · <{ALERT.runbook}|Runbook>"
    assert ALERT.key in context["elements"][0]["text"]
    assert (
        notification(ALERT)
        == "backup_daily failed in dump_and_store, try 3: DatabaseUnavailable: connect to PostgreSQL"
    )


@pytest.mark.parametrize("link", ["", "javascript:alert(1)", "docs/runbooks/x.md", "http://x/" + "a" * 2000])
def test_what_is_no_link_is_not_shown_as_one(link: str) -> None:
    message = blocks(replace(ALERT, link=link, runbook=link))
    assert [block["type"] for block in message] == ["header", "section", "section", "section", "context"]


def test_the_sign_tells_the_severity() -> None:
    signs = {blocks(replace(ALERT, severity=severity))[0]["text"]["text"].split()[0] for severity in Severity}
    assert signs == {":red_circle:", ":large_orange_circle:", ":large_blue_circle:"}
