"""The daily backup as its users meet it: triggered by the API, watched in Slack and Sentry, killed in the middle."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import psycopg
import pytest

from payme_ops.backup import catalogue
from payme_ops.backup.manifest import Manifest, Tier
from sandbox import postgres, s3
from sandbox.payme_db.generate import CANARY_PHONE
from tests.e2e.conftest import DAG, RUN_WITHIN_SECONDS, Desk

BUCKET = "payme-backups"


def newest(desk: Desk) -> Manifest | None:
    return catalogue.newest(desk.catalogue, Tier.DAILY)


def superuser(desk: Desk, dbname: str = "payme") -> psycopg.Connection:
    return psycopg.connect(desk.world.cluster.conninfo(dbname), autocommit=True)


def alerts_of(desk: Desk, run: str) -> list[str]:
    return [text for text in map(json.dumps, desk.slack()) if run in text]


def events_of(desk: Desk, run: str) -> list[dict[str, Any]]:
    return [event for event in desk.sentry() if run in json.dumps(event)]


def leftovers(desk: Desk) -> dict[str, object]:
    """What a backup that has ended must not leave."""
    with superuser(desk) as connection:
        sessions = connection.execute(
            "SELECT application_name FROM pg_stat_activity WHERE application_name LIKE 'payme_ops:%'"
        ).fetchall()
    uploads = s3.client(desk.world.url("s3")).list_multipart_uploads(Bucket=BUCKET).get("Uploads", [])
    # Of this desk's server: other tests dump at the same time.
    server = f"port={desk.world.ports['postgres']}"
    tools = [
        process.pid
        for process in psutil.process_iter(["name", "cmdline"])
        if process.info["name"] == "pg_dump" and server in " ".join(process.info["cmdline"] or [])
    ]
    return {"sessions": sessions, "uploads": uploads, "tools": tools}


NOTHING: dict[str, object] = {"sessions": [], "uploads": [], "tools": []}


def test_a_triggered_run_leaves_a_proven_backup(desk: Desk) -> None:
    before = len(desk.slack())
    run, state = desk.run(reason="end-to-end test")
    assert state == "success"
    assert set(desk.states(run).values()) == {"success"}

    manifest = newest(desk)
    assert manifest is not None
    assert manifest.run == f"{DAG}/{run}"
    assert manifest.read_back is not None
    with superuser(desk) as connection:
        ((users,),) = connection.execute("SELECT count(*) FROM users").fetchall()
    assert {r.qualified: r.rows for r in manifest.truth.relations}["public.users"] == users

    events = desk.api.call("GET", f"/dags/{DAG}/dagRuns/{run}/taskInstances")  # the run's own page loads
    assert events["total_entries"] == 4
    asset_events = desk.api.call("GET", "/assets/events?limit=100")["asset_events"]
    assert [e["extra"]["manifest"] for e in asset_events if e["source_run_id"] == run] == [manifest.key]
    assert len(desk.slack()) == before  # nobody is woken for a success
    assert leftovers(desk) == NOTHING


def test_the_scheduled_run_is_planned_for_two_in_nairobi(desk: Desk) -> None:
    planned = desk.api.call("GET", f"/dags/{DAG}")["next_dagrun_run_after"]
    assert planned.endswith("T23:00:00Z")  # 02:00 EAT


@pytest.mark.long
def test_a_run_older_than_the_newest_snapshot_skips_and_says_why(desk: Desk) -> None:
    desk.run()
    first = desk.api.trigger(DAG)
    second = desk.api.trigger(DAG)  # waits behind the first, which makes what it asks for
    for run in (first, second):
        desk.supervisor.until(partial(desk.api.unfinished, DAG, run), run, RUN_WITHIN_SECONDS)
    assert desk.states(second)["dump_and_store"] == "skipped"
    manifest = newest(desk)
    assert manifest is not None
    assert manifest.key in desk.api.log(DAG, second, "dump_and_store")


@contextmanager
def unreadable_table(desk: Desk) -> Iterator[None]:
    """A table the backup role may not read, whose name is a phone number: it must not get into any message."""
    with superuser(desk) as connection:
        connection.execute(f'CREATE SCHEMA closed; CREATE TABLE closed."{CANARY_PHONE}" (id int)')
        connection.execute("REVOKE pg_read_all_data FROM payme_db_read")
        connection.execute("GRANT USAGE ON SCHEMA closed TO payme_db_read")
        yield
        connection.execute("DROP SCHEMA closed CASCADE")
        connection.execute("GRANT pg_read_all_data TO payme_db_read")


@contextmanager
def unencrypted_bucket(desk: Desk) -> Iterator[None]:
    client = s3.client(desk.world.url("s3"))
    rules = client.get_bucket_encryption(Bucket=BUCKET)["ServerSideEncryptionConfiguration"]
    client.delete_bucket_encryption(Bucket=BUCKET)
    try:
        yield
    finally:
        client.put_bucket_encryption(Bucket=BUCKET, ServerSideEncryptionConfiguration=rules)


def test_a_failed_run_is_one_message_and_one_event(desk: Desk) -> None:
    with unencrypted_bucket(desk), unreadable_table(desk):
        run, state = desk.run()
    assert state == "failed"
    tasks = desk.api.tasks(DAG, run)
    failed = next(task for task in tasks if task["state"] == "failed")
    assert (failed["task_id"], failed["try_number"]) == ("preflight", 1)  # trying again would find the same

    desk.supervisor.until(lambda: None if alerts_of(desk, run) else "the alert", "Slack", 60)
    log = desk.api.log(DAG, run, "preflight")
    assert "bucket_encryption (fail)" in log
    assert "turn on default encryption" in log
    assert 'closed."[phone]": no SELECT' in log
    # The DAG-level callback comes after the task's: once it has run, there is still one of each.
    desk.supervisor.until(partial(dag_callback_missing, desk, run), "the DAG-level callback", 60)
    (alert,) = alerts_of(desk, run)
    for part in ("preflight", "bucket_encryption", "runbook", desk.world.url("airflow")):
        assert part in alert, part
    (event,) = events_of(desk, run)
    assert "PreflightFailed" in json.dumps(event)


def dag_callback_missing(desk: Desk, run: str) -> str | None:
    """The dag-processor says in its log which callbacks it has executed."""
    logs = desk.world.root / "airflow" / "logs" / "dag_processor"
    found = any(run in path.read_text(errors="replace") for path in logs.rglob("*.log"))
    return None if found else "its line in the dag-processor's log"


def kill_task_at_work(desk: Desk) -> bool:
    """SIGKILL the process that holds the snapshot lease; False when there is none."""
    with superuser(desk, "payme_ops") as connection:
        row = connection.execute(
            "SELECT client_port FROM pg_stat_activity WHERE application_name LIKE 'payme_ops:lease:snapshot:%'"
        ).fetchone()
    if row is None:
        return False
    for found in psutil.net_connections("tcp"):
        if found.laddr and found.laddr.port == row[0] and found.pid and found.raddr:
            os.kill(found.pid, signal.SIGKILL)
            return True
    return False


@contextmanager
def table_held(desk: Desk) -> Iterator[None]:
    """Somebody holds `users` exclusively: the dump waits, gives way, and tries again, for some ten seconds."""
    with psycopg.connect(desk.world.cluster.conninfo("payme")) as connection:
        connection.execute("LOCK TABLE users IN ACCESS EXCLUSIVE MODE")
        yield
        connection.rollback()


@pytest.mark.long
def test_a_task_killed_once_is_tried_again_and_succeeds(desk: Desk) -> None:
    desk.supervisor.until(partial(desk.api.busy, DAG), DAG, RUN_WITHIN_SECONDS)
    with table_held(desk):
        run = desk.api.trigger(DAG)
        desk.supervisor.until(lambda: None if kill_task_at_work(desk) else "its dump", DAG, 120)
    desk.supervisor.until(partial(desk.api.unfinished, DAG, run), DAG, RUN_WITHIN_SECONDS)
    assert desk.api.state(DAG, run) == "success"
    dump = next(task for task in desk.api.tasks(DAG, run) if task["task_id"] == "dump_and_store")
    assert dump["try_number"] == 2
    assert alerts_of(desk, run) == []
    assert leftovers(desk) == NOTHING


@pytest.mark.long
def test_a_task_killed_every_time_still_pages_once(desk: Desk) -> None:
    """A killed task's own callback never runs: the alert comes from the DAG level."""
    desk.supervisor.until(partial(desk.api.busy, DAG), DAG, RUN_WITHIN_SECONDS)
    before = newest(desk)
    with table_held(desk):
        run = desk.api.trigger(DAG)

        def killing_until_it_fails() -> str | None:
            kill_task_at_work(desk)
            return desk.api.unfinished(DAG, run)

        desk.supervisor.until(killing_until_it_fails, DAG, RUN_WITHIN_SECONDS)
    assert desk.api.state(DAG, run) == "failed"
    desk.supervisor.until(lambda: None if alerts_of(desk, run) else "the alert", "Slack", 60)
    desk.supervisor.until(lambda: None if events_of(desk, run) else "the event", "Sentry", 60)
    assert len(alerts_of(desk, run)) == 1
    assert len(events_of(desk, run)) == 1
    assert newest(desk) == before  # no catalogue entry of a run that failed
    run, state = desk.run()
    assert state == "success"
    assert leftovers(desk) == NOTHING


