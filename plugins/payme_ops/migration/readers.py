"""Processes that read ranges of one exported snapshot and judge every row.

A reader is a process of its own (decrypting is CPU, and one Python process has one core) that knows the package and
no Airflow, so it is small. Connection and key come through its standard input, never by argument or environment. It
takes one range a line and answers one line, so that it ends when whoever started it does.
"""

import hashlib
import hmac
import json
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import psycopg
from psycopg import errors, sql
from psycopg.types.string import ByteaBinaryLoader

from payme_ops.foundation.errors import DatabaseError, DatabaseUnavailable, PaymeOpsError, Unavailable
from payme_ops.foundation.postgres import client_environment, connect, speaking
from payme_ops.migration import envelope
from payme_ops.migration.envelope import Keys
from payme_ops.migration.judge import Fault, Kind, judge
from payme_ops.migration.names import Names, statement

NAMED = 50  # faults that are named; all are counted
_PLUGINS = Path(__file__).resolve().parents[2]
_AT_ONCE = 4096  # rows in memory
_NO_NUMBER = b"\xff"  # in no UTF-8, so unlike any number
_NO_SNAPSHOT = (errors.InvalidParameterValue, errors.UndefinedObject, errors.ObjectNotInPrerequisiteState)


@dataclass(frozen=True)
class Layout:
    """Where the columns stand now: `base` while the shim view has the table's name, `renamed` once the ciphertext has
    the plaintext's; `plaintext` while that column exists, `compare` while it is what counts."""

    base: bool
    renamed: bool
    plaintext: bool
    compare: bool

    def parts(self, names: Names) -> dict[str, sql.Composable]:
        """Identifiers for the SQL files that read rows."""
        identifiers = names.identifiers
        return {
            "source": identifiers["base_relation" if self.base else "relation"],
            "stored": identifiers["plaintext" if self.renamed else "ciphertext"],
            "number": identifiers["plaintext"] if self.plaintext else sql.NULL,
        }


@dataclass(frozen=True)
class Session:
    """A session in a transaction that sees one exported snapshot."""

    connection: psycopg.Connection
    snapshot: str


@dataclass(frozen=True)
class Judged:
    """What rows came to. `digest` is equal for equal keys and numbers, whatever ciphertexts they have."""

    rows: int
    with_number: int
    digest: str
    kinds: dict[str, int]
    faults: list[Fault]


@dataclass(frozen=True)
class Part:
    """One range of keys, low exclusive, high inclusive, as one snapshot sees it."""

    snapshot: str
    low: int
    high: int
    judged: Judged


@contextmanager
def patient(conninfo: str) -> Iterator[psycopg.Connection]:
    """A session for transactions of any length. They end about a minute after the machine of their task is gone."""
    with connect(conninfo, application="payme_ops:migration:verify") as connection:
        with speaking("set up a session of the verification"):
            for setting in (
                "statement_timeout = 0",
                "idle_in_transaction_session_timeout = 0",
                "tcp_keepalives_idle = 30",
                "tcp_keepalives_interval = 10",
                "tcp_keepalives_count = 3",
            ):
                connection.execute(f"SET {setting}")
        yield connection


@contextmanager
def reading(conninfo: str) -> Iterator[psycopg.Connection]:
    """A session for transactions that only read, all of them under one snapshot each and without a time limit.

    Rows that a policy hides are an error. Text is given as UTF-8.
    """
    with patient(conninfo) as connection:
        with speaking("set up a session that reads"):
            connection.execute("SET row_security = off")
        connection.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
        connection.read_only = True
        connection.adapters.register_loader("text", ByteaBinaryLoader)
        yield connection


@contextmanager
def joined(conninfo: str, snapshot: str) -> Iterator[Session]:
    """A session under a snapshot that another session exported and still holds. Raises Unavailable when it is gone."""
    with reading(conninfo) as connection, under(connection, snapshot) as session:
        yield session


@contextmanager
def under(connection: psycopg.Connection, snapshot: str) -> Iterator[Session]:
    """A transaction of a session that is `reading`, under that snapshot. Raises Unavailable when it is gone."""
    with speaking("join the exported snapshot"), connection.transaction():
        try:
            connection.execute(sql.SQL("SET TRANSACTION SNAPSHOT {}").format(sql.Literal(snapshot)))
        except _NO_SNAPSHOT:
            raise Unavailable(
                f"the snapshot {snapshot} is gone",
                expected="the task that exported it to hold it until every row is read",
                found="none that holds it: that task was stopped, or lost its connection",
                remedy="verify again; across workers clear plan_reading with hold_snapshot and read_snapshot",
            ) from None
        yield Session(connection, snapshot)


