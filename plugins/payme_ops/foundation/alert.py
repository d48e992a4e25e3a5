"""Alerts: written to the ops database first, then sent to Slack. One key is one Slack thread.

Once only: an occurrence is one row, and who sends holds the key's lock, sends what has not been sent, and marks it
sent before the lock ends. Whoever comes later, or after a crash, looks at the rows again: an alert goes out at least
once, and twice only if we are killed between Slack's answer and our commit.

Raising an alert never changes the outcome of what failed: no error of Slack or of the ops database gets out.
"""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields
from datetime import datetime, timedelta
from enum import StrEnum
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import psycopg
from psycopg.rows import DictRow, dict_row

from payme_ops.foundation.clock import show
from payme_ops.foundation.errors import PaymeOpsError, Unavailable
from payme_ops.foundation.postgres import connect, speaking
from payme_ops.foundation.scrub import scrub
from payme_ops.foundation.sql import load

if TYPE_CHECKING:
    from slack_sdk import WebClient

_log = logging.getLogger("payme_ops.alert")

# A reply in a thread that was quiet for this long is shown in the channel too, or nobody would see it.
_QUIET = timedelta(hours=1)
# Slack may take 10 s for a message, and a few may wait before ours.
_LOCK_TIMEOUT = "60s"

# Characters. The first five are limits of Slack's Block Kit, or stay below them.
_MAX_HEADER, _MAX_SECTION, _MAX_FIELD, _MAX_CONTEXT, _MAX_URL = 150, 2900, 1900, 2000, 1000
_MAX_NOTIFICATION = 600


class Severity(StrEnum):
    """critical: somebody must act now. warning: today. info: to know."""

    INFO = "info"
    WARNING = "warning"
    CRITICAL = "critical"


_SIGN = {
    Severity.CRITICAL: ":red_circle:",
    Severity.WARNING: ":large_orange_circle:",
    Severity.INFO: ":large_blue_circle:",
}


@dataclass(frozen=True, kw_only=True)
class Alert:
    """What people are told. `why` is the error, in one line or a few; `runbook` and `link` are URLs."""

    key: str
    occurrence: str
    severity: Severity
    what: str
    why: str
    since: datetime
    next: str
    owner: str
    runbook: str
    link: str


@dataclass(frozen=True, kw_only=True)
class OpenAlert:
    """An alert that is not over. `since` and `raised_at` are UTC; `acknowledged_by` is "" while nobody has seen it."""

    key: str
    occurrence: str
    severity: Severity
    what: str
    since: datetime
    raised_at: datetime
    acknowledged_by: str


@dataclass(frozen=True)
class Slack:
    """Where alerts go: a client with its token, and the name or id of a channel."""

    client: "WebClient" = field(repr=False)
    channel: str


class Outcome(StrEnum):
    """What became of an alert."""

    SENT = "sent"
    WAITING = "written, not sent"
    UNRECORDED = "sent, not written"
    LOST = "neither written nor sent"


Session = psycopg.Connection[Any] | psycopg.Cursor[Any]

Capture = Callable[[Alert], str | None]
"""Tells Sentry; answers the event's id, or None when there is none."""


def raise_alert(conninfo: str | None, alert: Alert, slack: Slack | None, capture: Capture | None = None) -> Outcome:
    """Write the alert, send it to Slack and capture it in Sentry, each once for one occurrence, whoever raises it.

    `conninfo` of the ops database and `slack` are None where they could not be found out. If the ops database does
    not take the alert it is sent all the same, by each who raises it.
    """
    alert = _scrubbed(alert)
    written = False
    try:
        with _session(conninfo) as session:
            write(session, alert)
            written = True
            if slack is not None:
                _deliver(session, alert.key, slack)
            if capture is not None:
                _capture_once(session, alert, capture)
            return Outcome.SENT if _state(session, alert)["sent"] else Outcome.WAITING
    except PaymeOpsError as error:
        _log.error("alert %s: %s", alert.key, error)
    return Outcome.WAITING if written else _raise_unrecorded(alert, slack, capture)


def write(session: Session, alert: Alert) -> bool:
    """Write the alert, scrubbed, in the caller's transaction; `deliver` its key after the commit.

    Answers whether it is new: an occurrence is written once. Raises psycopg.Error.
    """
    return session.execute(load("ops/write_alert.sql"), asdict(_scrubbed(alert))).rowcount == 1


def deliver(conninfo: str, key: str, slack: Slack) -> int:
    """Send what was written under `key` and not sent, in order. Answers how many messages Slack took.

    What Slack does not take waits for `send_pending`. Raises DatabaseUnavailable, DatabaseError.
    """
    with _session(conninfo) as session:
        return _deliver(session, scrub(key), slack)


