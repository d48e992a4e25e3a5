"""Step 3: phone numbers become ciphertext while the application works; its backfill is killed halfway.

The application is a fleet of instances that checks what it reads and writes down what was acknowledged, and the API
stand-in, whose /health the gates ask. Where a gate waits for a release, both are deployed. A person approves.
"""

import os
import shutil
import signal
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import psycopg
from rich.console import Console

from payme_ops.backup.verification import VARIABLE
from payme_ops.cli import doors
from payme_ops.foundation import record, settings
from payme_ops.migration import control, rehearsal, shape, state
from payme_ops.migration.desk import MigrationDesk
from payme_ops.migration.names import PHONE_NUMBER
from payme_ops.migration.shape import Stage
from sandbox.http import call
from sandbox.payme_app.fleet import Fleet, Totals
from sandbox.payme_app.versions import PREFIX, V1, V2, V3, V4, V5, Version
from sandbox.payme_db import generate
from sandbox.supervisor import SandboxError
from sandbox.tour import ground
from sandbox.tour.count import Count
from sandbox.tour.ground import Desk

DAG = "phone_encryption"
# The release that a gate waits for, and where each part of the story begins.
RELEASES: Mapping[str, Version] = {
    "fleet_writes_both": V2,
    "fleet_reads_ciphertext": V3,
    "fleet_ignores_plaintext": V4,
    "fleet_final_name": V5,
}
PARTS: Mapping[str, str] = {
    "tell": "Before: the checklist",
    "look_before_expand": "Step 1: the encrypted column is added",
    "fleet_writes_both": "Step 2: the application writes both",
    "plan": "Step 3: every row is encrypted",
    "rewrap_legacy": "Step 4: every row is decrypted and compared",
    "fleet_reads_ciphertext": "Step 5: reads are switched",
    "look_before_drop": "Step 5: the plaintext is dropped",
    "final_look": "After",
}
_FORM = {"rehearsal": False, "window_from": "00:00", "window_to": "23:59", "brown_out_minutes": 0.2}
_REASON = "tour, step 3"
_USERS, _ADOPTED = generate.SIZES["demo"].users, 1_000
_INSTANCES, _CONNECTIONS, _PER_SECOND = 2, 2, 50.0  # beside Airflow, on a laptop
_KILL_FROM = 0.45  # of a range
_SECONDS, _POLL_SECONDS = 900.0, 1.0
_BACKFILL = "payme_ops:migration:backfill"  # the session that writes


@dataclass(kw_only=True)
class _Story(ground.Story):
    """One run in production, and what of it has been told."""

    desk: Desk
    fleet: Fleet
    count: Count
    run: str
    alone: bool


def walk(console: Console, alone: bool) -> None:
    """Answers approvals itself when `alone`. Raises SandboxError unless all turns out as docs/tour.md says."""
    with ground.desk(console) as desk:
        ground.until(partial(desk.oncall.dag_missing, DAG, datetime.min.replace(tzinfo=UTC)), DAG, _SECONDS)
        if _is_done(desk):
            console.print("The demo's phone numbers are encrypted already, and no way leads back.")
            console.print("To see it again: make clean, make demo, make tour STEP=3.")
            return
        console.print("\n[bold]1. A verified backup, and the rehearsal on it.[/bold]")
        _prepare(console, desk)
        folder = Path(tempfile.mkdtemp(prefix="payme-tour-"))
        try:
            with _application(desk, folder) as fleet, Count(console, fleet, _superuser(desk)) as count:
                console.print(f"\n[bold]2. The application at work, as {V1.number}.[/bold]")
                _deploy(desk, fleet, V1)
                console.print(f"\n[bold]3. {DAG} in production, triggered by on call.[/bold]")
                run = desk.oncall.trigger(DAG, {**_FORM, "reason": _REASON})
                _follow(_Story(console=console, desk=desk, fleet=fleet, count=count, run=run, alone=alone))
                count.look("has ended", now=True)
                version = fleet.running[0].version
                fleet.stop()
                # Also those users that nobody wrote to.
                count.lost.update(fleet.lost_writes(_superuser(desk), version, untouched=True))
                totals = fleet.account().totals()
        finally:
            shutil.rmtree(folder)
        _conclude(console, desk, run, totals, len(count.lost))


def _superuser(desk: Desk) -> str:
    return desk.world.cluster.conninfo("payme")


