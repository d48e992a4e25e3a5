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

LAST_QUESTION = "go_no_go_second"  # of the release, before orders are stopped
DEPLOY_SECONDS = 120  # longer than until it was struck twice


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
    waits_with: str = LAST_QUESTION  # is not answered yet

    def until_held(self, *works: Work, tries: int) -> None:
        """Each stands in its middle, at that try."""

        def missing() -> str | None:
            work.answer(self.farm, self.people, self.deployment, but=self.waits_with)
            return "; ".join(filter(None, [one.missing(tries) for one in works])) or None

        self.farm.until(missing, "the middle of everything", WITHIN_SECONDS)

    def until_ended(self, *works: Work) -> None:
        """Every run has ended, well or not."""

        def missing() -> str | None:
            work.answer(self.farm, self.people, self.deployment, but=self.waits_with)
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


def _begun(teller: Teller, before: Entry, ranges: list[tuple[int, int]]) -> list[Work]:
    """A backfill, a backup and a restore test, each in its middle. A backfill does not begin beside a backup."""
    farm = teller.farm
    encrypted = work.mapped_backfill(farm, ranges)
    encrypted.begin()
    teller.until_held(encrypted, tries=1)
    others = [work.backup(farm), work.restore_test(farm, before)]
    for one in others:
        one.begin()
    teller.until_held(*others, tries=1)
    return [encrypted, *others]


def _with_its_host(teller: Teller, before: Entry, ranges: list[tuple[int, int]]) -> list[Work]:
    """Round 1: all that a worker has started is gone at once; then Redis and the desk's database, in the second try."""
    farm = teller.farm
    works = _begun(teller, before, ranges)
    work.redeliver(works)
    farm.until(partial(_unrefused, farm, len(works)), "redelivered messages to be refused")
    work.strike(Way.TREE, works)
    teller.until_held(*works, tries=2)
    farm.cut_redis()
    farm.stop("redis")
    farm.start("redis")
    farm.crash_database()
    for one in works:
        one.let_go()
    teller.until_ended(*works)
    return works


def _unrefused(farm: Farm, count: int) -> str | None:
    """A ready condition: so many messages came to a task that was at work, and were let go."""
    logs = (farm.world.root / "logs").glob("worker-*.log")
    refused = sum(path.read_text(errors="replace").count("ignoring redelivered message") for path in logs)
    return None if refused >= count else f"{refused} of {count}"


def _process_by_process(teller: Teller, before: Entry, ranges: list[tuple[int, int]]) -> list[Work]:
    """Round 2: first Celery's parent alone, then the supervisors of the tasks' second try. The backup is the release's
    own, since there is one run of backup_daily at a time: it begins once orders are stopped, then it is deployed."""
    farm, release = teller.farm, teller.deployment
    final = work.backup(farm)
    final.run = f"final__{release}__1"
    frozen = Deployment(farm, "deployment", "freeze_orders", "release", run=release, path="/admin/orders/freeze")
    final.expect()
    frozen.expect()
    teller.waits_with = ""
    teller.until_held(frozen, tries=1)
    work.strike(Way.TREE, [frozen])
    teller.until_held(final, tries=1)
    encrypted, tested = work.mapped_backfill(farm, ranges), work.restore_test(farm, before)
    encrypted.beside_backup = True
    encrypted.begin()
    tested.begin()
    api(farm, "POST", "/control", {"deploy_seconds": DEPLOY_SECONDS})
    deployed = Deployment(farm, "deployment", "deploy", "release", run=release, path="/deploy")
    deployed.expect()
    rounds: list[list[Work]] = [[encrypted, tested, final], [deployed]]
    for works in rounds:
        teller.until_held(*works, tries=1)
        work.strike(Way.PARENT, works)
        teller.until_held(*works, tries=2)
        work.strike(Way.SUPERVISOR, works)
        for one in works:
            one.let_go()
    teller.until_ended(encrypted, tested, final, deployed)
    return [frozen, encrypted, tested, final, deployed]


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
        rows = connection.execute("SELECT id, phone_number_encrypted FROM users WHERE id <= 60000").fetchall()
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


def told_of_failures(farm: Farm) -> Counter[str]:
    """How many messages Slack has of each key that say that a run failed, and not that the next one ended well."""
    messages = call("GET", farm.world.url("slack") + "/messages.json")[1]
    said = [one["metadata"]["event_payload"] for one in messages]
    over = [one for one in said if one["occurrence"].endswith("/over")]
    return Counter(one["key"] for one in said if one["key"].startswith("run_failed:") and one not in over)


def test_nobody_is_told_of_what_healed(story: Story) -> None:
    assert told_of_failures(story.farm) == {}


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


def test_people_are_told_once_of_what_does_not_heal(story: Story) -> None:
    """After the third supervisor there is no try left; only the DAG's own callback can say so."""
    farm = story.farm
    lost = work.backup(farm)
    lost.begin()
    for tries in (1, 2, 3):
        farm.until(partial(lost.missing, tries), "its middle", WITHIN_SECONDS)
        work.strike(Way.SUPERVISOR, [lost])
    lost.let_go()
    farm.until(lost.left, "its end", WITHIN_SECONDS)
    assert lost.state == "failed"
    farm.until(lambda: None if told_of_failures(farm) else "a message", "people to be told")
    # Another run of the DAG, whose end is told by the same process after it.
    _, state = airflow.run_dag(farm.supervisor, farm.api, "backup_daily", {"reason": "once more"}, WITHIN_SECONDS)
    assert (state, told_of_failures(farm)["run_failed:backup_daily"]) == ("success", 1)
