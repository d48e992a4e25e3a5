"""Whether anybody still looks at the applications, and why not: whoever does not look cannot tell it.

What looks is a trigger of Airflow's triggerer, kept there by the DAG `incident` being unpaused, and what it sees is
kept in the ops database.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from payme_ops.foundation import airflow_api
from payme_ops.foundation.airflow_api import AirflowApi
from payme_ops.foundation.clock import show
from payme_ops.foundation.errors import DatabaseError, DatabaseUnavailable, PaymeOpsError
from payme_ops.foundation.postgres import connect, speaking
from payme_ops.foundation.sql import load
from payme_ops.monitoring import airflow_health
from payme_ops.monitoring.watchdog import PATIENCE, Sign

LONGEST = timedelta(minutes=2)
DAG = "incident"
_UNPAUSE = f"`airflow dags unpause {DAG}`"
_NEEDED = ("airflow_api_server", "airflow_metadatabase", "airflow_triggerer")


@dataclass(frozen=True)
class Airflow:
    """Where it is ("": not known), and an account that may see whether DAGs are paused, if there is one."""

    url: str
    api: AirflowApi | None


@dataclass(frozen=True)
class Cause:
    """Why nobody looks, as far as it can be told, and what to do."""

    why: str
    next: str


def newest(ops: str, subjects: Sequence[str]) -> dict[str, datetime | None]:
    """When each was looked at last; None: never. Raises DatabaseUnavailable, DatabaseError."""
    with connect(ops, application="payme_ops:last_looks") as session, speaking("read the newest looks"):
        rows = session.execute(load("monitoring/newest_looks.sql"), {"subjects": list(subjects)}).fetchall()
    return {row[0]: row[1] for row in rows}


def silent(found: Mapping[str, datetime | None], now: datetime) -> list[str]:
    """Those without a look for LONGEST."""
    return [name for name, at in found.items() if at is None or now - at > LONGEST]


def look(ops: str, subjects: Sequence[str], airflow: Airflow, begun: datetime, now: datetime) -> Sign:
    """One sign for all of them. `begun` is when the caller began to look: a start of everything at once is let pass."""
    if not subjects:
        return _sign(None, None, timedelta(0))  # an alert of when there were some is over
    try:
        found = newest(ops, subjects)
    except (DatabaseUnavailable, DatabaseError) as error:
        cause = Cause(
            f"what is seen of {', '.join(subjects)} cannot be stored or read: {error.what}", "Start the ops database"
        )
        return _sign(cause, None, PATIENCE)
    names = silent(found, now)
    if not names:
        return _sign(None, None, timedelta(0))
    last = [at for name in names if (at := found[name])]
    told = explain(found, names, airflow)
    return _sign(told, min(last, default=None), PATIENCE if now - begun < PATIENCE else timedelta(0))


def explain(found: Mapping[str, datetime | None], names: Sequence[str], airflow: Airflow) -> Cause:
    """Since when nobody looks at `names`, and why."""
    told = cause(airflow, others=[name for name in found if name not in names])
    return Cause(f"{told.why}\n{words(found, names)}", told.next)


def words(found: Mapping[str, datetime | None], names: Sequence[str]) -> str:
    """When each of `names` was looked at last."""
    return "; ".join(f"{name}: {f'last look {show(at)}' if (at := found[name]) else 'never a look'}" for name in names)


def cause(airflow: Airflow, others: Sequence[str]) -> Cause:
    """What Airflow says of the triggerer and of `incident`; `others` are looked at all the same."""
    if others:
        return Cause(
            f"{', '.join(others)} is looked at, so the triggerer lives",
            "Is it among PAYME_OPS__MONITORING__ENDPOINTS of the triggerer? Then read the triggerer's log",
        )
    if not airflow.url:
        return _by_hand("where Airflow is, is not known here", airflow)
    if away := [one.what for one in airflow_health.look(airflow.url) if one.silent and one.item in _NEEDED]:
        return Cause(f"{away[0]}; the triggerer is what looks", "Start it again; its own alert says more")
    if airflow.api is None:
        return _by_hand(f"the triggerer lives; whether {DAG} is paused is not known here", airflow)
    try:
        paused = airflow_api.is_paused(airflow_api.sign_in(airflow.api), DAG)
    except PaymeOpsError as error:
        return _by_hand(f"the triggerer lives; whether {DAG} is paused cannot be told ({error.what})", airflow)
    return of_dag(paused, airflow)


def of_dag(paused: bool | None, airflow: Airflow) -> Cause:
    """What it means that `incident` is paused, is not, or (None) is not there."""
    if paused:
        return Cause(
            f"{DAG} is paused, and a paused DAG loses what looks for it", f"Unpause it: {_page(airflow)} or {_UNPAUSE}"
        )
    if paused is None:
        return Cause(
            f"Airflow knows no DAG {DAG}", "See why its file is not read: import errors stand on Airflow's first page"
        )
    return Cause(
        f"the triggerer lives and {DAG} is not paused",
        "Read the triggerer's log: can it write to the ops database, and which PAYME_OPS__MONITORING__ENDPOINTS"
        " does it know? Start it again",
    )


def _by_hand(why: str, airflow: Airflow) -> Cause:
    return Cause(why, f"Is {DAG} paused? Look at {_page(airflow)}; then {_UNPAUSE}. Else read the triggerer's log")


def _page(airflow: Airflow) -> str:
    return f"{airflow.url}/dags/{DAG}" if airflow.url else f"the DAG {DAG} in Airflow"


def _sign(cause: Cause | None, since: datetime | None, patience: timedelta) -> Sign:
    return Sign(
        item="health_samples",
        silent=cause is not None,
        what="Nobody looks at the applications",
        why=cause.why if cause else "they are looked at",
        next=f"{cause.next if cause else ''}. An outage would not be told. Runbook: docs/watchdog.md",
        since=since,
        patience=patience,
    )
