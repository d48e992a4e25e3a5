"""One look at an application that keeps nobody waiting: /health with its body, and the p95 that /metrics tells.

The rules about bodies, caches and redirects are those of foundation.health. Here is what many looks at once need: no
thread for each, and one time limit over everything, since a body that comes drop by drop is a hang, too.
"""

import asyncio
import ssl
import time
from datetime import datetime

import httpx

from payme_ops.foundation import health, http, payme_api
from payme_ops.foundation.clock import utc_now
from payme_ops.foundation.errors import PaymeOpsError
from payme_ops.foundation.health import Expected, State
from payme_ops.foundation.http import Answer
from payme_ops.foundation.samples import Sample

# With it a total failure is decided 98.5 s after it at the latest: 30 until the next look, 60 until the third, half a
# second since not all begin at once, this, one second from the first to the last of the burst, and this again.
LIMIT_SECONDS = 3.5
_MAX_BYTES = 200_000
_MAX_P95_MS = 1e9  # what is above it no column takes, and nobody measured
_CHUNK = 16_384
_HEADERS = {"Accept": "application/json", "Accept-Encoding": "identity", "Cache-Control": "no-cache"}


def client() -> httpx.AsyncClient:
    """What `look` asks with, to be made once: reading the certificates takes longer than a look.

    Certificates are checked against the machine's own (SSL_CERT_FILE, SSL_CERT_DIR). Each look has a connection of its
    own: one that is kept open shows nothing of a name or a certificate that has gone bad.
    """
    return httpx.AsyncClient(
        verify=ssl.create_default_context(),
        follow_redirects=False,
        trust_env=False,
        headers=_HEADERS,
        timeout=LIMIT_SECONDS,
        limits=httpx.Limits(max_keepalive_connections=0, max_connections=None),
    )


async def look(asked: httpx.AsyncClient, url: str, at: datetime) -> Sample:
    """Look once, within LIMIT_SECONDS; the sample is of the instant `at`. Never raises.

    Its facts are `p95` in milliseconds where it is told, and `why` where it is not healthy.
    """
    try:
        (state, why, ms), p95 = await asyncio.gather(_health(asked, url), _p95(asked, url))
    except Exception as error:  # not foreseen; of this application, and no reason not to look at all others
        state, why, ms, p95 = State.UNKNOWN, f"what it answers cannot be read ({type(error).__name__})", 0.0, None
    facts = {} if state is State.HEALTHY else {"why": why}
    return Sample(at, state, ms, facts if p95 is None else {**facts, "p95": p95})


async def _health(asked: httpx.AsyncClient, url: str) -> tuple[State, str, float]:
    try:
        answer = await _get(asked, f"{url}/health")
    except TimeoutError:
        return State.UNHEALTHY, f"no whole answer within {LIMIT_SECONDS:g} s", 0.0
    except (httpx.HTTPError, httpx.InvalidURL, httpx.StreamError, OSError, ValueError) as error:
        return State.UNHEALTHY, f"no answer ({_words(error)})", 0.0
    state, why, _ = health.read(answer, Expected(), utc_now())
    return state, why, round(answer.seconds * 1000, 1)


async def _p95(asked: httpx.AsyncClient, url: str) -> float | None:
    """What /metrics tells; nothing that it does is held against the application."""
    try:
        answer = await _get(asked, f"{url}/metrics")
        told = payme_api.read_metrics(answer.body).response_ms if answer.status == 200 else None
    except (httpx.HTTPError, httpx.InvalidURL, httpx.StreamError, OSError, ValueError, PaymeOpsError):
        return None
    p95 = told.get("p95") if told else None
    return round(p95, 1) if p95 is not None and p95 < _MAX_P95_MS else None


async def _get(asked: httpx.AsyncClient, url: str) -> Answer:
    """Raises TimeoutError, httpx.HTTPError, OSError; ValueError for a body that is too large."""
    begun, data = time.monotonic(), bytearray()
    async with asyncio.timeout(LIMIT_SECONDS), asked.stream("GET", url) as answer:
        async for chunk in answer.aiter_bytes(_CHUNK):
            data += chunk
            if len(data) > _MAX_BYTES:
                raise ValueError("too large")
    return http.parse(answer.status_code, answer.headers, bytes(data), time.monotonic() - begun)


def _words(error: BaseException) -> str:
    """What went wrong, in words that are not the other side's."""
    found: BaseException | None = error
    while found is not None:
        if isinstance(found, ssl.SSLCertVerificationError):
            return f"its certificate is refused: {found.verify_message[:80]}"
        if isinstance(found, ConnectionRefusedError):
            return "connection refused"
        found = found.__cause__ or found.__context__
    return f"more than {_MAX_BYTES} bytes" if type(error) is ValueError else type(error).__name__
