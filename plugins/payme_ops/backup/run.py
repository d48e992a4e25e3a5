"""One backup, stage by stage: dump_and_store, read_back, commit. A DAG runs them as tasks, the CLI in a row.

Between stages nothing travels but the run's name: each stage writes its Evidence to the ops database and the next
reads only that row, because a task's result in Airflow can be rewritten or skipped by a click.
"""

import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import datetime

from payme_ops import __version__
from payme_ops.backup import catalogue, manifest, store, truth
from payme_ops.backup.catalogue import Catalogue, Stores
from payme_ops.backup.dump import Dumped, Source, dump
from payme_ops.backup.globals import dump_globals
from payme_ops.backup.manifest import Manifest, SealedObject, Sealing, Tier, Truth
from payme_ops.backup.seal import FORMAT
from payme_ops.foundation import evidence, lease
from payme_ops.foundation.clock import show, utc_now
from payme_ops.foundation.errors import IntegrityError, PaymeOpsError, PreflightFailed, Unavailable
from payme_ops.foundation.evidence import Evidence, Verdict
from payme_ops.foundation.objectstore import Bucket
from payme_ops.foundation.postgres import connect, speaking
from payme_ops.foundation.progress import Report
from payme_ops.foundation.settings import Settings
from payme_ops.foundation.signing import load_private_key
from payme_ops.foundation.sql import load

_ACTOR = f"payme-ops {__version__}"
PREFLIGHT = "preflight"  # the item that sums up a run's preflight


class Superseded(PaymeOpsError):
    """A newer complete backup of the tier exists than this run was asked to make; there is nothing to do."""


@dataclass(frozen=True)
class Desk:
    """What the stages work with: settings and the doors, each with the least power.

    `bucket` is the home bucket, `copies` that of the other region. `connection` and `variable` say where the database
    is named.
    """

    settings: Settings
    database: str = field(repr=False)  # a conninfo may hold a password
    ops: str = field(repr=False)
    bucket: Bucket
    copies: Bucket
    connection: str = "payme_db_read"
    variable: str = "PAYME_OPS__BACKUP__DATABASE"

    @property
    def catalogue(self) -> Catalogue:
        """The catalogue through this desk's identities."""
        return Catalogue.of(Stores(self.bucket, self.copies), self.settings.backup)

    @property
    def placement(self) -> store.Placement:
        """Where objects go."""
        backup = self.settings.backup
        return store.Placement(self.bucket, backup.storage_class, backup.kms_key_id)

    @property
    def copy_placement(self) -> store.Placement:
        """Where copies go, in the other region."""
        return store.Placement(self.copies, self.settings.backup.storage_class, None, by_bucket=True)

    @property
    def source(self) -> Source:
        """What is dumped."""
        return Source(self.database, self.settings.postgres.client_dirs)

    @property
    def lease_name(self) -> str:
        """`snapshot:<database>`: one dump of a database at a time, whatever asked for it."""
        return f"snapshot:{self.settings.backup.database}"

    @property
    def recipients(self) -> dict[str, str]:
        """The two age recipients by the part they play."""
        return {
            "recovery": self.settings.backup.recipient_recovery,
            "drill": self.settings.backup.recipient_drill,
        }


def dump_and_store(desk: Desk, run: str, tier: Tier, queued_at: datetime, *, report: Report) -> Manifest:
    """Dump, seal and upload under the database's snapshot lease; the draft manifest goes into the evidence.

    Raises NotFound or PreflightFailed unless the run's preflight passed, LeaseHeld, Superseded (a complete snapshot
    is newer than `queued_at`), SteppedAside, and every error of dump and store. Whatever happens, the unfinished
    upload is aborted and locks and lease are freed; what a killed run left is cleared by the next holder of the
    lease, here.
    """
    if evidence.latest(desk.ops, run, PREFLIGHT).verdict is not Verdict.PASS:
        raise PreflightFailed(
            "the preflight of this run did not pass",
            expected="every check passed",
            remedy="clear the task preflight; marking it as success does not make a check pass",
        )
    with lease.hold(desk.ops, desk.lease_name, run) as held:
        newest = _refuse_superseded(desk, tier, queued_at)
        _clear_leftovers(desk, report)
        draft = _dump(desk, run, tier, held, newest.archive.size_bytes if newest else None, report=report)
        held.check()
        _record(desk, run, "dump_and_store", draft.started_at, manifest.document(draft), draft.archive.key)
    return draft


def read_back(desk: Desk, run: str, *, report: Report) -> Manifest:
    """Read the run's stored objects back and compare. Raises HashMismatch, NotFound without a dump's evidence."""
    draft = _draft(desk, run)
    started = utc_now()
    proof = store.read_back(desk.bucket, draft.archive, report=report)
    store.read_back(desk.bucket, draft.globals, report=report)
    checked = draft.model_copy(update={"read_back": proof})
    _record(desk, run, "read_back", started, manifest.document(checked), draft.archive.key)
    return checked


