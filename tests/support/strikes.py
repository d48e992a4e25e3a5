"""A step of the migration struck in the middle of a statement, while that waits for somebody's lock."""

from contextlib import closing
from dataclasses import dataclass
from functools import partial
from multiprocessing.connection import Connection as Pipe

import psycopg

from bench import crash_matrix
from bench.crash_matrix import CASES, Ground, Strike, content, difference
from payme_ops.foundation.errors import PaymeOpsError
from payme_ops.migration import backfill, ddl
from payme_ops.migration.desk import MigrationDesk
from tests.support.waiting import eventually

_NEVER = 1_000_000  # before the statement of that number the process would be stopped


@dataclass(frozen=True)
class Midst:
    """A statement that can be made to wait: of which step, which one by words of it, and by what."""

    case: str
    words: str
    hold: str  # what another session does and does not commit
    before: str = "SELECT"  # what is in the database when the step begins
    leaves: str = "SELECT"  # finds a row while it waits, and after a strike at its session


def strike_midst(ground: Ground, midst: Midst, kind: Strike) -> str:
    """Strike while the statement waits and run again; what went wrong, in words, "" for nothing."""
    case = CASES[midst.case]
    with ground.copy(case) as database:
        with ground.admin(database) as connection:
            connection.execute(midst.before.encode())
        ours, theirs = crash_matrix._FORK.Pipe()
        arguments = (theirs, dict(ground.environment), ground.desk(database), case.name)
        process = crash_matrix._FORK.Process(target=_patient_task, args=arguments, daemon=True)
        with closing(psycopg.connect(ground.cluster.conninfo(database))) as holder, ours, theirs:
            holder.execute(midst.hold.encode())
            process.start()
            try:
                with ground.admin(database) as connection:
                    find = partial(_waiting, connection, midst)
                    session = eventually(find, f"{case.name} to wait with {midst.words}")
                crash_matrix._strike(ground, kind, process.kill, session)
            except BaseException:
                process.kill()
                raise
        process.join(crash_matrix._WITHIN_SECONDS)
        if process.exitcode is None:
            process.kill()
            return "it hung"
        if kind is Strike.SERVER:
            ground.start()
        if kind is not Strike.TASK:
            with ground.admin(database) as connection:
                assert connection.execute(midst.leaves.encode()).rowcount, "the strike left nothing"
        try:
            case.work(ground.desk(database), ground.keys)
        except PaymeOpsError as error:
            return f"run again: {error}"
        differs = difference(content(ground, ground.ready(case.name)), content(ground, database))
        said = "" if process.exitcode == (-9 if kind is Strike.TASK else 3) else f"it ended with {process.exitcode}"
        return said or (f"differs in {differs}" if differs else "")


def _waiting(connection: psycopg.Connection, midst: Midst) -> int:
    """The pid of our session that waits for a lock with that statement, 0 if there is none."""
    row = connection.execute(
        "SELECT pid FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
        " AND application_name LIKE 'payme\\_ops:migration:%%' AND strpos(query, %s) > 0",
        [midst.words],
    ).fetchone()
    return int(row[0]) if row and connection.execute(midst.leaves.encode()).rowcount else 0


def _patient_task(pipe: Pipe, environment: dict[str, str], desk: MigrationDesk, case: str) -> None:
    """As a task, but a statement that would give up after parts of a second waits until it is struck."""
    backfill._LOCK_TIMEOUT = "30s"
    ddl._LIMITS = ddl._LIMITS.replace("200ms", "30s")
    crash_matrix._task(pipe, environment, desk, case, _NEVER)
