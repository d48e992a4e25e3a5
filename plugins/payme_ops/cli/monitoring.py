"""`python -m payme_ops uptime`, and what doctor and the watchdog ask of the monitoring of the applications."""

import json
from datetime import timedelta
from pathlib import Path
from typing import Annotated

import typer

from payme_ops.cli import doors
from payme_ops.cli.backup import AsJson
from payme_ops.cli.tables import uptime_json, uptime_notes, uptime_table
from payme_ops.foundation import airflow_api, secret, settings
from payme_ops.foundation.airflow_api import AirflowApi
from payme_ops.foundation.clock import utc_now
from payme_ops.foundation.errors import SettingsError
from payme_ops.foundation.evidence import Check, Evidence, Finding, Verdict, failed, passed, run_check
from payme_ops.foundation.settings import Profile, Settings
from payme_ops.monitoring import last_looks
from payme_ops.monitoring import uptime as figures
from payme_ops.monitoring.last_looks import Airflow
from payme_ops.monitoring.uptime import Period

_DAYS, _MOST = 7, 400
_PASSWORD_FILE = "PAYME_OPS__WATCHDOG__AIRFLOW_PASSWORD_FILE"  # noqa: S105  # a variable's name


def uptime(
    subject: Annotated[str, typer.Argument(help="Name of an endpoint; without it all.")] = "",
    *,
    days: Annotated[
        int | None, typer.Option(min=1, max=_MOST, help=f"So many days, {_DAYS} if nothing is said.")
    ] = None,
    months: Annotated[int | None, typer.Option(min=1, max=_MOST, help="So many months instead.")] = None,
    as_json: AsJson = False,
) -> None:
    """How much of the time each application was well, how fast it answered, and when nobody looked; days are EAT's."""
    if days and months:
        raise SettingsError(
            "it is not said what to show", expected="--days or --months", found="both", remedy="leave one out"
        )
    config, now = settings.load().monitoring, utc_now()
    period, count = (Period.MONTH, months) if months else (Period.DAY, days or _DAYS)
    known = sorted({*config.endpoints, *figures.subjects(doors.OPS)})
    figures.require_known(subject, known)
    interval = timedelta(seconds=config.interval_seconds)
    names = [subject] if subject else known
    found = [figures.report(doors.OPS, name, period, count, interval, now) for name in names]
    if as_json:
        typer.echo(json.dumps([uptime_json(one) for one in found], indent=1))
        return
    for one in found:
        doors.out.print(uptime_table(one))
        doors.out.print(uptime_notes(one), markup=False, highlight=False)


def airflow(config: Settings) -> Airflow:
    """Where Airflow is, and the account of the settings. Raises SettingsError for half an account."""
    url, login, file = config.watchdog.airflow_url, config.watchdog.airflow_login, config.watchdog.airflow_password_file
    if not login:
        return Airflow(url, None)
    return Airflow(url, AirflowApi(url, login, _password(file)))


def _password(place: Path | None) -> str:
    password = secret.text(place)
    if not password:
        raise SettingsError(
            "Airflow cannot be asked what is paused",
            expected=_PASSWORD_FILE,
            found=f"{place}: no such file, or an empty one" if place else "no password",
            remedy="name a file with the password of PAYME_OPS__WATCHDOG__AIRFLOW_LOGIN, or remove that login",
        )
    return password


def of_doctor(config: Settings, actor: str, *, ask_airflow: bool = True) -> list[Evidence]:
    """For doctor: somebody is to be looked at, is, and what looks is not paused.

    A desk that looks at nobody is asked no more than whether that may be, and one without an account of Airflow's, or
    without an answer to `ask_airflow`, is not asked what is paused: fresh looks say that it is not.
    """
    endpoints, profile = list(config.monitoring.endpoints), config.profile
    checks = [
        Check(
            "monitored_endpoints",
            "an application to look at" if profile is Profile.PRODUCTION else "any number of applications to look at",
            "settings",
            lambda: _endpoints(endpoints, profile),
        )
    ]
    if endpoints:
        longest = f"each looked at in the last {last_looks.LONGEST.seconds // 60} minutes"
        checks.append(Check("last_look", longest, "ops database", lambda: _last_look(endpoints, config)))
    if endpoints and ask_airflow and config.watchdog.airflow_url and config.watchdog.airflow_login:
        checks.append(
            Check("incident_runs", "the DAG incident is there and not paused", "Airflow", lambda: _dag(config))
        )
    return [run_check(check, actor=actor) for check in checks]


def _endpoints(names: list[str], profile: Profile) -> Finding:
    if not names and profile is Profile.PRODUCTION:
        return failed({"endpoints": "none"}, "set PAYME_OPS__MONITORING__ENDPOINTS, for the triggerer too")
    return passed({"endpoints": ", ".join(names) or "none"})


def _last_look(names: list[str], config: Settings) -> Finding:
    now = utc_now()
    found = last_looks.newest(doors.OPS, names)
    late = last_looks.silent(found, now)
    if not late:
        return passed({"last looks": last_looks.words(found, names)})
    told = last_looks.explain(found, late, airflow(config))
    return failed({"not looked at": told.why}, told.next)


def _dag(config: Settings) -> Finding:
    known = airflow(config)
    if known.api is None:  # of_doctor does not ask then
        return Finding(Verdict.INCONCLUSIVE, {}, "set PAYME_OPS__WATCHDOG__AIRFLOW_LOGIN")
    paused = airflow_api.is_paused(airflow_api.sign_in(known.api), last_looks.DAG)
    if paused is False:
        return passed({"incident": "not paused"})
    told = last_looks.of_dag(paused, known)
    return failed({"incident": told.why}, told.next)
