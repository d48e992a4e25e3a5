"""Step 3's end: the index comes whole or not at all, and from the checks on no number is without its ciphertext."""

import threading

import psycopg
import pytest

from payme_ops.foundation.errors import DatabaseUnavailable, GateClosed, UnexpectedSchema
from payme_ops.foundation.evidence import Verdict
from payme_ops.migration import ddl, finish
from payme_ops.migration.expand import do_expand
from payme_ops.migration.finish import checks_after_finish, checks_before_finish, do_finish, undo_finish
from payme_ops.migration.shape import Stage
from tests.support.installation import quiet
from tests.support.phones import Phones, encrypted, expanded, fill
from tests.support.steps import Canary, cut_until_done, examine, shape, verdicts
from tests.support.waiting import eventually

INDEX = "users_phone_number_bidx_idx"


def indexes(phones: Phones) -> dict[str, tuple[bool, bool]]:
    """(valid, unique) of every index of users."""
    with phones.admin() as connection:
        rows = connection.execute(
            "SELECT relname, indisvalid AND indisready, indisunique FROM pg_index"
            " JOIN pg_class ON pg_class.oid = indexrelid WHERE indrelid = 'users'::regclass"
        ).fetchall()
    return {name: (valid, unique) for name, valid, unique in rows}


def share_a_number(phones: Phones) -> tuple[int, int]:
    """Two users whose number is written in two ways, which the plaintext's own UNIQUE does not see; their ids."""
    with phones.admin() as connection:
        connection.execute("ALTER TABLE users DROP CONSTRAINT users_phone_number_is_e164")
        return phones.add(connection, "+254711222333"), phones.add(connection, "0711 222 333")


def test_done_again_undone_and_done_again(each_phones: Phones) -> None:
    phones, desk = encrypted(each_phones), each_phones.desk
    before = shape(phones)
    assert set(verdicts(checks_before_finish(desk)).values()) == {Verdict.PASS}
    assert verdicts(checks_after_finish(desk)) == {"finished": Verdict.FAIL}
    assert do_finish(desk, quiet) == {"changed": True, "unique": True}
    after = shape(phones)
    assert (after.stage, after.index, after.unique_index) == (Stage.BACKFILLED, "valid", True)
    assert (after.format_check, after.complete_check) == ("valid", "valid")
    assert verdicts(checks_after_finish(desk)) == {"finished": Verdict.PASS}
    assert do_finish(desk, quiet) == {"changed": False}
    assert undo_finish(desk, quiet) == {"changed": True}
    assert shape(phones) == before
    assert undo_finish(desk, quiet) == {"changed": False}
    assert do_finish(desk, quiet) == {"changed": True, "unique": True}
    assert shape(phones) == after


def test_while_the_index_is_built_the_application_reads_on(each_phones: Phones) -> None:
    with Canary(encrypted(each_phones)).running() as canary:
        do_finish(each_phones.desk, quiet)
        undo_finish(each_phones.desk, quiet)
    assert canary.failed == []
    assert canary.slowest < 0.3


def test_from_then_on_no_number_goes_without_its_ciphertext(each_phones: Phones) -> None:
    phones = expanded(each_phones)
    odd = phones.allow_odd()
    with phones.admin() as connection:  # an index over normalised numbers takes it for the empty one
        connection.execute("DELETE FROM users WHERE phone_number = ' '")
    fill(phones)
    do_finish(phones.desk, quiet)
    empty = next(key for key, phone in odd.items() if phone == "")
    nothing = next(key for key, phone in odd.items() if phone is None)
    assert phones.decrypted()[empty] == ""  # as it was, to the byte
    assert phones.decrypted()[nothing] is None
    with phones.app() as old:
        for phone in ("+254700000001", ""):
            with pytest.raises(psycopg.errors.CheckViolation) as refused:
                phones.add(old, phone)
            assert refused.value.diag.constraint_name == "users_phone_number_complete"
        with pytest.raises(psycopg.errors.CheckViolation):  # by way of the trigger, which stays
            old.execute("UPDATE users SET phone_number = '+254700000001' WHERE id = 1")
        assert phones.add(old, None)
        old.execute("UPDATE users SET full_name = 'x' WHERE id = ANY(%s)", [[1, empty, nothing]])
        old.execute("UPDATE users SET phone_number = NULL WHERE id = 1")


def test_an_index_that_was_left_invalid_is_dropped_and_built_again(each_phones: Phones) -> None:
    phones = encrypted(each_phones)
    with phones.admin() as connection:  # as a failed CREATE INDEX CONCURRENTLY leaves it, and IF NOT EXISTS takes it
        connection.execute(f"CREATE UNIQUE INDEX {INDEX} ON users (phone_number_bidx)")
        connection.execute("UPDATE pg_index SET indisvalid = false WHERE indexrelid = %s::regclass", [INDEX])
    assert shape(phones).index == "invalid"
    said = list[str]()
    do_finish(phones.desk, said.append)
    assert indexes(phones)[INDEX] == (True, True)
    assert [line for line in said if "which an earlier try left invalid" in line]


