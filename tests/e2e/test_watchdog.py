"""What the watchdog and Sentry's monitors see of a real Airflow: a run's check-ins, a scheduler that stands still."""

import signal
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import timedelta
from typing import Any

import psutil
import pytest
from slack_sdk import WebClient

from payme_ops.foundation.slack import Slack
from payme_ops.monitoring import airflow_health
from payme_ops.monitoring.watchdog import Silences
from sandbox.http import call
from sandbox.world import SLACK_CHANNEL
from tests.e2e.conftest import DAG, Desk
from tests.support.waiting import eventually

pytestmark = pytest.mark.long


def test_a_run_checks_in_when_it_begins_and_when_it_has_ended(desk: Desk) -> None:
    run, state = desk.run(reason="check-ins")
    assert state == "success"
    number = uuid.uuid5(uuid.NAMESPACE_URL, f"{DAG}/{run}").hex

    def statuses() -> list[str]:
        items: list[dict[str, Any]] = call("GET", f"{desk.world.url('sentry')}/items.json")[1]
        found = [item["payload"] for item in items if item["type"] == "check_in"]
        return [one["status"] for one in found if one["check_in_id"] == number]

    # The end is told by the DAG processor, a little after the run's last task.
    assert eventually(lambda: len(statuses()) > 1 and statuses(), "the second check-in", seconds=60, every=1) == [
        "in_progress",
        "ok",
    ]


def test_a_scheduler_that_stands_still_is_told_once_and_when_it_goes_on(desk: Desk) -> None:
    client = WebClient(desk.world.secrets["slack.token"], base_url=f"{desk.world.url('slack')}/api/")
    silences = Silences(desk.world.conninfo("payme_ops", "payme_ops"), Slack(client, SLACK_CHANNEL), "the tests")
    url = desk.world.url("airflow")

    def told() -> list[str]:
        texts = [message["text"].split(":")[0] for message in desk.slack()]
        return [text for text in texts if "scheduler" in text or text == "Over"]

    def look(expected: int) -> bool:
        # Its patience is tested elsewhere; here it would take two minutes more.
        signs = [one for one in airflow_health.look(url) if one.item == "airflow_scheduler"]
        silences.take([replace(one, patience=timedelta(0)) for one in signs])
        return len(told()) >= expected

    eventually(lambda: not [one for one in airflow_health.look(url) if one.silent], "a healthy Airflow", seconds=60)
    with standing_still("scheduler"):
        eventually(lambda: look(1), "the alert", seconds=240, every=5)
        look(1)
    eventually(lambda: look(2), "the end of it", seconds=120, every=5)
    assert told() == ["Airflow's scheduler is silent", "Over"]


@contextmanager
def standing_still(name: str) -> Iterator[None]:
    """One of Airflow's processes gets no more time, for the block."""
    (process,) = [
        one for one in psutil.Process().children() if {"airflow", name} <= set(" ".join(one.cmdline()).split())
    ]
    process.send_signal(signal.SIGSTOP)
    try:
        yield
    finally:
        process.send_signal(signal.SIGCONT)
