"""The contract of docs/payme-api-contract.md, on the sandbox's API and on any other that is named.

    PAYME_API_URL=… PAYME_API_TOKEN=… python -m pytest tests/integration/test_payme_api.py -k contract

runs the part that needs no access to the API's database; it stops that API and starts it again as it was. The checks
are those of `python -m payme_ops doctor --api-all`.
"""

import os
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import psycopg
import pytest

from payme_ops.foundation import http, payme_api
from payme_ops.foundation.errors import ServiceRefused, Unavailable
from payme_ops.foundation.evidence import Check, Verdict, run_check
from payme_ops.foundation.payme_api import PaymeApi
from payme_ops.release import conformance
from payme_ops.release.conformance import Subject
from sandbox import payme_api as payme_app
from sandbox.http import call
from sandbox.standin import Answer, Request, Server
from tests.support import standins
from tests.support.site import Site
from tests.support.standins import StandIn, answering, payme_api_stand_in
from tests.support.waiting import eventually

URL, TOKEN = os.environ.get("PAYME_API_URL", ""), os.environ.get("PAYME_API_TOKEN", "")


DATABASE = "payme_api"


@pytest.fixture(scope="module", autouse=True)
def _database(site: Site) -> Iterator[None]:
    """A copy of PayMe's database for the application to write to: other tests count on theirs."""
    site.copy_payme(DATABASE)
    yield
    with site.admin("postgres") as admin:
        admin.execute(f"DROP DATABASE {DATABASE} WITH (FORCE)")


@pytest.fixture
def served(site: Site, tmp_path: Path) -> Iterator[tuple[StandIn, PaymeApi]]:
    with payme_api_stand_in(tmp_path, site.world.conninfo("payme_app", DATABASE)) as running:
        yield running


@pytest.fixture
def api(request: pytest.FixtureRequest) -> PaymeApi:
    """The API that is named, or the sandbox's."""
    return PaymeApi(URL, TOKEN) if URL else request.getfixturevalue("served")[1]


@pytest.fixture
def stand_in(served: tuple[StandIn, PaymeApi]) -> StandIn:
    return served[0]


def sessions(site: Site) -> int:
    with site.admin(DATABASE) as admin:
        row = admin.execute("SELECT count(*) FROM pg_stat_activity WHERE usename = 'payme_app'").fetchone()
    assert row
    return int(row[0])


# -- the contract: what an API does not offer (404) is not tried -----------------------------------------------------

MERCHANT = os.environ.get("PAYME_API_TEST_MERCHANT", "test-merchant")


def every_check(api: PaymeApi) -> list[Check]:
    deploys = replace(api, token=os.environ.get("PAYME_API_DEPLOY_TOKEN", api.token))
    subject = Subject(api, deploys, MERCHANT)
    return [*conformance.reading(subject), *conformance.changing(subject)]


@pytest.mark.parametrize("item", [check.item for check in every_check(PaymeApi("", ""))])
def test_contract(api: PaymeApi, item: str) -> None:
    (check,) = [check for check in every_check(api) if check.item == item]
    found = run_check(check, actor="test")
    if "offered" in found.measured or "tried" in found.measured:
        pytest.skip("this API does not offer it: a person is asked instead")
    assert found.verdict is Verdict.PASS, found


class Broken(payme_app.ApiServer):
    """The API with one answer that is not the contract's: the body's change, or another status."""

    broken: tuple[str, str, dict[str, object] | int] = ("", "", 0)

    def answer(self, request: Request) -> Answer:
        method, path, change = self.broken
        if (request.method, request.path) != (method, path):
            return super().answer(request)
        if isinstance(change, int):
            return Answer({}, change)
        answer = super().answer(request)
        assert isinstance(answer.body, dict)
        return replace(answer, body={**answer.body, **change})


@pytest.fixture
def broken(site: Site, tmp_path: Path) -> Iterator[tuple[Broken, PaymeApi]]:
    def make(port: int, state: Path) -> Broken:
        application = payme_app.Application(state, site.world.conninfo("payme_app", DATABASE))
        return Broken(port, application, standins.API_TOKEN)

    with standins.served(make, tmp_path / "broken.jsonl") as running:
        assert isinstance(running.server, Broken)
        yield running.server, PaymeApi(running.url, standins.API_TOKEN)


