"""Verify and restore: bytes against the manifest, then rows and content against its truth.

A restore creates a new database and never touches an existing one; what fails is dropped again.
"""

import os
import subprocess
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psycopg
import pyrage
from backports.zstd import ZstdDecompressor
from psycopg import sql

from payme_ops.backup import scratch, truth
from payme_ops.backup.manifest import Manifest, Server, Truth
from payme_ops.backup.seal import Writer, parse_identity, unseal
from payme_ops.backup.store import checked
from payme_ops.foundation import content, secret
from payme_ops.foundation.errors import AlreadyExists, IntegrityError, NotFound, SettingsError, Unavailable
from payme_ops.foundation.objectstore import MIB, Bucket
from payme_ops.foundation.postgres import (
    client_environment,
    client_invocation,
    client_tool,
    connect,
    server_major,
    speaking,
    tool_failure,
    with_database,
)
from payme_ops.foundation.progress import Progress, Report, size


def load_identity(path: Path | None) -> pyrage.x25519.Identity:
    """The age identity of a restore worker, in a file or in the secret whose ARN `path` is; it is never shown.

    Raises SettingsError, and what `secret.find` raises.
    """
    text = secret.find(path)
    if text is None:
        raise SettingsError(
            "no identity to open the backup with",
            expected="PAYME_OPS__BACKUP__IDENTITY_FILE, or --identity, to name a readable file",
            found=f"no file {path}" if path else "the variable is not set",
            remedy="use the drill identity of a restore worker, or the recovery identity from its two keepers",
        )
    return parse_identity(text.decode(errors="replace"))


def verify(
    bucket: Bucket, manifest: Manifest, identity: pyrage.x25519.Identity, client_dirs: list[str], *, report: Report
) -> None:
    """Read the archive whole: length and SHA-256, decryption, and every data block by pg_restore, kept nowhere.

    Raises HashMismatch, IntegrityError, DumpFailed. This proves the bytes; a restore test proves the content.
    """
    pg_restore = client_tool("pg_restore", manifest.server.major, client_dirs)
    with _pg_restore([pg_restore, "--file=/dev/null"], {}) as sink:
        pour(bucket, manifest, identity, sink, report=report)


def restore(
    bucket: Bucket,
    manifest: Manifest,
    identity: pyrage.x25519.Identity,
    *,
    conninfo: str,
    into: str,
    client_dirs: list[str],
    scratch_dir: Path,
    jobs: int = 2,
    report: Report,
) -> None:
    """Create database `into` on the server of `conninfo`, restore, and compare with the manifest's truth.

    The opened archive lies in a folder of mode 0700 below `scratch_dir` while it is restored. Raises AlreadyExists
    when `into` is there, Unavailable without room, HashMismatch, TruthMismatch, DumpFailed; then `into` is dropped
    again.
    """
    with connect(conninfo, application="payme_ops:restore") as connection:
        _require_major(connection, manifest)
        create(connection, into, manifest.server)
        try:
            with scratch.folder(scratch_dir, needed_bytes=archive_bytes(manifest), report=report) as place:
                archive = open_archive(bucket, manifest, identity, place, report=report)
                target = with_database(conninfo, into)
                fill(archive, manifest.server.major, target, client_dirs, jobs=jobs, report=report)
            truth.require_equal(manifest.truth, measure(target, report=report))
            report(f"truth: {manifest.truth.rows} rows in {len(manifest.truth.relations)} relations equal the manifest")
        except BaseException:
            with speaking(f"drop database {into}"):
                connection.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(into)))
            raise


def archive_bytes(manifest: Manifest) -> int:
    """Room that the opened archive needs, about. What is compressed outside pg_dump lies there uncompressed."""
    return manifest.archive.size_bytes if manifest.dump.compression_place == "inside" else manifest.server.size_bytes


def open_archive(
    bucket: Bucket, manifest: Manifest, identity: pyrage.x25519.Identity, folder: Path, *, report: Report
) -> Path:
    """The archive as pg_dump wrote it, in a file of mode 0600 in `folder`, its bytes compared on the way.

    Raises HashMismatch, and IntegrityError when the identity does not open it.
    """
    path = folder / "archive.dump"
    try:
        with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb", buffering=MIB) as file:  # noqa: PTH123
            pour(bucket, manifest, identity, file, report=report)
    except OSError as error:
        raise Unavailable(
            f"the opened archive cannot be written to {folder}",
            expected=f"room for about {size(archive_bytes(manifest))}",
            found=error.strerror or type(error).__name__,
            remedy="make room there, or name another folder in PAYME_OPS__BACKUP__SCRATCH_DIR",
        ) from None
    return path


def fill(
    archive: Path,
    major: int,
    target: str,
    client_dirs: list[str],
    *,
    jobs: int,
    tablespaces: bool = True,
    report: Report,
) -> None:
    """pg_restore of the archive into the empty database of the conninfo `target`, `jobs` connections at a time.

    Without `tablespaces` everything goes into the database's own: a throw-away server has no other.

    In three runs, one a section: in one parallel run a deferred constraint trigger on a partitioned table and the
    load of its partitions waited for each other (seen on PostgreSQL 17). Raises DumpFailed, DatabaseUnavailable.
    """
    dbname, secrets = client_invocation(target, application="payme_ops:restore")
    tool = client_tool("pg_restore", major, client_dirs)
    for section in ("pre-data", "data", "post-data"):
        start = time.monotonic()
        options = [] if section == "pre-data" else [f"--jobs={jobs}"]
        options += [] if tablespaces else ["--no-tablespaces"]
        run_tool(
            [
                tool,
                "--exit-on-error",
                "--no-password",
                f"--section={section}",
                *options,
                f"--dbname={dbname}",
                archive,
            ],
            secrets,
        )
        report(f"restore: {section} in {time.monotonic() - start:.1f} s")


