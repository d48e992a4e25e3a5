"""The backfill beside everything that may happen meanwhile: whoever writes, whatever ends it, each number is encrypted
as it is at the end, once."""

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import psycopg
import pytest

from payme_ops.foundation.errors import DatabaseUnavailable, GateClosed, LeaseHeld, LockBudgetSpent, UnexpectedSchema
from payme_ops.migration import backfill, envelope, state
from payme_ops.migration.backfill import Done
from sandbox import postgres
from sandbox.payme_db.generate import CANARY_PHONE
from sandbox.postgres import PROJECT
from tests.support.backfills import BATCH, before_batch, cursor, encrypt_all, small_batches, stored
from tests.support.installation import quiet
from tests.support.phones import Phones, encrypted, expanded
from tests.support.waiting import eventually

USERS = 2_000
ANOTHER = "+254711000001"


def update(phones: Phones, user: int, phone: str) -> None:
    """As an application that knows the plaintext only."""
    with phones.app() as connection:
        assert connection.execute("UPDATE users SET phone_number = %s WHERE id = %s", [phone, user]).rowcount == 1


def write_both(connection: psycopg.Connection, phones: Phones, user: int, phone: str) -> None:
    """As an application that writes all three columns."""
    keys, names = phones.keys, phones.names
    connection.execute(
        "UPDATE users SET phone_number = %s, phone_number_encrypted = %s, phone_number_bidx = %s WHERE id = %s",
        [phone, envelope.encrypt(keys, names.associated_data(user), phone), envelope.blind_index(keys, phone), user],
    )


def updated_at(phones: Phones) -> list[tuple[Any, ...]]:
    with phones.admin() as connection:
        return connection.execute("SELECT id, updated_at FROM users ORDER BY id").fetchall()


def test_every_number_is_encrypted_to_the_byte_and_nothing_else_changes(each_phones: Phones) -> None:
    phones, lines = expanded(each_phones), list[str]()
    phones.allow_odd()
    before, times = phones.plaintexts(), updated_at(phones)
    ranges = backfill.plan_ranges(phones.desk, 3)
    done = [
        backfill.encrypt_range(phones.desk, phones.keys, *each, pass_number=1, report=lines.append) for each in ranges
    ]
    assert len(done) == 3
    assert all(each.refused == 0 for each in done)
    assert sum(each.written for each in done) == len(before) - 1  # one has no number
    assert phones.decrypted() == phones.plaintexts() == before
    assert updated_at(phones) == times
    assert backfill.triggers_fired(phones.desk) == []
    with phones.admin() as connection:
        indexes = connection.execute("SELECT phone_number, phone_number_bidx FROM users").fetchall()
    assert all(index == (None if text is None else envelope.blind_index(phones.keys, text)) for text, index in indexes)
    assert len(lines) == 3
    assert "+254" not in "".join(lines)


def test_where_triggers_cannot_be_silenced_they_are_named(phones: Phones) -> None:
    times, lines = updated_at(expanded(phones)), list[str]()
    with phones.admin() as connection:
        connection.execute("REVOKE SET ON PARAMETER session_replication_role FROM payme_db_migrate")
        try:
            fired = backfill.triggers_fired(phones.desk)
            encrypt_all(phones, lines.append)
        finally:
            connection.execute("GRANT SET ON PARAMETER session_replication_role TO payme_db_migrate")
    assert fired == ["users_touch_updated_at"]
    assert "triggers_fired: users_touch_updated_at" in lines[0]
    assert updated_at(phones) != times
    assert phones.decrypted() == phones.plaintexts()


def test_a_number_that_changes_between_read_and_write_is_not_overwritten(
    phones: Phones, monkeypatch: pytest.MonkeyPatch
) -> None:
    expanded(phones)

    def meanwhile() -> None:
        update(phones, 5, ANOTHER)
        with phones.app("payme-api/2.5.0") as connection:
            write_both(connection, phones, 6, "+254711000002")

    before_batch(monkeypatch, 1, meanwhile)
    assert encrypt_all(phones) == Done(rows=USERS, written=USERS - 2, refused=2)
    decrypted = phones.decrypted()
    assert (decrypted[5], decrypted[6]) == (None, "+254711000002")
    assert backfill.catch_up(phones.desk, phones.keys) == 2  # the second found nothing
    assert phones.decrypted() == phones.plaintexts()
    assert phones.decrypted()[5] == ANOTHER


