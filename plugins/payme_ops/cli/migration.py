"""`python -m payme_ops migration …`: look at the encryption of phone numbers, and say a word to its backfill."""

import os
from typing import Annotated

import typer
from rich.table import Table

from payme_ops.cli import doors
from payme_ops.cli.tables import evidence_table
from payme_ops.foundation import evidence, settings
from payme_ops.foundation.evidence import Verdict
from payme_ops.migration import control, envelope, shape, verify
from payme_ops.migration.desk import MigrationDesk

app = typer.Typer(no_args_is_help=True, help="The encryption of phone numbers.")
Reason = Annotated[str, typer.Option(help="Why; shown wherever the backfill says that it waits.")]


def _desk() -> MigrationDesk:
    return MigrationDesk(settings.load(), "service=payme_db_migrate", doors.OPS, doors.run_name())


@app.command()
def status() -> None:
    """The step that the table is at, what was said to the backfill, and how far it is."""
    desk = _desk()
    found = shape.look(desk)
    typer.echo(f"{desk.names.title}: {found.stage}")
    if found.browned_out:
        typer.echo("the application's right on the plaintext is taken away")
    now = control.status(desk)
    if now.said:
        typer.echo(f"said to the backfill: {now.said.word} by {now.said.by}: {now.said.reason}")
    table = Table("work", "pass", "ranges ended", "rows found", "written", "changed by others", title="Passes")
    for one in now.passes:
        ended = f"{one.ended} of {one.ranges}"
        table.add_row(one.work, *map(str, (one.number, ended, one.rows, one.written, one.refused)))
    if now.passes:
        doors.out.print(table)


@app.command()
def pause(*, reason: Reason) -> None:
    """Let the backfill wait after its batch."""
    control.pause(_desk(), reason=reason)


@app.command()
def run(*, reason: Reason) -> None:
    """Let it go on where it was."""
    control.resume(_desk(), reason=reason)


@app.command()
def abort(*, reason: Reason) -> None:
    """End it after its batch; what is encrypted stays."""
    control.abort(_desk(), reason=reason)


@app.command("verify")
def verify_all(*, workers: Annotated[int, typer.Option(min=1, max=16, help="Processes that read.")] = 2) -> None:
    """Decrypt and compare every row in one snapshot; wants ENCRYPTION_KEY. Exit code 3 when a row is not right."""
    desk = _desk()
    keys = envelope.load_keys(os.environ, key_id=desk.settings.migration.key_id, names=desk.names)
    check = verify.check(desk, keys, workers=workers, report=doors.report)
    found = evidence.run_check(check, actor=desk.run)
    doors.out.print(evidence_table("verify", [found]))
    if found.verdict is not Verdict.PASS:
        raise typer.Exit(3)