@pytest.mark.parametrize(
    ("method", "path", "change", "red"),
    [
        ("GET", "/health", {"version": "9.9.9"}, {"api_health"}),
        ("GET", "/health", {"commit": "f" * 40}, {"api_commits"}),
        ("GET", "/metrics", {"version": "9.9.9"}, {"api_metrics", "api_metrics_follow"}),
        ("GET", "/admin/orders", {"in_flight": -1}, {"api_orders", "api_freeze", "api_smoke_wants_token"}),
        ("GET", "/admin/autoscaling", {"minimum": 0}, {"api_autoscaling", "api_set_autoscaling"}),
        ("GET", "/admin/orders", 200, {"api_admin_token", "api_orders", "api_freeze", "api_smoke_wants_token"}),
        ("POST", "/admin/orders/freeze", {"frozen": False}, {"api_freeze"}),
        ("POST", "/admin/autoscaling", {"minimum": 1}, {"api_set_autoscaling"}),
        ("POST", "/deploy", 202, {"api_unknown_commit"}),
        ("POST", "/admin/stop", {"previous": "9.9.9"}, {"api_stop_and_start"}),
    ],
)
def test_what_is_not_the_contracts_is_red_alone(
    broken: tuple[Broken, PaymeApi], method: str, path: str, change: dict[str, object] | int, red: set[str]
) -> None:
    server, api = broken
    before = payme_api.version(api)
    server.broken = (method, path, change)
    try:
        found = [run_check(check, actor="test") for check in every_check(api)]
    finally:
        server.broken = ("", "", 0)
    assert {one.item for one in found if one.verdict is not Verdict.PASS} == red, found
    assert (payme_api.version(api), payme_api.health(api).healthy) == (before, True)
    assert {one.verdict for one in [run_check(check, actor="test") for check in every_check(api)[:7]]} == {Verdict.PASS}


# -- the sandbox's ----------------------------------------------------------------------------------------------


def test_started_it_writes_and_stopped_it_has_no_session(site: Site, served: tuple[StandIn, PaymeApi]) -> None:
    _, api = served
    eventually(lambda: sessions(site) > 0, "its sessions")
    payme_api.stop(api)
    assert sessions(site) == 0
    payme_api.start(api, "2.3.1")
    eventually(lambda: sessions(site) > 0, "its sessions")


def test_its_health_is_red_when_users_is_not_there(site: Site, served: tuple[StandIn, PaymeApi]) -> None:
    _, api = served
    with site.admin(DATABASE) as admin:
        admin.execute("ALTER TABLE users RENAME TO users_away")
        try:
            found = payme_api.health(api)
        finally:
            admin.execute("ALTER TABLE users_away RENAME TO users")
    assert (found.healthy, found.status, found.database) == (False, "unhealthy", "disconnected")
    assert payme_api.health(api).healthy


def test_its_metrics_are_those_of_the_deployment_guide(served: tuple[StandIn, PaymeApi]) -> None:
    guide = {"uptime", "timestamp", "environment", "version", "database", "cache"}
    assert set(served[0].get("/metrics")) == guide | {"database_errors", "response_ms"}


def errors(api: PaymeApi) -> dict[str, int]:
    found = payme_api.metrics(api.url).database_errors
    assert found is not None
    return found


def test_its_metrics_count_what_the_database_refused(site: Site, served: tuple[StandIn, PaymeApi]) -> None:
    _, api = served
    eventually(lambda: sessions(site) > 0, "its sessions")
    assert errors(api) == {}
    with site.admin(DATABASE) as admin:
        admin.execute("REVOKE INSERT ON transactions FROM payme_app")
        try:
            eventually(lambda: errors(api).get("42501", 0) > 1, "errors of its traffic")
        finally:
            admin.execute("GRANT INSERT ON transactions TO payme_app")
        admin.execute("ALTER TABLE users RENAME TO users_away")
        try:
            payme_api.health(api)
        finally:
            admin.execute("ALTER TABLE users_away RENAME TO users")
    assert errors(api)["42P01"] >= 1
    payme_api.start(api, "2.3.1")  # another process
    assert errors(api) == {}


def test_its_metrics_end_with_the_process(served: tuple[StandIn, PaymeApi]) -> None:
    _, api = served
    payme_api.stop(api)
    with pytest.raises(Unavailable, match="status 503"):
        payme_api.metrics(api.url)


def test_it_remembers_that_it_was_stopped(site: Site, tmp_path: Path) -> None:
    conninfo = site.world.conninfo("payme_app", DATABASE)
    with payme_api_stand_in(tmp_path, conninfo) as (_, api):
        payme_api.start(api, "2.3.1")
        payme_api.stop(api)
    with payme_api_stand_in(tmp_path, conninfo) as (_, api):
        assert payme_api.health(api).status == "stopped"
        found = payme_api.version(api)
        assert (found.version, found.previous) == ("2.3.1", "2.4.0")


def test_its_page_shows_what_was_done(served: tuple[StandIn, PaymeApi]) -> None:
    stand_in, api = served
    payme_api.stop(api)
    assert "stopped" in stand_in.get("/")


