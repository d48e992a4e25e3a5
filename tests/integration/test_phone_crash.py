"""The migration is struck before or in a statement, run again, and comes to what it would have come to. Here are a few
statements of each step; `make crash-matrix` takes all of them, before they begin (docs/crash-matrix.md)."""

from collections.abc import Iterator
from contextlib import closing

import pytest

from bench import crash_matrix
from bench.crash_matrix import CASES, STEPS, Ground, Row, Strike, content, difference, strike
from tests.support import phones as databases
from tests.support.site import UNTOUCHED, Site
from tests.support.strikes import Midst, strike_midst

pytestmark = pytest.mark.long


@pytest.fixture(scope="module")
def ground(site: Site) -> Iterator[Ground]:
    """Databases on the site's own server, which is killed and started again."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in site.world.env.items():
            patch.setenv(name, value)
        with databases.database(site) as phones:
            target = phones.conninfo("payme_db_migrate")
        ops = site.world.conninfo("payme_ops", "payme_ops")
        made = Ground(site.cluster, site.start_postgres, target, ops, site.world.env, UNTOUCHED)
        with closing(made):
            yield made


@pytest.mark.parametrize("name", STEPS)
def test_a_killed_task_recovers(ground: Ground, name: str) -> None:
    assert strike(ground, CASES[name], Strike.TASK, 11) == ""


@pytest.mark.long
@pytest.mark.parametrize("kind", Strike)
@pytest.mark.parametrize("name", STEPS)
def test_it_recovers(ground: Ground, name: str, kind: Strike) -> None:
    for number in (2, 5, 8):
        assert strike(ground, CASES[name], kind, number) == ""


_INVALID = "SELECT FROM pg_index WHERE NOT indisvalid"
_INDEX = "CREATE UNIQUE INDEX users_phone_number_bidx_idx ON users (phone_number_bidx)"


@pytest.mark.parametrize("kind", Strike)
@pytest.mark.parametrize(
    "midst",
    [
        pytest.param(
            Midst("backfill", "WITH written AS", "SELECT FROM users WHERE id = 500 FOR UPDATE"), id="half of a batch"
        ),
        pytest.param(
            Midst("finish", "INDEX CONCURRENTLY", "LOCK TABLE users IN ROW EXCLUSIVE MODE", leaves=_INVALID),
            id="an index that waits for a writer",
        ),
        pytest.param(
            Midst(
                "finish",
                "INDEX CONCURRENTLY",
                "SET TRANSACTION ISOLATION LEVEL REPEATABLE READ; SELECT FROM users",
                leaves=_INVALID,
            ),
            id="an index that waits for a snapshot",
        ),
        pytest.param(
            Midst("finish", "VALIDATE CONSTRAINT", "LOCK TABLE users IN SHARE UPDATE EXCLUSIVE MODE", before=_INDEX),
            id="a validation",
        ),
        pytest.param(
            Midst("switch", "IN ACCESS EXCLUSIVE MODE", "LOCK TABLE users IN ACCESS SHARE MODE"),
            id="drop and rename",
        ),
    ],
)
def test_struck_in_the_middle_of_a_statement_it_recovers(ground: Ground, midst: Midst, kind: Strike) -> None:
    assert strike_midst(ground, midst, kind) == ""


def test_beyond_the_last_statement_nothing_is_struck(ground: Ground) -> None:
    assert strike(ground, CASES["expand"], Strike.TASK, 10_000) is None


@pytest.mark.parametrize(
    ("damage", "found"),
    [
        ("ALTER TABLE users ALTER phone_number_bidx SET NOT NULL", "columns"),
        ("GRANT SELECT (id) ON users TO payme_reporting", "columns"),
        ("ALTER TABLE users DROP CONSTRAINT users_phone_number_complete", "constraints"),
        ("REVOKE UPDATE ON users FROM payme_app", "relations"),
        ("DROP TRIGGER users_phone_number_stale ON users", "triggers"),
        ("DROP INDEX users_phone_number_bidx_idx", "relations, indexes"),
        ("COMMENT ON COLUMN users.phone_number IS NULL", "comments"),
        ("UPDATE users SET phone_number_bidx = '\\x00' WHERE id = 7", "numbers"),
        ("UPDATE users SET phone_number_encrypted = 'v1:k1:AA' WHERE id = 7", "numbers"),
        ("INSERT INTO payme_migration.relaxed VALUES ('public.users', true, '[]')", "what is remembered (relaxed)"),
    ],
)
def test_what_differs_is_seen(ground: Ground, damage: str, found: str) -> None:
    wanted = content(ground, ground.ready("finish"))
    with ground.copy(CASES["relax"]) as database:
        with ground.admin(database) as connection:
            connection.execute(damage.encode())
        assert difference(wanted, content(ground, database)) == found


def test_the_table_says_where_it_did_not_recover() -> None:
    rows = [Row("expand", kind, 12, []) for kind in Strike] + [Row("relax", kind, 9, ["3: it hung"]) for kind in Strike]
    text = crash_matrix.table(rows, "2026-01-28")
    assert "**struck 63 times, recovered 60 times**" in text
    assert "| relax | 8/9 | 8/9 | 8/9 |" in text
