"""The truth: what equality hides changes the hash, and nothing else does."""

import subprocess
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import psycopg
import pytest
from psycopg import sql

from payme_ops.backup import restore, truth
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
from payme_ops.foundation.errors import TruthMismatch
from sandbox.postgres import Cluster
from tests.support.installation import quiet
from tests.support.ops import database

TYPES = """
CREATE TYPE mood AS ENUM ('sad', 'ok', 'happy');
CREATE DOMAIN shillings AS numeric;
CREATE DOMAIN fee AS shillings CHECK (VALUE >= 0);
CREATE DOMAIN amounts AS numeric[];
CREATE TYPE price AS (amount numeric, currency text);
CREATE TYPE steps AS RANGE (subtype = float8);
"""
NONDETERMINISTIC = """
CREATE COLLATION ignore_case (provider = icu, locale = 'und-u-ks-level2', deterministic = false);
CREATE DOMAIN code AS text COLLATE ignore_case;
"""
# Type, one value, another that the type's own equality (or the equality of a part of it) takes for the same.
HIDDEN = [
    ("numeric", "1.0", "1.00"),
    ("shillings", "1.0", "1.00"),
    ("fee", "0", "0.00"),
    ("amounts", "{1.0}", "{1.00}"),
    ("numeric[]", "{1.0}", "{1.00}"),
    ("price", '(1.0,"KES")', '(1.00,"KES")'),
    ("price[]", '{"(1.0,KES)"}', '{"(1.00,KES)"}'),
    ("numrange", "[1.0,2.0]", "[1.00,2.0]"),
    ("nummultirange", "{[1.0,2.0]}", "{[1.00,2.0]}"),
    ("steps", "[0,1]", "[-0,1]"),
    ("float8", "0", "-0"),
    ("float4", "0", "-0"),
    ("float8[]", "{0}", "{-0}"),
    ("interval", "1 day", "24 hours"),
    ("interval", "1 mon", "30 days"),
    ("interval[]", "{1 day}", "{24 hours}"),
    ("jsonb", '{"a": 1.0}', '{"a": 1.00}'),
    ("jsonb[]", "{1.0}", "{1.00}"),
    ("json", '{"a":1}', '{"a": 1}'),
    ("bpchar", "a", "a  "),
    ("box", "(1,1),(0,0)", "(3,1),(2,0)"),
    ("circle", "<(0,0),1>", "<(5,5),1>"),
    ("lseg", "[(0,0),(1,0)]", "[(0,0),(1,0.00000001)]"),
    ("point", "(0,0)", "(0.00000001,0)"),
    ("text COLLATE ignore_case", "Wanjiku", "wanjiku"),
    ("varchar COLLATE ignore_case", "Wanjiku", "wanjiku"),
    ("text[] COLLATE ignore_case", "{Wanjiku}", "{wanjiku}"),
    ("code", "Ke", "KE"),
]
# Type and two values that everybody tells apart.
PLAIN = [
    ("boolean", "t", "f"),
    ("smallint", "1", "2"),
    ("bigint", "9007199254740993", "9007199254740992"),
    ("float8", "0.1", "0.10000000000000002"),
    ("numeric", "NaN", "1"),
    ("text", "", " "),
    ("text", "Nyong'o", "Nyongo"),
    ("char(5)", "a", "b"),
    ('"char"', "a", "b"),
    ("name", "a", "b"),
    ("bytea", "\\x00", "\\x0000"),
    ("uuid", "00000000-0000-0000-0000-000000000000", "00000000-0000-0000-0000-000000000001"),
    ("date", "infinity", "2026-01-28"),
    ("time", "24:00", "00:00"),
    ("timetz", "12:00+03", "09:00+00"),
    ("timestamp", "2026-01-28 02:00:00", "2026-01-28 02:00:00.000001"),
    ("timestamptz", "2026-01-28 02:00:00+03", "2026-01-28 02:00:00+00"),
    ("interval", "1 mon -1 day", "1 mon"),
    ("inet", "10.0.0.1/8", "10.0.0.1/9"),
    ("cidr", "10.0.0.0/8", "10.0.0.0/9"),
    ("macaddr", "08:00:2b:01:02:03", "08:00:2b:01:02:04"),
    ("money", "1.00", "1.01"),
    ("bit varying", "1", "10"),
    ("mood", "sad", "happy"),
    ("mood[]", "{sad}", "{happy}"),
    ("int[]", "{1,2}", "[0:1]={1,2}"),
    ("int[]", "{}", "{{1}}"),
    ("daterange", "[2026-01-01,2026-02-01)", "[2026-01-01,2026-02-02)"),
    ("tsvector", "fat cat", "fat dog"),
    ("pg_lsn", "0/1", "0/2"),
    ("polygon", "((0,0),(1,1),(2,0))", "((0,0),(1,1),(2,0),(1,0))"),
    ("xid8", "1", "2"),
    ("jsonpath", "$.a", "$.b"),
]


