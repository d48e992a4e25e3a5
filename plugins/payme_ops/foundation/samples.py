"""Looks at an application, in the ops database: stored as they come, so that nothing is lost with who looks."""

from dataclasses import dataclass
from datetime import datetime
from typing import Any

from psycopg.types.json import Json

from payme_ops.foundation.health import State
from payme_ops.foundation.postgres import connect, speaking
from payme_ops.foundation.sql import load


@dataclass(frozen=True)
class Sample:
    """One look: state of /health, milliseconds of its answer, and figures beside it."""

    at: datetime
    state: State
    ms: float
    facts: dict[str, Any]


def store(ops: str, subject: str, sample: Sample) -> None:
    """Keep it; once. Raises DatabaseUnavailable, DatabaseError."""
    values = {"subject": subject, "at": sample.at, "state": sample.state, "ms": sample.ms, "facts": Json(sample.facts)}
    with connect(ops, application="payme_ops:samples") as connection, speaking("store a sample"):
        connection.execute(load("ops/insert_sample.sql"), values)


def of(ops: str, subject: str, since: datetime, until: datetime) -> list[Sample]:
    """Samples of that time, oldest first. Raises DatabaseUnavailable, DatabaseError."""
    values = {"subject": subject, "since": since, "until": until}
    with connect(ops, application="payme_ops:samples") as connection, speaking("read samples"):
        rows = connection.execute(load("ops/samples.sql"), values).fetchall()
    return [Sample(row[0], State(row[1]), row[2], row[3]) for row in rows]
