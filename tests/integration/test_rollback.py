"""From the request to the healthy application, on a database that is a copy of PayMe's; and what is refused."""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path

import psycopg
import pytest
from typer.testing import CliRunner, Result

from payme_ops.backup import loss, rollback, swap, verification
from payme_ops.backup.manifest import Manifest
from payme_ops.backup.rollback import RestoreDesk
from payme_ops.backup.swap import Swapped
from payme_ops.cli import app
from payme_ops.foundation import payme_api
from payme_ops.foundation.clock import utc_now
from payme_ops.foundation.errors import IntegrityError, NotFound, PaymeOpsError, SettingsError
from payme_ops.foundation.evidence import Evidence, Verdict
from payme_ops.foundation.payme_api import PaymeApi
from payme_ops.foundation.record import Record
from payme_ops.foundation.signing import load_private_key
from sandbox.http import call
from tests.support.installation import Installation, quiet
from tests.support.standins import payme_api_stand_in
from tests.support.used import used_database
from tests.support.waiting import eventually

_numbers = itertools.count(1)
REASON = "users was dropped"


@pytest.fixture
def target(installation: Installation) -> Iterator[str]:
    with used_database(installation) as name:
        yield name


@dataclass(frozen=True)
class Case:
    """One run on one database in use."""

    installation: Installation
    desk: RestoreDesk
    run: str
    target: str

    def ask(self, **how: str) -> rollback.Request:
        asked = {"backup": "latest", "target": self.target, "reason": REASON, "version": "", **how}
        return rollback.check_request(self.desk, self.run, **asked)

    def restore_beside(self) -> str:
        return rollback.restore_beside(self.desk, self.run, report=quiet)

    def measure_loss(self) -> Evidence:
        return rollback.measure_loss(self.desk, self.run, report=quiet)

    def swap_in(self) -> Swapped:
        return rollback.swap_in(self.desk, self.run, report=quiet)

    def stop(self, api: PaymeApi | None) -> Evidence:
        return rollback.stop_application(self.desk, self.run, api)

    def start(self, api: PaymeApi | None) -> Evidence | None:
        return rollback.start_application(self.desk, self.run, api, report=quiet)

    def prepare(self) -> None:
        """All that comes before the approval."""
        self.ask()
        self.restore_beside()
        self.measure_loss()

    def users(self, database: str = "") -> int:
        with self.installation.site.admin(database or self.target) as admin:
            row = admin.execute("SELECT count(*) FROM users").fetchone()
        assert row
        return int(row[0])


@pytest.fixture
def case(installation: Installation, target: str) -> Case:
    config = installation.desk.settings
    assert target in config.backup.restore_targets
    desk = RestoreDesk(config, "service=payme_db_restore", "service=payme_ops_db", installation.catalogue)
    return Case(installation, desk, f"backup_restore/test {next(_numbers)}", target)


@pytest.fixture
def backup(case: Case) -> Manifest:
    return case.installation.back_up()


def rows_of(backup: Manifest) -> int | None:
    """Users in it."""
    (rows,) = (one.rows for one in backup.truth.relations if one.qualified == "public.users")
    return rows


@pytest.fixture
def api(case: Case, tmp_path: Path) -> Iterator[PaymeApi]:
    """PayMe's application at work in the target."""
    with payme_api_stand_in(tmp_path, case.installation.site.world.conninfo("payme_app", case.target)) as (_, running):
        yield running


