"""What the arms run on: PayMe's databases on the wheel's PostgreSQL, and rclone's S3 on the same disk.

Everything is below .bench/ (as root the clusters are where their server's user can reach them) and is kept, so that
only the first run of a scale makes data. Nothing but these services runs meanwhile.
"""

import os
import secrets
import shutil
import signal
import socket
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import boto3
import psycopg
from psycopg import sql

from bench.measure import CommandFailed
from payme_ops.foundation import opsdb
from payme_ops.foundation.objectstore import CLIENT_CONFIG
from sandbox import postgres, s3, world
from sandbox.payme_db import generate
from sandbox.supervisor import Process, SandboxError, Supervisor
from sandbox.world import World

if TYPE_CHECKING:
    from mypy_boto3_s3.client import S3Client
    from mypy_boto3_s3.type_defs import ObjectTypeDef

ROOT = world.PROJECT / ".bench"
BUCKET = world.HOME_BUCKET
# As a production server has them: fsync, data checksums and checkpoints by default, and memory for its tables.
POSTGRES_SETTINGS = {"shared_buffers": "512MB"}
# rclone takes keys of Amazon's lengths only: 20 and 40 characters.
_ACCESS_KEY = "PAYMEBENCHPAYMEBENCH"
_REGION = "us-east-1"  # what rclone answers, and our preflight compares
_PROFILE = "payme_s3_write"
_DISK_BYTES = 3_500  # for each transaction: its rows, their WAL, twice their dump, and its rows restored
_TARGET = "payme_bench_restored"


@dataclass(frozen=True)
class Database:
    """A PayMe database, and the environment in which the CLI and stock tools reach it and the store."""

    world: World
    env: Mapping[str, str]
    pid: int
    size_bytes: int


@dataclass(frozen=True)
class Bed:
    """The services, running. Databases: `whole`; `tiny`, a backup of which is all start and end; in the full scale
    also `quarter`, with a quarter of the rows."""

    databases: Mapping[str, Database]
    store: "S3Client"
    store_pid: int
    scratch: Path

    def settle(self, database: Database) -> None:
        """Take away what the run before left, so that the next one does not pay for it."""
        for item in self._objects():
            self.store.delete_object(Bucket=BUCKET, Key=item["Key"])
        shutil.rmtree(self.scratch, ignore_errors=True)
        self.scratch.mkdir()
        with psycopg.connect(database.world.cluster.conninfo(), autocommit=True) as connection:
            connection.execute("CHECKPOINT")
        os.sync()

    def settle_target(self, database: Database) -> None:
        """A new database to restore into; nothing of an earlier restore, and what is in the store stays."""
        shutil.rmtree(self.scratch, ignore_errors=True)
        self.scratch.mkdir()
        with psycopg.connect(database.world.cluster.conninfo(), autocommit=True) as connection:
            connection.execute(f"DROP DATABASE IF EXISTS {_TARGET} WITH (FORCE)")
            connection.execute(f"CREATE DATABASE {_TARGET} TEMPLATE template0")
            connection.execute("CHECKPOINT")
        os.sync()

    def target_environment(self, database: Database) -> Mapping[str, str]:
        """That of the database, and BENCH_TARGET, the conninfo to restore into."""
        scratch = {"PAYME_OPS__BACKUP__SCRATCH_DIR": str(self.scratch)}
        return {**database.env, **scratch, "BENCH_TARGET": database.world.cluster.conninfo(_TARGET)}

    def require_restored(self, database: Database) -> None:
        """Raises CommandFailed unless the database restored into has the source's rows."""
        counts = [_count(database.world, name) for name in (generate.DATABASE, _TARGET)]
        if counts[0] != counts[1]:
            raise CommandFailed(f"the restore brought back {counts[1]} transactions of {counts[0]}")

    def stored_bytes(self) -> int:
        """Bytes in the bucket."""
        return sum(item["Size"] for item in self._objects())

    def _objects(self) -> "list[ObjectTypeDef]":
        return self.store.list_objects_v2(Bucket=BUCKET).get("Contents", [])


