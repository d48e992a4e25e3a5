"""A stand-in for the PayMe API: an ASGI program that keeps docs/payme-api-contract.md.

    PAYME_SANDBOX_API_TOKEN=… python -m sandbox.payme_api --port 8092 --state .demo/payme_api.json

While it is started it is the application: it writes to the database as payme_app, about twenty times a second; with
PAYME_SANDBOX_API_QUIET=1 it does not, as staging. Stopped, it has no session there, and its health says so. `GET /`
shows what was done to it. It is Starlette on uvicorn, which come with Airflow.

`POST /control {"fault": "flapping"}` makes it misbehave (builds of sandbox/builds.py do by themselves): unhealthy,
flapping, slow, wrong_sha, redirect, stale, hang, too_many, echo_token, never_drains, freeze_ignored, stays_frozen,
no_orders, no_autoscaling, no_deploys; null ends it. `GET /control` counts what it was told.
"""

import asyncio
import contextlib
import hmac
import html
import os
import secrets
import socket
import threading
import time
from collections import Counter
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from email.message import Message
from email.utils import format_datetime
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl

import psycopg
import uvicorn
from psycopg.conninfo import make_conninfo
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request as HttpRequest
from starlette.responses import Response
from starlette.routing import Route

from sandbox.builds import BUILDS, BY_COMMIT, Build
from sandbox.payme_app import versions
from sandbox.payme_db import traffic
from sandbox.standin import Answer, Failing, Journal, Record, Refused, Request, main, page, to_bytes

TOKEN_VARIABLE = "PAYME_SANDBOX_API_TOKEN"  # noqa: S105  # the name of a variable
DEPLOY_TOKEN_VARIABLE = "PAYME_SANDBOX_DEPLOY_TOKEN"  # noqa: S105  # the name of a variable
QUIET_VARIABLE = "PAYME_SANDBOX_API_QUIET"
DATABASE_VARIABLE = "PAYME_SANDBOX_API_SERVICE"
TEST_MERCHANT = "test-merchant"
FAULTS = (
    *("unhealthy", "flapping", "slow", "wrong_sha", "redirect", "stale", "hang", "too_many", "echo_token"),
    *("never_drains", "freeze_ignored", "stays_frozen", "no_orders", "no_autoscaling", "no_deploys"),
)
_FIRST, _BEFORE = "2.4.0", "2.3.1"
_CONNECT_SECONDS, _HANG_SECONDS = 3, 60
_SLOW_MS = 4000.0


