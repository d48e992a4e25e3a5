"""A gate where a run waits for a person, on Airflow's approval operator; what counts is the row in the ops database.

The gate shows the evidence of one item and asks unless its verdict is pass. Marking it as success, or rewriting its
XCom, approves nothing: a dangerous task calls `require_approval` itself.
"""

import logging
from collections.abc import Mapping
from datetime import timedelta
from typing import Any

from airflow.providers.standard.exceptions import HITLRejectException
from airflow.providers.standard.operators.hitl import ApprovalOperator
from airflow.sdk import Context, Param
from airflow.sdk.exceptions import DownstreamTasksSkipped

from payme_ops.foundation import approvals, evidence
from payme_ops.foundation.approvals import MIN_REASON_CHARACTERS, Approval
from payme_ops.foundation.clock import utc_now
from payme_ops.foundation.evidence import Evidence, Verdict
from payme_ops.foundation.record import cell
from payme_ops.orchestration import alerting
from payme_ops.orchestration.connections import ops_db
from payme_ops.orchestration.doors import run_name

_log = logging.getLogger("payme_ops.approval")

_BREAK_GLASS = "break_glass_reason"
_MAX_ROWS = 40


class ApprovalGate(ApprovalOperator):
    """Asks a person to approve what the run's newest evidence of `evidence_item` says; no answer in time rejects.

    Does not ask when that evidence has passed. Rejected, what comes after it is skipped; approved by the person who
    triggered the run it fails, unless they gave a break-glass reason. It runs where answers may be written down: on the
    queue `desk`, except for releases (include/sql/ops/011_workers.sql).
    """

    def __init__(
        self, *, evidence_item: str, subject: str, response_timeout: timedelta, queue: str = "desk", **kwargs: Any
    ) -> None:
        kwargs.pop("params", None)  # the DAG's, which are not asked for here
        reason = Param(
            None,
            type=["null", "string"],
            source="task",
            title="Break-glass reason",
            description="Only if you triggered this run and nobody else can be reached: why you decide alone,"
            f" {MIN_REASON_CHARACTERS} characters or more. Everybody is told, and it is kept.",
        )
        super().__init__(
            subject=subject,
            response_timeout=response_timeout,
            defaults=self.REJECT,
            params={_BREAK_GLASS: reason},
            queue=queue,
            **kwargs,
        )
        self.evidence_item = evidence_item

    def execute(self, context: Context) -> Any:
        """Ask, or go on."""
        run, ops = self._run(context), ops_db()
        shown = evidence.latest(ops, run, self.evidence_item)
        if shown.verdict is Verdict.PASS:
            _log.info("%s passed, nobody is asked", self.evidence_item)
            return None
        self.body = to_markdown(shown)
        requested_by, patience = self._requester(context), self.response_timeout or timedelta(0)
        what = f"{self.subject} ({context['dag_run'].dag_id} waits for a person)"
        approvals.ask(
            ops,
            run=run,
            gate=self.task_id,
            digest=shown.sha256,
            requested_by=requested_by,
            subject=what,
            link=alerting.answer_page(context),
            thread=alerting.thread_of(context, self._thread(context)),
            expires_at=utc_now() + patience,
        )
        alerting.inform(
            context,
            what,
            f"Asked by {requested_by or 'the schedule'} in {run}."
            f" Unanswered for {patience.total_seconds() / 3600:g} h it counts as rejected.",
            f"{f'Another person than {requested_by}' if requested_by else 'Anybody'} answers at"
            f" {alerting.answer_page(context)}",
            thread=self._thread(context),
            link=alerting.answer_page(context),
        )
        return super().execute(context)

    def execute_complete(self, context: Context, event: dict[str, Any]) -> Any:
        """Write the answer down, and do as Airflow does."""
        try:
            given = super().execute_complete(context, event)
        except (DownstreamTasksSkipped, HITLRejectException):
            self._write_down(context, event)
            raise
        found = self._write_down(context, event)
        if found.choice == approvals.APPROVE:
            run, ops = self._run(context), ops_db()
            approvals.require(
                ops, run=run, gate=self.task_id, digest=evidence.latest(ops, run, self.evidence_item).sha256
            )
            self._tell_break_glass(context, found)
        return given

    def _run(self, context: Context) -> str:
        """What evidence and answer are filed under."""
        return run_name(context)

    def _requester(self, context: Context) -> str:
        """Who may not answer; empty for the schedule."""
        return context["dag_run"].triggering_user_name or ""

    def _thread(self, context: Context) -> str:  # noqa: ARG002
        """The key of the thread in Slack; empty for the DAG's own."""
        return ""

    def _tell_break_glass(self, context: Context, found: Approval) -> None:
        if found.alone:
            alerting.inform(
                context,
                f"Break-glass: {found.responder} approved {found.gate} alone",
                found.reason,
                "Look at it together as soon as somebody else is there",
                thread=self._thread(context),
            )

    def _write_down(self, context: Context, event: dict[str, Any]) -> Approval:
        person = event["responded_by_user"] or {}
        found = approvals.answer(
            ops_db(),
            run=self._run(context),
            gate=self.task_id,
            choice=event["chosen_options"][0],
            responder=str(person.get("name") or person.get("id") or ""),
            reason=str((event["params_input"] or {}).get(_BREAK_GLASS) or ""),
        )
        _log.info("%s: %s by %s", self.task_id, found.choice, found.responder or "nobody in time")
        return found


def require_approval(context: Context, *, gate: str, evidence_item: str) -> Approval:
    """The approval of the run's newest evidence of that item. Raises NotApproved, NotFound without evidence."""
    run, ops = run_name(context), ops_db()
    shown = evidence.latest(ops, run, evidence_item)
    return approvals.require(ops, run=run, gate=gate, digest=shown.sha256)


def to_markdown(shown: Evidence) -> str:
    """The evidence for a person who decides. No text of it becomes markup."""
    return "\n\n".join([*_parts(shown.measured, "##"), *([f"To do: {cell(shown.remedy)}"] if shown.remedy else [])])


def _parts(measured: Any, heading: str) -> list[str]:
    if not isinstance(measured, Mapping):
        return [cell(measured)]
    plain = {name: value for name, value in measured.items() if not _is_long(value)}
    lines = [f"- **{cell(name)}**: {cell(value) or 'none'}" for name, value in plain.items()]
    parts = ["\n".join(lines)] if lines else []
    for name, value in measured.items():
        if _is_long(value):
            inner = _table(value) if isinstance(value, list) else "\n\n".join(_parts(value, f"{heading}#"))
            parts.append(f"{heading} {cell(name)}\n\n{inner}")
    return parts


def _is_long(value: Any) -> bool:
    return (isinstance(value, Mapping) and bool(value)) or (
        isinstance(value, list) and bool(value) and all(isinstance(one, Mapping) for one in value)
    )


def _table(rows: list[Mapping[str, Any]]) -> str:
    names = list(rows[0])
    lines = [f"| {' | '.join(map(cell, names))} |", f"|{'---|' * len(names)}"]
    lines += [f"| {' | '.join(cell(row.get(name)) for name in names)} |" for row in rows[:_MAX_ROWS]]
    more = f"\n\nand {len(rows) - _MAX_ROWS} more" if len(rows) > _MAX_ROWS else ""
    return "\n".join(lines) + more
