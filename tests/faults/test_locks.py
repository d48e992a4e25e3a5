"""Nobody waits long behind a backup: who needs a lock that ours is in the way of gets it, and the dump tries again."""

from collections.abc import Callable, Iterator
from typing import Any

import psycopg
import pytest

from payme_ops.backup import dump, store, truth
from payme_ops.backup.manifest import Manifest
from payme_ops.foundation.errors import SteppedAside
from tests.support.installation import Installation
from tests.support.traffic import Statement, repeated

pytestmark = pytest.mark.usefixtures("impatient")
LONGEST_WAIT_SECONDS = 2.0
Hook = Callable[[], None]


def at_share(monkeypatch: pytest.MonkeyPatch, share: float, total: int, hook: Hook, *, times: int = 1) -> None:
    """Call `hook` when about that share of the archive's bytes has passed, in the first `times` attempts.

    At 0 the locks are held and the snapshot is taken, and pg_dump has not begun.
    """
    left = [times]

    def once() -> None:
        if left[0] > 0:
            left[0] -= 1
            hook()

    if share == 0:
        real_sequences = truth.list_sequences

        def list_sequences(connection: psycopg.Connection) -> object:
            once()
            return real_sequences(connection)

        monkeypatch.setattr(truth, "list_sequences", list_sequences)
        return
    real = store.seal_and_store

    def seal_and_store(chunks: Iterator[bytes], placement: store.Placement, key: str, *more: Any, **other: Any) -> Any:
        def hooked() -> Iterator[bytes]:
            passed, called = 0, False
            for chunk in chunks:
                yield chunk
                passed += len(chunk)
                if not called and "archive" in key and passed >= share * total:
                    called = True
                    once()

        return real(hooked(), placement, key, *more, **other)

    monkeypatch.setattr(store, "seal_and_store", seal_and_store)


def restored_equal(installation: Installation, done: Manifest) -> None:
    """Restore it, which compares every table with the manifest."""
    try:
        installation.restore(done, "restored_after_ddl")
    finally:
        with installation.site.admin("postgres") as admin:
            admin.execute("DROP DATABASE IF EXISTS restored_after_ddl WITH (FORCE)")


@pytest.fixture
def size_of_archive(installation: Installation) -> int:
    return installation.back_up().archive.size_bytes


@pytest.fixture
def conninfo(installation: Installation) -> str:
    return installation.site.cluster.conninfo("payme")


@pytest.fixture
def probe(installation: Installation) -> Iterator[str]:
    """DDL that waits for every reader of the table; undone afterwards."""
    yield "ALTER TABLE merchants ADD COLUMN ddl_probe int DEFAULT 7"
    with installation.site.admin() as admin:
        admin.execute("ALTER TABLE merchants DROP COLUMN IF EXISTS ddl_probe")


def read(connection: psycopg.Connection) -> None:
    connection.execute("SELECT name FROM merchants LIMIT 1")


@pytest.mark.parametrize("share", [0.0, 0.5, 0.9])
def test_ddl_queued_behind_the_dump(
    installation: Installation,
    monkeypatch: pytest.MonkeyPatch,
    size_of_archive: int,
    conninfo: str,
    probe: str,
    share: float,
) -> None:
    ddl: list[Statement] = []

    def queue() -> None:
        ddl.append(Statement(conninfo, probe))
        ddl[0].wait_until_it_waits(conninfo)
        if share:  # the dump is held here until it has given way; at 0 it goes on and meets the DDL itself
            ddl[0].end()

    at_share(monkeypatch, share, size_of_archive, queue)
    with repeated(conninfo, read, pause=0.01) as reads:
        done = installation.back_up()
    ddl[0].end()
    assert ddl[0].error is None
    assert ddl[0].seconds < LONGEST_WAIT_SECONDS
    assert max(reads) < LONGEST_WAIT_SECONDS, "readers queue behind the DDL, and so behind us"
    assert max(reads) > 0.2, "nobody waited: the DDL did not block the readers, and the test shows nothing"
    assert len(installation.manifests()) == 2
    assert installation.uploads() == []
    restored_equal(installation, done)
    installation.require_recovery(backups=2)


