"""The restore test as task bodies: context in, asset event and skip out; the work is in payme_ops.backup."""

import logging
import os
from collections.abc import Callable
from typing import Any

from airflow.sdk import Asset, Context, get_current_context
from airflow.sdk.exceptions import AirflowSkipException

from payme_ops.backup import catalogue as backups
from payme_ops.backup import restore, restore_test
from payme_ops.backup.catalogue import Catalogue, Entry, State
from payme_ops.backup.manifest import Tier, stamp_of
from payme_ops.backup.verification import Outcome
from payme_ops.foundation import evidence, record, settings
from payme_ops.foundation.errors import GateClosed, IntegrityError, NotFound, PaymeOpsError, Refuted
from payme_ops.foundation.evidence import Evidence, Finding, Verdict, passed
from payme_ops.foundation.record import Record
from payme_ops.foundation.stop import stoppable
from payme_ops.migration import envelope, verify
from payme_ops.migration.names import PHONE_NUMBER
from payme_ops.migration.verify import Sample
from payme_ops.orchestration.connections import conninfo, ops_db
from payme_ops.orchestration.doors import catalogue, log_reason, run_name

_log = logging.getLogger("payme_ops.backup")

# Items of evidence, in the order in which they come.
CHOSEN, SAMPLED, TESTED, OPENED = "backup_to_test", "ciphertexts_taken", "restore_test", "ciphertexts_opened"
_NAMED = 10  # rows in an error; the evidence has all
_S3 = "payme_s3_restore"


def choose() -> str:
    """Which backup is tested: the newest daily when nobody names one. Fixed once, for all tasks of the run."""
    context = get_current_context()
    log_reason(context)
    found = backups.find(catalogue(_S3), context["params"]["manifest"])
    _record(context, CHOSEN, Verdict.PASS, {"manifest": found.key, "state": found.state}, "a backup of the catalogue")
    return found.key


def restore_and_compare() -> dict[str, Any]:
    """Restore the chosen backup and compare; raises Refuted naming what was not right first.

    Of a backup without plaintext some ciphertexts go to a worker that can open them; no number leaves.
    """
    context, where = get_current_context(), catalogue(_S3)
    chosen = backups.find(where, _evidence(context, CHOSEN).measured["manifest"])
    taken: list[tuple[Finding, list[tuple[int, str]]]] = []
    found = tested(where, chosen, run_name(context), look=lambda target: taken.append(_sample(target)))
    for sampled, _ in taken:  # none when there was nothing to compare
        _record(
            context, SAMPLED, sampled.verdict, {"manifest": chosen.key, **sampled.measured}, "read, or none to read"
        )
    verified = found.verdict == Outcome.VERIFIED
    measured = {"manifest": chosen.key, "verdict": found.verdict, "record": f"sha256:{record.digest(found)}"}
    _record(context, TESTED, Verdict.PASS if verified else Verdict.FAIL, measured, "as in the dump's own snapshot")
    restore_test.require_verified(found)
    return {
        "manifest": chosen.key,
        "verdict": found.verdict,
        "rto_milliseconds": found.facts["rto_milliseconds"],
        "pairs": taken[0][1],
    }


def tested(where: Catalogue, chosen: Entry, run: str, *, look: Callable[[str], None] | None) -> Record:
    """The restore test of that backup by this worker's identity, logged; raises as `restore_test.run`."""
    config = settings.load()
    service = config.backup.restore_test_service
    with stoppable():
        found = restore_test.run(
            where,
            chosen,
            restore.load_identity(config.backup.identity_file),
            config,
            run,
            given_host=conninfo(service) if service else None,
            look=look,
            report=_log.info,
        )
    _log.info("%s", record.to_markdown(found))
    return found


def _sample(target: str) -> tuple[Finding, list[tuple[int, str]]]:
    """Ciphertexts of a restored database. Trouble with them says nothing about the backup, and does not pass."""
    try:
        found = verify.sample(target, PHONE_NUMBER)
    except NotFound:  # not a database with that column
        found = None
    except PaymeOpsError as error:
        return Finding(Verdict.INCONCLUSIVE, {"error": error.what, "found": error.found}), []
    if found is None:
        return passed({"migrated": False}), []
    return passed({"migrated": True, "key_ids": found.key_ids, "pairs": _digest(found.pairs)}), found.pairs


def _digest(pairs: list[tuple[int, str]]) -> str:
    return f"sha256:{evidence.digest(pairs)}"


def is_migrated() -> bool:
    """Whether there is something to open: only then a worker with the key of phone numbers is needed."""
    sampled = _evidence(get_current_context(), SAMPLED)
    return sampled.verdict is not Verdict.PASS or sampled.measured["migrated"]


