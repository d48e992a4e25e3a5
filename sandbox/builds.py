"""The builds of the PayMe API that the sandbox knows: their commits, and what is wrong with some of them."""

import hashlib
from dataclasses import dataclass


@dataclass(frozen=True)
class Build:
    """`fault` is what it does from `after_seconds` on, in the words of /control; "" for a good one.

    `with_traffic`: only where it has traffic, so never on staging.
    """

    name: str
    version: str
    fault: str = ""
    after_seconds: float = 0.0
    with_traffic: bool = False

    @property
    def commit(self) -> str:
        """40 hexadecimal digits."""
        return commit_of(self.name)


def commit_of(name: str) -> str:
    """The commit of the build of that name."""
    return hashlib.sha1(f"payme-api {name}".encode(), usedforsecurity=False).hexdigest()


_BUILDS = (
    *(Build(number, number) for number in ("2.3.0", "2.3.1", "2.4.0", "2.4.1")),
    Build("2.4.2-unhealthy", "2.4.2", "unhealthy"),
    Build("2.4.3-failing", "2.4.3", "unhealthy", after_seconds=20.0),
    Build("2.4.4-slow", "2.4.4", "slow"),
    Build("2.4.5-leaking", "2.4.5", "unhealthy", after_seconds=110.0, with_traffic=True),
    Build("2.8.1-leaking", "2.8.1", "unhealthy", after_seconds=110.0, with_traffic=True),
    *(Build(number, number) for number in ("2.5.0", "2.6.0", "2.7.0", "2.8.0")),
)

BUILDS = {build.name: build for build in _BUILDS}
BY_COMMIT = {build.commit: build for build in _BUILDS}
