"""The phone number migration as task bodies; the work is in payme_ops.migration.

What a task needs of another comes from the ops database: the request, gates and approvals. XCom carries ranges of keys.
"""

import logging
import os
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict
from datetime import time as TimeOfDay
from functools import partial
from typing import Any

from airflow.sdk import Context, get_current_context
from airflow.sdk.exceptions import AirflowSkipException

from payme_ops.foundation import evidence, payme_api
from payme_ops.foundation import settings as config
from payme_ops.foundation.clock import utc_now
from payme_ops.foundation.errors import (
    GateClosed,
    NotApproved,
    NotFound,
    PaymeOpsError,
    ServiceRefused,
    SettingsError,
    Unavailable,
    require_reason,
)
from payme_ops.foundation.evidence import Check, Evidence, Finding, Verdict, failed, passed
from payme_ops.foundation.payme_api import Metrics, PaymeApi
from payme_ops.foundation.stop import stoppable
from payme_ops.migration import (
    backfill,
    control,
    dual_write,
    envelope,
    fleet,
    gates,
    purge,
    rewrap,
    shape,
    shared,
    steps,
    switch,
    verify,
)
from payme_ops.migration.desk import MigrationDesk
from payme_ops.migration.dual_write import Moment
from payme_ops.migration.envelope import Keys
from payme_ops.migration.gates import Told
from payme_ops.migration.shape import Stage
from payme_ops.migration.steps import STEPS
from payme_ops.orchestration import alerting, connections
from payme_ops.orchestration.approval import require_approval
from payme_ops.orchestration.doors import run_name

_log = logging.getLogger("payme_ops.migration")

# Items of evidence beside the gates of the steps.
REQUEST, ERRORS_BEFORE, REHEARSED, TOLD, BACKUP, BEFORE, VERIFIED, DRIFT = (
    "migration_request",
    "errors_before",
    "rehearsal",
    "announcement",
    "backup_and_rehearsal",
    "before_the_migration",
    "every_row",
    "rows_written_since",
)
ERRORS_AT_REVOKE, BROWNED_OUT, FINAL, PURGED = (
    "errors_before_brown_out",
    "brown_out_watch",
    "final_drift",
    "purge",
)
# Which versions of the application a step waits for.
_NEEDS = {
    "relax": ("reads_ciphertext",),
    "brown_out": ("ignores_plaintext",),
    "end_shim": ("final_name",),
}
_BETWEEN_OBSERVATIONS_SECONDS = 2.0
_WATCH_EVERY_SECONDS = 2.0


# What a person is asked when every check has passed.
_READS = "every row decrypts to its number; decide whether the application may rely on it"
_DROP = "there is no way back but a backup: see that the release after the next is ready and support stands by, decide"
_NAMES_PLAINTEXT = "read the application's log: which statement names the plaintext column?"
_READ_REFUSED = "read the application's errors (Sentry) during the brown-out: is there one with SQLSTATE 42501?"
_PURGE = "nobody reads or writes the table while it is written anew: tell support how long, then decide"


def _desk() -> MigrationDesk:
    """The desk of a migration worker."""
    return MigrationDesk(
        config.load(),
        connections.conninfo("payme_db_migrate"),
        connections.ops_db(),
        run_name(get_current_context()),
    )


def _keys(desk: MigrationDesk) -> Keys:
    return envelope.load_keys(os.environ, key_id=desk.settings.migration.key_id, names=desk.names)


def _keep(desk: MigrationDesk, item: str, finding: Finding, threshold: str) -> Evidence:
    source = f"database {desk.database}"
    made = evidence.keep(desk.ops, desk.run, item, finding, threshold=threshold, source=source)
    _log.info("%s: %s %s %s", item, made.verdict, evidence.plain(made.measured), made.remedy)
    return made


def _checked(desk: MigrationDesk, item: str, checks: list[Check], *, ask: str = "") -> Evidence:
    total = steps.gate(desk, item, checks, ask=ask)
    for one in total.measured["checks"]:
        _log.info("%s: %s (%s)", one["item"], one["is"], one["found"])
    return total


