"""The daily digest: what the on-call wants to know at 07:00, as one message.

Plain data in, words out. Whatever could not be asked is said as such and never shown as zero. Each text from outside is
one scrubbed line, and the whole stays within what one Slack message holds, with less detail where there is more to say.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import date, datetime, timedelta

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


@dataclass(frozen=True)
class _Part:
    """`head` always stands; of `lines` as many as there is room for. `look`: why somebody should look, "" if not."""

    head: str
    lines: Sequence[str] = ()
    look: str = ""


def render(digest: Digest) -> Message:
    """The digest as one message."""
    parts = [part for found in _parts(digest) for part in found]
    look = list(dict.fromkeys(part.look for part in parts if part.look))
    what = f"{digest.day:%A %d %B}: " + (f"{len(look)} to look at" if look else "nothing to look at")
    first = "\n".join(_cut(f"> {one}") for one in look)
    # `look` may be as many lines as there are parts; details give way before them.
    whole = next((text for most in _DETAIL if _fits(text := _text(first, parts, most))), "") or first
    todo = "Go through the lines with >, from the top" if look else "Nothing"
    return Message(what, whole, f"{todo}. Runbook: docs/runbooks/daily_digest.md")


def _text(first: str, parts: Sequence[_Part], most: int) -> str:
    blocks = ["\n".join([_cut(part.head), *_some(part.lines, most)]) for part in parts]
    return "\n".join([*([first, ""] if first else []), *blocks])


def _some(lines: Sequence[str], most: int) -> Iterator[str]:
    yield from (_cut(f"  {one}") for one in lines[:most])
    if most and len(lines) > most:
        yield f"  and {len(lines) - most} more"


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


def _parts(digest: Digest) -> Iterator[list[_Part]]:
    if isinstance(digest.errors, NotKnown):
        yield [_unknown("ERRORS", "Sentry", digest.errors)]
    else:
        for one in digest.errors:
            yield list(_errors(one))
    yield [_alerts(digest.alerts, digest.at)]
    yield [_silences(digest.silences)]
    yield [_freshness(digest.freshness)]
    yield [_approvals(digest.approvals, digest.at)]
    yield [_leases(digest.leases, digest.at)]
    yield [_doctor(digest.doctor)]


def _unknown(head: str, whom: str, part: NotKnown) -> _Part:
    return _Part(f"{head}: not known, {part.why}", look=f"{whom}: not known, {part.why}")


def _errors(found: Errors) -> Iterator[_Part]:
    name = f"ERRORS of {found.project} in 24 h"
    whom = f"Sentry ({found.project})"
    if isinstance(found.counts, NotKnown):
        yield _unknown(name, whom, found.counts)
    else:
        today, mean = found.counts
        much = today >= _HANDFUL and today > _MUCH * mean
        times = f", {today / mean:.1f} times that" if mean else ""
        look = f"{today} errors of {found.project}, {mean:.1f} is the mean of a day{times}" if much else ""
        lines = [f"{one.count:>5} x {_issue(one)}" for one in found.top] if not isinstance(found.top, NotKnown) else []
        yield _Part(f"{name}: {today}; the {_DAYS} days before had {mean:.1f} a day", lines, look)
    if isinstance(found.top, NotKnown):
        yield _unknown("  by count", whom, found.top)
    if found.heard is False:
        deaf = f"{whom} did not hear a test event: quota full? There may be more"
        yield _Part(f"  {deaf}", look=deaf)
    elif isinstance(found.heard, NotKnown):
        yield _unknown("  whether it hears", whom, found.heard)
    yield _kinds("new", found.new, found.project, whom)
    yield _kinds("back after it was resolved", found.regressed, found.project, whom)


def _kinds(what: str, found: "Sequence[Issue] | NotKnown", project: str, whom: str) -> _Part:
    if isinstance(found, NotKnown):
        return _unknown(f"  {what}", whom, found)
    if not found:
        return _Part(f"  {what}: none")
    noun = "kind of error" if len(found) == 1 else "kinds of error"
    return _Part(f"  {what}: {len(found)}", [_issue(one) for one in found], f"{len(found)} {noun} of {project} {what}")


def _issue(one: Issue) -> str:
    return f"{one.title} | {one.culprit}" if one.culprit else one.title


def _alerts(found: "Sequence[OpenAlert] | NotKnown", now: datetime) -> _Part:
    if isinstance(found, NotKnown):
        return _unknown("OPEN ALERTS", "ops database", found)
    if not found:
        return _Part("OPEN ALERTS: none")
    unseen = [one for one in found if not one.acknowledged_by]
    lines = [
        f"{_loud(one.severity)} for {span(now - one.since)}: {one.what}"
        + (f" (seen by {one.acknowledged_by})" if one.acknowledged_by else "")
        for one in found
    ]
    look = f"{len(unseen)} open alert(s) that nobody has acknowledged" if unseen else ""
    return _Part(f"OPEN ALERTS: {len(found)}, acknowledged {len(found) - len(unseen)}", lines, look)


def _loud(severity: Severity) -> str:
    return severity.upper() if severity is Severity.CRITICAL else str(severity)


def _silences(found: "Sequence[Silence] | NotKnown") -> _Part:
    if isinstance(found, NotKnown):
        return _unknown("SILENCES", "ops database", found)
    if not found:
        return _Part("SILENCES: none")
    lines = [f"{one.key} until {_clock(one.until)}, by {one.by}: {one.reason}" for one in found]
    return _Part(f"SILENCES: {len(found)}", lines)


def _freshness(found: "Sequence[Evidence] | NotKnown") -> _Part:
    if isinstance(found, NotKnown):
        return _unknown("BACKUPS", "backups", found)
    bad = [one for one in found if one.verdict is not Verdict.PASS]
    names = ", ".join(one.item.replace("_", " ") for one in bad)
    words = {Verdict.PASS: "ok", Verdict.FAIL: "MISSED", Verdict.INCONCLUSIVE: "NOT KNOWN"}
    lines = [
        f"{words.get(one.verdict, str(one.verdict)):<9} {one.item.replace('_', ' ')}: {_is(one)} ({one.threshold})"
        for one in sorted(found, key=lambda one: one.verdict is Verdict.PASS)
    ]
    # RPO and proof are what the day is about: they stand in the headline, whatever gives way.
    known = {one.item: one for one in found}
    head = [f"{label} {_is(known[item])}" for label, item in _TOLD if item in known]
    good = f"; {len(found) - len(bad)} of {len(found)} targets are met"
    return _Part(f"BACKUPS: {', '.join(head)}{good}", lines if bad else (), f"backup targets: {names}" if bad else "")


_TOLD = (("RPO", "daily_age"), ("proof is", "proof_age"), ("restore takes", "rto_daily"))


def _is(one: Evidence) -> str:
    if one.verdict is Verdict.INCONCLUSIVE:
        return f"not known, {plain(one.measured)}"
    return str(one.measured.get("is", "?")) if isinstance(one.measured, dict) else plain(one.measured)


def _approvals(found: "Sequence[Pending] | NotKnown", now: datetime) -> _Part:
    if isinstance(found, NotKnown):
        return _unknown("QUESTIONS TO PEOPLE", "ops database", found)
    if not found:
        return _Part("QUESTIONS TO PEOPLE: none")
    lines = [f"until {_clock(one.expires_at)}: {one.subject or one.gate} ({one.run.split('/')[0]})" for one in found]
    soon = span(found[0].expires_at - now)
    look = f"{len(found)} question(s) wait for an answer, the first for {soon} more"
    return _Part(f"QUESTIONS TO PEOPLE: {len(found)}", lines, look)


def _leases(found: "Sequence[Holder] | NotKnown", now: datetime) -> _Part:
    if isinstance(found, NotKnown):
        return _unknown("LEASES HELD", "ops database", found)
    if not found:
        return _Part("LEASES HELD: none")
    frozen = [one.name.removeprefix("freeze:") for one in found if one.name.startswith("freeze:")]
    lines = [f"{one.name} for {span(now - one.since)} by {one.holder}" for one in found]
    look = f"orders are stopped in {', '.join(frozen)}" if frozen else ""
    return _Part(f"LEASES HELD: {len(found)}", lines, look)


def _doctor(found: "Doctor | NotKnown") -> _Part:
    if isinstance(found, NotKnown):
        return _unknown("DOCTOR", "doctor", found)
    bad = [one for one in found.now if one.verdict not in (Verdict.PASS, Verdict.BYPASSED)]
    head = f"DOCTOR: {len(found.now) - len(bad)} of {len(found.now)} checks pass"
    look = f"doctor: {', '.join(one.item for one in bad)}" if bad else ""
    if found.before is None or found.before_at is None:
        lines = [f"{one.item} is {_verdict(one.verdict)}: {plain(one.measured)}" for one in bad]
        return _Part(f"{head}; there is no earlier digest to compare with", lines, look)
    lines = list(_changes(found.now, found.before))
    still = [f"{one.item} is still {_verdict(one.verdict)}" for one in bad if found.before.get(one.item) == one.verdict]
    return _Part(f"{head}; {len(lines)} changed since {_clock(found.before_at)}", [*lines, *still], look)


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
