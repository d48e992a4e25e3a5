"""Airflow's event log as a chain of sealed exports: who did what in the desk, for longer than Airflow keeps it.

An export is a file of JSON lines, zstd inside age, and a signed manifest that is written last, after the file was read
back; each manifest names the SHA-256 of the one before. It is read from the table, not from Airflow's API, which leaves
entries out (docs/adr/0027-event-log-from-its-table.md).
"""

import hashlib
import itertools
import json
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from typing import Literal

import psycopg
from backports.zstd import CompressionParameter, ZstdCompressor
from pydantic import BaseModel, ConfigDict, ValidationError

from payme_ops import __version__
from payme_ops.backup import store
from payme_ops.backup.manifest import MANIFEST_NAME, ReadBack, SealedObject, Sealing
from payme_ops.backup.run import Desk
from payme_ops.backup.seal import FORMAT
from payme_ops.foundation import lease, signing
from payme_ops.foundation.clock import utc_now
from payme_ops.foundation.errors import DatabaseUnavailable, IntegrityError, ManifestInvalid, NotFound
from payme_ops.foundation.objectstore import MIB, Bucket
from payme_ops.foundation.postgres import connect, speaking
from payme_ops.foundation.progress import Report
from payme_ops.foundation.sql import load

PREFIX = "records/airflow_event_log/"
EVENTS_NAME = "events.jsonl.zst.age"
LEASE = "event_log"
_MANIFEST = re.compile(rf"{PREFIX}([0-9]{{8}})/{re.escape(MANIFEST_NAME)}")
# An entry is written in milliseconds; who holds one back for longer is worth another try.
_SETTLE_SECONDS = 60.0
_FETCH_ROWS = 2000
_GAPS_LISTED = 100


class Before(BaseModel):
    """What the entries of the export before are now. `found`: how many of them the table still has.

    not comparable: there is none before, the table has other columns since, or they are old enough to be cleaned.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    state: Literal["unchanged", "changed", "not comparable"]
    rows: int = 0
    found: int = 0


class Export(BaseModel):
    """The manifest of one export: entries whose number is above `after` and not above `upto`.

    `missing` numbers among them were not there, the first ranges of these in `gaps`: a transaction that was given up
    leaves one as well as a deletion does. `newest_at` is the time of the newest entry in this and all exports before.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: Literal["payme-ops/airflow-event-log"]
    version: Literal[1]
    number: int
    run: str
    software: str
    exported_at: datetime
    database: str
    columns: list[str]
    after: int
    upto: int
    rows: int
    first_id: int
    last_id: int
    first_at: datetime | None
    last_at: datetime | None
    newest_at: datetime | None
    missing: int
    gaps: list[tuple[int, int]]
    text_sha256: str
    text_size_bytes: int
    events: SealedObject
    sealing: Sealing
    read_back: ReadBack
    previous_sha256: str | None
    before: Before

    @property
    def key(self) -> str:
        """Object key of this manifest."""
        return f"{_folder(self.number)}{MANIFEST_NAME}"


