"""A swap carries over what belongs to the database, and whatever ends it, the name leads to one whole database."""

import itertools
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta

import psycopg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from psycopg import sql

from payme_ops.backup import swap
from payme_ops.backup.swap import Swapped
from payme_ops.foundation import lease
from payme_ops.foundation.errors import DatabaseError, LeaseHeld, NotFound, PaymeOpsError
from sandbox.postgres import PROJECT
from tests.support.installation import quiet
from tests.support.site import Site
from tests.support.waiting import eventually

RUN = "backup_restore/manual"
_numbers = itertools.count(1)

# Values that are hard to write down again: quotes, lists of names, a name with a point, an empty text.
SETTINGS = """
ALTER DATABASE {name} SET timezone TO 'Africa/Nairobi';
ALTER DATABASE {name} SET search_path TO "$user", public, "odd ""name, with comma";
ALTER DATABASE {name} SET payme.greeting TO 'it''s "quoted", with = and comma';
ALTER DATABASE {name} SET log_statement TO 'none';
ALTER DATABASE {name} CONNECTION LIMIT 25;
ALTER ROLE payme_app IN DATABASE {name} SET search_path TO '';
ALTER ROLE payme_app IN DATABASE {name} SET statement_timeout TO '30s';
REVOKE ALL ON DATABASE {name} FROM PUBLIC;
GRANT CONNECT ON DATABASE {name} TO payme_app;
GRANT CONNECT, TEMPORARY ON DATABASE {name} TO payme_reporting WITH GRANT OPTION;
COMMENT ON DATABASE {name} IS 'the shop''s own words';
"""


@dataclass(frozen=True)
class Shop:
    """A database in use, and beside it a restored one."""

    site: Site
    target: str
    run: str

    @property
    def beside(self) -> str:
        return swap.beside_name(self.target, self.run)

    @property
    def restorer(self) -> str:
        return self.site.world.conninfo("payme_db_restore", "postgres")

    @property
    def ops(self) -> str:
        return self.site.world.conninfo("payme_ops", "payme_ops")

    def put_in_place(self) -> Swapped:
        return swap.swap(
            self.ops,
            self.restorer,
            environment="test",
            target=self.target,
            beside=self.beside,
            run=self.run,
            report=quiet,
        )

    def seen_by_app(self) -> str:
        with psycopg.connect(self.site.world.conninfo("payme_app", self.target)) as connection:
            row = connection.execute("SELECT content FROM public.which").fetchone()
        assert row
        return str(row[0])

    def search_paths(self) -> list[str]:
        """As each role's sessions have it."""
        found = []
        for role in ("payme_app", "payme_owner"):
            with psycopg.connect(self.site.world.conninfo(role, self.target)) as connection:
                row = connection.execute("SHOW search_path").fetchone()
            assert row
            found.append(row[0])
        return found

    def facts(self, name: str = "") -> swap.Facts:
        with self.site.admin("postgres") as admin:
            found = swap.facts(admin, name or self.target)
        assert found
        return found

    def databases(self) -> set[str]:
        with self.site.admin("postgres") as admin:
            rows = admin.execute("SELECT datname FROM pg_database WHERE datname LIKE %s", [f"{self.target}%"])
            return {row[0] for row in rows}


def _make(site: Site, name: str, content: str) -> None:
    with site.admin("postgres") as admin:
        admin.execute(sql.SQL("CREATE DATABASE {} OWNER payme_owner").format(sql.Identifier(name)))
    with site.admin(name) as admin:
        admin.execute("CREATE TABLE public.which (content text)")
        admin.execute("INSERT INTO public.which VALUES (%s)", [content])
        admin.execute("GRANT SELECT ON public.which TO payme_app")


@pytest.fixture
def shop(each_site: Site) -> Iterator[Shop]:
    target = f"shop {next(_numbers)}"
    made = Shop(each_site, target, f"{RUN}/{target}")
    try:
        _make(each_site, target, "old")
        _make(each_site, made.beside, "restored")
        with each_site.admin("postgres") as admin:
            admin.execute(SETTINGS.format(name=f'"{target}"'))
        swap.mark_restored(made.restorer, made.beside, target=target, run=made.run, backup="a/manifest.json")
        yield made
    finally:
        with each_site.admin("postgres") as admin:
            for name in made.databases():
                admin.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(name)))


def test_the_restored_database_has_all_that_belonged_to_the_old_one(shop: Shop) -> None:
    before = shop.facts()
    paths = shop.search_paths()
    assert len(before.settings) == 6
    done = shop.put_in_place()
    assert shop.seen_by_app() == "restored"
    after = shop.facts()
    assert (after.carried, after.comment) == (before.carried, "the shop's own words")
    assert shop.databases() == {shop.target, done.replaced}
    assert shop.search_paths() == paths  # what was a list of names is one again


