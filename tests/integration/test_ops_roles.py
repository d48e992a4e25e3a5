"""What a worker's role may do in the ops database: its work, and no answer in place of a person."""

import re
import runpy
from collections.abc import Iterator
from dataclasses import dataclass
from types import SimpleNamespace

import psycopg
import pytest

from payme_ops.foundation import approvals, evidence, lease, opsdb
from payme_ops.foundation.approvals import Approval
from payme_ops.foundation.errors import DatabaseError
from payme_ops.foundation.evidence import passed
from payme_ops.foundation.sql import SQL_DIR
from sandbox import postgres

# By its path: a package of the name `docker` is another one.
init = SimpleNamespace(**runpy.run_path(str(postgres.PROJECT / "docker" / "init.py")))
OWNER = "payme_ops"
WORKER, RESTORE, RELEASE = WORKERS = opsdb.WORKERS
PASSWORD = "not a secret"
# Files that only the owner runs.
OWNERS = re.compile(r"\d{3}_|grants")
WRITES = re.compile(r"(INSERT INTO|UPDATE|DELETE FROM) ops\.(\w+)|(DO UPDATE)|(FOR UPDATE)")


@dataclass(frozen=True)
class Ops:
    """The ops database of one host, as each of its roles."""

    cluster: postgres.Cluster

    def as_(self, role: str) -> str:
        return self.cluster.conninfo(OWNER, role, PASSWORD)

    def asked(self, run: str, gate: str, role: str = OWNER) -> None:
        approvals.ask(self.as_(role), run=run, gate=gate, digest="d", requested_by="oncall")

    def answered(self, run: str, gate: str, role: str) -> Approval:
        found = approvals.answer(
            self.as_(role), run=run, gate=gate, choice="Approve", responder="lead", reason="it is well"
        )
        assert found == approvals.latest(self.as_(OWNER), run=run, gate=gate)
        return found

    def refuses(self, role: str, statement: str) -> bool:
        with psycopg.connect(self.as_(role)) as session:
            try:
                session.execute(statement)
            except psycopg.errors.InsufficientPrivilege:
                return True
        return False


@pytest.fixture(scope="module")
def ops() -> Iterator[Ops]:
    with postgres.temporary_cluster() as cluster:
        with psycopg.connect(cluster.conninfo(), autocommit=True) as server:
            init.roles_and_databases(server, dict.fromkeys((*init.OWNERS, *WORKERS), PASSWORD))
        made = Ops(cluster)
        assert opsdb.migrate(made.as_(OWNER))
        opsdb.migrate(made.as_(OWNER))  # an upgrade: it gives the same again
        yield made


def written() -> dict[tuple[str, str], str]:
    """What the workers' SQL does to which table, and a file that does it."""
    found = {}
    for path in SQL_DIR.rglob("*.sql"):
        if path.parent.name == "ops" and OWNERS.match(path.name):
            continue
        table = ""
        for verb, named, on_conflict, locks in WRITES.findall(" ".join(path.read_text().split())):
            table = named or table
            if table:
                found[table, "UPDATE" if on_conflict or locks else verb.split()[0]] = path.name
    return found


def test_a_worker_may_write_what_its_sql_writes_and_nothing_else(ops: Ops) -> None:
    with psycopg.connect(ops.as_(OWNER)) as session:
        given = session.execute(
            "SELECT table_name, privilege_type FROM information_schema.table_privileges"
            " WHERE grantee = %s AND privilege_type <> 'SELECT'",
            [WORKER],
        ).fetchall()
    needed = {one for one in written() if one[0] != "approvals"}
    assert len(needed) > 15
    assert set(given) == needed


@pytest.mark.parametrize("role", [WORKER, RESTORE, RELEASE])
def test_none_of_them_changes_what_was_found_or_answered_or_the_schema(ops: Ops, role: str) -> None:
    for statement in (
        "UPDATE ops.evidence SET verdict = 'pass'",
        "DELETE FROM ops.evidence",
        "DELETE FROM ops.approvals",
        "UPDATE ops.approvals SET digest = 'other'",
        "TRUNCATE ops.alerts",
        "ALTER TABLE ops.approvals DISABLE ROW LEVEL SECURITY",
        "DROP POLICY ask ON ops.approvals",
        "CREATE TABLE ops.own (x int)",
        "CREATE SCHEMA own",
        f"SET ROLE {OWNER}",
        *(f"SET ROLE {other}" for other in WORKERS if other not in (role, WORKER)),
    ):
        assert ops.refuses(role, statement), statement


@pytest.mark.parametrize("run", ["backup_restore/one", "phone_encryption/one", "release/production-1"])
def test_a_worker_can_neither_ask_nor_answer(ops: Ops, run: str) -> None:
    gate = "approve_swap"
    ops.asked(run, gate)
    with pytest.raises(DatabaseError, match="permission denied"):
        ops.asked(run, gate, WORKER)
    with pytest.raises(DatabaseError, match="permission denied"):
        ops.answered(run, gate, WORKER)
    found = approvals.latest(ops.as_(WORKER), run=run, gate=gate)
    assert found
    assert found.choice is None


@pytest.mark.parametrize("role", [RESTORE, RELEASE])
def test_what_asks_for_releases_answers_for_nothing_else(ops: Ops, role: str) -> None:
    run, gate = f"backup_restore/{role}", "migrations_tested"
    with pytest.raises(DatabaseError, match="row-level security"):
        ops.asked(run, gate, role)
    ops.asked(run, gate)
    assert ops.answered(run, gate, role).choice is None
    # Nor does it move its own answer there.
    assert ops.refuses(role, "UPDATE ops.approvals SET run = 'backup_restore/one'")


@pytest.mark.parametrize(
    ("role", "gate", "may"),
    [
        (RELEASE, "go_no_go", True),
        (RELEASE, "migrations_tested", True),
        (RESTORE, "migrations_tested", True),
        (RESTORE, "backup_scheduled", True),
        (RESTORE, "go_no_go", False),
    ],
)
def test_who_asks_for_an_item_of_a_release(ops: Ops, role: str, gate: str, may: bool) -> None:
    run = f"release/of-{role}"
    if may:
        ops.asked(run, gate, role)
        assert ops.answered(run, gate, role).choice == "Approve"
        return
    with pytest.raises(DatabaseError, match="row-level security"):
        ops.asked(run, gate, role)
    ops.asked(run, gate)
    assert ops.answered(run, gate, role).choice is None


@pytest.mark.parametrize("holder", [OWNER, WORKER, RESTORE, RELEASE])
def test_a_lease_that_expired_is_taken_from_whoever_has_it(ops: Ops, holder: str) -> None:
    """A session of another role: only its own or the owner may end it."""
    with lease.hold(ops.as_(holder), "snapshot:payme", "hung") as hung:
        with psycopg.connect(ops.as_(OWNER)) as session:
            session.execute("UPDATE ops.leases SET expires_at = now() - interval '1 s'")
        assert [one.holder for one in lease.held(ops.as_(WORKER))] == ["hung"]
        taker = WORKER if holder != WORKER else RELEASE
        with lease.hold(ops.as_(taker), "snapshot:payme", "next") as found:
            assert found.token == hung.token + 1


@pytest.mark.parametrize("role", [WORKER, RESTORE, RELEASE])
def test_a_worker_keeps_evidence_and_reads_it(ops: Ops, role: str) -> None:
    evidence.keep(ops.as_(role), f"backup_daily/{role}", "dump", passed({"rows": 1}), threshold="1", source="test")
    found = evidence.latest(ops.as_(WORKER), f"backup_daily/{role}", "dump")
    assert found.measured == {"rows": 1}
