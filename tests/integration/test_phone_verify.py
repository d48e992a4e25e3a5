"""Every row is decrypted and compared: whatever is wrong with one turns the gate red, by id, and shows no number."""

import hmac
import os
import re
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg import sql

from payme_ops.foundation.errors import (
    DatabaseError,
    DatabaseUnavailable,
    GateClosed,
    IntegrityError,
    NotFound,
    PaymeOpsError,
    Unavailable,
    UnexpectedSchema,
)
from payme_ops.foundation.evidence import Verdict, run_check
from payme_ops.migration import dual_write, envelope, expand, finish, readers, rewrap, shared, switch, verify
from payme_ops.migration.envelope import Keys
from payme_ops.migration.judge import Fault, Kind, judge
from payme_ops.migration.names import PHONE_NUMBER as NAMES
from payme_ops.migration.verify import Verified
from sandbox.payme_db.generate import phone_number
from sandbox.postgres import PROJECT
from tests.support.installation import quiet
from tests.support.phones import Phones, encrypted, expanded, fill
from tests.support.waiting import eventually

OTHER_PHONE = "+254733444555"
NUMBERS = {phone.removeprefix("+") for phone in (OTHER_PHONE, *map(phone_number, range(1, 2001)))}
UNBOUND = b"user_new.phone_number"


def verified(phones: Phones, workers: int = 1) -> Verified:
    said: list[str] = []
    found = verify.verify(phones.desk, phones.keys, workers=workers, report=said.append)
    assert_silent(found, verify.finding(found), said)
    return found


def assert_silent(*shown: object) -> None:
    """No number of anybody is in it, with or without its plus sign."""
    text = repr(shown)
    assert not [number for number in NUMBERS if number in text]


@pytest.fixture
def filled(phones: Phones, monkeypatch: pytest.MonkeyPatch) -> Phones:
    """Every user encrypted; ranges of 300 rows, so that there are several."""
    monkeypatch.setattr(verify, "RANGE_ROWS", 300)
    return encrypted(phones)


def write(phones: Phones, key: int, **columns: Any) -> None:
    """Set columns of a user behind the back of trigger and check."""
    assignments = sql.SQL(", ").join(sql.SQL("{} = %s").format(sql.Identifier(column)) for column in columns)
    with phones.admin() as connection:
        connection.execute("SET session_replication_role = replica")
        connection.execute(sql.SQL("UPDATE users SET {} WHERE id = %s").format(assignments), [*columns.values(), key])


def stored(phones: Phones, key: int) -> dict[str, Any]:
    with phones.admin() as connection:
        row = connection.execute(
            "SELECT phone_number, phone_number_encrypted, phone_number_bidx FROM users WHERE id = %s", [key]
        ).fetchone()
    assert row is not None
    return dict(zip(("phone_number", "phone_number_encrypted", "phone_number_bidx"), row, strict=True))


def seal(keys: Keys, key: int, phone: str, *, bound_to: bytes | None = None) -> dict[str, Any]:
    return {
        "phone_number_encrypted": envelope.encrypt(keys, bound_to or NAMES.associated_data(key), phone),
        "phone_number_bidx": envelope.blind_index(keys, phone),
    }


def other_keys(secret: bytes | None = None, key_id: str = "k1") -> Keys:
    return envelope.derive(secret or os.urandom(32), key_id=key_id, names=NAMES)


# What is planted: from a row's key, what it holds and the application's keys to what is written, and its name.
Plant = Callable[[int, dict[str, Any], Keys], dict[str, Any]]
PLANTED: tuple[tuple[Plant, Kind], ...] = (
    (lambda _key, row, _: {"phone_number_encrypted": flipped(row["phone_number_encrypted"])}, Kind.UNDECRYPTABLE),
    (lambda *_: {"phone_number_encrypted": None, "phone_number_bidx": None}, Kind.MISSING),
    (lambda *_: {"phone_number": OTHER_PHONE}, Kind.STALE),
    (lambda key, _, keys: seal(keys, key, "+254733444556"), Kind.STALE),
    (lambda key, row, _: seal(other_keys(), key, row["phone_number"]), Kind.UNDECRYPTABLE),
    (lambda key, row, keys: seal(other_keys(keys.secret, "k9"), key, row["phone_number"]), Kind.UNDECRYPTABLE),
    (lambda key, row, keys: seal(keys, key, row["phone_number"], bound_to=UNBOUND), Kind.UNBOUND),
    (lambda key, row, keys: seal(keys, key + 1, row["phone_number"]), Kind.UNDECRYPTABLE),
    (lambda *_: {"phone_number_bidx": os.urandom(32)}, Kind.WRONG_INDEX),
    (lambda *_: {"phone_number_bidx": None}, Kind.WRONG_INDEX),
    (
        lambda _, row, keys: {"phone_number_bidx": hmac.digest(keys.secret, row["phone_number"].encode(), "sha256")},
        Kind.INDEX_KEY_REUSED,
    ),
    (lambda *_: {"phone_number_encrypted": "v1:k1:not base64"}, Kind.MALFORMED),
    (lambda _, row, __: {"phone_number_encrypted": f"v1:{row['phone_number']}"}, Kind.MALFORMED),
)


