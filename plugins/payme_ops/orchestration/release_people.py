"""What a release's people did and were told: what was set by hand in Airflow, and whether the team knows of the window.

Both are items of the checklist (payme_ops.release.checklist), called as `(context, release)`.
"""

import logging

from airflow.sdk import Context

from payme_ops.foundation import evidence
from payme_ops.foundation import settings as config
from payme_ops.foundation.clock import show
from payme_ops.foundation.evidence import Check, Evidence, Finding, Verdict, passed
from payme_ops.orchestration import alerting, connections, notify
from payme_ops.orchestration.connections import ops_db
from payme_ops.orchestration.doors import run_name
from payme_ops.release import bypass, checklist, request
from payme_ops.release.request import Release

_log = logging.getLogger("payme_ops.release")

DAGS = ("pre_deployment", "deployment", "post_deployment")
MAILED = "team_mailed"


def bypasses(context: Context, release: Release) -> Finding:
    """Whether anything of the release was set by hand and not run since; also asked right before the deploy.

    Raises Unavailable, ServiceRefused.
    """
    api = connections.airflow_api()
    if api is None:
        todo = "connection payme_airflow_api is not there: a person looks in Airflow, Browse, Audit Log, and says"
        return Finding(Verdict.INCONCLUSIVE, {"configured": False}, todo)
    ops = ops_db()
    found = checklist.newest(evidence.of_run(ops, release.run))
    return bypass.examine(api, release, _runs(ops, context, release), found)


def _runs(ops: str, context: Context, release: Release) -> dict[str, str]:
    """The runs of the release that have begun, this one the last."""
    begun = DAGS[: DAGS.index(str(context["dag_run"].dag_id)) + 1]
    prepared = request.pre_run(ops, release.id).partition("/")[2]
    return {dag: prepared if dag == DAGS[0] else release.id for dag in begun}


def team_notified(context: Context, release: Release) -> Finding:
    """Slack has taken the announcement of the window, once. While it does not, support gets it by mail, and a person
    says whether the team knows.
    """
    told = evidence.find(ops_db(), release.run, "team_notified")
    if told is not None and told.verdict is Verdict.PASS:
        return passed(told.measured)
    what, why, todo = f"Maintenance window: {_title(release)}", _words(release), "Say in this thread what is against it"
    channel = config.load().slack.channel
    if stamp := alerting.inform(context, what, why, todo, good=True, thread=f"release:{release.id}"):
        return passed({"slack": stamp, "channel": channel})
    mailed = _mailed(context, release, what, why)
    sent = mailed.verdict is Verdict.PASS
    measured = {
        "slack": f"did not take it for {channel}; it is sent again until it does",
        "mail": "sent to support" if sent else "not sent",
    }
    todo = "ask the team whether they know" if sent else f"tell the team yourself ({mailed.remedy})"
    return Finding(Verdict.INCONCLUSIVE, measured, todo)


def _mailed(context: Context, release: Release, subject: str, text: str) -> Evidence:
    """The way round Slack, once, with evidence of its own."""
    before = evidence.find(ops_db(), release.run, MAILED)
    if before is not None and before.verdict is Verdict.PASS:
        return before
    name = f"{release.run} {MAILED}"
    check = Check(MAILED, "handed over to the mail server", "mail", lambda: notify.mail_support(subject, text, name))
    made = evidence.run_check(check, actor=run_name(context))
    evidence.record(ops_db(), release.run, [made])
    _log.warning("Slack did not take the announcement; mail to support: %s %s", made.verdict, made.remedy)
    return made


def _title(release: Release) -> str:
    asked = release.request
    return f"{asked.version} to {asked.environment}, {show(asked.window_from)}"


def _words(release: Release) -> str:
    asked = release.request
    again = (
        "the watch after the deploy is over"
        if asked.resume_after_watch
        else "the new version and a test order are well"
    )
    return "\n".join(
        [
            f"PayMe {asked.version}, commit {asked.commit[:7]}, to {asked.environment}",
            f"From {show(asked.window_from)} to {show(asked.window_to)}",
            f"Asked for by {release.requester}: {asked.reason}",
            f"New orders stop before the final backup and are taken again when {again}."
            " Orders that were placed before are carried out.",
        ]
    )
