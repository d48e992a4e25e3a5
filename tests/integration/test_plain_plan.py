"""Faults of the plain plan that no other test shows to be absent; docs/plain-plan-faults.md has all sixteen."""

import statistics
import time
from typing import Any

import psycopg
import pytest
from psycopg.conninfo import make_conninfo

from payme_ops.migration import backfill, envelope
from payme_ops.migration.expand import do_expand, undo_expand
from payme_ops.migration.finish import do_finish, undo_finish
from payme_ops.migration.shape import Stage
from payme_ops.migration.switch import do_brown_out, do_end_shim, do_relax, do_switch, undo_relax
from tests.support.backfills import encrypt_all
from tests.support.installation import quiet
from tests.support.phones import Phones, fill
from tests.support.standby import streaming
from tests.support.steps import Canary, shape
from tests.support.waiting import eventually

USERS = 2_000
INDEX = "users_phone_number_bidx_idx"


def sealed(phones: Phones, user: int, phone: str) -> tuple[str, bytes]:
    keys, names = phones.keys, phones.names
    return envelope.encrypt(keys, names.associated_data(user), phone), envelope.blind_index(keys, phone)


def test_a_number_is_found_by_the_index_and_given_once_however_it_is_written(phones: Phones) -> None:
    """Fault 6. Two ciphertexts of one number differ, so neither a lookup nor UNIQUE can use them."""
    do_expand(phones.desk, quiet)
    do_finish(fill(phones).desk, quiet)
    phone = phones.plaintexts()[7] or ""
    spelt = f"0{phone.removeprefix('+254')}"
    assert sealed(phones, 7, phone)[0] != sealed(phones, 7, phone)[0]
    with phones.app("payme-api/2.6.0") as app:
        index = envelope.blind_index(phones.keys, spelt)
        find = "SELECT id FROM users WHERE phone_number_bidx = %s"
        assert app.execute(find, [index]).fetchall() == [(7,)]
        plan = app.execute(f"EXPLAIN {find}", [index]).fetchall()
        assert any(INDEX in line for (line,) in plan), plan
        with pytest.raises(psycopg.errors.UniqueViolation) as refused:
            app.execute(
                "INSERT INTO users (id, public_id, phone_number, phone_number_encrypted, phone_number_bidx, full_name)"
                " VALUES (9999, gen_random_uuid(), '+254799000009', %s, %s, 'Test')",
                sealed(phones, 9999, spelt),
            )
    assert refused.value.diag.constraint_name == INDEX


def updates(phones: Phones) -> tuple[int, int]:
    """Of users: all, and those that touched no index (heap-only tuples)."""
    with phones.admin() as admin:
        row = admin.execute(
            "SELECT n_tup_upd, n_tup_hot_upd FROM pg_stat_user_tables WHERE relname = 'users'"
        ).fetchone()
    return row or (0, 0)


@pytest.mark.parametrize("planted", [False, True])
def test_the_backfill_touches_no_index_since_its_own_comes_after_it(each_phones: Phones, planted: bool) -> None:
    """Fault 7. With an index on what it writes, every row of the backfill costs an entry in each index."""
    phones = each_phones
    do_expand(phones.desk, quiet)
    assert shape(phones).index is None
    with phones.admin() as admin:
        admin.execute("ALTER TABLE users SET (fillfactor = 50)")  # room for the new versions in their pages
        admin.execute("VACUUM FULL users")
        if planted:
            admin.execute("CREATE INDEX planted ON users (phone_number_bidx)")
    before = updates(phones)
    assert encrypt_all(phones).written == USERS
    eventually(lambda: updates(phones)[0] >= before[0] + USERS, "the server's counters")
    in_page = updates(phones)[1] - before[1]
    assert (in_page == 0) if planted else (in_page > USERS / 2), in_page
    do_finish(phones.desk, quiet)
    assert shape(phones).index == "valid"


def test_where_a_row_costs_much_the_batches_come_to_be_short(phones: Phones, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fault 13. Whoever wants a row of a batch waits for its end."""
    do_expand(phones.desk, quiet)
    with phones.admin() as admin:
        admin.execute(
            "CREATE FUNCTION slow() RETURNS trigger LANGUAGE plpgsql AS"
            " $$ BEGIN PERFORM count(*) FROM generate_series(1, 2000); RETURN NEW; END $$;"
            "CREATE TRIGGER slow BEFORE UPDATE ON users FOR EACH ROW EXECUTE FUNCTION slow();"
            "ALTER TABLE users ENABLE ALWAYS TRIGGER slow"
        )
    monkeypatch.setattr(backfill, "FIRST_SIZE", 400)  # of 2,000 rows, so that there are several batches
    took, original = list[float](), backfill._write

    def timed(*arguments: Any) -> None:
        began = time.monotonic()
        original(*arguments)
        took.append(time.monotonic() - began)

    monkeypatch.setattr(backfill, "_write", timed)
    assert encrypt_all(phones).written == USERS
    assert statistics.median(took[4:]) < min(took[0] / 2, 0.1), took


def test_readers_of_a_standby_do_not_notice_what_it_replays(phones: Phones) -> None:
    """Fault 12. It holds each exclusive lock of a change, too, for as long as the change did."""
    with streaming(phones.site) as standby:
        there = make_conninfo(phones.conninfo("payme_app"), port=standby.port)
        with Canary(phones, there).running() as canary, psycopg.connect(there, autocommit=True) as reader:
            do_expand(phones.desk, quiet)
            fill(phones)
            for step in (do_finish, do_relax, do_brown_out, do_switch, do_end_shim):
                step(phones.desk, quiet)
            with phones.admin() as admin:
                (end,) = admin.execute("SELECT pg_current_wal_lsn()").fetchone() or (None,)
            replayed = lambda: reader.execute("SELECT pg_last_wal_replay_lsn() >= %s", [end]).fetchone() == (True,)  # noqa: E731
            eventually(replayed, "the standby to replay all of it")
    assert canary.failed == []
    assert canary.slowest < 0.3


def test_undone_what_was_written_meanwhile_is_kept(phones: Phones) -> None:
    """Fault 15. A restore of the backup from before would take the user, the new number and the payment away."""
    before = phones.plaintexts()
    do_expand(phones.desk, quiet)
    encrypt_all(phones)
    for step in (do_finish, do_relax):
        step(phones.desk, quiet)
    new = {5: "+254711000005", 9999: "+254711009999"}
    with phones.app("payme-api/2.7.0") as app:  # which names no plaintext
        app.execute(
            "UPDATE users SET phone_number_encrypted = %s, phone_number_bidx = %s WHERE id = 5",
            sealed(phones, 5, new[5]),
        )
        app.execute(
            "INSERT INTO users (id, public_id, phone_number_encrypted, phone_number_bidx, full_name)"
            " VALUES (9999, gen_random_uuid(), %s, %s, 'Test')",
            sealed(phones, 9999, new[9999]),
        )
        app.execute(
            "INSERT INTO transactions (user_id, merchant_id, kind, status, amount)"
            " VALUES (9999, 1, 'payment', 'pending', 77)"
        )
    assert backfill.reverse(phones.desk, phones.keys) == 2
    for undo in (undo_relax, undo_finish, undo_expand):
        undo(phones.desk, quiet)
    assert shape(phones).stage is Stage.START
    assert phones.plaintexts() == {**before, **new}
    with phones.app() as old:
        paid = old.execute("SELECT amount FROM transactions WHERE user_id = 9999").fetchall()
        assert paid == [(77,)]
