"""What doctor asks of Airflow's API, as the real one answers it (tests/e2e/test_doctor.py asks that one)."""

from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from sandbox.standin import Answer, Refused, Request, Server

LOGIN, PASSWORD, _TOKEN = "auditor", "a-password", "a-token-of-airflow"
_LOOPS = ("metadatabase", "scheduler", "triggerer", "dag_processor")


@dataclass
class AirflowState:
    """An Airflow that is as it should be, until a test says otherwise."""

    silent: set[str] = field(default_factory=set)
    dags: dict[str, dict[str, Any]] = field(default_factory=dict)
    pools: dict[str, int] = field(default_factory=lambda: {"default_pool": 128})
    wanted: dict[str, int] = field(default_factory=lambda: {"default_pool": 1})
    connections: list[str] = field(default_factory=list)
    may_see_connections: bool = True
    broken_files: list[str] = field(default_factory=list)
    waiting: dict[str, timedelta] = field(default_factory=dict)

    def __post_init__(self) -> None:
        timed = ("backup_daily", "backup_weekly", "backup_monthly", "backup_restore_test", "desk_backup")
        self.dags |= {name: _dag(name, "0 2 * * *") for name in timed}
        self.dags |= {"incident": _dag("incident", "Asset"), "backup_restore": _dag("backup_restore", None)}

    def route(self, request: Request) -> Answer:
        """One answer."""
        if request.path == "/api/v2/monitor/health":
            return Answer({loop: self._health(loop) for loop in _LOOPS})
        if request.path == "/auth/token":
            if request.json() != {"username": LOGIN, "password": PASSWORD}:
                raise Refused(401, {"detail": "Invalid credentials"})
            return Answer({"access_token": _TOKEN}, 201)
        if request.headers.get("Authorization") != f"Bearer {_TOKEN}":
            raise Refused(401, {"detail": "Not authenticated"})
        return Answer(self._read(request.path.removeprefix("/api/v2/").split("/")))

    def _health(self, loop: str) -> dict[str, Any]:
        beat = datetime.now(UTC).isoformat()
        return {"status": "unhealthy" if loop in self.silent else "healthy", f"latest_{loop}_heartbeat": beat}

    def _read(self, path: list[str]) -> dict[str, Any]:
        match path:
            case ["dags"]:
                return {"dags": list(self.dags.values())}
            case ["dags", "~", "dagRuns", "~", "taskInstances"]:
                return {"task_instances": [self._waiting(queue, time) for queue, time in self.waiting.items()]}
            case ["dags", dag] if dag in self.dags:
                return self.dags[dag]
            case ["dags", dag, "tasks"] if dag in self.dags:
                return {"tasks": [{"pool": pool, "pool_slots": slots} for pool, slots in self.wanted.items()]}
            case ["pools"]:
                return {"pools": [{"name": name, "slots": slots} for name, slots in self.pools.items()]}
            case ["importErrors"]:
                return {"import_errors": [{"filename": name} for name in self.broken_files]}
            case ["connections"] if not self.may_see_connections:
                raise Refused(403, {"detail": "Forbidden"})
            case ["connections"]:
                return {"connections": [{"connection_id": name} for name in self.connections]}
        raise Refused(404, {"detail": "not found"})

    def _waiting(self, queue: str, time: timedelta) -> dict[str, Any]:
        return {
            "dag_id": "backup_daily",
            "task_id": "dump",
            "queue": queue,
            "queued_when": (datetime.now(UTC) - time).isoformat(),
        }


def _dag(name: str, schedule: str | None) -> dict[str, Any]:
    return {"dag_id": name, "is_paused": False, "is_stale": False, "timetable_summary": schedule}


def make_server(state: AirflowState, port: int, _folder: Path) -> Server:
    """For `standins.served`."""
    return Server(port, state.route, lambda path: path.startswith("/api/v2/"), {"detail": "told to fail"})
