"""Retention on a real store: what goes, what stays, what comes back, and what a fault in between leaves."""

import hashlib
from datetime import datetime, timedelta
from typing import Any

import pytest

from payme_ops.backup import catalogue, retain, verification
from payme_ops.backup.catalogue import Catalogue, State
from payme_ops.backup.manifest import Manifest, Tier
from payme_ops.backup.retain import Action, Plan
from payme_ops.backup.verification import Outcome
from payme_ops.cli import doors
from payme_ops.foundation import lease
from payme_ops.foundation.clock import show, utc_now
from payme_ops.foundation.errors import AlreadyExists, LeaseHeld, NotApproved, NotFound, StoreRefused, StoreUnavailable
from payme_ops.foundation.evidence import Evidence
from payme_ops.foundation.objectstore import Bucket
from tests.support import history as support
from tests.support.installation import Installation, quiet
from tests.support.proxy import Proxy

OPS = "service=payme_ops_db"
PROOF_DAYS = 8
_real: list[Manifest] = []


class History:
    """Backups of any age in the installation's buckets; `proof` is of today, and nothing has tested it yet."""

    def __init__(self, installation: Installation) -> None:
        self.installation = installation
        if not _real:  # its truth is enough for all tests
            _real.append(installation.back_up())
            for key in list(installation.store.keys("postgres/")):
                installation.store.delete(key)
        self.proof = self.add(0)

    def bucket(self, tier: Tier = Tier.DAILY) -> Bucket:
        return self.installation.catalogue.stores.of(tier)

    def add(self, days: float, tier: Tier = Tier.DAILY, outcome: Outcome | None = None) -> Manifest:
        """A backup of so many days ago, tested or not."""
        return support.plant(self.installation, _real[0], utc_now() - timedelta(days=days), tier, outcome)

    def judge(self, made: Manifest, outcome: Outcome) -> None:
        """What a restore test of this one said."""
        support.find(self.installation, made, outcome)

    def there(self, made: Manifest) -> list[str]:
        """What a reader sees of it: names of objects."""
        return [key.removeprefix(made.prefix) for key in self.bucket(made.tier).keys(made.prefix)]


@pytest.fixture
def history(installation: Installation) -> History:
    return History(installation)


def pruner() -> Catalogue:
    return doors.catalogue("payme_s3_prune")


def planned(now: datetime | None = None) -> Plan:
    at = now or utc_now()
    return retain.plan(retain.survey(pruner(), at), at, proof_days=PROOF_DAYS)


def shown(made: Plan) -> Evidence:
    return retain.describe(made, "payme", actor="test", proof_days=PROOF_DAYS)


def apply(what: Evidence, run: str = "test/retention") -> Evidence:
    return retain.apply(pruner(), OPS, run, what, proof_days=PROOF_DAYS, report=quiet)


def actions(made: Plan) -> dict[str, Action]:
    return {row.backup: row.action for row in made.rows}


def complete(done: Manifest) -> list[str]:
    names = {stored.key.removeprefix(done.prefix) for stored in (done.archive, done.globals)}
    return sorted({*names, "manifest.json", "verification.json"})


# --- the way of every day ---------------------------------------------------------------------------------------


def test_what_is_past_its_time_goes_under_delete_markers_and_comes_back(history: History, proxy: Proxy) -> None:
    """Plan, delete, undo by the command line; with nothing but what payme_s3_prune may do."""
    history.judge(history.proof, Outcome.VERIFIED)
    young, old = history.add(29.99), history.add(30.01, outcome=Outcome.VERIFIED)
    weekly, newest_weekly = history.add(90.01, Tier.WEEKLY, Outcome.VERIFIED), history.add(5, Tier.WEEKLY)
    archive = history.add(400, Tier.MONTHLY, Outcome.VERIFIED)
    history.add(1, Tier.WEEKLY, Outcome.VERIFIED)

    proxy.requests.clear()
    dry = history.installation.cli("backup", "retention")
    assert dry.code == 0, dry
    assert old.prefix.split("/")[3] in dry.out
    assert history.there(old) == complete(old)
    assert not [one for one in proxy.requests if one.split(" ")[0] not in ("GET", "HEAD")]

    done = history.installation.cli("backup", "retention", "--apply")
    assert (done.code, "2 deleted" in done.out) == (0, True), done
    assert (history.there(old), history.there(weekly)) == ([], [])
    for kept in (history.proof, young, newest_weekly, archive):
        assert {"manifest.json", kept.archive.key.removeprefix(kept.prefix)} <= set(history.there(kept))
    deletes = [one for one in proxy.requests if one.startswith("DELETE")]
    assert len(deletes) == 8
    assert [deletes[0], deletes[4]] == [one for one in deletes if "manifest.json" in one]  # first of each
    assert not [one for one in proxy.requests if "versionId" in one or one.split(" ")[0] in ("PUT", "POST")]

    again = history.installation.cli("backup", "retention", "--apply")
    assert (again.code, "delete 0" in again.out) == (0, True), again

    back = history.installation.cli("backup", "undelete", weekly.prefix.split("/")[3])
    assert back.code == 0, back
    assert f"{weekly.key} is back, VERIFIED" in back.out
    assert "the next retention deletes it again" in back.out
    assert history.there(weekly) == complete(weekly)
    for stored in (weekly.archive, weekly.globals):
        body = history.bucket(Tier.WEEKLY).get(stored.key)
        assert hashlib.sha256(body).hexdigest() == stored.sha256
        assert history.bucket(Tier.WEEKLY).head(stored.key).storage_class == "STANDARD_IA"


