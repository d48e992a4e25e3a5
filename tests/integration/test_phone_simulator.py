"""The simulated application counts what a migration must not do: its own faults are planted here, one by one."""

import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path

import psycopg
import pytest

from sandbox.payme_app import ledger
from sandbox.payme_app.fleet import Fleet, Totals
from sandbox.payme_app.versions import NEXT_ID, V1, V2, V3, V4, V5, VERSIONS, Version, number, parameters
from sandbox.payme_db.generate import PHONE_PREFIX, SIZES
from tests.support import phones as databases
from tests.support.phones import Phones
from tests.support.waiting import eventually

# The last steps as the migration takes them, in the order in which the versions need them (notes: section 6).
RELAXED = "ALTER TABLE users DROP CONSTRAINT users_phone_number_key, ALTER COLUMN phone_number DROP NOT NULL"
SHIM = """
BEGIN;
DROP TRIGGER users_phone_number_stale ON users;
ALTER TABLE users DROP COLUMN phone_number;
ALTER TABLE users RENAME COLUMN phone_number_encrypted TO phone_number;
ALTER TABLE users RENAME TO users_base;
CREATE VIEW users WITH (security_invoker) AS SELECT id, public_id, full_name, email, kyc, preferences, created_at,
    updated_at, last_login_at, phone_number_bidx, phone_number, phone_number AS phone_number_encrypted FROM users_base;
ALTER VIEW users OWNER TO payme_owner;
GRANT SELECT, INSERT, UPDATE, DELETE ON users TO payme_app;
COMMIT;
"""
UNSHIM = "BEGIN; DROP VIEW users; ALTER TABLE users_base RENAME TO users; COMMIT;"
# The same at once and with nothing in between, as the plain plan has it; without its unique index upserts would fail.
NAIVE = """
BEGIN;
DROP TRIGGER users_phone_number_stale ON users;
ALTER TABLE users DROP CONSTRAINT users_phone_number_format;
ALTER TABLE users DROP COLUMN phone_number;
ALTER TABLE users RENAME COLUMN phone_number_encrypted TO phone_number;
CREATE UNIQUE INDEX ON users (phone_number);
COMMIT;
"""


@contextmanager
def traffic(phones: Phones, folder: Path, version: Version, *, per_second: float = 400) -> Iterator[Fleet]:
    """One instance with two connections, at work on twenty of the database's users."""
    with phones.admin() as connection:
        connection.execute("GRANT DELETE ON users TO payme_app")
    fleet = Fleet(
        phones.conninfo("payme_app"),
        folder,
        phones.site.world.env,
        generated=SIZES["test"].users,
        adopted=20,
        instances=1,
        per_second=per_second,
    )
    with fleet:
        fleet.start(version)
        yield fleet


def until(fleet: Fleet, enough: Callable[[Totals], bool], what: str) -> Totals:
    """The totals of a stretch that begins now and goes on until they are enough."""
    begun = time.monotonic()

    def totals() -> Totals:
        with fleet.still():
            return fleet.account().totals(begun)

    eventually(lambda: enough(totals()), what)
    return totals()


def after(fleet: Fleet, requests: int) -> Totals:
    """The same of that many requests at least."""
    return until(fleet, lambda so_far: so_far.requests + so_far.failed_queries >= requests, f"{requests} requests")


def execute(phones: Phones, *statements: str) -> None:
    with phones.admin() as connection:
        for statement in statements:
            connection.execute(statement.encode())


def mishaps(totals: Totals) -> tuple[int, int, int]:
    return totals.failed_queries, totals.wrong_reads, totals.disconnects


def test_every_version_works_on_its_schema_and_beside_the_one_before(phones: Phones, tmp_path: Path) -> None:
    with traffic(phones, tmp_path, V1) as fleet:
        steps: list[tuple[Callable[[], object], Version]] = [
            (lambda: databases.expanded(phones), V2),
            (lambda: fill(phones, fleet), V3),
            (lambda: execute(phones, RELAXED), V4),
            (lambda: execute(phones, SHIM), V5),
            (lambda: execute(phones, UNSHIM), V5),
        ]
        for step, version in steps:
            step()
            fleet.roll(version)
            totals = after(fleet, 100)
            assert mishaps(totals) == (0, 0, 0), totals.what
            assert totals.acknowledged_writes > 20
            with fleet.still():
                assert fleet.lost_writes(phones.conninfo("payme_owner"), version, untouched=True) == []
        fleet.stop()
        everything = fleet.account().totals()
        assert mishaps(everything) == (0, 0, 0), everything.what


def fill(phones: Phones, fleet: Fleet) -> None:
    """The backfill while nothing else happens, and the index."""
    with fleet.still(), phones.admin() as connection:
        rows = connection.execute("SELECT id, phone_number FROM users WHERE phone_number_encrypted IS NULL").fetchall()
        sealed = [parameters(V2, phones.keys, user, phone) for user, phone in rows]
        with connection.cursor() as cursor:
            cursor.executemany(V2.change, sealed)
        connection.execute("CREATE UNIQUE INDEX ON users (phone_number_bidx)")


