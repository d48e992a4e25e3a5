"""The archive's own table of contents, read from the head of the stream while it passes.

pg_dump writes the contents first when its output is a pipe, so `pg_restore --list` ends as soon as it has them.
"""

import re
import subprocess
import threading
from collections import Counter
from pathlib import Path

from payme_ops.foundation.postgres import client_environment

# Entry kinds of pg_dump 14 to 18, longest first so that FK CONSTRAINT is not read as something shorter.
_KINDS = sorted(
    """ACCESS METHOD|ACL|AGGREGATE|BLOB|BLOB METADATA|BLOBS|CAST|CHECK CONSTRAINT|COLLATION|COMMENT|CONSTRAINT
|CONVERSION|DATABASE|DATABASE PROPERTIES|DEFAULT|DEFAULT ACL|DOMAIN|ENCODING|EVENT TRIGGER|EXTENSION|FK CONSTRAINT
|FOREIGN DATA WRAPPER|FOREIGN TABLE|FUNCTION|INDEX|INDEX ATTACH|LARGE OBJECT|MATERIALIZED VIEW
|MATERIALIZED VIEW DATA|OPERATOR|OPERATOR CLASS|OPERATOR FAMILY|POLICY|PROCEDURAL LANGUAGE|PROCEDURE|PUBLICATION
|PUBLICATION TABLE|PUBLICATION TABLES IN SCHEMA|ROW SECURITY|RULE|SCHEMA|SEARCHPATH|SECURITY LABEL|SEQUENCE
|SEQUENCE OWNED BY|SEQUENCE SET|SERVER|SHELL TYPE|STATISTICS|STATISTICS DATA|STDSTRINGS|SUBSCRIPTION
|SUBSCRIPTION TABLE|TABLE|TABLE ATTACH|TABLE DATA|TEXT SEARCH CONFIGURATION|TEXT SEARCH DICTIONARY
|TEXT SEARCH PARSER|TEXT SEARCH TEMPLATE|TRANSFORM|TRIGGER|TYPE|USER MAPPING|VIEW""".replace("\n", "").split("|"),
    key=len,
    reverse=True,
)
_ENTRY = re.compile(rf"^\d+; \d+ \d+ ({'|'.join(_KINDS)}) ")


def count_entries(listing: str) -> dict[str, int]:
    """Entries by kind of a `pg_restore --list` text; kinds this table does not know are counted as OTHER."""
    counts: Counter[str] = Counter()
    for line in listing.splitlines():
        if line and line[0].isdigit() and "; " in line:
            found = _ENTRY.match(line)
            counts[found[1] if found else "OTHER"] += 1
    return dict(sorted(counts.items()))


class ListingTee:
    """Feeds the head of an archive to `pg_restore --list` until that has read enough."""

    def __init__(self, pg_restore: Path) -> None:
        self._process = subprocess.Popen(
            [pg_restore, "--list"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=client_environment({}),
        )
        self._output = b""
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        self._open = True

    def feed(self, chunk: bytes) -> None:
        """Pass a chunk on; does nothing once pg_restore is done."""
        if not self._open or self._process.stdin is None:
            return
        try:
            self._process.stdin.write(chunk)
            self._process.stdin.flush()
        except (BrokenPipeError, ConnectionResetError):
            self._close()

    def counts(self) -> dict[str, int] | None:
        """Entries by kind; call once the stream has ended. None when the head was no archive."""
        self._close()
        self._reader.join()
        if self._process.wait() != 0:
            return None
        return count_entries(self._output.decode(errors="replace"))

    def kill(self) -> None:
        """Stop without an answer."""
        self._close()
        self._process.kill()
        self._reader.join()
        self._process.wait()

    def _close(self) -> None:
        if self._open and self._process.stdin is not None:
            self._open = False
            try:
                self._process.stdin.close()
            except (BrokenPipeError, ConnectionResetError):
                return

    def _read(self) -> None:
        if self._process.stdout is not None:
            self._output = self._process.stdout.read()
