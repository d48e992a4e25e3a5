"""Migrations of a release, found on the code host and tried there and back on a real database."""

import hashlib
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import psycopg
import pytest
from hypothesis import given
from hypothesis import strategies as st

from payme_ops.foundation.errors import IntegrityError, NotFound, Unavailable
from payme_ops.foundation.evidence import Finding, Verdict, canonical, passed, plain
from payme_ops.foundation.scrub import scrub_all
from payme_ops.release import migrations
from payme_ops.release.code_host import GitHub, Pull, Review
from payme_ops.release.migrations import BREAKPOINT, Migration
from payme_ops.release.request import Request
from sandbox import postgres
from sandbox.builds import commit_of
from sandbox.http import call
from tests.support import releases
from tests.support.installation import quiet
from tests.support.standins import StandIn, code_host_stand_in

COMMIT, PREVIOUS = commit_of("2.4.1"), commit_of("2.4.0")
REQUEST = releases.form(carries_migration=True)
CANARY = "0712345678"
SCHEMA = """
CREATE TYPE state AS ENUM ('new', 'paid');
CREATE TABLE users (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, name text NOT NULL, phone text,
                    state state NOT NULL DEFAULT 'new');
CREATE TABLE orders (id int PRIMARY KEY, user_id bigint NOT NULL REFERENCES users (id), amount numeric(12, 2) NOT NULL);
CREATE VIEW paid AS SELECT id, name FROM users WHERE state = 'paid';
CREATE FUNCTION touch() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NEW; END';
CREATE TRIGGER touch BEFORE UPDATE ON users FOR EACH ROW EXECUTE FUNCTION touch();
GRANT SELECT, INSERT ON users TO shop_app;
INSERT INTO users (name, phone) SELECT 'user ' || n, '0712345678' FROM generate_series(1, 50) AS n;
INSERT INTO orders SELECT n, n, n * 1.5 FROM generate_series(1, 50) AS n;
"""
_numbers = itertools.count(1)


@pytest.fixture(scope="module")
def cluster() -> Iterator[postgres.Cluster]:
    """A server whose roles are this module's: a rehearsal gives the owner another password."""
    with postgres.temporary_cluster() as started, psycopg.connect(started.conninfo(), autocommit=True) as admin:
        admin.execute("CREATE ROLE shop_owner NOLOGIN SUPERUSER VALID UNTIL '2020-01-01'")
        admin.execute("CREATE ROLE shop_app NOLOGIN")
        admin.execute("CREATE DATABASE shop OWNER shop_owner")
        with psycopg.connect(started.conninfo("shop"), autocommit=True) as shop:
            shop.execute("SET ROLE shop_owner")
            shop.execute(SCHEMA.encode())
        yield started


@pytest.fixture
def copy(cluster: postgres.Cluster) -> Iterator[str]:
    """The superuser's conninfo of a database of its own."""
    name = f"copy_{next(_numbers)}"
    with psycopg.connect(cluster.conninfo(), autocommit=True) as admin:
        admin.execute(f"CREATE DATABASE {name} OWNER shop_owner TEMPLATE shop")
        yield cluster.conninfo(name)
        admin.execute(f"DROP DATABASE {name} WITH (FORCE)")


def migration(up: str, down: str | None, name: str = "0010_x.sql") -> Migration:
    return Migration(name, up, down)


def rehearse(conninfo: str, *made: Migration) -> Finding:
    found = migrations.rehearse(conninfo, made, quiet)
    canonical(found.measured)
    assert scrub_all(found.measured) == found.measured  # evidence holds all of it
    assert CANARY not in plain(found.measured) + found.remedy
    assert found.measured["rollback_safe"] is (found.verdict is Verdict.PASS)
    return found


def script(*parts: str) -> str:
    return f"{BREAKPOINT}\n".join(parts)


GOOD = migration(
    script("ALTER TABLE users ADD email text;", "CREATE INDEX CONCURRENTLY users_email ON users (email);"),
    script("DROP INDEX CONCURRENTLY users_email;", "ALTER TABLE users DROP email;"),
)
TABLE = migration(  # on top of the other: it has to go first
    "CREATE TABLE notes (id int PRIMARY KEY, user_id bigint REFERENCES users (id)); GRANT SELECT ON notes TO shop_app;"
    " CREATE VIEW emails AS SELECT email FROM users;",
    "DROP VIEW emails; DROP TABLE notes;",
    "0011_notes.sql",
)


