"""bench/README.md shows what bench/workers.json holds."""

import json

import pytest

from bench import workers

FOUND = json.loads(workers.FILE.read_text())


def test_the_page_is_what_was_measured() -> None:
    written = workers.PAGE.read_text().split("<!-- workers: written by make workers -->\n")[1]
    assert written.split("<!-- /workers -->")[0] == workers.table(FOUND)
    assert sorted({row["workers"] for row in FOUND["runs"]}) == list(workers.WORKERS)


@pytest.mark.parametrize(
    ("busy", "rest", "bound"),
    [
        (3.9, "as shipped", "the machine's cores"),
        (1.0, "as shipped", "its own rest"),
        (1.0, "without rest", "the database"),
    ],
)
def test_what_bounds_it(busy: float, rest: str, bound: str) -> None:
    assert workers.bound({"busy_cores": busy, "rest": rest}, 4).startswith(bound)