def test_a_wrong_value_is_a_wrong_read(phones: Phones, tmp_path: Path) -> None:
    with traffic(phones, tmp_path, V1) as fleet:
        assert mishaps(after(fleet, 50)) == (0, 0, 0)
        execute(phones, "UPDATE users SET phone_number = '+2556' || lpad(id::text, 8, '0')")
        totals = after(fleet, 50)
    assert totals.failed_queries == 0
    assert totals.wrong_reads > 0
    assert any(what.startswith("wrong 2.4.0 read") for what in totals.what)


def test_a_write_that_is_undone_is_lost(phones: Phones, tmp_path: Path) -> None:
    with traffic(phones, tmp_path, V1) as fleet:
        after(fleet, 50)
        with fleet.still():
            written = {user: kept for user, kept in ledger.kept(tmp_path, range(2001)).items() if kept.value >= 0}
            assert fleet.lost_writes(phones.conninfo("payme_owner"), V1, untouched=True) == []
            changed, deleted = sorted(written)[0], sorted(written)[-1]
            execute(
                phones,
                f"UPDATE users SET phone_number = '+25560000000' WHERE id = {changed}",  # noqa: S608
                f"DELETE FROM users WHERE id = {deleted}",  # noqa: S608
                "UPDATE users SET phone_number = '+25560000001' WHERE id = 7",  # no instance has it
            )
            assert sorted(fleet.lost_writes(phones.conninfo("payme_owner"), V1)) == [changed, deleted]
            lost = fleet.lost_writes(phones.conninfo("payme_owner"), V1, untouched=True)
            assert sorted(lost) == sorted({changed, 7, deleted})


def test_a_refused_query_is_failed_and_not_lost(phones: Phones, tmp_path: Path) -> None:
    with traffic(phones, tmp_path, V1) as fleet:
        execute(phones, "REVOKE UPDATE ON users FROM payme_app")
        totals = after(fleet, 50)
        with fleet.still():
            assert fleet.lost_writes(phones.conninfo("payme_owner"), V1, untouched=True) == []
    assert totals.failed_queries > 0
    assert totals.wrong_reads == 0
    assert "failed 2.4.0 change 42501" in totals.what


def test_a_cut_connection_is_counted_apart_and_its_last_write_may_be_either(phones: Phones, tmp_path: Path) -> None:
    with traffic(phones, tmp_path, V1, per_second=0) as fleet:
        begun = time.monotonic()
        for _ in range(5):
            after(fleet, 50)
            execute(phones, "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = 'payme_app'")
        after(fleet, 50)
        fleet.stop()
        totals = fleet.account().totals(begun)
        assert totals.disconnects >= 5
        assert (totals.failed_queries, totals.wrong_reads) == (0, 0), totals.what
        assert fleet.lost_writes(phones.conninfo("payme_owner"), V1, untouched=True) == []


def test_an_old_version_on_the_renamed_column_reads_ciphertext_and_no_query_fails(
    phones: Phones, tmp_path: Path
) -> None:
    """Fault 10, step 5 of the plain plan: only reads that are checked by value see it."""
    databases.encrypted(phones)
    with traffic(phones, tmp_path, V1) as fleet:
        assert mishaps(after(fleet, 50)) == (0, 0, 0)
        execute(phones, NAIVE)
        totals = after(fleet, 100)
    assert totals.failed_queries == 0, totals.what
    assert totals.wrong_reads > 0


def test_a_backfill_that_does_not_compare_is_seen(phones: Phones, tmp_path: Path) -> None:
    """Fault 1: what v2 wrote between its read and its write is overwritten with the older number's ciphertext."""
    databases.expanded(phones)
    with traffic(phones, tmp_path, V2) as fleet:
        read = phones.plaintexts()
        after(fleet, 100)
        sealed = [parameters(V4, phones.keys, user, str(text)) for user, text in read.items()]
        # On a slow machine v2 would have time to write all of its users again, rightly, before the last was done.
        with fleet.still(), phones.admin() as connection, connection.cursor() as cursor:
            cursor.executemany(V4.change, sealed)
        fleet.roll(V3)
        totals = until(fleet, lambda so_far: so_far.wrong_reads > 0, "a wrong read")
        with fleet.still():
            lost = fleet.lost_writes(phones.conninfo("payme_owner"), V3)
    assert totals.failed_queries == 0, totals.what
    assert lost


