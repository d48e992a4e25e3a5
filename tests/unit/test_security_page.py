"""SECURITY.md: what it says is shown by a test is shown by a test that is there."""

import ast
import re
from pathlib import Path

import pytest

PROJECT = Path(__file__).parents[2]
PAGE = (PROJECT / "SECURITY.md").read_text()
NAMED = sorted(set(re.findall(r"`(tests/[\w/]+\.py(?:::\w+)*)`", PAGE)))


def names(file: Path) -> set[str]:
    """The tests of a file, those of a class as CLASS::TEST."""
    found = set()
    for node in ast.parse(file.read_text()).body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            found.add(node.name)
        elif isinstance(node, ast.ClassDef):
            found |= {f"{node.name}::{inner.name}" for inner in node.body if isinstance(inner, ast.FunctionDef)}
    return found


@pytest.mark.parametrize("test", NAMED)
def test_a_test_that_it_names_is_there(test: str) -> None:
    file, *name = test.split("::", 1)
    assert (PROJECT / file).is_file()
    assert not name or name[0] in names(PROJECT / file)


def test_each_line_of_its_tables_is_shown_or_says_that_it_is_not() -> None:
    rows = [line for line in PAGE.splitlines() if line.startswith("| ") and "Shown by" not in line]
    queues = [line for line in rows if re.match(r"\| (`\w+`|any of them|Queue) \|", line)]  # shown above their table
    silent = [line for line in rows if line not in queues and "tests/" not in line and "**not" not in line]
    assert [line for line in silent if "**nothing prevents it**" not in line] == []
    assert len(NAMED) > 20
