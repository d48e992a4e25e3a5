"""The ops database's schema and the evidence in it: written once, read unchanged, and refused when it was changed."""

import threading
from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta
from typing import Any

import psycopg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from payme_ops.foundation import evidence, opsdb
from payme_ops.foundation.clock import utc_now
from payme_ops.foundation.errors import DatabaseError, DatabaseUnavailable, NotFound, SettingsError
from payme_ops.foundation.evidence import Check, Evidence, Verdict, failed, passed, run_check
from payme_ops.foundation.sql import SQL_DIR
from sandbox.postgres import Cluster
from tests.support.ops import database, ops_database

FILES = sorted(path.name for path in (SQL_DIR / "ops").glob("[0-9]*.sql"))
FLOATS = st.floats(allow_nan=False, allow_infinity=False)
MEASURED = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | FLOATS | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@pytest.fixture(scope="module")
def ops(cluster: Cluster) -> Iterator[str]:
    with ops_database(cluster) as conninfo:
        yield conninfo


def proof(item: str = "dump", measured: Any = None) -> Evidence:
    now = utc_now()
    return Evidence(item, Verdict.PASS, measured, "equal", "test", now, now, "here", evidence.digest(measured), "none")


def test_migrate_applies_what_is_missing_in_order_once(cluster: Cluster) -> None:
    with database(cluster, "ops_migrate") as conninfo:
        assert opsdb.migrate(conninfo) == FILES
        assert opsdb.migrate(conninfo) == []


def test_migrations_at_the_same_time_wait_for_each_other(cluster: Cluster) -> None:
    with database(cluster, "ops_migrate") as conninfo:
        applied: list[list[str]] = []
        threads = [threading.Thread(target=lambda: applied.append(opsdb.migrate(conninfo))) for _ in range(5)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sorted(applied) == [[]] * 4 + [FILES]


def test_a_migration_that_fails_leaves_nothing(cluster: Cluster) -> None:
    with database(cluster, "ops_migrate") as conninfo, psycopg.connect(conninfo, autocommit=True) as connection:
        connection.execute("CREATE SCHEMA ops; CREATE TABLE ops.evidence (x int)")
        with pytest.raises(DatabaseError, match="42P07"):
            opsdb.migrate(conninfo)
        assert connection.execute("SELECT to_regclass('ops.leases'), to_regclass('ops.schema_version')").fetchone() == (
            None,
            None,
        )


@given(measured=MEASURED)
@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_what_was_recorded_is_what_is_read(ops: str, measured: Any) -> None:
    made = proof(measured=measured)
    evidence.record(ops, "run", [made])
    assert evidence.latest(ops, "run", "dump") == made


def test_the_newest_of_this_run_and_item_counts(ops: str) -> None:
    evidence.record(ops, "one", [proof(measured=1), proof("read_back", 2)])
    evidence.record(ops, "one", [proof(measured=3)])
    evidence.record(ops, "two", [proof(measured=4)])
    assert evidence.latest(ops, "one", "dump").measured == 3
    assert evidence.latest(ops, "one", "read_back").measured == 2
    assert evidence.latest(ops, "two", "dump").measured == 4


def test_no_evidence_names_the_run(ops: str) -> None:
    evidence.record(ops, "another", [proof()])
    with pytest.raises(NotFound, match="never ran") as caught:
        evidence.latest(ops, "never ran", "dump")
    assert "again" in caught.value.remedy


@pytest.mark.parametrize("change", ["measured = '{\"rows\": 2}'", "sha256 = repeat('0', 64)"])
def test_changed_evidence_counts_for_nothing(ops: str, change: str) -> None:
    evidence.record(ops, "changed", [proof(measured={"rows": 1})])
    with psycopg.connect(ops, autocommit=True) as connection:
        connection.execute(f"UPDATE ops.evidence SET {change} WHERE run = 'changed'")  # noqa: S608
    with pytest.raises(NotFound, match="digest does not match"):
        evidence.latest(ops, "changed", "dump")


def test_all_or_none_of_a_list_is_recorded(ops: str) -> None:
    with pytest.raises(DatabaseError):
        evidence.record(ops, "half", [proof(), replace(proof("bad"), verdict="maybe")])  # type: ignore[arg-type]
    with pytest.raises(NotFound):
        evidence.latest(ops, "half", "dump")


def check(measure: Any) -> Evidence:
    return run_check(Check("item", "threshold", "source", measure), actor="test")


def test_a_check_that_passes_or_fails() -> None:
    good = check(lambda: passed({"rows": 1}))
    assert (good.verdict, good.measured, good.sha256) == (Verdict.PASS, {"rows": 1}, evidence.digest({"rows": 1}))
    bad = check(lambda: failed({"rows": 0}, "look"))
    assert (bad.verdict, bad.remedy) == (Verdict.FAIL, "look")
    assert timedelta() <= bad.ended - bad.started < timedelta(minutes=1)


def test_what_cannot_be_reached_is_inconclusive_and_any_other_error_of_ours_a_fail() -> None:
    def unreachable() -> None:
        raise DatabaseUnavailable("connect", found="refused", remedy="start it")

    def malformed() -> None:
        raise SettingsError("recipient", found="nothing", remedy="copy it")

    away, wrong = check(unreachable), check(malformed)
    assert (away.verdict, away.remedy) == (Verdict.INCONCLUSIVE, "start it")
    assert (wrong.verdict, wrong.measured) == (Verdict.FAIL, {"error": "recipient", "found": "nothing"})


def test_a_bug_is_not_taken_for_a_verdict() -> None:
    def bug() -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        check(bug)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), {"x": float("nan")}])
def test_nan_has_no_digest(value: Any) -> None:
    with pytest.raises(ValueError, match="JSON compliant"):
        evidence.digest(value)
