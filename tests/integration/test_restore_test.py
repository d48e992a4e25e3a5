"""The restore test: what it accepts, what it refutes and names, and what it does not blame on the backup."""

import os
import resource
import shutil
from collections.abc import Callable
from pathlib import Path

import psycopg
import pyrage
import pytest

from payme_ops.backup import catalogue, restore, restore_test, scratch
from payme_ops.backup.manifest import Extension, Manifest
from payme_ops.backup.restore_test import CHECKS, invariants
from payme_ops.backup.verification import Outcome
from payme_ops.foundation import settings, signing
from payme_ops.foundation.errors import SettingsError, StoreUnavailable, Unavailable
from payme_ops.foundation.evidence import Verdict
from payme_ops.foundation.objectstore import MIB
from payme_ops.foundation.record import Record
from sandbox import forgery
from tests.support.installation import Installation, quiet
from tests.support.proxy import Proxy
from tests.support.waiting import eventually


def judge(installation: Installation, done: Manifest, given_host: str | None = None) -> Record:
    config = settings.load()
    return restore_test.examine(
        installation.desk.bucket,
        done,
        restore.load_identity(config.backup.identity_file),
        config,
        "test",
        given_host=given_host,
        report=quiet,
    )


def scratch_dir(installation: Installation) -> Path:
    return installation.desk.settings.backup.scratch_dir


def forged(installation: Installation, done: Manifest, change: Callable[[psycopg.Connection], object]) -> Manifest:
    backup = installation.desk.settings.backup
    return forgery.change_content(
        installation.store,
        done,
        change,
        identity=restore.load_identity(backup.identity_file),
        signing_key=signing.load_private_key(backup.signing_key_file),
        bin_dir=installation.site.cluster.bin_dir,
    )


def test_a_good_backup_is_verified_and_everything_in_it_was_compared(each_installation: Installation) -> None:
    done = each_installation.back_up()
    found = judge(each_installation, done)
    assert [item for item in found.evidence if item.verdict is not Verdict.PASS] == []
    assert found.verdict == Outcome.VERIFIED
    names = {item.item for item in found.evidence}
    assert {"archive", "contents", "globals", "restore", "rows, content and definitions", "roles and grants"} <= names
    assert {check.name for check in invariants()} <= names
    compared = next(item for item in found.evidence if item.item.startswith("rows"))
    assert compared.measured["rows"] == done.truth.rows > 0
    assert compared.measured["definitions"] > 100
    assert found.facts["rto_milliseconds"] > 0
    assert list(scratch_dir(each_installation).iterdir()) == []
    assert each_installation.sessions() == []


def test_a_changed_cell_is_named_although_everything_was_signed_again(installation: Installation) -> None:
    done = installation.back_up()
    wrong = forged(installation, done, lambda c: c.execute("UPDATE merchants SET commission = 0 WHERE id = 1"))
    assert catalogue.find(installation.catalogue, "latest").manifest == wrong
    found = judge(installation, wrong)
    assert found.verdict == Outcome.REFUTED
    (item,) = [item for item in found.evidence if item.verdict is Verdict.FAIL]
    assert item.item == "table public.merchants"
    assert "content hash" in item.measured["expected"]
    assert list(scratch_dir(installation).iterdir()) == []


def test_another_identity_is_our_trouble_and_refutes_nothing(installation: Installation) -> None:
    done = installation.back_up()
    identity = pyrage.x25519.Identity.generate()
    with pytest.raises(SettingsError, match="does not open this backup"):
        restore_test.examine(installation.store, done, identity, settings.load(), "test", report=quiet)


def test_no_room_is_our_trouble(installation: Installation, monkeypatch: pytest.MonkeyPatch) -> None:
    done = installation.back_up()
    monkeypatch.setattr(shutil, "disk_usage", lambda _: _Usage(1000))
    with pytest.raises(Unavailable, match="not enough room"):
        judge(installation, done)


class _Usage:
    def __init__(self, free: int) -> None:
        self.free = free