def _is_done(desk: Desk) -> bool:
    """Whether nothing is left to migrate. Raises SandboxError when an earlier walk was not finished."""
    with psycopg.connect(_superuser(desk), autocommit=True) as connection:
        stage = shape.inspect(connection, PHONE_NUMBER).stage
        if stage is Stage.SWITCHED:
            return True
        query = "SELECT count(*) FROM users WHERE starts_with(phone_number, %s)"
        written = 0 if stage is Stage.SHIMMED else (connection.execute(query, [PREFIX]).fetchone() or (0,))[0]
    busy = desk.oncall.busy(DAG)
    if stage is not Stage.START or written or busy:
        raise SandboxError(
            "this step was begun before and not finished",
            expected="the table as make demo makes it, and no run",
            found=f"{stage}; {written} users of the fleet; {busy or 'no run'}",
            remedy="stop the demo, then make clean and make demo (or look at the run in the Airflow UI, and end it)",
        )
    return False


def _prepare(console: Console, desk: Desk) -> None:
    ground.require_verified_backup(console, desk, _REASON)
    ground.require_run(console, desk, DAG, _REASON)  # its form comes with rehearsal on
    found = _newest_record(rehearsal.KIND)
    if found is None or found.verdict != "green":
        raise SandboxError("there is no green rehearsal", found=found.verdict if found else "none")
    console.print(f"   {found.verdict}, {len(found.evidence)} checks, on {found.subject}", soft_wrap=True)


def _newest_record(kind: str) -> record.Record | None:
    keys = settings.load().backup.verification_keys
    return record.newest(doors.catalogue(ground.S3).stores.home, kind, keys, VARIABLE)


def _application(desk: Desk, folder: Path) -> Fleet:
    with psycopg.connect(_superuser(desk), autocommit=True) as connection:
        connection.execute("GRANT DELETE ON users TO payme_app")  # its instances delete users, too
    return Fleet(
        desk.world.conninfo("payme_app", "payme"),
        folder,
        desk.world.env,
        generated=_USERS,
        adopted=_ADOPTED,
        instances=_INSTANCES,
        connections=_CONNECTIONS,
        per_second=_PER_SECOND,
    )


def _deploy(desk: Desk, fleet: Fleet, version: Version) -> None:
    """The API stand-in and the fleet, both."""
    url, token = desk.world.url("payme_api"), desk.world.secrets["payme_api.token"]
    status, answer = call("POST", f"{url}/admin/start", {"version": version.number}, token=token)
    if status != 200:
        raise SandboxError(f"the API does not start as {version.number}", found=f"status {status}, {answer}")
    (fleet.roll if fleet.running else fleet.start)(version)


def _follow(story: _Story) -> None:
    """Count and do what the run waits for, until it has ended."""
    while story.desk.oncall.unfinished(DAG, story.run) is not None:
        tasks = story.desk.oncall.tasks(DAG, story.run)
        for task in tasks:
            _attend(story, task)
        story.count.look(ground.doing(tasks))
        time.sleep(_POLL_SECONDS)


def _attend(story: _Story, task: Mapping[str, Any]) -> None:
    name, is_in = task["task_id"], task["state"]
    if name in PARTS and task["start_date"] and is_in != "skipped" and story.is_new(PARTS[name]):
        story.say(f"\n   {PARTS[name]}", "bold")
    if name in RELEASES and is_in == "up_for_reschedule" and story.is_new(f"release for {name}"):
        before, after = story.fleet.running[0].version, RELEASES[name]
        story.say(f"   {name} waits for {before.number} to go: {after.number} is deployed, one instance at a time")
        _deploy(story.desk, story.fleet, after)
    if ground.asks(story.desk.oncall, DAG, story.run, task) and story.is_new(f"question of {name}"):
        _ask(story, name)
    # Already while the ranges are planned: the backfill of the demo's users lasts a second or two.
    if name == "plan" and is_in in ("running", "success") and story.is_new("kill"):
        _kill_halfway(story)


def _ask(story: _Story, gate: str) -> None:
    question = story.desk.oncall.question(DAG, story.run, gate)
    story.say(f"   A second person is asked: {question['subject']}", "bold yellow")
    if story.alone:
        story.desk.approver.answer(DAG, story.run, gate, "Approve")
        story.say(f"   {gate}: answered as approver: Approve")
        return
    story.say(ground.where_to_answer(story.desk, DAG, story.run, gate, "approver"))
    story.say("   read what was found, then Approve. The traffic goes on until you have.")


