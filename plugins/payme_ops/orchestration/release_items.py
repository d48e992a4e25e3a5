"""What each item of a release's checklist measures: from connections to the functions of the domains.

Where a connection is not there, its item becomes a question to a person. `measure(name)` is all that tasks call.
"""

from collections.abc import Callable
from typing import Any

from airflow.sdk import Context

from payme_ops.foundation import evidence, status_page
from payme_ops.foundation import settings as config
from payme_ops.foundation.clock import show
from payme_ops.foundation.errors import NotFound
from payme_ops.foundation.evidence import Evidence, Finding, Verdict, passed
from payme_ops.foundation.status_page import StatusPage
from payme_ops.orchestration import connections
from payme_ops.release import code_host
from payme_ops.release.code_host import CodeHost
from payme_ops.release.checklist import ITEMS
from payme_ops.release.request import Environment, Release

_OUTAGE = (
    "We update PayMe in this time. New orders stop for some minutes; orders that were placed before are carried out."
)


def _latest(release: Release, item: str) -> Evidence | None:
    try:
        return evidence.latest(connections.conninfo("payme_ops_db"), release.run, item)
    except NotFound:
        return None


def _not_there(connection: str) -> Finding:
    todo = f"connection {connection} is not there: a person has to look, and to say"
    return Finding(Verdict.INCONCLUSIVE, {"configured": False}, todo)


def _asks(name: str, shown: dict[str, Any]) -> Finding:
    """An item that only a person can answer."""
    return Finding(Verdict.INCONCLUSIVE, shown, ITEMS[name].ask)


def _on_code_host(measure: Callable[[CodeHost], Finding]) -> Finding:
    host = connections.code_host()
    return measure(host) if host else _not_there("payme_code_host")


# -- 48 hours before --------------------------------------------------------------------------------------------


def code_review(_context: Context, release: Release) -> Finding:
    """Somebody other than the author has approved exactly this commit."""
    return _on_code_host(lambda host: code_host.code_review(host, release.request))


def tests_passing(_context: Context, release: Release) -> Finding:
    """Every required check succeeded for this commit."""
    branch = config.load().release.branch
    return _on_code_host(lambda host: code_host.checks_green(host, release.request, branch))


def rollback_plan(_context: Context, release: Release) -> Finding:
    """There is a plan at this commit, and a commit to go back to."""
    path = config.load().release.rollback_plan
    return _on_code_host(lambda host: code_host.rollback_plan(host, release.request, path))


def qa_sign_off(_context: Context, release: Release) -> Finding:
    """QA says so."""
    staging = _latest(release, "staging_healthy")
    return _asks(
        "qa_sign_off",
        {
            "commit": release.request.commit,
            "version": release.request.version,
            "staging": staging.measured if staging else "not looked at",
        },
    )


def rollback_plan_agreed(_context: Context, release: Release) -> Finding:
    """The owner says so."""
    plan = _latest(release, "rollback_plan")
    return _asks(
        "rollback_plan_agreed",
        {
            "plan": plan.measured if plan else "not looked at",
            "back to": release.request.previous_commit,
            "carries a migration": release.request.carries_migration,
        },
    )


def status_page_planned(_context: Context, release: Release) -> Finding:
    """The maintenance is announced to users, once, and read back."""
    page, asked = connections.status_page(), release.request
    if asked.environment is Environment.STAGING:
        return passed({"maintenance": "none: users do not see staging"})
    if page is None:
        return _not_there("payme_status_page")
    window = {"begins": asked.window_from, "ends": asked.window_to}
    told = _latest(release, "status_page")
    planned = told.measured.get("maintenance") if told else None
    if not planned:
        planned = status_page.schedule_maintenance(page, name=f"PayMe {asked.version}", body=_OUTAGE, **window)
    return _read_back(page, str(planned), "scheduled")


def _read_back(page: StatusPage, planned: str, expected: str) -> Finding:
    found = status_page.maintenance(page, planned)
    measured = {
        "maintenance": planned,
        "status": found.status,
        "begins": show(found.begins) if found.begins else "not said",
        "ends": show(found.ends) if found.ends else "not said",
    }
    if found.status == expected:
        return passed(measured)
    return Finding(
        Verdict.INCONCLUSIVE, measured, f"set it to {expected} on the status page, or find out who changed it"
    )


# -- 1 hour before ----------------------------------------------------------------------------------------------


def support_standby(_context: Context, release: Release) -> Finding:
    """Support says so."""
    asked = release.request
    window = f"{show(asked.window_from)} to {show(asked.window_to)}"
    return _asks("support_standby", {"window": window, "version": asked.version, "reason": asked.reason})


# -- after ------------------------------------------------------------------------------------------------------


def features_confirmed(_context: Context, release: Release) -> Finding:
    """Support says so, with the order and the refund that were made before them."""
    smoke, health = _latest(release, "smoke"), _latest(release, "health")
    return _asks(
        "features_confirmed",
        {
            "order and refund": smoke.measured if smoke else "not tried",
            "health": health.measured if health else "not looked at",
        },
    )


def status_page_closed(_context: Context, release: Release) -> Finding:
    """The maintenance is completed, and read back."""
    page, told = connections.status_page(), _latest(release, "status_page")
    planned = told.measured.get("maintenance") if told else None
    if release.request.environment is Environment.STAGING or not planned:
        return passed({"maintenance": "none was announced"})
    if page is None:
        return _not_there("payme_status_page")
    status_page.update_incident(page, str(planned), status="completed", body="The update is over.")
    return _read_back(page, str(planned), "completed")
