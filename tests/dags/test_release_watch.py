"""Two hours of watching, without a worker: every look stored, every limit found, and no data never taken for good."""

import asyncio
import itertools
import json
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from datetime import datetime, timedelta
from types import SimpleNamespace
from typing import Any

import psycopg
import pytest
from airflow.sdk.exceptions import TaskAwaitingInput, TaskDeferred
from psycopg.types.json import Json

from payme_ops.foundation import payme_api, samples, settings
from payme_ops.foundation.clock import utc_now
from payme_ops.foundation.errors import GateClosed
from payme_ops.foundation.evidence import Verdict
from payme_ops.foundation.samples import Sample
from payme_ops.foundation.sql import load
from payme_ops.orchestration import looks, release
from payme_ops.orchestration.item import WatchItem
from payme_ops.orchestration.watching import BaselineOperator, LooksTrigger
from sandbox.http import call
from tests.support.release_desk import FREEZE, LEASE, SENTRY_TOKEN, Desk, asks
from tests.support.releases import API_TOKEN
from tests.support.waiting import eventually

INTERVALS = 8
LOOKS = INTERVALS + 1  # at both ends


@pytest.fixture
def desk(release_desk: Desk, monkeypatch: pytest.MonkeyPatch) -> Desk:
    """The new commit runs, and there are enough looks of the day before."""
    monkeypatch.setattr("airflow.providers.standard.operators.hitl.upsert_hitl_detail", lambda **_: None)
    payme_api.start(release_desk.api.asks, "2.4.1")
    release.take(release_desk.release)
    ready(release_desk)
    return release_desk


def ready(desk: Desk) -> None:
    desk.installation.set("RELEASE__SAMPLE_SECONDS", "1")
    desk.installation.set("RELEASE__WATCH_MINUTES", str(INTERVALS / 60))
    assert desk.sentry
    usual(desk, 60)


def usual(desk: Desk, count: int) -> None:
    now = utc_now() - timedelta(hours=1)
    rows = [
        {
            "subject": "production",
            "at": now + timedelta(seconds=number),
            "state": "healthy",
            "ms": 80.0,
            "facts": Json({"p95": 80.0}),
        }
        for number in range(count)
    ]
    with psycopg.connect(desk.ops) as session, session.cursor() as cursor:
        cursor.executemany(load("ops/insert_sample.sql"), rows)


def begin(desk: Desk) -> LooksTrigger:
    """The task defers: no worker is held. Answers what the triggerer makes of it."""
    made = WatchItem()
    context = desk.begin("watch", dag="post_deployment")
    context["task"] = made
    with pytest.raises(TaskDeferred) as deferred:
        made.execute(context)
    assert deferred.value.timeout
    return again(deferred.value.trigger)


def again(trigger: Any) -> LooksTrigger:
    """As the triggerer makes it after a restart."""
    path, arguments = trigger.serialize()
    assert path == "payme_ops.orchestration.watching.LooksTrigger"
    text = json.dumps(arguments)
    assert not [token for token in (API_TOKEN, SENTRY_TOKEN) if token in text]
    return LooksTrigger(**json.loads(text))


def end(desk: Desk) -> Any:
    """The task goes on; what the event says is only a hint."""
    made = WatchItem()
    context = desk.begin("watch", dag="post_deployment")
    context["task"] = made
    return made.watched(context, {"verdict": "pass"})


class Time:
    """Now, for who looks: goes on when it is told, so that nobody waits. The answers' own times stay fresh.

    A look takes no time by it, however slow the machine: what is left to wait is the same in each run.
    """

    def __init__(self, desk: Desk) -> None:
        self.now = utc_now()
        desk.monkeypatch.setattr(looks, "utc_now", lambda: self.now)
        desk.monkeypatch.setattr(looks, "time", SimpleNamespace(monotonic=lambda: 0.0))

    def begin(self, trigger: LooksTrigger) -> None:
        """Not before the watch, however slow the machine."""
        self.now = max(self.now, datetime.fromisoformat(trigger.arguments["begun"]))

    def look(self, trigger: LooksTrigger, count: int = 100) -> int:
        """So many looks, or until it is over; how many."""
        self.begin(trigger)
        for number in range(count):
            wait = looks.watch_once(**trigger.arguments)
            if wait is None:
                return number + 1
            self.now += timedelta(seconds=wait)
        return count


