"""What copies and archives wait for, with a real scheduler and triggerer: a fresh backup, a restore test, Glacier."""

from collections.abc import Iterator
from functools import partial
from typing import Any

import pytest

from payme_ops.backup import catalogue
from payme_ops.backup.catalogue import Entry, State
from payme_ops.backup.manifest import Tier
from tests.e2e.conftest import Desk
from tests.support.retrievals import slow_retrievals

pytestmark = pytest.mark.long

# Each waits for a run of another DAG.
WITHIN_SECONDS = 600.0


@pytest.fixture(autouse=True)
def _without_backups(desk: Desk) -> Iterator[None]:
    """As on the first day, and nothing for other tests to find."""
    clear(desk)
    yield
    clear(desk)


def clear(desk: Desk) -> None:
    stores = desk.catalogue.stores
    for bucket in (stores.home, stores.copies):
        for key in list(bucket.keys("postgres/")):
            bucket.delete(key)


def run(desk: Desk, dag: str, **conf: object) -> tuple[str, dict[str, str]]:
    """Trigger and wait for a green end; the run and the state of each task."""
    started = begin(desk, dag, **conf)
    return started, end(desk, dag, started)


def begin(desk: Desk, dag: str, **conf: object) -> str:
    desk.supervisor.until(partial(desk.api.busy, dag), dag, WITHIN_SECONDS)
    return desk.api.trigger(dag, {"reason": "copies", **conf})


def end(desk: Desk, dag: str, started: str) -> dict[str, str]:
    desk.supervisor.until(partial(desk.api.unfinished, dag, started), f"{dag} to finish", WITHIN_SECONDS)
    states = desk.states(started, dag)
    assert desk.api.state(dag, started) == "success", states
    return states


def the_only(desk: Desk, tier: Tier) -> Entry:
    (found,) = catalogue.entries(desk.catalogue, tiers=[tier])
    return found


def task(desk: Desk, dag: str, started: str, name: str) -> dict[str, Any]:
    return next(one for one in desk.api.tasks(dag, started) if one["task_id"] == name)


def not_deferred(desk: Desk, dag: str, started: str, name: str) -> str | None:
    found = task(desk, dag, started, name)["state"]
    return None if found == "deferred" else f"{name} to wait, which is {found}"


@pytest.mark.timeout(900)
def test_what_is_missing_is_made_and_what_is_archived_is_waited_for(desk: Desk) -> None:
    # The day has no backup: one is taken before it is copied.
    _, states = run(desk, "backup_weekly")
    assert set(states.values()) == {"success"}
    daily, copy = the_only(desk, Tier.DAILY), the_only(desk, Tier.WEEKLY)
    assert copy.manifest is not None
    assert (copy.state, copy.manifest.copied_from) == (State.COMPLETE, daily.key)

    # The oldest daily was never tested: it is tested before it is archived, and its copy is VERIFIED with it.
    started, states = run(desk, "backup_monthly")
    assert set(states.values()) == {"success"}
    assert {the_only(desk, tier).state for tier in Tier} == {State.VERIFIED}
    archive = the_only(desk, Tier.MONTHLY)
    assert archive.manifest is not None
    _, states = run(desk, "backup_monthly")
    assert states["archive"] == "skipped", "one a month"

    # Its bytes lie in Glacier: they are asked for, and no worker waits.
    with slow_retrievals(desk.world.url("s3")) as can_be_read:
        started = begin(desk, "backup_restore_test", manifest=archive.key)
        waits = partial(not_deferred, desk, "backup_restore_test", started, "readable")
        desk.supervisor.until(waits, "the retrieval", WITHIN_SECONDS)
        can_be_read()
        states = end(desk, "backup_restore_test", started)
    assert states["restore_and_compare"] == "success"
    attempt = task(desk, "backup_restore_test", started, "readable")["try_number"]
    log = desk.api.log("backup_restore_test", started, "readable", attempt)
    assert "lies in an archive; it was asked for" in log
    assert "can be read (READY)" in log
