"""The tasks of backup_weekly and backup_monthly on real services: what is skipped, what is asked for, what is red."""

from dataclasses import dataclass
from datetime import datetime, timedelta
from types import SimpleNamespace

import pytest
from airflow.sdk.exceptions import AirflowSkipException

from payme_ops.backup import catalogue
from payme_ops.backup.catalogue import State
from payme_ops.backup.manifest import Manifest, Tier
from payme_ops.backup.verification import Outcome
from payme_ops.foundation import evidence
from payme_ops.foundation.clock import utc_now
from payme_ops.foundation.errors import NotFound, PreflightFailed
from payme_ops.orchestration import copies as tasks
from tests.support.installation import Installation
from tests.support.verdicts import judge


@dataclass
class Run:
    """One run of a DAG: its context."""

    installation: Installation
    monkeypatch: pytest.MonkeyPatch

    def begin(self, name: str, run_after: datetime | None = None) -> str:
        dag_run = SimpleNamespace(dag_id="test", run_id=name, run_after=run_after or utc_now())
        context = {"dag_run": dag_run, "params": {"reason": "a test"}}
        self.monkeypatch.setattr(tasks, "get_current_context", lambda: context)
        self.monkeypatch.setattr(tasks, "desk", lambda: self.installation.desk)
        return f"test/{name}"


@pytest.fixture
def run(installation: Installation, monkeypatch: pytest.MonkeyPatch) -> Run:
    made = Run(installation, monkeypatch)
    made.begin(installation.bucket_name)
    return made


def of(installation: Installation, tier: Tier) -> list[Manifest]:
    return [one.manifest for one in catalogue.entries(installation.catalogue, tiers=[tier]) if one.manifest]


# --- weekly -----------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("run")
def test_the_days_backup_is_copied_and_a_second_run_changes_nothing(installation: Installation) -> None:
    done = installation.back_up()
    tasks.preflight()
    with pytest.raises(AirflowSkipException, match=done.key):
        tasks.need_fresh()
    key = tasks.copy()
    (made,) = of(installation, Tier.WEEKLY)
    assert (made.key, made.copied_from) == (key, done.key)
    assert tasks.copy() == key


def test_a_day_without_a_backup_that_counts_gets_a_fresh_one(installation: Installation, run: Run) -> None:
    tasks.need_fresh()  # does not skip
    with pytest.raises(NotFound, match="no backup of that day"):
        tasks.copy()
    refuted = installation.back_up()
    judge(installation, refuted, Outcome.REFUTED)
    tasks.need_fresh()
    fresh = installation.back_up()
    with pytest.raises(AirflowSkipException, match=fresh.key):
        tasks.need_fresh()
    tasks.copy()
    assert [made.copied_from for made in of(installation, Tier.WEEKLY)] == [fresh.key]
    # Last Sunday's run, cleared today: what is newer will do. Tomorrow's: it will not.
    run.begin("cleared", utc_now() - timedelta(days=3))
    with pytest.raises(AirflowSkipException):
        tasks.need_fresh()
    run.begin("tomorrow", utc_now() + timedelta(days=1))
    tasks.need_fresh()


def test_the_other_regions_bucket_is_looked_at_first(installation: Installation, run: Run) -> None:
    name = run.begin("preflight")
    installation.set("BACKUP__COPY_BUCKET", installation.bucket_name)
    with pytest.raises(PreflightFailed, match=r"copy_bucket \(fail\)"):
        tasks.preflight()
    assert evidence.latest("service=payme_ops_db", name, "copy_bucket").verdict == "fail"


# --- monthly ----------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("run")
def test_a_verified_one_is_archived_as_it_is_once_a_month(installation: Installation, run: Run) -> None:
    with pytest.raises(NotFound, match="no daily backup to archive"):
        tasks.need_test()
    first = installation.back_up()
    installation.back_up()
    judge(installation, first)
    with pytest.raises(AirflowSkipException, match=f"{first.key} is VERIFIED"):
        tasks.need_test()
    key = tasks.archive()
    (made,) = of(installation, Tier.MONTHLY)
    assert (made.key, made.copied_from) == (key, first.key)
    run.begin("by hand")
    for task in (tasks.need_test, tasks.archive):
        with pytest.raises(AirflowSkipException, match=f"has its archive: {key}"):
            task()


@pytest.mark.usefixtures("run")
def test_one_that_was_never_tested_is_tested_first(installation: Installation) -> None:
    first = installation.back_up()
    assert tasks.need_test() == first.key
    with pytest.raises(NotFound, match="was not tested"):
        tasks.archive()
    assert of(installation, Tier.MONTHLY) == []
    judge(installation, first)
    tasks.archive()
    assert [made.copied_from for made in of(installation, Tier.MONTHLY)] == [first.key]


@pytest.mark.usefixtures("run")
def test_one_that_its_test_refuted_is_passed_over(installation: Installation) -> None:
    first, second = installation.back_up(), installation.back_up()
    assert tasks.need_test() == first.key
    judge(installation, first, Outcome.REFUTED)
    with pytest.raises(NotFound, match="VERIFIED"):
        tasks.archive()
    judge(installation, second)
    tasks.archive()
    assert [made.copied_from for made in of(installation, Tier.MONTHLY)] == [second.key]
    assert {entry.state for entry in catalogue.entries(installation.catalogue, tiers=[Tier.MONTHLY])} == {
        State.VERIFIED
    }
