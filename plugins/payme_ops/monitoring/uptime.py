"""Uptime by day and month of Nairobi, from single looks while they are kept and from their sums for ever.

A figure says only what was looked at. Uptime is the share of healthy looks among those taken; what was not taken is
neither up nor down but named, as coverage and as gaps, and a period without a look is not known.

An endpoint that is looked at every 30 s stores 2,880 looks a day of 134 bytes with their index (0.39 MB a day, 15.4 MB
in 40 days; measured on PostgreSQL 17 with three endpoints), and 377 sums a year. Its sums of a night take 0.1 s.
"""

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, date, datetime, time, timedelta
from enum import StrEnum
from itertools import pairwise
from typing import Any

import psycopg
from psycopg.rows import dict_row
from psycopg.types.json import Json

from payme_ops.foundation.clock import EAT
from payme_ops.foundation.errors import NotFound
from payme_ops.foundation.postgres import connect, speaking
from payme_ops.foundation.sql import load

_log = logging.getLogger("payme_ops.monitoring")

# A look may be late or lost; nobody looked when more than two in a row are missing.
LONGEST_INTERVALS = 3
_BATCH = 5_000
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_APPLICATION = "payme_ops:uptime"


class Period(StrEnum):
    """What figures are given for."""

    DAY = "day"
    MONTH = "month"

    def of(self, instant: datetime) -> date:
        """The period of an instant, by its first day."""
        day = instant.astimezone(EAT).date()
        return day if self is Period.DAY else day.replace(day=1)

    def after(self, begins: date) -> date:
        """The next one."""
        if self is Period.DAY:
            return begins + timedelta(days=1)
        return (begins + timedelta(days=31)).replace(day=1)

    def before(self, begins: date) -> date:
        """The one before."""
        return self.of(_midnight(begins) - timedelta(seconds=1))


@dataclass(frozen=True)
class Figures:
    """What the looks of one period came to.

    `expected` slots from the first look ever until now, `taken` of them; milliseconds of healthy answers, and the
    median of the p95 that the application told; None: nothing to tell it from.
    """

    begins: date
    expected: int
    stored: int = 0
    taken: int = 0
    healthy: int = 0
    unhealthy: int = 0
    unknown: int = 0
    p50: float | None = None
    p95: float | None = None
    p99: float | None = None
    app_p95: float | None = None
    first_at: datetime | None = None
    last_at: datetime | None = None

    @property
    def uptime(self) -> float | None:
        """Healthy among those taken, 0 to 1; None: not known."""
        return self.healthy / self.taken if self.taken else None

    @property
    def coverage(self) -> float | None:
        """Taken among those expected, 0 to 1; None: none was to be expected yet."""
        return self.taken / self.expected if self.expected else None


@dataclass(frozen=True)
class Gap:
    """Nobody looked between these two looks, or, `open`, from one on: it goes on until now, or after midnight."""

    begins: datetime
    ends: datetime
    open: bool = False

    @property
    def length(self) -> timedelta:
        """How long nobody looked."""
        return self.ends - self.begins


@dataclass(frozen=True)
class Outages:
    """Outages of one kind (down, slow, unclear) that fall into a period, and their seconds in it."""

    kind: str
    count: int
    seconds: float


@dataclass(frozen=True)
class Row:
    """One period of a report."""

    figures: Figures
    outages: tuple[Outages, ...]


@dataclass(frozen=True)
class Report:
    """Uptime of one subject, oldest period first. `first_at` is the first look ever; None: nobody has looked yet."""

    subject: str
    period: Period
    interval: timedelta
    first_at: datetime | None
    rows: tuple[Row, ...] = ()
    gaps: tuple[Gap, ...] = ()


@dataclass(frozen=True)
class RolledUp:
    """Periods that were summed (subject, period, first day), and those that cannot be: looks of them are gone."""

    summed: list[str] = field(default_factory=list)
    incomplete: list[str] = field(default_factory=list)


def subjects(ops: str) -> list[str]:
    """Whoever was ever looked at, without runs. Raises DatabaseUnavailable, DatabaseError."""
    with connect(ops, application=_APPLICATION) as session, speaking("read who is looked at"):
        return [row[0] for row in session.execute(load("monitoring/subjects.sql"))]


def require_known(name: str, known: Sequence[str]) -> None:
    """`name`, or with "" anybody at all. Raises NotFound that names those who are known."""
    if name in known or (known and not name):
        return
    raise NotFound(
        f"nobody looks at {name or 'any application'}",
        expected=f"one of {', '.join(known)}" if known else "an endpoint that is or was configured",
        found=f"{name or 'none'}",
        remedy="PAYME_OPS__MONITORING__ENDPOINTS says who is looked at",
    )


