"""A stand-in for the PayMe API: /health, /version, /metrics, stop and start as docs/payme-api-contract.md has them.

    PAYME_SANDBOX_API_TOKEN=… python -m sandbox.payme_api --port 8092 --state .demo/payme_api.json

While it is started it is the application: it writes to the database as payme_app, about twenty times a second.
Stopped, it has no session there, and its health says so. `GET /` shows what was done to it.
"""

import hmac
import html
import os
import threading
import time
from collections import Counter
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psycopg
from psycopg.conninfo import make_conninfo

from sandbox.payme_app.versions import V1, VERSIONS
from sandbox.payme_db import traffic
from sandbox.standin import Answer, Journal, Record, Refused, Request, Server, main, page

TOKEN_VARIABLE = "PAYME_SANDBOX_API_TOKEN"  # noqa: S105  # the name of a variable
OLDER = ("2.3.0", "2.3.1")  # they write as 2.4.0 does
STARTABLE = (*OLDER, *VERSIONS)
_PATHS = ("/health", "/version", "/metrics", "/admin/stop", "/admin/start")
_CONNECT_SECONDS = 3


class Application:
    """The application and what became of it; its state outlives a restart of this process."""

    def __init__(self, state: Path, conninfo: str) -> None:
        self.journal = Journal(state)
        self._conninfo = make_conninfo(conninfo, connect_timeout=_CONNECT_SECONDS)
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._traffic: threading.Thread | None = None
        self._since = 0.0
        self._counting = threading.Lock()  # not the one that is held while the traffic is waited for
        self._errors: Counter[str] = Counter()
        if not self.journal.records():
            self._note("first start", running=True, version=V1.number, previous=OLDER[-1])
        if self.state["running"]:
            self._work()

    @property
    def state(self) -> Record:
        """running, version, previous."""
        return self.journal.records()[-1]

    def stop(self) -> Record:
        """End its work and its sessions, unless that is done."""
        with self._lock:
            if self.state["running"]:
                self.rest()
                self._note("stopped", running=False)
            return self.state

    def start(self, version: str) -> Record:
        """Work as that version; what ran before becomes `previous`."""
        with self._lock:
            now = self.state
            if now["running"] and now["version"] == version:
                return now
            self.rest()
            previous = now["previous"] if version == now["version"] else now["version"]
            self._note(f"started as {version}", running=True, version=version, previous=previous)
            self._work()
            return self.state

    def health(self) -> tuple[int, dict[str, object]]:
        """Status and body, as the real API's."""
        now = self.state
        told: dict[str, object] = {"timestamp": datetime.now(UTC).isoformat(), "version": now["version"]}
        if not now["running"]:
            return 503, {**told, "status": "stopped", "database": "disconnected"}
        try:
            program = f"payme-api/{now['version']}"
            with psycopg.connect(self._conninfo, application_name=program, autocommit=True) as connection:
                connection.execute("SELECT id FROM users LIMIT 1")
        except psycopg.Error as error:  # its message may quote rows
            self._count(error)
            return 503, {**told, "status": "unhealthy", "database": "disconnected", "error": error.sqlstate or "none"}
        return 200, {**told, "status": "healthy", "database": "connected", "uptime": time.monotonic() - self._since}

    def metrics(self) -> dict[str, object]:
        """What the process that runs tells of itself. Raises Refused when none does."""
        now = self.state
        if not now["running"]:
            raise Refused(503, {"error": "stopped"})
        with self._counting:
            errors = dict(self._errors)
        return {
            "uptime": time.monotonic() - self._since,
            "timestamp": datetime.now(UTC).isoformat(),
            "environment": "sandbox",
            "version": now["version"],
            "database": "connected",  # a constant in the real one, too
            "cache": "connected",
            "database_errors": errors,
        }

    def rest(self) -> None:
        """No session in the database any more."""
        self._stop.set()
        if self._traffic:
            self._traffic.join()
            self._traffic = None

    def _work(self) -> None:
        self._stop, self._since, self._errors = threading.Event(), time.monotonic(), Counter()
        version = VERSIONS.get(self.state["version"], V1)
        arguments = (self._conninfo, self._stop, version, self._failed)
        self._traffic = threading.Thread(target=traffic.run, args=arguments, daemon=True)
        self._traffic.start()

    def _failed(self, error: psycopg.Error) -> None:
        traffic.complain(error)
        self._count(error)

    def _count(self, error: psycopg.Error) -> None:
        with self._counting:
            self._errors[error.sqlstate or "none"] += 1

    def _note(self, what: str, **changed: Any) -> None:
        before = self.journal.records()[-1] if self.journal.records() else {}
        at = datetime.now(UTC).isoformat()
        self.journal.append(lambda: {**before, **changed, "what": what, "at": at})


