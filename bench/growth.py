"""What a larger database takes: hours, money, memory, from the measured rates and from assumptions that have names.

`make growth` writes the tables of docs/growth.md anew. Rates are those of results.json, migration.json and
zero_downtime.json; the rest is ASSUMED, to be replaced by one's own figures. A GB is 10^9 bytes.
"""

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import timedelta
from functools import cache, partial
from pathlib import Path
from typing import Any

from bench.telling import publish
from payme_ops.backup import scratch
from payme_ops.foundation.objectstore import LARGEST_OBJECT_BYTES
from payme_ops.foundation.settings import ReleaseSettings, TargetSettings
from sandbox.payme_db import generate

PAGE = Path(__file__).resolve().parents[1] / "docs" / "growth.md"
SIZES_GB = (10, 100, 1000)
_LARGEST_GB = 10_000  # further nothing is looked for
ROOM = 1.3  # of the source's size: what payme_ops/backup/restore_test.py asks for
LATE = timedelta(minutes=90)  # dags/backup_daily.py
TASK = timedelta(hours=6)  # dags/backup_daily.py, dags/backup_restore_test.py
_DAYS, _WEEKS = 365 / 12, 365 / 12 / 7  # of a month
_KEPT_AFTER = 30  # days that S3 keeps what was deleted (docs/first-run.md, section 3)


@dataclass(frozen=True)
class Assumed:
    """A figure that was not measured here."""

    value: float
    unit: str
    what: str
    source: str


ASSUMED = {
    "small_disk": Assumed(
        125, "MB/s", "the database's disk, below 400 GB", "what RDS gives a gp3 volume without asking for more"
    ),
    "large_disk": Assumed(500, "MB/s", "the database's disk, from 400 GB on", "the same, from 400 GiB on"),
    "server_copy": Assumed(
        100, "MB/s", "S3's own copy into the other region", "assumed; the log of `backup_weekly` tells yours"
    ),
    "far_stream": Assumed(
        50, "MB/s", "one stream from the other region", "assumed; the log of `backup_weekly` tells yours"
    ),
    "home_storage": Assumed(
        0.0149,
        "USD a GB and month",
        "STANDARD_IA, af-south-1",
        "assumed: as much of Standard's 0.0274 (price list of July 2026) as in eu-west-1",
    ),
    "copy_storage": Assumed(0.0125, "USD a GB and month", "STANDARD_IA, eu-west-1", "assumed; look it up"),
    "archive_storage": Assumed(0.0036, "USD a GB and month", "GLACIER, eu-west-1", "assumed; look it up"),
    "reading": Assumed(0.01, "USD a GB", "reading from STANDARD_IA", "assumed; look it up"),
    "from_home": Assumed(0.147, "USD a GB", "out of af-south-1 into another region", "assumed; look it up"),
    "from_copy": Assumed(0.02, "USD a GB", "out of eu-west-1 into another region", "assumed; look it up"),
    "scratch": Assumed(0.11, "USD a GB and month", "gp3 disk of the restore worker, af-south-1", "assumed; look it up"),
}


@cache
def measured() -> dict[str, float]:
    """Every figure of the benchmarks by its name, and `busy.rows_per_s`, the slowest backfill under traffic."""
    found: dict[str, float] = {}
    for name in ("results.json", "migration.json"):
        listed: Mapping[str, Mapping[str, Any]] = json.loads(PAGE.parents[1].joinpath("bench", name).read_text())
        found |= {key: float(figure["value"]) for key, figure in listed.items()}
    busy = json.loads(PAGE.parents[1].joinpath("bench", "zero_downtime.json").read_text())
    slowest = max(step["seconds"] for step in busy["steps"] if step["step"] == "backfill")
    return found | {"busy.rows_per_s": busy["users"] / slowest}


def _of_disk(gb: float) -> float:
    """Seconds that the database's disk takes for that much."""
    return gb * 1000 / ASSUMED["small_disk" if gb < 400 else "large_disk"].value


def backup_seconds(gb: float) -> float:
    """Of a whole backup, read back and committed: the measured straight line, or the disk where it is slower."""
    rates = measured()
    start = rates["backup.start_and_end_seconds"]
    return max(start + (rates["backup.wall_seconds"] - start) * _times(gb), _of_disk(gb))


def restore_seconds(gb: float) -> float:
    """Of a restore without comparison. Its disk takes everything twice: as rows and as WAL."""
    return max(measured()["restore.wall_seconds"] * _times(gb), 2 * _of_disk(gb))


def restore_test_seconds(gb: float) -> float:
    """At most: comparing reads and hashes the rows once more, which a backup does beside its dump."""
    return restore_seconds(gb) + backup_seconds(gb)


def _times(gb: float) -> float:
    """How many of the measured database that is."""
    return gb * 1000 / measured()["database.size_mb"]


def stored_gb(gb: float) -> float:
    """Compressed and sealed, if rows compress as the benchmark's do."""
    return measured()["backup.stored_mb"] * _times(gb) / 1000


def copy_seconds(gb: float) -> float:
    """Of the weekly copy, by S3, and reading it back from the other region."""
    return sum(stored_gb(gb) * 1000 / ASSUMED[rate].value for rate in ("server_copy", "far_stream"))


def users(gb: float) -> float:
    """As many a GB as in the benchmark's data."""
    return generate.SIZES["bench_full"].users * _times(gb)


def scratch_gb(gb: float) -> float:
    """Room for a restore test on the restore worker: a server with everything, and the opened archive."""
    return gb * ROOM + min(gb, scratch.WAL_BYTES / 1e9) + stored_gb(gb)


