"""Alerts: written to the ops database first, then sent to Slack. One key is one Slack thread.

Once only: an occurrence is one row, and who sends holds the key's lock, notes the attempt, sends, and marks it sent
before the lock ends. Whoever comes after a crash finds what was attempted and not marked, and looks for it in Slack by
the message's metadata: an alert goes out at least once, and twice only when Slack cannot be asked; the second says so.

Raising an alert never changes the outcome of what failed: no error of Slack or of the ops database gets out.
"""

import logging
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, fields
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Any

import psycopg
from psycopg.rows import DictRow, dict_row

from payme_ops.foundation.alert_message import message_of, of_alert
from payme_ops.foundation.clock import utc_now
from payme_ops.foundation.errors import NotFound, PaymeOpsError, SettingsError, Unavailable
from payme_ops.foundation.postgres import connect, speaking
from payme_ops.foundation.scrub import scrub
from payme_ops.foundation.slack import NotSent, Slack
from payme_ops.foundation.sql import load

_log = logging.getLogger("payme_ops.alert")

# A reply in a thread that was quiet for this long is shown in the channel too, or nobody would see it.
_QUIET = timedelta(hours=1)
# Slack may take 10 s for a message, and a few may wait before ours.
_LOCK_TIMEOUT = "60s"
# More than passes between two statements: five pages of a look, or a message. Whose host was cut off while it sent
# holds its key no longer; the server would not notice for hours.
_IDLE_TIMEOUT = "120s"
# Together, in one `send_pending`.
_WAITS_SECONDS = 30
_CHANNEL_ID = re.compile(r"[CG][A-Z0-9]{8,}")
_HUSHED = "Silenced: not shown in the channel."
_MAY_BE_TWICE = "Slack could not be asked whether this was sent before: it may be here twice."

# Keys of what lasts until its end is told; a failed run, say, may never be told to have done well again.
LASTING = ("health:", "late:", "silent:", "state:")
# Keys that no silence covers: what is said of missing and unproven backups (backup/freshness.py, and the retention
# that stands still without proof), and of silences.
NEVER_SILENT = (
    "silent:daily_age",
    "silent:weekly_age",
    "silent:monthly_age",
    "silent:proof_age",
    "silent:rto_daily",
    "silent:rto_weekly",
    "silent:rto_monthly",
    "silent:airflow_age",
    "silent:airflow_proof_age",
    "silent:ops_age",
    "silent:ops_proof_age",
    "silent:freshness",
    "state:backup_retention:frozen",
    "state:backup_retention:frozen_airflow",
    "state:backup_retention:frozen_ops",
    "silence:*",
)


class Severity(StrEnum):
    """critical: somebody must act now. warning: today. info: to know."""

    INFO = "info"
    WARNING = "warning"
    CRITICAL = "critical"


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


class Outcome(StrEnum):
    """What became of an alert."""

    SENT = "sent"
    WAITING = "written, not sent"
    UNRECORDED = "sent, not written"
    LOST = "neither written nor sent"


Session = psycopg.Connection[Any] | psycopg.Cursor[Any]

Capture = Callable[[Alert], str | None]
"""Tells Sentry; answers the event's id, or None when there is none."""


def raise_alert(
    conninfo: str | None,
    alert: Alert,
    slack: Slack | None,
    capture: Capture | None = None,
    *,
    capture_if_waiting: bool = False,
) -> Outcome:
    """Write the alert, send it to Slack and capture it in Sentry, each once for one occurrence, whoever raises it.

    `conninfo` of the ops database and `slack` are None where they could not be found out. If the ops database does
    not take the alert it is sent all the same, by each who raises it. With `capture_if_waiting` Sentry is only told
    when Slack was not.
    """
    alert = _scrubbed(alert)
    written = False
    try:
        with _session(conninfo) as session:
            write(session, alert)
            written = True
            if slack is not None:
                _deliver(session, alert.key, slack)
            outcome = Outcome.SENT if _state(session, alert)["sent"] else Outcome.WAITING
            if capture is not None and not (capture_if_waiting and outcome is Outcome.SENT):
                _capture_once(session, alert, capture)
            return outcome
    except PaymeOpsError as error:
        _log.error("alert %s: %s", alert.key, error)
    outcome = Outcome.WAITING if written else _send_unrecorded(alert, slack)
    if capture is not None and not (capture_if_waiting and outcome is Outcome.UNRECORDED):
        capture(alert)
    return outcome


