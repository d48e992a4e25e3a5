"""What restore workers do for the migration: the rehearsal, the age of backups, and the signed record.

They hold the key of backups and the one that signs; a migration worker holds the key of phone numbers.
"""

import logging
from contextlib import suppress
from datetime import datetime, timedelta

from airflow.sdk import Context, get_current_context
from psycopg.conninfo import make_conninfo

from payme_ops import __version__
from payme_ops.backup import catalogue as backups
from payme_ops.backup import verification
from payme_ops.backup.catalogue import Catalogue, Entry, State
from payme_ops.backup.manifest import Tier
from payme_ops.backup.retain import UNDO
from payme_ops.backup.verification import VARIABLE
from payme_ops.foundation import evidence, record, settings
from payme_ops.foundation.clock import show, utc_now
from payme_ops.foundation.errors import GateClosed, NotApproved, NotFound, PaymeOpsError
from payme_ops.foundation.evidence import Finding, Verdict
from payme_ops.foundation.record import Record
from payme_ops.foundation.settings import Settings
from payme_ops.migration import certificate as erasure
from payme_ops.migration import gates, rehearsal, steps
from payme_ops.migration.certificate import Copy
from payme_ops.migration.desk import MigrationDesk
from payme_ops.migration.names import PHONE_NUMBER
from payme_ops.orchestration import throw_away
from payme_ops.orchestration.approval import require_approval
from payme_ops.orchestration.connections import ops_db
from payme_ops.orchestration.doors import catalogue, run_name
from payme_ops.orchestration.migration import BACKUP, FINAL, PURGED, REHEARSED, REQUEST

_log = logging.getLogger("payme_ops.migration")

KIND = "phone_encryption"
_S3 = "payme_s3_restore"
_BACKUP_MAX_AGE = timedelta(hours=26)


def backup_and_rehearsal() -> None:
    """A verified backup, and a green rehearsal of this very code: measured here, part of the checklist."""
    config, run = settings.load(), run_name(get_current_context())
    newest, now = throw_away.newest_verified(), utc_now()
    rehearsed = record.newest(catalogue(_S3).stores.home, rehearsal.KIND, config.backup.verification_keys, VARIABLE)
    checks = [
        gates.backup_fresh(newest.trusted.snapshot_at if newest else None, _BACKUP_MAX_AGE, now),
        gates.rehearsal_green(rehearsed, gates.code_digest(), now),
    ]
    steps.gate(MigrationDesk(config, "", ops_db(), run), BACKUP, checks)


def rehearse() -> None:
    """Restore the newest verified backup, migrate it there and back, keep the record. Raises PaymeOpsError if red."""
    config, run, started = settings.load(), run_name(get_current_context()), utc_now()
    where, ops = catalogue(_S3), ops_db()
    with throw_away.restored(config, _log) as (superuser, manifest):
        target, application = rehearsal.open_doors(superuser, PHONE_NUMBER, config.migration.app_role)
        desk = MigrationDesk(config, make_conninfo(target), ops, run)
        keys = rehearsal.throw_away_keys(PHONE_NUMBER)
        found = rehearsal.rehearse(desk, keys, application, _log.info)
    red = [item for item in found if item.verdict is not Verdict.PASS]
    made = Record(
        kind=rehearsal.KIND,
        subject=manifest.key,
        run=run,
        actor=f"payme-ops {__version__}",
        verdict="red" if red else gates.GREEN,
        started=started,
        ended=utc_now(),
        facts={
            "code": gates.code_digest(),
            "rows": manifest.truth.rows,
            "server": f"PostgreSQL {manifest.server.major}",
        },
        evidence=tuple(found),
    )
    _log.info("%s", record.to_markdown(made))
    key = record.keep(where.stores.home, made, verification.signing_key(config))
    outcome = Finding(Verdict.FAIL if red else Verdict.PASS, {"verdict": made.verdict, "record": key})
    threshold = "every step, every undo and the traffic green"
    evidence.keep(ops, run, REHEARSED, outcome, threshold=threshold, source=manifest.key, started=started)
    if red:
        raise PaymeOpsError(
            f"the rehearsal is red: {', '.join(item.item for item in red)}",
            expected=threshold,
            found=evidence.plain(red[0].measured),
            remedy=red[0].remedy or "find the cause on a copy; production was not touched and stays locked",
        )


