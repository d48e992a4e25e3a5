"""Step 4: somebody drops `users`. A restore shows what would be lost, a second person approves, payments work again."""

import re
from functools import partial

import psycopg
from rich.console import Console
from rich.markdown import Markdown

from payme_ops.cli.tables import proof_table
from sandbox.builds import BY_COMMIT
from sandbox.demo import newest_backup
from sandbox.http import call
from sandbox.supervisor import SandboxError
from sandbox.tour import ground
from sandbox.tour.ground import Desk

_DAG = "backup_restore"
_SECONDS = 600.0


def walk(console: Console) -> None:
    """Raises SandboxError when anything does not turn out as docs/tour.md says."""
    with ground.desk(console) as desk:
        console.print("\n[bold]1. The newest backup.[/bold]")
        console.print(proof_table(newest_backup()))
        console.print("\n[bold]2. Somebody drops the table of users.[/bold]")
        ground.until(partial(_not, desk, 200), "a healthy application", _SECONDS)
        with psycopg.connect(desk.world.cluster.conninfo("payme"), autocommit=True) as connection:
            connection.execute("SET lock_timeout = '20s'")
            connection.execute("DROP TABLE users CASCADE")
        console.print(f"   /health says {_health(desk)}")
        console.print(
            f"\n[bold]3. On call triggers {_DAG}.[/bold] The application is stopped, the backup restored beside."
        )
        form = {"backup": "latest", "reason": "users was dropped (tour, step 4)", "version": _version(desk)}
        run = desk.oncall.trigger(_DAG, form)
        ground.until(partial(desk.oncall.not_asking, _DAG, run, "approve_swap"), "the question", _SECONDS)
        console.print("\n[bold]4. A second person is asked, and sees what would be lost.[/bold]\n")
        console.print(Markdown(desk.approver.question(_DAG, run, "approve_swap")["body"]))
        desk.approver.answer(_DAG, run, "approve_swap", "Approve")
        console.print("\n[bold]5. Approved: swap, start, tell.[/bold]")
        ground.until(partial(desk.oncall.unfinished, _DAG, run), f"{_DAG} to finish", _SECONDS)
        _require_success(desk, run)
        console.print(f"   /health says {_health(desk)}")
        console.print(f"   {_recovery_time(desk, run)}")
        _show_told(console, desk)


def _health(desk: Desk) -> str:
    status, body = call("GET", f"{desk.world.url('payme_api')}/health")
    return f"{status}, {body['status']}, version {body['version']}"


def _version(desk: Desk) -> str | None:
    """The one that runs, when step 5 has rolled a bad one back; else none, and the one before is started."""
    found = call("GET", f"{desk.world.url('payme_api')}/version")[1]
    return str(found["version"]) if BY_COMMIT[found["previous_commit"]].fault else None


def _not(desk: Desk, status: int) -> str | None:
    return None if _health(desk).startswith(str(status)) else _health(desk)


def _require_success(desk: Desk, run: str) -> None:
    state = desk.oncall.state(_DAG, run)
    if state != "success" or _not(desk, 200):
        failed = [task["task_id"] for task in desk.oncall.tasks(_DAG, run) if task["state"] == "failed"]
        raise SandboxError(f"{_DAG} ended as {state}", found=f"failed: {', '.join(failed)}; {_health(desk)}")


def _recovery_time(desk: Desk, run: str) -> str:
    found = re.search(r"RTO: [^\n]+", desk.oncall.log(_DAG, run, "verdict"))
    if found is None:
        raise SandboxError("the run names no recovery time", expected="RTO in the log of verdict")
    return found[0]


def _show_told(console: Console, desk: Desk) -> None:
    console.print("\n[bold]6. Who was told.[/bold]")
    for update in call("GET", f"{desk.world.url('status_page')}/incidents.json")[1][-2:]:
        console.print(f"   status page   {update['status']}: {update['body']}", soft_wrap=True)
    for mail in call("GET", f"{desk.world.url('mail')}/messages.json")[1][-2:]:
        console.print(f"   mail          {mail['subject']}", soft_wrap=True)
