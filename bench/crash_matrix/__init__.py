"""`python -m bench.crash_matrix`: the migration struck at every statement of every step, and run again.

Before each statement that a step sends to the target database it is stopped, and then the task is killed, its
connection cut, or the database killed. Run again, it must come to what an undisturbed run comes to: the same tables,
columns, rules, rights and triggers, and the same numbers behind the ciphertexts. Writes the table of
docs/crash-matrix.md. Exit code 1 when something did not recover.
"""

import hashlib
import itertools
import json
import logging
import multiprocessing
import os
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from multiprocessing.connection import Connection as Pipe
from pathlib import Path
from typing import Any

import psycopg
from psycopg import sql
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from rich.console import Console

from bench.telling import narrator, publish, quiet, tell_failure
from payme_ops.foundation import opsdb, settings
from payme_ops.foundation.clock import EAT
from payme_ops.foundation.errors import PaymeOpsError
from payme_ops.foundation.progress import Report
from payme_ops.migration import backfill, envelope, purge, steps
from payme_ops.migration.desk import MigrationDesk
from payme_ops.migration.envelope import Keys
from payme_ops.migration.names import PHONE_NUMBER
from sandbox import postgres, world
from sandbox.payme_app.versions import V4, parameters
from sandbox.payme_db import generate
from sandbox.postgres import PROJECT, Cluster, ClusterError

PAGE = PROJECT / "docs" / "crash-matrix.md"
_USERS = 2_000
_WITHIN_SECONDS = 60
_FREE_BYTES = 10**12  # nobody runs out of disk here
_names = itertools.count(1)
# Its processes are forked from a fresh one, which has no threads, and everything imported.
_FORK = multiprocessing.get_context("forkserver")
_FORK.set_forkserver_preload(["bench.crash_matrix"])


class Strike(StrEnum):
    """What happens at the statement."""

    TASK = "kill -9 of the task"
    CONNECTION = "its connection cut"
    SERVER = "kill -9 of the database"


Work = Callable[[MigrationDesk, Keys], object]


def _do(step: steps.Step) -> Work:
    return lambda desk, _keys: step.do(desk, quiet)


def _undo(step: steps.Step) -> Work:
    return lambda desk, _keys: step.undo(desk, quiet)


def _encrypt(desk: MigrationDesk, keys: Keys) -> None:
    for low, high in backfill.plan_ranges(desk, 2):
        backfill.encrypt_range(desk, keys, low, high, pass_number=1)
    backfill.catch_up(desk, keys)


def _write_as_v4(desk: MigrationDesk, keys: Keys) -> None:
    """Not a step: what leaves the plaintext behind, so that the reverse backfill has something to do."""
    with psycopg.connect(desk.target, autocommit=True) as connection, connection.cursor() as cursor:
        connection.execute("SET ROLE payme_owner")
        cursor.executemany(V4.change, [parameters(V4, keys, user, f"+2541{user:08}") for user in range(1, _USERS, 2)])


@dataclass(frozen=True)
class Case:
    """A step or an undo: what it is taken from, by the name of the case that leads there, and what it does."""

    name: str
    after: str
    work: Work = field(repr=False)


CASES = {
    case.name: case
    for case in (
        Case("expand", "", _do(steps.EXPAND)),
        Case("backfill", "expand", _encrypt),
        Case("finish", "backfill", _do(steps.FINISH)),
        Case("relax", "finish", _do(steps.RELAX)),
        Case("brown-out", "relax", _do(steps.BROWN_OUT)),
        Case("switch", "brown-out", _do(steps.SWITCH)),
        Case("end of the shim", "switch", _do(steps.END_SHIM)),
        Case("purge", "end of the shim", lambda desk, _: purge.do_purge(desk, quiet, free_bytes=_FREE_BYTES)),
        Case("undo of the shim's end", "end of the shim", _undo(steps.END_SHIM)),
        Case("undo of the brown-out", "brown-out", _undo(steps.BROWN_OUT)),
        Case("(v4 writes)", "relax", _write_as_v4),
        Case("reverse backfill", "(v4 writes)", lambda desk, keys: backfill.reverse(desk, keys)),
        Case("undo of relax", "relax", _undo(steps.RELAX)),
        Case("undo of finish", "finish", _undo(steps.FINISH)),
        Case("undo of expand", "backfill", _undo(steps.EXPAND)),
    )
}
STEPS = [name for name in CASES if not name.startswith("(")]


