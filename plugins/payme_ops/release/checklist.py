"""The checklist of a release as data: the mission's items, who answers each, and for how long an answer holds.

A machine's item asks a person only where it could not tell; a person's item always asks; an action's evidence is what
was read back after it. What was found is evidence under the release's run; approvals are bound to its digest.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from textwrap import shorten
from typing import Any

from payme_ops.foundation import approvals
from payme_ops.foundation.approvals import Approval
from payme_ops.foundation.clock import show
from payme_ops.foundation.errors import NotApproved
from payme_ops.foundation.evidence import Evidence, Finding, Verdict, plain
from payme_ops.foundation.scrub import scrub_all
from payme_ops.release import request
from payme_ops.release.request import Release


class Kind(StrEnum):
    """Who answers an item."""

    MACHINE = "machine"
    PERSON = "person"
    ACTION = "action"


class Section(StrEnum):
    """When: the headings of the mission's checklist."""

    DAYS_BEFORE = "48 hours before"
    HOUR_BEFORE = "1 hour before"
    DURING = "During deployment"
    AFTER = "After deployment"


@dataclass(frozen=True)
class Item:
    """One item. `ask` is the question to a person; evidence older than `ttl` is measured again for the go/no-go."""

    name: str
    section: Section
    title: str
    kind: Kind
    expected: str
    ask: str = ""
    ttl: timedelta | None = None


_FOUND_CHARACTERS = 300  # of what was found, in the table of the go or no-go
_DAY, _HOURS = timedelta(hours=24), timedelta(hours=2)

_ITEMS = (
    Item(
        "code_review",
        Section.DAYS_BEFORE,
        "Code review completed",
        Kind.MACHINE,
        "an approval of exactly this commit by another person than its author",
        "Was exactly this commit reviewed by another person than its author?",
        _DAY,
    ),
    Item(
        "tests_passing",
        Section.DAYS_BEFORE,
        "All tests passing",
        Kind.MACHINE,
        "every required check succeeded for this commit",
        "Did every required check pass for exactly this commit?",
        _DAY,
    ),
    Item(
        "staging_healthy",
        Section.DAYS_BEFORE,
        "Staging environment validated",
        Kind.MACHINE,
        "staging runs this commit and is healthy",
        "Does staging run exactly this commit, and is it well?",
        _DAY,
    ),
    Item(
        "qa_sign_off",
        Section.DAYS_BEFORE,
        "Staging signed off by QA",
        Kind.PERSON,
        "QA has tried it on staging",
        "Has QA signed off what runs on staging?",
    ),
    Item(
        "migrations_tested",
        Section.DAYS_BEFORE,
        "Database migrations tested",
        Kind.MACHINE,
        "up, down and up again on a restored backup",
        "Go without a way back for the database?",
        timedelta(hours=72),
    ),
    Item(
        "backup_scheduled",
        Section.DAYS_BEFORE,
        "Backup scheduled",
        Kind.MACHINE,
        "a verified backup, and one scheduled before the window",
        "Is there a backup to go back to?",
        _HOURS,
    ),
    Item(
        "rollback_plan",
        Section.DAYS_BEFORE,
        "Rollback plan documented",
        Kind.MACHINE,
        "the plan is in the repository at this commit, and the previous commit can be deployed",
        "Is there a plan to go back by?",
        _DAY,
    ),
    Item(
        "rollback_plan_agreed",
        Section.DAYS_BEFORE,
        "Rollback plan agreed to",
        Kind.PERSON,
        "its owner has read it",
        "Has the owner of the service read the rollback plan, and agrees?",
    ),
    Item(
        "application_environment",
        Section.DAYS_BEFORE,
        "Environment variables valid",
        Kind.MACHINE,
        "every variable the application needs is there and can be meant",
        "Are the application's variables complete and right?",
        _DAY,
    ),
    Item(
        "team_notified",
        Section.DAYS_BEFORE,
        "Team notified of maintenance window",
        Kind.ACTION,
        "Slack has taken the announcement",
        "Was the team told of the window in another way?",
    ),
    Item(
        "status_page",
        Section.DAYS_BEFORE,
        "Status page updated",
        Kind.ACTION,
        "the maintenance is on the status page",
        "Is the maintenance announced to users in another way?",
        _DAY,
    ),
    Item(
        "support_standby",
        Section.HOUR_BEFORE,
        "Support team on standby",
        Kind.PERSON,
        "support knows and answers",
        "Does support stand by for the whole window?",
    ),
    Item(
        "bypasses",
        Section.HOUR_BEFORE,
        "Nothing bypassed",
        Kind.MACHINE,
        "no task of this release was set by hand",
        "May it go on although that could not be looked up?",
    ),
    Item(
        "go_no_go",
        Section.HOUR_BEFORE,
        "Go or no-go",
        Kind.PERSON,
        "two people other than who asked for it",
    ),
    Item(
        "autoscaling",
        Section.HOUR_BEFORE,
        "Autoscaling disabled",
        Kind.ACTION,
        "as many replicas as now, fixed, the former limits kept",
        "Is autoscaling off, and are its limits written down?",
    ),
    Item(
        "freeze_orders",
        Section.HOUR_BEFORE,
        "New orders stopped, or users warned",
        Kind.ACTION,
        "none in flight, and an order of the test merchant is refused",
    ),
    Item(
        "final_backup",
        Section.HOUR_BEFORE,
        "Final database backup",
        Kind.ACTION,
        "complete, read back, taken after orders were stopped",
    ),
    Item("deploy", Section.DURING, "Deployed", Kind.ACTION, "posted once, and this commit runs"),
    Item(
        "smoke",
        Section.DURING,
        "An order and its refund",
        Kind.MACHINE,
        "both read back for the test merchant",
    ),
    Item(
        "resume_orders",
        Section.DURING,
        "Orders are taken again",
        Kind.ACTION,
        "an order of the test merchant is taken",
    ),
    Item(
        "autoscaling_restored",
        Section.AFTER,
        "Autoscaling restored",
        Kind.ACTION,
        "the limits from before",
    ),
    Item(
        "health",
        Section.AFTER,
        "Health checks",
        Kind.MACHINE,
        "healthy five times in a row, younger than the deploy, the right commit",
        "Is the application well, with the right commit?",
    ),
    Item(
        "features_confirmed",
        Section.AFTER,
        "All features work",
        Kind.PERSON,
        "support has tried them",
        "Do all features work?",
    ),
    Item(
        "watch",
        Section.AFTER,
        "Watched for two hours",
        Kind.MACHINE,
        "health, response times, errors and database stay within their limits",
        "Keep this release? A rejection, or no answer, rolls it back where that is safe.",
    ),
    Item("rollback", Section.AFTER, "Rolled back", Kind.ACTION, "the previous commit runs and is healthy"),
    Item(
        "status_page_closed",
        Section.AFTER,
        "Status page closed",
        Kind.ACTION,
        "the maintenance is completed on the status page",
        "Is the status page up to date?",
    ),
)

