"""How the longer benchmarks tell what they do, and where what they found is published."""

import time
from pathlib import Path

from rich.console import Console
from rich.markup import escape

from payme_ops.foundation.progress import Report


def narrator(console: Console) -> Report:
    """Prints lines, each after the seconds since now."""
    begun = time.monotonic()

    def say(text: str) -> None:
        console.print(f"[dim]{time.monotonic() - begun:5.0f} s[/dim]  {escape(text)}", soft_wrap=True)

    return say


def quiet(_line: str) -> None:
    """A report that nobody reads."""


def tell_failure(error: Exception) -> None:
    """On stderr, as it is."""
    Console(stderr=True, highlight=False).print(str(error), style="red", markup=False)


def publish(page: Path, target: str, text: str) -> None:
    """Put the text between the marks of that make target in a page."""
    name = target.replace("-", " ")
    begin, end = f"<!-- {name}: written by make {target} -->\n", f"<!-- /{name} -->\n"
    before, _, rest = page.read_text().partition(begin)
    page.write_text(f"{before}{begin}{text}{end}{rest.partition(end)[2]}")
