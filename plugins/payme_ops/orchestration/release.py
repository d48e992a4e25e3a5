"""The stages of a release as task bodies; the work is in payme_ops.release.

What a task needs of another it reads from the ops database, under the release: request, evidence, approvals, terms.
XCom carries the release's id only, and whoever rewrites that meets a release with other evidence.
"""

import logging
from datetime import timedelta
from typing import Any

from airflow.sdk import Context, get_current_context
from airflow.sdk.exceptions import AirflowSkipException

from payme_ops.backup import verification
from payme_ops.backup.verification import VARIABLE
from payme_ops.foundation import approvals, evidence, lease, record
from payme_ops.foundation import settings as config
from payme_ops.foundation.approvals import Approval
from payme_ops.foundation.clock import show, utc_now
from payme_ops.foundation.errors import GateClosed, NotApproved, NotFound, PaymeOpsError, Unavailable
from payme_ops.foundation.evidence import Check, Evidence, Finding, Verdict, passed, plain
from payme_ops.foundation.lease import Term
from payme_ops.foundation.record import Record
from payme_ops.orchestration import alerting, connections, release_items
from payme_ops.orchestration.doors import catalogue, run_name
from payme_ops.release import checklist, deploy, postmortem, request
from payme_ops.release.checklist import GATES, ITEMS
from payme_ops.release.request import Release

_log = logging.getLogger("payme_ops.release")

KIND = "release"
PRE, DEPLOYMENT = "pre_deployment", "deployment"
# Renewed each minute by what is at work; a release whose people think longer than that may be overtaken.
RELEASE_TTL = timedelta(minutes=15)


def ops() -> str:
    """The ops database."""
    return connections.conninfo("payme_ops_db")


def of(context: Context) -> Release:
    """The release of this run. Raises NotFound: the run was not started by the DAG before it."""
    if context["dag_run"].dag_id == PRE:
        return request.of_run(ops(), run_name(context))
    return request.get(ops(), str(context["run_id"]))


def _now() -> tuple[Context, Release]:
    context = get_current_context()
    return context, of(context)


def patience() -> timedelta:
    """How long a question to a person stands."""
    return timedelta(minutes=config.load().release.approval_minutes)


def thread(release: Release) -> str:
    """The key of the release's thread in Slack."""
    return f"release:{release.id}"


# -- items ------------------------------------------------------------------------------------------------------


def measure(context: Context, name: str, *, if_stale: bool = False) -> bool:
    """Measure an item and keep its evidence; False when what is there still holds and was not measured again.

    Raises GateClosed when it failed, Unavailable while Airflow will try again: only what stays away is inconclusive.
    """
    release, item = of(context), ITEMS[name]
    if if_stale and (found := _latest(release, name)):
        if not checklist.is_stale(item, found, _answer(release, name), utc_now()):
            _log.info("%s still holds: %s at %s", name, found.verdict, show(found.ended))
            return False
        _log.info("%s is measured again: %s at %s", name, found.verdict, show(found.ended))
    function = getattr(release_items, name)
    check = Check(name, item.expected, f"release {release.id}", lambda: function(context, release))
    _keep(release, evidence.run_check(check, actor=run_name(context)), context)
    return True


def _keep(release: Release, found: Evidence, context: Context) -> None:
    if _is_unanswered(found) and context["ti"].try_number <= context["ti"].max_tries:
        raise Unavailable(f"{found.item} could not be measured", found=plain(found.measured), remedy=found.remedy)
    evidence.record(ops(), release.run, [found])
    _log.info("%s: %s %s %s", found.item, found.verdict, plain(found.measured), found.remedy)
    if found.verdict is Verdict.FAIL:
        raise GateClosed(
            f"{found.item} did not pass", expected=found.threshold, found=plain(found.measured), remedy=found.remedy
        )


def _is_unanswered(found: Evidence) -> bool:
    """A service was away: that is how evidence.run_check writes it down."""
    return found.verdict is Verdict.INCONCLUSIVE and isinstance(found.measured, dict) and "error" in found.measured


def _latest(release: Release, name: str) -> Evidence | None:
    try:
        return evidence.latest(ops(), release.run, name)
    except NotFound:
        return None


def _answer(release: Release, gate: str) -> Approval | None:
    return approvals.latest(ops(), run=release.run, gate=gate)


def _found(release: Release) -> dict[str, Evidence]:
    return checklist.newest(evidence.of_run(ops(), release.run))


