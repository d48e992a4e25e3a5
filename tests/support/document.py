"""Runs the code blocks of a document, so that what it tells people to type is what a test types.

Every fenced block whose info word is `bash` counts, in the order of the text; all run in one shell. Its variables
are the `NAME=value` lines of the first block: a test gives them other values, and every other line runs as it stands.
"""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

DOCS = Path(__file__).resolve().parents[2] / "docs"
_FENCE = re.compile(r"^```(\w*)[^\n]*\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_VARIABLE = re.compile(r"((?:export )?(\w+)=).*")


def blocks(name: str, language: str = "bash") -> list[str]:
    """The text of the blocks in that language of a document below docs/."""
    return [text for word, text in _FENCE.findall((DOCS / name).read_text()) if word == language]


def with_values(block: str, values: Mapping[str, str]) -> str:
    """The block with its variables set to these values: all that it has, and no other."""
    lines, left = [], dict(values)
    for line in block.splitlines():
        found = _VARIABLE.fullmatch(line)
        assert found, f"this line of the first block sets no variable: {line}"
        lines.append(f"{found[1]}'{left.pop(found[2])}'")
    assert not left, f"the document has no variable {', '.join(left)}"
    return "\n".join(lines)


def run(lines: list[str], env: Mapping[str, str], folder: Path) -> str:
    """What the blocks print, in one shell that stops at the first line that fails."""
    ended = subprocess.run(
        ["bash", "-eu", "-o", "pipefail", "-c", "\n".join(lines)],
        cwd=folder,
        env=dict(env),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    assert ended.returncode == 0, f"exit code {ended.returncode} after\n{ended.stdout}"
    return ended.stdout


def tools(folder: Path, **places: Path) -> Path:
    """A folder to put first on the PATH, with these programs in it by name. Skips when a place has no file."""
    folder.mkdir()
    for name, place in places.items():
        if not place.exists():
            _lacking(name)
        (folder / name).symlink_to(place)
    return folder


def without_us(world: Mapping[str, str], folder: Path) -> dict[str, str]:
    """An environment with stock tools, the AWS profiles of that world's environment, and no payme_ops."""
    require("age", "zstd", "openssl", "sha256sum")
    aws = Path(sys.executable).parent / "aws"
    python = Path(sys.base_prefix, "bin", "python3").resolve()
    path = tools(folder / "tools", aws=aws, python3=python)
    env = {
        "PATH": f"{path}:/usr/local/bin:/usr/bin:/bin",
        "HOME": str(folder),
        "AWS_CONFIG_FILE": world["AWS_CONFIG_FILE"],
        "AWS_SHARED_CREDENTIALS_FILE": world["AWS_SHARED_CREDENTIALS_FILE"],
        "NO_PROXY": "127.0.0.1",
    }
    refused = subprocess.run(
        ["python3", "-c", "import payme_ops"], env=env, capture_output=True, text=True, check=False
    )
    assert "ModuleNotFoundError" in refused.stderr
    return env


def require(*names: str) -> None:
    """Skip, or in CI fail, unless these programs are on the PATH."""
    for name in names:
        if shutil.which(name) is None:
            _lacking(name)


def _lacking(name: str) -> None:
    missing = f"{name} is not installed; the lines of this document need it"
    if os.environ.get("CI") == "true":
        pytest.fail(missing)
    pytest.skip(missing)
