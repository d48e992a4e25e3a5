"""From samples to figures: ratios are taken within a round, then the median of the rounds."""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from bench.arms import Arm
from bench.measure import Sample

Round = Mapping[Arm, Sample]
FILE = Path(__file__).with_name("results.json")
# Beside more strangers than this at work (cores), wall seconds say little.
QUIET_CORES = 0.1
_MB = 1e6
_FIRST_SECONDS = 2.0  # what the target of growth allows for start and end

# What the full scale has to reach: (smallest, largest).
TARGETS: dict[str, tuple[float | None, float | None]] = {
    "backup.speedup_vs_seed": (3.0, None),
    "backup.speedup_vs_seed_no_truth": (4.5, None),
    "backup.wall_vs_limit": (None, 1.8),
    "backup.wall_vs_limit_no_truth": (None, 1.25),
    "backup.peak_rss_mb": (None, 200.0),
    "backup.peak_rss_mb_no_truth": (None, 200.0),
    "backup.seconds_per_gb_growth": (0.8, 1.2),
    "backup.seconds_per_gb_growth_beyond_start": (0.8, 1.2),
    "backup.start_and_end_seconds": (None, 2.0),
    "restore.speedup_vs_seed": (1.3, None),
    "restore.wall_vs_limit": (None, 1.25),
}


def summarise(scale: str, rounds: Sequence[Round], database_bytes: Mapping[str, int]) -> dict[str, dict[str, Any]]:
    """The flat object of results.json: name -> value, unit, runs, min, max, scale.

    `database_bytes` by name of the database, as pg_database_size says. Values are medians; a peak is the largest.
    """
    found: dict[str, dict[str, Any]] = {}

    def add(name: str, unit: str, values: Sequence[float], middle: Callable[[Sequence[float]], float] = median) -> None:
        shown = {"value": middle(values), "min": min(values), "max": max(values)}
        found[name] = {"unit": unit, "runs": len(values), "scale": scale, **{k: round(v, 3) for k, v in shown.items()}}

    for arm, suffix in ((Arm.WHOLE, ""), (Arm.NO_TRUTH, "_no_truth")):
        add(f"backup.speedup_vs_seed{suffix}", "x", [r[Arm.SEED].wall_seconds / r[arm].wall_seconds for r in rounds])
        add(f"backup.wall_vs_limit{suffix}", "x", [r[arm].wall_seconds / r[Arm.LIMIT].wall_seconds for r in rounds])
        add(f"backup.peak_rss_mb{suffix}", "MB", [r[arm].peak_rss_bytes / _MB for r in rounds], max)
    add(
        "restore.speedup_vs_seed", "x", [r[Arm.RESTORE_SEED].wall_seconds / r[Arm.RESTORE].wall_seconds for r in rounds]
    )
    add("restore.wall_vs_limit", "x", [r[Arm.RESTORE].wall_seconds / r[Arm.RESTORE_LIMIT].wall_seconds for r in rounds])
    add("restore.peak_rss_mb", "MB", [r[Arm.RESTORE].peak_rss_bytes / _MB for r in rounds], max)
    for arm, name in (
        (Arm.RESTORE, "restore.{}"),
        (Arm.RESTORE_SEED, "seed.restore_{}"),
        (Arm.RESTORE_LIMIT, "limit.restore_{}"),
        (Arm.WHOLE, "backup.{}"),
        (Arm.NO_TRUTH, "backup.{}_no_truth"),
        (Arm.SEED, "seed.{}"),
        (Arm.LIMIT, "limit.{}"),
    ):
        add(name.format("wall_seconds"), "s", [r[arm].wall_seconds for r in rounds])
        add(name.format("cpu_seconds"), "s", [r[arm].cpu_seconds for r in rounds])
    add("backup.stored_mb", "MB", [r[Arm.WHOLE].stored_bytes / _MB for r in rounds])
    add("seed.stored_mb", "MB", [r[Arm.SEED].stored_bytes / _MB for r in rounds])
    add("backup.start_and_end_seconds", "s", [r[Arm.TINY].wall_seconds for r in rounds])
    if "quarter" in database_bytes:
        if all(r[Arm.QUARTER].wall_seconds > _FIRST_SECONDS for r in rounds):  # else there is nothing beyond them
            add("backup.seconds_per_gb_growth", "x", [_growth(r, database_bytes, _FIRST_SECONDS) for r in rounds])
        beyond_start = [_growth(r, database_bytes, r[Arm.TINY].wall_seconds) for r in rounds]
        add("backup.seconds_per_gb_growth_beyond_start", "x", beyond_start)
    add("database.size_mb", "MB", [database_bytes["whole"] / _MB for _ in rounds])
    add("machine.strangers_cores", "cores", [_strangers_cores(r) for r in rounds], max)
    return found


def _growth(each: Round, database_bytes: Mapping[str, int], fixed_seconds: float) -> float:
    """Seconds per GB beyond the fixed ones: all rows against a quarter of them. 1 is a straight line."""
    whole, quarter = (
        (each[arm].wall_seconds - fixed_seconds) / database_bytes[arm.database] for arm in (Arm.WHOLE, Arm.QUARTER)
    )
    return whole / quarter


def _strangers_cores(each: Round) -> float:
    """Cores that other processes of the machine had, at worst, while an arm ran."""
    return max(sample.strangers_cpu_seconds / sample.wall_seconds for sample in each.values())


def reached(name: str, value: float) -> bool:
    """Whether a figure of the full scale is what TARGETS asks for."""
    low, high = TARGETS[name]
    return (low is None or value >= low) and (high is None or value <= high)


def write(figures: Mapping[str, Any]) -> None:
    """Replace results.json."""
    FILE.write_text(json.dumps(figures, indent=1, sort_keys=True) + "\n")
