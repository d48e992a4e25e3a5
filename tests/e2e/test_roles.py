"""Every cell of the table in docs/roles.md, tried through the API of a real Airflow with the FAB auth manager.

And what the roles are for: nobody gets past a question by another way than an approver's answer.
"""

import json
import secrets
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from urllib.parse import quote

import psycopg
import pytest

from payme_ops.foundation import airflow_api, approvals, evidence
from payme_ops.foundation.airflow_api import AirflowApi
from payme_ops.release import bypass
from sandbox import airflow, world
from sandbox.airflow import Api
from sandbox.http import call
from sandbox.supervisor import Supervisor
from sandbox.world import PROJECT, World
from tests.support.browser import Browser
from tests.support.waiting import eventually

# The first test waits for all of it to start, and for the questions.
pytestmark = [pytest.mark.long, pytest.mark.timeout(900)]

PAGE = (PROJECT / "docs" / "roles.md").read_text()
HEAD, *ROWS = [
    [cell.strip() for cell in line.strip("|\n").split("|")]
    for line in PAGE.partition("## The table")[2].partition("\n## ")[0].splitlines()
    if line.startswith("| ")
]
ROLES = HEAD[1:]
TABLE = {action: {role for role, cell in zip(ROLES, cells, strict=True) if cell == "yes"} for action, *cells in ROWS}

ADMIN, AUDITOR = "Admin", "auditor"
HARMLESS, TAGGED, DANGEROUS = (f"/dags/{name}/dagRuns" for name in ("harmless", "tagged", "dangerous"))
# Airflow looks at an account anew when it has not for that long: [fab] cache_ttl, in seconds.
CACHED = 2
# What the gate of each of these runs is for.
QUESTIONS = {"for approver": "operator", "for Admin": "operator", "answered": "operator", "own": "approver"}
QUESTIONS |= dict.fromkeys(("marked", "cleared"), "operator")

Call = tuple[str, str, object]


@dataclass(frozen=True)
class Office:
    """A desk with FAB, and a person of each role, who is called as the role is."""

    world: World
    supervisor: Supervisor
    env: Mapping[str, str]
    passwords: dict[str, str]
    people: dict[str, Api]
    refused: subprocess.CompletedProcess[str]
    runs: dict[str, str]

    @property
    def admin(self) -> Api:
        return self.people[ADMIN]

    @property
    def ops(self) -> str:
        return self.world.conninfo("payme_ops", "payme_ops")

    @property
    def admin_role(self) -> str:
        """Its number, which forms want."""
        with psycopg.connect(self.world.conninfo("airflow", "airflow")) as connection:
            row = connection.execute("SELECT id FROM ab_role WHERE name = %s", [ADMIN]).fetchone()
        assert row
        return str(row[0])

    def url(self, path: str) -> str:
        """Of Airflow's API, or of one beside it."""
        beside = path.startswith(("/auth/", "/ui/"))
        return f"{self.world.url('airflow')}{path if beside else f'/api/v2{path}'}"

    def try_as(self, role: str, asked: Call) -> int:
        method, path, body = asked
        token = self.people[role].token if role else ""
        return call(method, self.url(path), body, token=token)[0]

    def ended(self, name: str) -> tuple[str, dict[str, str]]:
        """The end of a run with a question: its state, and those of its tasks."""
        run = self.runs[name]
        self.supervisor.until(partial(self.admin.unfinished, "dangerous", run), name, 120)
        return self.admin.state("dangerous", run), self.states(name)

    def states(self, name: str) -> dict[str, str]:
        return {task["task_id"]: task["state"] for task in self.admin.tasks("dangerous", self.runs[name])}

    def destroyed(self, name: str) -> bool:
        return evidence.find(self.ops, f"dangerous/{self.runs[name]}", "destroyed") is not None

    def approval(self, name: str) -> approvals.Approval:
        found = approvals.latest(self.ops, run=f"dangerous/{self.runs[name]}", gate="approve")
        assert found
        return found

    def metadata(self, statement: str, *values: object) -> None:
        with psycopg.connect(self.world.conninfo("airflow", "airflow"), autocommit=True) as connection:
            assert connection.execute(statement, values).rowcount == 1


