"""`python -m payme_ops backup retention|undelete`: delete what is past its time, and bring back what was deleted."""

from typing import Annotated

import typer
from rich.table import Table

from payme_ops.backup import retain
from payme_ops.backup.catalogue import State
from payme_ops.backup.retain import Action
from payme_ops.cli import doors
from payme_ops.foundation import evidence, settings
from payme_ops.foundation.clock import utc_now
from payme_ops.foundation.evidence import Evidence, Verdict, plain

_STYLE = {Action.DELETE: "red", Action.LOCKED: "yellow", Action.REFUSED: "magenta", Action.KEEP: "green"}


def backup_retention(
    *,
    apply: Annotated[
        bool, typer.Option("--apply", help="Delete what the plan says; without it, only show it.")
    ] = False,
) -> None:
    """Show which backups stay and which go, and why; with --apply delete. Exit code 3 when retention is frozen."""
    config, now, run = settings.load(), utc_now(), doors.run_name()
    where, proof_days = doors.catalogue("payme_s3_prune"), config.targets.proof_days
    made = retain.plan(retain.survey(where, now), now, proof_days=proof_days)
    shown = retain.describe(made, where.database, actor=run, proof_days=proof_days)
    _show(shown)
    if made.frozen:
        raise typer.Exit(3)
    if not apply or not made.deletions:
        return
    if made.asks and typer.prompt(f"Type {where.database} to delete {len(made.deletions)} backups") != where.database:
        typer.echo("Nothing was deleted.")
        raise typer.Exit(1)
    evidence.record(doors.OPS, run, [shown])
    retain.apply(where, doors.OPS, run, shown, proof_days=proof_days, report=doors.report)
    typer.echo(f"{len(made.deletions)} deleted; `backup undelete` brings them back for {retain.UNDO.days} days")


def backup_undelete(
    name: Annotated[str, typer.Argument(help="Time stamp like 20260128T020000EAT, prefix or manifest key.")],
) -> None:
    """Bring a deleted backup back, while S3 keeps its versions."""
    found = retain.undelete(doors.catalogue("payme_s3_write"), name, settings.load().backup, report=doors.report)
    typer.echo(f"{found.key} is back, {found.state}")
    if found.state is State.UNTRUSTED:
        doors.err.print(found.why, style="red", markup=False)
        raise typer.Exit(4)
    if found.expires_at and found.expires_at <= utc_now():
        typer.echo("Its time is over: the next retention deletes it again. Restore it, or put it under a legal hold.")


def _show(shown: Evidence) -> None:
    facts = shown.measured
    table = Table(title=f"Retention of {facts['database']}")
    for heading in ("action", "backup", "rule", "evidence", "undo until"):
        table.add_column(heading, overflow="fold")
    for row in facts["rows"]:
        style = _STYLE[Action(row["action"])]
        table.add_row(f"[{style}]{row['action']}[/{style}]", *(row[name] for name in list(row)[1:]))
    doors.out.print(table)
    for name in ("rows by action", "newest verified", "frozen", "a person is asked because"):
        doors.out.print(f"{name}: {plain(facts[name])}", markup=False, soft_wrap=True)
    if shown.verdict is not Verdict.PASS:
        doors.err.print(f"To do: {shown.remedy}", markup=False)
