"""Fill a PayMe database with made-up data, on the server, the same for the same seed.

Phone numbers are valid Kenyan mobiles, all of them in one block (PHONE_PREFIX). The data ends with the month before
END, whatever the clock says.

    python -m sandbox.payme_db.generate --size demo "service=admin"
"""

import argparse
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import psycopg
from psycopg import sql
from psycopg.conninfo import make_conninfo

DATABASE = "payme"

CANARY_PHONE = "+254700999888"  # of user 1; searched for wherever no phone number may be
PHONE_PREFIX = "+25470"
START, END = "2026-05-01", "2026-11-01"  # of the transactions, UTC

CLEARING_ACCOUNT, FEE_ACCOUNT = 1, 2
FIRST_MERCHANT_ACCOUNT = 1000  # plus the merchant's id

# Multipliers that share no factor with the size of the block: every id becomes another number of the block. The shift
# gives user 1 the canary's.
_PHONE_BLOCK, _PHONE_STRIDE = 10**7, 7_368_787
_PHONE_SHIFT = (int(CANARY_PHONE.removeprefix(PHONE_PREFIX)) - _PHONE_STRIDE) % _PHONE_BLOCK
_RECEIPT_PREFIX, _RECEIPT_BLOCK, _RECEIPT_STRIDE = "SKL", 36**7, 50_000_017
_DIGITS36 = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ"

_HERE = Path(__file__).parent
_GRANTS = _HERE.parents[1] / "include/sql/grants"
_AFTER_DATA = "-- after the data\n"


@dataclass(frozen=True)
class Size:
    users: int
    transactions: int


SIZES = {
    "test": Size(2_000, 5_000),
    "demo": Size(60_000, 300_000),
    "workers": Size(60_000, 5_000),
    "bench_small": Size(80_000, 270_000),
    "bench_full": Size(900_000, 2_800_000),
    "zero_downtime": Size(300_000, 20_000),
}


def phone_number(user_id: int) -> str:
    """The number of the user with that id; never twice the same for ids below ten million. data.sql does the same."""
    number = (user_id * _PHONE_STRIDE + _PHONE_SHIFT) % _PHONE_BLOCK
    return f"{PHONE_PREFIX}{number:07}"


def receipt_no(transaction_id: int) -> str:
    """The M-Pesa receipt of the transaction with that id, ten letters and digits. data.sql does the same."""
    mixed = transaction_id * _RECEIPT_STRIDE % _RECEIPT_BLOCK
    return _RECEIPT_PREFIX + "".join(_DIGITS36[mixed // 36**place % 36] for place in reversed(range(7)))


def create(
    conninfo_superuser: str,
    *,
    users: int,
    transactions: int,
    seed: int,
    passwords: Mapping[str, str] | None = None,
) -> None:
    """Make the roles, the database `payme` and its data; what is there already is left alone.

    `passwords` by role name are set every time. Raises ValueError if there are more users than phone numbers.
    """
    if not 1 <= users < _PHONE_BLOCK or transactions < 1:
        raise ValueError(f"users must be 1 to {_PHONE_BLOCK - 1:,} and transactions at least 1")
    with psycopg.connect(conninfo_superuser, autocommit=True) as conn:
        if not _exists(conn, "SELECT FROM pg_roles WHERE rolname = %s", "payme_owner"):
            with conn.transaction():
                conn.execute((_HERE / "roles.sql").read_text())
        if not _exists(conn, "SELECT FROM pg_database WHERE datname = %s", DATABASE):
            # Under another name until all is in it: a database called payme is complete.
            unfinished = f"{DATABASE}_unfinished"
            conn.execute(f"DROP DATABASE IF EXISTS {unfinished}")
            conn.execute(f"CREATE DATABASE {unfinished} OWNER payme_owner TEMPLATE template0")
            _fill(make_conninfo(conninfo_superuser, dbname=unfinished), users, transactions, seed)
            conn.execute(f"ALTER DATABASE {unfinished} RENAME TO {DATABASE}")
        if not _exists(conn, "SELECT FROM pg_roles WHERE rolname = %s", "payme_db_read"):
            with conn.transaction():
                conn.execute((_GRANTS / "backup_role.sql").read_text().replace(':"database"', DATABASE))
            with psycopg.connect(make_conninfo(conninfo_superuser, dbname=DATABASE), autocommit=True) as payme:
                payme.execute((_GRANTS / "restore_role.sql").read_text())
        if not _exists(conn, "SELECT FROM pg_roles WHERE rolname = %s", "payme_db_migrate"):
            with psycopg.connect(make_conninfo(conninfo_superuser, dbname=DATABASE)) as payme:
                payme.execute((_GRANTS / "migrate_role.sql").read_text())
        # Each time, as after an upgrade. With the others it would be in the database that is backed up.
        with psycopg.connect(make_conninfo(conninfo_superuser, dbname="postgres"), autocommit=True) as maintenance:
            maintenance.execute((_GRANTS / "restore_functions.sql").read_text())
        _set_passwords(conn, passwords or {})


def _exists(conn: psycopg.Connection, query: str, name: str) -> bool:
    return conn.execute(query, [name]).rowcount > 0


def _fill(conninfo: str, users: int, transactions: int, seed: int) -> None:
    tables, after_data = (_HERE / "schema.sql").read_text().split(_AFTER_DATA)
    values = {
        "users": users,
        "merchants": min(4_500, users // 40 + 20),
        "transactions": transactions,
        "seed": seed,
        "start": START,
        "end": END,
        "phone_prefix": PHONE_PREFIX,
        "phone_block": _PHONE_BLOCK,
        "phone_stride": _PHONE_STRIDE,
        "phone_shift": _PHONE_SHIFT,
        "receipt_prefix": _RECEIPT_PREFIX,
        "receipt_block": _RECEIPT_BLOCK,
        "receipt_stride": _RECEIPT_STRIDE,
        "clearing_account": CLEARING_ACCOUNT,
        "fee_account": FEE_ACCOUNT,
        "first_merchant_account": FIRST_MERCHANT_ACCOUNT,
    }
    # Parameters go into the text here: the server takes many statements at once only without parameters.
    with psycopg.connect(conninfo, autocommit=True, cursor_factory=psycopg.ClientCursor) as conn:
        # Of a load that does not end, nothing is kept.
        conn.execute("SET synchronous_commit = off; SET maintenance_work_mem = '256MB'; SET timezone = 'UTC'")
        with conn.transaction():
            conn.execute(tables)
            conn.execute((_HERE / "data.sql").read_text(), values)
            conn.execute(after_data)
        conn.execute("VACUUM ANALYZE")


def _set_passwords(conn: psycopg.Connection, passwords: Mapping[str, str]) -> None:
    for role, password in passwords.items():
        # Only the SCRAM verifier travels: neither a log nor pg_stat_activity ever shows the password.
        verifier = conn.pgconn.encrypt_password(password.encode(), role.encode(), b"scram-sha-256").decode()
        conn.execute(sql.SQL("ALTER ROLE {} PASSWORD {}").format(sql.Identifier(role), verifier))


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m sandbox.payme_db.generate", description=__doc__)
    parser.add_argument("conninfo", help="libpq connection string of a superuser")
    parser.add_argument("--size", choices=SIZES, default="demo")
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    size, started = SIZES[options.size], time.monotonic()
    create(options.conninfo, users=size.users, transactions=size.transactions, seed=options.seed)
    print(f"{size.users:,} users, {size.transactions:,} transactions in {time.monotonic() - started:.1f} s")


if __name__ == "__main__":
    main()
