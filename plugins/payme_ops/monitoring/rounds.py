"""A round of the health watch: look at everything at once, store, decide, and tell what has to be told.

What was seen and what is on stands in the ops database, so another process, or the next after a crash, goes on from
there, and two at once count every look and open every outage once. While that database is away the watch goes by its
memory and tells Slack all the same; such looks are stored nowhere, and what is told then may come twice.
"""

import asyncio
import contextvars
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, TypeVar

import psycopg
from psycopg.rows import dict_row
from psycopg.types.json import Json

from payme_ops.foundation import alert
from payme_ops.foundation.alert import Alert, Capture, Outcome, Severity
from payme_ops.foundation.clock import utc_now
from payme_ops.foundation.errors import PaymeOpsError, Unavailable
from payme_ops.foundation.health import State
from payme_ops.foundation.postgres import connect, speaking
from payme_ops.foundation.samples import Sample
from payme_ops.foundation.settings import MonitoringSettings
from payme_ops.foundation.slack import Slack
from payme_ops.foundation.sql import load
from payme_ops.monitoring import outages, probe, telling
from payme_ops.monitoring.outages import Kind, Outage, Window

if TYPE_CHECKING:
    import httpx

_log = logging.getLogger("payme_ops.health_watch")

KEY = telling.KEY
# The looks of a round do not begin all at once, or they would wait for each other and time themselves doing it.
SPREAD_SECONDS, _TOGETHER = 0.5, 50
# A round that cannot reach its database within this goes by memory, or it would be late for the verdict.
DATABASE_SECONDS = 8.0
# A run of `incident` that has not taken its outage by then is asked for again.
_ASK_AGAIN = timedelta(minutes=5)
_NEVER = datetime.min.replace(tzinfo=UTC)
_Found = TypeVar("_Found")


@dataclass(frozen=True)
class Doors:
    """What a round goes by: conninfo of the ops database and Slack, each None where it is not known; whom alerts name,
    the page with the runbook, and what tells Sentry of an alert that Slack did not take.
    """

    ops: str | None
    slack: Slack | None
    owner: str
    page: str = ""
    capture: Capture | None = None


@dataclass(frozen=True)
class Known:
    """What a round decides by: the last looks, the new one among them, what is on, and what was told of it."""

    last: Mapping[str, Sequence[Sample]]
    open: Mapping[str, Outage]
    told: Mapping[str, frozenset[str]] = field(default_factory=dict)
    seen: frozenset[str] = frozenset()  # subjects of outages that somebody has acknowledged
    windows: Mapping[str, Window] = field(default_factory=dict)

    def told_of(self, one: Outage) -> frozenset[str]:
        """Occurrences of its alerts."""
        return self.told.get(one.subject, frozenset())