def test_from_a_dropped_table_to_a_healthy_application(
    case: Case,
    backup: Manifest,
    api: PaymeApi,
) -> None:
    with case.installation.site.admin(case.target) as admin:
        admin.execute("SET lock_timeout = '10s'")
        admin.execute("DROP TABLE users CASCADE")
        admin.execute("CREATE TABLE made_by_root (id int); SET ROLE payme_owner")
        admin.execute("CREATE TABLE made_since (id int); INSERT INTO made_since VALUES (1), (2)")
    assert not payme_api.health(api).healthy

    asked = case.ask()
    assert asked.backup == backup.key
    stopped = case.stop(api)
    assert stopped.verdict is Verdict.PASS
    assert (stopped.measured["version"], stopped.measured["previous"]) == ("2.4.0", "2.3.1")
    assert not [line for line in stopped.measured["sessions"] if "payme_app" in line]
    held = psycopg.connect(case.installation.site.cluster.conninfo(case.target))  # a person's psql

    case.restore_beside()
    plan = case.measure_loss().measured
    rows = rows_of(backup)
    assert plan["missing now, come back"] == [f"public.users ({rows} rows)"]
    assert plan["not in the backup, go"] == ["public.made_by_root (not counted)", "public.made_since (2 rows)"]
    assert plan["rename"]["sessions that are ended"] == ["1 of postgres (no name), a superuser: end it yourself"]
    held.close()
    assert plan["rename"]["carried over"]["owner"] == "payme_owner"
    assert plan["rename"]["carried over"]["settings"] == ["payme_app: statement_timeout=30s"]
    assert plan["state"] == "COMPLETE"

    done = case.swap_in()
    started = case.start(api)
    assert started
    assert started.verdict is Verdict.PASS
    assert payme_api.health(api).healthy
    assert payme_api.version(api).version == "2.3.1"  # the one before
    assert case.users() == rows
    assert rollback.recovery_seconds(case.desk, case.run) is not None
    # The old one is there as it was.
    assert [mark.name for mark in swap.replaced(case.desk.server) if mark.target == case.target] == [done.replaced]


def test_what_would_be_lost_is_counted_exactly(case: Case, backup: Manifest) -> None:
    site, there = case.installation.site, case.users()
    with site.admin(case.target) as admin:
        admin.execute(
            "INSERT INTO users (public_id, phone_number, full_name, created_at) SELECT gen_random_uuid(),"
            " '+25471' || lpad(n::text, 7, '0'), 'New', %s FROM generate_series(1, 7) AS n",
            [backup.snapshot_at + timedelta(seconds=1)],
        )
        admin.execute("DELETE FROM rate_limits")
    found = {one.table: one for one in loss.tables(case.desk.server, case.target, backup, report=quiet)}
    lost = found["public.users"]
    # The backup is of payme, which other tests write to, too.
    assert (lost.now, lost.backup, lost.newer) == (there + 7, rows_of(backup), 7)
    assert lost.newest
    assert found["public.merchants"].unchanged
    told = loss.summary(list(found.values()))
    assert told["rows newer than the backup"] == 7
    assert told["newest row"].endswith("in public.users")


@pytest.mark.usefixtures("backup")
def test_no_row_and_no_phone_number_is_in_the_evidence(case: Case) -> None:
    case.prepare()
    with psycopg.connect(case.desk.ops) as ops:
        rows = ops.execute("SELECT measured::text FROM ops.evidence WHERE run = %s", [case.run]).fetchall()
    assert len(rows) == 3
    assert not [row for row in rows if "+2547" in row[0] or "New Customer" in row[0]]


@pytest.mark.parametrize(
    ("how", "says"),
    [
        ({"reason": " "}, "wants a reason"),
        ({"target": "payme"}, "is no target of restores"),
        ({"target": "postgres; DROP DATABASE payme"}, "is no target of restores"),
    ],
)
def test_a_bad_request_is_refused_and_touches_nothing(case: Case, how: dict[str, str], says: str) -> None:
    with pytest.raises(SettingsError, match=says):
        case.ask(**how)
    with pytest.raises(NotFound):
        rollback.request(case.desk, case.run)


@pytest.mark.usefixtures("backup")
def test_without_a_list_only_the_database_that_is_backed_up_is_a_target(case: Case) -> None:
    settings = case.desk.settings.model_copy(
        update={"backup": case.desk.settings.backup.model_copy(update={"restore_targets": []})}
    )
    alone = replace(case, desk=replace(case.desk, settings=settings))
    with pytest.raises(SettingsError, match="is no target of restores"):
        alone.ask()
    assert alone.ask(target="").target == "payme"


def test_a_backup_that_is_not_there_is_named(case: Case) -> None:
    with pytest.raises(NotFound, match="has no backup that counts"):
        case.ask()
    with pytest.raises(NotFound, match="no backup is named"):
        case.ask(backup="20200101T020000EAT")


