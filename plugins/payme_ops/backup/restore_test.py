"""The restore test: a backup is restored into a throw-away server and compared with the truth of its own snapshot.

What it finds about the backup becomes a record, VERIFIED or REFUTED. Our own trouble (no room, no server, S3 away, an
identity that is not this backup's) raises and says nothing about the backup.
"""

import io
import os
import re
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

import psycopg
import pyrage
from psycopg import sql

from payme_ops import __version__
from payme_ops.backup import catalogue, restore, scratch, store, truth, verification
from payme_ops.backup.catalogue import Catalogue, Entry
from payme_ops.backup.listing import count_entries
from payme_ops.backup.manifest import Manifest, SealedObject, Server
from payme_ops.backup.seal import unseal
from payme_ops.backup.store import checked
from payme_ops.backup.truth import Difference
from payme_ops.backup.verification import Outcome
from payme_ops.foundation.clock import show, utc_now
from payme_ops.foundation.errors import (
    DatabaseError,
    DumpFailed,
    HashMismatch,
    IntegrityError,
    NotFound,
    PaymeOpsError,
    Refuted,
    SettingsError,
    StoreUnavailable,
)
from payme_ops.foundation.evidence import Evidence, Finding, Verdict, conclude, plain
from payme_ops.foundation.objectstore import MIB, Bucket
from payme_ops.foundation.postgres import client_tool, connect, speaking, with_database
from payme_ops.foundation.progress import Progress, Report
from payme_ops.foundation.record import Record
from payme_ops.foundation.settings import Settings
from payme_ops.foundation.sql import SQL_DIR, load

CHECKS = SQL_DIR / "restore_checks"
# A restored database with its indexes, to the size of the source's; the server's own files, and its WAL.
_ROOM, _SERVER_BYTES = 1.3, 64 * MIB
_MOST_DIFFERENCES = 50
_FIRST = 5
# From PostgreSQL 16 on only a server's first superuser may grant in another's name; here that is none of the source's.
_GRANTOR = re.compile(r' GRANTED BY (?:"(?:[^"]|"")*"|\S+)\Z')
_HEADER = re.compile(r"^-- (rule|needs|means): (.*)$")
# What pg_restore says when the worker, not the archive, is in trouble: no room, no memory, or a PostgreSQL that lacks
# what the source's has.
_OUR_TROUBLE = re.compile(
    r"signal \d+|No space left|out of memory|out of shared memory|could not extend|too many (open files|clients)"
    r"|could not create locale|could not (load library|access file)|shared_preload_libraries"
)


class _Refuted(Exception):
    """The backup failed in a way that leaves nothing to compare; the evidence is recorded."""


@dataclass
class _Test:
    """One run: what it works with, and what it has found."""

    bucket: Bucket
    manifest: Manifest
    identity: pyrage.x25519.Identity
    settings: Settings
    actor: str
    report: Report
    look: Callable[[str], None] | None = None
    found: list[Evidence] = field(default_factory=list)
    milliseconds: dict[str, int] = field(default_factory=dict)

    def note(
        self, item: str, verdict: Verdict, measured: Any, threshold: str, started: datetime, remedy: str = ""
    ) -> None:
        """Record one item."""
        finding = Finding(verdict, measured, remedy)
        source = self.manifest.key
        self.found.append(
            conclude(item, finding, threshold=threshold, actor=self.actor, source=source, started=started)
        )

    @contextmanager
    def stage(self, name: str, threshold: str) -> Iterator[None]:
        """Time a stage; what is wrong with the backup in it is recorded and ends the test."""
        started, clock = utc_now(), time.monotonic()
        self.report(f"restore test: {name}")
        try:
            yield
        except (IntegrityError, DumpFailed, _Missing) as error:
            if isinstance(error, DumpFailed) and _OUR_TROUBLE.search(error.found):
                raise
            if isinstance(error, HashMismatch):
                self._read_again()
            measured = {"error": error.what, "expected": error.expected, "found": error.found}
            self.note(name, Verdict.FAIL, measured, threshold, started, error.remedy)
            raise _Refuted from None
        finally:
            self.milliseconds[name] = round((time.monotonic() - clock) * 1000)
        self.note(name, Verdict.PASS, {"milliseconds": self.milliseconds[name]}, threshold, started)

    def _read_again(self) -> None:
        """REFUTED is for ever: bytes are wrong in the store only when they are wrong twice.

        Raises StoreUnavailable when they are right now.
        """
        try:
            for stored in (self.manifest.archive, self.manifest.globals):
                store.read_back(self.bucket, stored, report=self.report)
        except HashMismatch:
            return
        raise StoreUnavailable(
            f"the bytes of {self.manifest.prefix} were changed on the way",
            expected="the same bytes each time they are read",
            found="wrong ones first, right ones now",
            remedy="run it again; if it comes back, look at this worker's memory and network",
        )