def test_the_old_database_is_kept_whole_and_closed(shop: Shop) -> None:
    replaced = shop.put_in_place().replaced
    with pytest.raises(psycopg.OperationalError, match="not currently accepting connections"):
        psycopg.connect(shop.site.cluster.conninfo(replaced))
    # The undo of the runbook.
    with psycopg.connect(shop.restorer, autocommit=True) as session:
        session.execute(f'ALTER DATABASE "{shop.target}" RENAME TO "{shop.target} bad"')
        session.execute(f'ALTER DATABASE "{replaced}" ALLOW_CONNECTIONS true')
        session.execute(f'ALTER DATABASE "{replaced}" RENAME TO "{shop.target}"')
    assert shop.seen_by_app() == "old"
    assert "payme_app: statement_timeout=30s" in shop.facts().settings


def test_a_second_swap_of_the_same_run_finds_the_first(shop: Shop) -> None:
    first = shop.put_in_place()
    assert shop.put_in_place() == first
    assert shop.seen_by_app() == "restored"


def test_clients_that_reconnect_all_the_time_do_not_keep_a_swap_from_ending(shop: Shop) -> None:
    stop, seen = threading.Event(), list[str]()
    conninfo = shop.site.world.conninfo("payme_app", shop.target)

    def client() -> None:
        while not stop.is_set():
            with suppress(psycopg.OperationalError), psycopg.connect(conninfo, autocommit=True) as session:
                while not stop.is_set():
                    row = session.execute("SELECT content FROM public.which").fetchone()
                    seen.append(row[0] if row else "nothing")

    clients = [threading.Thread(target=client) for _ in range(8)]
    for one in clients:
        one.start()
    try:
        eventually(lambda: len(seen) > 50, "the clients")
        shop.put_in_place()
        count = len(seen)
        eventually(lambda: len(seen) > count + 50, "the clients in the restored database")
    finally:
        stop.set()
        for one in clients:
            one.join()
    assert set(seen) == {"old", "restored"}
    assert seen[-1] == "restored"


# A statement is what the server can have done or not done: the process is killed before each one in turn.
_KILLED_BEFORE = """
import os, signal, sys, threading
import psycopg
from payme_ops.backup import swap
number, ops, restorer, target, run = int(sys.argv[1]), *sys.argv[2:]
statements = 0
original = psycopg.Connection.execute
def execute(self, query, *args, **kwargs):
    global statements
    if threading.current_thread() is threading.main_thread():
        statements += 1
        if statements == number:
            os.kill(os.getpid(), signal.SIGKILL)
    return original(self, query, *args, **kwargs)
psycopg.Connection.execute = execute
swap.swap(ops, restorer, environment="test", target=target, beside=swap.beside_name(target, run), run=run, report=print)
print("statements", statements)
"""


def _killed_before(shop: Shop, number: int) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", _KILLED_BEFORE, str(number), shop.ops, shop.restorer, shop.target, shop.run],
        env={**os.environ, "PYTHONPATH": str(PROJECT / "plugins")},
        capture_output=True,
        text=True,
        check=False,
    )


def test_killed_before_any_statement_the_name_leads_to_one_whole_database(shop: Shop) -> None:
    """One database pair is enough: what a kill leaves is what the next try begins with."""
    before, outcomes = shop.facts(), list[str]()
    for number in itertools.count(1):
        ended = _killed_before(shop, number)
        outcomes.append(shop.seen_by_app())
        assert shop.facts().carried == before.carried
        if ended.returncode == 0:
            break
        assert ended.returncode == -signal.SIGKILL, ended.stderr
    # Old until the commit and restored from then on, never something else; every statement was reached.
    assert outcomes == sorted(outcomes)
    assert set(outcomes) == {"old", "restored"}
    assert number > 20
    assert len(shop.databases()) == 2
    assert shop.put_in_place().replaced in shop.databases()


def test_a_session_that_may_not_be_ended_refuses_the_swap_and_changes_nothing(shop: Shop) -> None:
    superuser = psycopg.connect(shop.site.cluster.conninfo(shop.target))
    with superuser, pytest.raises(DatabaseError, match="being accessed by other users") as refused:
        shop.put_in_place()
    assert refused.value.sqlstate == "55006"
    assert shop.seen_by_app() == "old"
    assert shop.put_in_place().replaced


@pytest.mark.parametrize("name", ["snapshot:{}", "ddl:{}", "release:test"])
def test_no_swap_beside_a_dump_a_schema_change_or_a_release(shop: Shop, name: str) -> None:
    with lease.hold(shop.ops, name.format(shop.target), "somebody"), pytest.raises(LeaseHeld, match="somebody"):
        shop.put_in_place()
    assert shop.seen_by_app() == "old"


