"""What a release is asked for, and the row that joins its three DAGs.

`pre_deployment` makes the row from its form; `deployment` and `post_deployment` have the release's id as their run id
and refuse to run without it. Evidence, approvals and terms of a release are filed under `Release.run`, whichever DAG
they come from.
"""

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Any

from psycopg.types.json import Json
from pydantic import TypeAdapter

from payme_ops.foundation.clock import EAT, show
from payme_ops.foundation.errors import NotFound, PaymeOpsError, SettingsError
from payme_ops.foundation.postgres import connect, speaking
from payme_ops.foundation.sql import load

MAX_WINDOW = timedelta(hours=12)
MAX_AHEAD = timedelta(days=30)
_COMMIT = re.compile(r"[0-9a-f]{40}")
_VERSION = re.compile(r"\d{1,5}\.\d{1,5}\.\d{1,5}")
_MAX_REASON = 500


class Environment(StrEnum):
    """Where a release goes."""

    STAGING = "staging"
    PRODUCTION = "production"


@dataclass(frozen=True, kw_only=True)
class Request:
    """The form of a release, checked. Instants are UTC; the window's end is when it should be over."""

    commit: str
    version: str
    environment: Environment
    window_from: datetime
    window_to: datetime
    previous_commit: str
    carries_migration: bool
    resume_after_watch: bool
    reason: str


@dataclass(frozen=True)
class Release:
    """One release. `requester` triggered it, and may not approve it."""

    id: str
    requester: str
    created: datetime
    request: Request

    @property
    def run(self) -> str:
        """What its evidence, approvals and terms are filed under."""
        return f"release/{self.id}"

    @property
    def lease(self) -> str:
        """The term by which it has its environment for itself."""
        return f"release:{self.request.environment}"


_REQUEST = TypeAdapter(Request)


def parse(form: Mapping[str, Any], now: datetime) -> Request:
    """The form's fields, checked. Raises SettingsError that names every fault at once; nothing was touched."""
    given = {name: "" if value is None else str(value).strip() for name, value in form.items()}
    faults: list[str] = []

    def take(name: str, pattern: re.Pattern[str], expected: str) -> str:
        found = given.get(name, "")
        if not pattern.fullmatch(found):
            faults.append(f"{name}: expected {expected}, found {_shown(found)}")
        return found

    commit = take("commit", _COMMIT, "40 hexadecimal digits in lower case")
    previous = take("previous_commit", _COMMIT, "40 hexadecimal digits in lower case, the commit that runs now")
    if commit and commit == previous:
        faults.append("previous_commit: is the commit that is to be released; name the one to go back to")
    version = take("version", _VERSION, "major.minor.patch, for example 2.4.1")
    environment = take("environment", re.compile("|".join(Environment)), " or ".join(Environment))
    begins, ends = _instant(given, "window_from", faults), _instant(given, "window_to", faults)
    if begins and ends:
        faults += _window_faults(begins, ends, now)
    reason = given.get("reason", "")
    if not reason or len(reason) > _MAX_REASON:
        faults.append(f"reason: expected why it is released, up to {_MAX_REASON} characters, found {_shown(reason)}")
    if faults or begins is None or ends is None:
        raise SettingsError(
            f"{len(faults)} field(s) of the release cannot be used",
            expected="the fields as the form describes them",
            found="; ".join(faults),
            remedy="trigger it again with these corrected; nothing was begun",
        )
    return Request(
        commit=commit,
        version=version,
        environment=Environment(environment),
        window_from=begins,
        window_to=ends,
        previous_commit=previous,
        carries_migration=given.get("carries_migration") == "True",
        resume_after_watch=given.get("resume_after_watch") == "True",
        reason=reason,
    )


def _window_faults(begins: datetime, ends: datetime, now: datetime) -> list[str]:
    faults = []
    if ends <= begins:
        faults.append(f"window_to: ends {show(ends)}, before it begins")
    elif ends - begins > MAX_WINDOW:
        faults.append(f"window_to: the window is longer than {MAX_WINDOW.total_seconds() / 3600:.0f} hours")
    if ends <= now:
        faults.append(f"window_to: {show(ends)} is over")
    if begins - now > MAX_AHEAD:
        faults.append(f"window_from: {show(begins)} is more than {MAX_AHEAD.days} days away")
    return faults


def _instant(given: Mapping[str, str], name: str, faults: list[str]) -> datetime | None:
    """A time with an offset, or in Nairobi."""
    try:
        found = datetime.fromisoformat(given.get(name, ""))
    except ValueError:
        faults.append(f"{name}: expected date and time, found {_shown(given.get(name, ''))}")
        return None
    return found if found.tzinfo else found.replace(tzinfo=EAT)


def _shown(text: str) -> str:
    return f"{text[:60]!r}" if text else "nothing"


def identify(request: Request) -> str:
    """The id of its release without a number: environment, version, first seven digits of the commit."""
    return f"{request.environment}-{request.version}-{request.commit[:7]}"


def create(ops: str, pre_run: str, requester: str, request: Request) -> Release:
    """The release of that run of pre_deployment, made once; one that was there before gets a number behind its id.

    Raises DatabaseUnavailable, DatabaseError.
    """
    stem, body = identify(request), Json(_REQUEST.dump_python(request, mode="json"))
    with connect(ops, application="payme_ops:release") as connection, speaking("write the release down"):
        for number in range(1, 1000):
            name = stem if number == 1 else f"{stem}-{number}"
            values = {"id": name, "pre_run": pre_run, "requester": requester, "request": body}
            connection.execute(load("ops/create_release.sql"), values)
            if row := connection.execute(load("ops/release_of_run.sql"), [pre_run]).fetchone():
                return _release(row)
    raise PaymeOpsError(f"a release {stem} was asked for a thousand times", remedy="release another version")


def get(ops: str, release_id: str) -> Release:
    """The release of that id. Raises NotFound, DatabaseUnavailable, DatabaseError."""
    return _read(ops, "ops/release.sql", release_id)


def of_run(ops: str, pre_run: str) -> Release:
    """The release that this run of pre_deployment has made. Raises as `get`."""
    return _read(ops, "ops/release_of_run.sql", pre_run)


def pre_run(ops: str, release_id: str) -> str:
    """The run of pre_deployment that made it, with its DAG. Raises as `get`."""
    with connect(ops, application="payme_ops:release") as connection, speaking("read the release"):
        row = connection.execute(load("ops/pre_run_of_release.sql"), [release_id]).fetchone()
    if row is None:
        raise _not_there(release_id)
    return str(row[0])


def _read(ops: str, query: str, name: str) -> Release:
    with connect(ops, application="payme_ops:release") as connection, speaking("read the release"):
        row = connection.execute(load(query), [name]).fetchone()
    if row is None:
        raise _not_there(name)
    return _release(row)


def _not_there(name: str) -> NotFound:
    return NotFound(
        f"there is no release of {name}",
        expected="a run that pre_deployment has started",
        found="no such release",
        remedy="trigger pre_deployment: it starts deployment, and deployment starts post_deployment",
    )


def _release(row: tuple[Any, ...]) -> Release:
    return Release(row[0], row[1], row[2], _REQUEST.validate_python(row[3]))


def facts(release: Release) -> dict[str, Any]:
    """What people are shown of it."""
    asked = asdict(release.request)
    times = {name: show(asked.pop(name)) for name in ("window_from", "window_to")}
    told = {name.replace("_", " "): value for name, value in {**asked, **times}.items()}
    return {"release": release.id, "requested by": release.requester, **told}
