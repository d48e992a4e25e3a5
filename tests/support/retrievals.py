"""Retrievals from Glacier that take their time."""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from urllib.request import Request, urlopen

_AT_ONCE: dict[str, object] = {"progression": "immediate"}


@contextmanager
def slow_retrievals(s3_url: str) -> Iterator[Callable[[], None]]:
    """Retrievals are under way until the function is called or the block ends; by itself the stand-in has none wait."""

    def progress(how: dict[str, object]) -> None:
        body = json.dumps({"model_name": "s3::keyrestore", "transition": how}).encode()
        url = f"{s3_url}/moto-api/state-manager/set-transition"
        request = Request(url, body, {"Content-Type": "application/json"})  # noqa: S310  # loopback
        urlopen(request).close()  # noqa: S310

    progress({"progression": "time", "seconds": 3600})
    try:
        yield lambda: progress(_AT_ONCE)
    finally:
        progress(_AT_ONCE)
