"""Tell Slack, the status page and support of an outage: each once, and what could not be told is a person's to tell.

A notice has two phases, `began` and `ended`. What was told is evidence of the run, so that a task that runs again
does not tell it again. Telling never stops the work: every error becomes a line for the person.
"""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from payme_ops.foundation import evidence, mail, settings, status_page
from payme_ops.foundation.evidence import Check, Finding, Verdict, passed
from payme_ops.orchestration import alerting, connections
from payme_ops.orchestration.doors import run_name

if TYPE_CHECKING:
    from airflow.sdk import Context

_log = logging.getLogger("payme_ops.notify")

BEGAN, ENDED = "began", "ended"
_STATUS = {BEGAN: "investigating", ENDED: "resolved"}


@dataclass(frozen=True)
class Notice:
    """`public` is for customers and support: no name of ours, no number. `internal` is for the on-call channel."""

    phase: str
    subject: str
    public: str
    internal: str


def tell(context: "Context", notice: Notice) -> list[str]:
    """Tell everybody; answers what a person has to tell instead, one line each."""
    channels: dict[str, Callable[[], Finding]] = {
        "status_page": lambda: _status_page(context, notice),
        "mail": lambda: _mail(context, notice),
    }
    ended = notice.phase == ENDED
    todo = (
        "Look at the run: it is red when something is left to do" if ended else "Follow the run; the runbook says more"
    )
    alerting.inform(context, notice.subject, notice.internal, todo, good=ended)
    return [line for name, how in channels.items() if (line := _once(context, notice, name, how))]


def _once(context: "Context", notice: Notice, channel: str, how: Callable[[], Finding]) -> str:
    """Nothing when the channel was told, now or before; else what to do."""
    item = _item(context, notice.phase, channel)
    if _told(context, notice.phase, channel) is not None:
        return ""
    found = evidence.run_check(Check(item, "told", channel, how), actor=run_name(context))
    evidence.record(connections.ops_db(), run_name(context), [found])
    if found.verdict is Verdict.PASS:
        return ""
    _log.warning("%s was not told: %s. %s", channel, found.measured, found.remedy)
    return f'{channel.replace("_", " ")}: tell "{notice.subject}" yourself ({found.remedy})'


def _item(context: "Context", phase: str, channel: str) -> str:
    """A run that was cleared may be an outage anew."""
    cleared = context["dag_run"].clear_number
    return f"told_{phase}_{channel}" + (f"_{cleared}" if cleared else "")


def _told(context: "Context", phase: str, channel: str) -> dict[str, Any] | None:
    """What was measured when the channel was told; None when it was not."""
    found = evidence.find(connections.ops_db(), run_name(context), _item(context, phase, channel))
    return dict(found.measured) if found and found.verdict is Verdict.PASS else None


def _status_page(context: "Context", notice: Notice) -> Finding:
    page = connections.status_page()
    if page is None:
        return Finding(Verdict.INCONCLUSIVE, {"configured": False}, "connection payme_status_page is not there")
    if notice.phase == BEGAN:
        return passed({"incident": status_page.open_incident(page, name=notice.subject, body=notice.public)})
    incident = (_told(context, BEGAN, "status_page") or {}).get("incident")
    if not incident:
        return Finding(Verdict.INCONCLUSIVE, {"incident": None}, "the incident was not opened by this run")
    status_page.update_incident(page, incident, status=_STATUS[notice.phase], body=notice.public)
    return passed({"incident": incident})


def _mail(context: "Context", notice: Notice) -> Finding:
    name = f"{run_name(context)} {_item(context, notice.phase, 'mail')}"
    return mail_support(notice.subject, notice.public, name)


def mail_support(subject: str, text: str, name: str) -> Finding:
    """Tell support by mail; the same `name` is the same mail. Inconclusive where nobody has said how."""
    to, server = settings.load().notify.support_email, connections.mail_server()
    if not to or server is None:
        missing = "connection payme_smtp" if to else "PAYME_OPS__NOTIFY__SUPPORT_EMAIL"
        return Finding(Verdict.INCONCLUSIVE, {"configured": False}, f"{missing} is not there")
    mail.send(server, to=to, subject=subject, text=text, message_id=evidence.digest(name)[:32])
    return passed({"to": "support"})
