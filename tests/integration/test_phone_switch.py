"""Step 5: the plaintext is let go, hidden, dropped; old and new versions of the application work through the shim."""

import itertools
import subprocess
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import psycopg
import pytest
from psycopg import sql

from payme_ops.foundation.errors import DatabaseError, GateClosed, LockBudgetSpent, UnexpectedSchema
from payme_ops.foundation.evidence import Verdict
from payme_ops.migration import envelope
from payme_ops.migration.expand import do_expand, undo_expand
from payme_ops.migration.finish import do_finish, undo_finish
from payme_ops.migration.shape import Stage
from payme_ops.migration.switch import (
    checks_after_brown_out,
    checks_after_end_shim,
    checks_after_relax,
    checks_after_switch,
    checks_before_brown_out,
    checks_before_end_shim,
    checks_before_relax,
    checks_before_switch,
    do_brown_out,
    do_end_shim,
    do_relax,
    do_switch,
    refuse_reasons,
    shim_canary,
    undo_brown_out,
    undo_end_shim,
    undo_relax,
    undo_switch,
)
from tests.support.installation import quiet
from tests.support.phones import Phones, fill
from tests.support.steps import Canary, cut_until_done, examine, shape, verdicts, with_budget

_numbers = itertools.count(1)


def number() -> str:
    """Another number each time."""
    return f"+2547{next(_numbers):08}"


def finished(phones: Phones) -> Phones:
    do_expand(phones.desk, quiet)
    do_finish(fill(phones).desk, quiet)
    return phones


def relaxed(phones: Phones) -> Phones:
    do_relax(finished(phones).desk, quiet)
    return phones


def browned_out(phones: Phones) -> Phones:
    do_brown_out(relaxed(phones).desk, quiet)
    return phones


def switched(phones: Phones) -> Phones:
    do_switch(browned_out(phones).desk, quiet)
    return phones


def definition(phones: Phones) -> dict[str, list[Any]]:
    """What PostgreSQL knows of users beside its columns' numbers: columns, constraints, indexes, triggers, rights."""
    queries = {
        "columns": "SELECT attname, atttypid::regtype::text, attnotnull, pg_get_expr(adbin, adrelid), attidentity,"
        " attacl::text, col_description(attrelid, attnum) FROM pg_attribute LEFT JOIN pg_attrdef"
        " ON adrelid = attrelid AND adnum = attnum WHERE attrelid = {} AND attnum > 0 AND NOT attisdropped"
        " ORDER BY attnum",
        "constraints": "SELECT conname, pg_get_constraintdef(oid) FROM pg_constraint WHERE conrelid = {} ORDER BY 1",
        "indexes": "SELECT indexrelid::regclass::text, pg_get_indexdef(indexrelid) FROM pg_index WHERE indrelid = {}"
        " ORDER BY 1",
        "triggers": "SELECT tgname, pg_get_triggerdef(oid) FROM pg_trigger WHERE tgrelid = {} AND NOT tgisinternal"
        " ORDER BY 1",
        "table": "SELECT relkind, relowner::regrole::text, relacl::text, obj_description(oid) FROM pg_class"
        " WHERE oid = {}",
        "pointing at it": "SELECT conrelid::regclass::text, conname FROM pg_constraint WHERE confrelid = {} ORDER BY 1",
        "beside it": "SELECT relname, relkind FROM pg_class WHERE relnamespace = 'public'::regnamespace ORDER BY 1",
        "functions": "SELECT proname FROM pg_proc WHERE pronamespace = 'public'::regnamespace ORDER BY 1",
    }
    with phones.admin() as connection:
        return {
            what: connection.execute(query.replace("{}", "'users'::regclass")).fetchall()
            for what, query in queries.items()
        }


def acls(phones: Phones, relation: str = "users") -> dict[str, str | None]:
    with phones.admin() as connection:
        return dict(
            connection.execute(
                "SELECT '', relacl::text FROM pg_class WHERE oid = %(r)s::regclass UNION ALL SELECT attname,"
                " attacl::text FROM pg_attribute WHERE attrelid = %(r)s::regclass AND attnum > 0 AND NOT attisdropped",
                {"r": relation},
            ).fetchall()
        )


