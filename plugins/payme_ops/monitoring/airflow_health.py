"""Whether Airflow lives: what its API server says of itself, of the database and of its three loops."""

from datetime import UTC, datetime
from typing import Any

from payme_ops.foundation import http
from payme_ops.foundation.clock import show
from payme_ops.foundation.errors import Unavailable
from payme_ops.monitoring.watchdog import PATIENCE, Sign

_PATH = "/api/v2/monitor/health"
# What stands still without it.
_MEANS = {
    "scheduler": "no run begins and no task is started: no backup is taken",
    "dag_processor": "DAG files are not read, and failed runs whose task was killed are not told",
    "triggerer": "tasks that wait for something else do not go on",
}


def look(url: str) -> list[Sign]:
    """One sign each for the API server, the metadata database and the three loops.

    When one of the first two is silent nothing can be said of what comes after it, and nothing is.
    """
    try:
        answer = http.call("Airflow", "GET", f"{url}{_PATH}")
    except Unavailable as error:
        return [_api_server(silent=True, why=error.found)]
    if answer.status != 200 or "metadatabase" not in answer.body:
        return [_api_server(silent=True, why=f"status {answer.status} and no health")]
    signs = [_api_server(silent=False, why="it answers"), _metadatabase(answer.body)]
    if not signs[-1].silent:
        signs += [_loop(name, answer.body) for name in _MEANS]
    return signs


def _api_server(*, silent: bool, why: str) -> Sign:
    return _sign("api_server", silent, why, "nobody can look at runs or answer questions, and tasks cannot report")


def _metadatabase(health: dict[str, Any]) -> Sign:
    status = _part(health, "metadatabase").get("status")
    return _sign("metadatabase", status != "healthy", f"status {status}", "nothing runs")


def _loop(name: str, health: dict[str, Any]) -> Sign:
    part = _part(health, name)
    status, beat = part.get("status"), _instant(part.get(f"latest_{name}_heartbeat"))
    why = f"status {status}, last heartbeat {show(beat) if beat else 'never'}"
    return _sign(name, status != "healthy", why, _MEANS[name], beat)


def _sign(name: str, silent: bool, why: str, means: str, since: datetime | None = None) -> Sign:
    title = name.replace("_", " ").replace("dag", "DAG").replace("api", "API")
    return Sign(
        item=f"airflow_{name}",
        silent=silent,
        what=f"Airflow's {title} is silent",
        why=why,
        next=f"Start it again; until then {means}. Runbook: docs/watchdog.md",
        since=since if silent else None,
        patience=PATIENCE,
    )


def _part(health: dict[str, Any], name: str) -> dict[str, Any]:
    part = health.get(name)
    return part if isinstance(part, dict) else {}


def _instant(text: object) -> datetime | None:
    try:
        found = datetime.fromisoformat(str(text))
    except ValueError:
        return None
    return found if found.tzinfo else found.replace(tzinfo=UTC)
