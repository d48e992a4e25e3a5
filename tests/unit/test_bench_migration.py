"""How the figures of the backfill come from measurements; no arm is run here."""

import pytest

from bench import migration

ROUNDS = [
    {"loop": 1_000.0, "limit": limit, "one": one, "two": two, "peak_mb": peak, "wal_bytes_per_row": 700.0}
    for limit, one, two, peak in (
        (50_000, 40_000, 75_000, 90),
        (100_000, 60_000, 80_000, 110),
        (40_000, 36_000, 66_000, 80),
    )
]


def test_ratios_are_taken_within_a_round_and_a_peak_is_the_largest() -> None:
    figures = migration._summarise(2_000_000, ROUNDS)
    of_limit = figures["backfill.of_limit"]
    assert (of_limit["min"], of_limit["value"], of_limit["max"]) == (0.6, 0.8, 0.9)
    assert figures["backfill.two_workers_of_limit"]["value"] == 1.5
    assert figures["backfill.speedup_vs_loop"]["value"] == 75
    assert figures["backfill.one_worker_vs_loop"]["value"] == 40
    assert figures["backfill.scale_2_workers"]["value"] == pytest.approx(66 / 36, abs=1e-3)
    assert figures["backfill.peak_rss_mb"]["value"] == 110
    assert set(figures) >= {name for name in migration.TARGETS if name.startswith("backfill.")} - {migration.GROWTH}
    assert all((figure["rows"], figure["runs"]) == (2_000_000, 3) for figure in figures.values())
