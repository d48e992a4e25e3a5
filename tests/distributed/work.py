"""The four kinds of work that are struck: how each is begun, held in its middle, and let go on."""

import base64
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from functools import cached_property, partial
from typing import Any

import psutil
import psycopg

from payme_ops.backup.catalogue import Entry
from payme_ops.foundation import evidence, settings
from payme_ops.foundation.clock import utc_now
from payme_ops.foundation.evidence import passed
from payme_ops.migration import backfill, control, expand
from payme_ops.migration.desk import MigrationDesk
from payme_ops.release.checklist import PREPARED
from payme_ops.release.request import Release
from sandbox.airflow import Api
from sandbox.supervisor import SandboxError
from tests.distributed.farm import Farm, has_ended, process_of
from tests.support import releases
from tests.support.proxy import Held
from tests.support.waiting import eventually

WITHIN_SECONDS = 420.0  # for a run to come to its middle or its end, on a busy machine


class Way(StrEnum):
    """How a worker is struck."""

    TREE = "Celery with all that it has started"
    PARENT = "Celery's parent alone"
    SUPERVISOR = "the task's supervisor"


@dataclass
class Work:
    """A run that is struck while its task is at work; `tries` grows by each strike."""

    farm: Farm
    dag: str
    task: str
    queue: str
    run: str = ""
    map_index: int = -1
    form: dict[str, object] = field(default_factory=dict)

    def instance(self) -> dict[str, Any] | None:
        """The task's newest try, as the API has it; None before there is one."""
        try:
            tasks = self.farm.api.tasks(self.dag, self.run)
        except SandboxError:  # another DAG has not started it yet
            return None
        return next((one for one in tasks if (one["task_id"], one["map_index"]) == (self.task, self.map_index)), None)

    def process(self, *, supervisor: bool = False) -> psutil.Process:
        """The task's process."""
        task = self.instance()
        assert task
        found = process_of(task, supervisor=supervisor)
        assert found, (self.dag, self.task, task["state"])
        return found

    @property
    def state(self) -> str:
        """Of the run."""
        return self.farm.api.state(self.dag, self.run)

    def left(self) -> str | None:
        """A ready condition: the run has ended."""
        left = self.farm.api.unfinished(self.dag, self.run)
        return f"{self.dag}: {left}" if left else None

    # -- what a kind of work says of itself

    def begin(self) -> None:
        """Start the run; it will be held in its middle."""
        self.expect()
        self.run = self.farm.api.trigger(self.dag, self.form)

    def expect(self) -> None:
        """Hold it when it comes to its middle, whoever starts it."""

    def again(self) -> None:
        """What was struck stood in its middle; the next try does not yet."""

    def let_go(self) -> None:
        """Hold nothing any more; a request of a killed client is cut."""

    def is_held(self) -> bool:
        """Whether the task stands still in its middle."""
        raise NotImplementedError

    def missing(self, tries: int) -> str | None:
        """A ready condition: that try of the task stands in its middle."""
        task = self.instance() if self.run else None
        if task is None or (task["state"], task["try_number"]) != ("running", tries) or not self.is_held():
            what = f"{task['state']}, try {task['try_number']}" if task else "not there"
            return f"the middle of {self.dag}.{self.task}, which is {what}"
        return None


@dataclass
class Request(Work):
    """Work that is held where it asks S3 for something: this method, with this in its address."""

    method: str = ""
    contains: str = ""
    held: Held | None = None

    def expect(self) -> None:
        self.held = self.farm.store.hold(self.method, self.contains, done_upstream=True, every=True)

    def again(self) -> None:
        if self.held:
            self.held.seen.clear()

    def let_go(self) -> None:
        if self.held:
            self.held.drop()

    def is_held(self) -> bool:
        return self.held is not None and self.held.seen.is_set()


def backup(farm: Farm) -> Request:
    """The daily backup, held when a part of the archive is stored and nobody has heard of it."""
    return Request(farm, "backup_daily", "dump_and_store", "default", method="PUT", contains="partNumber=1")


def restore_test(farm: Farm, backup: Entry) -> Request:
    """The restore test of that backup, held before its archive comes."""
    archive, form = backup.key.replace("manifest.json", "archive.dump.age"), {"manifest": backup.key}
    work = Request(farm, "backup_restore_test", "restore_and_compare", "restore", form={**form})
    work.method, work.contains = "GET", archive
    return work


@dataclass
class Backfill(Work):
    """Ranges of keys, mapped over tasks, held by the control of the migration once rows are written.

    Beside a backup it waits by itself, with its range taken and no row written.
    """

    ranges: list[tuple[int, int]] = field(default_factory=list)
    beside_backup: bool = False

    @cached_property
    def desk(self) -> MigrationDesk:
        """The migration's, as who controls it has it."""
        world = self.farm.world
        ops, target = self.farm.conninfo("payme_ops"), world.conninfo("payme_db_migrate", "payme")
        return MigrationDesk(settings.load(), target, ops, "tests/distributed")

    def let_go(self) -> None:
        control.resume(self.desk, reason="the strikes are over")

    def is_held(self) -> bool:
        if len(self.sessions()) < len(self.ranges):
            return False
        if not self.beside_backup:
            done = self.progress()
            if len(done) < len(self.ranges) or not all(written for written, _ in done):
                return False
            control.pause(self.desk, reason="to be struck in its middle")
        return True

    def progress(self) -> list[tuple[int, bool]]:
        """Rows written of each range, and whether it has ended."""
        query = (
            "SELECT written, ended_at IS NOT NULL FROM payme_migration.progress"
            " WHERE pass_number = 1 AND (low, high) IN (SELECT * FROM unnest(%s::bigint[], %s::bigint[]))"
        )
        lows, highs = zip(*self.ranges, strict=True)
        with psycopg.connect(self.farm.world.cluster.conninfo("payme")) as connection:
            return connection.execute(query, [list(lows), list(highs)]).fetchall()

    def sessions(self) -> list[int]:
        """Of those who write, by pid of the server."""
        query = "SELECT pid FROM pg_stat_activity WHERE application_name = 'payme_ops:migration:backfill'"
        with psycopg.connect(self.farm.world.cluster.conninfo("payme")) as connection:
            return [row[0] for row in connection.execute(query)]


