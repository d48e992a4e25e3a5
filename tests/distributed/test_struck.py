"""Work of every kind, struck in its middle in every way: it is done, once, and nothing of it is lost.

One story, since its beginning takes a minute and a half: two rounds, in each of which a backup, a restore test, a
mapped backfill and a release are struck together. What came of it is asked for by the tests.
"""

from collections import Counter
from dataclasses import dataclass
from functools import partial
from typing import Any

import psycopg
import pytest

from payme_ops.backup.catalogue import Catalogue, State, Stores
from payme_ops.foundation.objectstore import Bucket
from payme_ops.migration import envelope
from payme_ops.migration.names import PHONE_NUMBER
from payme_ops.release.request import Release
from sandbox import airflow, s3, world
from sandbox.builds import commit_of
from sandbox.http import call
from sandbox.payme_db.generate import phone_number
from tests.distributed import work
from tests.distributed.farm import LOGS, Farm
from tests.distributed.work import WITHIN_SECONDS, Backfill, Deployment, Request, Way, Work

pytestmark = [pytest.mark.distributed, pytest.mark.timeout(1800)]


@dataclass
class Story:
    """What was struck, and how it ended."""

    farm: Farm
    first_backup: str
    backups: list[Request]
    restore_tests: list[Request]
    backfills: list[Backfill]
    release: Release
    deployed: list[Deployment]

    @property
    def struck(self) -> list[Work]:
        """Every run that was struck; the release counts for each of its tasks."""
        return [*self.backups, *self.restore_tests, *self.backfills, *self.deployed]


def catalogue(farm: Farm) -> Catalogue:
    """The backups, seen by somebody who may do everything."""
    client, env = s3.client(farm.world.url("s3")), farm.world.env
    keys = [[env[f"PAYME_OPS__BACKUP__{name}_KEYS"]] for name in ("TRUSTED", "VERIFICATION")]
    return Catalogue(Stores(Bucket(client, world.HOME_BUCKET), Bucket(client, world.COPY_BUCKET)), "payme", *keys)


@pytest.fixture(scope="module")
def story(farm: Farm) -> Story:
    """Both rounds, told from the beginning."""
    farm.supervisor.start(world.application(farm.world))
    api(farm, "POST", "/admin/start", {"version": "2.4.0"})
    people = {name: farm.login(name) for name in ("approver", "lead")}
    for dag in ("backup_daily", "backup_restore_test", "deployment", "mapped_backfill"):
        farm.until(partial(parsed, farm, dag), dag)
    _, state = airflow.run_dag(farm.supervisor, farm.api, "backup_daily", {"reason": "to test"}, WITHIN_SECONDS)
    assert state == "success"
    [before] = catalogue(farm).entries()
    archive = before.key.replace("manifest.json", "archive.dump.age")
    ranges = work.prepare_backfill(farm)
    release = work.release(farm)
    deployment = work.begin_release(farm, release)

    def until_ready(works: list[Work], tries: int, *, but: tuple[str, ...] = ()) -> None:
        def missing() -> str | None:
            work.answer(farm, people, deployment, but=but)
            return "; ".join(filter(None, [one.missing(tries) for one in works])) or None

        farm.until(missing, "the middle of everything", WITHIN_SECONDS)

    def until_done(works: list[Work]) -> None:
        farm.until(lambda: "; ".join(filter(None, [one.left() for one in works])) or None, "the end", WITHIN_SECONDS)

    # Round 1: all that a worker has started is gone at once, as with its host. Then Redis and the desk's database.
    frozen = Deployment(farm, "deployment", "freeze_orders", "release", deployment, path="/admin/orders/freeze")
    frozen.again()
    first = [work.backup(farm), work.restore_test(farm, archive), work.mapped_backfill(farm, ranges[:2])]
    for one in first:
        one.begin()
    until_ready(first, 1, but=("go_no_go_second",))  # its request cannot be held for long
    until_ready([frozen], 1)
    for one in (*first, frozen):
        one.again()
    work.strike(Way.TREE, [*first, frozen])
    until_ready([*first, frozen], 2)
    farm.stop("redis")
    farm.start("redis")
    farm.supervisor.kill("desk-postgres")
    farm.start("desk-postgres")
    for one in (*first, frozen):
        one.let_go()
    until_done(first)

    # Round 2, once the backup of the release is there: first Celery's parent alone, then the tasks' supervisors.
    api(farm, "POST", "/control", {"deploy_seconds": 60})
    deployed = Deployment(farm, "deployment", "deploy", "release", deployment, path="/deploy")
    deployed.again()
    second = [work.restore_test(farm, archive), work.mapped_backfill(farm, ranges[2:])]
    for one in second:
        one.begin()
    until_ready(second, 1)
    until_ready([deployed], 1)
    for way, tries in ((Way.PARENT, 2), (Way.SUPERVISOR, 3)):
        for one in second:
            one.again()
        work.strike(way, [*second, deployed])
        until_ready(second, tries)
    for one in (*second, deployed):
        one.let_go()
    until_done([*second, deployed])
    return Story(farm, before.key, [first[0]], [first[1], second[0]], [first[2], second[1]], release, [frozen, deployed])


