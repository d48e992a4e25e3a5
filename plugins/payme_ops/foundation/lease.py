"""A named lease: a row in the ops database whose holder also keeps a session advisory lock there.

The lock tells whether the holder lives: a row whose lock is free is taken at once, with a higher fencing token.
A holder that lives but has not renewed (its host hangs) keeps its lock; once the row has expired the next one
ends that session and takes over. The holder learns of it by `Lease.check()`, called before every commit.
"""

import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import datetime

import psycopg

from payme_ops.foundation.clock import show
from payme_ops.foundation.errors import LeaseHeld, LeaseLost, PaymeOpsError
from payme_ops.foundation.postgres import connect, speaking
from payme_ops.foundation.sql import load

TTL_SECONDS = 60
_RENEW_SECONDS = 10.0


@dataclass(frozen=True)
class Holder:
    """Who holds a lease."""

    name: str
    holder: str
    since: datetime


@dataclass
class Lease:
    """A lease we hold. `token` is the fencing token: it grows with every acquisition of this name."""

    name: str
    holder: str
    token: int
    _connection: psycopg.Connection = field(repr=False)
    lost: bool = False

    def check(self) -> None:
        """Ask the ops database whether the lease is still ours, and renew it.

        Raises LeaseLost when somebody took over, or the session has ended or does not answer.
        """
        if not self.renew():
            raise LeaseLost(
                f"lease {self.name} was lost by {self.holder}",
                expected="to hold it until the end",
                found="its session in the ops database ended or did not answer",
                remedy="nothing was committed; run it again once the ops database is well",
            )

    def renew(self) -> bool:
        """Move the expiry on; False, and for ever, when the lease is no longer ours."""
        if not self.lost:
            values = {"name": self.name, "token": self.token, "ttl": f"{TTL_SECONDS} seconds"}
            try:
                self.lost = self._connection.execute(load("ops/renew_lease.sql"), values).rowcount != 1
            except psycopg.Error:
                self.lost = True
        return not self.lost


@contextmanager
def hold(conninfo: str, name: str, holder: str) -> Iterator[Lease]:
    """Hold the lease `name` for the block.

    Raises LeaseHeld naming the holder and since when, DatabaseUnavailable when the ops database is away.
    """
    with connect(conninfo, application=f"payme_ops:lease:{name}"[:63]) as connection:
        token = _acquire(connection, name, holder)
        lease = Lease(name, holder, token, connection)
        stop = threading.Event()
        renewer = threading.Thread(target=_keep, args=(lease, stop), name=f"lease {name}", daemon=True)
        renewer.start()
        try:
            yield lease
        finally:
            stop.set()
            renewer.join()
            with suppress(psycopg.Error):  # closing the session frees the lock all the same
                connection.execute(load("ops/release_lease.sql"), {"name": name, "token": token})


def peek(conninfo: str, name: str) -> Holder | None:
    """Who holds the lease now, or None. Takes nothing."""
    with (
        connect(conninfo, application="payme_ops:lease:peek") as connection,
        speaking(f"look at lease {name}"),
    ):
        row = connection.execute(load("ops/peek_lease.sql"), {"name": name}).fetchone()
    return Holder(name, row[0], row[1]) if row else None


def _acquire(connection: psycopg.Connection, name: str, holder: str) -> int:
    with speaking(f"take lease {name}"):
        if not _lock(connection, name):
            connection.execute(load("ops/end_expired_lease.sql"), {"name": name})
            if not _lock(connection, name, wait_ms=2000):
                raise _held(connection, name)
        row = connection.execute(
            load("ops/take_lease.sql"), {"name": name, "holder": holder, "ttl": f"{TTL_SECONDS} seconds"}
        ).fetchone()
    if row is None:
        raise PaymeOpsError(f"lease {name} returned no token")
    return int(row[0])


def _lock(connection: psycopg.Connection, name: str, *, wait_ms: int = 0) -> bool:
    if not wait_ms:
        row = connection.execute("SELECT pg_try_advisory_lock(hashtextextended(%s, 0))", [name]).fetchone()
        return bool(row and row[0])
    # An ended session lets go a moment after it was told to: wait for that, not for a living holder.
    connection.execute("SELECT set_config('lock_timeout', %s, false)", [f"{wait_ms}ms"])
    try:
        ended = connection.execute(load("ops/lease_is_ending.sql"), {"name": name}).fetchone()
        if not ended:
            return _lock(connection, name)
        connection.execute("SELECT pg_advisory_lock(hashtextextended(%s, 0))", [name])
    except psycopg.errors.LockNotAvailable:
        return False
    finally:
        connection.execute("SET lock_timeout = 0")
    return True


def _held(connection: psycopg.Connection, name: str) -> LeaseHeld:
    row = connection.execute("SELECT holder, acquired_at FROM ops.leases WHERE name = %s", [name]).fetchone()
    who, since = (row[0], show(row[1])) if row else ("a run that is just starting", "now")
    return LeaseHeld(
        f"lease {name} is held",
        expected="nobody else at work on it",
        found=f"{who} since {since}",
        remedy="wait for that run to end, or stop it; a dead holder is replaced without your help",
    )


def _keep(lease: Lease, stop: threading.Event) -> None:
    while not stop.wait(_RENEW_SECONDS) and lease.renew():
        pass