@dataclass
class Ground:
    """A server that may be killed, and databases on it; `start` starts it again."""

    cluster: Cluster
    start: Callable[[], None]
    target: str  # conninfo of the migrate role; the database is put in
    ops: str
    environment: Mapping[str, str]  # of the tasks
    template: str
    made: dict[str, str] = field(default_factory=dict)  # databases as they are after a case, undisturbed
    wanted: dict[str, dict[str, str]] = field(default_factory=dict)  # and what is in them

    def desk(self, database: str) -> MigrationDesk:
        """The desk of a task that works on that database."""
        return MigrationDesk(settings.load(), make_conninfo(self.target, dbname=database), self.ops, "crash-matrix")

    @property
    def keys(self) -> Keys:
        """Of the environment."""
        return _keys(self.environment)

    @contextmanager
    def admin(self, database: str = "postgres") -> Iterator[psycopg.Connection]:
        """A superuser's autocommit session."""
        with psycopg.connect(self.cluster.conninfo(database), autocommit=True) as connection:
            yield connection

    @contextmanager
    def copy(self, case: Case) -> Iterator[str]:
        """A database in which that case is the next to be taken, for the block."""
        with self._copied(self.ready(case.after)) as name:
            yield name

    def ready(self, name: str) -> str:
        """The database after that case."""
        if not name:
            return self.template
        if name not in self.made:
            case = CASES[name]
            self.made[name] = made = self._create(self.ready(case.after))
            case.work(self.desk(made), self.keys)
        return self.made[name]

    def close(self) -> None:
        """Drop all databases that were made."""
        for name in self.made.values():
            self._drop(name)
        self.made.clear()

    @contextmanager
    def _copied(self, template: str) -> Iterator[str]:
        name = self._create(template)
        try:
            yield name
        finally:
            self._drop(name)

    def _create(self, template: str) -> str:
        name = f"crash_{os.getpid()}_{next(_names)}"
        query = sql.SQL("CREATE DATABASE {} OWNER payme_owner TEMPLATE {}")
        with self.admin() as connection:
            _unused(connection, template)
            connection.execute(query.format(sql.Identifier(name), sql.Identifier(template)))
        return name

    def _drop(self, name: str) -> None:
        with self.admin() as connection:
            connection.execute(sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(sql.Identifier(name)))


def _unused(connection: psycopg.Connection, database: str) -> None:
    """Sessions that have been closed take a moment to end, autovacuum too."""
    deadline = time.monotonic() + _WITHIN_SECONDS
    while connection.execute("SELECT FROM pg_stat_activity WHERE datname = %s", [database]).rowcount:
        if time.monotonic() > deadline:
            raise ClusterError(f"sessions in {database} do not end")
        time.sleep(0.02)


def _keys(environment: Mapping[str, str]) -> Keys:
    key_id = settings.load().migration.key_id
    return envelope.load_keys(environment, key_id=key_id, names=PHONE_NUMBER)


def strike(ground: Ground, case: Case, kind: Strike, number: int) -> str | None:
    """Strike before that statement and run again; what went wrong, in words, "" for nothing, None beyond the end."""
    with ground.copy(case) as database:
        ours, theirs = _FORK.Pipe()
        arguments = (theirs, dict(ground.environment), ground.desk(database), case.name, number)
        process = _FORK.Process(target=_task, args=arguments, daemon=True)
        process.start()
        theirs.close()
        with ours:
            try:
                session = ours.recv()
            except EOFError:
                process.join(_WITHIN_SECONDS)
                return None if process.exitcode == 0 else f"undisturbed it ended with {process.exitcode}"
            _strike(ground, kind, process.kill, session)
            with ExitStack() as stack:
                if kind is not Strike.TASK:
                    stack.callback(process.kill)
                    ours.send("go on")
                    process.join(_WITHIN_SECONDS)
                    if process.exitcode is None:
                        return "it hung"
        process.join()
        if kind is Strike.SERVER:
            ground.start()
        said = "" if process.exitcode in (0, 3, -9) else f"it ended with {process.exitcode}"
        try:
            case.work(ground.desk(database), ground.keys)
        except PaymeOpsError as error:
            return f"run again: {error}"
        if case.name not in ground.wanted:
            ground.wanted[case.name] = content(ground, ground.ready(case.name))
        differs = difference(ground.wanted[case.name], content(ground, database))
        return said or (f"differs in {differs}" if differs else "")


def _strike(ground: Ground, kind: Strike, kill: Callable[[], None], session: int) -> None:
    if kind is Strike.TASK:
        kill()
    elif kind is Strike.SERVER:
        postgres.kill(ground.cluster)
    else:
        with ground.admin() as connection:
            connection.execute("SELECT pg_terminate_backend(%s, 5000)", [session])