def read_range(session: Session, keys: Keys, names: Names, layout: Layout, low: int, high: int) -> Part:
    """Read and judge the rows of a range. Raises DatabaseError, DatabaseUnavailable; wrong rows are told."""
    query = statement(names, "4_read_range.sql", **layout.parts(names))
    with speaking("read a range of rows"):
        judged = judge_query(session.connection, query, {"low": low, "high": high}, keys, names, layout)
    return Part(session.snapshot, low, high, judged)


def judge_query(
    connection: psycopg.Connection,
    query: sql.Composed,
    values: Mapping[str, object],
    keys: Keys,
    names: Names,
    layout: Layout,
) -> Judged:
    """Judge the rows of a query, a few thousand in memory at a time. Raises psycopg.Error.

    The digest is keyed, or whoever reads it could try numbers on it.
    """
    ids, numbers = hashlib.sha256(), hmac.new(keys.index_key, digestmod="sha256")
    rows = with_number = 0
    kinds: Counter[str] = Counter()
    faults: list[Fault] = []
    with connection.cursor(name="rows") as cursor:
        cursor.execute(query, values, binary=True)
        while chunk := cursor.fetchmany(_AT_ONCE):
            found, wrong = judge(keys, names, chunk, compare=layout.compare)
            ids.update(b"".join([b"%d\n" % row[0] for row in chunk]))
            numbers.update(b"\0".join([_NO_NUMBER if number is None else number for number in found]) + b"\0")
            rows += len(chunk)
            with_number += len(found) - found.count(None)
            kinds.update(str(fault.kind) for fault in wrong)
            faults += wrong[: NAMED - len(faults)]
    digest = hashlib.sha256(ids.digest() + numbers.digest()).hexdigest()
    return Judged(rows, with_number, digest, dict(kinds), faults)


@contextmanager
def reader(conninfo: str, snapshot: str, keys: Keys, names: Names, layout: Layout) -> Iterator["subprocess.Popen[str]"]:
    """A process that has joined the snapshot, for `ask`; gone after the block."""
    job = {
        "conninfo": conninfo,
        "snapshot": snapshot,
        "secret": keys.secret.hex(),
        "key_id": keys.key_id,
        "names": asdict(names),
        "layout": asdict(layout),
    }
    with subprocess.Popen(
        [sys.executable, "-P", "-m", "payme_ops.migration.readers"],
        env=client_environment({"PYTHONPATH": str(_PLUGINS)}),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,  # a traceback could show a row
        text=True,
        encoding="utf-8",
    ) as process:
        try:
            _exchange(process, job)
            yield process
        except BaseException:
            process.kill()
            raise


def ask(process: "subprocess.Popen[str]", low: int, high: int) -> Part:
    """Have a reader read a range. Raises Unavailable when it is gone, and what it could not do."""
    return part_of(_exchange(process, [low, high]))


def part_of(said: dict[str, Any]) -> Part:
    """The Part that `asdict` and JSON made that of."""
    judged = said["judged"]
    faults = [Fault(fault["id"], Kind(fault["kind"])) for fault in judged["faults"]]
    return Part(**{**said, "judged": Judged(**{**judged, "faults": faults})})


def _exchange(process: "subprocess.Popen[str]", message: object) -> dict[str, Any]:
    line = ""
    if process.stdin and process.stdout:  # both are pipes
        with suppress(BrokenPipeError):
            process.stdin.write(json.dumps(message) + "\n")
            process.stdin.flush()
            line = process.stdout.readline()
    if not line.endswith("\n"):
        process.kill()
        code = process.wait()
        raise Unavailable(
            "a reader of the verification ended",
            expected="an answer for every range of rows",
            found=f"signal {-code}" if code < 0 else f"exit code {code}",
            remedy="run it again; see whether the machine ran out of memory",
        )
    said: dict[str, Any] = json.loads(line)
    if "error" in said:
        raise (DatabaseUnavailable if said["again"] else DatabaseError)(**said["error"])
    return said


def main() -> None:
    """A reader: the job in the first line of standard input, then a range a line."""
    job = json.loads(sys.stdin.readline())
    names, layout = Names(**job["names"]), Layout(**job["layout"])
    keys = envelope.derive(bytes.fromhex(job["secret"]), key_id=job["key_id"], names=names)
    try:
        with joined(job["conninfo"], job["snapshot"]) as session:
            _say({})
            for line in sys.stdin:
                low, high = json.loads(line)
                _say(asdict(read_range(session, keys, names, layout, low, high)))
    except PaymeOpsError as error:
        told = {name: getattr(error, name) for name in ("what", "expected", "found", "remedy")}
        _say({"error": told, "again": isinstance(error, Unavailable)})
    except Exception as error:  # of any kind: its own text could show a row
        _say({"error": {"what": "a reader of the verification failed", "found": type(error).__name__}, "again": False})


def _say(answer: object) -> None:
    sys.stdout.write(json.dumps(answer) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