def _answers(release: Release) -> dict[str, Approval]:
    return {one.gate: one for one in approvals.of_run(ops(), release.run)}


# -- 48 hours before --------------------------------------------------------------------------------------------


def check_request() -> str:
    """Refuse what cannot be meant; make the release, and answer its id."""
    context = get_current_context()
    asked = request.parse({name: context["params"].get(name) for name in context["params"]}, utc_now())
    requester = str(context["dag_run"].triggering_user_name or "")
    if not requester:
        raise NotFound(
            "nobody asked for this release",
            expected="a person who triggers it, since others have to approve it",
            found="a run without a user",
            remedy="trigger it in the UI, or by the API with a person's token",
        )
    made = request.create(ops(), run_name(context), requester, asked)
    finding = passed(request.facts(made))
    evidence.keep(ops(), made.run, "request", finding, threshold="a form that can be meant", source=run_name(context))
    _log.info("release %s, asked for by %s", made.id, made.requester)
    return made.id


def verdict_prepared() -> None:
    """The colour of pre_deployment: green only when every item passed or was approved."""
    _, release = _now()
    names = [item.name for item in ITEMS.values() if item.section is checklist.Section.DAYS_BEFORE]
    _require_settled(release, names, "the release is not prepared")


def _require_settled(release: Release, names: list[str], what: str) -> None:
    left = checklist.open_items(names, _found(release), _answers(release))
    if left:
        raise GateClosed(
            what,
            expected="every item passed, or approved by another person than the requester",
            found=f"open: {', '.join(left)}",
            remedy="see which task is red or skipped; when its cause is gone, clear it and what comes after it",
        )


# -- 1 hour before ----------------------------------------------------------------------------------------------


def open_deployment() -> None:
    """Refuse a run that no pre_deployment has started."""
    _, release = _now()
    _log.info("release %s: %s", release.id, plain(request.facts(release)))


def window_opens() -> Any:
    """When the last hour's checklist begins."""
    _, release = _now()
    return release.request.window_from - timedelta(minutes=config.load().release.lead_minutes)


def collect() -> None:
    """The evidence of the go or no-go: request and checklist, as they stand now."""
    context, release = _now()
    finding = checklist.go_no_go(release, _found(release), _answers(release))
    item = ITEMS["go_no_go"]
    check = Check(item.name, item.expected, f"release {release.id}", lambda: finding)
    _keep(release, evidence.run_check(check, actor=run_name(context)), context)


def _require_go(release: Release) -> None:
    """Two people agreed to exactly what holds now. Raises NotApproved, NotFound."""
    shown = evidence.latest(ops(), release.run, "go_no_go")
    answers = [approvals.require(ops(), run=release.run, gate=gate, digest=shown.sha256) for gate in GATES]
    approvals.require_distinct(answers)
    if changed := checklist.changed_since(shown, _found(release)):
        raise NotApproved(
            "what was agreed to has changed",
            expected="the evidence that stood in the go or no-go",
            found=f"other evidence of {', '.join(changed)}",
            remedy="clear collect and what comes after it: people see what is true now",
        )


def take_release() -> None:
    """Nobody else deploys there, and no restore swaps, until this release is over. Raises LeaseHeld."""
    _, release = _now()
    _require_go(release)
    taken = _take(release)
    _log.info("%s is ours, token %d", taken.name, taken.token)


def _take(release: Release) -> Term:
    return lease.take_term(ops(), f"release:{release.request.environment}", release.run, RELEASE_TTL)


def act(name: str) -> None:
    """Do an item of the last hour or of the deploy: nobody is asked while orders may be stopped.

    The lease is renewed while it works. Raises NotApproved when the go does not hold any more, LeaseHeld, LeaseLost.
    """
    context, release = _now()
    _require_go(release)
    with lease.keeping(ops(), [_take(release)], RELEASE_TTL):
        measure(context, name)


# -- during -----------------------------------------------------------------------------------------------------


def settle() -> None:
    """Well, or rolled back: what was posted and did not get well goes back once, where that is safe.

    Skipped, and the watch with it, when nothing was posted.
    """
    context, release = _now()
    if not deploy.was_posted(ops(), release):
        raise AirflowSkipException("nothing was deployed")
    found = _found(release)
    bad = [name for name in ("deploy", "smoke") if name not in found or found[name].verdict is Verdict.FAIL]
    if not bad:
        _log.info("deployed, and an order passes")
        return
    _roll_back(context, release, f"{' and '.join(bad)} did not pass")


