"""A proxy in front of an S3 API that can fail in every way a store and a network fail.

Rules are tried in order; the first that matches a request and has turns left acts on it. What no rule matches
passes through unchanged.
"""

import http.client
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import ClassVar
from urllib.parse import urlsplit

_HOP_BY_HOP = {"connection", "keep-alive", "transfer-encoding", "expect"}


@dataclass
class Request:
    """What arrived. `body` is read before any rule acts, unless the rule cuts it."""

    method: str
    path: str
    query: str
    headers: list[tuple[str, str]]
    length: int
    body: bytes = b""

    def __str__(self) -> str:
        return f"{self.method} {self.path}{'?' if self.query else ''}{self.query}"


@dataclass
class Response:
    """What goes back."""

    status: int
    headers: list[tuple[str, str]]
    body: bytes

    def with_header(self, name: str, value: str) -> "Response":
        """The same answer with one header replaced."""
        kept = [pair for pair in self.headers if pair[0].lower() != name.lower()]
        return Response(self.status, [*kept, (name, value)], self.body)


class CutOff(Exception):
    """The connection is closed here and now; `sent` goes out first."""

    def __init__(self, sent: bytes = b"") -> None:
        self.sent = sent


Forward = Callable[[Request], Response]
Fault = Callable[[Request, Forward], Response]


def _never() -> bool:
    return False


@dataclass
class Rule:
    """One fault for the requests that match, until it is over. `hits` counts how often it acted."""

    method: str
    contains: str
    fault: Fault
    times: int | None = None
    cut_body_at: int | None = None
    over: Callable[[], bool] = _never
    hits: int = 0

    def takes(self, request: Request) -> bool:
        """Whether this rule acts on the request; counts it when it does."""
        if self.method != request.method or self.contains not in str(request):
            return False
        if self.over() or (self.times is not None and self.hits >= self.times):
            return False
        self.hits += 1
        return True


@dataclass
class Held:
    """A request that waits at the proxy. Wait for it, do what must happen meanwhile, then `release` or `drop` it."""

    seen: threading.Event = field(default_factory=threading.Event)
    released: threading.Event = field(default_factory=threading.Event)
    dropped: bool = False

    def wait_until_seen(self, seconds: float = 20) -> None:
        """Return when the request has arrived."""
        assert self.seen.wait(seconds), "the request never came"

    def release(self) -> None:
        """Let it go on."""
        self.released.set()

    def drop(self) -> None:
        """Cut the connection: what the proxy has not passed on never reaches the store, or its answer the client."""
        self.dropped = True
        self.released.set()


