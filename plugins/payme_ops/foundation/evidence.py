"""What was measured, by whom, against which threshold: one shape for preflight, doctor, gates and checklists."""

import hashlib
import json
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import Any

from psycopg.types.json import Json

from payme_ops.foundation.clock import utc_now
from payme_ops.foundation.errors import NotFound, PaymeOpsError, Unavailable
from payme_ops.foundation.postgres import connect, speaking
from payme_ops.foundation.scrub import scrub_all
from payme_ops.foundation.sql import load


class Verdict(StrEnum):
    """A gate without data answers inconclusive, never pass."""

    PASS = "pass"  # noqa: S105  # a verdict
    FAIL = "fail"
    INCONCLUSIVE = "inconclusive"
    BYPASSED = "bypassed"


@dataclass(frozen=True)
class Evidence:
    """One measured item. `measured` is JSON data; `sha256` is over its canonical form."""

    item: str
    verdict: Verdict
    measured: Any
    threshold: str
    actor: str
    started: datetime
    ended: datetime
    source: str
    sha256: str
    remedy: str = ""


@dataclass(frozen=True)
class Finding:
    """What a check function answers; `check` adds who, when and the digest."""

    verdict: Verdict
    measured: Any
    remedy: str = ""


def passed(measured: Any) -> Finding:
    """The check passes."""
    return Finding(Verdict.PASS, measured)


def failed(measured: Any, remedy: str) -> Finding:
    """The check fails; `remedy` is what the reader does next."""
    return Finding(Verdict.FAIL, measured, remedy)


@dataclass(frozen=True)
class Check:
    """A named check with its threshold, and the function that measures."""

    item: str
    threshold: str
    source: str
    measure: Callable[[], Finding] = field(repr=False)


def run_check(check: Check, *, actor: str) -> Evidence:
    """Measure. A service that cannot be reached is inconclusive, any other error of ours a fail; neither passes."""
    started = utc_now()
    try:
        finding = check.measure()
    except PaymeOpsError as error:
        verdict = Verdict.INCONCLUSIVE if isinstance(error, Unavailable) else Verdict.FAIL
        finding = Finding(verdict, {"error": error.what, "found": error.found}, error.remedy)
    return conclude(check.item, finding, threshold=check.threshold, actor=actor, source=check.source, started=started)


def run_in_turn(checks: Iterable[Check], *, actor: str) -> list[Evidence]:
    """Measure one after the other as long as they pass: what hangs on one that does not would only say it again."""
    found: list[Evidence] = []
    for check in checks:
        found.append(run_check(check, actor=actor))
        if found[-1].verdict is not Verdict.PASS:
            break
    return found


def conclude(item: str, finding: Finding, *, threshold: str, actor: str, source: str, started: datetime) -> Evidence:
    """The evidence of a finding that ends now; what was measured is scrubbed."""
    measured = scrub_all(finding.measured)
    return Evidence(
        item=item,
        verdict=finding.verdict,
        measured=measured,
        threshold=threshold,
        actor=actor,
        started=started,
        ended=utc_now(),
        source=source,
        sha256=digest(measured),
        remedy=finding.remedy,
    )


def plain(measured: object) -> str:
    """Measured data in one line, for people."""
    if measured in ({}, [], ()):
        return "none"
    if isinstance(measured, dict):
        return ", ".join(f"{name} {plain(value)}" for name, value in measured.items())
    if isinstance(measured, list | tuple):
        return "; ".join(plain(value) for value in measured)
    if isinstance(measured, bool):
        return "yes" if measured else "no"
    return "none" if measured is None else str(measured)


def canonical(value: Any) -> bytes:
    """Canonical JSON: sorted keys, no spaces, UTF-8, no NaN. The bytes that digests and signatures are made of."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode()


def digest(value: Any) -> str:
    """SHA-256 (hex) of the canonical form."""
    return hashlib.sha256(canonical(value)).hexdigest()


def record(conninfo: str, run: str, items: list[Evidence]) -> None:
    """Write evidence to the ops database. Raises DatabaseUnavailable, DatabaseError."""
    rows = [{**asdict(item), "run": run, "measured": Json(item.measured)} for item in items]
    with (
        connect(conninfo, application="payme_ops:evidence") as connection,
        speaking("record evidence"),
        connection.cursor() as cursor,
    ):
        cursor.executemany(load("ops/insert_evidence.sql"), rows)


def keep(
    conninfo: str,
    run: str,
    item: str,
    finding: Finding,
    *,
    threshold: str,
    source: str,
    started: datetime | None = None,
) -> Evidence:
    """Conclude what the run itself found, and write it down. Raises DatabaseUnavailable, DatabaseError."""
    made = conclude(item, finding, threshold=threshold, actor=run, source=source, started=started or utc_now())
    record(conninfo, run, [made])
    return made


def latest(conninfo: str, run: str, item: str) -> Evidence:
    """The newest evidence of one item of one run; its digest is checked against what it measured.

    Raises NotFound when the run has none, IntegrityError is left to the caller's own facts.
    """
    with connect(conninfo, application="payme_ops:evidence") as connection, speaking("read evidence"):
        row = connection.execute(load("ops/latest_evidence.sql"), [run, item]).fetchone()
    if row is None or digest(row[2]) != row[8]:
        raise NotFound(
            f"no usable evidence for {item}",
            expected=f"evidence of the same run ({run})",
            found="none" if row is None else "evidence whose digest does not match its content",
            remedy="run the task that produces it again; marking it as success does not produce evidence",
        )
    return Evidence(row[0], Verdict(row[1]), *row[2:])


def find(conninfo: str, run: str, item: str) -> Evidence | None:
    """The same, or None when the run has none that can be used."""
    try:
        return latest(conninfo, run, item)
    except NotFound:
        return None


def of_run(conninfo: str, run: str) -> list[Evidence]:
    """All evidence of a run in the order in which it was found. Raises DatabaseUnavailable, DatabaseError."""
    return [found for _, found in numbered(conninfo, run)]


def newest_before(conninfo: str, dag: str, item: str, before: datetime) -> tuple[str, datetime] | None:
    """The newest run of a DAG that recorded that item before then, and when. Raises DatabaseUnavailable."""
    values = {"prefix": f"{dag.replace('_', chr(92) + '_')}/%", "item": item, "before": before}
    with connect(conninfo, application="payme_ops:evidence") as connection, speaking("look for earlier evidence"):
        row = connection.execute(load("ops/newest_run_before.sql"), values).fetchone()
    return (row[0], row[1]) if row else None


def numbered(conninfo: str, run: str) -> list[tuple[int, Evidence]]:
    """The same, each with its number in the ops database."""
    with connect(conninfo, application="payme_ops:evidence") as connection, speaking("read evidence"):
        rows = connection.execute(load("ops/evidence_of_run.sql"), [run]).fetchall()
    return [(row[10], Evidence(row[0], Verdict(row[1]), *row[2:10])) for row in rows]
