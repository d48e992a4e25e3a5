"""A draft of the post-mortem, written from the evidence: every line of its timeline names the evidence it comes from.

Due as PagerDuty has it: the meeting within three calendar days of a severe incident, five business days of another
(response.pagerduty.com, post-mortem process).
"""

from collections.abc import Sequence
from datetime import datetime, timedelta

from payme_ops.foundation.approvals import Approval
from payme_ops.foundation.clock import EAT, show
from payme_ops.foundation.evidence import Evidence, Verdict, plain
from payme_ops.foundation.record import cell

SEVERE, MODERATE = "Sev-1", "Sev-2"
_BAD = (Verdict.FAIL, Verdict.BYPASSED)
_CUT = 200


def severity(found: Sequence[Evidence]) -> str:
    """Severe when users were hit: orders could not be taken again, or a rollback was needed or failed."""
    names = {one.item for one in found}
    failed = {one.item for one in found if one.verdict is Verdict.FAIL}
    return SEVERE if "rollback" in names or "resume_orders" in failed else MODERATE


def due(level: str, ended: datetime) -> datetime:
    """When the meeting has to be: three calendar days, or five business days in Nairobi."""
    if level == SEVERE:
        return ended + timedelta(days=3)
    moment, left = ended.astimezone(EAT), 5
    while left:
        moment += timedelta(days=1)
        left -= moment.weekday() < 5
    return moment


def detect_and_mitigate(found: Sequence[Evidence]) -> tuple[timedelta | None, timedelta | None]:
    """From the deploy to the first bad finding, and from that to the previous commit being back."""
    deploys = [one for one in found if one.item == "deploy"]
    begun = min((one.started for one in deploys), default=None)
    bad = min(
        (one.ended for one in found if one.verdict in _BAD and (begun is None or one.ended >= begun)), default=None
    )
    back = max(
        (one.ended for one in found if one.item == "rollback" and one.verdict is Verdict.PASS and bad), default=None
    )
    detect = bad - begun if bad and begun else None
    return detect, back - bad if back and bad else None


def draft(
    release: str,
    outcome: str,
    numbered: Sequence[tuple[int, Evidence]],
    answers: Sequence[Approval],
    owner: str,
    now: datetime,
) -> str:
    """Markdown. No text of it becomes markup of its own."""
    found = [one for _, one in numbered]
    level = severity(found)
    detect, mitigate = detect_and_mitigate(found)
    rows = [
        f"| {show(one.ended)} | {cell(one.item)} | {one.verdict} | {cell(plain(one.measured)[:_CUT])} | {number} |"
        for number, one in numbered
    ]
    people = [
        f"| {show(one.responded_at) if one.responded_at else ''} | {cell(one.gate)} |"
        f" {cell(one.choice or 'no answer')} | {cell(one.responder or 'nobody in time')} | {cell(one.reason)} |"
        for one in answers
    ]
    bad = [f"- {cell(one.item)} ({number}): {cell(one.remedy)}" for number, one in numbered if one.verdict in _BAD]
    return "\n".join(
        [
            f"# Post-mortem of {cell(release)}: {cell(outcome)} (draft)",
            "",
            f"- Owner: {cell(owner)}",
            f"- Severity: {level}; meeting due {show(due(level, now))[:10]}",
            f"- Detected after: {_time(detect, 'the deploy')}",
            f"- Mitigated after: {_time(mitigate, 'the first bad finding')}",
            "",
            "## Timeline",
            "",
            "| When | Item | Verdict | Found | Evidence |",
            "|---|---|---|---|---|",
            *rows,
            "",
            "## Decisions",
            "",
            "| When | Gate | Choice | By | Reason |",
            "|---|---|---|---|---|",
            *people,
            "",
            "## What was wrong",
            "",
            *(bad or ["- Nothing that a machine has found: the decisions above say why."]),
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


def _time(span: timedelta | None, since: str) -> str:
    return f"{span.total_seconds():.0f} s from {since}" if span is not None else "not known from the evidence"
