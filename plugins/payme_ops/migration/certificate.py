"""The erasure certificate: what is shown to be rid of the plaintext, and where it remains, until when.

A dropped column is gone from the rows, not yet from the table's file, the WAL and backups. It says so of
what nobody can see here, too.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from payme_ops.foundation.clock import show, utc_now
from payme_ops.foundation.evidence import Evidence, Finding, Verdict, conclude, failed, passed

KIND = "erasure_certificate"
# Its verdicts, which are about the table: elsewhere plaintext remains in either case, as the items say.
ERASED, REMAINS = "ERASED IN THE TABLE", "PLAINTEXT REMAINS IN THE TABLE"

_FOR_EVER = "for ever"


@dataclass(frozen=True)
class Copy:
    """A backup from before the drop. `until` None: nothing deletes it by itself, and `why` says so."""

    backup: str
    tier: str
    until: datetime | None
    why: str


def items(
    dropped: datetime, purged: Evidence | None, copies: Sequence[Copy], *, tiers: Sequence[str], actor: str
) -> list[Evidence]:
    """What is known about each place. `purged` is the purge's evidence, None when there was none."""
    now = utc_now()
    found = [
        ("table_file", "another file than at the drop", _file(purged)),
        ("heap_scan", "no page of the table's file holds a known number", _pages(purged)),
        ("statistics", "no row of pg_statistic, live or dead, holds values of the column", _statistics()),
        ("wal", "no segment holds a page with the plaintext", _wal(purged)),
        *(
            (f"backups_{tier}", f"no {tier} backup from before {show(dropped)}", _backups(copies, tier))
            for tier in tiers
        ),
    ]
    return [
        conclude(item, finding, threshold=threshold, actor=actor, source=_SOURCES[item.split("_")[0]], started=now)
        for item, threshold, finding in found
    ]


_SOURCES = {
    "table": "evidence of purge_table",
    "heap": "evidence of purge_table",
    "statistics": "how PostgreSQL drops a column",
    "wal": "how PostgreSQL writes WAL",
    "backups": "the catalogue of backups",
}


def verdict(found: Sequence[Evidence]) -> str:
    """The word that counts: of the table itself."""
    [table] = [item for item in found if item.item == "table_file"]
    return ERASED if table.verdict is Verdict.PASS else REMAINS


def remains_until(copies: Sequence[Copy]) -> str:
    """Until when backups hold the plaintext, at the earliest."""
    if any(copy.until is None for copy in copies):
        return _FOR_EVER
    return show(max(copy.until for copy in copies if copy.until)) if copies else "no backup holds it"


def _file(purged: Evidence | None) -> Finding:
    if purged is None:
        return failed(
            {"plaintext remains": "in the table's file: it was not written anew"},
            "write the table anew (VACUUM FULL) in a quiet hour: it stops every query on it",
        )
    return Finding(purged.verdict, purged.measured, purged.remedy)


def _pages(purged: Evidence | None) -> Finding:
    pages = purged.measured["pages_with_canaries_after"] if purged else None
    if pages is None:
        return Finding(Verdict.BYPASSED, "not scanned: the role may not read pages, or there was no purge")
    if pages:
        return failed({"pages": pages}, "look what writes numbers into another column of the table")
    return passed({"pages": 0})


def _statistics() -> Finding:
    measured = "the column's own rows went with it; dead ones stay in the catalogue's file until it is written anew"
    return Finding(Verdict.INCONCLUSIVE, measured, "as a superuser: VACUUM (FULL, ANALYZE) pg_statistic")


def _wal(purged: Evidence | None) -> Finding:
    # A page that is changed after a checkpoint goes whole into the WAL, with what dropped columns left in it.
    last = f"up to {purged.measured['wal_segment']}" if purged else "up to now, and each that comes: see table_file"
    measured = {
        "segments that may hold it": last,
        "plaintext remains until": "only the owner of the WAL archive knows: until these, and base backups and disk"
        " snapshots as old, are deleted",
    }
    return Finding(Verdict.INCONCLUSIVE, measured, "have the archive's owner write the date down beside this")


def _backups(copies: Sequence[Copy], tier: str) -> Finding:
    held = [copy for copy in copies if copy.tier == tier]
    if not held:
        return passed({"backups": 0})
    rows: list[dict[str, Any]] = [
        {
            "backup": copy.backup,
            "plaintext remains": f"until {show(copy.until)}" if copy.until else _FOR_EVER,
            "because": copy.why,
        }
        for copy in held
    ]
    remedy = "wait; until then backup_monthly may archive one for ever: clear `certificate` later for a new one"
    if any(copy.until is None for copy in held):
        remedy = "what is kept for ever a person deletes, or decides to keep; say which"
    return failed({"backups": len(rows), "rows": rows}, remedy)
