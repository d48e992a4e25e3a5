"""Silences: for at most four hours some alerts make no noise.

What a silence covers is written and sent as ever, but as a reply that is not shown in the channel: in the thread of its
key, or of the silence where the key has none yet. So nothing waits for somebody to send it, and who wants to can look.
Both ends of a silence are told in the channel, and at its end, what happened meanwhile and what is still on.

No silence covers that there is no verified backup, or that nobody can tell (`alert.NEVER_SILENT`).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from psycopg.rows import DictRow, class_row, dict_row

from payme_ops.foundation import alert
from payme_ops.foundation.alert import NEVER_SILENT, Alert, OpenAlert, Severity, covers
from payme_ops.foundation.clock import show, span, utc_now
from payme_ops.foundation.errors import AlreadyExists, NotFound, SettingsError
from payme_ops.foundation.postgres import connect, speaking
from payme_ops.foundation.scrub import scrub
from payme_ops.foundation.slack import Slack
from payme_ops.foundation.sql import load

LONGEST = timedelta(hours=4)
MIN_REASON_CHARACTERS, _MAX_REASON, _MAX_KEY = 10, 300, 200
_MAX_SHOWN = 12


@dataclass(frozen=True)
class Silence:
    """`key` of alerts, or with a * at its end all keys that begin so; `until` is UTC; `id` of its thread's key."""

    key: str
    reason: str
    by: str
    until: datetime
    id: int = 0

    @property
    def thread(self) -> str:
        """The key of the alerts that tell of it."""
        return f"silence:{self.id}"


def active(conninfo: str) -> list[Silence]:
    """What is kept quiet now, the first to end first. Raises DatabaseUnavailable, DatabaseError."""
    with (
        connect(conninfo, application="payme_ops:silences") as connection,
        speaking("look at silences"),
        connection.cursor(row_factory=class_row(Silence)) as rows,
    ):
        return rows.execute(load("ops/active_silences.sql")).fetchall()


def silence(conninfo: str, key: str, reason: str, by: str, until: datetime, slack: Slack | None) -> Silence:
    """Keep what `key` covers quiet until then, and say so.

    Raises SettingsError, before anything is written, for a key that covers what is never silent, a reason of less than
    10 characters, an end that is past or over 4 hours away; AlreadyExists when that key is silenced;
    DatabaseUnavailable, DatabaseError.
    """
    now = utc_now()
    key, reason, by = (" ".join(scrub(text).split()) for text in (key, reason, by))
    _check(key, reason, by, until, now)
    tell_ended(conninfo, slack)  # one whose time is over would still stand in the way
    values = {"key": key, "reason": reason, "by": by, "until": until}
    with (
        connect(conninfo, application="payme_ops:silences") as connection,
        speaking("begin a silence"),
        connection.transaction(),
        connection.cursor(row_factory=class_row(Silence)) as rows,
    ):
        begun = rows.execute(load("ops/begin_silence.sql"), values).fetchone()
        if begun is None:
            raise AlreadyExists(
                f"{key} is silenced already",
                remedy=f'end that one first: `python -m payme_ops alert silence "{key}" --end`',
            )
        alert.write(connection, _beginning(begun, now))
    _deliver(conninfo, [begun], slack)
    return begun


def end(conninfo: str, key: str, by: str, slack: Slack | None) -> Silence:
    """End the silence of exactly that key before its time, and say what happened meanwhile.

    Raises NotFound when there is none, DatabaseUnavailable, DatabaseError.
    """
    key, by = scrub(key).strip(), " ".join(scrub(by).split())
    ended = _end(conninfo, "ops/end_silence.sql", {"key": key}, by)
    if not ended:
        found = ", ".join(one.key for one in active(conninfo))
        raise NotFound(f"no silence of {key}", found=found or "none at all", remedy="see `alert list`")
    _deliver(conninfo, ended, slack)
    return ended[0]


def tell_ended(conninfo: str, slack: Slack | None) -> list[Silence]:
    """Tell of the silences whose time is over, once each. Raises DatabaseUnavailable, DatabaseError."""
    ended = _end(conninfo, "ops/end_silences_in_time.sql", {}, "")
    _deliver(conninfo, ended, slack)
    return ended