def _roll_back(context: Context, release: Release, why: str) -> None:
    """Go back once. What comes of it is evidence, and the run is red in any case: nothing is raised here."""
    alerting.inform(
        context,
        f"{release.id} is being rolled back",
        why,
        "Follow the run; whether the previous commit is well stands in the next message",
        thread=thread(release),
    )
    try:
        with lease.keeping(ops(), [_take(release)], RELEASE_TTL):
            measure(context, "rollback")
    except PaymeOpsError as error:
        _log.error("%s", error)
        alerting.inform(
            context, f"{release.id} could not be rolled back", str(error), error.remedy, thread=thread(release)
        )


def resume_orders() -> None:
    """Take orders again, if this release has stopped them and they are not to stay stopped until the watch is over."""
    context, release = _now()
    if context["dag_run"].dag_id == DEPLOYMENT and _stays_frozen(release):
        _log.info("orders stay stopped until the watch is over, as the form asks")
        return
    if (
        _latest(release, "freeze_orders") is None
        and lease.living_term(ops(), f"freeze:{_environment(release)}") is None
    ):
        _log.info("orders were not stopped")
        return
    measure(context, "resume_orders")


def _environment(release: Release) -> str:
    return release.request.environment.value


def _stays_frozen(release: Release) -> bool:
    """The literal order of the mission, for a release that is well so far."""
    found = _found(release)
    well = all(name in found and found[name].verdict is not Verdict.FAIL for name in ("deploy", "smoke"))
    return release.request.resume_after_watch and well and "rollback" not in found


def restore_autoscaling() -> None:
    """The limits from before, if this release has fixed them."""
    context, release = _now()
    if _latest(release, "autoscaling") is None:
        _log.info("autoscaling was not touched")
        return
    measure(context, "autoscaling_restored")


def verdict_deployed() -> None:
    """The colour of deployment: green only when this commit runs, an order passes, and nothing is left stopped."""
    _, release = _now()
    names = ["deploy", "smoke"] + [name for name in ("resume_orders", "autoscaling_restored") if _is_due(release, name)]
    found = _found(release)
    wrong = [name for name in names if name not in found or found[name].verdict is Verdict.FAIL]
    if not deploy.was_posted(ops(), release):
        _end(release)
    if wrong or "rollback" in found:
        raise GateClosed(
            "the release is not deployed",
            expected=f"{ITEMS['deploy'].expected}; {ITEMS['smoke'].expected}; orders are taken",
            found=f"open: {', '.join(wrong) or 'nothing'}; {'rolled back' if 'rollback' in found else 'not rolled back'}",
            remedy="see which task is red; the runbook of deployment says what may be cleared",
        )


def _is_due(release: Release, name: str) -> bool:
    if name == "resume_orders":
        return _latest(release, "freeze_orders") is not None and not _stays_frozen(release)
    return _latest(release, "autoscaling") is not None


def _end(release: Release) -> None:
    """Another release may begin."""
    found = lease.living_term(ops(), f"release:{_environment(release)}")
    if found and found.holder == release.run:
        lease.end_term(ops(), found.name, found.token)


# -- after ------------------------------------------------------------------------------------------------------


def open_post_deployment() -> None:
    """Refuse a run that no deployment has started, or before anything was posted."""
    _, release = _now()
    if not deploy.was_posted(ops(), release):
        raise NotFound(
            f"release {release.id} was not deployed",
            expected="a run that deployment has started",
            found="no deploy",
            remedy="trigger pre_deployment: it starts deployment, and deployment starts post_deployment",
        )


def settle_watch() -> None:
    """Keep it, or roll it back: after a breach, or a person's no."""
    context, release = _now()
    found = _found(release)
    for name, gate in (("health", "confirm_health"), ("watch", "keep_release")):
        shown, answer = found.get(name), _answer(release, gate)
        if shown is None or not checklist.is_settled(shown, answer):
            return _go_back(context, release, name, shown, answer)
    _log.info("well, and watched to the end")
    return None


def settle_features() -> None:
    """Roll back when a person said that features do not work; nobody's answer rolls nothing back."""
    context, release = _now()
    shown, answer = _latest(release, "features_confirmed"), _answer(release, "features_confirmed")
    if answer and answer.choice and answer.choice != approvals.APPROVE and answer.responder:
        _go_back(context, release, "features_confirmed", shown, answer)


