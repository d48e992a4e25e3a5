"""`python -m payme_ops backup …`: take, list, show, verify and restore backups."""

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from payme_ops.backup import catalogue, freshness, manifest, preflight, run
from payme_ops.backup import restore as restoring
from payme_ops.backup.manifest import Manifest, Tier
from payme_ops.backup.run import Superseded
from payme_ops.cli import doors
from payme_ops.cli.tables import entries_table, entry_json, proof_table
from payme_ops.foundation import settings
from payme_ops.foundation.clock import utc_now
from payme_ops.foundation.objectstore import Bucket
from payme_ops.foundation.progress import Report

app = typer.Typer(no_args_is_help=True, help="Take, list, check and restore backups.")

Name = Annotated[str, typer.Argument(help="Manifest key, time stamp like 20260128T020000EAT, or latest.")]
AsJson = Annotated[bool, typer.Option("--json", help="JSON for machines.")]
Identity = Annotated[
    Path | None, typer.Option(help="age identity file; default PAYME_OPS__BACKUP__IDENTITY_FILE.", show_default=False)
]


@app.command("run")
def backup_run(
    *,
    accept_recipients: Annotated[
        bool, typer.Option("--accept-recipients", help="The recipients were changed on purpose (docs/keys.md).")
    ] = False,
) -> None:
    """Take a backup now: preflight, dump and store, read back, commit."""
    bypass = frozenset({"recipients"}) if accept_recipients else frozenset()
    try:
        done = take(doors.run_name(), bypass=bypass, report=doors.report)
    except Superseded as reason:
        doors.err.print(str(reason), markup=False)
        return
    doors.out.print(proof_table(done))


def take(name: str, *, bypass: frozenset[str] = frozenset(), report: Report) -> Manifest:
    """One whole daily backup, stage by stage as the DAG's tasks. Raises what the stages raise, Superseded too."""
    desk, queued_at = doors.desk(), utc_now()
    found = preflight.examine(desk, actor=name, for_run=True, bypass=bypass)
    preflight.record(desk, name, found)
    preflight.require_passed(found)
    run.dump_and_store(desk, name, Tier.DAILY, queued_at, report=report)
    run.read_back(desk, name, report=report)
    return run.commit(desk, name)


@app.command("list")
def backup_list(*, as_json: AsJson = False) -> None:
    """All backups of the database, by tier and time. A region that is away is named, and the rest is listed."""
    where = doors.catalogue("payme_s3_restore")
    found, away = catalogue.reachable(where)
    if as_json:
        typer.echo(json.dumps([entry_json(one) for one in found], indent=1))
    else:
        names = f"{where.stores.home.name} and {where.stores.copies.name}"
        doors.out.print(entries_table(f"Backups of {where.database} in {names}", found))
        for one in found:
            if one.why:
                doors.err.print(f"{one.key}: {one.why}", style="red", markup=False)
        if not away:
            seen = {tier: [one for one in found if one.tier is tier] for tier in Tier}
            judged = freshness.judge(seen, settings.load().targets, utc_now(), actor=doors.run_name())
            doors.out.print(freshness.summary(judged), markup=False)
    for error in away:
        doors.err.print(str(error), style="red", markup=False)
    if len(away) == 2:  # both regions
        raise away[0]


@app.command("show")
def backup_show(name: Name, *, as_json: AsJson = False) -> None:
    """One backup's manifest."""
    _, found = find(name)
    if as_json:
        typer.echo(json.dumps(manifest.document(found), indent=1))
        return
    doors.out.print(proof_table(found))
    table = Table(title="Truth, taken in the dump's own snapshot")
    for heading in ("relation", "kind", "rows", "content hash", "note"):
        table.add_column(heading, justify="right" if heading == "rows" else "left")
    for relation in found.truth.relations:
        rows = "" if relation.rows is None else f"{relation.rows:,}"
        table.add_row(relation.qualified, relation.kind, rows, relation.content_hash or "", relation.note)
    doors.out.print(table)


@app.command("verify")
def backup_verify(name: Name, *, identity: Identity = None) -> None:
    """Read a backup whole: signature, length, SHA-256, decryption, every data block. Changes nothing."""
    config = settings.load()
    bucket, found = find(name)
    key = restoring.load_identity(identity or config.backup.identity_file)
    restoring.verify(bucket, found, key, config.postgres.client_dirs, report=doors.report)
    typer.echo(f"{found.key}: signature, {found.archive.size_bytes:,} bytes, SHA-256 and every block are right")


@app.command("restore")
def backup_restore(
    name: Name,
    *,
    into: Annotated[str, typer.Option(help="Name of the new database; an existing one is never overwritten.")],
    identity: Identity = None,
) -> None:
    """Restore into a new database and compare every table with the manifest."""
    config = settings.load()
    bucket, found = find(name)
    key = restoring.load_identity(identity or config.backup.identity_file)
    restoring.restore(
        bucket,
        found,
        key,
        conninfo="service=payme_db_restore",
        into=into,
        client_dirs=config.postgres.client_dirs,
        scratch_dir=config.backup.scratch_dir,
        report=doors.report,
    )
    typer.echo(f"database {into} holds {found.truth.rows:,} rows, equal to the manifest {found.key}")


def find(name: str) -> tuple[Bucket, Manifest]:
    """A backup by name, and the bucket it lies in."""
    where = doors.catalogue("payme_s3_restore")
    found = catalogue.find(where, name)
    return where.stores.of(found.tier), found.trusted
