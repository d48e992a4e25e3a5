"""The published score is that of today's list of mutants."""

import json

from bench import drill
from bench.mutants import MUTANTS


def test_the_page_is_what_the_drill_wrote() -> None:
    found = json.loads(drill.FILE.read_text())
    assert drill.table(found) in drill.PAGE.read_text()
    assert found["mutants"] == len(MUTANTS) >= 20


def test_nothing_survived_and_nothing_good_was_refuted() -> None:
    found = json.loads(drill.FILE.read_text())
    assert (found["survived"], found["false_alarms"]) == ([], [])
    assert found["clean"] == 50
    assert drill.score(found) == f"mutants caught {len(MUTANTS)}/{len(MUTANTS)}, false alarms 0/50"


def test_a_survivor_shows_in_score_and_table() -> None:
    found = {"mutants": 33, "caught": 32, "clean": 50, "false_alarms": ["REFUTED"], "day": "2026-01-28"}
    found |= {"survived": [MUTANTS[0].name]}
    assert drill.score(found) == "mutants caught 32/33, false alarms 1/50"
    assert f"| 1 | {MUTANTS[0].name} | `{MUTANTS[0].names}` | **no** |" in drill.table(found)
