"""docs/first-run.md, line by line: a server and a store that know nothing of payme-ops, and IAM policies enforced."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from sandbox import postgres
from sandbox.http import silent
from sandbox.payme_db import generate
from tests.support import document
from tests.support.waiting import eventually

pytestmark = [pytest.mark.long, pytest.mark.timeout(900)]

BLOCKS = document.blocks("first-run.md")
BUCKET, REGION = "payme-first-run", "af-south-1"
COPY_BUCKET, COPY_REGION = "payme-first-run-dr", "eu-west-1"
# The administrator's part is done here.
FROM_HERE_ON = "payme_ops ops-db migrate"
# What the other DAGs do with the three identities; a retrieval that is under way answers 6.
AFTERWARDS = [
    '"$PYTHON" -m payme_ops backup archive',
    '"$PYTHON" -m payme_ops backup retrieve "latest monthly" || test $? = 6',
    '"$PYTHON" -m payme_ops backup retention',
    '"$PYTHON" -m payme_ops backup list',
]
# Every check, through Airflow's connections.
AIRFLOW_DOOR = """
from payme_ops.backup import preflight
from payme_ops.orchestration import doors

preflight.require_passed(preflight.examine(doors.desk(), actor="test", for_run=True))
"""


@pytest.fixture
def certificate() -> Iterator[Path]:
    """A folder that the server's user can reach, with server.crt for 127.0.0.1, its own root, and server.key."""
    folder = Path(tempfile.mkdtemp(prefix="payme-tls-"))
    try:
        folder.chmod(0o711)
        subprocess.run(
            [
                *("openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=127.0.0.1"),
                *("-addext", "subjectAltName=IP:127.0.0.1", "-keyout", "server.key", "-out", "server.crt"),
            ],
            cwd=folder,
            check=True,
            capture_output=True,
        )
        owner = postgres.unprivileged()
        if owner:
            os.chown(folder / "server.key", owner["user"], owner["group"])
        (folder / "server.key").chmod(0o600)
        (folder / "server.crt").chmod(0o644)
        yield folder
    finally:
        shutil.rmtree(folder)


@pytest.fixture
def server(certificate: Path) -> Iterator[postgres.Cluster]:
    """PayMe's database as it is before payme-ops comes, on a server that speaks TLS."""
    files = {"ssl_cert_file": str(certificate / "server.crt"), "ssl_key_file": str(certificate / "server.key")}
    with postgres.temporary_cluster(settings={"ssl": "on", **files}) as cluster:
        size = generate.SIZES["test"]
        generate.create(cluster.conninfo(), users=size.users, transactions=size.transactions, seed=1)
        with psycopg.connect(cluster.conninfo("postgres"), autocommit=True) as connection:
            connection.execute("DROP SCHEMA payme_restore CASCADE")
        with psycopg.connect(cluster.conninfo("payme"), autocommit=True) as connection:
            for role in ("payme_db_read", "payme_db_restore"):
                connection.execute(f"DROP OWNED BY {role}")
                connection.execute(f"DROP ROLE {role}")
        yield cluster


@pytest.fixture
def aws(tmp_path: Path) -> Iterator[str]:
    """S3 and IAM without any bucket or user; its URL."""
    port = postgres.free_port()
    url = f"http://127.0.0.1:{port}"
    process = subprocess.Popen(
        [sys.executable, "-m", "sandbox.s3", "--port", str(port), "--state", str(tmp_path / "s3")],
        cwd=postgres.PROJECT,
        stdout=subprocess.DEVNULL,
        preexec_fn=postgres.die_with_parent(signal.SIGKILL),
    )
    try:
        eventually(lambda: process.poll() is not None or silent(f"{url}/moto-api/") is None, "the S3 server")
        assert process.poll() is None, "the S3 server ended"
        yield url
    finally:
        process.kill()
        process.wait()


def environment(folder: Path, server: postgres.Cluster, certificate: Path, aws: str) -> dict[str, str]:
    """What the administrators have before they begin."""
    document.require("age-keygen", "openssl", "setsid")
    (folder / ".postgresql").mkdir()
    shutil.copy(certificate / "server.crt", folder / ".postgresql" / "root.crt")
    aws_cli = Path(sys.executable).parent / "aws"
    path = document.tools(folder / "tools", aws=aws_cli, psql=server.bin_dir / "psql")
    (folder / ".pg_service.conf").write_text(
        "".join(
            f"[{name}]\nhost=127.0.0.1\nport={server.port}\nuser={server.superuser}\n\n"
            for name in ("admin", "ops_admin")
        )
    )
    passwords = folder / ".pgpass"
    passwords.write_text(f"127.0.0.1:{server.port}:*:{server.superuser}:{server.password}\n")
    passwords.chmod(0o600)
    return {
        "PATH": f"{path}:/usr/local/bin:/usr/bin:/bin",
        "HOME": str(folder),
        "COLUMNS": "160",
        "NO_PROXY": "127.0.0.1",
        "PGSERVICEFILE": str(folder / ".pg_service.conf"),
        "PGPASSFILE": str(passwords),
        "AWS_ENDPOINT_URL": aws,
        "AWS_DEFAULT_REGION": REGION,
        "AWS_ACCESS_KEY_ID": "administrator",
        "AWS_SECRET_ACCESS_KEY": "administrator",
    }


