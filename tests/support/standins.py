"""The stand-ins of Slack and Sentry, served from threads of the test process."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from slack_sdk import WebClient

from payme_ops.foundation.alert import Slack
from sandbox import sentry, slack
from sandbox.http import call
from sandbox.standin import Server

CHANNEL = "payme-ops"


@dataclass(frozen=True)
class StandIn:
    """A running stand-in."""

    server: Server

    @property
    def url(self) -> str:
        """Where it is."""
        return self.server.url

    def get(self, path: str) -> Any:
        """Body of a GET."""
        status, body = call("GET", self.url + path)
        assert status == 200, (path, status, body)
        return body

    def fail(self, status: int | None, count: int | None = None) -> None:
        """Make its API fail, or work again."""
        assert call("POST", f"{self.url}/control", {"fail": status, "count": count})[0] == 200

    @property
    def messages(self) -> list[dict[str, Any]]:
        """What Slack got."""
        found: list[dict[str, Any]] = self.get("/messages.json")
        return found

    @property
    def events(self) -> list[dict[str, Any]]:
        """What Sentry got."""
        found: list[dict[str, Any]] = self.get("/events.json")
        return found

    def client(self, timeout_seconds: int = 5) -> Slack:
        """A Slack client that talks to it."""
        return Slack(WebClient("xoxb-test", base_url=f"{self.url}/api/", timeout=timeout_seconds), CHANNEL)


@contextmanager
def slack_stand_in(folder: Path) -> Iterator[StandIn]:
    """Slack, for the block."""
    with _served(slack.make_server, folder / "slack.jsonl") as server:
        yield server


@contextmanager
def sentry_stand_in(folder: Path) -> Iterator[StandIn]:
    """Sentry, for the block."""
    with _served(sentry.make_server, folder / "sentry.jsonl") as server:
        yield server


@contextmanager
def _served(make: Callable[[int, Path], Server], state: Path) -> Iterator[StandIn]:
    server = make(0, state)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield StandIn(server)
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
