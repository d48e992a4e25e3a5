"""Step 1 on a live table: done, undone and done again; nobody waits, nothing is rewritten, no ciphertext goes stale."""

import threading

import psycopg
import pytest
from tenacity import wait_none

from payme_ops.foundation import lease
from payme_ops.foundation.errors import LeaseHeld, LockBudgetSpent, PaymeOpsError, UnexpectedSchema
from payme_ops.foundation.evidence import Verdict
from payme_ops.migration import envelope
from payme_ops.migration.ddl import with_lock_budget
from payme_ops.migration.expand import checks_after_expand, checks_before_expand, do_expand, undo_expand
from payme_ops.migration.shape import Stage
from tests.support.installation import quiet
from tests.support.phones import Phones, expanded
from tests.support.steps import Canary, cut_until_done, shape, verdicts, with_budget
from tests.support.waiting import eventually


def file_of(phones: Phones) -> int:
    with phones.admin() as connection:
        row = connection.execute("SELECT pg_relation_filenode('users')").fetchone()
    assert row
    return int(row[0])


def test_done_again_undone_and_done_again(each_phones: Phones) -> None:
    phones, desk = each_phones, each_phones.desk
    before, file = shape(phones), file_of(phones)
    assert before.stage == Stage.START
    assert set(verdicts(checks_before_expand(desk)).values()) == {Verdict.PASS}
    assert verdicts(checks_after_expand(desk)) == {"expanded": Verdict.FAIL}
    assert do_expand(desk, quiet) == {"changed": True}
    after = shape(phones)
    assert after.stage == Stage.EXPANDED
    assert after.format_check == "not valid"
    assert after.index is None  # it would cost the backfill its cheap updates
    assert verdicts(checks_after_expand(desk)) == {"expanded": Verdict.PASS}
    assert do_expand(desk, quiet) == {"changed": False}
    assert undo_expand(desk, quiet) == {"changed": True}
    assert shape(phones) == before
    assert undo_expand(desk, quiet) == {"changed": False}
    assert do_expand(desk, quiet) == {"changed": True}
    assert shape(phones) == after
    assert file_of(phones) == file  # no row was written anew


def test_what_it_makes_is_the_owners_and_of_types_that_nothing_overflows(each_phones: Phones) -> None:
    do_expand(each_phones.desk, quiet)
    with each_phones.admin() as connection:
        types = dict(
            connection.execute(
                "SELECT attname, atttypid::regtype::text FROM pg_attribute"
                " WHERE attrelid = 'users'::regclass AND attname LIKE 'phone_number_%'"
            ).fetchall()
        )
        owners = connection.execute(
            "SELECT proowner::regrole::text FROM pg_proc WHERE proname = 'users_phone_number_stale'"
            " UNION SELECT nspowner::regrole::text FROM pg_namespace WHERE nspname = 'payme_migration'"
        ).fetchall()
        long = "7" * 10_000  # a varchar(255) is full at 159 characters
        stored = envelope.encrypt(each_phones.keys, each_phones.names.associated_data(1), long)
        connection.execute("UPDATE users SET phone_number_encrypted = %s WHERE id = 1", [stored])
    assert types == {"phone_number_encrypted": "text", "phone_number_bidx": "bytea"}
    assert owners == [("payme_owner",)]
    assert each_phones.decrypted()[1] == long


def test_a_write_of_the_plaintext_alone_takes_the_stale_ciphertext_away(each_phones: Phones) -> None:
    phones = each_phones
    do_expand(phones.desk, quiet)
    keys, names = phones.keys, phones.names
    with phones.app() as old, phones.app("payme-api/2.5.0") as new:

        def both(phone: str) -> None:
            new.execute(
                "UPDATE users SET phone_number = %s, phone_number_encrypted = %s, phone_number_bidx = %s WHERE id = 1",
                [phone, envelope.encrypt(keys, names.associated_data(1), phone), envelope.blind_index(keys, phone)],
            )

        def stored() -> tuple[str | None, bytes | None]:
            row = new.execute("SELECT phone_number_encrypted, phone_number_bidx FROM users WHERE id = 1").fetchone()
            assert row
            return row

        both("+254700000001")
        assert phones.decrypted()[1] == "+254700000001"
        both("+254700000002")
        assert phones.decrypted()[1] == "+254700000002"
        old.execute("UPDATE users SET full_name = 'x', phone_number = phone_number WHERE id = 1")
        assert phones.decrypted()[1] == "+254700000002"  # nothing changed
        old.execute("UPDATE users SET phone_number = '+254700000003' WHERE id = 1")
        assert stored() == (None, None)


