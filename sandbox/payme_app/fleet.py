"""The fleet of instances: started, rolled to the next version one by one, counted."""

import itertools
import os
import subprocess
import sys
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from math import inf
from pathlib import Path
from typing import Self

import psycopg
from psycopg.conninfo import make_conninfo

from payme_ops.migration import envelope
from payme_ops.migration.names import PHONE_NUMBER
from sandbox.payme_app import ledger
from sandbox.payme_app.instance import CONNINFO_VARIABLE
from sandbox.payme_app.ledger import GENERATED, GONE, Event, Kept
from sandbox.payme_app.versions import Version, is_right
from sandbox.postgres import PROJECT
from sandbox.supervisor import SandboxError


@dataclass(frozen=True)
class Totals:
    """Of a stretch of time. Acknowledged writes are those whose value is checked: new, changed and deleted users."""

    requests: int
    acknowledged_writes: int
    failed_queries: int
    wrong_reads: int
    disconnects: int
    what: Mapping[str, int]  # version, request and SQLSTATE or user of what went wrong, and how often


@dataclass(frozen=True)
class Account:
    """All that was written down so far, by time (monotonic clock)."""

    took: Sequence[tuple[float, float]]
    written: Sequence[float]
    events: Sequence[Event]

    def totals(self, since: float = 0.0, until: float = inf) -> Totals:
        """Of what ended in that time."""
        events = [event for event in self.events if since <= event.time < until]
        kinds = Counter(event.kind for event in events)
        return Totals(
            requests=len(self.latencies(since, until)),
            acknowledged_writes=bisect_left(self.written, until) - bisect_left(self.written, since),
            failed_queries=kinds["failed"],
            wrong_reads=kinds["wrong"],
            disconnects=kinds["disconnect"],
            what=Counter(f"{event.kind} {event.what}" for event in events),
        )

    def latencies(self, since: float = 0.0, until: float = inf) -> list[float]:
        """Milliseconds of the requests that ended in that time, sorted."""
        first, last = bisect_left(self.took, (since, 0.0)), bisect_left(self.took, (until, 0.0))
        return sorted(took for _, took in self.took[first:last])