def test_never_on_the_server_that_was_backed_up(installation: Installation) -> None:
    done = installation.back_up()
    with pytest.raises(SettingsError, match="the server that was backed up"):
        judge(installation, done, given_host=installation.site.cluster.conninfo())


def test_a_given_host_gets_a_database_that_goes_away(installation: Installation) -> None:
    done = installation.back_up()
    identity = restore.load_identity(installation.desk.settings.backup.identity_file)
    from sandbox import postgres

    with postgres.temporary_cluster(bin_dir=installation.site.cluster.bin_dir) as host:
        forgery.make_roles(host, forgery.opened(installation.store, done.globals, identity))
        found = judge(installation, done, given_host=host.conninfo())
        assert found.verdict == Outcome.VERIFIED
        assert [item.item for item in found.evidence if item.verdict is Verdict.BYPASSED] == ["roles and grants"]
        with psycopg.connect(host.conninfo()) as connection:
            rows = connection.execute("SELECT datname FROM pg_database WHERE datname LIKE 'restore_test%'").fetchall()
        assert rows == []


def test_never_on_a_given_host_when_nobody_recorded_the_source(installation: Installation) -> None:
    done = installation.back_up()
    server = done.server.model_copy(update={"system_identifier": None})
    with pytest.raises(SettingsError, match="that of the source is not recorded"):
        judge(
            installation,
            done.model_copy(update={"server": server}),
            given_host=installation.site.cluster.conninfo(),
        )


def test_a_worker_without_the_sources_extensions_says_so(installation: Installation) -> None:
    done = installation.back_up()
    newer = [Extension(name=e.name, version="9.9", schema_name=e.schema_name) for e in done.truth.extensions[:1]]
    away = Extension(name="postgis", version="3.5", schema_name="public")
    truth = done.truth.model_copy(update={"extensions": [*newer, away]})
    with pytest.raises(SettingsError, match=r"expected \w+ 9\.9, postgis 3\.5; found \w+ [\d.]+, postgis not"):
        judge(installation, done.model_copy(update={"truth": truth}))


