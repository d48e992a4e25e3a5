"""The way back, until the drop: numbers that only the ciphertext knows come into the plaintext column."""

from collections.abc import Mapping

import psycopg
import pytest

from payme_ops.foundation.errors import GateClosed, UnexpectedSchema
from payme_ops.migration import backfill, envelope, state
from payme_ops.migration.backfill import Done
from payme_ops.migration.envelope import Undecryptable
from tests.support.backfills import before_batch, encrypt_all, small_batches, stored
from tests.support.installation import quiet
from tests.support.phones import Phones, encrypted, expanded

USERS = 2_000
NEW = {5: "+254711000005", 6: "+254711000006", 7: ""}


@pytest.fixture
def relaxed(phones: Phones) -> Phones:
    """As after step 5b: the plaintext may be missing, or another."""
    with encrypted(phones).admin() as connection:
        connection.execute(
            "ALTER TABLE users ALTER phone_number DROP NOT NULL, DROP CONSTRAINT users_phone_number_key,"
            " DROP CONSTRAINT users_phone_number_is_e164"
        )
    return phones


def write_new(phones: Phones, numbers: Mapping[int, str]) -> None:
    """As an application that does not know the plaintext column."""
    keys, names = phones.keys, phones.names
    with phones.app("payme-api/2.7.0") as connection:
        for user, phone in numbers.items():
            sealed = envelope.encrypt(keys, names.associated_data(user), phone)
            connection.execute(
                "UPDATE users SET phone_number_encrypted = %s, phone_number_bidx = %s WHERE id = %s",
                [sealed, envelope.blind_index(keys, phone), user],
            )


def empty_plaintext(phones: Phones, user: int) -> None:
    """What such an application's INSERT leaves."""
    with phones.admin() as connection, connection.transaction():
        connection.execute("SET LOCAL session_replication_role = replica")
        connection.execute("UPDATE users SET phone_number = NULL WHERE id = %s", [user])


def reverse_all(phones: Phones, pass_number: int = 1) -> Done:
    ((low, high),) = backfill.plan_ranges(phones.desk, 1)
    return backfill.reverse_range(phones.desk, phones.keys, low, high, pass_number=pass_number, report=quiet)


def versions(connection: psycopg.Connection) -> dict[int, tuple[str, str]]:
    """Which transaction wrote each row, and when it was touched."""
    return {row[0]: row[1:] for row in connection.execute("SELECT id, xmin::text, updated_at::text FROM users")}


def test_what_differs_or_is_missing_is_written_and_nothing_else(relaxed: Phones) -> None:
    write_new(relaxed, NEW)
    empty_plaintext(relaxed, 8)
    wanted = relaxed.decrypted()
    with relaxed.admin() as connection:
        before, sealed = versions(connection), stored(relaxed)
        assert reverse_all(relaxed) == Done(rows=4, written=4, refused=0)
        after = versions(connection)
    assert relaxed.plaintexts() == wanted == relaxed.decrypted()  # the trigger took no ciphertext away
    changed = {*NEW, 8}
    assert {user for user in after if after[user] != before[user]} == changed
    assert all(after[user][1] == before[user][1] for user in changed)  # updated_at
    assert {user for user, text in stored(relaxed).items() if text != sealed[user]} == changed  # fresh ones
    assert backfill.reverse(relaxed.desk, relaxed.keys) == 1


def test_also_where_the_tables_triggers_fire(relaxed: Phones) -> None:
    write_new(relaxed, NEW)
    with relaxed.admin() as connection:
        connection.execute("REVOKE SET ON PARAMETER session_replication_role FROM payme_db_migrate")
        try:
            assert reverse_all(relaxed).written == 3
        finally:
            connection.execute("GRANT SET ON PARAMETER session_replication_role TO payme_db_migrate")
    assert relaxed.plaintexts() == relaxed.decrypted()


