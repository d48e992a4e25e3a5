"""`python -m payme_ops watchdog`: the rounds, and what of each domain they look at."""

import logging
import threading
from collections.abc import Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Annotated

import typer

from payme_ops.backup import freshness
from payme_ops.cli import doors, monitoring
from payme_ops.foundation import alert, lease, secret, settings
from payme_ops.foundation.alert import Alert, Capture, Severity
from payme_ops.foundation.clock import utc_now
from payme_ops.foundation.errors import SettingsError
from payme_ops.foundation.evidence import Evidence, Verdict, plain
from payme_ops.foundation.payme_api import PaymeApi
from payme_ops.foundation.settings import Profile, Settings
from payme_ops.foundation.slack import Slack
from payme_ops.monitoring import airflow_health, last_looks
from payme_ops.monitoring import watchdog as watching
from payme_ops.monitoring.watchdog import Round, Sign, Silences
from payme_ops.release import orders
from payme_ops.release.orders import Expired

_SLACK_SECONDS = 10
_SENTRY_SECONDS = 5.0
# A region may be away for some minutes; a target that is missed is told at once.
_PATIENCE_UNKNOWN = timedelta(minutes=15)
_WHO = "watchdog"
_PAGE = "Runbook: docs/watchdog.md"


def watchdog(
    *, heartbeat_file: Annotated[Path | None, typer.Option(help="A file that each heartbeat touches, too.")] = None
) -> None:
    """Look at Airflow and the backups until stopped; tell what went silent or unanswered, send what was not sent."""
    logging.basicConfig(format="%(asctime)s %(levelname)s %(message)s")
    logging.getLogger("payme_ops").setLevel(logging.INFO)
    config = settings.load()
    slack, url = _slack(config), _airflow_url(config)
    heartbeat, hears = _heartbeat(config, heartbeat_file), sentry_hears(config.watchdog.sentry_dsn_file, config.profile)

    def silences() -> Silences:  # each round its own: they run in threads
        return Silences(doors.OPS, slack, config.alert.owner)

    airflow, alerts, backups, stopped, looks = (silences() for _ in range(5))
    half_a_minute, apis, known = timedelta(seconds=30), _apis(config), monitoring.airflow(config)
    endpoints, begun = list(config.monitoring.endpoints), utc_now()
    rounds = [
        Round("airflow", half_a_minute, lambda: airflow.take(airflow_health.look(url))),
        Round("alerts", half_a_minute, lambda: alerts.take(watching.resend(doors.OPS, slack, hears))),
        Round("freshness", timedelta(minutes=5), lambda: backups.take(_freshness(config, url))),
        Round("reminders", half_a_minute, lambda: watching.remind(doors.OPS, slack, config.alert.owner)),
        Round(
            "looks",
            timedelta(seconds=15),
            lambda: looks.take([last_looks.look(doors.OPS, endpoints, known, begun, utc_now())]),
        ),
        Round("orders", timedelta(seconds=15), lambda: take_orders_again(doors.OPS, apis, stopped, slack, config)),
        Round("tokens", half_a_minute, lambda: renew_tokens(slack, apis, config)),
    ]
    watching.run(rounds, heartbeat, threading.Event())


def renew_tokens(slack: Slack, apis: dict[str, PaymeApi], config: Settings) -> None:
    """Go on with the tokens of this moment. What cannot be read is raised, and the rounds go on with those they have:
    the watchdog is the last one left.
    """
    slack.client.token = _slack_token(config)
    apis.update(_apis(config))


def take_orders_again(
    ops: str, apis: Mapping[str, PaymeApi], silences: Silences, slack: Slack, config: Settings
) -> None:
    """Where a release has stopped orders and nobody renewed that: take them again, and tell people.

    Raises Unavailable when nobody could be told, DatabaseUnavailable.
    """
    done = orders.resume_expired(ops, apis, _WHO, config.release.test_merchant)
    for one in done:
        if not one.error:
            alert.raise_alert(ops, _taken_again(one, config.alert.owner), slack)
    tried = {one.environment for one in done}
    # Between two tries the term is ours and alive: no news is no good news then.
    quiet = [name for name in apis if name not in tried and lease.living_term(ops, f"{orders.PREFIX}{name}") is None]
    silences.take([*map(_stopped, done), *(_stopped(Expired(name, "", "", "")) for name in quiet)])


def _taken_again(one: Expired, owner: str) -> Alert:
    return Alert(
        key=f"orders:{one.environment}",
        occurrence=f"{one.holder}/{one.since}",
        severity=Severity.CRITICAL,
        what=f"The watchdog has orders taken again in {one.environment}",
        why=f"{one.holder} stopped them at {one.since} and was not heard of since. Orders are taken now.",
        since=utc_now(),
        next=f"See what became of that run; nothing may be deployed by it any more. {_PAGE}",
        owner=owner,
        runbook="",
        link="",
    )


def _stopped(one: Expired) -> Sign:
    return Sign(
        item=f"orders_{one.environment}",
        silent=bool(one.error),
        what=f"Orders are stopped in {one.environment}, and cannot be taken again",
        why=f"{one.holder}, since {one.since}: {one.error}" if one.error else "orders are taken",
        next=f"Take them again at the API (/admin/orders/resume); it is tried every half minute. {_PAGE}",
    )


