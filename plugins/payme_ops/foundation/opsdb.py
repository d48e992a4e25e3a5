"""The ops database: leases, approvals, evidence, alerts. The backup catalogue is not in it: the bucket is."""

from payme_ops.foundation.postgres import connect, speaking
from payme_ops.foundation.sql import SQL_DIR, load

# Roles that work in it and do not own it (include/sql/ops/grants.sql); the others are members of the first.
WORKERS = ("payme_ops_worker", "payme_ops_restore", "payme_ops_release")
_MIGRATION_LOCK = 7_166_001  # any constant: one migrator at a time


def migrate(conninfo: str) -> list[str]:
    """Apply include/sql/ops/NNN_*.sql that are not yet applied, in order, all in one transaction.

    Where the workers have roles of their own (include/sql/ops/grants.sql) these get what they may do.
    Returns the names applied now. Raises DatabaseUnavailable, DatabaseError.
    """
    applied_now: list[str] = []
    with (
        connect(conninfo, application="payme_ops:opsdb") as connection,
        speaking("migrate the ops database"),
        connection.transaction(),
    ):
        connection.execute("SELECT pg_advisory_xact_lock(%s)", [_MIGRATION_LOCK])
        connection.execute("CREATE SCHEMA IF NOT EXISTS ops")
        connection.execute(
            "CREATE TABLE IF NOT EXISTS ops.schema_version"
            " (name text PRIMARY KEY, applied_at timestamptz NOT NULL DEFAULT now())"
        )
        done = {row[0] for row in connection.execute("SELECT name FROM ops.schema_version")}
        for path in sorted((SQL_DIR / "ops").glob("[0-9]*.sql")):
            if path.name not in done:
                connection.execute(load(f"ops/{path.name}"))
                connection.execute("INSERT INTO ops.schema_version (name) VALUES (%s)", [path.name])
                applied_now.append(path.name)
        if connection.execute("SELECT FROM pg_roles WHERE rolname = %s", [WORKERS[0]]).fetchone() is not None:
            connection.execute(load("ops/grants.sql"))
    return applied_now