class Version:
    """A version of the application: every form of its statements, prepared, with explicit columns."""

    def __init__(self, connection: psycopg.Connection, phones: Phones, stored: str) -> None:
        self.connection, self.phones, self.stored = connection, phones, stored

    def run(self, text: str, *values: Any) -> list[Any]:
        """Run it under a name of the server's, as node-postgres does; rows, if it answers any."""
        statement = sql.SQL(text).format(stored=sql.Identifier(self.stored))
        cursor = self.connection.execute(statement, values, prepare=True)
        return cursor.fetchall() if cursor.description else []

    def sealed(self, key: int, phone: str) -> tuple[str, bytes]:
        keys, names = self.phones.keys, self.phones.names
        return envelope.encrypt(keys, names.associated_data(key), phone), envelope.blind_index(keys, phone)

    def insert(self, phone: str) -> int:
        """The id is reserved first: the ciphertext is bound to it."""
        ((key,),) = self.run("SELECT nextval('users_id_seq')")
        rows = self.run(
            "INSERT INTO users (id, public_id, {stored}, phone_number_bidx, full_name)"
            " VALUES (%s, gen_random_uuid(), %s, %s, 'Test') RETURNING id",
            key,
            *self.sealed(key, phone),
        )
        assert rows == [(key,)]
        return int(key)

    def upsert(self, key: int, phone: str) -> list[Any]:
        return self.run(
            "INSERT INTO users (public_id, {stored}, phone_number_bidx, full_name)"
            " VALUES (gen_random_uuid(), %s, %s, 'Test')"
            " ON CONFLICT (phone_number_bidx) DO UPDATE SET {stored} = EXCLUDED.{stored}, full_name = 'Upserted'"
            " RETURNING id, full_name",
            *self.sealed(key, phone),
        )

    def find(self, phone: str, *, lock: bool = False) -> int | None:
        """By blind index; what is found is decrypted and compared."""
        form = "SELECT id, {stored} FROM users WHERE phone_number_bidx = %s"
        rows = self.run(f"{form} FOR UPDATE" if lock else form, self.sealed(0, phone)[1])
        for key, stored in rows:
            assert envelope.decrypt(self.phones.keys, self.phones.names.associated_data(key), stored) == phone
        return rows[0][0] if rows else None

    def every_form(self) -> int:
        """Answers the id of a user that stays."""
        first, second, third = number(), number(), number()
        key = self.insert(first)
        assert self.find(first) == key
        assert self.upsert(key, first) == [(key, "Upserted")]
        with self.connection.transaction():
            assert self.find(first, lock=True) == key
            self.run(
                "UPDATE users SET {stored} = %s, phone_number_bidx = %s WHERE id = %s", *self.sealed(key, second), key
            )
        assert self.find(second) == key
        assert self.find(first) is None
        gone = self.insert(third)
        self.run("DELETE FROM users WHERE id = %s", gone)
        assert self.find(third) is None
        return key


V4, V5 = "phone_number_encrypted", "phone_number"


def may_delete(phones: Phones) -> Phones:
    """PayMe's own application deletes no users; the form is tried all the same."""
    with phones.admin() as connection:
        connection.execute("SET ROLE payme_owner")
        connection.execute("GRANT DELETE ON users TO payme_app")
    return phones


# -- relax --------------------------------------------------------------------------------------------------------


def test_relaxed_again_undone_and_relaxed_again(each_phones: Phones) -> None:
    phones, desk = finished(each_phones), each_phones.desk
    before = definition(phones)
    assert set(verdicts(checks_before_relax(desk)).values()) == {Verdict.PASS}
    assert verdicts(checks_after_relax(desk)) == {"relaxed": Verdict.FAIL}
    assert do_relax(desk, quiet) == {"changed": True}
    after = definition(phones)
    assert shape(phones).stage == Stage.RELAXED
    assert verdicts(checks_after_relax(desk)) == {"relaxed": Verdict.PASS}
    assert do_relax(desk, quiet) == {"changed": False}
    assert undo_relax(desk, quiet) == {"changed": True, "not_null": True, "unique": ["users_phone_number_key"]}
    assert definition(phones) == before
    assert shape(phones).stage == Stage.BACKFILLED
    assert undo_relax(desk, quiet) == {"changed": False}
    assert do_relax(desk, quiet) == {"changed": True}
    assert definition(phones) == after


@pytest.mark.parametrize(
    "rules",
    [
        "ALTER TABLE users ALTER COLUMN phone_number DROP NOT NULL",
        'CREATE UNIQUE INDEX "Phone, of" ON users (phone_number COLLATE "C") INCLUDE (kyc)',
        'ALTER TABLE users ADD CONSTRAINT "one\'s own" UNIQUE (phone_number) DEFERRABLE INITIALLY DEFERRED',
        "ALTER TABLE users ADD CONSTRAINT none_twice UNIQUE NULLS NOT DISTINCT (phone_number)",
    ],
    ids=["none", "a bare index", "deferrable", "nulls not distinct"],
)
def test_other_rules_come_back_exactly_too(each_phones: Phones, rules: str) -> None:
    phones = each_phones
    with phones.admin() as connection:
        connection.execute("SET ROLE payme_owner; ALTER TABLE users DROP CONSTRAINT users_phone_number_key")
        connection.execute(sql.SQL(rules))
    before = definition(finished(phones))
    do_relax(phones.desk, quiet)
    assert shape(phones).stage == Stage.RELAXED
    undo_relax(phones.desk, quiet)
    assert definition(phones) == before