def write(session: Session, alert: Alert) -> bool:
    """Write the alert, scrubbed, in the caller's transaction; `deliver` its key after the commit.

    Answers whether it is new: an occurrence is written once. Raises psycopg.Error.
    """
    return _write(session, alert, notice=False)


def deliver(conninfo: str, key: str, slack: Slack) -> int:
    """Send what was written under `key` and not sent, in order. Answers how many messages Slack took.

    What Slack does not take waits for `send_pending`. Raises DatabaseUnavailable, DatabaseError.
    """
    with _session(conninfo) as session:
        return _deliver(session, scrub(key), slack)


def send_pending(conninfo: str, slack: Slack) -> int:
    """Send what was not sent, the oldest of each key first. Answers how many messages Slack took.

    Stops when Slack does not answer: each of the others would wait for it as long. A moment that it asks for is waited.
    Raises DatabaseUnavailable, DatabaseError.
    """
    count = waited = 0
    with _session(conninfo) as session:
        for key in _waiting(session):
            try:
                while _deliver_next(session, key, slack):
                    count += 1
            except psycopg.errors.LockNotAvailable:
                _log.error("alert %s waits: somebody has been sending it for %s", key, _LOCK_TIMEOUT)
            except NotSent as error:
                waited += error.wait
                if error.away or waited > _WAITS_SECONDS:
                    break
                time.sleep(error.wait)
    return count


def waiting(conninfo: str) -> list[str]:
    """Keys of alerts that Slack has not taken yet. Raises DatabaseUnavailable, DatabaseError."""
    with _session(conninfo) as session:
        return _waiting(session)


def _waiting(session: psycopg.Cursor[DictRow]) -> list[str]:
    """Those that were tried least come first: one that Slack answers with an error keeps no other back."""
    return [row["key"] for row in session.execute(load("ops/keys_of_unsent_alerts.sql")).fetchall()]


def capture_waiting(conninfo: str, capture: Capture) -> None:
    """Tell Sentry, once each, of what Slack has not taken. Raises DatabaseUnavailable, DatabaseError."""
    with _session(conninfo) as session:
        for row in session.execute(load("ops/uncaptured_alerts.sql")).fetchall():
            with suppress(psycopg.errors.LockNotAvailable):  # it is being sent
                _capture_once(session, Alert(**row), capture, if_waiting=True)


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

    A state (`LASTING`) is open until its end is told. Anything else only until somebody has seen it, too, and a mere
    warning for the day it was for. Raises DatabaseUnavailable, DatabaseError.
    """
    with _session(conninfo) as session:
        found = open_in(session.connection)
    today = utc_now() - timedelta(days=1)
    return [
        one
        for one in found
        if one.key.startswith(LASTING)
        or (not one.acknowledged_by and (one.severity is Severity.CRITICAL or one.raised_at > today))
    ]


def open_in(connection: psycopg.Connection[Any]) -> list[OpenAlert]:
    """The same in the caller's transaction, with what was seen. Raises psycopg.Error."""
    rows = connection.cursor(row_factory=dict_row).execute(load("ops/open_alerts.sql")).fetchall()
    return [OpenAlert(**{**row, "severity": Severity(row["severity"])}) for row in rows]


def acknowledge(conninfo: str, key: str, by: str, why: str, slack: Slack | None) -> OpenAlert:
    """Say that `by` has seen the open alert of `key`, once, in its thread, and why if there is something to say.

    Nobody is reminded of it any more. Answers the alert; its `acknowledged_by` is who came first.
    Raises SettingsError without a name, NotFound when no alert of that key is open, DatabaseUnavailable, DatabaseError.
    """
    by, why = " ".join(scrub(by).split()), " ".join(scrub(why).split())
    if not by:
        raise SettingsError("an acknowledgement wants a name", expected="who has seen it", found="none")
    with _session(conninfo) as session:
        with session.connection.transaction():
            told = _open_alert(open_in(session.connection), key)
            new = session.execute(
                load("ops/acknowledge_alert.sql"), {"key": key, "occurrence": told.occurrence, "by": by, "why": why}
            ).fetchone()
            if new is not None:
                _write(session, _seen(told, new["episode"], by, why), notice=True)
            told = _open_alert(open_in(session.connection), key)  # who came first
        if new is not None and slack is not None:
            _deliver(session, key, slack)
    return told


