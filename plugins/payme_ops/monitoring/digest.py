"""The daily digest: what the on-call wants to know at 07:00, as one message.

Plain data in, words out. Whatever could not be asked is said as such and never shown as zero. Each text from outside is
one scrubbed line, and the whole stays within what one Slack message holds, with less detail where there is more to say.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from enum import IntEnum

from payme_ops.foundation.alert import OpenAlert, Severity
from payme_ops.foundation.approvals import Pending
from payme_ops.foundation.clock import EAT, span
from payme_ops.foundation.evidence import Evidence, Verdict, plain
from payme_ops.foundation.lease import Holder
from payme_ops.foundation.scrub import scrub
from payme_ops.foundation.sentry_api import Issue
from payme_ops.foundation.silences import Silence

# Characters. The first is what alert.py leaves of a message for its text, escaped; a line is one line on a laptop.
MAX_TEXT, _LINE, _LINE_ESCAPED = 2900, 76, 110
# Lines of detail a part may have; less of it where the whole would not fit.
_DETAIL = (5, 3, 1, 0)
_DAYS = 7
_TITLE = 44
# Kinds of errors that are asked for, at most; who has as many may have more.
MOST_KINDS = 300
# Twice the mean of a week is worth a look, unless it is a handful.
_MUCH, _HANDFUL = 2.0, 10
# Whatever would break the line, or show it in another order than it was written.
_NOT_ONE_LINE = re.compile(r"[^\S ]+|[\x00-\x1f\x7f-\x9f\u200b-\u200f\u2028-\u202e\u2066-\u2069]+")


@dataclass(frozen=True)
class NotKnown:
    """Why a part could not be asked."""

    why: str


@dataclass(frozen=True)
class Errors:
    """Errors of one project of Sentry. `today`: of the last 24 hours; `mean`: a day's of the seven before.

    `top`, `new` (first seen in those hours) and `regressed` are the most frequent first. `heard`: whether a test event
    was; Sentry drops what comes after a full quota. None where that was not tried.
    """

    project: str
    counts: "tuple[int, float] | NotKnown"
    top: "Sequence[Issue] | NotKnown"
    new: "Sequence[Issue] | NotKnown"
    regressed: "Sequence[Issue] | NotKnown"
    heard: "bool | NotKnown | None" = None


@dataclass(frozen=True)
class Doctor:
    """What doctor's checks say, and what they said in the digest before (None: there was none)."""

    now: Sequence[Evidence]
    before: Mapping[str, Verdict] | None
    before_at: datetime | None


@dataclass(frozen=True)
class Digest:
    """All that is told. `at` is UTC, the end of the 24 hours."""

    at: datetime
    errors: "Sequence[Errors] | NotKnown"
    alerts: "Sequence[OpenAlert] | NotKnown"
    silences: "Sequence[Silence] | NotKnown"
    freshness: "Sequence[Evidence] | NotKnown"
    approvals: "Sequence[Pending] | NotKnown"
    leases: "Sequence[Holder] | NotKnown"
    doctor: "Doctor | NotKnown"

    @property
    def day(self) -> date:
        """The EAT day it is the digest of."""
        return self.at.astimezone(EAT).date()


@dataclass(frozen=True)
class Message:
    """For the alert: the headline, the text, and what to do."""

    what: str
    why: str
    next: str


class _Rank(IntEnum):
    """Which of the lines to look at stands first."""

    MONEY = 0  # orders are stopped
    ALERT = 1
    BACKUP = 2
    PEOPLE = 3
    ERRORS = 4
    DOCTOR = 5
    UNKNOWN = 6


@dataclass(frozen=True)
class _Part:
    """`head` always stands; of `lines` as many as there is room for. `look`: why somebody should look, "" if not.

    `none`: there is nothing of it, and one line tells of all such parts.
    """

    head: str
    lines: Sequence[str] = ()
    look: str = ""
    rank: _Rank = _Rank.UNKNOWN
    none: bool = False


