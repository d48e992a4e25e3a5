"""The documents say only what is there: files, commands, settings, errors, headings."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer

from payme_ops.cli import app
from payme_ops.foundation import errors, settings

PROJECT = Path(__file__).resolve().parents[2]
PAGES = sorted([*PROJECT.glob("*.md"), *(PROJECT / "docs").rglob("*.md")])
RUNBOOKS = PROJECT / "docs" / "runbooks"
HEADINGS = [
    "What it does",
    "When it pages",
    "First three things to look at",
    "False alarm?",
    "Undo",
    "Who to call",
]
# Made at run time, so not in a fresh clone.
_MADE = (".venv", ".demo", ".test", ".bench")
_TOPS = {path.name for path in PROJECT.iterdir() if not path.name.startswith(_MADE)}
_FENCED = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)
_COMMENT = re.compile(r"<!--.*?-->", re.DOTALL)
_LINK = re.compile(r"\]\(([^)\s]+)\)")
_CODE = re.compile(r"`([^`\n]+)`")
_PATH = re.compile(r"[\w.-]+(/[\w.*<>-]+)*/?")
_MAKE = re.compile(r"(?:^ {4}|`)make ([a-z][a-z-]*)", re.MULTILINE)
_COMMAND = re.compile(r"-m payme_ops ([^`\n]+)")
_TEST = re.compile(r"`(tests/[\w/]+\.py)::(\w+)`")

every_page = pytest.mark.parametrize("page", PAGES, ids=[str(page.relative_to(PROJECT)) for page in PAGES])


def prose(page: Path) -> str:
    """The text without code blocks and comments."""
    return _COMMENT.sub("", _FENCED.sub("", page.read_text()))


def slug(heading: str) -> str:
    """The anchor of a heading, as GitHub makes it."""
    return re.sub(r"[^\w -]", "", heading.strip().lower()).replace(" ", "-")


def anchors(page: Path) -> set[str]:
    return {slug(heading) for heading in re.findall(r"^#+ (.+)$", _FENCED.sub("", page.read_text()), re.MULTILINE)}


def named_paths(page: Path) -> Iterator[str]:
    """Code spans that look like a path in this project; `payme_ops/` stands for plugins/payme_ops/."""
    for span in _CODE.findall(prose(page)):
        top = span.split("/")[0]
        if not _PATH.fullmatch(span) or "<" in span or "*" in span:
            continue
        if top == "payme_ops" and "/" in span and not span.startswith("payme_ops/probe/"):
            yield f"plugins/{span}"
        elif top in _TOPS and ("/" in span or "." in span):
            yield span
        elif re.fullmatch(r"\w+\.py", span):  # named after its folder in the sentence or table
            yield from [] if any((PROJECT / "plugins").rglob(span)) else [span]


@every_page
def test_links_lead_somewhere(page: Path) -> None:
    for target in _LINK.findall(prose(page)):
        if re.match(r"https?:", target):
            continue
        place, _, anchor = target.partition("#")
        path = (page.parent / place) if place else page
        assert path.exists(), f"{target} in {page.name}"
        if anchor:
            assert anchor in anchors(path), f"{target} in {page.name}"


@every_page
def test_named_paths_exist(page: Path) -> None:
    missing = [path for path in named_paths(page) if not (PROJECT / path).exists()]
    assert missing == []


@every_page
def test_named_tests_exist(page: Path) -> None:
    named = _TEST.findall(page.read_text())
    assert [name for path, name in named if f"def {name}(" not in (PROJECT / path).read_text()] == []


def test_each_fault_of_the_plain_plan_has_its_test() -> None:
    text = (PROJECT / "docs" / "plain-plan-faults.md").read_text()
    rows = re.findall(r"^\| (\d+) \| [^|]+ \| [^|]+ \| ([^|]+) \|$", text, re.MULTILINE)
    assert [number for number, _ in rows] == [str(number) for number in range(1, 17)]
    assert all(_TEST.sub("", tests).strip(", ") == "" for _, tests in rows)


@every_page
def test_named_settings_exist(page: Path) -> None:
    named = set(re.findall(r"PAYME_OPS__[A-Z_]+[A-Z]", page.read_text()))
    assert named - set(settings.variables()) == set()


@every_page
def test_named_make_targets_exist(page: Path) -> None:
    targets = set(re.findall(r"^([a-z][a-z-]*):", (PROJECT / "Makefile").read_text(), re.MULTILINE))
    assert set(_MAKE.findall(page.read_text())) - targets == set()


@every_page
def test_named_commands_exist(page: Path) -> None:
    for line in _COMMAND.findall(page.read_text()):
        for words in alternatives(line.split()):
            require_command(words)


def alternatives(words: list[str]) -> Iterator[list[str]]:
    """`backup run|list` is two commands."""
    for number, word in enumerate(words):
        if "|" in word.strip("|"):
            for one in word.split("|"):
                yield from alternatives([*words[:number], one, *words[number + 1 :]])
            return
    yield words


def require_command(words: list[str]) -> None:
    """Every word until the first argument is a command, and every option is one of that command's."""
    command = typer.main.get_command(app)
    rest = list(words)
    while commands := getattr(command, "commands", None):
        assert rest, f"not a whole command: {' '.join(words)}"
        name = rest.pop(0).strip(";,.:")
        assert name in commands, f"no command {name!r} in: {' '.join(words)}"
        command = commands[name]
    known = {option for parameter in command.params for option in parameter.opts}
    assert {word for word in rest if word.startswith("--")} <= known, " ".join(words)


@pytest.mark.parametrize("dag", sorted((PROJECT / "dags").glob("*.py")), ids=lambda path: path.stem)
def test_every_dag_has_a_runbook_with_the_same_headings(dag: Path) -> None:
    text = (RUNBOOKS / f"{dag.stem}.md").read_text()
    assert re.findall(r"^# (.+)$", text, re.MULTILINE) == [dag.stem]
    assert re.findall(r"^## (.+)$", text, re.MULTILINE) == HEADINGS


def test_every_runbook_has_a_dag() -> None:
    assert {path.stem for path in RUNBOOKS.glob("*.md")} == {path.stem for path in (PROJECT / "dags").glob("*.py")}


def test_runbook_links_nowhere() -> None:
    # Airflow shows it at an address of its own, where a relative link would lead to nothing.
    for page in RUNBOOKS.glob("*.md"):
        assert _LINK.findall(prose(page)) == []


def test_the_daily_backup_says_what_to_do_about_every_error() -> None:
    defined = {
        name
        for name, value in vars(errors).items()
        if isinstance(value, type) and issubclass(value, errors.PaymeOpsError) and value is not errors.PaymeOpsError
    }
    table = (RUNBOOKS / "backup_daily.md").read_text().split("| Error | Means | Do |")[1].split("\n## ")[0]
    assert sorted(re.findall(r"^\| `(\w+)` \| [^|]+ \| [^|]+ \|$", table, re.MULTILINE)) == sorted(defined)


def test_adrs_are_numbered_dated_and_complete() -> None:
    pages = sorted((PROJECT / "docs" / "adr").glob("*.md"))
    assert [page.name[:4] for page in pages] == [f"{number:04}" for number in range(1, len(pages) + 1)]
    for page in pages:
        text = page.read_text()
        assert text.startswith(f"# {page.name[:4]} ")
        assert re.search(r"^20\d\d-\d\d-\d\d · (accepted|replaced by \d{4})$", text, re.MULTILINE), page.name
        assert re.findall(r"^## (.+)$", text, re.MULTILINE) == ["Context", "Decision", "Consequences"]