# -- before -----------------------------------------------------------------------------------------------------


def check_request() -> None:
    """Refuse what cannot be meant; keep the request."""
    context, desk = get_current_context(), _desk()
    asked = _form(context, "the migration", "why it is done now; it is kept in the record")
    named = ("writes_both", "reads_ciphertext", "ignores_plaintext", "final_name")
    versions = [fleet.parse_version(asked[name]) for name in named]
    if None in versions or sorted(versions, key=lambda version: version or ()) != versions:
        raise SettingsError(
            "the versions of the application are not a sequence",
            expected=f"{', '.join(named)}: each major.minor.patch, none older than the one before",
            found=", ".join(asked[name] or "none" for name in named),
            remedy="trigger it again with the versions of docs/phone-encryption.md's four releases",
        )
    for name in ("window_from", "window_to"):
        _time(asked[name])
    _keep(desk, REQUEST, passed(asked), "a reason, four versions in order, a window")
    _keep_errors(desk, ERRORS_BEFORE, _errors_told(desk))


def _form(context: Context, what: str, why: str) -> dict[str, str]:
    """What the form says, as text. Raises SettingsError without a reason."""
    given = {name: context["params"].get(name) for name in context["params"]}
    asked = {name: "" if value is None else str(value).strip() for name, value in given.items()}
    require_reason(what, asked["reason"], why)
    return asked


def _time(text: str) -> TimeOfDay:
    try:
        return TimeOfDay.fromisoformat(text)
    except ValueError:
        raise SettingsError("the window is none", expected="HH:MM in Nairobi", found=text or "none") from None


def _asked(desk: MigrationDesk, name: str) -> str:
    return str(evidence.latest(desk.ops, desk.run, REQUEST).measured[name])


def _measured(gate: Evidence) -> list[Check]:
    """The checks of a gate that another task has measured, as a part of this one."""

    def as_found(one: dict[str, str]) -> Finding:
        verdict = Verdict(one["is"])
        return Finding(verdict, one["found"], "" if verdict is Verdict.PASS else gate.remedy)

    return [Check(one["item"], gate.threshold, gate.source, partial(as_found, one)) for one in gate.measured["checks"]]


def tell() -> None:
    """Announce it before it begins; whether Slack took it is part of the checklist."""
    context, desk = get_current_context(), _desk()
    message = alerting.inform(
        context,
        "Phone numbers are about to be encrypted",
        f"{_asked(desk, 'reason')}. Payments go on as always; each step is announced by its approval.",
        "Nothing; who sees errors of the application tells this channel",
        good=True,
    )
    _checked(desk, TOLD, [gates.told(message)])


def checklist() -> None:
    """What has to be so before anything is touched; a person approves it."""
    desk, now = _desk(), utc_now()
    window = _time(_asked(desk, "window_from")), _time(_asked(desk, "window_to"))
    checks = [
        *_measured(evidence.latest(desk.ops, desk.run, TOLD)),
        *_measured(evidence.latest(desk.ops, desk.run, BACKUP)),
        gates.key_usable(desk, os.environ),
        *gates.preflight(desk),
        gates.window_open(*window, now),
        gates.load_is_usual(desk, ()),
        *_during(desk),
    ]
    if url := _asked(desk, "change_url"):
        checks.append(gates.url_answers(url))
    _checked(
        desk,
        BEFORE,
        checks,
        ask="see that support stands by and stakeholders have read the announcement, then decide",
    )


def way(*, rehearsal: str, production: list[str]) -> str | list[str]:
    """The tasks that come next."""
    return rehearsal if _asked(_desk(), "rehearsal") == "True" else production


def _during(desk: MigrationDesk) -> list[Check]:
    """How database and application are. What cannot be asked for here is a question to a person."""
    api = connections.payme_api()
    return [
        gates.db_healthy(desk),
        gates.api_healthy(partial(payme_api.health, api) if api else None),
        gates.error_log(partial(_errors_kept, desk, ERRORS_BEFORE), partial(_errors_told, desk)),
    ]


