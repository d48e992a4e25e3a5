"""`python -m payme_ops doctor`: everything that this machine can ask of the desk, and what to do about what is red.

Asked is only what this machine has a door to: a libpq service, an AWS profile, a setting (docs/doctor.md). What it has
none to is named in the item `doors`, and is not red. What hangs on something red is not asked.
"""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import boto3
import typer

from payme_ops.backup import kms, preflight
from payme_ops.cli import airflow_secrets, doors, env, kept_connections, monitoring, sentry
from payme_ops.cli.backup import AsJson
from payme_ops.cli.kept_connections import Part
from payme_ops.cli.tables import evidence_json, evidence_lines, evidence_table
from payme_ops.foundation import alert, roles, secret, settings
from payme_ops.foundation.airflow_api import AirflowApi
from payme_ops.foundation.errors import SettingsError
from payme_ops.foundation.evidence import Check, Evidence, Finding, Verdict, passed, run_check, run_in_turn
from payme_ops.foundation.payme_api import PaymeApi
from payme_ops.foundation.settings import Settings
from payme_ops.migration.names import PHONE_NUMBER
from payme_ops.monitoring import airflow_desk, sentry_access, slack_access
from payme_ops.release import conformance
from payme_ops.release.conformance import Subject

_SLACK_SECONDS = 10
_BASIC = ("payme_db_read", "payme_ops_db", "payme_s3_write")


