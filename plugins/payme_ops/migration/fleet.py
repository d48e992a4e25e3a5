"""Which versions of the application are at work on the table, by the names of their sessions.

A session of the application is called payme-api/<version>. A name that says no version (a pooler, a driver's default)
is never taken for a new one.
"""

import re
from collections.abc import Iterable, Sequence
from typing import Any

from payme_ops.foundation.errors import SettingsError
from payme_ops.foundation.evidence import Check, Finding, Verdict, failed, passed
from payme_ops.foundation.postgres import speaking
from payme_ops.foundation.scrub import scrub
from payme_ops.migration.desk import MigrationDesk, session
from payme_ops.migration.names import statement

OBSERVATIONS = 3  # a version that only now and then connects has to be seen, too

_PROGRAM = re.compile(r"payme-api/(.+)", re.ASCII)
_NUMBER = r"(0|[1-9][0-9]{0,8})"
_SEMVER = re.compile(rf"{_NUMBER}\.{_NUMBER}\.{_NUMBER}(?:-([0-9A-Za-z.-]+))?(?:\+[0-9A-Za-z.-]+)?")
_NAME_CHARACTERS = 64

Version = tuple[int, int, int, bool, tuple[tuple[bool, int, str], ...]]


def parse_version(text: str) -> Version | None:
    """A semantic version as what sorts by its precedence: 2.5.0-rc.1 before 2.5.0. None for anything else."""
    found = _SEMVER.fullmatch(text)
    if found is None:
        return None
    parts = found[4].split(".") if found[4] else []
    before = tuple((not part.isdigit(), int(part) if part.isdigit() else 0, part) for part in parts)
    return int(found[1]), int(found[2]), int(found[3]), not before, before


def measure(desk: MigrationDesk, at_least: str) -> Finding:
    """Is every session of the application of this version or a newer one?

    Fails naming the old versions. Inconclusive for names that say no version, other roles that may write, prepared
    transactions (whose session is gone), and when nobody is connected. Raises SettingsError for a wanted version
    that is none.
    """
    wanted = parse_version(at_least)
    if wanted is None:
        raise SettingsError("the wanted version is none", expected="major.minor.patch", found=at_least)
    names, role = desk.names, desk.settings.migration.app_role
    with session(desk, "fleet") as connection, speaking("look who is connected"):
        sees = connection.execute("SELECT pg_has_role('pg_read_all_stats', 'USAGE')").fetchone()
        rows = connection.execute(
            statement(names, "2_fleet.sql"),
            {"app_role": role, "schema": names.schema, "tables": [names.table, names.base]},
        ).fetchall()
        prepared = connection.execute(
            "SELECT count(*) FROM pg_prepared_xacts WHERE database = current_database() AND owner = %s", [role]
        ).fetchone()
    if sees != (True,):
        return Finding(Verdict.INCONCLUSIVE, "programs of other roles are hidden", "grant pg_monitor to this role")
    return _judge(rows, wanted, prepared[0] if prepared else 0, at_least)


def _judge(rows: Iterable[tuple[bool, str, str, int]], wanted: Version, prepared: int, at_least: str) -> Finding:
    new: dict[str, int] = {}
    old: dict[str, int] = {}
    unknown: dict[str, int] = {}
    others: dict[str, int] = {}
    for application, role, program, sessions in rows:
        shown = scrub(program)[:_NAME_CHARACTERS] or "(no name)"
        if not application:
            others[f"{role}: {shown}"] = sessions
            continue
        found = _PROGRAM.fullmatch(program)
        version = parse_version(found[1]) if found else None
        kind = unknown if version is None else old if version < wanted else new
        kind[shown] = kind.get(shown, 0) + sessions
    named = {"new": new, "old": old, "unknown": unknown, "others": others, "prepared_transactions": prepared}
    measured: dict[str, Any] = {name: found for name, found in named.items() if found}
    if old:
        return failed(measured, f"deploy {at_least} everywhere and end what runs {', '.join(old)}")
    if unknown or others or prepared:
        return Finding(
            Verdict.INCONCLUSIVE,
            measured,
            "have each of these say payme-api/<version> as application_name, or end it; a person may say what it is",
        )
    if not new:
        return Finding(Verdict.INCONCLUSIVE, "nobody is connected", "start the application; compare its database role")
    return passed(measured)


def settled(findings: Sequence[Finding]) -> Finding:
    """One finding of several in a row: passes when there are OBSERVATIONS and all passed, fails when one failed."""
    for verdict in (Verdict.FAIL, Verdict.INCONCLUSIVE):
        for finding in findings:
            if finding.verdict is verdict:
                return finding
    if len(findings) < OBSERVATIONS:
        return Finding(Verdict.INCONCLUSIVE, {"observations": len(findings)}, f"look {OBSERVATIONS} times")
    return passed({"observations": len(findings), "last": findings[-1].measured})


def check(desk: MigrationDesk, at_least: str) -> Check:
    """The gate of one observation."""
    return Check(
        "fleet",
        f"every session of {desk.settings.migration.app_role} is payme-api/{at_least} or newer",
        f"pg_stat_activity of database {desk.database}",
        lambda: measure(desk, at_least),
    )
