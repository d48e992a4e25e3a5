"""Back to a backup in the worst hour: restore beside, show what would be lost, and swap when a person agreed.

Each stage writes its Evidence to the ops database and the next reads only that row, so that a DAG can run them as
tasks and the CLI in a row. Until the swap the running database is not touched; each stage may be killed and run again.
"""

import time
from dataclasses import asdict, dataclass, field, replace
from datetime import datetime
from functools import partial
from typing import Any

from psycopg import sql

from payme_ops.backup import catalogue, loss, restore, swap
from payme_ops.backup.catalogue import Catalogue, Entry
from payme_ops.backup.swap import Swapped
from payme_ops.foundation import evidence, lease, payme_api
from payme_ops.foundation.clock import show, utc_now
from payme_ops.foundation.errors import (
    IntegrityError,
    ServiceRefused,
    SettingsError,
    Unavailable,
    require_reason,
)
from payme_ops.foundation.evidence import Check, Evidence, Finding, Verdict, failed, passed
from payme_ops.foundation.payme_api import Health, PaymeApi, Version
from payme_ops.foundation.postgres import connect, speaking, with_database
from payme_ops.foundation.progress import Report
from payme_ops.foundation.settings import Settings

# Items of evidence, in the order in which they come.
REQUEST, STOPPED, BESIDE, PLAN, SWAPPED, STARTED = (
    "restore_request",
    "application_stopped",
    "restored_beside",
    "restore_plan",
    "swapped",
    "application_started",
)
_HEALTHY_WITHIN_SECONDS = 300.0
_ASK_EVERY_SECONDS = 2.0


@dataclass(frozen=True)
class RestoreDesk:
    """What the stages work with: settings, the server through the restore role, the ops database, both buckets."""

    settings: Settings
    server: str = field(repr=False)  # conninfos may hold passwords
    ops: str = field(repr=False)
    catalogue: Catalogue


@dataclass(frozen=True)
class Request:
    """What is asked for, resolved: `backup` is a manifest key. `version` is what to start afterwards; "": previous."""

    backup: str
    target: str
    reason: str
    version: str


# -- the request ------------------------------------------------------------------------------------------------


def check_request(desk: RestoreDesk, run: str, *, backup: str, target: str, reason: str, version: str) -> Request:
    """Refuse what cannot be done before anything is touched; record the request with the backup's key.

    An unverified backup may be asked for: the worst hour wants the newest, and it is compared with its truth before
    the swap. Raises SettingsError (reason, target), NotFound, IntegrityError (refuted, closed, untrusted),
    PaymeOpsError for a right that the restore role lacks.
    """
    require_reason("a restore", reason, "why the running database is to be replaced; it is kept in the record")
    target = target.strip() or desk.settings.backup.database
    allowed = desk.settings.backup.restore_targets or [desk.settings.backup.database]
    if target not in allowed:
        raise SettingsError(
            f"{target!r} is no target of restores",
            expected=f"one of {', '.join(allowed)}",
            found=target,
            remedy="correct it, or add it to PAYME_OPS__BACKUP__RESTORE_TARGETS on the restore workers",
        )
    before = evidence.find(desk.ops, run, REQUEST)
    asked = {"asked for": backup.strip() or "latest", "target": target, "version": version.strip()}
    if before and asked.items() <= before.measured.items():
        return request(desk, run)  # run again, `latest` means what it meant then
    started, entry = utc_now(), _usable(desk, asked["asked for"])
    with connect(desk.server, application="payme_ops:rollback") as session, speaking("look at the server"):
        swap.require_power(session, target)
    found = Request(entry.key, target, reason.strip(), version.strip())
    measured = {**asked, **asdict(found), "tier": entry.tier, "state": entry.state, "snapshot": _snapshot(entry)}
    _keep(desk, run, REQUEST, measured, started)
    return found


def _usable(desk: RestoreDesk, name: str) -> Entry:
    entry = catalogue.find(desk.catalogue, name)
    if not entry.counts:
        raise IntegrityError(
            f"{entry.key} is {entry.state}",
            expected="a backup that is VERIFIED or COMPLETE",
            found=entry.why or "its restore test found that it differs from the database it was taken from",
            remedy="choose another; `python -m payme_ops backup list` shows what each is worth",
        )
    return entry


def _snapshot(entry: Entry) -> str:
    return show(entry.manifest.snapshot_at if entry.manifest else entry.started_at)


def request(desk: RestoreDesk, run: str) -> Request:
    """What check_request recorded. Raises NotFound."""
    measured = evidence.latest(desk.ops, run, REQUEST).measured
    return Request(*(measured[name] for name in ("backup", "target", "reason", "version")))


# -- the application --------------------------------------------------------------------------------------------