def export(desk: Desk, run: str, *, keep_since: datetime, report: Report) -> Export | None:
    """Export what is new in the event log of `desk.database`; None when there is nothing new.

    Entries from before `keep_since` may be gone by rights. Where those of the last export are not what was exported any
    more, they are exported again with the new ones: a metadata database that was restored gives numbers out twice.
    Killed at any moment and run again it goes on. Raises DatabaseUnavailable, StoreUnavailable, LeaseHeld, LeaseLost,
    Untrusted and other IntegrityErrors when the exports that are there cannot be relied on.
    """
    with (
        lease.hold(desk.ops, LEASE, run) as held,
        connect(desk.database, application="payme_ops:event_log") as session,
    ):
        desk.bucket.abort_uploads(PREFIX)  # what a killed run left
        upto = _settled(session, report)
        with _snapshot(session):
            columns = [row[0] for row in session.execute(load("desk/event_log_columns.sql"))]
            last, after, before = _resume(session, desk, columns, upto, keep_since)
            if last and before.state != "changed" and upto <= after:
                report(f"event log: nothing new since export {last.number}")
                return None
            number, database = (last.number + 1 if last else 1), desk.settings.backup.database
            text = _Text(after)
            stored = store.seal_and_store(
                _compressed(_lines(session, after, upto, text)),
                desk.placement,
                f"{_folder(number)}{EVENTS_NAME}",
                desk.recipients,
                expected_bytes=None,
                report=report,
            )
            first_at, last_at = _require_complete(session, after, upto, text)
        proof = store.read_back(desk.bucket, stored, report=report)
        made = Export(
            format="payme-ops/airflow-event-log",
            version=1,
            number=number,
            run=run,
            software=f"payme-ops {__version__}",
            exported_at=utc_now(),
            database=database,
            columns=columns,
            after=after,
            upto=upto,
            rows=text.rows,
            first_id=text.first_id,
            last_id=text.last_id,
            first_at=first_at,
            last_at=last_at,
            newest_at=max((at for at in (last.newest_at if last else None, last_at) if at), default=None),
            missing=upto - after - text.rows,
            gaps=text.gaps_until(upto),
            text_sha256=text.sha256.hexdigest(),
            text_size_bytes=text.size_bytes,
            events=stored,
            sealing=Sealing(format=FORMAT, recipients=desk.recipients),
            read_back=proof,
            previous_sha256=_sha256(desk.bucket, last) if last else None,
            before=before,
        )
        held.check()
        _commit(desk, made)
    report(f"event log: export {made.number}, {made.rows} entries up to {made.upto}, {made.missing} numbers missing")
    return made


def found_changed(desk: Desk, run: str) -> Export | None:
    """The newest export of that run that found entries changed: also of a try that was killed before it could tell.

    Raises as `chain`.
    """
    exports = chain(desk.bucket, desk.settings.backup.trusted_keys)
    of_run = itertools.takewhile(lambda made: made.run == run, exports)
    return next((made for made in of_run if made.before.state == "changed"), None)


def require_untouched(made: Export) -> None:
    """Raises IntegrityError when entries were changed or deleted after they had been exported."""
    if made.before.state == "changed":
        raise IntegrityError(
            "entries of Airflow's event log are not what was exported",
            expected=f"the {made.before.rows} entries of export {made.number - 1}, unchanged",
            found=f"{made.before.found} entries, or others; export {made.number} has what is there now",
            remedy="both exports are kept: find out who changed it, or whether the database was restored"
            " (docs/runbooks/desk_housekeeping.md)",
        )


def clean_before(desk: Desk, keep_since: datetime) -> datetime:
    """Before which time Airflow may delete: not above `keep_since`, and only what the exports have.

    Raises NotFound without an export, IntegrityErrors as `export`, DatabaseUnavailable, StoreUnavailable.
    """
    last = next(chain(desk.bucket, desk.settings.backup.trusted_keys), None)
    if last is None or last.newest_at is None:
        raise NotFound(
            "Airflow's event log was never exported",
            expected=f"a signed manifest below {PREFIX}",
            found="none",
            remedy="clear the task export_event_log; nothing was deleted",
        )
    with connect(desk.database, application="payme_ops:event_log") as session, speaking("see what must not be cleaned"):
        row = session.execute(load("desk/not_to_clean.sql"), {"upto": last.upto}).fetchone()
    bounds: list[datetime] = [at for at in (keep_since, last.newest_at, *(row or ())) if at]
    return min(bounds)


