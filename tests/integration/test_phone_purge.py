"""After step 5: the file that held the plaintext is replaced, and shown to be."""

from dataclasses import replace

import pytest

from payme_ops.foundation.errors import GateClosed, LockBudgetSpent, PaymeOpsError, UnexpectedSchema
from payme_ops.foundation.evidence import Verdict
from payme_ops.migration import purge, verify
from payme_ops.migration.expand import do_expand
from payme_ops.migration.finish import do_finish
from payme_ops.migration.purge import checks_after_purge, checks_before_purge, do_purge
from payme_ops.migration.switch import do_brown_out, do_end_shim, do_relax, do_switch
from tests.support.installation import quiet
from tests.support.phones import Phones, fill
from tests.support.steps import examine, with_budget

ENOUGH = 10**9


@pytest.fixture
def migrated(each_phones: Phones) -> Phones:
    """At the end of step 5."""
    desk = each_phones.desk
    do_expand(desk, quiet)
    do_finish(fill(each_phones).desk, quiet)
    for step in (do_relax, do_brown_out, do_switch, do_end_shim):
        step(desk, quiet)
    return each_phones


def test_the_file_is_replaced_once_and_the_rows_are_the_same(migrated: Phones) -> None:
    before = migrated.decrypted("phone_number")
    assert examine(checks_after_purge(migrated.desk))["purged"].verdict is Verdict.FAIL
    done = do_purge(migrated.desk, quiet, free_bytes=ENOUGH)
    assert done["changed"]
    assert done["file"] != done["file_with_plaintext"]
    assert done["bytes_after"] < done["bytes_before"]
    assert done["proof"] == "the table's file was replaced"
    assert done["pages_with_canaries_after"] is None
    assert examine(checks_after_purge(migrated.desk))["purged"].verdict is Verdict.PASS
    again = do_purge(migrated.desk, quiet, free_bytes=None)  # nothing is written, so no room is needed
    assert (again["changed"], again["file"]) == (False, done["file"])
    assert migrated.decrypted("phone_number") == before


def test_where_pages_can_be_read_no_plaintext_is_found_in_them(migrated: Phones) -> None:
    """DROP COLUMN leaves every number in the file, and so do the versions of rows that the backfill replaced."""
    with migrated.admin() as connection:
        connection.execute("CREATE EXTENSION pageinspect")
    superuser = replace(migrated.desk, target=migrated.site.cluster.conninfo(migrated.name))
    canaries = verify.canaries(superuser, migrated.keys)
    assert len(canaries) == 100
    done = do_purge(superuser, quiet, free_bytes=ENOUGH, canaries=canaries)
    assert done["pages_with_canaries_before"] > 0
    assert done["pages_with_canaries_after"] == 0
    assert done["proof"] == "0 pages hold a canary"
    assert purge.finding(done).verdict is Verdict.PASS


def test_without_known_room_it_asks(migrated: Phones) -> None:
    for free, verdict, found in ((None, Verdict.INCONCLUSIVE, "unknown"), (1000, Verdict.FAIL, "1.0 kB")):
        assert examine(checks_before_purge(migrated.desk, free))["purge_room"].verdict is verdict
        with pytest.raises(GateClosed, match=f"VACUUM FULL may fill the server's disk; .*found {found}"):
            do_purge(migrated.desk, quiet, free_bytes=free)
    found_all = examine(checks_before_purge(migrated.desk, ENOUGH))
    assert {item.verdict for item in found_all.values()} == {Verdict.PASS}
    assert examine(checks_after_purge(migrated.desk))["purged"].verdict is Verdict.FAIL


def test_behind_a_reader_it_gives_way(migrated: Phones) -> None:
    with migrated.app("reports/nightly") as reader, reader.transaction():
        reader.execute("SELECT count(id) FROM users")
        with pytest.raises(LockBudgetSpent, match="held by reports/nightly"):
            do_purge(with_budget(migrated.desk, 1), quiet, free_bytes=ENOUGH)
    assert do_purge(migrated.desk, quiet, free_bytes=ENOUGH)["changed"]


def test_a_vacuum_that_did_nothing_is_not_taken_for_one(migrated: Phones, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a table that is not the role's, PostgreSQL skips it with a warning."""
    monkeypatch.setattr(purge, "_vacuum", lambda _desk: lambda _connection: None)
    with pytest.raises(PaymeOpsError, match="still the file that held the plaintext"):
        do_purge(migrated.desk, quiet, free_bytes=ENOUGH)


def test_before_the_end_of_step_5_there_is_nothing_to_purge(phones: Phones) -> None:
    do_expand(phones.desk, quiet)
    with pytest.raises(UnexpectedSchema, match="expected dropped, without a shim or later; found expanded"):
        do_purge(phones.desk, quiet, free_bytes=ENOUGH)