def values(folder: Path, server: postgres.Cluster, scratch: Path) -> dict[str, str]:
    (folder / "usb").mkdir()
    place = {"HOST": "127.0.0.1", "PORT": str(server.port)}
    return {
        "PROJECT": str(postgres.PROJECT),
        "PYTHON": sys.executable,
        "DESK": str(folder / "desk"),
        "KEYS": str(folder / "usb"),
        "PROFILE": "production",
        "DATABASE": "payme",
        **{f"DB_{name}": value for name, value in place.items()},
        **{f"OPS_{name}": value for name, value in place.items()},
        "SSLMODE": "verify-full",
        "CLIENT_DIRS": str(server.bin_dir),
        "SCRATCH": str(scratch),
        "BUCKET": BUCKET,
        "REGION": REGION,
        "COPY_BUCKET": COPY_BUCKET,
        "COPY_REGION": COPY_REGION,
        "SENTRY_DSN": "https://key@sentry.invalid/1",
        "AUTH_MANAGER": "airflow.providers.fab.auth_manager.fab_auth_manager.FabAuthManager",
    }


# A machine whose role has the policy of step 5.
MACHINE = """
aws iam create-user --user-name machine > /dev/null
attach machine secrets_one-machine
aws iam create-access-key --user-name machine --query AccessKey > "$DESK/role"
"""


def test_the_lines_lead_to_a_backup_that_restores(
    tmp_path: Path, server: postgres.Cluster, certificate: Path, aws: str
) -> None:
    env = environment(tmp_path, server, certificate, aws)
    lines = [document.with_values(BLOCKS[0], values(tmp_path, server, certificate / "scratch")), *BLOCKS[1:]]
    step = next(number for number, text in enumerate(lines) if FROM_HERE_ON in text)
    told = document.run([*lines[:step], MACHINE, *lines[step:], *AFTERWARDS], env, tmp_path)

    assert re.findall(r"^(?:fail|inconclusive) +(\w+):", told, re.MULTILINE) == ["monitored_endpoints"]
    assert re.search(r"database payme_first_restore holds [0-9,]+ rows, equal to the manifest", told)
    assert re.search(r"weekly.*VERIFIED", told)
    assert re.search(r"monthly.*VERIFIED", told)
    desk = tmp_path / "desk"
    for path in desk.iterdir():
        assert path.stat().st_mode & 0o077 == 0, f"others may read {path.name}"
    require_airflow_door(env, desk)
    require_least_power(env, desk)


def require_airflow_door(env: dict[str, str], desk: Path) -> None:
    """The connections of step 8 pass every check, as the services and profiles of step 5 did."""
    wanted = dict(line.split("=", 1) for line in (desk / "env").read_text().split("\n") if line)
    wanted = {name: value.removeprefix("'").removesuffix("'") for name, value in wanted.items()}
    # Production would refuse loopback addresses in the connections.
    wanted |= {"PAYME_OPS__PROFILE": "staging", "AIRFLOW_HOME": str(desk / "airflow")}
    wanted |= role_of_the_machine(desk)
    ended = subprocess.run(
        [sys.executable, "-c", AIRFLOW_DOOR],
        cwd=desk,
        env={**env, **wanted, "PYTHONPATH": str(postgres.PROJECT / "plugins")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr


def role_of_the_machine(desk: Path) -> dict[str, str]:
    """Credentials with the policy of step 5."""
    key = json.loads((desk / "role").read_text())
    return {"AWS_ACCESS_KEY_ID": key["AccessKeyId"], "AWS_SECRET_ACCESS_KEY": key["SecretAccessKey"]}


def require_least_power(env: dict[str, str], desk: Path) -> None:
    """What each identity may do, and what it may not, in both buckets."""
    profiles = {
        **{name: value for name, value in env.items() if not name.startswith("AWS_ACCESS")},
        "AWS_CONFIG_FILE": str(desk / "aws_config"),
        "AWS_SHARED_CREDENTIALS_FILE": str(desk / "aws_credentials"),
    }

    def attempt(profile: str, bucket: str, action: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["aws", "--profile", profile, "s3api", action, "--bucket", bucket, *arguments],
            env=profiles,
            capture_output=True,
            text=True,
            check=False,
        )

    key, found = ("--key", "postgres/payme/daily/x/archive"), ("--key", "postgres/payme/daily/x/verification.json")
    settings = ("--versioning-configuration", "Status=Suspended")
    for bucket in (BUCKET, COPY_BUCKET):
        version = json.loads(attempt("payme_s3_write", bucket, "put-object", *key).stdout)["VersionId"]
        assert attempt("payme_s3_restore", bucket, "put-object", *found).returncode == 0
        for profile, action, *arguments in (
            ("payme_s3_write", "delete-object", *key),
            ("payme_s3_restore", "put-object", *key),
            ("payme_s3_restore", "delete-object", *key),
            ("payme_s3_prune", "put-object", *key),
            ("payme_s3_prune", "delete-object", *key, "--version-id", version),
            *((one, "put-bucket-versioning", *settings) for one in ("payme_s3_write", "payme_s3_prune")),
        ):
            ended = attempt(profile, bucket, action, *arguments)
            assert "AccessDenied" in ended.stderr or "Forbidden" in ended.stderr, (profile, action, ended)
        assert attempt("payme_s3_prune", bucket, "head-object", *key).returncode == 0
        assert attempt("payme_s3_prune", bucket, "delete-object", *key).returncode == 0
        assert (
            attempt("payme_s3_write", bucket, "get-object", *key, "--version-id", version, "/dev/null").returncode == 0
        )