class _Missing(PaymeOpsError):
    """An object that the manifest names is not there."""


def run(
    where: Catalogue,
    entry: Entry,
    identity: pyrage.x25519.Identity,
    settings: Settings,
    run: str,
    *,
    given_host: str | None = None,
    look: Callable[[str], None] | None = None,
    report: Report,
) -> Record:
    """Examine a backup and store what was found beside it and its copies.

    Raises what `examine` raises; AlreadyExists when it was refuted before and passed now, which a person must look at.
    """
    manifest = entry.trusted
    key = verification.signing_key(settings)
    bucket = where.stores.of(entry.tier)
    made = examine(bucket, manifest, identity, settings, run, given_host=given_host, look=look, report=report)
    return verification.write(catalogue.copies(where, manifest), made, key, where.verification_keys)


def require_verified(found: Record) -> None:
    """Raises Refuted naming what was wrong first: the object, expected and found."""
    if found.verdict == Outcome.VERIFIED:
        return
    wrong = [item for item in found.evidence if item.verdict is Verdict.FAIL]
    lines = "".join(f"\n  - {item.item}: {plain(item.measured)}" for item in wrong[:_FIRST])
    more = f"\n  and {len(wrong) - _FIRST} more" if len(wrong) > _FIRST else ""
    raise Refuted(
        f"{found.subject} is REFUTED: {len(wrong)} thing(s) are not as in the dump's own snapshot{lines}{more}",
        remedy="do not restore from it; docs/runbooks/backup_restore_test.md says what each means",
    )


def examine(
    bucket: Bucket,
    manifest: Manifest,
    identity: pyrage.x25519.Identity,
    settings: Settings,
    run: str,
    *,
    given_host: str | None = None,
    look: Callable[[str], None] | None = None,
    report: Report,
) -> Record:
    """Restore the backup and compare everything; the record is not yet stored (`verification.write`).

    `given_host` is the conninfo of a server to restore on; without it a throw-away one is made below the scratch
    folder. `look` is called with the restored database's conninfo when everything is compared; what it raises ends the
    test. Raises Unavailable, SettingsError and whatever else is not the backup's fault; always cleans up.
    """
    started, clock = utc_now(), time.monotonic()
    test = _Test(bucket, manifest, identity, settings, run, report, look)
    _require_our_key(manifest, identity)
    room = restore.archive_bytes(manifest) + (0 if given_host else _server_bytes(manifest.server))
    with scratch.folder(settings.backup.scratch_dir, needed_bytes=room, report=report) as place, ExitStack() as stack:
        if given_host:
            _refuse_the_source(given_host, manifest)
        server = given_host or stack.enter_context(
            scratch.server(place, manifest.server.major, settings.postgres.client_dirs)
        )
        _require_extensions(server, manifest)
        test.milliseconds["server"] = round((time.monotonic() - clock) * 1000)
        try:
            _restore_and_compare(test, place, server, own=given_host is None)
        except _Refuted:
            report("restore test: the backup cannot be restored")
    refuted = any(item.verdict is Verdict.FAIL for item in test.found)
    return Record(
        kind=verification.KIND,
        subject=manifest.key,
        run=run,
        actor=f"payme-ops {__version__}",
        verdict=Outcome.REFUTED if refuted else Outcome.VERIFIED,
        started=started,
        ended=utc_now(),
        facts={
            **verification.binding(manifest),
            "snapshot": show(manifest.snapshot_at),
            "rto_milliseconds": round((time.monotonic() - clock) * 1000),
            "milliseconds": test.milliseconds,
            "rows": manifest.truth.rows,
            "relations": len(manifest.truth.relations),
            "definitions": len(manifest.truth.definitions),
            "server": f"PostgreSQL {manifest.server.major}, {'given' if given_host else 'throw-away'}",
        },
        evidence=tuple(test.found),
    )