def doctor(
    *,
    part: Annotated[
        Part | None, typer.Option(help="What runs on this machine: its connections have to be there.")
    ] = None,
    api: Annotated[bool, typer.Option("--api", help="Ask the PayMe API, too, changing nothing.")] = False,
    api_all: Annotated[
        bool, typer.Option("--api-all", help="The same; and stop and start staging's, and try its orders.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Run every check of the desk and say what to do about what is red. Exit code 3 when something is, 6 when nothing
    is but something could not be asked.
    """
    found = examine(settings.load(), doors.run_name(), part=part, api=api or api_all, api_all=api_all)
    if as_json:
        typer.echo(json.dumps([evidence_json(item) for item in found], indent=1))
    elif doors.out.is_terminal:
        doors.out.print(evidence_table("doctor", found))
    else:
        typer.echo(evidence_lines(found))
    if code := exit_code(found):
        raise typer.Exit(code)


def exit_code(found: list[Evidence]) -> int:
    """The worst of it."""
    verdicts = {item.verdict for item in found}
    if Verdict.FAIL in verdicts:
        return 3
    return 6 if verdicts != {Verdict.PASS} else 0


def examine(
    config: Settings, actor: str, *, part: Part | None = None, api: bool = False, api_all: bool = False
) -> list[Evidence]:
    """All that this machine can ask, in the order in which a person would look."""
    known = _doors(config)
    found = [
        run_check(Check("doors", "those of a backup are here", "this machine", lambda: _at_hand(known)), actor=actor)
    ]
    for name, ask in _asked(config, actor):
        if known[name]:
            found += ask()
    airflow = _airflow(config, actor) if known["airflow"] else []
    # Where Airflow does not answer, or not to this account, there is nothing to be asked of it.
    answers = airflow[-1].item not in ("airflow_health", "airflow_login") if airflow else True
    found += airflow
    found += monitoring.of_doctor(config, actor, ask_airflow=answers)
    found += env.of_doctor(config.profile, actor) + airflow_secrets.of_doctor(actor)
    found += kept_connections.of_doctor(part, actor)
    return found + (_api(config, actor, change_staging=api_all) if api else [])


def _doors(config: Settings) -> dict[str, bool]:
    """What there may be a door to, and whether this machine has it."""
    dsn = os.environ.get("AIRFLOW__SENTRY__SENTRY_DSN") or config.watchdog.sentry_dsn_file
    services = ("payme_db_read", "payme_ops_db", "payme_db_restore", "payme_db_migrate")
    return {
        **{name: doors.has_service(name) for name in services},
        "payme_s3_write": (writes := doors.has_profile("payme_s3_write")),
        "kms": writes and bool(config.backup.kms_key_id),
        "slack": config.slack.token_file is not None,
        "sentry_dsn": bool(dsn),
        "sentry": config.sentry.token_file is not None,
        "airflow": bool(config.watchdog.airflow_url),
    }


def _at_hand(known: dict[str, bool]) -> Finding:
    measured = {"here": [name for name in known if known[name]], "not here": [n for n in known if not known[n]]}
    missing = [name for name in _BASIC if not known[name]]
    if missing:
        remedy = (
            f"on a machine that makes backups add {', '.join(missing)} (docs/first-run.md); elsewhere this is right"
        )
        return Finding(Verdict.INCONCLUSIVE, measured, remedy)
    return passed(measured)


def _asked(config: Settings, actor: str) -> list[tuple[str, Callable[[], list[Evidence]]]]:
    """By door, what is asked through it. The checks of a backup need the bucket's; what is asked of the databases
    tells by itself when those are not here.
    """

    def one(check: Check) -> Callable[[], list[Evidence]]:
        return lambda: [run_check(check, actor=actor)]

    table = f"{PHONE_NUMBER.schema}.{PHONE_NUMBER.table}"
    restore = roles.restorer("service=payme_db_restore", config.backup.database)
    return [
        ("payme_s3_write", lambda: preflight.examine(doors.desk(), actor=actor, for_run=False)),
        ("payme_db_read", one(roles.reader("service=payme_db_read"))),
        ("payme_db_restore", one(restore)),
        ("payme_db_migrate", one(roles.migrator("service=payme_db_migrate", table))),
        ("payme_ops_db", one(roles.keeper(doors.OPS))),
        ("kms", lambda: _kms(config, actor)),
        ("slack", lambda: _slack(config, actor)),
        ("sentry_dsn", one(sentry_access.dsn_check(lambda: _dsns(config)))),
        ("sentry", lambda: _sentry(config, actor)),
    ]


def _kms(config: Settings, actor: str) -> list[Evidence]:
    region = config.backup.region

    def client() -> Any:
        return boto3.Session(profile_name="payme_s3_write", region_name=region).client("kms")

    return run_in_turn(kms.checks(client, doors.desk().placement, region), actor=actor)


def _slack(config: Settings, actor: str) -> list[Evidence]:
    from slack_sdk import WebClient

    def client() -> WebClient:
        token = _text(config.slack.token_file, "PAYME_OPS__SLACK__TOKEN_FILE")
        return WebClient(token, base_url=config.slack.api_url, timeout=_SLACK_SECONDS)

    channel = config.slack.channel
    return run_in_turn(slack_access.checks(client, channel, lambda: alert.channel_id(doors.OPS, channel)), actor=actor)


def _dsns(config: Settings) -> dict[str, str]:
    found = {"AIRFLOW__SENTRY__SENTRY_DSN": os.environ.get("AIRFLOW__SENTRY__SENTRY_DSN", "")}
    if file := config.watchdog.sentry_dsn_file:
        variable = "PAYME_OPS__WATCHDOG__SENTRY_DSN_FILE"
        found[variable] = _text(file, variable)
    return {variable: dsn for variable, dsn in found.items() if dsn}


def _sentry(config: Settings, actor: str) -> list[Evidence]:
    of = config.sentry
    projects = sentry.projects_of(of)
    checks = sentry_access.checks(lambda: sentry.api_of(of), projects, of.airflow_project, of.team_id)
    return run_in_turn(checks, actor=actor)


def _airflow(config: Settings, actor: str) -> list[Evidence]:
    def account() -> AirflowApi | None:
        return monitoring.airflow(config).api

    of = config.watchdog
    return airflow_desk.examine(of.airflow_url, account if of.airflow_login else None, actor=actor)


def _api(config: Settings, actor: str, *, change_staging: bool) -> list[Evidence]:
    """The contract, of each API that the settings name. Nothing is ever changed at production's."""
    of, places = config.watchdog, list[tuple[str, str, Path | None, str]]()
    if of.api_url:
        places.append(("production", of.api_url, of.api_token_file, "API"))
    if of.staging_api_url:
        places.append(("staging", of.staging_api_url, of.staging_api_token_file, "STAGING_API"))
    if not places:
        raise SettingsError(
            "there is no API to be asked",
            expected="PAYME_OPS__WATCHDOG__API_URL or PAYME_OPS__WATCHDOG__STAGING_API_URL",
            found="neither",
            remedy="set one of them with its token file, or leave --api out",
        )
    found: list[Evidence] = []
    for environment, url, file, variable in places:
        tokens: list[str] = []

        def token(file: Path | None = file, variable: str = variable, tokens: list[str] = tokens) -> Finding:
            tokens.append(_text(file, f"PAYME_OPS__WATCHDOG__{variable}_TOKEN_FILE"))
            return passed({"token": "there"})

        found.append(
            run_check(Check(f"api_{environment}_token", "the token for /admin", "settings", token), actor=actor)
        )
        if tokens:
            subject = Subject(PaymeApi(url, tokens[0]), None, config.release.test_merchant)
            found += _contract(subject, environment, actor, change=change_staging and environment == "staging")
    return found


def _contract(subject: Subject, environment: str, actor: str, *, change: bool) -> list[Evidence]:
    health, *others = conformance.reading(subject, environment)
    found = [run_check(health, actor=actor)]
    if found[0].verdict is Verdict.INCONCLUSIVE:  # it is away
        return found
    others += conformance.changing(subject, environment) if change else []
    return found + [run_check(check, actor=actor) for check in others]


def _text(place: Path | None, variable: str) -> str:
    """The token that lies there. Raises SettingsError."""
    found = secret.text(place)
    if not found:
        raise SettingsError(
            "a secret is not where the settings say",
            expected=variable,
            found=f"{place}: no such file, or an empty one",
            remedy=f"put it there, or correct {variable}",
        )
    return found
