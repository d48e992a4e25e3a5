"""The desk on a shell: the same functions and settings as the DAGs, for the day Airflow is down.

Databases are libpq services and buckets AWS profiles, named as the Airflow connections are: payme_db_read,
payme_db_restore, payme_db_migrate, payme_ops_db; payme_s3_write, payme_s3_restore, payme_s3_prune. No password stands
on a command line.

Exit codes: 0 done; 1 failed; 2 wrong usage; 3 a check did not pass; 4 bytes, signature or content are not what
they should be; 5 another run holds the lease; 6 a service could not be reached, try again.
"""

import sys

import typer

from payme_ops.cli import (
    alerts,
    backup,
    copies,
    doctor,
    doors,
    env,
    freshness,
    migration,
    monitoring,
    proof,
    record,
    retention,
    rollback,
    sentry,
    watchdog,
)
from payme_ops.foundation import opsdb
from payme_ops.foundation.errors import (
    IntegrityError,
    LeaseHeld,
    PaymeOpsError,
    PreflightFailed,
    PreflightInconclusive,
    Unavailable,
)
from payme_ops.foundation.stop import stoppable

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, help=__doc__)
ops_db_app = typer.Typer(no_args_is_help=True, help="The desk's own database.")
app.add_typer(backup.app, name="backup")
backup.app.command("rollback")(rollback.backup_rollback)
backup.app.command("restore-test")(proof.backup_restore_test)
backup.app.command("report")(proof.backup_report)
backup.app.command("close")(proof.backup_close)
backup.app.command("copy")(copies.backup_copy)
backup.app.command("archive")(copies.backup_archive)
backup.app.command("retrieve")(copies.backup_retrieve)
backup.app.command("retention")(retention.backup_retention)
backup.app.command("undelete")(retention.backup_undelete)
backup.app.command("status")(freshness.backup_status)
app.command("doctor")(doctor.doctor)
app.command("uptime")(monitoring.uptime)
app.command("watchdog")(watchdog.watchdog)
app.add_typer(migration.app, name="migration")
app.add_typer(env.app, name="env")
app.add_typer(alerts.app, name="alert")
app.add_typer(record.app, name="record")
app.add_typer(sentry.app, name="sentry")
app.add_typer(ops_db_app, name="ops-db")

_EXIT: list[tuple[type[PaymeOpsError], int]] = [
    (PreflightFailed, 3),
    (PreflightInconclusive, 3),
    (IntegrityError, 4),
    (LeaseHeld, 5),
    (Unavailable, 6),
    (PaymeOpsError, 1),
]


def main() -> None:
    """Run the command line; errors become one plain text and an exit code."""
    try:
        with stoppable():
            app()
    except PaymeOpsError as error:
        doors.err.print(str(error), style="red", markup=False)
        sys.exit(next(code for kind, code in _EXIT if isinstance(error, kind)))


@ops_db_app.command("migrate")
def ops_db_migrate() -> None:
    """Bring the ops database's schema up to date."""
    applied = opsdb.migrate(doors.OPS)
    typer.echo(f"applied {', '.join(applied)}" if applied else "up to date")
