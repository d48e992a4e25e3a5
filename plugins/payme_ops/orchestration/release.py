"""The stages of a release as task bodies; the work is in payme_ops.release.

What a task needs of another it reads from the ops database, under the release: request, evidence, approvals, terms.
XCom carries the release's id only, and whoever rewrites that meets a release with other evidence.
"""

import logging
from datetime import datetime, timedelta
from typing import Any

from airflow.sdk import Context, get_current_context
from airflow.sdk.exceptions import AirflowSkipException

from payme_ops.backup import verification
from payme_ops.backup.verification import VARIABLE
from payme_ops.foundation import approvals, evidence, lease, record
from payme_ops.foundation import settings as config
from payme_ops.foundation.approvals import Approval
from payme_ops.foundation.clock import show, utc_now
from payme_ops.foundation.errors import (
    GateClosed,
    LeaseHeld,
    LeaseLost,
    NotApproved,
    NotFound,
    PaymeOpsError,
    Unavailable,
)
from payme_ops.foundation.evidence import Check, Evidence, Finding, Verdict, passed, plain
from payme_ops.foundation.lease import Term
from payme_ops.foundation.record import Record
from payme_ops.foundation.settings import ReleaseSettings
from payme_ops.orchestration import alerting, internals, looks, release_items, release_people
from payme_ops.orchestration.connections import ops_db
from payme_ops.orchestration.doors import catalogue, run_name
from payme_ops.orchestration.triggers import FIRST_SECONDS
from payme_ops.release import autoscaling, checklist, deploy, orders, postmortem, request
from payme_ops.release.checklist import GATES, ITEMS
from payme_ops.release.request import Environment, Release
from payme_ops.release.watch import MIN_BASELINE

_log = logging.getLogger("payme_ops.release")

KIND = "release"
PRE, DEPLOYMENT, POST = "pre_deployment", "deployment", "post_deployment"
# Renewed each minute by what is at work; a release whose people think longer than that may be overtaken.
RELEASE_TTL = timedelta(minutes=15)
_LOOKS_PATIENCE = 4  # times the looks that would do
# Instants are whole seconds, and the ops database's clock is not a worker's.
_CLOCKS = timedelta(seconds=2)
# A trigger that fires within seconds of the deferral can meet the scheduler at it (apache/airflow #72716, #71580).
_NOT_BEFORE = timedelta(seconds=15)


def of(context: Context) -> Release:
    """The release of this run. Raises NotFound: the run was not started by the DAG before it."""
    if context["dag_run"].dag_id == PRE:
        return request.of_run(ops_db(), run_name(context))
    return request.get(ops_db(), str(context["run_id"]))


def _now() -> tuple[Context, Release]:
    context = get_current_context()
    return context, of(context)


def _settings() -> ReleaseSettings:
    return config.load().release


def patience() -> timedelta:
    """How long a question to a person stands."""
    return timedelta(minutes=_settings().approval_minutes)


def thread(release: Release) -> str:
    """The key of the release's thread in Slack."""
    return f"release:{release.id}"


# -- items ------------------------------------------------------------------------------------------------------


def still_holds(context: Context, name: str) -> bool:
    """Whether the item's evidence is young enough, and passed or was approved."""
    release = of(context)
    found = evidence.find(ops_db(), release.run, name)
    if found is None or checklist.is_stale(ITEMS[name], found, _answer(release, name), utc_now()):
        _log.info("%s is measured again: %s", name, f"{found.verdict} at {show(found.ended)}" if found else "not there")
        return False
    _log.info("%s still holds: %s at %s", name, found.verdict, show(found.ended))
    return True


def measure(context: Context, name: str) -> Evidence:
    """Measure an item and keep its evidence.

    Raises GateClosed when it failed, Unavailable while Airflow will try again: only what stays away is inconclusive.
    """
    release, item = of(context), ITEMS[name]
    function = release_items.FUNCTIONS[name]
    check = Check(name, item.expected, f"release {release.id}", lambda: function(context, release))
    return _keep(release, evidence.run_check(check, actor=run_name(context)), context)


