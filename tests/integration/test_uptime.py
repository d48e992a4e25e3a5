"""Uptime on a real PostgreSQL: figures as an oracle finds them, nothing counted twice, nothing deleted unsummed."""

import json
import math
import threading
from collections.abc import Iterator, Sequence
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from itertools import pairwise
from typing import Any

import psycopg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from psycopg.types.json import Json

from payme_ops.cli import doors
from payme_ops.cli import monitoring as command
from payme_ops.foundation import samples
from payme_ops.foundation.clock import EAT
from payme_ops.foundation.errors import NotFound
from payme_ops.foundation.health import State
from payme_ops.foundation.samples import Sample
from payme_ops.monitoring import uptime
from payme_ops.monitoring.uptime import Gap, Period, Report
from sandbox import postgres
from tests.support.installation import Installation
from tests.support.ops import ops_database

EVERY = timedelta(seconds=30)
# Midnight in Nairobi.
DAY = datetime(2026, 11, 24, 21, tzinfo=UTC)
NEXT_YEAR = datetime(2027, 2, 1, tzinfo=UTC)
SUBJECT = "production"


@pytest.fixture(scope="module")
def ops() -> Iterator[str]:
    with postgres.temporary_cluster() as cluster, ops_database(cluster) as conninfo:
        yield conninfo


@pytest.fixture(autouse=True)
def emptied(request: pytest.FixtureRequest) -> None:
    if "ops" in request.fixturenames:
        empty(request.getfixturevalue("ops"))


def empty(ops: str) -> None:
    with psycopg.connect(ops) as session:
        session.execute("TRUNCATE ops.health_samples, ops.uptime_sums, ops.outages")


def look(at: datetime, state: State = State.HEALTHY, ms: float = 12.0, **facts: Any) -> Sample:
    return Sample(at, state, ms, facts)


def looks(begins: datetime, count: int, every: timedelta = EVERY) -> list[Sample]:
    return [look(begins + number * every) for number in range(count)]


def store(ops: str, taken: Sequence[Sample], subject: str = SUBJECT) -> None:
    rows = [(subject, one.at, one.state, one.ms, Json(one.facts)) for one in taken]
    query = "INSERT INTO ops.health_samples (subject, at, state, ms, facts) VALUES (%s, %s, %s, %s, %s)"
    with psycopg.connect(ops) as session, session.cursor() as cursor:
        cursor.executemany(f"{query} ON CONFLICT DO NOTHING", rows)


def report(ops: str, now: datetime, period: Period = Period.DAY, count: int = 7, every: timedelta = EVERY) -> Report:
    return uptime.report(ops, SUBJECT, period, count, every, now)


def tables(ops: str) -> tuple[list[Any], list[Any]]:
    """Every look that is there, and every sum but for when it was made."""
    with psycopg.connect(ops) as session:
        rows = session.execute("SELECT subject, at FROM ops.health_samples ORDER BY 1, 2").fetchall()
        sums = session.execute("SELECT to_jsonb(s) - 'summed_at' FROM ops.uptime_sums AS s ORDER BY 1").fetchall()
    return rows, sums


# -- an oracle in plain Python -------------------------------------------------------------------------------------


def midnight(day: date) -> datetime:
    return datetime(day.year, day.month, day.day, tzinfo=EAT).astimezone(UTC)


