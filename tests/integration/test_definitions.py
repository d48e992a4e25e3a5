"""Definitions in the truth: the same after a dump and a restore, and another one after a change, named."""

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg
import pytest

from payme_ops.backup import restore, truth
from payme_ops.backup.manifest import Truth
from payme_ops.foundation import content
from payme_ops.foundation.errors import Unavailable
from sandbox.postgres import Cluster
from tests.support.installation import quiet
from tests.support.ops import database

TRICKY = (Path(__file__).parent / "tricky_definitions.sql").read_text()
# What is there, but in no dump.
NOT_DUMPED = """
CREATE TEMP TABLE scratch (a int CHECK (a > 0)); COMMENT ON TABLE scratch IS 'mine'; COMMENT ON COLUMN scratch.a IS 'a';
CREATE VIEW pg_temp.seen AS SELECT 1 AS one; CREATE FUNCTION pg_temp.f() RETURNS int LANGUAGE sql AS 'SELECT 1';
CREATE TYPE pg_temp.mood AS ENUM ('a'); CREATE OPERATOR pg_temp.=== (leftarg = int, rightarg = int, procedure = int4eq);
CREATE COLLATION pg_catalog.later (provider = libc, locale = 'C');
"""
# A change, and how it is named.
CHANGES = [
    ("ALTER TABLE t ALTER state SET DEFAULT 'old'", "column public.t.state"),
    ("ALTER TABLE t ALTER code SET NOT NULL", "column public.t.code"),
    ("ALTER TABLE t SET (fillfactor = 80)", "table public.t"),
    ("ALTER TABLE t NO FORCE ROW LEVEL SECURITY, DISABLE ROW LEVEL SECURITY", "table public.t"),
    ("ALTER TABLE t ENABLE TRIGGER touch", "trigger public.t.touch"),
    ("ALTER POLICY mine ON t USING (state IN ('new', 'sent'))", "policy public.t.mine"),
    ("ALTER DOMAIN phone SET DEFAULT '+255'", "domain public.phone"),
    ("CREATE OR REPLACE VIEW above AS SELECT id, state FROM checked WHERE id > 0", "view public.above"),
    ("ALTER FUNCTION old_body() SECURITY DEFINER", "function public.old_body()"),
    (
        "CREATE OR REPLACE FUNCTION body(a int DEFAULT 1, VARIADIC rest varchar[] DEFAULT '{x}')"
        " RETURNS TABLE (b int, c text) LANGUAGE sql STABLE SET search_path = public, pg_temp SET work_mem = '8MB'"
        " BEGIN ATOMIC SELECT id, state FROM t WHERE id = a AND state IN ('new', 'lost'); END",
        "function public.body(a integer, VARIADIC rest character varying[])",
    ),
    (
        "CREATE OR REPLACE AGGREGATE longest (text) (sfunc = textcat, stype = text, initcond = 'y')",
        "function public.longest(text)",
    ),
    ("ALTER TABLE parent ALTER id SET INCREMENT 6", "sequence public.parent_id_seq"),
    ("ALTER PUBLICATION part_of DROP TABLE parent", "publication part_of"),
    ("COMMENT ON INDEX partial IS 'j'", "comment index public.partial"),
    ("DROP RULE quiet ON child", "rule public.child.quiet"),
    ("DROP STATISTICS about", "statistics public.about"),
    ("ALTER TABLE ref DROP CONSTRAINT ref_id_excl", "constraint public.ref.ref_id_excl"),
    ("DROP INDEX p_v", "index public.p_v"),
    ("ALTER TYPE mood RENAME VALUE 'ok' TO 'fine'", "type public.mood"),
]


@contextmanager
def filled(cluster: Cluster) -> Iterator[str]:
    with database(cluster, "defined") as conninfo:
        with psycopg.connect(conninfo, autocommit=True) as connection:
            connection.execute("SELECT lo_create(12345)")
            connection.execute(TRICKY.encode())
            connection.execute("CREATE TYPE mood AS ENUM ('sad', 'ok')")
            connection.execute("ALTER DATABASE defined SET quote_all_identifiers = on")
        yield conninfo


def measured(conninfo: str) -> Truth:
    return restore.measure(conninfo, report=quiet)


@contextmanager
def restored(cluster: Cluster, folder: Path, source: str) -> Iterator[str]:
    archive = folder / "archive"
    subprocess.run([cluster.bin_dir / "pg_dump", "-Fc", f"--file={archive}", source], check=True)
    with database(cluster, "defined_again") as target:
        subprocess.run([cluster.bin_dir / "pg_restore", "--exit-on-error", f"--dbname={target}", archive], check=True)
        yield target


