"""Errors: one line for a person, the drawn tree is the real one, and they survive a trip between processes."""

import inspect
import pickle
import re

import pytest

from payme_ops.foundation import errors
from payme_ops.foundation.errors import DatabaseError, PaymeOpsError

TYPES = [kind for _, kind in inspect.getmembers(errors, inspect.isclass) if issubclass(kind, PaymeOpsError)]


def test_text_names_what_expected_found_and_what_to_do() -> None:
    error = PaymeOpsError("the lease is held.", expected="nobody", found="run 7", remedy="wait")
    assert str(error) == "the lease is held; expected nobody; found run 7. To do: wait"
    assert str(PaymeOpsError("no output")) == "no output."


def test_the_drawn_tree_is_the_real_one() -> None:
    drawn: dict[str, str] = {}
    path: list[str] = []
    for line in (errors.__doc__ or "").splitlines():
        found = re.match(r"^([│ ├└─]*)(\w+)(?: {2,}\S|$)", line)
        if found and found[2] in dir(errors):
            path[len(found[1]) // 4 :] = [found[2]]
            if len(path) > 1:
                drawn[path[-1]] = path[-2]
    assert drawn == {kind.__name__: kind.__bases__[0].__name__ for kind in TYPES if kind is not PaymeOpsError}


@pytest.mark.parametrize("kind", TYPES)
def test_errors_travel_between_processes(kind: type[PaymeOpsError]) -> None:
    error = kind("what", expected="this", found="that", remedy="so")
    copy = pickle.loads(pickle.dumps(error))  # noqa: S301
    assert type(copy) is kind
    assert str(copy) == str(error)
    assert copy.args == error.args


def test_sqlstate_travels_too() -> None:
    copy = pickle.loads(pickle.dumps(DatabaseError("what", sqlstate="42501")))  # noqa: S301
    assert copy.sqlstate == "42501"