def _replicas(desk: MigrationDesk) -> tuple[str, ...]:
    """Base URLs of the application: all replicas, or the one that the connection names."""
    api = connections.payme_api()
    return desk.settings.migration.replicas or ((api.url,) if api else ())


def _errors(url: str) -> Metrics:
    """The errors of a replica; none told where it does not know the question. Raises Unavailable."""
    try:
        return payme_api.metrics(url)
    except ServiceRefused:
        return Metrics("", None)


def _errors_told(desk: MigrationDesk) -> Told:
    """The errors of every replica; none told where one does not answer."""
    told: dict[str, Metrics] = {}
    for url in _replicas(desk):
        try:
            told[url] = _errors(url)
        except Unavailable:
            told[url] = Metrics("", None)
    return told


def _keep_errors(desk: MigrationDesk, item: str, told: Told) -> None:
    """What errors are compared with from here on."""
    rows = [{"url": url, **asdict(one)} for url, one in told.items()]
    everything = told and not gates.silent(told, told)
    ask = "a person reads the application's error log (Sentry) for what is not told here"
    found = passed(rows) if everything else Finding(Verdict.INCONCLUSIVE, rows, ask)
    _keep(desk, item, found, "every replica tells its errors of the database")


def _errors_kept(desk: MigrationDesk, item: str) -> Told:
    """The same, read; nothing where nothing was kept."""
    with suppress(NotFound):
        rows = evidence.latest(desk.ops, desk.run, item).measured
        return {row["url"]: Metrics(row["version"], row["database_errors"]) for row in rows}
    return {}


# -- the steps --------------------------------------------------------------------------------------------------


def look(step: str) -> None:
    """The gate before a step."""
    desk = _desk()
    _checked(desk, STEPS[step].gate, [*_during(desk), *STEPS[step].before(desk)])


def take(step: str) -> None:
    """Do a step whose gate passed, or was approved, after what it needs of others."""
    desk = _desk()
    for which in _NEEDS.get(step, ()):
        _require(desk, f"fleet_{which}", f"confirm_{which}")
    if step == "relax":
        require_approval(get_current_context(), gate="approve_reads", evidence_item=VERIFIED)
    _require(desk, STEPS[step].gate, f"confirm_{step}")
    with stoppable():
        facts = _brown_out(desk) if step == "brown_out" else steps.take(desk, STEPS[step], _log.info)
        _log.info("%s: %s", step, evidence.plain(facts))


def _require(desk: MigrationDesk, item: str, gate: str) -> None:
    """Raises NotApproved, NotFound unless that was found good, or a person said so."""
    if evidence.latest(desk.ops, desk.run, item).verdict is not Verdict.PASS:
        require_approval(get_current_context(), gate=gate, evidence_item=item)


def fleet_runs(which: str) -> bool:
    """Whether every session of the application is of the version asked for as `which`, or newer: a sensor's poke.

    False while an old one is connected. What no machine can tell is left to the approval that follows.
    """
    desk = _desk()
    wanted = _asked(desk, which)
    settled = _observed(lambda: fleet.measure(desk, wanted))
    if settled.verdict is Verdict.FAIL:
        _log.info("not yet: %s. %s", evidence.plain(settled.measured), settled.remedy)
        return False
    _keep(desk, f"fleet_{which}", settled, f"all of the application is {wanted} or newer, {fleet.told_by(desk)}")
    return True


def _observed(measure: Callable[[], Finding]) -> Finding:
    """Several looks, a little apart: a version that only now and then connects has to be seen, too."""
    found = [measure()]
    while len(found) < fleet.OBSERVATIONS:
        time.sleep(_BETWEEN_OBSERVATIONS_SECONDS)
        found.append(measure())
    return fleet.settled(found)


# -- dual write and backfill ------------------------------------------------------------------------------------


def begin_canary() -> dict[str, Any]:
    """The moment from which the application's writes are looked at."""
    desk = _desk()
    _require(desk, "fleet_writes_both", "confirm_writes_both")
    return {"moment": asdict(dual_write.moment(desk))}