class ApiServer(Server):
    """The API's server; with its end the application ends, too."""

    def __init__(self, port: int, application: Application, token: str) -> None:
        self.application = application
        super().__init__(
            port,
            lambda request: _route(application, token, request),
            lambda path: path in _PATHS,
            {"error": "told to fail"},
        )

    def server_close(self) -> None:
        """Let go of the database."""
        self.application.rest()
        super().server_close()


def make_server(port: int, state: Path) -> Server:
    """A server on 127.0.0.1 (port 0: any free one), not yet serving; its application works already."""
    return ApiServer(port, Application(state, "service=payme_app"), os.environ[TOKEN_VARIABLE])


def _route(application: Application, token: str, request: Request) -> Answer:
    match request.method, request.path:
        case "GET", "/":
            return page("PayMe API", _STYLE, _render(application))
        case "GET", "/health":
            status, body = application.health()
            return Answer(body, status)
        case "GET", "/version":
            return Answer(_told(application.state))
        case "GET", "/metrics":
            return Answer(application.metrics())
        case "POST", "/admin/stop":
            _authorise(request, token)
            return Answer(_told(application.stop()))
        case "POST", "/admin/start":
            _authorise(request, token)
            return Answer(_told(application.start(_version(request))))
    raise Refused(404, {"error": f"nothing at {request.method} {request.path}"})


def _told(state: Record) -> dict[str, object]:
    status = "started" if state["running"] else "stopped"
    return {"status": status, "version": state["version"], "previous": state["previous"]}


def _authorise(request: Request, token: str) -> None:
    given = request.headers.get("Authorization", "").removeprefix("Bearer ")
    if not given:
        raise Refused(401, {"error": "a bearer token is missing"})
    if not hmac.compare_digest(given.encode(), token.encode()):
        raise Refused(403, {"error": "this token may not do that"})


def _version(request: Request) -> str:
    try:
        body = request.json()
    except ValueError:
        body = None
    version = body.get("version") if isinstance(body, dict) else None
    if version not in STARTABLE:
        raise Refused(422, {"error": f"version must be one of {', '.join(STARTABLE)}"})
    return str(version)


def _render(application: Application) -> str:
    status, health = application.health()
    facts = "".join(f"<tr><th>{html.escape(k)}</th><td>{html.escape(str(v))}</td></tr>" for k, v in health.items())
    lines = "".join(
        f"<li><time>{html.escape(record['at'][:19])} UTC</time> {html.escape(record['what'])}</li>"
        for record in reversed(application.journal.records())
    )
    return (
        f'<h1><span class="{"good" if status == 200 else "bad"}"></span>PayMe API {html.escape(str(health["status"]))}'
        f'</h1><table>{facts}</table><h2>What was done to it</h2><ul>{lines}</ul><p class="note">Stand-in.</p>'
    )


_STYLE = """
body{margin:0 auto;max-width:46rem;padding:2rem 1rem;font:15px/1.5 system-ui,sans-serif;color:#1c2733}
h1{font-size:22px}h1 span{display:inline-block;width:14px;height:14px;border-radius:50%;margin-right:10px}
.good{background:#2da44e}.bad{background:#cf222e}table{border-collapse:collapse}th{text-align:left;color:#57606a;
font-weight:500}th,td{padding:4px 18px 4px 0}h2{font-size:16px;margin-top:26px}ul{list-style:none;padding:0}
time,.note{color:#6e7781;font-size:13px;margin-right:8px}
"""


if __name__ == "__main__":
    main("payme_api", make_server)
