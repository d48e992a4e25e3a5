"""What happens before any other container starts: databases, schemas, roles and accounts; then doctor has a look.

Everything is made where it is missing and left alone where it is there, so this runs at every start and upgrade. It
ends with 0 when the desk can start. What doctor finds does not hold it back: whatever is away, backups should be tried
and people told, and each task looks for itself before it touches anything.
"""

import subprocess
import sys
from pathlib import Path

import psycopg
from psycopg import sql

SECRETS = Path("/run/secrets")
SERVER = "host=postgres port=5432 dbname=postgres user=postgres"
OWNERS = {"airflow": "airflow_db_password", "celery": "celery_db_password", "payme_ops": "payme_ops_db_password"}
COMMANDS = (
    ("Airflow's metadata", ["airflow", "db", "migrate"]),
    ("roles and accounts", ["python", "-m", "payme_ops.orchestration.accounts", "docker/roles.json"]),
    ("the ops database", ["python", "-m", "payme_ops", "ops-db", "migrate"]),
)
DOCTOR = ["python", "-m", "payme_ops", "doctor"]


def databases() -> None:
    """A database of its own for each, with an owner of the same name whose password is the one in the secret."""
    password = (SECRETS / "postgres_password").read_text().strip()
    tls = {"sslmode": "verify-full", "sslrootcert": str(SECRETS / "postgres_ca.crt")}
    with psycopg.connect(SERVER, password=password, autocommit=True, **tls) as server:
        for name, secret in OWNERS.items():
            owner = sql.Identifier(name)
            if not _one(server, "SELECT FROM pg_roles WHERE rolname = %s", name):
                server.execute(sql.SQL("CREATE ROLE {} LOGIN").format(owner))
            # Only its SCRAM verifier goes to the server, whose log has the statement.
            given = (SECRETS / secret).read_text().strip().encode()
            verifier = server.pgconn.encrypt_password(given, name.encode(), b"scram-sha-256").decode()
            server.execute(sql.SQL("ALTER ROLE {} PASSWORD {}").format(owner, sql.Literal(verifier)))
            if not _one(server, "SELECT FROM pg_database WHERE datname = %s", name):
                server.execute(sql.SQL("CREATE DATABASE {} OWNER {}").format(owner, owner))
            server.execute(sql.SQL("REVOKE CONNECT ON DATABASE {} FROM PUBLIC").format(owner))


def _one(server: psycopg.Connection, query: str, name: str) -> bool:
    return server.execute(query, [name]).fetchone() is not None


def main() -> int:
    """Do it, saying what; the exit code of the first command that fails."""
    print("init: databases", flush=True)
    databases()
    for what, command in COMMANDS:
        print(f"init: {what}", flush=True)
        if code := subprocess.run(command, check=False).returncode:
            print(f"init: {what}: `{' '.join(command)}` ended with {code}; nothing is started", file=sys.stderr)
            return code
    print("init: doctor, as far as this container can see", flush=True)
    subprocess.run(DOCTOR, check=False)
    return 0


if __name__ == "__main__":
    sys.exit(main())
