"""`python -m bench.zero_downtime`: the whole migration and the whole way back, under the application's traffic.

Instances of the simulated application (sandbox/payme_app) read, write and check without a pause while each step is
taken, undone and taken again, and are rolled from version to version in between. Counts failed queries, wrong reads
and lost acknowledged writes; takes the latencies before, during and after each step. Writes bench/zero_downtime.json.
Exit code 1 when anything failed, was wrong or lost.
"""

import json
import os
import shutil
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from datetime import datetime
from itertools import pairwise
from pathlib import Path
from typing import Any

import psycopg
from rich.console import Console
from rich.table import Table

from bench.telling import narrator, quiet, tell_failure
from payme_ops.foundation import settings
from payme_ops.foundation.clock import EAT
from payme_ops.foundation.errors import GateClosed, PaymeOpsError
from payme_ops.foundation.evidence import Check, Evidence, Verdict, plain, run_check
from payme_ops.foundation.progress import Report
from payme_ops.migration import backfill, envelope, purge, steps, verify
from payme_ops.migration import fleet as fleet_gate
from payme_ops.migration.desk import MigrationDesk
from payme_ops.migration.envelope import Keys
from payme_ops.migration.names import PHONE_NUMBER
from payme_ops.migration.steps import Step as MigrationStep
from sandbox import world
from sandbox.payme_app.fleet import Account, Fleet
from sandbox.payme_app.versions import V1, V2, V3, V4, V5, Version
from sandbox.payme_db import generate
from sandbox.postgres import ClusterError
from sandbox.world import World

FILE = Path(__file__).with_name("zero_downtime.json")
SIZE = "zero_downtime"
ASKED_WRITES = 100_000
ASKED_P99, ASKED_P50 = 2.0, 1.3
_RANGES = 4
_SHOWN = ("failed_queries", "wrong_reads", "lost_writes", "acknowledged_writes")


@dataclass(frozen=True)
class Pace:
    """How much traffic, and the length of the windows in which latencies are taken, in seconds."""

    window: float = 10.0
    instances: int = 3
    connections: int = 2
    per_second: float = 400.0  # of each instance
    adopted: int = 3_000  # users of the generated ones that it works with, spread over all ids


@dataclass(frozen=True)
class Ground:
    """Where it takes place: the desk, the application's door, and one for the checks afterwards."""

    desk: MigrationDesk
    keys: Keys
    application: str
    superuser: str
    users: int
    disk: Path  # where the server's data is


@dataclass(frozen=True)
class Step:
    """One change of the schema, the data, or the fleet. `version` is the fleet's when it is done."""

    name: str
    version: Version
    work: Callable[[], object]


@dataclass(frozen=True)
class Taken:
    """When a step was taken, and the window after it; the one before is that after the step before."""

    step: Step
    begun: float
    ended: float
    during_until: float
    after_until: float
    lost: Sequence[int]


def measure(ground: Ground, folder: Path, pace: Pace, say: Report) -> dict[str, Any]:
    """All of it. Raises PaymeOpsError when a step, its undo or a gate fails."""
    with psycopg.connect(ground.superuser, autocommit=True) as connection:
        connection.execute("GRANT DELETE ON users TO payme_app")  # what a shim has to carry over, too
    fleet = Fleet(
        ground.application,
        folder,
        os.environ,
        generated=ground.users,
        adopted=pace.adopted,
        instances=pace.instances,
        connections=pace.connections,
        per_second=pace.per_second,
        key_id=ground.keys.key_id,
    )
    with fleet:
        fleet.start(V1)
        fleet.warm()
        time.sleep(pace.window)  # plans and caches are made
        begun = time.monotonic()
        time.sleep(pace.window)
        first = time.monotonic()
        taken: list[Taken] = []
        for step in [*there_and_back(ground, fleet, say), *to_the_end(ground, fleet, say)]:
            taken.append(_take(ground, fleet, step, pace.window, say))
        blocked = _purge(ground, fleet, say)
        fleet.stop()
        lost = fleet.lost_writes(ground.superuser, V5, untouched=True)
        return figures_of(fleet.account(), (begun, first), taken, pace, lost) | {
            "users": ground.users,
            "purge": blocked,
        }


def there_and_back(ground: Ground, fleet: Fleet, say: Report) -> list[Step]:
    """Every step that can be undone is taken and undone, in the order in which one would go back."""
    desk, keys = ground.desk, ground.keys
    forward = _until_brown_out(ground, fleet, say)
    return [
        forward[0],
        _undone(steps.EXPAND, V1, desk, say),
        *forward,
        _undone(steps.BROWN_OUT, V4, desk, say),
        _roll(desk, fleet, V3, back=True),
        Step("reverse backfill", V3, lambda: backfill.reverse(desk, keys, quiet)),
        _undone(steps.RELAX, V3, desk, say),
        _roll(desk, fleet, V2, back=True),
        _undone(steps.FINISH, V2, desk, say),
        _roll(desk, fleet, V1, back=True),
        _undone(steps.EXPAND, V1, desk, say),
    ]


