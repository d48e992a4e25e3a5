"""The steps of the migration that change the table, and the gates before and after each.

A gate measures its checks, records each, and their sum: the worst verdict. What a person decides is bound to the sum.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from payme_ops.foundation import evidence
from payme_ops.foundation.clock import utc_now
from payme_ops.foundation.errors import GateClosed, Unavailable
from payme_ops.foundation.evidence import Check, Evidence, Finding, Verdict, plain
from payme_ops.foundation.progress import Report
from payme_ops.migration import expand, finish, switch
from payme_ops.migration.desk import MigrationDesk

_WORST_FIRST = (Verdict.FAIL, Verdict.INCONCLUSIVE, Verdict.BYPASSED, Verdict.PASS)


@dataclass(frozen=True)
class Step:
    """Look, do, look, and the way back; each may be run again after anything."""

    name: str
    before: Callable[[MigrationDesk], list[Check]]
    do: Callable[[MigrationDesk, Report], dict[str, Any]]
    after: Callable[[MigrationDesk], list[Check]]
    undo: Callable[[MigrationDesk, Report], dict[str, Any]]

    @property
    def gate(self) -> str:
        """Item of the sum before it, which an approval is bound to."""
        return f"before_{self.name}"


EXPAND = Step("expand", expand.checks_before_expand, expand.do_expand, expand.checks_after_expand, expand.undo_expand)
FINISH = Step("finish", finish.checks_before_finish, finish.do_finish, finish.checks_after_finish, finish.undo_finish)
RELAX = Step("relax", switch.checks_before_relax, switch.do_relax, switch.checks_after_relax, switch.undo_relax)
BROWN_OUT = Step(
    "brown_out",
    switch.checks_before_brown_out,
    switch.do_brown_out,
    switch.checks_after_brown_out,
    switch.undo_brown_out,
)
SWITCH = Step("switch", switch.checks_before_switch, switch.do_switch, switch.checks_after_switch, switch.undo_switch)
END_SHIM = Step(
    "end_shim",
    switch.checks_before_end_shim,
    switch.do_end_shim,
    switch.checks_after_end_shim,
    switch.undo_end_shim,
)
STEPS = {step.name: step for step in (EXPAND, FINISH, RELAX, BROWN_OUT, SWITCH, END_SHIM)}


def gate(desk: MigrationDesk, item: str, checks: list[Check], *, ask: str = "") -> Evidence:
    """Measure; record each check and the sum. With `ask` what passes is still put before a person, with these words.

    Raises GateClosed when a check failed; what could not be measured is the sum's verdict.
    """
    return _gate(desk, item, checks, ask)[-1]


def take(desk: MigrationDesk, step: Step, report: Report) -> dict[str, Any]:
    """Do a step and look whether it is done.

    Raises what the step raises, GateClosed when it is not done, Unavailable when nobody answered. What a check cannot
    tell of itself (a brown-out under a role that has its right from elsewhere) is for the approval after it.
    """
    facts = step.do(desk, report)
    unanswered = [one for one in _gate(desk, f"after_{step.name}", step.after(desk), "") if _is_unanswered(one)]
    if unanswered:
        raise Unavailable(
            f"it cannot be seen whether {step.name} is done",
            expected="an answer",
            found=plain(unanswered[0].measured),
            remedy="run it again: what is done is not done twice",
        )
    return facts


def _gate(desk: MigrationDesk, item: str, checks: list[Check], ask: str) -> list[Evidence]:
    """The evidence of each check, and last the sum."""
    started = utc_now()
    found = [evidence.run_check(check, actor=desk.run) for check in checks]
    worst = min((one.verdict for one in found), key=_WORST_FIRST.index, default=Verdict.PASS)
    verdict = Verdict.INCONCLUSIVE if ask and worst is not Verdict.FAIL else worst
    remedies = dict.fromkeys([one.remedy for one in found if one.remedy and one.verdict is not Verdict.PASS])
    measured = {"checks": [{"item": one.item, "is": one.verdict, "found": plain(one.measured)} for one in found]}
    total = evidence.conclude(
        item,
        Finding(verdict, measured, "; ".join([*remedies, *([ask] if ask else [])])),
        threshold="every check passes",
        actor=desk.run,
        source=f"database {desk.database}",
        started=started,
    )
    evidence.record(desk.ops, desk.run, [*found, total])
    if worst is Verdict.FAIL:
        raise _closed(item, found)
    return [*found, total]


def _is_unanswered(one: Evidence) -> bool:
    """A service was away: that is how evidence.run_check writes it down."""
    return one.verdict is Verdict.INCONCLUSIVE and isinstance(one.measured, dict) and "error" in one.measured


def _closed(item: str, found: list[Evidence]) -> GateClosed:
    wrong = [one for one in found if one.verdict is Verdict.FAIL]
    return GateClosed(
        f"the gate {item} is closed",
        expected="; ".join(f"{one.item}: {one.threshold}" for one in wrong),
        found="; ".join(f"{one.item}: {plain(one.measured)}" for one in wrong),
        remedy="; ".join(dict.fromkeys(one.remedy for one in wrong)),
    )
