"""Preflight: everything that would make a backup fail or be worthless is found before anything is touched.

Each check is one function that answers a Finding; the first task of backup_daily and `doctor` run the same list.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import psycopg
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from psycopg.rows import dict_row

from payme_ops.backup import catalogue, lifecycle
from payme_ops.backup.manifest import Tier
from payme_ops.backup.run import PREFLIGHT, Desk
from payme_ops.backup.seal import parse_recipient
from payme_ops.foundation import evidence, lease
from payme_ops.foundation.clock import show, utc_now
from payme_ops.foundation.errors import (
    AlreadyExists,
    LeaseHeld,
    NotFound,
    PreflightFailed,
    PreflightInconclusive,
)
from payme_ops.foundation.evidence import Check, Evidence, Finding, Verdict, failed, passed, plain, run_check
from payme_ops.foundation.objectstore import Bucket
from payme_ops.foundation.objectstore import speaking as speaking_store
from payme_ops.foundation.postgres import (
    NEWEST_MAJOR,
    OLDEST_MAJOR,
    client_tool,
    connect,
    server_major,
    speaking,
    tool_version,
)
from payme_ops.foundation.settings import Profile
from payme_ops.foundation.signing import load_private_key, public_key
from payme_ops.foundation.sql import load

CLOCK_SKEW_SECONDS = 60
REPLICA_LAG_SECONDS = 300
PROBE_KEY = "payme-ops/probe/written-once"
_VERIFIED = {"tls": "on", "sslmode": "verify-full"}


def checks(desk: Desk, *, for_run: bool) -> list[Check]:
    """All checks, in the order a person would look: server, rights, tools, bucket, keys, desk.

    With `for_run` a held lease fails (this run could not start), and what a daily backup does not need is left out: the
    other region's bucket, the database's clock, lifecycle rules. Doctor looks at all.
    """
    database = f"connection {desk.connection}, database {desk.settings.backup.database}"
    before: list[tuple[str, str, str, Callable[[Desk], Finding]]] = [
        ("database", f"PostgreSQL {OLDEST_MAJOR} to {NEWEST_MAJOR} answers", database, _database),
        (
            "encrypted_connection",
            "TLS to a server whose name was proven, in production",
            database,
            _encrypted_connection,
        ),
        ("client_tools", "pg_dump, pg_dumpall, pg_restore of the server's major version", database, _client_tools),
        ("replica", f"primary, or replay at most {REPLICA_LAG_SECONDS} s behind with feedback on", database, _replica),
        ("readable", "every table, sequence and large object", database, _readable),
        ("read_only", "no power to write", database, _read_only),
    ]
    after: list[tuple[str, str, str, Callable[[Desk], Finding]]] = [
        ("clock", f"at most {CLOCK_SKEW_SECONDS} s from the store's clock", f"bucket {desk.bucket.name}", _clock),
        ("recipients", "two recipients that parse, as in the last manifest", "settings", _recipients),
        _SIGNING_KEY,
        _OPS_DATABASE,
        ("lease", "free", f"lease {desk.lease_name}", _lease_free if for_run else _lease_report),
    ]
    buckets = _bucket_checks(desk, desk.bucket, desk.settings.backup.region, "")
    if not for_run:
        at_most = f"at most {CLOCK_SKEW_SECONDS} s from the database's clock"
        before.append(("database_clock", at_most, database, _database_clock))
        buckets.append(_lifecycle_check(desk.bucket, ""))
        buckets += _bucket_checks(desk, desk.copies, desk.settings.backup.copy_region, "copy_")
        buckets.append(_lifecycle_check(desk.copies, "copy_"))
    return [*_bound(desk, before), *buckets, *_bound(desk, after)]


def copy_checks(desk: Desk) -> list[Check]:
    """What a copy into the other region needs: that bucket, the key that signs, the desk's own database."""
    bucket = _bucket_checks(desk, desk.copies, desk.settings.backup.copy_region, "copy_")
    return [*bucket, *_bound(desk, [_SIGNING_KEY, _OPS_DATABASE])]


def _bound(desk: Desk, table: list[tuple[str, str, str, Callable[[Desk], Finding]]]) -> list[Check]:
    return [Check(item, threshold, source, _bind(measure, desk)) for item, threshold, source, measure in table]


