"""What a release asks of the backups: a copy to try its migrations on, and one to go back to.

On the queue `restore`: its workers hold the key that opens a backup.
"""

import logging
from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime, timedelta

from airflow.sdk import Context

from payme_ops.backup import freshness
from payme_ops.foundation import settings
from payme_ops.foundation.clock import EAT, show, utc_now
from payme_ops.foundation.errors import Unavailable
from payme_ops.foundation.evidence import Evidence, Finding, Verdict, failed, passed, plain
from payme_ops.foundation.settings import Settings
from payme_ops.orchestration import connections, throw_away
from payme_ops.orchestration.doors import catalogue, run_name
from payme_ops.release import migrations
from payme_ops.release.migrations import Migration
from payme_ops.release.request import Release

_log = logging.getLogger("payme_ops.release")

BACKUP_DAG = "backup_daily"
_SLOT_HOUR = 2  # of dags/backup_daily.py, in Nairobi


def migrations_tested(_context: Context, release: Release) -> Finding:
    """What the commit brings for the database was tried up, down and up again on the newest verified backup."""
    host, config = connections.code_host(), settings.load()
    if host is None:
        todo = (
            "connection payme_code_host is not there: a person has to see whether there are migrations, and a way back"
        )
        return Finding(Verdict.INCONCLUSIVE, {"configured": False, "rollback_safe": False}, todo)
    path = config.release.migrations_path
    return migrations.tested(host, release.request, path, lambda found: _rehearse(config, found))


def _rehearse(config: Settings, found: Sequence[Migration]) -> Finding:
    with throw_away.restored(config, _log) as (superuser, manifest):
        finding = migrations.rehearse(superuser, found, _log.info)
    taken = show(manifest.snapshot_at)
    remedy = finding.remedy
    if finding.verdict is Verdict.FAIL:
        remedy += f"; if another migration was released after {taken}, take a backup and verify it first"
    return replace(finding, measured={"backup": manifest.key, "taken": taken, **finding.measured}, remedy=remedy)


def backup_scheduled(context: Context, release: Release) -> Finding:
    """There is a fresh backup, one that a restore test has verified, and the next will be taken."""
    now, asked = utc_now(), release.request
    found = freshness.measure(catalogue("payme_s3_restore"), settings.load().targets, now, actor=run_name(context))
    ages = {one.item: one for one in found}
    daily, proof = ages["daily_age"], ages.get("proof_age")
    paused = bool(context["ti"].get_dag(BACKUP_DAG).is_paused)
    measured = {
        "newest complete": daily.measured,
        "newest verified": proof.measured if proof else "none",
        "next backup": "none: paused" if paused else show(next_slot(now)),
        "before the window": "yes" if not paused and next_slot(now) < asked.window_from else "no",
        "inside the window": "yes" if next_slot(asked.window_from) <= asked.window_to else "no",
    }
    for one in (daily, proof):
        if one and one.verdict is Verdict.INCONCLUSIVE:
            raise Unavailable("the backups cannot be looked at", found=plain(one.measured), remedy=one.remedy)
    if paused:
        return failed(measured, f"unpause {BACKUP_DAG}: neither the nightly nor the final backup would be taken")
    if not _is_there(daily):
        return failed(measured, daily.remedy or f"run {BACKUP_DAG}")
    if not _is_there(proof):
        return failed(measured, (proof and proof.remedy) or "run backup_restore_test: no backup was verified yet")
    return passed(measured)


def _is_there(one: Evidence | None) -> bool:
    """Fresh, and not only not due yet."""
    return one is not None and one.verdict is Verdict.PASS and "backup" in one.measured


def next_slot(after: datetime) -> datetime:
    """The first instant from `after` on at which backup_daily is scheduled: 02:00 EAT, each day."""
    local = after.astimezone(EAT)
    slot = local.replace(hour=_SLOT_HOUR, minute=0, second=0, microsecond=0)
    return slot if slot >= local else slot + timedelta(days=1)
