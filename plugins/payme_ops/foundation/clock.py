"""Business time is EAT (Africa/Nairobi, UTC+3, no daylight saving): keys, tiers and weekdays are EAT days.

Instants are stored in UTC. Functions that need the time take it as an argument; `utc_now` is the one place
that reads it, so that tests can travel.
"""

import re
from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

EAT = ZoneInfo("Africa/Nairobi")
_KEY_FORMAT = "%Y%m%dT%H%M%SEAT"
_STAMP = re.compile(r"[12][0-9]{7}T[0-9]{6}EAT")


def utc_now() -> datetime:
    """The current instant, UTC, whole seconds: what is stored can be compared with what is read back."""
    return datetime.now(UTC).replace(microsecond=0)


def key_stamp(instant: datetime) -> str:
    """`20260128T020000EAT`: the part of an object key that sorts by time."""
    return instant.astimezone(EAT).strftime(_KEY_FORMAT)


def parse_key_stamp(stamp: str) -> datetime:
    """The UTC instant of a key stamp. Raises ValueError for any other text."""
    if not _STAMP.fullmatch(stamp):  # strptime alone takes fewer digits, too
        raise ValueError(f"{stamp!r} is not a key stamp")
    return datetime.strptime(stamp, _KEY_FORMAT).replace(tzinfo=EAT).astimezone(UTC)


def show(instant: datetime) -> str:
    """How an instant is shown to people: `2026-01-28 02:00:00 EAT`."""
    return instant.astimezone(EAT).strftime("%Y-%m-%d %H:%M:%S EAT")


def span(length: timedelta) -> str:
    """How long something took, for people: `under 1 s`, `45 s`, `2 min 5 s`, `3 h 20 min`, `2 d 4 h`."""
    seconds = int(length.total_seconds())
    if seconds < 1:
        return "under 1 s"
    for unit, name, part, part_name in ((86400, "d", 3600, "h"), (3600, "h", 60, "min"), (60, "min", 1, "s")):
        if seconds >= unit:
            rest = seconds % unit // part
            return f"{seconds // unit} {name} {rest} {part_name}" if rest else f"{seconds // unit} {name}"
    return f"{seconds} s"
