"""Step 5: the plaintext's rules go, then the right to see it, then it itself; and the ciphertext takes its name.

Until `do_switch` everything can be undone. It is one transaction, in which the application's statements are tried on
the new view before anybody else sees it.
"""

import time
from typing import Any

import psycopg
from psycopg import sql
from psycopg.rows import dict_row
from psycopg.types.json import Json

from payme_ops.foundation.errors import DatabaseError, GateClosed, UnexpectedSchema
from payme_ops.foundation.evidence import Check, Finding, Verdict, failed, passed
from payme_ops.foundation.postgres import speaking
from payme_ops.foundation.progress import Report
from payme_ops.foundation.sql import load
from payme_ops.migration import acl
from payme_ops.migration.ddl import build_index, validate, with_lock_budget
from payme_ops.migration.desk import MigrationDesk, owner_session, session
from payme_ops.migration.finish import add_complete, duplicates, show_ids
from payme_ops.migration.forms import run_forms
from payme_ops.migration.names import Names, statement
from payme_ops.migration.shape import Shape, Stage, inspect, look, named, quoted, reached, require, source
from payme_ops.migration.state import subject

_UNIQUE_VIOLATION = "23505"


# -- relax --------------------------------------------------------------------------------------------------------


def do_relax(desk: MigrationDesk, report: Report) -> dict[str, Any]:
    """Let the plaintext be left out: no complete check, no NOT NULL, no UNIQUE. What there was is remembered.

    Raises UnexpectedSchema before step 3 is whole, LockBudgetSpent, LeaseHeld.
    """
    names = desk.names

    def work(connection: psycopg.Connection) -> bool:
        shape = inspect(connection, names)
        require(shape, names, Stage.BACKFILLED)
        if shape.reached(Stage.RELAXED):
            return False
        uniques = _unique_plaintext(connection, names)
        connection.execute(statement(names, "state.sql"))
        connection.execute(
            # Half of an undo is relaxed again: what is remembered is how it was before all of it.
            sql.SQL("INSERT INTO {state}.relaxed VALUES (%s, %s, %s) ON CONFLICT DO NOTHING").format(
                **names.identifiers
            ),
            [subject(names), shape.not_null, Json(uniques)],
        )
        connection.execute(statement(names, "5b_relax.sql"))
        for unique in uniques:
            name = sql.Identifier(unique["name"])
            if unique["is_constraint"]:
                drop = sql.SQL("ALTER TABLE {relation} DROP CONSTRAINT {name}")
            else:
                drop = sql.SQL("DROP INDEX {schema}.{name}")
            connection.execute(drop.format(**names.identifiers, name=name))
        return True

    changed = with_lock_budget(desk, "relax", work)
    report(f"{names.title}.{names.plaintext} may be left out" + ("" if changed else " already"))
    return {"changed": changed}


def _unique_plaintext(connection: psycopg.Connection, names: Names) -> list[dict[str, Any]]:
    with connection.cursor(row_factory=dict_row) as cursor:
        return cursor.execute(load("phone_encryption/5b_unique_plaintext.sql"), named(names)).fetchall()


def undo_relax(desk: MigrationDesk, report: Report) -> dict[str, Any]:
    """Put the plaintext's rules back, by name and exactly, without stopping anybody while the table is read.

    After the reverse backfill: raises GateClosed naming rows that have a ciphertext and no plaintext, or share one.
    UnexpectedSchema while browned out and after the drop, LockBudgetSpent, LeaseHeld.
    """
    names = desk.names
    with session(desk, "look") as connection:
        shape = inspect(connection, names)
        _require_not_dropped(shape, names)
        require(shape, names, Stage.START, before=Stage.BROWNED_OUT)
        if not shape.relaxed:
            return {"changed": False}
        with speaking("read what was relaxed"):
            not_null, uniques = _relaxed(connection, names)
    _require_no_surplus(desk)
    for unique in uniques:
        _put_back_unique(desk, unique, report)
    if not_null:
        _put_back_not_null(desk)

    def forget(connection: psycopg.Connection) -> None:
        connection.execute(_forget(names, "relaxed"), [subject(names)])

    add_complete(desk)
    validate(desk, names.made["complete_check"])
    with_lock_budget(desk, "undo relax", forget)
    report(f"{names.title}.{names.plaintext} has its rules again")
    return {"changed": True, "not_null": not_null, "unique": [unique["name"] for unique in uniques]}


