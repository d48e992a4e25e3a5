"""Weekly copies and monthly archives as task bodies: context in, skip out; the work is in payme_ops.backup."""

import logging

from airflow.sdk import get_current_context
from airflow.sdk.exceptions import AirflowSkipException

from payme_ops.backup import archive as archives
from payme_ops.backup import catalogue
from payme_ops.backup import copy as copies
from payme_ops.backup import preflight as checks
from payme_ops.backup.catalogue import State
from payme_ops.foundation import evidence
from payme_ops.foundation.clock import show, utc_now
from payme_ops.foundation.errors import NotFound
from payme_ops.foundation.evidence import passed
from payme_ops.foundation.stop import stoppable
from payme_ops.orchestration import backup
from payme_ops.orchestration.doors import desk, log_reason, run_name

_log = logging.getLogger("payme_ops.backup")

TO_ARCHIVE = "to_archive"  # item of evidence: the daily whose turn it is


def preflight() -> None:
    """Look at the other region's bucket and the keys, and record the evidence; raises PreflightFailed."""
    context = get_current_context()
    log_reason(context)
    here, run = desk(), run_name(context)
    backup.require_passed(here, run, checks.examine_for_copy(here, actor=run))


def need_fresh() -> None:
    """Goes on to a fresh backup when the day of this run has none that counts; skips otherwise."""
    try:
        found = copies.of_day(desk().catalogue, get_current_context()["dag_run"].run_after)
    except NotFound as nothing:
        _log.info("%s", nothing)
        return
    raise AirflowSkipException(f"{found.key} of {show(found.snapshot_at)} is the backup to copy")


def copy() -> str:
    """Copy the newest backup of the day of this run to the other region."""
    context, here = get_current_context(), desk()
    source = copies.of_day(here.catalogue, context["dag_run"].run_after)
    with stoppable():
        made = copies.copy(here, run_name(context), source, report=_log.info)
    _log.info("%s holds %s bytes of %s, read back and equal", made.key, made.archive.size_bytes, source.key)
    return made.key


def need_test() -> str:
    """The daily to archive, when it has to be tested first; skips when it is verified, or the month has its archive."""
    context, here = get_current_context(), desk()
    _skip_when_archived()
    due = archives.due(here.catalogue)
    finding = passed({"manifest": due.key, "state": due.state})
    threshold, source = "the daily that expires first", here.bucket.name
    evidence.keep(here.ops, run_name(context), TO_ARCHIVE, finding, threshold=threshold, source=source)
    if due.state is State.VERIFIED:
        raise AirflowSkipException(f"{due.key} is VERIFIED and can be archived as it is")
    _log.info("%s was never tested; only a verified backup is archived", due.key)
    return due.key


def archive() -> str:
    """Archive the oldest verified daily. Raises NotFound when the one that was to be tested has no verdict."""
    context, here = get_current_context(), desk()
    _skip_when_archived()
    asked = evidence.latest(here.ops, run_name(context), TO_ARCHIVE).measured["manifest"]
    tested = catalogue.find(here.catalogue, asked)
    if tested.state is State.COMPLETE:
        raise NotFound(
            f"{tested.key} was not tested",
            expected="VERIFIED or REFUTED",
            found=tested.why or tested.state,
            remedy="see why backup_restore_test failed, run it for this backup, then clear this task",
        )
    chosen = archives.oldest_verified(here.catalogue)
    if chosen.key != tested.key:
        _log.warning("%s is %s and passed over", tested.key, tested.state)
    with stoppable():
        made = archives.archive(here, run_name(context), chosen, report=_log.info)
    _log.info("%s lies in %s for ever", made.key, here.settings.backup.archive_class)
    return made.key


def _skip_when_archived() -> None:
    found = archives.made_in_month(desk().catalogue, utc_now())
    if found:
        raise AirflowSkipException(f"this month has its archive: {found.key}")