@pytest.fixture
def time(desk: Desk) -> Time:
    return Time(desk)


def stored(desk: Desk) -> list[Sample]:
    return samples.of(desk.ops, desk.release.run, utc_now() - timedelta(hours=1), utc_now() + timedelta(hours=1))


def found(desk: Desk) -> dict[str, Any]:
    kept = desk.found("watch")
    assert kept
    return dict(kept.measured)


@contextmanager
def counted(desk: Desk) -> Iterator[Counter[str]]:
    """What the API and Sentry are asked, by path."""
    asked: Counter[str] = Counter()

    def counting(answer: Callable[[Any], Any]) -> Callable[[Any], Any]:
        def count(request: Any) -> Any:
            asked[f"{request.method} {request.path}"] += 1
            return answer(request)

        return count

    with desk.monkeypatch.context() as patch:
        for stand_in in (desk.api.stand_in, desk.sentry):
            server: Any = stand_in.server
            patch.setattr(server, "answer", counting(server.answer))
        yield asked


def test_a_good_watch_passes_and_asks_nobody(desk: Desk, time: Time) -> None:
    assert time.look(begin(desk)) == LOOKS
    assert end(desk) is None
    facts = found(desk)
    assert (facts["coverage percent"], facts["healthy"], facts["gaps"]) == (100.0, LOOKS, [])
    assert facts["Sentry heard its sentinel"] is True
    assert all(isinstance(one.facts["database"], dict) for one in stored(desk))
    assert not asks(desk, "watch")


def test_it_asks_each_endpoint_once_an_interval(desk: Desk, time: Time) -> None:
    """Also while triggerers come and go: each begins with a look, unless one was taken just before."""
    trigger = begin(desk)
    time.begin(trigger)
    with counted(desk) as asked:
        for _ in range(LOOKS):
            for _restart in range(3):
                wait = looks.watch_once(**again(trigger).arguments)
            time.now += timedelta(seconds=1)
    assert wait is None
    assert 0 < asked["GET /health"] <= LOOKS
    assert 0 < asked["GET /metrics"] <= LOOKS
    assert 0 < asked["GET /api/0/organizations/payme/events-timeseries/"] <= LOOKS / 2 + 1
    assert 0 < asked["POST /api/2/store/"] <= 2
    times = [one.at for one in stored(desk)]
    assert all(later - earlier >= timedelta(seconds=1) for earlier, later in itertools.pairwise(times))


def test_it_waits_for_as_long_as_the_answer_asks(desk: Desk, time: Time) -> None:
    trigger = begin(desk)
    desk.api.control(fault="too_many")  # Retry-After: 2
    with counted(desk) as asked:
        time.look(trigger, 3)
        time.now -= timedelta(seconds=1)
        assert looks.watch_once(**again(trigger).arguments) == 1
    assert asked["GET /health"] == 3
    at = [one.at for one in stored(desk)]
    assert [round((later - earlier).total_seconds()) for earlier, later in itertools.pairwise(at)] == [2, 2]


def test_a_watch_that_is_killed_goes_on_with_the_same_end(desk: Desk) -> None:
    """With the trigger's own loop and the clock on the wall."""
    desk.installation.set("RELEASE__WATCH_MINUTES", str(5 / 60))
    trigger = begin(desk)

    async def killed() -> None:
        task = asyncio.ensure_future(again(trigger).run().__anext__())
        while not stored(desk):
            await asyncio.sleep(0.05)
        task.cancel()

    async def one() -> None:
        async for event in again(trigger).run():
            assert event.payload == {"subject": desk.release.run}

    asyncio.run(killed())
    before = stored(desk)
    assert before
    assert begin(desk).arguments == trigger.arguments, "the task, run again, goes on with the same watch"
    asyncio.run(asyncio.wait_for(one(), 60))
    assert stored(desk)[: len(before)] == before
    assert utc_now() >= datetime.fromisoformat(trigger.arguments["until"]) - timedelta(seconds=1)
    assert len(stored(desk)) >= 4


