"""The checklists before and during: each item both ways, and the table's own traps found before anything is touched."""

import os
from collections import defaultdict
from collections.abc import Mapping
from datetime import UTC, datetime, time, timedelta
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from payme_ops.foundation.errors import Unavailable
from payme_ops.foundation.evidence import Check, Verdict, run_check
from payme_ops.foundation.payme_api import Health, Metrics
from payme_ops.foundation.record import Record
from payme_ops.migration import envelope, gates
from payme_ops.migration.names import Names
from tests.support.phones import Phones, encrypted, expanded
from tests.support.waiting import eventually

NOW = datetime(2026, 11, 24, 0, 30, tzinfo=UTC)  # 03:30 EAT


def verdict(check: Check) -> Verdict:
    return run_check(check, actor="test").verdict


@pytest.mark.parametrize(
    ("verified_at", "expected"),
    [
        (NOW - timedelta(hours=7), Verdict.PASS),
        (NOW - timedelta(hours=8), Verdict.PASS),
        (NOW - timedelta(hours=8, seconds=1), Verdict.FAIL),
        (NOW + timedelta(seconds=1), Verdict.FAIL),  # a clock is wrong
        (None, Verdict.FAIL),
    ],
)
def test_backup_fresh(verified_at: datetime | None, expected: Verdict) -> None:
    assert verdict(gates.backup_fresh(verified_at, timedelta(hours=8), NOW)) is expected


@pytest.mark.parametrize(
    ("start", "end", "expected"),
    [
        (time(3), time(4), Verdict.PASS),
        (time(3, 30), time(4), Verdict.PASS),
        (time(2), time(3, 30), Verdict.FAIL),
        (time(22), time(4), Verdict.PASS),  # over midnight
        (time(22), time(3), Verdict.FAIL),
        (time(0), time(1), Verdict.FAIL),  # the hour in UTC does not count
    ],
)
def test_window_open(start: time, end: time, expected: Verdict) -> None:
    assert verdict(gates.window_open(start, end, NOW)) is expected


def rehearsed(**changes: object) -> Record:
    facts = {"code": changes.pop("code", "sha256:1")}
    values = {"verdict": gates.GREEN, "started": NOW, "ended": NOW - timedelta(hours=23), **changes}
    return Record(kind="rehearsal", subject="users", run="r", actor="a", facts=facts, **values)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("record", "expected"),
    [
        (rehearsed(), Verdict.PASS),
        (rehearsed(verdict="red"), Verdict.FAIL),
        (rehearsed(code="sha256:2"), Verdict.FAIL),
        (rehearsed(ended=NOW - timedelta(hours=24, seconds=1)), Verdict.FAIL),
        (rehearsed(ended=NOW + timedelta(hours=1)), Verdict.FAIL),
        (None, Verdict.FAIL),
    ],
)
def test_rehearsal_green(record: Record | None, expected: Verdict) -> None:
    assert verdict(gates.rehearsal_green(record, "sha256:1", NOW)) is expected


