"""`python -m payme_ops backup rollback`: a restore into production on the day Airflow is down, asked step by step."""

from typing import Annotated, Any

import typer
from rich.table import Table

from payme_ops.backup import loss, rollback
from payme_ops.backup.rollback import RestoreDesk
from payme_ops.cli import doors
from payme_ops.cli.backup import Name
from payme_ops.foundation import settings
from payme_ops.foundation.evidence import Evidence


def backup_rollback(
    name: Name,
    *,
    reason: Annotated[str, typer.Option(help="Why the running database is to be replaced; kept in the record.")],
    target: Annotated[str, typer.Option(help="Database to replace; default the one that is backed up.")] = "",
    run: Annotated[str, typer.Option(help="Take up a run that was killed, by the name it printed.")] = "",
) -> None:
    """Replace the running database by a backup: restore beside, show what would be lost, swap when you type its name.

    Until then the running database is not touched. You stop and start the application yourself, and tell people.
    """
    config = settings.load()
    where = doors.catalogue("payme_s3_restore")
    desk, run = RestoreDesk(config, "service=payme_db_restore", doors.OPS, where), run or doors.run_name()
    asked = rollback.check_request(desk, run, backup=name, target=target, reason=reason, version="")
    doors.out.print(f"run {run}: {asked.target} from {asked.backup}", markup=False, soft_wrap=True)
    _wait_until_stopped(desk, asked.target)
    rollback.restore_beside(desk, run, report=doors.report)
    _show(rollback.measure_loss(desk, run, report=doors.report))
    if typer.prompt(f"Type {asked.target} to put the restored database in its place") != asked.target:
        rollback.discard(desk, run)
        typer.echo(f"Nothing was changed; {asked.target} is as it was. Start the application again.")
        raise typer.Exit(1)
    done = rollback.swap_in(desk, run, report=doors.report)
    typer.echo(f"{asked.target} is the backup {asked.backup}.")
    if done.replaced:
        typer.echo(f"The old one is {done.replaced}, closed, kept {config.backup.keep_replaced_days} days.")
    typer.echo("Start the application at the version before, see that /health is green, and tell people.")


def _wait_until_stopped(desk: RestoreDesk, target: str) -> None:
    typer.echo("Stop the application now.")
    while True:
        for line in loss.sessions(desk.server, target):
            typer.echo(f"  connected to {target}: {line}")
        if typer.prompt("Type stopped when it is (anything else looks again)") == "stopped":
            return


def _show(plan: Evidence) -> None:
    """What a person has to know before the swap."""
    facts: dict[str, Any] = plan.measured
    table = Table(title=f"What {facts['target']} would lose")
    for heading in ("table", "rows now", "in the backup", "newer", "newest", "note"):
        table.add_column(heading, overflow="fold", justify="right" if "rows" in heading else "left")
    for one in facts["tables"]:
        table.add_row(*("" if one[part] is None else str(one[part]) for part in one))
    doors.out.print(table)
    shown = {**facts, "tables": f"{len(facts['tables'])} differ, {facts['tables unchanged']} do not"}
    for name, value in {**shown, **facts["rename"]}.items():
        if name not in ("rename", "tables unchanged"):
            doors.out.print(f"{name}: {value}", markup=False, soft_wrap=True)