def canary(moment: dict[str, Any]) -> None:
    """Whether what the application has written since decrypts to what it wrote."""
    desk = _desk()
    checks = [*_during(desk), dual_write.check(desk, _keys(desk), Moment(**moment))]
    _checked(desk, "dual_write", checks, ask="look at the application's errors and at support's desk, then decide")


def plan() -> list[dict[str, int]]:
    """Ranges of keys for the mapped tasks."""
    desk = _desk()
    require_approval(get_current_context(), gate="approve_backfill", evidence_item="dual_write")
    if fired := backfill.triggers_fired(desk):
        _log.warning("each row fires %s: the role may not set session_replication_role", ", ".join(fired))
    return [{"low": low, "high": high} for low, high in backfill.plan_ranges(desk, int(_asked(desk, "workers")))]


def encrypt(low: int, high: int) -> None:
    """One range."""
    desk = _desk()
    with stoppable():
        done = backfill.encrypt_range(desk, _keys(desk), low, high, pass_number=1, report=_log.info)
    _log.info("%d rows without ciphertext, %d written, %d changed by others meanwhile", *vars(done).values())


def catch_up() -> None:
    """Passes until one finds nothing."""
    desk = _desk()
    with stoppable():
        _log.info("%d passes until nothing was left", backfill.catch_up(desk, _keys(desk), _log.info))


# -- verify -----------------------------------------------------------------------------------------------------


def rewrap_legacy() -> None:
    """Bind to their rows what was written before a row had its id."""
    desk = _desk()
    with stoppable():
        _log.info("%s", rewrap.rewrap(desk, _keys(desk), None, _log.info))


def _across_workers(desk: MigrationDesk) -> bool:
    return _asked(desk, "verify_across_workers") == "True"


def plan_reading() -> list[dict[str, int]]:
    """A reader for each of the form's workers, and nothing read yet; none when one task reads all."""
    desk = _desk()
    if not _across_workers(desk):
        return []
    shared.forget(desk)
    return [{"reader": number} for number in range(1, int(_asked(desk, "workers")) + 1)]


def hold_snapshot() -> None:
    """The snapshot that readers on any worker share, until they have read all of it."""
    desk = _desk()
    if not _across_workers(desk):
        raise AirflowSkipException("one task holds the snapshot and reads it: verify_all")
    with stoppable():
        shared.hold(desk, _log.info)


def read_snapshot(reader: int) -> bool:
    """Ranges of the snapshot that is held, on this worker: a sensor's poke. False while there is none, and while others
    have not done reading: a killed one's range is then taken."""
    desk = _desk()
    with stoppable():
        return shared.read(desk, _keys(desk), f"reader {reader}", _log.info)


def verify_all() -> None:
    """Every row in one snapshot; the approval is bound to what was found."""
    desk = _desk()
    if _across_workers(desk):
        found = shared.result(desk)
    else:
        with stoppable():
            found = verify.verify(desk, _keys(desk), workers=int(_asked(desk, "workers")), report=_log.info)
    finding = verify.finding(found)
    shown = {**finding.measured, "point": found.point, "rows a second": found.rows_per_second}
    verdict = Verdict.INCONCLUSIVE if finding.verdict is Verdict.PASS else finding.verdict
    _keep(desk, VERIFIED, Finding(verdict, shown, finding.remedy or _READS), "every row decrypts to its number")
    if finding.verdict is not Verdict.PASS:
        raise GateClosed(
            "not every row decrypts to its number",
            expected="no fault",
            found=evidence.plain({"faults": found.kinds, "first": shown["first"]}),
            remedy=finding.remedy,
        )


def _written_since(desk: MigrationDesk) -> Check:
    """Nothing that was written since the verification is wrong."""
    return Check(DRIFT, "every row written since is right", f"database {desk.database}", lambda: _drift(desk))


