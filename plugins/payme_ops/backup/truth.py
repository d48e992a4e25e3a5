"""What is true in one snapshot: rows and content hash of every table, and everything else a restore must bring back.

How a table is hashed, and a definition written: payme_ops.foundation.content.
"""

from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import psycopg
from psycopg import sql

from payme_ops.backup.manifest import (
    Definition,
    Extension,
    Grant,
    LargeObjects,
    RelationTruth,
    Role,
    SequenceTruth,
    Truth,
)
from payme_ops.foundation import content
from payme_ops.foundation.errors import TruthMismatch, Unavailable
from payme_ops.foundation.progress import Report
from payme_ops.foundation.sql import load

# Whoever changes a text form in list_definitions.sql counts on: definitions of other forms are not compared.
DEFINITIONS_FORM = 1
# pg_class.relkind
KINDS = {"r": "table", "p": "partitioned table", "m": "materialised view", "f": "foreign table"}
_NOTES = {
    "p": "its rows are in its partitions",
    "m": "definition only; refreshed by the restore when it was populated",
    "f": "definition only; its rows live on another server",
}


def list_sequences(connection: psycopg.Connection) -> list[SequenceTruth]:
    """Every sequence's last value. Read it before the dump starts: the dump may be ahead of it, never behind."""
    return [
        SequenceTruth(schema_name=row[0], name=row[1], last_value=row[2], increment=row[3], cycles=row[4])
        for row in connection.execute(load("backup/list_sequences.sql"))
    ]


def list_roles(connection: psycopg.Connection) -> list[Role]:
    """Every role of the server, without its password."""
    return [Role(name=r[0], attributes=r[1], member_of=r[2]) for r in connection.execute(load("backup/list_roles.sql"))]


def measure(
    connection: psycopg.Connection,
    relations: list[dict[str, Any]],
    sequences: list[SequenceTruth],
    *,
    skip_unlogged: bool,
    report: Report,
) -> Truth:
    """The truth in the connection's snapshot.

    Cost: one pass over every table on one core. Raises psycopg.Error; the caller says what it was doing. Raises
    Unavailable when an object was dropped meanwhile.
    """
    columns = content.hashed_columns(connection)
    measured = []
    for number, relation in enumerate(relations, 1):
        measured.append(_measure_relation(connection, relation, columns[relation["oid"]], skip_unlogged=skip_unlogged))
        if number % 50 == 0 or number == len(relations):
            report(f"truth: {number} of {len(relations)} relations hashed")
    return Truth(
        hash_algorithm="hash_record_extended/1",
        relations=measured,
        sequences=sequences,
        extensions=[
            Extension(name=r[0], version=r[1], schema_name=r[2])
            for r in connection.execute(load("backup/list_extensions.sql"))
        ],
        roles=list_roles(connection),
        grants=[
            Grant(name=name, owner=owner, privileges=privileges)
            for name, owner, privileges in _still_there(content.grants(connection))
        ],
        large_objects=_large_objects(connection),
        definitions_form=DEFINITIONS_FORM,
        definitions=[
            Definition(kind=kind, name=name, sha256=sha256)
            for kind, name, sha256 in _still_there(content.definitions(connection))
        ],
    )


def _still_there(rows: Iterable[tuple[Any, ...]]) -> Iterator[tuple[Any, ...]]:
    """Names come from functions of PostgreSQL that look at what is now, not at the snapshot; a row without one is of
    an object that was dropped."""
    for row in rows:
        if None in row[:2]:
            raise Unavailable(
                "something was dropped while the truth was measured",
                expected="the objects of the dump's snapshot",
                found="one of them without a name",
                remedy="run it again; keep migrations and backups apart",
            )
        yield row


def _measure_relation(
    connection: psycopg.Connection, relation: dict[str, Any], columns: list[sql.Composable], *, skip_unlogged: bool
) -> RelationTruth:
    kind, note = relation["kind"], _NOTES.get(relation["kind"], "")
    if relation["persistence"] == "u" and skip_unlogged:
        note = "unlogged: its rows exist on the primary only"
    if kind == "m" and not relation["populated"]:
        note = "definition only; it was not populated"
    rows: int | None = None
    found: str | None = None
    if not note:
        rows, found = content.rows_and_hash(connection, relation["schema"], relation["name"], columns)
    return RelationTruth(
        schema_name=relation["schema"],
        name=relation["name"],
        kind=KINDS[kind],
        rows=rows,
        content_hash=found,
        note=note,
    )


def _large_objects(connection: psycopg.Connection) -> LargeObjects:
    row = connection.execute(load("backup/hash_large_objects.sql")).fetchone()
    count, size_bytes, content = row or (0, 0, None)
    return LargeObjects(count=count, size_bytes=size_bytes, content_hash=content or "0")


class Difference(NamedTuple):
    """One thing that a restored database lacks or has otherwise."""

    name: str
    expected: str
    found: str

    def __str__(self) -> str:
        return f"{self.name}: expected {self.expected}, found {self.found}"