# -- there and back ---------------------------------------------------------------------------------------------


def test_up_down_and_up_again_is_a_way_back(copy: str) -> None:
    found = rehearse(copy, GOOD, TABLE)
    assert (found.verdict, found.remedy) == (Verdict.PASS, "")
    measured = found.measured
    assert (measured["role"], measured["tables"], measured["rows"]) == ("shop_owner", 2, 100)
    assert [(one["name"], one["statements"]) for one in measured["scripts"]] == [
        ("0010_x.sql", 2),
        ("0011_notes.sql", 1),
    ]
    assert measured["scripts"][0]["up"] == f"sha256 {hashlib.sha256(GOOD.up.encode()).hexdigest()}"
    assert measured["scripts"][0]["down"] == f"sha256 {hashlib.sha256((GOOD.down or '').encode()).hexdigest()}"
    assert set(measured["milliseconds"]) == {"up", "down", "up again"}
    schema = measured["schema"]
    assert schema["before"] == schema["down"] != schema["up"] == schema["up again"]


def test_it_is_done_without_a_superusers_power(copy: str, cluster: postgres.Cluster) -> None:
    """What a migration runs cannot take it back, and so runs no program on the worker."""
    takes_it = script("RESET SESSION AUTHORIZATION; RESET ROLE;", "COPY users (name) TO PROGRAM 'cat';")
    found = rehearse(copy, migration(takes_it, "SELECT 1;"))
    assert (found.verdict, found.measured["statement"]) == (Verdict.FAIL, 2)
    assert "42501" in found.measured["said"]
    with psycopg.connect(cluster.conninfo()) as admin:
        assert admin.execute("SELECT rolsuper FROM pg_roles WHERE rolname = 'shop_owner'").fetchone() == (False,)


@pytest.mark.blocks("migrations_tested")
def test_without_a_way_back_a_person_decides(copy: str) -> None:
    found = rehearse(copy, GOOD, replace(TABLE, down=None))
    assert found.verdict is Verdict.INCONCLUSIVE
    assert "0011_notes.sql" in found.remedy
    assert "0010_x.sql" not in found.remedy
    assert found.measured["scripts"][1]["down"] == "none"
    assert set(found.measured["milliseconds"]) == {"up"}


@pytest.mark.blocks("migrations_tested")
@pytest.mark.parametrize(
    ("up", "down", "left"),
    [
        ("ALTER TABLE users ADD email text;", "SELECT 1;", "column public.users.email"),
        ("ALTER TABLE users ALTER phone SET NOT NULL;", "SELECT 1;", "column public.users.phone"),
        ("ALTER TABLE users ALTER state DROP DEFAULT;", "SELECT 1;", "column public.users.state"),
        (
            "ALTER TABLE users ADD CONSTRAINT named CHECK (name <> '');",
            "ALTER TABLE users DROP CONSTRAINT named; ALTER TABLE users ADD CONSTRAINT named CHECK (name <> ' ');",
            "constraint public.users.named",
        ),
        ("CREATE INDEX i ON orders (user_id);", "SELECT 1;", "index public.i"),
        ("DROP VIEW paid;", "CREATE VIEW paid AS SELECT id, name FROM users;", "view public.paid"),
        ("DROP TRIGGER touch ON users;", "SELECT 1;", "trigger public.users.touch"),
        ("ALTER TYPE state ADD VALUE 'void';", "SELECT 1;", "type public.state"),
        (
            "CREATE OR REPLACE FUNCTION touch() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN OLD; END';",
            "SELECT 1;",
            "function public.touch()",
        ),
        ("ALTER TABLE users ENABLE ROW LEVEL SECURITY;", "SELECT 1;", "table public.users"),
        (
            "CREATE POLICY all_of_it ON users USING (true);",
            "SELECT 1;",
            "policy public.users.all_of_it",
        ),
        (  # recreated as it was, but for who may read it
            "DROP TABLE orders;",
            "CREATE TABLE orders (id int PRIMARY KEY, user_id bigint NOT NULL REFERENCES users (id),"
            " amount numeric(12, 2) NOT NULL); GRANT SELECT ON orders TO shop_app;",
            "rights table public.orders",
        ),
    ],
)
def test_a_schema_that_does_not_come_back_fails(copy: str, up: str, down: str, left: str) -> None:
    found = rehearse(copy, migration(up, down))
    assert found.verdict is Verdict.FAIL
    assert left in found.measured["not as before"]
    assert "do not lead back" in found.remedy
    assert found.measured["schema"]["before"] != found.measured["schema"]["down"]