def _drift(desk: MigrationDesk) -> Finding:
    """The rows written since the verification, judged as it judged, or after it by themselves."""
    point = str(evidence.latest(desk.ops, desk.run, VERIFIED).measured["point"])
    found = verify.finding(verify.drift(desk, _keys(desk), point))
    # That nobody has written since is no fault here.
    empty = found.verdict is Verdict.INCONCLUSIVE and not found.measured["rows"]
    return passed(found.measured) if empty else found


# -- switch and drop --------------------------------------------------------------------------------------------


def _errors_before_brown_out(desk: MigrationDesk) -> Told:
    """What the watch compares with. Where the right is gone already, what was kept before it went.

    Raises Unavailable when a replica does not answer; nothing is taken then.
    """
    if shape.look(desk).browned_out and (kept := _errors_kept(desk, ERRORS_AT_REVOKE)):
        return kept
    told = {url: _errors(url) for url in _replicas(desk)}
    _keep_errors(desk, ERRORS_AT_REVOKE, told)
    return told


def _brown_out(desk: MigrationDesk) -> dict[str, Any]:
    """Take the right on the plaintext and watch the application; give it back when the application is not well, and
    when this is stopped.

    Raises GateClosed when the application is not well without it.
    """
    before = _errors_before_brown_out(desk)
    try:
        facts = steps.take(desk, STEPS["brown_out"], _log.info)
        finding = _watch(desk, before)
    except BaseException:
        switch.undo_brown_out(desk, _log.info)
        raise
    if finding.verdict is Verdict.FAIL:
        switch.undo_brown_out(desk, _log.info)
    _keep(desk, BROWNED_OUT, finding, "the application is well without the plaintext")
    if finding.verdict is Verdict.FAIL:
        raise GateClosed(
            "the application is not well without the plaintext; its right was given back",
            expected="/health 200 throughout, and no error of the database more than before",
            found=evidence.plain(finding.measured),
            remedy=finding.remedy,
        )
    return facts


def _watch(desk: MigrationDesk, before: Told) -> Finding:
    """Whether the application is well for the form's minutes, by its health and the errors it counts.

    Answers at the first look at which it is not. What could not be looked at is inconclusive.
    """
    minutes = float(_asked(desk, "brown_out_minutes"))
    until, api, replicas = time.monotonic() + minutes * 60, connections.payme_api(), _replicas(desk)
    unwatched = dict.fromkeys(what for what, there in (("/health", api), ("/metrics", replicas)) if not there)
    while True:
        over = time.monotonic() >= until  # the last look is after the last minute
        finding, told = _unwell(api, replicas, before)
        if finding is not None:
            return finding
        unwatched |= dict.fromkeys(f"/metrics of {url}" for url in gates.silent(before, told))
        if over:
            break
        before = told
        time.sleep(_WATCH_EVERY_SECONDS)
    watched = {"minutes": minutes, "replicas": len(replicas), "not watched": list(unwatched)}
    return Finding(Verdict.INCONCLUSIVE, watched, _READ_REFUSED) if unwatched else passed(watched)


def _unwell(api: PaymeApi | None, replicas: tuple[str, ...], before: Told) -> tuple[Finding | None, Told]:
    """What is wrong with the application, and what its replicas tell now."""
    try:
        health = payme_api.health(api) if api else None
        told = {url: _errors(url) for url in replicas}
    except Unavailable as error:
        return failed({"error": error.what, "found": error.found}, "read the application's log"), before
    if health is not None and not health.healthy:
        measured = {"status": health.status, "database": health.database, "version": health.version}
        return failed(measured, _NAMES_PLAINTEXT), told
    if more := gates.risen(before, told, gates.is_of_migration):
        return failed({"errors": more}, _NAMES_PLAINTEXT), told
    return None, told


def _brown_out_watched(desk: MigrationDesk) -> Check:
    """What the watch found that followed the newest brown-out."""

    def measure() -> Finding:
        watch = evidence.latest(desk.ops, desk.run, BROWNED_OUT)
        both = [one.item for one in evidence.of_run(desk.ops, desk.run) if one.item in (ERRORS_AT_REVOKE, BROWNED_OUT)]
        if both[-1] != BROWNED_OUT:
            return failed("the newest brown-out was not watched to its end", "clear brown_out")
        return Finding(watch.verdict, watch.measured, watch.remedy)

    return Check("brown_out", "the application was well without the plaintext", "the watch of this run", measure)


