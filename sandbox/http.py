"""The sandbox's own calls to its services on loopback: plain HTTP, JSON in and out, no proxy."""

import http.client
import json
from typing import Any
from urllib.parse import urlsplit

# Airflow's API was seen to need more than 5 s while the machine was busy.
TIMEOUT_SECONDS = 60.0


def call(
    method: str,
    url: str,
    body: object = None,
    *,
    token: str = "",
    timeout_seconds: float = TIMEOUT_SECONDS,
) -> tuple[int, Any]:
    """Status and body; the body parsed when it is JSON, else as text. Raises OSError when nobody answers."""
    parts = urlsplit(url)
    target = f"{parts.path or '/'}?{parts.query}" if parts.query else parts.path or "/"
    headers = {"Accept": "application/json"}
    if token:
        headers["Authorization"] = f"Bearer {token}"
    data = None
    if body is not None:
        data = json.dumps(body).encode()
        headers["Content-Type"] = "application/json"
    connection = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=timeout_seconds)
    try:
        connection.request(method, target, data, headers)
        answer = connection.getresponse()
        text = answer.read().decode(errors="replace")
        if text and "json" in answer.headers.get("Content-Type", ""):  # 204 has no body
            return answer.status, json.loads(text)
        return answer.status, text
    except http.client.HTTPException as error:
        raise ConnectionError(f"{method} {url}: {type(error).__name__} {error}") from error
    finally:
        connection.close()


def silent(url: str) -> str | None:
    """A ready condition: None when a GET is answered with 200, else what is missing."""
    try:
        status, _ = call("GET", url, timeout_seconds=5)
    except OSError:
        return "an answer on its port"
    return None if status == 200 else f"status 200 (now {status})"
