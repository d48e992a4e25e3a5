"""docs/upgrade.md and docs/restore-the-desk.md name what is there in this version of Airflow."""

import ast
import importlib
import re
import shlex
from pathlib import Path

import pytest

PROJECT = Path(__file__).resolve().parents[2]
PAGES = [PROJECT / "docs" / name for name in ("upgrade.md", "restore-the-desk.md")]
INTERNALS = PROJECT / "plugins" / "payme_ops" / "orchestration" / "internals.py"
_COMMAND = re.compile(r"^\s*(airflow (?:db|dags) [^|>\n]+)", re.MULTILINE)
COMMANDS = [line.strip() for page in PAGES for line in _COMMAND.findall(page.read_text())]


def test_the_page_names_each_internal_that_is_used() -> None:
    functions = [
        node.name
        for node in ast.parse(INTERNALS.read_text()).body
        if isinstance(node, ast.FunctionDef) and not node.name.startswith("_")
    ]
    row = next(line for line in PAGES[0].read_text().splitlines() if "internals.py`" in line)
    assert re.findall(r"`(\w+)`", row.split("|")[1]) == functions


def test_what_is_used_of_airflow_beyond_its_sdk_is_there() -> None:
    imports = [
        (node.module or "", alias.name)
        for node in ast.walk(ast.parse(INTERNALS.read_text()))
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("airflow.")
        for alias in node.names
    ]
    assert len(imports) >= 4
    for module, name in imports:
        assert hasattr(importlib.import_module(module), name), f"{module}.{name}"


@pytest.mark.parametrize("command", COMMANDS)
def test_airflow_has_the_command_and_its_options(command: str) -> None:
    from airflow.cli.cli_parser import get_parser

    words = shlex.split(command)[1:]
    assert get_parser().parse_args(words).func


def test_the_pages_have_commands() -> None:
    assert len(COMMANDS) >= 7