def certificate() -> None:
    """The signed erasure certificate: which places are rid of the plaintext, which are not, and until when.

    Raises NotFound, GateClosed unless this run has dropped it; StoreUnavailable, StoreRefused: a region that is away
    may hold it.
    """
    context, config = get_current_context(), settings.load()
    run, ops, where = run_name(context), ops_db(), catalogue(_S3)
    done = evidence.latest(ops, run, f"after_{steps.SWITCH.name}")
    gone = evidence.latest(ops, run, "dropped")  # of that gate: what else it could not tell is no matter here
    if gone.verdict is not Verdict.PASS:
        raise GateClosed("the plaintext was not dropped", expected=gone.threshold, found=evidence.plain(gone.measured))
    purged = evidence.find(ops, run, PURGED)  # none when it was skipped, or rejected
    copies = [_copy(one) for one in backups.entries(where) if _is_before(one, done.ended)]
    found = erasure.items(done.ended, purged, copies, tiers=list(Tier), actor=run)
    made = Record(
        kind=erasure.KIND,
        subject=f"{PHONE_NUMBER.title}.{PHONE_NUMBER.plaintext} of {config.backup.database}",
        run=run,
        actor=context["dag_run"].triggering_user_name or "the scheduler",
        verdict=erasure.verdict(found),
        started=done.ended,
        ended=utc_now(),
        facts={
            "dropped": show(done.ended),
            "backups that hold the plaintext": len(copies),
            "plaintext remains in backups until": erasure.remains_until(copies),
        },
        evidence=tuple(found),
    )
    key = _file(where, config, made)
    outcome = Finding(
        Verdict.PASS if made.verdict == erasure.ERASED else Verdict.FAIL, {"verdict": made.verdict, "record": key}
    )
    evidence.keep(ops, run, erasure.KIND, outcome, threshold=erasure.ERASED, source=made.subject, started=made.ended)


def _is_before(one: Entry, dropped: datetime) -> bool:
    """Whether it may hold the plaintext: of one that is not trusted nobody knows when it was taken."""
    return one.manifest is None or one.manifest.snapshot_at <= dropped


def _copy(one: Entry) -> Copy:
    if one.state is State.UNTRUSTED:
        return Copy(one.key, one.tier, None, "not trusted, kept until a person has looked")
    if one.state is State.REFUTED:
        return Copy(one.key, one.tier, None, "refuted, kept until a person closes it")
    if one.expires_at is None:
        return Copy(one.key, one.tier, None, "an archive never expires")
    why = f"expires {show(one.expires_at)} at the earliest, and S3 keeps a deleted version {UNDO.days} days"
    return Copy(one.key, one.tier, one.expires_at + UNDO, why)


def keep_record() -> None:
    """The signed record of the run: request, gates, what was found, in order; also of one that failed."""
    context, config = get_current_context(), settings.load()
    run, ops = run_name(context), ops_db()
    found = evidence.of_run(ops, run)
    asked = next((item for item in found if item.item == REQUEST), None)
    if asked is None or asked.measured["rehearsal"] == "True":
        _log.info("no record: nothing was done to production")
        return
    started = asked.started
    where = catalogue(_S3)
    made = Record(
        kind=KIND,
        subject=f"{PHONE_NUMBER.title} of {config.backup.database}",
        run=run,
        actor=context["dag_run"].triggering_user_name or "the scheduler",
        verdict="DONE" if _is_done(context, ops, run) else "NOT DONE",
        started=started,
        ended=utc_now(),
        facts={**asked.measured, "code": gates.code_digest()},
        evidence=tuple(found),
    )
    _file(where, config, made)


def _is_done(context: Context, ops: str, run: str) -> bool:
    """Whether the last look was green, or a person said so."""
    with suppress(NotFound, NotApproved):
        if evidence.latest(ops, run, FINAL).verdict is not Verdict.PASS:
            require_approval(context, gate="confirm_final", evidence_item=FINAL)
        return True
    return False


def _file(where: Catalogue, config: Settings, made: Record) -> str:
    """Sign a record and keep it, chained to the one of its kind before; answers its key."""
    before = record.newest(where.stores.home, made.kind, config.backup.verification_keys, VARIABLE)
    key = record.keep(where.stores.home, record.follow(made, before), verification.signing_key(config))
    _log.info("%s\nkept as %s", record.to_markdown(made), key)
    return key
