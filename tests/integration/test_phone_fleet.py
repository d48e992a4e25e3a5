"""The fleet gate passes only when every session of the application says a version that is new enough."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from threading import Barrier, BrokenBarrierError, Thread

import psycopg
import pytest
from hypothesis import given
from hypothesis import strategies as st
from psycopg import sql
from psycopg.conninfo import make_conninfo

from payme_ops.foundation import http, payme_api
from payme_ops.foundation.errors import SettingsError
from payme_ops.foundation.evidence import Finding, Verdict, passed, run_check
from payme_ops.migration import fleet
from payme_ops.migration.desk import MigrationDesk
from payme_ops.migration.fleet import parse_version
from sandbox.standin import Answer, Request, Server
from tests.support.phones import Phones
from tests.support.standins import answering, payme_api_stand_in, served
from tests.support.waiting import eventually

NEW, OLD = "payme-api/2.5.0", "payme-api/2.4.0"


@contextmanager
def connected(phones: Phones, *programs: str) -> Iterator[list[psycopg.Connection]]:
    with ExitStack() as stack:
        yield [stack.enter_context(phones.app(program)) for program in programs]


def measured(phones: Phones, at_least: str = "2.5.0") -> tuple[Verdict, object]:
    finding = fleet.measure(phones.desk, at_least)
    return finding.verdict, finding.measured


def test_new_versions_pass_and_one_old_session_blocks(phones: Phones) -> None:
    with connected(phones, NEW, NEW, "payme-api/2.6.0"):
        assert measured(phones) == (Verdict.PASS, {"new": {NEW: 2, "payme-api/2.6.0": 1}})
        with connected(phones, OLD) as (session,):
            found = fleet.measure(phones.desk, "2.5.0")
            assert (found.verdict, found.measured["old"]) == (Verdict.FAIL, {OLD: 1})
            assert OLD in found.remedy
            session.autocommit = False
            session.execute("SELECT 1")  # idle in a transaction, it may still write
            assert measured(phones)[0] is Verdict.FAIL
        assert measured(phones)[0] is Verdict.PASS
        assert measured(phones, "2.6.0")[0] is Verdict.FAIL
        assert measured(phones, "2.5.1-rc.1")[0] is Verdict.FAIL
        check = fleet.check(phones.desk, "2.5.0")
        assert run_check(check, actor="test").verdict is Verdict.PASS


@pytest.mark.parametrize(
    ("program", "shown"),
    [
        ("", "(no name)"),
        ("pgbouncer", "pgbouncer"),
        ("payme-api", "payme-api"),
        ("payme-api/2.5", "payme-api/2.5"),
        ("payme-api/2.5.0 ", "payme-api/2.5.0 "),
        ("PAYME-API/2.5.0", "PAYME-API/2.5.0"),
        ("psql +254700999888", "psql [phone]"),
    ],
)
def test_a_name_that_says_no_version_is_inconclusive(phones: Phones, program: str, shown: str) -> None:
    with connected(phones, NEW, program):
        verdict, found = measured(phones)
        assert verdict is Verdict.INCONCLUSIVE
        assert found == {"new": {NEW: 1}, "unknown": {shown: 1}}


def test_nobody_connected_and_hidden_sessions_are_inconclusive(phones: Phones) -> None:
    assert measured(phones) == (Verdict.INCONCLUSIVE, "nobody is connected")
    with connected(phones, OLD), phones.admin() as admin:
        admin.execute("REVOKE pg_monitor FROM payme_db_migrate")
        try:
            assert measured(phones) == (Verdict.INCONCLUSIVE, "programs of other roles are hidden")
        finally:
            admin.execute("GRANT pg_monitor TO payme_db_migrate")


@contextmanager
def stranger(phones: Phones) -> Iterator[str]:
    """A role that is connected as `importer`; its name."""
    role, password = "phones_stranger", "stranger"
    with phones.admin() as admin:
        admin.execute(sql.SQL("CREATE ROLE {} LOGIN PASSWORD {}").format(sql.Identifier(role), sql.Literal(password)))
        database = sql.Identifier(phones.name)
        admin.execute(sql.SQL("GRANT CONNECT ON DATABASE {} TO {}").format(database, sql.Identifier(role)))
        try:
            conninfo = phones.site.cluster.conninfo(phones.name, role, password)
            with psycopg.connect(conninfo, application_name="importer"):
                yield role
        finally:
            admin.execute(sql.SQL("DROP OWNED BY {0}; DROP ROLE {0}").format(sql.Identifier(role)))


def test_other_databases_our_own_sessions_and_readers_do_not_count(phones: Phones) -> None:
    elsewhere = make_conninfo(phones.site.world.conninfo("payme_app", "payme"), application_name=OLD)
    with (
        connected(phones, NEW, "payme_ops:migration:canary"),
        psycopg.connect(elsewhere),
        psycopg.connect(phones.conninfo("payme_db_migrate")),
        psycopg.connect(phones.conninfo("payme_owner"), application_name="psql"),
        stranger(phones) as role,
        phones.admin() as admin,
    ):
        admin.execute(f"GRANT SELECT, DELETE ON users TO {role}")
        assert measured(phones) == (Verdict.PASS, {"new": {NEW: 1}})


@pytest.mark.parametrize("grant", ["UPDATE (phone_number)", "INSERT"])
def test_sessions_of_other_roles_that_may_write_are_inconclusive(phones: Phones, grant: str) -> None:
    with connected(phones, NEW), stranger(phones) as role, phones.admin() as admin:
        admin.execute(f"GRANT {grant} ON users TO {role}")
        found = {"new": {NEW: 1}, "others": {f"{role}: importer": 1}}
        assert measured(phones) == (Verdict.INCONCLUSIVE, found)
        admin.execute(f"REVOKE {grant} ON users FROM {role}; GRANT payme_app TO {role}")  # as a member it may, too
        assert measured(phones) == (Verdict.INCONCLUSIVE, found)


def test_a_parallel_worker_is_not_another_session(phones: Phones) -> None:
    def work() -> None:
        with suppress(psycopg.errors.QueryCanceled):
            app.execute("SELECT count(*) FROM users WHERE pg_sleep(0.02) IS NOT NULL")

    with connected(phones, NEW) as (app,), phones.admin() as admin:
        admin.execute("ALTER TABLE users SET (parallel_workers = 2)")
        for setting in ("parallel_setup_cost", "parallel_tuple_cost", "min_parallel_table_scan_size"):
            app.execute(f"SET {setting} = 0")
        thread = Thread(target=work)
        thread.start()
        try:
            workers = "SELECT FROM pg_stat_activity WHERE backend_type = 'parallel worker'"
            eventually(lambda: admin.execute(workers).rowcount, "a parallel worker")
            assert measured(phones) == (Verdict.PASS, {"new": {NEW: 1}})
            assert admin.execute(workers).rowcount
        finally:
            app.cancel_safe()
            thread.join()


def test_a_prepared_transaction_of_the_application_is_inconclusive(phones: Phones) -> None:
    with connected(phones, NEW, OLD) as (new, old):
        old.execute("BEGIN; UPDATE users SET full_name = full_name WHERE id = 1; PREPARE TRANSACTION 'left'")
        old.close()
        try:
            assert measured(phones) == (Verdict.INCONCLUSIVE, {"new": {NEW: 1}, "prepared_transactions": 1})
        finally:
            new.execute("ROLLBACK PREPARED 'left'")


def test_a_wanted_version_that_is_none_is_refused(phones: Phones) -> None:
    with pytest.raises(SettingsError, match=r"2\.5"):
        fleet.measure(phones.desk, "2.5")


def test_one_good_look_is_not_enough_and_one_bad_look_is() -> None:
    good, old = passed({"new": {NEW: 1}}), Finding(Verdict.FAIL, {"old": {OLD: 1}})
    unknown = Finding(Verdict.INCONCLUSIVE, {"unknown": {"pgbouncer": 1}})
    enough = [good] * fleet.OBSERVATIONS
    assert fleet.settled([]).verdict is Verdict.INCONCLUSIVE
    assert fleet.settled(enough[1:]).verdict is Verdict.INCONCLUSIVE
    assert fleet.settled(enough).verdict is Verdict.PASS
    assert fleet.settled([*enough, unknown]) is unknown
    assert fleet.settled([unknown, *enough, old]) is old


# Precedence as semver.org gives it.
ORDER = (
    "1.0.0-alpha 1.0.0-alpha.1 1.0.0-alpha.beta 1.0.0-beta 1.0.0-beta.2 1.0.0-beta.11 1.0.0-rc.1 1.0.0"
    " 1.0.1 1.1.0 2.0.0"
)


def test_versions_are_ordered_as_semver_says() -> None:
    versions = [parse_version(text) for text in ORDER.split()]
    assert all(versions)
    assert versions == sorted(versions, key=lambda version: version or (0, 0, 0, False, ()))
    assert len(set(versions)) == len(versions)
    assert parse_version("2.5.0+build.7") == parse_version("2.5.0")


NUMBERS = st.tuples(*[st.integers(0, 10**9 - 1)] * 3)


@given(NUMBERS, NUMBERS)
def test_numbers_are_compared_as_numbers(one: tuple[int, int, int], other: tuple[int, int, int]) -> None:
    first, second = (parse_version("{}.{}.{}".format(*numbers)) for numbers in (one, other))
    assert first is not None
    assert second is not None
    assert (first < second) == (one < other)


@given(st.text(max_size=20))
def test_any_other_text_is_no_version(text: str) -> None:
    version = parse_version(text)
    assert version is None or text.split("+")[0].split("-")[0] == "{}.{}.{}".format(*version[:3])


def test_on_the_way_back_a_new_version_blocks_and_nobody_does_not(phones: Phones) -> None:
    assert fleet.measure_older(phones.desk, "2.7.0").verdict is Verdict.PASS
    with phones.app("payme-api/2.6.0"):
        assert fleet.measure_older(phones.desk, "2.7.0").verdict is Verdict.PASS
        with phones.app("payme-api/2.7.0"):
            found = fleet.measure_older(phones.desk, "2.7.0")
        assert (found.verdict, found.measured["new"]) == (Verdict.FAIL, {"payme-api/2.7.0": 1})
        with phones.app("node"):
            assert fleet.measure_older(phones.desk, "2.7.0").verdict is Verdict.INCONCLUSIVE


# -- versions that a pooler or a driver hides -------------------------------------------------------------------


@contextmanager
def replicas(phones: Phones, *bodies: object) -> Iterator[tuple[MigrationDesk, list[str]]]:
    """A desk that knows a replica for each, which answers with that; and where they are, without http://."""
    with ExitStack() as stack:
        urls = [stack.enter_context(served(answering(body), Path())).url for body in bodies]
        yield knowing(phones, *urls), [url.removeprefix("http://") for url in urls]