def sizes(scale: str) -> dict[str, generate.Size]:
    """Rows by database."""
    whole = generate.SIZES[f"bench_{scale}"]
    quarter = {"quarter": generate.Size(whole.users // 4, whole.transactions // 4)} if scale == "full" else {}
    return {"whole": whole, "tiny": generate.SIZES["test"], **quarter}


@contextmanager
def standing(scale: str, say: Callable[[str], None]) -> Iterator[Bed]:
    """The services of that scale with their data, for the block. Raises SandboxError, ClusterError."""
    root = ROOT / scale
    _require_disk(root, sum(size.transactions for size in sizes(scale).values()) * _DISK_BYTES)
    rclone = s3.rclone_binary(ROOT / "cache")
    with Supervisor(root, say) as supervisor:
        port, secret_key = postgres.free_port(), secrets.token_urlsafe(30)
        worlds = {name: _build(root / name, port, secret_key) for name in sizes(scale)}
        supervisor.start(
            *(_postgres(f"postgres-{name}", made) for name, made in worlds.items()),
            _rclone(rclone, root / "objects", port, secret_key),
        )
        for name, size in sizes(scale).items():
            _prepare(worlds[name], size, say)
        pids = supervisor.pids()
        databases = {
            name: Database(made, _environment(made), pids[f"postgres-{name}"], _size_bytes(made))
            for name, made in worlds.items()
        }
        try:
            yield Bed(databases, _store(databases["whole"].env), pids["rclone"], root / "scratch")
        finally:
            shutil.rmtree(root / "scratch", ignore_errors=True)
            (root / "local.dump").unlink(missing_ok=True)
            with psycopg.connect(databases["whole"].world.cluster.conninfo(), autocommit=True) as connection:
                connection.execute(f"DROP DATABASE IF EXISTS {_TARGET} WITH (FORCE)")
    shutil.rmtree(root / "objects")


def _require_disk(root: Path, needed: int) -> None:
    """Raises SandboxError when data has yet to be made and there is no room for it."""
    root.parent.mkdir(exist_ok=True)
    free = shutil.disk_usage(root.parent).free
    if not root.exists() and free < needed:
        raise SandboxError(
            "not enough disk for the bench",
            expected=f"{needed / 1e9:.0f} GB for databases, WAL, dumps and objects",
            found=f"{free / 1e9:.1f} GB free below {root.parent}",
            remedy="free some, or run --scale small",
        )


def _build(root: Path, port: int, secret_key: str) -> World:
    known = (root / "credentials").exists()
    made = world.build(root)
    if not known:  # `make clean` took the passwords; as root the cluster is elsewhere and nobody can enter it any more
        shutil.rmtree(made.cluster.data_dir, ignore_errors=True)
    postgres.init(made.cluster.data_dir, bin_dir=made.cluster.bin_dir, password=made.cluster.password)
    profile = {
        "region": _REGION,
        "endpoint_url": f"http://127.0.0.1:{port}",
        # As our own client has it (foundation/objectstore.py). For the AWS CLI it saves work, which favours the script.
        "request_checksum_calculation": "when_required",
        "response_checksum_validation": "when_required",
    }
    lines = "".join(f"{name} = {value}\n" for name, value in profile.items())
    keys = f"aws_access_key_id = {_ACCESS_KEY}\naws_secret_access_key = {secret_key}\n"
    profiles = (_PROFILE, "payme_s3_restore")
    Path(made.env["AWS_CONFIG_FILE"]).write_text("".join(f"[profile {name}]\n{lines}\n" for name in profiles))
    Path(made.env["AWS_SHARED_CREDENTIALS_FILE"]).write_text("".join(f"[{name}]\n{keys}\n" for name in profiles))
    return made


def _environment(made: World) -> dict[str, str]:
    path = f"{made.cluster.bin_dir}{os.pathsep}{made.env['PATH']}"
    return {**made.env, "PATH": path, "AWS_PROFILE": _PROFILE, "PAYME_OPS__BACKUP__REGION": _REGION}


def _postgres(name: str, made: World) -> Process:
    return Process(
        name,
        postgres.command(made.cluster, POSTGRES_SETTINGS),
        {"PATH": os.defpath, "LC_ALL": "C"},
        ready=lambda: None if postgres.accepts(made.cluster) else "a connection",
        stop_signal=signal.SIGINT,  # fast shutdown
        cwd=Path("/"),
        popen=postgres.unprivileged(),
    )


def _rclone(binary: Path, objects: Path, port: int, secret_key: str) -> Process:
    shutil.rmtree(objects, ignore_errors=True)
    (objects / BUCKET).mkdir(parents=True)
    return Process(
        "rclone",
        [str(binary), "serve", "s3", "--addr", f"127.0.0.1:{port}", str(objects)],
        {"PATH": os.defpath, "HOME": str(objects.parent), "RCLONE_AUTH_KEY": f'"{_ACCESS_KEY},{secret_key}"'},
        ready=partial(_refused, port),
    )


def _refused(port: int) -> str | None:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=1).close()
    except OSError:
        return "an answer on its port"
    return None


def _prepare(made: World, size: generate.Size, say: Callable[[str], None]) -> None:
    """The desk's own database and PayMe's, each unless it is there."""
    owner = "payme_ops"
    with psycopg.connect(made.cluster.conninfo(), autocommit=True) as connection:
        if not connection.execute("SELECT FROM pg_database WHERE datname = %s", [owner]).rowcount:
            password = sql.Literal(made.secrets[f"postgres.{owner}"])
            connection.execute(sql.SQL("CREATE ROLE {} LOGIN PASSWORD {}").format(sql.Identifier(owner), password))
            connection.execute(sql.SQL("CREATE DATABASE {0} OWNER {0}").format(sql.Identifier(owner)))
    opsdb.migrate(made.conninfo(owner, owner))
    say(f"PayMe's data: {size.users:,} users, {size.transactions:,} transactions (kept for the next run)")
    generate.create(
        made.cluster.conninfo(),
        users=size.users,
        transactions=size.transactions,
        seed=1,
        passwords={"payme_db_read": made.secrets["postgres.payme_db_read"]},
    )


def _size_bytes(made: World) -> int:
    with psycopg.connect(made.cluster.conninfo(generate.DATABASE)) as connection:
        row = connection.execute("SELECT pg_database_size(current_database())").fetchone()
    return int(row[0]) if row else 0


def _count(made: World, dbname: str) -> int:
    with psycopg.connect(made.cluster.conninfo(dbname)) as connection:
        row = connection.execute("SELECT count(*) FROM transactions").fetchone()
    return int(row[0]) if row else 0


def _store(env: Mapping[str, str]) -> "S3Client":
    os.environ.update({name: env[name] for name in ("AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE")})
    client = boto3.Session(profile_name=_PROFILE).client("s3", config=CLIENT_CONFIG)
    # rclone answers "list uploads" with 404 in a bucket that never had one; S3 answers with an empty list.
    upload = client.create_multipart_upload(Bucket=BUCKET, Key="first")
    client.abort_multipart_upload(Bucket=BUCKET, Key="first", UploadId=upload["UploadId"])
    return client
