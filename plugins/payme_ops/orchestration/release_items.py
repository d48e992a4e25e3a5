"""What each item of a release's checklist measures: from connections to the functions of the domains.

A function is named as its item; payme_ops.orchestration.release.measure calls it. Where a connection is not there, its
item becomes a question to a person.
"""

import logging
from collections.abc import Callable
from datetime import timedelta
from typing import Any

from airflow.sdk import Context

from payme_ops.foundation import evidence, lease, secret, status_page
from payme_ops.foundation import settings as config
from payme_ops.foundation.clock import show
from payme_ops.foundation.errors import GateClosed, NotFound, Unavailable
from payme_ops.foundation.evidence import Evidence, Finding, Verdict, passed
from payme_ops.foundation.lease import Term
from payme_ops.foundation.payme_api import PaymeApi
from payme_ops.foundation.status_page import StatusPage
from payme_ops.orchestration import connections
from payme_ops.orchestration.connections import ops_db
from payme_ops.orchestration.release_backups import backup_scheduled, migrations_tested
from payme_ops.orchestration.release_people import bypasses, team_notified
from payme_ops.release import app_env, code_host, orders
from payme_ops.release import autoscaling as scaling
from payme_ops.release import deploy as deploys
from payme_ops.release import smoke as smokes
from payme_ops.release.checklist import ITEMS
from payme_ops.release.code_host import CodeHost
from payme_ops.release.deploy import Doors
from payme_ops.release.request import Environment, Release

_log = logging.getLogger("payme_ops.release")

_WARNING = "We are updating PayMe. Orders may fail for some minutes; please try again after that."
_OUTAGE = (
    "We update PayMe in this time. New orders stop for some minutes; orders that were placed before are carried out."
)


def _that_says(release: Release, item: str, name: str) -> Evidence | None:
    """The newest evidence of the item that has that figure: one of a try in vain has not."""
    found = [one for one in evidence.of_run(ops_db(), release.run) if one.item == item]
    return next((one for one in reversed(found) if isinstance(one.measured, dict) and name in one.measured), None)


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
    staging = evidence.find(ops_db(), release.run, "staging_healthy")
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
    plan = evidence.find(ops_db(), release.run, "rollback_plan")
    return _asks(
        "rollback_plan_agreed",
        {
            "plan": plan.measured if plan else "not looked at",
            "back to": release.request.previous_commit,
            "carries a migration": release.request.carries_migration,
        },
    )


def application_environment(_context: Context, release: Release) -> Finding:
    """The application's variables, as AWS Secrets Manager has them, are complete and can be meant."""
    environment = release.request.environment
    client, name = connections.secrets_manager(), f"payme/{environment}/secrets"
    if client is None:
        return _not_there("payme_secrets")
    values = app_env.read_secret(secret.fetch(lambda: client, name, "the connection payme_secrets"))
    return app_env.examine(values, environment, f"secret {name}")


def status_page_item(_context: Context, release: Release) -> Finding:
    """The maintenance is announced to users, once, and read back."""
    page, asked = connections.status_page(), release.request
    if asked.environment is Environment.STAGING:
        return passed({"maintenance": "none: users do not see staging"})
    if page is None:
        return _not_there("payme_status_page")
    lead = timedelta(minutes=config.load().release.lead_minutes)  # orders may be stopped from then on
    window = {"begins": asked.window_from - lead, "ends": asked.window_to}
    planned = _planned(release) or status_page.schedule_maintenance(
        page, name=f"PayMe {asked.version}", body=_OUTAGE, **window
    )
    return _read_back(page, planned, "scheduled", "in_progress")


def _read_back(page: StatusPage, planned: str, *expected: str) -> Finding:
    found = status_page.maintenance(page, planned)
    measured = {
        "maintenance": planned,
        "status": found.status,
        "begins": show(found.begins) if found.begins else "not said",
        "ends": show(found.ends) if found.ends else "not said",
    }
    if found.status in expected:
        return passed(measured)
    return Finding(
        Verdict.INCONCLUSIVE, measured, f"set it to {expected[0]} on the status page, or find out who changed it"
    )


# -- 1 hour before ----------------------------------------------------------------------------------------------


def support_standby(_context: Context, release: Release) -> Finding:
    """Support says so."""
    asked = release.request
    window = f"{show(asked.window_from)} to {show(asked.window_to)}"
    return _asks("support_standby", {"window": window, "version": asked.version, "reason": asked.reason})


def autoscaling(_context: Context, release: Release) -> Finding:
    """The limits kept, before anything is changed; the number fixed, read back."""
    api, before = _api(release), _that_says(release, scaling.LIMITS, "minimum")
    if before is None and (found := scaling.limits(api)):
        before = evidence.keep(
            ops_db(), release.run, scaling.LIMITS, passed(found), threshold="as found", source="the PayMe API"
        )
    return scaling.fix(api, before)


def freeze_orders(_context: Context, release: Release) -> Finding:
    """Orders are stopped; where the API cannot do that, users are warned on the status page."""
    found = orders.freeze(ops_db(), release, _api(release), config.load().release)
    if found.measured == orders.NOT_STOPPED:
        return Finding(found.verdict, {**found.measured, "users warned": _warn(release)}, found.remedy)
    return found


def _warn(release: Release) -> str:
    page, planned = connections.status_page(), _planned(release)
    if page is None or not planned:
        return "no: nothing was announced"
    status_page.update_incident(page, planned, status="in_progress", body=_WARNING)
    return f"yes, in {planned}"