def covers(silence: str, key: str) -> bool:
    """Whether a silence of that key, exact or with a * at its end, covers alerts of `key`."""
    return _matches(silence, key) and not any(_matches(never, key) for never in NEVER_SILENT)


def _matches(pattern: str, key: str) -> bool:
    return key.startswith(pattern[:-1]) if pattern.endswith("*") else key == pattern


def _open_alert(all_open: list[OpenAlert], key: str) -> OpenAlert:
    found = {one.key: one for one in all_open}
    if key not in found:
        raise NotFound(
            f"no alert {key} is open",
            expected=f"one of: {', '.join(found)}" if found else "nothing: none is open",
            remedy="see `python -m payme_ops alert list`",
        )
    return found[key]


def _seen(told: OpenAlert, episode: str, by: str, why: str) -> Alert:
    return Alert(
        key=told.key,
        occurrence=f"{episode}/seen",
        severity=Severity.INFO,
        what=f"Seen by {by}",
        why=why,
        since=utc_now(),
        next="",
        owner=by,
        runbook="",
        link="",
    )


def _write(session: Session, alert: Alert, *, notice: bool) -> bool:
    values = {**asdict(_scrubbed(alert)), "notice": notice}
    return session.execute(load("ops/write_alert.sql"), values).rowcount == 1


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
        with suppress(psycopg.errors.UndefinedObject):  # PostgreSQL 14 and newer
            session.execute("SELECT set_config('idle_session_timeout', %s, false)", [_IDLE_TIMEOUT])
        yield session


def _deliver(session: psycopg.Cursor[DictRow], key: str, slack: Slack) -> int:
    """Send the key's unsent alerts in order; stops at the first that Slack does not take. Answers how many it took."""
    count = 0
    with suppress(NotSent):
        while _deliver_next(session, key, slack):
            count += 1
    return count


@contextmanager
def _held(session: psycopg.Cursor[DictRow], key: str) -> Iterator[None]:
    """The key's lock, for the block: whatever is committed in it, and until the session ends at the latest."""
    session.execute(load("ops/hold_alert_key.sql"), {"key": key})
    try:
        yield
    finally:
        with suppress(psycopg.Error):  # a session that is lost has freed it
            session.execute(load("ops/free_alert_key.sql"), {"key": key})


def _is_news(alert: Alert, thread: DictRow) -> bool:
    # A reminder comes because nobody has said that they have seen it: it must not be for those in the thread alone.
    again = "/still/" in alert.occurrence or thread["before"] != Severity.CRITICAL
    return bool((alert.severity == Severity.CRITICAL and again) or thread["quiet"] >= _QUIET)