def render(digest: Digest) -> Message:
    """The digest as one message."""
    groups = list(_groups(digest))
    parts = [part for group in groups for part in group]
    look = list(dict.fromkeys(part.look for part in sorted(parts, key=lambda part: part.rank) if part.look))
    things = "1 thing" if len(look) == 1 else f"{len(look)} things"
    what = f"Digest of {digest.day:%A %d %B}: " + (f"{things} to look at" if look else "nothing to look at")
    first = "\n".join(_cut(f"> {one}") for one in look)
    # `look` may be as many lines as there are parts; details give way before them.
    whole = next((text for most in _DETAIL if _fits(text := _text(first, groups, most))), "") or first
    todo = "Go through the lines with >, from the top" if look else "Nothing"
    return Message(what, whole, f"{todo}. Runbook: docs/runbooks/daily_digest.md")


def _text(first: str, groups: Sequence[Sequence[_Part]], most: int) -> str:
    blocks = [first] if first else []
    blocks += ["\n".join(_lines(group, most)) for group in groups if not group[0].none]
    if nothing := [group[0].head for group in groups if group[0].none]:
        blocks.append(_cut(f"NONE: {', '.join(nothing)}"))
    return "\n\n".join(blocks)


def _lines(group: Sequence[_Part], most: int) -> Iterator[str]:
    for part in group:
        yield _cut(part.head)
        yield from (_cut(f"  {one}") for one in part.lines[:most])
        if most and len(part.lines) > most:
            yield f"  and {len(part.lines) - most} more"


def _fits(text: str) -> bool:
    return len(_escaped(text)) <= MAX_TEXT


def _escaped(text: str) -> str:
    """As alert.py will."""
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def _cut(text: str) -> str:
    """One line, scrubbed before it is cut: half a secret would no longer look like one."""
    text = _NOT_ONE_LINE.sub(" ", scrub(text)).rstrip().replace("`", "'")
    if len(text) > _LINE:
        text = f"{text[: _LINE - 1]}…"
    while len(_escaped(text)) > _LINE_ESCAPED:
        text = f"{text[:-2]}…"
    return text


def _groups(digest: Digest) -> Iterator[list[_Part]]:
    if isinstance(digest.errors, NotKnown):
        yield [_unknown("ERRORS", "Sentry", digest.errors)]
    else:
        yield from (list(_errors(one)) for one in digest.errors)
    yield [_alerts(digest.alerts, digest.at)]
    yield [_freshness(digest.freshness)]
    yield [_approvals(digest.approvals, digest.at)]
    yield [_leases(digest.leases, digest.at)]
    yield [_doctor(digest.doctor)]
    yield [_silences(digest.silences)]


def _unknown(head: str, whom: str, part: NotKnown) -> _Part:
    return _Part(f"{head}: not known, {part.why}", look=f"{whom}: not known, {part.why}")


def _none(what: str) -> _Part:
    return _Part(what, none=True)


def _count(number: int, one: str, more: str) -> str:
    return f"1 {one}" if number == 1 else f"{number} {more}"


def _errors(found: Errors) -> Iterator[_Part]:
    name, whom = f"ERRORS of {found.project} in 24 h", f"Sentry ({found.project})"
    said = (found.counts, found.top, found.new, found.regressed)
    if isinstance(found.counts, NotKnown):
        yield _unknown(name, whom, found.counts)
        if all(one == found.counts for one in said):
            return
    else:
        yield _counted(found, name, *found.counts)
    if isinstance(found.top, NotKnown):
        yield _unknown("  by count", whom, found.top)
    if found.heard is False:
        deaf = f"{whom} did not hear a test event: quota full? There may be more"
        yield _Part(f"  {deaf}", look=deaf, rank=_Rank.ERRORS)
    elif isinstance(found.heard, NotKnown):
        yield _unknown("  whether it hears", whom, found.heard)
    yield _kinds("new", found.new, found, whom)
    yield _kinds("back after it was resolved", found.regressed, found, whom)


def _counted(found: Errors, name: str, today: int, mean: float) -> _Part:
    much = today >= _HANDFUL and today > _MUCH * mean
    times = f", {today / mean:.1f} times the mean of {mean:.1f} a day" if mean else ", and none in the week before"
    look = f"{found.project}: {today} errors{times}" if much else ""
    marks = {one.id: "NEW " for one in _known(found.new)} | {one.id: "BACK " for one in _known(found.regressed)}
    lines = [f"{one.count:>5} x {marks.get(one.id, '')}{_issue(one)}" for one in _known(found.top)]
    return _Part(f"{name}: {today}; the {_DAYS} days before had {mean:.1f} a day", lines, look, _Rank.ERRORS)


