"""The PayMe database: the same for a seed, its books balanced, its phone numbers in one column, and alive."""

import hashlib
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest

from sandbox import postgres
from sandbox.payme_db import generate

PASSWORDS = {role: f"test-{role}" for role in ("payme_owner", "payme_app", "payme_db_read", "payme_db_restore")}
TABLES = (
    "users",
    "merchants",
    "transactions",
    "mpesa_receipts",
    "statements",
    "ledger.accounts",
    "ledger.entries",
    "reporting.merchant_days",
)


def build(cluster: postgres.Cluster, seed: int = 1) -> None:
    size = generate.SIZES["test"]
    generate.create(
        cluster.conninfo(), users=size.users, transactions=size.transactions, seed=seed, passwords=PASSWORDS
    )


@pytest.fixture(scope="module")
def payme() -> Iterator[postgres.Cluster]:
    with postgres.temporary_cluster() as cluster:
        build(cluster)
        yield cluster


def connect(cluster: postgres.Cluster, role: str) -> psycopg.Connection:
    return psycopg.connect(cluster.conninfo("payme", role, PASSWORDS[role]), autocommit=True)


def ask(cluster: postgres.Cluster, query: str) -> list[tuple[Any, ...]]:
    with psycopg.connect(cluster.conninfo("payme")) as conn:
        return conn.execute(query).fetchall()


def digest(cluster: postgres.Cluster) -> dict[str, str]:
    with psycopg.connect(cluster.conninfo("payme")) as conn:
        digests = {}
        for table in TABLES:
            lines = sorted(line for (line,) in conn.execute(f"SELECT t::text FROM {table} AS t"))  # noqa: S608
            digests[table] = hashlib.sha256("\n".join(lines).encode()).hexdigest()
        return digests


def test_same_seed_same_data_on_every_server(payme: postgres.Cluster) -> None:
    with postgres.temporary_cluster(bin_dir=postgres.debian_bin_dir(15)) as other:
        build(other)
        assert digest(other) == digest(payme)


def test_other_seed_other_data(payme: postgres.Cluster) -> None:
    with postgres.temporary_cluster() as other:
        build(other, seed=2)
        differing = {table for table, value in digest(other).items() if value != digest(payme)[table]}
    assert differing == set(TABLES)


def test_sizes_and_canary(payme: postgres.Cluster) -> None:
    assert ask(payme, "SELECT count(*) FROM users") == [(2_000,)]
    assert ask(payme, "SELECT count(*) FROM transactions") == [(5_000,)]
    assert ask(payme, f"SELECT id FROM users WHERE phone_number = '{generate.CANARY_PHONE}'") == [(1,)]  # noqa: S608


def test_phone_numbers_and_receipts_are_those_of_the_ids(payme: postgres.Cluster) -> None:
    users = ask(payme, "SELECT id, phone_number FROM users")
    assert all(phone == generate.phone_number(user) for user, phone in users)
    assert all(re.fullmatch(r"\+25470\d{7}", phone) for _, phone in users)
    receipts = ask(payme, "SELECT transaction_id, receipt_no FROM mpesa_receipts")
    assert len(receipts) > 4_000
    assert all(receipt == generate.receipt_no(transaction) for transaction, receipt in receipts)


def test_user_phone_numbers_stand_in_one_column_only(payme: postgres.Cluster) -> None:
    dump = subprocess.run(
        [payme.bin_dir / "pg_dump", "-d", payme.conninfo("payme")], capture_output=True, text=True, check=True
    ).stdout
    assert dump.count(generate.PHONE_PREFIX) == 2_000
    assert dump.count(generate.CANARY_PHONE) == 1


def test_books_balance(payme: postgres.Cluster) -> None:
    assert ask(payme, "SELECT sum(amount) FROM ledger.entries")[0][0] == 0
    unbalanced = "SELECT transaction_id FROM ledger.entries GROUP BY 1 HAVING sum(amount) <> 0 OR count(*) <> 2"
    assert ask(payme, unbalanced) == []
    completed = ask(payme, "SELECT count(*) FROM transactions WHERE status = 'completed'")
    assert ask(payme, "SELECT count(DISTINCT transaction_id) FROM ledger.entries") == completed
    with connect(payme, "payme_app") as app, pytest.raises(psycopg.errors.CheckViolation, match="add up to 0"):
        app.execute("INSERT INTO ledger.entries SELECT max(id), 1, now(), 5 FROM transactions")


def test_has_what_a_backup_has_to_cope_with(payme: postgres.Cluster) -> None:
    kinds = ask(payme, "SELECT DISTINCT relkind::text FROM pg_class WHERE relnamespace::regnamespace::text !~ '^pg_'")
    assert {kind for (kind,) in kinds} >= {"r", "p", "m", "v", "i", "S"}
    assert ask(payme, "SELECT count(*), count(DISTINCT lomowner) FROM pg_largeobject_metadata") == [(20, 1)]
    assert ask(payme, "SELECT relname FROM pg_class WHERE relrowsecurity") == [("statements",)]
    assert ask(payme, "SELECT relname FROM pg_class WHERE relpersistence = 'u' AND relkind = 'r'") == [("rate_limits",)]
    owners = "SELECT DISTINCT relowner::regrole::text FROM pg_class WHERE relnamespace::regnamespace::text !~ '^pg_'"
    assert {owner for (owner,) in ask(payme, owners)} >= {"payme_owner", "payme_ledger", "payme_reporting"}
    assert ask(payme, "SELECT count(*) FROM pg_attribute WHERE attidentity <> ''")[0][0] >= 3
    assert ask(payme, "SELECT attname FROM pg_attribute WHERE attgenerated = 's'") == [("net_amount",)]
    assert ask(payme, "SELECT count(*) FROM pg_inherits WHERE inhparent = 'ledger.entries'::regclass") == [(7,)]


