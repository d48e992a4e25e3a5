"""A table is dropped, and PayMe comes back: the form, two people, the swap, the application, and who is told."""

import json
from datetime import UTC, datetime
from functools import partial
from typing import Any

import psycopg
import pytest

from payme_ops.backup import swap
from sandbox import airflow
from sandbox.http import call
from tests.e2e.conftest import PARSED_WITHIN_SECONDS, RUN_WITHIN_SECONDS, Desk
from tests.support.waiting import eventually

pytestmark = pytest.mark.long

DAG = "backup_restore"


def superuser(desk: Desk) -> psycopg.Connection:
    return psycopg.connect(desk.world.cluster.conninfo("payme"), autocommit=True)


def health(desk: Desk) -> dict[str, Any]:
    body: dict[str, Any] = call("GET", f"{desk.world.url('payme_api')}/health")[1]
    return body


def told(desk: Desk, where: str) -> list[dict[str, Any]]:
    pages = {"status_page": "incidents.json", "mail": "messages.json"}
    found: list[dict[str, Any]] = call("GET", f"{desk.world.url(where)}/{pages[where]}")[1]
    return found


def databases(desk: Desk) -> set[str]:
    with superuser(desk) as connection:
        return {row[0] for row in connection.execute("SELECT datname FROM pg_database WHERE datname LIKE 'payme%'")}


def trigger(desk: Desk, **conf: object) -> str:
    return desk.api.trigger(DAG, {"backup": "latest", **conf})


def asked(desk: Desk, run: str, gate: str = "approve_swap") -> str:
    """Wait for the question; its body."""
    desk.supervisor.until(partial(desk.api.not_asking, DAG, run, gate), gate, RUN_WITHIN_SECONDS)
    return str(desk.api.question(DAG, run, gate)["body"])


def ended(desk: Desk, run: str) -> tuple[str, dict[str, str]]:
    desk.supervisor.until(partial(desk.api.unfinished, DAG, run), DAG, RUN_WITHIN_SECONDS)
    return desk.api.state(DAG, run), desk.states(run, DAG)


@pytest.fixture(scope="module")
def approver(desk: Desk) -> airflow.Api:
    return airflow.login(desk.world, "approver")


@pytest.fixture(scope="module", autouse=True)
def _backup(busy_desk: Desk) -> None:
    """PayMe's application at work, and a backup from before anything went wrong."""
    since = datetime.min.replace(tzinfo=UTC)
    busy_desk.supervisor.until(partial(busy_desk.api.dag_missing, DAG, since), DAG, PARSED_WITHIN_SECONDS)
    assert busy_desk.run(reason="before everything")[1] == "success"


def test_without_a_reason_nothing_begins(desk: Desk) -> None:
    state, tasks = ended(desk, trigger(desk))
    assert state == "failed"
    assert tasks["check_request"] == "failed"
    assert tasks["stop_application"] == tasks["start_application"] == "upstream_failed"
    assert health(desk)["status"] == "healthy"


def test_who_asks_cannot_approve_and_everything_is_as_before(desk: Desk) -> None:
    before = databases(desk)
    run = trigger(desk, reason="the same person")
    body = asked(desk, run)
    assert "rows newer than the backup" in body
    assert health(desk)["status"] == "stopped"
    desk.api.answer(DAG, run, "approve_swap", "Approve")
    state, tasks = ended(desk, run)
    assert state == "failed"
    assert (tasks["approve_swap"], tasks["swap"]) == ("failed", "upstream_failed")
    assert (tasks["start_application"], tasks["verdict"]) == ("success", "failed")
    assert health(desk)["status"] == "healthy"
    assert health(desk)["version"] == "2.4.0"
    assert databases(desk) == before
    assert told(desk, "status_page")[-1]["status"] == "resolved"


def test_where_the_api_is_down_people_do_its_part(desk: Desk, approver: airflow.Api) -> None:
    before = databases(desk)
    control = f"{desk.world.url('payme_api')}/control"
    call("POST", control, {"fail": 503})
    run = trigger(desk, reason="the API is down")
    body = asked(desk, run, "confirm_stopped")
    assert "stop the application yourself" in body
    assert "payme_app" in body  # its sessions are named
    approver.answer(DAG, run, "confirm_stopped", "Approve")
    asked(desk, run)
    approver.answer(DAG, run, "approve_swap", "Reject")
    body = asked(desk, run, "by_hand")
    assert "start the application yourself" in body
    assert "tell the status page and support" in body
    call("POST", control, {"fail": None})
    approver.answer(DAG, run, "by_hand", "Approve")
    state, tasks = ended(desk, run)
    assert (state, tasks["swap"], tasks["verdict"]) == ("failed", "skipped", "failed")
    assert databases(desk) == before
    assert health(desk)["status"] == "healthy"


def test_a_dropped_table_comes_back(desk: Desk, approver: airflow.Api) -> None:
    with superuser(desk) as connection:
        (rows,) = connection.execute("SELECT count(*) FROM merchants").fetchone() or (0,)
        connection.execute("SET lock_timeout = '20s'")
        connection.execute("DROP TABLE merchants CASCADE")
        connection.execute("DROP TABLE users CASCADE")
    eventually(lambda: health(desk)["status"] == "unhealthy", "a red health")
    mails, incidents = len(told(desk, "mail")), len(told(desk, "status_page"))

    run = trigger(desk, reason="users was dropped")
    body = asked(desk, run)
    assert "public.users" in body
    assert f"public.merchants ({rows} rows)" in body.replace("\\", "")
    assert any(
        "approve_swap" in json.dumps(message) or "running database" in json.dumps(message) for message in desk.slack()
    )
    approver.answer(DAG, run, "approve_swap", "Approve")
    state, tasks = ended(desk, run)
    assert (state, set(tasks.values())) == ("success", {"success"})

    assert health(desk)["status"] == "healthy"
    assert health(desk)["version"] == "2.3.1"  # the one before
    with superuser(desk) as connection:
        assert connection.execute("SELECT count(*) FROM merchants").fetchone() == (rows,)
    assert "RTO: " in desk.api.log(DAG, run, "verdict")
    assert [mail["subject"] for mail in told(desk, "mail")[mails:]] == [
        "PayMe is being restored from a backup",
        "PayMe works again",
    ]
    assert [one["status"] for one in told(desk, "status_page")[incidents:]] == ["investigating", "resolved"]
    # The old one is kept, and everything that a person was told is free of numbers.
    restorer = desk.world.conninfo("payme_db_restore", "postgres")
    assert [mark.target for mark in swap.replaced(restorer)] == ["payme"]
    assert "+2547" not in json.dumps([told(desk, "mail"), told(desk, "status_page"), desk.slack(), body])


def test_the_next_backup_is_of_the_restored_database(desk: Desk) -> None:
    assert desk.run(reason="after the restore")[1] == "success"