class Watch:
    """Rounds with the memory of one process. `burst_seconds` lie between two confirming looks."""

    def __init__(
        self,
        asked: "httpx.AsyncClient",
        settings: MonitoringSettings,
        doors: Callable[[], Doors],
        burst_seconds: float = outages.BURST_SECONDS,
        clock: Callable[[], datetime] = utc_now,
    ) -> None:
        self._asked, self._settings, self._doors, self._clock = asked, settings, doors, clock
        self._burst_seconds = burst_seconds
        self._memory = Known({}, {})
        self._last_doors = Doors(None, None, "on call")
        self._blind = False
        self._asked_for: dict[int, datetime] = {}
        self._sending: asyncio.Task[None] | None = None
        self._asking: asyncio.Task[Doors] | None = None
        # Threads of its own: those of the event loop are shared with every trigger, and with looking up names.
        self._threads = ThreadPoolExecutor(4, thread_name_prefix="health_watch")
        # And one for telling without the ops database, which may hang and take all the others.
        self._teller = ThreadPoolExecutor(1, thread_name_prefix="health_watch_tells")

    async def round(self, slot: datetime) -> list[dict[str, Any]]:
        """Everything once, for the slot that begins at `slot`.

        Answers the outages that a run of `incident` is due for, as `outage` (id) and `subject`.
        """
        names = sorted(self._settings.endpoints)  # two at once write in one order
        apart = SPREAD_SECONDS / max(len(names), _TOGETHER)
        looking = asyncio.gather(*(self._look(name, slot, number * apart) for number, name in enumerate(names)))
        doors, found = await asyncio.gather(self._now(), looking)
        looks = dict(zip(names, found, strict=True))
        known = await self._known(doors, slot, looks)
        confirmed = await self._confirm(known)
        now = self._clock()
        if self._blind:
            self._memory = await self._call(self._tell_unrecorded, doors, known, confirmed, now, by=self._teller)
            return []
        try:
            written = await self._patiently(self._write, doors, known, confirmed, now)
        except PaymeOpsError as error:
            _log.error("what was decided could not be written, and is decided again: %s", error)
            return []
        self._memory = replace(known, open=written.on, told=written.told)
        # Slack may take its time; the next round does not wait for it.
        if written.keys and (self._sending is None or self._sending.done()):
            self._sending = asyncio.create_task(self._call(self._send, doors, written.new, written.keys))
        return self._due(written.untaken, now)

    async def sent(self) -> None:
        """Wait until what was written has been sent, or has to wait for another round."""
        if self._sending is not None:
            await self._sending

    def close(self) -> None:
        """Let go of its threads."""
        for threads in (self._threads, self._teller):
            threads.shutdown(wait=False, cancel_futures=True)

    async def _now(self) -> Doors:
        """The doors, asked for each time: a secret may have changed. Where nobody can tell, those of before."""
        if self._asking is None or self._asking.done():  # one at a time, or no answer would take all threads
            self._asking = asyncio.create_task(self._call(self._doors))
        try:
            async with asyncio.timeout(DATABASE_SECONDS):
                found = await asyncio.shield(self._asking)
        except (PaymeOpsError, TimeoutError) as error:
            _log.warning("connections cannot be looked up: %s", str(error) or f"no answer in {DATABASE_SECONDS:g} s")
            found = self._last_doors
        before = self._last_doors
        self._last_doors = replace(found, ops=found.ops or before.ops, slack=found.slack or before.slack)
        return self._last_doors

    async def _look(self, name: str, at: datetime, after_seconds: float) -> Sample:
        await asyncio.sleep(after_seconds)
        return await probe.look(self._asked, self._settings.endpoints[name], at)

    async def _call(
        self, function: Callable[..., _Found], *arguments: Any, by: ThreadPoolExecutor | None = None
    ) -> _Found:
        """In a thread: database and Slack keep it waiting, never the event loop that all triggers share."""
        context = contextvars.copy_context()
        return await asyncio.get_running_loop().run_in_executor(
            by or self._threads, lambda: context.run(function, *arguments)
        )

    async def _patiently(self, function: Callable[..., _Found], *arguments: Any) -> _Found:
        try:
            async with asyncio.timeout(DATABASE_SECONDS):
                return await self._call(function, *arguments)
        except TimeoutError:
            raise Unavailable("nothing was answered in time", found=f"nothing in {DATABASE_SECONDS:g} s") from None

    # -- deciding ---------------------------------------------------------------------------------------------------

    async def _known(self, doors: Doors, slot: datetime, looks: Mapping[str, Sample]) -> Known:
        try:
            found = await self._patiently(self._store_and_read, doors.ops, slot, looks)
        except PaymeOpsError as error:
            if not self._blind:  # once, not every thirty seconds
                _log.error("looks cannot be stored, the watch goes by its memory: %s", error)
            self._blind = True
            last = {name: [*self._memory.last.get(name, ()), look] for name, look in looks.items()}
            found = replace(
                self._memory,
                last={name: self._counting(one, slot) for name, one in last.items()},
                windows={name: one for name, one in self._memory.windows.items() if one.until > self._clock()},
            )
        else:
            if self._blind:
                _log.warning("looks are stored again; those since they could not be are a gap")
            self._blind = False
            unrecorded = {name: one for name, one in self._memory.open.items() if not one.id}
            found = replace(found, open={**unrecorded, **found.open})
        self._memory = found
        return found

    def _store_and_read(self, ops: str | None, slot: datetime, looks: Mapping[str, Sample]) -> Known:
        if ops is None:
            raise Unavailable("the connection of the ops database is not known", remedy="see the errors logged before")
        rows = [{"subject": name, **asdict(look), "facts": Json(look.facts)} for name, look in looks.items()]
        reach = timedelta(seconds=outages.REACH * self._settings.interval_seconds)
        asked = {"subjects": list(looks), "since": slot - reach, "until": slot, "count": outages.OF}
        asked |= {"interval": str(self._settings.interval_seconds)}
        with _transaction(ops, "store looks") as cursor:
            cursor.executemany(load("ops/insert_sample.sql"), rows)
            found = cursor.execute(load("health_watch/last_looks.sql"), asked).fetchall()
            on = cursor.execute(load("health_watch/open_outages.sql")).fetchall()
            windows = cursor.execute(load("health_watch/release_windows.sql"), {"now": self._clock()}).fetchall()
        last: dict[str, list[Sample]] = {name: [] for name in looks}
        for row in found:
            last[row["subject"]].append(Sample(row["at"], State(row["state"]), row["ms"], row["facts"]))
        told = {row["subject"]: frozenset(row.pop("told")) for row in on}
        seen = frozenset(row["subject"] for row in on if row.pop("acknowledged"))
        return Known(
            last,
            {row["subject"]: outages.of_row(row) for row in on},
            told,
            seen,
            {row["subject"]: Window(row["release"], row["until"]) for row in windows},
        )

    def _counting(self, samples: Sequence[Sample], slot: datetime) -> list[Sample]:
        return outages.counting(samples, slot, self._settings.interval_seconds)

    def _kinds(self, samples: Sequence[Sample]) -> list[Kind | None]:
        return [outages.kind(one, self._settings.slow_ms) for one in samples]

    async def _confirm(self, known: Known) -> dict[str, Outage]:
        """Outages that are due: those that a burst has confirmed, and those begun while nothing could be written."""
        suspects = [
            name
            for name, last in known.last.items()
            if name not in known.open and outages.is_suspect(self._kinds(last))
        ]
        bursts = await asyncio.gather(*(self._burst(name) for name in suspects))
        found = {
            name: self._begin(name, known.last[name], burst)
            for name, burst in zip(suspects, bursts, strict=True)
            if outages.is_confirmed(self._kinds(burst))
        }
        for name in set(suspects) - set(found):
            _log.info("%s: looked bad, and three looks right after did not confirm it", name)
        late = {name: one for name, one in known.open.items() if not one.id and not self._blind}
        return {**late, **found}

    async def _burst(self, name: str) -> list[Sample]:
        """Begun at fixed distances, not one after the other: each of them may take its whole time limit."""
        looks = (self._look(name, self._clock(), number * self._burst_seconds) for number in range(outages.BURST))
        return list(await asyncio.gather(*looks))

    def _begin(self, name: str, last: Sequence[Sample], burst: Sequence[Sample]) -> Outage:
        kinds, again = self._kinds(last), self._kinds(burst)
        worst, slow = outages.worst(again), self._settings.slow_ms
        shown = next(one for one, bad in zip(burst, again, strict=True) if bad is worst)
        counted = f"{len(last) - kinds.count(None)} of the last {len(last)} looks"
        right_after = f"{len(again) - again.count(None)} of {len(again)} right after them"
        good = [one.at for one, bad in zip(last, kinds, strict=True) if bad is None]
        began = next(one.at for one, bad in zip(last, kinds, strict=True) if bad)
        quick = [one.facts["p95"] for one in last if "p95" in one.facts]
        return Outage(
            id=0,
            subject=name,
            kind=worst,
            began_at=began,
            last_good_at=max((one for one in good if one < began), default=None),
            opened_at=self._clock(),
            why=f"{outages.why(shown, slow)}. Bad were {counted} and {right_after}.",
            p95=quick[-1] if quick else None,
        )

    # -- writing ----------------------------------------------------------------------------------------------------

    def _write(self, doors: Doors, known: Known, confirmed: Mapping[str, Outage], now: datetime) -> "_Written":
        """Outages and their alerts, in one transaction."""
        slow = self._settings.slow_ms
        on: dict[str, Outage] = {}
        told: dict[str, frozenset[str]] = {}
        new: list[Alert] = []
        with _transaction(doors.ops or "", "open and end outages") as cursor:
            opened = [_insert(cursor, one, known.windows.get(name), slow) for name, one in confirmed.items()]
            for one in [*(one for one in known.open.values() if one.id), *(one for one in opened if one)]:
                after, alerts = self._settle(doors, known, one, now)
                _update(cursor, one, after)
                new += [each for each in alerts if alert.write(cursor, each)]
                if after.ended_at is None:
                    on[one.subject] = after
                    told[one.subject] = known.told_of(one) | {each.occurrence for each in alerts}
            keys = [row["key"] for row in cursor.execute(load("health_watch/unsent_keys.sql"), {"prefix": KEY})]
            rows = cursor.execute(load("health_watch/untaken_outages.sql"), {"now": now}).fetchall()
        return _Written(on, told, new, keys, {row["id"]: row["subject"] for row in rows})

    def _settle(self, doors: Doors, known: Known, one: Outage, now: datetime) -> tuple[Outage, list[Alert]]:
        """What becomes of an outage that is on, and what has to be told of it."""
        url, last = self._settings.endpoints.get(one.subject), known.last.get(one.subject, ())
        if url is None:
            after = replace(one, ended_at=now)
            return after, [telling.not_looked_at(after, doors.owner, doors.page)]
        if ended := outages.end(last, self._settings.slow_ms):
            after = replace(one, ended_at=ended)
            return after, [telling.over(after, doors.owner, doors.page)]
        told, window, shown = known.told_of(one), known.windows.get(one.subject), self._newest(last)
        say = telling.Teller(doors.owner, doors.page, url)
        worse = outages.has_worsened(one, self._kinds(last))
        after = replace(one, kind=Kind.DOWN, why=f"{shown}.") if worse else one
        well, down = not any(self._kinds(last[-1:])), f"{one.occurrence}/down"
        if window and one.occurrence not in told:
            return after, [] if f"{one.occurrence}/muted" in told else [say.muted(after, window)]
        if one.occurrence not in told:
            if well and f"{one.occurrence}/muted" in told:
                return after, []  # when it is unwell again
            return replace(after, muted_until=min(one.muted_until, now) if one.muted_until else None), [
                say.begun(after)
            ]
        if worse and window:
            return after, [say.worsened(after, window)]
        if worse or (not window and not well and f"{down}/muted" in told and down not in told):
            return replace(after, muted_until=now), [say.worsened(after, None)]  # reminders count from here
        minutes = None if window or one.subject in known.seen else outages.reminder(one, now)
        if minutes:
            by_now = f"{shown}, not yet ten times in a row" if well else shown
            reminder = say.still(one, "/down" if down in told else "", minutes, by_now)
            return after, [] if reminder.occurrence in told else [reminder]
        return after, []

    def _newest(self, last: Sequence[Sample]) -> str:
        return outages.why(last[-1], self._settings.slow_ms) if last else "no look"

    def _send(self, doors: Doors, new: Sequence[Alert], keys: Sequence[str]) -> None:
        """What was written now, and what an earlier round or process could not send any more."""
        for one in new:
            outcome = _raise(doors.ops, one, doors)
            _log.log(logging.INFO if outcome is Outcome.SENT else logging.ERROR, "%s: %s", one.what, outcome)
            if outcome is not Outcome.SENT and doors.slack is not None:
                return  # each of the others would wait for Slack as long
        if doors.ops is None or doors.slack is None:
            _log.error("%d alert(s) wait: the connection of Slack is not known", len(keys))
            return
        for key in set(keys) - {one.key for one in new}:
            try:
                if not alert.deliver(doors.ops, key, doors.slack):
                    return
            except PaymeOpsError as error:
                _log.error("alert %s waits: %s", key, error)
                return

    def _tell_unrecorded(self, doors: Doors, known: Known, confirmed: Mapping[str, Outage], now: datetime) -> Known:
        """The same without the ops database: what is on, and was told of it, as this process will know it."""
        on, told, lost = {**known.open, **confirmed}, dict(known.told), False
        for name, one in dict(on).items():
            after, alerts = self._settle(doors, known, one, now)
            lost = lost or any(_raise(None, each, doors) is Outcome.LOST for each in alerts)
            if lost and alerts:
                continue  # told at the next round; each of the others would wait for Slack as long
            told[name] = known.told_of(one) | {each.occurrence for each in alerts}
            if after.ended_at is None:
                on[name] = after
            else:
                on.pop(name, None)
        return replace(known, open=on, told=told)

    def _due(self, untaken: Mapping[int, str], now: datetime) -> list[dict[str, Any]]:
        """Those that no run has taken, each told once and then again after a time: an event may be lost."""
        self._asked_for = {number: at for number, at in self._asked_for.items() if number in untaken}
        due = [number for number in untaken if now - self._asked_for.get(number, _NEVER) >= _ASK_AGAIN]
        self._asked_for |= dict.fromkeys(due, now)
        return [{"outage": number, "subject": untaken[number]} for number in due]