def accounts(
    env: Mapping[str, str], folder: Path, roles: Path = PROJECT / "docker/roles.json"
) -> subprocess.CompletedProcess[str]:
    """As the init container does it."""
    command = [sys.executable, "-m", "payme_ops.orchestration.accounts", str(roles), str(folder)]
    here = {**env, "PYTHONPATH": str(PROJECT / "plugins")}
    return subprocess.run(command, env=here, cwd=PROJECT, capture_output=True, text=True, check=False)


def token(here: World, user: str, password: str) -> str | None:
    status, answer = call("POST", f"{here.url('airflow')}/auth/token", {"username": user, "password": password})
    assert status in (201, 401)
    return str(answer["access_token"]) if status == 201 else None


@pytest.fixture(scope="module")
def office() -> Iterator[Office]:
    root = Path(tempfile.mkdtemp(prefix="payme-ops-roles-"))
    try:
        with world.running(root) as (here, supervisor):
            env = airflow.environment(here, dags=Path(__file__).parent / "roles_dags") | {
                "AIRFLOW__CORE__AUTH_MANAGER": "airflow.providers.fab.auth_manager.fab_auth_manager.FabAuthManager",
                "AIRFLOW__CORE__DEFAULT_TASK_RETRY_DELAY": "1",
                "AIRFLOW__DAG_PROCESSOR__MIN_FILE_PROCESS_INTERVAL": "3600",  # the one file does not change
                "AIRFLOW__FAB__CONFIG_FILE": str(PROJECT / "docker/webserver_config.py"),
                "AIRFLOW__FAB__CACHE_TTL": str(CACHED),
                "AIRFLOW__FAB__ENABLE_PROXY_FIX": "True",
            }
            airflow.migrate(here, supervisor, env)
            refused = accounts(env, root)
            passwords = {role: secrets.token_hex(16) for role in ROLES}
            folder = root / "secrets"
            folder.mkdir()
            (folder / "airflow_first_admin_password").write_text(passwords[ADMIN] + "\n")
            (folder / "airflow_auditor_password").write_text(passwords[AUDITOR] + "\n")
            made = accounts(env, folder)
            assert made.returncode == 0, made.stderr
            since = datetime.now(UTC)
            airflow.start(here, supervisor, env)
            first = Api(here.url("airflow"), token(here, "first_admin", passwords[ADMIN]) or "")
            for role in set(ROLES) - {ADMIN, AUDITOR}:
                person = {"username": role, "email": f"{role}@payme.test", "first_name": role, "last_name": "of PayMe"}
                asked = {**person, "roles": [{"name": role}], "password": passwords[role]}
                assert call("POST", f"{first.url}/auth/fab/v1/users", asked, token=first.token)[0] == 200
            people = {role: Api(first.url, token(here, role, passwords[role]) or "") for role in ROLES if role != ADMIN}
            people[ADMIN] = first
            for name in ("harmless", "makes_asset", "spare", "tagged", "dangerous"):
                supervisor.until(partial(first.dag_missing, name, since), name, 120)
            runs = {name: people[who].trigger("dangerous") for name, who in QUESTIONS.items()}
            runs["finished"] = first.trigger("harmless")
            for name in QUESTIONS:
                supervisor.until(partial(first.not_asking, "dangerous", runs[name], "approve"), name, 180)
            supervisor.until(partial(first.unfinished, "harmless", runs["finished"]), "harmless", 120)
            first.call("PATCH", "/dags/harmless", {"is_paused": True})  # from here on it counts who may ask
            yield Office(here, supervisor, env, passwords, people, refused, runs)
    finally:
        world.remove(root)
        shutil.rmtree(root, ignore_errors=True)


# --- What is tried: by the line of the table, what is asked of the API by one who tries it. ---