def _conclude(context: Context, release: Release, name: str, finding: Finding, started: datetime) -> None:
    """Keep a finding that is at hand. Raises as `measure`."""
    expected, source = ITEMS[name].expected, f"release {release.id}"
    made = evidence.conclude(name, finding, threshold=expected, actor=run_name(context), source=source, started=started)
    _keep(release, made, context)


def _keep(release: Release, found: Evidence, context: Context) -> Evidence:
    if _is_unanswered(found) and _is_tried_again(context):
        raise _unavailable(found)
    evidence.record(ops_db(), release.run, [found])
    _log.info("%s: %s %s %s", found.item, found.verdict, plain(found.measured), found.remedy)
    if found.verdict in (Verdict.FAIL, Verdict.BYPASSED):
        raise GateClosed(
            f"{found.item} did not pass", expected=found.threshold, found=plain(found.measured), remedy=found.remedy
        )
    return found


def _is_tried_again(context: Context) -> bool:
    return bool(context["ti"].try_number <= context["ti"].max_tries)


def _is_unanswered(found: Evidence) -> bool:
    """A service was away: that is how evidence.run_check writes it down."""
    return found.verdict is Verdict.INCONCLUSIVE and isinstance(found.measured, dict) and "error" in found.measured


def _unavailable(found: Evidence) -> Unavailable:
    return Unavailable(f"{found.item} could not be measured", found=plain(found.measured), remedy=found.remedy)


def _answer(release: Release, gate: str) -> Approval | None:
    return approvals.latest(ops_db(), run=release.run, gate=gate)


def _found(release: Release) -> dict[str, Evidence]:
    return checklist.newest(evidence.of_run(ops_db(), release.run))


def _came_after(release: Release, later: str, earlier: str) -> bool:
    """By their numbers: instants are whole seconds, and two steps may fall into one."""
    order = {one.item: number for number, one in evidence.numbered(ops_db(), release.run)}
    return order.get(later, 0) > order.get(earlier, 0)


def _answers(release: Release) -> dict[str, Approval]:
    return {one.gate: one for one in approvals.of_run(ops_db(), release.run)}


def tell_answer(context: Context, gate: str) -> None:
    """Say in the release's thread who answered what."""
    release = of(context)
    answer, title = _answer(release, gate), context["task"].task_display_name
    alerting.inform(
        context,
        f"{title}: {_said(answer)}",
        answer.reason if answer and answer.reason else "An answer to what was asked above.",
        "Nothing",
        good=True,
        thread=thread(release),
    )


def _said(answer: Approval | None) -> str:
    choice, who = (answer.choice, answer.responder) if answer else (None, "")
    return f"{choice or 'no answer'} by {who or 'nobody in time'}"


def rejected(context: Context, gate: str) -> GateClosed:
    """What a no, or no answer in time, is to the run."""
    return GateClosed(
        f"{gate} was not approved",
        expected="another person's yes",
        found=_said(_answer(of(context), gate)),
        remedy="what comes after it was not begun; clear it to ask again",
    )


# -- looks ------------------------------------------------------------------------------------------------------


def plan_looks(context: Context, name: str, consecutive: int) -> dict[str, Any]:
    """What the trigger of an item is told that looks at /health: staging before a release, its own after it."""
    release, begun = of(context), utc_now()
    environment, commit, uptime_below = release.request.environment, release.request.commit, None
    if name == "staging_healthy":
        # Before a release to staging itself another commit runs there.
        commit = commit if environment is Environment.PRODUCTION else ""
        environment = Environment.STAGING
    elif done := deploy.intent(ops_db(), release, deploy.DEPLOY):
        uptime_below = (begun - done.intended_at + _CLOCKS).total_seconds()
    interval = _settings().sample_seconds
    patience_seconds = max(60.0, _LOOKS_PATIENCE * consecutive * interval)
    return {
        "environment": environment.value,
        "subject": f"{release.run}/{name}",
        "commit": commit,
        "uptime_below": uptime_below,
        "consecutive": consecutive,
        "interval_seconds": interval,
        "begun": begun.isoformat(),
        "until": (begun + timedelta(seconds=FIRST_SECONDS + patience_seconds)).isoformat(),
        "terms": _terms_to_renew(release) if name == "health" else [],
    }