def look_before_drop() -> None:
    """Everything that a person wants to know before the point of no return."""
    desk = _desk()
    checks = [*_during(desk), _written_since(desk), _brown_out_watched(desk), *STEPS["switch"].before(desk)]
    _checked(desk, STEPS["switch"].gate, checks, ask=_DROP)


def drop() -> None:
    """The point of no return; always approved by a person."""
    desk = _desk()
    require_approval(get_current_context(), gate="approve_drop", evidence_item=STEPS["switch"].gate)
    with stoppable():
        _log.info("%s", evidence.plain(steps.take(desk, STEPS["switch"], _log.info)))


def give_back_rights() -> None:
    """After a brown-out that is not followed by the drop."""
    desk = _desk()
    found = shape.look(desk)
    if found.browned_out and found.has_plaintext and not found.switched:
        switch.undo_brown_out(desk, _log.info)


def purge_table() -> None:
    """VACUUM FULL, when a person has looked at the disk and agreed to the stop; else the plaintext stays on disk."""
    desk = _desk()
    approved = require_approval(get_current_context(), gate="approve_purge", evidence_item="before_purge")
    free = _asked(desk, "purge_free_bytes")
    _log.info("approved by %s", approved.responder)
    with stoppable():
        facts = purge.do_purge(
            desk, _log.info, free_bytes=int(free) if free else None, canaries=verify.canaries(desk, _keys(desk))
        )
    _keep(desk, PURGED, purge.finding(facts), "the table has another file than at the drop; no page holds a canary")
    _checked(desk, "after_purge", purge.checks_after_purge(desk))


def look_before_purge() -> None:
    """Whether there is room, and what a person has to say."""
    desk = _desk()
    free = _asked(desk, "purge_free_bytes")
    if not free:
        raise AirflowSkipException("no purge: the form names no free bytes, so the plaintext stays in the table's file")
    _checked(desk, "before_purge", purge.checks_before_purge(desk, int(free)), ask=_PURGE)


# -- the end ----------------------------------------------------------------------------------------------------


def verdict() -> None:
    """The run's colour: green only when the plaintext is gone and everything after it is right; in a rehearsal, when
    that was green."""
    desk = _desk()
    if _asked(desk, "rehearsal") == "True":
        if (rehearsed := evidence.latest(desk.ops, desk.run, REHEARSED)).verdict is not Verdict.PASS:
            raise GateClosed(
                "the rehearsal is red", expected=rehearsed.threshold, found=evidence.plain(rehearsed.measured)
            )
        return
    table = shape.look(desk)
    if not table.switched or table.shim:
        raise PaymeOpsError(
            "the migration is not over",
            expected="the ciphertext under the plaintext's name, and no shim",
            found=table.stage,
            remedy="see which task is red or waits; clear it when its cause is gone, or run phone_encryption_rollback",
        )
    try:
        _require(desk, FINAL, "confirm_final")
    except NotFound as error:
        raise NotApproved("the last verification is missing", found=error.found, remedy="clear final_look") from None


def final_look() -> None:
    """After the switch: what was written since decrypts under its row, and the index matches."""
    desk = _desk()
    _checked(desk, FINAL, [*_during(desk), _written_since(desk)])


# -- the way back -----------------------------------------------------------------------------------------------

# The steps that have a way back, the last one first, and the stage before each.
_UNDOS = ("brown_out", "relax", "finish", "expand")


