"""The digest in a real Airflow: a worker can ask everybody, people get one message a day, and Sentry a check-in."""

import json
from datetime import UTC, datetime
from functools import partial
from typing import Any

import pytest

from sandbox.http import call
from tests.e2e.conftest import PARSED_WITHIN_SECONDS, RUN_WITHIN_SECONDS, Desk

DIGEST = "daily_digest"

pytestmark = pytest.mark.long


def check_ins(desk: Desk) -> list[dict[str, Any]]:
    items: list[dict[str, Any]] = call("GET", f"{desk.world.url('sentry')}/items.json")[1]
    found = [item["payload"] for item in items if item["type"] == "check_in"]
    return [one for one in found if one["monitor_slug"] == DIGEST]


def both_ends(desk: Desk, count: int) -> str | None:
    """A ready condition: so many runs have told Sentry of their beginning and of their end."""
    return None if sum(one["status"] == "ok" for one in check_ins(desk)) >= count else "the check-in at the run's end"


def test_one_message_a_day_however_often_it_runs(desk: Desk) -> None:
    any_time = datetime.fromtimestamp(0, UTC)
    desk.supervisor.until(partial(desk.api.dag_missing, DIGEST, any_time), DIGEST, PARSED_WITHIN_SECONDS)
    for number in (1, 2):
        run, state = desk.run(DIGEST, reason="end-to-end test")
        assert state == "success"
        desk.supervisor.until(partial(both_ends, desk, number), DIGEST, RUN_WITHIN_SECONDS)
    messages = [one for one in desk.slack() if one.get("metadata", {}).get("event_payload", {}).get("key") == "digest"]
    assert len(messages) == 1
    said = messages[0]["blocks"][1]["text"]["text"]
    assert "not known" not in said, desk.api.log(DIGEST, run, "tell")
    for part in ("ERRORS of api", "ERRORS of airflow", "BACKUPS: ", "DOCTOR: "):
        assert part in said
    first, end, second, _ = check_ins(desk)
    assert (first["status"], end["status"]) == ("in_progress", "ok")
    assert first["check_in_id"] == end["check_in_id"] != second["check_in_id"]
    assert first["environment"] == "sandbox"
    assert not any(secret in json.dumps(messages) for secret in desk.world.secrets.values())
