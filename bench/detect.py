"""`python -m bench.detect`: how fast the watch after a release finds a bad backend, and how often it cries wolf.

The rule is the one that watches (payme_ops.foundation.health.k_of_n), against three failures in a row, on the same
looks: one each 30 s for two hours, each of which fails by itself, with the backend's share of failures or, when all is
well, with 1% noise. Seeded; writes bench/detect.json.
"""

import json
import random
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median

from payme_ops.foundation.clock import EAT, utc_now
from payme_ops.foundation.health import k_of_n

FILE = Path(__file__).with_name("detect.json")
LOOKS, MINUTES_PER_LOOK = 240, 0.5
SHARES = (0.05, 0.10, 0.25, 1.00)
NOISE = 0.01
FAILING, CLEAN = 2_000, 10_000
_SEED = 7

Rule = Callable[[Sequence[bool]], int | None]


def three_in_a_row(bad: Sequence[bool]) -> int | None:
    """The rule of most uptime monitors."""
    row = 0
    for index, one in enumerate(bad):
        row = row + 1 if one else 0
        if row == 3:
            return index
    return None


RULES: dict[str, Rule] = {"3_of_10": k_of_n, "3_consecutive": three_in_a_row}


def simulate(failing: int = FAILING, clean: int = CLEAN) -> dict[str, float | int]:
    """So many windows with a failing backend for each share, and so many clean ones.

    A window in which nothing was found counts as found at its end: the median then is the least it can be.
    """
    chance = random.Random(_SEED)  # noqa: S311  # a simulation
    found: dict[str, float | int] = {"detect.windows": failing, "detect.clean_windows": clean}
    for share in SHARES:
        windows = [_window(chance, share) for _ in range(failing)]
        name = f"{share:.0%}".replace("%", "pct")
        for rule, falls in RULES.items():
            at = [falls(window) for window in windows]
            minutes = [(LOOKS if index is None else index + 1) * MINUTES_PER_LOOK for index in at]
            found[f"detect.{rule}.median_minutes_{name}"] = median(minutes)
            found[f"detect.{rule}.found_{name}"] = round(sum(index is not None for index in at) / failing, 3)
    alarms = sum(k_of_n(_window(chance, NOISE)) is not None for _ in range(clean))
    ours, theirs = (float(found[f"detect.{rule}.median_minutes_25pct"]) for rule in RULES)
    return {
        **found,
        "detect.median_minutes_25pct": ours,
        "detect.speedup_vs_3consecutive": round(theirs / ours, 2),
        "detect.false_alarm_rate": round(alarms / clean, 4),
    }


def _window(chance: random.Random, share: float) -> list[bool]:
    return [chance.random() < share for _ in range(LOOKS)]


def main() -> int:
    """Simulate, write, tell."""
    found = {**simulate(), "day": f"{utc_now().astimezone(EAT):%Y-%m-%d}"}
    FILE.write_text(json.dumps(found, indent=1, sort_keys=True) + "\n")
    for name, value in found.items():
        print(f"{name:45} {value}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
