"""Step 2: does the application really write ciphertext and blind index? Seen by value in what it has just written."""

from dataclasses import dataclass

from payme_ops.foundation.evidence import Check, Finding, Verdict, failed, passed
from payme_ops.foundation.postgres import speaking
from payme_ops.migration.desk import MigrationDesk
from payme_ops.migration.envelope import Keys
from payme_ops.migration.judge import Row, judge
from payme_ops.migration.names import statement
from payme_ops.migration.verify import hold_snapshot, transactions_since

NEWEST = 1000  # rows looked at


@dataclass(frozen=True)
class Moment:
    """What had been written when: the transactions a snapshot saw, and the highest key."""

    point: str
    last_key: int


def moment(desk: MigrationDesk) -> Moment:
    """Now. Taken when the fleet has been found to write both."""
    with hold_snapshot(desk) as held, speaking("read the highest key"):
        query = statement(desk.names, "2_last_key.sql", **held.layout.parts(desk.names))
        row = held.connection.execute(query).fetchone()
    return Moment(held.point, row[0] if row else 0)


def dual_write_canary(desk: MigrationDesk, keys: Keys, since: Moment) -> Finding:
    """Do the newest rows written since then carry a ciphertext of their number, and its blind index?

    An update that leaves the number alone leaves them empty, which is no fault; a new row has to have them.
    Inconclusive when nothing was written that could show it. To be asked before the backfill writes, too.
    """
    with hold_snapshot(desk) as held, speaking("read what the application has written"):
        values = {"since": transactions_since(held, since.point), "newest": NEWEST}
        query = statement(desk.names, "2_newest_changes.sql", **held.layout.parts(desk.names))
        rows = held.connection.execute(query, values, binary=True).fetchall()
    telling: list[Row] = [row for row in rows if row[2] is not None or (row[0] > since.last_key and row[1] is not None)]
    _, faults = judge(keys, desk.names, telling, compare=held.layout.compare)
    new = sum(row[0] > since.last_key for row in telling)
    measured = {
        "written": len(rows),
        "new": new,
        "changed": len(telling) - new,
        "faults": [f"{fault.id} {fault.kind}" for fault in faults],
    }
    if faults:
        return failed(measured, "compare the deployed code with docs/phone-encryption.md before any row is backfilled")
    if not telling:
        return Finding(Verdict.INCONCLUSIVE, measured, "sign up a test user and change its number, then ask again")
    return passed(measured)


def check(desk: MigrationDesk, keys: Keys, since: Moment) -> Check:
    """The gate between dual write and backfill."""
    return Check(
        "dual_write",
        "what the application writes decrypts to the number it belongs to",
        f"newest rows of {desk.names.title}, database {desk.database}",
        lambda: dual_write_canary(desk, keys, since),
    )
