"""The desk on a shell: the same functions and settings as the DAGs, for the day Airflow is down.

Databases are libpq services and buckets AWS profiles, named as the Airflow connections are: payme_db_read,
payme_db_restore, payme_ops_db; payme_s3_write, payme_s3_restore. No password stands on a command line.

Exit codes: 0 done; 1 failed; 2 wrong usage; 3 a check did not pass; 4 bytes, signature or content are not what
they should be; 5 another run holds the lease; 6 a service could not be reached, try again.
"""

import json
import os
import socket
import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from payme_ops.backup import catalogue, manifest, preflight, run
from payme_ops.backup import restore as restoring
from payme_ops.backup.catalogue import Entry
from payme_ops.backup.manifest import Manifest, Tier
from payme_ops.backup.run import Desk, Superseded
from payme_ops.foundation import opsdb, settings
from payme_ops.foundation.clock import show, utc_now
from payme_ops.foundation.errors import (
    IntegrityError,
    LeaseHeld,
    PaymeOpsError,
    PreflightFailed,
    PreflightInconclusive,
    Unavailable,
)
from payme_ops.foundation.evidence import Evidence, Verdict
from payme_ops.foundation.objectstore import Bucket, profile_client
from payme_ops.foundation.progress import size
from payme_ops.foundation.settings import Settings
from payme_ops.foundation.stop import stoppable

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, help=__doc__)
backup_app = typer.Typer(no_args_is_help=True, help="Take, list, check and restore backups.")
ops_db_app = typer.Typer(no_args_is_help=True, help="The desk's own database.")
app.add_typer(backup_app, name="backup")
app.add_typer(ops_db_app, name="ops-db")

_out = Console()
_err = Console(stderr=True, highlight=False)
_EXIT: list[tuple[type[PaymeOpsError], int]] = [
    (PreflightFailed, 3),
    (PreflightInconclusive, 3),
    (IntegrityError, 4),
    (LeaseHeld, 5),
    (Unavailable, 6),
    (PaymeOpsError, 1),
]
_STYLE = {Verdict.PASS: "green", Verdict.FAIL: "red", Verdict.INCONCLUSIVE: "yellow", Verdict.BYPASSED: "magenta"}

Name = Annotated[str, typer.Argument(help="Manifest key, time stamp like 20260128T020000EAT, or latest.")]
AsJson = Annotated[bool, typer.Option("--json", help="JSON for machines.")]
Identity = Annotated[
    Path | None, typer.Option(help="age identity file; default PAYME_OPS__BACKUP__IDENTITY_FILE.", show_default=False)
]


def main() -> None:
    """Run the command line; errors become one plain text and an exit code."""
    try:
        with stoppable():
            app()
    except PaymeOpsError as error:
        _err.print(str(error), style="red", markup=False)
        sys.exit(next(code for kind, code in _EXIT if isinstance(error, kind)))


@app.command()
def doctor(*, as_json: AsJson = False) -> None:
    """Run every check of the desk and say what to do about what is red. Exit code 3 when something is."""
    found = preflight.examine(_desk(), actor=_run_name(), for_run=False)
    if as_json:
        typer.echo(json.dumps([_evidence_json(item) for item in found], indent=1))
    else:
        _out.print(_evidence_table(found))
    if any(item.verdict is not Verdict.PASS for item in found):
        raise typer.Exit(3)


@ops_db_app.command("migrate")
def ops_db_migrate() -> None:
    """Bring the ops database's schema up to date."""
    applied = opsdb.migrate("service=payme_ops_db")
    typer.echo(f"applied {', '.join(applied)}" if applied else "up to date")


@backup_app.command("run")
def backup_run(
    *,
    tier: Annotated[Tier, typer.Option(help="Tier to write to.")] = Tier.DAILY,
    accept_recipients: Annotated[
        bool, typer.Option("--accept-recipients", help="The recipients were changed on purpose (docs/keys.md).")
    ] = False,
) -> None:
    """Take a backup now: preflight, dump and store, read back, commit."""
    desk, name, queued_at = _desk(), _run_name(), utc_now()
    bypass = frozenset({"recipients"}) if accept_recipients else frozenset()
    found = preflight.examine(desk, actor=name, for_run=True, bypass=bypass)
    preflight.record(desk, name, found)
    preflight.require_passed(found)
    try:
        run.dump_and_store(desk, name, tier, queued_at, report=_report)
    except Superseded as reason:
        _err.print(str(reason), markup=False)
        return
    run.read_back(desk, name, report=_report)
    done = run.commit(desk, name)
    _out.print(proof_table(done))


@backup_app.command("list")
def backup_list(*, as_json: AsJson = False) -> None:
    """All backups of the database, by tier and time."""
    config = settings.load()
    found = list(catalogue.entries(_restore_bucket(config), config.backup.database, config.backup.trusted_keys))
    if as_json:
        typer.echo(json.dumps([_entry_json(entry) for entry in found], indent=1))
        return
    table = Table(title=f"Backups of {config.backup.database} in {config.backup.bucket}")
    for heading in ("tier", "taken (EAT)", "size", "rows", "state", "expires"):
        table.add_column(heading, justify="right" if heading in ("size", "rows") else "left", no_wrap=True)
    for entry in found:
        table.add_row(*_entry_row(entry))
    _out.print(table)
    for entry in found:
        if entry.why:
            _err.print(f"{entry.key}: {entry.why}", style="red", markup=False)