def decrypt_sample(pairs: list[tuple[int, str]]) -> None:
    """Open the ciphertexts of the restored database; on a worker that has the key. Raises GateClosed naming rows.

    What a run hands over can be rewritten: it has to be what was taken. Raises IntegrityError.
    """
    context, config = get_current_context(), settings.load()
    sampled = _evidence(context, SAMPLED)
    if sampled.verdict is not Verdict.PASS:
        raise GateClosed(
            "no ciphertexts could be taken from the restored database",
            expected="ciphertexts, or none at all",
            found=evidence.plain(sampled.measured),
            remedy="read the log of restore_and_compare; run it again when its cause is gone",
        )
    if _digest(pairs) != sampled.measured["pairs"]:
        raise IntegrityError(
            "these are not the ciphertexts that were taken",
            expected=sampled.measured["pairs"],
            found=_digest(pairs),
            remedy="somebody changed the task's XCom; find out who, then clear restore_and_compare",
        )
    keys = envelope.load_keys(os.environ, key_id=config.migration.key_id, names=PHONE_NUMBER)
    taken = Sample(sampled.measured["key_ids"], [(key, stored) for key, stored in pairs])
    finding = verify.check_sample(keys, PHONE_NUMBER, taken)
    measured = {"manifest": sampled.measured["manifest"], **finding.measured}
    _record(context, OPENED, finding.verdict, measured, "every row is of our key, and these open")
    if finding.verdict is not Verdict.PASS:
        raise GateClosed(
            "the ciphertexts of the backup do not open",
            expected="every row of our key, and each of these opens under its own row",
            found=evidence.plain({**finding.measured, "wrong": finding.measured["wrong"][:_NAMED]}),
            remedy=finding.remedy,
        )


def ask_for_fresh() -> None:
    """Goes on to a fresh backup when this one was refuted; skips when the test failed for another reason.

    Once: when the daily before was refuted, too, a fresh one would most likely be as bad, and a person has to look.
    """
    context = get_current_context()
    try:
        refuted = _evidence(context, TESTED).measured
    except NotFound:
        raise AirflowSkipException("the test said nothing about the backup: it failed before it could") from None
    if refuted["verdict"] != Outcome.REFUTED:
        raise AirflowSkipException(f"{refuted['manifest']} is {refuted['verdict']}")
    before = _daily_before(refuted["manifest"])
    if before and before.state is State.REFUTED:
        raise AirflowSkipException(
            f"{before.key} was refuted, too: a fresh backup was tried already, a person must look"
        )


def verdict(asset: Asset) -> str:
    """The run's colour: green, and an asset event, only for a backup that is VERIFIED, and whose ciphertexts open where
    it has no plaintext. Raises Refuted, NotFound, GateClosed."""
    context = get_current_context()
    tested = _evidence(context, TESTED).measured
    if tested["verdict"] != Outcome.VERIFIED:
        raise Refuted(
            f"{tested['manifest']} is {tested['verdict']}",
            expected=Outcome.VERIFIED,
            found=tested["verdict"],
            remedy="the task restore_and_compare names each difference; a person closes it when it is understood",
        )
    found = backups.find(catalogue(_S3), tested["manifest"])
    if found.state is not State.VERIFIED:
        raise IntegrityError(
            f"{found.key} does not count as verified",
            expected="the record that this run wrote beside the manifest",
            found=found.why or found.state,
            remedy="compare PAYME_OPS__BACKUP__VERIFICATION_KEYS with the key of the restore worker (docs/keys.md)",
        )
    _require_opened(context)
    context["outlet_events"][asset].extra = {"manifest": found.key}
    return found.key


def _require_opened(context: Context) -> None:
    if not is_migrated():
        return
    opened = _evidence(context, OPENED)
    if opened.verdict is not Verdict.PASS:
        raise GateClosed(
            "the backup is VERIFIED, but its ciphertexts do not open",
            expected=opened.threshold,
            found=evidence.plain(opened.measured),
            remedy="see decrypt_sample; what the backup is worth does not change by it",
        )


def _daily_before(key: str) -> Entry | None:
    """The daily taken before that backup, whatever it is worth."""
    where = catalogue(_S3)
    tested = backups.find(where, key)
    dailies = backups.entries(where, tiers=[Tier.DAILY], newest_first=True)
    return next((one for one in dailies if stamp_of(one.key) < stamp_of(tested.key)), None)


def _evidence(context: Context, item: str) -> Evidence:
    return evidence.latest(ops_db(), run_name(context), item)


def _record(context: Context, item: str, outcome: Verdict, measured: dict[str, Any], threshold: str) -> None:
    finding, source = Finding(outcome, measured), measured["manifest"]
    evidence.keep(ops_db(), run_name(context), item, finding, threshold=threshold, source=source)