def test_without_proof_nothing_goes_and_the_command_says_so(history: History) -> None:
    old = history.add(31)
    ended = history.installation.cli("backup", "retention", "--apply")
    assert ended.code == 3, ended
    assert "no backup was ever verified by a restore test" in ended.out
    assert "manifest.json" in history.there(old)


def test_many_at_once_want_a_typed_name_on_a_shell(history: History) -> None:
    history.judge(history.proof, Outcome.VERIFIED)
    old = [history.add(31 + number) for number in range(4)]
    ended = history.installation.cli("backup", "retention", "--apply")
    assert ended.code == 1, ended
    assert "4 deletions of daily backups at once, 3 are usual" in ended.out
    assert all("manifest.json" in history.there(one) for one in old)


# --- what the store says ----------------------------------------------------------------------------------------


def test_locks_are_reported_and_a_restore_tests_own_lock_is_none(history: History) -> None:
    history.judge(history.proof, Outcome.VERIFIED)
    held, retained, tested = history.add(31), history.add(32), history.add(33, outcome=Outcome.VERIFIED)
    until = utc_now().replace(microsecond=0) + timedelta(days=2)
    client, name = history.bucket().client, history.bucket().name
    client.put_object_legal_hold(Bucket=name, Key=held.globals.key, LegalHold={"Status": "ON"})
    lock: Any = {"Mode": "GOVERNANCE", "RetainUntilDate": until}
    client.put_object_retention(Bucket=name, Key=retained.archive.key, Retention=lock)
    client.put_object_retention(Bucket=name, Key=verification.key(tested), Retention=lock)

    rules = {row.backup: (row.action, row.rule) for row in planned().rows}
    assert rules[held.prefix] == (Action.LOCKED, f"legal hold on {held.globals.key}")
    assert rules[retained.prefix] == (Action.LOCKED, f"locked until {show(until)}")
    assert rules[tested.prefix][0] is Action.DELETE
    assert planned(until + timedelta(seconds=1)).rows[1].backup == retained.prefix
    assert actions(planned(until + timedelta(seconds=1)))[retained.prefix] is Action.DELETE


def test_objects_without_a_manifest_go_after_a_week(history: History) -> None:
    left = history.add(3)
    history.judge(history.add(-7.5), Outcome.VERIFIED)  # the proof a week from now
    history.bucket().delete(left.key)
    history.bucket().put("postgres/payme/daily/notes/readme.txt", b"not ours")
    soon, later = (utc_now() + timedelta(days=days) for days in (6.9, 7.6))
    assert actions(planned(later))[left.prefix] is Action.DELETE
    assert "postgres/payme/daily/notes/" not in actions(planned(later))
    proof = planned(soon)
    assert proof.frozen  # a backup of the future proves nothing
    assert actions(proof)[left.prefix] is Action.KEEP


def test_a_store_whose_clock_is_another_asks_also_between_plan_and_apply(history: History, proxy: Proxy) -> None:
    history.judge(history.proof, Outcome.VERIFIED)
    old = history.add(31)
    before = shown(planned())
    proxy.with_answer_header("HEAD", history.installation.copies_name, "Date", "Wed, 01 Jan 2020 00:00:00 GMT")
    assert "s off the store's, 60 s are allowed" in planned().asks
    with pytest.raises(NotApproved, match="off the store's"):
        apply(before)
    assert "manifest.json" in history.there(old)
    assert apply(shown(planned())).measured["deleted"] == [old.prefix]  # a person has agreed to that one


def test_a_region_that_is_away_may_hold_the_proof_so_nothing_is_planned(history: History, proxy: Proxy) -> None:
    history.judge(history.proof, Outcome.VERIFIED)
    old = history.add(31)
    proxy.answer("GET", history.installation.copies_name, 503, "ServiceUnavailable")
    with pytest.raises(StoreUnavailable):
        planned()
    assert "manifest.json" in history.there(old)