@contextmanager
def rehearsal(
    bucket: Bucket,
    manifest: Manifest,
    identity: pyrage.x25519.Identity,
    settings: Settings,
    name: str,
    *,
    report: Report,
) -> Iterator[str]:
    """The backup as database `name` of a throw-away server with the backup's roles, to try something out on.

    Yields the superuser's conninfo; roles have no passwords yet. Database and server are gone after the block. Raises
    what `examine` raises, and IntegrityError or DumpFailed where the backup is at fault.
    """
    _require_our_key(manifest, identity)
    room = restore.archive_bytes(manifest) + _server_bytes(manifest.server)
    dirs = settings.postgres.client_dirs
    with (
        scratch.folder(settings.backup.scratch_dir, needed_bytes=room, report=report) as place,
        scratch.server(place, manifest.server.major, dirs) as server,
    ):
        archive = restore.open_archive(bucket, manifest, identity, place, report=report)
        _make_roles(_open_globals(bucket, manifest, identity), server)
        with connect(server, application="payme_ops:rehearsal") as admin:
            restore.create(admin, name, manifest.server)
        target = with_database(server, name)
        restore.fill(archive, manifest.server.major, target, dirs, jobs=_cores(), tablespaces=False, report=report)
        archive.unlink()
        yield target


def _require_our_key(manifest: Manifest, identity: pyrage.x25519.Identity) -> None:
    """Before anything is judged: a worker with another backup's key would refute a good one."""
    mine = str(identity.to_public())
    if mine not in manifest.sealing.recipients.values():
        raise SettingsError(
            "this worker's identity does not open this backup",
            expected=", ".join(f"{who} {key[:12]}…" for who, key in sorted(manifest.sealing.recipients.items())),
            found=f"{mine[:12]}…",
            remedy="use the identity of that time (docs/keys.md, 'Rotate a recipient')",
        )


def _refuse_the_source(server: str, manifest: Manifest) -> None:
    """Never on the server that was backed up, whatever a connection says."""
    with connect(server, application="payme_ops:restore_test") as connection, speaking("look at the restore host"):
        row = connection.execute("SELECT system_identifier::text FROM pg_control_system()").fetchone()
    source = manifest.server.system_identifier
    if source is None or row is None or row[0] == source:
        raise SettingsError(
            "the restore host may be the server that was backed up",
            expected="another PostgreSQL cluster",
            found=f"system identifier {row[0] if row else 'unknown'}, that of the source is {source or 'not recorded'}",
            remedy="correct the connection that PAYME_OPS__BACKUP__RESTORE_TEST_SERVICE names, or leave it empty",
        )


def _server_bytes(source: Server) -> int:
    return round(source.size_bytes * _ROOM) + min(source.size_bytes, scratch.WAL_BYTES) + _SERVER_BYTES


def _require_extensions(server: str, manifest: Manifest) -> None:
    """A dump names extensions without their version: what this server would make of it is looked at before."""
    wanted = {extension.name: extension.version for extension in manifest.truth.extensions}
    with connect(server, application="payme_ops:restore_test") as connection, speaking("look at extensions"):
        found = connection.execute(
            "SELECT name, default_version FROM pg_available_extensions WHERE name = ANY(%s)", [list(wanted)]
        ).fetchall()
    there = dict(found)
    lacking = {name: version for name, version in wanted.items() if there.get(name) != version}
    if lacking:
        raise SettingsError(
            "the server of the restore test makes other extensions than the source has",
            expected=", ".join(f"{name} {version}" for name, version in lacking.items()),
            found=", ".join(f"{name} {there.get(name, 'not installed')}" for name in lacking),
            remedy="install the source's extension packages on the restore worker, or run ALTER EXTENSION … UPDATE on"
            " the source when it is behind its own packages",
        )


