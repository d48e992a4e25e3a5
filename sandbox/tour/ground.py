"""What a step stands on: the running demo, or as much of it as the step needs, started for its time."""

import contextlib
import os
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial

from rich.console import Console

from sandbox import airflow, world
from sandbox.airflow import Api
from sandbox.demo import ROOT
from sandbox.supervisor import SandboxError
from sandbox.world import World


@contextlib.contextmanager
def services(console: Console) -> Iterator[World]:
    """The demo's database, store and stand-ins. Raises SandboxError when there was never a demo."""
    if world.is_running(ROOT):
        yield world.attach(ROOT)
        return
    _require_demo()
    console.print("The demo is not running: starting its database and store for this step.")
    with world.running(ROOT, size="demo") as (here, _):
        yield here


@dataclass(frozen=True)
class Desk:
    """The running desk and its two users."""

    world: World
    oncall: Api
    approver: Api

    def run(self, dag: str, conf: Mapping[str, object], within_seconds: float = 600) -> tuple[str, str]:
        """Trigger as oncall and wait for the end; run id and state. Raises SandboxError when it takes longer."""
        run = self.oncall.trigger(dag, conf)
        until(partial(self.oncall.unfinished, dag, run), f"{dag} to finish", within_seconds)
        return run, self.oncall.state(dag, run)


def until(unready: Callable[[], str | None], what: str, within_seconds: float, *, every_seconds: float = 0.5) -> None:
    """Wait until a ready condition answers None. Raises SandboxError naming what was still missing."""
    deadline = time.monotonic() + within_seconds
    while (missing := unready()) is not None:
        if time.monotonic() > deadline:
            raise SandboxError(f"waited {within_seconds:.0f} s for {what}", found=missing)
        time.sleep(every_seconds)


@contextlib.contextmanager
def desk(console: Console) -> Iterator[Desk]:
    """The same with Airflow."""
    if world.is_running(ROOT):
        yield _desk(world.attach(ROOT))
        return
    _require_demo()
    console.print("The demo is not running: starting it, with Airflow, for this step (about half a minute).")
    with world.running(ROOT, size="demo") as (here, supervisor):
        supervisor.start(world.application(here))
        airflow.start(here, supervisor, airflow.environment(here))
        yield _desk(here)


def _desk(here: World) -> Desk:
    os.environ.update(here.env)
    return Desk(here, *(airflow.login(here, user) for user in world.USERS))


def _require_demo() -> None:
    if not ROOT.exists():
        raise SandboxError("there is no backup yet", remedy="run make demo first")
