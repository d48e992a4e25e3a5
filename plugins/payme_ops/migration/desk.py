"""What the steps work with, and the sessions they work in."""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field

import psycopg
from psycopg import sql
from psycopg.conninfo import conninfo_to_dict

from payme_ops.foundation.errors import NotFound
from payme_ops.foundation.postgres import connect, speaking
from payme_ops.foundation.settings import Settings
from payme_ops.migration.names import PHONE_NUMBER, Names


@dataclass(frozen=True)
class MigrationDesk:
    """Settings, the target database through the migrate role, the ops database, and whose work it is."""

    settings: Settings
    target: str = field(repr=False)  # conninfos may hold passwords
    ops: str = field(repr=False)
    run: str
    names: Names = PHONE_NUMBER

    @property
    def database(self) -> str:
        """Name of the target database; part of the lease's name."""
        return str(conninfo_to_dict(self.target).get("dbname") or self.settings.backup.database)


@contextmanager
def session(desk: MigrationDesk, part: str) -> Iterator[psycopg.Connection]:
    """An autocommit session of the migrate role. `part` is shown in pg_stat_activity."""
    with connect(desk.target, application=f"payme_ops:migration:{part}") as connection:
        yield connection


@contextmanager
def owner_session(desk: MigrationDesk, part: str) -> Iterator[psycopg.Connection]:
    """The same acting as the table's owner, so that what DDL makes belongs to the owner.

    Raises NotFound when there is neither the table nor, under the shim, its base.
    """
    with session(desk, part) as connection, speaking("act as the table's owner"):
        row = connection.execute(
            "SELECT pg_get_userbyid(relowner) FROM pg_class"
            " WHERE relnamespace = to_regnamespace(quote_ident(%s)) AND relname = ANY(%s) AND relkind IN ('r', 'p')",
            [desk.names.schema, [desk.names.table, desk.names.base]],
        ).fetchone()
        if row is None:
            raise no_table(desk.names)
        connection.execute(sql.SQL("SET ROLE {}").format(sql.Identifier(row[0])))
        yield connection


def no_table(names: Names) -> NotFound:
    """The error where there is neither the table nor, under the shim, its base."""
    return NotFound(
        f"there is no table {names.title}",
        expected="the table whose column is to be encrypted",
        found="none of that name",
        remedy="check the database that the connection payme_db_migrate names",
    )


def silence_triggers(connection: psycopg.Connection) -> None:
    """Keep the table's own triggers from firing in this session, where the role may: what the migration writes changes
    nothing for anybody, and must not move every updated_at."""
    with suppress(psycopg.errors.InsufficientPrivilege):
        connection.execute("SET session_replication_role = replica")