def _deliver_next(session: psycopg.Cursor[DictRow], key: str, slack: Slack) -> bool:
    """Send one; False when there is none. Raises NotSent.

    Each statement is a transaction of its own: an attempt is known of before Slack is called, and what Slack took is
    marked before anything else can go wrong.
    """
    where = {"key": key, "channel": slack.channel}
    with _held(session, key):
        row = session.execute(load("ops/next_unsent_alert.sql"), where).fetchone()
        if row is None:
            return False
        alert = Alert(**{item.name: row[item.name] for item in fields(Alert)})
        silence = _silence_over(session, key)
        hushed = silence is not None or row["notice"]
        thread = session.execute(load("ops/alert_thread.sql"), where).fetchone()
        if thread is None and silence is not None:
            _deliver(session, silence, slack)  # begun on a shell, it may not have been told yet
            thread = session.execute(load("ops/alert_thread.sql"), {**where, "key": silence}).fetchone()
        posted, note = _posted_before(session, slack, row)
        if posted is None:
            thread_ts = thread["thread_ts"] if thread else ""
            session.execute(load("ops/attempt_alert.sql"), {"id": row["id"], "thread": thread_ts})
            # The ends of a silence are told to all; else what comes after a quiet hour, or is grave again or still.
            shown = key.startswith("silence:") or (thread is not None and _is_news(alert, thread))
            hush = _HUSHED if silence is not None else ""
            words = message_of(alert, note, hush, notice=row["notice"])
            place = {"thread_ts": thread_ts, "reply_broadcast": shown and not hushed} if thread_ts else {}
            try:
                posted = slack.post({**words, **place})
            except NotSent as error:
                _log.error("alert %s (%s) waits, Slack did not take it: %s", key, alert.occurrence, error)
                # With a note an earlier attempt may have gone out, whatever became of this one.
                values = {"id": row["id"], "error": str(error), "maybe": error.maybe or bool(note)}
                session.execute(load("ops/alert_not_sent.sql"), values)
                raise
        session.execute(load("ops/alert_sent.sql"), {**where, "id": row["id"], "hushed": hushed, **posted})
        return True


def _silence_over(session: psycopg.Cursor[DictRow], key: str) -> str | None:
    """The key under which the silence was told that covers `key` now."""
    silences = session.execute(load("ops/active_silences.sql")).fetchall()
    return next((f"silence:{one['id']}" for one in silences if covers(one["key"], key)), None)


def channel_id(conninfo: str, channel: str) -> str | None:
    """The id of a channel that is named by id or name; None where nothing was sent there yet. Raises
    DatabaseUnavailable, DatabaseError.
    """
    with (
        connect(conninfo, application="payme_ops:alert") as connection,
        speaking("look for a channel's id"),
        connection.cursor(row_factory=dict_row) as session,
    ):
        return _channel_id(session, channel)


def _channel_id(session: psycopg.Cursor[DictRow], channel: str) -> str | None:
    if _CHANNEL_ID.fullmatch(channel):
        return channel
    known = session.execute(load("ops/alert_channel.sql"), {"channel": channel}).fetchone()
    return str(known["channel_id"]) if known else None


def _posted_before(session: psycopg.Cursor[DictRow], slack: Slack, row: DictRow) -> tuple[dict[str, str] | None, str]:
    """Where an alert is that was attempted before; or what the next attempt must say."""
    if row["attempted_at"] is None:
        return None, ""
    try:
        channel = _channel_id(session, slack.channel)
        if channel is None:
            raise NotSent("no message has gone to the channel yet, and its id is not known")
        since, thread = row["attempted_at"], row["attempted_in"]
        return slack.find(channel, of_alert(row["key"], row["occurrence"]), since, thread), ""
    except NotSent as error:
        _log.error("alert %s (%s) may have gone out; Slack cannot be asked: %s", row["key"], row["occurrence"], error)
        return None, _MAY_BE_TWICE


def _capture_once(
    session: psycopg.Cursor[DictRow], alert: Alert, capture: Capture, *, if_waiting: bool = False
) -> None:
    with _held(session, alert.key):
        state = _state(session, alert)
        if if_waiting and state["sent"]:  # meanwhile
            return
        if state["sentry_event_id"] is None and (event_id := capture(alert)):
            session.execute(load("ops/alert_captured.sql"), {**_identity(alert), "event_id": event_id})


def _state(session: psycopg.Cursor[DictRow], alert: Alert) -> DictRow:
    row = session.execute(load("ops/alert_state.sql"), _identity(alert)).fetchone()
    if row is None:
        raise Unavailable("the alert written just now is not there", remedy="see who deletes from ops.alerts")
    return row


def _identity(alert: Alert) -> dict[str, str]:
    return {"key": alert.key, "occurrence": alert.occurrence}


def _send_unrecorded(alert: Alert, slack: Slack | None) -> Outcome:
    try:
        if slack is None:
            raise NotSent("its connection is not known")
        slack.post(message_of(alert, "The ops database did not take this alert: it may come twice."))
    except NotSent as error:
        _log.error("alert %s is lost: Slack did not take it either: %s", alert.key, error)
        return Outcome.LOST
    return Outcome.UNRECORDED