def _known(found: "Sequence[Issue] | NotKnown") -> Sequence[Issue]:
    return () if isinstance(found, NotKnown) else found


def _kinds(what: str, found: "Sequence[Issue] | NotKnown", of: Errors, whom: str) -> _Part:
    if isinstance(found, NotKnown):
        return _unknown(f"  {what}", whom, found)
    if not found:
        return _Part(f"  {what}: none")
    shown = {one.id for one in _known(of.top)} if not isinstance(of.counts, NotKnown) else set()
    lines = [f"{one.count:>5} x {_issue(one)}" for one in found if one.id not in shown]
    number = f"{len(found)}{' or more' if len(found) >= MOST_KINDS else ''}"
    look = f"{of.project}: {number} {'kind' if len(found) == 1 else 'kinds'} of error {what}"
    return _Part(f"  {what}: {number}", lines, look, _Rank.ERRORS)


def _issue(one: Issue) -> str:
    """What and where; of both there must be something left when the line is cut."""
    title = scrub(one.title)
    title = title if len(title) <= _TITLE or not one.culprit else f"{title[: _TITLE - 1]}…"
    return f"{title} | {one.culprit}" if one.culprit else title


def _alerts(found: "Sequence[OpenAlert] | NotKnown", now: datetime) -> _Part:
    if isinstance(found, NotKnown):
        return _unknown("OPEN ALERTS", "ops database", found)
    if not found:
        return _none("open alerts")
    unseen = [one for one in found if not one.acknowledged_by]
    lines = [
        f"{_loud(one.severity)} for {span(now - one.since)}: {one.what}"
        + (f" (seen by {one.acknowledged_by})" if one.acknowledged_by else "")
        for one in found
    ]
    alerts = _count(len(unseen), "open alert", "open alerts")
    look = f"{alerts} nobody has acknowledged: {unseen[0].what}" if unseen else ""
    return _Part(f"OPEN ALERTS: {len(found)}, acknowledged {len(found) - len(unseen)}", lines, look, _Rank.ALERT)


def _loud(severity: Severity) -> str:
    return severity.upper() if severity is Severity.CRITICAL else str(severity)


def _silences(found: "Sequence[Silence] | NotKnown") -> _Part:
    if isinstance(found, NotKnown):
        return _unknown("SILENCES", "ops database", found)
    if not found:
        return _none("silences")
    lines = [f"{one.key} until {_clock(one.until)}, by {one.by}: {one.reason}" for one in found]
    return _Part(f"SILENCES: {len(found)}", lines)


def _freshness(found: "Sequence[Evidence] | NotKnown") -> _Part:
    if isinstance(found, NotKnown):
        return _unknown("BACKUPS", "backups", found)
    bad = [one for one in found if one.verdict is not Verdict.PASS]
    words = {Verdict.FAIL: "MISSED", Verdict.INCONCLUSIVE: "NOT KNOWN"}
    lines = [f"{words.get(one.verdict, one.verdict)} {_label(one)}: {_is(one)} ({one.threshold})" for one in bad]
    # RPO and proof are what the day is about: they stand in the headline, whatever gives way.
    known = {one.item: one for one in found if one.verdict is not Verdict.INCONCLUSIVE}
    head = ", ".join(f"{label} {_is(known[item])}" if item in known else f"{label} ?" for label, item in _TOLD)
    met = f"targets met {len(found) - len(bad)} of {len(found)}"
    look = f"backups: {', '.join(f'{_label(one)} {words.get(one.verdict, one.verdict)}' for one in bad)}" if bad else ""
    return _Part(f"BACKUPS: {head}; {met}", lines, look, _Rank.BACKUP)


def _label(one: Evidence) -> str:
    return one.item.replace("_", " ")


_TOLD = (("RPO", "daily_age"), ("proof", "proof_age"), ("restore", "rto_daily"))


