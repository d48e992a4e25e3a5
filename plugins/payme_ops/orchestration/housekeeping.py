"""The desk's own housekeeping as task bodies; the work is in payme_ops.monitoring, payme_ops.backup and Airflow."""

import logging
import os
import signal
import stat
import subprocess
import sys
import tempfile
from contextlib import suppress
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from airflow.sdk import get_current_context
from airflow.sdk.exceptions import AirflowSkipException
from psycopg.conninfo import conninfo_to_dict
from sqlalchemy.engine import URL

from payme_ops.backup import event_log
from payme_ops.foundation import evidence, settings
from payme_ops.foundation.clock import show, utc_now
from payme_ops.foundation.errors import Unavailable
from payme_ops.foundation.evidence import Finding, Verdict, passed
from payme_ops.foundation.scrub import scrub
from payme_ops.foundation.stop import end_with_parent, stoppable
from payme_ops.monitoring import uptime
from payme_ops.orchestration.connections import ops_db
from payme_ops.orchestration.doors import log_reason, own_desk, run_name

_log = logging.getLogger("payme_ops.monitoring")

# Items of evidence.
EXPORTED, CLEANED = "event_log_exported", "airflow_cleaned"
# What `airflow db clean` may delete from; a test holds them, with those left out, equal to what Airflow knows. Left out
# are `trigger`: an old one may be at work, as that of the health watch, and would go with the asset's watcher; `dag`: a
# DAG that comes back keeps its pause, and its entries stay in the log's page; and the tables of Celery and of
# Airflow 2, which are not here.
TABLES = (
    *("asset_event", "callback", "connection_test_request", "dag_run", "dag_version", "deadline", "import_error"),
    *("job", "log", "partitioned_asset_key_log", "revoked_token", "session", "task_instance"),
    *("task_instance_history", "task_reschedule", "task_state_store", "xcom"),
)
_BATCH_ROWS = 10_000
_CLEAN_NEEDS = ("PATH", "HOME", "AIRFLOW__CORE__AUTH_MANAGER")


def looks() -> dict[str, Any]:
    """Sum up the looks of ended days and months, then delete those past their time; answers what was done."""
    log_reason(get_current_context())
    config, now = settings.load().monitoring, utc_now()
    with stoppable():
        done = uptime.roll_up(ops_db(), timedelta(seconds=config.interval_seconds), now)
        for period in done.summed:
            _log.info("summed: %s", period)
        deleted = uptime.delete_old(ops_db(), config.keep_days, now)
    return {"summed": len(done.summed), "not summed": done.incomplete, "looks deleted": deleted}


def export_event_log() -> dict[str, Any]:
    """Export what is new in Airflow's event log; skips when nothing is.

    Raises IntegrityError, after the export, when entries were changed since the last one, and what
    `event_log.export` raises.
    """
    run, here = run_name(get_current_context()), own_desk("airflow")
    with stoppable():
        made = event_log.export(here, run, keep_since=_keep_since(here.settings), report=_log.info)
        made = event_log.found_changed(here, run) or made
    if made is None:
        raise AirflowSkipException("nothing is new in the event log")
    facts = ("number", "rows", "first_id", "last_id", "missing", "gaps")
    measured = made.model_dump(mode="json", include={*facts, "before"})
    verdict = Verdict.FAIL if made.before.state == "changed" else Verdict.PASS
    threshold = "complete, read back, and what was exported before unchanged"
    evidence.keep(here.ops, run, EXPORTED, Finding(verdict, measured), threshold=threshold, source=made.key)
    event_log.require_untouched(made)
    return {name: measured[name] for name in facts}


def clean_airflow() -> str:
    """Let Airflow delete what is older than is kept, and only what the exports of its event log cover."""
    run, here = run_name(get_current_context()), own_desk("airflow")
    before = event_log.clean_before(here, _keep_since(here.settings))
    with stoppable():
        _clean(here.database, before)
    threshold = "nothing that no export of the event log has, and no run that has not ended"
    evidence.keep(
        here.ops, run, CLEANED, passed({"before": show(before)}), threshold=threshold, source="airflow db clean"
    )
    return before.isoformat()