def test_a_restore_that_did_not_end_is_not_swapped_in(shop: Shop) -> None:
    with shop.site.admin("postgres") as admin:
        admin.execute(sql.SQL("COMMENT ON DATABASE {} IS NULL").format(sql.Identifier(shop.beside)))
    with pytest.raises(NotFound, match="there is no restored database"):
        shop.put_in_place()
    assert shop.seen_by_app() == "old"


def test_another_runs_restore_is_not_swapped_in(shop: Shop) -> None:
    swap.mark_restored(shop.restorer, shop.beside, target=shop.target, run="another", backup="a/manifest.json")
    with pytest.raises(NotFound, match="there is no restored database"):
        shop.put_in_place()


def test_a_lacking_right_is_named_before_anything_is_touched(shop: Shop) -> None:
    with shop.site.admin("postgres") as admin:
        admin.execute("REVOKE pg_signal_backend FROM payme_db_restore")
        try:
            with pytest.raises(PaymeOpsError, match="not: ends sessions"):
                shop.put_in_place()
        finally:
            admin.execute("GRANT pg_signal_backend TO payme_db_restore")
    assert shop.seen_by_app() == "old"


def test_settings_go_only_to_databases_that_are_the_callers_own(shop: Shop) -> None:
    with psycopg.connect(shop.restorer) as session, pytest.raises(psycopg.errors.InsufficientPrivilege):
        session.execute("SELECT payme_restore.copy_settings(%s, 'airflow')", [shop.target])


# What a name in a list of names, or a value, may hold; a NUL or an empty name in a list is refused by the server.
NAMES = st.lists(st.text(st.sampled_from("aZ_ $,;'\"\\\\.é"), min_size=1, max_size=8), min_size=1, max_size=4)
VALUES = st.text(st.characters(exclude_categories=["Cs", "Cc"]), max_size=20)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(path=NAMES, value=VALUES)
def test_any_setting_is_carried_over_as_it_was(shop: Shop, path: list[str], value: str) -> None:
    target, beside = sql.Identifier(shop.target), sql.Identifier(shop.beside)
    with shop.site.admin("postgres") as session:
        names = sql.SQL(", ").join(sql.Literal(name) for name in path)
        session.execute(sql.SQL("ALTER DATABASE {} SET search_path TO {}").format(target, names))
        literal = sql.Literal(value)
        session.execute(sql.SQL("ALTER DATABASE {} SET payme.words TO {}").format(target, literal))
        session.execute(sql.SQL("ALTER DATABASE {} SET payme.gone TO 'x'").format(beside))
    with psycopg.connect(shop.restorer, autocommit=True) as session:
        session.execute("SELECT payme_restore.copy_settings(%s, %s)", [shop.target, shop.beside])
    assert shop.facts(shop.beside).settings == shop.facts().settings


def test_where_the_old_database_is_gone_the_restored_one_takes_its_name(shop: Shop) -> None:
    with shop.site.admin("postgres") as admin:
        admin.execute(sql.SQL("DROP DATABASE {}").format(sql.Identifier(shop.target)))
    assert shop.put_in_place().replaced == ""
    assert shop.put_in_place().replaced == ""
    assert shop.databases() == {shop.target}
    swap.drop(shop.restorer, shop.target)  # the marker it still bears is no leave to drop it
    assert shop.databases() == {shop.target}


def test_replaced_databases_are_listed_and_dropped_when_their_time_is_over(shop: Shop) -> None:
    name = shop.put_in_place().replaced
    assert [mark.name for mark in swap.replaced(shop.restorer) if mark.target == shop.target] == [name]
    assert name not in swap.drop_replaced(shop.restorer, older_than=timedelta(days=1), report=quiet)
    assert name in swap.drop_replaced(shop.restorer, older_than=timedelta(0), report=quiet)
    assert shop.databases() == {shop.target}


def test_what_a_run_left_beside_is_dropped_when_its_time_is_over(shop: Shop) -> None:
    assert shop.beside not in swap.drop_replaced(shop.restorer, older_than=timedelta(days=1), report=quiet)
    assert shop.beside in swap.drop_replaced(shop.restorer, older_than=timedelta(0), report=quiet)
    assert shop.databases() == {shop.target}


def test_only_what_a_restore_made_is_dropped(shop: Shop) -> None:
    with shop.site.admin("postgres") as admin:
        admin.execute(sql.SQL("COMMENT ON DATABASE {} IS 'payme-ops {{not json'").format(sql.Identifier(shop.beside)))
    swap.drop(shop.restorer, shop.beside)
    assert shop.beside in shop.databases()


def test_names_fit_whatever_the_targets_length() -> None:
    assert len(swap.beside_name("x" * 63, RUN)) <= 63
    assert swap.beside_name("payme", RUN) == swap.beside_name("payme", RUN) != swap.beside_name("payme", "other")
