"""`python -m payme_ops env check`: the application's own variables, from a file, this process or Secrets Manager."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import boto3
import typer

from payme_ops.cli import doors
from payme_ops.cli.backup import AsJson
from payme_ops.cli.tables import evidence_json, evidence_table
from payme_ops.foundation import secret as secrets
from payme_ops.foundation.errors import SettingsError
from payme_ops.foundation.evidence import Check, Evidence, Verdict, run_check
from payme_ops.foundation.settings import Profile
from payme_ops.release import app_env
from payme_ops.release.request import Environment

app = typer.Typer(no_args_is_help=True, help="The PayMe application's own variables; values are never shown.")

ITEM = "application_environment"
_PROFILE = "payme_secrets"


@app.command("check")
def check(
    *,
    environment: Annotated[Environment, typer.Option(help="Whose they are; production asks for more.")],
    file: Annotated[Path | None, typer.Option(help="An environment file.")] = None,
    process: Annotated[bool, typer.Option("--process", help="The variables of this process.")] = False,
    secret: Annotated[
        str, typer.Option(help="A secret of AWS Secrets Manager, by the AWS profile payme_secrets.")
    ] = "",
    as_json: AsJson = False,
) -> None:
    """Name everything that is missing, malformed, a placeholder or used twice. Exit code 3 when something is."""
    values, source = _values(file, secret, process=process)
    found = _examine(environment, source, lambda: values, doors.run_name())
    if as_json:
        typer.echo(json.dumps(evidence_json(found), indent=1))
    else:
        doors.out.print(evidence_table("env check", [found]))
    if found.verdict is not Verdict.PASS:
        raise typer.Exit(3)


def of_doctor(profile: Profile, actor: str) -> list[Evidence]:
    """The same for doctor: the secret of this installation's environment, where the AWS profile is there."""
    if not doors.has_profile(_PROFILE):
        return []
    environment = Environment.STAGING if profile is Profile.STAGING else Environment.PRODUCTION
    name = f"payme/{environment}/secrets"

    def values() -> dict[str, str]:
        return app_env.read_secret(secrets.fetch(_client, name, f"the AWS profile {_PROFILE}"))

    return [_examine(environment, f"secret {name}", values, actor)]


def _examine(environment: Environment, source: str, values: Callable[[], dict[str, str]], actor: str) -> Evidence:
    check = Check(
        ITEM,
        "every variable is there and can be meant",
        source,
        lambda: app_env.examine(values(), environment, source),
    )
    return run_check(check, actor=actor)


def _values(file: Path | None, secret: str, *, process: bool) -> tuple[dict[str, str], str]:
    if [file is not None, bool(secret), process].count(True) != 1:
        raise SettingsError(
            "it is not said which variables to check",
            expected="one of --file FILE, --secret NAME and --process",
            found="none of them, or more than one",
            remedy="name one of them",
        )
    if secret:
        text = secrets.fetch(_client, secret, f"the AWS profile {_PROFILE}")
        return app_env.read_secret(text), f"secret {secret}"
    if file is None:
        return {name: os.environ.get(name, "") for name in app_env.KNOWN}, "this process"
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(
            f"{file.name} cannot be read", expected="a text file in UTF-8", found=type(error).__name__
        ) from None
    return app_env.read_file(text), f"file {file.name}"


def _client() -> Any:
    return boto3.Session(profile_name=_PROFILE).client("secretsmanager")