def _task(pipe: Pipe, environment: dict[str, str], desk: MigrationDesk, case: str, number: int) -> None:
    """The process of a task. Ends with 0: done, 3: one of our errors; anything else is a fault of ours."""
    os.environ.update(environment)
    logging.disable()  # of psycopg's: what it cannot roll back
    _stop_before(pipe, str(conninfo_to_dict(desk.target)["dbname"]), number)
    try:
        CASES[case].work(desk, _keys(environment))
    except PaymeOpsError:
        os._exit(3)
    os._exit(0)  # leaves no thread to wait for


def _stop_before(pipe: Pipe, database: str, number: int) -> None:
    """Tell and wait for leave before that statement of ours to that database; BEGIN and COMMIT are statements."""
    count, lock = itertools.count(1), threading.Lock()

    def look(connection: psycopg.Connection) -> None:
        if connection.info.dbname != database or connection.closed:
            return
        with lock:
            found = next(count)
        if found == number:
            pipe.send(connection.info.backend_pid)
            pipe.recv()

    execute, many, command = psycopg.Cursor.execute, psycopg.Cursor.executemany, psycopg.Connection._exec_command

    def looked(original: Callable[..., Any], of: Callable[[Any], psycopg.Connection]) -> Callable[..., Any]:
        def call(self: Any, *arguments: Any, **options: Any) -> Any:
            look(of(self))
            return original(self, *arguments, **options)

        return call

    psycopg.Cursor.execute = looked(execute, lambda cursor: cursor.connection)  # type: ignore[method-assign]
    psycopg.Cursor.executemany = looked(many, lambda cursor: cursor.connection)  # type: ignore[method-assign]
    psycopg.Connection._exec_command = looked(command, lambda connection: connection)  # type: ignore[method-assign]


# What a migration may change of a database, except for what is another each time (nonces, cursors, times, files).
_FACTS = {
    "relations": "SELECT relname, relkind, relowner::regrole::text, relacl::text FROM pg_class"
    " WHERE relnamespace = 'public'::regnamespace AND relkind <> 'c'",
    "columns": "SELECT attrelid::regclass::text, attname, format_type(atttypid, atttypmod), attnotnull, attacl::text"
    " FROM pg_attribute JOIN pg_class ON attrelid = pg_class.oid"
    " WHERE relnamespace = 'public'::regnamespace AND relkind IN ('r', 'v') AND attnum > 0 AND NOT attisdropped",
    "constraints": "SELECT conrelid::regclass::text, conname, convalidated, pg_get_constraintdef(oid)"
    " FROM pg_constraint WHERE connamespace = 'public'::regnamespace AND contype <> 'n'",
    "indexes": "SELECT indexrelid::regclass::text, indisvalid, pg_get_indexdef(indexrelid) FROM pg_index"
    " JOIN pg_class ON indrelid = pg_class.oid WHERE relnamespace = 'public'::regnamespace",
    "triggers": "SELECT tgname, pg_get_triggerdef(oid) FROM pg_trigger WHERE NOT tgisinternal",
    "functions": "SELECT proname, prosrc, proowner::regrole::text FROM pg_proc"
    " WHERE pronamespace = 'public'::regnamespace AND probin IS NULL",
    "views": "SELECT viewname, viewowner, definition FROM pg_views WHERE schemaname = 'public'",
    "comments": "SELECT objoid::regclass::text, objsubid, description FROM pg_description"
    " JOIN pg_class ON objoid = pg_class.oid WHERE relnamespace = 'public'::regnamespace",
}
_REMEMBERED = ("relaxed", "saved_acl")


def content(ground: Ground, database: str) -> dict[str, str]:
    """Digests by subject: everything in the catalogues, what the steps remember, and every user's number."""
    with ground.admin(database) as connection:
        found = {name: connection.execute(query.encode()).fetchall() for name, query in _FACTS.items()}
        for table in _REMEMBERED:
            name = f"payme_migration.{table}"
            there = connection.execute("SELECT to_regclass(%s)", [name]).fetchone()
            query = sql.SQL("SELECT rows::text FROM payme_migration.{} AS rows").format(sql.Identifier(table))
            found[f"what is remembered ({table})"] = connection.execute(query).fetchall() if there and there[0] else []
        columns = [row[0] for row in connection.execute("SELECT * FROM users LIMIT 0").description or []]
        rows = connection.execute("SELECT to_jsonb(users) - 'updated_at' FROM users").fetchall()
    keys = ground.keys
    return {
        **{name: _digest(sorted(map(repr, rows))) for name, rows in found.items()},
        "order of columns": _digest(columns),
        "numbers": _digest(sorted(_opened(keys, row) for (row,) in rows)),
    }