def see(office: Office, _: str) -> list[Call]:
    run = quote(office.runs["finished"])
    paths = ("/dags", HARMLESS, f"{HARMLESS}/{run}", f"{HARMLESS}/{run}/taskInstances", "/importErrors", "/ui/config")
    return [("GET", path, None) for path in (*paths, "/dags/~/dagRuns/~/hitlDetails")]


def of_task(path: str) -> Callable[[Office, str], list[Call]]:
    return lambda office, _: [("GET", f"{HARMLESS}/{quote(office.runs['finished'])}/taskInstances/work{path}", None)]


def reads(*paths: str) -> Callable[[Office, str], list[Call]]:
    return lambda *_: [("GET", path, None) for path in paths]


def triggers(path: str) -> Callable[[Office, str], list[Call]]:
    return lambda *_: [("POST", path, {"logical_date": None, "conf": {}})]


def backfill(office: Office, _: str) -> list[Call]:
    # One at a time; the last one may have ended by itself.
    for one in office.admin.call("GET", "/backfills?dag_id=harmless")["backfills"]:
        office.try_as(ADMIN, ("PUT", f"/backfills/{one['id']}/cancel", None))
    span = {"from_date": "2026-02-01T00:00:00Z", "to_date": "2026-02-02T00:00:00Z"}
    return [("POST", "/backfills", {"dag_id": "harmless", **span, "reprocess_behavior": "completed"})]


def pause(*_: object) -> list[Call]:
    return [("PATCH", "/dags/harmless", {"is_paused": paused}) for paused in (False, True)]


def clear(office: Office, _: str) -> list[Call]:
    run = office.runs["finished"]
    tasks = {"dry_run": False, "dag_run_id": run, "task_ids": ["work"], "only_failed": False}
    whole = {"dry_run": False, "only_failed": False}
    return [
        ("POST", "/dags/harmless/clearTaskInstances", tasks),
        ("POST", f"{HARMLESS}/{quote(run)}/clear", whole),
        ("POST", "/dags/harmless/clearDagRuns", {**whole, "dag_runs": [{"dag_run_id": run, "dag_id": "harmless"}]}),
    ]


def mark(office: Office, _: str) -> list[Call]:
    run = f"{HARMLESS}/{quote(office.admin.trigger('harmless'))}"
    many = {"actions": [{"action": "update", "entities": [{"task_id": "work", "new_state": "failed"}]}]}
    return [
        ("PATCH", f"{run}/taskInstances/work", {"new_state": "success"}),
        ("PATCH", f"{run}/taskInstances", many),
        ("PATCH", run, {"state": "success"}),
    ]


def answer(office: Office, role: str) -> list[Call]:
    """Who may not answer tries it on a question that nobody has answered yet: those are tried first."""
    run = office.runs.get(f"for {role}", office.runs["for approver"])
    return [("PATCH", gate(run, "/-1/hitlDetails"), {"chosen_options": ["Approve"], "params_input": {}})]


def gate(run: str, path: str = "") -> str:
    return f"{DANGEROUS}/{quote(run)}/taskInstances/approve{path}"


def write_xcom(office: Office, role: str) -> list[Call]:
    path = f"{HARMLESS}/{quote(office.runs['finished'])}/taskInstances/work/xcomEntries"
    return [
        ("PATCH", f"{path}/return_value", {"value": "another"}),
        ("POST", path, {"key": role, "value": "new"}),
        ("DELETE", f"{path}/{role if role == ADMIN else 'return_value'}", None),
    ]


def make_event(office: Office, _: str) -> list[Call]:
    [asset] = [one["id"] for one in office.admin.call("GET", "/assets")["assets"]]
    return [("POST", "/assets/events", {"asset_id": asset}), ("POST", f"/assets/{asset}/materialize", None)]


def delete(office: Office, _: str) -> list[Call]:
    runs = [office.admin.trigger("harmless") for _ in range(2)]
    for one in runs:
        office.admin.call("PATCH", f"{HARMLESS}/{quote(one)}", {"state": "failed"})
    return [
        ("DELETE", f"{HARMLESS}/{quote(runs[0])}/taskInstances/work", None),
        ("DELETE", f"{HARMLESS}/{quote(runs[0])}", None),
        ("PATCH", HARMLESS, {"actions": [{"action": "delete", "entities": [runs[1]]}]}),
        ("DELETE", "/dags/spare", None),
    ]


