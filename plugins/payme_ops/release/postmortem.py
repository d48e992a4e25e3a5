"""A draft of the post-mortem, written from the evidence: every line of its timeline names the evidence it comes from.

Due as PagerDuty has it: the meeting within three calendar days of a severe incident, five business days of another
(response.pagerduty.com, post-mortem process).
"""

from collections.abc import Sequence
from datetime import datetime, timedelta

from payme_ops.foundation.approvals import APPROVE, Approval
from payme_ops.foundation.clock import EAT, show, span
from payme_ops.foundation.evidence import Evidence, Verdict, plain
from payme_ops.foundation.record import cell

SEVERE, MODERATE = "Sev-1", "Sev-2"
_BAD = (Verdict.FAIL, Verdict.BYPASSED)
_CUT = 200

Numbered = Sequence[tuple[int, Evidence]]


def severity(found: Sequence[Evidence]) -> str:
    """Severe when users were hit: orders could not be taken again, or a rollback was needed or failed."""
    names = {one.item for one in found}
    failed = {one.item for one in found if one.verdict is Verdict.FAIL}
    stayed = _first(found, "freeze_orders") is not None and orders_stopped(found) is None
    return SEVERE if "rollback" in names or "resume_orders" in failed or stayed else MODERATE


def due(level: str, ended: datetime) -> datetime:
    """When the meeting has to be: three calendar days, or five days from Monday to Friday, in Nairobi."""
    if level == SEVERE:
        return ended + timedelta(days=3)
    moment, left = ended.astimezone(EAT), 5
    while left:
        moment += timedelta(days=1)
        left -= moment.weekday() < 5
    return moment


def detect_and_mitigate(
    found: Sequence[Evidence], answers: Sequence[Approval] = ()
) -> tuple[timedelta | None, timedelta | None]:
    """From the deploy to the first bad finding or a person's no, and from that to the previous commit being back."""
    begun = min((one.started for one in found if one.item == "deploy"), default=None)
    if begun is None:
        return None, None
    told = [one.ended for one in found if one.verdict in _BAD]
    told += [one.responded_at for one in answers if one.responded_at and _is_no(one)]
    bad = min((at for at in told if at >= begun), default=None)
    if bad is None:
        return None, None
    back = _first(found, "rollback", bad)
    return bad - begun, back - bad if back else None


def orders_stopped(found: Sequence[Evidence]) -> timedelta | None:
    """For how long no orders were taken; None when they were not stopped, or were not seen to be taken again."""
    stopped = _first(found, "freeze_orders")
    taken = _first(found, "resume_orders", stopped) if stopped else None
    return taken - stopped if stopped and taken else None


def figures(found: Sequence[Evidence], answers: Sequence[Approval]) -> dict[str, str]:
    """How long what took, as far as the evidence tells; for the record's summary."""
    detect, mitigate = detect_and_mitigate(found, answers)
    known = {
        "deploy to first bad finding": detect,
        "first bad finding to previous commit back": mitigate,
        "orders stopped for": orders_stopped(found),
    }
    return {name: span(length) for name, length in known.items() if length is not None}


def _first(found: Sequence[Evidence], item: str, since: datetime | None = None) -> datetime | None:
    """When that item passed first."""
    passed = [one.ended for one in found if one.item == item and one.verdict is Verdict.PASS]
    return min((at for at in passed if since is None or at >= since), default=None)


def _is_no(one: Approval) -> bool:
    return one.choice is not None and one.choice != APPROVE


def draft(
    release: str,
    outcome: str,
    numbered: Numbered,
    answers: Sequence[Approval],
    owner: str,
    now: datetime,
) -> str:
    """Markdown, from the evidence with its numbers in the ops database. No text of it becomes markup of its own."""
    found = [one for _, one in numbered]
    level = severity(found)
    detect, mitigate = detect_and_mitigate(found, answers)
    lines = sorted([*_findings(numbered), *_decisions(numbered, answers)])
    return "\n".join(
        [
            f"# Post-mortem of {cell(release)}: {cell(outcome)} (draft)",
            "",
            f"- Owner: {cell(owner)}",
            f"- Severity: {level}; meeting due {show(due(level, now))[:10]}",
            f"- Detected after: {_time(detect, 'the deploy')}",
            f"- Mitigated after: {_time(mitigate, 'the first bad finding')}",
            *_stopped(found),
            "",
            "## Timeline",
            "",
            "| When | What | Verdict | Found | By | Evidence | Digest |",
            "|---|---|---|---|---|---|---|",
            *(line for _, _, line in lines),
            "",
            "## What was wrong",
            "",
            *(_wrong(numbered, answers) or ["- Nothing that a machine has found, and nobody said no."]),
            "",
            "## To be answered by people",
            "",
            "- Whom did it hit, and how many?",
            "- Why was it not found before the deploy?",
            "- What made it better, what made it worse?",
            "- What is changed, by whom, until when?",
            "",
        ]
    )


def _findings(numbered: Numbered) -> list[tuple[datetime, int, str]]:
    return [
        (one.ended, number, _line(one.ended, one.item, one.verdict, one.measured, one.actor, (number, one)))
        for number, one in numbered
    ]


def _decisions(numbered: Numbered, answers: Sequence[Approval]) -> list[tuple[datetime, int, str]]:
    """Answers, each with the evidence that was shown; a question that was never put has no line."""
    lines = []
    for one in answers:
        shown, at = _shown(numbered, one), one.responded_at or one.asked_at
        if shown and at:
            choice, by = one.choice or "no answer", one.responder or "nobody in time"
            lines.append((at, shown[0], _line(at, one.gate, choice, one.reason, by, shown)))
    return lines


def _shown(numbered: Numbered, answer: Approval) -> tuple[int, Evidence] | None:
    """The evidence that an answer is bound to: of several with the same content the gate's own, then the last."""
    same = [(number, one) for number, one in numbered if one.sha256 == answer.digest]
    best = [(number, one) for number, one in same if one.item == answer.gate] or same
    return best[-1] if best else None


def _line(at: datetime, what: str, verdict: str, found: object, by: str, source: tuple[int, Evidence]) -> str:
    number, shown = source
    told = cell("" if found == "" else plain(found)[:_CUT])
    digest = shown.sha256[:16]
    return f"| {show(at)} | {cell(what)} | {cell(verdict)} | {told} | {cell(by)} | {number} | {digest} |"


def _wrong(numbered: Numbered, answers: Sequence[Approval]) -> list[str]:
    last = {one.item: number for number, one in numbered}
    again = {number: "" if last[one.item] == number else ", measured again later" for number, one in numbered}
    bad = [
        f"- {cell(one.item)} ({number}){again[number]}: {cell(one.remedy)}"
        for number, one in numbered
        if one.verdict in _BAD
    ]
    said = [
        f"- {cell(one.gate)}: {cell(one.choice or '')} by {cell(one.responder or 'nobody in time')}: {cell(one.reason)}"
        for one in answers
        if _is_no(one)
    ]
    return bad + said


def _stopped(found: Sequence[Evidence]) -> list[str]:
    if _first(found, "freeze_orders") is None:
        return []
    length = orders_stopped(found)
    return [f"- Orders were stopped for: {span(length) if length else 'not known from the evidence'}"]


def _time(length: timedelta | None, since: str) -> str:
    return f"{span(length)} from {since}" if length is not None else "not known from the evidence"