@pytest.mark.blocks("watch")
def test_who_was_away_leaves_a_named_gap_and_a_person_decides(desk: Desk, time: Time) -> None:
    trigger = begin(desk)
    time.look(trigger, 3)
    before = stored(desk)
    time.now += timedelta(seconds=5)
    time.look(again(trigger))
    assert stored(desk)[:3] == before
    with pytest.raises(TaskAwaitingInput):
        end(desk)
    facts = found(desk)
    assert facts["coverage percent"] < 95
    assert len(facts["gaps"]) == 1
    kept = desk.found("watch")
    assert kept
    assert kept.verdict is Verdict.INCONCLUSIVE


@pytest.mark.blocks("watch")
def test_a_trigger_that_ends_without_a_look_is_no_pass(desk: Desk, time: Time) -> None:
    begin(desk)
    time.now += timedelta(seconds=INTERVALS)
    with pytest.raises(TaskAwaitingInput):
        end(desk)
    assert found(desk)["looks"].startswith("0 of ")


@pytest.mark.blocks("watch")
@pytest.mark.parametrize(
    ("fault", "rule", "at"),
    [
        ("unhealthy", "three of ten looks unhealthy", 5),
        ("flapping", "three of ten looks unhealthy", 7),
        ("wrong_sha", "three of ten looks unhealthy", 5),
        ("slow", "p95 over its limit in three of ten looks", 5),
    ],
)
def test_a_breach_ends_it_at_once_and_says_which(desk: Desk, time: Time, fault: str, rule: str, at: int) -> None:
    trigger = begin(desk)
    time.look(trigger, 2)
    desk.api.control(fault=fault)
    assert 2 + time.look(again(trigger)) == at
    with pytest.raises(GateClosed, match="watch did not pass"):
        end(desk)
    assert found(desk)["breach"].startswith(rule)
    assert f"(look {at})" in found(desk)["breach"]
    assert not asks(desk, "watch")


@pytest.mark.blocks("watch")
@pytest.mark.parametrize("fault", ["stale", "redirect", "echo_token"])
def test_looks_that_say_nothing_are_no_good_news(desk: Desk, time: Time, fault: str) -> None:
    desk.api.control(fault=fault)
    assert time.look(begin(desk)) == LOOKS
    with pytest.raises(TaskAwaitingInput):
        end(desk)
    assert (found(desk)["healthy"], found(desk)["unknown"]) == (0, LOOKS)


@pytest.mark.blocks("watch")
@pytest.mark.parametrize(
    "how", ["away", "429", "drops what it takes", "not configured", "no URL", "a new kind of error"]
)
def test_without_a_sentry_that_hears_a_person_decides(desk: Desk, time: Time, how: str) -> None:
    trigger = begin(desk)
    if how == "drops what it takes":
        assert call("POST", f"{desk.sentry.url}/quota", {"full": True})[0] == 200
    elif how == "not configured":
        desk.without("sentry")
    elif how == "no URL":  # a mistake in its secret
        desk.connect("sentry", conn_type="http", host="sentry.test", password=SENTRY_TOKEN)
    elif how == "a new kind of error":
        event = {"exception": {"values": [{"type": "TypeError", "value": "x"}]}, "level": "error"}
        assert call("POST", f"{desk.sentry.url}/api/2/store/?sentry_key=k", event)[0] == 200
    else:
        desk.sentry.fail(503 if how == "away" else 429)
    assert time.look(trigger) == LOOKS
    with pytest.raises(TaskAwaitingInput):
        end(desk)
    assert found(desk)["Sentry heard its sentinel"] is (True if how.startswith("a new") else not_heard(how))


def not_heard(how: str) -> bool | None:
    return None if how == "not configured" else False


@pytest.mark.blocks("watch")
@pytest.mark.parametrize("count", [0, 30], ids=["no looks from before", "fewer than 50"])
def test_without_a_baseline_a_person_decides(desk: Desk, time: Time, count: int) -> None:
    with psycopg.connect(desk.ops) as session:
        session.execute("DELETE FROM ops.health_samples")
    usual(desk, count)
    assert time.look(begin(desk)) == LOOKS
    with pytest.raises(TaskAwaitingInput):
        end(desk)
    assert found(desk)["usual p95 ms"] == f"only {count} looks from before"