def _restore_and_compare(test: _Test, place: Path, server: str, *, own: bool) -> None:
    manifest, dirs = test.manifest, test.settings.postgres.client_dirs
    name = f"restore_test_{manifest.stamp.lower()}"
    with test.stage("archive", "length and SHA-256 of the manifest, and bytes that this identity opens"), _present():
        archive = restore.open_archive(test.bucket, manifest, test.identity, place, report=test.report)
        _note_listing(test, archive)
    with test.stage("globals", "length and SHA-256 of the manifest, and roles that can be made"), _present():
        script = _open_globals(test.bucket, manifest, test.identity)
        if own:
            _make_roles(script, server)
    with connect(server, application="payme_ops:restore_test") as admin, _dropped(admin, name):
        with test.stage("database", "its owner and its locale are there"):
            _create(admin, name, manifest.server, own=own)
        target = with_database(server, name)
        with test.stage("restore", "pg_restore ends without an error"):
            jobs = _cores()
            restore.fill(
                archive, manifest.server.major, target, dirs, jobs=jobs, tablespaces=not own, report=test.report
            )
        archive.unlink()
        with test.stage("compare", "everything that the manifest holds was measured"):
            differences = _compare(test, target, own=own)
        _note_differences(test, differences, own=own)
        for check in invariants():
            _note_invariant(test, check, target)
        if test.look:
            test.look(target)


@contextmanager
def _present() -> Iterator[None]:
    """A named object that is not there is the backup's fault; a bucket that is not there is ours."""
    try:
        yield
    except NotFound as error:
        if "NoSuchKey" not in error.found:
            raise
        raise _Missing(
            "an object of the backup is missing", expected="every object of the manifest", found=error.what
        ) from None


def _note_listing(test: _Test, archive: Path) -> None:
    started = utc_now()
    tool = client_tool("pg_restore", test.manifest.server.major, test.settings.postgres.client_dirs)
    counted = count_entries(restore.run_tool([tool, "--list", archive], {}).decode(errors="replace"))
    wanted = test.manifest.dump.listing
    wrong = {
        kind: f"expected {wanted.get(kind, 0)}, found {counted.get(kind, 0)}"
        for kind in sorted(wanted.keys() | counted.keys())
        if wanted.get(kind, 0) != counted.get(kind, 0)
    }
    test.note(
        "contents",
        Verdict.FAIL if wrong else Verdict.PASS,
        wrong or {"entries": sum(counted.values())},
        "the archive's own table of contents, as counted when it was made",
        started,
        "find out who replaced the archive; see below what it lacks" if wrong else "",
    )


def _open_globals(bucket: Bucket, manifest: Manifest, identity: pyrage.x25519.Identity) -> bytes:
    stored: SealedObject = manifest.globals
    progress = Progress("globals", total=stored.size_bytes, report=lambda _: None)
    chunks = list(checked(bucket, stored, progress))
    script = io.BytesIO()
    unseal(iter(chunks), script, identity)
    return script.getvalue()


def _make_roles(script: bytes, server: str) -> None:
    """Run the statements of pg_dumpall one by one; what cannot be made here (a tablespace) does not stop the rest, and
    roles are compared later. Not by psql: a line of it that begins with a backslash could run a program as us."""
    text = "".join(line for line in script.decode().splitlines(keepends=True) if not line.startswith("\\"))
    with connect(server, application="payme_ops:restore_test") as connection:
        for statement in text.split(";\n"):
            try:
                connection.execute(_GRANTOR.sub("", statement).encode())
            except psycopg.Error:
                if connection.closed:
                    with speaking("make the roles"):
                        raise


@contextmanager
def _dropped(admin: psycopg.Connection, name: str) -> Iterator[None]:
    """Without that database before the block (a killed run may have left it on a given host) and after it."""
    drop = sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(sql.Identifier(name))
    with speaking(f"drop database {name}"):
        admin.execute(drop)
    try:
        yield
    finally:
        with speaking(f"drop database {name}"):
            admin.execute(drop)


def _create(admin: psycopg.Connection, name: str, source: Server, *, own: bool) -> None:
    try:
        restore.create(admin, name, source)
    except NotFound as error:
        if not own:  # a given host has roles of its own, and may lack this one
            raise
        raise _Missing(
            "the database has no owner", expected=f"role {source.owner} in the globals", found=error.what
        ) from None