def changes(path: str, name: str, body: Mapping[str, object]) -> list[Call]:
    """One is made, changed and deleted."""
    return [("POST", path, body), ("PATCH", f"{path}/{name}", body), ("DELETE", f"{path}/{name}", None)]


def write_secrets(*_: object) -> list[Call]:
    return [
        *changes("/connections", "one", {"connection_id": "one", "conn_type": "http"}),
        *changes("/variables", "one", {"key": "one", "value": "a value"}),
    ]


def write_pools(*_: object) -> list[Call]:
    return changes("/pools", "one", {"name": "one", "slots": 1, "description": "", "include_deferred": False})


def write_accounts(*_: object) -> list[Call]:
    person = {"username": "one", "email": "one@payme.test", "first_name": "One", "last_name": "More"}
    return changes("/auth/fab/v1/users", "one", {**person, "roles": [{"name": ADMIN}], "password": "x" * 16})


def write_roles(*_: object) -> list[Call]:
    pair = {"action": {"name": "can_edit"}, "resource": {"name": "HITL Detail"}}
    return changes("/auth/fab/v1/roles", "one", {"name": "one", "actions": [pair]})


ACTIONS: dict[str, Callable[[Office, str], list[Call]]] = {
    "see DAGs, runs, tasks and questions": see,
    "read the log of a task": of_task("/logs/1"),
    "read XCom": of_task("/xcomEntries/return_value"),
    "read a DAG's code": reads("/dagSources/harmless"),
    "see pools": reads("/pools"),
    "see the event log": reads("/eventLogs"),
    "trigger a DAG": triggers(HARMLESS),
    "trigger a DAG tagged `risk:writes-prod`": triggers(TAGGED),
    "backfill a DAG": backfill,
    "pause and unpause a DAG": pause,
    "clear tasks or a run": clear,
    "mark tasks or a run as success or failed": mark,
    "answer a question": answer,
    "write, rewrite or delete XCom": write_xcom,
    "make an event of an asset": make_event,
    "delete a task of a run, a run or a DAG": delete,
    "see connections, without their passwords": reads("/connections"),
    "see variables": reads("/variables"),
    "make, change or delete connections and variables": write_secrets,
    "make, change or delete pools": write_pools,
    "see plugins and providers": reads("/plugins", "/providers"),
    "see accounts and roles": reads("/auth/fab/v1/users", "/auth/fab/v1/roles", "/auth/fab/v1/permissions"),
    "make, change or delete accounts": write_accounts,
    "change what a role may do": write_roles,
    "read Airflow's configuration": reads("/config", "/config/section/core/option/fernet_key"),
}
OWN_PASSWORD = "change one's own password"


def test_each_line_of_the_table_is_tried() -> None:
    assert {*TABLE} == {*ACTIONS, OWN_PASSWORD}
    assert {cell for _, *cells in ROWS for cell in cells} == {"yes", "no"}


@pytest.mark.parametrize("action", ACTIONS)
def test_only_the_roles_of_the_table_may(office: Office, action: str) -> None:
    allowed = TABLE[action]
    for role in ("", *sorted(ROLES, key=lambda role: role in allowed)):
        asked = ACTIONS[action](office, role)
        found = {f"{method} {path}": office.try_as(role, (method, path, body)) for method, path, body in asked}
        if role in allowed:
            assert all(status < 300 for status in found.values()), (role, found)
        else:
            assert {*found.values()} == {403 if role else 401}, (role, found)


