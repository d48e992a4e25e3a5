"""The database moves on while it is dumped: manifest and archive are of one instant, every time."""

import itertools
import random
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import psycopg
import pytest

from payme_ops.backup import dump, restore, truth
from payme_ops.backup.dump import Dumped, Source
from payme_ops.foundation import settings
from sandbox.payme_db.generate import phone_number
from tests.support.installation import Installation, quiet
from tests.support.ops import database
from tests.support.traffic import repeated

pytestmark = pytest.mark.long

ROUNDS = 20
_numbers = itertools.count(1)


@pytest.fixture
def race(installation: Installation) -> Iterator[str]:
    """A small database that can be dumped and restored in half a second."""
    with database(installation.site.cluster, "race") as conninfo:
        with psycopg.connect(conninfo, autocommit=True) as connection:
            connection.execute(
                "CREATE TABLE emptied (id bigint GENERATED ALWAYS AS IDENTITY, v text);"
                "CREATE TABLE emptied_too (id bigint, v numeric); CREATE TABLE grows (id bigserial, v text);"
                "INSERT INTO emptied (v) SELECT md5(i::text) FROM generate_series(1, 3000) AS i;"
                "INSERT INTO emptied_too SELECT i, i / 7.0 FROM generate_series(1, 3000) AS i"
            )
        installation.connect_as("payme_db_read", dbname="race")
        yield conninfo


def truncate(connection: psycopg.Connection) -> None:
    """Empty two tables and fill them with something else, all in one transaction: never empty for who looks."""
    connection.execute("SET LOCAL lock_timeout = '100ms'")
    connection.execute("TRUNCATE emptied, emptied_too RESTART IDENTITY")
    rows = random.randint(500, 3000)  # noqa: S311
    connection.execute(
        "INSERT INTO emptied (v) SELECT md5((i * %s)::text) FROM generate_series(1, %s) AS i", [rows, rows]
    )
    connection.execute("INSERT INTO emptied_too SELECT i, i / 3.0 FROM generate_series(1, %s) AS i", [rows])


def append(connection: psycopg.Connection) -> None:
    connection.execute("INSERT INTO grows (v) VALUES (md5(random()::text))")


@pytest.mark.usefixtures("impatient")
def test_truncate_racing_the_snapshot(installation: Installation, race: str, tmp_path: Path) -> None:
    """pg_dump alone finds an empty table now and then, and ends with 0: TRUNCATE came between snapshot and lock."""
    bin_dir, archive = installation.site.cluster.bin_dir, tmp_path / "archive"
    source = Source("service=payme_db_read", settings.load().postgres.client_dirs)

    def consume(chunks: Iterator[bytes], _: Dumped) -> None:
        with archive.open("wb") as file:
            file.writelines(chunks)

    sizes = set()
    with repeated(race, truncate, pause=0.02) as truncated, repeated(race, append, pause=0.005) as appended:
        for number in range(ROUNDS):
            before = len(truncated)
            dumped = dump.dump(source, f"payme_ops:dump:race:{number}", consume, report=quiet)
            assert dumped.truth is not None
            sizes.add(next(each.rows for each in dumped.truth.relations if each.name == "emptied"))
            with database(installation.site.cluster, "race_restored") as restored:
                subprocess.run([bin_dir / "pg_restore", "--exit-on-error", "-d", restored, archive], check=True)
                found = restore.measure(restored, report=quiet)
            assert truth.differences(dumped.truth, found) == [], f"round {number}"
            assert len(truncated) > before, "nothing raced"
    assert len(appended) > 5 * ROUNDS
    assert 0 not in sizes, "a TRUNCATE came between snapshot and lock: never empty for who looks, but for a snapshot"
    assert len(sizes) > ROUNDS // 2, "the tables hardly changed between the rounds"
    assert installation.sessions() == []


def test_writers_throughout_and_no_false_alarm(installation: Installation) -> None:
    """Of every kind: rows, sequences, large objects. Each restore equals its manifest while the source has moved on."""

    def users(connection: psycopg.Connection) -> None:
        number = 5_000_000 + next(_numbers)
        connection.execute(
            "INSERT INTO users (id, public_id, phone_number, full_name) VALUES (%s, gen_random_uuid(), %s, 'Writer')",
            [number, phone_number(number)],
        )
        connection.execute("SELECT nextval('users_id_seq')")
        connection.execute("UPDATE users SET preferences = jsonb_build_object('n', %s::int) WHERE id = 1", [number])
        connection.execute("DELETE FROM users WHERE id = %s", [number - 3])

    def objects(connection: psycopg.Connection) -> None:
        connection.execute("SELECT lo_from_bytea(0, gen_random_bytes(1000))")
        connection.execute(
            "SELECT lo_unlink(oid) FROM (SELECT oid FROM pg_largeobject_metadata"
            " WHERE NOT EXISTS (SELECT FROM statements WHERE pdf = oid) ORDER BY oid LIMIT 1) AS oldest"
        )

    conninfo = installation.site.cluster.conninfo("payme")
    with ExitStack() as stack:
        stack.callback(clean_up, installation)
        counts = [stack.enter_context(repeated(conninfo, work, pause=0.005)) for work in (users, objects)]
        with installation.site.admin() as admin:
            admin.execute("SET ROLE payme_owner")
            for number in range(3):
                before = [len(count) for count in counts]
                done = installation.back_up()
                name = f"restored_live_{number}"
                installation.restore(done, name)
                with installation.site.admin("postgres") as maintenance:
                    maintenance.execute(f"DROP DATABASE {name} WITH (FORCE)")
                assert all(len(count) > former for count, former in zip(counts, before, strict=True))
                live = restore.measure(conninfo, report=quiet)
                assert truth.differences(done.truth, live) != [], "the source stood still: the test shows nothing"


def clean_up(installation: Installation) -> None:
    with installation.site.admin() as admin:
        admin.execute("DELETE FROM users WHERE full_name = 'Writer'")
        admin.execute(
            "SELECT lo_unlink(oid) FROM pg_largeobject_metadata"
            " WHERE NOT EXISTS (SELECT FROM statements WHERE pdf = oid)"
        )
