"""Step 5: a release that passes every check and turns unhealthy in production, its deploy killed after the POST.

The build answers 200 all the while; its body says unhealthy once it has had traffic for a time. On call asks for the
release, two others agree. What the step sets (staging, how long a deploy takes) it sets back, however it ends.
"""

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from textwrap import shorten
from typing import Any
from urllib.parse import quote

from rich.console import Console

from payme_ops.cli import doors
from payme_ops.foundation import evidence, samples
from payme_ops.foundation.clock import span, utc_now
from payme_ops.foundation.evidence import Evidence, Verdict, plain
from payme_ops.foundation.health import State, k_of_n
from payme_ops.release import postmortem, request
from payme_ops.release.checklist import ITEMS
from payme_ops.release.request import Release
from sandbox.airflow import Api
from sandbox.builds import BUILDS, BY_COMMIT, Build
from sandbox.http import call
from sandbox.payme_app import versions
from sandbox.supervisor import SandboxError
from sandbox.tour import ground
from sandbox.tour.ground import Desk
from sandbox.world import PROJECT

PRE, DEPLOYMENT, POST = "pre_deployment", "deployment", "post_deployment"
# Who answers what: another person the second decision. The person at the terminal decides, the rest is told.
ANSWERS: Mapping[str, str] = {
    "qa_sign_off": "approver",
    "rollback_plan_agreed": "approver",
    "support_standby": "approver",
    "go_no_go_first": "approver",
    "go_no_go_second": "lead",
    "features_confirmed": "approver",
}
DECISIONS = ("go_no_go_first", "go_no_go_second")
_REASON = "tour, step 5"
_WINDOW = timedelta(hours=2)
_DEPLOY_SECONDS = 8.0  # of a deploy, so that its task can be killed in the middle
_KILL_EVERY_SECONDS = 0.02
_FOUND_CHARACTERS = 90
_SECONDS, _TIDY_SECONDS, _POLL_SECONDS = 900.0, 120.0, 1.0


@dataclass(kw_only=True)
class _Story(ground.Story):
    """One release, and what of it has been told."""

    desk: Desk
    alone: bool
    bad: Build
    previous: Build
    before: Mapping[str, Any]  # what the API had counted
    runs: dict[str, str] = field(default_factory=dict)

    @property
    def ops(self) -> str:
        """The ops database."""
        return self.desk.world.conninfo("payme_ops", "payme_ops")

    def counted(self, what: str) -> int:
        """How many of these the API has counted since the step began."""
        return int(_control(self.desk)[what]) - int(self.before[what])


def walk(console: Console, alone: bool) -> None:
    """Answers the go or no-go itself when `alone`. Raises SandboxError unless all turns out as docs/tour.md says."""
    with ground.desk(console) as desk:
        for dag in (PRE, DEPLOYMENT, POST):
            ground.until(partial(desk.oncall.dag_missing, dag, datetime.min.replace(tzinfo=UTC)), dag, _SECONDS)
        previous = _running(desk, "payme_api")
        story = _Story(
            console=console,
            desk=desk,
            alone=alone,
            bad=bad_build(previous),
            previous=previous,
            before=_control(desk),
        )
        _require_idle(desk)
        console.print("\n[bold]1. A verified backup, and staging runs the build.[/bold]")
        ground.require_verified_backup(console, desk, _REASON)
        with _set_back(story):
            _start(desk, "payme_api_staging", story.bad)
            _control(desk, deploy_seconds=_DEPLOY_SECONDS)
            story.say(f"   staging is well with {story.bad.name}, commit {story.bad.commit[:12]}: it has no traffic")
            release = _prepare(story)
            _deploy(story, release)
            _watch(story, release)
        console.print("\n[bold]5. The signed record.[/bold]")
        _prove(story, release)
        console.print("\n[bold]6. The figures.[/bold]")
        _conclude(story, release)


