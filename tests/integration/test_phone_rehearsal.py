"""The rehearsal: every step and every undo under traffic; a fault in any of them is red and named."""

import pytest

from payme_ops.foundation.evidence import Evidence, Verdict, plain
from payme_ops.migration import rehearsal
from payme_ops.migration.steps import STEPS
from tests.support.installation import quiet
from tests.support.phones import Phones

pytestmark = pytest.mark.long


def rehearse(phones: Phones) -> dict[str, Evidence]:
    keys = rehearsal.throw_away_keys(phones.names)
    found = rehearsal.rehearse(phones.desk, keys, phones.conninfo("payme_app"), quiet)
    return {item.item: item for item in found}


def test_every_step_and_undo_is_green_and_nobody_noticed(each_phones: Phones) -> None:
    found = rehearse(each_phones)
    assert [(name, plain(item.measured)) for name, item in found.items() if item.verdict is not Verdict.PASS] == []
    undone = ("expand", "finish", "relax", "brown_out", "end_shim")
    assert set(found) == {
        *STEPS,
        *(f"undo {name}" for name in undone),
        *(f"{name} again" for name in undone),
        *("backfill", "verify", "reverse backfill", "verify at the end", "traffic"),
    }
    assert found["traffic"].measured["queries"] > 100
    assert "+254" not in repr(found)


def test_a_step_that_fails_ends_it_and_says_why(phones: Phones) -> None:
    with phones.admin() as admin:
        admin.execute("CREATE VIEW numbers AS SELECT phone_number FROM users")
    found = rehearse(phones)
    red = [name for name, item in found.items() if item.verdict is not Verdict.PASS]
    assert red == ["switch"]
    assert "numbers" in plain(found["switch"].measured)
    assert "end_shim" not in found


def test_traffic_that_fails_is_red(phones: Phones) -> None:
    """A trigger that nobody thought of: the steps do not fire it, the application does."""
    with phones.admin() as admin:
        admin.execute(
            "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS"
            " $$ BEGIN RAISE EXCEPTION 'no' USING ERRCODE = '22023'; END $$"
        )
        admin.execute(
            "CREATE TRIGGER refuse BEFORE UPDATE ON users FOR EACH ROW WHEN (NEW::text LIKE '%v1:%')"
            " EXECUTE FUNCTION refuse()"
        )
    found = rehearse(phones)
    assert found["traffic"].verdict is Verdict.FAIL
    assert found["traffic"].measured["failed"].keys() == {"22023"}
