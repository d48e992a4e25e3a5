"""What a benchmark publishes replaces what it published before, and nothing else of the page."""

import shutil
from pathlib import Path

import pytest

from bench import drill
from bench.crash_matrix import PAGE
from bench.telling import publish


@pytest.mark.parametrize(("page", "target"), [(drill.PAGE, "drill"), (PAGE, "crash-matrix")])
def test_only_what_is_between_the_marks_changes(page: Path, target: str, tmp_path: Path) -> None:
    copy = Path(shutil.copy(page, tmp_path))
    publish(copy, target, "new\n")
    before, found, after = copy.read_text().partition("new\n")
    assert found
    assert page.read_text().startswith(before)
    assert page.read_text().endswith(after)
    publish(copy, target, page.read_text().removeprefix(before).removesuffix(after))
    assert copy.read_text() == page.read_text()
