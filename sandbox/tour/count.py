"""The line that counts failed queries, wrong reads and lost writes while the application works."""

import time
from typing import Self

from rich.console import Console
from rich.live import Live
from rich.text import Text

from sandbox.payme_app.fleet import Fleet, Totals

_EVERY_SECONDS, _PLAIN_EVERY_SECONDS = 2.0, 15.0


class Count:
    """Use as a context manager. On a terminal the line stays the last one; elsewhere it is printed now and then."""

    def __init__(self, console: Console, fleet: Fleet, conninfo: str) -> None:
        self._console, self._fleet, self._conninfo = console, fleet, conninfo
        self._live = Live(console=console, auto_refresh=False) if console.is_terminal else None
        self._due = 0.0
        self.lost: set[int] = set()  # users whose acknowledged value was missing at any look

    def __enter__(self) -> Self:
        if self._live:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._live:
            self._live.stop()

    def look(self, doing: str, *, now: bool = False) -> None:
        """Let the requests under way end, compare what was acknowledged with the database, show it; unless it is early.

        `now`: early or not.
        """
        if time.monotonic() < self._due and not now:
            return
        with self._fleet.still():
            self.lost.update(self._fleet.lost_writes(self._conninfo, self._fleet.running[0].version))
            totals = self._fleet.account().totals()
        text = line(totals, len(self.lost), doing)
        if self._live:
            # On one line, or the line before would stay.
            self._live.update(Text(text, style="bold", no_wrap=True, overflow="ellipsis"), refresh=True)
        else:
            self._console.print(text, markup=False, soft_wrap=True)
        self._due = time.monotonic() + (_EVERY_SECONDS if self._live else _PLAIN_EVERY_SECONDS)


def line(totals: Totals, lost: int, doing: str) -> str:
    """What is shown; first what must stay zero."""
    return (
        f"   failed {totals.failed_queries} / wrong {totals.wrong_reads} / lost {lost}"
        f"   of {totals.requests:,} requests, {totals.acknowledged_writes:,} writes acknowledged   {doing}"
    )
