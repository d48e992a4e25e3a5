"""Ciphertexts that the application sealed before it knew their row's id, sealed again for their row.

Until that is done any two of them can be exchanged unseen. So it is done only while the plaintext is there to say
whose number it is; later the application has to write such a row again.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import psycopg
from psycopg.types.string import ByteaBinaryLoader

from payme_ops.foundation.postgres import speaking
from payme_ops.foundation.progress import Report, rows
from payme_ops.migration import envelope
from payme_ops.migration.desk import MigrationDesk, session, silence_triggers
from payme_ops.migration.envelope import Keys
from payme_ops.migration.judge import Kind, Row, judge, open_as
from payme_ops.migration.names import Names, statement
from payme_ops.migration.shape import Stage, inspect, require

_SIZE = 1000  # rows at once: short transactions, as in the backfill


@dataclass(frozen=True)
class Rewrapped:
    """Rows that were bound to none, and those of them that are bound now. The others changed meanwhile, were locked,
    or hold another number than the plaintext; verification names what is left."""

    found: int
    written: int


def rewrap(desk: MigrationDesk, keys: Keys, ids: Sequence[int] | None, report: Report) -> Rewrapped:
    """Seal these rows again, or with None all that need it. Run again after anything.

    Raises UnexpectedSchema when the plaintext is not the truth any more, DatabaseUnavailable, DatabaseError.
    """
    names, after, found, written = desk.names, -(2**63), 0, 0
    with session(desk, "rewrap") as connection, speaking("bind ciphertexts to their rows"):
        require(inspect(connection, names), names, Stage.EXPANDED, before=Stage.RELAXED)
        _prepare(connection)
        while True:
            values = {"after": after, "size": _SIZE, "ids": None if ids is None else list(ids)}
            batch: list[Row] = connection.execute(statement(names, "4_read_batch.sql"), values, binary=True).fetchall()
            if not batch:
                break
            after = batch[-1][0]
            _, faults = judge(keys, names, batch, compare=True)
            unbound = {fault.id for fault in faults if fault.kind is Kind.UNBOUND}
            found += len(unbound)
            written += _write(connection, keys, names, [row for row in batch if row[0] in unbound])
    report(f"{rows(written)} of {found:,} that were bound to none are bound to their own id")
    return Rewrapped(found, written)


def _prepare(connection: psycopg.Connection) -> None:
    connection.execute("SET row_security = off")  # a policy that hides rows is an error
    silence_triggers(connection)
    connection.adapters.register_loader("text", ByteaBinaryLoader)


def _write(connection: psycopg.Connection, keys: Keys, names: Names, unbound: Sequence[Row]) -> int:
    chosen = []
    for key, number, stored, _ in unbound:
        old = (stored or b"").decode()
        text = open_as(keys, envelope.parse(old)[1], names.unbound_associated_data)
        if text is not None and text.encode() == number:
            chosen.append((key, text, old))
    if not chosen:
        return 0
    values = {
        "key": [key for key, _, _ in chosen],
        "number": [text for _, text, _ in chosen],
        "old": [old for _, _, old in chosen],
        "ciphertext": [envelope.encrypt(keys, names.associated_data(key), text) for key, text, _ in chosen],
        "blind_index": [envelope.blind_index(keys, text) for _, text, _ in chosen],
    }
    return connection.execute(statement(names, "4_rewrap_batch.sql"), values).rowcount