def _relaxed(connection: psycopg.Connection, names: Names) -> tuple[bool, list[dict[str, Any]]]:
    query = sql.SQL("SELECT not_null, uniques FROM {state}.relaxed WHERE subject = %s").format(**names.identifiers)
    row = connection.execute(query, [subject(names)]).fetchone()
    return row or (False, [])


def _forget(names: Names, table: str) -> sql.Composed:
    return sql.SQL("DELETE FROM {state}.{table} WHERE subject = %s").format(
        **{**names.identifiers, "table": sql.Identifier(table)}
    )


def _require_no_surplus(desk: MigrationDesk) -> None:
    with session(desk, "surplus") as connection, speaking("count rows without plaintext"):
        count, ids = connection.execute(statement(desk.names, "5b_surplus.sql")).fetchone() or (0, [])
    if count:
        raise GateClosed(
            "rows have a ciphertext and no plaintext",
            expected="none: the reverse backfill has written them",
            found=f"{count}, ids {show_ids(ids)}",
            remedy="run the reverse backfill until a pass finds nothing",
        )


def _put_back_unique(desk: MigrationDesk, unique: dict[str, Any], report: Report) -> None:
    names, name = desk.names, unique["name"]
    # What pg_get_indexdef answers begins like this, and is the statement that makes the index.
    create = sql.SQL(unique["definition"].replace("CREATE UNIQUE INDEX", "CREATE UNIQUE INDEX CONCURRENTLY", 1))
    try:
        build_index(desk, name, sql.Composed([create]), report=report)
    except DatabaseError as error:
        count, ids = duplicates(desk, names.plaintext) if error.sqlstate == _UNIQUE_VIOLATION else (0, [])
        if not count:
            raise
        raise GateClosed(
            f"rows share a {names.plaintext}",
            expected="none",
            found=f"ids {show_ids(ids)}",
            remedy="run the reverse backfill; then let support merge those users",
        ) from None
    if not unique["is_constraint"]:
        return
    timing = sql.SQL(
        (" DEFERRABLE" if unique["deferrable"] else "") + (" INITIALLY DEFERRED" if unique["deferred"] else "")
    )
    add = sql.SQL("ALTER TABLE {relation} ADD CONSTRAINT {name} UNIQUE USING INDEX {name}{timing}").format(
        **names.identifiers, name=sql.Identifier(name), timing=timing
    )

    def work(connection: psycopg.Connection) -> None:
        if not any(one["name"] == name and one["is_constraint"] for one in _unique_plaintext(connection, names)):
            connection.execute(add)

    with_lock_budget(desk, "unique constraint", work)


def _put_back_not_null(desk: MigrationDesk) -> None:
    names = desk.names

    def has_check(connection: psycopg.Connection) -> bool:
        query = "SELECT FROM pg_constraint WHERE conrelid = to_regclass(%(relation)s) AND conname = %(not_null_check)s"
        return connection.execute(query, named(names)).rowcount > 0

    def begin(connection: psycopg.Connection) -> bool:
        if inspect(connection, names).not_null:
            return False
        if not has_check(connection):
            connection.execute(statement(names, "5b_undo_not_null.sql"))
        return True

    def end(connection: psycopg.Connection) -> None:
        connection.execute(statement(names, "5b_undo_set_not_null.sql"))

    if with_lock_budget(desk, "not null", begin):
        validate(desk, names.made["not_null_check"])
        with_lock_budget(desk, "not null", end)