@backup_app.command("show")
def backup_show(name: Name, *, as_json: AsJson = False) -> None:
    """One backup's manifest."""
    found = _find(name)
    if as_json:
        typer.echo(json.dumps(manifest.document(found), indent=1))
        return
    _out.print(proof_table(found))
    table = Table(title="Truth, taken in the dump's own snapshot")
    for heading in ("relation", "kind", "rows", "content hash", "note"):
        table.add_column(heading, justify="right" if heading == "rows" else "left")
    for relation in found.truth.relations:
        rows = "" if relation.rows is None else f"{relation.rows:,}"
        table.add_row(relation.qualified, relation.kind, rows, relation.content_hash or "", relation.note)
    _out.print(table)


@backup_app.command("verify")
def backup_verify(name: Name, *, identity: Identity = None) -> None:
    """Read a backup whole: signature, length, SHA-256, decryption, every data block. Changes nothing."""
    config = settings.load()
    found = _find(name)
    key = restoring.load_identity(identity or config.backup.identity_file)
    restoring.verify(_restore_bucket(config), found, key, config.postgres.client_dirs, report=_report)
    typer.echo(f"{found.key}: signature, {found.archive.size_bytes:,} bytes, SHA-256 and every block are right")


@backup_app.command("restore")
def backup_restore(
    name: Name,
    *,
    into: Annotated[str, typer.Option(help="Name of the new database; an existing one is never overwritten.")],
    identity: Identity = None,
) -> None:
    """Restore into a new database and compare every table with the manifest."""
    config = settings.load()
    found = _find(name)
    key = restoring.load_identity(identity or config.backup.identity_file)
    restoring.restore(
        _restore_bucket(config),
        found,
        key,
        conninfo="service=payme_db_restore",
        into=into,
        client_dirs=config.postgres.client_dirs,
        report=_report,
    )
    typer.echo(f"database {into} holds {found.truth.rows:,} rows, equal to the manifest {found.key}")


def proof_table(done: Manifest) -> Table:
    """What a finished backup proves: key, size, rows, equal hashes, time per stage."""
    table = Table(title=f"Backup {done.prefix}", show_header=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    proof = done.read_back
    rows = [
        ("manifest", done.key),
        ("snapshot", f"{show(done.snapshot_at)}, {done.database} on PostgreSQL {done.server.version}"),
        ("size", f"{size(done.archive.size_bytes)} sealed, of a database of {size(done.server.size_bytes)}"),
        ("rows", f"{done.truth.rows:,} in {len(done.truth.relations)} relations, hashed in the dump's own snapshot"),
        ("sha256 before upload", done.archive.sha256),
        ("sha256 read back", f"{done.archive.sha256}, equal" if proof else "not read back"),
        ("sealed to", ", ".join(f"{who} {key[:12]}…" for who, key in sorted(done.sealing.recipients.items()))),
        *((f"time, {stage}", f"{ms / 1000:.1f} s") for stage, ms in done.milliseconds.items()),
        *([("time, read back", f"{proof.milliseconds / 1000:.1f} s")] if proof else []),
        ("run", f"{done.run} (fencing token {done.fencing_token})"),
    ]
    for row in rows:
        table.add_row(*row)
    return table


def _desk() -> Desk:
    config = settings.load()
    bucket = Bucket(profile_client("payme_s3_write"), config.backup.bucket)
    return Desk(config, "service=payme_db_read", "service=payme_ops_db", bucket)


def _restore_bucket(config: Settings) -> Bucket:
    return Bucket(profile_client("payme_s3_restore"), config.backup.bucket)


def _find(name: str) -> Manifest:
    config = settings.load()
    return catalogue.find(_restore_bucket(config), config.backup.database, name, config.backup.trusted_keys)


def _run_name() -> str:
    return f"cli/{socket.gethostname()}/{os.getpid()}/{utc_now():%Y%m%dT%H%M%SZ}"


def _report(line: str) -> None:
    _err.print(line, markup=False)


def _entry_row(entry: Entry) -> list[str]:
    found = entry.manifest
    if found is None:
        return [entry.tier, entry.key, "", "", f"[red]{entry.state}[/red]", ""]
    return [
        entry.tier,
        show(found.snapshot_at).removesuffix(" EAT"),
        size(found.archive.size_bytes),
        f"{found.truth.rows:,}",
        entry.state,
        show(entry.expires_at).split(" ")[0] if entry.expires_at else "never",
    ]


def _entry_json(entry: Entry) -> dict[str, object]:
    found = entry.manifest
    return {
        "key": entry.key,
        "tier": entry.tier,
        "state": entry.state,
        "why": entry.why,
        "snapshot_at": found.snapshot_at.isoformat() if found else None,
        "size_bytes": found.archive.size_bytes if found else None,
        "rows": found.truth.rows if found else None,
        "expires_at": entry.expires_at.isoformat() if entry.expires_at else None,
    }


def _evidence_json(item: Evidence) -> dict[str, object]:
    return {
        "item": item.item,
        "verdict": item.verdict,
        "measured": item.measured,
        "threshold": item.threshold,
        "source": item.source,
        "remedy": item.remedy,
    }


def _evidence_table(found: list[Evidence]) -> Table:
    table = Table(title="doctor")
    for heading in ("item", "verdict", "expected", "found", "to do"):
        table.add_column(heading, overflow="fold")
    for item in found:
        style = _STYLE[item.verdict]
        table.add_row(
            item.item, f"[{style}]{item.verdict}[/{style}]", item.threshold, preflight.plain(item.measured), item.remedy
        )
    return table