@pytest.mark.long
def test_commit_refuses_without_the_evidence_of_read_back(desk: Desk) -> None:
    """Marking a task as success in the UI does not make a backup of what was never read back."""
    run, state = desk.run()
    assert state == "success"
    with superuser(desk, "payme_ops") as connection:
        connection.execute("DELETE FROM ops.evidence WHERE run = %s AND item = 'read_back'", [f"{DAG}/{run}"])
    before = newest(desk)
    desk.api.call(
        "POST",
        f"/dags/{DAG}/clearTaskInstances",
        {"dag_run_id": run, "task_ids": ["commit"], "dry_run": False, "only_failed": False},
    )
    desk.supervisor.until(partial(desk.api.unfinished, DAG, run), DAG, RUN_WITHIN_SECONDS)
    assert desk.states(run)["commit"] == "failed"
    assert newest(desk) == before


@pytest.mark.long
def test_airflow_and_shell_at_once_make_one_dump(desk: Desk) -> None:
    """The shell finds the lease held and says by which run."""
    desk.supervisor.until(partial(desk.api.busy, DAG), DAG, RUN_WITHIN_SECONDS)
    with table_held(desk):
        run = desk.api.trigger(DAG)
        with superuser(desk, "payme_ops") as connection:
            holding = "SELECT 1 FROM pg_stat_activity WHERE application_name LIKE 'payme_ops:lease:snapshot:%'"
            desk.supervisor.until(lambda: None if connection.execute(holding).fetchone() else "the lease", DAG, 120)
        shell = subprocess.run(
            [sys.executable, "-m", "payme_ops", "backup", "run"],
            env=dict(desk.world.env),
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
    assert shell.returncode == 5
    assert f"{DAG}/{run}" in shell.stderr.replace("\n", "")
    desk.supervisor.until(partial(desk.api.unfinished, DAG, run), DAG, RUN_WITHIN_SECONDS)


def test_no_secret_and_no_phone_number_anywhere(desk: Desk) -> None:
    """Runs last in this file: everything above has written its logs, rows, messages and objects."""
    keys = Path(desk.world.env["PAYME_OPS__BACKUP__SIGNING_KEY_FILE"]).parent
    needles = {name: value for name, value in desk.world.secrets.items() if len(value) >= 8}
    needles |= {f"key {path.name}": path.read_text().strip().splitlines()[-2] for path in keys.glob("*.pem")}
    needles |= {
        f"key {path.name}": line
        for path in keys.iterdir()
        for line in path.read_text().splitlines()
        if line.startswith("AGE-SECRET-KEY")
    }
    needles["the canary's phone number"] = CANARY_PHONE.removeprefix("+")
    haystacks = dict(_haystacks(desk))
    assert sum(map(len, haystacks.values())) > 100_000
    found = [
        (name, place) for name, value in needles.items() for place, text in haystacks.items() if value.encode() in text
    ]
    assert found == []


def _haystacks(desk: Desk) -> Iterator[tuple[str, bytes]]:
    root = desk.world.root
    for folder in (root / "logs", root / "airflow" / "logs"):
        for path in folder.rglob("*"):
            if path.is_file():
                yield str(path.relative_to(root)), path.read_bytes()
    for path in desk.world.cluster.data_dir.parent.glob("**/*.log"):
        yield f"server log {path.name}", path.read_bytes()
    for name in ("slack", "sentry"):
        yield name, json.dumps(desk.slack() if name == "slack" else desk.sentry()).encode()
    client = s3.client(desk.world.url("s3"))
    for item in client.list_objects_v2(Bucket=BUCKET)["Contents"]:
        yield item["Key"], client.get_object(Bucket=BUCKET, Key=item["Key"])["Body"].read()
    # XCom, rendered fields, run configuration, evidence, alerts.
    for database in ("airflow", "payme_ops"):
        dump = subprocess.run(
            [
                desk.world.cluster.bin_dir / "pg_dump",
                "--data-only",
                f"--dbname={desk.world.cluster.conninfo(database)}",
            ],
            capture_output=True,
            check=True,
        )
        yield f"database {database}", dump.stdout


def test_the_needles_would_be_found(desk: Desk) -> None:
    """The search above can fail: the canary is in the plain dump of the database that was backed up."""
    dump = subprocess.run(
        [
            postgres.wheel_bin_dir() / "pg_dump",
            "--data-only",
            "--table=users",
            f"--dbname={desk.world.cluster.conninfo('payme')}",
        ],
        capture_output=True,
        check=True,
    )
    assert CANARY_PHONE.removeprefix("+").encode() in dump.stdout


@pytest.mark.parametrize("user", ["oncall", "approver"])
def test_a_login_sees_the_runbook_of_the_dag(desk: Desk, user: str) -> None:
    from sandbox.airflow import login

    details = login(desk.world, user).call("GET", f"/dags/{DAG}/details")
    assert details["doc_md"].startswith("# backup_daily")
