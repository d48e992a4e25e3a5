"""`python -m payme_ops backup restore-test|report|close`: prove a backup, read what was found, let a refuted one go."""

import getpass
from typing import Annotated

import typer

from payme_ops.backup import catalogue, restore, restore_test, verification
from payme_ops.cli import doors
from payme_ops.cli.backup import Identity, Name
from payme_ops.cli.tables import evidence_table
from payme_ops.foundation import record, settings
from payme_ops.foundation.errors import NotFound, SettingsError


def backup_restore_test(name: Name = "latest", *, identity: Identity = None) -> None:
    """Restore a backup into a throw-away server, compare everything, and write what was found beside it.

    Exit code 4 when it is REFUTED.
    """
    config = settings.load()
    where = doors.catalogue("payme_s3_restore")
    service = config.backup.restore_test_service
    found = restore_test.run(
        where,
        catalogue.find(where, name),
        restore.load_identity(identity or config.backup.identity_file),
        config,
        doors.run_name(),
        given_host=f"service={service}" if service else None,
        report=doors.report,
    )
    doors.out.print(evidence_table(f"{found.subject}: {found.verdict}", list(found.evidence)))
    restore_test.require_verified(found)
    typer.echo(f"{found.subject} is VERIFIED; restored and compared in {found.facts['rto_milliseconds'] / 1000:.1f} s")


def backup_report(
    name: Name, *, html: Annotated[bool, typer.Option("--html", help="One HTML page instead of Markdown.")] = False
) -> None:
    """What the last restore test of a backup found."""
    found = catalogue.find(doors.catalogue("payme_s3_restore"), name)
    if found.verification is None:
        raise NotFound(
            f"{found.key} was never tested",
            expected="a verification that counts",
            found=found.why or "none",
            remedy="test it by `python -m payme_ops backup restore-test`",
        )
    typer.echo(record.to_html(found.verification) if html else record.to_markdown(found.verification))


def backup_close(
    name: Name, *, reason: Annotated[str, typer.Option(help="What was found out, in a sentence.")]
) -> None:
    """Let a REFUTED backup go: it never counts again, and retention may delete it when its time has come."""
    if len(reason.strip()) < 10:
        raise SettingsError("the reason says nothing", expected="a sentence of what was found out", found=repr(reason))
    config = settings.load()
    where = doors.catalogue("payme_s3_restore")
    found = catalogue.find(where, name)
    manifest = found.trusted
    closed = verification.closing(
        manifest, found.verification, by=f"{getpass.getuser()}, {doors.run_name()}", reason=reason
    )
    key = verification.signing_key(config)
    verification.write(catalogue.copies(where, manifest), closed, key, where.verification_keys)
    typer.echo(f"{found.key} is CLOSED")
