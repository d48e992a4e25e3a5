"""One instance of the application: a process with a few connections, told what to do on its standard input.

    PAYME_APP_CONNINFO=… ENCRYPTION_KEY=… python -m sandbox.payme_app --folder … --ordinal 3

It says `up`, then answers each line with one: `run <version>` comes first, `adopt <file>` takes users over, `still`
returns between two requests and `go` ends that, `drain` hands the users over and ends. When its input ends, so does
it: it does not outlive who started it.
"""

import argparse
import itertools
import os
import random
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from queue import Empty, SimpleQueue

import psycopg
from psycopg.conninfo import make_conninfo

from payme_ops.migration import envelope
from payme_ops.migration.envelope import Keys
from payme_ops.migration.names import PHONE_NUMBER
from sandbox.payme_app import ledger
from sandbox.payme_app.ledger import GONE, Ledger
from sandbox.payme_app.versions import (
    DELETE,
    NEXT_ID,
    SHARED,
    SHARED_COUNT,
    TOUCH,
    VERSIONS,
    Values,
    Version,
    is_right,
    number,
    parameters,
)

CONNINFO_VARIABLE = "PAYME_APP_CONNINFO"
_NUMBERS = 250_000  # for each instance; 360 instances have some
_SHARED_PER_SECOND = 20
_MADE_KEPT = 10  # that many of its new users a connection keeps before it deletes the oldest
_RETRY_SECONDS = 0.1
_ADMIN_SHUTDOWN, _CONNECTION = "57P", "08"


@dataclass(frozen=True)
class Identity:
    """What the connections of an instance have in common."""

    conninfo: str
    version: Version
    keys: Keys