def chain(bucket: Bucket, trusted_keys: list[str]) -> Iterator[Export]:
    """The exports, the newest first, each signed and the one that its successor names.

    Raises Untrusted, ManifestInvalid, and IntegrityError when one is gone or was replaced.
    """
    expected = None
    for number in range(_newest_number(bucket), 0, -1):
        key = f"{_folder(number)}{MANIFEST_NAME}"
        body = bucket.get(key)
        found = hashlib.sha256(body).hexdigest()
        if expected not in (None, found):
            raise IntegrityError(
                f"{key} is not the one that its successor names",
                expected=f"sha256 {expected}",
                found=found,
                remedy="somebody replaced it: an older version of the object is the right one",
            )
        made = _parse(key, body, trusted_keys)
        yield made
        expected = made.previous_sha256


def _newest_number(bucket: Bucket) -> int:
    """Number of the last export; 0 without any. Raises IntegrityError when one before it is gone, or its file."""
    keys = set(bucket.keys(PREFIX))
    newest = max((int(found[1]) for key in keys if (found := _MANIFEST.fullmatch(key))), default=0)
    gone = [
        key
        for number in range(1, newest + 1)
        for key in (f"{_folder(number)}{name}" for name in (MANIFEST_NAME, EVENTS_NAME))
        if key not in keys
    ]
    if gone:
        raise IntegrityError(
            f"{len(gone)} object(s) of the event log's exports are gone",
            expected=f"manifest and file of all exports up to {newest}",
            found=f"no {gone[0]}",
            remedy="bring its last version back; the bucket's own log says who deleted it",
        )
    return newest


def _parse(key: str, body: bytes, trusted_keys: list[str]) -> Export:
    try:
        made = Export.model_validate_json(json.dumps(signing.verify(json.loads(body), trusted_keys)))
    except ValidationError as error:
        fields = ", ".join(".".join(map(str, item["loc"])) for item in error.errors(include_input=False)[:5])
        raise ManifestInvalid(f"{key} is malformed", expected="an export of version 1", found=fields) from None
    except ValueError:
        raise ManifestInvalid(f"{key} is not JSON", expected="a signed manifest") from None
    if made.key != key:
        raise ManifestInvalid("the manifest lies under another export's key", expected=made.key, found=key)
    return made


def _resume(
    session: psycopg.Connection, desk: Desk, columns: list[str], upto: int, keep_since: datetime
) -> tuple[Export | None, int, Before]:
    """The last export, the number above which the next begins, and what became of the last one's entries.

    With other columns the last export's entries are exported once more: whether they are the same cannot be told.
    """
    last, after, before = None, 0, Before(state="not comparable")
    for made in chain(desk.bucket, desk.settings.backup.trusted_keys):
        state = _compare(session, made, columns, upto, keep_since)
        if last is None:
            last, after, before = made, made.upto, state
        if state.state == "changed" or made.columns != columns:
            after = made.after
        if state.state != "changed":
            break
    return last, after, before


def _compare(session: psycopg.Connection, made: Export, columns: list[str], upto: int, keep_since: datetime) -> Before:
    cleaned = made.first_at is not None and made.first_at < keep_since and upto >= made.upto
    if cleaned or made.columns != columns:
        return Before(state="not comparable", rows=made.rows)
    text = _Text(made.after)
    for _ in _lines(session, made.after, made.upto, text):
        pass
    same = (text.rows, text.sha256.hexdigest()) == (made.rows, made.text_sha256)
    return Before(state="unchanged" if same else "changed", rows=made.rows, found=text.rows)


def _settled(session: psycopg.Connection, report: Report) -> int:
    """Number of the newest entry below which none can turn up any more. Raises DatabaseUnavailable."""
    with speaking("look at the event log"):
        row = session.execute(load("desk/newest_event.sql")).fetchone()
        writers, until = _writers(session), time.monotonic() + _SETTLE_SECONDS
        while writers:
            if time.monotonic() > until:
                raise DatabaseUnavailable(
                    "the event log does not settle",
                    expected=f"who writes to it to end within {_SETTLE_SECONDS:.0f} s",
                    found=f"{len(writers)} transaction(s) that last",
                    remedy="look in pg_stat_activity for a session of Airflow that is idle in transaction",
                )
            report(f"event log: waits for {len(writers)} transaction(s) that write to it")
            time.sleep(0.2)
            writers &= _writers(session)
    return int(row[0]) if row else 0


