"""Deploys one commit of the desk and looks whether it is well. Needs Python 3.11 and nothing else.

One POST to the deploy endpoint, never repeated: what became of it is asked by its key. Then Airflow's own health, five
times in a row. Anything but a deploy that is done and a desk that is healthy ends with exit code 1. docs/ci.md has the
contract of the endpoint.
"""

import http.client
import json
import os
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any
from urllib.parse import urlencode, urlsplit

CALL_SECONDS = 25.0
LOOK_SECONDS = 10.0
LIMIT_SECONDS = 900.0  # for the deploy, and once more for its health
IN_A_ROW = 5
COMPONENTS = ("metadatabase", "scheduler", "triggerer", "dag_processor")
_LOOPBACK = ("127.0.0.1", "localhost")

Answer = tuple[int, Any]


class Failed(Exception):
    """The deploy is not known to be done and well; the text says why, and what to do."""


def call(method: str, url: str, headers: Mapping[str, str], body: str | None = None) -> Answer:
    """Status and JSON of one request; redirects are not followed. Raises OSError when no whole answer came."""
    parts = urlsplit(url)
    if parts.scheme != "https" and parts.hostname not in _LOOPBACK:
        raise Failed(f"expected an address with https, found {parts.scheme}://{parts.hostname}: correct the variable")
    kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
    connection = kind(parts.hostname or "", parts.port, timeout=CALL_SECONDS)
    try:
        connection.request(method, parts.path or "/", body, dict(headers))
        answer = connection.getresponse()
        text = answer.read()
    except http.client.HTTPException as error:
        raise ConnectionError(f"no whole answer: {type(error).__name__}") from None
    finally:
        connection.close()
    try:
        return answer.status, json.loads(text)
    except ValueError:
        return answer.status, None


def deploy(base: str, token: str, commit: str, key: str) -> None:
    """Post the commit once. Raises Failed when the endpoint says no; an answer that got lost is no no."""
    headers = {
        "Authorization": f"Bearer {token}",
        "Idempotency-Key": key,
        "Content-Type": "application/x-www-form-urlencoded",
    }
    try:
        status, _ = call("POST", f"{base}/deploy", headers, urlencode({"commit": commit}))
    except OSError as error:
        print(f"POST /deploy: {error}; whether it arrived is asked by its key")
        return
    if status == 422:
        raise Failed(f"the endpoint has no build of {commit}: look at the job that publishes the image")
    if status >= 500:
        print(f"POST /deploy: status {status}; whether it arrived is asked by its key")
    elif status != 202:
        raise Failed(f"POST /deploy: expected status 202, found {status}; nothing was deployed")


def outcome(base: str, token: str, commit: str, key: str) -> str | None:
    """What a deploy waits for; None when it is done. Raises Failed."""
    status, body = call("GET", f"{base}/deploys/{key}", {"Authorization": f"Bearer {token}"})
    if status == 429 or status >= 500:
        return f"an answer of the endpoint (status {status})"
    if status != 200 or not isinstance(body, dict):
        raise Failed(f"GET /deploys: expected status 200, found {status}")
    state = body.get("state")
    if state == "unknown":
        raise Failed("the endpoint does not know this deploy: it never arrived; run the job again")
    if body.get("commit") != commit:
        raise Failed(f"the endpoint deployed another commit than {commit}; look at the host before anything else")
    if state == "failed":
        raise Failed("the endpoint says that the deploy failed; its log says why")
    return None if state == "done" else f"the deploy, which is {state}"


def unhealthy(url: str) -> str | None:
    """What of Airflow is not well; None when all is. Raises Failed, OSError."""
    status, body = call("GET", url, {})
    if status != 200 or not isinstance(body, dict):
        return f"Airflow's API (status {status})"
    ill = [name for name in COMPONENTS if (body.get(name) or {}).get("status") != "healthy"]
    return ", ".join(ill) or None


def until(missing: Callable[[], str | None], in_a_row: int = 1) -> None:
    """Look until nothing is missing that many times in a row. Raises Failed when time is up."""
    end, well = time.monotonic() + LIMIT_SECONDS, 0
    while True:
        try:
            found = missing()
        except OSError as error:
            found = f"an answer ({error})"
        well = 0 if found else well + 1
        if well == in_a_row:
            return
        if time.monotonic() + LOOK_SECONDS > end:
            raise Failed(f"waited {LIMIT_SECONDS:.0f} s for {found or 'health that lasts'}")
        time.sleep(LOOK_SECONDS)


def main(env: Mapping[str, str]) -> int:
    """The whole; the exit code."""
    needed = ("DEPLOY_URL", "DEPLOY_TOKEN", "HEALTH_URL", "COMMIT", "DEPLOY_KEY")
    if absent := [name for name in needed if not env.get(name)]:
        print(f"::error::not set: {', '.join(absent)} (docs/ci.md says where each is set)")
        return 1
    base, token, commit, key = env["DEPLOY_URL"].rstrip("/"), env["DEPLOY_TOKEN"], env["COMMIT"], env["DEPLOY_KEY"]
    try:
        deploy(base, token, commit, key)
        until(lambda: outcome(base, token, commit, key))
        print(f"{commit} is deployed; looking at its health")
        until(lambda: unhealthy(env["HEALTH_URL"]), IN_A_ROW)
    except Failed as failed:
        print(f"::error::{failed}")
        return 1
    print("deployed and well")
    return 0


if __name__ == "__main__":
    sys.exit(main(os.environ))
