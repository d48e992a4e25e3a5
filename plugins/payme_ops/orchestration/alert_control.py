"""What a person says of alerts by a form, for those without a shell. The work is in payme_ops.foundation."""

import logging
from datetime import timedelta
from typing import Any

from airflow.sdk import get_current_context

from payme_ops.foundation import alert, silences
from payme_ops.foundation.clock import show, utc_now
from payme_ops.foundation.errors import SettingsError
from payme_ops.orchestration import alerting
from payme_ops.orchestration.connections import ops_db

_log = logging.getLogger("payme_ops.alert")


def say() -> None:
    """Do what the form says, in the name of who triggered the run; `list` only looks.

    Raises SettingsError, NotFound or AlreadyExists for what cannot be done, before anything is written.
    """
    context = get_current_context()
    params: dict[str, Any] = dict(context["params"])
    ops, by = ops_db(), str(context["dag_run"].triggering_user_name or "")
    word, key, reason = params["word"], str(params.get("key") or "").strip(), str(params.get("reason") or "").strip()
    if word != "list":
        _require(by, key)
        slack = alerting.slack_or_none()
        match word:
            case "acknowledge":
                seen = alert.acknowledge(ops, key, by, reason, slack)
                _log.info("seen by %s: %s", seen.acknowledged_by, seen.what)
            case "silence":
                until = utc_now() + timedelta(minutes=int(params["minutes"]))
                begun = silences.silence(ops, key, reason, by, until, slack)
                _log.info("silenced until %s: %s", show(begun.until), begun.key)
            case "end silence":
                _log.info("no longer silenced: %s", silences.end(ops, key, by, slack).key)
    for one in alert.open_alerts(ops):
        seen_by = one.acknowledged_by or "nobody"
        _log.info("open: %s %s, %s, since %s, seen by %s", one.severity, one.key, one.what, show(one.since), seen_by)
    for quiet in silences.active(ops):
        _log.info("silenced until %s by %s: %s (%s)", show(quiet.until), quiet.by, quiet.key, quiet.reason)


def _require(by: str, key: str) -> None:
    if not by:
        raise SettingsError("nobody says this", expected="a run that a person triggered", found="the scheduler's")
    if not key:
        raise SettingsError("the form names no alert", expected="a key", found="none", remedy="see the word list")