def stop_application(desk: RestoreDesk, run: str, api: PaymeApi | None) -> Evidence:
    """Stop it through its API. The evidence is PASS when the API says so; else a person has to confirm it.

    What runs is recorded before it is stopped: whoever is killed in between leaves word of what to start.
    """
    target = request(desk, run).target
    known: dict[str, Any] = {"sessions": loss.sessions(desk.server, target)}

    def before() -> Finding:
        ran = asdict(payme_api.version(api)) if api else {}
        return Finding(Verdict.INCONCLUSIVE, {**known, **ran}, _STOP_BY_HAND)

    def after(api: PaymeApi) -> Finding:
        return passed({**asdict(payme_api.stop(api)), "sessions": loss.sessions(desk.server, target)})

    threshold = f"the application has stopped and has no session in {target}"
    found = _ask_api(desk, run, Check(STOPPED, threshold, "the PayMe API", before), _STOP_BY_HAND, known)
    if api and "version" in found.measured:
        stop = Check(STOPPED, threshold, "the PayMe API", partial(after, api))
        found = _ask_api(desk, run, stop, _STOP_BY_HAND, found.measured)
    return found


_STOP_BY_HAND = "stop the application yourself, see that no session of it is left, then confirm"


def start_application(desk: RestoreDesk, run: str, api: PaymeApi | None, *, report: Report) -> Evidence | None:
    """Start what was stopped, and wait until it is healthy: after a swap at the version asked for, or the previous
    one; else at the version that ran. None when nothing had been stopped.

    INCONCLUSIVE (no API, it is away, or it says no) and FAIL (not healthy in time) want a person.
    """
    stopped = evidence.find(desk.ops, run, STOPPED)
    if stopped is None:
        return None
    wanted, restored = request(desk, run), swapped(desk, run)
    ran = str(stopped.measured.get("previous" if restored else "version", ""))
    version = wanted.version if restored and wanted.version else ran
    by_hand = (
        f"start the application yourself{f', version {version}' if version else ''}, and see that /health is green"
    )

    def measure() -> Finding:
        if api is None:
            return Finding(Verdict.INCONCLUSIVE, {"version": version or "unknown"}, by_hand)
        return _await_health(api, payme_api.start(api, version or _version_now(api, previous=restored)), report)

    threshold = f"healthy within {_HEALTHY_WITHIN_SECONDS:.0f} s"
    return _ask_api(desk, run, Check(STARTED, threshold, "the PayMe API", measure), by_hand)


def _ask_api(desk: RestoreDesk, run: str, check: Check, by_hand: str, known: dict[str, Any] | None = None) -> Evidence:
    """Run a check against the API and record it. An API that is away, or says no, is a person's to replace."""

    def measure() -> Finding:
        try:
            return check.measure()
        except (Unavailable, ServiceRefused) as error:
            return Finding(Verdict.INCONCLUSIVE, {**(known or {}), "api": f"{error.what}: {error.found}"}, by_hand)

    found = evidence.run_check(replace(check, measure=measure), actor=run)
    evidence.record(desk.ops, run, [found])
    return found


def _version_now(api: PaymeApi, *, previous: bool) -> str:
    found = payme_api.version(api)
    return found.previous if previous else found.version


def _await_health(api: PaymeApi, started: Version, report: Report) -> Finding:
    deadline = time.monotonic() + _HEALTHY_WITHIN_SECONDS
    while True:
        found = _health(api)
        measured = {"version": started.version, "status": found.status, "database": found.database}
        if found.healthy:
            report(f"the application is healthy, version {started.version}")
            return passed(measured)
        if time.monotonic() > deadline:
            return failed(measured, "read the application's log: is it the version for the schema in use?")
        time.sleep(_ASK_EVERY_SECONDS)


def _health(api: PaymeApi) -> Health:
    """While it starts it may not answer at all."""
    try:
        return payme_api.health(api)
    except Unavailable as error:
        return Health(False, error.found, "unknown", "")


# -- restore beside ---------------------------------------------------------------------------------------------


def restore_beside(desk: RestoreDesk, run: str, *, report: Report) -> str:
    """Restore into a database of its own on the target's server and compare with the truth; answers its name.

    What an earlier try of the run restored whole is taken as it is, what it left half-made is dropped. Raises what
    restore.restore raises; then there is no such database.
    """
    wanted, started = request(desk, run), utc_now()
    name = swap.beside_name(wanted.target, run)
    if swap.done(desk.server, wanted.target, run):
        report(f"{wanted.target} was swapped already")
        return name
    with lease.hold(desk.ops, f"restore:{name}"[:63], run):
        entry = _usable(desk, wanted.backup)
        bucket, manifest = desk.catalogue.stores.of(entry.tier), entry.trusted
        if _is_whole(desk, name, wanted):
            report(f"{name} holds {wanted.backup} already")
        else:
            _drop(desk, name)
            restore.restore(
                bucket,
                manifest,
                restore.load_identity(desk.settings.backup.identity_file),
                conninfo=desk.server,
                into=name,
                client_dirs=desk.settings.postgres.client_dirs,
                scratch_dir=desk.settings.backup.scratch_dir,
                report=report,
            )
            _analyze(desk, name)
            swap.mark_restored(desk.server, name, target=wanted.target, run=run, backup=wanted.backup)
    measured = {"database": name, "backup": wanted.backup, "rows": manifest.truth.rows}
    measured["relations"] = len(manifest.truth.relations)
    _keep(desk, run, BESIDE, measured, started)
    return name