def _compare(test: _Test, target: str, *, own: bool) -> list[Difference]:
    measured = restore.measure(target, report=test.report)
    found = truth.differences(test.manifest.truth, measured)
    if own:
        found += truth.access_differences(test.manifest.truth, measured, ignore=frozenset({scratch.SUPERUSER}))
    return found


def _note_differences(test: _Test, differences: list[Difference], *, own: bool) -> None:
    now, expected = utc_now(), test.manifest.truth
    threshold = "as in the dump's own snapshot"
    for one in differences[:_MOST_DIFFERENCES]:
        remedy = "do not use this backup; look at who wrote it and take a fresh one"
        test.note(one.name, Verdict.FAIL, {"expected": one.expected, "found": one.found}, threshold, now, remedy)
    if len(differences) > _MOST_DIFFERENCES:
        test.note("more differences", Verdict.FAIL, {"count": len(differences) - _MOST_DIFFERENCES}, "none", now)
    if not differences:
        measured = {
            "relations": len(expected.relations),
            "rows": expected.rows,
            "definitions": len(expected.definitions),
            "sequences": len(expected.sequences),
            "extensions": len(expected.extensions),
            "large_objects": expected.large_objects.count,
        }
        test.note("rows, content and definitions", Verdict.PASS, measured, threshold, now)
    if expected.definitions_form != truth.DEFINITIONS_FORM:
        forms = {"recorded in form": expected.definitions_form, "compared in form": truth.DEFINITIONS_FORM}
        test.note("definitions", Verdict.BYPASSED, forms, threshold, now, "only rows and content were compared")
    if own and not differences:
        access = {"roles": len(expected.roles), "grants": len(expected.grants)}
        test.note("roles and grants", Verdict.PASS, access, threshold, now)
    if not own:
        test.note(
            "roles and grants",
            Verdict.BYPASSED,
            "a given host has roles of its own",
            threshold,
            now,
            "run a test without PAYME_OPS__BACKUP__RESTORE_TEST_SERVICE to compare them",
        )


@dataclass(frozen=True)
class Invariant:
    """One file of include/sql/restore_checks: a rule, the tables it needs, and what a failure means."""

    name: str
    rule: str
    needs: list[str]
    means: str


def invariants() -> list[Invariant]:
    """Every file of include/sql/restore_checks. Raises SettingsError for one without its three header lines."""
    return [_invariant(path) for path in sorted(CHECKS.glob("*.sql"))]


def _invariant(path: Path) -> Invariant:
    values: dict[str, str] = {}
    last = ""
    for line in path.read_text(encoding="utf-8").splitlines():
        if match := _HEADER.match(line):
            last = match[1]
            values[last] = match[2]
        elif line.startswith("--") and last:
            values[last] += " " + line.removeprefix("--").strip()
        else:
            break
    missing = {"rule", "needs", "means"} - values.keys()
    if missing:
        raise SettingsError(
            f"{path.name} has no whole header",
            expected="lines that begin -- rule:, -- needs: and -- means:",
            found=f"no {', '.join(sorted(missing))}",
            remedy="write them as the other files of include/sql/restore_checks have them",
        )
    needs = [name.strip() for name in values["needs"].split(",")]
    return Invariant(path.stem, values["rule"], needs, values["means"])


def _note_invariant(test: _Test, check: Invariant, target: str) -> None:
    started = utc_now()
    tables = {relation.qualified for relation in test.manifest.truth.relations}
    if absent := [name for name in check.needs if name not in tables]:
        test.note(check.name, Verdict.BYPASSED, f"not in this database: {', '.join(absent)}", check.rule, started)
        return
    try:
        with connect(target, application="payme_ops:restore_test") as session, speaking(f"check {check.name}"):
            row = session.execute(load(f"restore_checks/{check.name}.sql")).fetchone()
    except DatabaseError as error:
        if error.sqlstate.startswith("53"):  # no room or memory
            raise
        test.note(
            check.name, Verdict.FAIL, {"error": error.what, "found": error.found}, check.rule, started, check.means
        )
        return
    violations = row[0] if row else None
    verdict = Verdict.PASS if violations == 0 else Verdict.FAIL
    test.note(
        check.name, verdict, {"violations": violations}, check.rule, started, "" if violations == 0 else check.means
    )


def _cores() -> int:
    return max(2, min(os.cpu_count() or 2, 8))
