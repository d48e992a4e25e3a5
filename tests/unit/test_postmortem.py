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
    (8, shown("watch", Verdict.FAIL, 310, remedy="look at its log")),
    (9, shown("rollback", Verdict.PASS, 340)),
]


def test_times_are_those_of_the_evidence() -> None:
    found = [one for _, one in BAD]
    assert postmortem.detect_and_mitigate(found) == (timedelta(seconds=301), timedelta(seconds=30))
    assert postmortem.detect_and_mitigate(found[:1]) == (None, None)
    assert postmortem.severity(found) == postmortem.SEVERE
    assert postmortem.severity(found[:1]) == postmortem.MODERATE


@pytest.mark.parametrize(("level", "day"), [(postmortem.SEVERE, "2026-12-07"), (postmortem.MODERATE, "2026-12-11")])
def test_it_is_due_in_three_days_or_five_working_days(level: str, day: str) -> None:
    assert f"{postmortem.due(level, AT):%Y-%m-%d}" == day


def test_the_draft_says_what_happened_and_who_decided() -> None:
    answer = Approval("r", "keep_release", "d", "oncall", "Reject", "approver", "", AT, AT)
    text = postmortem.draft("production-2.4.1-aaaaaaa", "ROLLED BACK", BAD, [answer], "PayMe on call", AT)
    assert "- Detected after: 301 s from the deploy" in text
    assert "- Mitigated after: 30 s from the first bad finding" in text
    assert "- Severity: Sev-1; meeting due 2026-12-07" in text
    assert "| 2026-12-04 12:05:10 EAT | watch | fail | x | 8 |" in text
    assert "| 2026-12-04 12:00:00 EAT | keep_release | Reject | approver |  |" in text
    assert "- watch (8): look at its log" in text


@given(st.text(max_size=60), st.sampled_from(list(Verdict)))
def test_every_line_of_the_timeline_names_its_evidence_and_no_text_ends_a_cell(text: str, verdict: Verdict) -> None:
    numbered = [(number, shown("item", verdict, number, text, text)) for number in range(1, 4)]
    draft = postmortem.draft(text, "FAILED", numbered, [], text, AT)
    table = draft.split("## Timeline")[1].split("## Decisions")[0]
    rows = [line for line in table.split("\n") if line.startswith("| 2026")]
    assert [re.split(r"(?<!\\)\|", row)[5].strip() for row in rows] == ["1", "2", "3"]