@pytest.mark.blocks("migrations_tested")
@pytest.mark.parametrize(
    ("up", "down", "lost"),
    [
        (
            "ALTER TABLE users DROP phone CASCADE;",
            "ALTER TABLE users ADD phone text;",
            ["public.users"],
        ),
        ("UPDATE users SET name = upper(name);", "UPDATE users SET name = lower(name) || ' ';", ["public.users"]),
        ("DELETE FROM orders WHERE id > 40;", "SELECT 1;", ["public.orders"]),
        # numeric 1.50 and 1.5 are equal, and not the same
        (
            "ALTER TABLE orders ALTER amount TYPE numeric(12, 1);",
            "ALTER TABLE orders ALTER amount TYPE numeric(12, 2);",
            [],
        ),
    ],
)
def test_rows_that_do_not_come_back_fail(copy: str, up: str, down: str, lost: list[str]) -> None:
    found = rehearse(copy, migration(up, down))
    assert found.measured.get("rows not as before", []) == lost
    assert found.verdict is (Verdict.FAIL if lost else Verdict.PASS)
    assert found.measured["schema"]["before"] == found.measured["schema"]["down"]


@pytest.mark.blocks("migrations_tested")
@pytest.mark.parametrize(
    ("scripts", "failed", "said"),
    [
        ((GOOD, migration("ALTER TABLE nobody ADD x int;", "SELECT 1;", "0012.sql")), "up 0012.sql", "42P01"),
        ((migration("ALTER TABLE users ADD x int;", "ALTER TABLE users DROP y;"),), "down 0010_x.sql", "42703"),
        ((migration("BEGIN; ALTER TABLE users ADD x int;", "SELECT 1;"),), "up 0010_x.sql", "left open"),
        (
            (migration("SET statement_timeout = '50ms'; SELECT pg_sleep(60);", "SELECT 1;"),),
            "up 0010_x.sql",
            "57014",
        ),
        (  # the message holds the value
            (migration("ALTER TABLE users ALTER phone TYPE smallint USING phone::smallint;", "SELECT 1;"),),
            "up 0010_x.sql",
            "SQLSTATE 22003 NumericValueOutOfRange",
        ),
        (
            (migration("DO $$ BEGIN RAISE '%', (SELECT min(phone) FROM users); END $$;", "SELECT 1;"),),
            "up 0010_x.sql",
            "SQLSTATE P0001 RaiseException",
        ),
        (
            (
                migration(
                    "DO $$ BEGIN RAISE '%', (SELECT min(phone) FROM users) USING ERRCODE = 'ZZ001'; END $$;",
                    "SELECT 1;",
                ),
            ),
            "up 0010_x.sql",
            "SQLSTATE ZZ001",
        ),
        ((migration("COPY users FROM STDIN;", "SELECT 1;"),), "up 0010_x.sql", "COPY"),
    ],
)
def test_a_script_that_fails_is_named(copy: str, scripts: Sequence[Migration], failed: str, said: str) -> None:
    found = rehearse(copy, *scripts)
    assert found.verdict is Verdict.FAIL
    assert found.measured["failed"] == failed
    assert said in found.measured["said"]


@pytest.mark.blocks("migrations_tested")
def test_a_second_way_up_that_leads_elsewhere_fails(copy: str) -> None:
    """The first way up leaves something outside of what is compared, a large object, and the second meets it."""
    up = """DO $$ BEGIN
        IF EXISTS (SELECT FROM pg_largeobject_metadata WHERE oid = 4711) THEN ALTER TABLE users ADD second int;
        ELSE ALTER TABLE users ADD first int; PERFORM lo_create(4711); END IF;
    END $$;"""
    down = "ALTER TABLE users DROP IF EXISTS first, DROP IF EXISTS second;"
    found = rehearse(copy, migration(up, down))
    assert found.verdict is Verdict.FAIL
    assert found.measured["not as after the first"] == ["column public.users.first", "column public.users.second"]


def test_a_server_that_goes_away_is_no_verdict(copy: str) -> None:
    kills_itself = migration("SELECT pg_terminate_backend(pg_backend_pid());", "SELECT 1;")
    with pytest.raises(Unavailable):
        migrations.rehearse(copy, [kills_itself], quiet)


