"""Phone numbers in production: locked without a rehearsal, then five steps, people and releases in between."""

import json
import re
from datetime import UTC, datetime
from functools import partial
from typing import Any

import psycopg
import pytest

from payme_ops.foundation import record
from payme_ops.foundation.objectstore import Bucket
from payme_ops.migration import envelope
from payme_ops.migration.names import PHONE_NUMBER
from sandbox import airflow, s3, world
from sandbox.payme_db.generate import CANARY_PHONE, phone_number
from tests.e2e.conftest import PARSED_WITHIN_SECONDS, RUN_WITHIN_SECONDS, Desk

pytestmark = [pytest.mark.long, pytest.mark.timeout(1800)]

DAG, BACK = "phone_encryption", "phone_encryption_rollback"
ALWAYS = {"window_from": "00:00", "window_to": "23:59", "brown_out_minutes": 0.1}


def superuser(desk: Desk) -> psycopg.Connection:
    return psycopg.connect(desk.world.cluster.conninfo("payme"), autocommit=True)


def columns(desk: Desk) -> list[str]:
    query = "SELECT attname FROM pg_attribute WHERE attrelid = 'users'::regclass AND attnum > 0 AND NOT attisdropped"
    with superuser(desk) as connection:
        return [row[0] for row in connection.execute(query)]


def answered(desk: Desk, approver: airflow.Api, run: str, gate: str, choice: str = "Approve", dag: str = DAG) -> str:
    """Wait for the question, answer it as the second person; its body."""
    desk.supervisor.until(partial(desk.api.not_asking, dag, run, gate), gate, RUN_WITHIN_SECONDS)
    body = str(desk.api.question(dag, run, gate)["body"])
    approver.answer(dag, run, gate, choice)
    return body


def ended(desk: Desk, run: str, dag: str = DAG) -> tuple[str, dict[str, str]]:
    desk.supervisor.until(partial(desk.api.unfinished, dag, run), dag, RUN_WITHIN_SECONDS)
    return desk.api.state(dag, run), desk.states(run, dag)


def waits(desk: Desk, run: str, task: str, dag: str = DAG) -> None:
    """Wait until the sensor has looked once and waits for its next look."""

    def missing() -> str | None:
        state = desk.states(run, dag).get(task)
        return None if state == "up_for_reschedule" else f"{task} to wait, which is {state}"

    desk.supervisor.until(missing, task, RUN_WITHIN_SECONDS)


@pytest.fixture(scope="module")
def approver(desk: Desk) -> airflow.Api:
    return airflow.login(desk.world, "approver")


@pytest.fixture(scope="module", autouse=True)
def _parsed(busy_desk: Desk) -> None:
    """PayMe's application at work as 2.4.0, and both DAGs known."""
    since = datetime.min.replace(tzinfo=UTC)
    for dag in (DAG, BACK):
        busy_desk.supervisor.until(partial(busy_desk.api.dag_missing, dag, since), dag, PARSED_WITHIN_SECONDS)


def test_without_a_rehearsal_production_is_locked(desk: Desk) -> None:
    state, tasks = ended(desk, desk.api.trigger(DAG, {"rehearsal": False, "reason": "too early", **ALWAYS}))
    assert (state, tasks["backup_and_rehearsal"], tasks["expand"]) == ("failed", "failed", "upstream_failed")
    assert PHONE_NUMBER.ciphertext not in columns(desk)


def test_versions_out_of_order_are_refused(desk: Desk) -> None:
    asked = {"rehearsal": False, "reason": "wrong", "final_name": "2.5.0", **ALWAYS}
    run = desk.api.trigger(DAG, asked)
    state, tasks = ended(desk, run)
    assert (state, tasks["check_request"], tasks["way"]) == ("failed", "failed", "upstream_failed")
    assert "not a sequence" in desk.api.log(DAG, run, "check_request")


def test_the_rehearsal_is_green_and_kept(desk: Desk) -> None:
    assert desk.run(reason="to rehearse on")[1] == "success"
    assert desk.run("backup_restore_test")[1] == "success"
    run = desk.api.trigger(DAG, {"reason": "rehearsal"})
    state, tasks = ended(desk, run)
    assert state == "failed" or tasks["rehearse"] == "success"
    assert (tasks["rehearse"], tasks["checklist"]) == ("success", "skipped"), desk.api.log(DAG, run, "rehearse")
    assert newest(desk, "phone_encryption_rehearsal").verdict == "green"
    assert PHONE_NUMBER.ciphertext not in columns(desk)
    assert state == "success"


def newest(desk: Desk, kind: str) -> record.Record:
    bucket = Bucket(s3.client(desk.world.url("s3")), world.HOME_BUCKET)
    found = record.newest(bucket, kind, [desk.world.env["PAYME_OPS__BACKUP__VERIFICATION_KEYS"]], "test")
    assert found is not None
    return found