@pytest.mark.blocks("watch")
@pytest.mark.parametrize("what", ["slow_queries", "lock_waits"])
def test_a_database_that_hangs_is_a_breach(desk: Desk, time: Time, what: str) -> None:
    desk.installation.set("RELEASE__QUERY_SECONDS", "0.2" if what == "slow_queries" else "60")
    desk.installation.set("RELEASE__LOCK_SECONDS", "0.2" if what == "lock_waits" else "60")
    trigger, config = begin(desk), settings.load().release
    with ExitStack() as stack:
        admin = stack.enter_context(desk.installation.site.admin())
        hangs = stack.enter_context(desk.installation.site.admin())
        if what == "lock_waits":
            stack.enter_context(admin.transaction())
            admin.execute("LOCK TABLE users IN ACCESS EXCLUSIVE MODE")
        thread = threading.Thread(target=hang, args=(hangs, what))
        thread.start()
        try:
            eventually(lambda: looks._database("production", config)["database"][what] > 0, what)
            assert time.look(trigger) == 3
        finally:
            hangs.cancel_safe()
            thread.join()
    with pytest.raises(GateClosed):
        end(desk)
    assert found(desk)["breach"].startswith("database over its limits in three of ten looks")


def hang(session: psycopg.Connection, what: str) -> None:
    query = "SELECT pg_sleep(60)" if what == "slow_queries" else "SELECT count(*) FROM users"
    with pytest.raises(psycopg.errors.QueryCanceled):
        session.execute(query)


@pytest.mark.blocks("watch")
def test_a_database_that_cannot_be_seen_is_no_good_news(desk: Desk, time: Time) -> None:
    desk.connect("db_read", conn_type="postgres", host="127.0.0.1", port=1, schema="payme", login="x", password="x")
    assert time.look(begin(desk)) == LOOKS
    with pytest.raises(TaskAwaitingInput):
        end(desk)
    kept = desk.found("watch")
    assert kept
    assert "the database could not be looked at" in kept.remedy


def test_the_release_is_kept_for_itself_and_orders_stay_stopped_only_where_asked(
    make_desk: Callable[..., Any],
) -> None:
    for literal in (False, True):
        with make_desk(resume_after_watch=literal) as desk:
            desk.deployed()
            ready(desk)
            trigger = begin(desk)
            assert [name for name, *_ in trigger.arguments["terms"]] == [LEASE, *([FREEZE] if literal else [])]
            with psycopg.connect(desk.ops) as session:
                session.execute("UPDATE ops.terms SET expires_at = now() + interval '5 s'")
            Time(desk).look(trigger, 1)
            kept = {name: term.expires_at - utc_now() for name in (LEASE, FREEZE) if (term := desk.term(name))}
            assert kept[LEASE] > timedelta(minutes=14)
            assert (kept[FREEZE] > timedelta(minutes=3)) is literal


def test_another_release_that_took_over_decides(desk: Desk, time: Time) -> None:
    trigger = begin(desk)
    with psycopg.connect(desk.ops) as session:
        session.execute("UPDATE ops.terms SET token = token + 1, holder = 'release/another' WHERE name = %s", [LEASE])
    assert time.look(trigger) == 1
    with pytest.raises(TaskAwaitingInput):
        end(desk)


def test_a_watch_is_begun_anew_only_after_its_verdict(desk: Desk, time: Time) -> None:
    first = begin(desk)
    desk.api.control(fault="unhealthy")
    time.look(first)
    assert begin(desk).arguments["until"] == first.arguments["until"]
    began = desk.found("watch_begun")
    assert began
    eventually(lambda: utc_now() > began.ended, "the next second, the resolution of what is stored")
    with pytest.raises(GateClosed):
        end(desk)
    assert begin(desk).arguments["until"] > first.arguments["until"]


def test_what_is_usual_is_looked_at_only_if_too_little_is_known(desk: Desk) -> None:
    made = BaselineOperator(task_id="baseline")
    context = desk.begin("baseline")
    assert release.plan_baseline(context) is None
    made.execute(context)
    with psycopg.connect(desk.ops) as session:
        session.execute("DELETE FROM ops.health_samples")
    desk.installation.set("RELEASE__BASELINE_SAMPLES", "50")
    with pytest.raises(TaskDeferred) as deferred:
        made.execute(context)
    moment = Time(desk)
    with counted(desk) as asked:
        moment.look(again(deferred.value.trigger))
    assert len(looks.baseline("production", moment.now + timedelta(seconds=1))) >= 25
    assert not [path for path in asked if path.startswith(("POST /api/", "GET /api/"))], "Sentry is not asked"