def test_no_room_is_no_verdict(copy: str) -> None:
    full = migration("DO $$ BEGIN RAISE 'full' USING ERRCODE = 'disk_full'; END $$;", "SELECT 1;")
    with pytest.raises(Unavailable, match="room"):
        migrations.rehearse(copy, [full], quiet)


def test_a_backup_without_a_table_is_refused(cluster: postgres.Cluster) -> None:
    with pytest.raises(NotFound, match="no table"):
        migrations.rehearse(cluster.conninfo("template1"), [GOOD], quiet)


# -- the code host ----------------------------------------------------------------------------------------------


@pytest.fixture
def server(tmp_path: Path) -> Iterator[StandIn]:
    with code_host_stand_in(tmp_path) as running:
        yield running


@pytest.fixture
def host(server: StandIn) -> GitHub:
    return GitHub(server.url, "a-token", "payme/api")


def put(server: StandIn, commit: str, **files: str) -> None:
    named = {f"drizzle/{name.replace('__', '/')}.sql": text for name, text in files.items()}
    assert call("POST", f"{server.url}/repo", {"commit": commit, "files": named})[0] == 200


def judged(host: GitHub, request: Request = REQUEST, path: str = "drizzle") -> tuple[Finding, list[Migration]]:
    given: list[Migration] = []

    def rehearsed(found: Sequence[Migration]) -> Finding:
        given.extend(found)
        return passed({"rollback_safe": True})

    return migrations.tested(host, request, path, rehearsed), given


def test_what_is_new_is_rehearsed_with_its_way_back(server: StandIn, host: GitHub) -> None:
    put(server, COMMIT, **{"0011_b": "SELECT 11;", "0010_a": "SELECT 10;", "down__0010_a": "SELECT -10;"})
    finding, given = judged(host)
    assert given == [Migration("0010_a.sql", "SELECT 10;", "SELECT -10;"), Migration("0011_b.sql", "SELECT 11;", None)]
    assert (finding.verdict, finding.measured["new"]) == (Verdict.PASS, ["0010_a.sql", "0011_b.sql"])


def test_nothing_new_is_safe_without_a_rehearsal(host: GitHub) -> None:
    finding, given = judged(host, replace(REQUEST, carries_migration=False))
    assert (finding.verdict, given) == (Verdict.PASS, [])
    assert finding.measured == {"form": "carries none", "new": [], "rollback_safe": True}


@pytest.mark.blocks("migrations_tested")
@pytest.mark.parametrize("carries", [True, False])
def test_a_form_that_disagrees_fails(server: StandIn, host: GitHub, carries: bool) -> None:
    if not carries:
        put(server, COMMIT, **{"0010_a": "SELECT 1;"})
    finding, given = judged(host, replace(REQUEST, carries_migration=carries))
    assert (finding.verdict, given) == (Verdict.FAIL, [])
    assert "disagree" in finding.remedy
    assert finding.measured["form"] == ("carries a migration" if carries else "carries none")
    assert finding.measured["rollback_safe"] is False


@pytest.mark.blocks("migrations_tested")
def test_an_applied_migration_that_has_changed_fails(server: StandIn, host: GitHub) -> None:
    put(server, PREVIOUS, **{"0001_old": "SELECT 1;", "0002_gone": "SELECT 2;", "0003_kept": "SELECT 3;"})
    put(server, COMMIT, **{"0001_old": "SELECT 1; -- better", "0003_kept": "SELECT 3;", "0010_a": "SELECT 1;"})
    with pytest.raises(IntegrityError, match=r"changed or gone: 0001_old.sql, 0002_gone.sql\."):
        judged(host)


@pytest.mark.blocks("migrations_tested")
@pytest.mark.parametrize("carries", [True, False])
def test_a_folder_that_is_not_there_is_no_pass(host: GitHub, carries: bool) -> None:
    finding, given = judged(host, replace(REQUEST, carries_migration=carries), "migrations")
    assert (finding.verdict, given) == (Verdict.FAIL if carries else Verdict.INCONCLUSIVE, [])
    assert finding.measured["rollback_safe"] is False
    assert "MIGRATIONS_PATH" in finding.remedy


@pytest.mark.parametrize("which", ["commit", "previous_commit"])
def test_a_commit_that_nobody_has_does_not_look_like_one_without_migrations(host: GitHub, which: str) -> None:
    nowhere: dict[str, Any] = {which: "e" * 40}
    with pytest.raises(IntegrityError, match="no commit eeeeeeeeeeee"):
        judged(host, replace(REQUEST, **nowhere))


