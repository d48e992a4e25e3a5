"""The four kinds of work that are struck: how each is begun, held in its middle, and let go on."""

import base64
import json
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
from tests.distributed.farm import Farm, process_of
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
    pids: list[int] = field(default_factory=list)

    def instance(self) -> dict[str, Any] | None:
        """The task's newest try, as the API has it."""
        tasks = self.farm.api.tasks(self.dag, self.run)
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
        """Start the run, held in its middle."""
        self.run = self.farm.api.trigger(self.dag, {"reason": "a test of many workers"})

    def again(self) -> None:
        """Hold the next try, too."""

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
    held: list[Held] = field(default_factory=list)

    def begin(self) -> None:
        self.again()
        super().begin()

    def again(self) -> None:
        self.held.append(self.farm.store.hold(self.method, self.contains, done_upstream=True))

    def let_go(self) -> None:
        for one in self.held:
            one.drop()

    def is_held(self) -> bool:
        return self.held[-1].seen.is_set()


def backup(farm: Farm) -> Request:
    """The daily backup, held when a part of the archive is stored and nobody has heard of it."""
    return Request(farm, "backup_daily", "dump_and_store", "default", method="PUT", contains="partNumber=1")


def restore_test(farm: Farm, backup: Entry) -> Request:
    """The restore test of that backup, held before its archive comes."""
    archive = backup.key.replace("manifest.json", "archive.dump.age")
    return Request(farm, "backup_restore_test", "restore_and_compare", "restore", method="GET", contains=archive)


@dataclass
class Backfill(Work):
    """Ranges of keys, mapped over tasks, held by the control of the migration once rows are written."""

    ranges: list[tuple[int, int]] = field(default_factory=list)

    @cached_property
    def desk(self) -> MigrationDesk:
        """The migration's, as who controls it has it."""
        world = self.farm.world
        ops, target = self.farm.conninfo("payme_ops"), world.conninfo("payme_db_migrate", "payme")
        return MigrationDesk(settings.load(), target, ops, "tests/distributed")

    def begin(self) -> None:
        given = [{"low": low, "high": high} for low, high in self.ranges]
        self.run = self.farm.api.trigger(self.dag, {"ranges": given})

    def again(self) -> None:
        """It stays paused."""

    def let_go(self) -> None:
        control.resume(self.desk, reason="the strikes are over")

    def is_held(self) -> bool:
        done = self.progress()
        if len(done) < len(self.ranges) or not all(written for written, _ in done):
            return False
        control.pause(self.desk, reason="to be struck in its middle")
        return len(self.sessions()) >= len(self.ranges)

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
    return Backfill(farm, "mapped_backfill", "encrypt", "migration", map_index=0, ranges=ranges)


@dataclass
class Deployment(Work):
    """A task of a release: orders are stopped, or it is deployed; both at the API before anybody knows of it."""

    path: str = ""
    held: list[Held] = field(default_factory=list)

    def again(self) -> None:
        self.held.append(self.farm.payme.hold("POST", self.path, done_upstream=True))

    def let_go(self) -> None:
        for one in self.held:
            one.drop()

    def is_held(self) -> bool:
        return any(one.seen.is_set() for one in self.held)


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


def redeliver(works: list[Work]) -> None:
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


def strike(way: Way, works: list[Work]) -> None:
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
        eventually(partial(_is_gone, task), f"the task of {work.dag}, {way}, to end", seconds=20)
    if way is not Way.SUPERVISOR:
        farm.start(*names)


def _is_gone(process: psutil.Process) -> bool:
    return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE
