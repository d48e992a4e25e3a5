"""What the migration touches, by name, in one place: `users.phone_number` in production, any such column in a test."""

from dataclasses import dataclass
from functools import cached_property

from psycopg import sql

from payme_ops.foundation.sql import load

STATE_SCHEMA = "payme_migration"  # progress and control, in the target database: it commits with the rows


@dataclass(frozen=True)
class Names:
    """Schema, table, key and columns; the names of everything that is made follow from them."""

    schema: str = "public"
    table: str = "users"
    key: str = "id"  # bigint or integer, the primary key
    plaintext: str = "phone_number"
    context: str = "user"  # associated data is user_<id>.phone_number, whatever the columns are called later

    @property
    def ciphertext(self) -> str:
        """text, until the rename gives it the plaintext's name."""
        return f"{self.plaintext}_encrypted"

    @property
    def blind_index(self) -> str:
        """bytea, 32 bytes; keeps its name."""
        return f"{self.plaintext}_bidx"

    @property
    def base(self) -> str:
        """The table while the shim view has its name."""
        return f"{self.table}_base"

    def associated_data(self, key: int) -> bytes:
        """What a ciphertext is bound to; the text is part of the format that docs/phone-encryption.md gives."""
        return f"{self.context}_{key}.{self.plaintext}".encode()

    @property
    def unbound_associated_data(self) -> bytes:
        """What an application that encrypts before it knows the id binds to: any two such values can be swapped."""
        return f"{self.context}_new.{self.plaintext}".encode()

    @cached_property
    def made(self) -> dict[str, str]:
        """What the steps make beside the columns, by its name in the catalogues."""
        stem = f"{self.table}_{self.plaintext}"
        return {
            "format_check": f"{stem}_format",
            "complete_check": f"{stem}_complete",
            "not_null_check": f"{stem}_not_null",  # only while NOT NULL is put back
            "stale_trigger": f"{stem}_stale",
            "stale_function": f"{stem}_stale",
            "index": f"{self.table}_{self.blind_index}_idx",
        }

    @cached_property
    def identifiers(self) -> dict[str, sql.Composable]:
        """For `statement`: quoted identifiers, and `state` for the schema of progress and control."""
        made = self.made
        return {
            **{what: sql.Identifier(name) for what, name in made.items()},
            "relation": sql.Identifier(self.schema, self.table),
            "table": sql.Identifier(self.table),
            "base_relation": sql.Identifier(self.schema, self.base),
            "base": sql.Identifier(self.base),
            "schema": sql.Identifier(self.schema),
            "key": sql.Identifier(self.key),
            "plaintext": sql.Identifier(self.plaintext),
            "ciphertext": sql.Identifier(self.ciphertext),
            "blind_index": sql.Identifier(self.blind_index),
            "stale_function": sql.Identifier(self.schema, made["stale_function"]),
            "index_relation": sql.Identifier(self.schema, made["index"]),
            "state": sql.Identifier(STATE_SCHEMA),
        }

    @property
    def title(self) -> str:
        """The table as the rows of the state schema and messages have it: public.users."""
        return f"{self.schema}.{self.table}"


PHONE_NUMBER = Names()


def statement(names: Names, file: str, **more: sql.Composable) -> sql.Composed:
    """The text of include/sql/phone_encryption/<file> with its identifiers put in; values stay parameters."""
    return load(f"phone_encryption/{file}").format(**{**names.identifiers, **more})
