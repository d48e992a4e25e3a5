"""`make zero-downtime` in small: every step, its undo, and the step again, under traffic that checks every value."""

from pathlib import Path

import pytest

from bench import zero_downtime
from sandbox.payme_db.generate import SIZES
from tests.support.installation import quiet
from tests.support.phones import Phones


@pytest.mark.long
@pytest.mark.timeout(900)
def test_the_whole_migration_and_its_way_back_under_traffic(phones: Phones, tmp_path: Path) -> None:
    ground = zero_downtime.Ground(
        phones.desk,
        phones.keys,
        phones.conninfo("payme_app"),
        phones.site.cluster.conninfo(phones.name),
        SIZES["test"].users,
        tmp_path,
    )
    pace = zero_downtime.Pace(window=0.4, instances=2, adopted=500)
    figures = zero_downtime.measure(ground, tmp_path / "fleet", pace, quiet)
    assert zero_downtime.succeeded(figures), figures["mishaps"]
    assert figures["acknowledged_writes"] > 3_000
    names = [step["step"] for step in figures["steps"]]
    assert names.count("backfill") == 2
    undone = [name.removeprefix("undo ") for name in names if name.startswith("undo")]
    assert undone == ["expand", "brown_out", "relax", "finish", "expand", "end_shim"]
    assert all(step["acknowledged_writes"] > 0 for step in figures["steps"])
