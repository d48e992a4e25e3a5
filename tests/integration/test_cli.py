"""The desk on a shell: what it prints, and the exit code that scripts and people go by."""

import json
import re
import sys
from collections.abc import Callable

import pyrage
import pytest

from payme_ops import cli
from payme_ops.backup import manifest
from payme_ops.cli import doors
from payme_ops.foundation import errors, evidence, lease, settings
from payme_ops.foundation.clock import show
from payme_ops.foundation.errors import PaymeOpsError
from payme_ops.foundation.progress import size
from tests.support.installation import Ended, Installation

Shell = Callable[..., Ended]


@pytest.fixture
def shell(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Shell:
    """`payme-ops ...` in this process."""
    for console in (doors.out, doors.err):
        monkeypatch.setattr(console, "_width", 200)

    def run(*arguments: str) -> Ended:
        monkeypatch.setattr(sys, "argv", ["payme-ops", *arguments])
        capsys.readouterr()
        try:
            cli.main()
            code = 0
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else 0 if end.code is None else 1
        printed = capsys.readouterr()
        return Ended(code, printed.out, printed.err)

    return run


def test_from_nothing_to_a_restored_backup(each_installation: Installation) -> None:
    """As a person would, each command a process of its own."""
    assert each_installation.json("backup", "list") == []
    ended = each_installation.cli("backup", "run")
    assert ended.code == 0, ended
    (done,) = each_installation.manifests()
    for proof in (done.key, done.archive.sha256, f"{done.archive.sha256}, equal", f"{done.truth.rows:,} in"):
        assert proof in ended.out
    assert "store archive.dump" in ended.err
    assert "Traceback" not in ended.err
    ended = each_installation.cli("backup", "verify", "latest")
    assert (ended.code, f"{done.archive.size_bytes:,} bytes, SHA-256 and every block are right" in ended.out) == (
        0,
        True,
    )
    try:
        ended = each_installation.cli("backup", "restore", done.prefix, "--into", "restored_by_cli")
        assert ended.code == 0, ended
        assert f"database restored_by_cli holds {done.truth.rows:,} rows, equal to the manifest {done.key}" in ended.out
        ended = each_installation.cli("backup", "restore", "latest", "--into", "restored_by_cli")
        assert ended.code == 1
        assert "database restored_by_cli exists" in ended.err
        assert "choose another name" in ended.err
    finally:
        with each_installation.site.admin("postgres") as admin:
            admin.execute("DROP DATABASE IF EXISTS restored_by_cli")


def test_preflight_evidence_of_a_run_is_kept(installation: Installation) -> None:
    assert installation.cli("backup", "run").code == 0
    (done,) = installation.manifests()
    assert done.run.startswith("cli/")
    assert evidence.latest("service=payme_ops_db", done.run, "readable").verdict == "pass"


def test_list_is_a_table_by_tier_and_time(installation: Installation, shell: Shell) -> None:
    first, second = installation.back_up(), installation.back_up()
    ended = shell("backup", "list")
    assert ended.code == 0
    *rows, freshness = [line for line in ended.out.splitlines() if "daily" in line]
    assert len(rows) == 2
    assert re.match(r"daily age \d+ s; weekly age not due yet", freshness)
    for row, done in zip(rows, (first, second), strict=True):
        taken = show(done.snapshot_at)[:16]
        for cell in (taken, size(done.archive.size_bytes), f"{done.truth.rows:,}", "COMPLETE"):
            assert cell in row
    assert all(heading in ended.out for heading in ("tier", "taken (EAT)", "size", "rows", "state", "expires"))


def test_list_for_machines(installation: Installation, shell: Shell) -> None:
    done = installation.back_up()
    (entry,) = json.loads(shell("backup", "list", "--json").out)
    assert entry["key"] == done.key
    assert entry["snapshot_at"] == done.snapshot_at.isoformat()
    assert (entry["tier"], entry["state"], entry["why"]) == ("daily", "COMPLETE", "")
    assert (entry["size_bytes"], entry["rows"]) == (done.archive.size_bytes, done.truth.rows)
    assert entry["expires_at"] > entry["snapshot_at"]


def test_list_shows_what_is_not_trusted_and_why(installation: Installation, shell: Shell) -> None:
    done = installation.back_up()
    moved = "postgres/payme/daily/20990101T000000EAT/manifest.json"
    installation.store.put_if_absent(moved, installation.store.get(done.key))
    ended = shell("backup", "list")
    assert "UNTRUSTED" in ended.out
    assert f"{moved}: the manifest lies under another backup's key" in " ".join(ended.err.split())
    (bad,) = [entry for entry in json.loads(shell("backup", "list", "--json").out) if entry["key"] == moved]
    assert (bad["state"], bad["size_bytes"], bad["rows"]) == ("UNTRUSTED", None, None)


def test_show_prints_the_truth_and_its_json_is_the_manifest(installation: Installation, shell: Shell) -> None:
    done = installation.back_up()
    ended = shell("backup", "show", "latest")
    assert ended.code == 0
    assert all(relation.qualified in ended.out for relation in done.truth.relations)
    assert "definition only" in ended.out
    assert json.loads(shell("backup", "show", done.key, "--json").out) == manifest.document(done)


def test_0_and_2_usage(installation: Installation, shell: Shell) -> None:
    assert installation.bucket_name
    ended = shell("--help")
    assert ended.code == 0
    assert "Exit codes" in ended.out
    assert shell("backup", "restore", "latest").code == 2
    assert shell("backup", "run", "--tier", "daily").code == 2
    assert shell("backups").code == 2


def test_1_not_found_and_settings(installation: Installation, shell: Shell) -> None:
    ended = shell("backup", "show", "nope")
    assert ended.code == 1
    assert ended.err.startswith("no backup is named 'nope'; expected ")
    assert "To do: look at `python -m payme_ops backup list`" in " ".join(ended.err.split())
    installation.set("BACKUP__REGION", "Nairobi")
    installation.set("BACKUP__BUCKET", None)
    ended = shell("doctor")
    assert ended.code == 1
    assert "2 setting(s) cannot be used" in ended.err
    assert ended.out == ""


def test_3_a_check_that_does_not_pass(installation: Installation, shell: Shell) -> None:
    installation.set("BACKUP__SIGNING_KEY_FILE", "/nowhere/signing.pem")
    ended = shell("backup", "run")
    assert ended.code == 3
    assert "signing_key (fail)" in ended.err
    assert "openssl genpkey" in ended.err
    assert list(installation.store.keys("postgres/")) == []
    assert shell("doctor").code == 3


def test_6_what_could_not_be_asked(installation: Installation, shell: Shell) -> None:
    installation.alone()
    installation.connect_as("payme_db_read", port="1")
    ended = shell("doctor")
    assert ended.code == 6
    assert "inconclusive database: " in ended.out


def test_3_recipients_changed_unless_accepted(installation: Installation, shell: Shell) -> None:
    done = installation.back_up()
    installation.set("BACKUP__RECIPIENT_DRILL", str(pyrage.x25519.Identity.generate().to_public()))
    installation.next_second()
    ended = shell("backup", "run")
    assert ended.code == 3
    assert "--accept-recipients" in ended.err
    assert [each.key for each in installation.manifests()] == [done.key]
    assert shell("backup", "run", "--accept-recipients").code == 0
    newest = installation.manifests()[-1]
    assert newest.sealing.recipients != done.sealing.recipients
    assert evidence.latest("service=payme_ops_db", newest.run, "recipients").verdict == "bypassed"


def test_4_bytes_that_are_not_what_they_should_be(installation: Installation, shell: Shell) -> None:
    done = installation.back_up()
    data = bytearray(installation.store.get(done.archive.key))
    data[-1] ^= 1
    installation.store.client.put_object(Bucket=installation.bucket_name, Key=done.archive.key, Body=bytes(data))
    ended = shell("backup", "verify", "latest")
    assert ended.code == 4
    assert done.archive.key in ended.err
    assert done.archive.sha256 in "".join(ended.err.split())
    assert "right" not in ended.out


def test_5_another_run_at_work(installation: Installation, shell: Shell) -> None:
    with lease.hold("service=payme_ops_db", installation.desk.lease_name, "backup_daily/scheduled__2026"):
        ended = shell("backup", "run")
    assert ended.code == 5
    assert "backup_daily/scheduled__2026" in ended.err
    assert installation.manifests() == []


def test_6_a_service_that_does_not_answer(installation: Installation, shell: Shell) -> None:
    installation.reach_store_at("http://127.0.0.1:1")
    ended = shell("backup", "list")
    assert ended.code == 6
    assert "check the endpoint" in ended.err


def test_ops_db_migrate(installation: Installation, shell: Shell) -> None:
    assert installation.bucket_name
    ended = shell("ops-db", "migrate")
    assert (ended.code, ended.out) == (0, "up to date\n")


def test_every_error_has_an_exit_code_and_its_text_is_shown_as_it_is(
    shell: Shell, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Square brackets are markup to the library that prints."""
    kinds = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, PaymeOpsError)]
    assert len(kinds) > 15
    for kind in kinds:

        def fail(kind: type[PaymeOpsError] = kind) -> None:
            raise kind("what [bold]happened[/bold]", remedy="do [this]")

        monkeypatch.setattr(settings, "load", fail)
        ended = shell("backup", "list")
        assert ended.code in (1, 3, 4, 5, 6), kind
        assert "what [bold]happened[/bold]. To do: do [this]" in ended.err, kind


def test_identity_file_given_or_missing(installation: Installation, shell: Shell) -> None:
    installation.back_up()
    root = installation.site.world.root
    installation.set("BACKUP__IDENTITY_FILE", None)
    ended = shell("backup", "verify", "latest")
    assert ended.code == 1
    assert "PAYME_OPS__BACKUP__IDENTITY_FILE" in ended.err
    assert shell("backup", "verify", "latest", "--identity", str(root / "keys" / "recovery.age-identity")).code == 0
    ended = shell("backup", "verify", "latest", "--identity", str(root / "keys" / "signing.pem"))
    assert ended.code == 1
    assert "PRIVATE" not in ended.err
