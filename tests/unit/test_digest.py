"""The digest as words: what is not known is said and never zero, nothing from outside gets through, one message."""

import re
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from payme_ops.foundation.alert import Alert, OpenAlert, Severity
from payme_ops.foundation.alert_message import blocks as blocks_of
from payme_ops.foundation.approvals import Pending
from payme_ops.foundation.evidence import Evidence, Verdict
from payme_ops.foundation.lease import Holder
from payme_ops.foundation.sentry_api import Issue
from payme_ops.foundation.silences import Silence
from payme_ops.monitoring import digest
from payme_ops.monitoring.digest import Digest, Doctor, Errors, Message, NotKnown

NOW = datetime(2026, 11, 28, 4, 0, tzinfo=UTC)
PHONE, TOKEN = "+254712000111", "xoxb-1234-secret"
HOSTILE = [
    *("<!channel> *bold* <https://evil.example|click>", "`end of code`", "line\nline\r\n\x1b[31mred", "&<>" * 30),
    *(f"{'x ' * 18}{PHONE}", f"{'x ' * 32}{PHONE}", f"{'x ' * 18}{TOKEN}"),  # where lines and titles are cut
    *(f"user {PHONE} failed", f"Bearer {TOKEN}", "x" * 200, "", "\u202egnp.exe"),
]
WHY = "status of the answer"
TEXT = st.sampled_from(HOSTILE) | st.text("ab<>&`*_~\n\u202e\u2028é ", max_size=40)
TIMES = st.integers(0, 10_000).map(lambda minutes: NOW - timedelta(minutes=minutes))
ISSUES = st.lists(st.builds(Issue, st.sampled_from("abcd"), TEXT, TEXT, st.integers(0, 10**6), TIMES), max_size=12)
VERDICTS = st.sampled_from([Verdict.PASS, Verdict.FAIL, Verdict.INCONCLUSIVE])


def evidence(item: str, verdict: Verdict, measured: object = None, threshold: str = "") -> Evidence:
    return Evidence(item, verdict, measured or {"is": "2 h"}, threshold, "test", NOW, NOW, "test", "", "")


def open_alert(what: str, severity: Severity, since: datetime, acknowledged_by: str = "") -> OpenAlert:
    return OpenAlert(
        key="k",
        occurrence="o",
        severity=severity,
        what=what,
        since=since,
        raised_at=since,
        acknowledged_by=acknowledged_by,
    )


EVIDENCE = st.lists(
    st.builds(evidence, st.sampled_from(["database", "replica", "daily_age", "proof_age"]), VERDICTS, TEXT, TEXT),
    max_size=20,
)