class Worker:
    """One connection and its users. It sends a request, waits for the answer, sends the next."""

    def __init__(self, identity: Identity, book: Ledger, numbers: Iterator[int], pause: float) -> None:
        self._identity, self._book, self._numbers, self._pause = identity, book, numbers, pause
        self._version, self._keys = identity.version, identity.keys
        self._random = random.Random(next(numbers))  # noqa: S311  # which user is next
        self._connection: psycopg.Connection | None = None
        self._users: dict[int, int] = {}
        self._order: list[int] = []  # the same users, to choose from
        self._made: deque[int] = deque()  # of them, those that may be deleted: nothing refers to them
        self._doubtful: dict[int, int] = {}  # users whose last answer got lost, and what they may have since
        self._given_up: deque[tuple[int, int]] = deque(maxlen=50)  # numbers that nobody has any more
        self._busy = threading.Lock()
        self._go = threading.Event()
        self._ending = False
        self.inbox: SimpleQueue[dict[int, int]] = SimpleQueue()
        self.connected = threading.Event()
        self._work: Sequence[Callable[[], None]] = [
            self._create,
            self._read,
            self._change,
            self._find,
            self._upsert_new,
            self._read,
            self._change,
            self._touch,
            self._upsert_known,
            self._upsert_at_once,
            self._find_given_up,
            self._change,
            self._read,
            self._delete,
            self._delete,
        ]
        self._go.set()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def hold(self) -> None:
        """Return between two requests; none is sent until `release`."""
        self._go.clear()
        self._busy.acquire()
        self._book.flush()

    def release(self) -> None:
        """Carry on after `hold`."""
        self._busy.release()
        self._go.set()

    def drain(self) -> dict[int, int]:
        """End after the request under way; the users and their values."""
        self._ending = True
        self._thread.join()
        self._adopt()
        self._book.flush()
        return {user: value for user, value in self._users.items() if user not in self._doubtful}

    def _run(self) -> None:
        due = time.monotonic()
        for work in itertools.cycle(self._work):
            self._go.wait()
            with self._busy:
                if self._ending:
                    break
                self._adopt()
                if self._connect():
                    self._request(work)
            # After a hold-up the pace is kept, what was missed is not made up for.
            due = max(due + self._pause, time.monotonic() - 1)
            time.sleep(max(0.0, due - time.monotonic()))
        if self._connection is not None:
            self._connection.close()

    def _adopt(self) -> None:
        with suppress(Empty):
            while True:
                taken = self.inbox.get_nowait()
                self._users.update(taken)
                self._order.extend(taken)

    def _connect(self) -> bool:
        if self._connection is None:
            application = self._version.application
            conninfo = make_conninfo(self._identity.conninfo, application_name=application, connect_timeout=5)
            try:
                self._connection = psycopg.connect(conninfo, autocommit=True)
            except psycopg.OperationalError:
                time.sleep(_RETRY_SECONDS)
                return False
            self.connected.set()
        return True

    def _request(self, work: Callable[[], None]) -> None:
        begun = time.monotonic()
        try:
            work()
        except psycopg.Error as error:
            name = work.__name__.strip("_")
            if not self._is_lost(error):
                # Never its message: it quotes rows.
                self._book.event("failed", self._version.number, name, error.sqlstate or type(error).__name__)
                return
            self._book.event("disconnect", self._version.number, name)
            if self._connection is not None:
                self._connection.close()
            self._connection = None
            return
        self._book.took(time.monotonic() - begun)

    def _is_lost(self, error: psycopg.Error) -> bool:
        closed = self._connection is None or self._connection.closed
        return closed or (error.sqlstate or "").startswith((_ADMIN_SHUTDOWN, _CONNECTION))

    def _execute(self, statement: bytes, values: Values | None = None) -> psycopg.Cursor:
        assert self._connection is not None  # noqa: S101
        return self._connection.execute(statement, values, prepare=True)

    # What the application is asked for. Each is one request, and each of them is known by its value.

    def _create(self) -> None:
        self._insert(lambda values: self._execute(self._version.create, values).fetchone())

    def _upsert_new(self) -> None:
        self._insert(self._upsert)

    def _insert(self, insert: Callable[[Values], tuple[int] | None]) -> None:
        user, value = self._reserve(), next(self._numbers)
        with self._written(user, value):
            answer = insert(self._values(user, number(user, value)))
        made = answer[0] if answer else user
        if user not in (0, made):
            self._wrong("insert", user)
        self._book.done(made, value)
        self._users[made] = value
        self._order.append(made)
        self._made.append(made)

    def _upsert_known(self) -> None:
        if (user := self._any()) is not None:
            # Bound to the id that a new user would have: the row that is there must not take it.
            values = self._values(self._reserve(), number(user, self._users[user]))
            if self._upsert(values) != (user,):
                self._wrong("upsert", user)

    def _upsert_at_once(self) -> None:
        """The same new user logs in on other connections in this instant: all get one id."""
        value = SHARED + int(time.monotonic() * _SHARED_PER_SECOND) % SHARED_COUNT
        values = self._values(self._reserve(), number(0, value))
        answer = self._upsert(values)
        if answer is None or self._execute(self._version.find, values).fetchall() != [answer]:
            self._wrong("upsert at once", 0)

    def _upsert(self, values: Values) -> tuple[int] | None:
        return self._execute(self._version.upsert, values).fetchone() or (
            self._execute(self._version.log_in, values).fetchone()
        )

    def _change(self) -> None:
        if (user := self._any()) is not None:
            before, value = self._users[user], next(self._numbers)
            with self._written(user, value):
                changed = self._execute(self._version.change, self._values(user, number(user, value)))
            if changed.rowcount != 1:
                self._wrong("change", user)
            self._book.done(user, value)
            self._users[user] = value
            self._given_up.append((user, before))

    def _delete(self) -> None:
        if len(self._made) > _MADE_KEPT:
            user = self._made.popleft()
            if user in self._doubtful:
                return
            with self._written(user, GONE):
                self._execute(DELETE, {"id": user})
            self._book.done(user, GONE)
            self._given_up.append((user, self._users.pop(user)))
            self._order.remove(user)

    def _touch(self) -> None:
        if (user := self._any()) is not None:
            assert self._connection is not None  # noqa: S101
            with self._connection.transaction():
                self._look(self._version.read_locked, user)
                self._execute(TOUCH, {"id": user})

    def _read(self) -> None:
        if self._doubtful:
            self._clear_up()
        elif (user := self._any()) is not None:
            self._look(self._version.read, user)

    def _find(self) -> None:
        if (user := self._any()) is not None:
            values = self._values(user, number(user, self._users[user]))
            if self._execute(self._version.find, values).fetchall() != [(user,)]:
                self._wrong("find", user)

    def _find_given_up(self) -> None:
        if self._given_up:
            user, value = self._given_up.popleft()
            if self._execute(self._version.find, self._values(user, number(user, value))).fetchall():
                self._wrong("find given up", user)

    def _look(self, statement: bytes, user: int) -> None:
        row = self._execute(statement, {"id": user}).fetchone()
        if row is None or not is_right(self._version, self._keys, user, self._users[user], row[0]):
            self._wrong("read", user)

    def _clear_up(self) -> None:
        """Learn what became of a write whose answer got lost; either is right."""
        user, maybe = next(iter(self._doubtful.items()))
        row = self._execute(self._version.read, {"id": user}).fetchone()
        for value in (self._users[user], maybe):
            gone = value == GONE
            if (row is None) if gone else (row and is_right(self._version, self._keys, user, value, row[0])):
                self._book.done(user, value)
                self._users[user] = value
                break
        else:
            self._wrong("read after a lost answer", user)
        del self._doubtful[user]
        if self._users[user] == GONE:
            del self._users[user]
            self._order.remove(user)

    def _reserve(self) -> int:
        """The id of the next new user; 0 in the version that leaves that to the insert."""
        if not self._version.reserves_id:
            return 0
        row = self._execute(NEXT_ID).fetchone()
        return int(row[0]) if row else 0

    def _values(self, user: int, phone: str) -> Values:
        return parameters(self._version, self._keys, user, phone)

    def _any(self) -> int | None:
        if not self._order:
            return None
        user = self._random.choice(self._order)
        return None if user in self._doubtful else user

    @contextmanager
    def _written(self, user: int, value: int) -> Iterator[None]:
        self._book.intent(user, value)
        try:
            yield
        except psycopg.Error as error:
            if not self._is_lost(error):
                self._book.refused(user, value)
            elif user in self._users:
                self._doubtful[user] = value
            raise

    def _wrong(self, what: str, user: int) -> None:
        self._book.event("wrong", self._version.number, what, user)