@pytest.fixture(scope="module")
def database_(cluster: Cluster) -> Iterator[str]:
    with database(cluster, "truth_test") as conninfo:
        with psycopg.connect(conninfo, autocommit=True) as connection:
            connection.execute(TYPES)
            with suppress(psycopg.errors.FeatureNotSupported):  # the wheel is built without ICU
                connection.execute(NONDETERMINISTIC)
        yield conninfo


@pytest.fixture
def connection(database_: str) -> Iterator[psycopg.Connection]:
    """A connection to a database with types and no table."""
    with psycopg.connect(database_, autocommit=True) as made:
        yield made
        made.execute("SELECT lo_unlink(oid) FROM pg_largeobject_metadata")
        made.execute("DROP SCHEMA IF EXISTS test CASCADE; DROP VIEW IF EXISTS v; DROP TABLE IF EXISTS t, u, w CASCADE")
        made.execute("DROP SEQUENCE IF EXISTS s; DROP EXTENSION IF EXISTS citext, pgcrypto")
        assert content.list_relations(made) == []


def has_icu(connection: psycopg.Connection) -> bool:
    return connection.execute("SELECT FROM pg_collation WHERE collname = 'ignore_case'").rowcount > 0


def measured(database_: str) -> Truth:
    return restore.measure(database_, report=quiet)


def relation(database_: str, name: str = "public.t") -> RelationTruth:
    (found,) = [each for each in measured(database_).relations if each.qualified == name]
    return found


def by_name(database_: str) -> dict[str, RelationTruth]:
    return {each.name: each for each in measured(database_).relations}


def same_content(one: RelationTruth, other: RelationTruth) -> bool:
    assert one.content_hash is not None
    return (one.rows, one.content_hash) == (other.rows, other.content_hash)


def create_one_of_each(connection: psycopg.Connection) -> dict[str, tuple[str, str, str]]:
    """A table for every type in schema test; which case each one is. Two equal rows, and one of NULL."""
    cases = {}
    connection.execute("CREATE SCHEMA test")
    for number, (kind, value, other) in enumerate(HIDDEN + PLAIN):
        if not has_icu(connection) and ("ignore_case" in kind or kind == "code"):
            continue
        table = sql.Identifier("test", f"t{number}")
        connection.execute(sql.SQL("CREATE TABLE {} (id int, v {})").format(table, sql.SQL(kind)))
        insert = sql.SQL("INSERT INTO {0} VALUES (1, {1}), (2, {1}), (3, NULL)")
        connection.execute(insert.format(table, sql.Literal(value)))
        cases[f"t{number}"] = (kind, value, other)
    return cases