def checks_before_relax(desk: MigrationDesk) -> list[Check]:
    """Whether step 3 is whole, and nothing else holds the plaintext's rules."""

    def foreign_keys() -> Finding:
        with session(desk, "look") as connection, speaking("list foreign keys"):
            rows = connection.execute(load("phone_encryption/5b_foreign_keys.sql"), named(desk.names)).fetchall()
        found = [row[0] for row in rows]
        return failed(found, "drop those foreign keys: what they point at goes") if found else passed(found)

    return [
        reached(desk, "finished", Stage.BACKFILLED),
        Check("relax_foreign_keys", "none points at the plaintext", source(desk), foreign_keys),
    ]


def checks_after_relax(desk: MigrationDesk) -> list[Check]:
    """Whether the plaintext may be left out."""
    return [reached(desk, "relaxed", Stage.RELAXED)]


# -- brown-out ----------------------------------------------------------------------------------------------------


def do_brown_out(desk: MigrationDesk, report: Report) -> dict[str, Any]:
    """Take everybody's right on the plaintext column but the owner's; all rights are saved before, exactly.

    Takes no lock that anybody waits for. Raises UnexpectedSchema before the plaintext is relaxed, or when a right was
    given by another than the owner; LockBudgetSpent, LeaseHeld.
    """
    names = desk.names

    def work(connection: psycopg.Connection) -> bool:
        shape = inspect(connection, names)
        _require_not_dropped(shape, names)
        require(shape, names, Stage.RELAXED)
        if shape.browned_out:
            return False
        relation = names.identifiers["relation"]
        rights, owner = acl.read(connection, relation), _owner(connection)
        acl.require_granted_by(connection, names, owner, rights)
        connection.execute(statement(names, "state.sql"))
        with connection.cursor() as cursor:
            save = sql.SQL("INSERT INTO {state}.saved_acl VALUES (%s, %s, %s)").format(**names.identifiers)
            cursor.executemany(save, [(subject(names), column, one) for column, one in rights.items()])
        acl.narrow(connection, relation, owner, rights, names.plaintext)
        return True

    changed = with_lock_budget(desk, "brown-out", work, of_table=False)
    report(f"nobody but the owner has a right on {names.title}.{names.plaintext}" + ("" if changed else " already"))
    return {"changed": changed}


def _owner(connection: psycopg.Connection) -> str:
    row = connection.execute("SELECT current_user").fetchone()  # of an owner_session
    return str(row[0]) if row else ""


def undo_brown_out(desk: MigrationDesk, report: Report) -> dict[str, Any]:
    """Put all rights back to the byte. Takes no lock that anybody waits for, so it works under any traffic.

    Raises UnexpectedSchema after the drop, LockBudgetSpent, LeaseHeld.
    """
    names = desk.names

    def work(connection: psycopg.Connection) -> bool:
        shape = inspect(connection, names)
        _require_not_dropped(shape, names)
        return _restore_rights(connection, names)

    began = time.monotonic()
    changed = with_lock_budget(desk, "undo brown-out", work, of_table=False)
    seconds = round(time.monotonic() - began, 2)
    report(f"rights on {names.title} are as they were" + (f", after {seconds} s" if changed else ""))
    return {"changed": changed, "seconds": seconds}


def _restore_rights(connection: psycopg.Connection, names: Names) -> bool:
    if not inspect(connection, names).browned_out:
        return False
    query = sql.SQL("SELECT column_name, acl FROM {state}.saved_acl WHERE subject = %s").format(**names.identifiers)
    saved: dict[str, str | None] = dict(connection.execute(query, [subject(names)]).fetchall())
    acl.restore(connection, names.identifiers["relation"], saved)
    connection.execute(_forget(names, "saved_acl"), [subject(names)])
    return True


def checks_before_brown_out(desk: MigrationDesk) -> list[Check]:
    """Whether the plaintext may be left out."""
    return [reached(desk, "relaxed", Stage.RELAXED)]