def test_a_plaintext_in_the_ciphertexts_column_is_refused(each_phones: Phones) -> None:
    do_expand(each_phones.desk, quiet)
    with each_phones.app() as app:
        for wrong in ("+254700000001", "", "v1", "x:y"):
            with pytest.raises(psycopg.errors.CheckViolation) as refused:
                app.execute("UPDATE users SET phone_number_encrypted = %s WHERE id = 1", [wrong])
            assert refused.value.diag.constraint_name == "users_phone_number_format"


def test_behind_a_long_reader_nobody_waits_and_the_budget_ends_without_a_trace(each_phones: Phones) -> None:
    phones, desk = each_phones, with_budget(each_phones.desk, 3)
    before = shape(phones)
    with phones.app("reports/nightly") as reader, Canary(phones).running() as canary:
        with reader.transaction():
            reader.execute("SELECT count(*) FROM users")
            with pytest.raises(LockBudgetSpent, match=r"held by reports/nightly \(pid \d+, for \d+ s\)") as spent:
                do_expand(desk, quiet)
            assert lease.peek(desk.ops, f"ddl:{desk.database}") is None
            assert shape(phones) == before
        assert do_expand(desk, quiet) == {"changed": True}
    assert canary.failed == []
    assert canary.slowest < 0.3, f"{canary.slowest:.3f} s behind the change"
    assert canary.reads > 100
    assert "SELECT" not in str(spent.value)


def test_the_lock_is_taken_as_soon_as_the_reader_ends(each_phones: Phones) -> None:
    phones, done = each_phones, list[bool]()
    with phones.app() as reader:
        with reader.transaction():
            reader.execute("SELECT count(*) FROM users")
            thread = threading.Thread(target=lambda: done.append(do_expand(phones.desk, quiet)["changed"]))
            thread.start()
            with phones.admin() as connection:
                query = (
                    "SELECT FROM pg_locks JOIN pg_stat_activity USING (pid)"
                    " WHERE NOT granted AND application_name = 'payme_ops:migration:expand'"
                )
                eventually(lambda: connection.execute(query).rowcount, "the change to stand in line")
                eventually(lambda: not connection.execute(query).rowcount, "it to give way")
        thread.join()
    assert done == [True]


def test_a_vacuum_is_waited_for_without_anybody_behind_us(phones: Phones) -> None:
    """It holds SHARE UPDATE EXCLUSIVE, as an autovacuum does for as long as it runs; lock_timeout of 0.2 s would never
    get in before the next one."""
    desk, done = with_budget(phones.desk, 5), list[bool]()
    with phones.admin() as vacuum, Canary(phones).running() as canary:
        with vacuum.transaction():
            vacuum.execute("LOCK TABLE users IN SHARE UPDATE EXCLUSIVE MODE")
            thread = threading.Thread(target=lambda: done.append(do_expand(desk, quiet)["changed"]))
            thread.start()
            query = "SELECT FROM pg_locks WHERE NOT granted AND mode = 'ShareUpdateExclusiveLock'"
            with phones.admin() as connection:
                eventually(lambda: connection.execute(query).rowcount, "the change to stand in line")
            reads = canary.reads
            eventually(lambda: canary.reads > reads + 80, "the canary, which reads on")
        thread.join()
    assert done == [True]
    assert canary.slowest < 0.3