# -- an API that is not well ------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [500, 502, 503, 429])
def test_what_may_heal_is_told_from_a_no(served: tuple[StandIn, PaymeApi], status: int) -> None:
    stand_in, api = served
    stand_in.fail(status)
    with pytest.raises(Unavailable, match=f"status {status}"):
        payme_api.stop(api)
    stand_in.fail(403)
    with pytest.raises(ServiceRefused, match="status 403"):
        payme_api.stop(api)


def test_an_answer_that_is_no_contract_is_refused(served: tuple[StandIn, PaymeApi]) -> None:
    stand_in, api = served
    with pytest.raises(ServiceRefused, match="not the contract's"):
        payme_api.version(PaymeApi(f"{stand_in.url}/health?", api.token))


@pytest.mark.parametrize(
    "body",
    [
        "",
        "2.4.0",
        ["2.4.0"],
        {},
        {"status": "healthy"},
        {"version": ""},
        {"version": None},
        {"version": 2.4},
        {"version": ["2.4.0"]},
        *(
            {"version": "2.4.0", "database_errors": told}
            for told in (
                *(0, "42501", ["42501"], {"": 1}, {"duplicate key (+254712345678)": 1}),
                *({"42501": count} for count in ("2", True, -1, 1.5, None, float("nan"))),
            )
        ),
    ],
)
def test_metrics_that_are_not_the_contracts_are_refused(tmp_path: Path, body: object) -> None:
    with (
        standins.served(answering(body), tmp_path) as replica,
        pytest.raises(ServiceRefused, match="not the contract's") as refused,
    ):
        payme_api.metrics(replica.url)
    assert "712345678" not in str(refused.value)


@pytest.mark.parametrize(
    ("more", "told"),
    [({}, None), *(({"database_errors": told}, told) for told in (None, {}, {"42501": 2, "ECONNREFUSED": 1}))],
)
def test_metrics_may_tell_errors_of_the_database(
    tmp_path: Path, more: dict[str, object], told: dict[str, int] | None
) -> None:
    with standins.served(answering({"version": "2.4.0", "uptime": 1.5, **more}), tmp_path) as replica:
        assert payme_api.metrics(replica.url) == payme_api.Metrics("2.4.0", told)


def test_metrics_of_what_is_away_or_says_no(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http, "CONNECT_SECONDS", 0.5)
    with pytest.raises(Unavailable):
        payme_api.metrics("http://127.0.0.1:1")
    for status, expected in ((503, Unavailable), (429, Unavailable), (404, ServiceRefused), (302, ServiceRefused)):
        with (
            standins.served(answering({"version": "2.4.0"}, status), tmp_path) as replica,
            pytest.raises(expected, match=f"status {status}"),
        ):
            payme_api.metrics(replica.url)


def test_nobody_there_is_unavailable_and_names_no_token(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http, "CONNECT_SECONDS", 0.5)
    api = PaymeApi("http://127.0.0.1:1", "very-secret-token")
    for ask in (payme_api.health, payme_api.version, payme_api.stop):
        with pytest.raises(Unavailable) as away:
            ask(api)
        assert "secret" not in f"{away.value} {api!r}"


@pytest.fixture
def redirector(served: tuple[StandIn, PaymeApi]) -> Iterator[str]:
    """A server that sends everybody on to the stand-in."""
    target = served[0].url
    server = Server(
        0, lambda request: Answer("", 302, headers={"Location": target + request.path}), lambda _path: False, {}
    )
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield server.url
    server.shutdown()
    thread.join()
    server.server_close()


def test_a_redirect_is_not_followed(served: tuple[StandIn, PaymeApi], redirector: str) -> None:
    with pytest.raises(ServiceRefused, match="status 302"):
        payme_api.stop(PaymeApi(redirector, served[1].token))
    with pytest.raises(ServiceRefused, match="status 302"):
        payme_api.metrics(redirector)
    assert payme_api.health(served[1]).healthy


def test_too_much_is_not_read(served: tuple[StandIn, PaymeApi], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http, "_MAX_BYTES", 10)
    with pytest.raises(Unavailable, match="more than 10 bytes"):
        payme_api.version(served[1])


def test_the_database_is_not_named_by_an_unhealthy_answer(site: Site, served: tuple[StandIn, PaymeApi]) -> None:
    with psycopg.connect(site.cluster.conninfo("postgres"), autocommit=True) as admin:
        admin.execute("ALTER ROLE payme_app NOLOGIN")
        try:
            status, body = call("GET", f"{served[0].url}/health")
        finally:
            admin.execute("ALTER ROLE payme_app LOGIN")
    assert status == 503
    assert set(body) == {"timestamp", "version", "commit", "status", "database", "error"}
