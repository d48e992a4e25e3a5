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

from payme_ops.backup import catalogue as backups
from payme_ops.backup.catalogue import Catalogue, Entry, State, Stores
from payme_ops.foundation.objectstore import Bucket
from payme_ops.migration import envelope
from payme_ops.migration.names import PHONE_NUMBER
from payme_ops.release.request import Release
from sandbox import airflow, s3, world
from sandbox.builds import commit_of
from sandbox.http import call
from sandbox.payme_db.generate import phone_number
from tests.distributed import work
from tests.distributed.farm import LOGS, Farm, unparsed
from tests.distributed.work import WITHIN_SECONDS, Deployment, Way, Work

pytestmark = [pytest.mark.distributed, pytest.mark.timeout(1800)]

DEPLOY_SECONDS = 150  # longer than until it was struck twice


@dataclass
class Story:
    """What was struck, and what it was about."""

    farm: Farm
    first_backup: Entry
    release: Release
    struck: list[Work]


def entries(farm: Farm) -> list[Entry]:
    """The catalogue, seen by somebody who may do everything."""
    client, env = s3.client(farm.world.url("s3")), farm.world.env
    keys = [[env[f"PAYME_OPS__BACKUP__{name}_KEYS"]] for name in ("TRUSTED", "VERIFICATION")]
    stores = Stores(Bucket(client, world.HOME_BUCKET), Bucket(client, world.COPY_BUCKET))
    return list(backups.entries(Catalogue(stores, "payme", *keys)))


@dataclass
class Teller:
    """Waits for middles and ends, and says yes for people meanwhile."""

    farm: Farm
    people: dict[str, airflow.Api]
    deployment: str

    def until_held(self, *works: Work, tries: int, unanswered: str = "") -> None:
        """Each stands in its middle, at that try; this question is not answered meanwhile."""

        def missing() -> str | None:
            work.answer(self.farm, self.people, self.deployment, but=unanswered)
            return "; ".join(filter(None, [one.missing(tries) for one in works])) or None

        self.farm.until(missing, "the middle of everything", WITHIN_SECONDS)

    def until_backed_up(self) -> None:
        """The release has its final backup."""
        final = Work(self.farm, "deployment", "final_backup", "restore", run=self.deployment)

        def missing() -> str | None:
            work.answer(self.farm, self.people, self.deployment)
            task = final.instance()
            return None if task and task["state"] == "success" else "the release's final backup"

        self.farm.until(missing, "the final backup", WITHIN_SECONDS)

    def until_ended(self, *works: Work) -> None:
        """Every run has ended, well or not."""

        def missing() -> str | None:
            work.answer(self.farm, self.people, self.deployment)
            return "; ".join(filter(None, [one.left() for one in works])) or None

        self.farm.until(missing, "the end of everything", WITHIN_SECONDS)


@pytest.fixture(scope="module")
def story(farm: Farm) -> Story:
    """As it was told."""
    return tell(farm)


def tell(farm: Farm) -> Story:
    """Both rounds, from the beginning."""
    farm.supervisor.start(world.application(farm.world))
    api(farm, "POST", "/admin/start", {"version": "2.4.0"})
    for dag in ("backup_daily", "backup_restore_test", "deployment", "mapped_backfill"):
        farm.until(partial(unparsed, farm, dag), dag)
    _, state = airflow.run_dag(farm.supervisor, farm.api, "backup_daily", {"reason": "to test"}, WITHIN_SECONDS)
    assert state == "success"
    [before] = entries(farm)
    ranges, release = work.prepare_backfill(farm), work.release(farm)
    people = {name: farm.login(name) for name in ("approver", "lead")}
    teller = Teller(farm, people, work.begin_release(farm, release))
    first = _with_its_host(teller, before, ranges[:2])
    second = _process_by_process(teller, before, ranges[2:])
    return Story(farm, before, release, [*first, *second])