def planted(phones: Phones) -> dict[int, dict[str, Any]]:
    """Plant all of them; what these rows held before."""
    whole = {}
    for key, (plant, _) in enumerate(PLANTED, 299):  # over the border of two ranges
        whole[key] = stored(phones, key)
        write(phones, key, **plant(key, whole[key], phones.keys))
    return whole


def flipped(text: str) -> str:
    """One letter changed, in the middle."""
    at = len(text) // 2
    return text[:at] + ("A" if text[at] != "A" else "B") + text[at + 1 :]


def test_wrong_rows_are_red_and_named_whatever_is_wrong_with_them(filled: Phones) -> None:
    before = verified(filled)
    assert verify.finding(before).verdict is Verdict.PASS
    assert (before.rows, before.with_number, before.kinds, before.faults) == (2000, 2000, {}, [])
    whole = planted(filled)
    found = verified(filled)
    assert found.faults == [Fault(key, kind) for key, (_, kind) in enumerate(PLANTED, 299)]
    assert found.kinds == Counter(kind for _, kind in PLANTED)
    finding = verify.finding(found)
    assert finding.verdict is Verdict.FAIL
    assert finding.measured["first"] == [f"{fault.id} {fault.kind}" for fault in found.faults]
    assert all(kind in finding.remedy for _, kind in PLANTED)
    for key, row in list(whole.items())[1:]:
        write(filled, key, **row)
    assert verified(filled).faults == [Fault(299, Kind.UNDECRYPTABLE)]  # one is enough
    write(filled, 299, **whole[299])
    assert verified(filled).digest == before.digest


def test_two_swapped_ciphertexts_are_both_named(filled: Phones) -> None:
    seven, eight = stored(filled, 7), stored(filled, 8)
    with filled.admin() as connection:
        connection.execute("ALTER TABLE users DISABLE TRIGGER users_phone_number_stale")
    for column in ("phone_number_encrypted", "phone_number_bidx"):
        write(filled, 7, **{column: eight[column]})
        write(filled, 8, **{column: seven[column]})
        found = verified(filled)
        assert [fault.id for fault in found.faults] == [7, 8]
        assert set(found.kinds) == {Kind.UNDECRYPTABLE}


def test_null_empty_and_odd_texts_come_through_exactly(phones: Phones) -> None:
    added = phones.allow_odd()
    encrypted(phones)
    found = verified(phones)
    assert (found.kinds, found.rows, found.with_number) == ({}, 2000 + len(added), 2000 + len(added) - 1)
    by_text = {text: key for key, text in added.items()}
    null, empty = by_text[None], by_text[""]
    write(phones, null, **seal(phones.keys, null, ""))  # NULL became ''
    write(phones, empty, phone_number_encrypted=None, phone_number_bidx=None)  # '' became NULL
    write(phones, by_text["é"], **seal(phones.keys, by_text["é"], "e\u0301"))  # the same to a reader
    assert verified(phones).kinds == {Kind.SURPLUS: 1, Kind.MISSING: 1, Kind.STALE: 1}


def test_all_faults_are_counted_and_the_first_fifty_named(filled: Phones) -> None:
    with filled.admin() as connection:
        connection.execute("UPDATE users SET phone_number_bidx = sha256(phone_number_bidx) WHERE id % 2 = 0")
    found = verified(filled, workers=2)
    assert found.kinds == {Kind.WRONG_INDEX: 1000}
    assert [fault.id for fault in found.faults] == list(range(2, 102, 2))


def test_equal_numbers_have_equal_digests_however_many_readers_and_whatever_the_ciphertexts(filled: Phones) -> None:
    one = verified(filled, workers=1)
    write(filled, 5, **seal(filled.keys, 5, stored(filled, 5)["phone_number"]))
    assert verified(filled, workers=3).digest == one.digest
    write(filled, 5, phone_number=OTHER_PHONE, **seal(filled.keys, 5, OTHER_PHONE))
    changed = verified(filled)
    assert changed.kinds == {}
    assert changed.digest != one.digest


def test_after_the_switch_the_digest_is_still_that_of_the_numbers(filled: Phones) -> None:
    before = verified(filled)
    with filled.admin() as connection:
        for statement in SWITCH:
            connection.execute(statement)
            found = verified(filled)
            assert (found.kinds, found.digest, found.with_number) == ({}, before.digest, 2000)
    with filled.admin() as connection:
        connection.execute("UPDATE users SET phone_number = (SELECT phone_number FROM users WHERE id = 8) WHERE id = 7")
    assert verified(filled).faults == [Fault(7, Kind.UNDECRYPTABLE)]
    assert verify.drift(filled.desk, filled.keys, before.point).faults == [Fault(7, Kind.UNDECRYPTABLE)]