def test_the_lease_is_held_for_each_try_and_not_between(phones: Phones) -> None:
    """Seen from inside a try, and from the wait between two."""
    desk, name, seen = phones.desk, f"ddl:{phones.desk.database}", list[bool]()

    def work(_connection: psycopg.Connection) -> None:
        seen.append(lease.peek(desk.ops, name) is not None)
        if len(seen) < 5:
            raise psycopg.errors.LockNotAvailable

    class Look(wait_none):
        def __call__(self, _state: object) -> float:
            seen.append(lease.peek(desk.ops, name) is not None)
            return 0

    def held_by_another(_connection: psycopg.Connection) -> None:
        raise AssertionError("it was not ours to do")

    with_lock_budget(desk, "test", work, wait=Look())
    assert seen == [True, False, True, False, True]
    with lease.hold(desk.ops, name, "a restore"), pytest.raises(LeaseHeld, match="a restore"):
        with_lock_budget(with_budget(desk, 1), "test", held_by_another)


def test_a_process_that_stands_still_with_the_lock_loses_it(phones: Phones) -> None:
    def work(connection: psycopg.Connection) -> None:
        connection.execute("LOCK TABLE users IN ACCESS EXCLUSIVE MODE")
        with phones.app() as app:  # waits for us, and we for it, in this process
            app.execute("SELECT id FROM users WHERE id = 1")

    with pytest.raises(PaymeOpsError, match="idle-in-transaction"):
        with_lock_budget(phones.desk, "test", work)


def test_somebody_elses_column_of_the_name_is_refused(each_phones: Phones) -> None:
    with each_phones.admin() as connection:
        connection.execute("ALTER TABLE users ADD COLUMN phone_number_encrypted varchar(255)")
    for step in (do_expand, undo_expand):
        with pytest.raises(UnexpectedSchema, match="found phone_number_encrypted"):
            step(each_phones.desk, quiet)


def test_who_has_rights_on_the_column_alone_gets_them_on_the_new_ones(each_phones: Phones) -> None:
    with each_phones.admin() as connection:
        connection.execute("GRANT SELECT (id, phone_number), UPDATE (phone_number) ON users TO payme_reporting")
        do_expand(each_phones.desk, quiet)
        rows = connection.execute(
            "SELECT attname, attacl::text FROM pg_attribute WHERE attrelid = 'users'::regclass AND attacl IS NOT NULL"
        ).fetchall()
    assert dict(rows) == {
        "id": "{payme_reporting=r/payme_owner}",
        "phone_number": "{payme_reporting=rw/payme_owner}",
        "phone_number_encrypted": "{payme_reporting=rw/payme_owner}",
        "phone_number_bidx": "{payme_reporting=rw/payme_owner}",
    }


@pytest.mark.parametrize(
    ("given", "item", "verdict"),
    [
        ("ALTER TABLE users DROP CONSTRAINT users_pkey CASCADE", "expand_table", Verdict.FAIL),
        ("CREATE VIEW users_base AS SELECT 1", "expand_table", Verdict.FAIL),
        ("CREATE TABLE more () INHERITS (users)", "expand_table", Verdict.FAIL),
        (
            "ALTER SCHEMA public OWNER TO postgres; REVOKE CREATE ON SCHEMA public FROM payme_owner",
            "expand_rights",
            Verdict.FAIL,
        ),
        ("CREATE PUBLICATION out FOR TABLE users", "expand_publications", Verdict.INCONCLUSIVE),
    ],
)
def test_what_is_not_as_it_must_be_is_seen_before(phones: Phones, given: str, item: str, verdict: Verdict) -> None:
    with phones.admin() as connection:
        connection.execute(given)
    found = verdicts(checks_before_expand(phones.desk))
    assert {name: one for name, one in found.items() if one is not Verdict.PASS} == {item: verdict}


def test_cut_before_any_statement_it_is_whole_or_not_there(phones: Phones, monkeypatch: pytest.MonkeyPatch) -> None:
    before = shape(phones)
    assert cut_until_done(monkeypatch, lambda: do_expand(phones.desk, quiet)) > 8
    assert shape(phones).stage == Stage.EXPANDED
    assert cut_until_done(monkeypatch, lambda: undo_expand(phones.desk, quiet)) > 8
    assert shape(phones) == before


def test_a_column_that_has_been_expanded_by_hand_counts(phones: Phones) -> None:
    expanded(phones)
    assert do_expand(phones.desk, quiet) == {"changed": False}