def test_versions_that_do_not_know_the_plaintext_work_and_hold_the_undo_until_it_is_written(phones: Phones) -> None:
    with relaxed(phones).app("payme-api/2.7.0") as app:
        late = Version(app, phones, V4).insert(number())
    before = definition(phones)
    with pytest.raises(GateClosed, match=rf"rows have a ciphertext and no plaintext; .*found 1, ids {late}\."):
        undo_relax(phones.desk, quiet)
    assert definition(phones) == before
    with phones.admin() as connection:
        connection.execute("SET session_replication_role = replica")  # as the reverse backfill writes
        connection.execute("UPDATE users SET phone_number = '+254799999999' WHERE id IN (1, %s)", [late])
    with pytest.raises(GateClosed, match=rf"rows share a phone_number; expected none; found ids 1 and {late}\."):
        undo_relax(phones.desk, quiet)
    with phones.admin() as connection:
        connection.execute("SET session_replication_role = replica")
        connection.execute("UPDATE users SET phone_number = '+254799999998' WHERE id = 1")
    assert undo_relax(phones.desk, quiet)["changed"]


def test_a_foreign_key_on_the_plaintext_is_seen_before(phones: Phones) -> None:
    with phones.admin() as connection:
        connection.execute("CREATE TABLE invites (phone text REFERENCES users (phone_number))")
    found = examine(checks_before_relax(finished(phones).desk))["relax_foreign_keys"]
    assert (found.verdict, found.measured) == (Verdict.FAIL, ["invites: invites_phone_fkey"])
    before = definition(phones)
    with pytest.raises(DatabaseError, match="other objects depend on it"):
        do_relax(phones.desk, quiet)
    assert definition(phones) == before


def test_once_relaxed_nothing_before_it_is_undone(phones: Phones) -> None:
    relaxed(phones)
    for undo in (undo_expand, undo_finish):
        with pytest.raises(UnexpectedSchema, match="not yet relaxed; found relaxed"):
            undo(phones.desk, quiet)


# -- brown-out ----------------------------------------------------------------------------------------------------

# PUBLIC, grant options, columns, several roles: the order in which they were given is in the list, too.
RIGHTS = """
SET ROLE payme_owner;
GRANT SELECT (phone_number, email), UPDATE (email) ON users TO payme_reporting;
GRANT TRIGGER ON users TO PUBLIC;
GRANT SELECT ON users TO payme_ledger WITH GRANT OPTION;
GRANT REFERENCES, DELETE ON users TO payme_ledger;
REVOKE UPDATE ON users FROM payme_app;
GRANT UPDATE, DELETE ON users TO payme_app;
GRANT SELECT (phone_number) ON users TO PUBLIC;
GRANT INSERT (phone_number) ON users TO payme_reporting WITH GRANT OPTION;
REVOKE TRUNCATE ON users FROM payme_owner;
"""


def may(phones: Phones, role: str, privilege: str, column: str = "phone_number") -> bool:
    with phones.admin() as connection:
        row = connection.execute(
            "SELECT has_column_privilege(%s, 'users', %s, %s)", [role, column, privilege]
        ).fetchone()
    return bool(row and row[0])


def test_browned_out_again_undone_and_browned_out_again(each_phones: Phones) -> None:
    phones, desk = relaxed(each_phones), each_phones.desk
    with phones.admin() as connection:
        connection.execute(RIGHTS)
    before = acls(phones)
    assert verdicts(checks_before_brown_out(desk)) == {"relaxed": Verdict.PASS}
    assert do_brown_out(desk, quiet) == {"changed": True}
    during = acls(phones)
    assert shape(phones).stage == Stage.BROWNED_OUT
    assert verdicts(checks_after_brown_out(desk)) == {"browned_out": Verdict.PASS, "brown_out_rights": Verdict.PASS}
    for role, privilege in itertools.product(
        ("payme_app", "payme_reporting", "payme_ledger"), ("SELECT", "INSERT", "UPDATE", "REFERENCES")
    ):
        assert not may(phones, role, privilege)
    assert may(phones, "payme_reporting", "UPDATE", "email")
    assert do_brown_out(desk, quiet) == {"changed": False}
    assert acls(phones) == during
    done = undo_brown_out(desk, quiet)
    assert done["changed"]
    assert acls(phones) == before  # to the byte
    assert shape(phones).stage == Stage.RELAXED
    assert undo_brown_out(desk, quiet)["changed"] is False
    assert do_brown_out(desk, quiet) == {"changed": True}
    assert acls(phones) == during


