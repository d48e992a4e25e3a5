"""`python -m payme_ops record verify`: a signed record, checked byte by byte."""

from pathlib import Path
from typing import Annotated

import typer

from payme_ops.cli import doors
from payme_ops.cli.tables import evidence_table
from payme_ops.foundation import record, settings
from payme_ops.foundation.clock import show
from payme_ops.foundation.errors import NotFound

app = typer.Typer(no_args_is_help=True, help="Signed records of restore tests, migrations and releases.")


@app.command("verify")
def verify(
    file: Annotated[
        Path, typer.Argument(help="A record as it was kept, or its page: records/<kind>/<time>.json or .html.")
    ],
) -> None:
    """Say what the record or page says, if it is just what was signed; else name what was changed. Exit code 4 then."""
    config = settings.load()
    try:
        body = file.read_bytes()
    except OSError as error:
        raise NotFound(f"{file.name} cannot be read", found=type(error).__name__) from None
    variable = "PAYME_OPS__BACKUP__VERIFICATION_KEYS"
    found = record.verify(body, config.backup.verification_keys, variable)
    when = f"{show(found.started)} to {show(found.ended)}"
    doors.out.print(
        f"{found.kind} {found.subject}: {found.verdict}, by {found.actor}, {when}", markup=False, soft_wrap=True
    )
    doors.out.print(evidence_table(f"{len(found.evidence)} items, signature and chain match", list(found.evidence)))