# As step 5 leaves the table: without the plaintext, then behind the view, then without it.
SWITCH = (
    "DROP TRIGGER users_phone_number_stale ON users; ALTER TABLE users DROP COLUMN phone_number",
    "ALTER TABLE users RENAME COLUMN phone_number_encrypted TO phone_number;"
    " ALTER TABLE users RENAME TO users_base; SET ROLE payme_owner;"
    " CREATE VIEW users AS SELECT *, phone_number AS phone_number_encrypted FROM users_base; RESET ROLE",
    "DROP VIEW users; ALTER TABLE users_base RENAME TO users",
)


def test_once_the_plaintext_may_be_left_out_only_the_ciphertext_counts(filled: Phones) -> None:
    before = verified(filled)
    finish.do_finish(filled.desk, lambda _: None)
    write(filled, 8, phone_number=OTHER_PHONE)
    assert verified(filled).faults == [Fault(8, Kind.STALE)]
    switch.do_relax(filled.desk, lambda _: None)
    write(filled, 7, phone_number=None)  # as a version writes that knows only the ciphertext
    found = verified(filled)
    assert (found.kinds, found.digest) == ({}, before.digest)
    assert verify.drift(filled.desk, filled.keys, before.point).kinds == {}
    with pytest.raises(UnexpectedSchema):
        rewrap.rewrap(filled.desk, filled.keys, None, lambda _: None)
    write(filled, 7, **seal(filled.keys, 8, OTHER_PHONE))
    assert verified(filled).faults == verify.drift(filled.desk, filled.keys, before.point).faults
    assert verified(filled).faults == [Fault(7, Kind.UNDECRYPTABLE)]


@contextmanager
def at_second_answer(monkeypatch: pytest.MonkeyPatch, act: Callable[[Any], None]) -> Any:
    """Do something before the second range is asked for."""
    asked, calls = readers.ask, [0]

    def ask(process: Any, low: int, high: int) -> readers.Part:
        calls[0] += 1
        if calls[0] == 2:
            act(process)
        return asked(process, low, high)

    with monkeypatch.context() as patched:
        patched.setattr(readers, "ask", ask)
        yield
    assert calls[0] >= 2


def spoil(phones: Phones) -> None:
    """A thousand rows lose their ciphertext, and the others are gone."""
    with phones.admin() as connection:
        connection.execute("SET session_replication_role = replica")
        connection.execute("UPDATE users SET phone_number_encrypted = NULL")
        connection.execute("DELETE FROM transactions; DELETE FROM users WHERE id > 1000")


def test_what_is_written_meanwhile_is_not_seen(filled: Phones, monkeypatch: pytest.MonkeyPatch) -> None:
    before = verified(filled)

    with at_second_answer(monkeypatch, lambda _: spoil(filled)):
        found = verified(filled, workers=2)
    assert (found.kinds, found.rows, found.digest) == ({}, 2000, before.digest)
    assert verified(filled).kinds == {Kind.MISSING: 1000}


def test_a_reader_that_is_killed_is_an_error_and_leaves_nothing(
    filled: Phones, monkeypatch: pytest.MonkeyPatch
) -> None:
    with at_second_answer(monkeypatch, lambda process: process.kill()), pytest.raises(Unavailable, match="signal 9"):
        verified(filled, workers=2)
    with filled.admin() as connection:
        eventually(lambda: not sessions(connection), "the readers' sessions to end")
    with at_second_answer(monkeypatch, lambda process: process.kill()):
        check = verify.check(filled.desk, filled.keys, workers=1, report=lambda _: None)
        evidence = run_check(check, actor="test")
    assert evidence.verdict is Verdict.INCONCLUSIVE


_VERIFIER = """
import sys, time
from payme_ops.foundation import settings
from payme_ops.migration import envelope, readers, verify
from payme_ops.migration.desk import MigrationDesk

desk = MigrationDesk(settings.load(), sys.stdin.readline().strip(), "", "test")
keys = envelope.derive(bytes(32), key_id="k1", names=desk.names)
with verify.hold_snapshot(desk) as held, readers.reader(desk.target, held.id, keys, desk.names, held.layout) as process:
    print(process.pid, flush=True)
    time.sleep(60)
"""


@contextmanager
def started(script: str, phones: Phones) -> "Iterator[subprocess.Popen[str]]":
    """A process that is told the database and the run; killed after the block."""
    with subprocess.Popen(
        [sys.executable, "-c", script, phones.desk.run],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(PROJECT / "plugins")},
    ) as process:
        assert process.stdin is not None
        print(phones.desk.target, file=process.stdin, flush=True)
        try:
            yield process
        finally:
            process.kill()


