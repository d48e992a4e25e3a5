"""What an instance writes down while it works, and how to read it: files of records of one length, per connection.

The times are those of the machine's monotonic clock, which is one for all processes. A user belongs to one connection
at a time, so that the records of a user, sorted by time, are in order.
"""

import struct
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

# Values that are no number of ours: what the user has from sandbox.payme_db, and that the user is deleted.
GENERATED, GONE = -1, -2
_WRITE = struct.Struct("<dcqq")  # time, kind, user, value
_TOOK = struct.Struct("<df")  # time of the end, milliseconds
_PAIR = struct.Struct("<qq")
_INTENT, _DONE, _REFUSED = b"i", b"d", b"r"


class Ledger:
    """The files of one connection. A write is on record before it is sent, whatever happens to us then."""

    def __init__(self, folder: Path, name: str) -> None:
        self._writes = (folder / f"{name}.writes").open("ab", buffering=0)
        self._events = (folder / f"{name}.events").open("ab", buffering=0)
        self._took = (folder / f"{name}.took").open("ab")

    def intent(self, user: int, value: int) -> None:
        """About to be sent. User 0: the id is not known yet."""
        self._write(_INTENT, user, value)

    def done(self, user: int, value: int) -> None:
        """Acknowledged by the server, or read when the answer had got lost."""
        self._write(_DONE, user, value)

    def refused(self, user: int, value: int) -> None:
        """Refused by the server: nothing has changed."""
        self._write(_REFUSED, user, value)

    def took(self, seconds: float) -> None:
        """How long a request took that has just ended."""
        self._took.write(_TOOK.pack(time.monotonic(), seconds * 1000))

    def event(self, kind: str, *words: str | int) -> None:
        """A failed query, a wrong read or a lost connection; words and ids only."""
        line = " ".join([f"{time.monotonic():.6f}", kind, *map(str, words)])
        self._events.write(line.encode() + b"\n")

    def flush(self) -> None:
        """Everything is in the files."""
        self._took.flush()

    def _write(self, kind: bytes, user: int, value: int) -> None:
        self._writes.write(_WRITE.pack(time.monotonic(), kind, user, value))


@dataclass(frozen=True)
class Event:
    """One line of an events file."""

    time: float
    kind: str
    what: str


@dataclass
class Kept:
    """What a user's number has to be: the value, or the other one when the last answer got lost."""

    value: int
    maybe: int | None = None


def events(folder: Path) -> list[Event]:
    """Of all connections, in order."""
    found = []
    for path in folder.glob("*.events"):
        for line in path.read_text().splitlines():
            at, kind, what = line.split(" ", 2)
            found.append(Event(float(at), kind, what))
    return sorted(found, key=lambda event: event.time)


def took(folder: Path) -> list[tuple[float, float]]:
    """(time, milliseconds) of all requests, in order."""
    return sorted(pair for path in folder.glob("*.took") for pair in _TOOK.iter_unpack(_whole(path, _TOOK.size)))


def writes(folder: Path) -> Iterator[tuple[float, int, int]]:
    """(time, user, value) of the acknowledged writes, in order."""
    return ((at, user, value) for at, kind, user, value in _writes(folder) if kind == _DONE)


def kept(folder: Path, generated: range) -> dict[int, Kept]:
    """What the database has to hold, by user; of the generated ones, those that were written to."""
    found: dict[int, Kept] = {}
    for _, kind, user, value in _writes(folder):
        if kind == _DONE:
            found[user] = Kept(value)
        elif user in found or user in generated:
            found.setdefault(user, Kept(GENERATED)).maybe = value if kind == _INTENT else None
    return found


def hand_over(path: Path, users: dict[int, int]) -> None:
    """Users and their values, for another instance."""
    unfinished = path.with_suffix(".unfinished")
    unfinished.write_bytes(b"".join(_PAIR.pack(*pair) for pair in users.items()))
    unfinished.replace(path)


def handed_over(path: Path) -> dict[int, int]:
    """What `hand_over` wrote; empty when the instance was killed before it could."""
    with suppress(FileNotFoundError):
        return dict(_PAIR.iter_unpack(path.read_bytes()))
    return {}


def _writes(folder: Path) -> list[tuple[float, bytes, int, int]]:
    records = [record for path in folder.glob("*.writes") for record in _WRITE.iter_unpack(_whole(path, _WRITE.size))]
    return sorted(records, key=lambda record: record[0])


def _whole(path: Path, size: int) -> bytes:
    """Its whole records: of a killed process, the last may be cut."""
    data = path.read_bytes()
    return data[: len(data) - len(data) % size]