def test_an_old_version_that_stays_behind_is_seen_when_there_is_no_trigger(phones: Phones, tmp_path: Path) -> None:
    """Fault 2: v1 writes the plaintext alone after the backfill, no ciphertext is missing, and v3 reads the older."""
    databases.encrypted(phones)
    execute(phones, "DROP TRIGGER users_phone_number_stale ON users")
    with traffic(phones, tmp_path, V1) as fleet:
        after(fleet, 100)
        fleet.roll(V3)
        until(fleet, lambda so_far: so_far.wrong_reads > 0, "a wrong read")


def test_a_new_version_before_the_rename_fails(phones: Phones, tmp_path: Path) -> None:
    with traffic(phones, tmp_path, V2) as fleet:
        totals = after(fleet, 50)
    assert "failed 2.5.0 create 42703" in totals.what


def test_prepared_statements_keep_their_plans_over_a_new_column(phones: Phones, tmp_path: Path) -> None:
    """Fault 9 does not touch the application: its lists are explicit. One that says * would fail."""
    with closing(psycopg.connect(phones.conninfo("payme_app"), autocommit=True)) as careless:
        careless.execute("SELECT * FROM users WHERE id = %s", [1], prepare=True)
        with traffic(phones, tmp_path, V1) as fleet:
            after(fleet, 50)
            databases.expanded(phones)
            assert mishaps(after(fleet, 50)) == (0, 0, 0)
        with pytest.raises(psycopg.errors.FeatureNotSupported, match="cached plan"):
            careless.execute("SELECT * FROM users WHERE id = %s", [1], prepare=True)


def test_no_phone_number_is_written_down(phones: Phones, tmp_path: Path) -> None:
    with traffic(phones, tmp_path, V1) as fleet:
        after(fleet, 100)
        execute(phones, "ALTER TABLE users ADD CHECK (phone_number < '+2540') NOT VALID")  # its DETAIL prints the row
        assert after(fleet, 50).failed_queries > 0
        fleet.stop()
    block = number(0, 0)[:5]
    files = list(tmp_path.iterdir())
    assert len(files) > 6
    for path in files:
        assert PHONE_PREFIX.encode() not in path.read_bytes(), path.name
        assert block.encode() not in path.read_bytes(), path.name


@pytest.mark.parametrize("version", VERSIONS.values(), ids=VERSIONS)
def test_no_version_names_every_column(version: Version) -> None:
    texts = [version.create, version.upsert, version.change, version.read, version.read_locked, version.find]
    assert not any(b"*" in text for text in texts)
    assert all((b"phone_number_encrypted" in text) == (version in (V2, V3, V4)) for text in texts[:3])


NAMES_A_TARGET = (
    b"INSERT INTO users (public_id, full_name, phone_number, phone_number_encrypted, phone_number_bidx)"
    b" VALUES (gen_random_uuid(), 'New Customer', %(plain)s, %(sealed)s, %(index)s)"
    b" ON CONFLICT (phone_number_bidx) DO UPDATE SET last_login_at = now() RETURNING id"
)


@pytest.mark.parametrize(
    ("statements", "fails"),
    [
        ([(V2.upsert, V2.log_in)] * 4, False),
        ([(V2.upsert, V2.log_in), (V3.upsert, V3.log_in)] * 2, False),
        ([(V3.upsert, V3.log_in)] * 4, False),
        ([(NAMES_A_TARGET, V3.log_in)] * 4, True),
    ],
    ids=["v2", "v2 and v3", "v3", "a named target"],
)
def test_first_logins_at_the_same_instant(phones: Phones, statements: list[tuple[bytes, bytes]], fails: bool) -> None:
    """While both columns are unique, ON CONFLICT with a target fails on the other index now and then."""
    databases.encrypted(phones)
    execute(phones, "CREATE UNIQUE INDEX ON users (phone_number_bidx)")
    start, keys = threading.Barrier(len(statements)), phones.keys
    refused: list[str | None] = []
    ids: dict[int, set[int]] = defaultdict(set)

    def log_in(upsert: bytes, known: bytes) -> None:
        with phones.app() as connection:
            for value in range(3000):
                values = parameters(V3, keys, 0, number(0, value)) | next_id(connection)
                start.wait()
                try:
                    answer = (
                        connection.execute(upsert, values).fetchone() or connection.execute(known, values).fetchone()
                    )
                    ids[value].add(answer[0] if answer else 0)
                except psycopg.errors.UniqueViolation as error:
                    refused.append(error.diag.constraint_name)
                if start.wait() == 0 and (refused if fails else value == 300):
                    start.abort()

    threads = [threading.Thread(target=ending, args=(log_in, *pair)) for pair in statements]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert bool(refused) == fails, refused
    assert all(len(found) == 1 and 0 not in found for found in ids.values())


def next_id(connection: psycopg.Connection) -> dict[str, int]:
    row = connection.execute(NEXT_ID).fetchone()
    assert row is not None
    return {"id": row[0]}


def ending(work: Callable[[bytes, bytes], None], *statements: bytes) -> None:
    """Until the barrier is broken."""
    with suppress(threading.BrokenBarrierError):
        work(*statements)