def checks_after_brown_out(desk: MigrationDesk) -> list[Check]:
    """Whether the application's role has really lost its right; where it cannot, that is inconclusive."""

    def no_right() -> Finding:
        role, values = desk.settings.migration.app_role, named(desk.names)
        with session(desk, "look") as connection, speaking("look at rights"):
            known = connection.execute("SELECT FROM pg_roles WHERE rolname = %s", [role]).rowcount
            rows = connection.execute(load("phone_encryption/5c_access.sql"), {**values, "role": role}).fetchall()
        why = [row[0] for row in rows]
        if known and not why:
            return passed({"role": role, "rights": "none"})
        remedy = "the brown-out shows nothing for this role: rely on the fleet gate, or take these rights from it"
        return Finding(Verdict.INCONCLUSIVE, {"role": role, "still": why or "there is no such role"}, remedy)

    threshold = f"{desk.settings.migration.app_role} has no right on {desk.names.plaintext}"
    return [
        reached(desk, "browned_out", Stage.BROWNED_OUT),
        Check("brown_out_rights", threshold, source(desk), no_right),
    ]


# -- drop, rename, shim -------------------------------------------------------------------------------------------


def do_switch(desk: MigrationDesk, report: Report) -> dict[str, Any]:
    """The point of no return: drop the plaintext, give the ciphertext its name, put the shim in the table's place.

    Where no shim can work it stops after the drop; `mapping` then says under which column the application finds what.
    One transaction, ACCESS EXCLUSIVE for parts of a second; the application's statements are tried in it first.
    Raises UnexpectedSchema before the brown-out and when something else depends on the plaintext, GateClosed when a
    statement fails, LockBudgetSpent, LeaseHeld; then nothing is changed.
    """
    names = desk.names

    def work(connection: psycopg.Connection) -> dict[str, Any]:
        shape = inspect(connection, names)
        require(shape, names, Stage.BROWNED_OUT)
        if shape.reached(Stage.SHIMMED):
            return {"changed": False, **_outcome(names, shape)}
        stops = [what for what, stop in _dependants(connection, names) if stop]
        if stops:
            raise UnexpectedSchema(
                f"something depends on {names.title}.{names.plaintext}",
                expected="nothing that stops the drop",
                found="; ".join(stops),
                remedy="change or drop those first; nothing was changed",
            )
        reasons = _refuse_reasons(connection, names)
        connection.execute(sql.SQL("LOCK TABLE {relation} IN ACCESS EXCLUSIVE MODE").format(**names.identifiers))
        _restore_rights(connection, names)
        connection.execute(statement(names, "5d_drop.sql"))
        _remember_file(connection, names)
        if not reasons:
            connection.execute(statement(names, "5d_rename.sql"))
            _put_shim(connection, names)
        after = inspect(connection, names)
        return {
            "changed": True,
            **_outcome(names, after),
            "reasons": reasons,
            "canary": run_forms(connection, names, after),
        }

    done = with_lock_budget(desk, "switch", work)
    report(f"{names.title}: the plaintext is gone; " + ("old and new names work" if done["shim"] else "no shim"))
    return done


def _outcome(names: Names, shape: Shape) -> dict[str, Any]:
    column = names.plaintext if shape.switched else names.ciphertext
    return {"shim": shape.shim, "mapping": {names.plaintext: column}}


def _remember_file(connection: psycopg.Connection, names: Names) -> None:
    """What was remembered for the undo goes; the file that now holds dropped plaintext is what the purge looks for."""
    connection.execute(_forget(names, "relaxed"), [subject(names)])
    connection.execute(
        sql.SQL(
            "INSERT INTO {state}.dropped (subject, file) SELECT %s, pg_relation_filenode(%s)"
            " ON CONFLICT (subject) DO UPDATE SET file = EXCLUDED.file, at = now()"
        ).format(**names.identifiers),
        [subject(names), quoted(names.identifiers["relation"])],
    )