def test_a_change_in_a_value_of_any_type_changes_the_hash_and_back(
    database_: str, connection: psycopg.Connection
) -> None:
    cases = create_one_of_each(connection)
    before = by_name(database_)
    update = sql.SQL("UPDATE {} SET v = {}::text::{} WHERE id = 2")

    def set_all(which: int) -> dict[str, RelationTruth]:
        for name, case in cases.items():
            base_type = sql.SQL(case[0].split(" COLLATE")[0])
            connection.execute(update.format(sql.Identifier("test", name), sql.Literal(case[which]), base_type))
        return by_name(database_)

    changed, restored = set_all(2), set_all(1)
    assert [case for name, case in cases.items() if same_content(before[name], changed[name])] == []
    assert [case for name, case in cases.items() if not same_content(before[name], restored[name])] == []
    connection.execute("UPDATE test.t0 SET v = NULL WHERE id = 2")
    assert not same_content(before["t0"], by_name(database_)["t0"])


def test_the_hidden_ones_are_hidden(database_: str, connection: psycopg.Connection) -> None:
    """Otherwise the test above would prove less than it says: equality itself calls these the same."""
    assert database_
    for kind, value, other in HIDDEN:
        if kind == "json" or (not has_icu(connection) and ("ignore_case" in kind or kind == "code")):
            continue  # json has no equality
        base_type = sql.SQL(kind.split(" COLLATE")[0] if kind != "code" else "text")
        collation = sql.SQL(' COLLATE "ignore_case"' if "ignore_case" in kind or kind == "code" else "")
        operator = "~=" if kind == "point" else "="
        query = sql.SQL(f"SELECT ({{}}::{{}}{{}}) {operator} ({{}}::{{}}{{}})").format(
            sql.Literal(value), base_type, collation, sql.Literal(other), base_type, collation
        )
        assert connection.execute(query).fetchone() == (True,), (kind, value, other)


def test_citext(database_: str, connection: psycopg.Connection) -> None:
    try:
        connection.execute("CREATE EXTENSION citext")
    except psycopg.errors.FeatureNotSupported:
        pytest.skip("this PostgreSQL comes without citext")
    connection.execute("CREATE TABLE t (v citext); INSERT INTO t VALUES ('Wanjiku')")
    before = relation(database_)
    connection.execute("UPDATE t SET v = 'wanjiku'")
    assert not same_content(before, relation(database_))


def test_neither_order_of_rows_nor_of_columns_nor_dropped_columns_matter(
    database_: str, connection: psycopg.Connection
) -> None:
    connection.execute("CREATE TABLE t (a int, b text, c numeric); CREATE TABLE u (c numeric, gone int, b text, a int)")
    connection.execute("INSERT INTO t SELECT i, 'x' || i, i / 3.0 FROM generate_series(1, 50) AS i")
    connection.execute("INSERT INTO u SELECT c, 7, b, a FROM t ORDER BY a DESC")
    connection.execute("ALTER TABLE u DROP COLUMN gone")
    assert same_content(relation(database_), relation(database_, "public.u"))
    connection.execute(["UPDATE t SET a = a", " VACUUM FULL t"][0])
    connection.execute("VACUUM FULL t")
    assert same_content(relation(database_), relation(database_, "public.u"))


def test_values_swapped_between_rows_or_columns_matter(database_: str, connection: psycopg.Connection) -> None:
    connection.execute("CREATE TABLE t (id int, a int, b int); INSERT INTO t VALUES (1, 10, 20), (2, 30, 40)")
    before = relation(database_)
    connection.execute("UPDATE t SET a = CASE id WHEN 1 THEN 30 ELSE 10 END")
    assert not same_content(before, relation(database_))
    connection.execute("UPDATE t SET a = CASE id WHEN 1 THEN 20 ELSE 30 END, b = CASE id WHEN 1 THEN 10 ELSE 40 END")
    assert not same_content(before, relation(database_))


def test_a_column_under_another_name_is_another_content(database_: str, connection: psycopg.Connection) -> None:
    """Names decide the order in which columns are hashed, so that b, a is not a, b."""
    connection.execute("CREATE TABLE t (a int, b int); INSERT INTO t VALUES (1, 2)")
    before = relation(database_)
    connection.execute("ALTER TABLE t RENAME a TO c")
    assert not same_content(before, relation(database_))