def _bucket_checks(desk: Desk, bucket: Bucket, region: str, which: str) -> list[Check]:
    source, lock_needed = f"bucket {bucket.name}", desk.settings.profile is Profile.PRODUCTION
    encryption = desk.placement.encryption() if bucket is desk.bucket else {}
    return [
        Check(
            f"{which}bucket",
            "reachable, in the region of the settings",
            source,
            lambda: _bucket(bucket, region, f"PAYME_OPS__BACKUP__{which.upper()}"),
        ),
        Check(f"{which}bucket_encryption", "default encryption on", source, lambda: _encryption(bucket)),
        Check(f"{which}bucket_versioning", "versioning on", source, lambda: _versioning(bucket)),
        Check(f"{which}object_lock", "on in production", source, lambda: _object_lock(bucket, needed=lock_needed)),
        Check(
            f"{which}written_once",
            "a second write of a key is refused",
            source,
            lambda: _written_once(bucket, encryption),
        ),
    ]


def _lifecycle_check(bucket: Bucket, which: str) -> Check:
    threshold = "rules for aborted uploads and old versions only"
    return Check(f"{which}lifecycle", threshold, f"bucket {bucket.name}", lambda: lifecycle.examine(bucket))


def examine(desk: Desk, *, actor: str, for_run: bool, bypass: frozenset[str] = frozenset()) -> list[Evidence]:
    """Run all checks; never raises for what they find. A failing item in `bypass` is recorded as bypassed."""
    found = [run_check(check, actor=actor) for check in checks(desk, for_run=for_run)]
    return [
        replace(item, verdict=Verdict.BYPASSED) if item.item in bypass and item.verdict is Verdict.FAIL else item
        for item in found
    ]


def examine_for_copy(desk: Desk, *, actor: str) -> list[Evidence]:
    """The same for a copy into the other region."""
    return [run_check(check, actor=actor) for check in copy_checks(desk)]


def record(desk: Desk, run: str, found: list[Evidence]) -> None:
    """Write the evidence to the ops database, unless that is what could not be reached.

    The last item sums it up: dump_and_store reads that one.
    """
    if any(item.item == "ops_database" and item.verdict is Verdict.PASS for item in found):
        evidence.record(desk.ops, run, [*found, _summary(found)])


def _summary(found: list[Evidence]) -> Evidence:
    measured = {item.item: str(item.verdict) for item in found}
    return replace(
        found[-1],
        item=PREFLIGHT,
        verdict=Verdict.FAIL if _not_passed(found) else Verdict.PASS,
        measured=measured,
        threshold="every check passes",
        started=found[0].started,
        source="preflight",
        sha256=evidence.digest(measured),
        remedy="",
    )


def _not_passed(found: list[Evidence]) -> list[Evidence]:
    return [item for item in found if item.verdict not in (Verdict.PASS, Verdict.BYPASSED)]


def require_passed(found: list[Evidence]) -> None:
    """Raises PreflightFailed naming every item that did not pass, with its remedy.

    When nothing is wrong but a held lease it raises LeaseHeld, and when nothing failed but something could not be
    measured PreflightInconclusive: both are worth another try.
    """
    bad = _not_passed(found)
    if not bad:
        return
    lines = "".join(f"\n  - {item.item} ({item.verdict}): {plain(item.measured)}. {item.remedy}" for item in bad)
    what = f"preflight: {len(bad)} of {len(found)} checks did not pass; nothing was touched{lines}"
    remedy = "mend what is named, then run again; `python -m payme_ops doctor` runs the same checks"
    if [item.item for item in bad] == ["lease"] and bad[0].verdict is Verdict.FAIL:
        held = bad[0].measured
        raise LeaseHeld(
            "another backup is at work", found=f"{held['held_by']} since {held['since']}", remedy=bad[0].remedy
        )
    if all(item.verdict is Verdict.INCONCLUSIVE for item in bad):
        raise PreflightInconclusive(what, remedy=remedy)
    raise PreflightFailed(what, remedy=remedy)


def _bind(measure: Callable[[Desk], Finding], desk: Desk) -> Callable[[], Finding]:
    return lambda: measure(desk)


@contextmanager
def _source(desk: Desk) -> Iterator[psycopg.Connection]:
    with connect(desk.database, application="payme_ops:preflight") as connection, speaking("examine the database"):
        yield connection


def _database(desk: Desk) -> Finding:
    with _source(desk) as connection:
        major = server_major(connection)
        name = connection.info.dbname
    if not OLDEST_MAJOR <= major <= NEWEST_MAJOR:
        return failed(
            {"major": major}, f"this release dumps PostgreSQL {OLDEST_MAJOR} to {NEWEST_MAJOR}; upgrade one of them"
        )
    if name != desk.settings.backup.database:
        return failed(
            {"connected_to": name, "settings_say": desk.settings.backup.database},
            f"make {desk.variable} and the connection {desk.connection} name the same database",
        )
    return passed({"major": major, "database": name})