def test_a_number_written_in_two_ways_stops_a_unique_index_by_their_ids(each_phones: Phones) -> None:
    phones = expanded(each_phones)
    pair = share_a_number(phones)
    fill(phones)
    before = indexes(phones)
    found = examine(checks_before_finish(phones.desk))["finish_duplicates"]
    assert (found.verdict, found.measured["ids"]) == (Verdict.FAIL, [list(pair)])
    with pytest.raises(GateClosed, match=rf"ids {pair[0]} and {pair[1]}\.") as closed:
        do_finish(phones.desk, quiet)
    assert "711222333" not in str(closed.value)
    assert indexes(phones) == before  # none that is invalid and refuses writes all the same


def test_a_duplicate_that_comes_while_the_index_is_built_leaves_nothing_invalid(
    phones: Phones, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The look before finds nothing; the build does."""
    expanded(phones)
    pair = share_a_number(phones)
    fill(phones)
    before, original, looks = indexes(phones), finish.duplicates, list[str]()

    def blind_at_first(_desk: object, column: str) -> object:
        looks.append(column)
        return original(phones.desk, column) if len(looks) > 1 else (0, [])

    monkeypatch.setattr(finish, "duplicates", blind_at_first)
    with pytest.raises(GateClosed, match=rf"ids {pair[0]} and {pair[1]}"):
        do_finish(phones.desk, quiet)
    assert indexes(phones) == before


def test_where_the_plaintext_is_not_unique_the_index_is_not(each_phones: Phones) -> None:
    phones = each_phones
    with phones.admin() as connection:
        connection.execute("ALTER TABLE users DROP CONSTRAINT users_phone_number_key")
        connection.execute("UPDATE users SET phone_number = '+254700000001' WHERE id <= 2")
    encrypted(phones)
    assert set(verdicts(checks_before_finish(phones.desk)).values()) == {Verdict.PASS}
    assert do_finish(phones.desk, quiet) == {"changed": True, "unique": False}
    assert indexes(phones)[INDEX] == (True, False)


def test_a_row_without_its_ciphertext_stops_it_before_anything_is_made(each_phones: Phones) -> None:
    phones = encrypted(each_phones)
    with phones.app() as old:
        late = phones.add(old, "+254700000001")
    before = shape(phones)
    found = examine(checks_before_finish(phones.desk))["finish_missing"]
    assert (found.verdict, found.measured) == (Verdict.FAIL, {"rows": 1, "ids": [late]})
    with pytest.raises(GateClosed, match=rf"rows lack their ciphertext; expected none; found 1, ids {late}\."):
        do_finish(phones.desk, quiet)
    assert shape(phones) == before


def test_a_row_that_comes_between_look_and_check_is_let_go_again(
    phones: Phones, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A version of the application that the fleet gate did not see: with the check in place its row could not even be
    updated, so the check is taken back."""
    encrypted(phones)
    late = list[int]()

    def validate(_desk: object, check: str) -> None:
        if not late:
            with phones.app() as old:
                late.append(phones.add(old, "+254700000001"))
        ddl.validate(phones.desk, check)

    monkeypatch.setattr(finish, "validate", validate)
    with pytest.raises(GateClosed, match="rows lack their ciphertext") as closed:
        do_finish(phones.desk, quiet)
    assert closed.value.found == f"1, ids {late[0]}"
    assert shape(phones).complete_check is None
    with phones.app() as old:
        old.execute("UPDATE users SET full_name = 'x' WHERE id = %s", late)


def test_ended_in_the_middle_of_the_index_the_next_run_builds_it(each_phones: Phones) -> None:
    phones, failed = encrypted(each_phones), list[DatabaseUnavailable]()

    def run() -> None:
        try:
            do_finish(phones.desk, quiet)
        except DatabaseUnavailable as error:
            failed.append(error)

    with phones.admin() as connection, phones.app() as older, older.transaction():
        older.execute("INSERT INTO rate_limits VALUES ('x', now())")  # what the build waits for in its middle
        older.execute("UPDATE users SET full_name = 'x' WHERE id = 1")
        thread = threading.Thread(target=run)
        thread.start()
        query = (
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
            " WHERE query LIKE '%%CREATE UNIQUE INDEX CONCURRENTLY%%' AND wait_event_type = 'Lock' AND datname = %s"
        )
        eventually(lambda: connection.execute(query, [phones.name]).rowcount, "the build to wait")
        thread.join()
    assert len(failed) == 1
    assert indexes(phones)[INDEX] == (False, True)
    assert do_finish(phones.desk, quiet) == {"changed": True, "unique": True}
    assert indexes(phones)[INDEX] == (True, True)


def test_cut_before_any_statement_it_can_be_run_again(phones: Phones, monkeypatch: pytest.MonkeyPatch) -> None:
    encrypted(phones)
    before = shape(phones)
    assert cut_until_done(monkeypatch, lambda: do_finish(phones.desk, quiet)) > 10
    assert shape(phones).stage == Stage.BACKFILLED
    assert cut_until_done(monkeypatch, lambda: undo_finish(phones.desk, quiet)) > 10
    assert shape(phones) == before


def test_before_the_first_step_there_is_nothing_to_finish(phones: Phones) -> None:
    with pytest.raises(UnexpectedSchema, match="expected expanded or later; found as it was"):
        do_finish(phones.desk, quiet)
    assert do_expand(phones.desk, quiet)["changed"]
