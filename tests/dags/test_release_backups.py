"""Items of a release that look at the backups: on a real backup, restored on a throw-away server."""

import json
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from payme_ops.backup import scratch
from payme_ops.backup.manifest import Manifest
from payme_ops.backup.verification import Outcome
from payme_ops.foundation.clock import EAT, show, utc_now
from payme_ops.foundation.errors import NotFound, Unavailable
from payme_ops.foundation.evidence import Finding, Verdict, canonical
from payme_ops.orchestration import release_backups
from payme_ops.release.request import Release
from sandbox.http import call
from tests.support import releases, standins, verdicts
from tests.support.installation import Installation
from tests.support.standins import StandIn, answering, code_host_stand_in

NOW = utc_now()
ASKED = releases.form(
    carries_migration=True, window_from=NOW + timedelta(hours=48), window_to=NOW + timedelta(hours=50)
)
RELEASE = Release("production-2.4.1-a", "oncall", NOW, ASKED)
FIRST = datetime(2025, 1, 1)  # noqa: DTZ001  # Hypothesis adds the zone
UP = "ALTER TABLE users ADD nickname text;\n--> statement-breakpoint\nCREATE INDEX CONCURRENTLY n ON users (nickname);"
DOWN = "DROP INDEX n;\n--> statement-breakpoint\nALTER TABLE users DROP nickname;"


@pytest.fixture
def code_host(installation: Installation, tmp_path: Path) -> Iterator[StandIn]:
    with code_host_stand_in(tmp_path) as running:
        connection = {
            "conn_type": "http",
            "host": running.url,
            "password": "token-of-the-host",
            "extra": {"repository": "payme/api"},
        }
        installation.set_all({"AIRFLOW_CONN_PAYME_CODE_HOST": json.dumps(connection)})
        yield running


def put(code_host: StandIn, **files: str) -> None:
    named = {"up": "drizzle/0010_x.sql", "down": "drizzle/down/0010_x.sql"}
    asked = {"commit": RELEASE.request.commit, "files": {named[which]: text for which, text in files.items()}}
    assert call("POST", f"{code_host.url}/repo", asked)[0] == 200


def context(*, paused: bool = False) -> Any:
    """As Airflow gives it: the SDK tells of any DAG whether it is paused."""

    def get_dag(dag_id: str) -> SimpleNamespace:
        assert dag_id == "backup_daily"
        return SimpleNamespace(is_paused=paused)

    run = SimpleNamespace(dag_id="pre_deployment", run_id="manual__1")
    return {"dag_run": run, "ti": SimpleNamespace(get_dag=get_dag)}


def backed_up(installation: Installation, outcome: Outcome | None = Outcome.VERIFIED) -> Manifest:
    """A backup, and what a restore test found."""
    done = installation.back_up()
    if outcome:
        verdicts.judge(installation, done, outcome)
    return done


# -- migrations -------------------------------------------------------------------------------------------------


def tested() -> Finding:
    found = release_backups.migrations_tested(context(), RELEASE)
    canonical(found.measured)
    return found


tested.__test__ = False  # type: ignore[attr-defined]


