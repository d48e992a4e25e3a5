"""Retention as task bodies: context in, alert and skip out; the work is in payme_ops.backup.retain.

`which` is None for PayMe's backups, "airflow" or "ops" for the desk's own databases: each has a plan of its own.
"""

import logging
from datetime import timedelta
from typing import Any

from airflow.sdk import Context, get_current_context
from airflow.sdk.exceptions import AirflowSkipException

from payme_ops.backup import retain, swap
from payme_ops.backup.catalogue import Catalogue
from payme_ops.backup.retain import APPLIED, PLAN, Plan
from payme_ops.foundation import evidence, settings
from payme_ops.foundation.clock import show, utc_now
from payme_ops.foundation.errors import NotFound, SettingsError
from payme_ops.foundation.evidence import Evidence, Verdict
from payme_ops.foundation.stop import stoppable
from payme_ops.orchestration import alerting
from payme_ops.orchestration.approval import require_approval
from payme_ops.orchestration.connections import conninfo, ops_db
from payme_ops.orchestration.doors import catalogue, log_reason, own_catalogue, run_name

_log = logging.getLogger("payme_ops.backup")

_S3 = "payme_s3_prune"
_FROZEN = "frozen"


def of(item: str, which: str | None) -> str:
    """The item of evidence, or key of an alert, for that database."""
    return f"{item}_{which}" if which else item


def plan(which: str | None = None) -> bool:
    """Make the plan, log and record it, tell people of a freeze; answers whether anything is to be deleted now."""
    context = get_current_context()
    _require_reason(context)
    proof_days, now, where = settings.load().targets.proof_days, utc_now(), _catalogue(which)
    made = retain.plan(retain.survey(where, now), now, proof_days=proof_days)
    run = run_name(context)
    shown = retain.describe(made, where.database, actor=run, proof_days=proof_days, item=of(PLAN, which))
    evidence.record(ops_db(), run, [shown])
    _log_table(shown)
    _tell(context, made, which)
    return bool(made.deletions) and not context["params"]["dry_run"]


def apply(gate: str, which: str | None = None) -> dict[str, Any]:
    """Delete what was planned; what the plan asks a person for, only with `gate`'s approval of exactly that plan."""
    context = get_current_context()
    if context["params"]["dry_run"]:
        raise AirflowSkipException("a dry run deletes nothing")
    ops, run = ops_db(), run_name(context)
    shown = evidence.latest(ops, run, of(PLAN, which))
    if shown.verdict is not Verdict.PASS:
        require_approval(context, gate=gate, evidence_item=of(PLAN, which))
    where, proof_days, item = _catalogue(which), settings.load().targets.proof_days, of(APPLIED, which)
    with stoppable():
        done = retain.apply(where, ops, run, shown, proof_days=proof_days, report=_log.info, item=item)
    return dict(done.measured)


def drop_replaced() -> list[str]:
    """Drop the databases that a restore into production replaced, when they were kept as long as is set.

    Skips while retention is frozen: such a database may be the only good copy of what it holds.
    """
    context = get_current_context()
    kept, server = timedelta(days=settings.load().backup.keep_replaced_days), conninfo("payme_db_restore")
    frozen = evidence.latest(ops_db(), run_name(context), PLAN).verdict is Verdict.FAIL
    if frozen or context["params"]["dry_run"]:
        for mark in swap.replaced(server):
            _log.info("%s, replaced %s, is kept until %s", mark.name, show(mark.at), show(mark.at + kept))
        raise AirflowSkipException("retention is frozen" if frozen else "a dry run drops nothing")
    return swap.drop_replaced(server, older_than=kept, report=_log.info)


def verdict(gate: str, which: str | None = None) -> str:
    """The run's colour: green when what was planned is done, or nothing was to be done.

    Raises NotApproved when a person said no, or nobody answered; NotFound when the plan was not applied.
    """
    context = get_current_context()
    ops, run = ops_db(), run_name(context)
    shown = evidence.latest(ops, run, of(PLAN, which))
    if context["params"]["dry_run"]:
        return "dry run: nothing was deleted"
    if not retain.planned(shown):
        return f"nothing was deleted; frozen: {shown.measured['frozen']}"
    if shown.verdict is not Verdict.PASS:
        require_approval(context, gate=gate, evidence_item=of(PLAN, which))
    done = evidence.latest(ops, run, of(APPLIED, which)).measured["deleted"]
    if done != retain.planned(shown):
        raise NotFound("the newest plan was not applied", expected="it done", remedy="clear the task apply")
    return f"{len(done)} deleted"


def _catalogue(which: str | None) -> Catalogue:
    return own_catalogue(_S3, which) if which else catalogue(_S3)


def _require_reason(context: Context) -> None:
    """Who deletes by hand says why; the schedule needs no reason, and a dry run none."""
    log_reason(context)
    params = context["params"]
    if not params.get("reason") and context["dag_run"].run_type == "manual" and not params["dry_run"]:
        raise SettingsError(
            "retention by hand wants a reason",
            expected="why it is not left to the schedule; it is kept in the log",
            found="none",
            remedy="trigger it again with a reason, or as a dry run",
        )


def _log_table(shown: Evidence) -> None:
    facts = shown.measured
    for name in ("rows by action", "newest verified", "frozen", "a person is asked because"):
        _log.info("%s: %s", name, evidence.plain(facts[name]))
    line = "%-8s  %-58s  %-42s  %s%s"
    _log.info(line, "action", "backup", "rule", "evidence", "")
    for row in facts["rows"]:
        until = f", undo until {row['undo until']}" if row["undo until"] else ""
        _log.info(line, row["action"], row["backup"], row["rule"], row["evidence"], until)


def _tell(context: Context, made: Plan, which: str | None) -> None:
    key, whose = of(_FROZEN, which), f" of the database {which}" if which else ""
    if not made.frozen:
        alerting.over(context, key, f"Retention{whose} is no longer frozen: there is new proof")
    elif made.alarms:
        held = sum(row.rule.startswith("frozen") for row in made.rows)
        alerting.begun(
            context,
            key,
            f"Retention is frozen: no backup{whose} is deleted",
            f"{made.frozen[:1].upper()}{made.frozen[1:]}. {held} deletions wait.",
            "Get a restore test to pass; retention goes on by itself then. Runbook: docs/runbooks/backup_retention.md",
        )
