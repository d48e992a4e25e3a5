"""The published detection figures keep what was asked, and are those of the rule that watches."""

import json

import pytest

from bench import detect
from payme_ops.foundation.health import k_of_n


def test_what_is_published_keeps_what_was_asked() -> None:
    found = json.loads(detect.FILE.read_text())
    assert found["detect.clean_windows"] == 10_000
    assert found["detect.speedup_vs_3consecutive"] >= 5
    assert found["detect.false_alarm_rate"] <= 0.01
    assert found["detect.3_of_10.median_minutes_100pct"] == 1.5


def test_it_is_the_rule_that_watches_and_the_seed_makes_it_the_same_again() -> None:
    assert detect.RULES["3_of_10"] is k_of_n
    small = detect.simulate(failing=60, clean=200)
    assert small == detect.simulate(failing=60, clean=200)
    assert small["detect.3_of_10.found_25pct"] == 1.0


@pytest.mark.parametrize(("flaps", "index"), [("xx.xxx", 5), ("xx.xx.", None), ("xxx", 2)])
def test_three_in_a_row(flaps: str, index: int | None) -> None:
    assert detect.three_in_a_row([mark == "x" for mark in flaps]) == index