def to_the_end(ground: Ground, fleet: Fleet, say: Report) -> list[Step]:
    """The migration, once more and whole; the shim is put back for the version that needs it, and ended again."""
    desk = ground.desk
    return [
        *_until_brown_out(ground, fleet, say),
        _taken(steps.SWITCH, V4, desk, say),
        _roll(desk, fleet, V5),
        _taken(steps.END_SHIM, V5, desk, say),
        _undone(steps.END_SHIM, V5, desk, say),
        _roll(desk, fleet, V4, back=True),
        _roll(desk, fleet, V5),
        _taken(steps.END_SHIM, V5, desk, say),
    ]


def _until_brown_out(ground: Ground, fleet: Fleet, say: Report) -> list[Step]:
    desk, keys = ground.desk, ground.keys
    return [
        _taken(steps.EXPAND, V1, desk, say),
        _roll(desk, fleet, V2),
        Step("backfill", V2, lambda: _backfill(desk, keys)),
        _taken(steps.FINISH, V2, desk, say),
        Step("verify", V2, lambda: _require(desk, verify.check(desk, keys, workers=1, report=quiet))),
        _roll(desk, fleet, V3),
        _taken(steps.RELAX, V3, desk, say),
        _roll(desk, fleet, V4),
        _taken(steps.BROWN_OUT, V4, desk, say),
    ]


def _taken(step: MigrationStep, version: Version, desk: MigrationDesk, say: Report) -> Step:
    def work() -> None:
        _require_pass(steps.gate(desk, step.gate, step.before(desk)))
        steps.take(desk, step, say)

    return Step(step.name, version, work)


def _undone(step: MigrationStep, version: Version, desk: MigrationDesk, say: Report) -> Step:
    return Step(f"undo {step.name}", version, lambda: step.undo(desk, say))


def _roll(desk: MigrationDesk, fleet: Fleet, version: Version, *, back: bool = False) -> Step:
    def work() -> None:
        fleet.roll(version)
        if not back:  # going back, the gate is the schema's: the older version knows it
            _require(desk, fleet_gate.check(desk, version.number))

    return Step(f"{'back to' if back else 'roll out'} {version.number}", version, work)


def _backfill(desk: MigrationDesk, keys: Keys) -> None:
    for low, high in backfill.plan_ranges(desk, _RANGES):
        backfill.encrypt_range(desk, keys, low, high, pass_number=1, report=quiet)
    backfill.catch_up(desk, keys, quiet)


def _require(desk: MigrationDesk, check: Check) -> None:
    _require_pass(run_check(check, actor=desk.run))


def _require_pass(found: Evidence) -> None:
    """What a person may agree to is not agreed to here."""
    if found.verdict is not Verdict.PASS:
        raise GateClosed(
            f"{found.item}: {found.verdict}",
            expected=found.threshold,
            found=plain(found.measured),
            remedy=found.remedy,
        )


def _take(ground: Ground, fleet: Fleet, step: Step, window: float, say: Report) -> Taken:
    say(step.name)
    begun = time.monotonic()
    _apart(step.work)
    ended = time.monotonic()
    time.sleep(max(0.0, begun + window - ended))  # a step of milliseconds is looked at for a whole window
    during_until = time.monotonic()
    time.sleep(window)
    after_until = time.monotonic()
    with fleet.still():
        lost = fleet.lost_writes(ground.superuser, step.version)
    fleet.warm()
    return Taken(step, begun, ended, during_until, after_until, lost)


def _apart(work: Callable[[], object]) -> None:
    """Do the desk's work at the lowest priority, children too: it would be another machine than the application's."""

    def do() -> None:
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), 19)  # on Linux a thread's own
        work()

    with ThreadPoolExecutor(1) as pool:
        pool.submit(do).result()


def _purge(ground: Ground, fleet: Fleet, say: Report) -> dict[str, float]:
    """VACUUM FULL: every query waits. Apart from the steps, since its time grows with the table."""
    say("purge")
    begun = time.monotonic()
    purge.do_purge(ground.desk, say, free_bytes=shutil.disk_usage(ground.disk).free)
    seconds = time.monotonic() - begun
    with fleet.still():
        longest = fleet.account().latencies(begun)[-1]
    return {"seconds": round(seconds, 2), "longest_request_ms": round(longest, 1)}


def figures_of(
    account: Account, start: tuple[float, float], taken: Sequence[Taken], pace: Pace, lost: Sequence[int]
) -> dict[str, Any]:
    """What is published. `start` is the window before the first step, `lost` what the end has shown."""
    before = [start, *((each.during_until, each.after_until) for each in taken)]
    of_steps = [_step_figures(account, each, window, pace.window) for each, window in zip(taken, before, strict=False)]
    totals = account.totals()
    return {
        "failed_queries": totals.failed_queries,
        "wrong_reads": totals.wrong_reads,
        "lost_writes": len({*lost, *(user for each in taken for user in each.lost)}),
        "disconnects": totals.disconnects,
        "acknowledged_writes": totals.acknowledged_writes,
        "requests": totals.requests,
        "p50_ratio": max(step["p50_ratio"] for step in of_steps),
        "p99_ratio": max(step["p99_ratio"] for step in of_steps),
        "mishaps": dict(totals.what),
        "pace": asdict(pace),
        "steps": of_steps,
        "day": datetime.now(EAT).strftime("%Y-%m-%d"),
    }


