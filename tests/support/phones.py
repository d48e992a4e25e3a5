"""A database of its own with PayMe's schema and users, for the migration of their phone numbers."""

import itertools
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import psycopg
from psycopg import sql
from psycopg.conninfo import make_conninfo

from payme_ops.foundation import settings
from payme_ops.migration import envelope
from payme_ops.migration.desk import MigrationDesk
from payme_ops.migration.envelope import Keys
from payme_ops.migration.names import PHONE_NUMBER, statement
from tests.support.site import Site

_numbers = itertools.count(1)

# What PayMe's own rules keep out and other columns of this kind have; each must come through to the byte.
ODD: Sequence[str | None] = (
    None,
    "",
    " ",
    "0712 345 678",
    "+254-712-000-001",
    "7" * 160,
    "١٢٣٤٥٦٧٨٩",
    "+254 700 \U0001f4de",
    "a\tb\\c'd\"e{f},g",
    "é",
    "e\u0301",
)


class Phones:
    """The database, its doors, and the key of the application."""

    def __init__(self, site: Site, name: str) -> None:
        self.site, self.name, self.names = site, name, PHONE_NUMBER
        self.desk = MigrationDesk(
            settings.load(),
            self.conninfo("payme_db_migrate"),
            site.world.conninfo("payme_ops", "payme_ops"),
            run=f"test/{name}",
        )

    @property
    def keys(self) -> Keys:
        """Of ENCRYPTION_KEY as it is now."""
        return envelope.load_keys(os.environ, key_id=self.desk.settings.migration.key_id, names=self.names)

    def conninfo(self, role: str) -> str:
        """libpq string of a role in this database: payme_db_migrate, payme_app, payme_owner."""
        return self.site.world.conninfo(role, self.name)

    @contextmanager
    def admin(self) -> Iterator[psycopg.Connection]:
        """A superuser's autocommit session."""
        with self.site.admin(self.name) as connection:
            yield connection

    @contextmanager
    def app(self, version: str = "payme-api/2.4.0") -> Iterator[psycopg.Connection]:
        """A session of the application, autocommit."""
        conninfo = make_conninfo(self.conninfo("payme_app"), application_name=version)
        with psycopg.connect(conninfo, autocommit=True) as connection:
            yield connection

    def allow_odd(self) -> dict[int, str | None]:
        """Take PayMe's own rules off the column and add a user for each of ODD; answers their ids."""
        with self.admin() as connection:
            connection.execute(
                "ALTER TABLE users DROP CONSTRAINT users_phone_number_is_e164, ALTER COLUMN phone_number DROP NOT NULL"
            )
            return {self.add(connection, phone): phone for phone in ODD}

    @staticmethod
    def add(connection: psycopg.Connection, phone: str | None) -> int:
        """One more user, as a version that knows only the plaintext writes it; the id."""
        row = connection.execute(
            "INSERT INTO users (public_id, phone_number, full_name) VALUES (gen_random_uuid(), %s, 'Test')"
            " RETURNING id",
            [phone],
        ).fetchone()
        assert row is not None
        return int(row[0])

    def plaintexts(self) -> Mapping[int, str | None]:
        """users.phone_number by id, as the superuser sees it."""
        with self.admin() as connection:
            return dict(connection.execute("SELECT id, phone_number FROM users").fetchall())

    def decrypted(self, column: str = "phone_number_encrypted") -> Mapping[int, str | None]:
        """The ciphertexts, decrypted, by id; None where there is none. Raises Undecryptable."""
        with self.admin() as connection:
            rows = connection.execute(
                sql.SQL("SELECT id, {} FROM users").format(sql.Identifier(column)),
            ).fetchall()
        keys = self.keys
        return {
            key: None if stored is None else envelope.decrypt(keys, self.names.associated_data(key), stored)
            for key, stored in rows
        }


def expanded(phones: Phones) -> Phones:
    """With the columns, check and trigger of the first step, and nothing in the columns."""
    with phones.admin() as connection:
        connection.execute("SET ROLE payme_owner")
        connection.execute(statement(phones.names, "1_expand.sql"))
    return phones


def encrypted(phones: Phones) -> Phones:
    """Expanded, and every user's number encrypted."""
    return fill(expanded(phones))


def fill(phones: Phones) -> Phones:
    """Encrypt every user's number as the application and the backfill do it."""
    keys, names = phones.keys, phones.names
    rows = [
        (envelope.encrypt(keys, names.associated_data(key), phone), envelope.blind_index(keys, phone), key)
        for key, phone in phones.plaintexts().items()
        if phone is not None
    ]
    with phones.admin() as connection, connection.cursor() as cursor:
        cursor.executemany(
            sql.SQL("UPDATE {relation} SET {ciphertext} = %s, {blind_index} = %s WHERE {key} = %s").format(
                **names.identifiers
            ),
            rows,
        )
    return phones


@contextmanager
def database(site: Site) -> Iterator[Phones]:
    """A copy of PayMe's database of size `test` (2,000 users), gone after the block."""
    name = f"phones_{os.getpid()}_{next(_numbers)}"
    site.copy_payme(name)
    try:
        yield Phones(site, name)
    finally:
        with site.admin("postgres") as connection:  # another one: the server may have been killed in between
            connection.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(name)))