class Proxy:
    """The proxy and its rules."""

    def __init__(self, upstream_port: int) -> None:
        self._upstream_port = upstream_port
        self._rules: list[Rule] = []
        self._lock = threading.Lock()
        self._held: list[Held] = []
        self.requests: list[str] = []
        handler = type("Handler", (_Handler,), {"proxy": self})
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True)
        self._thread.start()
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def close(self) -> None:
        """Release what is held and stop."""
        for held in self._held:
            held.drop()
        self._server.shutdown()
        self._server.server_close()

    def answer(self, method: str, contains: str, status: int, code: str, *, times: int | None = None) -> Rule:
        """Answer with an S3 error instead of passing the request on."""
        text = f"<Error><Code>{code}</Code><Message>injected</Message></Error>".encode()

        def fault(_request: Request, _forward: Forward) -> Response:
            return Response(status, [("Content-Type", "application/xml")], text)

        return self._add(Rule(method, contains, fault, times))

    def delay(self, method: str, contains: str, seconds: float, *, times: int | None = None) -> Rule:
        """A slow store."""

        def fault(request: Request, forward: Forward) -> Response:
            time.sleep(seconds)
            return forward(request)

        return self._add(Rule(method, contains, fault, times))

    def cut_request(self, method: str, contains: str, after_bytes: int, *, times: int | None = None) -> Rule:
        """Read that many bytes of the body, then cut the connection: the store never sees the request."""

        def fault(_request: Request, _forward: Forward) -> Response:
            raise CutOff

        return self._add(Rule(method, contains, fault, times, cut_body_at=after_bytes))

    def cut_response(self, method: str, contains: str, after_bytes: int, *, times: int | None = None) -> Rule:
        """Send the headers and that many bytes of the body, then cut the connection."""

        def fault(request: Request, forward: Forward) -> Response:
            answer = forward(request)
            raise CutOff(_head(answer) + answer.body[:after_bytes])

        return self._add(Rule(method, contains, fault, times))

    def flip(self, method: str, contains: str, at_byte: int, *, times: int | None = None) -> Rule:
        """Flip one bit of the answer's body."""

        def fault(request: Request, forward: Forward) -> Response:
            answer = forward(request)
            body = bytearray(answer.body)
            body[at_byte] ^= 1
            return Response(answer.status, answer.headers, bytes(body))

        return self._add(Rule(method, contains, fault, times))

    def without_header(self, method: str, contains: str, name: str) -> Rule:
        """A store that does not know a request header."""

        def fault(request: Request, forward: Forward) -> Response:
            request.headers = [pair for pair in request.headers if pair[0].lower() != name.lower()]
            return forward(request)

        return self._add(Rule(method, contains, fault))

    def lose_answer(self, method: str, contains: str, *, times: int | None = None) -> Rule:
        """The store does what it is asked to, and nobody hears of it."""

        def fault(request: Request, forward: Forward) -> Response:
            forward(request)
            raise CutOff

        return self._add(Rule(method, contains, fault, times))

    def with_answer_header(self, method: str, contains: str, name: str, value: str) -> Rule:
        """Another value in a header of the answer."""

        def fault(request: Request, forward: Forward) -> Response:
            return forward(request).with_header(name, value)

        return self._add(Rule(method, contains, fault))

    def hold(self, method: str, contains: str, *, done_upstream: bool = False, every: bool = False) -> Held:
        """Hold the first such request, before the store sees it or, with `done_upstream`, before its answer leaves.

        With `every` all such requests are held, until this one is let go: a client that is patient asks again.
        """
        held = Held()
        self._held.append(held)

        def fault(request: Request, forward: Forward) -> Response:
            answer = forward(request) if done_upstream else None
            held.seen.set()
            held.released.wait()
            if held.dropped:
                raise CutOff
            return answer or forward(request)

        over = held.released.is_set if every else _never
        self._add(Rule(method, contains, fault, times=None if every else 1, over=over))
        return held

    def clear(self) -> None:
        """Behave from now on."""
        with self._lock:
            self._rules.clear()

    def rule_for(self, request: Request) -> Rule | None:
        """The rule that acts on the request."""
        with self._lock:
            self.requests.append(str(request))
            return next((rule for rule in self._rules if rule.takes(request)), None)

    def forward(self, request: Request) -> Response:
        """Pass the request on to the store."""
        connection = http.client.HTTPConnection("127.0.0.1", self._upstream_port, timeout=60)
        try:
            target = f"{request.path}?{request.query}" if request.query else request.path
            connection.putrequest(request.method, target, skip_host=True, skip_accept_encoding=True)
            for name, value in request.headers:
                if name.lower() not in _HOP_BY_HOP:
                    connection.putheader(name, value)
            connection.endheaders(request.body or None)
            answer = connection.getresponse()
            headers = [(name, value) for name, value in answer.getheaders() if name.lower() not in _HOP_BY_HOP]
            return Response(answer.status, headers, answer.read())
        finally:
            connection.close()

    def _add(self, rule: Rule) -> Rule:
        with self._lock:
            self._rules.append(rule)
        return rule


@contextmanager
def proxy_before(upstream_port: int) -> Iterator[Proxy]:
    """A proxy for the block."""
    proxy = Proxy(upstream_port)
    try:
        yield proxy
    finally:
        proxy.close()


def _head(answer: Response) -> bytes:
    lines = [f"HTTP/1.1 {answer.status} {http.client.responses.get(answer.status, '')}"]
    headers = answer.headers
    if not any(name.lower() == "content-length" for name, _ in headers):
        headers = [*headers, ("Content-Length", str(len(answer.body)))]
    lines += [f"{name}: {value}" for name, value in headers]
    return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1")


class _Handler(BaseHTTPRequestHandler):
    proxy: ClassVar[Proxy]
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def _serve(self) -> None:
        parts = urlsplit(self.path)
        request = Request(
            self.command, parts.path, parts.query, self.headers.items(), int(self.headers.get("Content-Length") or 0)
        )
        rule = self.proxy.rule_for(request)
        cut_at = rule.cut_body_at if rule else None
        request.body = self.rfile.read(request.length if cut_at is None else min(cut_at, request.length))
        try:
            answer = rule.fault(request, self.proxy.forward) if rule else self.proxy.forward(request)
            self.wfile.write(_head(answer) + (b"" if self.command == "HEAD" else answer.body))
        except CutOff as cut:
            self.wfile.write(cut.sent)
            self.close_connection = True

    def handle(self) -> None:
        """Serve until the client goes, which a killed one does without a word."""
        with suppress(BrokenPipeError, ConnectionResetError):
            super().handle()

    do_GET = do_PUT = do_POST = do_HEAD = do_DELETE = _serve

    def log_message(self, *_: object) -> None:
        """Quiet."""