def bad_build(previous: Build) -> Build:
    """The build that turns bad and knows the tables of the one that runs. Raises SandboxError when there is none."""
    writes = versions.of(previous.version)
    found = next((one for one in BUILDS.values() if one.with_traffic and versions.of(one.version) == writes), None)
    if found is None:
        raise SandboxError(
            "step 3 was not finished: no bad build fits the table",
            expected="the API at 2.4 or before, or at 2.8",
            found=previous.version,
            remedy="make clean, make demo, then this step again",
        )
    return found


def _control(desk: Desk, **asked: object) -> dict[str, Any]:
    """Tell the API something; what it has counted."""
    url = f"{desk.world.url('payme_api')}/control"
    status, answer = call("POST" if asked else "GET", url, asked or None)
    if status != 200:
        raise SandboxError("the API's switches do not answer", found=f"status {status}, {answer}")
    return dict(answer)


def _running(desk: Desk, api: str) -> Build:
    return BY_COMMIT[call("GET", f"{desk.world.url(api)}/version")[1]["commit"]]


def _start(desk: Desk, api: str, build: Build) -> None:
    url, token = desk.world.url(api), desk.world.secrets[f"{api}.token"]
    status, answer = call("POST", f"{url}/admin/start", {"version": build.name}, token=token)
    if status != 200:
        raise SandboxError(f"{api} does not start as {build.name}", found=f"status {status}, {answer}")


def _require_idle(desk: Desk) -> None:
    for dag in (PRE, DEPLOYMENT, POST):
        if busy := desk.oncall.busy(dag):
            raise SandboxError(
                "another release is under way",
                expected=f"no run of {dag}",
                found=busy,
                remedy="answer it, or mark the run as failed in the Airflow UI, and look at the API's page",
            )


@contextlib.contextmanager
def _set_back(story: _Story) -> Iterator[None]:
    """Whatever happens in the block: staging and the API's switches are as before, and no run of it goes on."""
    desk, staging = story.desk, _running(story.desk, "payme_api_staging")
    try:
        yield
    finally:
        with contextlib.suppress(OSError):  # with the demo gone nothing is left to set back
            _control(desk, deploy_seconds=story.before["deploy_seconds"])
            _start(desk, "payme_api_staging", staging)
            _end_runs(story)


def _end_runs(story: _Story) -> None:
    """End what a failure or Ctrl-C has left: marked as failed, a run takes orders again and restores autoscaling."""
    api = story.desk.oncall
    left = [(dag, run) for dag, run in story.runs.items() if _is_unfinished(api, dag, run)]
    for dag, run in left:
        story.say(f"   {dag} is marked as failed: what it has stopped is started again", "yellow")
        api.call("PATCH", f"/dags/{dag}/dagRuns/{quote(run)}", {"state": "failed"})
    for dag, run in left:
        ground.until(partial(api.unfinished, dag, run), f"{dag} to end", _TIDY_SECONDS)
    if _running(story.desk, "payme_api") == story.bad:
        _start(story.desk, "payme_api", story.previous)


def _is_unfinished(api: Api, dag: str, run: str) -> bool:
    status, found = call("GET", f"{api.url}/api/v2/dags/{dag}/dagRuns/{quote(run)}", token=api.token)
    return status == 200 and found["state"] not in ("success", "failed")


def _follow(story: _Story, dag: str, run: str) -> list[dict[str, Any]]:
    """Attend to a run until it has ended; its tasks then."""
    api = story.desk.oncall
    with story.console.status(f"{dag} …") as line:
        while api.unfinished(dag, run) is not None:
            tasks = api.tasks(dag, run)
            for task in tasks:
                asked = f"{dag} {task['task_id']} {task['try_number']}"
                if ground.asks(api, dag, run, task) and story.is_new(asked):
                    _answer(story, dag, run, task["task_id"])
                if dag == DEPLOYMENT:
                    _attend(story, task)
            # On one line, or the line before would stay.
            line.update(shorten(f"{dag}: {ground.doing(tasks)}", story.console.width - 4, placeholder=" …"))
            time.sleep(_POLL_SECONDS)
    return api.tasks(dag, run)