def conclude_looks(context: Context, name: str, begun: str, consecutive: int) -> None:
    """The evidence of those looks. Raises GateClosed."""
    release, first = of(context), datetime.fromisoformat(begun)
    _conclude(context, release, name, looks.rule(f"{release.run}/{name}", first, consecutive), first)


def plan_baseline(context: Context) -> dict[str, Any] | None:
    """What the trigger is told that looks at what is usual; None when enough of the last day are stored."""
    environment, begun = of(context).request.environment.value, utc_now()
    if (stored := len(looks.baseline(environment, begun))) >= MIN_BASELINE:
        _log.info("%d looks of the last day are stored", stored)
        return None
    settings = _settings()
    until = begun + timedelta(seconds=FIRST_SECONDS + settings.baseline_samples * settings.sample_seconds)
    plan = {"environment": environment, "subject": environment, "commit": "", "terms": [], "judging": False}
    return {**plan, "begun": begun.isoformat(), "until": until.isoformat()}


def plan_watch(context: Context) -> dict[str, Any]:
    """What the watch's trigger is told; a watch that was begun and has no verdict yet goes on."""
    release = of(context)
    begun = _found(release).get("watch_begun")
    if begun is None or _came_after(release, "watch", "watch_begun"):
        first, minutes = utc_now() + timedelta(seconds=FIRST_SECONDS), _settings().watch_minutes
        times = {"begun": first.isoformat(), "until": (first + timedelta(minutes=minutes)).isoformat()}
        begun = evidence.keep(
            ops_db(),
            release.run,
            "watch_begun",
            passed(times),
            threshold=f"{minutes:g} min",
            source=run_name(context),
        )
    return {
        "environment": release.request.environment.value,
        "subject": release.run,
        "commit": release.request.commit,
        "begun": begun.measured["begun"],
        "until": begun.measured["until"],
        "terms": _terms_to_renew(release),
        "judging": True,
    }


def conclude_watch(context: Context) -> None:
    """The evidence of the watch. Raises GateClosed after a breach."""
    release = of(context)
    begun = evidence.latest(ops_db(), release.run, "watch_begun")
    first, last = (datetime.fromisoformat(begun.measured[name]) for name in ("begun", "until"))
    found = looks.verdict(release.run, release.request.environment.value, first, last)
    remedy = "see what broke the limit; it is rolled back where that is safe: clear nothing" if found.rule else ""
    _conclude(context, release, "watch", Finding(found.verdict, found.facts, "; ".join(found.open) or remedy), first)


def _terms_to_renew(release: Release) -> list[list[Any]]:
    """The terms that are ours, as a trigger is told of them: name, token, seconds."""
    found = [(lease.living_term(ops_db(), release.lease), RELEASE_TTL.total_seconds())]
    if release.request.resume_after_watch:  # else it may end at any moment
        found.append((lease.living_term(ops_db(), orders.term_name(release)), float(_settings().freeze_seconds)))
    return [[term.name, term.token, seconds] for term, seconds in found if term and term.holder == release.run]


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
    made = request.create(ops_db(), run_name(context), requester, asked)
    finding = passed(request.facts(made))
    evidence.keep(
        ops_db(), made.run, "request", finding, threshold="a form that can be meant", source=run_name(context)
    )
    _log.info("release %s, asked for by %s", made.id, made.requester)
    alerting.inform(
        context,
        f"{made.id} is being prepared",
        plain(request.facts(made)),
        "Answer here what is asked of you; two people other than the requester decide",
        good=True,
        thread=thread(made),
    )
    return made.id


