"""What bench/results.json looks like, and how its figures come from measurements; no arm is run here."""

import contextlib
import json
import math
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from bench import __main__ as program
from bench import bed, measure, results
from bench.arms import Arm
from bench.measure import CommandFailed, Sample

SIZES = {"small": {"whole": 200_000_000, "tiny": 10_000_000}}
SIZES["full"] = {"whole": 2_000_000_000, "quarter": 500_000_000, "tiny": 10_000_000}
# Of each round: seconds by arm. Ratios within a round differ from ratios of medians, which would be 3 and 2.
ROUNDS = (
    {Arm.SEED: 30.0, Arm.WHOLE: 10.0, Arm.LIMIT: 5.0},
    {Arm.SEED: 32.0, Arm.WHOLE: 8.0, Arm.LIMIT: 5.0},
    {Arm.SEED: 40.0, Arm.WHOLE: 16.0, Arm.LIMIT: 4.0},
)
ASKED = {
    f"backup.{name}{suffix}"
    for name in ("speedup_vs_seed", "wall_vs_limit", "peak_rss_mb")
    for suffix in ("", "_no_truth")
} | {"restore.speedup_vs_seed", "restore.wall_vs_limit"}
RESTORES = {Arm.RESTORE_SEED: 13.0, Arm.RESTORE: 10.0, Arm.RESTORE_LIMIT: 8.0}
GROWTH = {"backup.seconds_per_gb_growth", "backup.seconds_per_gb_growth_beyond_start"}


def sample(wall: float, *, peak_mb: float = 120) -> Sample:
    return Sample(
        wall_seconds=wall,
        client_cpu_seconds=wall / 2,
        server_cpu_seconds=wall / 4,
        store_cpu_seconds=0.1,
        strangers_cpu_seconds=0.0,
        peak_rss_bytes=round(peak_mb * 1e6),
        stored_bytes=300_000_000,
    )


def rounds(scale: str) -> list[results.Round]:
    made: list[results.Round] = []
    for number, walls in enumerate(ROUNDS):
        others = {Arm.TINY: 1.0, Arm.NO_TRUTH: 6.0, **RESTORES, **({Arm.QUARTER: 3.0} if scale == "full" else {})}
        made.append({arm: sample(wall, peak_mb=120 + number) for arm, wall in (walls | others).items()})
    return made


@pytest.mark.parametrize("scale", ["small", "full"])
def test_the_object_is_flat_and_has_the_same_names_at_both_scales(scale: str) -> None:
    figures = results.summarise(scale, rounds(scale), SIZES[scale])
    assert set(figures) >= ASKED
    assert (set(figures) >= GROWTH) == (scale == "full")
    assert set(figures) - GROWTH == set(results.summarise("small", rounds("small"), SIZES["small"]))
    for name, figure in figures.items():
        assert set(figure) == {"value", "unit", "runs", "min", "max", "scale"}, name
        assert (figure["scale"], figure["runs"]) == (scale, 3)
        assert all(math.isfinite(figure[key]) for key in ("value", "min", "max")), name
        assert figure["min"] <= figure["value"] <= figure["max"]
    units = {name: figures[name]["unit"] for name in ASKED}
    assert set(units.values()) == {"x", "MB"}
    assert {name for name, unit in units.items() if unit == "MB"} == {name for name in ASKED if "_mb" in name}


def test_ratios_are_taken_within_a_round_and_a_peak_is_the_largest() -> None:
    figures = results.summarise("small", rounds("small"), SIZES["small"])
    speedup, against_limit = figures["backup.speedup_vs_seed"], figures["backup.wall_vs_limit"]
    assert (speedup["min"], speedup["value"], speedup["max"]) == (2.5, 3.0, 4.0)
    assert (against_limit["min"], against_limit["value"], against_limit["max"]) == (1.6, 2.0, 4.0)
    assert figures["backup.peak_rss_mb"]["value"] == 122
    assert figures["restore.speedup_vs_seed"]["value"] == 1.3
    assert figures["restore.wall_vs_limit"]["value"] == 1.25
    assert figures["backup.cpu_seconds"]["value"] == 7.5  # client and server of the middle round