def report(ops: str, subject: str, period: Period, count: int, interval: timedelta, now: datetime) -> Report:
    """The last `count` periods, the running one included. Raises DatabaseUnavailable, DatabaseError."""
    with connect(ops, application=_APPLICATION) as session, speaking("read uptime"):
        # One snapshot: housekeeping may delete looks between two statements.
        session.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
        with session.transaction():
            return _report(_Looks(session, subject, interval, now), period, count)


def roll_up(ops: str, interval: timedelta, now: datetime) -> RolledUp:
    """Sum every ended day and month that has no sum yet; each is written by itself, so a kill loses nothing.

    Raises DatabaseUnavailable, DatabaseError.
    """
    done = RolledUp()
    with connect(ops, application=_APPLICATION) as session, speaking("sum up looks"):
        found = session.execute(load("monitoring/not_summed.sql"), {"today": Period.DAY.of(now)}).fetchall()
        for name, subject, begins, incomplete in found:
            called = f"{subject} {name} {begins:%Y-%m-%d}"
            if incomplete:
                _log.error("%s is not summed: looks of that month were deleted, and not by us", called)
                done.incomplete.append(called)
                continue
            _sum(_Looks(session, subject, interval, now), Period(name), begins)
            done.summed.append(called)
    return done


def delete_old(ops: str, keep_days: int, now: datetime, report: Callable[[str], None] = _log.info) -> int:
    """Delete looks older than that many days, in batches; of endpoints only those whose day and month are summed.

    Returns how many. Raises DatabaseUnavailable, DatabaseError.
    """
    values = {"before": _midnight(Period.DAY.of(now - timedelta(days=keep_days))), "batch": _BATCH}
    deleted = 0
    with connect(ops, application=_APPLICATION) as session, speaking("delete old looks"):
        while gone := session.execute(load("monitoring/delete_looks.sql"), values).rowcount:
            deleted += gone
            report(f"{deleted:,} looks deleted")
    return deleted


@dataclass(frozen=True)
class _Looks:
    """The looks at one subject up to the slot that runs now, which has not had its look yet."""

    session: psycopg.Connection
    subject: str
    interval: timedelta
    now: datetime

    @property
    def until(self) -> datetime:
        return _slot(self.now, self.interval)

    def edges(self, since: datetime) -> tuple[datetime | None, datetime | None]:
        """The first look ever, and the last one before `since`."""
        row = self.session.execute(
            load("monitoring/edges.sql"), {"subject": self.subject, "since": since}
        ).fetchone() or (None, None)
        return row[0], row[1]

    def figures(self, period: Period, first: date, last: date) -> list[Figures]:
        """Of each period from `first` to `last`, with and without looks."""
        since, until = _midnight(first), min(_midnight(period.after(last)), self.until)
        values = {
            "subject": self.subject,
            "period": period,
            "interval": self.interval.total_seconds(),
            "since": since,
            "until": until,
        }
        first_ever, _ = self.edges(since)
        begun = _slot(first_ever, self.interval) if first_ever else until
        with self.session.cursor(row_factory=dict_row) as cursor:
            found = {row["begins"]: row for row in cursor.execute(load("monitoring/figures.sql"), values)}
        return [
            _figures(begins, self._expected(period, begins, begun), found.get(begins))
            for begins in _periods(period, first, last)
        ]

    def _expected(self, period: Period, begins: date, begun: datetime) -> int:
        ends = min(_midnight(period.after(begins)), self.until)
        return max(0, _number(ends, self.interval) - _number(max(_midnight(begins), begun), self.interval))

    def gaps(self, first: date, last: date) -> list[Gap]:
        """Those of these days, cut at their borders."""
        since, until = _midnight(first), min(_midnight(last + timedelta(days=1)), self.until)
        ends = min(until + timedelta(days=1), self.until)  # a gap at midnight ends with the first look after it
        _, last_before = self.edges(since)
        values = {
            "subject": self.subject,
            "since": since,
            "until": ends,
            "last_before": last_before,
            "longest": LONGEST_INTERVALS * self.interval,
        }
        rows = self.session.execute(load("monitoring/gaps.sql"), values).fetchall()
        cut = [
            Gap(max(begins, since), min(ends, until), open=ends > until or ends == self.until) for begins, ends in rows
        ]
        return [gap for gap in cut if gap.begins < gap.ends]

    def sums(self, period: Period, first: date, last: date) -> "dict[date, tuple[Figures, list[Gap]]]":
        """What was summed of the periods from `first` to `last`."""
        values = {"subject": self.subject, "period": period, "first": first, "last": last}
        rows = self.session.execute(load("monitoring/sums.sql"), values).fetchall()
        return {begins: (Figures(begins, *rest), [_gap(*gap) for gap in gaps]) for begins, *rest, gaps in rows}

    def outages(self, period: Period, begins: Sequence[date]) -> list[tuple[Outages, ...]]:
        """Those of each period."""
        values = {
            "subject": self.subject,
            "since": [_midnight(one) for one in begins],
            "until": [_midnight(period.after(one)) for one in begins],
            "now": self.now,
        }
        found: list[list[Outages]] = [[] for _ in begins]
        for number, *outages in self.session.execute(load("monitoring/outages.sql"), values):
            found[number - 1].append(Outages(*outages))
        return [tuple(each) for each in found]


