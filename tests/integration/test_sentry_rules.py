"""Alert rules as code against a Sentry of the real shapes: once is enough, drift is shown, what is not ours stays."""

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from payme_ops.cli import main
from payme_ops.foundation import sentry_api
from payme_ops.foundation.errors import ServiceRefused, Unavailable
from payme_ops.foundation.sentry_api import SentryApi
from payme_ops.monitoring import sentry_rules
from payme_ops.monitoring.sentry_rules import Act, Kind, Plan
from sandbox import sentry
from sandbox.http import call
from tests.support import standins
from tests.support.standins import StandIn, answering

TOKEN = "token-of-the-rules"
PROJECTS = ("api", "airflow")
ORGANIZATION = "/api/0/organizations/payme"


@pytest.fixture
def server(tmp_path: Path) -> Iterator[StandIn]:
    with standins.served(sentry.make_server, tmp_path / "sentry.jsonl") as running:
        yield running


@pytest.fixture
def api(server: StandIn) -> SentryApi:
    return SentryApi(server.url, TOKEN, "payme", "api", "")


def make(api: SentryApi, team_id: str = "") -> Plan:
    return sentry_rules.make_plan(api, PROJECTS, "airflow", team_id)


def acts(made: Plan) -> list[Act]:
    return [one.act for one in made.steps if one.act is not Act.NOT_OURS]


def apply(api: SentryApi) -> int:
    return len(list(sentry_rules.apply(api, make(api))))


def rules(server: StandIn, kind: str) -> list[dict[str, Any]]:
    status, found = call("GET", f"{server.url}{ORGANIZATION}/{kind}/", token=TOKEN)
    assert status == 200
    return [one for one in found if one["name"].startswith(sentry_rules.PREFIX)]


def write(server: StandIn, method: str, path: str, body: object) -> dict[str, Any]:
    status, found = call(method, f"{server.url}{ORGANIZATION}/{path}/", body, token=TOKEN)
    assert status in (200, 201), found
    return dict(found)


def in_pages_of(server: StandIn, size: int) -> None:
    assert call("POST", f"{server.url}/access", {"page": size})[0] == 200


def token_may(server: StandIn, *scopes: str) -> None:
    assert call("POST", f"{server.url}/access", {"scopes": {TOKEN: list(scopes)}})[0] == 200


def test_applied_once_nothing_is_left_to_do(server: StandIn, api: SentryApi) -> None:
    first = make(api)
    assert first.drift
    assert acts(first) == [Act.CREATE] * 8
    assert apply(api) == 8
    second = make(api)
    assert acts(second) == [Act.NONE] * 8
    assert not second.drift
    assert apply(api) == 0
    assert len(rules(server, "detectors")) == 2
    assert len(rules(server, "workflows")) == 6


def test_what_is_made_is_what_was_asked_for(server: StandIn, api: SentryApi) -> None:
    apply(api)
    many = next(one for one in rules(server, "detectors") if "api: " in one["name"])
    query = many["dataSources"][0]["queryObj"]["snubaQuery"]
    assert (query["aggregate"], query["timeWindow"], query["eventTypes"]) == ("count()", 60, ["error"])
    assert {(one["type"], one["comparison"]) for one in many["conditionGroup"]["conditions"]} == {("gt", 5), ("lte", 5)}
    found = {one["name"].partition(": ")[2]: one for one in rules(server, "workflows")}
    assert found["api: more than 5 errors a minute, tell"]["detectorIds"] == [many["id"]]
    new = found["airflow: new error type"]
    assert [one["type"] for one in new["triggers"]["conditions"]] == ["first_seen_event"]
    assert new["detectorIds"] == ["11"]  # where every issue of project 1 comes from
    missed = found["airflow: missed or failed check-in"]["actionFilters"][0]
    assert [(one["type"], one["comparison"]["value"]) for one in missed["conditions"]] == [("issue_category", 10)]
    assert missed["actions"][0]["config"]["targetType"] == "issue_owners"
    assert missed["actions"][0]["integrationId"] is None


def test_drift_is_shown_field_by_field_and_mended(server: StandIn, api: SentryApi) -> None:
    apply(api)
    one = next(one for one in rules(server, "workflows") if one["name"].endswith("api: new error type"))
    one["enabled"], one["config"] = False, {"frequency": 1440}
    one["actionFilters"][0]["actions"][0]["config"] = {"targetType": "user", "targetIdentifier": "7"}
    write(server, "PUT", f"workflows/{one['id']}", one)
    [step] = [step for step in make(api).steps if step.act is Act.CHANGE]
    assert step.changes == (
        ("enabled", "false", "true"),
        ("again after minutes", "1440", "30"),
        ("then", "email to user 7, else ActiveMembers", "email to issue_owners, else ActiveMembers"),
    )
    assert apply(api) == 1
    assert not make(api).drift