def test_roles_may_do_what_they_are_for_and_no_more(payme: postgres.Cluster) -> None:
    with connect(payme, "payme_db_read") as reader:
        assert reader.execute("SELECT count(*) > 400 FROM statements").fetchone() == (True,)
        assert reader.execute("SELECT length(lo_get(pdf)) > 0 FROM statements WHERE id = 1").fetchone() == (True,)
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            reader.execute("UPDATE users SET full_name = 'x' WHERE id = 1")
    with connect(payme, "payme_app") as app:
        app.execute("SELECT count(*) FROM users")
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            app.execute("DELETE FROM ledger.entries")
    with psycopg.connect(
        payme.conninfo("postgres", "payme_db_restore", PASSWORDS["payme_db_restore"]), autocommit=True
    ) as restore:
        restore.execute("CREATE DATABASE restored OWNER payme_owner TEMPLATE template0")
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            restore.execute("CREATE ROLE another")
        restore.execute("DROP DATABASE restored")


def test_create_leaves_a_database_alone_and_sets_passwords(payme: postgres.Cluster) -> None:
    before = digest(payme)
    generate.create(payme.conninfo(), users=5, transactions=5, seed=9, passwords={"payme_app": "new"})
    psycopg.connect(payme.conninfo("payme", "payme_app", "new")).close()
    generate.create(payme.conninfo(), users=5, transactions=5, seed=9, passwords=PASSWORDS)
    assert digest(payme) == before


def test_load_that_was_interrupted_starts_anew(payme: postgres.Cluster) -> None:
    with postgres.temporary_cluster() as cluster, psycopg.connect(cluster.conninfo(), autocommit=True) as conn:
        conn.execute("CREATE DATABASE payme_unfinished")
        build(cluster)
        assert digest(cluster) == digest(payme)


class Traffic:
    """`python -m sandbox.payme_db.traffic` on a cluster, its output in a file."""

    def __init__(self, cluster: postgres.Cluster, folder: Path) -> None:
        self.output = folder / "traffic.log"
        services = folder / "services.conf"
        services.write_text(
            f"[payme_app]\nhost=127.0.0.1\nport={cluster.port}\ndbname=payme\nuser=payme_app\n"
            f"password={PASSWORDS['payme_app']}\n"
        )
        with self.output.open("wb") as output:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "sandbox.payme_db.traffic", "--service", "payme_app"],
                cwd=postgres.PROJECT,
                env={**os.environ, "PGSERVICEFILE": str(services)},
                stdout=output,
                stderr=subprocess.STDOUT,
            )


def await_transactions(cluster: postgres.Cluster, more_than: int) -> int:
    deadline = time.monotonic() + 30
    while True:
        (count,) = ask(cluster, "SELECT count(*) FROM transactions")[0]
        if count > more_than:
            return int(count)
        assert time.monotonic() < deadline, "nothing is written"
        time.sleep(0.05)


def test_traffic_writes_survives_a_restart_and_prints_no_row(tmp_path: Path) -> None:
    with postgres.temporary_cluster() as cluster:
        build(cluster)
        traffic = Traffic(cluster, tmp_path)
        try:
            await_transactions(cluster, 5_030)
            postgres.kill(cluster)
            postgres.start(
                cluster.data_dir,
                bin_dir=cluster.bin_dir,
                port=cluster.port,
                password=cluster.password,
                settings=postgres.TEST_SETTINGS,
            )
            before = await_transactions(cluster, 5_030)
            await_transactions(cluster, before + 30)
            # A write that fails on a row does not end the traffic and does not show the row.
            with psycopg.connect(cluster.conninfo("payme")) as conn:
                conn.execute(
                    "ALTER TABLE users ADD CONSTRAINT nobody_new CHECK (full_name <> 'New Customer') NOT VALID"
                )
            deadline = time.monotonic() + 30
            while "CheckViolation 23514" not in traffic.output.read_text():
                assert time.monotonic() < deadline
                time.sleep(0.05)
            before = await_transactions(cluster, 0)
            await_transactions(cluster, before + 5)
        finally:
            traffic.process.send_signal(signal.SIGTERM)
            code = traffic.process.wait(10)
        assert code == 0
        output, log = traffic.output.read_text(), cluster.data_dir.with_name("data.log").read_text()
        assert output.count("connected") == 2
        assert generate.PHONE_PREFIX not in output + log
        assert ask(cluster, "SELECT sum(amount) FROM ledger.entries")[0][0] == 0
        assert ask(cluster, "SELECT count(*) FROM ledger.entries_default")[0][0] > 0
        assert ask(cluster, "SELECT 1 FROM ledger.entries GROUP BY transaction_id HAVING sum(amount) <> 0") == []