def test_who_names_the_column_is_refused_and_everybody_else_works_on(each_phones: Phones) -> None:
    phones = may_delete(relaxed(each_phones))
    with phones.app("payme-api/2.7.0") as newest, phones.app("payme-api/2.4.0") as oldest:
        version = Version(newest, phones, V4)
        version.every_form()
        oldest.execute("SELECT phone_number FROM users WHERE id = 1", prepare=True)
        do_brown_out(phones.desk, quiet)
        key = version.every_form()
        newest.execute(
            "INSERT INTO transactions (user_id, merchant_id, kind, status, amount)"
            " VALUES (%s, 1, 'payment', 'pending', 1)",
            [key],
        )  # whose foreign key looks at users
        for text in (
            "SELECT phone_number FROM users WHERE id = 1",
            "SELECT * FROM users WHERE id = 1",
            "UPDATE users SET phone_number = '+254700000001' WHERE id = 1",
            "UPDATE users SET full_name = 'x' WHERE phone_number = '+254700000001'",
            "INSERT INTO users (public_id, phone_number, full_name) VALUES (gen_random_uuid(), '+254700000001', 'x')",
        ):
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                oldest.execute(text)
        undo_brown_out(phones.desk, quiet)
        oldest.execute("SELECT phone_number FROM users WHERE id = 1", prepare=True)
        version.every_form()


def test_rights_come_back_at_once_whoever_is_at_work(phones: Phones) -> None:
    """Readers and writers, and a vacuum against wraparound, which gives way to nobody."""
    with browned_out(phones).app() as app, app.transaction(), phones.admin() as vacuum, vacuum.transaction():
        vacuum.execute("LOCK TABLE users IN SHARE UPDATE EXCLUSIVE MODE")
        app.execute("SELECT count(id) FROM users")
        app.execute("UPDATE users SET full_name = 'x' WHERE id = 1")
        began = time.monotonic()
        assert undo_brown_out(phones.desk, quiet)["seconds"] < 2
        app.execute("SELECT phone_number FROM users WHERE id = 1")
        assert time.monotonic() - began < 2


def test_a_right_that_another_than_the_owner_gave_refuses_it(phones: Phones) -> None:
    with relaxed(phones).admin() as connection:
        connection.execute("GRANT SELECT ON users TO payme_ledger WITH GRANT OPTION")
        connection.execute("SET ROLE payme_ledger")
        connection.execute("GRANT SELECT ON users TO payme_reporting")
    before = acls(phones)
    with pytest.raises(UnexpectedSchema, match="found rights given by payme_ledger"):
        do_brown_out(phones.desk, quiet)
    assert acls(phones) == before
    assert shape(phones).stage == Stage.RELAXED


def test_who_got_rights_meanwhile_keeps_them(phones: Phones) -> None:
    before = acls(relaxed(phones))
    do_brown_out(phones.desk, quiet)
    with phones.admin() as connection:
        connection.execute("GRANT SELECT (id, email) ON users TO payme_reporting")
        connection.execute("GRANT INSERT ON users TO payme_ledger")
    undo_brown_out(phones.desk, quiet)
    assert may(phones, "payme_reporting", "SELECT", "email")
    assert may(phones, "payme_ledger", "INSERT")
    with phones.admin() as connection:
        connection.execute("REVOKE ALL ON users FROM payme_reporting, payme_ledger")
    assert {key: acl for key, acl in acls(phones).items() if key} == {key: acl for key, acl in before.items() if key}


def test_a_role_that_it_cannot_reach_makes_it_inconclusive(phones: Phones) -> None:
    browned_out(phones)

    def still(role: str) -> Any:
        migration = phones.desk.settings.migration.model_copy(update={"app_role": role})
        desk = replace(phones.desk, settings=phones.desk.settings.model_copy(update={"migration": migration}))
        found = examine(checks_after_brown_out(desk))["brown_out_rights"]
        assert found.verdict is Verdict.INCONCLUSIVE
        return found.measured["still"]

    assert "it is a superuser" in still("postgres")
    assert still("payme_owner") == ["it is the owner, or a member of payme_owner"]
    assert still("payme_db_read") == ["it is a member of pg_read_all_data"]
    assert still("nobody_of_that_name") == "there is no such role"
    with phones.admin() as connection:
        connection.execute("GRANT UPDATE (phone_number) ON users TO payme_reporting")
        connection.execute("GRANT payme_reporting TO payme_app")  # roles are everybody's: taken back at once
        try:
            assert still("payme_app") == ["it has rights through payme_reporting"]
        finally:
            connection.execute("REVOKE payme_reporting FROM payme_app")
        connection.execute("GRANT SELECT ON users TO PUBLIC")
        assert still("payme_app") == ["PUBLIC has rights"]