def knowing(phones: Phones, *urls: str) -> MigrationDesk:
    settings = phones.desk.settings
    migration = settings.migration.model_copy(update={"replicas": urls})
    return replace(phones.desk, settings=settings.model_copy(update={"migration": migration}))


def says(version: object) -> dict[str, object]:
    return {"version": version, "uptime": 3.0, "database": "connected", "cache": "connected"}


def gone(phones: Phones) -> str:
    """Where a replica was."""
    with replicas(phones, says("2.5.0")) as (_, (where,)):
        return where


@pytest.mark.parametrize("body", [{}, "ok", {"status": "healthy"}, says(None), says(""), says(2.5), says(["2.5.0"])])
def test_a_replica_that_answers_without_a_version_is_inconclusive(phones: Phones, body: object) -> None:
    with connected(phones, NEW, "pgbouncer"), replicas(phones, says("2.5.0"), body) as (desk, (good, bad)):
        for found in (fleet.measure(desk, "2.5.0"), fleet.measure_older(desk, "2.6.0")):
            assert found.verdict is Verdict.INCONCLUSIVE
            (replica, program) = found.measured["unknown"]
            assert replica.startswith(f"replica {bad}: the PayMe API's answer is not the contract's")
            assert program == "pgbouncer"  # nothing explains it yet
            assert f"replica {good}: 2.5.0" in [*found.measured.get("new", ()), *found.measured.get("old", ())]