# --- between plan and apply -------------------------------------------------------------------------------------


def test_a_lock_after_the_plan_stops_all_of_it(history: History) -> None:
    history.judge(history.proof, Outcome.VERIFIED)
    one, other = history.add(31), history.add(32)
    plan = shown(planned())
    assert set(retain.planned(plan)) == {one.prefix, other.prefix}
    history.bucket().client.put_object_legal_hold(
        Bucket=history.bucket().name, Key=other.archive.key, LegalHold={"Status": "ON"}
    )
    with pytest.raises(NotApproved, match="no longer holds for 1 of 2 deletions; nothing was deleted"):
        apply(plan)
    assert "manifest.json" in history.there(one)


def test_a_proof_that_is_refuted_after_the_plan_stops_it(history: History) -> None:
    history.judge(history.proof, Outcome.VERIFIED)
    history.add(2)
    old = history.add(31)
    plan = shown(planned())
    history.judge(history.proof, Outcome.REFUTED)
    with pytest.raises(NotApproved, match="frozen"):
        apply(plan)
    assert "manifest.json" in history.there(old)


def test_what_is_due_by_now_but_was_not_planned_stays(history: History) -> None:
    history.judge(history.proof, Outcome.VERIFIED)
    one = history.add(31)
    plan = shown(planned())
    later = history.add(31.5)
    assert apply(plan).measured == {"deleted": [one.prefix], "objects in this try": 3}
    assert "manifest.json" in history.there(later)


def test_one_retention_at_a_time(history: History) -> None:
    history.judge(history.proof, Outcome.VERIFIED)
    old = history.add(31)
    plan = shown(planned())
    with lease.hold(OPS, "retention:payme", "another"), pytest.raises(LeaseHeld):
        apply(plan)
    assert "manifest.json" in history.there(old)


# --- interrupted ------------------------------------------------------------------------------------------------


def test_a_killed_deletion_leaves_no_backup_and_goes_on(history: History, proxy: Proxy) -> None:
    history.judge(history.proof, Outcome.VERIFIED)
    old = history.add(31)
    plan = shown(planned())
    refused = proxy.answer("DELETE", old.archive.key, 403, "AccessDenied")
    with pytest.raises(StoreRefused):
        apply(plan)
    assert refused.hits == 1
    assert "manifest.json" not in history.there(old)
    assert old.key not in [one.key for one in catalogue.entries(history.installation.catalogue)]
    assert actions(planned())[old.prefix] is Action.KEEP  # a new plan waits: it could be a run under way
    proxy.clear()
    apply(plan)  # the same run knows what it had begun
    assert history.there(old) == []
    apply(plan)  # and has nothing left to do


def test_a_command_killed_between_two_deletions_can_be_undone(history: History, proxy: Proxy) -> None:
    history.judge(history.proof, Outcome.VERIFIED)
    old = history.add(31)
    held = proxy.hold("DELETE", old.archive.key)
    running = history.installation.start("backup", "retention", "--apply")
    held.wait_until_seen()
    running.kill()
    held.drop()
    assert "manifest.json" not in history.there(old)
    proxy.clear()
    back = history.installation.cli("backup", "undelete", old.key)
    assert (back.code, f"{old.key} is back, COMPLETE" in back.out) == (0, True), back
    assert sorted(history.there(old)) == [name for name in complete(old) if name != "verification.json"]


def test_undelete_goes_on_after_a_fault_with_the_manifest_last(history: History, proxy: Proxy) -> None:
    history.judge(history.proof, Outcome.VERIFIED)
    old, backup = history.add(31, outcome=Outcome.VERIFIED), history.installation.desk.settings.backup
    apply(shown(planned()))
    writer = doors.catalogue("payme_s3_write")
    fault = proxy.answer("PUT", old.globals.key, 403, "AccessDenied")
    with pytest.raises(StoreRefused):
        retain.undelete(writer, old.prefix, backup, report=quiet)
    assert fault.hits == 1
    assert "manifest.json" not in history.there(old)
    proxy.clear()
    found = retain.undelete(writer, old.prefix, backup, report=quiet)
    assert (found.key, found.state) == (old.key, State.VERIFIED)
    with pytest.raises(AlreadyExists, match="is not deleted"):
        retain.undelete(writer, old.prefix, backup, report=quiet)


@pytest.mark.parametrize("name", ["20260128T020000EAT", "nothing", ""])
def test_undelete_of_what_was_never_there_says_what_is_expected(installation: Installation, name: str) -> None:
    backup = installation.desk.settings.backup
    with pytest.raises(NotFound, match="a time stamp, prefix or manifest key"):
        retain.undelete(installation.catalogue, name, backup, report=quiet)