def _put_shim(connection: psycopg.Connection, names: Names) -> None:
    """Rename the table and make the view; owner (we act as it), rights and comments are the table's."""
    relation = names.identifiers["relation"]
    rights = acl.read(connection, relation)
    comments = connection.execute(load("phone_encryption/5d_comments.sql"), named(names)).fetchall()
    columns = sql.SQL(", ").join(sql.Identifier(column) for column in _columns(connection, names))
    connection.execute(statement(names, "5d_shim.sql", columns=columns))
    acl.copy(connection, {**rights, names.ciphertext: rights[names.plaintext]}, relation)
    for column, comment in comments:
        what = sql.SQL("VIEW {}").format(relation)
        if column:
            what = sql.SQL("COLUMN {}.{}").format(relation, sql.Identifier(column))
        connection.execute(sql.SQL("COMMENT ON {} IS {}").format(what, sql.Literal(comment)))


def _columns(connection: psycopg.Connection, names: Names) -> list[str]:
    query = (
        "SELECT attname FROM pg_attribute WHERE attrelid = to_regclass(%(relation)s) AND attnum > 0"
        " AND NOT attisdropped ORDER BY attnum"
    )
    return [row[0] for row in connection.execute(query, named(names))]


def undo_switch(desk: MigrationDesk, report: Report) -> dict[str, Any]:
    """There is none: raises UnexpectedSchema once the plaintext is gone; before that there is nothing to undo."""
    _require_not_dropped(look(desk), desk.names)
    report(f"{desk.names.title} still has its plaintext")
    return {"changed": False}


def _require_not_dropped(shape: Shape, names: Names) -> None:
    if not shape.has_plaintext:
        raise UnexpectedSchema(
            f"{names.title}.{names.plaintext} has been dropped: from there no undo leads back",
            expected="the plaintext column",
            found=shape.stage,
            remedy="go on; every number is in its ciphertext. A restore from a backup loses what was written since",
        )


def refuse_reasons(desk: MigrationDesk) -> list[str]:
    """Why no view can stand in the table's place; none is none. Raises DatabaseUnavailable, DatabaseError."""
    with session(desk, "look") as connection, speaking(f"look at what uses {desk.names.title}"):
        return _refuse_reasons(connection, desk.names)


def _refuse_reasons(connection: psycopg.Connection, names: Names) -> list[str]:
    return [row[0] for row in connection.execute(load("phone_encryption/5d_refuse.sql"), named(names))]


def _dependants(connection: psycopg.Connection, names: Names) -> list[tuple[str, bool]]:
    """What depends on the plaintext column, and whether it stops the drop."""
    rows = connection.execute(load("phone_encryption/5d_dependants.sql"), named(names)).fetchall()
    return [(what, stops) for what, stops in rows]


def shim_canary(desk: MigrationDesk) -> Finding:
    """Run each form of statement that the application uses, under each name, and roll it back.

    As the table's owner: to act as the application's role needs a membership that this role has no use for. What the
    application may do is compared by right in checks_after_switch.
    """
    with owner_session(desk, "canary") as connection, speaking("run the canary"), connection.transaction():
        connection.execute("SET LOCAL lock_timeout = '200ms'; SET LOCAL statement_timeout = '5s'")
        try:
            found = run_forms(connection, desk.names, inspect(connection, desk.names))
        except GateClosed as error:
            return failed({"form": error.what, "found": error.found}, error.remedy)
    if "not run" in found:
        return Finding(Verdict.INCONCLUSIVE, found, "run the application's own canary")
    return passed({**found, "role": "the table's owner"})


def checks_before_switch(desk: MigrationDesk) -> list[Check]:
    """What a person wants to know before the point of no return."""

    def dependants() -> Finding:
        with session(desk, "look") as connection, speaking("list dependants"):
            found = _dependants(connection, desk.names)
        measured = {
            "stop the drop": [what for what, stops in found if stops],
            "are dropped with it": [what for what, stops in found if not stops],
        }
        if measured["stop the drop"]:
            return failed(measured, "change or drop what stops it first")
        return passed(measured)

    def shim() -> Finding:
        reasons = refuse_reasons(desk)
        if not reasons:
            return passed({"shim": "can work"})
        remedy = f"agree to a drop without a rename: the application keeps {desk.names.ciphertext}"
        return Finding(Verdict.INCONCLUSIVE, {"reasons": reasons}, remedy)

    return [
        reached(desk, "browned_out", Stage.BROWNED_OUT),
        Check("switch_dependants", "nothing stops the drop", source(desk), dependants),
        Check("switch_shim", "a view can stand in the table's place", source(desk), shim),
    ]