def oracle(taken: Sequence[Sample], day: date, now: datetime, every: timedelta) -> dict[str, Any]:
    """Slot by slot."""
    step = every.total_seconds()
    by_slot: dict[float, Sample] = {}
    for one in sorted(taken, key=lambda sample: sample.at):
        by_slot.setdefault(one.at.timestamp() // step, one)
    begins, ends = midnight(day).timestamp() / step, midnight(day + timedelta(days=1)).timestamp() / step
    of_day = {slot: one for slot, one in by_slot.items() if begins <= slot < min(ends, now.timestamp() // step)}
    last = now.timestamp() // step
    expected = [slot for slot in range(int(max(begins, min(by_slot))), int(ends)) if slot < last]
    states = [one.state for one in of_day.values()]
    times = sorted(one.ms for one in of_day.values() if one.state is State.HEALTHY)
    told = sorted(one.facts["p95"] for one in of_day.values() if isinstance(one.facts.get("p95"), float))

    def at(share: float, values: list[float]) -> float | None:
        return values[math.ceil(share * len(values)) - 1] if values else None

    return {
        "expected": len(expected),
        "taken": len(of_day),
        "healthy": states.count(State.HEALTHY),
        "unhealthy": states.count(State.UNHEALTHY),
        "unknown": states.count(State.UNKNOWN),
        "p50": at(0.5, times),
        "p95": at(0.95, times),
        "p99": at(0.99, times),
        "app_p95": at(0.5, told),
    }


def oracle_gaps(taken: Sequence[Sample], first: datetime, now: datetime, every: timedelta) -> list[Gap]:
    until = datetime.fromtimestamp(now.timestamp() // every.total_seconds() * every.total_seconds(), UTC)
    instants = sorted({one.at for one in taken if one.at < until})
    found = []
    for begins, ends in pairwise([*instants, until]):
        if ends - begins > 3 * every and ends > first:
            found.append(Gap(max(begins, first), ends, open=ends == until))
    return found


@st.composite
def days_of_looks(draw: st.DrawFn) -> tuple[timedelta, list[Sample], datetime]:
    """Stretches of looks around two midnights with holes between them, some beside the slots, and the time."""
    every = timedelta(seconds=draw(st.sampled_from([10, 30, 60])))
    at, taken = DAY - timedelta(hours=draw(st.integers(0, 30))) + draw(st.integers(-5, 5)) * every, []
    for _ in range(draw(st.integers(1, 5))):
        for _ in range(draw(st.integers(1, 12))):
            beside = timedelta(seconds=draw(st.sampled_from([0, 0, 0, 1, 7])))
            facts: dict[str, Any] = draw(
                st.sampled_from([{}, {"p95": 80.5}, {"p95": 120.25}, {"p95": "no"}, {"why": "x"}])
            )
            ms = float(draw(st.integers(1, 40)))
            taken.append(Sample(at + beside, draw(st.sampled_from(list(State))), ms, facts))
            at += every * draw(st.sampled_from([1, 1, 1, 1, 2, 3]))
        at += every * draw(st.sampled_from([2, 3, 4, 5, 300, 5000]))
    now = taken[-1].at + timedelta(seconds=draw(st.integers(0, 100_000)))
    return every, taken, now


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(days_of_looks())
def test_figures_and_gaps_are_those_of_the_oracle_before_and_after_the_night(
    ops: str, drawn: tuple[timedelta, list[Sample], datetime]
) -> None:
    every, taken, now = drawn
    empty(ops)
    store(ops, taken)
    live = report(ops, now, count=10, every=every)
    for row in live.rows:
        expected = oracle(taken, row.figures.begins, now, every)
        assert {name: getattr(row.figures, name) for name in expected} == expected, row.figures.begins
    first = midnight(taken[0].at.astimezone(EAT).date())
    assert list(live.gaps) == oracle_gaps(taken, first, now, every)
    uptime.roll_up(ops, every, now)
    assert report(ops, now, count=10, every=every) == live
    # What was summed stays when the looks of it are gone.
    with psycopg.connect(ops) as session:
        session.execute(
            "DELETE FROM ops.health_samples AS s USING ops.uptime_sums AS d WHERE d.period = 'day'"
            " AND d.begins = (s.at AT TIME ZONE 'Africa/Nairobi')::date"
        )
    assert report(ops, now, count=10, every=every) == live
    assert uptime.roll_up(ops, every, now).summed == []


def test_a_look_at_midnight_ends_one_gap_and_begins_another(ops: str) -> None:
    store(ops, [look(DAY - timedelta(hours=1)), look(DAY), look(DAY + timedelta(hours=1))])
    now = DAY + timedelta(hours=1, seconds=40)
    gaps = (Gap(DAY - timedelta(hours=1), DAY), Gap(DAY, DAY + timedelta(hours=1)))
    assert report(ops, now).gaps == gaps
    uptime.roll_up(ops, EVERY, now)
    assert report(ops, now).gaps == gaps


# -- what is counted -----------------------------------------------------------------------------------------------


def test_a_period_without_looks_is_not_known(ops: str) -> None:
    assert report(ops, DAY).first_at is None
    store(ops, looks(DAY, 10))
    store(ops, looks(DAY + timedelta(days=2), 10))
    found = report(ops, DAY + timedelta(days=2, minutes=5))
    assert [(row.figures.uptime, row.figures.coverage) for row in found.rows] == [
        (1.0, 10 / 2880),
        (None, 0.0),
        (1.0, 1.0),
    ]
    (gap,) = found.gaps
    assert (gap.begins, gap.ends) == (DAY + 9 * EVERY, DAY + timedelta(days=2))
    assert gap.length == timedelta(days=1, hours=23, minutes=55, seconds=30)


def test_two_triggerers_and_a_release_beside_them_count_once(ops: str) -> None:
    for shift in (0, 0, 11):
        for number in range(20):
            samples.store(ops, SUBJECT, look(DAY + number * EVERY + timedelta(seconds=shift)))
    samples.store(ops, "release/x", look(DAY, State.UNHEALTHY))
    (row,) = report(ops, DAY + 20 * EVERY).rows
    assert (row.figures.expected, row.figures.taken, row.figures.coverage, row.figures.uptime) == (20, 20, 1.0, 1.0)
    assert uptime.subjects(ops) == [SUBJECT]


def test_the_day_and_the_month_end_at_nine_in_the_evening_utc(ops: str) -> None:
    end = datetime(2026, 11, 30, 21, tzinfo=UTC)
    store(ops, [look(end - EVERY, State.UNHEALTHY), look(end)])
    for period, begins in ((Period.DAY, date(2026, 11, 30)), (Period.MONTH, date(2026, 11, 1))):
        found = report(ops, end + EVERY, period).rows
        assert [(row.figures.begins, row.figures.uptime, row.figures.expected) for row in found] == [
            (begins, 0.0, 1),
            (date(2026, 12, 1), 1.0, 1),
        ]


def test_an_outage_counts_in_each_period_by_its_share(ops: str) -> None:
    store(ops, looks(DAY - timedelta(hours=1), 200))
    write = "INSERT INTO ops.outages (subject, kind, began_at, ended_at, why) VALUES (%s, %s, %s, %s, 'a test')"
    with psycopg.connect(ops) as session:
        session.execute(write, (SUBJECT, "down", DAY - timedelta(minutes=10), DAY + timedelta(minutes=5)))
        session.execute(write, (SUBJECT, "slow", DAY + timedelta(minutes=20), None))
        session.execute(write, ("staging", "down", DAY, None))
    rows = report(ops, DAY + timedelta(minutes=30)).rows
    assert [[(one.kind, one.count, one.seconds) for one in row.outages] for row in rows] == [
        [("down", 1, 600.0)],
        [("down", 1, 300.0), ("slow", 1, 600.0)],
    ]


# -- sums and what is deleted --------------------------------------------------------------------------------------


def test_a_running_period_is_never_summed_and_a_missed_night_is_made_good(ops: str) -> None:
    for number in range(4):
        store(ops, looks(DAY + timedelta(days=number), 5))
    assert uptime.roll_up(ops, EVERY, DAY + timedelta(hours=23, minutes=59)).summed == []
    night = uptime.roll_up(ops, EVERY, DAY + timedelta(days=3, hours=4))
    assert night.summed == [f"production day 2026-11-{number}" for number in (25, 26, 27)]
    assert uptime.roll_up(ops, EVERY, DAY + timedelta(days=3, hours=4)).summed == []
    december = uptime.roll_up(ops, EVERY, datetime(2026, 12, 1, 1, tzinfo=UTC))
    assert december.summed == ["production day 2026-11-28", "production month 2026-11-01"]


def test_a_killed_roll_up_done_again_is_the_same(ops: str, monkeypatch: pytest.MonkeyPatch) -> None:
    now = datetime(2026, 12, 2, tzinfo=UTC)
    for number in range(5):
        store(ops, looks(DAY + timedelta(days=number), 5))
    uptime.roll_up(ops, EVERY, now)
    whole = tables(ops)
    write, written = uptime._sum, 0

    def dies(*arguments: Any) -> None:
        nonlocal written
        if written == 3:
            raise KeyboardInterrupt
        written += 1
        write(*arguments)

    with psycopg.connect(ops) as session:
        session.execute("TRUNCATE ops.uptime_sums")
    monkeypatch.setattr(uptime, "_sum", dies)
    with pytest.raises(KeyboardInterrupt):
        uptime.roll_up(ops, EVERY, now)
    assert len(tables(ops)[1]) == 3
    monkeypatch.undo()
    uptime.roll_up(ops, EVERY, now)
    assert tables(ops) == whole


def test_two_nights_at_once_sum_and_delete_once(ops: str) -> None:
    store(ops, looks(DAY, 200))
    both = threading.Barrier(2)
    deleted = []

    def night() -> None:
        both.wait()
        uptime.roll_up(ops, EVERY, NEXT_YEAR)
        deleted.append(uptime.delete_old(ops, 40, NEXT_YEAR))

    threads = [threading.Thread(target=night) for _ in range(2)]
    for one in threads:
        one.start()
    for one in threads:
        one.join()
    rows, sums = tables(ops)
    assert (rows, len(sums), sum(deleted)) == ([], 2, 200)
    assert report(ops, NEXT_YEAR, Period.MONTH).rows[0].figures.taken == 200


def test_looks_that_came_late_are_summed_again(ops: str) -> None:
    store(ops, looks(DAY, 5))
    uptime.roll_up(ops, EVERY, DAY + timedelta(days=1, hours=4))
    store(ops, looks(DAY + 5 * EVERY, 5))
    assert uptime.roll_up(ops, EVERY, DAY + timedelta(days=2, hours=4)).summed == ["production day 2026-11-25"]
    assert report(ops, DAY + timedelta(days=2)).rows[0].figures.taken == 10


def test_only_what_is_summed_is_deleted_in_batches(ops: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(uptime, "_BATCH", 7)
    old, newer = looks(DAY, 20), looks(NEXT_YEAR - timedelta(days=39), 5)
    for subject in (SUBJECT, "release/x", "deployment/y/health"):
        store(ops, [*old, *newer], subject)
    said: list[str] = []
    assert uptime.delete_old(ops, 40, NEXT_YEAR, said.append) == 40  # of runs
    assert [row[1] for row in tables(ops)[0] if row[0] == SUBJECT] == [one.at for one in [*old, *newer]]
    uptime.roll_up(ops, EVERY, NEXT_YEAR)
    with psycopg.connect(ops) as session:
        session.execute("DELETE FROM ops.uptime_sums WHERE period = 'month' AND begins = '2026-11-01'")
    assert uptime.delete_old(ops, 40, NEXT_YEAR) == 0  # its month is not
    assert uptime.roll_up(ops, EVERY, NEXT_YEAR).summed == ["production month 2026-11-01"]
    before = report(ops, NEXT_YEAR, Period.MONTH)
    assert uptime.delete_old(ops, 40, NEXT_YEAR, said.append) == 20
    assert said == [f"{count} looks deleted" for count in (7, 14, 21, 28, 35, 40, 7, 14, 20)]
    assert {row[1] for row in tables(ops)[0]} == {one.at for one in newer}
    assert report(ops, NEXT_YEAR, Period.MONTH) == before
    assert uptime.delete_old(ops, 40, NEXT_YEAR) == 0


@pytest.mark.parametrize("missing", ["day", "month"])
def test_a_period_whose_looks_are_gone_in_part_is_not_summed(ops: str, missing: str) -> None:
    store(ops, looks(DAY, 20))
    store(ops, looks(DAY + timedelta(days=1), 20))
    uptime.roll_up(ops, EVERY, NEXT_YEAR)
    with psycopg.connect(ops) as session:
        session.execute("DELETE FROM ops.uptime_sums WHERE period = %s", [missing])
        session.execute("DELETE FROM ops.health_samples WHERE at < %s", [DAY + 3 * EVERY])
    before = tables(ops)
    done = uptime.roll_up(ops, EVERY, NEXT_YEAR)
    assert done.summed == []
    assert len(done.incomplete) == (2 if missing == "day" else 1)
    assert uptime.delete_old(ops, 40, NEXT_YEAR) == 0
    assert tables(ops) == before


# -- on a shell ----------------------------------------------------------------------------------------------------


@pytest.fixture
def shell(ops: str, installation: Installation, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr(doors, "OPS", ops)
    installation.set("MONITORING__ENDPOINTS", "production=http://127.0.0.1:1,staging=http://127.0.0.1:2")
    installation.set("MONITORING__INTERVAL_SECONDS", "30")
    return ops


def test_a_table_says_what_is_known_and_below_it_when_nobody_looked(
    shell: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(command, "utc_now", lambda: DAY + timedelta(days=2, hours=1))
    bad = replace(look(DAY + 99 * EVERY), state=State.UNHEALTHY)
    store(shell, [*looks(DAY, 99), bad, *looks(DAY + timedelta(days=2), 120)])
    command.uptime("production")
    shown = capsys.readouterr().out
    first, second, third = (line.split() for line in shown.splitlines() if line.startswith("2026-11-2"))
    assert first == ["2026-11-25", "99.000", "100", "3.4", "1", "0", "12", "12", "12"]
    assert second == ["2026-11-26", "not", "known", "0", "0.0"]
    assert third[:4] == ["2026-11-27", "100.000", "120", "100.0"]
    assert "No outages." in shown
    assert "Nobody looked from 2026-11-25 00:49:30 EAT to 2026-11-27 00:00:00 EAT (1 d 23 h)\n" in shown
    command.uptime()
    assert "Not known: nobody has looked at staging yet." in capsys.readouterr().out
    command.uptime("production", months=1, as_json=True)
    (told,) = json.loads(capsys.readouterr().out)
    (month,) = told["periods"]
    assert (month["begins"], month["taken"], month["uptime_percent"]) == ("2026-11-01", 220, 99.545)
    assert told["gaps"][0]["seconds"] == (timedelta(days=2) - 99 * EVERY).total_seconds()


def test_one_bad_look_of_a_month_is_no_hundred_percent(
    shell: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    begins = datetime(2026, 10, 31, 21, tzinfo=UTC)
    monkeypatch.setattr(command, "utc_now", lambda: datetime(2026, 12, 2, tzinfo=UTC))
    store(shell, looks(begins, 3))
    uptime.roll_up(shell, EVERY, datetime(2026, 12, 2, tzinfo=UTC))
    with psycopg.connect(shell) as session:
        session.execute("UPDATE ops.uptime_sums SET expected = 86400, taken = 86400, healthy = 86399, unhealthy = 1")
    command.uptime(SUBJECT, months=2)
    (november,) = (line for line in capsys.readouterr().out.splitlines() if line.startswith("2026-11"))
    assert november.split()[:4] == ["2026-11", "99.998", "86,400", "100.0"]


@pytest.mark.parametrize("endpoints", ["production=http://127.0.0.1:1", None])
@pytest.mark.usefixtures("shell")
def test_an_unknown_name_is_answered_with_the_known_ones(installation: Installation, endpoints: str | None) -> None:
    installation.set("MONITORING__ENDPOINTS", endpoints)
    with pytest.raises(NotFound, match="nobody looks at prodution") as refused:
        command.uptime("prodution")
    assert ("one of production;" in str(refused.value)) == bool(endpoints)
    if not endpoints:
        with pytest.raises(NotFound, match="nobody looks at any application"):
            command.uptime()


@pytest.mark.usefixtures("shell")
def test_words_that_mean_nothing_are_wrong_usage(installation: Installation) -> None:
    assert installation.cli("uptime", "--days", "0").code == 2
    ended = installation.cli("uptime", "--days", "1", "--months", "1")
    assert ended.code == 1
    assert "leave one out" in ended.err