def test_there_and_half_way_back(desk: Desk, approver: airflow.Api) -> None:
    """Expanded under 2.4.0; the fleet gate holds; somebody thinks better of it, and the rollback takes it all back."""
    run = desk.api.trigger(DAG, {"rehearsal": False, "reason": "first try", **ALWAYS})
    body = answered(desk, approver, run, "approve_start")
    assert "verified" in body
    assert "stakeholders" in body
    waits(desk, run, "fleet_writes_both")
    assert "payme-api/2.4.0" in desk.api.log(DAG, run, "fleet_writes_both")
    assert PHONE_NUMBER.ciphertext in columns(desk)
    desk.api.call("PATCH", f"/dags/{DAG}/dagRuns/{run}", {"state": "failed"})
    state, tasks = ended(desk, run)
    assert (state, tasks["verdict"]) == ("failed", "failed")
    assert newest(desk, "phone_encryption").verdict == "NOT DONE"

    refused = desk.api.trigger(BACK, {"reason": "not so fast", "back_to": "expand"})
    answered(desk, approver, refused, "approve_rollback", "Reject", dag=BACK)
    state, tasks = ended(desk, refused, BACK)
    assert (state, tasks.pop("rollback_verdict")) == ("failed", "failed")
    assert (tasks.pop("check_rollback"), tasks.pop("approve_rollback")) == ("success", "success")
    assert set(tasks.values()) == {"skipped"}
    log = desk.api.log(BACK, refused, "rollback_verdict")
    assert "nothing was changed" in log
    assert "Reject by approver" in log
    assert PHONE_NUMBER.ciphertext in columns(desk)

    back = desk.api.trigger(BACK, {"reason": "thought better of it", "back_to": "expand"})
    answered(desk, approver, back, "approve_rollback", dag=BACK)
    assert ended(desk, back, BACK)[0] == "success"
    assert PHONE_NUMBER.ciphertext not in columns(desk)


def test_five_steps(desk: Desk, approver: airflow.Api) -> None:
    run = desk.api.trigger(
        DAG, {"rehearsal": False, "reason": "the real thing", "verify_across_workers": True, **ALWAYS}
    )
    answered(desk, approver, run, "approve_start")
    waits(desk, run, "fleet_writes_both")
    desk.deploy("2.5.0")
    assert "dual_write" in answered(desk, approver, run, "approve_backfill").replace("\\", "")
    body = answered(desk, approver, run, "approve_reads")
    assert "rows" in body
    waits(desk, run, "fleet_reads_ciphertext")
    desk.deploy("2.6.0")
    waits(desk, run, "fleet_ignores_plaintext")
    desk.deploy("2.7.0")  # not before the plaintext may be left out: its new users would fail on NOT NULL
    body = answered(desk, approver, run, "approve_drop").replace("\\", "")
    assert "error_log" in body
    assert "not watched none" in body
    waits(desk, run, "fleet_final_name")
    desk.deploy("2.8.0")
    state, tasks = ended(desk, run)
    assert state == "success", tasks
    assert tasks["hold_snapshot"] == "success"  # rows were read by other tasks than the one that judges
    assert tasks["purge_table"] == "skipped"  # the form named no free bytes
    assert tasks["certificate"] == "success"
    certified = newest(desk, "erasure_certificate")
    assert (certified.verdict, certified.run) == ("PLAINTEXT REMAINS IN THE TABLE", f"{DAG}/{run}")
    assert PHONE_NUMBER.ciphertext not in columns(desk)
    kept = newest(desk, "phone_encryption")
    assert (kept.verdict, kept.run) == ("DONE", f"{DAG}/{run}")
    found = stored(desk)
    keys = envelope.load_keys(desk.world.env, key_id="k1", names=PHONE_NUMBER)
    for user, text in found.items():
        assert envelope.decrypt(keys, PHONE_NUMBER.associated_data(user), text) == phone_number(user)
    assert_no_number(desk, run)


def stored(desk: Desk) -> dict[int, str]:
    with superuser(desk) as connection:
        return dict(connection.execute("SELECT id, phone_number FROM users").fetchall())


def assert_no_number(desk: Desk, run: str) -> None:
    """Neither in logs nor in XCom, evidence, Slack or the record."""
    texts: list[Any] = [desk.slack(), newest(desk, "phone_encryption")]
    for task in desk.api.tasks(DAG, run):
        if task["try_number"]:
            texts.append(desk.api.log(DAG, run, task["task_id"], task["try_number"], task["map_index"]))
    texts.append(desk.api.call("GET", f"/dags/{DAG}/dagRuns/{run}/taskInstances/~/xcomEntries"))
    whole = json.dumps(texts, default=str)
    assert CANARY_PHONE not in whole
    assert not re.search(r"\+254[17]\d{8}", whole)
    assert desk.world.env["ENCRYPTION_KEY"] not in whole