class Instance:
    """One process. Everything it is told it answers."""

    version: Version

    def __init__(self, ordinal: int, command: list[str], env: Mapping[str, str]) -> None:
        self.ordinal = ordinal
        self.process = subprocess.Popen(
            [*command, "--ordinal", str(ordinal)],
            env=env,
            cwd=PROJECT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.expect("up")

    def run(self, version: Version) -> None:
        """Let it serve as that version; returns when it is connected."""
        self.version = version
        self.tell(f"run {version.number}", "ready")

    def expect(self, answer: str) -> None:
        """Wait for its answer. Raises SandboxError when it ends instead."""
        assert self.process.stdout is not None  # noqa: S101
        if (said := self.process.stdout.readline().strip()) != answer:
            raise SandboxError(
                f"instance {self.ordinal} of the application ended", expected=answer, found=said or "nothing"
            )

    def tell(self, line: str, answer: str = "done") -> None:
        """Give it a line, wait for the answer."""
        assert self.process.stdin is not None  # noqa: S101
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()
        self.expect(answer)

    def end(self) -> None:
        """Wait for its end; kill it when it does not."""
        self.process.kill()
        self.process.communicate()


class Fleet:
    """Use as a context manager. `folder` receives what the instances write down; a fleet has a folder of its own.

    `generated` are the ids of sandbox.payme_db's users; `adopted` of them are given to the instances to work with.
    """

    def __init__(
        self,
        conninfo: str,
        folder: Path,
        env: Mapping[str, str],
        *,
        generated: int,
        adopted: int = 0,
        instances: int = 2,
        connections: int = 2,
        per_second: float = 0.0,
        key_id: str = "k1",
    ) -> None:
        self.folder, self._instances, self._generated = folder, instances, range(1, generated + 1)
        folder.mkdir(parents=True, exist_ok=True)
        self._adopted = adopted
        self._env = {
            "PATH": os.environ.get("PATH", os.defpath),
            envelope.KEY_VARIABLE: env[envelope.KEY_VARIABLE],
            CONNINFO_VARIABLE: conninfo,
        }
        self._keys = envelope.load_keys(self._env, key_id=key_id, names=PHONE_NUMBER)
        self._command = [sys.executable, "-m", "sandbox.payme_app", "--folder", str(folder), "--key-id", key_id]
        self._command += ["--connections", str(connections), "--per-second", str(per_second)]
        self._ordinals = itertools.count(1)
        self.running: list[Instance] = []
        self._spare: list[Instance] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for instance in (*self.running, *self._spare):
            instance.end()
        self.running.clear()
        self._spare.clear()

    def warm(self) -> None:
        """Start the processes that the next roll-out needs: in production the machines that serve do not do that."""
        while len(self._spare) < self._instances:
            self._spare.append(Instance(next(self._ordinals), self._command, self._env))

    def start(self, version: Version) -> None:
        """All instances, in that version."""
        self.running += [self._spawn(version) for _ in range(self._instances)]
        step = max(1, len(self._generated) // max(1, self._adopted))
        users = dict.fromkeys(self._generated[::step][: self._adopted], GENERATED)
        for which, instance in enumerate(self.running):
            share = dict(itertools.islice(users.items(), which, None, len(self.running)))
            path = self._handover(instance)
            ledger.hand_over(path, share)
            instance.tell(f"adopt {path}")

    def roll(self, version: Version) -> None:
        """Replace the instances one by one: the new one is up before the old one is drained."""
        for place, old in enumerate(list(self.running)):
            new = self._spawn(version)
            try:
                path = self._handover(old)
                old.tell(f"drain {path}", "drained")
                old.process.wait()
                new.tell(f"adopt {path}")
            finally:
                self.running[place] = new
                old.end()

    @contextmanager
    def still(self) -> Iterator[None]:
        """No request is under way during the block."""
        self._tell_all("still")
        try:
            yield
        finally:
            self._tell_all("go")

    def stop(self) -> None:
        """Drain all; what they wrote down is complete."""
        for instance in self.running:
            instance.tell(f"drain {self._handover(instance)}", "drained")
            instance.end()
        self.running.clear()

    def account(self) -> Account:
        """What the instances have written down; whole only while they are still, or stopped."""
        return Account(
            took=ledger.took(self.folder),
            written=[at for at, _, _ in ledger.writes(self.folder)],
            events=ledger.events(self.folder),
        )

    def lost_writes(self, conninfo: str, version: Version, *, untouched: bool = False) -> list[int]:
        """Users whose acknowledged value is not in the database as `version` reads it. Call it while still, or stopped.

        With `untouched` those that no instance has written to are read, too.
        """
        expected: dict[int, Kept] = {user: Kept(GENERATED) for user in self._generated} if untouched else {}
        expected |= ledger.kept(self.folder, self._generated)
        with psycopg.connect(make_conninfo(conninfo, application_name="payme-app-check")) as connection:
            rows = connection.execute(version.read_many, {"ids": list(expected)}).fetchall()
        found: dict[int, str | None] = dict(rows)
        return [user for user, kept in expected.items() if not self._is_kept(version, user, kept, found)]

    def _is_kept(self, version: Version, user: int, kept: Kept, found: Mapping[int, str | None]) -> bool:
        allowed = {kept.value} if kept.maybe is None else {kept.value, kept.maybe}
        if user not in found:
            return GONE in allowed
        return any(is_right(version, self._keys, user, value, found[user]) for value in allowed - {GONE})

    def _spawn(self, version: Version) -> Instance:
        instance = self._spare.pop() if self._spare else Instance(next(self._ordinals), self._command, self._env)
        try:
            instance.run(version)
        except SandboxError:
            instance.end()
            raise
        return instance

    def _tell_all(self, line: str) -> None:
        for instance in self.running:
            instance.tell(line)

    def _handover(self, instance: Instance) -> Path:
        return self.folder / f"{instance.ordinal}.users"