def test_bytes_that_were_wrong_on_the_way_refute_nothing(installation: Installation, proxy: Proxy) -> None:
    done = installation.back_up()
    proxy.flip("GET", "archive.dump.age", MIB // 8, times=1)
    with pytest.raises(StoreUnavailable, match="were changed on the way"):
        judge(installation, done)
    assert judge(installation, done).verdict == Outcome.VERIFIED


@pytest.mark.parametrize("name", ["archive.dump.age", "globals.sql.age"])
def test_bytes_that_are_wrong_in_the_store_refute(installation: Installation, proxy: Proxy, name: str) -> None:
    done = installation.back_up()
    proxy.flip("GET", name, -1)
    found = judge(installation, done)
    assert found.verdict == Outcome.REFUTED
    (item,) = [item for item in found.evidence if item.verdict is Verdict.FAIL]
    assert item.item == name.split(".")[0]
    assert "sha256" in item.measured["expected"]
    assert "sha256" in item.measured["found"]


def test_an_archive_that_does_not_fit_is_our_trouble(installation: Installation, tmp_path: Path) -> None:
    """As on a full disk: the kernel refuses a write."""
    done = installation.back_up()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    identity = restore.load_identity(installation.desk.settings.backup.identity_file)
    resource.setrlimit(resource.RLIMIT_FSIZE, (done.archive.size_bytes // 2, limits[1]))
    try:
        with pytest.raises(Unavailable, match="the opened archive cannot be written"):
            restore.open_archive(installation.store, done, identity, tmp_path, report=quiet)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def test_what_lies_in_a_tablespace_of_the_source_is_tested_too(installation: Installation) -> None:
    with installation.site.admin() as admin:
        admin.execute("SET allow_in_place_tablespaces = on")
        admin.execute("CREATE TABLESPACE fast LOCATION ''")
        admin.execute("CREATE TABLE on_fast (id int PRIMARY KEY USING INDEX TABLESPACE fast) TABLESPACE fast")
        admin.execute("INSERT INTO on_fast SELECT generate_series(1, 10); ALTER TABLE on_fast OWNER TO payme_owner")
        try:
            assert judge(installation, installation.back_up()).verdict == Outcome.VERIFIED
        finally:
            admin.execute("DROP TABLE on_fast")
            admin.execute("DROP TABLESPACE fast")


@pytest.mark.usefixtures("installation")
def test_the_server_listens_nowhere_and_runs_without_our_power_or_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PAYME_OPS_TEST_CANARY", "secret")
    config = settings.load()
    with (
        scratch.folder(config.backup.scratch_dir, needed_bytes=0, report=quiet) as place,
        scratch.server(place, 17, config.postgres.client_dirs) as conninfo,
        psycopg.connect(conninfo, autocommit=True) as connection,
    ):
        row = connection.execute("SELECT pg_backend_pid(), current_setting('listen_addresses')").fetchone()
        assert row is not None
        assert row[1] == ""
        environment = Path(f"/proc/{row[0]}/environ").read_bytes()
        assert b"CANARY" not in environment
        status = Path(f"/proc/{row[0]}/status").read_text()
        assert os.geteuid() != 0 or "Uid:\t0" not in status
        if os.geteuid() == 0:
            with pytest.raises(psycopg.Error, match="Permission denied"):
                connection.execute("SELECT pg_read_file(%s)", [str(config.backup.identity_file)])


def test_what_a_killed_run_left_is_removed_by_the_next(installation: Installation) -> None:
    done = installation.back_up()
    running = installation.start("backup", "restore-test", done.prefix.split("/")[3])
    folder = scratch_dir(installation)
    eventually(lambda: list(folder.glob("*/server/data/postmaster.pid")), "the throw-away server")
    (left,) = folder.iterdir()
    running.kill()
    said: list[str] = []
    with scratch.folder(folder, needed_bytes=0, report=said.append):
        assert not left.exists()
    assert any(left.name in line for line in said)
    eventually(lambda: not running.living(), "the end of the killed run's processes")


def test_a_living_runs_folder_is_left_alone(installation: Installation) -> None:
    folder = scratch_dir(installation)
    with scratch.folder(folder, needed_bytes=0, report=quiet) as first:
        with scratch.folder(folder, needed_bytes=0, report=quiet) as second:
            assert first.exists()
            assert first != second
        assert first.exists()
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize("check", invariants(), ids=lambda check: check.name)
def test_every_invariant_can_fail(installation: Installation, check: restore_test.Invariant) -> None:
    """On the restored copy of PayMe's database with a violation planted; its header says what that means."""
    plant = {
        "ledger_balance": "DELETE FROM ledger.entries WHERE transaction_id = (SELECT min(transaction_id)"
        " FROM ledger.entries) AND amount > 0",
        "unique_receipts": "ALTER TABLE mpesa_receipts DROP CONSTRAINT mpesa_receipts_pkey;"
        " ALTER TABLE mpesa_receipts DROP CONSTRAINT mpesa_receipts_transaction_id_key;"
        " INSERT INTO mpesa_receipts SELECT * FROM mpesa_receipts LIMIT 1",
        "no_orphans": "ALTER TABLE transactions DROP CONSTRAINT transactions_merchant_id_fkey;"
        " ALTER TABLE statements DROP CONSTRAINT statements_merchant_id_fkey;"
        " ALTER TABLE ledger.accounts DROP CONSTRAINT accounts_merchant_id_fkey; DELETE FROM merchants WHERE id = 1",
        "ids_ahead": "SELECT setval(pg_get_serial_sequence('users', 'id'), 1)",
    }[check.name]
    assert check.means
    done = installation.back_up()
    wrong = forged(installation, done, lambda c: c.execute(plant))
    failed = {item.item: item for item in judge(installation, wrong).evidence if item.verdict is Verdict.FAIL}
    assert check.name in failed
    assert failed[check.name].remedy == check.means
    assert failed[check.name].measured["violations"] > 0


def test_adding_a_file_adds_a_check_and_one_without_a_header_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for path in CHECKS.glob("*.sql"):
        (tmp_path / path.name).write_text(path.read_text())
    (tmp_path / "added.sql").write_text("-- rule: a\n-- needs: public.b\n-- means: c\n--   d\nSELECT 0\n")
    monkeypatch.setattr(restore_test, "CHECKS", tmp_path)
    added = next(check for check in invariants() if check.name == "added")
    assert (added.rule, added.needs, added.means) == ("a", ["public.b"], "c d")
    (tmp_path / "bare.sql").write_text("-- rule: a\nSELECT 0\n")
    with pytest.raises(SettingsError, match=r"bare\.sql has no whole header.*found no means, needs"):
        invariants()


# --- on a shell -----------------------------------------------------------------------------------------------------


@pytest.mark.long
def test_from_a_refuted_backup_to_a_closed_one(installation: Installation) -> None:
    good = installation.back_up()
    ended = installation.cli("backup", "restore-test", "latest")
    assert ended.code == 0, ended.err
    assert "is VERIFIED" in ended.out
    wrong = forged(installation, installation.back_up(), lambda c: c.execute("DROP INDEX users_email_idx"))
    ended = installation.cli("backup", "restore-test", wrong.key)
    assert ended.code == 4
    assert "REFUTED" in ended.err
    assert "index public.users_email_idx" in ended.err
    stamp = wrong.prefix.split("/")[3]
    assert "users_email_idx" in installation.cli("backup", "report", stamp).out
    assert ">index public.users_email_idx</td>" in installation.cli("backup", "report", stamp, "--html").out
    states = {entry["key"]: entry["state"] for entry in installation.json("backup", "list")}
    assert states == {good.key: "VERIFIED", wrong.key: "REFUTED"}
    assert installation.cli("backup", "close", good.key, "--reason", "a good one cannot be closed").code == 1
    assert installation.cli("backup", "close", stamp, "--reason", "short").code == 1
    assert installation.cli("backup", "close", stamp, "--reason", "the drill of today").code == 0
    assert {entry["state"] for entry in installation.json("backup", "list")} == {"VERIFIED", "CLOSED"}
    assert "the drill of today" in installation.cli("backup", "report", stamp).out
    assert installation.cli("backup", "restore-test", stamp).code != 0


def test_a_backup_that_was_never_tested_has_no_report(installation: Installation) -> None:
    installation.back_up()
    ended = installation.cli("backup", "report", "latest")
    assert ended.code == 1
    assert "was never tested" in ended.err


def test_definitions_of_another_release_are_not_held_against_a_backup(installation: Installation) -> None:
    done = installation.back_up()
    key = signing.load_private_key(installation.desk.settings.backup.signing_key_file)
    truth = done.truth.model_copy(
        update={
            "definitions_form": 99,
            "definitions": [one.model_copy(update={"sha256": "0"}) for one in done.truth.definitions],
        }
    )
    other = forgery.sign_again(installation.store, done.model_copy(update={"truth": truth}), signing_key=key)
    found = judge(installation, other)
    assert found.verdict == Outcome.VERIFIED
    (item,) = [item for item in found.evidence if item.verdict is Verdict.BYPASSED]
    assert (item.item, item.measured["recorded in form"]) == ("definitions", 99)


def test_what_a_dying_server_still_writes_into_keeps_its_lock_for_the_next_run(
    installation: Installation, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = scratch_dir(installation)
    left = folder / "payme-ops-left"
    (left / "server").mkdir(parents=True)
    (left / "lock").touch()
    with monkeypatch.context() as busy:
        busy.setattr(scratch, "_REMOVE_TRIES", 2)
        busy.setattr(shutil, "rmtree", lambda *_args, **_options: None)
        scratch._clear(folder, quiet)
    assert (left / "lock").exists()
    with scratch.folder(folder, needed_bytes=0, report=quiet):
        assert not left.exists()
