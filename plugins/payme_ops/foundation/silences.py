"""Silences: for at most four hours some alerts make no noise.

What a silence covers is written and sent as ever, but as a reply that is not shown in the channel: in the thread of its
key, or of the silence where the key has none yet. So nothing waits for somebody to send it, and who wants to can look.
Both ends of a silence are told in the channel, and at its end, what happened meanwhile and what is still on.

No silence covers that there is no verified backup, or that nobody can tell.
"""

from dataclasses import dataclass
from datetime import datetime, timedelta

from psycopg.rows import class_row

from payme_ops.foundation.postgres import connect, speaking
from payme_ops.foundation.sql import load

LONGEST = timedelta(hours=4)
MIN_REASON_CHARACTERS = 10
# The watchdog's alerts of what backups there are (backup/freshness.py), and what silences themselves say.
NEVER_SILENT = (
    "silent:daily_age",
    "silent:weekly_age",
    "silent:monthly_age",
    "silent:proof_age",
    "silent:rto_daily",
    "silent:rto_weekly",
    "silent:rto_monthly",
    "silent:freshness",
    "silence:",
)


@dataclass(frozen=True)
class Silence:
    """`key` of alerts, or with a * at its end all keys that begin so; `until` is UTC."""

    key: str
    reason: str
    by: str
    until: datetime


def active(conninfo: str) -> list[Silence]:
    """What is kept quiet now, the first to end first. Raises DatabaseUnavailable, DatabaseError."""
    with (
        connect(conninfo, application="payme_ops:silences") as connection,
        speaking("look at silences"),
        connection.cursor(row_factory=class_row(Silence)) as rows,
    ):
        return rows.execute(load("ops/active_silences.sql")).fetchall()
