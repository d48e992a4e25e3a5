"""The tour runs docs/restore-by-hand.md, and fits docs/tour.md and the migration, as they are written today."""

import re
import subprocess
from datetime import UTC, datetime, timedelta

import pytest

from sandbox import tour
from sandbox.airflow import ASKED_FOR_SECONDS
from sandbox.payme_app.fleet import Totals
from sandbox.payme_app.versions import VERSIONS
from sandbox.supervisor import SandboxError
from sandbox.tour import by_hand, count, encrypted_phones, ground
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


@pytest.mark.parametrize(
    ("state", "seconds", "answerable"),
    [
        ("awaiting_input", ASKED_FOR_SECONDS + 1, True),
        ("awaiting_input", ASKED_FOR_SECONDS - 1, False),
        ("success", ASKED_FOR_SECONDS + 1, False),
    ],
)
def test_a_question_is_put_once_its_answer_cannot_be_lost(state: str, seconds: int, answerable: bool) -> None:
    now = datetime(2026, 1, 28, tzinfo=UTC)
    task = {"task_id": "approve_start", "state": state, "start_date": (now - timedelta(seconds=seconds)).isoformat()}
    assert ground.asks(task, now) is answerable


def test_the_line_begins_with_what_must_stay_zero() -> None:
    tasks = [
        {"task_id": "encrypt", "state": state} for state in ("running", "up_for_retry", "running", "success", None)
    ]
    totals = Totals(1234, 567, failed_queries=1, wrong_reads=2, disconnects=0, what={})
    assert count.line(totals, 3, encrypted_phones.doing(tasks)) == (
        "   failed 1 / wrong 2 / lost 3   of 1,234 requests, 567 writes acknowledged"
        "   encrypt runs, encrypt is tried again soon"
    )
