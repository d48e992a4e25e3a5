"""What the versions of the application say to `users`: explicit column lists, always the same few statements.

v1 knows the plaintext. v2 writes all three columns and reads the plaintext; v3 reads the ciphertext. v4 no longer names
the plaintext, v5 calls the ciphertext `phone_number`.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import LiteralString

from psycopg import sql

from payme_ops.migration import envelope
from payme_ops.migration.envelope import Keys
from payme_ops.migration.names import PHONE_NUMBER
from sandbox.payme_app.ledger import GENERATED
from sandbox.payme_db import generate

PLAINTEXT, CIPHERTEXT, INDEX = PHONE_NUMBER.plaintext, PHONE_NUMBER.ciphertext, PHONE_NUMBER.blind_index
NEXT_ID = b"SELECT nextval('users_id_seq')"
# By name: pg_get_serial_sequence is NULL while `users` is a view. The id comes first, since the ciphertext is bound to
# it.
TOUCH = b"UPDATE users SET last_login_at = now() WHERE id = %(id)s"
DELETE = b"DELETE FROM users WHERE id = %(id)s"

_INSERT: LiteralString = (
    "INSERT INTO users (public_id, full_name, {columns}) VALUES (gen_random_uuid(), 'New Customer', {values})"
)
SHARED, SHARED_COUNT = 90_000_000, 10_000_000  # values that no instance has for itself
Values = dict[str, int | str | bytes]
PREFIX, _DIGITS = "+2541", 8  # Kenyan mobiles, too, and none of sandbox.payme_db's


@dataclass(frozen=True)
class Version:
    """One release. `writes` says which form of the number goes into which column: plain, sealed or index."""

    number: str
    writes: Mapping[str, str]
    reads: str
    finds: str

    @property
    def application(self) -> str:
        """The sessions' application_name, which the fleet gate reads."""
        return f"payme-api/{self.number}"

    @property
    def reserves_id(self) -> bool:
        """Whether it takes the id of a new user before it inserts."""
        return "sealed" in self.writes.values()

    @property
    def decrypts(self) -> bool:
        """Whether it reads the ciphertext."""
        return self.writes[self.reads] == "sealed"

    @cached_property
    def create(self) -> bytes:
        """A new user; answers the id."""
        return self._text(_INSERT + " RETURNING id")

    @cached_property
    def upsert(self) -> bytes:
        """A new user, or a login of the one who has that number. Answers the id, or nothing: then `log_in` does.

        While two columns are unique no target can be named: of two first logins at the same instant, one would fail
        on the other index (23505).
        """
        if {"plain", "index"} <= set(self.writes.values()):
            return self._text(_INSERT + " ON CONFLICT DO NOTHING RETURNING id")
        return self._text(_INSERT + " ON CONFLICT ({finds}) DO UPDATE SET last_login_at = now() RETURNING id")

    @cached_property
    def log_in(self) -> bytes:
        """A login of the one who has that number; answers the id."""
        return self._text("UPDATE users SET last_login_at = now() WHERE {finds} = {found} RETURNING id")

    @cached_property
    def change(self) -> bytes:
        """Another number for a user."""
        return self._text("UPDATE users SET {assignments} WHERE id = %(id)s")

    @cached_property
    def read(self) -> bytes:
        """The number of a user."""
        return self._text("SELECT {reads} FROM users WHERE id = %(id)s")

    @cached_property
    def read_locked(self) -> bytes:
        """The same, and nobody may change the user until the transaction's end."""
        return self._text("SELECT {reads} FROM users WHERE id = %(id)s FOR UPDATE")

    @cached_property
    def find(self) -> bytes:
        """The ids of a number."""
        return self._text("SELECT id FROM users WHERE {finds} = {found}")

    @cached_property
    def read_many(self) -> bytes:
        """The numbers of many users. For checks afterwards; no application does it."""
        return self._text("SELECT id, {reads} FROM users WHERE id = ANY(%(ids)s)")

    def _text(self, template: LiteralString) -> bytes:
        written = [(sql.Identifier(column), sql.Placeholder(form)) for column, form in self.writes.items()]
        inserted = [(sql.Identifier("id"), sql.Placeholder("id"))] * self.reserves_id + written
        comma = sql.SQL(", ")
        text = sql.SQL(template).format(
            columns=comma.join(column for column, _ in inserted),
            values=comma.join(value for _, value in inserted),
            assignments=comma.join(sql.SQL("{} = {}").format(*pair) for pair in written),
            reads=sql.Identifier(self.reads),
            finds=sql.Identifier(self.finds),
            found=sql.Placeholder(self.writes[self.finds]),
        )
        return text.as_bytes(None)


_ALL = {PLAINTEXT: "plain", CIPHERTEXT: "sealed", INDEX: "index"}
V1 = Version("2.4.0", {PLAINTEXT: "plain"}, reads=PLAINTEXT, finds=PLAINTEXT)
V2 = Version("2.5.0", _ALL, reads=PLAINTEXT, finds=PLAINTEXT)
V3 = Version("2.6.0", _ALL, reads=CIPHERTEXT, finds=INDEX)
V4 = Version("2.7.0", {CIPHERTEXT: "sealed", INDEX: "index"}, reads=CIPHERTEXT, finds=INDEX)
V5 = Version("2.8.0", {PLAINTEXT: "sealed", INDEX: "index"}, reads=PLAINTEXT, finds=INDEX)
VERSIONS = {version.number: version for version in (V1, V2, V3, V4, V5)}


def of(number: str) -> Version:
    """The one that writes as the application of that number does: the newest that is not newer."""
    return next((one for one in (V5, V4, V3, V2) if _parts(one.number) <= _parts(number)), V1)


def _parts(number: str) -> list[int]:
    return [int(part) for part in number.split(".")]


def number(user: int, value: int) -> str:
    """The phone number that `value` stands for; what is written to files is the value."""
    return generate.phone_number(user) if value == GENERATED else f"{PREFIX}{value:0{_DIGITS}}"


def parameters(version: Version, keys: Keys, user: int, phone: str) -> Values:
    """What the version's statements take for that user and number."""
    taken: Values = {"id": user, "plain": phone}
    if version.reserves_id:
        taken["sealed"] = envelope.encrypt(keys, PHONE_NUMBER.associated_data(user), phone)
        taken["index"] = envelope.blind_index(keys, phone)
    return taken


def is_right(version: Version, keys: Keys, user: int, value: int, stored: str | None) -> bool:
    """Whether what the version read is the number that `value` stands for."""
    if stored is None:
        return False
    try:
        found = envelope.decrypt(keys, PHONE_NUMBER.associated_data(user), stored) if version.decrypts else stored
    except envelope.Undecryptable:
        return False
    return found == number(user, value)