def _report(looks: _Looks, period: Period, count: int) -> Report:
    first_ever, _ = looks.edges(looks.now)
    if first_ever is None:
        return Report(looks.subject, period, looks.interval, None)
    last = first = period.of(looks.now)
    for _ in range(count - 1):
        first = period.before(first)
    first = max(first, period.of(first_ever))
    summed = looks.sums(period, first, last)
    found = {begins: figures for begins, (figures, _) in summed.items()}
    for begins, ends in _runs(period, [one for one in _periods(period, first, last) if one not in summed]):
        found |= {one.begins: one for one in looks.figures(period, begins, ends)}
    outages = looks.outages(period, sorted(found))
    rows = tuple(Row(found[begins], each) for begins, each in zip(sorted(found), outages, strict=True))
    gaps = _all_gaps(looks, max(first, Period.DAY.of(first_ever)), Period.DAY.of(looks.now))
    return Report(looks.subject, period, looks.interval, first_ever, rows, gaps)


def _all_gaps(looks: _Looks, first: date, last: date) -> tuple[Gap, ...]:
    """Of days that were summed as they were summed, their looks may be gone; of the others from looks."""
    summed = looks.sums(Period.DAY, first, last)
    pieces = [gap for _, gaps in summed.values() for gap in gaps]
    for begins, ends in _runs(Period.DAY, [one for one in _periods(Period.DAY, first, last) if one not in summed]):
        pieces += looks.gaps(begins, ends)
    return tuple(_joined(pieces))


def _joined(pieces: Iterable[Gap]) -> Iterator[Gap]:
    """What was cut at midnight is one gap again."""
    whole: Gap | None = None
    for gap in sorted(pieces, key=lambda piece: piece.begins):
        if whole and whole.open and whole.ends == gap.begins:
            whole = replace(gap, begins=whole.begins)
            continue
        if whole:
            yield whole
        whole = gap
    if whole:
        yield whole


def _sum(looks: _Looks, period: Period, begins: date) -> None:
    (found,) = looks.figures(period, begins, begins)
    if not found.stored:
        return  # another one at the same work has summed and deleted them meanwhile
    gaps = looks.gaps(begins, begins) if period is Period.DAY else []
    values = {
        **vars(found),
        "subject": looks.subject,
        "period": period,
        "interval_seconds": looks.interval.total_seconds(),
        "gaps": Json([[gap.begins.isoformat(), gap.ends.isoformat(), gap.open] for gap in gaps]),
    }
    looks.session.execute(load("monitoring/write_sum.sql"), values)


def _figures(begins: date, expected: int, row: dict[str, Any] | None) -> Figures:
    if row is None:
        return Figures(begins, expected)
    p50, p95, p99 = row.pop("ms") or (None, None, None)
    return Figures(**{**row, "expected": expected, "p50": p50, "p95": p95, "p99": p99})


def _gap(begins: str, ends: str, goes_on: bool) -> Gap:
    return Gap(datetime.fromisoformat(begins), datetime.fromisoformat(ends), goes_on)


def _periods(period: Period, first: date, last: date) -> Iterator[date]:
    while first <= last:
        yield first
        first = period.after(first)


def _runs(period: Period, begins: Sequence[date]) -> Iterator[tuple[date, date]]:
    """Neighbours as one run, first and last."""
    if not begins:
        return
    first = begins[0]
    for one, following in pairwise(begins):
        if period.after(one) != following:
            yield first, one
            first = following
    yield first, begins[-1]


def _midnight(day: date) -> datetime:
    """When that day begins in Nairobi."""
    return datetime.combine(day, time(), EAT).astimezone(UTC)


def _slot(instant: datetime, interval: timedelta) -> datetime:
    """The beginning of the slot that an instant falls into."""
    return _EPOCH + (instant - _EPOCH) // interval * interval


def _number(instant: datetime, interval: timedelta) -> int:
    """How many slots have begun before that instant, counted from 1970."""
    return -((_EPOCH - instant) // interval)
