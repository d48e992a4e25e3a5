"""The stages of a restore into production as task bodies; the work is in payme_ops.backup.rollback."""

import logging

from airflow.sdk import Context, get_current_context

from payme_ops.backup import rollback
from payme_ops.backup.rollback import PLAN, STARTED, STOPPED, RestoreDesk
from payme_ops.foundation import evidence, payme_api, settings
from payme_ops.foundation.clock import show, utc_now
from payme_ops.foundation.errors import NotApproved, NotFound, PaymeOpsError
from payme_ops.foundation.evidence import Check, Finding, Verdict, passed
from payme_ops.foundation.stop import stoppable
from payme_ops.orchestration import alerting, connections, notify
from payme_ops.orchestration.approval import require_approval
from payme_ops.orchestration.doors import catalogue, run_name
from payme_ops.orchestration.notify import Notice

_log = logging.getLogger("payme_ops.backup")

BY_HAND = "by_hand"  # item: what a person has to do because a machine could not
_NOTHING = "nothing"


def _desk() -> RestoreDesk:
    """The desk of a restore worker."""
    return RestoreDesk(
        settings.load(),
        connections.conninfo("payme_db_restore"),
        connections.ops_db(),
        catalogue("payme_s3_restore"),
    )


def check_request() -> str:
    """Refuse what cannot be done; answers the backup's manifest key."""
    context = get_current_context()
    asked = {name: str(context["params"].get(name) or "") for name in ("backup", "target", "reason", "version")}
    found = rollback.check_request(_desk(), run_name(context), **asked)
    _log.info("%s is to be replaced by %s", found.target, found.backup)
    return found.backup


def stop_application() -> None:
    """Stop it through its API, and say so outside; where there is no API, the next task asks a person."""
    context = get_current_context()
    found = rollback.stop_application(_desk(), run_name(context), connections.payme_api())
    _log.info("application stopped: %s %s. %s", found.verdict, found.measured, found.remedy)
    left = notify.tell(
        context,
        Notice(
            notify.BEGAN,
            "PayMe is being restored from a backup",
            "Payments are stopped while we restore our database from a backup. We say here when they work again.",
            f"The application is stopped for {run_name(context)}. Reason: {context['params'].get('reason')}",
        ),
    )
    if left:
        alerting.inform(context, "An outage that a person has to tell", "\n".join(left), "Tell them now")


def restore_beside() -> str:
    """Restore into a database of its own and compare."""
    context, desk = get_current_context(), _desk()
    _require_stopped(context, desk)
    with stoppable():
        return rollback.restore_beside(desk, run_name(context), report=_log.info)


def measure_loss() -> None:
    """What the approval will show."""
    with stoppable():
        found = rollback.measure_loss(_desk(), run_name(get_current_context()), report=_log.info)
    _log.info("what would be lost: %s", found.measured)


def swap(gate: str) -> str:
    """Put the restored database in place; only what `gate`'s approval has shown."""
    context, desk = get_current_context(), _desk()
    _require_stopped(context, desk)
    require_approval(context, gate=gate, evidence_item=PLAN)
    with stoppable():
        done = rollback.swap_in(desk, run_name(context), report=_log.info)
    return done.replaced


def start_application(gate: str) -> None:
    """Start what was stopped, whatever happened since; what was restored is dropped, unless `gate` approved it."""
    context, desk = get_current_context(), _desk()
    run = run_name(context)
    found = rollback.start_application(desk, run, connections.payme_api(), report=_log.info)
    if found:
        _log.info("application started: %s %s. %s", found.verdict, found.measured, found.remedy)
    if not _is_approved(context, gate):  # else the swap failed, and may be tried again
        rollback.discard(desk, run)


def tell() -> None:
    """Say outside that it is over, if it is; what is left for a person becomes the evidence that `by_hand` shows."""
    context = get_current_context()
    desk, run = _desk(), run_name(context)
    left = _left_to_do(context, desk, run)
    finding = Finding(Verdict.INCONCLUSIVE, {"to do": left}, "; ".join(left)) if left else passed({"to do": _NOTHING})
    found = evidence.run_check(Check(BY_HAND, "nothing is left to do", "payme-ops", lambda: finding), actor=run)
    evidence.record(desk.ops, run, [found])


def _left_to_do(context: Context, desk: RestoreDesk, run: str) -> list[str]:
    if evidence.find(desk.ops, run, STOPPED) is None:
        return []  # nothing was stopped, nobody was told
    started = evidence.find(desk.ops, run, STARTED)
    if started is None or started.verdict is not Verdict.PASS:
        remedy = started.remedy if started else "start the application"
        return [remedy, "then tell the status page and support that it works again"]
    if rollback.swapped(desk, run):
        snapshot = evidence.latest(desk.ops, run, PLAN).measured["snapshot"]
        seconds = rollback.recovery_seconds(desk, run)
        outcome = f"restored to {snapshot}; RTO {seconds} s from the request to a healthy application"
        public = f"What was done between {snapshot} and the interruption may have to be done again."
    else:
        outcome, public = "nothing was restored, the application runs as before", "No data was changed."
    _log.info("%s", outcome)
    words = f"Payments work again since {show(utc_now())}. {public}"
    return notify.tell(context, Notice(notify.ENDED, "PayMe works again", words, f"{run}: {outcome}."))


def verdict(gate: str) -> None:
    """The run's colour: green only when the database was restored, the application is well, and nothing is left."""
    context = get_current_context()
    desk, run = _desk(), run_name(context)
    left = evidence.find(desk.ops, run, BY_HAND)
    if not rollback.swapped(desk, run):
        raise PaymeOpsError(
            "nothing was restored",
            expected="the restored database in place of the old one",
            found="rejected, or a step before the swap failed; the running database was not touched",
            remedy="see which task is red or skipped; trigger it again when its cause is gone",
        )
    if left is None or left.verdict is not Verdict.PASS:
        require_approval(context, gate=gate, evidence_item=BY_HAND)
    _require_health()
    _log.info("RTO: %s s from the request to a healthy application", rollback.recovery_seconds(desk, run) or "unknown")


def _is_approved(context: Context, gate: str) -> bool:
    try:
        require_approval(context, gate=gate, evidence_item=PLAN)
    except (NotApproved, NotFound):
        return False
    return True


def _require_health() -> None:
    """Where there is an API it has the last word, whatever a person said."""
    api = connections.payme_api()
    if api is None:
        return
    found = payme_api.health(api)
    if not found.healthy:
        raise PaymeOpsError(
            "the application is not well",
            expected="/health: healthy, database connected",
            found=f"{found.status}, database {found.database}, version {found.version}",
            remedy="read its log; is it the version for the restored schema? Clear this task when it is well",
        )


def _require_stopped(context: Context, desk: RestoreDesk) -> None:
    """Stopped by its API or by a person's word, and not started since: a cleared task must not swap under it."""
    run = run_name(context)
    stopped = evidence.latest(desk.ops, run, STOPPED)
    # By the order in which they were written down, not by clocks.
    last = [one for one in evidence.of_run(desk.ops, run) if one.item in (STOPPED, STARTED)][-1]
    if last.item == STARTED:
        raise NotApproved(
            "the application was started again since it was stopped",
            expected="a stopped application, and its loss measured after that",
            found=f"started {show(last.ended)}",
            remedy="clear stop_application and everything after it; what was restored beside is used again",
        )
    if stopped.verdict is not Verdict.PASS:
        require_approval(context, gate="confirm_stopped", evidence_item=STOPPED)