def parts(found: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return found | st.builds(NotKnown, st.just(WHY) | TEXT)


ERRORS = st.builds(
    Errors,
    st.sampled_from(["api", "airflow"]),
    parts(st.tuples(st.integers(0, 10**7), st.floats(0, 10**6))),
    parts(ISSUES),
    parts(ISSUES),
    parts(ISSUES),
    st.none() | st.booleans() | st.builds(NotKnown, TEXT),
)
DIGESTS = st.builds(
    Digest,
    st.just(NOW),
    parts(st.lists(ERRORS, min_size=1, max_size=2)),
    parts(st.lists(st.builds(open_alert, TEXT, st.sampled_from(Severity), TIMES, TEXT), max_size=12)),
    parts(st.lists(st.builds(Silence, TEXT, TEXT, TEXT, TIMES), max_size=8)),
    parts(EVIDENCE),
    parts(st.lists(st.builds(Pending, TEXT, TEXT, TEXT, TIMES, TIMES), max_size=8)),
    parts(st.lists(st.builds(Holder, st.just("freeze:production") | TEXT, TEXT, TIMES), max_size=8)),
    parts(st.builds(Doctor, EVIDENCE, st.none() | st.dictionaries(TEXT, VERDICTS, max_size=8), st.just(NOW))),
)


def blocks(said: Message) -> list[dict[str, Any]]:
    return blocks_of(
        Alert(
            key="digest",
            occurrence="2026-11-28",
            severity=Severity.INFO,
            what=said.what,
            why=said.why,
            since=NOW,
            next=said.next,
            owner="on call",
            runbook="",
            link="",
        )
    )


@settings(max_examples=60, deadline=None)
@given(DIGESTS)
def test_whatever_there_is_to_say_is_one_message_without_a_secret(found: Digest) -> None:
    said = digest.render(found)
    code = blocks(said)[1]["text"]["text"]
    assert code.startswith("```")
    assert code.endswith("```")
    assert len(code) <= 3000
    assert not code.endswith("…```") or said.why.endswith("…")  # it was not alert.py that had to cut
    assert len(said.what) <= 100
    assert not re.search(r"\+2|xox", said.why)  # nor a part of them
    inside = code.removeprefix("```").removesuffix("```")
    assert not set("`<\r\x1b\u202e") & set(inside)
    assert all(len(line) <= 76 for line in said.why.splitlines())


PARTS = ("errors", "alerts", "silences", "freshness", "approvals", "leases", "doctor")
HEADS = ("ERRORS", "OPEN ALERTS", "SILENCES", "BACKUPS", "QUESTIONS TO PEOPLE", "LEASES HELD", "DOCTOR")


def quiet(**changed: Any) -> Digest:
    """A day on which all is well."""
    values: dict[str, Any] = {
        "at": NOW,
        "errors": [Errors("api", (0, 0.0), [], [], [])],
        **{name: [] for name in ("alerts", "silences", "approvals", "leases")},
        "freshness": [evidence("daily_age", Verdict.PASS), evidence("proof_age", Verdict.PASS)],
        "doctor": Doctor([evidence("database", Verdict.PASS)], {"database": Verdict.PASS}, NOW - timedelta(days=1)),
    }
    return Digest(**(values | changed))


@given(st.sets(st.sampled_from(PARTS)))
def test_each_part_that_is_missing_is_said_and_counts_as_something_to_look_at(missing: set[str]) -> None:
    said = digest.render(quiet(**{name: NotKnown(f"429, of {name}") for name in missing}))
    lines = said.why.splitlines()
    for name, head in zip(PARTS, HEADS, strict=True):
        found = next((line for line in lines if line.startswith(head)), "")
        assert found.endswith(f": not known, 429, of {name}") is (name in missing)
        assert found or head.lower() in lines[-1]
    assert said.what.endswith(THINGS[min(len(missing), 2)].format(len(missing)))


THINGS = ("nothing to look at", "1 thing to look at", "{} things to look at")


@pytest.mark.parametrize("part", ["counts", "top", "new", "regressed"])
def test_what_sentry_did_not_say_is_no_zero(part: str) -> None:
    known: dict[str, Any] = {"counts": (0, 1.0), "top": [], "new": [], "regressed": []}
    errors = Errors("api", **(known | {part: NotKnown("429, asked to wait 60 s")}))
    why = digest.render(quiet(errors=[errors])).why
    assert "> Sentry (api): not known, 429, asked to wait 60 s" in why
    about = {"counts": "ERRORS of api in 24 h", "top": "  by count", "new": "  new", "regressed": "  back"}[part]
    line = next(line for line in why.splitlines() if line.startswith(about))
    assert line.endswith("not known, 429, asked to wait 60 s")


def test_where_not_all_kinds_were_asked_for_it_says_so() -> None:
    found = [Issue(str(number), "KeyError", "", 1, NOW) for number in range(digest.MOST_KINDS)]
    said = digest.render(quiet(errors=[Errors("api", (300, 300.0), found[:5], found, found[:1])]))
    assert "> api: 300 or more kinds of error new" in said.why
    assert "> api: 1 kind of error back after it was resolved" in said.why


def test_a_quiet_day() -> None:
    said = digest.render(quiet())
    assert said.what == "Digest of Saturday 28 November: nothing to look at"
    assert said.next == "Nothing. Runbook: docs/runbooks/daily_digest.md"
    assert ">" not in said.why


def test_a_bad_day_says_first_what_to_look_at() -> None:
    new = Issue("1", "TypeError: amount of undefined", "POST /orders", 21, NOW)
    bad = quiet(
        errors=[Errors("api", (37, 12.4), [new], [new], [], heard=False)],
        alerts=[open_alert("backup_daily failed", Severity.CRITICAL, NOW - timedelta(hours=3))],
        freshness=[evidence("proof_age", Verdict.FAIL, {"is": "9.0 days"}, "8 days at most")],
        approvals=[Pending("backup_restore/1", "swap", "Replace payme?", NOW, NOW + timedelta(minutes=90))],
        leases=[Holder("freeze:production", "release/1", NOW - timedelta(hours=1))],
        doctor=Doctor([evidence("replica", Verdict.FAIL, {"behind": "400 s"})], {"replica": Verdict.PASS}, NOW),
    )
    said = digest.render(bad)
    assert said.what == "Digest of Saturday 28 November: 8 things to look at"
    first, _, rest = said.why.partition("\n\n")
    assert first.splitlines() == [
        "> orders are stopped in production for 1 h",
        "> 1 open alert nobody has acknowledged: backup_daily failed",
        "> backups: proof age MISSED",
        "> 1 question waits for an answer, 1 h 30 min are left",
        "> api: 37 errors, 3.0 times the mean of 12.4 a day",
        "> Sentry (api) did not hear a test event: quota full? There may be more",
        "> api: 1 kind of error new",
        "> doctor: replica FAIL",
    ]
    assert "  MISSED proof age: 9.0 days (8 days at most)" in rest
    assert "  replica: pass -> FAIL: behind 400 s" in rest
    assert "     21 x NEW TypeError: amount of undefined | POST /orders\n" in rest
    assert "POST /orders" not in rest.partition("new: 1")[2]  # said once


def test_details_give_way_and_what_to_look_at_stays() -> None:
    issue = Issue("1", "&" * 70, "", 1, NOW)
    alerts = [open_alert("<" * 70, Severity.WARNING, NOW) for _ in range(40)]
    why = digest.render(
        quiet(
            errors=[Errors(name, (9, 1.0), [issue] * 5, [issue] * 5, [issue] * 5) for name in ("a", "b")], alerts=alerts
        )
    ).why
    assert len(digest._escaped(why)) <= digest.MAX_TEXT
    assert "> 40 open alerts nobody has acknowledged: <<<" in why
    assert "DOCTOR: 1 of 1 checks pass" in why


def test_doctor_says_what_is_worse_first_then_better_and_what_stays() -> None:
    now = [evidence(name, verdict) for name, verdict in (("a", Verdict.PASS), ("b", Verdict.FAIL), ("c", Verdict.FAIL))]
    before = {"a": Verdict.FAIL, "b": Verdict.PASS, "c": Verdict.FAIL, "gone": Verdict.PASS}
    why = digest.render(quiet(doctor=Doctor(now, before, NOW - timedelta(days=1)))).why
    at = why.index("DOCTOR")
    assert why[at:].splitlines() == [
        "DOCTOR: 1 of 3 checks pass; 3 changed since Fri 07:00",
        "  b: pass -> FAIL: is 2 h",
        "  a: FAIL -> pass",
        "  gone: pass -> not looked at",
        "  c is still FAIL",
        "",
        "NONE: open alerts, questions to people, leases held, silences",
    ]


@given(st.integers(0, 400), st.integers(0, 100_000))
def test_the_mean_is_a_days_of_the_week_before(today: int, week: int) -> None:
    begin, day = digest.window(NOW + timedelta(minutes=37))
    assert (day - begin, day) == (timedelta(days=7), NOW - timedelta(days=1))
    assert digest.counts({day: today, begin: week}, day) == (today, week / 7)