def test_everybody_changes_their_own_password_to_a_long_one(office: Office) -> None:
    """By the form of the UI: the API has no such call."""
    assert TABLE[OWN_PASSWORD] == {*ROLES}
    form = "/auth/resetmypassword/form"
    for number, role in enumerate(ROLES):
        browser = Browser(office.world.url("airflow"), f"192.0.2.{number}")
        assert "/auth/login/" in browser.go("GET", form)[1]
        user, old, new = login_of(role), office.passwords[role], secrets.token_hex(16)
        assert browser.fill_in("/auth/login/", username=user, password=old)[0] == 302
        for cookie in ("session", "_token"):
            assert all(word in browser.cookies[cookie] for word in ("Secure", "HttpOnly", "SameSite=Lax")), cookie
        status, page = browser.fill_in(form, password="fifteen letters", conf_password="fifteen letters")
        assert (status, "At least 16 characters" in page) == (200, True)
        assert browser.fill_in(form, password=new, conf_password=new)[0] == 302
        assert [bool(token(office.world, user, password)) for password in (old, new)] == [False, True]
        office.passwords[role] = new


def test_the_api_takes_no_short_password_and_nothing_that_came_with_it(office: Office) -> None:
    users = f"{office.world.url('airflow')}/auth/fab/v1/users"
    person = {"username": "short", "email": "short@payme.test", "first_name": "A", "last_name": "guest"}
    body = {**person, "roles": [{"name": "viewer"}], "password": "fifteen letters"}
    assert call("POST", users, body, token=office.admin.token)[0] == 500
    assert call("GET", f"{users}/short", token=office.admin.token)[0] == 404

    raised = {"roles": [{"name": ADMIN}], "password": "fifteen letters"}
    assert call("PATCH", f"{users}/viewer", raised, token=office.admin.token)[0] == 422
    # Another change is written by the same session.
    assert call("PATCH", f"{users}/viewer", {"first_name": "V"}, token=office.admin.token)[0] == 200
    assert call("GET", f"{users}/viewer", token=office.admin.token)[1]["roles"] == [{"name": "viewer"}]
    assert token(office.world, "viewer", office.passwords["viewer"])


def test_the_event_log_has_who_was_given_what(office: Office) -> None:
    """By a form it says who did it; a sign-in is no change. No password is in it, not even its hash."""
    browser = Browser(office.world.url("airflow"), "203.0.113.1")
    assert browser.fill_in("/auth/login/", username="first_admin", password=office.passwords[ADMIN])[0] == 302
    person = {"username": "guest", "email": "guest@payme.test", "first_name": "A", "last_name": "guest"}
    role = office.admin_role
    form = {**person, "active": "y", "roles": role, "password": "x" * 16, "conf_password": "x" * 16}
    assert browser.fill_in("/auth/users/add", **form)[0] == 302
    path = f"{office.world.url('airflow')}/auth/fab/v1/users/guest"
    viewer = {"roles": [{"name": "viewer"}]}
    assert call("PATCH", f"{path}?update_mask=roles", viewer, token=office.admin.token)[0] == 200
    assert token(office.world, "guest", "x" * 16)
    assert call("DELETE", path, token=office.admin.token)[0] == 204

    asked = "/eventLogs?included_events=user_made&included_events=user_changed&included_events=user_deleted&limit=100"
    entries = office.people[AUDITOR].call("GET", f"{asked}&order_by=event_log_id")["event_logs"]
    of_guest = [(one["event"], one["owner"], one["extra"]) for one in entries if '"guest"' in one["extra"]]
    assert [(event, owner) for event, owner, _ in of_guest] == [
        ("user_made", "first_admin"),
        ("user_changed", "not by a form"),
        ("user_deleted", "not by a form"),
    ]
    assert [json.loads(extra).get("roles") for _, _, extra in of_guest[:2]] == [[ADMIN], ["viewer"]]
    assert not any("scrypt" in one["extra"] for one in entries)


def login_of(role: str) -> str:
    return "first_admin" if role == ADMIN else role


def test_the_form_takes_five_tries_of_an_address_and_registers_nobody(office: Office) -> None:
    url = office.world.url("airflow")
    stranger, neighbour = Browser(url, "198.51.100.1"), Browser(url, "198.51.100.2")
    tries = [stranger.fill_in("/auth/login/", username="viewer", password="wrong")[0] for _ in range(6)]
    assert (tries[-1], neighbour.fill_in("/auth/login/", username="viewer", password="wrong")[0]) == (429, 302)
    assert neighbour.go("GET", "/auth/register/form")[0] == 404