# -- during -----------------------------------------------------------------------------------------------------


def deploy(_context: Context, release: Release) -> Finding:
    """Posted once, and read back."""
    settings = config.load().release
    return deploys.deploy(ops_db(), release, _doors(release), settings, _fenced(release), _log.info)


def _fenced(release: Release) -> list[Term]:
    """The terms that have to be ours right before the POST.

    Raises LeaseLost; NotFound, GateClosed without a try to stop orders and a backup after it, whatever was marked as
    success.
    """
    terms = [_release_term(release)]
    if deploys.was_posted(ops_db(), release):
        return terms
    frozen = evidence.latest(ops_db(), release.run, "freeze_orders")
    backup = evidence.latest(ops_db(), release.run, "final_backup")
    if backup.verdict is not Verdict.PASS or backup.ended < frozen.ended:
        raise GateClosed(
            "there is no final backup",
            expected="one after orders were stopped, or were tried to be",
            found=f"{backup.verdict} at {show(backup.ended)}, orders {show(frozen.ended)}",
            remedy="clear freeze_orders and what comes after it",
        )
    if orders.are_stopped(frozen):
        terms.append(orders.require_frozen(ops_db(), release))
    return terms


def _release_term(release: Release) -> Term:
    found = lease.living_term(ops_db(), release.lease)
    if found is None or found.holder != release.run:
        raise Unavailable(f"lease {release.lease} is not ours", remedy="it is taken again with the next try")
    return found


def smoke(_context: Context, release: Release) -> Finding:
    """An order of the test merchant and its refund."""
    api = _api(release)
    return (
        smokes.smoke(release, api, config.load().release)
        if api
        else _not_there(connections.named("payme_api", release.request.environment))
    )


def rollback(_context: Context, release: Release) -> Finding:
    """The previous commit runs, and is healthy."""
    settings, doors = config.load().release, _doors(release)
    terms, migrations = [_release_term(release)], evidence.find(ops_db(), release.run, "migrations_tested")
    found = deploys.roll_back(ops_db(), release, doors, settings, terms, migrations, _log.info)
    if found.verdict is Verdict.PASS and (wrong := smokes.healthy_in_a_row(doors.asks)):
        return Finding(Verdict.FAIL, {**found.measured, **wrong}, "the previous commit is not well either: look now")
    return found


def resume_orders(_context: Context, release: Release) -> Finding:
    """Orders are taken again."""
    return orders.resume(ops_db(), release, _api(release), config.load().release)


def autoscaling_restored(_context: Context, release: Release) -> Finding:
    """The limits from before."""
    return scaling.restore(_api(release), _that_says(release, scaling.LIMITS, "minimum"))


def _api(release: Release) -> PaymeApi | None:
    return connections.payme_api(release.request.environment)


def _doors(release: Release) -> Doors:
    asks, deploys_ = _api(release), connections.deploy_api(release.request.environment)
    if asks is None or deploys_ is None:
        missing = connections.named("payme_api" if asks is None else "payme_deploy", release.request.environment)
        raise NotFound(
            "nobody has told us where to deploy",
            expected=f"connection {missing}",
            found="none",
            remedy="add it (docs/first-run.md), then clear this task",
        )
    return Doors(asks, deploys_)


# -- after ------------------------------------------------------------------------------------------------------


def features_confirmed(_context: Context, release: Release) -> Finding:
    """Support says so, with the order and the refund that were made before them."""
    smoke, health = (
        evidence.find(ops_db(), release.run, "smoke"),
        evidence.find(ops_db(), release.run, "health"),
    )
    return _asks(
        "features_confirmed",
        {
            "order and refund": smoke.measured if smoke else "not tried",
            "health": health.measured if health else "not looked at",
        },
    )


def status_page_closed(_context: Context, release: Release) -> Finding:
    """The maintenance is completed, and read back."""
    page, planned = connections.status_page(), _planned(release)
    if not planned:
        return passed({"maintenance": "none was announced"})
    if page is None:
        return _not_there("payme_status_page")
    status_page.update_incident(page, planned, status="completed", body="The update is over.")
    return _read_back(page, planned, "completed")


def _planned(release: Release) -> str:
    """The announced maintenance; "" when there is none."""
    told = _that_says(release, "status_page", "maintenance")
    return str(told.measured["maintenance"]) if told and release.request.environment is Environment.PRODUCTION else ""


FUNCTIONS: dict[str, Callable[[Context, Release], Finding]] = {
    "code_review": code_review,
    "tests_passing": tests_passing,
    "qa_sign_off": qa_sign_off,
    "migrations_tested": migrations_tested,
    "backup_scheduled": backup_scheduled,
    "rollback_plan": rollback_plan,
    "rollback_plan_agreed": rollback_plan_agreed,
    "application_environment": application_environment,
    "team_notified": team_notified,
    "status_page": status_page_item,
    "support_standby": support_standby,
    "bypasses": bypasses,
    "autoscaling": autoscaling,
    "freeze_orders": freeze_orders,
    "deploy": deploy,
    "smoke": smoke,
    "resume_orders": resume_orders,
    "autoscaling_restored": autoscaling_restored,
    "features_confirmed": features_confirmed,
    "rollback": rollback,
    "status_page_closed": status_page_closed,
}
