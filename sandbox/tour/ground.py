"""What a step stands on: the running demo, or as much of it as the step needs, started for its time."""

import contextlib
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any
from urllib.parse import quote

from rich.console import Console

from payme_ops.backup import catalogue
from payme_ops.backup.catalogue import State
from payme_ops.backup.manifest import Tier
from payme_ops.cli import doors
from payme_ops.foundation.clock import utc_now
from sandbox import airflow, world
from sandbox.airflow import Api
from sandbox.demo import ROOT
from sandbox.supervisor import SandboxError
from sandbox.world import PROJECT, World

S3 = "payme_s3_restore"
_BACKUP_MAX_AGE = timedelta(hours=26)  # as the checklists have it
_SECONDS = 900.0
# What is said of a task that is neither done nor to come.
_DOING = {
    "running": "runs",
    "up_for_reschedule": "waits for a release",
    "deferred": "waits without a worker",
    "awaiting_input": "asks a person",
    "up_for_retry": "is tried again soon",
}


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


@dataclass(kw_only=True)
class Story:
    """What of a step has been told."""

    console: Console
    told: set[str] = field(default_factory=set)

    def say(self, text: str, style: str = "") -> None:
        """A line, above one that counts."""
        self.console.print(text, style=style, markup=False, soft_wrap=True)

    def is_new(self, what: str) -> bool:
        """Whether that was not told yet; it is now."""
        new = what not in self.told
        self.told.add(what)
        return new


@dataclass(frozen=True)
class Desk:
    """The running desk and its people."""

    world: World
    oncall: Api
    approver: Api
    lead: Api

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
        supervisor.start(world.application(here), world.staging(here))
        airflow.start(here, supervisor, airflow.environment(world.watched(here)))
        yield _desk(here)


def require_verified_backup(console: Console, desk: Desk, reason: str) -> None:
    """Take and test one, unless there is one that is young enough. Raises SandboxError."""
    found = catalogue.entries(doors.catalogue(S3), tiers=[Tier.DAILY], newest_first=True)
    newest = next((one for one in found if one.state is State.VERIFIED), None)
    if newest is None or utc_now() - newest.trusted.snapshot_at >= _BACKUP_MAX_AGE:
        for dag in ("backup_daily", "backup_restore_test"):
            require_run(console, desk, dag, reason)


def require_run(console: Console, desk: Desk, dag: str, reason: str) -> None:
    """Run the DAG as its form comes, and say how long it took. Raises SandboxError unless it succeeds."""
    until(partial(desk.oncall.busy, dag), dag, _SECONDS)
    begun = time.monotonic()
    with console.status(f"{dag} …"):
        run, ended = desk.run(dag, {"reason": reason}, _SECONDS)
    if ended != "success":
        raise SandboxError(f"{dag} ended otherwise", expected="success", found=f"{ended}, run {run}")
    console.print(f"   {dag}: {ended} after {time.monotonic() - begun:.0f} s")


def asks(api: Api, dag: str, run: str, task: Mapping[str, Any]) -> bool:
    """Whether a person may answer that task of the run now."""
    if task["state"] != "awaiting_input":
        return False
    return airflow.may_be_answered(api.question(dag, run, task["task_id"]), datetime.now(UTC))


def doing(tasks: Iterable[Mapping[str, Any]]) -> str:
    """What the run is at, in a few words."""
    said = dict.fromkeys(f"{task['task_id']} {_DOING[task['state']]}" for task in tasks if task["state"] in _DOING)
    return ", ".join(said)


def where_to_answer(desk: Desk, dag: str, run: str, task: str, user: str) -> str:
    """What a person opens, and who they are there: two lines."""
    page = f"{desk.world.url('airflow')}/dags/{dag}/runs/{quote(run)}/tasks/{task}/required_actions?map_index=-1"
    file = desk.world.credentials.relative_to(PROJECT)
    return f"   open    {page}\n   log in  as {user}, password in {file}, section [airflow]"


def _desk(here: World) -> Desk:
    os.environ.update(here.env)
    return Desk(here, *(airflow.login(here, user) for user in world.USERS))


def _require_demo() -> None:
    if not ROOT.exists():
        raise SandboxError("there is no backup yet", remedy="run make demo first")