def test_a_refuted_backup_is_never_restored(case: Case, backup: Manifest) -> None:
    config = case.desk.settings.backup
    assert config.verification_key_file
    refuted = Record(
        kind=verification.KIND,
        subject=backup.key,
        run="test",
        actor="test",
        verdict="REFUTED",
        started=utc_now(),
        ended=utc_now(),
        facts=verification.binding(backup),
    )
    key = load_private_key(config.verification_key_file)
    verification.write([(case.installation.store, backup)], refuted, key, config.verification_keys)
    with pytest.raises(IntegrityError, match="is REFUTED"):
        case.ask(backup=backup.key)


@pytest.mark.usefixtures("backup")
def test_a_lacking_right_is_named_at_the_request(case: Case) -> None:
    with case.installation.site.admin("postgres") as admin:
        admin.execute(f"ALTER DATABASE {case.target} OWNER TO postgres")
    with pytest.raises(PaymeOpsError, match="not: owns target"):
        case.ask()


def test_a_stage_without_the_one_before_does_nothing(case: Case) -> None:
    for stage in (rollback.restore_beside, rollback.measure_loss, rollback.swap_in):
        with pytest.raises(NotFound, match="no usable evidence"):
            stage(case.desk, case.run, report=quiet)


@pytest.mark.usefixtures("backup")
def test_no_swap_without_a_plan(case: Case) -> None:
    case.ask()
    case.restore_beside()
    with pytest.raises(NotFound, match="no usable evidence for restore_plan"):
        case.swap_in()


@pytest.mark.usefixtures("backup")
def test_stages_may_be_run_again(case: Case) -> None:
    case.prepare()
    said = list[str]()
    rollback.restore_beside(case.desk, case.run, report=said.append)
    assert "holds" in said[0]
    plan = case.measure_loss()
    done = case.swap_in()
    case.restore_beside()
    assert case.measure_loss() == plan  # what was agreed to stays what it was
    assert case.swap_in() == done


@pytest.mark.usefixtures("backup")
def test_discarding_drops_what_was_restored_but_never_what_is_in_use(case: Case) -> None:
    case.prepare()
    rollback.discard(case.desk, case.run)
    with pytest.raises(NotFound, match="there is no restored database"):
        case.swap_in()
    case.restore_beside()
    case.swap_in()
    rollback.discard(case.desk, case.run)
    assert case.users() > 0


@pytest.mark.usefixtures("backup")
def test_a_restore_killed_half_way_is_begun_anew(case: Case) -> None:
    case.ask()
    beside = swap.beside_name(case.target, case.run)
    with case.installation.site.admin("postgres") as admin:  # what a kill -9 leaves: a database without the marker
        admin.execute(f"CREATE DATABASE {beside} OWNER payme_owner")
    case.restore_beside()
    assert case.users(beside) > 0


@pytest.mark.usefixtures("backup")
def test_the_restored_database_has_statistics(case: Case) -> None:
    case.ask()
    beside = case.restore_beside()
    with case.installation.site.admin(beside) as admin:
        row = admin.execute("SELECT count(*) FROM pg_stats WHERE tablename = 'transactions'").fetchone()
    assert row
    assert row[0] > 5


# -- the application --------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("backup")
def test_without_an_api_a_person_is_asked(case: Case) -> None:
    case.ask()
    stopped = case.stop(None)
    assert stopped.verdict is Verdict.INCONCLUSIVE
    assert "then confirm" in stopped.remedy
    started = case.start(None)
    assert started
    assert started.verdict is Verdict.INCONCLUSIVE
    assert "start the application yourself" in started.remedy


@pytest.mark.usefixtures("backup")
def test_an_api_that_is_down_is_a_question_too(case: Case, api: PaymeApi) -> None:
    case.ask()
    call("POST", f"{api.url}/control", {"fail": 503})
    eventually(lambda: loss.sessions(case.desk.server, case.target), "the application's session")
    stopped = case.stop(api)
    assert stopped.verdict is Verdict.INCONCLUSIVE
    assert [line for line in stopped.measured["sessions"] if "payme_app" in line]  # what a person has to look at
    call("POST", f"{api.url}/control", {"fail": None})
    assert case.stop(api).verdict is Verdict.PASS


