"""`python -m payme_ops sentry plan|apply`: Sentry's alert rules as code."""

import json
from collections.abc import Sequence
from typing import Any

import typer
from rich.table import Table
from rich.text import Text

from payme_ops.cli import doors
from payme_ops.cli.backup import AsJson
from payme_ops.foundation import settings
from payme_ops.foundation.errors import SettingsError
from payme_ops.foundation.sentry_api import SentryApi
from payme_ops.foundation.settings import SentrySettings
from payme_ops.monitoring import sentry_rules
from payme_ops.monitoring.sentry_rules import Act, Plan, Step

app = typer.Typer(no_args_is_help=True, help="Alert rules in Sentry, kept as code.")

_NEEDED = {"organization": "ORGANIZATION", "project": "PROJECT", "token_file": "TOKEN_FILE"}
_COLOUR = {Act.CREATE: "green", Act.CHANGE: "yellow", Act.REMOVE: "red", Act.NONE: "", Act.NOT_OURS: "dim"}


@app.command("plan")
def plan(*, as_json: AsJson = False) -> None:
    """Show what is not as it should be, field by field. Changes nothing. Exit code 3 when something is not."""
    _, made = _made()
    if as_json:
        typer.echo(json.dumps({"drift": made.drift, "quiet": made.quiet, "steps": _data(made.steps)}, indent=1))
    else:
        doors.out.print(_table(made))
        _words(made)
    if made.drift:
        raise typer.Exit(3)


@app.command("apply")
def apply() -> None:
    """Make it so. What is not ours is left alone. Exit code 3 when a cron monitor tells nobody."""
    api, made = _made()
    done = 0
    for step in sentry_rules.apply(api, made):
        done += 1
        doors.report(f"{step.act}d: {step.kind[:-1]} {step.id}, {step.name}")
    doors.out.print(f"{done} done, {sum(one.act is Act.NONE for one in made.steps)} were right before")
    _words(made)
    if made.quiet:
        raise typer.Exit(3)


def _made() -> tuple[SentryApi, Plan]:
    config = settings.load().sentry
    api = api_of(config)
    return api, sentry_rules.make_plan(api, projects_of(config), config.airflow_project, config.team_id)


def projects_of(config: SentrySettings) -> list[str]:
    """The projects that have rules."""
    return list(dict.fromkeys(one for one in (config.project, config.airflow_project) if one))


def api_of(config: SentrySettings) -> SentryApi:
    """Sentry by the token of the settings. Raises SettingsError."""
    if missing := [f"PAYME_OPS__SENTRY__{name}" for field, name in _NEEDED.items() if not getattr(config, field)]:
        raise SettingsError(
            "it is not known which Sentry the rules are for",
            expected=", ".join(missing),
            found="not set",
            remedy="set what is named; .env.example explains it",
        )
    file = config.token_file
    try:
        token = file.read_text().strip() if file else ""
    except OSError as error:
        raise SettingsError(
            "Sentry's token cannot be read", expected="PAYME_OPS__SENTRY__TOKEN_FILE", found=f"{file}: {error.strerror}"
        ) from None
    return SentryApi(config.url, token, config.organization, config.project, "")


def _data(steps: Sequence[Step]) -> list[dict[str, Any]]:
    return [
        {
            "act": one.act,
            "kind": one.kind,
            "name": one.name,
            "id": one.id,
            "changes": [{"field": name, "from": old, "to": new} for name, old, new in one.changes],
        }
        for one in steps
    ]


def _table(made: Plan) -> Table:
    table = Table(title="Alert rules in Sentry", title_justify="left", show_lines=True)
    for name in ("", "What", "Name", "Field: from -> to"):
        table.add_column(name, overflow="fold")
    for step in made.steps:
        cells = (
            f"{step.kind[:-1]} {step.id}".rstrip(),
            step.name,
            "\n".join(_change(step.act, *one) for one in step.changes),
        )
        table.add_row(step.act, *map(Text, cells), style=_COLOUR[step.act])  # not markup: names are anybody's
    return table


def _change(act: Act, name: str, old: str, new: str) -> str:
    return f"{name}: {new or 'none'}" if act is Act.CREATE else f"{name}: {old or 'none'} -> {new or 'none'}"


def _words(made: Plan) -> None:
    for line in (*made.quiet, *made.notes):
        doors.report(line)
