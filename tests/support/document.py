"""Runs the code blocks of a document, so that what it tells people to type is what a test types.

Every fenced block whose info word is `bash` counts, in the order of the text; all run in one shell. Its variables
are the `NAME=value` lines of the first block: a test gives them other values, and every other line runs as it stands.
"""

import re
import subprocess
from collections.abc import Mapping
from pathlib import Path

DOCS = Path(__file__).resolve().parents[1] / "docs"
_FENCE = re.compile(r"^```(\w*)[^\n]*\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def blocks(document: Path, language: str = "bash") -> list[str]:
    """The text of the document's blocks in that language."""
    return [text for word, text in _FENCE.findall(document.read_text(encoding="utf-8")) if word == language]


def with_values(block: str, values: Mapping[str, str]) -> str:
    """The block with its variables set to these values. Each must be there, and none may be left as it stood."""
    lines, left = [], dict(values)
    for line in block.splitlines():
        found = re.fullmatch(r"((?:export )?(\w+)=)\S*(?:\s+#.*)?", line)
        if found is None:
            raise AssertionError(f"not a line of variables: {line}")
        lines.append(f"{found[1]}'{left.pop(found[2])}'")
    assert not left, f"the document has no variable {', '.join(left)}"
    return "\n".join(lines) + "\n"


def run(lines: list[str], env: Mapping[str, str], cwd: Path) -> str:
    """Run the blocks in one shell that stops at the first failing line; returns what they printed."""
    ended = subprocess.run(
        ["bash", "-eu", "-o", "pipefail", "-c", "\n".join(lines)],
        env=dict(env),
        cwd=cwd,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    assert ended.returncode == 0, f"exit code {ended.returncode}:\n{ended.stdout}"
    return ended.stdout