def _go_back(context: Context, release: Release, name: str, shown: Evidence | None, answer: Approval | None) -> None:
    said = f", {answer.choice} by {answer.responder or 'nobody in time'}" if answer and answer.choice else ""
    why = f"{name}: {shown.verdict if shown else 'not looked at'}{said}"
    if "rollback" in _found(release):
        _log.error("%s, after a rollback: a person has to look", why)
        alerting.inform(context, f"{release.id}: not well after its rollback", why, "Look now", thread=thread(release))
        return
    _roll_back(context, release, why)


def close_status_page() -> None:
    """Users are told that it is over."""
    context, release = _now()
    measure(context, "status_page_closed")


def outcome(release: Release) -> str:
    """The word of the release's record."""
    found, answers = _found(release), _answers(release)
    if "rollback" in found:
        return "ROLLED BACK" if found["rollback"].verdict is Verdict.PASS else "ROLLBACK FAILED"
    if not deploy.was_posted(ops(), release):
        return "NOT DEPLOYED"
    gates = {**answers, "health": answers.get("confirm_health"), "watch": answers.get("keep_release")}
    names = ("deploy", "health", "features_confirmed", "watch")
    settled = all(checklist.is_settled(found.get(name), gates.get(name)) for name in names)
    return "RELEASED" if settled and not _bypassed(found) else "NOT CONFIRMED"


def _bypassed(found: dict[str, Evidence]) -> bool:
    return any(one.verdict is Verdict.BYPASSED for one in found.values())


def verdict_released() -> None:
    """The colour of post_deployment: green only when it was kept, confirmed and recorded."""
    _, release = _now()
    word = outcome(release)
    _end(release)
    if word != "RELEASED":
        raise GateClosed(
            f"the release ended as {word}",
            expected="RELEASED: well for the whole watch, features confirmed, nothing bypassed",
            found=word,
            remedy="read its record; the post-mortem draft beside it has the timeline",
        )


# -- record -----------------------------------------------------------------------------------------------------


def keep_record_without_deploy() -> None:
    """The record of a release that ends here; one that was posted is recorded after its watch."""
    _, release = _now()
    if not deploy.was_posted(ops(), release):
        keep_record()


def keep_record() -> None:
    """The signed record, its page, and a post-mortem draft when the outcome is not the one that was asked for."""
    context, release = _now()
    word, now = outcome(release), utc_now()
    numbered = evidence.numbered(ops(), release.run)
    answers = approvals.of_run(ops(), release.run)
    made = Record(
        kind=KIND,
        subject=f"{release.request.version} ({release.request.commit[:7]}) to {release.request.environment}",
        run=release.run,
        actor=release.requester,
        verdict=word,
        started=release.created,
        ended=now,
        facts={**request.facts(release), "approvals": [_shown(one) for one in answers]},
        evidence=tuple(one for _, one in numbered),
    )
    backup = config.load().backup
    home = catalogue("payme_s3_restore").stores.home
    before = record.newest(home, KIND, backup.verification_keys, VARIABLE)
    key = record.keep(home, record.follow(made, before), verification.signing_key(config.load()))
    _log.info("%s\nkept as %s", record.to_markdown(made), key)
    if word != "RELEASED":
        owner = config.load().alert.owner
        draft = postmortem.draft(release.id, word, numbered, answers, owner, now)
        home.put(f"{key.removesuffix('.json')}-post-mortem.md", draft.encode(), ContentType="text/markdown")
        _log.info("%s", draft)
    finding = passed({"outcome": word, "record": key})
    evidence.keep(ops(), release.run, "record", finding, threshold="signed and kept", source=run_name(context))


def _shown(one: Approval) -> dict[str, str]:
    return {
        "gate": one.gate,
        "choice": one.choice or "no answer",
        "by": one.responder or "nobody in time",
        "at": show(one.responded_at) if one.responded_at else "",
        "reason": one.reason,
    }


def tell_outcome() -> None:
    """Say in the release's thread how it ended, and where the record is."""
    context, release = _now()
    kept, word = _latest(release, "record"), outcome(release)
    alerting.inform(
        context,
        f"{release.id}: {word}",
        f"Record: {kept.measured['record'] if kept else 'not kept'}",
        "Nothing" if word == "RELEASED" else "Read the post-mortem draft beside the record; it has an owner and a date",
        good=word == "RELEASED",
        thread=thread(release),
    )
