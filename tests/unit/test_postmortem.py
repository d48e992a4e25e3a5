"""The draft of a post-mortem: every line has its evidence, times are computed, no text becomes markup."""

import re
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from payme_ops.foundation import evidence
from payme_ops.foundation.approvals import Approval
from payme_ops.foundation.evidence import Evidence, Verdict
from payme_ops.release import postmortem

AT = datetime(2026, 12, 4, 9, tzinfo=UTC)  # a Friday


def shown(item: str, verdict: Verdict, second: int, measured: Any = "x", remedy: str = "") -> Evidence:
    began, ended = AT + timedelta(seconds=second - 1), AT + timedelta(seconds=second)
    return Evidence(item, verdict, measured, "", "", began, ended, "", evidence.digest(measured), remedy)


BAD = [
    (7, shown("deploy", Verdict.PASS, 10)),
    (8, shown("watch", Verdict.FAIL, 310, "a breach", "look at its log")),
    (9, shown("rollback", Verdict.PASS, 340)),
]


def test_times_are_those_of_the_evidence() -> None:
    found = [one for _, one in BAD]
    assert postmortem.detect_and_mitigate(found) == (timedelta(seconds=301), timedelta(seconds=30))
    assert postmortem.detect_and_mitigate(found[:1]) == (None, None)
    assert postmortem.severity(found) == postmortem.SEVERE
    assert postmortem.severity(found[:1]) == postmortem.MODERATE


def test_the_figures_are_those_that_are_known() -> None:
    found = [shown("freeze_orders", Verdict.PASS, 4), *(one for _, one in BAD)]
    assert postmortem.figures(found, []) == {
        "deploy to first bad finding": "5 min 1 s",
        "first bad finding to previous commit back": "30 s",
    }
    assert postmortem.figures([*found, shown("resume_orders", Verdict.PASS, 124)], [])["orders stopped for"] == "2 min"
    assert postmortem.figures([], []) == {}


@pytest.mark.parametrize(("level", "day"), [(postmortem.SEVERE, "2026-12-07"), (postmortem.MODERATE, "2026-12-11")])
def test_it_is_due_in_three_days_or_five_working_days(level: str, day: str) -> None:
    assert f"{postmortem.due(level, AT):%Y-%m-%d}" == day


def answered(gate: str, shown: Evidence, choice: str | None, second: int = 0, reason: str = "") -> Approval:
    """By a person, or after its time by nobody."""
    by, at = ("approver", AT + timedelta(seconds=second)) if choice else ("", None)
    return Approval("r", gate, shown.sha256, "oncall", choice, by, reason, AT, at)


def test_a_persons_no_after_the_deploy_is_how_it_was_detected() -> None:
    watched = shown("watch", Verdict.INCONCLUSIVE, 300)
    found = [BAD[0][1], watched, shown("rollback", Verdict.PASS, 500)]
    no = answered("keep_release", watched, "Reject", 410)
    assert postmortem.detect_and_mitigate(found, [no]) == (timedelta(seconds=401), timedelta(seconds=90))
    assert postmortem.detect_and_mitigate(found, [answered("keep_release", watched, "Approve", 410)]) == (None, None)


def test_what_was_bad_before_the_deploy_and_a_rollback_before_the_finding_are_none() -> None:
    early, late = shown("tests_passing", Verdict.FAIL, 5), shown("rollback", Verdict.PASS, 340)
    assert postmortem.detect_and_mitigate([early, BAD[0][1]]) == (None, None)
    assert postmortem.detect_and_mitigate([early]) == (None, None)
    twice = [late, shown("rollback", Verdict.PASS, 900), shown("rollback", Verdict.PASS, 20), BAD[0][1], BAD[1][1]]
    assert postmortem.detect_and_mitigate(twice)[1] == timedelta(seconds=30)