def _kill_halfway(story: _Story) -> None:
    """Hold the backfill until its tasks are known, and kill -9 them in the middle: Airflow tries them again."""
    world = story.desk.world
    desk = MigrationDesk(
        settings.load(), world.conninfo("payme_db_migrate", "payme"), world.conninfo("payme_ops", "payme_ops"), "tour"
    )
    control.pause(desk, reason="the tour has the backfill wait until it is looked at (step 3)")
    with psycopg.connect(_superuser(story.desk), autocommit=True) as connection:
        try:
            ground.until(lambda: None if _at_work(story, connection) else "none", "a task that encrypts", _SECONDS)
            killed = [task["pid"] for task in _at_work(story, connection)]
        finally:
            control.resume(desk, reason="the tour looks at the backfill (step 3)")
        ground.until(partial(_not_halfway, connection), "half of a range", _SECONDS, every_seconds=0.01)
        for pid in killed:
            os.kill(pid, signal.SIGKILL)
        written, total = _written(connection), _count(connection)
    which = " and ".join(map(str, killed))
    story.say(f"   {written:,} of {total:,} rows are written: kill -9 of encrypt, process {which}", "bold red")


def _not_halfway(connection: psycopg.Connection) -> str | None:
    query = (
        "SELECT max((done_to - low)::float / (high - low)) FROM payme_migration.progress"
        " WHERE subject = %s AND work = 'encrypt' AND ended_at IS NULL"
    )
    done = (connection.execute(query, [state.subject(PHONE_NUMBER)]).fetchone() or (None,))[0]
    return None if done is not None and done >= _KILL_FROM else f"{done or 0:.0%} of a range"


def _written(connection: psycopg.Connection) -> int:
    query = "SELECT coalesce(sum(written), 0)::bigint FROM payme_migration.progress WHERE subject = %s"
    return int((connection.execute(query, [state.subject(PHONE_NUMBER)]).fetchone() or (0,))[0])


def _count(connection: psycopg.Connection) -> int:
    return int((connection.execute("SELECT count(*) FROM users").fetchone() or (0,))[0])


def _at_work(story: _Story, connection: psycopg.Connection) -> list[dict[str, Any]]:
    """Tasks of this run that are encrypting: their process holds one of the backfill's sessions in this database."""
    query = "SELECT client_port FROM pg_stat_activity WHERE datname = current_database() AND application_name = %s"
    ports = {row[0] for row in connection.execute(query, [_BACKFILL])}
    tasks = story.desk.oncall.tasks(DAG, story.run)
    running = [task for task in tasks if task["task_id"] == "encrypt" and task["state"] == "running" and task["pid"]]
    return [task for task in running if ports & _local_ports(task["pid"])]


def _local_ports(pid: int) -> set[int]:
    try:
        return {one.laddr.port for one in psutil.Process(pid).net_connections("tcp") if one.laddr}
    except psutil.NoSuchProcess:
        return set()


def _conclude(console: Console, desk: Desk, run: str, totals: Totals, lost: int) -> None:
    tasks = desk.oncall.tasks(DAG, run)
    tries = [task["try_number"] for task in tasks if task["task_id"] == "encrypt"]
    kept = _newest_record(DAG)
    verdict = kept.verdict if kept is not None and kept.run == f"{DAG}/{run}" else "none"
    counted = f"{totals.failed_queries} / {totals.wrong_reads} / {lost}"
    console.print("\n[bold]4. The count.[/bold]")
    console.print(f"   requests                {totals.requests:,}")
    console.print(f"   writes acknowledged     {totals.acknowledged_writes:,}")
    console.print(f"   users compared          {_USERS:,}, and those that the fleet has made")
    console.print(f"   failed / wrong / lost   {counted}")
    console.print(f"   tries of encrypt        {', '.join(map(str, sorted(tries)))}")
    console.print(f"   the signed record       {verdict}")
    for what, times in totals.what.items():
        console.print(f"   {what}: {times}", style="red", markup=False)
    if (counted, verdict, desk.oncall.state(DAG, run)) != ("0 / 0 / 0", "DONE", "success") or max(tries, default=0) < 2:
        failed = [task["task_id"] for task in tasks if task["state"] == "failed"]
        raise SandboxError(
            "the migration did not turn out as it should",
            expected="0 / 0 / 0, a killed task that was tried again, and DONE",
            found=f"{counted}, tries {tries}, {verdict}; failed: {', '.join(failed) or 'no task'}",
            remedy=f"look at the run {run} in the Airflow UI",
        )