class Application:
    """The application and what became of it; its state outlives a restart of this process."""

    def __init__(self, state: Path, conninfo: str, *, quiet: bool = False, deploy_seconds: float = 1.0) -> None:
        self.journal = Journal(state)
        self.placed = Journal(state.with_suffix(".orders.jsonl"))
        self.deploy_seconds = deploy_seconds
        self.fault, self.fault_times = "", -1
        self.posts = 0
        self._quiet = quiet
        self._conninfo = make_conninfo(conninfo, connect_timeout=_CONNECT_SECONDS)
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._traffic: threading.Thread | None = None
        self._since = 0.0
        self._counting = threading.Lock()  # not the one that is held while the traffic is waited for
        self._errors: Counter[str] = Counter()
        self._asked = 0
        if not self.journal.records():
            self._note("first start", running=True, version=_FIRST, previous=_BEFORE)
        if self.state["running"]:
            self._work()

    @property
    def state(self) -> Record:
        """running, version, previous, and what was set since: frozen, minimum, maximum, deploys."""
        first = {"frozen": "", "minimum": 2, "maximum": 6, "deploys": {}, "build": "", "previous_build": ""}
        return {**first, **self.journal.records()[-1]}

    @property
    def build(self) -> Build:
        """What runs."""
        return _build(self.state, "build", "version")

    def stop(self) -> Record:
        """End its work and its sessions, unless that is done."""
        with self._lock:
            if self.state["running"]:
                self.rest()
                self._note("stopped", running=False)
            return self.state

    def start(self, version: str) -> Record:
        """Work as that version; what ran before becomes `previous`."""
        return self._start(BUILDS[version], f"started as {version}")

    def _start(self, build: Build, what: str, *, anew: bool = False, **changed: Any) -> Record:
        with self._lock:
            now, runs = self.state, self.build
            if now["running"] and runs == build and not anew:
                return now
            self.rest()
            if runs != build:
                changed |= {"previous": now["version"], "previous_build": runs.name}
            self._note(what, running=True, version=build.version, build=build.name, **changed)
            self._work()
            return self.state

    def health(self) -> tuple[int, dict[str, object]]:
        """Status and body, as the real API's."""
        now = self.state
        told: dict[str, object] = {
            "timestamp": datetime.now(UTC).isoformat(),
            "version": now["version"],
            "commit": self._commit(),
        }
        if not now["running"]:
            return 503, {**told, "status": "stopped", "database": "disconnected"}
        if not self._quiet:
            try:
                program = f"payme-api/{now['version']}"
                with psycopg.connect(self._conninfo, application_name=program, autocommit=True) as connection:
                    connection.execute("SELECT id FROM users LIMIT 1")
            except psycopg.Error as error:  # its message may quote rows
                self._count(error)
                code = error.sqlstate or "none"
                return 503, {**told, "status": "unhealthy", "database": "disconnected", "error": code}
        status = "unhealthy" if self.acts("unhealthy") else "healthy"
        return 200, {**told, "status": status, "database": "connected", "uptime": time.monotonic() - self._since}

    def metrics(self) -> dict[str, object]:
        """What the process that runs tells of itself. Raises Refused when none does."""
        now = self.state
        if not now["running"]:
            raise Refused(503, {"error": "stopped"})
        with self._counting:
            errors = dict(self._errors)
        p95 = _SLOW_MS if self.acts("slow") else 80.0
        return {
            "uptime": time.monotonic() - self._since,
            "timestamp": datetime.now(UTC).isoformat(),
            "environment": "sandbox",
            "version": now["version"],
            "database": "connected",  # a constant in the real one, too
            "cache": "connected",
            "database_errors": errors,
            "response_ms": {"p50": p95 / 4, "p95": p95, "p99": p95 * 1.5, "count": 1200},
        }

    def acts(self, fault: str) -> bool:
        """Whether it misbehaves so now: told to, or because of what runs."""
        if self.fault == fault:
            return True
        build = self.build
        if build.fault != fault or (build.with_traffic and self._quiet):
            return False
        return time.monotonic() - self._since >= build.after_seconds

    def takes_turn(self) -> bool:
        """Every other call."""
        self._asked += 1
        return self._asked % 2 == 1

    def version(self) -> dict[str, object]:
        """What runs, and what ran before."""
        now = self.state
        return {
            "version": now["version"],
            "previous": now["previous"],
            "commit": self._commit(),
            "previous_commit": _build(now, "previous_build", "previous").commit,
        }

    def _commit(self) -> str:
        return "f" * 40 if self.acts("wrong_sha") else self.build.commit

    # -- orders

    def freeze(self, release: str) -> None:
        """Refuse new orders."""
        with self._lock:
            if not self.state["frozen"]:
                self._note(f"orders stopped for {release}", frozen=release or "somebody")

    def resume(self) -> None:
        """Take them again."""
        with self._lock:
            if self.state["frozen"] and not self.acts("stays_frozen"):
                self._note("orders taken again", frozen="")

    def orders(self) -> dict[str, object]:
        """Frozen or not, and in flight."""
        return {"frozen": bool(self.state["frozen"]), "in_flight": 3 if self.acts("never_drains") else 0}

    def place(self, merchant: str, amount: int, reference: str, *, smoke: bool) -> tuple[int, dict[str, object]]:
        """An order of the test merchant; the same reference is the same order."""
        if merchant != TEST_MERCHANT:
            return 403, {"error": "not the test merchant"}
        if self.state["frozen"] and not smoke and not self.acts("freeze_ignored"):
            return 423, {"status": "frozen"}
        for order in self.placed.records():
            if order["reference"] == reference and "refund_of" not in order:
                return 200, self.order(order["id"])
        name = f"order-{secrets.token_hex(4)}"
        self.placed.append(lambda: {"id": name, "reference": reference, "amount": amount, "merchant": merchant})
        return 201, self.order(name)

    def order(self, name: str) -> dict[str, object]:
        """The order as it stands. Raises Refused when there is none."""
        records = self.placed.records()
        found = next((one for one in records if one["id"] == name), None)
        if found is None:
            raise Refused(404, {"error": "no such order"})
        refunded = any(one.get("refund_of") == name for one in records)
        return {**found, "status": "refunded" if refunded else "accepted"}

    def refund(self, name: str, reference: str) -> dict[str, object]:
        """Refund it, once."""
        self.order(name)
        for one in self.placed.records():
            if one.get("refund_of") == name:
                return one
        made = {"id": f"refund-{secrets.token_hex(4)}", "refund_of": name, "reference": reference, "status": "refunded"}
        return self.placed.append(lambda: made)

    # -- autoscaling and deploys

    def scale(self, minimum: int, maximum: int) -> None:
        """Set the limits."""
        with self._lock:
            if (self.state["minimum"], self.state["maximum"]) != (minimum, maximum):
                self._note(f"autoscaling from {minimum} to {maximum}", minimum=minimum, maximum=maximum)

    def deploy(self, commit: str, key: str) -> dict[str, object]:
        """Begin to bring that build up, unless the key was seen. Raises Refused for a commit that is none."""
        build = BY_COMMIT.get(commit)
        if build is None:
            raise Refused(422, {"error": "no build of that commit"})
        with self._lock:
            self.posts += 1
            deploys = self.state["deploys"]
            if key and key in deploys:
                return {"key": key, **deploys[key]}
            key = key or secrets.token_hex(8)
            self._note(
                f"deploy of {commit[:12]} begun", deploys={**deploys, key: {"commit": commit, "state": "running"}}
            )
        threading.Thread(target=self._bring_up, args=(build, key), daemon=True).start()
        return {"key": key, "commit": commit, "state": "accepted"}

    def _bring_up(self, build: Build, key: str) -> None:
        time.sleep(self.deploy_seconds)
        done = {**self.state["deploys"], key: {"commit": build.commit, "state": "done"}}
        self._start(build, f"deployed {build.commit[:12]} ({build.name})", anew=True, deploys=done)

    def counted(self) -> dict[str, object]:
        """What it was told so far."""
        orders = self.placed.records()
        return {
            "fault": self.fault or None,
            "deploy_seconds": self.deploy_seconds,
            "posts": self.posts,
            "deploys": len(self.state["deploys"]),
            "orders": sum("refund_of" not in one for one in orders),
            "refunds": sum("refund_of" in one for one in orders),
        }

    def rest(self) -> None:
        """No session in the database any more."""
        self._stop.set()
        if self._traffic:
            self._traffic.join()
            self._traffic = None

    def _work(self) -> None:
        self._stop, self._since, self._errors = threading.Event(), time.monotonic(), Counter()
        if self._quiet:
            return
        arguments = (self._conninfo, self._stop, versions.of(self.state["version"]), self._failed)
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