def _writers(session: psycopg.Connection) -> set[str]:
    return {row[0] for row in session.execute(load("desk/event_log_writers.sql"))}


@contextmanager
def _snapshot(session: psycopg.Connection) -> Iterator[None]:
    with speaking("read the event log"), session.transaction():
        session.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY")
        session.execute("SET LOCAL TIME ZONE 'UTC'")
        yield


@dataclass
class _Text:
    """What passed: entries, bytes, digest, and the ranges of numbers that were not there."""

    after: int
    rows: int = 0
    size_bytes: int = 0
    first_id: int = 0
    last_id: int = 0
    sha256: "hashlib._Hash" = field(default_factory=hashlib.sha256)
    _gaps: list[tuple[int, int]] = field(default_factory=list)

    def add(self, number: int, line: bytes) -> None:
        self._gap(number)
        self.first_id, self.last_id = self.first_id or number, number
        self.rows += 1
        self.size_bytes += len(line)
        self.sha256.update(line)

    def gaps_until(self, upto: int) -> list[tuple[int, int]]:
        self._gap(upto + 1)
        return self._gaps

    def _gap(self, number: int) -> None:
        expected = (self.last_id or self.after) + 1
        if number > expected and len(self._gaps) < _GAPS_LISTED:
            self._gaps.append((expected, number - 1))


def _lines(session: psycopg.Connection, after: int, upto: int, text: _Text) -> Iterator[bytes]:
    """The entries in chunks of whole lines; a cursor on the server keeps all but a few thousand there."""
    with session.cursor(name="event_log") as cursor:
        cursor.itersize = _FETCH_ROWS
        cursor.execute(load("desk/event_log_rows.sql"), {"after": after, "upto": upto})
        chunk = bytearray()
        for number, entry in cursor:
            line = entry.encode() + b"\n"
            text.add(number, line)
            chunk += line
            if len(chunk) >= MIB:
                yield bytes(chunk)
                chunk.clear()
        yield bytes(chunk)


def _compressed(chunks: Iterator[bytes]) -> Iterator[bytes]:
    compressor = ZstdCompressor(options={CompressionParameter.compression_level: 3})
    for chunk in chunks:
        if data := compressor.compress(chunk):
            yield data
    yield compressor.flush()


def _require_complete(
    session: psycopg.Connection, after: int, upto: int, text: _Text
) -> tuple[datetime | None, datetime | None]:
    """Times of the oldest and the newest entry, when the table itself says that all were exported."""
    row = session.execute(load("desk/event_log_facts.sql"), {"after": after, "upto": upto}).fetchone()
    counted = tuple(row[:3]) if row else ()
    if row is None or counted != (text.rows, text.first_id, text.last_id):
        raise IntegrityError(
            "the export of the event log is not complete",
            expected=f"entries, first and last number {counted}, as the table says",
            found=f"{(text.rows, text.first_id, text.last_id)}",
            remedy="nothing was committed; if it comes back, look at the index log_pkey (REINDEX)",
        )
    return row[3], row[4]


def _commit(desk: Desk, made: Export) -> None:
    key = signing.load_private_key(desk.settings.backup.signing_key_file)
    signed = signing.sign(made.model_dump(mode="json"), key)
    signing.verify(signed, desk.settings.backup.trusted_keys)  # what nobody trusts would stop every later export
    store.write_signed(desk.placement, made.key, signed)


def _sha256(bucket: Bucket, made: Export) -> str:
    return hashlib.sha256(bucket.get(made.key)).hexdigest()


def _folder(number: int) -> str:
    return f"{PREFIX}{number:08}/"