@dataclass(frozen=True)
class _Written:
    """What is on after a round, what was told of it, the alerts that are new, the keys of unsent ones, and outages
    (id: subject) without a run.
    """

    on: Mapping[str, Outage]
    told: Mapping[str, frozenset[str]]
    new: Sequence[Alert]
    keys: Sequence[str]
    untaken: Mapping[int, str]


@contextmanager
def _transaction(ops: str, what: str) -> Iterator[psycopg.Cursor[dict[str, Any]]]:
    """For the block. What the round has given up, the server gives up too: nothing is written behind its back."""
    with (
        connect(ops, application="payme_ops:health_watch") as connection,
        speaking(what),
        connection.transaction(),
        connection.cursor(row_factory=dict_row) as cursor,
    ):
        cursor.execute("SELECT set_config('statement_timeout', %s, true)", [f"{1000 * DATABASE_SECONDS:.0f}ms"])
        yield cursor


def _raise(ops: str | None, one: Alert, doors: Doors) -> Outcome:
    capture = None if one.severity is Severity.INFO else doors.capture
    return alert.raise_alert(ops, one, doors.slack, capture, capture_if_waiting=True)


def _insert(cursor: psycopg.Cursor[Any], one: Outage, window: Window | None, slow_ms: float) -> Outage | None:
    """The row; None when it is there already."""
    muted = {"muted_until": window.until, "muted_by": window.release} if window else {}
    row = cursor.execute(load("health_watch/open_outage.sql"), {**asdict(one), **muted, "slow_ms": slow_ms}).fetchone()
    return outages.of_row(row) if row else None


def _update(cursor: psycopg.Cursor[Any], before: Outage, after: Outage) -> None:
    if after.ended_at is not None:
        cursor.execute(load("health_watch/end_outage.sql"), {"id": after.id, "ended_at": after.ended_at})
    elif after != before:
        cursor.execute(load("health_watch/change_outage.sql"), asdict(after))