def test_a_number_that_changes_between_read_and_write_is_not_overwritten(
    relaxed: Phones, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_new(relaxed, NEW)
    before_batch(monkeypatch, 1, lambda: write_new(relaxed, {5: "+254711000055"}))
    assert reverse_all(relaxed) == Done(rows=3, written=2, refused=1)
    assert relaxed.decrypted()[5] == "+254711000055"
    assert backfill.reverse(relaxed.desk, relaxed.keys) == 2
    assert relaxed.plaintexts() == relaxed.decrypted()


def test_what_does_not_open_is_named_when_all_others_are_written(
    relaxed: Phones, monkeypatch: pytest.MonkeyPatch
) -> None:
    small_batches(monkeypatch)
    write_new(relaxed, {**NEW, 1_900: "+254711001900"})
    with relaxed.admin() as connection:
        connection.execute(
            "UPDATE users AS u SET phone_number_encrypted = o.phone_number_encrypted FROM users AS o"
            " WHERE (u.id, o.id) IN ((10, 11), (11, 10))"
        )
        connection.execute("UPDATE users SET phone_number_encrypted = NULL WHERE id = 1500")
    with pytest.raises(Undecryptable, match=r"3 rows cannot be decrypted; .* id 10, 11, 1500\.") as named:
        reverse_all(relaxed)
    assert "+254" not in str(named.value)
    plaintexts = relaxed.plaintexts()
    assert [plaintexts[user] for user in (5, 6, 7, 1_900)] == [*NEW.values(), "+254711001900"]
    with pytest.raises(Undecryptable, match="3 rows"):  # the same pass looks again
        reverse_all(relaxed)
    write_new(relaxed, {10: "+254711000010", 11: "+254711000011", 1_500: "+254711001500"})
    assert reverse_all(relaxed).written == 3
    assert relaxed.plaintexts() == relaxed.decrypted()


def test_at_most_fifty_are_named_and_all_are_counted(relaxed: Phones) -> None:
    with relaxed.admin() as connection:
        connection.execute("UPDATE users SET phone_number_encrypted = 'v1:k1:AAAA' WHERE id <= 120")
    with pytest.raises(Undecryptable, match=r"120 rows cannot be decrypted; .* 49, 50 and more"):
        reverse_all(relaxed)


def test_a_version_that_writes_the_ciphertext_alone_keeps_it_from_an_end(relaxed: Phones) -> None:
    write_new(relaxed, NEW)
    numbers = iter(range(1_000))

    def newest_version(_line: str) -> None:
        write_new(relaxed, {5: f"+2547{60_000_000 + next(numbers)}"})

    with pytest.raises(GateClosed, match="1 rows in the last pass"):
        backfill.reverse(relaxed.desk, relaxed.keys, newest_version)


def test_ciphertexts_can_be_cleared_and_made_again(phones: Phones) -> None:
    assert encrypt_all(expanded(phones)).written == USERS
    ((low, high),) = backfill.plan_ranges(phones.desk, 1)
    assert backfill.clear_range(phones.desk, low, 500, report=quiet) == 500
    assert sum(text is None for text in stored(phones).values()) == 500
    assert backfill.clear_range(phones.desk, low, high, report=quiet) == USERS - 500
    assert encrypt_all(phones).written == USERS  # the same pass, for its ciphertexts are gone
    assert phones.decrypted() == phones.plaintexts()


def test_ciphertexts_that_may_be_all_there_is_are_not_cleared(relaxed: Phones) -> None:
    state.ensure(relaxed.desk)
    with relaxed.admin() as connection:
        values = [state.subject(relaxed.names), True, "[]"]
        connection.execute("INSERT INTO payme_migration.relaxed VALUES (%s, %s, %s)", values)
    with pytest.raises(UnexpectedSchema, match="not yet relaxed"):
        backfill.clear_range(relaxed.desk, 0, USERS)
    assert None not in stored(relaxed).values()
