"""The tour runs docs/restore-by-hand.md, and fits docs/tour.md and the migration, as they are written today."""

import re
import subprocess
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from payme_ops.foundation import evidence, record, signing
from payme_ops.foundation.errors import Untrusted
from payme_ops.release.checklist import GATES, ITEMS, Kind
from sandbox import payme_api, tour, world
from sandbox.airflow import ASKED_FOR_SECONDS, may_be_answered
from sandbox.builds import BUILDS
from sandbox.payme_app.fleet import Totals
from sandbox.payme_app.versions import VERSIONS
from sandbox.supervisor import SandboxError
from sandbox.tour import bad_release, by_hand, count, encrypted_phones, ground
from sandbox.world import PROJECT

NAMES = ("BUCKET", "DATABASE", "PROFILE", "TRUSTED_KEYS", "IDENTITY", "CLIENTS", "TARGET", "WORK", "PGSERVICE")
VALUES = {name: f"the {name.lower()}'s value" for name in NAMES}
PAGE = by_hand.PAGE.read_text()


@pytest.mark.parametrize("colour", [True, False])
def test_every_block_is_shown_and_run_in_order(colour: bool) -> None:
    script = by_hand.script(PAGE, VALUES, colour=colour)
    subprocess.run(["bash", "-n", "-c", script], check=True)
    blocks = re.findall(r"^```bash\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
    places = [script.index("\n" + block) for block in blocks[1:]]
    assert len(blocks) > 8
    assert places == sorted(places)
    assert script.count("\nprintf '") == len(blocks) + len(re.findall(r"^## \d", PAGE, re.MULTILINE))


def test_the_first_block_gets_the_values() -> None:
    first = by_hand.script(PAGE.split("```bash\numask")[0], VALUES, colour=False)
    names = " ".join(f'"${name}"' for name in NAMES)
    told = subprocess.run(
        ["bash", "-euc", f"{first}\nprintf '%s\\n' {names}"], capture_output=True, text=True, check=False
    )
    assert told.stdout.splitlines()[-len(NAMES) :] == list(VALUES.values()), told.stderr


def test_a_page_with_other_variables_is_refused() -> None:
    with pytest.raises(SandboxError, match=r"expected the variables .*TARGET.*; found BUCKET, NEW"):
        by_hand.script("## 1. Begin\n\n```bash\nBUCKET=a\nNEW=b\n```\n", VALUES, colour=False)


def test_every_step_is_in_the_docs() -> None:
    page = (PROJECT / "docs" / "tour.md").read_text()
    assert [int(step) for step in re.findall(r"^## Step (\d)", page, re.MULTILINE)] == sorted(tour.STEPS)
    assert [int(step) for step in re.findall(r"^    make tour STEP=(\d)$", page, re.MULTILINE)] == sorted(tour.STEPS)


def test_the_releases_of_step_3_are_those_that_the_form_comes_with() -> None:
    dag = (PROJECT / "dags" / "phone_encryption.py").read_text()
    form = dict(re.findall(r'"(\w+)": version\("([\d.]+)"', dag))
    deployed = {gate.removeprefix("fleet_"): version.number for gate, version in encrypted_phones.RELEASES.items()}
    assert deployed == form
    assert list(VERSIONS)[1:] == list(deployed.values())
    for task in encrypted_phones.PARTS:
        assert re.search(rf'"{task.removeprefix("look_before_").removeprefix("fleet_")}"', dag), task


@pytest.mark.parametrize(("seconds", "answerable"), [(ASKED_FOR_SECONDS + 1, True), (ASKED_FOR_SECONDS - 1, False)])
def test_a_question_is_answered_once_its_answer_cannot_be_lost(seconds: int, answerable: bool) -> None:
    now = datetime(2026, 1, 28, tzinfo=UTC)
    question = {"created_at": (now - timedelta(seconds=seconds)).isoformat()}
    assert may_be_answered(question, now) is answerable


@pytest.mark.parametrize(
    ("runs", "bad"), [("2.3.1", "2.4.5-leaking"), ("2.4.1", "2.4.5-leaking"), ("2.8.0", "2.8.1-leaking")]
)
def test_the_bad_build_of_step_5_knows_the_tables_of_what_runs(runs: str, bad: str) -> None:
    assert bad_release.bad_build(BUILDS[runs]).name == bad


@pytest.mark.parametrize("runs", ["2.5.0", "2.6.0", "2.7.0"])
def test_in_the_middle_of_a_migration_step_5_does_not_begin(runs: str) -> None:
    with pytest.raises(SandboxError, match=rf"step 3 was not finished.*found {runs}"):
        bad_release.bad_build(BUILDS[runs])


def test_the_bad_build_is_well_on_staging_and_turns_bad_under_traffic(tmp_path: Path) -> None:
    staging = payme_api.Application(tmp_path / "staging.jsonl", "", quiet=True)
    staging.start("2.4.5-leaking")
    production = payme_api.Application(tmp_path / "production.jsonl", "host=127.0.0.1 port=1")
    production.start("2.4.5-leaking")
    try:
        assert not production.acts("unhealthy")
        for one in (staging, production):
            one._since -= one.build.after_seconds
        assert production.acts("unhealthy")
        assert staging.health()[1]["status"] == "healthy"
    finally:
        production.stop()


def test_step_5_answers_what_a_release_asks_and_no_more() -> None:
    persons = {item.name for item in ITEMS.values() if item.kind is Kind.PERSON} - {"go_no_go"}
    assert set(bad_release.ANSWERS) == {*persons, *GATES}
    assert bad_release.DECISIONS == GATES
    assert bad_release.ANSWERS[GATES[0]] != bad_release.ANSWERS[GATES[1]]
    assert set(bad_release.ANSWERS.values()) <= set(world.USERS) - {"oncall"}


def test_the_page_of_a_record_tells_the_item_of_the_byte_that_step_5_flips() -> None:
    key = Ed25519PrivateKey.generate()
    now = datetime(2026, 11, 28, tzinfo=UTC)
    words = "three of ten looks unhealthy, at 2026-11-28 03:00:00 EAT (look 34): unhealthy, 80 ms, status unhealthy"
    found = [
        evidence.conclude(name, finding, threshold="", actor="a test", source="", started=now)
        for name, finding in (
            ("deploy", evidence.passed({"commit": "a" * 40})),
            ("watch", evidence.failed({"breach": words}, "see when")),
        )
    ]
    made = record.Record(
        kind="release", subject="2.4.5", run="release/a", actor="oncall", verdict="ROLLED BACK",
        started=now, ended=now, facts={}, evidence=tuple(found),
    )  # fmt: skip
    page, trusted = record.page(made, key), [signing.public_key(key)]
    assert record.verify(page, trusted, "KEYS") == made
    with pytest.raises(Untrusted, match=r"changed in item 2 \(watch\)"):
        record.verify(bad_release.flip(page, bad_release.breach(found[1])), trusted, "KEYS")


def test_the_line_begins_with_what_must_stay_zero() -> None:
    tasks = [
        {"task_id": "encrypt", "state": state} for state in ("running", "up_for_retry", "running", "success", None)
    ]
    totals = Totals(1234, 567, failed_queries=1, wrong_reads=2, disconnects=0, what={})
    assert count.line(totals, 3, ground.doing(tasks)) == (
        "   failed 1 / wrong 2 / lost 3   of 1,234 requests, 567 writes acknowledged"
        "   encrypt runs, encrypt is tried again soon"
    )
