"""`python -m payme_ops backup copy|archive|retrieve`: into the other region, into Glacier, and back."""

from typing import Annotated

import typer

from payme_ops.backup import archive, catalogue, preflight
from payme_ops.backup import copy as copying
from payme_ops.backup.run import Desk
from payme_ops.cli import doors
from payme_ops.cli.backup import Name
from payme_ops.cli.tables import proof_table
from payme_ops.foundation.clock import utc_now

_TRY_AGAIN = 6


def backup_copy(name: Name = "latest daily") -> None:
    """Copy a daily to the other region and read it back there; kept 90 days."""
    desk, run = _desk()
    source = catalogue.find(desk.catalogue, name).trusted
    doors.out.print(proof_table(copying.copy(desk, run, source, report=doors.report)))


def backup_archive(
    name: Annotated[
        str | None, typer.Argument(help="A verified daily; default: the one that expires first, once a month.")
    ] = None,
) -> None:
    """Put a verified daily into Glacier, in the other region, for ever."""
    desk, run = _desk()
    there = archive.made_in_month(desk.catalogue, utc_now()) if name is None else None
    if there:
        doors.err.print(f"this month has its archive: {there.key}", markup=False)
        return
    chosen = archive.due(desk.catalogue) if name is None else catalogue.find(desk.catalogue, name)
    doors.out.print(proof_table(archive.archive(desk, run, chosen, report=doors.report)))


def backup_retrieve(name: Name) -> None:
    """Ask for an archive's bytes, which takes hours, and say how far that is. Exit code 6 until they can be read."""
    where = doors.catalogue("payme_s3_restore")
    found = catalogue.find(where, name)
    state = archive.retrieve(where.stores.of(found.tier), found.trusted)
    if state.readable:
        typer.echo(f"{found.key} can be read ({state})")
        return
    typer.echo(f"{found.key} was asked for and can be read some hours from now; run this again to see")
    raise typer.Exit(_TRY_AGAIN)


def _desk() -> tuple[Desk, str]:
    """The desk, when the other region's bucket and the keys are as they should be, and the run's name."""
    desk, run = doors.desk(), doors.run_name()
    found = preflight.examine_for_copy(desk, actor=run)
    preflight.record(desk, run, found)
    preflight.require_passed(found)
    return desk, run