def parsed(farm: Farm, dag: str) -> str | None:
    """A ready condition: Airflow knows the DAG."""
    status, _ = call("GET", f"{farm.api.url}/api/v2/dags/{dag}", token=farm.api.token)
    return None if status == 200 else "its file to be read"


def api(farm: Farm, method: str, path: str, body: object = None) -> dict[str, Any]:
    """The PayMe API of production."""
    url, token = farm.world.url("payme_api"), farm.world.secrets["payme_api.token"]
    status, found = call(method, f"{url}{path}", body, token=token)
    assert status < 300, (path, status, found)
    return dict(found)


def test_every_run_ends_well(story: Story) -> None:
    assert {f"{one.dag}.{one.task}": one.state for one in story.struck} == dict.fromkeys(
        (f"{one.dag}.{one.task}" for one in story.struck), "success"
    )
    tries = {(one.dag, one.run): one.instance() for one in story.struck}
    assert all(task and task["try_number"] > 1 for task in tries.values())


def test_a_backup_is_one_manifest_and_leaves_no_upload(story: Story) -> None:
    client = s3.client(story.farm.world.url("s3"))
    uploads = client.list_multipart_uploads(Bucket=world.HOME_BUCKET).get("Uploads", [])
    assert [one["Key"] for one in uploads] == []
    runs = [one["dag_run_id"] for one in story.farm.api.call("GET", "/dags/backup_daily/dagRuns")["dag_runs"]]
    assert len(catalogue(story.farm).entries()) == len(runs)


def test_a_restore_test_says_what_a_backup_is_worth(story: Story) -> None:
    found = {one.key: one.state for one in catalogue(story.farm).entries()}
    assert found[story.first_backup] is State.VERIFIED
    scratch = story.farm.root / "worker-restore" / "scratch"
    assert [one for one in scratch.rglob("*") if one.is_file()] == []


def test_each_row_is_encrypted_once(story: Story) -> None:
    farm = story.farm
    with psycopg.connect(farm.world.cluster.conninfo("payme")) as connection:
        again = connection.execute(
            "SELECT id, count(*) FROM encrypted_again GROUP BY id HAVING count(*) > 1"
        ).fetchall()
        rows = dict(connection.execute("SELECT id, phone_number_encrypted FROM users WHERE id <= 20000").fetchall())
    assert again == []
    keys = envelope.load_keys(farm.world.env, key_id="k1", names=PHONE_NUMBER)
    wrong = [
        key
        for key, stored in rows.items()
        if envelope.decrypt(keys, PHONE_NUMBER.associated_data(key), stored) != phone_number(key)
    ]
    assert wrong == []


def test_a_release_is_deployed_once_and_orders_are_taken_again(story: Story) -> None:
    assert api(story.farm, "GET", "/control")["posts"] == 1
    assert api(story.farm, "GET", "/version")["commit"] == commit_of("2.4.1")
    assert api(story.farm, "GET", "/admin/orders")["frozen"] is False


def test_nobody_is_told_of_what_healed(story: Story) -> None:
    messages = call("GET", story.farm.world.url("slack") + "/messages.json")[1]
    told = Counter(one["metadata"]["event_payload"]["key"] for one in messages)
    assert [key for key in told if key.startswith("run_failed:")] == []


def test_the_logs_of_every_try_are_in_the_store(story: Story) -> None:
    """But of a try whose supervisor was killed: it writes the log at its end."""
    client = s3.client(story.farm.world.url("s3"))
    pages = client.get_paginator("list_objects_v2").paginate(Bucket=LOGS)
    keys = [one["Key"] for page in pages for one in page.get("Contents", [])]
    for one in story.struck:
        task = one.instance()
        assert task
        assert any(f"run_id={one.run}/task_id={one.task}" in key for key in keys), (one.dag, one.task)
        assert story.farm.api.log(one.dag, one.run, one.task, task["try_number"], one.map_index)
