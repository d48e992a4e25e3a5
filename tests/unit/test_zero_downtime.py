"""How the figures of zero downtime come from what was written down, and what is published."""

import json

import pytest

from bench import zero_downtime
from bench.zero_downtime import Pace, Step, Taken
from sandbox.payme_app.fleet import Account
from sandbox.payme_app.ledger import Event
from sandbox.payme_app.versions import V1


def test_what_is_published_is_zero_and_enough() -> None:
    found = json.loads(zero_downtime.FILE.read_text())
    assert zero_downtime.succeeded(found)
    assert found["acknowledged_writes"] >= zero_downtime.ASKED_WRITES
    steps = [step["step"] for step in found["steps"]]
    for name in ("expand", "backfill", "finish", "verify", "relax", "brown_out", "switch", "end_shim"):
        assert name in steps
    assert sum(name.startswith(("undo", "back to", "reverse")) for name in steps) >= 9


def test_figures_are_those_of_the_windows() -> None:
    took = [(float(second), 1.0) for second in range(10)]  # before
    took += [(10.0 + second, 2.0) for second in range(10)] + [(20.0 + second, 8.0) for second in range(10)]
    took += [(30.0 + second, 1.0) for second in range(10)]
    account = Account(took=took, written=[5.0, 15.0, 35.0], events=[Event(25.0, "wrong", "2.4.0 read 7")])
    taken = Taken(Step("backfill", V1, lambda: None), begun=10, ended=29, during_until=30, after_until=40, lost=[7, 8])
    found = zero_downtime.figures_of(account, (0.0, 10.0), [taken], Pace(window=10), lost=[8, 9])
    assert (found["failed_queries"], found["wrong_reads"], found["lost_writes"]) == (0, 1, 3)
    assert not zero_downtime.succeeded(found)
    (step,) = found["steps"]
    assert step["before_ms"]["p99"] == 1.0
    assert step["during_ms"]["p99"] == 8.0  # the worse of two windows
    assert (step["p99_ratio"], step["acknowledged_writes"], step["lost_writes"]) == (8.0, 2, 2)


@pytest.mark.parametrize("name", ["failed_queries", "wrong_reads", "lost_writes", "disconnects"])
def test_one_is_too_many(name: str) -> None:
    counted = dict.fromkeys(("failed_queries", "wrong_reads", "lost_writes", "disconnects"), 0)
    assert zero_downtime.succeeded(counted)
    assert not zero_downtime.succeeded({**counted, name: 1})