def dollars(gb: float) -> dict[str, float]:
    """USD a month, after the first year, by what they are paid for. Requests are not in it: below 2 USD at 1,000 GB."""
    price = {name: one.value for name, one in ASSUMED.items()}
    each = stored_gb(gb)
    return {
        "dailies, 30 days and 30 more": each * (30 + _KEPT_AFTER) * price["home_storage"],
        "weeklies, 90 days and 30 more": each * (90 + _KEPT_AFTER) / 7 * price["copy_storage"],
        "archives, 12 a year for ever": each * 12 * price["archive_storage"],
        "reading back, restore tests": each * (_DAYS + _WEEKS + 1) * price["reading"],
        "into the other region, and read back": each
        * ((_WEEKS + 1) * price["from_home"] + _WEEKS * (price["from_copy"] + price["reading"])),
        "disk of the restore worker": scratch_gb(gb) * price["scratch"],
    }


def _time(seconds: float) -> str:
    if seconds < 60:
        return "under 1 min"
    return f"{seconds / 60:.0f} min" if seconds <= 5400 else f"{seconds / 3600:.1f} h"


def _rows(name: str) -> Callable[[float], str]:
    """Time for all users at a rate of the benchmarks."""
    return lambda gb: _time(users(gb) / measured()[name])


def _size(gb: float) -> str:
    return f"{int(gb):,} GB" if gb >= 10 else f"{gb:.1f} GB"


def _memory(name: str) -> Callable[[float], str]:
    return lambda _gb: f"{measured()[name]:.0f} MB"


def _dollars(name: str, gb: float) -> str:
    return f"{dollars(gb)[name]:,.0f}"


ROWS: dict[str, Callable[[float], str]] = {
    "Daily backup, until it is committed": lambda gb: _time(backup_seconds(gb)),
    "Restore into an empty database": lambda gb: _time(restore_seconds(gb)),
    "Restore test, at most": lambda gb: _time(restore_test_seconds(gb)),
    "Weekly copy, read back there": lambda gb: _time(copy_seconds(gb)),
    "Users (as many a GB as in the benchmark)": lambda gb: f"{users(gb) / 1e6:,.0f} million",
    "Encrypting their numbers, two workers, no traffic": _rows("backfill.two_workers_rows_per_s"),
    "… under 1,200 requests a second, on the same two cores": _rows("busy.rows_per_s"),
    "Verifying every row, two readers": _rows("verify.rows_per_s"),
    "Memory of a backup": _memory("backup.peak_rss_mb"),
    "Memory of a restore": _memory("restore.peak_rss_mb"),
    "Memory of a backfill's worker": _memory("backfill.peak_rss_mb"),
    "One backup in S3": lambda gb: _size(stored_gb(gb)),
    "Room on the restore worker": lambda gb: _size(scratch_gb(gb)),
    **{f"USD a month: {name}": partial(_dollars, name) for name in dollars(1)},
    "**USD a month, all**": lambda gb: f"**{sum(dollars(gb).values()):,.0f}**",
}


def limits() -> dict[str, tuple[str, float | None]]:
    """Each limit of the desk, and the first size in GB that goes beyond it, if there is one below 10,000."""
    final = timedelta(minutes=ReleaseSettings().final_backup_minutes)
    rto = timedelta(minutes=TargetSettings().rto_minutes)

    def first(cost: Callable[[float], float], most: float) -> float | None:
        return next((gb for gb in range(1, _LARGEST_GB + 1) if cost(gb) > most), None)

    return {
        "a restore test takes longer than the target (`PAYME_OPS__TARGETS__RTO_MINUTES`)": (
            _time(rto.total_seconds()),
            first(restore_test_seconds, rto.total_seconds()),
        ),
        "the final backup of a release, orders stopped (`PAYME_OPS__RELEASE__FINAL_BACKUP_MINUTES`)": (
            _time(final.total_seconds()),
            first(backup_seconds, final.total_seconds()),
        ),
        "`backup_daily` is told to be late": (_time(LATE.total_seconds()), first(backup_seconds, LATE.total_seconds())),
        "a restore test is ended": (
            _time(TASK.total_seconds()),
            first(restore_test_seconds, TASK.total_seconds()),
        ),
        "the dump is ended": (_time(TASK.total_seconds()), first(backup_seconds, TASK.total_seconds())),
        "one object in S3, rows compress as here": (
            _size(LARGEST_OBJECT_BYTES / 1e9),
            first(stored_gb, LARGEST_OBJECT_BYTES / 1e9),
        ),
        "one object in S3, rows compress to a half": (
            _size(LARGEST_OBJECT_BYTES / 1e9),
            first(lambda gb: gb / 2, LARGEST_OBJECT_BYTES / 1e9),
        ),
    }


def tables() -> str:
    """What stands in docs/growth.md: the sizes, the limits, the assumptions."""
    return "\n".join(_lines()) + "\n"


def _lines() -> Iterator[str]:
    yield "| | " + " | ".join(f"{gb:,} GB" for gb in SIZES_GB) + " |"
    yield "|---|" + "---|" * len(SIZES_GB)
    for name, cell in ROWS.items():
        yield f"| {name} | " + " | ".join(cell(gb) for gb in SIZES_GB) + " |"
    yield from ("", "| What comes to its end | Limit | From |", "|---|---|---|")
    for name, (limit, gb) in limits().items():
        yield f"| {name} | {limit} | {f'{gb:,.0f} GB' if gb else f'not below {_LARGEST_GB:,} GB'} |"
    yield from ("", "| Assumed | | Is | Where it comes from |", "|---|---|---|---|")
    for one in ASSUMED.values():
        yield f"| {one.what} | {one.value:g} | {one.unit} | {one.source} |"


if __name__ == "__main__":
    publish(PAGE, "growth", tables())
