"""What the migrate role needs where the table's owner owns nothing else: refused before, enough after, and no more."""

from collections.abc import Iterator

import psycopg
import pytest
from psycopg import sql
from psycopg.conninfo import conninfo_to_dict

from payme_ops.foundation.errors import DatabaseError
from payme_ops.foundation.evidence import Verdict
from payme_ops.foundation.sql import load
from payme_ops.migration import rehearsal
from payme_ops.migration.expand import checks_before_expand, do_expand, undo_expand
from payme_ops.migration.shape import Stage
from tests.support.installation import quiet
from tests.support.phones import Phones
from tests.support.steps import shape, verdicts

# Who may do what in a database and its schema `public`.
RIGHTS = (
    "SELECT datacl::text, nspacl::text FROM pg_database, pg_namespace"
    " WHERE datname = current_database() AND nspname = 'public'"
)


def grant(phones: Phones) -> None:
    with phones.admin() as admin:
        admin.execute(load("grants/migrate_role.sql"))


def take_from_owner(phones: Phones) -> None:
    """Another role owns the database, and with it the schema public."""
    with phones.admin() as admin:
        admin.execute(sql.SQL("ALTER DATABASE {} OWNER TO CURRENT_USER").format(sql.Identifier(phones.name)))


def test_where_the_tables_owner_may_create_nothing_the_grants_are_enough(each_phones: Phones) -> None:
    phones, desk = each_phones, each_phones.desk
    take_from_owner(phones)
    assert verdicts(checks_before_expand(desk))["expand_rights"] is Verdict.FAIL
    with pytest.raises(DatabaseError) as refused:
        do_expand(desk, quiet)
    assert refused.value.sqlstate == "42501"
    assert shape(phones).stage is Stage.START
    grant(phones)
    assert set(verdicts(checks_before_expand(desk)).values()) == {Verdict.PASS}
    do_expand(desk, quiet)
    undo_expand(desk, quiet)
    do_expand(desk, quiet)  # its schema is made anew
    assert shape(phones).stage is Stage.EXPANDED
    with phones.app() as app, pytest.raises(psycopg.errors.InsufficientPrivilege):
        app.execute("CREATE SCHEMA mine")


def test_where_the_owner_has_what_it_needs_nothing_is_granted(each_phones: Phones) -> None:
    with each_phones.admin() as admin:
        before = admin.execute(RIGHTS).fetchall()
        grant(each_phones)
        assert admin.execute(RIGHTS).fetchall() == before


@pytest.fixture
def _passwords(phones: Phones) -> Iterator[None]:
    """The roles' own, again: those of a rehearsal are made for it."""
    yield
    with phones.admin() as admin:
        for role in ("payme_db_migrate", "payme_app"):
            password = conninfo_to_dict(phones.conninfo(role))["password"]
            admin.execute(sql.SQL("ALTER ROLE {} PASSWORD {}").format(sql.Identifier(role), sql.Literal(password)))


@pytest.mark.usefixtures("_passwords")
def test_in_a_rehearsal_the_owner_may_although_no_backup_holds_that_right(phones: Phones) -> None:
    take_from_owner(phones)
    superuser = phones.site.cluster.conninfo(phones.name)
    migrate, application = rehearsal.open_doors(superuser, phones.names, "payme_app")
    with psycopg.connect(migrate) as connection:
        connection.execute("SET ROLE payme_owner")
        connection.execute("CREATE SCHEMA payme_migration")
    with psycopg.connect(application) as connection:
        assert connection.execute("SELECT count(*) FROM users").fetchone() == (2000,)