def verdict_prepared() -> None:
    """The colour of pre_deployment: green only when every item passed or was approved."""
    _, release = _now()
    names = [item.name for item in ITEMS.values() if item.section is checklist.Section.DAYS_BEFORE]
    left = checklist.open_items(names, _found(release), _answers(release))
    if not left and not has_begun(DEPLOYMENT, release):
        left = ["start_deployment"]
    if left:
        raise GateClosed(
            "the release is not prepared",
            expected="every item passed, or approved by another person than the requester",
            found=f"open: {', '.join(left)}",
            remedy="see which task is red; when its cause is gone, clear it and what comes after it",
        )


# -- 1 hour before ----------------------------------------------------------------------------------------------


def opens(release: Release) -> datetime:
    """When the last hour's checklist begins."""
    return release.request.window_from - timedelta(minutes=_settings().lead_minutes)


def open_deployment() -> str:
    """Refuse a run that no pre_deployment has started; answers when the last hour begins (ISO)."""
    _, release = _now()
    _log.info("release %s: %s", release.id, plain(request.facts(release)))
    return max(opens(release), utc_now() + _NOT_BEFORE).isoformat()


def collect() -> None:
    """The evidence of the go or no-go: request and checklist, as they stand now. Raises GateClosed."""
    (context, release), begun = _now(), utc_now()
    finding = checklist.go_no_go(release, _found(release), _answers(release))
    _conclude(context, release, "go_no_go", finding, begun)


def _require_go(context: Context, release: Release) -> None:
    """Two people agreed to exactly what holds now, the window is open, and nothing was set by hand since.

    Raises NotApproved, NotFound, Unavailable.
    """
    shown = evidence.latest(ops_db(), release.run, "go_no_go")
    answers = [approvals.require(ops_db(), run=release.run, gate=gate, digest=shown.sha256) for gate in GATES]
    approvals.require_distinct(answers)
    if changed := checklist.changed_since(release, shown, _found(release)):
        raise NotApproved(
            "what was agreed to has changed",
            expected="the evidence that stood in the go or no-go",
            found=f"other evidence of {', '.join(changed)}",
            remedy="clear collect and what comes after it: people see what is true now",
        )
    if not opens(release) <= utc_now() <= release.request.window_to:
        raise NotApproved(
            "the window is not open",
            expected=f"{show(opens(release))} to {show(release.request.window_to)}",
            found=show(utc_now()),
            remedy="trigger pre_deployment again with a new window",
        )
    found = release_people.bypasses(context, release)
    if found.verdict is Verdict.BYPASSED:
        raise NotApproved(
            "something of this release was set by hand",
            expected="tasks that have run",
            found=plain(found.measured),
            remedy=found.remedy,
        )


def take_release() -> None:
    """Nobody else deploys there, and no restore swaps, until this release is over. Raises LeaseHeld."""
    context, release = _now()
    _require_go(context, release)
    taken = take(release)
    _log.info("%s is ours, token %d", taken.name, taken.token)


def take(release: Release) -> Term:
    """The release's term of its environment, taken or renewed. Raises LeaseHeld."""
    return lease.take_term(ops_db(), release.lease, release.run, RELEASE_TTL)


def act(name: str) -> None:
    """Do an item of the last hour or of the deploy: nobody is asked while orders may be stopped.

    The terms are renewed while it works. Raises NotApproved when the go does not hold any more, LeaseHeld, LeaseLost,
    GateClosed, Unavailable.
    """
    context, release = _now()
    if not deploy.was_posted(ops_db(), release):  # after that nothing is begun, only seen to its end
        _require_go(context, release)
    with lease.keeping(ops_db(), [take(release)], RELEASE_TTL), _keeping_frozen(release):
        _do(context, name)


def _do(context: Context, name: str) -> None:
    """Measure what nobody is asked about: what could not be told at the last try fails. Raises as `measure`."""
    found = measure(context, name)
    if _is_unanswered(found):
        raise _unavailable(found)


def _keeping_frozen(release: Release) -> Any:
    """The freeze is renewed for the block, if it is ours."""
    found = lease.living_term(ops_db(), orders.term_name(release))
    ours = [found] if found and found.holder == release.run else []
    return lease.keeping(ops_db(), ours, timedelta(seconds=_settings().freeze_seconds))