# -- switch ---------------------------------------------------------------------------------------------------------


def test_old_and_new_versions_work_through_the_shim(each_phones: Phones) -> None:
    """Also what was prepared before the switch, and what an application leaves to the table."""
    phones = may_delete(relaxed(each_phones))
    with phones.app("payme-api/2.7.0") as newest, phones.app("payme-api/2.8.0") as final:
        old, new = Version(newest, phones, V4), Version(final, phones, V5)
        old.every_form()
        do_brown_out(phones.desk, quiet)
        old.every_form()
        assert verdicts(checks_before_switch(phones.desk)) == {
            "browned_out": Verdict.PASS,
            "switch_dependants": Verdict.PASS,
            "switch_shim": Verdict.PASS,
        }
        done = do_switch(phones.desk, quiet)
        assert (done["changed"], done["shim"], done["mapping"]) == (True, True, {"phone_number": "phone_number"})
        assert len(done["canary"]["forms"]) == 12
        assert shape(phones).stage == Stage.SHIMMED
        assert set(verdicts(checks_after_switch(phones.desk)).values()) == {Verdict.PASS}
        for version, column in ((old, V4), (new, V5)):
            version.every_form()
            rows = version.run(
                "INSERT INTO users (id, public_id, {stored}, phone_number_bidx, full_name, email, kyc, created_at)"
                " VALUES (default, gen_random_uuid(), %s, %s, 'Test', default, default, default)"
                " RETURNING id, kyc, preferences, created_at = now(), last_login_at",
                *version.sealed(0, number()),
            )
            (key, *defaults) = rows[0]
            assert key > 2000
            assert defaults == ["none", {}, True, None]
            several = version.run(
                "INSERT INTO users (public_id, {stored}, phone_number_bidx, full_name) VALUES"
                " (gen_random_uuid(), %s, %s, 'A'), (gen_random_uuid(), %s, %s, 'B') RETURNING id",
                *version.sealed(0, number()),
                *version.sealed(0, number()),
            )
            assert [one for (one,) in several] == [key + 1, key + 2]
            with pytest.raises(psycopg.errors.CheckViolation):  # a plaintext, from whoever takes the name for that
                version.connection.execute(
                    sql.SQL("UPDATE users SET {} = '+254700000001' WHERE id = 1").format(sql.Identifier(column))
                )
        final.execute(
            "INSERT INTO transactions (user_id, merchant_id, kind, status, amount)"
            " VALUES (1, 1, 'payment', 'pending', 1)"
        )
        with pytest.raises(psycopg.errors.ForeignKeyViolation):
            final.execute("DELETE FROM users WHERE id = 1")
        with pytest.raises(psycopg.errors.ForeignKeyViolation):
            final.execute(
                "INSERT INTO transactions (user_id, merchant_id, kind, status, amount)"
                " VALUES (10000000, 1, 'payment', 'pending', 1)"
            )
        final.execute("UPDATE users SET updated_at = '2000-01-01', full_name = 'x' WHERE id = 1")
        row = final.execute("SELECT updated_at > '2026-01-01' FROM users WHERE id = 1").fetchone()
        assert row == (True,)  # the table's own trigger
    assert do_switch(phones.desk, quiet) == {
        "changed": False,
        "shim": True,
        "mapping": {"phone_number": "phone_number"},
    }


def test_ids_that_are_always_generated_are_so_through_the_shim(each_phones: Phones) -> None:
    with browned_out(each_phones).admin() as connection:
        connection.execute("ALTER TABLE users ALTER COLUMN id SET GENERATED ALWAYS")
    assert "forms" in do_switch(each_phones.desk, quiet)["canary"]  # with OVERRIDING SYSTEM VALUE
    with each_phones.app("payme-api/2.8.0") as app:
        version = Version(app, each_phones, V5)
        with pytest.raises(psycopg.errors.GeneratedAlways):
            version.insert(number())
        assert version.upsert(0, number())[0][0] > 2000


def test_every_number_is_where_it_was(each_phones: Phones) -> None:
    before = each_phones.plaintexts()
    switched(each_phones)
    assert each_phones.decrypted("phone_number") == before
    assert each_phones.decrypted("phone_number_encrypted") == before