def line(process: "subprocess.Popen[str]") -> str:
    assert process.stdout is not None
    return process.stdout.readline()


def test_when_the_verifier_is_killed_its_readers_end(filled: Phones) -> None:
    with started(_VERIFIER, filled) as process:
        reader = int(line(process))
        with filled.admin() as connection:
            assert len(sessions(connection)) == 2
            process.kill()
            eventually(lambda: not sessions(connection), "both sessions to end")
    eventually(lambda: not Path(f"/proc/{reader}/cmdline").exists(), "the reader to end")


@pytest.mark.parametrize("whose", ["reader", "holder"])
def test_a_cut_connection_is_an_error(filled: Phones, monkeypatch: pytest.MonkeyPatch, whose: str) -> None:
    def cut(_: Any) -> None:
        with filled.admin() as connection:
            ours = sessions(connection)
            assert len(ours) == 2
            # The reader came second.
            connection.execute("SELECT pg_terminate_backend(%s)", [ours[1 if whose == "reader" else 0]])

    with at_second_answer(monkeypatch, cut), pytest.raises(DatabaseUnavailable) as raised:
        verified(filled)
    assert_silent(raised.value)


def sessions(connection: psycopg.Connection) -> list[int]:
    rows = connection.execute(
        "SELECT pid FROM pg_stat_activity WHERE datname = current_database()"
        " AND application_name = 'payme_ops:migration:verify' ORDER BY backend_start"
    )
    return [pid for (pid,) in rows]


def test_a_reader_of_another_snapshot_is_refused(filled: Phones) -> None:
    with ExitStack() as stack:
        first = stack.enter_context(verify.hold_snapshot(filled.desk))
        second = stack.enter_context(verify.hold_snapshot(filled.desk))
        session = stack.enter_context(readers.joined(filled.desk.target, first.id))
        read = [
            (span, readers.read_range(session, filled.keys, NAMES, first.layout, span.low, span.high))
            for span in verify.spans(first)
        ]
        assert verify.combine(first, read, seconds=1).rows == 2000
        for held, given in ((second, read), (first, read[1:]), (first, [*read[:2], *read[3:]]), (first, read[:-1])):
            with pytest.raises(IntegrityError, match="did not see"):
                verify.combine(held, given, seconds=1)
        span, part = read[0]
        short = replace(part, judged=replace(part.judged, rows=299))
        with pytest.raises(IntegrityError, match="299 rows"):
            verify.combine(first, [(span, short), *read[1:]], seconds=1)
    with pytest.raises(Unavailable, match=f"{first.id} is gone"), readers.joined(filled.desk.target, first.id):
        pytest.fail("joined a snapshot that is gone")