def _opened(keys: Keys, row: dict[str, Any]) -> str:
    """A user with the number in place of each ciphertext: of one number there are many ciphertexts."""
    for column in (PHONE_NUMBER.ciphertext, PHONE_NUMBER.plaintext):
        stored = row.get(column)
        if stored and stored.startswith(f"{envelope.VERSION}:"):
            try:
                row[column] = ["decrypted", envelope.decrypt(keys, PHONE_NUMBER.associated_data(row["id"]), stored)]
            except envelope.Undecryptable as error:
                row[column] = ["does not open", error.what]
    return json.dumps(row, sort_keys=True)


def _digest(lines: Sequence[str]) -> str:
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def difference(wanted: Mapping[str, str], found: Mapping[str, str]) -> str:
    """The subjects that differ."""
    return ", ".join(name for name in wanted if wanted[name] != found[name])


@dataclass(frozen=True)
class Row:
    """A step under one kind of strike: how many statements it was struck at, and where it did not recover."""

    case: str
    strike: Strike
    statements: int
    faults: list[str]


def matrix(ground: Ground, say: Report, *, cases: Sequence[str] = STEPS) -> list[Row]:
    """All strikes at all statements of those cases."""
    rows = []
    for name, kind in itertools.product(cases, Strike):
        faults = []
        for number in itertools.count(1):
            said = strike(ground, CASES[name], kind, number)
            if said is None:
                break
            if said:
                faults.append(f"{number}: {said}")
                say(f"{name}, {kind}, statement {number}: {said}")
        rows.append(Row(name, kind, number - 1, faults))
        say(f"{name}, {kind}: {number - 1 - len(faults)}/{number - 1}")
    return rows


def table(rows: Sequence[Row], day: str) -> str:
    """The part of docs/crash-matrix.md that is written here."""
    struck = sum(row.statements for row in rows)
    recovered = struck - sum(len(row.faults) for row in rows)
    lines = [f"On {day}: **struck {struck:,} times, recovered {recovered:,} times**.", ""]
    lines += ["| Step | " + " | ".join(Strike) + " |", "|---|" + "---|" * len(Strike)]
    for case in dict.fromkeys(row.case for row in rows):
        cells = [
            f"{row.statements - len(row.faults)}/{row.statements}"
            for kind in Strike
            for row in rows
            if (row.case, row.strike) == (case, kind)
        ]
        lines.append(f"| {case} | " + " | ".join(cells) + " |")
    return "\n".join([*lines, ""])


@contextmanager
def standing(folder: Path) -> Iterator[Ground]:
    """A server with PayMe's data and the desk's own database."""
    made = world.build(folder / "world")
    os.environ.update(made.env)
    cluster = made.cluster

    def start() -> None:
        postgres.start(
            cluster.data_dir,
            bin_dir=cluster.bin_dir,
            port=cluster.port,
            password=cluster.password,
            settings=postgres.TEST_SETTINGS,
            log=folder / "postgres.log",
        )

    start()
    try:
        passwords = {"payme_db_migrate": made.secrets["postgres.payme_db_migrate"]}
        generate.create(cluster.conninfo(), users=_USERS, transactions=10, seed=1, passwords=passwords)
        with psycopg.connect(cluster.conninfo(), autocommit=True) as connection:
            connection.execute("CREATE DATABASE payme_ops")
        ops = cluster.conninfo("payme_ops")
        opsdb.migrate(ops)
        target = made.conninfo("payme_db_migrate", generate.DATABASE)
        yield Ground(cluster, start, target, ops, made.env, generate.DATABASE)
    finally:
        postgres.stop(cluster, "immediate")


def main() -> int:
    """Run it; see the module."""
    say = narrator(Console(highlight=False))

    try:
        with tempfile.TemporaryDirectory(prefix="payme-crash-") as folder:
            Path(folder).chmod(0o711)  # PostgreSQL's own user has to pass through
            with standing(Path(folder)) as ground:
                rows = matrix(ground, say)
    except (PaymeOpsError, ClusterError) as error:
        tell_failure(error)
        return 1
    day = datetime.now(EAT).strftime("%Y-%m-%d")
    publish(PAGE, "crash-matrix", table(rows, day))
    return 1 if any(row.faults for row in rows) else 0