def test_null_empty_and_doubled_rows(database_: str, connection: psycopg.Connection) -> None:
    connection.execute("CREATE TABLE t (v text); INSERT INTO t VALUES (NULL)")
    null = relation(database_)
    connection.execute("UPDATE t SET v = ''")
    empty = relation(database_)
    assert not same_content(null, empty)
    connection.execute("INSERT INTO t VALUES ('')")
    assert relation(database_).rows == 2
    assert relation(database_).content_hash != empty.content_hash
    connection.execute("TRUNCATE t")
    assert (relation(database_).rows, relation(database_).content_hash) == (0, "0")


def test_a_table_without_columns_counts_its_rows(database_: str, connection: psycopg.Connection) -> None:
    connection.execute("CREATE TABLE t (); INSERT INTO t DEFAULT VALUES; INSERT INTO t DEFAULT VALUES")
    assert relation(database_).rows == 2


@pytest.mark.parametrize("name", ['Odd "name"', "100%", "{braces}", "per%sent", "O'Brien; DROP", "ümlaut", "a.b"])
def test_any_name(database_: str, connection: psycopg.Connection, name: str) -> None:
    table, column = sql.Identifier("test", name), sql.Identifier(name)
    connection.execute("CREATE SCHEMA test")
    connection.execute(sql.SQL("CREATE TABLE {} ({} numeric)").format(table, column))
    connection.execute(sql.SQL("INSERT INTO {} VALUES (1.0)").format(table))
    before = relation(database_, f"test.{name}")
    connection.execute(sql.SQL("UPDATE {} SET {} = 1.00").format(table, column))
    assert not same_content(before, relation(database_, f"test.{name}"))


def test_partitions_and_children_hold_their_own_rows(database_: str, connection: psycopg.Connection) -> None:
    connection.execute(
        "CREATE SCHEMA test; SET search_path = test;"
        "CREATE TABLE p (id int, at date) PARTITION BY RANGE (at);"
        "CREATE TABLE p_1 PARTITION OF p FOR VALUES FROM ('2026-01-01') TO ('2026-02-01');"
        "CREATE TABLE p_2 PARTITION OF p FOR VALUES FROM ('2026-02-01') TO ('2026-03-01');"
        "CREATE TABLE parent (id int); CREATE TABLE child () INHERITS (parent);"
        "INSERT INTO p VALUES (1, '2026-01-05'), (2, '2026-02-05'), (3, '2026-02-06');"
        "INSERT INTO parent VALUES (1); INSERT INTO child VALUES (2), (3)"
    )
    found = by_name(database_)
    assert {name: each.rows for name, each in found.items()} == {
        "p": None,
        "p_1": 1,
        "p_2": 2,
        "parent": 1,
        "child": 2,
    }
    assert (found["p"].kind, found["p"].content_hash) == ("partitioned table", None)
    assert "partitions" in found["p"].note
    connection.execute("UPDATE p SET at = '2026-01-06' WHERE id = 3")
    moved = by_name(database_)
    assert (moved["p_1"].rows, moved["p_2"].rows) == (2, 1)


def test_unlogged_tables_are_measured_on_a_primary_and_left_out_on_a_standby(
    database_: str, connection: psycopg.Connection
) -> None:
    connection.execute("CREATE UNLOGGED TABLE t (a int); INSERT INTO t VALUES (1)")
    assert relation(database_).rows == 1
    with psycopg.connect(database_) as session:
        content.pin_settings(session)
        standby = truth.measure(
            session, content.list_relations(session), truth.list_sequences(session), skip_unlogged=True, report=quiet
        )
    assert (standby.relations[0].rows, standby.relations[0].content_hash) == (None, None)
    assert "unlogged" in standby.relations[0].note


def test_materialised_views_and_foreign_tables_are_said_to_be_definition_only(
    database_: str, connection: psycopg.Connection
) -> None:
    connection.execute(
        "CREATE SCHEMA test; CREATE MATERIALIZED VIEW test.full AS SELECT 1 AS one;"
        "CREATE MATERIALIZED VIEW test.bare AS SELECT 1 AS one WITH NO DATA"
    )
    notes = {each.name: (each.kind, each.rows, each.note) for each in measured(database_).relations}
    assert notes["full"][:2] == notes["bare"][:2] == ("materialised view", None)
    assert "refreshed by the restore" in notes["full"][2]
    assert "not populated" in notes["bare"][2]