def _encrypted_connection(desk: Desk) -> Finding:
    with _source(desk) as connection:
        tls = _tls(connection)
    if desk.settings.profile is Profile.PRODUCTION and tls != _VERIFIED:
        return failed(tls, f"set sslmode=verify-full in the connection {desk.connection} (docs/first-run.md)")
    return passed(tls)


def _tls(connection: psycopg.Connection) -> dict[str, Any]:
    # With any other mode, also where the session is encrypted, it may be with somebody who only says to be the server.
    modes = [option.val for option in connection.pgconn.info if option.keyword == b"sslmode" and option.val]
    return {"tls": "on" if connection.pgconn.ssl_in_use else "off", "sslmode": modes[0].decode() if modes else "prefer"}


def _client_tools(desk: Desk) -> Finding:
    with _source(desk) as connection:
        major = server_major(connection)
    try:
        tools = [
            client_tool(n, major, desk.settings.postgres.client_dirs) for n in ("pg_dump", "pg_dumpall", "pg_restore")
        ]
    except NotFound as error:
        return failed({"missing": error.what, "found": error.found}, error.remedy)
    return passed({tool.name: ".".join(map(str, tool_version(tool))) for tool in tools})


def _replica(desk: Desk) -> Finding:
    with _source(desk) as connection, connection.cursor(row_factory=dict_row) as cursor:
        state = cursor.execute(load("backup/replica_state.sql")).fetchone() or {}
    if not state["in_recovery"]:
        return passed({"role": "primary"})
    # No age: nothing has been replayed since its start.
    age = None if state["replay_age_seconds"] is None else round(state["replay_age_seconds"])
    measured = {
        "role": "standby",
        "caught_up": state["caught_up"],
        "replay_age_seconds": age,
        "hot_standby_feedback": state["feedback"],
    }
    if not state["feedback"]:
        return failed(measured, "set hot_standby_feedback = on, or the primary's vacuum cancels the dump")
    if not state["caught_up"] and (age is None or age > REPLICA_LAG_SECONDS):
        return failed(measured, f"wait for the standby to catch up, or point {desk.connection} at another server")
    return passed(measured)


def _readable(desk: Desk) -> Finding:
    with _source(desk) as connection:
        rows = connection.execute(load("backup/unreadable_relations.sql")).fetchall()
    if rows:
        return failed(
            {"unreadable": [f"{name}: {why}" for name, why in rows[:10]], "count": len(rows)},
            "grant what include/sql/grants/backup_role.sql grants: pg_read_all_data, BYPASSRLS, lo_compat_privileges",
        )
    return passed({"unreadable": 0})


def _read_only(desk: Desk) -> Finding:
    with _source(desk) as connection:
        powers = [row[0] for row in connection.execute(load("backup/writable_by_role.sql"))]
    if powers:
        return failed({"can": powers}, "revoke it, or use a role made by include/sql/grants/backup_role.sql")
    return passed({"can": "read only"})


def _bucket(bucket: Bucket, region: str, variables: str) -> Finding:
    with speaking_store(f"reach bucket {bucket.name}"):
        try:
            answer = bucket.client.head_bucket(Bucket=bucket.name)
        except bucket.client.exceptions.ClientError as error:
            if error.response["ResponseMetadata"]["HTTPStatusCode"] == 404:
                return failed({"bucket": "missing"}, f"create it (docs/first-run.md) or correct {variables}BUCKET")
            raise
        location = bucket.client.get_bucket_location(Bucket=bucket.name).get("LocationConstraint")
    found = answer.get("BucketRegion") or location or "us-east-1"
    if found != region:
        return failed(
            {"region": found, "settings_say": region},
            f"use a bucket in that region, or correct {variables}REGION",
        )
    return passed({"region": found})


def _encryption(bucket: Bucket) -> Finding:
    try:
        with speaking_store(f"read the encryption of bucket {bucket.name}"):
            answer = bucket.client.get_bucket_encryption(Bucket=bucket.name)
        defaults = answer["ServerSideEncryptionConfiguration"]["Rules"][0]["ApplyServerSideEncryptionByDefault"]
    except (NotFound, KeyError):  # KeyError: a store that does not know the question answers 200 with something else
        return failed({"default_encryption": "none"}, "turn on default encryption of the bucket (docs/first-run.md)")
    return passed({"default_encryption": defaults["SSEAlgorithm"]})