def _step_figures(account: Account, taken: Taken, before: tuple[float, float], window: float) -> dict[str, Any]:
    totals = account.totals(taken.begun, taken.after_until)
    count = max(1, int((taken.during_until - taken.begun) / window))
    edges = [taken.begun + (taken.during_until - taken.begun) * number / count for number in range(count + 1)]
    during = [_latency(account, *pair) for pair in pairwise(edges)]
    worst = {name: max(each[name] for each in during) for name in during[0]}
    calm = _latency(account, *before)
    return {
        "step": taken.step.name,
        "seconds": round(taken.ended - taken.begun, 2),
        "failed_queries": totals.failed_queries,
        "wrong_reads": totals.wrong_reads,
        "lost_writes": len(taken.lost),
        "acknowledged_writes": totals.acknowledged_writes,
        "before_ms": calm,
        "during_ms": worst,  # of the windows, each at its worst
        "after_ms": _latency(account, taken.during_until, taken.after_until),
        "p50_ratio": round(worst["p50"] / calm["p50"], 2),
        "p99_ratio": round(worst["p99"] / calm["p99"], 2),
    }


def _latency(account: Account, since: float, until: float) -> dict[str, float]:
    took = account.latencies(since, until)
    if not took:
        raise GateClosed("nobody was served", expected="requests all the time", found=f"none in {until - since:.0f} s")
    last = len(took) - 1
    return {"p50": round(took[last // 2], 3), "p99": round(took[last * 99 // 100], 3), "max": round(took[-1], 1)}


def succeeded(figures: dict[str, Any]) -> bool:
    """Nothing failed, nothing was wrong, nothing lost, nobody was cut off."""
    return not any(figures[name] for name in ("failed_queries", "wrong_reads", "lost_writes", "disconnects"))


def main() -> int:
    """Exit code: 0 nothing failed, was wrong or lost, else 1."""
    console = Console(highlight=False, width=None if sys.stdout.isatty() else 130)
    say = narrator(console)

    try:
        with tempfile.TemporaryDirectory(prefix="payme-zero-downtime-") as folder:
            Path(folder).chmod(0o711)  # PostgreSQL's own user has to pass through
            with world.running(Path(folder, "world"), size=SIZE, say=say) as (here, _):
                os.environ.update(here.env)
                figures = measure(_ground(here), Path(folder, "fleet"), Pace(), say)
    except (PaymeOpsError, ClusterError) as error:
        tell_failure(error)
        return 1
    FILE.write_text(json.dumps(figures, indent=1) + "\n")
    console.print(_table(figures))
    console.print(", ".join(f"{name} {figures[name]:,}" for name in _SHOWN))
    enough = figures["acknowledged_writes"] >= ASKED_WRITES
    if not enough:
        console.print(f"fewer than the {ASKED_WRITES:,} acknowledged writes that are asked for")
    return 0 if succeeded(figures) and enough else 1


def _ground(here: World) -> Ground:
    config = settings.load()
    keys = envelope.load_keys(os.environ, key_id=config.migration.key_id, names=PHONE_NUMBER)
    desk = MigrationDesk(
        config,
        here.conninfo("payme_db_migrate", generate.DATABASE),
        here.conninfo("payme_ops", "payme_ops"),
        run="bench/zero_downtime",
    )
    superuser = here.cluster.conninfo(generate.DATABASE)
    application = here.conninfo("payme_app", generate.DATABASE)
    return Ground(desk, keys, application, superuser, generate.SIZES[SIZE].users, here.cluster.data_dir.parent)


def _table(figures: dict[str, Any]) -> Table:
    table = Table(title="Milliseconds of a request: p50, p99 and maximum, by window")
    for heading in ("step", "took", "failed", "wrong", "lost", "writes", "before", "during", "after", "p50", "p99"):
        table.add_column(heading, justify="left" if heading == "step" else "right", no_wrap=True)
    for step in figures["steps"]:
        ratios = [
            f"{'[red]' if step[name] > asked else ''}{step[name]:.2f}"
            for name, asked in (("p50_ratio", ASKED_P50), ("p99_ratio", ASKED_P99))
        ]
        windows = [
            " ".join(f"{step[when][name]:.1f}" for name in ("p50", "p99", "max"))
            for when in ("before_ms", "during_ms", "after_ms")
        ]
        table.add_row(
            step["step"], f"{step['seconds']:.1f} s", *(f"{step[name]:,}" for name in _SHOWN), *windows, *ratios
        )
    return table


if __name__ == "__main__":
    sys.exit(main())