def test_temporary_tables_views_and_system_tables_are_no_relations_of_ours(
    database_: str, connection: psycopg.Connection
) -> None:
    connection.execute("CREATE TEMP TABLE scratch (a int); CREATE VIEW v AS SELECT 1")
    assert measured(database_).relations == []
    connection.execute("DROP TABLE scratch")


def test_generated_and_identity_columns(database_: str, connection: psycopg.Connection) -> None:
    connection.execute(
        "CREATE TABLE t (id int GENERATED ALWAYS AS IDENTITY, a int, twice int GENERATED ALWAYS AS (a * 2) STORED);"
        "INSERT INTO t (a) VALUES (1), (2)"
    )
    before = relation(database_)
    connection.execute("UPDATE t SET a = 3 WHERE a = 2")
    assert not same_content(before, relation(database_))


def test_large_objects_count_length_and_every_byte(database_: str, connection: psycopg.Connection) -> None:
    assert measured(database_).large_objects == LargeObjects(count=0, size_bytes=0, content_hash="0")
    connection.execute("SELECT lo_from_bytea(70001, decode(repeat('ab', 2500000), 'hex')), lo_create(70002)")
    before = measured(database_).large_objects
    assert (before.count, before.size_bytes) == (2, 2_500_000)
    connection.execute("SELECT lo_put(70001, 2400000, '\\x00')")
    changed = measured(database_).large_objects
    assert (changed.count, changed.size_bytes) == (2, 2_500_000)
    assert changed.content_hash != before.content_hash
    connection.execute("SELECT lo_put(70001, 2400000, '\\xab')")
    assert measured(database_).large_objects == before
    connection.execute("SELECT lo_unlink(70002)")
    assert measured(database_).large_objects.content_hash != before.content_hash


# What a role, a database or a server may be set to, and what must not make a difference.
SETTINGS = {
    "TimeZone": "Africa/Nairobi",
    "DateStyle": "German, DMY",
    "IntervalStyle": "sql_standard",
    "bytea_output": "escape",
    "extra_float_digits": "-5",
    "search_path": "test, public",
    "lc_monetary": "en_US.UTF-8",
    "xmlbinary": "hex",
    "client_encoding": "LATIN1",
}


def test_settings_of_role_and_database_make_no_difference(
    database_: str, connection: psycopg.Connection, cluster: Cluster
) -> None:
    connection.execute(
        "CREATE SCHEMA test; CREATE TABLE test.hidden (a int); CREATE TYPE test.odd_mood AS ENUM ('fröhlich');"
        "CREATE TABLE t (at timestamptz[], span interval[], bytes bytea[], f float8[], m money[], r regclass,"
        " n json, e test.odd_mood);"
        "INSERT INTO t VALUES ('{2026-01-28 02:00+03}', '{1 day 2 hours}', '{\"\\\\x00ff\"}', '{0.1}', '{1234.5}',"
        " 'test.hidden', '{\"a\": \"Müller\"}', 'fröhlich')"
    )
    before = relation(database_)
    connection.execute("CREATE ROLE other_settings LOGIN SUPERUSER PASSWORD 'x'")
    try:
        for name, value in SETTINGS.items():
            try:
                with connection.transaction():
                    connection.execute(sql.SQL("SET LOCAL {} = {}").format(sql.Identifier(name), sql.Literal(value)))
            except psycopg.errors.InvalidParameterValue:
                continue  # a locale that this machine does not have
            values = sql.SQL(", ").join(map(sql.Literal, value.split(", "))) if name == "search_path" else value
            connection.execute(
                sql.SQL("ALTER ROLE other_settings SET {} = {}").format(
                    sql.Identifier(name), values if isinstance(values, sql.Composed) else sql.Literal(values)
                )
            )
        other = cluster.conninfo("truth_test", "other_settings", "x")
        assert relation(other) == before
    finally:
        connection.execute("DROP ROLE other_settings")


