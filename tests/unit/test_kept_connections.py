"""Which connections doctor asks for on which machine: those that the machine's role may read (docs/iam)."""

import re
from pathlib import Path

import pytest

from payme_ops.cli.kept_connections import KNOWN, NEEDED, Part

IAM = Path(__file__).resolve().parents[2] / "docs" / "iam"
_ON_ITS_OWN = {Part.TRIGGERER, Part.DAG_PROCESSOR}


def may_read(service: str) -> set[str]:
    return set(re.findall(r"connections/(payme_\w+)", (IAM / f"secrets_{service}.json").read_text()))


@pytest.mark.parametrize("part", Part)
def test_a_part_may_read_what_it_needs(part: Part) -> None:
    service = part if part in _ON_ITS_OWN else f"worker-{part}"
    assert set(NEEDED[part]) - may_read(service) == set()


def test_every_connection_that_a_machine_may_read_is_known() -> None:
    readable = {name for file in IAM.glob("secrets_*.json") for name in may_read(file.stem.removeprefix("secrets_"))}
    assert readable - set(KNOWN) == set()
