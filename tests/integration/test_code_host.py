"""Reviews, checks and files of one exact commit, by GitHub's REST API."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from payme_ops.foundation.errors import ServiceRefused, Unavailable
from payme_ops.foundation.evidence import Verdict
from payme_ops.release import code_host
from payme_ops.release.code_host import GitHub
from sandbox import code_host as stand_in
from sandbox.builds import commit_of
from sandbox.http import call
from sandbox.standin import Answer, Server
from tests.support import releases, standins
from tests.support.standins import StandIn, answering, code_host_stand_in

COMMIT, OTHER = commit_of("2.4.1"), commit_of("2.4.0")
REQUEST = releases.form()


@pytest.fixture
def server(tmp_path: Path) -> Iterator[StandIn]:
    with code_host_stand_in(tmp_path) as running:
        yield running


@pytest.fixture
def host(server: StandIn) -> GitHub:
    return GitHub(server.url, "a-token", "payme/api")


def put(server: StandIn, **state: Any) -> None:
    assert call("POST", f"{server.url}/repo", {"commit": COMMIT, **state})[0] == 200


def review(number: int, who: str, state: str, commit: str = COMMIT) -> dict[str, Any]:
    return {"id": number, "user": {"login": who}, "state": state, "commit_id": commit}


def test_an_approved_commit_with_green_checks_and_a_plan(host: GitHub) -> None:
    reviewed = code_host.code_review(host, REQUEST)
    assert (reviewed.verdict, reviewed.measured["approved by"]) == (Verdict.PASS, ["reviewer (review 1)"])
    checked = code_host.checks_green(host, REQUEST, "main")
    assert checked.verdict is Verdict.PASS
    assert checked.measured["checks"] == dict.fromkeys(sorted(stand_in.REQUIRED), "success")
    plan = code_host.rollback_plan(host, REQUEST, stand_in.PLAN)
    assert (plan.verdict, plan.measured["begins"]) == (Verdict.PASS, "Rollback")


@pytest.mark.blocks("code_review")
@pytest.mark.parametrize(
    ("reviews", "says"),
    [
        ([], "somebody other than its author"),
        ([review(1, "dev", "APPROVED")], "somebody other than its author"),
        ([review(1, "reviewer", "APPROVED", OTHER)], "a push makes a new one"),
        ([review(1, "reviewer", "COMMENTED")], "somebody other than its author"),
        ([review(1, "reviewer", "APPROVED"), review(2, "reviewer", "DISMISSED")], "somebody other"),
        ([review(1, "reviewer", "APPROVED"), review(2, "other", "CHANGES_REQUESTED")], "asked for changes"),
        ([review(1, "reviewer", "APPROVED"), review(2, "reviewer", "CHANGES_REQUESTED")], "asked for changes"),
    ],
)
def test_what_is_no_approval_of_this_commit(
    server: StandIn, host: GitHub, reviews: list[dict[str, Any]], says: str
) -> None:
    put(server, reviews=reviews)
    found = code_host.code_review(host, REQUEST)
    assert found.verdict is Verdict.FAIL
    assert says in found.remedy


def test_who_approves_after_asking_for_changes_has_approved(server: StandIn, host: GitHub) -> None:
    reviews = [review(1, "reviewer", "CHANGES_REQUESTED"), review(2, "reviewer", "APPROVED")]
    put(server, reviews=[*reviews, review(3, "reviewer", "COMMENTED")])
    assert code_host.code_review(host, REQUEST).verdict is Verdict.PASS


@pytest.mark.blocks("tests_passing")
@pytest.mark.parametrize(
    ("checks", "verdict"),
    [
        ({"test": "failure"}, Verdict.FAIL),
        ({"test": "cancelled"}, Verdict.FAIL),
        ({"test": "skipped"}, Verdict.FAIL),
        ({"test": "in_progress"}, Verdict.INCONCLUSIVE),
        ({"test": "in_progress", "lint": "failure"}, Verdict.FAIL),
        ({"optional": "failure"}, Verdict.PASS),
    ],
)
def test_every_required_check_counts(server: StandIn, host: GitHub, checks: dict[str, str], verdict: Verdict) -> None:
    put(server, checks=checks)
    assert code_host.checks_green(host, REQUEST, "main").verdict is verdict


def test_a_check_that_never_ran_fails_and_none_required_is_a_question(server: StandIn, host: GitHub) -> None:
    call("POST", f"{server.url}/repo", {"required": ["lint", "never-run"]})
    found = code_host.checks_green(host, REQUEST, "main")
    assert (found.verdict, found.measured["checks"]["never-run"]) == (Verdict.FAIL, "missing")
    call("POST", f"{server.url}/repo", {"required": []})
    assert code_host.checks_green(host, REQUEST, "main").verdict is Verdict.INCONCLUSIVE


@pytest.mark.blocks("rollback_plan")
def test_without_a_plan_or_a_commit_to_go_back_to_it_fails(server: StandIn, host: GitHub) -> None:
    assert code_host.rollback_plan(host, REQUEST, "docs/none.md").verdict is Verdict.FAIL
    nowhere = replace(REQUEST, previous_commit="e" * 40)
    assert code_host.rollback_plan(host, nowhere, stand_in.PLAN).verdict is Verdict.FAIL
    put(server, files={stand_in.PLAN: " \n"})
    assert code_host.rollback_plan(host, REQUEST, stand_in.PLAN).verdict is Verdict.FAIL


def test_a_commit_nobody_has_was_not_reviewed(host: GitHub) -> None:
    with pytest.raises(ServiceRefused):
        code_host.code_review(host, replace(REQUEST, commit="e" * 40))
    assert not host.exists("e" * 40)


def test_folders_and_files_at_a_commit(server: StandIn, host: GitHub) -> None:
    put(server, files={"drizzle/0010_x.sql": "SELECT 1", "drizzle/down/0010_x.sql": "SELECT 2"})
    found = host.directory("drizzle", COMMIT)
    assert list(found) == ["0000_payme.sql", "0010_x.sql"]
    assert found["0010_x.sql"] == "7a8f142d2217b8bec0f1aa6579c1130521a3a9ea"  # git hash-object
    assert list(host.directory("drizzle", OTHER)) == ["0000_payme.sql"]
    assert host.directory("elsewhere", COMMIT) == {}
    assert host.file("drizzle/down/0010_x.sql", COMMIT) == b"SELECT 2"


def test_a_folder_that_is_not_listed_whole_is_refused(tmp_path: Path) -> None:
    listed = [{"type": "file", "name": f"{number}.sql", "sha": "a"} for number in range(1000)]
    with standins.served(answering(listed), tmp_path) as there, pytest.raises(ServiceRefused, match="listed whole"):
        GitHub(there.url, "t", "payme/api").directory("drizzle", COMMIT)


@pytest.mark.parametrize("status", [500, 429])
def test_what_may_heal_is_no_verdict(server: StandIn, host: GitHub, status: int) -> None:
    server.fail(status)
    with pytest.raises(Unavailable):
        code_host.code_review(host, REQUEST)


def test_a_used_up_rate_limit_heals_and_a_wrong_token_does_not(tmp_path: Path) -> None:
    def limited(port: int, _state: Path) -> Server:
        answer = Answer({}, 403, headers={"X-RateLimit-Remaining": "0"})
        return Server(port, lambda _request: answer, lambda _path: False, {})

    with standins.served(limited, tmp_path) as there, pytest.raises(Unavailable, match="no more questions"):
        GitHub(there.url, "t", "payme/api").exists(COMMIT)
    with standins.served(answering({}, 403), tmp_path) as there, pytest.raises(ServiceRefused):
        GitHub(there.url, "t", "payme/api").exists(COMMIT)
