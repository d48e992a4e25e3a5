"""Whose answer counts, and for what."""

from collections.abc import Iterator
from datetime import timedelta

import pytest

from payme_ops.foundation import approvals
from payme_ops.foundation.clock import utc_now
from payme_ops.foundation.errors import NotApproved, PaymeOpsError
from sandbox.postgres import Cluster
from tests.support.ops import ops_database

RUN, GATE, DIGEST = "backup_restore/manual", "approve_swap", "a" * 64
REASON = "Nobody else answers the phone, and payments are down"


@pytest.fixture
def ops(cluster: Cluster) -> Iterator[str]:
    with ops_database(cluster) as conninfo:
        yield conninfo


def ask(ops: str, requested_by: str = "oncall", digest: str = DIGEST) -> None:
    approvals.ask(ops, run=RUN, gate=GATE, digest=digest, requested_by=requested_by)


def answer(ops: str, choice: str = "Approve", responder: str = "approver", reason: str = "") -> approvals.Approval:
    return approvals.answer(ops, run=RUN, gate=GATE, choice=choice, responder=responder, reason=reason)


def require(ops: str, digest: str = DIGEST) -> approvals.Approval:
    return approvals.require(ops, run=RUN, gate=GATE, digest=digest)


def test_another_persons_approval_of_what_was_shown_counts(ops: str) -> None:
    ask(ops)
    answer(ops)
    assert require(ops).responder == "approver"


def test_nothing_asked_or_nothing_answered_is_no_approval(ops: str) -> None:
    with pytest.raises(NotApproved, match="nobody's answer"):
        require(ops)
    ask(ops)
    with pytest.raises(NotApproved, match="marking the gate as success approves nothing"):
        require(ops)


@pytest.mark.parametrize("responder", ["approver", ""])
def test_a_rejection_or_no_answer_in_time_is_no_approval(ops: str, responder: str) -> None:
    ask(ops)
    answer(ops, choice="Reject", responder=responder)
    with pytest.raises(NotApproved, match=f"Reject by {responder or 'nobody in time'}"):
        require(ops)


def test_an_approval_by_nobody_is_none(ops: str) -> None:
    ask(ops)
    answer(ops, responder="")
    with pytest.raises(NotApproved, match="by nobody"):
        require(ops)


def test_an_approval_of_other_evidence_is_none(ops: str) -> None:
    ask(ops)
    answer(ops)
    with pytest.raises(NotApproved, match="other evidence"):
        require(ops, digest="b" * 64)


def test_a_later_question_wants_a_later_answer(ops: str) -> None:
    ask(ops)
    answer(ops)
    ask(ops)
    with pytest.raises(NotApproved, match="nobody's answer"):
        require(ops)


def test_who_triggered_the_run_cannot_approve_it_alone_without_a_reason(ops: str) -> None:
    ask(ops)
    answer(ops, responder="oncall", reason="  too short   ")
    with pytest.raises(NotApproved, match="who triggered the run"):
        require(ops)


def test_break_glass_is_a_reason_that_is_kept_without_numbers(ops: str) -> None:
    ask(ops)
    answer(ops, responder="oncall", reason=f"{REASON} +254700999888")
    assert require(ops).reason == f"{REASON} [phone]"
    assert require(ops).alone


def test_a_scheduled_run_wants_any_person(ops: str) -> None:
    ask(ops, requested_by="")
    answer(ops, responder="oncall")
    assert not require(ops).alone


def test_an_answer_is_never_changed(ops: str) -> None:
    ask(ops)
    answer(ops, choice="Reject")
    assert answer(ops, choice="Approve", responder="somebody").choice == "Reject"


def test_an_answer_without_a_question_is_an_error(ops: str) -> None:
    with pytest.raises(PaymeOpsError, match="asked nothing"):
        answer(ops)


def test_another_run_or_gate_does_not_count(ops: str) -> None:
    ask(ops)
    answer(ops)
    with pytest.raises(NotApproved):
        approvals.require(ops, run="another", gate=GATE, digest=DIGEST)
    with pytest.raises(NotApproved):
        approvals.require(ops, run=RUN, gate="another", digest=DIGEST)


def test_each_gate_by_another_person_and_one_alone_only_with_a_reason(ops: str) -> None:
    def answered(gate: str, responder: str, reason: str = "") -> None:
        approvals.ask(ops, run=RUN, gate=gate, digest=DIGEST, requested_by="oncall")
        approvals.answer(ops, run=RUN, gate=gate, choice="Approve", responder=responder, reason=reason)

    answered("first", "approver")
    answered("second", "approver")
    assert [one.gate for one in approvals.of_run(ops, RUN)] == ["first", "second"]
    with pytest.raises(NotApproved, match="the same person, approver"):
        approvals.require_distinct(approvals.of_run(ops, RUN))
    answered("second", "lead")
    approvals.require_distinct(approvals.of_run(ops, RUN))
    answered("first", "oncall", REASON)
    answered("second", "oncall", REASON)
    found = approvals.of_run(ops, RUN)
    approvals.require_distinct(found)
    assert [(one.gate, one.alone, one.responded_at is not None) for one in found] == [
        ("first", True, True),
        ("second", True, True),
    ]


def test_only_questions_that_stand_are_pending(ops: str) -> None:
    soon, later = utc_now() + timedelta(minutes=5), utc_now() + timedelta(hours=2)
    for gate, expires_at in (("asked_later", later), (GATE, soon), ("too_late", utc_now() - timedelta(minutes=1))):
        approvals.ask(ops, run=RUN, gate=gate, digest=DIGEST, requested_by="oncall", expires_at=expires_at)
    assert [one.gate for one in approvals.pending(ops)] == [GATE, "asked_later"]
    answer(ops, choice="Reject")
    assert [one.gate for one in approvals.pending(ops)] == ["asked_later"]
    approvals.ask(ops, run=RUN, gate="asked_later", digest="b" * 64, requested_by="oncall", expires_at=later)
    assert len(approvals.pending(ops)) == 1  # who asked again waits for the newer question alone