def test_what_the_column_calls_equal_is_another_number_all_the_same(
    phones: Phones, monkeypatch: pytest.MonkeyPatch
) -> None:
    phones.allow_odd()
    with phones.admin() as connection:
        connection.execute("CREATE EXTENSION citext")
        connection.execute("ALTER TABLE users ALTER phone_number TYPE citext")
        connection.execute("UPDATE users SET phone_number = 'a' WHERE id = 5")
    expanded(phones)
    before_batch(monkeypatch, 1, lambda: update(phones, 5, "A"))
    assert encrypt_all(phones).refused == 1
    backfill.catch_up(phones.desk, phones.keys)
    assert phones.decrypted()[5] == "A"


def test_rows_committed_late_under_lower_keys_are_found_by_a_later_pass(phones: Phones) -> None:
    with expanded(phones).app() as slow, slow.transaction():
        late = phones.add(slow, "+254711000003")
        with phones.app() as quick:
            assert phones.add(quick, "+254711000004") > late
        assert encrypt_all(phones).written == USERS + 1
    assert phones.decrypted()[late] is None
    assert backfill.catch_up(phones.desk, phones.keys) == 2
    assert phones.decrypted() == phones.plaintexts()


def test_a_pass_that_is_done_is_not_done_again_and_the_next_one_is(phones: Phones) -> None:
    first = encrypt_all(expanded(phones))
    update(phones, 5, ANOTHER)
    assert encrypt_all(phones) == first
    assert phones.decrypted()[5] is None
    low, high = backfill.plan_ranges(phones.desk, 1)[0]
    assert backfill.encrypt_range(phones.desk, phones.keys, low, high, pass_number=2) == Done(1, 1, 0)
    assert phones.decrypted() == phones.plaintexts()


def test_before_the_columns_are_there_and_once_the_plaintext_may_be_stale_nothing_is_encrypted(phones: Phones) -> None:
    with pytest.raises(UnexpectedSchema, match="expected expanded or later, and not yet relaxed; found as it was"):
        encrypt_all(phones)
    encrypt_all(encrypted(phones))
    update(phones, 5, ANOTHER)
    with phones.admin() as connection:
        values = [state.subject(phones.names), True, "[]"]
        connection.execute("INSERT INTO payme_migration.relaxed VALUES (%s, %s, %s)", values)
    with pytest.raises(UnexpectedSchema, match="not yet relaxed"):
        backfill.catch_up(phones.desk, phones.keys)
    assert phones.decrypted()[5] is None


def test_an_empty_table_has_no_ranges_and_is_caught_up(phones: Phones) -> None:
    with expanded(phones).admin() as connection:
        connection.execute("TRUNCATE users CASCADE")
    assert backfill.plan_ranges(phones.desk, 4) == []
    assert backfill.catch_up(phones.desk, phones.keys) == 1


# The process is killed between the reading and the writing of a batch, or right after the writing.
_KILLED = """
import os, signal, sys
from payme_ops.foundation import settings
from payme_ops.migration import backfill, control, envelope
from payme_ops.migration.desk import MigrationDesk
number, where, target, ops = int(sys.argv[1]), *sys.argv[2:]
backfill.FIRST_SIZE = backfill.LARGEST_SIZE = 100
counted = 0
def count(original, after):
    def act(*args):
        global counted
        counted += 1
        if counted == number and not after:
            os.kill(os.getpid(), signal.SIGKILL)
        answer = original(*args)
        if counted == number:
            os.kill(os.getpid(), signal.SIGKILL)
        return answer
    return act
if where == "before":
    control.waits = count(control.waits, False)
else:
    backfill._write = count(backfill._write, True)
desk = MigrationDesk(settings.load(), target, ops, run="killed")
keys = envelope.load_keys(os.environ, key_id=desk.settings.migration.key_id, names=desk.names)
((low, high),) = backfill.plan_ranges(desk, 1)
backfill.encrypt_range(desk, keys, low, high, pass_number=1)
"""