def _build(state: Record, name: str, version: str) -> Build:
    return BUILDS.get(state[name]) or BUILDS.get(state[version]) or BUILDS[_BEFORE]


class ApiServer:
    """Serves the application on 127.0.0.1 (port 0: any free one); with its end the application ends, too."""

    def __init__(self, port: int, application: Application, token: str, deploy_token: str = "") -> None:
        self.application, self.failing = application, Failing()
        self._token, self._deploy_token = token, deploy_token or token
        self._socket = socket.socket()
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._socket.bind(("127.0.0.1", port))
        self._socket.listen(128)  # who calls before `serve_forever` waits
        methods = ["GET", "POST", "PUT", "PATCH", "DELETE"]
        program = Starlette(routes=[Route("/{path:path}", self._serve, methods=methods)])
        config = uvicorn.Config(
            program, log_level="warning", lifespan="off", timeout_graceful_shutdown=1, date_header=False
        )
        self._server = uvicorn.Server(config)
        # Whoever started us sees to signals, and tests serve from a thread.
        self._server.capture_signals = _no_signals  # type: ignore[method-assign]

    @property
    def url(self) -> str:
        """Where it is."""
        return f"http://127.0.0.1:{self._socket.getsockname()[1]}"

    def serve_forever(self, poll_interval: float = 0.1) -> None:  # noqa: ARG002  # as http.server has it
        """Serve until `shutdown`."""
        self._server.run(sockets=[self._socket])

    def shutdown(self) -> None:
        """End `serve_forever`, from another thread."""
        self._server.should_exit = True

    def server_close(self) -> None:
        """Let go of port and database."""
        self._socket.close()
        self.application.rest()

    async def _serve(self, http: HttpRequest) -> Response:
        body = await http.body()
        headers = Message()
        for name, value in http.headers.items():
            headers[name] = value
        query = dict(parse_qsl(http.url.query))
        request = Request(http.method, http.url.path, query, headers, body)
        if request.path != "/control" and request.path != "/" and self.application.acts("hang"):
            await asyncio.sleep(_HANG_SECONDS)
        try:
            answer = await run_in_threadpool(self.answer, request)
        except Refused as refused:
            answer = Answer(refused.body, refused.status)
        data, kind = to_bytes(answer)
        more = {
            "Date": format_datetime(datetime.now(UTC), usegmt=True),
            "Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'",
            "Cache-Control": "no-store",
        }
        return Response(data, answer.status, {**more, **answer.headers, "Content-Type": kind})

    def answer(self, request: Request) -> Answer:
        """The answer to one request. Raises Refused."""
        if request.path == "/control":
            return self._control(request)
        if request.path == "/":
            return page("PayMe API", _STYLE, _render(self.application))
        if (status := self.failing.take()) is not None:
            return Answer({"error": "told to fail"}, status, headers={"Retry-After": "1"} if status == 429 else {})
        return self._misbehave(request) or _route(self.application, self._token, self._deploy_token, request)

    def _misbehave(self, request: Request) -> Answer | None:
        application = self.application
        if application.acts("redirect"):
            return Answer("", 301, headers={"Location": f"{self.url}/elsewhere"})
        if application.acts("too_many"):
            return Answer({"error": "too many"}, 429, headers={"Retry-After": "2"})
        if application.acts("echo_token"):
            return Answer({"error": f"denied: {request.headers.get('Authorization', '')}"}, 403)
        if request.path == "/health":
            if application.acts("flapping") and application.takes_turn():
                return Answer({"status": "unhealthy", "database": "disconnected"}, 503)
            if application.acts("stale"):
                status, body = application.health()
                old = datetime.now(UTC) - timedelta(minutes=10)
                dated = {"Age": "600", "Date": format_datetime(old, usegmt=True)}
                return Answer({**body, "timestamp": old.isoformat()}, status, headers=dated)
        return None

    def _control(self, request: Request) -> Answer:
        if request.method == "POST":
            asked = _object(request)
            if "fault" in asked:
                if asked["fault"] is not None and asked["fault"] not in FAULTS:
                    raise Refused(400, {"error": f"fault must be null or one of {', '.join(FAULTS)}"})
                self.application.fault = asked["fault"] or ""
            elif "deploy_seconds" in asked:
                self.application.deploy_seconds = float(asked["deploy_seconds"])
            else:
                self.failing.set(asked)
                return Answer({"fail": self.failing.status, "count": self.failing.count})
        return Answer(self.application.counted())


