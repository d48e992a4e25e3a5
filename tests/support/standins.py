"""The stand-ins of the sandbox, served from threads of the test process."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from slack_sdk import WebClient

from payme_ops.foundation.mail import MailServer
from payme_ops.foundation.payme_api import PaymeApi
from payme_ops.foundation.slack import Slack
from sandbox import code_host, mail, payme_api, sentry, slack, status_page
from sandbox.http import call
from sandbox.postgres import free_port
from sandbox.standin import Answer, Server, Serves

CHANNEL = "payme-ops"
API_TOKEN = "token-of-the-tests"


@dataclass(frozen=True)
class StandIn:
    """A running stand-in."""

    server: Serves

    @property
    def url(self) -> str:
        """Where it is."""
        return self.server.url

    def get(self, path: str) -> Any:
        """Body of a GET."""
        status, body = call("GET", self.url + path)
        assert status == 200, (path, status, body)
        return body

    def fail(
        self, status: int | None, count: int | None = None, path: str = "", headers: dict[str, str] | None = None
    ) -> None:
        """Make its API fail (calls whose path contains `path`), or work again."""
        asked = {"fail": status, "count": count, "path": path, "headers": headers}
        assert call("POST", f"{self.url}/control", asked)[0] == 200

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
    with served(slack.make_server, folder / "slack.jsonl") as server:
        yield server


@contextmanager
def sentry_stand_in(folder: Path) -> Iterator[StandIn]:
    """Sentry, for the block."""
    with served(sentry.make_server, folder / "sentry.jsonl") as server:
        yield server


@contextmanager
def code_host_stand_in(folder: Path) -> Iterator[StandIn]:
    """The code host, for the block."""
    with served(code_host.make_server, folder / "code_host.jsonl") as server:
        yield server


@contextmanager
def served(make: Callable[[int, Path], Serves], state: Path) -> Iterator[StandIn]:
    """Any stand-in, for the block."""
    server = make(0, state)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield StandIn(server)
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def answering(body: object, status: int = 200) -> Callable[[int, Path], Server]:
    """For `served`: what answers every request with that."""
    return lambda port, _state: Server(port, lambda _request: Answer(body, status), lambda _path: False, {})


@contextmanager
def status_page_stand_in(folder: Path) -> Iterator[StandIn]:
    """The status page, for the block."""
    with served(status_page.make_server, folder / "status_page.jsonl") as server:
        yield server


@contextmanager
def mail_stand_in(folder: Path) -> Iterator[tuple[StandIn, MailServer]]:
    """The mail server, for the block, and how to send through it."""
    port = free_port()
    with served(partial(mail.make_server, smtp_port=port), folder / "mail.jsonl") as server:
        yield server, MailServer("127.0.0.1", port, "ops@payme.test", tls=False)


@contextmanager
def payme_api_stand_in(folder: Path, conninfo: str) -> Iterator[tuple[StandIn, PaymeApi]]:
    """The PayMe API, started, on the database of `conninfo`, for the block, and how to call it."""

    def make(port: int, state: Path) -> Serves:
        return payme_api.ApiServer(port, payme_api.Application(state, conninfo), API_TOKEN)

    with served(make, folder / "payme_api.jsonl") as server:
        yield server, PaymeApi(server.url, API_TOKEN)
