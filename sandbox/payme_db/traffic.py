"""The PayMe API's writes, about twenty a second, so that the database is never still.

    python -m sandbox.payme_db.traffic --service payme_app

New users get their number as the version of the application writes it (sandbox/payme_app/versions.py); from 2.5.0 on
that takes ENCRYPTION_KEY. Every transaction keeps the ledger balanced. When the database goes away it waits for it and
carries on. What it prints about errors is their class and SQLSTATE: messages of the server quote rows.
"""

import argparse
import itertools
import os
import secrets
import signal
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

import psycopg
from psycopg.conninfo import make_conninfo

from payme_ops.migration import envelope
from payme_ops.migration.envelope import Keys
from payme_ops.migration.names import PHONE_NUMBER
from sandbox.payme_app.versions import V1, VERSIONS, Version, parameters
from sandbox.payme_db.generate import (
    CLEARING_ACCOUNT,
    FEE_ACCOUNT,
    FIRST_MERCHANT_ACCOUNT,
    phone_number,
    receipt_no,
)

PER_SECOND = 20
_REPORT_SECONDS = 60
_RETRY_SECONDS = 0.5

# A lock that somebody holds for long fails one write, not the whole stream.
_OPTIONS = "-c lock_timeout=5s -c statement_timeout=10s"


@dataclass(frozen=True)
class Known:
    """How many users and merchants there are (their ids are 1 to that), and the version that writes."""

    users: int
    merchants: int
    version: Version
    keys: Keys | None


def pay(conn: psycopg.Connection, known: Known) -> None:
    transaction, merchant, amount = _insert_transaction(conn, known, "payment")
    conn.execute(
        "INSERT INTO mpesa_receipts (receipt_no, transaction_id, result_code) VALUES (%s, %s, 0)",
        [receipt_no(transaction), transaction],
    )
    _book(conn, transaction, debit=CLEARING_ACCOUNT, credit=FIRST_MERCHANT_ACCOUNT + merchant, cents=amount)


def refund(conn: psycopg.Connection, known: Known) -> None:
    transaction, merchant, amount = _insert_transaction(conn, known, "refund")
    _book(conn, transaction, debit=FIRST_MERCHANT_ACCOUNT + merchant, credit=CLEARING_ACCOUNT, cents=amount)


def charge_fee(conn: psycopg.Connection, known: Known) -> None:
    transaction, merchant, amount = _insert_transaction(conn, known, "fee")
    _book(conn, transaction, debit=FIRST_MERCHANT_ACCOUNT + merchant, credit=FEE_ACCOUNT, cents=amount)


def log_in(conn: psycopg.Connection, known: Known) -> None:
    user = 1 + secrets.randbelow(known.users)
    conn.execute("UPDATE users SET last_login_at = now() WHERE id = %s", [user])
    conn.execute(
        "INSERT INTO rate_limits (subject, window_start) VALUES (%s, date_trunc('minute', now()))"
        " ON CONFLICT (subject, window_start) DO UPDATE SET requests = rate_limits.requests + 1",
        [f"user:{user % 100}"],
    )


def sign_up(conn: psycopg.Connection, known: Known) -> None:
    # The id first: the phone number follows from it.
    row = conn.execute("SELECT nextval('users_id_seq')").fetchone()
    assert row is not None  # noqa: S101
    number = phone_number(row[0])
    if known.keys is None:
        conn.execute(
            "INSERT INTO users (id, public_id, phone_number, full_name)"
            " VALUES (%s, gen_random_uuid(), %s, 'New Customer')",
            [row[0], number],
        )
    else:
        conn.execute(known.version.create, parameters(known.version, known.keys, row[0], number))


# In this order, again and again: fifteen payments, and what else an API does.
_WORK: list[Callable[[psycopg.Connection, Known], None]] = [pay] * 15 + [refund, charge_fee, log_in, log_in, sign_up]


def _insert_transaction(conn: psycopg.Connection, known: Known, kind: str) -> tuple[int, int, int]:
    merchant, cents = 1 + secrets.randbelow(known.merchants), 1_000 + secrets.randbelow(500_000)
    user = None if kind == "fee" else 1 + secrets.randbelow(known.users)
    row = conn.execute(
        "INSERT INTO transactions (user_id, merchant_id, kind, status, amount, metadata, completed_at)"
        " VALUES (%s, %s, %s::transaction_kind, 'completed', %s / 100.0, '{\"channel\": \"stk_push\"}', now())"
        " RETURNING id",
        [user, merchant, kind, cents],
    ).fetchone()
    assert row is not None  # noqa: S101
    return row[0], merchant, cents


def _book(conn: psycopg.Connection, transaction: int, *, debit: int, credit: int, cents: int) -> None:
    conn.execute(
        "INSERT INTO ledger.entries (transaction_id, account_id, booked_at, amount)"
        " VALUES (%(id)s, %(debit)s, now(), %(cents)s / 100.0), (%(id)s, %(credit)s, now(), -%(cents)s / 100.0)",
        {"id": transaction, "debit": debit, "credit": credit, "cents": cents},
    )


def complain(error: psycopg.Error) -> None:
    """Print what kind of error it is."""
    _say(f"{type(error).__name__} {error.sqlstate or '(no SQLSTATE: connection)'}")


def run(
    conninfo: str, stop: threading.Event, version: Version = V1, failed: Callable[[psycopg.Error], None] = complain
) -> None:
    """Write as that version until `stop` is set; `failed` hears of every error."""
    keys = envelope.load_keys(os.environ, key_id="k1", names=PHONE_NUMBER) if version.reserves_id else None
    conninfo = make_conninfo(conninfo, application_name=version.application, connect_timeout=5, options=_OPTIONS)
    while not stop.is_set():
        try:
            with psycopg.connect(conninfo, autocommit=True) as conn:
                _say("connected")
                _write(conn, Known(*_known(conn), version, keys), stop, failed)
        except psycopg.Error as error:
            failed(error)
            stop.wait(_RETRY_SECONDS)


def _known(conn: psycopg.Connection) -> tuple[int, int]:
    row = conn.execute("SELECT (SELECT max(id) FROM users), (SELECT max(id) FROM merchants)").fetchone()
    assert row is not None  # noqa: S101
    return row[0], row[1]


def _write(
    conn: psycopg.Connection, known: Known, stop: threading.Event, failed: Callable[[psycopg.Error], None]
) -> None:
    due = reported = time.monotonic()
    written = 0
    for work in itertools.cycle(_WORK):
        # After a hold-up the pace is kept, what was missed is not made up for.
        due = max(due + 1 / PER_SECOND, time.monotonic() - 1)
        if stop.wait(max(0, due - time.monotonic())):
            return
        try:
            with conn.transaction():
                work(conn, known)
            written += 1
        except psycopg.Error as error:
            if conn.closed:
                raise
            failed(error)
        if time.monotonic() - reported > _REPORT_SECONDS:
            _say(f"{written} transactions in the last {_REPORT_SECONDS} s")
            reported, written = time.monotonic(), 0


def _say(text: str) -> None:
    print(f"traffic: {text}", flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m sandbox.payme_db.traffic", description="Small writes to the PayMe database until SIGTERM."
    )
    parser.add_argument("--service", required=True, help="libpq service of the application's role")
    parser.add_argument("--version", choices=VERSIONS, default=V1.number, help="of the application")
    options = parser.parse_args()
    stop = threading.Event()
    for sig in (signal.SIGTERM, signal.SIGINT):
        signal.signal(sig, lambda *_: stop.set())
    run(f"service={options.service}", stop, VERSIONS[options.version])
    return 0


if __name__ == "__main__":
    sys.exit(main())