def send_pending(conninfo: str, slack: Slack) -> int:
    """Send what was not sent, the oldest of each key first. Answers how many messages Slack took.

    Raises DatabaseUnavailable, DatabaseError.
    """
    with _session(conninfo) as session:
        keys = [row["key"] for row in session.execute(load("ops/keys_of_unsent_alerts.sql"))]
        return sum(_deliver(session, key, slack) for key in keys)


def waiting(conninfo: str) -> list[str]:
    """Keys of alerts that Slack has not taken yet. Raises DatabaseUnavailable, DatabaseError."""
    with _session(conninfo) as session:
        return [row["key"] for row in session.execute(load("ops/keys_of_unsent_alerts.sql"))]


def message(conninfo: str, alert: Alert) -> str | None:
    """Slack's time stamp of the message of an alert that was raised; None while Slack has not taken it.

    Raises Unavailable, DatabaseError.
    """
    with _session(conninfo) as session:
        found: str | None = _state(session, _scrubbed(alert))["slack_ts"]
        return found


def standing(conninfo: str, prefix: str) -> dict[str, str]:
    """What is not over: keys beginning with `prefix` whose newest alert is not of severity info, with its occurrence.

    Raises DatabaseUnavailable, DatabaseError.
    """
    with _session(conninfo) as session:
        rows = session.execute(load("ops/standing_alerts.sql"), {"prefix": prefix})
        return {row["key"]: row["occurrence"] for row in rows}


def open_alerts(conninfo: str) -> list[OpenAlert]:
    """What is not over, critical first, then the oldest: keys whose newest alert is no info and no end.

    Raises DatabaseUnavailable, DatabaseError.
    """
    with _session(conninfo) as session:
        rows = session.execute(load("ops/open_alerts.sql")).fetchall()
    return [OpenAlert(**{**row, "severity": Severity(row["severity"])}) for row in rows]


def _scrubbed(alert: Alert) -> Alert:
    values: dict[str, Any] = {item.name: getattr(alert, item.name) for item in fields(alert)}
    values |= {name: scrub(value) for name, value in values.items() if type(value) is str}
    return Alert(**values)


@contextmanager
def _session(conninfo: str | None) -> Iterator[psycopg.Cursor[DictRow]]:
    if conninfo is None:
        raise Unavailable("the connection of the ops database is not known", remedy="see the errors logged before")
    with (
        connect(conninfo, application="payme_ops:alert") as connection,
        speaking("record and send alerts"),
        connection.cursor(row_factory=dict_row) as session,
    ):
        session.execute("SELECT set_config('lock_timeout', %s, false)", [_LOCK_TIMEOUT])
        yield session


def _deliver(session: psycopg.Cursor[DictRow], key: str, slack: Slack) -> int:
    """Send the key's unsent alerts in order; stops at the first that Slack does not take. Answers how many it took."""
    count = 0
    while _deliver_next(session, key, slack):
        count += 1
    return count


def _deliver_next(session: psycopg.Cursor[DictRow], key: str, slack: Slack) -> bool:
    """Send one, in a transaction of its own: what Slack took is marked before anything else can go wrong."""
    where = {"key": key, "channel": slack.channel}
    with session.connection.transaction():
        session.execute(load("ops/lock_alert_key.sql"), where)
        row = session.execute(load("ops/next_unsent_alert.sql"), where).fetchone()
        if row is None:
            return False
        alert = Alert(**{item.name: row[item.name] for item in fields(Alert)})
        thread = session.execute(load("ops/alert_thread.sql"), where).fetchone()
        try:
            posted = _post(slack, alert, thread)
        except _NotSent as error:
            _log.error("alert %s (%s) waits, Slack did not take it: %s", key, alert.occurrence, error)
            session.execute(load("ops/alert_not_sent.sql"), {"id": row["id"], "error": str(error)})
            return False
        session.execute(load("ops/alert_sent.sql"), {**where, "id": row["id"], **posted})
        return True


def _capture_once(session: psycopg.Cursor[DictRow], alert: Alert, capture: Capture) -> None:
    with session.connection.transaction():
        session.execute(load("ops/lock_alert_key.sql"), {"key": alert.key})
        if _state(session, alert)["sentry_event_id"] is None and (event_id := capture(alert)):
            session.execute(load("ops/alert_captured.sql"), {**_identity(alert), "event_id": event_id})


def _state(session: psycopg.Cursor[DictRow], alert: Alert) -> DictRow:
    row = session.execute(load("ops/alert_state.sql"), _identity(alert)).fetchone()
    if row is None:
        raise Unavailable("the alert written just now is not there", remedy="see who deletes from ops.alerts")
    return row


def _identity(alert: Alert) -> dict[str, str]:
    return {"key": alert.key, "occurrence": alert.occurrence}


def _raise_unrecorded(alert: Alert, slack: Slack | None, capture: Capture | None) -> Outcome:
    if capture is not None:
        capture(alert)
    try:
        if slack is None:
            raise _NotSent("its connection is not known")
        _post(slack, alert, note="The ops database did not take this alert: it may come twice.")
    except _NotSent as error:
        _log.error("alert %s is lost: Slack did not take it either: %s", alert.key, error)
        return Outcome.LOST
    return Outcome.UNRECORDED