def test_another_team_is_a_change_of_every_workflow(api: SentryApi) -> None:
    apply(api)
    changed = [one for one in make(api, team_id="77").steps if one.act is Act.CHANGE]
    assert [one.kind for one in changed] == [Kind.WORKFLOW] * 6
    assert {one.changes for one in changed} == {
        (("then", "email to issue_owners, else ActiveMembers", "email to team 77"),)
    }


def test_what_is_not_ours_is_shown_and_left_alone(server: StandIn, api: SentryApi) -> None:
    body = dict(sentry_rules.wanted("api")[2].body)
    names = ["Somebody's", "payme-ops", "payme-ops: web: of another project"]
    for name in names:
        write(server, "POST", "workflows", {**body, "name": name, "detectorIds": [10, 20]})
    apply(api)
    made = make(api)
    assert {one.name for one in made.steps if one.act is Act.NOT_OURS} >= set(names)
    _, found = call("GET", f"{server.url}{ORGANIZATION}/workflows/", token=TOKEN)
    kept = [one for one in found if one["name"] in names]
    assert [one["detectorIds"] for one in kept] == [["10", "20"]] * 3


def test_one_that_was_made_twice_or_is_no_longer_wanted_is_removed(server: StandIn, api: SentryApi) -> None:
    apply(api)
    before = {one["id"] for one in rules(server, "workflows")}
    body = dict(sentry_rules.wanted("api")[2].body)
    for name in (body["name"], "payme-ops: api: of last year"):
        write(server, "POST", "workflows", {**body, "name": name, "detectorIds": [21]})
    assert acts(make(api)).count(Act.REMOVE) == 2
    assert apply(api) == 2
    assert {one["id"] for one in rules(server, "workflows")} == before  # the older of two stays


def test_nothing_is_made_anew_because_it_stands_on_another_page(server: StandIn, api: SentryApi) -> None:
    in_pages_of(server, 2)
    assert apply(api) == 8
    assert apply(api) == 0


def test_a_kill_between_two_writes_is_taken_up(server: StandIn, api: SentryApi) -> None:
    server.fail(503, path="/workflows/")
    with pytest.raises(Unavailable):
        list(sentry_rules.apply(api, make_without_failing(server, api)))
    server.fail(None)
    assert len(rules(server, "detectors")) == 2
    assert apply(api) == 6
    assert not make(api).drift


def make_without_failing(server: StandIn, api: SentryApi) -> Plan:
    server.fail(None)
    made = make(api)
    server.fail(503, path="/workflows/")
    return made


def test_cron_monitors_that_tell_nobody_are_drift_and_ones_that_wait_are_said(server: StandIn, api: SentryApi) -> None:
    apply(api)
    made = make(api)
    assert not made.drift
    assert made.notes[0] == "backup_daily has not checked in yet: Sentry cannot miss it before it has"
    for slug in sentry_rules.CRON_MONITORS:
        assert call("POST", f"{server.url}/api/1/cron/{slug}/abc/?status=ok")[0] == 202
    assert make(api).notes == ()


@pytest.mark.parametrize("monitor", [{"isMuted": True, "status": "active"}, {"isMuted": False, "status": "disabled"}])
def test_a_muted_monitor_is_drift(tmp_path: Path, monitor: dict[str, Any]) -> None:
    with standins.served(answering([{"slug": "backup_daily", **monitor}]), tmp_path) as there:
        _, quiet = sentry_rules._cron_monitors(SentryApi(there.url, TOKEN, "payme", "api", ""), "airflow")
    assert quiet[0].startswith("backup_daily is ")
    assert Plan((), quiet=tuple(quiet)).drift


# -- when Sentry does not simply answer --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("scopes", "says"),
    [(("event:read",), "the scope alerts:read"), (("alerts:read",), "the scope alerts:write")],
)
def test_a_missing_scope_is_named(server: StandIn, api: SentryApi, scopes: tuple[str, ...], says: str) -> None:
    token_may(server, *scopes)
    with pytest.raises(ServiceRefused, match="may not") as refused:
        apply(api)
    assert says in str(refused.value)
    assert TOKEN not in str(refused.value)


def test_an_unknown_token_is_said_to_be_one(server: StandIn, api: SentryApi) -> None:
    assert call("POST", f"{server.url}/access", {"scopes": {TOKEN: None}})[0] == 200
    with pytest.raises(ServiceRefused, match="does not know the token") as refused:
        make(api)
    assert "alerts:read" in str(refused.value)


