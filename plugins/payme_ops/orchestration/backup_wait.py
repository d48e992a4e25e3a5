"""What the final backup of a release is waited for by: a look of the trigger, and the verdict on a worker.

The trigger asks Airflow and the ops database only. That the backup is there says the catalogue, which workers of the
queue `restore` can read: the triggerer holds no key of the buckets.
"""

import logging
from datetime import datetime, timedelta
from typing import Any

from airflow.sdk import Context

from payme_ops.backup import catalogue as backups
from payme_ops.backup.manifest import Manifest, ReadBack, Tier
from payme_ops.foundation import evidence, lease, settings
from payme_ops.foundation.clock import show, utc_now
from payme_ops.foundation.errors import GateClosed, LeaseLost, Unavailable
from payme_ops.foundation.evidence import Check, Evidence, Finding, Verdict, failed, passed, plain
from payme_ops.foundation.lease import Term
from payme_ops.orchestration import internals, release
from payme_ops.orchestration.connections import ops_db
from payme_ops.orchestration.doors import catalogue, run_name
from payme_ops.orchestration.release_backups import BACKUP_DAG
from payme_ops.release import orders
from payme_ops.release.checklist import ITEMS
from payme_ops.release.request import Release

_log = logging.getLogger("payme_ops.release")

ITEM, FROZEN = "final_backup", "freeze_orders"
_POLL_SECONDS = 10.0


def conclude(context: Context, backup_run: str) -> bool:
    """Whether it is over, then with evidence. Raises GateClosed when there is no such backup, and none will come.

    The terms are renewed first: raises LeaseLost when orders may be taken again, LeaseHeld, Unavailable; NotFound
    when nobody has tried to stop orders.
    """
    mine = release.of(context)
    frozen = evidence.latest(ops_db(), mine.run, FROZEN)
    _terms(mine, frozen)
    finding = _judge(backup_run, frozen)
    if finding is None:
        return False
    item = ITEMS[ITEM]
    check = Check(item.name, item.expected, f"release {mine.id}", lambda: finding)
    found = evidence.run_check(check, actor=run_name(context))
    evidence.record(ops_db(), mine.run, [found])
    _log.info("%s: %s %s %s", found.item, found.verdict, plain(found.measured), found.remedy)
    if found.verdict is not Verdict.PASS:
        raise GateClosed(
            "the final backup is not there",
            expected=found.threshold,
            found=plain(found.measured),
            remedy=found.remedy,
        )
    return True


def plan(context: Context, backup_run: str) -> dict[str, Any]:
    """What the trigger is told: the run, the terms to renew, and until when. The same however often it is begun."""
    mine = release.of(context)
    frozen = evidence.latest(ops_db(), mine.run, FROZEN)
    return {"backup_run": backup_run, "terms": _terms(mine, frozen), "until": _until(frozen).isoformat()}


def _until(frozen: Evidence) -> datetime:
    """Patience counts from when orders were stopped, not from when somebody began to wait again."""
    return frozen.ended + timedelta(minutes=settings.load().release.final_backup_minutes)


def _terms(mine: Release, frozen: Evidence) -> list[list[Any]]:
    """What is ours until the deploy, renewed: name, token, seconds. Raises LeaseHeld, LeaseLost."""
    taken = release.take(mine)
    terms: list[list[Any]] = [[taken.name, taken.token, release.RELEASE_TTL.total_seconds()]]
    if orders.are_stopped(frozen):
        freeze, seconds = orders.require_frozen(ops_db(), mine), settings.load().release.freeze_seconds
        lease.renew_term(ops_db(), freeze, timedelta(seconds=seconds))
        terms.append([freeze.name, freeze.token, seconds])
    return terms


def look(backup_run: str, terms: list[list[Any]], until: str) -> float | None:
    """Renew the terms and see whether the run is over; seconds to the next look, None when it can be decided."""
    try:
        for name, token, seconds in terms:
            renewed = Term(name, "the final backup", token, utc_now(), utc_now())
            lease.renew_term(ops_db(), renewed, timedelta(seconds=seconds))
        state = run_state(backup_run)
        _log.info("%s %s: %s", BACKUP_DAG, backup_run, state or "not over")
        if state:
            return None
        if before := _before(backup_run):
            _log.info("it waits for %s: one dump of a database at a time", before)
    except LeaseLost as error:
        _log.error("%s", error)
        return None
    except Unavailable as error:
        _log.warning("%s; looking again", error)
    if utc_now() >= datetime.fromisoformat(until):
        return None
    return min(_POLL_SECONDS, *(float(seconds) / 4 for _, _, seconds in terms))


def run_state(backup_run: str) -> str:
    """ "success" or "failed" once that run of backup_daily is over, else "". Raises Unavailable."""
    return next((state for state in ("failed", "success") if internals.count_runs(BACKUP_DAG, backup_run, [state])), "")


def _before(backup_run: str) -> str:
    """Another run that dumps the database now: it is waited for. Raises DatabaseUnavailable."""
    holder = lease.peek(ops_db(), f"snapshot:{settings.load().backup.database}")
    if holder is None or holder.holder == f"{BACKUP_DAG}/{backup_run}":
        return ""
    return f"{holder.holder} since {show(holder.since)}"


def _judge(backup_run: str, frozen: Evidence) -> Finding | None:
    """None while it has to be waited for. A complete backup counts whoever took it, if it is newer than the freeze."""
    newest = _newest()
    stopped = show(frozen.ended) if orders.are_stopped(frozen) else f"not stopped, tried {show(frozen.ended)}"
    if newest and newest.read_back and newest.snapshot_at > frozen.ended:
        return passed({**_facts(newest, newest.read_back), "orders stopped": stopped})
    state = run_state(backup_run)
    if not state and utc_now() < _until(frozen):
        return None
    measured = {
        "run": f"{BACKUP_DAG}/{backup_run}",
        "state": state or "not over",
        "waits for": _before(backup_run) or "nobody",
        "newest complete": newest.key if newest else "none",
        "snapshot": show(newest.snapshot_at) if newest else "none",
        "orders stopped": stopped,
    }
    again = "then clear freeze_orders and what comes after it"
    if state == "failed":
        return failed(measured, f"read the log of that run; when its cause is gone, {again}")
    if state:
        return failed(measured, f"that run took none after orders were stopped: see what it skipped, {again}")
    return failed(measured, f"not complete in time: see what it waits for, {again}; orders are taken meanwhile")


def _newest() -> Manifest | None:
    """The newest complete daily. Raises StoreUnavailable, StoreRefused."""
    return backups.newest(catalogue("payme_s3_restore"), Tier.DAILY)


def _facts(done: Manifest, read_back: ReadBack) -> dict[str, Any]:
    return {
        "backup": done.key,
        "by": done.run,
        "bytes": done.archive.size_bytes,
        "archive": f"sha256 {done.archive.sha256}",  # without that word it would be scrubbed as a key
        "read back": f"equal, {show(read_back.at)}",
        "relations": len(done.truth.relations),
        "rows": done.truth.rows,
        "began": show(done.started_at),
        "snapshot": show(done.snapshot_at),
    }
