"""`python -m bench --scale small|full`: prints what was measured and writes bench/results.json."""

import argparse
import sys
from collections.abc import Callable, Mapping, Sequence
from statistics import median
from typing import Any

from rich.console import Console
from rich.table import Table

from bench import bed, results
from bench.arms import TITLES, Arm, measure, prepare_restores, verify
from bench.measure import CommandFailed, Sample
from bench.results import QUIET_CORES, TARGETS, Round
from bench.telling import narrator, tell_failure
from payme_ops.foundation.errors import PaymeOpsError
from sandbox.postgres import ClusterError

ROUNDS = 3
_HOW = (
    "Ours is the CLI's own process, with one difference: the preflight checks that rclone's S3 cannot pass run, but"
    " count as bypassed (bench/README.md)."
)


def main() -> int:
    """Exit code: 0 measured, 1 an arm failed, 2 wrong usage, 130 interrupted."""
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("--scale", choices=("small", "full"), default="small", help="about 0.2 GB, or 2 GB")
    scale: str = parser.parse_args().scale
    console = Console(highlight=False, width=None if sys.stdout.isatty() else 110)
    say = narrator(console)

    try:
        with bed.standing(scale, say) as here:
            sizes = {name: database.size_bytes for name, database in here.databases.items()}
            rounds = _rounds(here, say)
    except (PaymeOpsError, ClusterError, CommandFailed) as error:
        tell_failure(error)
        return 1
    except KeyboardInterrupt:
        return 130
    figures = results.summarise(scale, rounds, sizes)
    results.write(figures)
    for part in (_arms_table(rounds), _figures_table(scale, figures), _HOW):
        console.print(part)
    strangers = figures["machine.strangers_cores"]["value"]
    if strangers > QUIET_CORES:
        console.print(f"The machine was not quiet: others had up to {strangers} cores. Do not quote wall seconds.")
    return 0


def _rounds(here: bed.Bed, say: Callable[[str], None]) -> list[Round]:
    """Each arm once a round, so that what disturbs the machine for a while disturbs all of them."""
    arms = [arm for arm in Arm if arm.database in here.databases and not arm.restores]
    say("not counted: caches are warmed, and one backup is read whole and opened, so that what is measured is one")
    for arm in (Arm.TINY, Arm.LIMIT, Arm.WHOLE):
        measure(arm, here)
    verify(here)
    backups = _interleaved(arms, here, "backups", say)
    say("not counted: a backup of ours, a file of the old script and a local archive are made, to be restored")
    prepare_restores(here)
    restores = _interleaved([arm for arm in Arm if arm.restores], here, "restores", say)
    return [{**backup, **restore} for backup, restore in zip(backups, restores, strict=True)]


def _interleaved(arms: list[Arm], here: bed.Bed, what: str, say: Callable[[str], None]) -> list[Round]:
    rounds: list[Round] = []
    for number in range(ROUNDS):
        say(f"{what}, round {number + 1} of {ROUNDS}")
        rounds.append({arm: measure(arm, here) for arm in (arms if number % 2 == 0 else arms[::-1])})
    return rounds


def _arms_table(rounds: Sequence[Round]) -> Table:
    table = Table(title=f"Medians of {len(rounds)} rounds: wall seconds, CPU seconds by who, peak memory and stored MB")
    for heading in ("arm", "wall", "(from, to)", "client", "PostgreSQL", "S3", "peak", "stored"):
        table.add_column(heading, justify="left" if heading == "arm" else "right", no_wrap=True)
    for arm in (arm for arm in Arm if arm in rounds[0]):
        samples = [each[arm] for each in rounds]
        walls = [sample.wall_seconds for sample in samples]
        table.add_row(
            TITLES[arm],
            f"{median(walls):.2f}",
            f"({min(walls):.2f}, {max(walls):.2f})",
            *(_median(samples, f"{who}_cpu_seconds") for who in ("client", "server", "store")),
            f"{max(sample.peak_rss_bytes for sample in samples) / 1e6:.0f}",
            f"{median(sample.stored_bytes for sample in samples) / 1e6:.1f}",
        )
    return table


def _median(samples: Sequence[Sample], name: str) -> str:
    return f"{median(getattr(sample, name) for sample in samples):.2f}"


def _figures_table(scale: str, figures: Mapping[str, Mapping[str, Any]]) -> Table:
    table = Table(title="bench/results.json")
    for heading in ("figure", "value", "(from, to)", "unit", "asked at full scale"):
        number = heading in ("value", "(from, to)")
        table.add_column(heading, justify="right" if number else "left", no_wrap=heading == "figure")
    for name, figure in figures.items():
        spread = f"({figure['min']:.2f}, {figure['max']:.2f})"
        table.add_row(name, f"{figure['value']:.2f}", spread, figure["unit"], _asked(scale, name, figure["value"]))
    return table


def _asked(scale: str, name: str, value: float) -> str:
    if name not in TARGETS:
        return ""
    low, high = TARGETS[name]
    bounds = " to ".join([f"{low}"] * (low is not None) + [f"{high}"] * (high is not None))
    if low is None or high is None:
        bounds = f"at {'most' if low is None else 'least'} {bounds}"
    if scale != "full":
        return f"[dim]{bounds}[/dim]"
    return f"[green]{bounds}: reached[/green]" if results.reached(name, value) else f"[red]{bounds}: missed[/red]"


if __name__ == "__main__":
    sys.exit(main())
