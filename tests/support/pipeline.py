"""The step of docs/payme-api-ci.yml that asks the desk for a release, and a repository for it to run in."""

import json
import os
import shutil
import subprocess
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

THEIRS = Path(__file__).resolve().parents[2] / "docs" / "payme-api-ci.yml"
DAG_RUNS = "/api/v2/dags/pre_deployment/dagRuns"
# As GitHub runs a step whose shell is `bash`; without that word a pipe is as good as its last part.
SHELL = ("bash", "--noprofile", "--norc", "-eo", "pipefail", "-c")


@cache
def workflow(file: Path) -> dict[str, Any]:
    """The file's content; every scalar is text."""
    found: dict[str, Any] = yaml.load(file.read_text(), yaml.BaseLoader)  # noqa: S506  # "on" stays a word
    return found


def jobs(file: Path) -> dict[str, dict[str, Any]]:
    """Its jobs by their ids."""
    found: dict[str, dict[str, Any]] = workflow(file)["jobs"]
    return found


@dataclass(frozen=True)
class Checkout:
    """A clone of the API's repository: the commit that production runs, and the one that is to be released."""

    folder: Path
    before: str
    commit: str

    @property
    def run(self) -> str:
        """The id of its run."""
        return f"production-2.4.1-{self.commit[:7]}"

    @property
    def state(self) -> str:
        """Asks for that run."""
        return f"GET {DAG_RUNS}/{self.run}"


def clone(folder: Path, changed: str = "src/index.js", version: str = "2.4.1") -> Checkout:
    """Two commits; the second changes that file."""

    def git(*words: str) -> str:
        author = ["-c", "user.name=tests", "-c", "user.email=tests@payme.test"]
        done = subprocess.run(["git", *author, *words], cwd=folder, capture_output=True, text=True, check=True)
        return done.stdout.strip()

    git("init", "--quiet")
    commits = []
    for each in ("2.4.0", version):
        (folder / "package.json").write_text(json.dumps({"version": each}))
        (folder / changed).parent.mkdir(exist_ok=True)
        (folder / changed).write_text(each)
        git("add", ".")
        git("commit", "--quiet", "--message", each)
        commits.append(git("rev-parse", "HEAD"))
    return Checkout(folder, *commits)


def ask(url: str, checkout: Checkout, password: str, **changed: str) -> "subprocess.CompletedProcess[str]":
    """Run the step in that clone, looking often; Airflow and the PayMe API are at `url`, or where `changed` says."""
    if shutil.which("node") is None:
        if os.environ.get("CI") == "true":
            pytest.fail("node is not installed; install nodejs")
        pytest.skip("node is not installed")
    (step,) = [step for step in jobs(THEIRS)["production"]["steps"] if "run" in step]
    values = {"AIRFLOW_USER": "ci", "AIRFLOW_PASSWORD": password, "ASKED_BY": "wanjiku", "AIRFLOW_URL": url}
    assert set(step["env"]) == {*values, "PAYME_API_URL"}
    quick = {"LOOK_SECONDS": "0.02", "LIMIT_SECONDS": "60"}
    env = {**values, **quick, "PATH": os.environ["PATH"], "COMMIT": checkout.commit, "PAYME_API_URL": url, **changed}
    command = [*SHELL, step["run"]]
    done = subprocess.run(command, env=env, cwd=checkout.folder, capture_output=True, text=True, timeout=120)
    assert password not in done.stdout + done.stderr
    return done