@contextlib.contextmanager
def _no_signals() -> Iterator[None]:
    yield


def make_server(port: int, state: Path) -> ApiServer:
    """A server on 127.0.0.1 (port 0: any free one), not yet serving; its application works already."""
    service = os.environ.get(DATABASE_VARIABLE, "payme_app")
    application = Application(state, f"service={service}", quiet=os.environ.get(QUIET_VARIABLE) == "1")
    return ApiServer(port, application, os.environ[TOKEN_VARIABLE], os.environ.get(DEPLOY_TOKEN_VARIABLE, ""))


def _route(application: Application, token: str, deploy_token: str, request: Request) -> Answer:
    path = request.path
    match request.method, path.split("/")[1:]:
        case "GET", ["health"]:
            status, body = application.health()
            return Answer(body, status)
        case "GET", ["version"]:
            return Answer({**_status(application.state), **application.version()})
        case "GET", ["metrics"]:
            return Answer(application.metrics())
        case "POST", ["deploy"]:
            _authorise(request, deploy_token)
            asked = dict(parse_qsl(request.body.decode(errors="replace")))
            key = request.headers.get("Idempotency-Key", "")
            return Answer(application.deploy(asked.get("commit", ""), key), 202)
        case "GET", ["deploys", key] if not application.acts("no_deploys"):
            _authorise(request, token)
            return Answer({"key": key, **application.state["deploys"].get(key, {"state": "unknown", "commit": ""})})
        case method, ["orders", *rest] if not application.acts("no_orders"):
            return _test_orders(application, token, method, rest, request)
        case method, ["admin", *verb]:
            _authorise(request, token)
            return _admin(application, method, verb, request)
    raise Refused(404, {"error": f"nothing at {request.method} {path}"})