def test_owner_rights_and_comments_of_the_view_are_the_tables(each_phones: Phones) -> None:
    phones = relaxed(each_phones)
    with phones.admin() as connection:
        connection.execute(RIGHTS)
        connection.execute("COMMENT ON TABLE users IS 'who pays'; COMMENT ON COLUMN users.email IS 'it''s optional'")
        connection.execute("COMMENT ON COLUMN users.phone_number_encrypted IS 'v1'")
    before = definition(phones)
    do_brown_out(phones.desk, quiet)
    do_switch(phones.desk, quiet)
    after = definition(phones)
    ((_, *table),), ((kind, *view),) = before["table"], after["table"]
    assert kind == "v"
    assert (view[0], view[2]) == (table[0], table[2])
    rights = acls(phones)
    assert rights == {**acls(phones, "users_base"), "phone_number_encrypted": rights["phone_number"]}
    assert rights[""] == table[1]
    assert {name: comment for name, *_, comment in after["columns"] if comment} == {
        "email": "it's optional",
        "phone_number": "v1",
    }
    assert [column[0] for column in after["columns"]] == [
        *[column[0] for column in before["columns"] if column[0] not in (V4, V5, "phone_number_bidx")],
        *("phone_number", "phone_number_bidx", "phone_number_encrypted"),
    ]


def test_from_the_drop_on_there_is_no_way_back(each_phones: Phones) -> None:
    phones = browned_out(each_phones)
    assert undo_switch(phones.desk, quiet) == {"changed": False}
    do_switch(phones.desk, quiet)
    before = definition(phones)
    for undo in (undo_switch, undo_brown_out, undo_relax):
        with pytest.raises(UnexpectedSchema, match="has been dropped: from there no undo leads back"):
            undo(phones.desk, quiet)
    for undo in (undo_finish, undo_expand):
        with pytest.raises(UnexpectedSchema, match="not yet relaxed; found dropped"):
            undo(phones.desk, quiet)
    assert definition(phones) == before


NO_SHIM = [
    ("PUBLICATION", "out", "FOR TABLE users", "publication out sends it"),
    ("PUBLICATION", "out", "FOR ALL TABLES", "publication out sends it"),
    ("VIEW", "named", "AS SELECT id, full_name FROM users", "view named depends on it"),
    ("MATERIALIZED VIEW", "counted", "AS SELECT count(id) FROM users", "materialized view counted depends on it"),
    ("TABLE", "more", "() INHERITS (users)", "it is partitioned, or inherits"),
    ("RULE", "quiet", "AS ON DELETE TO users DO INSTEAD NOTHING", "it has the rule quiet"),
    ("POLICY", "own", "ON users USING (phone_number_encrypted <> '')", "the policy own names the column"),
]


def test_where_no_shim_can_work_it_stops_after_the_drop(each_phones: Phones) -> None:
    phones = browned_out(may_delete(each_phones))
    with phones.admin() as connection:
        connection.execute("SET client_min_messages = error")  # of the WAL level that a publication wants
        for kind, name, rest, reason in NO_SHIM:
            connection.execute(f"CREATE {kind} {name} {rest}")
            assert refuse_reasons(phones.desk) == [reason]
            found = examine(checks_before_switch(phones.desk))["switch_shim"]
            assert (found.verdict, found.measured) == (Verdict.INCONCLUSIVE, {"reasons": [reason]})
            connection.execute(f"DROP {kind} {name} {'ON users' if kind in ('RULE', 'POLICY') else ''}")
        assert refuse_reasons(phones.desk) == []
        connection.execute("CREATE PUBLICATION out FOR TABLE users")
    done = do_switch(phones.desk, quiet)
    assert (done["shim"], done["reasons"]) == (False, ["publication out sends it"])
    assert done["mapping"] == {"phone_number": "phone_number_encrypted"}
    found_shape = shape(phones)
    assert (found_shape.stage, found_shape.has_plaintext, found_shape.has_ciphertext) == (Stage.SWITCHED, False, True)
    assert do_switch(phones.desk, quiet)["changed"] is False
    assert do_end_shim(phones.desk, quiet) == undo_end_shim(phones.desk, quiet) == {"changed": False}
    with phones.admin() as connection:  # PostgreSQL wants one where a publication sends deletions
        connection.execute("ALTER TABLE users REPLICA IDENTITY DEFAULT")
    with phones.app("payme-api/2.7.0") as app:
        Version(app, phones, V4).every_form()


DEPENDS = [
    ("CREATE VIEW numbers AS SELECT phone_number FROM users", "DROP VIEW numbers", "rule _RETURN on view numbers"),
    (
        "CREATE FUNCTION known(text) RETURNS boolean LANGUAGE sql"
        " RETURN EXISTS (SELECT FROM users WHERE phone_number = $1)",
        "DROP FUNCTION known",
        "function known(text)",
    ),
    (
        "CREATE TRIGGER told AFTER UPDATE OF phone_number ON users EXECUTE FUNCTION touch_updated_at()",
        "DROP TRIGGER told ON users",
        "trigger told on table users",
    ),
    (
        "ALTER TABLE users ADD COLUMN prefix text GENERATED ALWAYS AS (left(phone_number, 4)) STORED",
        "ALTER TABLE users DROP COLUMN prefix",
        "default value for column prefix of table users",
    ),
    (
        "CREATE POLICY own ON users USING (phone_number <> current_user)",
        "DROP POLICY own ON users",
        "policy own on table users",
    ),
]


