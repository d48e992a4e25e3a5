"""A release, an ops database and a PayMe API without a database, for tests of deploys and orders."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import Any

from payme_ops.foundation.clock import utc_now
from payme_ops.foundation.payme_api import PaymeApi
from payme_ops.foundation.settings import ReleaseSettings
from payme_ops.release import request
from payme_ops.release.deploy import Doors
from payme_ops.release.request import Environment, Release, Request
from sandbox import payme_api
from sandbox.builds import commit_of
from sandbox.http import call
from sandbox.standin import Serves
from tests.support import standins
from tests.support.standins import StandIn

API_TOKEN, DEPLOY_TOKEN = "token-of-the-api", "token-that-deploys"
SETTINGS = ReleaseSettings(test_merchant=payme_api.TEST_MERCHANT, settle_seconds=20, drain_seconds=1)


@dataclass(frozen=True)
class Api:
    """The running API: the door that asks, the one that deploys, and its switches."""

    stand_in: StandIn

    @property
    def asks(self) -> PaymeApi:
        """With the token for /admin."""
        return PaymeApi(self.stand_in.url, API_TOKEN)

    @property
    def doors(self) -> Doors:
        """Both."""
        return Doors(self.asks, PaymeApi(self.stand_in.url, DEPLOY_TOKEN))

    def control(self, **asked: object) -> dict[str, Any]:
        """Tell it something; answers what it counted."""
        status, body = call("POST", f"{self.stand_in.url}/control", asked)
        assert status == 200, body
        return dict(body)

    @property
    def counted(self) -> dict[str, Any]:
        """Posts, deploys, orders, refunds."""
        return dict(self.stand_in.get("/control"))


@contextmanager
def api(folder: Path) -> Iterator[Api]:
    """The API as 2.4.0, for the block."""

    def make(port: int, state: Path) -> Serves:
        application = payme_api.Application(state, "", quiet=True, deploy_seconds=0.05)
        return payme_api.ApiServer(port, application, API_TOKEN, DEPLOY_TOKEN)

    with standins.served(make, folder / "api.jsonl") as running:
        yield Api(running)


def form(build: str = "2.4.1", previous: str = "2.4.0", **asked: Any) -> Request:
    """What is asked for a release of that build to production from now on; `asked` are other fields."""
    now = utc_now()
    made = Request(
        commit=commit_of(build),
        version=build.split("-")[0],
        environment=Environment.PRODUCTION,
        window_from=now,
        window_to=now + timedelta(hours=2),
        previous_commit=commit_of(previous),
        carries_migration=False,
        resume_after_watch=False,
        reason="a test",
    )
    return replace(made, **asked)


def release(
    ops: str, build: str = "2.4.1", *, run: str = "pre_deployment/a", previous: str = "2.4.0", **asked: Any
) -> Release:
    """A release of that, asked for by `oncall`."""
    return request.create(ops, run, "oncall", form(build, previous, **asked))