# --- What the roles are for ---


def test_what_an_approver_agrees_to_goes_on(office: Office) -> None:
    answer_as(office, "approver", "answered")
    assert office.ended("answered") == ("success", dict.fromkeys(("measure", "approve", "destroy"), "success"))
    found = office.approval("answered")
    # The same kind of name in both, though FAB knows people by numbers.
    assert (found.requested_by, found.responder) == ("operator", "approver")
    assert office.destroyed("answered")


def test_who_triggered_a_run_is_known_again_by_the_question(office: Office) -> None:
    answer_as(office, "approver", "own")
    state, tasks = office.ended("own")
    assert (state, tasks["approve"], tasks["destroy"]) == ("failed", "failed", "upstream_failed")
    assert "an approval by approver, who triggered the run" in office.admin.log(
        "dangerous", office.runs["own"], "approve"
    )
    assert not office.destroyed("own")


def test_neither_a_mark_nor_an_xcom_approves_anything(office: Office) -> None:
    run, operator = office.runs["marked"], office.people["operator"]
    said = {"chosen_options": ["Approve"], "responded_by_user": {"id": "1", "name": "approver"}}
    written: Call = ("POST", gate(run, "/xcomEntries"), {"key": "return_value", "value": said})
    assert [office.try_as(role, written) for role in ("operator", "approver", ADMIN)] == [403, 403, 201]
    operator.call("PATCH", gate(run), {"new_state": "success"})
    require_refused(office, "marked", attempt=1)
    # Nor does clearing what refused it.
    again = {"dry_run": False, "dag_run_id": run, "task_ids": ["destroy"], "only_failed": False}
    operator.call("POST", "/dags/dangerous/clearTaskInstances", again)
    require_refused(office, "marked", attempt=2)
    # The machines' account sees who it was, by the name that people know.
    reader = airflow_api.sign_in(AirflowApi(office.world.url("airflow"), AUDITOR, office.passwords[AUDITOR]))
    runs = {"dangerous": run}
    seen = airflow_api.calls(reader, bypass.MARKS, datetime.min.replace(tzinfo=UTC))
    endings = airflow_api.endings(reader, [run], bypass.ENDINGS)
    marks = bypass.marks(airflow_api.tasks(reader, runs), endings, bypass.found(seen, runs), {}, runs)
    assert [(one.task, one.by) for one in marks] == [("approve", "operator")]


def test_a_question_that_an_operator_clears_is_asked_again(office: Office) -> None:
    run = office.runs["cleared"]
    cleared = {"dry_run": False, "dag_run_id": run, "task_ids": ["approve", "destroy"], "only_failed": False}
    office.people["operator"].call("POST", "/dags/dangerous/clearTaskInstances", cleared)
    office.supervisor.until(partial(office.admin.not_asking, "dangerous", run, "approve"), "the question", 120)
    asked = ("PATCH", gate(run, "/-1/hitlDetails"), {"chosen_options": ["Approve"], "params_input": {}})
    assert office.try_as("operator", asked) == 403
    assert (office.approval("cleared").choice, office.destroyed("cleared")) == (None, False)


def answer_as(office: Office, role: str, name: str) -> None:
    office.people[role].answer("dangerous", office.runs[name], "approve", "Approve")


def require_refused(office: Office, name: str, attempt: int) -> None:
    """The run is red: its dangerous task read the ops database, and found nobody's answer there."""
    eventually(lambda: tries(office, name) == attempt, f"try {attempt}", 60, every=0.5)
    state, tasks = office.ended(name)
    assert (state, tasks["approve"], tasks["destroy"]) == ("failed", "success", "failed")
    assert "nobody's answer" in office.admin.log("dangerous", office.runs[name], "destroy", attempt)
    assert (office.approval(name).choice, office.destroyed(name)) == (None, False)