@pytest.mark.parametrize("version", ["2.5", "v2.5.0", "latest", "2.5.0 ", "payme-api/2.5.0", "+254700999888" * 9])
def test_a_replica_whose_version_is_none_is_inconclusive(phones: Phones, version: str) -> None:
    with connected(phones, NEW), replicas(phones, says(version)) as (desk, (where,)):
        found = fleet.measure(desk, "2.5.0")
    assert (found.verdict, found.measured["new"]) == (Verdict.INCONCLUSIVE, {NEW: 1})
    (shown,) = found.measured["unknown"]
    assert shown.startswith(f"replica {where}: ")
    assert "700999888" not in shown
    assert len(shown) < 120


def test_a_replica_that_is_away_or_fails_is_inconclusive_and_named(phones: Phones, tmp_path: Path) -> None:
    away = gone(phones)
    with (
        connected(phones, NEW, "pgbouncer"),
        served(answering({"error": "told to fail"}, 500), tmp_path) as broken,
        replicas(phones, says("2.5.0")) as (_, (good,)),
    ):
        desk = knowing(phones, f"http://{away}", f"http://{good}", broken.url)
        for found in (fleet.measure(desk, "2.5.0"), fleet.measure_older(desk, "2.6.0")):
            assert found.verdict is Verdict.INCONCLUSIVE
            first, second, program = found.measured["unknown"]
            assert first.startswith(f"replica {away}: the PayMe API did not answer GET /metrics")
            assert second == f"replica {broken.url[7:]}: the PayMe API did not answer GET /metrics (status 500)"
            assert program == "pgbouncer"
            assert "/metrics" in found.remedy