def test_ddl_in_every_attempt_ends_in_stepping_aside(
    installation: Installation, monkeypatch: pytest.MonkeyPatch, size_of_archive: int, conninfo: str
) -> None:
    statements: list[Statement] = []

    def queue() -> None:
        statements.append(Statement(conninfo, "BEGIN; TRUNCATE rate_limits; ROLLBACK"))
        statements[-1].wait_until_it_waits(conninfo)
        statements[-1].end()

    at_share(monkeypatch, 0.5, size_of_archive, queue, times=dump.ATTEMPTS)
    with pytest.raises(SteppedAside, match="gave way 3 times") as caught:
        installation.back_up()
    assert "AccessExclusiveLock on rate_limits" in caught.value.found
    assert caught.value.remedy
    assert [(one.error, one.seconds < LONGEST_WAIT_SECONDS) for one in statements] == [(None, True)] * dump.ATTEMPTS
    installation.require_recovery(backups=1)


def test_a_table_held_exclusively_is_waited_for_half_a_second_each_time(
    installation: Installation, conninfo: str
) -> None:
    with psycopg.connect(conninfo) as other:
        other.execute("LOCK TABLE merchants IN ACCESS EXCLUSIVE MODE")
        with pytest.raises(SteppedAside, match="holds a table exclusively"):
            installation.back_up()
    installation.require_recovery(backups=0)


def test_who_gives_up_within_a_second_does_not_disturb_us(
    installation: Installation, monkeypatch: pytest.MonkeyPatch, size_of_archive: int, conninfo: str, probe: str
) -> None:
    """Well-made migrations have a lock_timeout and try again; the dump goes on."""
    lines: list[str] = []

    def queue() -> None:
        impatient = Statement(conninfo, f"SET lock_timeout = '300ms'; {probe}")
        impatient.end()
        assert isinstance(impatient.error, psycopg.errors.LockNotAvailable)

    at_share(monkeypatch, 0.5, size_of_archive, queue)
    installation.back_up(lines.append)
    assert lines
    assert not [line for line in lines if "gave way" in line]


def test_what_does_not_conflict_is_not_held_up(
    installation: Installation, monkeypatch: pytest.MonkeyPatch, size_of_archive: int, conninfo: str
) -> None:
    statements: list[Statement] = []

    def beside() -> None:
        for statement in (
            "CREATE INDEX made_meanwhile ON merchants (county)",
            "DROP INDEX CONCURRENTLY IF EXISTS nowhere",
            "VACUUM merchants",
            "ANALYZE merchants",
            "REFRESH MATERIALIZED VIEW reporting.merchant_days",
            "CREATE TABLE made_meanwhile_2 (a int)",
            "UPDATE merchants SET active = active WHERE id = 1",
        ):
            statements.append(Statement(conninfo, statement))
            statements[-1].end()

    at_share(monkeypatch, 0.5, size_of_archive, beside)
    lines: list[str] = []
    try:
        done = installation.back_up(lines.append)
    finally:
        with installation.site.admin() as admin:
            admin.execute("DROP TABLE IF EXISTS made_meanwhile_2; DROP INDEX IF EXISTS made_meanwhile")
    assert [one.error for one in statements] == [None] * 7
    assert max(one.seconds for one in statements) < 1
    assert not [line for line in lines if "gave way" in line]
    assert "made_meanwhile_2" not in {relation.name for relation in done.truth.relations}


def test_tables_made_and_dropped_all_the_time(installation: Installation, conninfo: str) -> None:
    """The list that was locked is the list of the snapshot, or the freeze starts over."""

    there = False

    def make_or_drop(connection: psycopg.Connection) -> None:
        nonlocal there
        connection.execute("SET LOCAL lock_timeout = '200ms'")
        connection.execute("SET LOCAL ROLE payme_owner")
        connection.execute("DROP TABLE churn" if there else "CREATE TABLE churn AS SELECT 1 AS a")
        there = not there

    try:
        with repeated(conninfo, make_or_drop, pause=0.05) as made:
            done = [installation.back_up() for _ in range(3)]
        assert len(made) > 6
    finally:
        with installation.site.admin() as admin:
            admin.execute("DROP TABLE IF EXISTS churn")
    for each in done:
        restored_equal(installation, each)