def test_the_code_digest_changes_with_the_sql(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    before = gates.code_digest()
    assert before == gates.code_digest()
    folder = tmp_path / "phone_encryption"
    folder.mkdir()
    monkeypatch.setattr(gates, "SQL_DIR", tmp_path)
    without = gates.code_digest()
    (folder / "9.sql").write_text("SELECT 1")
    assert len({before, without, gates.code_digest()}) == 3


def test_told() -> None:
    assert verdict(gates.told("1700000000.000100")) is Verdict.PASS
    assert verdict(gates.told(None)) is Verdict.INCONCLUSIVE


def test_url_answers() -> None:
    class Page(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response({"/change": 200, "/moved": 302}.get(self.path, 404))
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Page) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        here = f"http://127.0.0.1:{server.server_port}"
        found = [verdict(gates.url_answers(f"{here}/{page}")) for page in ("change", "moved", "none")]
        server.shutdown()
    assert found == [Verdict.PASS, Verdict.FAIL, Verdict.FAIL]
    assert verdict(gates.url_answers(f"{here}/change")) is Verdict.INCONCLUSIVE  # nobody there any more
    assert verdict(gates.url_answers("file:///etc/passwd")) is Verdict.FAIL


def test_load_is_usual(phones: Phones, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gates, "_BETWEEN_READINGS_SECONDS", 0.01)
    check = gates.load_is_usual(phones.desk, [])
    found = run_check(check, actor="test")
    assert (found.verdict, found.measured["median"]) == (Verdict.INCONCLUSIVE, None)
    assert found.measured["now"] >= 0
    assert verdict(gates.load_is_usual(phones.desk, [10**9, 1, 10**9])) is Verdict.PASS
    assert verdict(gates.load_is_usual(phones.desk, [-1.0])) is Verdict.FAIL


def test_key_usable(phones: Phones) -> None:
    check = gates.key_usable(phones.desk, os.environ)
    assert verdict(check) is Verdict.PASS
    encrypted(phones)
    found = run_check(check, actor="test")
    assert (found.verdict, found.measured) == (Verdict.PASS, {"key_id": "k1", "stored": ["k1"]})
    for environment in ({}, {envelope.KEY_VARIABLE: "f" * 63 + "g"}):
        assert verdict(gates.key_usable(phones.desk, environment)) is Verdict.FAIL
    with phones.admin() as connection:
        connection.execute("UPDATE users SET phone_number_encrypted = 'v1:k2:' WHERE id = 2000")
        connection.execute("UPDATE users SET phone_number_encrypted = 'v1:' || phone_number WHERE id = 1999")
    found = run_check(check, actor="test")
    assert (found.verdict, found.measured["stored"]) == (Verdict.FAIL, ["k1", "k2", "malformed"])


def test_db_healthy(phones: Phones, monkeypatch: pytest.MonkeyPatch) -> None:
    check = gates.db_healthy(phones.desk)
    assert verdict(check) is Verdict.PASS
    monkeypatch.setattr(gates, "LONGEST_TRANSACTION_SECONDS", 0.0)
    with phones.app() as app, app.transaction():
        app.execute("SELECT 1")
        assert verdict(check) is Verdict.FAIL
    assert verdict(check) is Verdict.PASS


def test_a_session_that_waits_for_a_lock_is_seen(phones: Phones, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gates, "LOCK_WAIT", timedelta(milliseconds=10))
    check = gates.db_healthy(phones.desk)
    with phones.app() as holder, phones.app() as waiter:
        with holder.transaction():
            holder.execute("UPDATE users SET full_name = 'x' WHERE id = 1")
            thread = Thread(target=waiter.execute, args=["UPDATE users SET full_name = 'y' WHERE id = 1"])
            thread.start()
            eventually(lambda: verdict(check) is Verdict.FAIL, "the waiting session to be seen")
        thread.join()
    assert verdict(check) is Verdict.PASS


def test_api_healthy(monkeypatch: pytest.MonkeyPatch) -> None:
    well = Health(True, "healthy", "connected", "2.5.0")
    assert verdict(gates.api_healthy(lambda: well)) is Verdict.PASS
    assert verdict(gates.api_healthy(lambda: Health(False, "degraded", "connected", "2.5.0"))) is Verdict.FAIL

    def away() -> Health:
        raise Unavailable("the PayMe API did not answer")

    assert verdict(gates.api_healthy(away)) is Verdict.INCONCLUSIVE
    monkeypatch.setattr(gates, "API_SECONDS", -1.0)
    assert verdict(gates.api_healthy(lambda: well)) is Verdict.FAIL
    unknown = run_check(gates.api_healthy(None), actor="test")  # where it is, no connection says
    assert (unknown.verdict, "response times" in unknown.remedy) == (Verdict.INCONCLUSIVE, True)


HERE, THERE = "http://10.0.0.1:3000", "http://10.0.0.2:3000"
Counts = dict[str, int] | None


def told(*counts: Counts, version: str = "2.6.0") -> gates.Told:
    """What the replicas tell, the first of them HERE."""
    return {url: Metrics(version, each) for url, each in zip((HERE, THERE), counts, strict=False)}


@pytest.mark.parametrize(
    ("before", "now", "expected", "more"),
    [
        (told({}), told({}), Verdict.PASS, []),
        (told({"42501": 3}, {}), told({"42501": 3}, {}), Verdict.PASS, []),
        (told({}, {}), told({}, {"42501": 1}), Verdict.FAIL, [(THERE, "42501", 1)]),
        (told({"42501": 3}), told({"42501": 5, "42703": 1}), Verdict.FAIL, [(HERE, "42501", 2), (HERE, "42703", 1)]),
        # Started anew: its count fell, or it has another version; all that it tells is new.
        (told({"42501": 3}), told({"42501": 2}), Verdict.FAIL, [(HERE, "42501", 2)]),
        (told({"42501": 2, "23505": 9}), told({"42501": 2}), Verdict.FAIL, [(HERE, "42501", 2)]),
        (told({"42501": 2}), told({"42501": 2}, version="2.7.0"), Verdict.FAIL, [(HERE, "42501", 2)]),
        (told({"42501": 2}), told({}, version="2.7.0"), Verdict.PASS, []),
        # Nobody can say what has risen; where somebody can, that counts.
        (told(None), told({"42501": 7}), Verdict.INCONCLUSIVE, []),
        (told({}), told(None), Verdict.INCONCLUSIVE, []),
        (told({}), told({}, {}), Verdict.INCONCLUSIVE, []),
        (told({}, {}), told({"42501": 1}, None), Verdict.FAIL, [(HERE, "42501", 1)]),
        ({}, told({}), Verdict.INCONCLUSIVE, []),
        (told({}), {}, Verdict.INCONCLUSIVE, []),
    ],
)
def test_error_log(before: gates.Told, now: gates.Told, expected: Verdict, more: list[tuple[str, str, int]]) -> None:
    found = run_check(gates.error_log(lambda: before, lambda: now), actor="test")
    rows = [{"replica": url, "SQLSTATE": state, "more": rise} for url, state, rise in more]
    assert (found.verdict, gates.risen(before, now)) == (expected, rows)
    assert bool(found.remedy) == (expected is not Verdict.PASS)
    if expected is Verdict.FAIL:
        assert found.measured == {"risen": rows}


@pytest.mark.parametrize(
    ("states", "of_migration"),
    [
        (("42501", "42601", "42703", "42P01", "22001", "23502", "23514", "0A000", "XX000"), True),
        (
            ("23503", "23505", "40001", "40P01", "55P03", "57014", "53300", "08006", "none", "ECONNRESET", "P0001"),
            False,
        ),
    ],
)
def test_which_errors_count(states: tuple[str, ...], of_migration: bool) -> None:
    for state in states:
        before, now = told({}), told({state: 1})
        found = verdict(gates.error_log(partial(dict, before), partial(dict, now)))
        assert found is (Verdict.FAIL if of_migration else Verdict.PASS), state
        assert bool(gates.risen(before, now, gates.is_of_migration)) is of_migration, state


COUNTS = st.dictionaries(st.sampled_from(["42501", "23505", "57014"]), st.integers(0, 4))


@given(COUNTS, COUNTS)
def test_what_has_risen_is_never_more_than_is_told_nor_less_than_the_difference(
    before: dict[str, int], now: dict[str, int]
) -> None:
    found = {row["SQLSTATE"]: row["more"] for row in gates.risen(told(before), told(now))}
    for state, count in now.items():
        assert max(0, count - before.get(state, 0)) <= found.get(state, 0) <= count
    assert found.keys() <= now.keys()


# The table.


def preflight(phones: Phones) -> Mapping[str, tuple[Verdict, object]]:
    found = [run_check(check, actor="test") for check in gates.preflight(phones.desk)]
    return {item.item: (item.verdict, item.measured) for item in found}


def test_preflight_of_a_table_without_traps(each_phones: Phones) -> None:
    found = preflight(each_phones)
    assert {each for each, _ in found.values()} == {Verdict.PASS}
    assert found["update_triggers"][1] == {"fire_on_update": ["users_touch_updated_at"]}
    assert found["names_free"][1] == "free"
    assert found["duplicates"][1] == "none"
    expanded(each_phones)
    again = preflight(each_phones)
    assert {each for each, _ in again.values()} == {Verdict.PASS}
    assert again["names_free"][1] == "ours"
    assert again["update_triggers"] == found["update_triggers"]


@pytest.mark.parametrize(
    ("planted", "taken"),
    [
        ("ALTER TABLE users ADD COLUMN phone_number_bidx text", "column phone_number_bidx"),
        ("ALTER TABLE users ADD COLUMN phone_number_encrypted varchar(255)", "column phone_number_encrypted"),
        (
            "ALTER TABLE users ADD CONSTRAINT users_phone_number_format CHECK (true)",
            "constraint users_phone_number_format",
        ),
        ("CREATE TABLE users_phone_number_bidx_idx ()", "relation users_phone_number_bidx_idx"),
        (
            "CREATE FUNCTION users_phone_number_stale() RETURNS int LANGUAGE sql AS 'SELECT 1'",
            "function users_phone_number_stale",
        ),
    ],
)
def test_names_that_somebody_else_has_are_found(phones: Phones, planted: str, taken: str) -> None:
    with phones.admin() as connection:
        connection.execute(planted)
    assert preflight(phones)["names_free"] == (Verdict.FAIL, [taken])


def test_a_policy_that_hides_rows_is_found(phones: Phones) -> None:
    with phones.admin() as connection:
        connection.execute("ALTER TABLE users ENABLE ROW LEVEL SECURITY")
        assert preflight(phones)["rows_visible"][0] is Verdict.PASS
        connection.execute("ALTER TABLE users FORCE ROW LEVEL SECURITY")
    assert preflight(phones)["rows_visible"][0] is Verdict.FAIL


def test_one_number_in_two_spellings_is_found_by_id_where_numbers_are_unique(phones: Phones) -> None:
    with phones.admin() as connection:
        connection.execute("ALTER TABLE users DROP CONSTRAINT users_phone_number_is_e164")
        spelled = ["+254733000001", "0733 000 001", "254733000001", "00254733000001", "0733000002"]
        ids = [phones.add(connection, phone) for phone in spelled]
        assert preflight(phones)["duplicates"] == (Verdict.FAIL, {"ids": [ids[:4]]})
        connection.execute("ALTER TABLE users DROP CONSTRAINT users_phone_number_key")
        assert preflight(phones)["duplicates"] == (Verdict.PASS, {"ids": [ids[:4]]})


SPELLED = st.text(st.sampled_from("0012547 \t-().+\u0667\u00a0\n\u2013a"), max_size=16)
NUMBER = st.builds(
    lambda prefix, digits, cut: prefix + digits[:cut] + " " + digits[cut:],
    st.sampled_from(["0", "254", "+254", "00254", "00", "+", "0254", "2540"]),
    st.from_regex(r"[1-9][0-9]{6,14}", fullmatch=True),
    st.integers(0, 14),
)


@pytest.fixture
def texts(phones: Phones) -> Names:
    """Of a table with nothing but a key and numbers."""
    names = Names(table="texts")
    with phones.admin() as connection:
        connection.execute("CREATE TABLE texts (id bigint PRIMARY KEY, phone_number varchar)")
    return names


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=60)
@given(st.lists(SPELLED | NUMBER, max_size=40))
def test_sql_and_python_spell_numbers_alike(phones: Phones, texts: Names, given_texts: list[str]) -> None:
    """Each text stands beside the normal form that Python gives it: SQL must find the two to be one number."""
    rows = [form for text in given_texts for form in (text, envelope.normalise(text))]
    groups = defaultdict(list)
    for key, text in enumerate(rows):
        groups[envelope.normalise(text)].append(key)
    with phones.admin() as connection, connection.transaction(force_rollback=True), connection.cursor() as cursor:
        cursor.executemany("INSERT INTO texts VALUES (%s, %s)", list(enumerate(rows)))
        found = gates.duplicates(connection, texts)
    assert found == sorted(keys for keys in groups.values() if len(keys) > 1)[:50]