# -- during -----------------------------------------------------------------------------------------------------


def settle() -> None:
    """Well, or rolled back: what was posted and did not get well goes back once, where that is safe.

    Skipped, and the watch with it, when nothing was posted or nothing is left to watch.
    """
    context, release = _now()
    if not deploy.was_posted(ops_db(), release):
        raise AirflowSkipException("nothing was deployed")
    bad = _not_well(release)
    if not bad:
        _log.info("deployed, and nothing speaks against it")
        return
    _roll_back(context, release, f"{' and '.join(bad)} did not pass")
    raise AirflowSkipException("it was not well: nothing is left to watch")


def _not_well(release: Release) -> list[str]:
    """Which of deploy and smoke failed, were not done, or could not be told."""
    found = _found(release)
    return [
        name
        for name in ("deploy", "smoke")
        if name not in found or found[name].verdict is Verdict.FAIL or _is_unanswered(found[name])
    ]


def _roll_back(context: Context, release: Release, why: str) -> None:
    """Go back once. What comes of it is evidence, and the run is red in any case.

    Raises Unavailable, LeaseHeld, LeaseLost while Airflow will try again: a minute's absence must not leave it there.
    """
    if evidence.find(ops_db(), release.run, "rollback"):
        _log.error("%s, after a rollback: a person has to look", why)
        alerting.inform(context, f"{release.id}: not well after its rollback", why, "Look now", thread=thread(release))
        return
    alerting.inform(
        context,
        f"{release.id} is being rolled back",
        why,
        "Follow the run; whether the previous commit is well stands in the next message",
        thread=thread(release),
    )
    try:
        with lease.keeping(ops_db(), [take(release)], RELEASE_TTL), _keeping_frozen(release):
            found = measure(context, "rollback")
    except PaymeOpsError as error:
        if isinstance(error, (Unavailable, LeaseHeld, LeaseLost)) and _is_tried_again(context):
            raise
        _log.error("%s", error)
        alerting.inform(
            context, f"{release.id} could not be rolled back", str(error), error.remedy, thread=thread(release)
        )
        return
    good = found.verdict is Verdict.PASS
    alerting.inform(
        context,
        f"{release.id} was rolled back" if good else f"{release.id}: nobody can tell whether it was rolled back",
        plain(found.measured),
        "Read the post-mortem draft beside the record" if good else found.remedy,
        thread=thread(release),
    )


# -- endings: deployment's when nothing is left to watch, else post_deployment's -----------------------------------


def _ends_here(context: Context, release: Release) -> bool:
    if context["dag_run"].dag_id != DEPLOYMENT or not deploy.was_posted(ops_db(), release):
        return True
    return evidence.find(ops_db(), release.run, "rollback") is not None or bool(_not_well(release))


def resume_orders() -> None:
    """Take orders again, if this release has stopped them and they are not to stay stopped until the watch is over."""
    context, release = _now()
    if _stay_stopped(context, release):
        _log.info("orders stay stopped until the watch is over, as the form asks")
        return
    if not _is_frozen(release):
        _log.info("orders are not stopped by this release")
        return
    _do(context, "resume_orders")


def _stay_stopped(context: Context, release: Release) -> bool:
    return release.request.resume_after_watch and not _ends_here(context, release)


def _is_frozen(release: Release) -> bool:
    """Whether this release has stopped orders, or may have, and nobody has seen them taken again since."""
    term = lease.open_term(ops_db(), orders.term_name(release))
    if term and term.holder == release.run:
        return True
    if term and term.holder.startswith("release/"):
        return False  # ours was ended; another release has stopped them since
    frozen, resumed = (
        evidence.find(ops_db(), release.run, "freeze_orders"),
        evidence.find(ops_db(), release.run, "resume_orders"),
    )
    if frozen is None or not orders.are_stopped(frozen):
        return False
    return (
        resumed is None or resumed.verdict is not Verdict.PASS or _came_after(release, "freeze_orders", "resume_orders")
    )