@pytest.mark.parametrize(("number", "where", "batches"), [(1, "before", 0), (8, "before", 7), (8, "after", 8)])
def test_killed_it_goes_on_at_its_cursor(
    phones: Phones, monkeypatch: pytest.MonkeyPatch, number: int, where: str, batches: int
) -> None:
    small_batches(monkeypatch)
    expanded(phones)
    ended = subprocess.run(
        [sys.executable, "-c", _KILLED, str(number), where, phones.desk.target, phones.desk.ops],
        env={**os.environ, "PYTHONPATH": str(PROJECT / "plugins")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == -signal.SIGKILL, ended.stderr
    assert cursor(phones) == (batches * BATCH, batches * BATCH)
    first = {key: text for key, text in stored(phones).items() if text}
    assert len(first) == batches * BATCH
    again = list[int]()
    before_batch(monkeypatch, 1, lambda: again.append(cursor(phones)[0]))
    assert encrypt_all(phones) == Done(rows=USERS, written=USERS, refused=0)  # both runs together, none twice
    assert again == [batches * BATCH]
    assert phones.decrypted() == phones.plaintexts()
    assert first.items() <= stored(phones).items()


@pytest.mark.parametrize("session", ["backfill", "backfill:read", "watch"])
@pytest.mark.parametrize("number", [1, 9])
def test_a_cut_connection_is_worth_another_try(
    phones: Phones, monkeypatch: pytest.MonkeyPatch, session: str, number: int
) -> None:
    small_batches(monkeypatch)
    expanded(phones)

    def cut() -> None:
        with phones.admin() as connection:
            ended = connection.execute(
                "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity"
                " WHERE datname = current_database() AND application_name = %s",
                [f"payme_ops:migration:{session}"],
            ).fetchall()
        assert ended == [(True,)]
        if session == "watch":  # it learns of it at its next canary
            eventually(lambda: "throttle" not in {each.name for each in threading.enumerate()}, "the end of the watch")

    before_batch(monkeypatch, number, cut)
    with pytest.raises(DatabaseUnavailable):
        encrypt_all(phones)
    done_to, written = cursor(phones)
    assert (number - 1) * BATCH <= done_to == written < USERS  # what was read ahead may be written
    assert encrypt_all(phones).written == USERS
    assert phones.decrypted() == phones.plaintexts()


def test_after_a_crash_of_the_server_rows_and_cursor_agree(phones: Phones, monkeypatch: pytest.MonkeyPatch) -> None:
    """The last batches may be lost, since none waits for the disk: then the cursor has not moved either."""
    small_batches(monkeypatch)
    before_batch(monkeypatch, 9, lambda: postgres.stop(phones.site.cluster, "immediate"))
    try:
        with pytest.raises(DatabaseUnavailable):
            encrypt_all(expanded(phones))
    finally:
        phones.site.start_postgres()
    done_to, written = cursor(phones)
    assert {key for key, text in stored(phones).items() if text} == set(range(1, done_to + 1))
    assert written == done_to <= 8 * BATCH
    assert encrypt_all(phones) == Done(USERS, USERS, 0)
    assert phones.decrypted() == phones.plaintexts()


def test_two_ranges_are_done_at_once(phones: Phones) -> None:
    ranges = backfill.plan_ranges(expanded(phones).desk, 2)
    with ThreadPoolExecutor(2) as pool:
        done = list(
            pool.map(
                lambda each: backfill.encrypt_range(phones.desk, phones.keys, *each, pass_number=1, report=quiet),
                ranges,
            )
        )
    assert sum(each.written for each in done) == USERS
    assert phones.decrypted() == phones.plaintexts()


def test_one_range_is_done_by_one_task(phones: Phones, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backfill, "_ALONE_TIMEOUT", "100ms")
    small_batches(monkeypatch)

    def second() -> None:
        with pytest.raises(LeaseHeld, match="at work already"):
            encrypt_all(phones)

    before_batch(monkeypatch, 3, second)
    assert encrypt_all(expanded(phones)) == Done(USERS, USERS, 0)


@contextmanager
def _writers(phones: Phones) -> Iterator[dict[int, str]]:
    """An application that writes all three columns, again and again; yields its acknowledged numbers by id."""
    stop, acknowledged, begun = threading.Event(), dict[int, str](), threading.Event()

    def write() -> None:
        with phones.app("payme-api/2.5.0") as connection:
            for number in range(100_000):
                if stop.is_set():
                    return
                user, phone = number * 7 % USERS + 1, f"+2547{50_000_000 + number}"
                write_both(connection, phones, user, phone)
                acknowledged[user] = phone
                if number == 20:
                    begun.set()

    with ThreadPoolExecutor(1) as pool:
        writer = pool.submit(write)
        try:
            assert begun.wait(15)
            yield acknowledged
        finally:
            stop.set()
            writer.result()


def test_beside_an_application_that_writes_both_nothing_is_lost(
    phones: Phones, monkeypatch: pytest.MonkeyPatch
) -> None:
    small_batches(monkeypatch)
    before = expanded(phones).plaintexts()
    with _writers(phones) as acknowledged:
        done = encrypt_all(phones)
        backfill.catch_up(phones.desk, phones.keys)
    assert done.rows == done.written + done.refused
    assert phones.decrypted() == phones.plaintexts() == {**before, **acknowledged}


def test_a_row_that_others_hold_is_left_to_a_later_pass_and_nobody_waits(phones: Phones) -> None:
    with expanded(phones).app() as holder, phones.app() as other, holder.transaction():
        holder.execute("UPDATE users SET phone_number = %s WHERE id = 7", [ANOTHER])
        assert encrypt_all(phones) == Done(rows=USERS, written=USERS - 1, refused=1)
        # Its own batch is committed, so the holder, who goes on, is in no deadlock with it.
        holder.execute("UPDATE users SET full_name = 'A' WHERE id = 8")
        other.execute("UPDATE users SET full_name = 'B' WHERE id = 9")
    assert backfill.catch_up(phones.desk, phones.keys) == 2
    assert phones.decrypted() == phones.plaintexts()


def test_a_change_of_the_table_is_waited_for_within_the_budget(phones: Phones, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PAYME_OPS__MIGRATION__LOCK_BUDGET_SECONDS", "1")
    impatient = Phones(phones.site, phones.name)
    with expanded(phones).admin() as connection:

        def lock() -> None:
            connection.execute("BEGIN; LOCK TABLE users IN ROW EXCLUSIVE MODE; LOCK TABLE users IN SHARE MODE")

        before_batch(monkeypatch, 1, lock)
        with pytest.raises(LockBudgetSpent, match="did not get its locks"):
            encrypt_all(impatient)
        connection.execute("COMMIT")
    assert encrypt_all(impatient).written == USERS


def test_a_version_that_writes_the_plaintext_alone_keeps_it_from_an_end_and_is_told_of(phones: Phones) -> None:
    numbers = iter(range(1_000))

    def old_version(_line: str) -> None:  # at the end of each pass
        for user in (5, 6, 7):
            update(phones, user, f"+2547{60_000_000 + next(numbers)}")

    with pytest.raises(GateClosed, match=r"3 rows in the last pass; in all 6: 2,000, 3, 3, 3, 3, 3\.") as closed:
        backfill.catch_up(expanded(phones).desk, phones.keys, old_version)
    assert "+254" not in str(closed.value)
    assert backfill.catch_up(phones.desk, phones.keys) == 2
    assert phones.decrypted() == phones.plaintexts()


def test_no_number_is_in_an_error(phones: Phones) -> None:
    with expanded(phones).admin() as connection:  # a rule that the columns cannot meet; its DETAIL would print the row
        connection.execute("ALTER TABLE users ADD CHECK (phone_number_encrypted IS NULL)")
    with pytest.raises(Exception, match="SQLSTATE 23514") as refused:
        encrypt_all(phones)
    assert CANARY_PHONE not in repr(refused.value)
    assert refused.value.__cause__ is None


def test_what_a_policy_hides_is_an_error(phones: Phones) -> None:
    with expanded(phones).admin() as connection:
        connection.execute(
            "ALTER TABLE users ENABLE ROW LEVEL SECURITY; ALTER TABLE users FORCE ROW LEVEL SECURITY;"
            "CREATE POLICY first_ones ON users USING (id < 100)"
        )
    with pytest.raises(Exception, match="row-level security"):
        encrypt_all(phones)
