"""What the stand-ins share: a small HTTP server that keeps what it got and can be told to fail.

Everything is on 127.0.0.1. What came in is appended to a file of JSON lines at once, so that a kill loses nothing,
and is read again at the next start. `POST /control {"fail": 503, "count": 2}` makes the next two calls of the
service's own API fail with that status; without `count` they fail until `{"fail": null}`. With `path` only calls to a
path that contains it fail, and `headers` are sent with the failure.
"""

import argparse
import gzip
import html
import json
import signal
import sys
import threading
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.message import Message
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import FrameType
from typing import Any, Protocol
from urllib.parse import parse_qsl, urlsplit

MAX_BODY_BYTES = 20 * 1024 * 1024
RETRY_AFTER_SECONDS = 1
REFRESH_SECONDS = 5

Record = dict[str, Any]


class Refused(Exception):
    """The request cannot be served; carries status and body of the answer."""

    def __init__(self, status: int, body: object) -> None:
        self.status, self.body = status, body
        super().__init__(f"{status} {body}")


class Journal:
    """Records in memory and in a file of JSON lines, in the order they came."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = threading.Lock()
        self._records: list[Record] = []
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.exists():
            for line in path.read_text(encoding="utf-8").splitlines():
                try:
                    self._records.append(json.loads(line))
                except ValueError:
                    continue  # the last line of a writer that was killed

    def append(self, make: Callable[[], Record]) -> Record:
        """Add what `make` returns; it runs under the lock, so that it may look at what is there."""
        with self._lock:
            record = make()
            with self._path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(record, ensure_ascii=False) + "\n")
            self._records.append(record)
            return record

    def records(self) -> list[Record]:
        """A copy of what is there."""
        return list(self._records)


@dataclass
class Failing:
    """What /control asked for: a status for the next `count` calls (None: until told otherwise)."""

    status: int | None = None
    count: int | None = None
    path: str = ""
    headers: Mapping[str, str] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    def set(self, request: Mapping[str, Any]) -> None:
        """Take a control request. Raises Refused with 400 when it is not one."""
        status, count = request.get("fail"), request.get("count")
        good_status = status is None or (isinstance(status, int) and 400 <= status <= 599)
        if "fail" not in request or not good_status or not (count is None or isinstance(count, int)):
            raise Refused(400, {"error": 'expected {"fail": 400 to 599 or null, "count": number, optional}'})
        with self._lock:
            self.status, self.count = status, count
            self.path, self.headers = str(request.get("path") or ""), dict(request.get("headers") or {})

    def take(self, path: str = "") -> int | None:
        """The status this call must fail with, or None."""
        with self._lock:
            if self.status is None or self.count == 0 or self.path not in path:
                return None
            if self.count is not None:
                self.count -= 1
            return self.status


@dataclass(frozen=True)
class Request:
    """One request, its body unpacked."""

    method: str
    path: str
    query: dict[str, str]
    headers: Message
    body: bytes

    def json(self) -> Any:
        """The body as JSON. Raises ValueError."""
        return json.loads(self.body)


@dataclass(frozen=True)
class Answer:
    """Status, body (a text is HTML or plain text, anything else becomes JSON) and extra headers."""

    body: object
    status: int = 200
    content_type: str = ""
    headers: Mapping[str, str] = field(default_factory=dict)


class Server(ThreadingHTTPServer):
    """Listens on 127.0.0.1; `route` answers, `is_api` says which paths /control makes fail."""

    daemon_threads = True
    allow_reuse_address = True

    def __init__(
        self, port: int, route: Callable[[Request], Answer], is_api: Callable[[str], bool], failed: object
    ) -> None:
        self.route, self.is_api, self.failed = route, is_api, failed
        self.failing = Failing()
        super().__init__(("127.0.0.1", port), _Handler)

    @property
    def url(self) -> str:
        """Where it is."""
        return f"http://127.0.0.1:{self.server_address[1]}"

    def answer(self, request: Request) -> Answer:
        """The answer to one request. Raises Refused."""
        if request.method == "POST" and request.path == "/control":
            try:
                asked = request.json()
            except ValueError:
                asked = None
            self.failing.set(asked if isinstance(asked, dict) else {})
            return Answer({"fail": self.failing.status, "count": self.failing.count})
        if self.is_api(request.path) and (status := self.failing.take(request.path)) is not None:
            headers = self.failing.headers or ({"Retry-After": str(RETRY_AFTER_SECONDS)} if status == 429 else {})
            return Answer(self.failed, status, headers=headers)
        return self.route(request)


class _Handler(BaseHTTPRequestHandler):
    server: Server
    protocol_version = "HTTP/1.1"
    server_version = "payme-sandbox"
    sys_version = ""

    def do_GET(self) -> None:
        self._serve()

    def do_POST(self) -> None:
        self._serve()

    def do_PATCH(self) -> None:
        self._serve()

    def do_PUT(self) -> None:
        self._serve()

    def do_DELETE(self) -> None:
        self._serve()

    def _serve(self) -> None:
        try:
            answer = self.server.answer(self._request())
        except Refused as refused:
            answer = Answer(refused.body, refused.status)
        data, kind = to_bytes(answer)
        self.send_response(answer.status)
        for name, value in answer.headers.items():
            self.send_header(name, value)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(data)))
        # Pages show text that came from outside: no script runs, whatever it says.
        self.send_header("Content-Security-Policy", "default-src 'none'; style-src 'unsafe-inline'")
        self.send_header("Cache-Control", "no-store")
        self.end_headers()
        self.wfile.write(data)

    def _request(self) -> Request:
        size = int(self.headers.get("Content-Length") or 0)
        if size > MAX_BODY_BYTES:
            self.close_connection = True  # the body is not read
            raise Refused(413, {"error": f"body of {size} bytes, at most {MAX_BODY_BYTES} are taken"})
        body = _unpack(self.rfile.read(size), self.headers.get("Content-Encoding", ""))
        parts = urlsplit(self.path)
        return Request(self.command, parts.path, dict(parse_qsl(parts.query)), self.headers, body)

    def log_message(self, format: str, *args: Any) -> None:
        print(f"{datetime.now(UTC):%H:%M:%S} {format % args}", file=sys.stderr, flush=True)


def to_bytes(answer: Answer) -> tuple[bytes, str]:
    """Body and content type of an answer."""
    data = answer.body.encode() if isinstance(answer.body, str) else json.dumps(answer.body).encode()
    kind = answer.content_type or ("text/plain" if isinstance(answer.body, str) else "application/json")
    return data, f"{kind}; charset=utf-8"


def _unpack(body: bytes, encoding: str) -> bytes:
    try:
        if encoding == "gzip":
            return gzip.decompress(body)
        if encoding == "deflate":
            return zlib.decompress(body)
    except (OSError, EOFError, zlib.error):
        raise Refused(400, {"error": f"the body is not {encoding}"}) from None
    if encoding:
        raise Refused(415, {"error": f"content encoding {encoding} is not known, use gzip"})
    return body


class Serves(Protocol):
    """What `main` runs: a Server, or what behaves like one."""

    @property
    def url(self) -> str: ...
    def serve_forever(self, poll_interval: float = ...) -> None: ...
    def shutdown(self) -> None: ...
    def server_close(self) -> None: ...


def main(name: str, make: Callable[..., Serves], *others: str) -> None:
    """Serve until SIGTERM or SIGINT. `others` are protocols with a port of their own, `<protocol>_port` of `make`."""
    parser = argparse.ArgumentParser(prog=f"python -m sandbox.{name}")
    parser.add_argument("--port", type=int, required=True, help="on 127.0.0.1")
    parser.add_argument("--state", type=Path, required=True, help="file that keeps what came in, JSON lines")
    for other in others:
        parser.add_argument(f"--{other}-port", type=int, required=True, help="on 127.0.0.1")
    arguments = parser.parse_args()
    try:
        server = make(arguments.port, arguments.state, **{f"{o}_port": getattr(arguments, f"{o}_port") for o in others})
    except OSError as error:
        sys.exit(f"{name}: 127.0.0.1 port {arguments.port} cannot be used ({error.strerror}). Choose another port.")

    def leave(_number: int, _frame: FrameType | None) -> None:
        threading.Thread(target=server.shutdown).start()  # shutdown() waits for serve_forever, which runs here

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, leave)
    print(f"{name} stand-in on {server.url}", flush=True)
    server.serve_forever(poll_interval=0.1)
    server.server_close()


def page(title: str, style: str, body: str) -> Answer:
    """A page that fetches itself anew; `body` is HTML."""
    text = (
        "<!doctype html>\n"
        f'<html lang="en"><head><meta charset="utf-8"><title>{html.escape(title)}</title>'
        f'<meta http-equiv="refresh" content="{REFRESH_SECONDS}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<style>{style}</style></head><body>{body}</body></html>\n"
    )
    return Answer(text, content_type="text/html")