def _is_whole(desk: RestoreDesk, name: str, wanted: Request) -> bool:
    with connect(desk.server, application="payme_ops:rollback") as session, speaking(f"look for {name}"):
        return any(
            (mark.name, mark.state, mark.backup) == (name, "restored", wanted.backup) for mark in swap.marks(session)
        )


def _drop(desk: RestoreDesk, name: str) -> None:
    # The name holds a digest of the run: nobody else's database has it.
    with connect(desk.server, application="payme_ops:rollback") as session, speaking(f"drop database {name}"):
        session.execute(sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(sql.Identifier(name)))


def _analyze(desk: RestoreDesk, name: str) -> None:
    """A dump brings no statistics: the first hour on them would be the slowest."""
    restored = with_database(desk.server, name)
    with connect(restored, application="payme_ops:rollback") as session, speaking(f"analyze {name}"):
        session.execute("ANALYZE")


def discard(desk: RestoreDesk, run: str) -> None:
    """Drop what was restored beside, unless it is in place. After a swap there is none of that name."""
    wanted = request(desk, run)
    if not swapped(desk, run):
        _drop(desk, swap.beside_name(wanted.target, run))


# -- what would be lost -----------------------------------------------------------------------------------------


def measure_loss(desk: RestoreDesk, run: str, *, report: Report) -> Evidence:
    """What a person has to know before the swap: rows lost, tables that come or go, what a rename changes.

    Its verdict is INCONCLUSIVE: no machine decides it. Cost: one count of every table of the running database.
    Raises NotFound before restore_beside.
    """
    wanted, started = request(desk, run), utc_now()
    before = evidence.find(desk.ops, run, PLAN)
    if before and swap.done(desk.server, wanted.target, run):
        return before  # there is nothing left to lose
    beside = str(evidence.latest(desk.ops, run, BESIDE).measured["database"])
    entry = _usable(desk, wanted.backup)
    manifest = entry.trusted
    tables = loss.tables(desk.server, wanted.target, manifest, report=report)
    measured = {
        "backup": wanted.backup,
        "state": entry.state,
        "snapshot": show(manifest.snapshot_at),
        "target": wanted.target,
        "reason": wanted.reason,
        **loss.summary(tables),
        "rename": loss.renaming(desk.server, wanted.target, beside, keep_days=desk.settings.backup.keep_replaced_days),
    }
    return _keep(desk, run, PLAN, measured, started, Verdict.INCONCLUSIVE)


# -- the swap ---------------------------------------------------------------------------------------------------


def swap_in(desk: RestoreDesk, run: str, *, report: Report) -> Swapped:
    """Put the restored database in the target's place. The caller has made sure that a person agreed to this plan.

    Raises NotFound without a plan, and what swap.swap raises; then the running database is the old one.
    """
    plan, started = evidence.latest(desk.ops, run, PLAN), utc_now()
    target = str(plan.measured["target"])
    done = swap.swap(
        desk.ops,
        desk.server,
        environment=desk.settings.profile,
        target=target,
        beside=swap.beside_name(target, run),
        run=run,
        report=report,
    )
    _keep(desk, run, SWAPPED, {"target": target, "replaced": done.replaced, "carried over": done.carried}, started)
    return done


def swapped(desk: RestoreDesk, run: str) -> bool:
    """Whether the restored database is in place: looked up, not remembered."""
    wanted = evidence.find(desk.ops, run, REQUEST)
    return wanted is not None and swap.done(desk.server, str(wanted.measured["target"]), run) is not None


def recovery_seconds(desk: RestoreDesk, run: str) -> int | None:
    """RTO of this run: from the request to a healthy application; None while there is none."""
    asked, started = evidence.find(desk.ops, run, REQUEST), evidence.find(desk.ops, run, STARTED)
    if asked is None or started is None or started.verdict is not Verdict.PASS:
        return None
    return round((started.ended - asked.started).total_seconds())


# -- evidence ---------------------------------------------------------------------------------------------------


_THRESHOLD = {
    REQUEST: "an allowed target, a reason, a backup that counts",
    BESIDE: "rows and content equal the manifest's truth",
    PLAN: "a person agrees",
    SWAPPED: "owner, privileges, settings and connection limit as before",
}


def _keep(
    desk: RestoreDesk,
    run: str,
    item: str,
    measured: dict[str, Any],
    started: datetime,
    verdict: Verdict = Verdict.PASS,
) -> Evidence:
    finding, source = Finding(verdict, measured), "payme_ops.backup.rollback"
    threshold = _THRESHOLD[item]
    return evidence.keep(desk.ops, run, item, finding, threshold=threshold, source=source, started=started)
