"""When an application counts as down, slow or unclear, when that is over, and when people are told again.

Decisions first: what has been looked at goes in. Then what is read of the outages that `rounds` has written.

Anything but a healthy and quick answer is bad, a redirect or a refusal too: of our own API that is something to look
at. One bad look is noise; three of the last ten are looked into at once by a burst of three more, and two bad ones of
these make an outage. Ten good looks in a row end it, so an application that comes and goes has one outage.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Any

from psycopg.rows import dict_row

from payme_ops.foundation.errors import NotFound
from payme_ops.foundation.health import State
from payme_ops.foundation.postgres import connect, speaking
from payme_ops.foundation.samples import Sample
from payme_ops.foundation.sql import load

BAD, OF = 3, 10
BURST, CONFIRMED, BURST_SECONDS = 3, 2, 0.5
# Of looks before a gap in them nothing follows for now.
REACH = 2 * OF
_REMIND_MINUTES = (15, 30, 60, 120, 240)


class Kind(StrEnum):
    """What is bad about a look."""

    DOWN = "down"
    SLOW = "slow"
    UNCLEAR = "unclear"


WORDS = {Kind.DOWN: "is down", Kind.SLOW: "is slow", Kind.UNCLEAR: "does not say how it is"}


@dataclass(frozen=True, kw_only=True)
class Outage:
    """A row of ops.outages; id 0: the ops database was away, it is only in memory. `p95` in milliseconds."""

    id: int
    subject: str
    kind: Kind
    began_at: datetime
    last_good_at: datetime | None
    opened_at: datetime
    ended_at: datetime | None = None
    why: str
    p95: float | None = None
    run: str = ""
    muted_until: datetime | None = None
    muted_by: str | None = None

    @property
    def occurrence(self) -> str:
        """What its alerts are told under; those that follow the first have more behind it."""
        return f"outage/{self.id}" if self.id else f"outage/{self.began_at:%Y-%m-%dT%H:%M:%SZ}"


@dataclass(frozen=True)
class Window:
    """The maintenance window of a release that is at work."""

    release: str
    until: datetime


def kind(sample: Sample, slow_ms: float) -> Kind | None:
    """What is bad about it; None: nothing."""
    if sample.state is State.UNHEALTHY:
        return Kind.DOWN
    if sample.state is State.UNKNOWN:
        return Kind.UNCLEAR
    return Kind.SLOW if sample.ms > slow_ms else None


def why(sample: Sample, slow_ms: float) -> str:
    """The same in words."""
    if kind(sample, slow_ms) is Kind.SLOW:
        return f"healthy after {sample.ms:.0f} ms, more than {slow_ms:g}"
    return str(sample.facts.get("why", "healthy"))


def counting(samples: Sequence[Sample], now: datetime, interval: float) -> list[Sample]:
    """The last ten, oldest first, without those from before a gap; `interval` in seconds."""
    since = now - timedelta(seconds=REACH * interval)
    return [one for one in samples if since < one.at <= now][-OF:]


def is_suspect(last: Sequence[Kind | None]) -> bool:
    """Whether a burst is due: the newest look is bad, and with it enough of the last ten."""
    return bool(last) and last[-1] is not None and sum(one is not None for one in last[-OF:]) >= BAD


def is_confirmed(burst: Sequence[Kind | None]) -> bool:
    """Whether the burst says the same."""
    return sum(one is not None for one in burst) >= CONFIRMED


def worst(found: Sequence[Kind | None]) -> Kind:
    """What it is called: what most of the bad ones were, the worse where they are as many. One must be bad."""
    bad = [one for one in found if one is not None]
    return max((Kind.SLOW, Kind.UNCLEAR, Kind.DOWN), key=lambda one: (bad.count(one), one is Kind.DOWN, one))


def has_worsened(outage: Outage, last: Sequence[Kind | None]) -> bool:
    """Whether what was slow or unclear is down by now."""
    return outage.kind is not Kind.DOWN and list(last).count(Kind.DOWN) >= BAD


def end(last: Sequence[Sample], slow_ms: float) -> datetime | None:
    """The first of ten good looks in a row, with which it was over; None while it is on."""
    if len(last) < OF or any(kind(one, slow_ms) for one in last):
        return None
    return last[0].at


def reminder(outage: Outage, now: datetime) -> int | None:
    """The minutes at which people had to be told again last, of which the later ones are further apart.

    They count from when people were told: an outage that was muted is told at its window's end.
    """
    told = max(outage.opened_at, outage.muted_until or outage.opened_at)
    minutes = int((now - told).total_seconds() // 60)
    due = [one for one in _REMIND_MINUTES if one <= minutes]
    return max([*due, minutes // 240 * 240]) if due else None


# -- what is written ----------------------------------------------------------------------------------------------


def of_row(row: Mapping[str, Any]) -> Outage:
    """A row of ops.outages."""
    return Outage(**{**row, "kind": Kind(row["kind"])})


def get(ops: str, number: int) -> Outage:
    """The outage of that id. Raises NotFound, DatabaseUnavailable, DatabaseError."""
    with (
        connect(ops, application="payme_ops:outages") as connection,
        speaking("read an outage"),
        connection.cursor(row_factory=dict_row) as cursor,
    ):
        row = cursor.execute(load("health_watch/outage.sql"), {"id": number}).fetchone()
    if row is None:
        raise NotFound(f"there is no outage {number}", remedy="see who deletes from ops.outages")
    return of_row(row)


def claim(ops: str, run: str, told: Sequence[int]) -> list[int]:
    """Ids of outages that are this run's from now on: those that it was told of, and those that are on, without a run.

    The same again for one that has claimed before. Raises DatabaseUnavailable, DatabaseError.
    """
    with connect(ops, application="payme_ops:outages") as connection, speaking("take outages"):
        rows = connection.execute(load("health_watch/claim_outages.sql"), {"run": run, "ids": list(told)}).fetchall()
    return sorted(row[0] for row in rows)