@pytest.mark.usefixtures("backup")
def test_killed_between_stop_and_its_evidence_it_is_started_all_the_same(
    case: Case, api: PaymeApi, monkeypatch: pytest.MonkeyPatch
) -> None:
    case.ask()

    def stop_and_die(there: PaymeApi) -> payme_api.Version:
        stop(there)
        raise SystemExit

    stop = payme_api.stop
    monkeypatch.setattr(payme_api, "stop", stop_and_die)
    with pytest.raises(SystemExit):
        case.stop(api)
    assert payme_api.health(api).status == "stopped"
    started = case.start(api)
    assert started
    assert (started.verdict, started.measured["version"]) == (Verdict.PASS, "2.4.0")


@pytest.mark.usefixtures("backup")
def test_an_api_that_refuses_to_start_it_is_a_question(case: Case, api: PaymeApi) -> None:
    case.ask()
    case.stop(api)
    call("POST", f"{api.url}/control", {"fail": 409})
    started = case.start(api)
    assert started
    assert started.verdict is Verdict.INCONCLUSIVE
    assert "start the application yourself, version 2.4.0" in started.remedy


@pytest.mark.usefixtures("backup")
def test_before_the_swap_it_is_started_as_it_ran(case: Case, api: PaymeApi) -> None:
    case.ask()
    assert case.start(api) is None  # nothing was stopped
    case.stop(api)
    started = case.start(api)
    assert started
    assert started.measured["version"] == "2.4.0"
    assert payme_api.health(api).healthy


@pytest.mark.usefixtures("backup")
def test_the_version_asked_for_is_started_after_the_swap(case: Case, api: PaymeApi) -> None:
    case.ask(version="2.3.0")
    case.stop(api)
    case.restore_beside()
    case.measure_loss()
    case.swap_in()
    case.start(api)
    assert payme_api.version(api).version == "2.3.0"


@pytest.mark.usefixtures("backup")
def test_an_application_that_does_not_get_well_is_a_failure(
    case: Case,
    api: PaymeApi,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(rollback, "_HEALTHY_WITHIN_SECONDS", 0.0)
    case.ask()
    case.stop(api)
    with case.installation.site.admin(case.target) as admin:
        admin.execute("DROP TABLE users CASCADE")
    started = case.start(api)
    assert started
    assert started.verdict is Verdict.FAIL
    assert started.measured["status"] == "unhealthy"
    assert rollback.recovery_seconds(case.desk, case.run) is None


# -- on a shell -------------------------------------------------------------------------------------------------


def on_a_shell(case: Case, answers: str, *more: str) -> Result:
    arguments = ["backup", "rollback", "latest", "--target", case.target, "--reason", REASON, *more]
    return CliRunner().invoke(app, arguments, input=answers)


def test_on_a_shell_the_typed_name_swaps(case: Case, backup: Manifest) -> None:
    with case.installation.site.admin(case.target) as admin:
        admin.execute("DROP TABLE users CASCADE")
    ended = on_a_shell(case, f"no\nstopped\n{case.target}\n")
    assert ended.exit_code == 0, ended.output
    assert f"public.users ({rows_of(backup)} rows)" in ended.output
    assert "kept 7 days" in ended.output
    assert case.users() == rows_of(backup)


@pytest.mark.usefixtures("backup")
def test_on_a_shell_any_other_word_changes_nothing(case: Case) -> None:
    with case.installation.site.admin(case.target) as admin:
        admin.execute("DROP TABLE users CASCADE")
    ended = on_a_shell(case, "stopped\nyes\n")
    assert ended.exit_code == 1
    assert "Nothing was changed" in ended.output
    with case.installation.site.admin("postgres") as admin:
        rows = admin.execute("SELECT datname FROM pg_database WHERE datname LIKE %s", [f"{case.target}%"]).fetchall()
    assert rows == [(case.target,)]


@pytest.mark.usefixtures("backup")
def test_on_a_shell_a_killed_run_is_taken_up_by_its_name(case: Case) -> None:
    case.prepare()
    ended = on_a_shell(case, f"stopped\n{case.target}\n", "--run", case.run)
    assert ended.exit_code == 0, ended.output
    assert f"run {case.run}" in ended.output
    assert f"holds {case.ask().backup} already" in ended.output
