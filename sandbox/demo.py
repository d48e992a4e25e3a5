"""`make demo`: PayMe's world, a real Airflow, the daily backup by an API trigger, and the proof from the bucket."""

import contextlib
import os
import time
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

from rich.console import Console
from rich.markup import escape

from payme_ops.backup import catalogue
from payme_ops.backup.manifest import Manifest, Tier
from payme_ops.cli import doors
from payme_ops.cli.tables import proof_table
from sandbox import airflow, world
from sandbox.airflow import Api
from sandbox.supervisor import SandboxError, Supervisor
from sandbox.world import PROJECT, World

ROOT = PROJECT / ".demo"
DAG = "backup_daily"
_DAG_SECONDS = 120.0
_BACKUP_SECONDS = 300.0
_LOG_LINES = 15


def demo(console: Console, *, once: bool) -> None:
    """Start everything, run the backup, show the proof; then stay until a signal comes, or stop (`once`)."""
    begun = time.monotonic()

    def say(text: str) -> None:
        console.print(f"[dim]{time.monotonic() - begun:5.0f} s[/dim]  {escape(text)}", soft_wrap=True)

    with world.running(ROOT, size="demo", say=say) as (built, supervisor):
        here = world.watched(built)
        supervisor.start(world.application(here), world.staging(here))
        env = airflow.environment(here)
        since = datetime.now(UTC)
        airflow.start(here, supervisor, env)
        api = airflow.login(here)
        supervisor.until(partial(api.dag_missing, DAG, since), DAG, _DAG_SECONDS)
        back_up(api, supervisor)
        supervisor.start(world.watchdog(here))
        os.environ.update(here.env)
        console.print()
        console.print(proof_table(newest_backup()))
        console.print(_where(here), markup=False, soft_wrap=True)
        if not once:
            console.print("Everything keeps running. Ctrl-C stops it and keeps the data.")
            _stay(supervisor)


def back_up(api: Api, supervisor: Supervisor) -> None:
    """Run the DAG. Raises SandboxError with the failed task's last lines when it does not succeed."""
    # A demo that stood still over a slot runs it now; ours would find that newer backup and do nothing.
    supervisor.until(partial(api.busy, DAG), DAG, _BACKUP_SECONDS)
    reason = {"reason": "make demo"}
    run, state = airflow.run_dag(supervisor, api, DAG, reason, within_seconds=_BACKUP_SECONDS)
    if state == "success":
        return
    for task in api.tasks(DAG, run):
        if task["state"] == "failed":
            lines = api.log(DAG, run, task["task_id"], task["try_number"]).splitlines()[-_LOG_LINES:]
            raise SandboxError(f"{DAG} failed in {task['task_id']}", found="\n    ".join(["its log:", *lines]))
    raise SandboxError(f"{DAG} ended as {state}", found="no failed task", remedy="look at the run in the Airflow UI")


def newest_backup() -> Manifest:
    """The newest daily backup in the bucket, by its signed manifest. The environment must be the world's."""
    found = catalogue.newest(doors.catalogue("payme_s3_restore"), Tier.DAILY)
    if found is None:
        raise SandboxError("the bucket holds no complete backup", remedy="run make demo")
    return found


def _where(here: World) -> str:
    lines = [
        f"Airflow UI   {here.url('airflow')}   login in {_below(here.credentials)}, section [airflow]",
        f"Slack        {here.url('slack')}   (stand-in: what the on-call channel would have seen)",
        f"Sentry       {here.url('sentry')}   (stand-in: what the error tracker would have seen)",
        f"PayMe API    {here.url('payme_api')}   (stand-in: the application; it writes to the database)",
        f"Staging      {here.url('payme_api_staging')}   (stand-in: the application's staging)",
        f"Code host    {here.url('code_host')}   (stand-in: commits, reviews and checks of the application)",
        f"Status page  {here.url('status_page')}   (stand-in: what customers would see)",
        f"Mail         {here.url('mail')}   (stand-in: what the support address would have got)",
        "Watchdog     tells the Slack above who has gone silent; its heartbeat is under Crons in Sentry",
        f"Logs         {_below(here.root / 'logs')}",
    ]
    return "\n" + "\n".join(lines) + "\n"


def _below(path: Path) -> Path:
    return path.relative_to(PROJECT)


def _stay(supervisor: Supervisor) -> None:
    with contextlib.suppress(KeyboardInterrupt):  # the way out that was offered
        supervisor.stay()