def _admin(application: Application, method: str, verb: list[str], request: Request) -> Answer:
    match method, verb:
        case "POST", ["stop"]:
            return Answer(_told(application, application.stop()))
        case "POST", ["start"]:
            return Answer(_told(application, application.start(_version(request))))
        case _, ["orders", *rest] if not application.acts("no_orders"):
            return _orders(application, method, rest, request)
        case _, ["autoscaling"] if not application.acts("no_autoscaling"):
            return _autoscaling(application, method, request)
    raise Refused(404, {"error": "nothing there"})


def _orders(application: Application, method: str, verb: list[str], request: Request) -> Answer:
    match method, verb:
        case "GET", []:
            pass
        case "POST", ["freeze"]:
            application.freeze(str(_object(request).get("release", ""))[:100])
        case "POST", ["resume"]:
            application.resume()
        case _:
            raise Refused(404, {"error": "nothing there"})
    return Answer(application.orders())


def _autoscaling(application: Application, method: str, request: Request) -> Answer:
    if method == "POST":
        asked = _object(request)
        low, high = asked.get("minimum"), asked.get("maximum")
        if type(low) is not int or type(high) is not int or not 0 < low <= high <= 50:
            raise Refused(422, {"error": "minimum and maximum, from 1 to 50"})
        application.scale(low, high)
    now = application.state
    return Answer({"minimum": now["minimum"], "maximum": now["maximum"]})


def _test_orders(application: Application, token: str, method: str, rest: list[str], request: Request) -> Answer:
    match method, rest:
        case "POST", []:
            asked = _object(request)
            smoke = asked.get("smoke") is True
            if smoke:
                _authorise(request, token)
            amount, reference = asked.get("amount"), asked.get("reference")
            if type(amount) is not int or amount < 1 or not isinstance(reference, str) or not reference:
                raise Refused(422, {"error": "amount and reference"})
            status, body = application.place(str(asked.get("merchant")), amount, reference[:200], smoke=smoke)
            return Answer(body, status)
        case "GET", [name]:
            return Answer(application.order(name))
        case "POST", [name, "refund"]:
            _authorise(request, token)
            return Answer(application.refund(name, str(_object(request).get("reference", ""))[:200]))
    raise Refused(404, {"error": "nothing there"})


def _object(request: Request) -> dict[str, Any]:
    try:
        found = request.json()
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise Refused(400, {"error": "expected a JSON object"})
    return found


def _status(state: Record) -> dict[str, object]:
    return {"status": "started" if state["running"] else "stopped"}


def _told(application: Application, state: Record) -> dict[str, object]:
    return {**_status(state), **application.version()}


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
    if version not in BUILDS:
        raise Refused(422, {"error": f"version must be one of {', '.join(BUILDS)}"})
    return str(version)


def _render(application: Application) -> str:
    status, health = application.health()
    now, counted = application.state, application.counted()
    good = status == 200 and health["status"] == "healthy"
    facts = {
        **health,
        "orders": f"stopped for {now['frozen']}" if now["frozen"] else "taken",
        "autoscaling": f"{now['minimum']} to {now['maximum']} replicas",
        "deploys": counted["deploys"],
        "test orders": f"{counted['orders']}, {counted['refunds']} refunded",
    }
    rows = "".join(f"<tr><th>{html.escape(k)}</th><td>{html.escape(str(v))}</td></tr>" for k, v in facts.items())
    lines = "".join(
        f"<li><time>{html.escape(record['at'][:19])} UTC</time> {html.escape(record['what'])}</li>"
        for record in reversed(application.journal.records())
    )
    return (
        f'<h1><span class="{"good" if good else "bad"}"></span>PayMe API {html.escape(str(health["status"]))}'
        f'</h1><table>{rows}</table><h2>What was done to it</h2><ul>{lines}</ul><p class="note">Stand-in.</p>'
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
