"""The store or the network to it fails: retried unseen when it passes, told and cleared up when it does not."""

import re
import sys
from collections.abc import Callable

import pytest

from payme_ops import cli
from payme_ops.backup import run
from payme_ops.backup.manifest import Tier
from payme_ops.foundation.clock import utc_now
from payme_ops.foundation.errors import HashMismatch, PaymeOpsError, StoreUnavailable
from tests.support.installation import Installation, quiet
from tests.support.proxy import Proxy, Rule

MIB = 1024 * 1024
ARCHIVE = "archive.dump.age"
Fault = Callable[[Proxy, int | None], Rule]


def answer(method: str, contains: str, status: int, code: str) -> Fault:
    return lambda proxy, times: proxy.answer(method, contains, status, code, times=times)


def cut_request(contains: str, after_bytes: int) -> Fault:
    return lambda proxy, times: proxy.cut_request("PUT", contains, after_bytes, times=times)


# What fails, in the order of a run.
FAULTS: dict[str, Fault] = {
    "500 to the beginning of the upload": answer("POST", f"{ARCHIVE}?uploads", 500, "InternalError"),
    "500 to a part": answer("PUT", "partNumber=1", 500, "InternalError"),
    "503 to a part": answer("PUT", "partNumber=1", 503, "SlowDown"),
    "cut in the middle of a part": cut_request("partNumber=1", 3 * MIB),
    "503 to the end of the upload": answer("POST", f"{ARCHIVE}?uploadId", 503, "SlowDown"),
    "500 to the roles": answer("PUT", "globals.sql.age?uploadId", 500, "InternalError"),
    "503 to reading back": answer("GET", ARCHIVE, 503, "SlowDown"),
    "500 to the manifest": answer("PUT", "/manifest.json", 500, "InternalError"),
    "cut in the middle of the manifest": cut_request("/manifest.json", 500),
}


def attempt(installation: Installation) -> None:
    desk = installation.desk
    run.dump_and_store(desk, installation.passed("faulty"), Tier.DAILY, utc_now(), report=quiet)
    run.read_back(desk, "faulty", report=quiet)
    run.commit(desk, "faulty")


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("what", FAULTS)
def test_once_is_not_seen(installation: Installation, proxy: Proxy, what: str) -> None:
    rule = FAULTS[what](proxy, 1)
    done = installation.back_up()
    assert rule.hits == 1
    installation.require_clean(backups=1)
    assert [each.key for each in installation.manifests()] == [done.key]
    assert installation.uploads() == []


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("what", FAULTS)
def test_for_ever_is_told_and_leaves_nothing(installation: Installation, proxy: Proxy, what: str) -> None:
    rule = FAULTS[what](proxy, None)
    with pytest.raises(StoreUnavailable) as caught:
        attempt(installation)
    assert caught.value.remedy
    assert rule.hits == 2
    # The store still fails, and yet the upload was aborted: that is another request.
    assert installation.uploads() == []
    proxy.clear()
    installation.require_recovery(backups=0)


@pytest.mark.usefixtures("impatient")
def test_a_store_that_answers_no_more(installation: Installation, proxy: Proxy) -> None:
    first, second = (proxy.hold("PUT", "partNumber=1") for _ in range(2))
    with pytest.raises(StoreUnavailable, match="ReadTimeout"):
        attempt(installation)
    assert first.seen.is_set()
    assert second.seen.is_set()
    first.drop()
    second.drop()
    installation.require_recovery(backups=0)


def test_a_slow_store_only_takes_longer(installation: Installation, proxy: Proxy) -> None:
    """Slower than the patience for those who wait behind us: nobody does, so nothing is given up."""
    rules = [proxy.delay("PUT", "partNumber=1", 1.5), proxy.delay("GET", ARCHIVE, 0.5)]
    done = installation.back_up()
    assert all(rule.hits for rule in rules)
    assert [each.key for each in installation.manifests()] == [done.key]


@pytest.mark.parametrize("place", [0, MIB, -1])
def test_wrong_bytes_on_reading_back(installation: Installation, proxy: Proxy, place: int) -> None:
    proxy.flip("GET", ARCHIVE, place)
    with pytest.raises(HashMismatch, match="is not what was uploaded") as caught:
        attempt(installation)
    assert len(set(re.findall("[0-9a-f]{64}", str(caught.value)))) == 2
    proxy.clear()
    installation.require_recovery(backups=0)


def test_an_object_that_another_one_took_the_place_of(installation: Installation) -> None:
    desk = installation.desk
    draft = run.dump_and_store(desk, installation.passed("replaced"), Tier.DAILY, utc_now(), report=quiet)
    installation.store.client.put_object(Bucket=installation.bucket_name, Key=draft.archive.key, Body=b"another")
    with pytest.raises(HashMismatch, match="found 7 bytes"):
        run.read_back(desk, "replaced", report=quiet)
    with pytest.raises(PaymeOpsError, match="read_back"):
        run.commit(desk, "replaced")
    installation.require_recovery(backups=0)


@pytest.mark.usefixtures("impatient")
def test_reading_back_that_breaks_off_can_be_run_again(installation: Installation, proxy: Proxy) -> None:
    desk = installation.desk
    run.dump_and_store(desk, installation.passed("again"), Tier.DAILY, utc_now(), report=quiet)
    proxy.cut_response("GET", ARCHIVE, 2 * MIB)
    with pytest.raises(StoreUnavailable):
        run.read_back(desk, "again", report=quiet)
    proxy.clear()
    run.read_back(desk, "again", report=quiet)
    run.commit(desk, "again")
    assert len(installation.manifests()) == 1


@pytest.mark.usefixtures("impatient")
def test_a_manifest_whose_answer_is_lost_is_known_again(installation: Installation, proxy: Proxy) -> None:
    """The client tries again and hears 412: what is there is our own."""
    rule = proxy.lose_answer("PUT", "/manifest.json", times=1)
    done = installation.back_up()
    assert rule.hits == 1
    assert [each.key for each in installation.manifests()] == [done.key]


@pytest.mark.usefixtures("impatient")
def test_the_end_of_an_upload_whose_answer_is_lost_is_asked_for_again(installation: Installation, proxy: Proxy) -> None:
    """A store answers the second request as the first; that the object is whole shows when it is read back."""
    rule = proxy.lose_answer("POST", f"{ARCHIVE}?uploadId", times=1)
    done = installation.back_up()
    assert rule.hits == 1
    assert [each.key for each in installation.manifests()] == [done.key]


@pytest.mark.usefixtures("impatient")
def test_on_a_shell_it_is_one_plain_text_and_exit_code_6(
    installation: Installation, proxy: Proxy, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    proxy.answer("PUT", "partNumber=1", 503, "SlowDown")
    monkeypatch.setattr(sys, "argv", ["payme-ops", "backup", "run"])
    with pytest.raises(SystemExit) as end:
        cli.main()
    said = " ".join(capsys.readouterr().err.split())
    assert end.value.code == 6
    assert "HTTP 503 SlowDown" in said
    assert "To do: try again later" in said
    proxy.clear()
    installation.require_recovery(backups=0)