def _is(one: Evidence) -> str:
    if one.verdict is Verdict.INCONCLUSIVE:
        return f"not known, {plain(one.measured)}"
    return str(one.measured.get("is", "?")) if isinstance(one.measured, dict) else plain(one.measured)


def _approvals(found: "Sequence[Pending] | NotKnown", now: datetime) -> _Part:
    if isinstance(found, NotKnown):
        return _unknown("QUESTIONS TO PEOPLE", "ops database", found)
    if not found:
        return _none("questions to people")
    lines = [f"until {_clock(one.expires_at)}: {one.subject or one.gate} ({one.run.split('/')[0]})" for one in found]
    soon = span(found[0].expires_at - now)
    asked = _count(len(found), "question waits", "questions wait")
    return _Part(f"QUESTIONS TO PEOPLE: {len(found)}", lines, f"{asked} for an answer, {soon} are left", _Rank.PEOPLE)


def _leases(found: "Sequence[Holder] | NotKnown", now: datetime) -> _Part:
    if isinstance(found, NotKnown):
        return _unknown("LEASES HELD", "ops database", found)
    if not found:
        return _none("leases held")
    frozen = [f"{one.name[7:]} for {span(now - one.since)}" for one in found if one.name.startswith("freeze:")]
    lines = [f"{one.name} for {span(now - one.since)} by {one.holder}" for one in found]
    look = f"orders are stopped in {', '.join(frozen)}" if frozen else ""
    return _Part(f"LEASES HELD: {len(found)}", lines, look, _Rank.MONEY)


def _doctor(found: "Doctor | NotKnown") -> _Part:
    if isinstance(found, NotKnown):
        return _unknown("DOCTOR", "doctor", found)
    bad = [one for one in found.now if one.verdict not in (Verdict.PASS, Verdict.BYPASSED)]
    head = f"DOCTOR: {len(found.now) - len(bad)} of {len(found.now)} checks pass"
    look = f"doctor: {', '.join(f'{_label(one)} {_verdict(one.verdict)}' for one in bad)}" if bad else ""
    if found.before is None or found.before_at is None:
        lines = [f"{one.item} is {_verdict(one.verdict)}: {plain(one.measured)}" for one in bad]
        return _Part(f"{head}; there is no earlier digest to compare with", lines, look, _Rank.DOCTOR)
    lines = list(_changes(found.now, found.before))
    still = [f"{one.item} is still {_verdict(one.verdict)}" for one in bad if found.before.get(one.item) == one.verdict]
    return _Part(f"{head}; {len(lines)} changed since {_clock(found.before_at)}", [*lines, *still], look, _Rank.DOCTOR)


def _changes(now: Sequence[Evidence], before: Mapping[str, Verdict]) -> Iterator[str]:
    """What is worse first: the order of the checks within."""
    changed = [one for one in now if before.get(one.item) != one.verdict]
    for one in sorted(changed, key=lambda one: one.verdict is Verdict.PASS):
        was = _verdict(before[one.item]) if one.item in before else "not looked at"
        why = "" if one.verdict is Verdict.PASS else f": {plain(one.measured)}"
        yield f"{one.item}: {was} -> {_verdict(one.verdict)}{why}"
    looked = {one.item for one in now}
    yield from (f"{item}: {_verdict(was)} -> not looked at" for item, was in before.items() if item not in looked)


def _verdict(verdict: Verdict) -> str:
    return str(verdict) if verdict in (Verdict.PASS, Verdict.BYPASSED) else verdict.upper()


def _clock(at: datetime) -> str:
    return f"{at.astimezone(EAT):%a %H:%M}"


def window(now: datetime) -> tuple[datetime, datetime]:
    """Begin of the week before, and of the day that is told of: whole hours, UTC. The day ends now."""
    day = now.replace(minute=0, second=0, microsecond=0) - timedelta(days=1)
    return day - timedelta(days=_DAYS), day


def counts(by_hour: Mapping[datetime, int], day: datetime) -> tuple[int, float]:
    """Errors since `day`, and the mean of a day of the seven before."""
    return sum(n for at, n in by_hour.items() if at >= day), sum(n for at, n in by_hour.items() if at < day) / _DAYS