def test_what_depends_on_the_plaintext_stops_the_drop(each_phones: Phones) -> None:
    """A computed column would be dropped in silence."""
    phones = browned_out(each_phones)
    with phones.admin() as connection:
        for make, drop, what in DEPENDS:
            connection.execute(make)
            before = definition(phones)
            found = examine(checks_before_switch(phones.desk))["switch_dependants"]
            assert (found.verdict, found.measured["stop the drop"]) == (Verdict.FAIL, [what])
            with pytest.raises(UnexpectedSchema, match="something depends on") as refused:
                do_switch(phones.desk, quiet)
            assert refused.value.found == what
            assert definition(phones) == before
            connection.execute(drop)


def test_what_is_dropped_with_the_plaintext_is_listed_before(phones: Phones) -> None:
    with browned_out(phones).admin() as connection:
        connection.execute("CREATE INDEX by_age ON users (created_at, phone_number)")
    found = examine(checks_before_switch(phones.desk))["switch_dependants"]
    assert found.verdict is Verdict.PASS
    assert found.measured["are dropped with it"] == [
        "constraint users_phone_number_is_e164 on table users",
        "index by_age",
    ]


def test_a_statement_that_would_fail_through_the_shim_undoes_all_of_it(each_phones: Phones) -> None:
    phones = browned_out(may_delete(each_phones))
    with phones.admin() as connection:
        connection.execute(
            "CREATE FUNCTION only_users() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN"
            " IF TG_TABLE_NAME <> 'users' THEN RAISE EXCEPTION 'no'; END IF; RETURN NEW; END $$;"
            "CREATE TRIGGER only_users BEFORE UPDATE ON users FOR EACH ROW EXECUTE FUNCTION only_users()"
        )
    before = definition(phones)
    with pytest.raises(GateClosed, match=r"the application's INSERT \.\.\. ON CONFLICT would fail; .*SQLSTATE P0001"):
        do_switch(phones.desk, quiet)
    assert definition(phones) == before
    with phones.app("payme-api/2.7.0") as app:
        Version(app, phones, V4).every_form()


def test_the_canary_leaves_nothing_and_says_what_it_could_not_try(phones: Phones) -> None:
    switched(phones)
    with phones.admin() as connection:
        before = connection.execute("SELECT count(*) FROM users").fetchone()
        found = shim_canary(phones.desk)
        assert found.verdict is Verdict.PASS
        assert found.measured["role"] == "the table's owner"
        assert connection.execute("SELECT count(*) FROM users").fetchone() == before
        connection.execute("CREATE UNIQUE INDEX ON users_base (created_at)")
        assert shim_canary(phones.desk).measured == {"not run": "no value can be made up for created_at"}
        connection.execute("TRUNCATE users_base CASCADE; DROP INDEX users_base_created_at_idx")
        assert shim_canary(phones.desk).verdict is Verdict.INCONCLUSIVE


def test_behind_a_reader_each_gives_way_until_its_budget_ends(phones: Phones) -> None:
    desk = with_budget(finished(phones).desk, 1)
    with phones.app("reports/nightly") as reader, Canary(phones).running() as canary:
        for step in (do_relax, do_switch, do_end_shim, undo_end_shim):
            if step is do_switch:
                do_brown_out(phones.desk, quiet)
            before = definition(phones)
            with reader.transaction():
                reader.execute("SELECT count(id) FROM users")
                with pytest.raises(LockBudgetSpent, match="held by reports/nightly"):
                    step(desk, quiet)
            assert definition(phones) == before
            assert step(desk, quiet)["changed"]
    assert canary.failed == []
    assert canary.slowest < 0.3, f"{canary.slowest:.3f} s behind a change"


# -- the end of the shim --------------------------------------------------------------------------------------------


