"""Which versions of the application are at work on the table, by the names of their sessions and what replicas say.

A session of the application is called payme-api/<version>. A name that says no version (a pooler, a driver's default)
is never taken for a new one, unless every replica of the API that the settings name says at /metrics that it is.
"""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from payme_ops.foundation import payme_api
from payme_ops.foundation.errors import ServiceRefused, SettingsError, Unavailable
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
_ASKED_AT_ONCE = 16

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
    """Is every session and replica of the application of this version or a newer one?

    Fails naming the old versions. Inconclusive for replicas that say no version, for names that say none and that no
    replica explains, other roles that may write, prepared transactions (whose session is gone), and when nobody is
    there. Raises SettingsError for a wanted version that is none.
    """
    wanted = _version(at_least)
    found = _look(desk, lambda version: version >= wanted, ("new", "old"))
    if isinstance(found, Finding):
        return found
    if old := found.get("old"):
        return failed(found, f"deploy {at_least} everywhere and end what runs {', '.join(old)}")
    return _unclear(found) or (
        passed(found)
        if found
        else Finding(Verdict.INCONCLUSIVE, "nobody is connected", "start the application; compare its database role")
    )


def measure_older(desk: MigrationDesk, than: str) -> Finding:
    """Is no session or replica of the application of this version or a newer one? For the way back; nobody is as good.

    Fails and is inconclusive as `measure`, and raises as it does.
    """
    limit = _version(than)
    found = _look(desk, lambda version: version < limit, ("old", "new"))
    if isinstance(found, Finding):
        return found
    if new := found.get("new"):
        return failed(found, f"deploy a version before {than} everywhere and end what runs {', '.join(new)}")
    return _unclear(found) or passed(found or "nobody is connected")


def _version(text: str) -> Version:
    wanted = parse_version(text)
    if wanted is None:
        raise SettingsError("the wanted version is none", expected="major.minor.patch", found=text)
    return wanted


def _look(desk: MigrationDesk, fits: Callable[[Version], bool], words: tuple[str, str]) -> dict[str, Any] | Finding:
    """Sessions by program, replicas by version: what fits and what does not under these two words, and the rest."""
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
    return _sorted(rows, _replicas(desk), fits, words, prepared[0] if prepared else 0)


def _replicas(desk: MigrationDesk) -> list[tuple[str, Version | None]]:
    """Each replica with what it says, and that as a version."""
    urls = desk.settings.migration.replicas
    if not urls:
        return []
    with ThreadPoolExecutor(min(len(urls), _ASKED_AT_ONCE)) as pool:
        return list(pool.map(_ask, urls))


def _ask(url: str) -> tuple[str, Version | None]:
    replica = f"replica {url.partition('://')[2]}"
    try:
        says = payme_api.metrics(url).version
    except (Unavailable, ServiceRefused) as error:
        return f"{replica}: {error.what} ({error.found})", None
    return f"{replica}: {_shown(says)}", parse_version(says)


def _sorted(
    rows: Iterable[tuple[bool, str, str, int]],
    replicas: Sequence[tuple[str, Version | None]],
    fits: Callable[[Version], bool],
    words: tuple[str, str],
    prepared: int,
) -> dict[str, Any]:
    def word_of(version: Version | None) -> str:
        return "unknown" if version is None else words[0] if fits(version) else words[1]

    named: dict[str, dict[str, int]] = {word: {} for word in (*words, "unknown", "others", "hidden")}
    for replica, version in replicas:
        named[word_of(version)][replica] = 1
    # What a pooler or a driver hides is one of the replicas.
    explained = bool(replicas) and all(word_of(version) == words[0] for _, version in replicas)
    for application, role, program, sessions in rows:
        shown, says = _shown(program), _PROGRAM.fullmatch(program)
        if not application:
            word, shown = "others", f"{role}: {shown}"
        else:
            word = word_of(parse_version(says[1])) if says else "hidden" if explained else "unknown"
        named[word][shown] = named[word].get(shown, 0) + sessions
    return {
        **{word: kind for word, kind in named.items() if kind},
        **({"prepared_transactions": prepared} if prepared else {}),
    }


def _shown(text: str) -> str:
    return scrub(text)[:_NAME_CHARACTERS] or "(no name)"


def _unclear(found: Mapping[str, Any]) -> Finding | None:
    if not found.keys() & {"unknown", "others", "prepared_transactions"}:
        return None
    return Finding(
        Verdict.INCONCLUSIVE,
        dict(found),
        "have each session say payme-api/<version> as application_name, or each replica of the API its version at"
        " /metrics (PAYME_OPS__MIGRATION__REPLICAS), or end it; a person may say what it is",
    )


def settled(findings: Sequence[Finding]) -> Finding:
    """One finding of several in a row: passes when there are OBSERVATIONS and all passed, fails when one failed."""
    for verdict in (Verdict.FAIL, Verdict.INCONCLUSIVE):
        for finding in findings:
            if finding.verdict is verdict:
                return finding
    if len(findings) < OBSERVATIONS:
        return Finding(Verdict.INCONCLUSIVE, {"observations": len(findings)}, f"look {OBSERVATIONS} times")
    return passed({"observations": len(findings), "last": findings[-1].measured})


def told_by(desk: MigrationDesk) -> str:
    """How versions are found: a part of a gate's threshold."""
    replicas = len(desk.settings.migration.replicas)
    return "by application_name" + (f" and /metrics of every replica ({replicas})" if replicas else "")


def check(desk: MigrationDesk, at_least: str) -> Check:
    """The gate of one observation."""
    return Check(
        "fleet",
        f"every session of {desk.settings.migration.app_role} is payme-api/{at_least} or newer, {told_by(desk)}",
        f"pg_stat_activity of database {desk.database}",
        lambda: measure(desk, at_least),
    )