def commit(desk: Desk, run: str) -> Manifest:
    """Write the signed manifest of this run. Raises NotFound unless both earlier stages left their evidence."""
    draft, checked = _draft(desk, run), _parse(evidence.latest(desk.ops, run, "read_back"))
    if checked.read_back is None or checked.model_copy(update={"read_back": None}) != draft:
        raise IntegrityError(
            "the read-back belongs to another dump",
            expected=draft.archive.sha256,
            found=checked.archive.sha256,
            remedy="run read_back again, then commit",
        )
    store.commit(desk.placement, checked, load_private_key(desk.settings.backup.signing_key_file))
    return checked


def _dump(
    desk: Desk, run: str, tier: Tier, held: lease.Lease, expected_bytes: int | None, *, report: Report
) -> Manifest:
    stored: list[SealedObject] = []

    def consume(chunks: Iterator[bytes], dumped: Dumped) -> None:
        prefix = manifest.backup_prefix(desk.settings.backup.database, tier, dumped.started_at)
        # The suffix tells a person with stock tools what to undo, outermost last.
        name = "archive.dump.zst.age" if dumped.dump.compression_place == "outside" else "archive.dump.age"
        stored[:] = [
            store.seal_and_store(
                chunks, desk.placement, prefix + name, desk.recipients, expected_bytes=expected_bytes, report=report
            )
        ]

    application = f"{_sessions(desk)}{held.token}"
    dumped = dump(desk.source, application, consume, report=report)
    if dumped.truth is None:
        raise IntegrityError("the dump ended without its truth", expected="rows and hashes of every table")
    archive = stored[0]
    prefix = archive.key.rsplit("/", 1)[0] + "/"
    start = time.monotonic()
    roles = dump_globals(desk.source, dumped.server.major, application)
    _require_same_roles(desk, dumped.truth, application)
    sealed_globals = store.seal_and_store(
        iter([roles]),
        desk.placement,
        f"{prefix}globals.sql.age",
        desk.recipients,
        expected_bytes=len(roles),
        report=report,
    )
    return Manifest(
        format="payme-ops/backup",
        version=1,
        database=desk.settings.backup.database,
        tier=tier,
        prefix=prefix,
        run=run,
        fencing_token=held.token,
        software=_ACTOR,
        started_at=dumped.started_at,
        snapshot_at=dumped.snapshot_at,
        server=dumped.server,
        dump=dumped.dump,
        archive=archive,
        globals=sealed_globals,
        sealing=Sealing(format=FORMAT, recipients=desk.recipients),
        truth=dumped.truth,
        milliseconds={**dumped.milliseconds, "globals": round((time.monotonic() - start) * 1000)},
        read_back=None,
    )


def _require_same_roles(desk: Desk, expected: Truth, application: str) -> None:
    """pg_dumpall has a snapshot of its own, after the dump's: a restore test would find roles that do not fit."""
    with connect(desk.database, application=application) as session, speaking("list the roles"):
        now = truth.list_roles(session)
    if now != expected.roles:
        changed = {role.name for role in [*now, *expected.roles] if role not in now or role not in expected.roles}
        raise Unavailable(
            "roles were changed while the backup was taken",
            expected="the roles of the dump's snapshot",
            found=f"changes in {', '.join(sorted(changed))}",
            remedy="run it again",
        )


def _sessions(desk: Desk) -> str:
    """What the names of our sessions on the source begin with."""
    return f"payme_ops:dump:{desk.settings.backup.database}:"


def _refuse_superseded(desk: Desk, tier: Tier, queued_at: datetime) -> Manifest | None:
    """The newest complete backup of the tier, or None."""
    newest = catalogue.newest(desk.catalogue, tier)
    if newest and newest.snapshot_at >= queued_at:
        raise Superseded(
            f"a complete {tier} backup is newer than this request",
            expected=f"no snapshot since {show(queued_at)}",
            found=f"{newest.key} of {show(newest.snapshot_at)}",
            remedy="nothing; trigger again if you need one of this minute",
        )
    return newest


def _clear_leftovers(desk: Desk, report: Report) -> None:
    aborted = desk.bucket.abort_uploads(f"postgres/{desk.settings.backup.database}/")
    with connect(desk.database, application="payme_ops:clear") as connection, speaking("end leftover sessions"):
        ended = len(
            connection.execute(load("backup/end_dump_sessions.sql"), {"pattern": f"{_sessions(desk)}%"}).fetchall()
        )
    if aborted or ended:
        report(f"cleared what a killed run left: {aborted} unfinished upload(s), {ended} database session(s)")


def _record(desk: Desk, run: str, item: str, started: datetime, measured: object, source: str) -> None:
    proof = Evidence(
        item=item,
        verdict=Verdict.PASS,
        measured=measured,
        threshold="length and SHA-256 equal" if item == "read_back" else "pg_dump and truth complete",
        actor=_ACTOR,
        started=started,
        ended=utc_now(),
        source=source,
        sha256=evidence.digest(measured),
    )
    evidence.record(desk.ops, run, [proof])


def _draft(desk: Desk, run: str) -> Manifest:
    return _parse(evidence.latest(desk.ops, run, "dump_and_store"))


def _parse(proof: Evidence) -> Manifest:
    return manifest.parse(proof.measured)