def test_replicas_are_asked_at_once_and_not_waited_for_for_ever(
    phones: Phones, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    meeting = Barrier(2)  # answers only when another one is asked at the same time

    def answer(_request: Request) -> Answer:
        with suppress(BrokenBarrierError):
            meeting.wait(10)
        return Answer(says("2.5.0"))

    def make(port: int, _state: Path) -> Server:
        return Server(port, answer, lambda _path: False, {})

    with served(make, tmp_path) as one, served(make, tmp_path) as other:
        assert fleet.measure(knowing(phones, one.url, other.url), "2.5.0").verdict is Verdict.PASS
        monkeypatch.setattr(http, "READ_SECONDS", 0.2)
        found = fleet.measure(knowing(phones, one.url), "2.5.0")
        meeting.abort()
    assert found.verdict is Verdict.INCONCLUSIVE
    assert list(found.measured["unknown"]) == [
        f"replica {one.url[7:]}: the PayMe API did not answer GET /metrics (ReadTimeoutError)"
    ]


def test_one_old_replica_blocks_and_is_named(phones: Phones) -> None:
    with connected(phones, NEW, "pgbouncer"), replicas(phones, says("2.5.0"), says("2.4.0")) as (desk, (new, old)):
        found = fleet.measure(desk, "2.5.0")
    assert found.verdict is Verdict.FAIL
    assert found.measured == {
        "new": {NEW: 1, f"replica {new}: 2.5.0": 1},
        "old": {f"replica {old}: 2.4.0": 1},
        "unknown": {"pgbouncer": 1},
    }
    assert f"replica {old}: 2.4.0" in found.remedy


def test_an_old_session_blocks_beside_new_replicas(phones: Phones) -> None:
    with connected(phones, OLD, "pgbouncer"), replicas(phones, says("2.5.0")) as (desk, (where,)):
        found = fleet.measure(desk, "2.5.0")
    assert found.verdict is Verdict.FAIL
    assert found.measured == {
        "new": {f"replica {where}: 2.5.0": 1},
        "old": {OLD: 1},
        "hidden": {"pgbouncer": 1},
    }


def test_new_replicas_explain_what_a_pooler_hides(phones: Phones) -> None:
    with (
        connected(phones, "pgbouncer", "pgbouncer", "", "psql +254700999888"),
        replicas(phones, says("2.5.0"), says("2.6.0-rc.1")) as (desk, (one, other)),
    ):
        expected = {
            "new": {f"replica {one}: 2.5.0": 1, f"replica {other}: 2.6.0-rc.1": 1},
            "hidden": {"(no name)": 1, "pgbouncer": 2, "psql [phone]": 1},
        }
        assert fleet.measure(desk, "2.5.0") == passed(expected)
        check = fleet.check(desk, "2.5.0")
        assert check.threshold.endswith("by application_name and /metrics of every replica (2)")
        assert run_check(check, actor="test").verdict is Verdict.PASS
        assert measured(phones)[0] is Verdict.INCONCLUSIVE  # with no replica known it is as ever


def test_replicas_explain_no_name_that_says_some_version(phones: Phones) -> None:
    with connected(phones, "payme-api/next"), replicas(phones, says("2.5.0")) as (desk, _):
        found = fleet.measure(desk, "2.5.0")
    assert (found.verdict, found.measured["unknown"]) == (Verdict.INCONCLUSIVE, {"payme-api/next": 1})


def test_replicas_explain_no_other_role_and_no_prepared_transaction(phones: Phones) -> None:
    with replicas(phones, says("2.5.0")) as (desk, _), connected(phones, NEW, "pgbouncer") as (new, pooled):
        with stranger(phones) as role, phones.admin() as admin:
            admin.execute(f"GRANT INSERT ON users TO {role}")
            found = fleet.measure(desk, "2.5.0")
            assert (found.verdict, found.measured["others"]) == (Verdict.INCONCLUSIVE, {f"{role}: importer": 1})
        pooled.execute("BEGIN; UPDATE users SET full_name = full_name WHERE id = 1; PREPARE TRANSACTION 'left'")
        try:
            found = fleet.measure(desk, "2.5.0")
            assert (found.verdict, found.measured["prepared_transactions"]) == (Verdict.INCONCLUSIVE, 1)
        finally:
            new.execute("ROLLBACK PREPARED 'left'")


def test_with_nobody_connected_replicas_say_what_runs(phones: Phones) -> None:
    with replicas(phones, says("2.5.0")) as (desk, (where,)):
        assert fleet.measure(desk, "2.5.0") == passed({"new": {f"replica {where}: 2.5.0": 1}})
    desk = knowing(phones, f"http://{gone(phones)}")
    assert fleet.measure(desk, "2.5.0").verdict is Verdict.INCONCLUSIVE
    assert fleet.measure_older(desk, "2.6.0").verdict is Verdict.INCONCLUSIVE


def test_on_the_way_back_a_new_replica_blocks_and_old_ones_explain(phones: Phones) -> None:
    with connected(phones, "node"), replicas(phones, says("2.6.0"), says("2.7.0")) as (desk, (old, new)):
        found = fleet.measure_older(desk, "2.7.0")
        assert (found.verdict, found.measured["new"]) == (Verdict.FAIL, {f"replica {new}: 2.7.0": 1})
        assert f"replica {new}: 2.7.0" in found.remedy
        replica_versions = {f"replica {old}: 2.6.0": 1, f"replica {new}: 2.7.0": 1}
        assert fleet.measure_older(desk, "2.8.0") == passed({"old": replica_versions, "hidden": {"node": 1}})
        with phones.app("payme-api/2.8.0"):
            assert fleet.measure_older(desk, "2.8.0").verdict is Verdict.FAIL


def test_the_sandbox_api_is_such_a_replica(phones: Phones, tmp_path: Path) -> None:
    with payme_api_stand_in(tmp_path, phones.conninfo("payme_app")) as (_, api), connected(phones, "pgbouncer"):
        desk = knowing(phones, api.url)
        assert fleet.measure(desk, "2.4.0").verdict is Verdict.PASS
        payme_api.start(api, "2.3.1")
        found = fleet.measure(desk, "2.4.0")
        assert found.verdict is Verdict.FAIL
        assert f"replica {api.url[7:]}: 2.3.1" in found.measured["old"]
        payme_api.stop(api)
        assert fleet.measure(desk, "2.4.0").verdict is Verdict.INCONCLUSIVE
