"""What people were asked and what they answered, in the ops database: the one place that dangerous work asks.

An answer is bound to the digest of the evidence that was shown. It counts when another person than the one who
triggered the run gave it, or when one person alone gave a reason (break-glass).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from psycopg.rows import class_row

from payme_ops.foundation.errors import NotApproved, PaymeOpsError
from payme_ops.foundation.postgres import connect, speaking
from payme_ops.foundation.scrub import scrub
from payme_ops.foundation.sql import load

APPROVE = "Approve"
MIN_REASON_CHARACTERS = 20


@dataclass(frozen=True)
class Approval:
    """One question of a run and its answer. `choice` None: none yet. `requested_by` "": the scheduler."""

    run: str
    gate: str
    digest: str
    requested_by: str
    choice: str | None
    responder: str
    reason: str
    asked_at: datetime | None = None
    responded_at: datetime | None = None

    @property
    def alone(self) -> bool:
        """Whether who triggered the run also answered."""
        return self.responder == self.requested_by


@dataclass(frozen=True)
class Reminder:
    """A question that stands without an answer `minutes` after it was asked. `thread` is the key of its alerts."""

    id: int
    gate: str
    subject: str
    link: str
    thread: str
    asked_at: datetime
    expires_at: datetime
    minutes: int

    @property
    def occurrence(self) -> str:
        """What makes it once only among the alerts of its thread; include/sql/ops/due_reminders.sql spells it, too."""
        return f"reminder {self.id} after {self.minutes} min"


@dataclass(frozen=True)
class Pending:
    """A question without an answer that still stands; `subject` is what was asked."""

    run: str
    gate: str
    subject: str
    asked_at: datetime
    expires_at: datetime


def ask(
    conninfo: str,
    *,
    run: str,
    gate: str,
    digest: str,
    requested_by: str,
    subject: str = "",
    link: str = "",
    thread: str = "",
    expires_at: datetime | None = None,
) -> None:
    """Write the question down, before it is shown, with all that a reminder needs.

    `link` leads to where it is answered, `thread` is the key of the alert it was told under, after `expires_at` it
    counts as rejected. Raises DatabaseUnavailable, DatabaseError.
    """
    values = {"run": run, "gate": gate, "digest": digest, "requested_by": requested_by, "subject": scrub(subject)}
    values |= {"link": link, "thread": thread}
    with connect(conninfo, application="payme_ops:approval") as connection, speaking(f"ask at {gate}"):
        connection.execute(load("ops/ask_approval.sql"), {**values, "expires_at": expires_at})


def answer(conninfo: str, *, run: str, gate: str, choice: str, responder: str, reason: str) -> Approval:
    """Write the answer to the newest question down, once; a second one changes nothing.

    `responder` "" means that the time was over. Raises PaymeOpsError when nothing was asked.
    """
    values = {"run": run, "gate": gate, "choice": choice, "responder": responder, "reason": scrub(reason.strip())}
    with connect(conninfo, application="payme_ops:approval") as connection, speaking(f"answer {gate}"):
        connection.execute(load("ops/answer_approval.sql"), values)
    found = latest(conninfo, run=run, gate=gate)
    if found is None:
        raise PaymeOpsError(f"{gate} of {run} asked nothing", remedy="clear the gate: it asks again")
    return found


def latest(conninfo: str, *, run: str, gate: str) -> Approval | None:
    """The newest question of a gate and its answer. Raises DatabaseUnavailable, DatabaseError."""
    with (
        connect(conninfo, application="payme_ops:approval") as connection,
        speaking(f"read approval {gate}"),
        connection.cursor(row_factory=class_row(Approval)) as cursor,
    ):
        return cursor.execute(load("ops/latest_approval.sql"), {"run": run, "gate": gate}).fetchone()


def of_run(conninfo: str, run: str) -> list[Approval]:
    """The newest question of each gate of a run, in the order asked. Raises DatabaseUnavailable, DatabaseError."""
    with (
        connect(conninfo, application="payme_ops:approval") as connection,
        speaking("read approvals"),
        connection.cursor(row_factory=class_row(Approval)) as cursor,
    ):
        return cursor.execute(load("ops/approvals_of_run.sql"), {"run": run}).fetchall()


def reminders(conninfo: str, after_minutes: Sequence[int]) -> list[Reminder]:
    """What people have to be reminded of now and were not. Raises DatabaseUnavailable, DatabaseError."""
    with (
        connect(conninfo, application="payme_ops:approval") as connection,
        speaking("look for questions without an answer"),
        connection.cursor(row_factory=class_row(Reminder)) as cursor,
    ):
        return cursor.execute(load("ops/due_reminders.sql"), {"minutes": list(after_minutes)}).fetchall()


def pending(conninfo: str) -> list[Pending]:
    """What people are asked and have not answered yet, the first to expire first. Raises DatabaseUnavailable."""
    with (
        connect(conninfo, application="payme_ops:approval") as connection,
        speaking("look for questions without an answer"),
        connection.cursor(row_factory=class_row(Pending)) as cursor,
    ):
        return cursor.execute(load("ops/pending_approvals.sql")).fetchall()


def require(conninfo: str, *, run: str, gate: str, digest: str) -> Approval:
    """The approval of exactly this evidence. Raises NotApproved saying what is not as it must be."""
    return check(latest(conninfo, run=run, gate=gate), gate=gate, digest=digest)


def require_distinct(found: Sequence[Approval]) -> None:
    """Each by another person. One person alone counts for all of them with a reason. Raises NotApproved."""
    people = [one.responder for one in found if not one.alone]
    if twice := next((one for number, one in enumerate(people) if one in people[:number]), None):
        gates = ", ".join(one.gate for one in found)
        raise NotApproved(
            f"{gates} are not approved by different people",
            expected="another person for each",
            found=f"the same person, {twice}",
            remedy="clear the second gate and let another person answer",
        )


def check(found: Approval | None, *, gate: str, digest: str) -> Approval:
    """The same of an answer at hand. Raises NotApproved."""
    if found is None or found.choice is None:
        raise _not(gate, "nobody's answer", "wait for it; marking the gate as success approves nothing")
    if found.choice != APPROVE:
        who = found.responder or "nobody in time"
        raise _not(gate, f"{found.choice} by {who}", "trigger a new run if it is wanted after all")
    if found.digest != digest:
        raise _not(gate, "an approval of other evidence", "clear the gate: it shows what is true now")
    if not found.responder:
        raise _not(gate, "an approval by nobody", "clear the gate and let a person answer")
    if found.alone and len(found.reason) < MIN_REASON_CHARACTERS:
        raise _not(
            gate,
            f"an approval by {found.responder}, who triggered the run",
            "clear the gate and let another person answer; with nobody else there, give a break-glass reason"
            f" of {MIN_REASON_CHARACTERS} characters or more",
        )
    return found


def _not(gate: str, found: str, remedy: str) -> NotApproved:
    return NotApproved(f"{gate} is not approved", expected="another person's approval", found=found, remedy=remedy)
