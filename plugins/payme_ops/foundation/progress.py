"""Long work reports itself: done, total, rate, ETA and why it is slowed, every few seconds."""

import logging
import time
from collections.abc import Callable

Report = Callable[[str], None]
_EVERY_SECONDS = 5.0
_BAR = 20


class Progress:
    """Counts bytes, or rows, and reports at most every five seconds. `total` may be an estimate or None."""

    def __init__(
        self,
        label: str,
        *,
        total: int | None = None,
        report: Report | None = None,
        show: Callable[[int], str] | None = None,
    ) -> None:
        self._label, self._total, self._show = label, total, show or size
        self._report = report or logging.getLogger("payme_ops").info
        self._started = self._reported = time.monotonic()
        self.done = 0

    def add(self, count: int, *, slowed: str = "") -> None:
        """Count `count` more; `slowed` says why it is slow, if it is."""
        self.done += count
        now = time.monotonic()
        if now - self._reported >= _EVERY_SECONDS:
            self._reported = now
            self._report(self._line(now) + (f"; slowed: {slowed}" if slowed else ""))

    def finish(self) -> None:
        """Report the end; a total that was too large an estimate is no longer shown."""
        self._total = None
        self._report(self._line(time.monotonic()))

    def _line(self, now: float) -> str:
        elapsed = max(now - self._started, 0.001)
        rate = self.done / elapsed
        line = f"{self._label}: {self._show(self.done)} in {elapsed:.1f} s, {self._show(int(rate))}/s"
        if self._total and self.done < self._total:
            share = self.done / self._total
            bar = f"[{'#' * round(share * _BAR):-<{_BAR}}]"
            left = (self._total - self.done) / max(rate, 1)
            line += f", {bar} {share:.0%} of about {self._show(self._total)}, {left:.0f} s left"
        return line


def size(count: int) -> str:
    """Bytes for people, decimal units: `508.9 MB`."""
    value = float(count)
    for unit in ("B", "kB", "MB", "GB"):
        if value < 999.95:  # 1000.0 belongs to the next unit
            return f"{value:.0f} B" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1000
    return f"{value:.1f} TB"


def rows(count: int) -> str:
    """Rows for people: `1,200,000 rows`."""
    return f"{count:,} rows"
