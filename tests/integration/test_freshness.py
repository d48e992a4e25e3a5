"""`backup status` on real buckets: what is there counts, a region that is away is told and the rest is measured."""

from datetime import timedelta

import pytest

from payme_ops.backup import freshness, manifest
from payme_ops.backup.manifest import Manifest, Tier, backup_prefix
from payme_ops.backup.verification import Outcome
from payme_ops.foundation import evidence, settings, signing
from payme_ops.foundation.clock import utc_now
from payme_ops.foundation.evidence import Evidence, Verdict
from tests.integration.test_verification import put_copy
from tests.support.installation import Installation
from tests.support.proxy import Proxy
from tests.support.verdicts import found, write


def measure(installation: Installation) -> dict[str, Evidence]:
    config = settings.load()
    items = freshness.measure(installation.desk.catalogue, config.targets, utc_now(), actor="test")
    return {item.item: item for item in items}


def verify(installation: Installation, done: Manifest, outcome: Outcome, milliseconds: int = 61_000) -> None:
    write(installation, done, found(done, outcome, rto_milliseconds=milliseconds))


@pytest.mark.long
def test_from_no_backup_to_a_proven_one_with_a_copy(installation: Installation) -> None:
    ended = installation.cli("backup", "status")
    assert (ended.code, "daily_age" in ended.out, "none" in ended.out) == (3, True, True)
    done = installation.back_up()
    ended = installation.cli("backup", "status")
    assert ended.code == 0, ended
    assert "not due yet" in ended.out
    put_copy(installation, done)
    verify(installation, done, Outcome.VERIFIED)
    items = {item["item"]: item for item in installation.json("backup", "status")}
    payme = ["daily_age", "weekly_age", "monthly_age", "proof_age", "rto_daily", "rto_weekly"]
    assert list(items) == [*payme, "airflow_age", "airflow_proof_age", "ops_age", "ops_proof_age"]
    assert items["daily_age"]["measured"]["backup"] == done.key
    # The copy inherits the verification, and with it where the time was measured.
    assert items["rto_weekly"]["measured"] == {"is": "61 s", "measured on": done.key}
    assert "proof age" in installation.cli("backup", "list").out


def test_a_refuted_one_does_not_count(installation: Installation) -> None:
    first, second = installation.back_up(), installation.back_up()
    verify(installation, second, Outcome.REFUTED)
    assert measure(installation)["daily_age"].measured["backup"] == first.key


def test_a_restore_that_takes_too_long_is_missed(installation: Installation) -> None:
    done = installation.back_up()
    installation.set("TARGETS__RTO_MINUTES", "1")
    verify(installation, done, Outcome.VERIFIED, milliseconds=60_001)
    assert measure(installation)["rto_daily"].verdict is Verdict.FAIL
    verify(installation, done, Outcome.VERIFIED, milliseconds=60_000)
    assert measure(installation)["rto_daily"].verdict is Verdict.PASS


@pytest.mark.long
def test_one_region_away(installation: Installation, proxy: Proxy) -> None:
    put_copy(installation, installation.back_up())
    proxy.answer("GET", installation.copies_name, 503, "SlowDown")
    items = measure(installation)
    assert (items["daily_age"].verdict, items["weekly_age"].verdict) == (Verdict.PASS, Verdict.INCONCLUSIVE)
    assert installation.cli("backup", "status").code == 3


def test_a_bucket_that_is_gone_is_a_fault_of_its_tiers_alone(installation: Installation) -> None:
    installation.back_up()
    installation.set("BACKUP__COPY_BUCKET", "payme-nowhere")
    items = measure(installation)
    assert [items[f"{tier}_age"].verdict for tier in Tier] == [Verdict.PASS, Verdict.FAIL, Verdict.FAIL]


def test_it_reads_no_more_than_it_must(installation: Installation, proxy: Proxy) -> None:
    """The watchdog asks every five minutes: down to the newest verified one, and the oldest."""
    done = installation.back_up()
    for days in range(1, 7):
        put_older(installation, done, days)
    verify(installation, done, Outcome.VERIFIED)
    installation.back_up()
    proxy.requests.clear()
    items = measure(installation)
    assert items["proof_age"].measured["backup"] == done.key
    assert len([one for one in proxy.requests if "/daily/" in one and "manifest.json" in one]) == 3


def put_older(installation: Installation, done: Manifest, days: int) -> None:
    """The same backup, as if it had been taken some days before."""
    taken = done.started_at - timedelta(days=days)
    changed = {"started_at": taken, "snapshot_at": taken, "prefix": backup_prefix(done.database, done.tier, taken)}
    older = done.model_copy(update=changed)
    key = signing.load_private_key(installation.desk.settings.backup.signing_key_file)
    installation.store.put(older.key, evidence.canonical(signing.sign(manifest.document(older), key)))
