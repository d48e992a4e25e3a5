"""The stages of a backup as task bodies: context in, asset event and skip out; the work is in payme_ops.backup.

`which` is None for PayMe's database, "airflow" or "ops" for the desk's own.
"""

import logging
from typing import Any

from airflow.sdk import Asset, get_current_context
from airflow.sdk.exceptions import AirflowSkipException

from payme_ops.backup import preflight as checks
from payme_ops.backup import run
from payme_ops.backup.manifest import Manifest, Tier
from payme_ops.backup.run import Desk
from payme_ops.foundation.clock import show
from payme_ops.foundation.evidence import Evidence, Verdict, plain
from payme_ops.foundation.stop import stoppable
from payme_ops.orchestration.doors import desk, log_reason, own_desk, run_name

_log = logging.getLogger("payme_ops.backup")

# The connections to the desk's own databases are their owners', who export and clean, and write evidence.
_OF_OWNERS = frozenset({"read_only"})


def preflight(which: str | None = None) -> None:
    """Run every check and record the evidence; raises PreflightFailed naming what did not pass."""
    log_reason(get_current_context())
    here, name = begin(which)
    bypass = _OF_OWNERS if which else frozenset()
    require_passed(here, name, checks.examine(here, actor=name, for_run=True, bypass=bypass))


def begin(which: str | None) -> tuple[Desk, str]:
    """The desk, and the name that the evidence of this run and this database has."""
    name = run_name(get_current_context())
    return (own_desk(which), f"{name}/{which}") if which else (desk(), name)


def require_passed(here: Desk, name: str, found: list[Evidence]) -> None:
    """Log what the checks of the run `name` found and record it. Raises PreflightFailed and its kinds."""
    for item in found:
        level = logging.INFO if item.verdict is Verdict.PASS else logging.ERROR
        _log.log(level, "%-12s %-24s %s. %s", item.verdict.upper(), item.item, plain(item.measured), item.remedy)
    checks.record(here, name, found)
    checks.require_passed(found)


def dump_and_store(tier: Tier, which: str | None = None) -> dict[str, Any]:
    """Dump, seal and upload; skips when a complete backup is newer than the request."""
    asked_at = get_current_context()["dag_run"].run_after
    try:
        with stoppable():
            draft = run.dump_and_store(*begin(which), tier, asked_at, report=_log.info)
    except run.Superseded as reason:
        _log.info("skipped: %s", reason)
        raise AirflowSkipException(str(reason)) from None
    return {
        "archive": draft.archive.key,
        "size_bytes": draft.archive.size_bytes,
        "rows": draft.truth.rows,
        "snapshot": show(draft.snapshot_at),
    }


def read_back(which: str | None = None) -> dict[str, Any]:
    """Read every stored byte again and compare."""
    checked = run.read_back(*begin(which), report=_log.info)
    return {"archive": checked.archive.key, "sha256": checked.archive.sha256, "equal": True}


def commit(asset: Asset) -> str:
    """Write the signed manifest; the asset event carries its key."""
    done = _commit(None)
    events = get_current_context()["outlet_events"]
    events[asset].extra = {"manifest": done.key, "snapshot_at": done.snapshot_at.isoformat()}
    return done.key


def commit_own(which: str) -> str:
    """The same for one of the desk's own databases, for which nobody waits."""
    return _commit(which).key


def _commit(which: str | None) -> Manifest:
    done = run.commit(*begin(which))
    _log.info("backup %s is complete: %s rows, %s bytes", done.key, done.truth.rows, done.archive.size_bytes)
    return done