def test_the_shim_ends_again_comes_back_and_ends(each_phones: Phones) -> None:
    phones, desk = switched(may_delete(each_phones)), each_phones.desk
    shimmed = definition(phones)
    assert set(verdicts(checks_before_end_shim(desk)).values()) == {Verdict.PASS}
    assert do_end_shim(desk, quiet) == {"changed": True}
    ended = definition(phones)
    assert shape(phones).stage == Stage.SWITCHED
    assert set(verdicts(checks_after_end_shim(desk)).values()) == {Verdict.PASS}
    with phones.app("payme-api/2.8.0") as app:
        Version(app, phones, V5).every_form()
    assert do_end_shim(desk, quiet) == {"changed": False}
    assert undo_end_shim(desk, quiet) == {"changed": True}
    assert definition(phones) == shimmed
    assert undo_end_shim(desk, quiet) == {"changed": False}
    with phones.app("payme-api/2.7.0") as app:
        Version(app, phones, V4).every_form()
    assert do_end_shim(desk, quiet) == {"changed": True}
    assert definition(phones) == ended


def test_nothing_is_left_but_the_ciphertext_its_index_and_its_check(each_phones: Phones) -> None:
    phones, before = each_phones, definition(each_phones)
    do_end_shim(switched(phones).desk, quiet)
    after = definition(phones)
    assert after.pop("columns") == [
        *[column for column in before.pop("columns") if column[0] != "phone_number"],
        ("phone_number", "text", False, None, "", None, None),
        ("phone_number_bidx", "bytea", False, None, "", None, None),
    ]
    assert set(after["constraints"]) - set(before["constraints"]) == {
        ("users_phone_number_format", "CHECK ((phone_number ~ '^v[0-9]+:'::text))")
    }
    assert {name for name, _ in set(before["constraints"]) - set(after["constraints"])} == {
        "users_phone_number_key",
        "users_phone_number_is_e164",
    }
    assert set(after["indexes"]) - set(before["indexes"]) == {
        (
            "users_phone_number_bidx_idx",
            "CREATE UNIQUE INDEX users_phone_number_bidx_idx ON public.users USING btree (phone_number_bidx)",
        )
    }
    assert [row for row in after["beside it"] if row not in before["beside it"]] == [
        ("users_phone_number_bidx_idx", "i")
    ]
    for what in ("triggers", "table", "pointing at it", "functions"):
        assert after[what] == before[what]


def test_a_dump_restores_also_while_the_shim_is_there(each_phones: Phones) -> None:
    phones, copy = switched(each_phones), f"{each_phones.name}_copy"
    before, rows = definition(phones), phones.decrypted("phone_number")
    cluster = phones.site.cluster
    with phones.site.admin("postgres") as connection:
        connection.execute(sql.SQL("CREATE DATABASE {} TEMPLATE template0").format(sql.Identifier(copy)))
        try:
            dump = subprocess.run(
                [cluster.bin_dir / "pg_dump", "--format=custom", cluster.conninfo(phones.name)],
                capture_output=True,
                check=True,
            )
            subprocess.run(
                [cluster.bin_dir / "pg_restore", "--exit-on-error", "--dbname", cluster.conninfo(copy)],
                input=dump.stdout,
                capture_output=True,
                check=True,
            )
            restored = Phones(phones.site, copy)
            assert definition(restored) == before
            assert restored.decrypted("phone_number") == rows
        finally:
            connection.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(copy)))


def test_who_has_built_on_the_view_holds_the_shim(phones: Phones) -> None:
    with switched(phones).admin() as connection:
        connection.execute("CREATE VIEW numbers AS SELECT id FROM users")
    found = examine(checks_before_end_shim(phones.desk))["end_shim_dependants"]
    assert (found.verdict, found.measured) == (Verdict.FAIL, {"found": ["view numbers depends on it"]})
    with pytest.raises(DatabaseError, match="other objects depend on it"):
        do_end_shim(phones.desk, quiet)
    assert shape(phones).stage == Stage.SHIMMED


@pytest.mark.long
def test_cut_before_any_statement_each_can_be_run_again(phones: Phones, monkeypatch: pytest.MonkeyPatch) -> None:
    rules = definition(finished(phones))
    steps: list[tuple[Callable[..., object], Stage]] = [
        (do_relax, Stage.RELAXED),
        (undo_relax, Stage.BACKFILLED),
        (do_brown_out, Stage.BROWNED_OUT),
        (undo_brown_out, Stage.RELAXED),
        (do_switch, Stage.SHIMMED),
        (do_end_shim, Stage.SWITCHED),
        (undo_end_shim, Stage.SHIMMED),
    ]
    for step, stage in steps:
        if step in (do_brown_out, do_switch):  # what was undone just now
            do_relax(phones.desk, quiet)
        if step is do_switch:
            do_brown_out(phones.desk, quiet)
        assert cut_until_done(monkeypatch, lambda step=step: step(phones.desk, quiet)) > 5  # type: ignore[misc]
        assert shape(phones).stage == stage
        if step is undo_relax:
            assert definition(phones) == rules
    assert set(verdicts(checks_after_switch(phones.desk)).values()) == {Verdict.PASS}
