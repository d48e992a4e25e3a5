"""Each item of a release's checklist has a test that makes it block; each construction that fails unsafely has its own.

Both are read from the files, so that a gate without a proof fails before anything is run.
"""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

from payme_ops.release.checklist import ITEMS

PROJECT = Path(__file__).resolve().parents[2]
PAGE = PROJECT / "docs" / "adr" / "0022-what-airflow-does-not-hold.md"
_TEST = re.compile(r"`(tests/[\w/]+\.py)::(\w+)`")


def blocked(source: str) -> Iterator[str]:
    """The items that a file's tests are marked to block: at a test, at its class, or for the whole file."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and node.name.lower().startswith("test"):
            marked: list[ast.expr] = node.decorator_list
        elif isinstance(node, ast.Assign) and [one.id for one in node.targets if isinstance(one, ast.Name)] == [
            "pytestmark"
        ]:
            marked = [node.value]
        else:
            continue
        for call in (inner for one in marked for inner in ast.walk(one) if isinstance(inner, ast.Call)):
            if isinstance(call.func, ast.Attribute) and call.func.attr == "blocks":
                yield from (str(one.value) for one in call.args if isinstance(one, ast.Constant))


def proofs() -> dict[str, set[str]]:
    """Item to the files that prove it."""
    found: dict[str, set[str]] = {}
    for path in sorted((PROJECT / "tests").rglob("test_*.py")):
        for item in blocked(path.read_text()):
            found.setdefault(item, set()).add(path.name)
    return found


def test_every_gate_has_a_test_that_makes_it_block() -> None:
    missing = sorted(ITEMS.keys() - proofs().keys())
    assert missing == [], f"without @pytest.mark.blocks: {', '.join(missing)}"


def test_no_mark_names_what_is_no_gate() -> None:
    unknown = {item: files for item, files in proofs().items() if item not in ITEMS}
    assert unknown == {}


def test_a_gate_without_a_proof_is_found() -> None:
    """The mark counts only where pytest would run it."""
    source = """
import pytest
pytestmark = [pytest.mark.long, pytest.mark.blocks("whole_file")]

@pytest.mark.blocks("helper")
def no_test(): ...

class TestMany:
    @pytest.mark.parametrize("x", [pytest.param(1, marks=pytest.mark.blocks("one_case"))])
    @pytest.mark.blocks("one")
    def test_it(self, x):
        blocks("text")

# @pytest.mark.blocks("comment")
"""
    assert set(blocked(source)) == {"whole_file", "one", "one_case"}


def test_each_construction_that_fails_unsafely_has_its_test() -> None:
    rows = re.findall(r"^\| (\d+) \| ([^|]+) \| ([^|]+) \| ([^|]+) \|$", PAGE.read_text(), re.MULTILINE)
    assert [number for number, *_ in rows] == [str(number) for number in range(1, 14)]
    for number, *_, tests in rows:
        named = _TEST.findall(tests)
        assert named, f"row {number} names no test"
        assert _TEST.sub("", tests).strip(", ") == "", f"row {number} has more than tests"


def test_each_test_that_the_page_names_is_one() -> None:
    for path, name in _TEST.findall(PAGE.read_text()):
        tree = ast.parse((PROJECT / path).read_text())
        tests = {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}
        assert name in tests, f"{path}::{name}"