def test_a_short_wait_is_waited_and_a_long_one_is_said(server: StandIn, api: SentryApi) -> None:
    waited: list[float] = []
    server.fail(429, count=2, headers={"Retry-After": "3"})
    sentry_api.ask(api, "GET", f"{ORGANIZATION}/workflows/", "alerts:read", sleep=waited.append)
    assert waited == [3, 3]
    server.fail(429, headers={"Retry-After": "60"})
    with pytest.raises(Unavailable, match="asked to wait 60 s"):
        make(api)
    server.fail(429, headers={"X-Sentry-Rate-Limit-Reset": "99999999999"})
    with pytest.raises(Unavailable, match=r"asked to wait \d+ s"):
        make(api)


def test_one_that_never_stops_asking_to_wait_is_given_up(server: StandIn, api: SentryApi) -> None:
    waited: list[float] = []
    server.fail(429, headers={"Retry-After": "2"})
    with pytest.raises(Unavailable, match="asked to wait 2 s"):
        sentry_api.ask(api, "GET", f"{ORGANIZATION}/workflows/", "alerts:read", sleep=waited.append)
    assert waited == [2, 2, 2]


def test_the_rules_that_sentry_has_retired_are_gone(api: SentryApi) -> None:
    for path in ("/api/0/projects/payme/api/rules/", f"{ORGANIZATION}/alert-rules/"):
        with pytest.raises(ServiceRefused, match="410"):
            sentry_api.ask(api, "GET", path, "alerts:read")


@pytest.mark.parametrize("body", [{}, {"detail": "?"}, "a page of a proxy", [1], []])
def test_a_list_that_is_none_is_not_an_empty_one(tmp_path: Path, body: object) -> None:
    with standins.served(answering(body), tmp_path) as there, pytest.raises(ServiceRefused, match="not understood"):
        make(SentryApi(there.url, TOKEN, "payme", "api", ""))


@given(st.text(max_size=60) | st.from_regex(r'<[a-z:/]*>; rel="(next|previous)"; results="\w+"; cursor="[0-9:]*"'))
def test_any_link_header_gives_a_cursor_or_none(link: str) -> None:
    found = sentry_api._next_cursor(link)
    assert found == "" or f'cursor="{found}"' in link


def test_the_documented_link_header_is_understood() -> None:
    def link(more: str) -> str:
        return (
            '<https://sentry.io/api/0/x/?&cursor=0:0:1>; rel="previous"; results="false"; cursor="0:0:1",'
            f' <https://evil.example/?&cursor=0:100:0>; rel="next"; results="{more}"; cursor="0:100:0"'
        )

    assert sentry_api._next_cursor(link("true")) == "0:100:0"
    assert sentry_api._next_cursor(link("false")) == ""


# -- the command -------------------------------------------------------------------------------------------------


@pytest.fixture
def shell(server: StandIn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("PAYME_OPS__")]:
        monkeypatch.delenv(name)
    from tests.unit.test_settings import VALID

    (tmp_path / "token").write_text(f"{TOKEN}\n")
    mine = {"URL": server.url, "ORGANIZATION": "payme", "PROJECT": "api", "AIRFLOW_PROJECT": "airflow"}
    mine["TOKEN_FILE"] = str(tmp_path / "token")
    for name, value in {**VALID, **{f"PAYME_OPS__SENTRY__{name}": value for name, value in mine.items()}}.items():
        monkeypatch.setenv(name, value)


def run(monkeypatch: pytest.MonkeyPatch, *words: str) -> int:
    monkeypatch.setattr("sys.argv", ["payme_ops", *words])
    with pytest.raises(SystemExit) as ended:
        main()
    return int(ended.value.code or 0)


@pytest.mark.usefixtures("shell")
def test_plan_ends_with_3_until_it_is_applied(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(monkeypatch, "sentry", "plan") == 3
    assert "create" in capsys.readouterr().out
    assert run(monkeypatch, "sentry", "apply") == 0
    capsys.readouterr()
    assert run(monkeypatch, "sentry", "plan", "--json") == 0
    said = json.loads(capsys.readouterr().out)
    assert (said["drift"], {one["act"] for one in said["steps"]}) == (False, {"unchanged"})


@pytest.mark.usefixtures("shell")
def test_what_is_not_set_is_named(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.delenv("PAYME_OPS__SENTRY__TOKEN_FILE")
    monkeypatch.delenv("PAYME_OPS__SENTRY__PROJECT")
    assert run(monkeypatch, "sentry", "plan") == 1
    assert "PAYME_OPS__SENTRY__PROJECT, PAYME_OPS__SENTRY__TOKEN_FILE" in " ".join(capsys.readouterr().err.split())
