"""What people see of backups, evidence and uptime on a terminal."""

from datetime import datetime, timedelta

from rich.table import Table

from payme_ops.backup.catalogue import Entry, State
from payme_ops.backup.manifest import Manifest
from payme_ops.foundation.clock import show, span
from payme_ops.foundation.evidence import Evidence, Verdict, plain
from payme_ops.foundation.progress import size
from payme_ops.monitoring.uptime import LONGEST_INTERVALS, Figures, Period, Report, Row

_VERDICT = {Verdict.PASS: "green", Verdict.FAIL: "red", Verdict.INCONCLUSIVE: "yellow", Verdict.BYPASSED: "magenta"}
_STATE = {
    State.VERIFIED: "green",
    State.COMPLETE: "yellow",
    State.REFUTED: "red",
    State.CLOSED: "dim",
    State.UNTRUSTED: "red",
}


def proof_table(done: Manifest) -> Table:
    """What a finished backup proves: key, size, rows, equal hashes, time per stage."""
    table = Table(title=f"Backup {done.prefix}", show_header=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    proof = done.read_back
    rows = [
        ("manifest", done.key),
        *([("copied from", done.copied_from)] if done.copied_from else []),
        ("snapshot", f"{show(done.snapshot_at)}, {done.database} on PostgreSQL {done.server.version}"),
        ("size", f"{size(done.archive.size_bytes)} sealed, of a database of {size(done.server.size_bytes)}"),
        ("rows", f"{done.truth.rows:,} in {len(done.truth.relations)} relations, hashed in the dump's own snapshot"),
        ("sha256 before upload", done.archive.sha256),
        ("sha256 read back", f"{done.archive.sha256}, equal" if proof else "not read back"),
        ("sealed to", ", ".join(f"{who} {key[:12]}…" for who, key in sorted(done.sealing.recipients.items()))),
        *((f"time, {stage}", f"{ms / 1000:.1f} s") for stage, ms in done.milliseconds.items()),
        *([("time, read back", f"{proof.milliseconds / 1000:.1f} s")] if proof else []),
        ("run", f"{done.run} (fencing token {done.fencing_token})"),
    ]
    for row in rows:
        table.add_row(*row)
    return table


def entries_table(title: str, found: list[Entry]) -> Table:
    """Backups by tier and time; fits into 80 columns."""
    table = Table(title=title, title_justify="left", box=None, padding=(0, 1), collapse_padding=True, pad_edge=False)
    for heading in ("tier", "taken (EAT)", "size", "rows", "state", "tested", "expires"):
        table.add_column(heading, justify="right" if heading in ("size", "rows") else "left", no_wrap=True)
    for one in found:
        table.add_row(*_entry_row(one))
    return table


def _entry_row(one: Entry) -> list[str]:
    state = f"[{_STATE[one.state]}]{one.state}[/]"
    if one.manifest is None:
        return [one.tier, one.key, "", "", state, "", ""]
    return [
        one.tier,
        _minute(one.manifest.snapshot_at),
        size(one.manifest.archive.size_bytes),
        f"{one.manifest.truth.rows:,}",
        state,
        _minute(one.verification.ended)[:10] if one.verification else "never",
        _minute(one.expires_at)[:10] if one.expires_at else "never",
    ]


def _minute(instant: datetime) -> str:
    return show(instant)[:16]


def entry_json(one: Entry) -> dict[str, object]:
    """One backup for machines."""
    found = one.manifest
    return {
        "key": one.key,
        "tier": one.tier,
        "state": one.state,
        "why": one.why,
        "snapshot_at": found.snapshot_at.isoformat() if found else None,
        "size_bytes": found.archive.size_bytes if found else None,
        "rows": found.truth.rows if found else None,
        "verified_at": one.verification.ended.isoformat() if one.verification else None,
        "expires_at": one.expires_at.isoformat() if one.expires_at else None,
    }


def evidence_table(title: str, found: list[Evidence]) -> Table:
    """What was measured, item by item."""
    table = Table(title=title)
    for heading in ("item", "verdict", "expected", "found", "to do"):
        table.add_column(heading, overflow="fold")
    for item in found:
        style = _VERDICT[item.verdict]
        table.add_row(
            item.item, f"[{style}]{item.verdict}[/{style}]", item.threshold, plain(item.measured), item.remedy
        )
    return table


def evidence_lines(found: list[Evidence]) -> str:
    """The same where nobody looks at a table: a line an item, and what to do below what does not pass."""
    lines = []
    for item in found:
        lines.append(f"{item.verdict:<12} {item.item}: {plain(item.measured)}")
        if item.verdict is not Verdict.PASS:
            lines.append(f"{'':<12} expected: {item.threshold}; to do: {item.remedy}")
    return "\n".join(lines)


def evidence_json(item: Evidence) -> dict[str, object]:
    """The same for machines."""
    return {
        "item": item.item,
        "verdict": item.verdict,
        "measured": item.measured,
        "threshold": item.threshold,
        "source": item.source,
        "remedy": item.remedy,
    }


def uptime_table(found: Report) -> Table:
    """Uptime by day or month, what nobody has seen as not known; fits into 80 columns."""
    title = f"Uptime of {found.subject}"
    table = Table(title=title, title_justify="left", box=None, padding=(0, 1), collapse_padding=True, pad_edge=False)
    table.add_column(found.period.value, no_wrap=True)
    for heading in ("uptime %", "looks", "cover %", "unhealthy", "unknown", "p50", "p95", "p99", "app p95"):
        table.add_column(heading, justify="right", no_wrap=True)
    for row in found.rows:
        table.add_row(*_uptime_row(found.period, row.figures))
    return table


def _uptime_row(period: Period, one: Figures) -> list[str]:
    up, covered = _percent(one.healthy, one.taken), _percent(one.taken, one.expected, digits=1)
    return [
        _name(period, one),
        "not known" if up is None else f"{up:.3f}",
        f"{one.taken:,}",
        "" if covered is None else f"{covered:.1f}",
        f"{one.unhealthy:,}" if one.taken else "",
        f"{one.unknown:,}" if one.taken else "",
        *(f"{ms:.0f}" if ms is not None else "" for ms in (one.p50, one.p95, one.p99, one.app_p95)),
    ]


def _name(period: Period, one: Figures) -> str:
    return f"{one.begins:%Y-%m}" if period is Period.MONTH else f"{one.begins}"


def uptime_notes(found: Report) -> str:
    """What stands below that table: outages, when nobody looked, and what the figures are of."""
    if found.first_at is None:
        return f"Not known: nobody has looked at {found.subject} yet.\n"
    outages = [
        f"{_name(found.period, row.figures)}: {each.count} {each.kind}, {span(timedelta(seconds=each.seconds))}"
        for row in found.rows
        for each in row.outages
    ]
    gaps = [
        f"Nobody looked from {show(gap.begins)} to {'now' if gap.open else show(gap.ends)} ({span(gap.length)})"
        for gap in found.gaps
    ]
    step = found.interval.total_seconds()
    lines = [
        *(["Outages:", *outages] if outages else ["No outages."]),
        *(gaps or [f"Never longer than {LONGEST_INTERVALS * step:g} s without a look."]),
        f"Days are EAT's. A look every {step:g} s, the first {show(found.first_at)}; cover: looks taken of those due.",
        "Uptime: healthy looks of those taken. p50 to p99: ms of healthy answers; app p95: as it told itself.",
    ]
    return "\n".join([*lines, ""])


def uptime_json(found: Report) -> dict[str, object]:
    """The same for machines; null is not known."""
    return {
        "subject": found.subject,
        "period": found.period,
        "interval_seconds": found.interval.total_seconds(),
        "first_look": found.first_at.isoformat() if found.first_at else None,
        "periods": [_period_json(row) for row in found.rows],
        "gaps": [
            {
                "from": gap.begins.isoformat(),
                "to": None if gap.open else gap.ends.isoformat(),
                "seconds": gap.length.total_seconds(),
            }
            for gap in found.gaps
        ],
    }


def _period_json(row: Row) -> dict[str, object]:
    one: Figures = row.figures
    return {
        "begins": one.begins.isoformat(),
        "uptime_percent": _percent(one.healthy, one.taken),
        "coverage_percent": _percent(one.taken, one.expected),
        "expected": one.expected,
        "taken": one.taken,
        "healthy": one.healthy,
        "unhealthy": one.unhealthy,
        "unknown": one.unknown,
        "p50_ms": one.p50,
        "p95_ms": one.p95,
        "p99_ms": one.p99,
        "application_p95_ms": one.app_p95,
        "outages": [{"kind": each.kind, "count": each.count, "seconds": each.seconds} for each in row.outages],
    }


def _percent(part: int, whole: int, digits: int = 3) -> float | None:
    """Cut after so many digits, not rounded: one bad look of a month is no 100 %."""
    scale: int = 10**digits
    return part * 100 * scale // whole / scale if whole else None