def _answer(story: _Story, dag: str, run: str, gate: str) -> None:
    """As the person whose question it is; a decision is left to who sits at the terminal."""
    user = ANSWERS.get(gate)
    if user is None:
        body = story.desk.oncall.question(dag, run, gate)["body"]
        raise SandboxError(f"{gate} asks, which a machine should have told", found=" ".join(str(body).split())[:300])
    story.say(f"   {story.desk.oncall.question(dag, run, gate)['subject']}", "bold yellow")
    if gate == DECISIONS[0]:
        _show_checklist(story, run)
    if gate in DECISIONS and not story.alone:
        story.say(ground.where_to_answer(story.desk, dag, run, gate, user))
        story.say("   read what was found, then Approve. Nothing is stopped while you do.")
        return
    api: Api = getattr(story.desk, user)
    api.answer(dag, run, gate, "Approve")
    story.say(f"   {gate}: answered as {user}: Approve")


def _show_checklist(story: _Story, release: str) -> None:
    """What those who decide are shown; their page has all of it."""
    for row in evidence.latest(story.ops, f"release/{release}", "go_no_go").measured["checklist"]:
        found = shorten(row["found"], _FOUND_CHARACTERS, placeholder=" …")
        story.say(f"     {row['is']:9} {row['item']}: {found}")


def _failed(tasks: list[dict[str, Any]]) -> str:
    return ", ".join(task["task_id"] for task in tasks if task["state"] == "failed") or "no task"


def _prepare(story: _Story) -> Release:
    """pre_deployment, by its form."""
    story.console.print(f"\n[bold]2. {PRE}, triggered by on call.[/bold]")
    now = utc_now()
    run = story.desk.oncall.trigger(
        PRE,
        {
            "commit": story.bad.commit,
            "version": story.bad.version,
            "environment": "production",
            "window_from": now.isoformat(),
            "window_to": (now + _WINDOW).isoformat(),
            "previous_commit": story.previous.commit,
            "reason": _REASON,
        },
    )
    story.runs[PRE] = run
    tasks = _follow(story, PRE, run)
    if (state := story.desk.oncall.state(PRE, run)) != "success":
        raise SandboxError(f"{PRE} ended as {state}", found=f"failed: {_failed(tasks)}, run {run}")
    release = request.of_run(story.ops, f"{PRE}/{run}")
    story.runs |= {DEPLOYMENT: release.id, POST: release.id}
    found = {name: one for name, one in _newest(story, release).items() if name in ITEMS}
    passed = sum(one.verdict is Verdict.PASS for one in found.values())
    story.say(
        f"   {release.id}: {passed} items passed, {len(found) - passed} answered by people. Nothing was wrong yet."
    )
    return release


def _newest(story: _Story, release: Release) -> dict[str, Evidence]:
    return {one.item: one for one in evidence.of_run(story.ops, release.run)}


