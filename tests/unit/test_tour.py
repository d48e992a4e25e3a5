"""The tour runs docs/restore-by-hand.md as it is written today."""

import re
import subprocess

import pytest

from sandbox.supervisor import SandboxError
from sandbox.tour import by_hand

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