def _versioning(bucket: Bucket) -> Finding:
    with speaking_store(f"read the versioning of bucket {bucket.name}"):
        status = bucket.client.get_bucket_versioning(Bucket=bucket.name).get("Status", "off")
    if status != "Enabled":
        return failed({"versioning": status}, "turn on versioning: deleted backups can then be brought back")
    return passed({"versioning": status})


def _object_lock(bucket: Bucket, *, needed: bool) -> Finding:
    try:
        with speaking_store(f"read the Object Lock of bucket {bucket.name}"):
            bucket.client.get_object_lock_configuration(Bucket=bucket.name)
    except NotFound:
        if needed:
            return failed({"object_lock": "off"}, "use a bucket made with Object Lock (docs/first-run.md)")
        return passed({"object_lock": "off"})
    return passed({"object_lock": "on"})


def _written_once(bucket: Bucket, encryption: dict[str, Any]) -> Finding:
    """Some stores overwrite where they should answer 412; a manifest there could be replaced unseen."""
    for _ in range(2):
        try:
            bucket.put_if_absent(PROBE_KEY, b"payme-ops writes this object once\n", **encryption)
        except AlreadyExists:
            return passed({"second_write": "refused with 412"})
    return failed({"second_write": "accepted"}, "this store ignores If-None-Match; use one that honours it")


def _clock(desk: Desk) -> Finding:
    skew = round(abs((utc_now() - desk.bucket.server_time()).total_seconds()))
    if skew > CLOCK_SKEW_SECONDS:
        return failed({"seconds": skew}, "set this machine's clock (NTP); signatures and retention depend on it")
    return passed({"seconds": skew})


def _database_clock(desk: Desk) -> Finding:
    with _source(desk) as connection:
        row = connection.execute("SELECT clock_timestamp()").fetchone()
    skew = round(abs((utc_now() - row[0]).total_seconds())) if row else None
    if skew is None or skew > CLOCK_SKEW_SECONDS:
        return failed({"seconds": skew}, "set the clocks of the database's server and of this machine (NTP)")
    return passed({"seconds": skew})


def _recipients(desk: Desk) -> Finding:
    for name, text in desk.recipients.items():
        parse_recipient(name, text)
    if len(set(desk.recipients.values())) < 2:
        return failed(
            {"recipients": "both the same"}, "recovery and drill are two keys with two holders (docs/keys.md)"
        )
    last = catalogue.newest(desk.catalogue, Tier.DAILY)
    changed = [n for n, text in desk.recipients.items() if last and last.sealing.recipients.get(n) != text]
    if last and changed:
        return failed(
            {"changed": changed, "since": show(last.snapshot_at)},
            "if this is a planned rotation, take one backup by `backup run --accept-recipients` (docs/keys.md);"
            " if not, somebody changed where backups can be opened",
        )
    return passed({name: text[:12] for name, text in desk.recipients.items()})


def _signing_key(desk: Desk) -> Finding:
    key: Ed25519PrivateKey = load_private_key(desk.settings.backup.signing_key_file)
    public = public_key(key)
    if public not in desk.settings.backup.trusted_keys:
        return failed(
            {"public_key": public, "trusted": "no"},
            "add it to PAYME_OPS__BACKUP__TRUSTED_KEYS, or this backup would count for nothing",
        )
    return passed({"public_key": public})


def _ops_database(desk: Desk) -> Finding:
    with connect(desk.ops, application="payme_ops:preflight") as connection, speaking("examine the ops database"):
        row = connection.execute("SELECT to_regclass('ops.leases') IS NOT NULL").fetchone()
        tls = _tls(connection)
    if desk.settings.profile is Profile.PRODUCTION and tls != _VERIFIED:
        return failed(tls, "set sslmode=verify-full in the connection payme_ops_db (docs/first-run.md)")
    if not row or not row[0]:
        return failed({"schema": "missing"}, "run `python -m payme_ops ops-db migrate`")
    return passed({"schema": "present"})


def _lease_free(desk: Desk) -> Finding:
    holder = lease.peek(desk.ops, desk.lease_name)
    if holder:
        return failed(
            {"held_by": holder.holder, "since": show(holder.since)}, "wait for that run to end; one dump at a time"
        )
    return passed({"held_by": "nobody"})


def _lease_report(desk: Desk) -> Finding:
    holder = lease.peek(desk.ops, desk.lease_name)
    return passed({"held_by": f"{holder.holder} since {show(holder.since)}" if holder else "nobody"})


# What every run needs, whichever bucket it writes to.
_SIGNING_KEY = ("signing_key", "readable and among the trusted keys", "settings", _signing_key)
_OPS_DATABASE = ("ops_database", "answers and has its schema", "connection payme_ops_db", _ops_database)