def _deploy(story: _Story, release: Release) -> None:
    """deployment, from the go to orders taken again, with its deploy killed."""
    story.console.print(f"\n[bold]3. {DEPLOYMENT}: two others decide, and the deploy is killed after its POST.[/bold]")
    tasks = _follow(story, DEPLOYMENT, release.id)
    if (state := story.desk.oncall.state(DEPLOYMENT, release.id)) != "success":
        raise SandboxError(
            f"{DEPLOYMENT} ended as {state}",
            expected="a deploy that is seen to its end by a second try",
            found=f"failed: {_failed(tasks)}",
            remedy="a no in the go or no-go ends it so, too: take the step again",
        )
    tries = next(task["try_number"] for task in tasks if task["task_id"] == "deploy")
    posts, deploys = story.counted("posts"), story.counted("deploys")
    if (tries > 1, posts, deploys) != (True, 1, 1):
        raise SandboxError(
            "the killed deploy did not turn out as it should",
            expected="a second try, and one POST, one deploy",
            found=f"try {tries}, {posts} POSTs, {deploys} deploys",
        )
    log = story.desk.oncall.log(DEPLOYMENT, release.id, "deploy", tries)
    read_back = next((line for line in log.splitlines() if "waiting for" in line), "")
    found = _newest(story, release)
    story.say(f"   try {tries} of deploy posts nothing: {read_back.strip()}")
    story.say(f"   the API has counted {posts} POST and {deploys} deploy; {story.bad.commit[:12]} runs", "bold green")
    story.say(f"   orders are taken again: {plain(found['resume_orders'].measured)}")


def _attend(story: _Story, task: Mapping[str, Any]) -> None:
    if task["task_id"] == "freeze_orders" and task["state"] == "success" and story.is_new("freeze"):
        story.say("   orders are stopped; the final backup is taken")
    # Its task waits for the commit to answer: with the POST made, it has that long to live.
    if task["task_id"] == "deploy" and task["state"] == "running" and task["pid"] and story.is_new("kill"):
        ground.until(
            lambda: None if story.counted("posts") else "none", "the POST", _SECONDS, every_seconds=_KILL_EVERY_SECONDS
        )
        os.kill(task["pid"], signal.SIGKILL)
        story.say(f"   POST /deploy has arrived: kill -9 of deploy, process {task['pid']}", "bold red")


def _watch(story: _Story, release: Release) -> None:
    """post_deployment, to the record."""
    story.console.print(f"\n[bold]4. {POST}: the watch, which holds no worker.[/bold]")
    tasks = _follow(story, POST, release.id)
    found = _newest(story, release)
    wrong = next((found[name] for name in ("health", "watch") if _is_bad(found.get(name))), None)
    if wrong is None or "rollback" not in found or found["rollback"].verdict is not Verdict.PASS:
        raise SandboxError(
            "the bad release was not rolled back",
            expected="a breach, and the previous commit back",
            found=f"failed: {_failed(tasks)}",
            remedy=f"look at the run {release.id} of {POST} in the Airflow UI",
        )
    story.say(f"   {wrong.item}: {breach(wrong)}", "red")
    story.say(f"   rolled back: {plain(found['rollback'].measured)}", "bold green")
    body = call("GET", f"{story.desk.world.url('payme_api')}/health")[1]
    story.say(f"   /health says {body['status']}, version {body['version']}, commit {body['commit'][:12]}")


def _is_bad(found: Evidence | None) -> bool:
    return found is not None and found.verdict is Verdict.FAIL


def breach(wrong: Evidence) -> str:
    """What was seen, in the words of its evidence: the watch names a rule, health its last look."""
    return str(wrong.measured.get("breach") or wrong.measured.get("last"))


def _prove(story: _Story, release: Release) -> None:
    """The page of the record verifies; a copy with one byte flipped does not, and the item is named."""
    found = _newest(story, release)
    wrong = next(found[name] for name in ("health", "watch") if _is_bad(found.get(name)))
    key, home = str(found["record"].measured["record"]).removesuffix(".json"), doors.catalogue(ground.S3).stores.home
    folder = story.desk.world.root / "records"
    folder.mkdir(exist_ok=True)
    page, changed, draft = (folder / f"{release.id}{end}" for end in (".html", ".changed.html", ".post-mortem.md"))
    page.write_bytes(home.get(f"{key}.html"))
    draft.write_bytes(home.get(f"{key}-post-mortem.md"))
    story.say(f"   open    {page.as_uri()}")
    story.say(f"   beside  {draft.relative_to(PROJECT)}, the draft of its post-mortem")
    code, said = _verify(page)
    story.say(f"\n   $ python -m payme_ops record verify {page.relative_to(PROJECT)}", "bold")
    story.say(f"   {said}")
    if code != 0:
        raise SandboxError("the record does not verify", expected="exit code 0", found=f"{code}: {said}")
    changed.write_bytes(flip(page.read_bytes(), breach(wrong)))
    code, said = _verify(changed)
    story.say("\n   One byte of a copy is flipped, where it says what was seen.", "bold")
    story.say(f"   $ python -m payme_ops record verify {changed.relative_to(PROJECT)}", "bold")
    story.say(f"   {said}", "red")
    if code != 4 or f"({wrong.item})" not in said:
        raise SandboxError(
            "the changed record was not found out",
            expected=f"exit code 4, and {wrong.item} named",
            found=f"{code}: {said}",
        )