def restore_autoscaling() -> None:
    """The limits from before, if this release has fixed them."""
    context, release = _now()
    if _scaled(release) is None:
        _log.info("autoscaling was not touched")
        return
    _do(context, "autoscaling_restored")


def _scaled(release: Release) -> Evidence | None:
    """That the limits may have been changed: the number was fixed, or somebody died after keeping them."""
    return evidence.find(ops_db(), release.run, "autoscaling") or evidence.find(
        ops_db(), release.run, autoscaling.LIMITS
    )


def close_status_page() -> None:
    """Users are told that it is over, where it is."""
    context, release = _now()
    if not _ends_here(context, release):
        raise AirflowSkipException("post_deployment closes it")
    _do(context, "status_page_closed")


def keep_record() -> None:
    """The signed record, its page, and a post-mortem draft when the outcome is not the one that was asked for."""
    context, release = _now()
    if not _ends_here(context, release):
        raise AirflowSkipException("post_deployment keeps it")
    word, now = outcome(release), utc_now()
    numbered = evidence.numbered(ops_db(), release.run)
    found, answers = tuple(one for _, one in numbered), approvals.of_run(ops_db(), release.run)
    figures = postmortem.figures(found, answers)
    made = Record(
        kind=KIND,
        subject=f"{release.request.version} ({release.request.commit[:7]}) to {release.request.environment}",
        run=release.run,
        actor=release.requester,
        verdict=word,
        started=release.created,
        ended=now,
        facts={**request.facts(release), **figures, "approvals": [_shown(one) for one in answers]},
        evidence=found,
    )
    settings = config.load()
    home = catalogue("payme_s3_restore").stores.home
    before = record.newest(home, KIND, settings.backup.verification_keys, VARIABLE)
    key = record.keep(home, record.follow(made, before), verification.signing_key(settings))
    _log.info("%s\nkept as %s", record.to_markdown(made), key)
    if word != RELEASED:
        draft = postmortem.draft(release.id, word, numbered, answers, settings.alert.owner, now)
        home.put(f"{key.removesuffix('.json')}-post-mortem.md", draft.encode(), ContentType="text/markdown")
        _log.info("%s", draft)
    finding = passed({"outcome": word, "record": key})
    evidence.keep(ops_db(), release.run, "record", finding, threshold="signed and kept", source=run_name(context))


def _shown(one: Approval) -> dict[str, str]:
    return {
        "gate": one.gate,
        "choice": one.choice or "no answer",
        "by": one.responder or "nobody in time",
        "at": show(one.responded_at) if one.responded_at else "",
        "reason": one.reason,
        "evidence": one.digest[:16],
    }


def tell_outcome() -> None:
    """Say in the release's thread how it went, and where the record is."""
    context, release = _now()
    if not _ends_here(context, release):
        alerting.inform(
            context,
            f"{release.id} is deployed",
            f"Watched for {_settings().watch_minutes:g} minutes from now on, by post_deployment.",
            "Nothing",
            good=True,
            thread=thread(release),
        )
        return
    kept, word = evidence.find(ops_db(), release.run, "record"), outcome(release)
    alerting.inform(
        context,
        f"{release.id}: {word}",
        f"Record: {kept.measured['record'] if kept else 'not kept'}",
        "Nothing" if word == RELEASED else "Read the post-mortem draft beside the record; it has an owner and a date",
        good=word == RELEASED,
        thread=thread(release),
    )


def verdict() -> None:
    """The colour of the run: green only when what it is for was reached, and nothing is left stopped.

    Raises GateClosed.
    """
    context, release = _now()
    found, left = _found(release), []
    if _is_frozen(release) and not _stay_stopped(context, release):
        left.append("resume_orders")
    if not _is_scaled_back(release):
        left.append("autoscaling_restored")
    words = [f"{name} {found[name].verdict if name in found else 'not done'}" for name in left]
    if _ends_here(context, release):
        _end(release)
        if (word := outcome(release)) != RELEASED:
            words.insert(0, word)
    elif not has_begun(POST, release):
        words.append("nobody watches: post_deployment was not started")
    if words:
        raise GateClosed(
            f"release {release.id} is not as it should be",
            expected="deployed and well, everything confirmed, orders taken, autoscaling as before",
            found=", ".join(words),
            remedy="read its record and the post-mortem draft beside it; the runbook says what may be cleared",
        )