def tries(office: Office, name: str) -> int:
    found = office.admin.tasks("dangerous", office.runs[name])
    return next(int(one["try_number"]) for one in found if one["task_id"] == "destroy")


# --- Accounts ---


def test_without_a_password_in_a_file_nobody_is_made(office: Office) -> None:
    assert office.refused.returncode == 1
    assert "the secret airflow_first_admin_password holds no password" in office.refused.stderr


def test_who_has_left_is_shut_out_at_once(office: Office) -> None:
    """By what the form of the account sets. A token of an hour ago does not help."""
    seen: Call = ("GET", "/dags", None)
    assert office.try_as("viewer", seen) == 200
    office.metadata("UPDATE ab_user SET active = false WHERE username = 'viewer'")
    assert token(office.world, "viewer", office.passwords["viewer"]) is None
    eventually(lambda: office.try_as("viewer", seen) == 403, "the token to be refused", 10 * CACHED, every=0.2)
    office.metadata("UPDATE ab_user SET active = true WHERE username = 'viewer'")
    eventually(lambda: office.try_as("viewer", seen) == 200, "the account to count again", 10 * CACHED, every=0.2)


def test_what_the_file_says_counts_whatever_was_clicked(office: Office, tmp_path: Path) -> None:
    """A permission leaves its role with the file, a role of Airflow's own is taken from who has it; and the way back
    when no admin is left.
    """
    folder, other = office.world.root / "secrets", tmp_path / "roles.json"
    office.passwords[AUDITOR] = secrets.token_hex(16)
    (folder / "airflow_auditor_password").write_text(office.passwords[AUDITOR])
    said = json.loads((PROJECT / "docker/roles.json").read_text())
    said["operator"]["permissions"]["can_edit"].remove("Task Instances")
    other.write_text(json.dumps(said))
    roles = {"roles": [{"name": "viewer"}, {"name": "Op"}]}
    person = f"{office.world.url('airflow')}/auth/fab/v1/users/viewer?update_mask=roles"
    assert call("PATCH", person, roles, token=office.admin.token)[0] == 200
    eventually(lambda: office.try_as("viewer", ("GET", "/connections", None)) == 200, "Op to count", 10 * CACHED)
    office.metadata("UPDATE ab_user SET active = false WHERE username = 'first_admin'")

    told = accounts(office.env, folder, other).stdout.splitlines()[-5:]
    assert told == [
        "operator may no longer: can_edit Task Instances",
        "approver may no longer: can_edit Task Instances",
        "viewer is no longer Op",
        "the account first_admin was set to its role and password",
        "the account auditor was set to its role and password",
    ]
    assert token(office.world, "first_admin", (folder / "airflow_first_admin_password").read_text().strip())
    marked: Call = ("PATCH", gate(office.runs["own"]), {"note": "seen"})
    eventually(lambda: office.try_as("operator", marked) == 403, "the role to be less", 10 * CACHED)
    eventually(lambda: office.try_as("viewer", ("GET", "/connections", None)) == 403, "Op to be gone", 10 * CACHED)
    assert token(office.world, AUDITOR, office.passwords[AUDITOR])

    assert accounts(office.env, folder).stdout.splitlines()[-1] == "approver may now: can_edit Task Instances"
    eventually(lambda: office.try_as("operator", marked) == 200, "the role to be whole", 10 * CACHED)
    assert accounts(office.env, folder).stdout.splitlines()[-1] == "roles and accounts are as they should be"


def test_a_permission_that_airflow_does_not_know_changes_nothing(office: Office, tmp_path: Path) -> None:
    other = tmp_path / "roles.json"
    other.write_text(json.dumps({"viewer": {"includes": [], "permissions": {"can_read": ["DAGs", "Dagz"]}}}))
    ended = accounts(office.env, office.world.root / "secrets", other)
    assert ended.returncode == 1
    assert "a permission that Airflow does not know" in ended.stderr
    assert "Dagz" in ended.stderr
    assert all(status == 200 for status in (office.try_as("viewer", one) for one in see(office, "viewer")))
