"""What happens before any other container starts: `python docker/init.py SERVER SECRETS`.

Databases, schemas, roles and accounts of people; then doctor has a look.

Everything is made where it is missing and left alone where it is there, so this runs at every start and upgrade. It
ends with 0 when the desk can start. What doctor finds does not hold it back: whatever is away, backups should be tried
and people told, and each task looks for itself before it touches anything.
"""

import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import psycopg
from psycopg import sql
from psycopg.conninfo import make_conninfo

from payme_ops.foundation.opsdb import WORKERS

OWNERS = ("airflow", "celery", "payme_ops")
ROLES = Path(__file__).with_name("roles.json")


def databases(host: str, port: str, secrets: Path) -> None:
    """What `roles_and_databases` makes, on that server and with the passwords of the secrets."""
    conninfo = make_conninfo(
        host=host,
        port=port,
        dbname="postgres",
        user="postgres",
        password=_secret(secrets, "postgres"),
        sslmode="verify-full",
        sslrootcert=str(secrets / "postgres_ca.crt"),
    )
    with psycopg.connect(conninfo, autocommit=True) as server:
        roles_and_databases(server, {name: _secret(secrets, f"{name}_db") for name in (*OWNERS, *WORKERS)})


def _secret(secrets: Path, name: str) -> str:
    return (secrets / f"{name}_password").read_text().strip()


def roles_and_databases(server: psycopg.Connection, passwords: Mapping[str, str]) -> None:
    """A database of its own for each owner, of the same name; the roles of the workers; the password of each role."""
    for name, password in passwords.items():
        role = sql.Identifier(name)
        if not _one(server, "SELECT FROM pg_roles WHERE rolname = %s", name):
            server.execute(sql.SQL("CREATE ROLE {} LOGIN").format(role))
        # Only its SCRAM verifier goes to the server, whose log has the statement.
        verifier = server.pgconn.encrypt_password(password.encode(), name.encode(), b"scram-sha-256").decode()
        server.execute(sql.SQL("ALTER ROLE {} PASSWORD {}").format(role, sql.Literal(verifier)))
    for name in OWNERS:
        owner = sql.Identifier(name)
        if not _one(server, "SELECT FROM pg_database WHERE datname = %s", name):
            server.execute(sql.SQL("CREATE DATABASE {} OWNER {}").format(owner, owner))
        server.execute(sql.SQL("REVOKE CONNECT ON DATABASE {} FROM PUBLIC").format(owner))
    # As include/sql/grants/ops_database.sql does where there is no init.
    server.execute("GRANT CONNECT ON DATABASE payme_ops TO payme_ops_worker, payme_ops_restore, payme_ops_release")
    server.execute("GRANT payme_ops_worker TO payme_ops_restore, payme_ops_release")
    server.execute("GRANT payme_ops_worker, payme_ops_restore, payme_ops_release TO payme_ops")


def _one(server: psycopg.Connection, query: str, name: str) -> bool:
    return server.execute(query, [name]).fetchone() is not None


def main(server: str, secrets: str) -> int:
    """Do it, saying what; the exit code of the first command that fails."""
    commands = (
        ("Airflow's metadata", [sys.executable, "-m", "airflow", "db", "migrate"]),
        ("roles and accounts", [sys.executable, "-m", "payme_ops.orchestration.accounts", str(ROLES), secrets]),
        ("the ops database", [sys.executable, "-m", "payme_ops", "ops-db", "migrate"]),
    )
    print("init: databases", flush=True)
    host, port = server.split(":")
    databases(host, port, Path(secrets))
    for what, command in commands:
        print(f"init: {what}", flush=True)
        if code := subprocess.run(command, check=False).returncode:
            print(f"init: {what}: `{' '.join(command)}` ended with {code}; nothing is started", file=sys.stderr)
            return code
    print("init: doctor, as far as this container can see", flush=True)
    subprocess.run([sys.executable, "-m", "payme_ops", "doctor"], check=False)
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