def test_a_migration_is_tried_on_the_newest_verified_backup(
    installation: Installation, code_host: StandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    verified = backed_up(installation)
    installation.next_second()
    backed_up(installation, None)
    put(code_host, up=UP, down=DOWN)
    found = tested()
    assert (found.verdict, found.remedy) == (Verdict.PASS, "")
    measured = found.measured
    assert (measured["backup"], measured["taken"]) == (verified.key, show(verified.snapshot_at))
    assert (measured["role"], measured["rows"]) == ("payme_owner", verified.truth.rows)
    assert measured["rollback_safe"] is True
    assert list(installation.desk.settings.backup.scratch_dir.glob(f"{scratch._PREFIX}*")) == []

    monkeypatch.setenv("PAYME_OPS__RELEASE__MIGRATIONS_PATH", "elsewhere")
    assert tested().verdict is Verdict.FAIL  # the form says that there is one


@pytest.mark.blocks("migrations_tested")
def test_what_does_not_come_back_blocks_and_says_how_old_the_backup_is(
    installation: Installation, code_host: StandIn
) -> None:
    verified = backed_up(installation)
    put(code_host, up=UP, down="DROP INDEX n;")
    found = tested()
    assert found.verdict is Verdict.FAIL
    assert found.measured["not as before"] == ["column public.users.nickname"]
    assert show(verified.snapshot_at) in found.remedy


@pytest.mark.blocks("migrations_tested")
def test_without_a_verified_backup_nothing_can_be_tried(installation: Installation, code_host: StandIn) -> None:
    backed_up(installation, None)
    put(code_host, up=UP, down=DOWN)
    with pytest.raises(NotFound, match="no verified backup"):
        tested()


@pytest.mark.blocks("migrations_tested")
def test_without_a_code_host_a_person_is_asked(installation: Installation) -> None:
    installation.set_all({"AIRFLOW_CONN_PAYME_CODE_HOST": None})
    found = tested()
    assert (found.verdict, found.measured["rollback_safe"]) == (Verdict.INCONCLUSIVE, False)


def test_nothing_new_needs_no_backup(installation: Installation, code_host: StandIn) -> None:
    assert installation.manifests() == []
    assert code_host
    plain = replace(RELEASE, request=replace(RELEASE.request, carries_migration=False))
    found = release_backups.migrations_tested(context(), plain)
    assert (found.verdict, found.measured["rollback_safe"]) == (Verdict.PASS, True)


# -- the schedule -----------------------------------------------------------------------------------------------


def scheduled(release: Release = RELEASE, *, paused: bool = False) -> Finding:
    found = release_backups.backup_scheduled(context(paused=paused), release)
    canonical(found.measured)
    return found


def window(begins: datetime, hours: float) -> Release:
    asked = replace(RELEASE.request, window_from=begins, window_to=begins + timedelta(hours=hours))
    return replace(RELEASE, request=asked)


def test_fresh_verified_and_scheduled(installation: Installation) -> None:
    done = backed_up(installation)
    found = scheduled()
    assert (found.verdict, found.remedy) == (Verdict.PASS, "")
    assert found.measured["newest complete"]["backup"] == found.measured["newest verified"]["backup"] == done.key
    assert found.measured["next backup"].endswith("02:00:00 EAT")
    assert found.measured["before the window"] == "yes"
    night = release_backups.next_slot(utc_now() + timedelta(days=1))
    for begins, hours, inside in ((night - timedelta(hours=1), 2, "yes"), (night + timedelta(seconds=1), 2, "no")):
        assert scheduled(window(begins, hours)).measured["inside the window"] == inside
    assert scheduled(window(utc_now() - timedelta(seconds=1), 1)).measured["before the window"] == "no"


@pytest.mark.blocks("backup_scheduled")
def test_a_backup_that_was_not_verified_blocks(installation: Installation) -> None:
    none = scheduled()
    assert (none.verdict, none.measured["newest verified"]) == (Verdict.FAIL, "none")
    assert "backup_daily" in none.remedy
    done = backed_up(installation, None)
    unproven = scheduled()
    assert (unproven.verdict, unproven.measured["newest complete"]["backup"]) == (Verdict.FAIL, done.key)
    assert "backup_restore_test" in unproven.remedy
    verdicts.judge(installation, done, Outcome.REFUTED)
    refuted = scheduled()
    assert (refuted.verdict, refuted.measured["newest complete"]["is"]) == (Verdict.FAIL, "none")


@pytest.mark.blocks("backup_scheduled")
def test_what_is_old_or_paused_blocks(installation: Installation, monkeypatch: pytest.MonkeyPatch) -> None:
    backed_up(installation)
    paused = scheduled(paused=True)
    assert (paused.verdict, paused.measured["next backup"]) == (Verdict.FAIL, "none: paused")
    assert "unpause backup_daily" in paused.remedy

    later = timedelta(hours=27)
    monkeypatch.setattr(release_backups, "utc_now", lambda: utc_now() + later)
    old = scheduled()
    assert (old.verdict, old.measured["newest complete"]["is"]) == (Verdict.FAIL, "27.0 h")
    assert "run backup_daily" in old.remedy

    monkeypatch.setenv("PAYME_OPS__TARGETS__RPO_HOURS", "1000")
    assert scheduled().verdict is Verdict.PASS
    later = timedelta(days=9)
    unproven = scheduled()
    assert (unproven.verdict, unproven.measured["newest verified"]["is"]) == (Verdict.FAIL, "9.0 days")
    assert "backup_restore_test" in unproven.remedy


def test_a_store_that_is_away_is_no_verdict(installation: Installation, tmp_path: Path) -> None:
    connection = json.loads(installation.site.world.env["AIRFLOW_CONN_PAYME_S3_RESTORE"])
    with standins.served(answering({}, 503), tmp_path) as away:
        connection["extra"]["endpoint_url"] = away.url
        installation.set_all({"AIRFLOW_CONN_PAYME_S3_RESTORE": json.dumps(connection)})
        with pytest.raises(Unavailable):
            scheduled()


@given(st.datetimes(timezones=st.just(UTC), min_value=FIRST, max_value=FIRST.replace(year=2035)))
def test_a_slot_is_at_two_in_nairobi_within_a_day(after: datetime) -> None:
    slot = release_backups.next_slot(after)
    assert timedelta(0) <= slot - after < timedelta(days=1)
    local = slot.astimezone(EAT)
    assert (local.hour, local.minute, local.second, local.microsecond) == (2, 0, 0, 0)
    assert release_backups.next_slot(slot) == slot


def test_the_slot_is_the_dags(dag_bag: Any) -> None:
    timetable = dag_bag.dags[release_backups.BACKUP_DAG].timetable
    assert (timetable.expression, str(timetable.timezone)) == (f"0 {release_backups._SLOT_HOUR} * * *", str(EAT))