def run_tool(command: list[str | Path], secrets: dict[str, str], stdin: bytes = b"") -> bytes:
    """A client tool to its end; what it printed. Raises DumpFailed, DatabaseUnavailable with its own words."""
    process = subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=client_environment(secrets),
    )
    try:
        out, said = process.communicate(stdin)
    finally:
        if process.poll() is None:  # pg_restore ends its workers when it is told to
            process.terminate()
            process.communicate()
    if process.returncode != 0:
        raise tool_failure(Path(command[0]).name, process.returncode, said.decode(errors="replace"))
    return out


def measure(conninfo: str, *, report: Report) -> Truth:
    """The truth of a database that nobody writes to. Raises DatabaseUnavailable, DatabaseError."""
    with connect(conninfo, application="payme_ops:truth") as session, speaking("measure rows and content"):
        content.pin_settings(session)
        session.execute("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY")
        relations, sequences = content.list_relations(session), truth.list_sequences(session)
        return truth.measure(session, relations, sequences, skip_unlogged=False, report=report)


def _require_major(connection: psycopg.Connection, manifest: Manifest) -> None:
    if server_major(connection) != manifest.server.major:
        raise SettingsError(
            "the target server is of another major version",
            expected=f"PostgreSQL {manifest.server.major}, as the backup's source",
            found=f"PostgreSQL {server_major(connection)}",
            remedy="restore into a server of the source's version, then upgrade that",
        )


def create(connection: psycopg.Connection, into: str, server: Server) -> None:
    """The new database with the source's owner, encoding and locale: a restore changes none of them."""
    options = [sql.SQL("OWNER {}").format(sql.Identifier(server.owner)), sql.SQL("TEMPLATE template0")]
    values = {"ENCODING": server.encoding, "LC_COLLATE": server.collate, "LC_CTYPE": server.ctype}
    if server.locale_provider != "c":
        provider = {"i": "icu", "b": "builtin"}[server.locale_provider]
        values["LOCALE_PROVIDER"], values[f"{provider.upper()}_LOCALE"] = provider, server.locale
    options += [sql.SQL("{} {}").format(sql.SQL(name), sql.Literal(value)) for name, value in values.items()]
    statement = sql.SQL("CREATE DATABASE {} {}").format(sql.Identifier(into), sql.SQL(" ").join(options))
    try:
        connection.execute(statement)
        # A copy of customers' data is nobody's until somebody grants it: not what CREATE DATABASE thinks.
        connection.execute(sql.SQL("REVOKE ALL ON DATABASE {} FROM PUBLIC").format(sql.Identifier(into)))
    except psycopg.errors.DuplicateDatabase:
        raise AlreadyExists(
            f"database {into} exists",
            expected="a name that is free",
            found="a database that is never overwritten",
            remedy="choose another name, or drop that database yourself",
        ) from None
    except psycopg.errors.UndefinedObject:
        raise NotFound(
            f"the server has no role {server.owner}",
            expected="the roles of the source, which own what is restored",
            found="another server's roles",
            remedy="restore the roles first: globals.sql.age of this backup (docs/restore-by-hand.md)",
        ) from None
    except psycopg.Error:
        with speaking(f"create database {into}"):
            raise


@contextmanager
def _pg_restore(command: list[str | Path], secrets: dict[str, str]) -> Iterator[Writer]:
    process = subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        env=client_environment(secrets),
    )
    said = ""
    try:
        if process.stdin is None:
            raise SettingsError("pg_restore has no input")
        with suppress(BrokenPipeError):  # pg_restore ended first; its own words follow
            yield process.stdin
        _, raw = process.communicate()
        said = raw.decode(errors="replace")
    finally:
        if process.poll() is None:
            process.kill()
            process.communicate()
    if process.returncode != 0:
        raise tool_failure("pg_restore", process.returncode, said)


def pour(bucket: Bucket, manifest: Manifest, identity: pyrage.x25519.Identity, sink: Writer, *, report: Report) -> None:
    """The opened archive into `sink`; length and SHA-256 of the sealed bytes are compared on the way."""
    progress = Progress("restore", total=manifest.archive.size_bytes, report=report)
    chunks = checked(bucket, manifest.archive, progress)
    try:
        unseal(chunks, _Decompressing(sink) if manifest.dump.compression_place == "outside" else sink, identity)
        deque(chunks, maxlen=0)
    except IntegrityError:
        # Decryption stops at the first bad byte. Read on: a damaged object is named as that, not as a wrong key.
        deque(chunks, maxlen=0)
        raise
    progress.finish()


class _Decompressing:
    """Undoes the zstd that a dump before PostgreSQL 16 got outside pg_dump."""

    def __init__(self, target: Writer) -> None:
        self._target = target
        self._decompressor = ZstdDecompressor()

    def write(self, data: bytes) -> int:
        """Pass on what `data` decompresses to."""
        self._target.write(self._decompressor.decompress(data))
        return len(data)