def checks_after_switch(desk: MigrationDesk) -> list[Check]:
    """Whether the plaintext is gone, the application's statements work, and rights on the view are the table's."""

    def rights() -> Finding:
        names = desk.names
        with session(desk, "look") as connection, speaking("compare rights"):
            if not inspect(connection, names).shim:
                return passed({"shim": False})
            view = acl.read(connection, names.identifiers["relation"])
            table = acl.read(connection, names.identifiers["base_relation"])
            table = {**table, names.ciphertext: table[names.plaintext]}
            differ = [
                column or "the table" for column in table if not acl.same(connection, view[column], table[column])
            ]
        return failed({"differ": differ}, "give the view the table's rights") if differ else passed({"differ": []})

    return [
        reached(desk, "dropped", Stage.SHIMMED),
        Check(
            "switch_canary", "every form of statement works under every name", source(desk), lambda: shim_canary(desk)
        ),
        Check("switch_rights", "the view's are the table's", source(desk), rights),
    ]


# -- the end of the shim --------------------------------------------------------------------------------------------


def do_end_shim(desk: MigrationDesk, report: Report) -> dict[str, Any]:
    """Drop the view and give the table its name again. Raises UnexpectedSchema before the switch, DatabaseError when
    somebody has built on the view, LockBudgetSpent, LeaseHeld."""
    names = desk.names

    def work(connection: psycopg.Connection) -> bool:
        shape = inspect(connection, names)
        require(shape, names, Stage.SHIMMED)
        if not shape.shim:
            return False
        connection.execute(statement(names, "5e_end_shim.sql"))
        return True

    changed = with_lock_budget(desk, "end shim", work)
    report(f"{names.title} is the table" + ("" if changed else " already"))
    return {"changed": changed}


def undo_end_shim(desk: MigrationDesk, report: Report) -> dict[str, Any]:
    """Put the shim back, for versions that know the ciphertext by its first name. Raises as do_end_shim."""
    names = desk.names

    def work(connection: psycopg.Connection) -> bool:
        shape = inspect(connection, names)
        require(shape, names, Stage.SHIMMED)
        if shape.shim or not shape.switched:
            return False
        connection.execute(sql.SQL("LOCK TABLE {relation} IN ACCESS EXCLUSIVE MODE").format(**names.identifiers))
        _put_shim(connection, names)
        return True

    changed = with_lock_budget(desk, "undo end shim", work)
    report(f"{names.title} is the shim" if changed else f"{names.title} is as it was")
    return {"changed": changed}


def checks_before_end_shim(desk: MigrationDesk) -> list[Check]:
    """Whether the switch is done and nobody has built on the view."""

    def built() -> Finding:
        with session(desk, "look") as connection, speaking("look at what uses the view"):
            reasons = _refuse_reasons(connection, desk.names) if inspect(connection, desk.names).shim else []
        found = [reason for reason in reasons if "depends on it" in reason]
        return failed({"found": found}, "drop those views: they hold the shim") if found else passed({"found": []})

    return [
        reached(desk, "dropped", Stage.SHIMMED),
        Check("end_shim_dependants", "nothing depends on the view", source(desk), built),
    ]


def checks_after_end_shim(desk: MigrationDesk) -> list[Check]:
    """Whether the table is all that is left, and works under its final name."""
    return [
        reached(desk, "switched", Stage.SWITCHED),
        Check("end_shim_canary", "every form of statement works", source(desk), lambda: shim_canary(desk)),
    ]
