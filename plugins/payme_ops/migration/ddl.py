"""Changes of a table that others use: each try waits 0.2 s for its lock, and gives way until it gets it or has to give
up. Nobody waits longer behind us, and nobody's session is ended.
"""

from collections.abc import Callable
from typing import TypeVar

import psycopg
from psycopg import sql
from tenacity import Retrying, retry_if_exception_type, stop_after_delay, wait_random
from tenacity.wait import wait_base

from payme_ops.foundation import lease
from payme_ops.foundation.errors import DatabaseError, LeaseHeld, LockBudgetSpent
from payme_ops.foundation.postgres import speaking
from payme_ops.foundation.progress import Report
from payme_ops.foundation.sql import load
from payme_ops.migration.desk import MigrationDesk, owner_session
from payme_ops.migration.names import statement
from payme_ops.migration.shape import named

T = TypeVar("T")
# Everybody who comes after us stands behind us as long as we wait. A process that stands still with a lock in its hands
# loses its session, and with it the lock.
_LIMITS = "SET LOCAL lock_timeout = '200ms'; SET LOCAL idle_in_transaction_session_timeout = '2s'"
_GIVEN_WAY = {"55P03", "40P01"}  # lock_timeout, deadlock
_JITTER = wait_random(0.1, 0.6)


def with_lock_budget(
    desk: MigrationDesk,
    part: str,
    work: Callable[[psycopg.Connection], T],
    *,
    of_table: bool = True,
    wait: wait_base = _JITTER,
) -> T:
    """What `work` answers, done in one transaction as the table's owner; tried until it gets its locks.

    Not `of_table`: it needs none on the table, and so waits for no vacuum. The lease is held for each try only. Raises
    LockBudgetSpent naming who holds the lock, and then nothing is changed; LeaseHeld when another change goes on all
    the time; what `work` raises.
    """

    def attempt() -> T:
        with owner_session(desk, part) as connection, lease.hold(desk.ops, f"ddl:{desk.database}", desk.run) as held:
            try:
                with speaking(f"{part} {desk.names.title}"), connection.transaction():
                    if of_table:
                        connection.execute(statement(desk.names, "try_lock.sql"))
                    connection.execute(_LIMITS)
                    done = work(connection)
                    held.check()
                return done
            except DatabaseError as error:
                raise _spent(desk, connection, part, error) from None

    return _within_budget(desk, attempt, wait)


def with_weak_lock(desk: MigrationDesk, part: str, work: Callable[[psycopg.Connection], T]) -> T:
    """The same in autocommit, for statements whose lock stops neither readers nor writers: it may be waited for as
    long as the budget, and so autovacuum gives way."""
    patience = sql.SQL("SET lock_timeout = {}").format(sql.Literal(f"{desk.settings.migration.lock_budget_seconds}s"))

    def patient(connection: psycopg.Connection) -> T:
        connection.execute(patience)
        return work(connection)

    return without_transaction(desk, part, patient)


def without_transaction(
    desk: MigrationDesk, part: str, work: Callable[[psycopg.Connection], T], *, wait: wait_base = _JITTER
) -> T:
    """The same for what cannot run in a transaction; `work` sets its own lock_timeout."""

    def attempt() -> T:
        with owner_session(desk, part) as connection, lease.hold(desk.ops, f"ddl:{desk.database}", desk.run):
            try:
                with speaking(f"{part} {desk.names.title}"):
                    return work(connection)
            except DatabaseError as error:
                raise _spent(desk, connection, part, error) from None

    return _within_budget(desk, attempt, wait)


def _within_budget(desk: MigrationDesk, attempt: Callable[[], T], wait: wait_base) -> T:
    retrying = Retrying(
        retry=retry_if_exception_type((LockBudgetSpent, LeaseHeld)),
        stop=stop_after_delay(desk.settings.migration.lock_budget_seconds),
        wait=wait,
        reraise=True,
    )
    return retrying(attempt)


def _spent(desk: MigrationDesk, connection: psycopg.Connection, part: str, error: DatabaseError) -> Exception:
    """What a refused statement is: no lock in time, or itself."""
    if error.sqlstate not in _GIVEN_WAY:
        return error
    names = desk.names
    values = {**named(names), "base": named(names)["base_relation"], "snapshots": part == INDEX}
    with speaking("ask who holds the lock"):
        connection.execute("RESET ROLE")  # the owner does not see others' sessions
        rows = connection.execute(load("phone_encryption/lock_holders.sql"), values).fetchall()
    holders = [f"{who} (pid {pid}, for {seconds} s)" if who else str(pid) for pid, who, seconds in rows]
    return LockBudgetSpent(
        f"{part}: no lock on {names.title} in time",
        expected=f"a lock within {desk.settings.migration.lock_budget_seconds} s, each try 0.2 s",
        found=f"held by {', '.join(holders)}" if holders else "held by somebody who has let go since",
        remedy="the table is as it was; try again when those have ended, or in a quieter hour",
    )


INDEX = "index"


def build_index(desk: MigrationDesk, index: str, create: sql.Composed, *, report: Report) -> bool:
    """Run CREATE INDEX CONCURRENTLY unless the index is there and valid; answers whether it was built.

    What an earlier try left invalid is dropped first, and nothing invalid is left when this one fails. It waits for
    transactions that are older, so up to the whole budget for each; nobody but other schema changes waits for it.
    Raises LockBudgetSpent, LeaseHeld, DatabaseError (23505: duplicates).
    """

    def work(connection: psycopg.Connection) -> bool:
        if _is_valid(connection, desk, index):
            return False
        _drop_if_there(connection, desk, index, report)
        connection.execute("SET max_parallel_maintenance_workers = 0")  # one core; the application keeps the others
        try:
            connection.execute(create)
        except psycopg.Error:
            # An invalid index refuses writes all the same; only a session that has been ended leaves one behind.
            if not connection.closed:
                _drop_if_there(connection, desk, index, report)
            raise
        return True

    return with_weak_lock(desk, INDEX, work)


def drop_index(desk: MigrationDesk, index: str, *, report: Report) -> bool:
    """DROP INDEX CONCURRENTLY, valid or not; answers whether it was there. Raises as build_index."""
    return with_weak_lock(desk, INDEX, lambda connection: _drop_if_there(connection, desk, index, report))


def _is_valid(connection: psycopg.Connection, desk: MigrationDesk, index: str) -> bool | None:
    """None when there is none of that name."""
    values = {"schema": desk.names.schema, "index": index}
    row = connection.execute(load("phone_encryption/index_state.sql"), values).fetchone()
    return bool(row[0]) if row else None


def _drop_if_there(connection: psycopg.Connection, desk: MigrationDesk, index: str, report: Report) -> bool:
    valid = _is_valid(connection, desk, index)
    if valid is None:
        return False
    report(f"dropping index {index}" + ("" if valid else ", which an earlier try left invalid"))
    connection.execute(
        sql.SQL("DROP INDEX CONCURRENTLY {}").format(sql.Identifier(desk.names.schema, index)),
    )
    return True


def validate(desk: MigrationDesk, check: str) -> None:
    """VALIDATE a constraint of ours; reads the table and stops nobody. Raises as with_lock_budget."""
    validation = statement(desk.names, "3_validate.sql", check=sql.Identifier(check))
    with_weak_lock(desk, f"validate {check}", lambda connection: connection.execute(validation))