def _check(key: str, reason: str, by: str, until: datetime, now: datetime) -> None:
    if not key or "*" in key[:-1] or len(key) > _MAX_KEY or not key.isprintable():
        raise _refused("a silence wants a key", "the key of alerts, or its beginning and a *", key)
    if never := [one for one in NEVER_SILENT if _overlap(key, one)]:
        raise SettingsError(
            f"{key} would cover what is never silent",
            expected="nothing that says how fresh and proven the backups are",
            found=", ".join(never),
            remedy="silence a longer beginning, or see to the backup: docs/watchdog.md",
        )
    if len(reason) < MIN_REASON_CHARACTERS or len(reason) > _MAX_REASON:
        expected = f"why, in {MIN_REASON_CHARACTERS} to {_MAX_REASON} characters"
        raise _refused("a silence wants a reason", expected, reason)
    if not by:
        raise _refused("a silence wants a name", "who keeps it quiet", by)
    if not now < until <= now + LONGEST:
        raise _refused("a silence has an end", f"within {span(LONGEST)} from now", show(until))


def _overlap(key: str, never: str) -> bool:
    """Whether a key that a silence would cover is, or begins like, one that is never silent."""
    if key.endswith("*"):
        return never.startswith(key[:-1]) or (never.endswith("*") and key.startswith(never[:-1]))
    return key == never or (never.endswith("*") and key.startswith(never[:-1]))


def _refused(what: str, expected: str, found: str) -> SettingsError:
    return SettingsError(what, expected=expected, found=repr(found), remedy="say it again so")


def _end(conninfo: str, statement: str, values: dict[str, str], by: str) -> list[Silence]:
    """Mark silences as ended and write what is to be told of each, in one transaction."""
    ended: list[Silence] = []
    with (
        connect(conninfo, application="payme_ops:silences") as connection,
        speaking("end a silence"),
        connection.transaction(),
        connection.cursor(row_factory=dict_row) as rows,
    ):
        for row in rows.execute(load(statement), values).fetchall():
            one = Silence(row["key"], row["reason"], row["by"], row["until"], row["id"])
            time = {"since": row["began_at"], "until": row["until"]}  # its end may be told long after it
            told = rows.execute(load("ops/told_since.sql"), time).fetchall()
            standing = alert.open_in(connection)
            meanwhile = [found for found in told if covers(one.key, found["key"])]
            on = [found for found in standing if covers(one.key, found.key)]
            alert.write(connection, _ending(one, row["began_at"], by, meanwhile, on))
            ended.append(one)
    return ended


def _deliver(conninfo: str, said: Sequence[Silence], slack: Slack | None) -> None:
    for one in said:
        if slack is not None:
            alert.deliver(conninfo, one.thread, slack)


def _beginning(one: Silence, now: datetime) -> Alert:
    return Alert(
        key=one.thread,
        occurrence=f"silence/{one.id}",
        severity=Severity.INFO,
        what=f"Silenced until {show(one.until)[11:16]} EAT: {one.key}",
        why=one.reason,
        since=now,
        next=(
            "Alerts that it covers come into their thread, or this one, and are not shown in the channel."
            f' To end it: `python -m payme_ops alert silence "{one.key}" --end`, or alert_control'
        ),
        owner=one.by,
        runbook="",
        link="",
    )


def _ending(one: Silence, began_at: datetime, by: str, meanwhile: Sequence[DictRow], on: Sequence[OpenAlert]) -> Alert:
    came, still = sum(found["times"] for found in meanwhile), f"{len(on)} still on" if on else "nothing of it is on"
    lines = [f"{came or 'No'} {'alert' if came == 1 else 'alerts'} came meanwhile; {still}."]
    lines += [f"STILL ON: {found.what}, since {show(found.since)} ({found.key})" for found in on[:_MAX_SHOWN]]
    over = [found for found in meanwhile if found["key"] not in {still_on.key for still_on in on}]
    lines += [f"over: {found['what']} ({found['key']})" for found in over[:_MAX_SHOWN]]
    if (more := max(0, len(on) - _MAX_SHOWN) + max(0, len(over) - _MAX_SHOWN)) > 0:
        lines.append(f"and {more} more: `python -m payme_ops alert list`")
    lines.append(f"{f'Ended by {by}' if by else 'Its time is over'}. It was: {one.reason}")
    return Alert(
        key=one.thread,
        occurrence=f"silence/{one.id}/over",
        severity=_worst(on),
        what=f"Silence over{f', {len(on)} still on' if on else ''}: {one.key}",
        why="\n".join(lines),
        since=began_at,
        next="Look now at what is still on: what came of it was not shown in the channel" if on else "Nothing",
        owner=one.by,
        runbook="",
        link="",
    )


def _worst(on: Sequence[OpenAlert]) -> Severity:
    found = {one.severity for one in on}
    return next((one for one in (Severity.CRITICAL, Severity.WARNING) if one in found), Severity.INFO)
