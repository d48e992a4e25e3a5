"""More deletions than usual: a person is shown the plan, and nothing goes without another one's answer."""

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from functools import partial

import pytest

from payme_ops.backup.catalogue import State
from payme_ops.backup.manifest import Manifest
from sandbox import airflow
from tests.e2e.conftest import PARSED_WITHIN_SECONDS, RUN_WITHIN_SECONDS, Desk
from tests.e2e.test_backup_tiers import dailies, ended, newest_daily, old, told

pytestmark = pytest.mark.long

DAG, GATE = "backup_retention", "approve_deletions"


@pytest.fixture(scope="module")
def due(desk: Desk) -> Iterator[list[Manifest]]:
    """Four backups whose time is over, and a newer proof."""
    since = datetime.min.replace(tzinfo=UTC)
    desk.supervisor.until(partial(desk.api.dag_missing, DAG, since), DAG, PARSED_WITHIN_SECONDS)
    assert desk.run(reason="the proof")[1] == "success"
    assert desk.run("backup_restore_test", reason="the proof")[1] == "success"
    good = newest_daily(desk)
    assert good.state is State.VERIFIED
    assert good.manifest
    made = [old(desk, good.manifest, timedelta(days=days)) for days in (50, 51, 52, 53)]
    yield made
    for one in made:
        for key in list(desk.catalogue.stores.home.keys(one.prefix)):
            desk.catalogue.stores.home.delete(key)


@pytest.mark.parametrize(
    ("user", "choice", "state", "left"),
    [
        ("approver", "Reject", "failed", 4),
        ("oncall", "Approve", "failed", 4),  # who triggered the run
        ("approver", "Approve", "success", 0),
    ],
)
def test_only_another_persons_yes_deletes(
    desk: Desk, due: list[Manifest], user: str, choice: str, state: str, left: int
) -> None:
    run = desk.api.trigger(DAG, {"reason": f"{choice} by {user}"})
    desk.supervisor.until(partial(desk.api.not_asking, DAG, run, GATE), GATE, RUN_WITHIN_SECONDS)
    body = str(desk.api.question(DAG, run, GATE)["body"])
    assert "4 deletions of daily backups at once" in body
    assert all(one.prefix.split("/")[3] in body for one in due)
    assert told(desk, "Delete these backups?")
    who = desk.api if user == "oncall" else airflow.login(desk.world, user)
    who.answer(DAG, run, GATE, choice)
    assert ended(desk, DAG, run) == state, desk.states(run, DAG)
    there = {one.key for one in dailies(desk)}
    assert len(there & {one.key for one in due}) == left