@pytest.mark.parametrize("text", ["", " \n", f"\n{BREAKPOINT}\n", "SELECT 1;\0"])
def test_what_is_no_script_is_refused(server: StandIn, host: GitHub, text: str) -> None:
    put(server, COMMIT, **{"0010_a": text})
    with pytest.raises(IntegrityError, match="is no SQL script"):
        judged(host)


def test_a_service_that_is_away_is_no_verdict(server: StandIn, host: GitHub) -> None:
    server.fail(503)
    with pytest.raises(Unavailable):
        judged(host)


# -- any repository, any script ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class Memory:
    """A code host that is asked without a socket: files by commit. `cut` are files that it leaves out as too large."""

    files: dict[str, dict[str, bytes]]
    cut: frozenset[str] = frozenset()

    def exists(self, commit: str) -> bool:
        return commit in self.files

    def file(self, path: str, commit: str) -> bytes | None:
        return b"" if path in self.cut else self.files[commit].get(path)

    def directory(self, path: str, commit: str) -> dict[str, str]:
        inside = {name.removeprefix(f"{path}/"): data for name, data in self.files[commit].items()}
        return {name: _blob(data) for name, data in sorted(inside.items()) if "/" not in name}

    def pulls(self, commit: str) -> list[Pull]:
        raise NotImplementedError(commit)

    def reviews(self, pull: int) -> list[Review]:
        raise NotImplementedError(pull)

    def required_checks(self, branch: str) -> set[str]:
        raise NotImplementedError(branch)

    def checks(self, commit: str) -> dict[str, str]:
        raise NotImplementedError(commit)


def _blob(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()  # noqa: S324  # as git does


NAMES = st.sampled_from(
    [f"{number:04}_{word}{ending}" for number in range(3) for word in "ab" for ending in (".sql", "")]
)
SCRIPTS = st.text(st.characters(blacklist_categories=["Cs"], blacklist_characters="\0"), min_size=1).filter(str.strip)
FOLDER = st.dictionaries(NAMES, SCRIPTS.filter(lambda text: bool(migrations.statements(text))))


@given(before=FOLDER, more=FOLDER, down=FOLDER)
def test_exactly_what_was_not_there_is_new(before: dict[str, str], more: dict[str, str], down: dict[str, str]) -> None:
    now = {**before, **more}
    files = {f"drizzle/{name}": text.encode() for name, text in now.items()}
    files |= {f"drizzle/down/{name}": text.encode() for name, text in down.items()}
    host = Memory({PREVIOUS: {f"drizzle/{name}": text.encode() for name, text in before.items()}, COMMIT: files})
    old = {name for name in before if name.endswith(".sql")}
    changed = {name for name in old if now[name] != before[name]}
    expected = sorted(name for name in now if name.endswith(".sql") and name not in old)
    if changed or not (old or expected):
        with pytest.raises(IntegrityError if changed else NotFound) as refused:
            migrations.new_migrations(host, REQUEST, "drizzle")
        assert {name for name in now if name.endswith(".sql") and name in refused.value.found} == changed
        return
    found = migrations.new_migrations(host, REQUEST, "drizzle")
    assert [(one.name, one.up, one.down) for one in found] == [(name, now[name], down.get(name)) for name in expected]


def test_a_file_that_the_code_host_leaves_out_is_refused() -> None:
    files = {"drizzle/0010_a.sql": b"SELECT 1;", "drizzle/down/0010_a.sql": b"SELECT 2;"}
    for cut in files:
        host = Memory({PREVIOUS: {}, COMMIT: files}, frozenset({cut}))
        with pytest.raises(IntegrityError, match=f"{cut} is not the file"):
            migrations.new_migrations(host, REQUEST, "drizzle")
    host = Memory({PREVIOUS: {}, COMMIT: {"drizzle/0010_a.sql": b"SELECT '\xff';"}})
    with pytest.raises(IntegrityError, match="is no SQL script"):
        migrations.new_migrations(host, REQUEST, "drizzle")


@given(
    st.lists(SCRIPTS.map(str.strip).filter(lambda text: BREAKPOINT not in text)), st.sampled_from(["", "\n", " \r\n"])
)
def test_a_script_is_split_where_it_was_joined(parts: list[str], blank: str) -> None:
    assert migrations.statements(f"{blank}{BREAKPOINT}{blank}".join(parts)) == parts