def test_growth_compares_seconds_per_gigabyte_beyond_the_fixed_ones() -> None:
    figures = results.summarise("full", rounds("full"), SIZES["full"])
    # (10 - 2) / 2 GB against (3 - 2) / 0.5 GB, then with the tiny database's second instead of two
    assert figures["backup.seconds_per_gb_growth"]["value"] == 2.0
    assert figures["backup.seconds_per_gb_growth_beyond_start"]["value"] == pytest.approx(9 / 2 / (2 / 0.5), abs=1e-3)


def test_growth_is_left_out_where_the_quarter_takes_no_more_than_the_seconds_taken_off() -> None:
    quick = [{**each, Arm.QUARTER: sample(1.9)} for each in rounds("full")]
    assert "backup.seconds_per_gb_growth" not in results.summarise("full", quick, SIZES["full"])


@pytest.mark.parametrize(
    ("name", "value", "reached"),
    [
        ("backup.speedup_vs_seed", 3.0, True),
        ("backup.speedup_vs_seed", 2.9, False),
        ("backup.wall_vs_limit", 1.9, False),
        ("backup.seconds_per_gb_growth", 0.7, False),
    ],
)
def test_targets(name: str, value: float, reached: bool) -> None:
    assert results.reached(name, value) is reached


def test_every_target_is_a_figure() -> None:
    assert set(results.TARGETS) <= set(results.summarise("full", rounds("full"), SIZES["full"]))


@pytest.fixture
def fake_bed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A bed on which nothing stands; returns where results.json goes."""

    @contextlib.contextmanager
    def standing(scale: str, _say: Callable[[str], None]) -> Iterator[SimpleNamespace]:
        yield SimpleNamespace(databases={n: SimpleNamespace(size_bytes=size) for n, size in SIZES[scale].items()})

    monkeypatch.setattr(bed, "standing", standing)
    monkeypatch.setattr(program, "verify", lambda _bed: None)
    monkeypatch.setattr(program, "prepare_restores", lambda _bed: None)
    monkeypatch.setattr(results, "FILE", tmp_path / "results.json")
    monkeypatch.setattr(sys, "argv", ["bench", "--scale", "full"])
    return tmp_path / "results.json"


def test_the_program_writes_what_it_measured(fake_bed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[Arm] = []

    def measured(arm: Arm, _bed: object) -> Sample:
        order.append(arm)
        return sample({Arm.SEED: 40.0, Arm.QUARTER: 3.0, Arm.TINY: 0.7}.get(arm, 10.0))

    monkeypatch.setattr(program, "measure", measured)
    assert program.main() == 0
    assert json.loads(fake_bed.read_text())["backup.speedup_vs_seed"]["value"] == 4
    backups, restores = [arm for arm in Arm if not arm.restores], [arm for arm in Arm if arm.restores]
    assert order[-27:-9] == [*backups, *backups[::-1], *backups]
    assert order[-9:] == [*restores, *restores[::-1], *restores]


def test_an_arm_that_fails_leaves_the_old_results(fake_bed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(_arm: Arm, _bed: object) -> Sample:
        raise CommandFailed("pg_dump ended with exit code 1")

    monkeypatch.setattr(program, "measure", fails)
    assert program.main() == 1
    assert not fake_bed.exists()


def run(code: str, log: Path) -> Sample:
    me = os.getpid()
    return measure.run(
        [sys.executable, "-c", code],
        env=dict(os.environ),
        cwd=log.parent,
        log=log,
        server_pid=me,
        store_pid=me,
        stored_bytes=lambda: 7,
    )


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_memory_and_cpu_are_those_of_the_process_and_its_children(tmp_path: Path) -> None:
    child = "import time; held = bytearray(64_000_000); time.sleep(0.2)"
    parent = (
        "import subprocess, sys, time; held = bytearray(32_000_000)\n"
        f"subprocess.run([sys.executable, '-c', {child!r}], check=True)\n"
        "start = time.process_time()\nwhile time.process_time() - start < 0.2: pass"
    )
    found = run(parent, tmp_path / "log")
    assert found.wall_seconds >= 0.4
    assert found.client_cpu_seconds >= 0.2
    assert 96e6 < found.peak_rss_bytes < 150e6
    assert found.stored_bytes == 7


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_command_that_fails_says_what_it_said(tmp_path: Path) -> None:
    with pytest.raises(CommandFailed, match=r"exit code 3, saying:\nno such table"):
        run("import sys; print('no such table', file=sys.stderr); sys.exit(3)", tmp_path / "log")