def prepare_backfill(farm: Farm) -> list[tuple[int, int]]:
    """The columns, and a count of how often each row is given a ciphertext; four ranges of keys."""
    desk = Backfill(farm, "", "", "").desk
    expand.do_expand(desk, lambda _: None)
    with psycopg.connect(farm.world.cluster.conninfo("payme"), autocommit=True) as connection:
        connection.execute(
            """
            CREATE TABLE encrypted_again (id bigint, at timestamptz DEFAULT clock_timestamp());
            CREATE FUNCTION count_it() RETURNS trigger SECURITY DEFINER LANGUAGE plpgsql AS
                'BEGIN INSERT INTO public.encrypted_again VALUES (new.id); RETURN NULL; END';
            CREATE TRIGGER counted AFTER UPDATE OF phone_number_encrypted ON users
                FOR EACH ROW EXECUTE FUNCTION count_it();
            ALTER TABLE users ENABLE ALWAYS TRIGGER counted;
            """
        )
        connection.execute("ANALYZE users")
    return backfill.plan_ranges(desk, 4)


def mapped_backfill(farm: Farm, ranges: list[tuple[int, int]]) -> Backfill:
    """Those ranges."""
    form: dict[str, object] = {"ranges": [{"low": low, "high": high} for low, high in ranges]}
    return Backfill(farm, "mapped_backfill", "encrypt", "migration", map_index=0, form=form, ranges=ranges)


@dataclass
class Deployment(Work):
    """A task of a release, struck when the API has done what it asks and it has not heard of that: once, as it waits
    for no answer longer than some seconds."""

    path: str = ""
    held: Held | None = None

    def expect(self) -> None:
        self.held = self.farm.payme.hold("POST", self.path, done_upstream=True)

    def again(self) -> None:
        self.let_go()  # who waited for the answer is gone

    def let_go(self) -> None:
        if self.held:
            self.held.drop()

    def is_held(self) -> bool:
        return self.held is not None and self.held.seen.is_set()


def release(farm: Farm) -> Release:
    """A release of 2.4.1 of which everything up to the go or no-go is known; requested by oncall."""
    ops = farm.conninfo("payme_ops")
    made = releases.release(ops, run="pre_deployment/distributed")
    found = {name: passed({"rollback_safe": True} if name == "migrations_tested" else {}) for name in PREPARED}
    evidence.record(
        ops,
        made.run,
        [
            evidence.conclude(name, one, threshold="", actor="oncall", source="test", started=utc_now())
            for name, one in found.items()
        ],
    )
    return made


def begin_release(farm: Farm, made: Release) -> str:
    """Start its deployment, as pre_deployment does."""
    body: dict[str, object] = {"logical_date": None, "dag_run_id": made.id, "conf": {}}
    return str(farm.api.call("POST", "/dags/deployment/dagRuns", body)["dag_run_id"])


def answer(farm: Farm, people: dict[str, Api], run: str, *, but: str = "") -> None:
    """Say yes to what the release asks, but to this question: lead says the second go, approver everything else."""
    for task in farm.api.tasks("deployment", run):
        name = task["task_id"]
        if task["state"] != "awaiting_input" or name == but or farm.api.not_asking("deployment", run, name):
            continue
        people["lead" if name == "go_no_go_second" else "approver"].answer("deployment", run, name, "Approve")


def redeliver(works: Sequence[Work]) -> None:
    """Put the messages of their tasks, which are at work, back into the queues, as after the visibility timeout.

    Returns when workers have taken them.
    """
    tasks = [str((one.instance() or {})["id"]) for one in works]
    with works[0].farm.broker() as broker:
        queues = set[str]()
        for taken in broker.hvals("unacked"):
            message, _exchange, queue = json.loads(taken)
            if any(task in base64.b64decode(message["body"]).decode() for task in tasks):
                broker.lpush(queue, json.dumps(message))
                queues.add(queue)
        assert len(queues) == len({one.queue for one in works})
        eventually(lambda: not any(broker.llen(queue) for queue in queues), "the messages to be taken", seconds=60)


def strike(way: Way, works: Sequence[Work]) -> None:
    """Strike the worker of each, all at once as far as it goes; return when the tasks have ended and workers are back.

    A task that lives on, with its supervisor or without, fails this.
    """
    farm = works[0].farm
    tasks = [work.process() for work in works]
    names = [f"worker-{work.queue}" for work in works]
    if way is Way.SUPERVISOR:
        for work in works:
            work.process(supervisor=True).kill()
    else:
        for name in names:
            farm.supervisor.kill(name) if way is Way.TREE else farm.kill_parent(name)
    for work, task in zip(works, tasks, strict=True):
        eventually(partial(has_ended, task.pid), f"the task of {work.dag}, {way}, to end", seconds=20)
    for work in works:
        work.again()
    if way is not Way.SUPERVISOR:
        farm.start(*names)