def test_equal_after_dump_and_restore_although_every_oid_differs(
    database_: str, connection: psycopg.Connection, cluster: Cluster, tmp_path: Path
) -> None:
    cases = create_one_of_each(connection)
    assert len(cases) > 50
    connection.execute("SELECT lo_from_bytea(0, 'one'), lo_from_bytea(0, decode(repeat('ab', 1100000), 'hex'))")
    connection.execute(["CREATE SEQUENCE s", " SELECT nextval('s')"][0])
    connection.execute("SELECT nextval('s')")
    expected = measured(database_)
    dumped = tmp_path / "dump"
    subprocess.run([cluster.bin_dir / "pg_dump", "-Fc", "-d", database_, "-f", dumped], check=True)
    with database(cluster, "truth_restored") as restored:
        with psycopg.connect(restored, autocommit=True) as other_connection:
            # Types made before shift every OID that follows.
            other_connection.execute("CREATE TYPE mood_first AS ENUM ('happy', 'sad'); DROP TYPE mood_first")
        subprocess.run([cluster.bin_dir / "pg_restore", "-e", "-d", restored, dumped], check=True)
        oid = "SELECT 'public.mood'::regtype::oid"
        with psycopg.connect(restored) as other_connection:
            assert other_connection.execute(oid).fetchone() != connection.execute(oid).fetchone()
        assert truth.differences(expected, measured(restored)) == []


def test_extensions_roles_and_grants_are_part_of_it(database_: str, connection: psycopg.Connection) -> None:
    connection.execute("CREATE EXTENSION pgcrypto; CREATE TABLE t (a int); GRANT SELECT (a) ON t TO PUBLIC")
    found = measured(database_)
    assert {each.name for each in found.extensions} == {"pgcrypto", "plpgsql"}
    (column,) = [grant for grant in found.grants if grant.name == "column public.t.a"]
    assert (column.owner, column.privileges) == ("postgres", "PUBLIC: SELECT")
    (owner,) = [role for role in found.roles if role.name == "postgres"]
    assert "superuser" in owner.attributes
    assert not [role for role in found.roles if role.name.startswith("pg_")]


# --- differences between what was expected and what was found -------------------------------------------------------


def table(name: str = "users", rows: int | None = 3, content_hash: str | None = "9") -> RelationTruth:
    return RelationTruth(schema_name="public", name=name, kind="table", rows=rows, content_hash=content_hash)


def sequence(last_value: int | None, increment: int = 1, *, cycles: bool = False) -> SequenceTruth:
    return SequenceTruth(schema_name="public", name="s", last_value=last_value, increment=increment, cycles=cycles)


def the_truth(
    *relations: RelationTruth,
    sequences: list[SequenceTruth] | None = None,
    extensions: list[Extension] | None = None,
    large: int = 0,
) -> Truth:
    return Truth(
        hash_algorithm="hash_record_extended/1",
        relations=list(relations),
        sequences=sequences or [],
        extensions=extensions or [],
        roles=[],
        grants=[],
        large_objects=LargeObjects(count=large, size_bytes=large, content_hash=str(large)),
    )


def defined(sha256: str | None, **more: str) -> Truth:
    each = {**({"i": sha256} if sha256 else {}), "always": "0", **more}
    found = [Definition(kind="index", name=f"public.{name}", sha256=value) for name, value in each.items()]
    return the_truth().model_copy(update={"definitions": found, "definitions_form": truth.DEFINITIONS_FORM})


PGCRYPTO = Extension(name="pgcrypto", version="1.3", schema_name="public")