def check_rollback() -> None:
    """Refuse what cannot be undone; what will be is put before a person."""
    context, desk = get_current_context(), _desk()
    asked = _form(context, "the rollback", "why it is undone; it is kept as evidence")
    for name in ("writes_both", "reads_ciphertext", "ignores_plaintext"):
        if fleet.parse_version(asked[name]) is None:
            raise SettingsError(f"{name} is no version", expected="major.minor.patch", found=asked[name] or "none")
    found = shape.look(desk)
    if not found.has_plaintext:
        switch.undo_switch(desk, _log.info)  # says why there is no way back
    steps_back = _UNDOS[: _UNDOS.index(asked["back_to"]) + 1]
    _keep(desk, REQUEST, passed(asked), "a reason, a step, three versions")
    plan = {"stage": found.stage, "is undone": list(steps_back), "reason": asked["reason"]}
    ask = "end the run of phone_encryption first; the releases before have to be deployed again as this asks for them"
    _keep(desk, "rollback_plan", Finding(Verdict.INCONCLUSIVE, plan, ask), "a second person decides")


def _undoes(desk: MigrationDesk, step: str) -> bool:
    return _UNDOS.index(step) <= _UNDOS.index(_asked(desk, "back_to"))


def fleet_left(which: str, step: str) -> bool:
    """Whether no session of the application is of that version or a newer one: a sensor's poke."""
    desk = _desk()
    require_approval(get_current_context(), gate="approve_rollback", evidence_item="rollback_plan")
    if not _undoes(desk, step):
        return True
    settled = _observed(lambda: fleet.measure_older(desk, _asked(desk, which)))
    if settled.verdict is not Verdict.PASS:
        _log.info("not yet: %s. %s", evidence.plain(settled.measured), settled.remedy)
        return False
    threshold = f"nothing of the application is {_asked(desk, which)} or newer, {fleet.told_by(desk)}"
    _keep(desk, f"gone_{which}", settled, threshold)
    return True


def reverse() -> None:
    """The plaintext as the ciphertext has it."""
    desk = _desk()
    require_approval(get_current_context(), gate="approve_rollback", evidence_item="rollback_plan")
    found = shape.look(desk)
    if not found.relaxed:
        raise AirflowSkipException("the plaintext had to be written all the time: it is right as it is")
    with stoppable():
        _log.info("%d passes until every plaintext was right", backfill.reverse(desk, _keys(desk), _log.info))


def undo(step: str) -> None:
    """Undo a step, if the form asks for it."""
    desk = _desk()
    require_approval(get_current_context(), gate="approve_rollback", evidence_item="rollback_plan")
    if not _undoes(desk, step):
        raise AirflowSkipException(f"the form goes back to {_asked(desk, 'back_to')} only")
    with stoppable():
        _log.info("%s undone: %s", step, evidence.plain(STEPS[step].undo(desk, _log.info)))


def rollback_verdict() -> None:
    """The run's colour: green only when it was approved and the table is where the form wants it."""
    desk = _desk()
    before = {"relax": Stage.RELAXED, "finish": Stage.BACKFILLED, "expand": Stage.EXPANDED}[_asked(desk, "back_to")]
    found = shape.look(desk)
    try:
        require_approval(get_current_context(), gate="approve_rollback", evidence_item="rollback_plan")
    except NotApproved as error:
        raise NotApproved(
            "the rollback was not approved: nothing was changed",  # each undo asks for the same approval
            expected=error.expected,
            found=f"{error.found}; the table is {found.stage}",
            remedy=error.remedy,
        ) from None
    if found.reached(before):
        raise PaymeOpsError(
            "the steps are not undone",
            expected=f"a table before {before}",
            found=found.stage,
            remedy="see which task is red, skipped or waits; clear it when its cause is gone",
        )


def control_backfill() -> None:
    """Say the form's word, and log how far the backfill is."""
    context, desk = get_current_context(), _desk()
    word, reason = str(context["params"]["word"]), str(context["params"].get("reason") or "")
    if word != "status":
        {"pause": control.pause, "run": control.resume, "abort": control.abort}[word](desk, reason=reason)
    now = control.status(desk)
    _log.info("said: %s", f"{now.said.word} by {now.said.by}: {now.said.reason}" if now.said else "nothing")
    for one in now.passes:
        _log.info("%s", one)