def has_begun(dag_id: str, release: Release) -> bool:
    """Whether Airflow has a run of that DAG for the release. Raises Unavailable."""
    return internals.count_runs(dag_id, release.id) > 0


def _is_scaled_back(release: Release) -> bool:
    """Whether the limits are as before, or were never changed."""
    done, undone = _scaled(release), evidence.find(ops_db(), release.run, "autoscaling_restored")
    if done is None:
        return True
    told = undone is not None and undone.verdict is not Verdict.FAIL and not _is_unanswered(undone)
    return told and _came_after(release, "autoscaling_restored", done.item)


def _end(release: Release) -> None:
    """Another release may begin."""
    found = lease.living_term(ops_db(), release.lease)
    if found and found.holder == release.run:
        lease.end_term(ops_db(), found.name, found.token)


RELEASED = "RELEASED"


def outcome(release: Release) -> str:
    """The word of the release's record."""
    found, answers = _found(release), _answers(release)
    if "rollback" in found:
        return "ROLLED BACK" if found["rollback"].verdict is Verdict.PASS else "ROLLBACK FAILED"
    if not deploy.was_posted(ops_db(), release):
        return "NOT DEPLOYED"
    if _not_well(release):
        return "NOT WELL"
    settled = all(
        checklist.is_settled(found.get(name), answers.get(name)) for name in ("health", "features_confirmed", "watch")
    )
    bypassed = any(one.verdict is Verdict.BYPASSED for one in found.values())
    return RELEASED if settled and not bypassed else "NOT CONFIRMED"


# -- after ------------------------------------------------------------------------------------------------------


def open_post_deployment() -> None:
    """Refuse a run that no deployment has started, or before anything was posted."""
    _, release = _now()
    if not deploy.was_posted(ops_db(), release):
        raise NotFound(
            f"release {release.id} was not deployed",
            expected="a run that deployment has started",
            found="no deploy",
            remedy="trigger pre_deployment: it starts deployment, and deployment starts post_deployment",
        )


def settle_watch() -> None:
    """Keep it, or roll it back: after a breach, a person's no, or no answer. Orders are taken again in any case.

    At once, not with the endings: they wait for the answer whether features work.
    """
    context, release = _now()
    found = _found(release)
    wrong = [name for name in ("health", "watch") if not checklist.is_settled(found.get(name), _answer(release, name))]
    if _was_rolled_back_meanwhile(found):
        _log.info("rolled back while it was watched: what was seen since is the previous commit")
    elif wrong:
        _roll_back(context, release, _words(wrong[0], found.get(wrong[0]), _answer(release, wrong[0])))
    else:
        _log.info("well, and watched to the end")
    resume_orders()


def _was_rolled_back_meanwhile(found: dict[str, Evidence]) -> bool:
    """Somebody said that features do not work; the watch then sees another commit, which is nothing to page for."""
    watched, back = found.get("watch"), found.get("rollback")
    if watched is None or back is None or back.verdict is not Verdict.PASS:
        return False
    return watched.started <= back.started and back.ended <= watched.ended


def settle_features() -> None:
    """Roll back when a person said that features do not work; nobody's answer rolls nothing back."""
    context, release = _now()
    shown, answer = (
        evidence.find(ops_db(), release.run, "features_confirmed"),
        _answer(release, "features_confirmed"),
    )
    if answer and answer.choice and answer.choice != approvals.APPROVE and answer.responder:
        _roll_back(context, release, _words("features_confirmed", shown, answer))


def _words(name: str, shown: Evidence | None, answer: Approval | None) -> str:
    said = f", {_said(answer)}" if answer and answer.choice else ""
    breach = shown.measured.get("breach") if shown and isinstance(shown.measured, dict) else None
    return f"{name}: {breach or (shown.verdict if shown else 'not looked at')}{said}"