@pytest.mark.parametrize(
    ("expected", "found", "says"),
    [
        (the_truth(table()), the_truth(), "public.users: expected a table, found nothing"),
        (the_truth(), the_truth(table()), "public.users: expected nothing, found a table that is not in the backup"),
        (the_truth(table()), the_truth(table(rows=2)), "public.users: expected 3 rows, found 2"),
        (
            the_truth(table()),
            the_truth(table(content_hash="8")),
            "expected 3 rows with content hash 9, found the same number",
        ),
        (the_truth(table()), the_truth(table(rows=None, content_hash=None)), "public.users: expected 3 rows"),
        (the_truth(sequences=[sequence(5)]), the_truth(), "sequence public.s: expected 5 or later, found no sequence"),
        (the_truth(sequences=[sequence(5)]), the_truth(sequences=[sequence(4)]), "expected 5 or later, found 4"),
        (the_truth(sequences=[sequence(5)]), the_truth(sequences=[sequence(None)]), "5 or later, found never used"),
        (the_truth(sequences=[sequence(-5)]), the_truth(sequences=[sequence(None)]), "-5 or later, found never used"),
        (the_truth(sequences=[sequence(-5, -1)]), the_truth(sequences=[sequence(-4, -1)]), "-5 or later, found -4"),
        (
            the_truth(extensions=[PGCRYPTO]),
            the_truth(),
            "expected version 1.3 in schema public, found nothing",
        ),
        (the_truth(large=2), the_truth(large=1), "large objects: expected 2"),
        (the_truth(), the_truth(sequences=[sequence(5)]), "sequence public.s: expected nothing"),
        (defined("a"), defined(None), "index public.i: expected one, found none"),
        (defined("a"), defined("b"), "index public.i: expected the definition of the backup, found another"),
        (defined("a", other="c"), defined("a", other="c", third="d"), "index public.third: expected none"),
    ],
)
def test_each_difference_is_named(expected: Truth, found: Truth, says: str) -> None:
    (one,) = truth.differences(expected, found)
    line = str(one)
    assert says in line
    with pytest.raises(TruthMismatch) as caught:
        truth.require_equal(expected, found)
    assert line in caught.value.found


@pytest.mark.parametrize(
    ("expected", "found"),
    [
        (sequence(5), sequence(6)),
        (sequence(None), sequence(3)),
        (sequence(None), sequence(None)),
        (sequence(-5, -1), sequence(-6, -1)),
        (sequence(9, cycles=True), sequence(1, cycles=True)),
    ],
)
def test_a_sequence_may_be_ahead_of_the_snapshot_in_its_own_direction(
    expected: SequenceTruth, found: SequenceTruth
) -> None:
    assert truth.differences(the_truth(sequences=[expected]), the_truth(sequences=[found])) == []


def test_definitions_of_another_form_are_not_compared() -> None:
    assert truth.differences(the_truth(), defined("a")) == []


def test_roles_and_grants_are_compared_apart_from_the_scratch_servers_own() -> None:
    def access(attributes: str, privileges: str, *more: str) -> Truth:
        roles = [Role(name=name, attributes=attributes, member_of=["staff"]) for name in ("app", *more)]
        grants = [Grant(name="table public.users", owner="app", privileges=privileges)]
        return the_truth().model_copy(update={"roles": roles, "grants": grants})

    before = access("login", "app: SELECT")
    assert (
        truth.access_differences(before, access("login", "app: SELECT", "scratch"), ignore=frozenset({"scratch"})) == []
    )
    found = [str(one) for one in truth.access_differences(before, access("", "", "scratch"))]
    assert found == [
        "role app: expected login, member of staff, found no attributes, member of staff",
        "role scratch: expected nothing, found no attributes, member of staff",
        "grants of table public.users: expected owner app, app: SELECT, found owner app, nobody else",
    ]


def test_what_was_not_measured_is_not_compared() -> None:
    assert truth.differences(the_truth(table(rows=None, content_hash=None)), the_truth(table(rows=7))) == []


def test_the_first_ten_of_many_differences_are_named_and_the_rest_counted() -> None:
    expected = the_truth(*(table(f"t{number}") for number in range(15)))
    with pytest.raises(TruthMismatch) as caught:
        truth.require_equal(expected, the_truth())
    assert caught.value.found.count("found nothing") == 10
    assert "and 5 more" in caught.value.found