def _apis(config: Settings) -> dict[str, PaymeApi]:
    """The API of each environment that the watchdog was told of."""
    doors_of = {
        "production": (config.watchdog.api_url, config.watchdog.api_token_file, "API"),
        "staging": (config.watchdog.staging_api_url, config.watchdog.staging_api_token_file, "STAGING_API"),
    }
    return {
        name: PaymeApi(url, _token(file, f"PAYME_OPS__WATCHDOG__{variable}_TOKEN_FILE"))
        for name, (url, file, variable) in doors_of.items()
        if url
    }


def _freshness(config: Settings, url: str) -> list[Sign]:
    where = doors.catalogue("payme_s3_restore")
    return signs(freshness.measure(where, config.targets, utc_now(), actor="watchdog", desk=config.desk), url)


def signs(found: Sequence[Evidence], url: str) -> list[Sign]:
    """Freshness as signs: one for each target, and one for all that could not be looked at."""
    unknown = [item for item in found if item.verdict is Verdict.INCONCLUSIVE]
    known = [_target(item, url) for item in found if item.verdict is not Verdict.INCONCLUSIVE]
    words = [f"{item.item}: {plain(item.measured)}" for item in unknown] or ["every target can be looked at"]
    return [
        *known,
        Sign(
            item="freshness",
            silent=bool(unknown),
            what="Nobody can tell how fresh the backups are",
            why="\n".join(words),
            next="See whether S3 answers: `python -m payme_ops backup status`. Runbook: docs/watchdog.md",
            severity=Severity.WARNING,
            patience=_PATIENCE_UNKNOWN,
        ),
    ]


def _target(item: Evidence, url: str) -> Sign:
    dag = freshness.DAGS[item.item]
    more = {name: value for name, value in item.measured.items() if name != "is"}
    return Sign(
        item=item.item,
        silent=item.verdict is Verdict.FAIL,
        what=f"Backup target missed: {item.item.replace('_', ' ')}",
        why=f"{item.measured.get('is', 'not known')}, expected {item.threshold}\n{plain(more)}".strip(),
        next=f"{item.remedy}. Is {dag} paused? Runbook: docs/runbooks/{dag}.md",
        severity=Severity.CRITICAL if item.item == "daily_age" else Severity.WARNING,
        page=f"{url}/dags/{dag}",
    )


def sentry_hears(dsn_file: Path | None, environment: str) -> Capture | None:
    """What tells Sentry of an alert that Slack does not take; None where no DSN is named. Raises SettingsError."""
    if dsn_file is None:
        return None
    import sentry_sdk
    from sentry_sdk.transport import HttpTransport

    dropped: list[str] = []

    class Noting(HttpTransport):
        def on_dropped_event(self, reason: str) -> None:
            dropped.append(reason)

    dsn = _token(dsn_file, "PAYME_OPS__WATCHDOG__SENTRY_DSN_FILE")
    # An alert is scrubbed; what the SDK would add of this process is not.
    client = sentry_sdk.Client(
        dsn, default_integrations=False, environment=environment, max_breadcrumbs=0, transport=Noting
    )

    def capture(told: Alert) -> str | None:
        dropped.clear()
        event_id = client.capture_event(
            {
                "message": f"Slack did not take: {told.what}: {told.why}",
                "level": "error",
                "tags": {"owner": told.owner, "alert": told.key},
                "fingerprint": ["alert not sent", told.key],
            }
        )
        client.flush(timeout=_SENTRY_SECONDS)
        return None if dropped else event_id  # the SDK gives what it could not send an id, too

    return capture


def _slack(config: Settings) -> Slack:
    from slack_sdk import WebClient

    return Slack(
        WebClient(_slack_token(config), base_url=config.slack.api_url, timeout=_SLACK_SECONDS), config.slack.channel
    )


def _slack_token(config: Settings) -> str:
    return _token(config.slack.token_file, "PAYME_OPS__SLACK__TOKEN_FILE")


def _token(place: Path | None, variable: str) -> str:
    token = secret.text(place)
    if not token:
        raise _missing(variable, f"{place}: no such file, or an empty one" if place else "no token")
    return token


def _airflow_url(config: Settings) -> str:
    if not config.watchdog.airflow_url:
        raise _missing("PAYME_OPS__WATCHDOG__AIRFLOW_URL", "no address")
    return config.watchdog.airflow_url


def _heartbeat(config: Settings, file: Path | None) -> Round:
    url = config.watchdog.heartbeat_url
    if not url and config.profile is Profile.PRODUCTION:
        raise _missing("PAYME_OPS__WATCHDOG__HEARTBEAT_URL", "no address: nobody would notice the watchdog's death")

    def beat() -> None:
        if file:
            file.touch()  # first: the monitor elsewhere may be away
        if url:
            watching.ping(url)

    return Round("heartbeat", timedelta(seconds=30), beat)


def _missing(variable: str, found: str) -> SettingsError:
    return SettingsError(
        "the watchdog cannot start",
        expected=variable,
        found=found,
        remedy="set it (docs/watchdog.md); .env.example explains it",
    )
