"""How fast every row of an encrypted column is decrypted and compared, and how much memory a reader takes."""

import resource
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from statistics import median
from typing import Any

import psutil

from payme_ops.migration import verify
from payme_ops.migration.desk import MigrationDesk
from payme_ops.migration.envelope import Keys

ROUNDS = 3
WORKERS = (1, 2)
_READER = "payme_ops.migration.readers"
_SAMPLE_SECONDS = 0.02


def measure(desk: MigrationDesk, keys: Keys) -> dict[str, dict[str, Any]]:
    """Figures of the table as it is, by name, as bench/results.json has them.

    Rounds go through the numbers of readers in turn, so that what disturbs the machine disturbs each. Raises
    RuntimeError when a row is wrong: then something else would be measured.
    """
    speeds: dict[int, list[float]] = {workers: [] for workers in WORKERS}
    cpu: list[float] = []
    with _peak_of_readers() as peak:
        for _ in range(ROUNDS):
            for workers in WORKERS:
                before = _readers_cpu()
                found = verify.verify(desk, keys, workers=workers, report=lambda _: None)
                if found.kinds or not found.rows:
                    raise RuntimeError(f"{sum(found.kinds.values())} of {found.rows} rows are wrong")
                speeds[workers].append(found.rows / found.seconds)
                cpu.append((_readers_cpu() - before) / found.rows * 1e6)
    return {
        "verify.rows_per_s": _figure(speeds[2], "rows/s"),
        "verify.rows_per_s_one_reader": _figure(speeds[1], "rows/s"),
        "verify.scale_2_readers": _figure([two / one for one, two in zip(speeds[1], speeds[2], strict=True)], "times"),
        "verify.readers_cpu_us_per_row": _figure(cpu, "µs"),
        "verify.peak_rss_mb": _figure([max(peak) / 1e6], "MB"),
    }


def _readers_cpu() -> float:
    """CPU seconds of the readers that have ended; firm on a shared machine, where wall seconds are not."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def _figure(values: list[float], unit: str) -> dict[str, Any]:
    shown = {"value": median(values), "min": min(values), "max": max(values)}
    return {"unit": unit, "runs": len(values), **{name: round(value, 3) for name, value in shown.items()}}


@contextmanager
def _peak_of_readers() -> Iterator[list[int]]:
    """Resident memory of the largest reader so far, looked at every 20 ms."""
    peak, stop = [0], threading.Event()

    def watch() -> None:
        while not stop.wait(_SAMPLE_SECONDS):
            for child in psutil.Process().children():
                try:
                    if _READER in child.cmdline():
                        peak[0] = max(peak[0], child.memory_info().rss)
                except psutil.Error:
                    continue  # it has just ended

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield peak
    finally:
        stop.set()
        thread.join()
