"""An application with /health and /metrics that can be unwell in every way, over TLS too."""

import json
import ssl
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from ipaddress import ip_address
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

P95 = 120.0
SLOW_SECONDS = 0.3
_ILL = {
    "sick": b'{"status": "unhealthy", "database": "disconnected"}',
    "odd": rb'{"status": "\u0000\ud800\n<!channel>", "uptime": 1' + b"0" * 400 + b"}",
}


class Application(ThreadingHTTPServer):
    """`mode` is well, sick, wrong, odd, redirect, login, slow, hang, drip or large, and may be changed at any time."""

    daemon_threads = True
    request_queue_size = 200
    mode = "well"
    p95 = P95

    def __init__(self, port: int = 0, tls: ssl.SSLContext | None = None) -> None:
        self.ended = threading.Event()
        self.asked = 0
        self.scheme = "https" if tls else "http"
        super().__init__(("127.0.0.1", port), _Handler)
        if tls:
            self.socket = tls.wrap_socket(self.socket, server_side=True, do_handshake_on_connect=False)

    @property
    def url(self) -> str:
        """Where it is."""
        return f"{self.scheme}://127.0.0.1:{self.server_address[1]}"

    def handle_error(self, *_: object) -> None:
        """A client that went away is what is tested."""


class _Handler(BaseHTTPRequestHandler):
    server: Application
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        if self.path == "/metrics":
            times = {"p50": 20.0, "p95": self.server.p95, "p99": 300.0, "count": 10}
            self._send(200, json.dumps({"version": "2.4.0", "response_ms": times}).encode())
            return
        self.server.asked += 1
        well = json.dumps({"status": "healthy", "database": "connected", "version": "2.4.0"}).encode()
        match self.server.mode:
            case "sick" | "odd" as mode:
                self._send(503, _ILL[mode])
            case "wrong":
                self._send(200, b"<html>It works!</html>")
            case "redirect":
                self._send(302, b"", Location="/login")
            case "login":
                self._send(401, b"{}")
            case "slow":
                time.sleep(SLOW_SECONDS)
                self._send(200, well)
            case "large":
                self._send(200, b"[" + b"0," * 1_000_000 + b"0]")
            case "hang":
                self.server.ended.wait(30)
            case "drip":
                self._drip(well)
            case _:
                self._send(200, well)

    def _send(self, status: int, body: bytes, **headers: str) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def _drip(self, body: bytes) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        for byte in body:
            self.wfile.write(bytes([byte]))
            self.wfile.flush()
            if self.server.ended.wait(0.1):
                return

    def log_message(self, format: str, *args: object) -> None:
        """Nobody reads it."""


@contextmanager
def application(port: int = 0, tls: ssl.SSLContext | None = None) -> Iterator[Application]:
    """It, for the block."""
    server = Application(port, tls)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield server
    finally:
        server.ended.set()
        server.shutdown()
        thread.join()
        server.server_close()


def self_signed(folder: Path) -> tuple[ssl.SSLContext, Path]:
    """A server's TLS with a certificate for 127.0.0.1 that nobody has signed, and the certificate's file."""
    key, now = ec.generate_private_key(ec.SECP256R1()), datetime.now(UTC)
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "payme.test")])
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1"))]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    certificate, secret = folder / "certificate.pem", folder / "key.pem"
    certificate.write_bytes(made.public_bytes(serialization.Encoding.PEM))
    secret.write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, secret)
    return context, certificate