def old_logs() -> dict[str, int]:
    """Delete files below Airflow's log folder that nobody has written to for as long as runs are kept.

    Answers files and bytes. Folders that are left empty go, too, when they are as old.
    """
    from airflow.sdk.configuration import conf

    folder = Path(conf.get("logging", "base_log_folder")).resolve()
    deleted = _delete_old(folder, _keep_since(settings.load()))
    _log.info("deleted: %s files, %s bytes", deleted["files"], deleted["bytes"])
    return deleted


def database_url(conninfo: str) -> str:
    """A libpq string as Airflow wants it; with the password, never to be logged."""
    parts = {name: str(value) for name, value in conninfo_to_dict(conninfo).items()}
    host, user, password, dbname = (parts.pop(name, None) for name in ("host", "user", "password", "dbname"))
    port = int(parts.pop("port", 5432))
    made = URL.create("postgresql+psycopg2", user, password, host, port, dbname, query=parts)
    return made.render_as_string(hide_password=False)


def _keep_since(config: settings.Settings) -> datetime:
    return utc_now() - timedelta(days=config.desk.keep_days)


def _delete_old(folder: Path, before: datetime) -> dict[str, int]:
    """The same below any folder. No symbolic link in it is followed or deleted; what vanishes meanwhile is no error."""
    files = size_bytes = 0
    idle: set[str] = set()
    for path, folders, names, descriptor in os.fwalk(folder, topdown=False):
        # Asked before anything in it is deleted. A folder that was just made waits for its first file.
        if os.fstat(descriptor).st_mtime < before.timestamp():
            idle.add(path)
        for name in names:
            with suppress(FileNotFoundError):
                found = os.stat(name, dir_fd=descriptor, follow_symlinks=False)
                if stat.S_ISREG(found.st_mode) and found.st_mtime < before.timestamp():
                    os.unlink(name, dir_fd=descriptor)
                    files, size_bytes = files + 1, size_bytes + found.st_size
        for name in folders:
            if f"{path}/{name}" in idle:
                with suppress(OSError):  # not empty
                    os.rmdir(name, dir_fd=descriptor)
    return {"files": files, "bytes": size_bytes}


def _clean(conninfo: str, before: datetime) -> None:
    """`airflow db clean` with the power over its database that tasks otherwise never have. Raises Unavailable."""
    command = [sys.executable, "-m", "airflow", "db", "clean", "--yes", "--skip-archive", "--error-on-cleanup-failure"]
    command += ["--clean-before-timestamp", before.isoformat(), "--batch-size", str(_BATCH_ROWS)]
    command += ["--tables", ",".join(TABLES)]
    with tempfile.TemporaryDirectory() as home:  # Airflow writes a configuration where it finds none
        # The auth manager says whether there is a table `session`.
        kept = {name: os.environ[name] for name in _CLEAN_NEEDS if name in os.environ}
        env = {**kept, "AIRFLOW_HOME": home, "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": database_url(conninfo)}
        # Killed with us: it would go on deleting beside the next try.
        ended = subprocess.run(
            command, env=env, capture_output=True, text=True, check=False, preexec_fn=end_with_parent(signal.SIGKILL)
        )
    lines = [scrub(line) for line in f"{ended.stdout}\n{ended.stderr}".splitlines() if line.strip()]
    for line in lines:
        _log.info("%s", line)
    if ended.returncode:
        raise Unavailable(
            "airflow db clean failed",
            expected="exit code 0",
            found=f"exit code {ended.returncode}: {lines[-1][:200] if lines else 'nothing said'}",
            remedy="read the task's log; what it did not delete is deleted another night",
        )