def test_a_dump_and_a_restore_make_no_difference(cluster: Cluster, tmp_path: Path) -> None:
    with filled(cluster) as source, psycopg.connect(source, autocommit=True) as somebody:
        somebody.execute(NOT_DUMPED)
        before = measured(source)
        with restored(cluster, tmp_path, source) as target:
            assert truth.differences(before, measured(target)) == []
            assert truth.access_differences(before, measured(target)) == []


def test_each_change_is_named(cluster: Cluster) -> None:
    with filled(cluster) as source, psycopg.connect(source) as connection:
        content.pin_settings(connection)

        def now() -> Truth:
            relations, sequences = content.list_relations(connection), truth.list_sequences(connection)
            return truth.measure(connection, relations, sequences, skip_unlogged=False, report=quiet)

        before = now()
        for statement, name in CHANGES:
            with connection.transaction(force_rollback=True):
                connection.execute("SET LOCAL search_path = public")
                connection.execute(statement.encode())
                connection.execute("SET LOCAL search_path = ''")
                assert name in [one.name for one in truth.differences(before, now())], statement


def test_text_that_is_no_utf8_where_the_database_does_not_care(cluster: Cluster) -> None:
    with database(cluster, "bytes") as conninfo:
        with psycopg.connect(conninfo, autocommit=True) as connection:
            encoding = "ENCODING 'SQL_ASCII' LC_COLLATE 'C' LC_CTYPE 'C'"
            connection.execute(f"CREATE DATABASE careless TEMPLATE template0 {encoding}".encode())
        try:
            careless = psycopg.conninfo.make_conninfo(conninfo, dbname="careless", client_encoding="SQL_ASCII")
            with psycopg.connect(careless, autocommit=True) as connection:
                connection.execute(b"CREATE TABLE t (a int); COMMENT ON TABLE t IS 'M\xfcller'")
                connection.execute(b"CREATE FUNCTION f() RETURNS text LANGUAGE sql AS $$SELECT 'M\xfcller'::text$$")
            before = measured(careless)
            with psycopg.connect(careless, autocommit=True) as connection:
                connection.execute(b"COMMENT ON TABLE t IS 'M\xf6ller'")
            assert [one.name for one in truth.differences(before, measured(careless))] == ["comment table public.t"]
        finally:
            with psycopg.connect(conninfo, autocommit=True) as connection:
                connection.execute("DROP DATABASE careless WITH (FORCE)")


def test_a_database_without_a_schema_public(cluster: Cluster, tmp_path: Path) -> None:
    with database(cluster, "bare") as source:
        with psycopg.connect(source, autocommit=True) as connection:
            connection.execute("DROP SCHEMA public; CREATE SCHEMA other; CREATE TABLE other.t (a int)")
        with restored(cluster, tmp_path, source) as target:
            before, after = measured(source), measured(target)
            assert truth.differences(before, after) == truth.access_differences(before, after) == []


def test_a_membership_that_two_roles_granted_is_one(cluster: Cluster) -> None:
    with database(cluster, "granted") as conninfo, psycopg.connect(conninfo, autocommit=True) as connection:
        connection.execute("CREATE ROLE granted_group; CREATE ROLE granted_member; CREATE ROLE granted_admin")
        try:
            connection.execute(
                "GRANT granted_group TO granted_member; GRANT granted_group TO granted_admin WITH ADMIN OPTION"
            )
            before = measured(conninfo).roles
            connection.execute("SET ROLE granted_admin; GRANT granted_group TO granted_member; RESET ROLE")
            assert measured(conninfo).roles == before
        finally:
            connection.execute(
                "DROP OWNED BY granted_admin CASCADE; DROP ROLE granted_member, granted_admin, granted_group"
            )


def test_what_is_dropped_meanwhile_is_another_try(cluster: Cluster) -> None:
    with database(cluster, "dropped") as conninfo, psycopg.connect(conninfo) as session:
        with psycopg.connect(conninfo, autocommit=True) as other:
            other.execute("CREATE FUNCTION f() RETURNS int LANGUAGE sql AS 'SELECT 1'")
            session.execute("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY")
            content.pin_settings(session)
            other.execute("DROP FUNCTION f()")
        with pytest.raises(Unavailable, match="dropped while the truth was measured"):
            truth.measure(session, [], [], skip_unlogged=False, report=quiet)
