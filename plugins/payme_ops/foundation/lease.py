"""A named lease: a row in the ops database whose holder also keeps a session advisory lock there.

The lock tells whether the holder lives: a row whose lock is free is taken at once, with a higher fencing token.
A holder that lives but has not renewed (its host hangs) keeps its lock; once the row has expired the next one
ends that session and takes over. The holder learns of it by `Lease.check()`, called before every commit.

A term is a lease without a session, for what lasts over many tasks and over triggers, which have none: it lives as
long as whoever is at work renews it. `hold` and terms of one name exclude each other.
"""

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import datetime, timedelta

import psycopg
from psycopg.rows import class_row

from payme_ops.foundation.clock import show, utc_now
from payme_ops.foundation.errors import DatabaseUnavailable, LeaseHeld, LeaseLost, PaymeOpsError
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


def held(conninfo: str) -> list[Holder]:
    """Everything that is held now, leases and terms, the oldest first. Takes nothing. Raises DatabaseUnavailable."""
    with (
        connect(conninfo, application="payme_ops:lease:peek") as connection,
        speaking("look at the leases"),
        connection.cursor(row_factory=class_row(Holder)) as cursor,
    ):
        return cursor.execute(load("ops/held_leases.sql")).fetchall()


# -- terms ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Term:
    """A lease without a session. Of one that was claimed, `holder` is who had it before."""

    name: str
    holder: str
    token: int
    taken_at: datetime
    expires_at: datetime


def take_term(conninfo: str, name: str, holder: str, ttl: timedelta) -> Term:
    """Take it for so long, or renew it if it is ours. Raises LeaseHeld, DatabaseUnavailable."""
    values = {"name": name, "holder": holder, "ttl": ttl}
    with connect(conninfo, application="payme_ops:term") as connection, speaking(f"take lease {name}"):
        # No session of another holds it, and none takes it meanwhile.
        if not _lock(connection, name):
            held = _held(connection, name)
            if not (found := _living(connection, name)) or found.holder != holder:
                raise held
        with connection.cursor(row_factory=class_row(Term)) as cursor:
            taken = cursor.execute(load("ops/take_term.sql"), values).fetchone()
        if taken is None:
            raise _term_held(_living(connection, name) or Term(name, "another run", 0, utc_now(), utc_now()))
    return taken


def renew_term(conninfo: str, term: Term, ttl: timedelta) -> None:
    """Keep it for so long from now. Raises LeaseLost when it has ended or was taken over, DatabaseUnavailable."""
    values = {"name": term.name, "token": term.token, "ttl": ttl}
    with connect(conninfo, application="payme_ops:term") as connection, speaking(f"renew lease {term.name}"):
        if connection.execute(load("ops/renew_term.sql"), values).rowcount != 1:
            raise _term_lost(term)


def end_term(conninfo: str, name: str, token: int) -> bool:
    """What it stands for is over; False when it had ended or was taken over. Raises DatabaseUnavailable."""
    values = {"name": name, "token": token}
    with connect(conninfo, application="payme_ops:term") as connection, speaking(f"end lease {name}"):
        return connection.execute(load("ops/end_term.sql"), values).rowcount == 1


def living_term(conninfo: str, name: str) -> Term | None:
    """The term of that name that has neither ended nor expired. Raises DatabaseUnavailable."""
    with connect(conninfo, application="payme_ops:term") as connection, speaking(f"look at lease {name}"):
        return _living(connection, name)


def open_term(conninfo: str, name: str) -> Term | None:
    """The term of that name that nobody has ended, also one that has expired. Raises DatabaseUnavailable."""
    with (
        connect(conninfo, application="payme_ops:term") as connection,
        speaking(f"look at lease {name}"),
        connection.cursor(row_factory=class_row(Term)) as cursor,
    ):
        return cursor.execute(load("ops/open_term.sql"), {"name": name}).fetchone()


def claim_expired(conninfo: str, prefix: str, holder: str, ttl: timedelta) -> list[Term]:
    """Take over, for so long, what expired without an end. Each is answered with its new token and former holder.

    One that its claimer does not end expires again, and is claimed again. Raises DatabaseUnavailable.
    """
    values = {"prefix": prefix, "holder": holder, "ttl": ttl}
    with (
        connect(conninfo, application="payme_ops:term") as connection,
        speaking(f"claim leases {prefix}"),
        connection.cursor(row_factory=class_row(Term)) as cursor,
    ):
        return cursor.execute(load("ops/claim_terms.sql"), values).fetchall()


class Keeper:
    """What `keeping` yields."""

    def __init__(self) -> None:
        self.lost: LeaseLost | None = None

    def check(self) -> None:
        """Raises LeaseLost when one of the terms is not ours any more."""
        if self.lost:
            raise self.lost


@contextmanager
def keeping(conninfo: str, terms: Sequence[Term], ttl: timedelta) -> Iterator[Keeper]:
    """Renew the terms at once, and while the block runs each quarter of `ttl`. Raises LeaseLost before it begins."""
    for term in terms:
        renew_term(conninfo, term, ttl)
    keeper, stop = Keeper(), threading.Event()

    def renew() -> None:
        while not stop.wait(ttl.total_seconds() / 4) and keeper.lost is None:
            try:
                for term in terms:
                    renew_term(conninfo, term, ttl)
            except LeaseLost as error:
                keeper.lost = error
            except DatabaseUnavailable:
                continue  # there is time for another try

    thread = threading.Thread(target=renew, name="terms", daemon=True)
    thread.start()
    try:
        yield keeper
    finally:
        stop.set()
        thread.join()


def _living(connection: psycopg.Connection, name: str) -> Term | None:
    with connection.cursor(row_factory=class_row(Term)) as cursor:
        return cursor.execute(load("ops/living_term.sql"), {"name": name}).fetchone()


def _term_held(term: Term) -> LeaseHeld:
    return LeaseHeld(
        f"lease {term.name} is held",
        expected="nobody else at work on it",
        found=f"{term.holder} since {show(term.taken_at)}",
        remedy=f"wait for it to end; without a sign of life it is free at {show(term.expires_at)}",
    )


def _term_lost(term: Term) -> LeaseLost:
    return LeaseLost(
        f"lease {term.name} was lost by {term.holder}",
        expected="to hold it until the end",
        found="it has ended, or was taken over because it was not renewed in time",
        remedy="see who has it now; what it stood for (frozen orders) was ended by whoever took it over",
    )


# -- leases -----------------------------------------------------------------------------------------------------


def _acquire(connection: psycopg.Connection, name: str, holder: str) -> int:
    with speaking(f"take lease {name}"):
        if not _lock(connection, name):
            connection.execute(load("ops/end_expired_lease.sql"), {"name": name})
            if not _lock(connection, name, wait_ms=2000):
                raise _held(connection, name)
        if (found := _living(connection, name)) and found.holder != holder:
            raise _term_held(found)
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