ITEMS = {item.name: item for item in _ITEMS}

# What has to be so before anybody is asked for the go/no-go.
PREPARED = (
    *(item.name for item in _ITEMS if item.section is Section.DAYS_BEFORE),
    "support_standby",
    "bypasses",
)
GATES = ("go_no_go_first", "go_no_go_second")


def is_stale(item: Item, found: Evidence | None, answer: Approval | None, now: datetime) -> bool:
    """Whether it has to be looked at again: it was not, it neither passed nor was approved, or it is too old."""
    if found is None or not is_settled(found, answer):
        return True
    return item.ttl is not None and now - found.ended > item.ttl


def is_settled(found: Evidence | None, answer: Approval | None) -> bool:
    """Whether it passed, or a person who may has approved just that evidence."""
    if found is None or found.verdict in (Verdict.FAIL, Verdict.BYPASSED):
        return False
    return found.verdict is Verdict.PASS or is_approved(found, answer)


def is_approved(found: Evidence, answer: Approval | None) -> bool:
    """Whether that is an approval of that evidence."""
    try:
        approvals.check(answer, gate=found.item, digest=found.sha256)
    except NotApproved:
        return False
    return True


def open_items(names: Iterable[str], found: Mapping[str, Evidence], answers: Mapping[str, Approval]) -> list[str]:
    """Which of these items neither passed nor were approved, in their order."""
    return [name for name in names if not is_settled(found.get(name), answers.get(name))]


def go_no_go(release: Release, found: Mapping[str, Evidence], answers: Mapping[str, Approval]) -> Finding:
    """What those who decide are shown: the request, and each item with its figures. It always asks.

    An item that failed, or was not looked at, closes the gate.
    """
    rows = [_row(ITEMS[name], found.get(name), answers.get(name)) for name in PREPARED]
    measured = {**request.facts(release), "checklist": rows}
    closed = (Verdict.FAIL, Verdict.BYPASSED)
    wrong = [name for name in PREPARED if found.get(name) is None or found[name].verdict in closed]
    if wrong:
        todo = "; ".join(f"{name}: {found[name].remedy if name in found else 'run its task'}" for name in wrong)
        return Finding(Verdict.FAIL, measured, todo)
    return Finding(Verdict.INCONCLUSIVE, measured, "read the figures, then decide: this is the go or no-go")


def _row(item: Item, found: Evidence | None, answer: Approval | None) -> dict[str, Any]:
    expected = {"item": item.title, "expected": item.expected}
    if found is None:
        return {**expected, "is": "not looked at", "found": "", "by": "", "at": "", "evidence": ""}
    by = answer.responder if answer and is_approved(found, answer) else ""
    return {
        **expected,
        "is": "approved" if by else found.verdict.value,
        "found": shorten(plain(found.measured), _FOUND_CHARACTERS, placeholder=" …"),
        "by": by or "measured",
        "at": show(found.ended),
        "evidence": found.sha256[:16],
    }


def changed_since(release: Release, shown: Evidence, found: Mapping[str, Evidence]) -> list[str]:
    """What is not as it stood in the go/no-go any more: the request, items with other evidence."""
    stood = {row["item"]: (row["evidence"], row["at"]) for row in shown.measured["checklist"]}
    asked = scrub_all(request.facts(release))
    other = [] if asked == {name: shown.measured.get(name) for name in asked} else ["request"]
    return other + [
        name
        for name in PREPARED
        if name not in found or stood.get(ITEMS[name].title) != (found[name].sha256[:16], show(found[name].ended))
    ]


def newest(found: Sequence[Evidence]) -> dict[str, Evidence]:
    """The last evidence of each item."""
    return {one.item: one for one in found}
