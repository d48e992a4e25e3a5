"""What Sentry says of the application counts only while it is seen to hear."""

from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest

from payme_ops.foundation import sentry_api
from payme_ops.foundation.clock import utc_now
from payme_ops.foundation.errors import ServiceRefused, SettingsError, Unavailable
from payme_ops.foundation.sentry_api import SentryApi
from sandbox import sentry
from sandbox.http import call
from tests.support import standins
from tests.support.standins import StandIn, answering

SOON = timedelta(minutes=1)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[StandIn]:
    with standins.served(sentry.make_server, tmp_path / "sentry.jsonl") as running:
        yield running


@pytest.fixture
def api(server: StandIn) -> SentryApi:
    return at(server.url)


def at(url: str) -> SentryApi:
    return SentryApi(url, "a-token", "payme", "api", f"{url.replace('http://', 'http://a-key@')}/2")


def report(server: StandIn, message: str, project: int = 2) -> None:
    url = f"{server.url}/api/{project}/store/?sentry_key=a-key"
    event = {"exception": {"values": [{"type": message, "value": "x"}]}, "level": "error"}
    assert call("POST", url, event)[0] == 200


def test_errors_are_counted_by_minute_and_new_kinds_named(server: StandIn, api: SentryApi) -> None:
    before = utc_now() - SOON
    assert set(sentry_api.errors_by_minute(api, before, utc_now()).values()) == {0}
    for message in ("TypeError", "TypeError", "RangeError"):
        report(server, message)
    report(server, "NotOurs", project=1)
    assert sum(sentry_api.errors_by_minute(api, before, utc_now() + SOON).values()) == 3
    assert [one.title for one in sentry_api.new_issues(api, before)] == ["TypeError: x", "RangeError: x"]
    assert sentry_api.new_issues(api, utc_now() + SOON) == []


def test_a_sentinel_is_heard_and_counts_as_no_error(api: SentryApi) -> None:
    sent = sentry_api.send_sentinel(api)
    assert sentry_api.heard(api, sent)
    assert not sentry_api.heard(api, "0" * 32)
    assert sum(sentry_api.errors_by_minute(api, utc_now() - SOON, utc_now() + SOON).values()) == 0
    assert sentry_api.new_issues(api, utc_now() - SOON) == []


def test_a_full_quota_takes_the_sentinel_and_does_not_hear_it(server: StandIn, api: SentryApi) -> None:
    assert call("POST", f"{server.url}/quota", {"full": True})[0] == 200
    assert not sentry_api.heard(api, sentry_api.send_sentinel(api))


@pytest.mark.parametrize("status", [429, 500, 503])
def test_what_may_heal_is_no_zero(server: StandIn, api: SentryApi, status: int) -> None:
    server.fail(status)
    with pytest.raises(Unavailable):
        sentry_api.errors_by_minute(api, utc_now() - SOON, utc_now())
    with pytest.raises(Unavailable):
        sentry_api.send_sentinel(api)
    with pytest.raises(Unavailable):
        sentry_api.heard(api, "0" * 32)


def series(*values: object) -> dict[str, object]:
    return {"timeSeries": [{"values": list(values), "yAxis": "count()"}]}


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"timeSeries": None},
        {"timeSeries": []},
        series(),  # no minute at all
        series([1, [{"count": 1}]]),
        series({"timestamp": 1, "value": "7"}),
        series({"timestamp": 1, "value": -1}),
        series({"timestamp": 1, "value": 1}),  # not the minutes that were asked for
    ],
)
def test_an_answer_that_is_not_understood_is_no_zero(tmp_path: Path, body: object) -> None:
    with standins.served(answering(body), tmp_path) as there, pytest.raises(ServiceRefused, match="not understood"):
        sentry_api.errors_by_minute(at(there.url), utc_now() - 2 * SOON, utc_now())


GOOD = {"id": "1", "title": "t", "count": "7", "firstSeen": "2026-11-28T04:00:00Z"}


@pytest.mark.parametrize("wrong", [{"count": 7}, {"count": "many"}, {"firstSeen": "once"}, {"id": None}, {"title": 1}])
def test_an_issue_that_is_not_understood_is_not_left_out(tmp_path: Path, wrong: dict[str, object]) -> None:
    with standins.served(answering([GOOD]), tmp_path) as there:
        assert [one.title for one in sentry_api.new_issues(at(there.url), utc_now())] == ["t"]
    bad = answering([GOOD, {**GOOD, **wrong}])
    with standins.served(bad, tmp_path) as there, pytest.raises(ServiceRefused, match="not understood"):
        sentry_api.new_issues(at(there.url), utc_now())


@pytest.mark.parametrize("dsn", ["", "not a dsn", "https://sentry.example/2", "https://key@sentry.example/api"])
def test_a_dsn_that_is_none_is_refused_and_not_shown(api: SentryApi, dsn: str) -> None:
    with pytest.raises(SettingsError, match="no usable DSN") as refused:
        sentry_api.send_sentinel(SentryApi(api.url, "a-token", "payme", "api", dsn))
    assert not dsn or dsn not in str(refused.value)
    assert "a-token" not in repr(api)