def differences(expected: Truth, found: Truth) -> list[Difference]:
    """Relations, sequences, extensions, large objects and definitions that are not as in the backup.

    Roles and grants: `access_differences`, for a server that has the backup's roles.
    """
    return [
        *_relations(expected, found),
        *_sequences(expected, found),
        *_named("extension", _extensions(expected), _extensions(found)),
        *_definitions(expected, found),
        *_one("large objects", _blobs(expected), _blobs(found)),
    ]


def access_differences(expected: Truth, found: Truth, *, ignore: frozenset[str] = frozenset()) -> list[Difference]:
    """Roles (but those in `ignore`), and owner and privileges of every object, that are not as in the backup."""
    roles = [{r.name: _role(r) for r in each.roles if r.name not in ignore} for each in (expected, found)]
    grants = [
        {g.name: f"owner {g.owner}, {g.privileges or 'nobody else'}" for g in each.grants} for each in (expected, found)
    ]
    if "schema public" not in grants[0]:  # template0 has one, and no dump takes it away
        grants[1].pop("schema public", None)
    return [*_named("role", *roles), *_named("grants of", *grants)]


def _relations(expected: Truth, found: Truth) -> Iterator[Difference]:
    mine = {relation.qualified: relation for relation in found.relations}
    for relation in expected.relations:
        yield from _relation(relation, mine.pop(relation.qualified, None))
    for name, extra in mine.items():
        yield Difference(f"{extra.kind} {name}", "nothing", f"a {extra.kind} that is not in the backup")


def _relation(expected: RelationTruth, found: RelationTruth | None) -> Iterator[Difference]:
    name = f"{expected.kind} {expected.qualified}"
    if found is None:
        yield Difference(name, f"a {expected.kind}", "nothing")
    elif expected.kind != found.kind:
        yield Difference(name, f"a {expected.kind}", f"a {found.kind}")
    elif expected.rows is not None and expected.rows != found.rows:
        yield Difference(name, f"{expected.rows} rows", f"{found.rows}")
    elif expected.content_hash is not None and expected.content_hash != found.content_hash:
        rows = f"{expected.rows} rows with content hash"
        yield Difference(name, f"{rows} {expected.content_hash}", f"the same number of rows, hash {found.content_hash}")


def _sequences(expected: Truth, found: Truth) -> Iterator[Difference]:
    values = {(s.schema_name, s.name): s for s in found.sequences}
    for sequence in expected.sequences:
        yield from _sequence(sequence, values.pop((sequence.schema_name, sequence.name), None))
    for schema, name in values:
        yield Difference(f"sequence {schema}.{name}", "nothing", "a sequence that is not in the backup")


def _sequence(expected: SequenceTruth, found: SequenceTruth | None) -> Iterator[Difference]:
    name, wanted = f"sequence {expected.schema_name}.{expected.name}", expected.last_value
    if found is None:
        yield Difference(name, f"{wanted} or later", "no sequence")
    elif wanted is not None and not expected.cycles:
        if found.last_value is None:
            yield Difference(name, f"{wanted} or later", "never used")
        elif (found.last_value - wanted) * expected.increment < 0:
            yield Difference(name, f"{wanted} or later", str(found.last_value))


def _extensions(truth: Truth) -> dict[str, str]:
    return {e.name: f"version {e.version} in schema {e.schema_name}" for e in truth.extensions}


def _blobs(truth: Truth) -> str:
    blobs = truth.large_objects
    return f"{blobs.count} of {blobs.size_bytes} bytes with hash {blobs.content_hash}"


def _role(role: Role) -> str:
    return f"{role.attributes or 'no attributes'}, member of {', '.join(role.member_of) or 'nothing'}"


def _definitions(expected: Truth, found: Truth) -> Iterator[Difference]:
    if expected.definitions_form != found.definitions_form:
        return
    mine = {(d.kind, d.name): d.sha256 for d in found.definitions}
    for definition in expected.definitions:
        name, now = f"{definition.kind} {definition.name}", mine.pop((definition.kind, definition.name), None)
        if now is None:
            yield Difference(name, "one", "none")
        elif now != definition.sha256:
            yield Difference(name, "the definition of the backup", "another definition")
    for kind, name in mine:
        yield Difference(f"{kind} {name}", "none", "one that is not in the backup")


def _named(what: str, expected: dict[str, str], found: dict[str, str]) -> Iterator[Difference]:
    for name in sorted(expected.keys() | found.keys()):
        yield from _one(f"{what} {name}", expected.get(name, "nothing"), found.get(name, "nothing"))


def _one(name: str, expected: str, found: str) -> Iterator[Difference]:
    if expected != found:
        yield Difference(name, expected, found)


def require_equal(expected: Truth, found: Truth) -> None:
    """Raises TruthMismatch naming the first ten differences."""
    lines = [str(one) for one in differences(expected, found)]
    if lines:
        more = f" (and {len(lines) - 10} more)" if len(lines) > 10 else ""
        raise TruthMismatch(
            "the restored database differs from the manifest",
            expected="rows and content of the dump's own snapshot",
            found="; ".join(lines[:10]) + more,
            remedy="do not use this backup; take a fresh one and look at how this one was stored",
        )
