"""Rights on a table and its columns: saved as the catalogues have them, narrowed, and put back to the byte."""

from collections.abc import Iterable, Mapping
from itertools import groupby
from typing import NamedTuple

import psycopg
from psycopg import sql

from payme_ops.foundation.errors import UnexpectedSchema
from payme_ops.foundation.sql import load
from payme_ops.migration.names import Names
from payme_ops.migration.shape import quoted

# Those that can be given for a column.
_OF_COLUMNS = ("SELECT", "INSERT", "UPDATE", "REFERENCES")

Acl = Mapping[str, str | None]  # by column; "" is the table


class _Entry(NamedTuple):
    grantee: str | None  # None: PUBLIC
    privilege: str
    grantable: bool
    grantor: str


def read(connection: psycopg.Connection, relation: sql.Composable) -> dict[str, str | None]:
    """Rights on a relation and on each of its columns. Raises psycopg.Error, as all here."""
    return dict(connection.execute(load("phone_encryption/acl.sql"), {"relation": quoted(relation)}).fetchall())


def _entries(connection: psycopg.Connection, acl: str | None) -> list[_Entry]:
    if acl is None:
        return []
    return [_Entry(*row) for row in connection.execute(load("phone_encryption/acl_entries.sql"), [acl])]


def require_granted_by(connection: psycopg.Connection, names: Names, owner: str, acl: Acl) -> None:
    """Raises UnexpectedSchema when somebody has rights that another role than the owner gave: only that one can give
    them back."""
    found = {entry.grantor for one in acl.values() for entry in _entries(connection, one)} - {owner}
    if found:
        raise UnexpectedSchema(
            f"rights on {names.title} could not be put back as they are",
            expected=f"rights given by its owner {owner}",
            found=f"rights given by {', '.join(sorted(found))}",
            remedy="let the owner give them itself, and take back the others; nothing was changed",
        )


def narrow(connection: psycopg.Connection, relation: sql.Composable, owner: str, acl: Acl, column: str) -> None:
    """Leave everybody but the owner the rights they have, except on one column.

    A right on the table is one on every column, so it is taken and given again for each of the others.
    """
    others = [name for name in acl if name not in ("", column)]
    for (grantee, grantable), privileges in _grouped(_entries(connection, acl[""])):
        narrowed = [privilege for privilege in privileges if privilege in _OF_COLUMNS]
        if grantee != owner and narrowed:
            connection.execute(_revoke(relation, narrowed, grantee))
            connection.execute(_grant(relation, narrowed, grantee, grantable, others))
    for grantee in _grantees(_entries(connection, acl[column])):
        if grantee != owner:
            connection.execute(_revoke(relation, ["ALL"], grantee, [column]))


def restore(connection: psycopg.Connection, relation: sql.Composable, saved: Acl) -> None:
    """Back to what was saved, in its order. Rights that somebody new was given meanwhile are left."""
    of_table = _entries(connection, saved[""])
    if read(connection, relation)[""] != saved[""]:
        _set(connection, relation, _grantees(of_table), of_table)
    now = read(connection, relation)
    for column, acl in saved.items():
        if column and column in now and now[column] != acl:
            wanted = _entries(connection, acl)
            present = _grantees(_entries(connection, now[column]))
            known = [*_grantees(wanted), *_grantees(of_table)]
            _set(connection, relation, [who for who in present if who in known], wanted, [column])


def copy(connection: psycopg.Connection, acl: Acl, relation: sql.Composable) -> None:
    """Give a new relation these rights; what default privileges gave it is taken away."""
    now = read(connection, relation)
    for column, wanted in acl.items():
        if now.get(column) != wanted:
            present = _grantees(_entries(connection, now[column]))
            _set(connection, relation, present, _entries(connection, wanted), [column] if column else [])


def copy_column(connection: psycopg.Connection, names: Names, column: str, to: list[str]) -> None:
    """Rights that somebody has on a column by itself, for others, too."""
    relation = names.identifiers["relation"]
    for (grantee, grantable), privileges in _grouped(_entries(connection, read(connection, relation)[column])):
        connection.execute(_grant(relation, privileges, grantee, grantable, to))


def same(connection: psycopg.Connection, one: str | None, other: str | None) -> bool:
    """Whether two lists give everybody but whoever gave them the same; their order does not matter."""
    sets = [{entry for entry in _entries(connection, acl) if entry.grantee != entry.grantor} for acl in (one, other)]
    return sets[0] == sets[1]


def _set(
    connection: psycopg.Connection,
    relation: sql.Composable,
    present: Iterable[str | None],
    wanted: list[_Entry],
    columns: list[str] | None = None,
) -> None:
    # All are taken first: a list keeps the order in which it was written, and the owner can always give.
    for grantee in present:
        connection.execute(_revoke(relation, ["ALL"], grantee, columns))
    for (grantee, grantable), privileges in _grouped(wanted):
        connection.execute(_grant(relation, privileges, grantee, grantable, columns))


def _grantees(entries: list[_Entry]) -> list[str | None]:
    return list(dict.fromkeys(entry.grantee for entry in entries))


def _grouped(entries: list[_Entry]) -> list[tuple[tuple[str | None, bool], list[str]]]:
    """Privileges by grantee and grant option, in the list's order of grantees."""
    order = _grantees(entries)
    ordered = sorted(entries, key=lambda entry: (order.index(entry.grantee), entry.grantable))
    groups = groupby(ordered, key=lambda entry: (entry.grantee, entry.grantable))
    return [(group, [entry.privilege for entry in members]) for group, members in groups]


def _privileges(privileges: list[str], columns: list[str] | None) -> sql.Composable:
    listed = sql.SQL(" ({})").format(sql.SQL(", ").join(map(sql.Identifier, columns))) if columns else sql.SQL("")
    return sql.SQL(", ").join(sql.SQL(privilege) + listed for privilege in privileges)


def _revoke(
    relation: sql.Composable, privileges: list[str], grantee: str | None, columns: list[str] | None = None
) -> sql.Composed:
    return sql.SQL("REVOKE {} ON {} FROM {} CASCADE").format(_privileges(privileges, columns), relation, _role(grantee))


def _grant(
    relation: sql.Composable, privileges: list[str], grantee: str | None, grantable: bool, columns: list[str] | None
) -> sql.Composed:
    option = sql.SQL(" WITH GRANT OPTION" if grantable else "")
    return sql.SQL("GRANT {} ON {} TO {}{}").format(_privileges(privileges, columns), relation, _role(grantee), option)


def _role(grantee: str | None) -> sql.Composable:
    return sql.SQL("PUBLIC") if grantee is None else sql.Identifier(grantee)
