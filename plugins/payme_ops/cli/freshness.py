"""`python -m payme_ops backup status`: freshness against the targets."""

import json

import typer

from payme_ops.backup import freshness
from payme_ops.cli import doors
from payme_ops.cli.backup import AsJson
from payme_ops.cli.tables import evidence_json, evidence_table
from payme_ops.foundation import settings
from payme_ops.foundation.clock import utc_now
from payme_ops.foundation.evidence import Verdict


def backup_status(*, as_json: AsJson = False) -> None:
    """How much would be lost now (RPO), how old the proof is, how long a restore takes (RTO), against the targets.

    Exit code 3 when a target is missed, or could not be looked at.
    """
    where, config = doors.catalogue("payme_s3_restore"), settings.load()
    found = freshness.measure(where, config.targets, utc_now(), actor=doors.run_name(), desk=config.desk)
    if as_json:
        typer.echo(json.dumps([evidence_json(item) for item in found], indent=1))
    else:
        doors.out.print(evidence_table(f"Freshness of {where.database} and the desk", found))
    if any(item.verdict is not Verdict.PASS for item in found):
        raise typer.Exit(3)