def main() -> int:
    """Serve from `run` until told to drain, or the input ends."""
    parser = argparse.ArgumentParser(prog="python -m sandbox.payme_app", description=__doc__)
    parser.add_argument("--folder", required=True, type=Path)
    parser.add_argument("--ordinal", required=True, type=int, help="which instance of the fleet; gives it its numbers")
    parser.add_argument("--connections", type=int, default=2)
    parser.add_argument("--per-second", type=float, default=0.0, help="requests of the instance; 0 is no limit")
    parser.add_argument("--key-id", default="k1")
    options = parser.parse_args()
    keys = envelope.load_keys(os.environ, key_id=options.key_id, names=PHONE_NUMBER)
    _say("up")
    _, _, version = sys.stdin.readline().strip().partition(" ")
    if not version:
        return 0  # it was not needed
    identity = Identity(os.environ[CONNINFO_VARIABLE], VERSIONS[version], keys)
    first, count = options.ordinal * _NUMBERS, options.connections
    pause = count / options.per_second if options.per_second else 0.0
    workers = [
        Worker(
            identity,
            Ledger(options.folder, f"{options.ordinal}-{which}"),
            iter(range(first + which, first + _NUMBERS, count)),
            pause,
        )
        for which in range(count)
    ]
    for worker in workers:
        worker.connected.wait()
    _say("ready")
    for line in sys.stdin:
        verb, _, argument = line.strip().partition(" ")
        if verb == "adopt":
            users = ledger.handed_over(Path(argument))
            for which, worker in enumerate(workers):
                worker.inbox.put({user: value for user, value in users.items() if user % count == which})
        elif verb in ("still", "go"):
            for worker in workers:
                (worker.hold if verb == "still" else worker.release)()
        elif verb == "drain":
            drained = [worker.drain() for worker in workers]
            ledger.hand_over(Path(argument), {user: value for users in drained for user, value in users.items()})
            _say("drained")
            return 0
        _say("done")
    os._exit(1)  # in the middle of a request, as a crash would


def _say(line: str) -> None:
    print(line, flush=True)