def test_orders_that_are_not_seen_to_be_taken_again_are_severe() -> None:
    stopped, failed = shown("freeze_orders", Verdict.PASS, 10), shown("resume_orders", Verdict.FAIL, 20)
    taken = shown("resume_orders", Verdict.PASS, 130)
    assert postmortem.orders_stopped([stopped, taken]) == timedelta(seconds=120)
    assert postmortem.orders_stopped([taken]) is None
    assert postmortem.severity([stopped]) == postmortem.SEVERE
    assert postmortem.severity([stopped, taken]) == postmortem.MODERATE
    assert postmortem.severity([stopped, failed, taken]) == postmortem.SEVERE
    text = postmortem.draft("r", "FAILED", [(1, stopped), (2, taken)], [], "o", AT)
    assert "- Orders were stopped for: 2 min" in text


def test_the_draft_says_what_happened_and_who_decided() -> None:
    watched = BAD[1][1]
    answer = answered("keep_release", watched, "Reject", 320, "customers call")
    text = postmortem.draft("production-2.4.1-aaaaaaa", "ROLLED BACK", BAD, [answer], "PayMe on call", AT)
    assert "- Owner: PayMe on call" in text
    assert "- Detected after: 5 min 1 s from the deploy" in text
    assert "- Mitigated after: 30 s from the first bad finding" in text
    assert "- Severity: Sev-1; meeting due 2026-12-07" in text
    digest = watched.sha256[:16]
    rows = [line for line in text.split("\n") if line.startswith("| 2026")]
    assert rows[1:3] == [
        f"| 2026-12-04 12:05:10 EAT | watch | fail | a breach |  | 8 | {digest} |",
        f"| 2026-12-04 12:05:20 EAT | keep_release | Reject | customers call | approver | 8 | {digest} |",
    ]
    assert "- watch (8): look at its log" in text
    assert "- keep_release: Reject by approver: customers call" in text
    assert "Orders were stopped" not in text


def test_a_failure_that_was_measured_again_is_said_to_be() -> None:
    numbered = [(1, shown("deploy", Verdict.FAIL, 5, remedy="wait")), (2, shown("deploy", Verdict.PASS, 9))]
    assert "- deploy (1), measured again later: wait" in postmortem.draft("r", "FAILED", numbered, [], "o", AT)


def test_without_a_finding_or_a_no_it_says_so() -> None:
    text = postmortem.draft("r", "FAILED", [], [], "o", AT)
    assert "- Nothing that a machine has found, and nobody said no." in text
    assert text.count("not known from the evidence") == 2


TEXT = st.text(max_size=60)


@given(TEXT, st.lists(st.tuples(st.integers(0, 3), st.sampled_from(["Approve", "Reject", None]), TEXT), max_size=4))
def test_every_line_of_the_timeline_resolves_to_its_evidence_and_no_text_ends_a_cell(
    text: str, given_answers: list[tuple[int, str | None, str]]
) -> None:
    numbered = [
        (number, shown(f"item {number}", Verdict.FAIL, number, f"{text}{number}", text)) for number in (3, 7, 4)
    ]
    unknown = shown("item", Verdict.PASS, 9, "what nobody recorded")
    sources = [*(one for _, one in numbered), unknown]
    answers = [answered(f"gate {text}", sources[at], choice, at, reason) for at, choice, reason in given_answers]
    draft = postmortem.draft(text, "FAILED", numbered, answers, text, AT)
    table = draft.split("## Timeline")[1].split("## What was wrong")[0]
    rows = [re.split(r"(?<!\\)\|", line) for line in table.split("\n") if line.startswith("| 2026")]
    assert len(rows) == 3 + sum(at < 3 for at, _, _ in given_answers)
    digests = {str(number): one.sha256[:16] for number, one in numbered}
    assert all(len(row) == 9 and digests[row[6].strip()] == row[7].strip() for row in rows)
    times = [row[1] for row in rows]
    assert times == sorted(times)