def flip(page: bytes, text: str) -> bytes:
    """The page with one bit of the last letter of that text flipped, where it stands first."""
    at = page.index(text.encode()) + len(text.encode()) - 1
    return page[:at] + bytes([page[at] ^ 1]) + page[at + 1 :]


def _verify(file: Path) -> tuple[int, str]:
    """Exit code, and what it says of the whole."""
    command = [sys.executable, "-m", "payme_ops", "record", "verify", str(file)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=PROJECT)
    said = done.stdout.partition("\n")[0] if done.returncode == 0 else done.stderr
    return done.returncode, " ".join(said.split())


def _conclude(story: _Story, release: Release) -> None:
    found = evidence.of_run(story.ops, release.run)
    newest = {one.item: one for one in found}
    outcome, back = newest["record"].measured["outcome"], newest["rollback"].ended
    first, third = _unhealthy(story, release, newest["deploy"].started, back)
    stopped = postmortem.orders_stopped(found)
    url = story.desk.world.url
    token = story.desk.world.secrets["payme_api.token"]
    frozen = call("GET", f"{url('payme_api')}/admin/orders", token=token)[1]["frozen"]
    runs = _running(story.desk, "payme_api")
    deploys = story.counted("deploys")
    story.say(f"   the release                 {outcome}")
    story.say(f"   deploys counted             {deploys}: one of the release, one of the way back")
    story.say(f"   first bad look to breach    {span(third - first)}: three of ten")
    story.say(f"   breach to previous commit   {span(back - third)}, until it was healthy three times in a row")
    story.say(f"   orders were stopped for     {span(stopped) if stopped else 'not known'}, the final backup in it")
    story.say(f"   orders now                  {'stopped' if frozen else 'taken'}")
    story.say(f"   what runs                   {runs.name}")
    story.say(f"\n   Slack        {url('slack')}   the release's thread, from the announcement to the record")
    story.say(f"   Status page  {url('status_page')}   what users were told")
    story.say(f"   PayMe API    {url('payme_api')}   what was done to it")
    if (outcome, deploys, frozen, runs, stopped is None) != ("ROLLED BACK", 2, False, story.previous, False):
        raise SandboxError(
            "the release did not turn out as it should",
            expected=f"ROLLED BACK, 2 deploys, orders taken, {story.previous.name}",
            found=f"{outcome}, {deploys} deploys, orders {'stopped' if frozen else 'taken'}, {runs.name}",
        )


def _unhealthy(story: _Story, release: Release, since: datetime, until: datetime) -> tuple[datetime, datetime]:
    """When the first look was unhealthy, and when three of ten were."""
    subjects = (f"{release.run}/health", release.run)
    looks = sorted(
        (one for name in subjects for one in samples.of(story.ops, name, since, until)), key=lambda one: one.at
    )
    bad = [one.state is State.UNHEALTHY for one in looks]
    third = k_of_n(bad)
    if third is None:
        raise SandboxError("the looks of the watch do not show the breach", found=f"{sum(bad)} of {len(bad)} unhealthy")
    return looks[bad.index(True)].at, looks[third].at
