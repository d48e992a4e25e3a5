"""`python -m payme_ops alert …`: what is open, who has seen it, what is kept quiet.

What is said here is written to the ops database; the watchdog brings it to Slack within half a minute, so that no
shell needs Slack's token.
"""

import json
import os
import pwd
from dataclasses import asdict
from datetime import datetime, timedelta
from typing import Annotated

import typer
from rich.table import Table

from payme_ops.cli import doors
from payme_ops.cli.backup import AsJson
from payme_ops.foundation import alert, silences
from payme_ops.foundation.alert import OpenAlert, Severity
from payme_ops.foundation.clock import show, utc_now
from payme_ops.foundation.errors import SettingsError
from payme_ops.foundation.silences import Silence

app = typer.Typer(no_args_is_help=True, help="Alerts: what is open, who has seen it, what is kept quiet.")
Key = Annotated[str, typer.Argument(help="The key, as `alert list` and the last line of the message show it.")]
_STYLE = {Severity.CRITICAL: "red", Severity.WARNING: "yellow", Severity.INFO: "blue"}
_SENT_SOON = "Slack hears of it within half a minute, from the watchdog."


@app.command("list")
def alert_list(*, as_json: AsJson = False) -> None:
    """What is not over, who has seen it, what is silenced, and what Slack has not taken yet."""
    found, quiet, waiting = alert.open_alerts(doors.OPS), silences.active(doors.OPS), alert.waiting(doors.OPS)
    if as_json:
        told = {"open": [asdict(one) for one in found], "silences": [asdict(one) for one in quiet], "waiting": waiting}
        typer.echo(json.dumps(told, indent=1, default=_instant))
        return
    doors.out.print(_open_table(found) if found else "No alert is open.")
    if quiet:
        doors.out.print(_silence_table(quiet))
    if waiting:
        doors.out.print(f"Slack has not taken: {', '.join(waiting)}", markup=False)


@app.command()
def ack(key: Key, *, why: Annotated[str, typer.Option(help="What you do about it; shown in its thread.")] = "") -> None:
    """Say that you have seen an open alert: once in its thread, and nobody is reminded of it any more."""
    me = os_user()
    seen = alert.acknowledge(doors.OPS, key, me, why, None)
    if seen.acknowledged_by == me:
        typer.echo(f"Seen by {me}: {seen.what}. {_SENT_SOON}")
    else:
        typer.echo(f"{seen.acknowledged_by} has seen it already: {seen.what}.")


@app.command()
def silence(
    key: Annotated[str, typer.Argument(help="A key, or the beginning of keys and a *: 'health:*'")],
    *,
    reason: Annotated[str, typer.Option(help="Why, in 10 characters at least; shown in the channel.")] = "",
    minutes: Annotated[int, typer.Option(help="For how long: 240 at most.")] = 60,
    end: Annotated[bool, typer.Option("--end", help="End the silence of that key now.")] = False,
) -> None:
    """Keep alerts of a key quiet for a while, or end that. Both are told in the channel."""
    if end and reason:
        raise SettingsError("a silence ends without a reason", expected="--end or --reason", found="both")
    if end:
        over = silences.end(doors.OPS, key, os_user(), None)
        typer.echo(f"No longer silenced: {over.key}. {_SENT_SOON}")
        return
    begun = silences.silence(doors.OPS, key, reason, os_user(), utc_now() + timedelta(minutes=minutes), None)
    typer.echo(f"Silenced until {show(begun.until)}: {begun.key}. {_SENT_SOON}")


def os_user() -> str:
    """The name of who runs this process, as the machine has it; a variable could say anything."""
    try:
        return pwd.getpwuid(os.getuid()).pw_name
    except KeyError:
        return f"user {os.getuid()}"


def _open_table(found: list[OpenAlert]) -> Table:
    table = Table(title="Open alerts", title_justify="left", box=None, pad_edge=False)
    for heading in ("severity", "key", "what", "since (EAT)", "seen by"):
        table.add_column(heading, overflow="fold")
    for one in found:
        style = _STYLE[one.severity]
        seen = one.acknowledged_by or "nobody"
        table.add_row(f"[{style}]{one.severity}[/]", *map(_plain, (one.key, one.what, _minute(one.since), seen)))
    return table


def _silence_table(found: list[Silence]) -> Table:
    table = Table(title="Silenced", title_justify="left", box=None, pad_edge=False)
    for heading in ("key", "until (EAT)", "by", "reason"):
        table.add_column(heading, overflow="fold")
    for one in found:
        table.add_row(*map(_plain, (one.key, _minute(one.until), one.by, one.reason)))
    return table


def _plain(text: str) -> str:
    return text.replace("[", r"\[")


def _minute(instant: datetime) -> str:
    return show(instant)[:16]


def _instant(value: object) -> str:
    return value.isoformat() if isinstance(value, datetime) else str(value)