def _begun(teller: Teller, before: Entry, ranges: list[tuple[int, int]], unanswered: str = "") -> list[Work]:
    """A backfill, a backup and a restore test, each in its middle. A backfill does not begin beside a backup."""
    farm = teller.farm
    encrypted = work.mapped_backfill(farm, ranges)
    encrypted.begin()
    teller.until_held(encrypted, tries=1, unanswered=unanswered)
    others = [work.backup(farm), work.restore_test(farm, before)]
    for one in others:
        one.begin()
    teller.until_held(*others, tries=1, unanswered=unanswered)
    return [encrypted, *others]


def _with_its_host(teller: Teller, before: Entry, ranges: list[tuple[int, int]]) -> list[Work]:
    """Round 1: all that a worker has started is gone at once; then Redis and the desk's database, in the second try."""
    farm = teller.farm
    frozen = Deployment(
        farm, "deployment", "freeze_orders", "release", run=teller.deployment, path="/admin/orders/freeze"
    )
    works = _begun(teller, before, ranges, unanswered="go_no_go_second")  # its request cannot be held for long
    work.redeliver(works)
    farm.until(partial(_unrefused, farm, len(works)), "redelivered messages to be refused")
    frozen.again()
    teller.until_held(frozen, tries=1)
    for one in works:
        one.again()
    work.strike(Way.TREE, [*works, frozen])
    teller.until_held(*works, tries=2)
    farm.stop("redis")
    farm.start("redis")
    farm.supervisor.kill("desk-postgres")
    farm.start("desk-postgres")
    for one in (*works, frozen):
        one.let_go()
    teller.until_ended(*works)
    return [*works, frozen]


def _unrefused(farm: Farm, count: int) -> str | None:
    """A ready condition: so many messages came to a task that was at work, and were let go."""
    logs = (farm.world.root / "logs").glob("worker-*.log")
    refused = sum(path.read_text(errors="replace").count("ignoring redelivered message") for path in logs)
    return None if refused >= count else f"{refused} of {count}"


def _process_by_process(teller: Teller, before: Entry, ranges: list[tuple[int, int]]) -> list[Work]:
    """Round 2: first Celery's parent alone, then the supervisors of the tasks' second try."""
    farm = teller.farm
    api(farm, "POST", "/control", {"deploy_seconds": DEPLOY_SECONDS})
    deployed = Deployment(farm, "deployment", "deploy", "release", run=teller.deployment, path="/deploy")
    deployed.again()
    teller.until_backed_up()  # one run of backup_daily at a time: the release would wait for the test
    works = _begun(teller, before, ranges)
    teller.until_held(deployed, tries=1)
    for one in works:
        one.again()
    work.strike(Way.PARENT, [*works, deployed])
    teller.until_held(*works, deployed, tries=2)
    for one in works:
        one.again()
    work.strike(Way.SUPERVISOR, [*works, deployed])
    teller.until_held(*works, tries=3)
    for one in (*works, deployed):
        one.let_go()
    teller.until_ended(*works, deployed)
    return [*works, deployed]


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
    assert len(entries(story.farm)) == len(runs)


def test_a_restore_test_says_what_a_backup_is_worth(story: Story) -> None:
    found = {one.key: one.state for one in entries(story.farm)}
    assert found[story.first_backup.key] is State.VERIFIED
    scratch = story.farm.root / "worker-restore" / "scratch"
    assert [one for one in scratch.rglob("*") if one.is_file()] == []


def test_each_row_is_encrypted_once(story: Story) -> None:
    farm = story.farm
    with psycopg.connect(farm.world.cluster.conninfo("payme")) as connection:
        again = connection.execute(
            "SELECT id, count(*) FROM encrypted_again GROUP BY id HAVING count(*) > 1"
        ).fetchall()
        rows = connection.execute("SELECT id, phone_number_encrypted FROM users WHERE id <= 20000").fetchall()
    assert again == []
    keys = envelope.load_keys(farm.world.env, key_id="k1", names=PHONE_NUMBER)
    wrong = [
        key
        for key, stored in rows
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
