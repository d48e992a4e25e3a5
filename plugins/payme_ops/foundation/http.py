"""One JSON call to a service of the company: bounded in time and size, no redirects, no retries.

Redirects are not followed: a token belongs to the host it was made for. Retrying is the caller's, who knows whether
the call may be made twice.
"""

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlencode

import urllib3

from payme_ops.foundation.errors import ServiceRefused, Unavailable
from payme_ops.foundation.scrub import SECRET

CONNECT_SECONDS, READ_SECONDS = 5.0, 20.0
_MAX_BYTES = 1_000_000
_MIN_TOKEN = 8
_pool = urllib3.PoolManager(retries=False)


@dataclass(frozen=True)
class Answer:
    """Status and the JSON object of the body; a body that is none is an empty object, one that is a list `items`.

    Names of `headers` are in lower case; `seconds` is the time from asking to the body's end.
    """

    status: int
    body: dict[str, Any]
    items: list[Any] = field(default_factory=list)
    headers: Mapping[str, str] = field(default_factory=dict)
    seconds: float = 0.0


def call(
    service: str,
    method: str,
    url: str,
    *,
    authorization: str = "",
    body: object = None,
    form: Mapping[str, str] | None = None,
    headers: Mapping[str, str] | None = None,
) -> Answer:
    """The service's answer, whatever its status; the token that was sent is taken out of it.

    `service` is its name for people; `body` is sent as JSON, `form` as a form. Raises Unavailable when it does not
    answer in time or answers too much.
    """
    sent = {"Accept": "application/json", **(headers or {})}
    if authorization:
        sent["Authorization"] = authorization
    if form is not None:
        sent["Content-Type"] = "application/x-www-form-urlencoded"
    begun = time.monotonic()
    try:
        answer = _pool.request(
            method,
            url,
            json=body,
            body=None if form is None else urlencode(form),
            headers=sent,
            redirect=False,
            preload_content=False,
            timeout=urllib3.Timeout(connect=CONNECT_SECONDS, read=READ_SECONDS),
        )
        data = answer.read(_MAX_BYTES + 1)
        answer.release_conn()
    except (urllib3.exceptions.HTTPError, OSError) as error:
        raise _away(service, method, url, type(error).__name__) from None
    if len(data) > _MAX_BYTES:
        answer.close()
        raise _away(service, method, url, f"more than {_MAX_BYTES} bytes")
    # Some services quote a token that they refuse; without the word before it nothing would tell that it is one.
    # What is shorter is no token, and would be taken out of every word.
    if len(token := authorization.rpartition(" ")[2]) >= _MIN_TOKEN:
        data = data.replace(token.encode(), SECRET.encode())
    return parse(answer.status, answer.headers, data, time.monotonic() - begun)


def parse(status: int, headers: Mapping[str, str], data: bytes, seconds: float) -> Answer:
    """The answer whose body is `data`."""
    try:
        found = json.loads(data)
    except (ValueError, RecursionError):
        found = None
    return Answer(
        status,
        found if isinstance(found, dict) else {},
        found if isinstance(found, list) else [],
        {name.lower(): value for name, value in headers.items()},
        seconds,
    )


def expect(
    service: str,
    method: str,
    url: str,
    *,
    authorization: str = "",
    body: object = None,
    form: Mapping[str, str] | None = None,
    headers: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """The body of an answer that says yes. Raises Unavailable (5xx, 429, none) or ServiceRefused (any other)."""
    answer = call(service, method, url, authorization=authorization, body=body, form=form, headers=headers)
    require_yes(service, method, url, answer)
    return answer.body


def require_yes(service: str, method: str, url: str, answer: Answer) -> None:
    """Raises Unavailable (5xx, 429) or ServiceRefused (any other) unless the answer says yes."""
    if 200 <= answer.status < 300:
        return
    if answer.status >= 500 or answer.status in (420, 429):
        raise _away(service, method, url, f"status {answer.status}")
    raise ServiceRefused(
        f"{service} refused {method} {_path(url)}",
        expected="status 2xx",
        found=f"status {answer.status} {str(answer.body.get('error', ''))[:200]}".rstrip(),
        remedy="compare the connection's address and token with what the service expects",
    )


def _away(service: str, method: str, url: str, found: str) -> Unavailable:
    return Unavailable(
        f"{service} did not answer {method} {_path(url)}",
        expected=f"an answer within {CONNECT_SECONDS + READ_SECONDS:.0f} s",
        found=found,
        remedy="see whether it runs and can be reached from here",
    )


def _path(url: str) -> str:
    return urllib3.util.parse_url(url).path or "/"