# -- Slack ------------------------------------------------------------------------------------------------------


class _NotSent(Exception):
    """Slack did not answer, or refused the message."""


def _post(slack: Slack, alert: Alert, thread: DictRow | None = None, note: str = "") -> dict[str, str]:
    """One message; answers its `ts` and the `thread_ts` it is in. Raises _NotSent."""
    from slack_sdk.errors import SlackApiError, SlackClientError

    arguments: dict[str, Any] = {"channel": slack.channel, "text": notification(alert)}
    arguments |= {"unfurl_links": False, "unfurl_media": False}  # Slack would fetch the links
    if thread is not None:
        arguments |= {"thread_ts": thread["thread_ts"], "reply_broadcast": thread["quiet"] >= _QUIET}
    dressed: dict[str, Any] = {"blocks": blocks(alert, note), "metadata": _metadata(alert)}
    try:
        try:
            answer = slack.client.chat_postMessage(**arguments, **dressed)
        except SlackApiError as error:
            if error.response.get("error") not in (
                "invalid_blocks",
                "invalid_blocks_format",
                "invalid_metadata_format",
            ):
                raise
            # Slack's limits have changed: plain words are better than silence.
            answer = slack.client.chat_postMessage(**arguments)
    except SlackApiError as error:
        raise _NotSent(f"status {error.response.status_code}, {error.response.get('error')}") from None
    except (SlackClientError, OSError) as error:
        raise _NotSent(scrub(f"{type(error).__name__}: {error}")) from None
    # A reply whose first message was deleted goes to the channel, which only shows here. It begins the new thread.
    message = answer.get("message") or {}
    return {"ts": answer["ts"], "thread_ts": message.get("thread_ts") or answer["ts"]}


def notification(alert: Alert) -> str:
    """The text of the phone's notification, and of clients that show no blocks."""
    first_line = alert.why.strip().partition("\n")[0]
    return _fit(f"{alert.what}: {first_line}" if first_line else alert.what, _MAX_NOTIFICATION)


def blocks(alert: Alert, note: str = "") -> list[dict[str, Any]]:
    """The message in Slack's Block Kit. Every text is cut to Slack's limits and escaped where Slack formats it."""
    header = f"{_SIGN[Severity(alert.severity)]} {alert.what.strip() or alert.key}"
    # A backtick in the error could end the code block, and the rest would be formatted.
    code = _fit(alert.why.strip().replace("`", "'") or "no reason was given", _MAX_SECTION)
    facts = (("Since", show(alert.since)), ("Who to call", alert.owner))
    links = [_link(alert.link, "Open the run"), _link(alert.runbook, "Runbook")]
    context = [f"{alert.severity} · {alert.key} · {alert.occurrence}", *([note] if note else [])]
    built: list[dict[str, Any]] = [
        {"type": "header", "text": {"type": "plain_text", "text": _cut(header, _MAX_HEADER), "emoji": True}},
        _section(f"```{code}```"),
        {"type": "section", "fields": [_mrkdwn(f"*{name}*\n{_fit(text, _MAX_FIELD)}") for name, text in facts]},
        _section(f"*What to do*\n{_fit(alert.next, _MAX_SECTION)}"),
    ]
    if any(links):
        built.append(_section(" · ".join(link for link in links if link)))
    return [*built, {"type": "context", "elements": [_mrkdwn(_fit(text, _MAX_CONTEXT)) for text in context]}]


def _metadata(alert: Alert) -> dict[str, Any]:
    # By these a later sender can find out whether a message went out.
    return {"event_type": "payme_ops_alert", "event_payload": {**_identity(alert), "severity": alert.severity}}


def _section(text: str) -> dict[str, Any]:
    return {"type": "section", "text": _mrkdwn(text)}


def _mrkdwn(text: str) -> dict[str, Any]:
    # verbatim: Slack makes no links, channels or mentions out of what only looks like them.
    return {"type": "mrkdwn", "text": text, "verbatim": True}


def _link(url: str, label: str) -> str:
    """A link, or nothing when the URL is none that may be shown as one."""
    url = quote(url, safe="%/:?#[]@!$&'()*+,;=")
    if not url.startswith(("http://", "https://")) or len(url) > _MAX_URL:
        return ""
    return f"<{_escape(url)}|{label}>"


def _escape(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def _fit(text: str, limit: int) -> str:
    """Escaped, and no longer than `limit` when escaped."""
    escaped = _escape(text)
    while len(escaped) > limit:
        text = text[: len(text) - max(1, (len(escaped) - limit) // 5)]
        escaped = f"{_escape(text)}…"
    return escaped


def _cut(text: str, limit: int) -> str:
    return text if len(text) <= limit else f"{text[: limit - 1]}…"