def test_the_key_is_in_no_argument_and_no_environment(filled: Phones, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[bytes] = []

    def look(process: Any) -> None:
        seen.extend(Path(f"/proc/{process.pid}/{what}").read_bytes() for what in ("cmdline", "environ"))

    with at_second_answer(monkeypatch, look):
        verified(filled)
    assert seen[0].count(b"payme_ops.migration.readers") == 1
    assert not [text for text in seen if filled.keys.secret.hex().encode() in text or b"PASSWORD" in text]


def test_nothing_to_verify_is_never_green(phones: Phones) -> None:
    check = verify.check(phones.desk, phones.keys, workers=1, report=lambda _: None)
    with pytest.raises(UnexpectedSchema):
        check.measure()
    assert run_check(check, actor="test").verdict is Verdict.FAIL
    expanded(phones)
    assert verified(phones).kinds == {Kind.MISSING: 2000}
    with phones.admin() as connection:
        connection.execute("TRUNCATE users CASCADE")
    assert run_check(check, actor="test").verdict is Verdict.INCONCLUSIVE


def test_rows_that_a_policy_hides_are_an_error(filled: Phones) -> None:
    with filled.admin() as connection:
        connection.execute("ALTER TABLE users ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY")
    with pytest.raises(DatabaseError, match=r"row.level security|row security"):
        verified(filled)


def test_the_evidence_is_whole_after_scrubbing(filled: Phones) -> None:
    check = verify.check(filled.desk, filled.keys, workers=2, report=lambda _: None)
    evidence = run_check(check, actor="test")
    assert evidence.verdict is Verdict.PASS
    assert evidence.measured["rows"] == 2000
    assert re.fullmatch(r"sha256:[0-9a-f]{64}", evidence.measured["content"])
    assert re.fullmatch(r"[0-9A-F]+/[0-9A-F]+", evidence.measured["lsn"])
    assert filled.keys.secret.hex() not in repr(evidence)


# Across workers.


@pytest.fixture
def sharing(filled: Phones, monkeypatch: pytest.MonkeyPatch) -> Phones:
    """Nothing is shared yet; whoever holds a snapshot looks often, and soon gives up."""
    monkeypatch.setattr(shared, "_LOOK_EVERY_SECONDS", 0.02)
    monkeypatch.setattr(shared, "PATIENCE_SECONDS", 20.0)
    shared.forget(filled.desk)
    return filled


@contextmanager
def holding(phones: Phones) -> "Iterator[Future[None]]":
    """A task that holds a snapshot which can be read."""
    with ThreadPoolExecutor(1) as pool:
        task = pool.submit(shared.hold, phones.desk, quiet)
        eventually(lambda: bool(shared_ids(phones)) or task.done(), "a snapshot")
        yield task


def read(phones: Phones) -> bool:
    return shared.read(phones.desk, phones.keys, "reader", quiet)


def shared_ids(phones: Phones) -> list[str]:
    with phones.admin() as connection:
        return [row[0] for row in connection.execute("SELECT id FROM payme_migration.snapshots")]


def across(
    phones: Phones, monkeypatch: pytest.MonkeyPatch, meanwhile: Callable[[], None] = lambda: None
) -> tuple[Verified, list[str]]:
    """What two readers find, who both have a range before either reads one, and what all three tasks said."""
    said: list[str] = []
    both, asked, begun = threading.Barrier(2, action=meanwhile, timeout=20), readers.read_range, threading.local()

    def read_range(*given: Any) -> readers.Part:
        if not hasattr(begun, "once"):
            begun.once = both.wait()
        return asked(*given)

    def task() -> None:
        eventually(lambda: shared.read(phones.desk, phones.keys, "reader", said.append), "every range to be read")

    with monkeypatch.context() as patched, ThreadPoolExecutor(3) as pool:
        patched.setattr(readers, "read_range", read_range)
        for each in [pool.submit(shared.hold, phones.desk, said.append), pool.submit(task), pool.submit(task)]:
            each.result()
    return shared.result(phones.desk), said


def content(found: Verified) -> tuple[Any, ...]:
    """All but which snapshot it was, and how long it took."""
    return found.rows, found.with_number, found.digest, found.kinds, found.faults


def test_readers_on_several_workers_find_what_one_task_finds(sharing: Phones, monkeypatch: pytest.MonkeyPatch) -> None:
    planted(sharing)
    alone = verified(sharing)
    found, said = across(sharing, monkeypatch)
    assert content(found) == content(alone)
    assert found.kinds == Counter(kind for _, kind in PLANTED)
    assert found.snapshot != alone.snapshot
    assert found.seconds > 0
    assert verify.drift(sharing.desk, sharing.keys, found.point).rows == 0
    with sharing.admin() as connection:
        connection.execute("CREATE TABLE kept AS TABLE payme_migration.spans")
        rows = connection.execute("SELECT kept::text FROM kept").fetchall()
    assert len(rows) == 7
    assert_silent(found, said, rows)


def test_readers_see_the_rows_as_they_were_when_the_snapshot_was_exported(
    sharing: Phones, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = verified(sharing)
    found, _ = across(sharing, monkeypatch, lambda: spoil(sharing))
    assert content(found) == content(before)
    assert verified(sharing).kinds == {Kind.MISSING: 1000}


_WRONG = (
    """UPDATE spans SET part = jsonb_set(part, '{snapshot}', '"00000003-0000001B-1"') WHERE low = 300""",
    "UPDATE spans SET part = jsonb_set(part, '{judged,rows}', '299') WHERE low = 300",
    "UPDATE spans SET part = (SELECT part FROM kept WHERE low = 600) WHERE low = 300",
    "DELETE FROM spans WHERE low = 300",
    "DELETE FROM spans WHERE low = (SELECT max(low) FROM spans)",
)


def test_what_is_not_of_the_one_snapshot_is_refused(sharing: Phones, monkeypatch: pytest.MonkeyPatch) -> None:
    found, _ = across(sharing, monkeypatch)
    with sharing.admin() as connection:
        connection.execute("SET search_path = payme_migration")
        connection.execute("CREATE TABLE kept AS TABLE spans")
        for wrong in _WRONG:
            assert connection.execute(wrong.encode()).rowcount == 1
            with pytest.raises(IntegrityError, match="did not see"):
                shared.result(sharing.desk)
            connection.execute("TRUNCATE spans; INSERT INTO spans TABLE kept")
            assert shared.result(sharing.desk) == found
        connection.execute("UPDATE spans SET part = NULL WHERE low = 300")
    with pytest.raises(NotFound, match="1 ranges without"):
        shared.result(sharing.desk)
    with pytest.raises(Unavailable, match=f"{found.snapshot} is gone"):
        read(sharing)
    other = replace(sharing.desk, run="test/another")
    assert shared.read(other, sharing.keys, "reader", quiet) is False
    with pytest.raises(NotFound, match="no snapshot"):
        shared.result(other)


_READER = """
import sys, time
from payme_ops.foundation import settings
from payme_ops.migration import envelope, readers, shared
from payme_ops.migration.desk import MigrationDesk

def stay(*_):
    print("in a range", flush=True)
    time.sleep(60)

readers.read_range = stay
desk = MigrationDesk(settings.load(), sys.stdin.readline().strip(), "", sys.argv[1])
shared.read(desk, envelope.derive(bytes(32), key_id="k1", names=desk.names), "reader", print)
"""


def test_the_range_of_a_killed_reader_is_read_by_another(sharing: Phones) -> None:
    before = verified(sharing)
    with holding(sharing) as holder, started(_READER, sharing) as process:
        assert line(process) == "in a range\n"
        assert read(sharing) is False  # all the others
        assert not holder.done()
        process.kill()
        eventually(lambda: read(sharing), "the last range to be read")
        holder.result()
    assert content(shared.result(sharing.desk)) == content(before)


_HOLDER = """
import sys
from payme_ops.foundation import settings
from payme_ops.migration import shared, verify
from payme_ops.migration.desk import MigrationDesk

verify.RANGE_ROWS = 300
desk = MigrationDesk(settings.load(), sys.stdin.readline().strip(), "", sys.argv[1])
shared.hold(desk, lambda line: print(line, flush=True))
"""


def test_without_its_holder_readers_say_so_and_the_next_one_begins_anew(
    sharing: Phones, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked, calls = readers.read_range, [0]
    with started(_HOLDER, sharing) as process, sharing.admin() as connection:
        assert "is held" in line(process)

        def read_range(*given: Any) -> readers.Part:
            calls[0] += 1
            if calls[0] == 2:
                process.kill()
                eventually(lambda: len(sessions(connection)) == 2, "both sessions of the holder to end")
            return asked(*given)

        [old] = shared_ids(sharing)
        with monkeypatch.context() as patched:
            patched.setattr(readers, "read_range", read_range)
            with pytest.raises(Unavailable, match=f"{old} is gone.*hold_snapshot"):
                read(sharing)
        with pytest.raises(Unavailable, match="is gone"):
            read(sharing)
    with pytest.raises(NotFound, match="5 ranges without"):
        shared.result(sharing.desk)
    with holding(sharing) as holder:
        eventually(lambda: shared_ids(sharing) != [old], "another snapshot")
        assert read(sharing) is True
        holder.result()
    found = shared.result(sharing.desk)
    assert content(found) == content(verified(sharing))
    assert shared_ids(sharing) == [found.snapshot]


@pytest.mark.parametrize("which", [0, 1])
def test_a_holder_that_lost_a_session_ends_and_its_snapshot_with_it(sharing: Phones, which: int) -> None:
    with sharing.admin() as connection, holding(sharing) as holder:
        ours = sessions(connection)
        assert len(ours) == 2
        connection.execute("SELECT pg_terminate_backend(%s)", [ours[which]])
        with pytest.raises(DatabaseUnavailable):
            holder.result()
        eventually(lambda: not sessions(connection), "both sessions to end")
    with pytest.raises(Unavailable, match="is gone"):
        read(sharing)


def test_a_holder_that_nobody_reads_gives_up(sharing: Phones, monkeypatch: pytest.MonkeyPatch) -> None:
    assert read(sharing) is False
    monkeypatch.setattr(shared, "PATIENCE_SECONDS", 0.1)
    with pytest.raises(PaymeOpsError, match=r"nobody reads .* none after 0 rows; 7 ranges .* read_snapshot"):
        shared.hold(sharing.desk, quiet)
    with pytest.raises(Unavailable, match="is gone"):
        read(sharing)


def test_a_holder_whose_run_began_anew_ends(sharing: Phones) -> None:
    with holding(sharing) as holder:
        shared.forget(sharing.desk)
        with pytest.raises(PaymeOpsError, match="not this run's any more"):
            holder.result()


def test_a_holder_that_runs_again_when_all_is_read_does_nothing(
    sharing: Phones, monkeypatch: pytest.MonkeyPatch
) -> None:
    found, _ = across(sharing, monkeypatch)
    shared.hold(sharing.desk, quiet)
    assert read(sharing) is True
    assert shared.result(sharing.desk) == found


def test_an_empty_table_is_read_at_once(sharing: Phones) -> None:
    with sharing.admin() as connection:
        connection.execute("TRUNCATE users CASCADE")
    shared.hold(sharing.desk, quiet)
    assert verify.finding(shared.result(sharing.desk)).verdict is Verdict.INCONCLUSIVE


# Drift.


def test_drift_looks_at_what_was_written_since_and_finds_what_is_wrong(filled: Phones) -> None:
    point = verified(filled).point
    nothing = verify.drift(filled.desk, filled.keys, point)
    assert (nothing.rows, nothing.kinds) == (0, {})
    with filled.app() as connection:
        connection.execute("UPDATE users SET full_name = 'New' WHERE id IN (3, 4)")
    assert verify.drift(filled.desk, filled.keys, point).rows == 2
    with filled.app() as connection:  # an old version: the trigger empties the ciphertext
        connection.execute("UPDATE users SET phone_number = %s WHERE id = 5", [OTHER_PHONE])
    found = verify.drift(filled.desk, filled.keys, point)
    assert (found.rows, found.faults) == (3, [Fault(5, Kind.MISSING)])
    assert_silent(found, verify.finding(found))
    assert verify.drift(filled.desk, filled.keys, found.point).rows == 0


def test_drift_finds_what_was_begun_before_the_point_and_committed_after_it(filled: Phones) -> None:
    with filled.app() as connection, connection.transaction():
        connection.execute("UPDATE users SET phone_number = %s WHERE id = 5", [OTHER_PHONE])
        with filled.admin() as other:
            other.execute("UPDATE users SET full_name = 'New' WHERE id = 6")  # a later transaction ends before
        point = verified(filled).point
    found = verify.drift(filled.desk, filled.keys, point)
    assert Fault(5, Kind.MISSING) in found.faults


@pytest.mark.parametrize("point", ["", "1", "99999999:99999999:", "x:y:", "+254700999888"])
def test_drift_refuses_a_point_that_tells_nothing(filled: Phones, point: str) -> None:
    with pytest.raises(GateClosed) as raised:
        verify.drift(filled.desk, filled.keys, point)
    assert "254700999888" not in repr(raised.value)


# Ciphertexts bound to no row.


def test_rewrapped_rows_are_bound_to_their_own_id(filled: Phones) -> None:
    before = verified(filled)
    for key in (7, 8, 1999):
        write(
            filled,
            key,
            **seal(filled.keys, key, stored(filled, key)["phone_number"], bound_to=UNBOUND),
        )
    write(filled, 9, **seal(filled.keys, 9, OTHER_PHONE, bound_to=UNBOUND))  # and of somebody else
    assert verified(filled).kinds == {Kind.UNBOUND: 4}
    with filled.admin() as connection:
        touched = connection.execute("SELECT updated_at FROM users WHERE id = 7").fetchone()
    said: list[str] = []
    assert rewrap.rewrap(filled.desk, filled.keys, [7], said.append) == rewrap.Rewrapped(1, 1)
    with filled.admin() as locker, locker.transaction():
        locker.execute("SELECT FROM users WHERE id = 8 FOR UPDATE")
        assert rewrap.rewrap(filled.desk, filled.keys, None, said.append) == rewrap.Rewrapped(3, 1)
    assert rewrap.rewrap(filled.desk, filled.keys, None, said.append) == rewrap.Rewrapped(2, 1)
    assert verified(filled).faults == [Fault(9, Kind.UNBOUND)]
    write(filled, 9, **seal(filled.keys, 9, stored(filled, 9)["phone_number"]))
    assert rewrap.rewrap(filled.desk, filled.keys, None, said.append) == rewrap.Rewrapped(0, 0)
    after = verified(filled)
    assert (after.kinds, after.digest) == ({}, before.digest)
    with filled.admin() as connection:
        assert connection.execute("SELECT updated_at FROM users WHERE id = 7").fetchone() == touched
    assert_silent(said)


def test_a_row_that_changes_while_it_is_rewrapped_is_left(filled: Phones, monkeypatch: pytest.MonkeyPatch) -> None:
    write(filled, 7, **seal(filled.keys, 7, stored(filled, 7)["phone_number"], bound_to=UNBOUND))

    def change_then_judge(*given: Any, **more: Any) -> Any:
        write(filled, 7, phone_number=OTHER_PHONE, **seal(filled.keys, 7, OTHER_PHONE))
        return judge(*given, **more)

    monkeypatch.setattr(rewrap, "judge", change_then_judge)
    assert rewrap.rewrap(filled.desk, filled.keys, None, lambda _: None) == rewrap.Rewrapped(1, 0)
    assert filled.decrypted()[7] == OTHER_PHONE


# What the application writes.


def test_dual_writes_are_seen_by_value(phones: Phones) -> None:
    expanded(phones)
    since = dual_write.moment(phones.desk)
    check = dual_write.check(phones.desk, phones.keys, since)
    assert check.measure().verdict is Verdict.INCONCLUSIVE
    with phones.app() as connection:
        connection.execute("UPDATE users SET full_name = 'New' WHERE id = 5")
        assert check.measure().verdict is Verdict.INCONCLUSIVE  # that shows nothing
        phone = stored(phones, 6)["phone_number"]
        update(connection, 6, **seal(phones.keys, 6, phone))
        key = insert(connection, phones.keys, OTHER_PHONE)
    found = check.measure()
    assert (found.verdict, found.measured) == (Verdict.PASS, {"written": 3, "new": 1, "changed": 1, "faults": []})
    with phones.app() as connection:
        update(connection, 7, **seal(phones.keys, 8, stored(phones, 7)["phone_number"]))
        wrong = check.measure()
        assert (wrong.verdict, wrong.measured["faults"]) == (Verdict.FAIL, ["7 undecryptable"])
        update(connection, 7, phone_number_encrypted=None)
        update(connection, key, phone_number_encrypted=None, phone_number_bidx=None)  # a new user without ciphertext
    wrong = check.measure()
    assert (wrong.verdict, wrong.measured["faults"]) == (Verdict.FAIL, [f"{key} missing"])
    assert_silent(found, wrong)


def update(connection: psycopg.Connection, key: int, **columns: Any) -> None:
    assignments = sql.SQL(", ").join(sql.SQL("{} = %s").format(sql.Identifier(column)) for column in columns)
    connection.execute(sql.SQL("UPDATE users SET {} WHERE id = %s").format(assignments), [*columns.values(), key])


def insert(connection: psycopg.Connection, keys: Keys, phone: str) -> int:
    """A new user, as the dual-writing version signs one up: the id is known first."""
    row = connection.execute("SELECT nextval('users_id_seq')").fetchone()
    assert row is not None
    made = seal(keys, row[0], phone)
    connection.execute(
        "INSERT INTO users (id, public_id, full_name, phone_number, phone_number_encrypted, phone_number_bidx)"
        " VALUES (%s, gen_random_uuid(), 'Test', %s, %s, %s)",
        [row[0], phone, *made.values()],
    )
    return int(row[0])


# The restore test.


def test_pairs_of_a_restored_database_are_opened(filled: Phones) -> None:
    with filled.admin() as connection:
        pairs = connection.execute("SELECT id, phone_number_encrypted FROM users ORDER BY id LIMIT 150").fetchall()
    good = verify.check_pairs(filled.keys, NAMES, pairs)
    assert (good.verdict, good.measured) == (Verdict.PASS, {"pairs": 100, "key_ids": {"k1": 100}, "wrong": []})
    assert verify.check_pairs(filled.keys, NAMES, []).verdict is Verdict.INCONCLUSIVE
    bad = verify.check_pairs(other_keys(key_id="k2"), NAMES, pairs[:2])
    assert bad.verdict is Verdict.FAIL
    assert bad.measured["key_ids"] == {"k1": 2}
    assert verify.check_pairs(filled.keys, NAMES, [(1, "no ciphertext")]).measured["wrong"] == [
        "1: a stored value is malformed"
    ]


def test_a_sample_is_taken_from_the_drop_on_and_never_a_number(each_phones: Phones) -> None:
    target = each_phones.site.cluster.conninfo(each_phones.name)
    assert verify.sample(target, NAMES) is None
    expand.do_expand(each_phones.desk, quiet)
    finish.do_finish(fill(each_phones).desk, quiet)
    for step in (switch.do_relax, switch.do_brown_out):
        step(each_phones.desk, quiet)
        assert verify.sample(target, NAMES) is None
    for step in (switch.do_switch, switch.do_end_shim):
        step(each_phones.desk, quiet)
        taken = verify.sample(target, NAMES)
        assert taken is not None
        assert (taken.key_ids, len({key for key, _ in taken.pairs})) == ({"k1": 2000}, 100)
        assert verify.check_sample(each_phones.keys, NAMES, taken).verdict is Verdict.PASS

    with each_phones.admin() as admin:
        admin.execute("UPDATE users SET phone_number = replace(phone_number, ':k1:', ':k9:') WHERE id = 42")
        admin.execute("UPDATE users SET phone_number = %s WHERE id > 1000", [f"v1:{OTHER_PHONE}"])
    wrong = verify.sample(target, NAMES)
    assert wrong is not None
    assert wrong.key_ids == {"k1": 999, "k9": 1, "no ciphertext": 1000}
    found = verify.check_sample(each_phones.keys, NAMES, wrong)
    assert found.verdict is Verdict.FAIL
    assert "a stored value is malformed" in repr(found.measured["wrong"])
    assert found.measured["rows of another key"] == {"k9": 1, "no ciphertext": 1000}
    assert_silent(wrong, found)

    with each_phones.admin() as admin:
        admin.execute("ALTER TABLE users DROP CONSTRAINT users_phone_number_format")
    with pytest.raises(UnexpectedSchema):  # and not taken for a table that was never migrated
        verify.sample(target, NAMES)
