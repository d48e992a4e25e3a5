"""Two ask for a backup at the same time: one makes it, the other says who does."""

import threading

import pytest

from payme_ops.backup import preflight, run
from payme_ops.backup.manifest import Tier
from payme_ops.foundation.clock import utc_now
from payme_ops.foundation.errors import LeaseHeld, PaymeOpsError
from tests.support.installation import Installation, quiet
from tests.support.proxy import Proxy

pytestmark = pytest.mark.long


def test_the_second_names_the_first_and_touches_nothing(installation: Installation, proxy: Proxy) -> None:
    held = proxy.hold("POST", "archive.dump.age?uploads", done_upstream=True)
    first = installation.start("backup", "run")
    held.wait_until_seen()
    second = installation.start("backup", "run")
    ended = second.end()
    assert ended.code == 5, ended
    assert f"/{first.process.pid}/" in ended.err, "the name of a shell's run has its process id"
    assert "since 20" in ended.err
    assert len(installation.uploads()) == 1, "the upload of the first goes on"
    held.release()
    assert first.end().code == 0
    installation.require_clean(first, second, backups=1)
    assert installation.uploads() == []
    installation.require_recovery(backups=1)


def test_as_in_a_dag_whose_preflight_passed_before_the_other_began(installation: Installation, proxy: Proxy) -> None:
    """The preflight saw a free lease; the dump itself asks again."""
    desk, name = installation.desk, installation.passed("backup_daily/scheduled")
    held = proxy.hold("POST", "archive.dump.age?uploads")
    by_hand = installation.start("backup", "run")
    held.wait_until_seen()
    with pytest.raises(LeaseHeld, match=f"cli/.*/{by_hand.process.pid}/"):
        run.dump_and_store(desk, name, Tier.DAILY, utc_now(), report=quiet)
    held.release()
    assert by_hand.end().code == 0
    installation.require_recovery(by_hand, backups=1)


def test_a_retry_after_the_other_has_finished_is_superseded_by_name(installation: Installation, proxy: Proxy) -> None:
    desk, name, asked = installation.desk, installation.passed("backup_daily/scheduled"), utc_now()
    held = proxy.hold("POST", "archive.dump.age?uploads")
    by_hand = installation.start("backup", "run")
    held.wait_until_seen()
    with pytest.raises(LeaseHeld):
        run.dump_and_store(desk, name, Tier.DAILY, asked, report=quiet)
    held.release()
    assert by_hand.end().code == 0
    (done,) = installation.manifests()
    with pytest.raises(run.Superseded) as caught:
        run.dump_and_store(desk, name, Tier.DAILY, asked, report=quiet)
    assert done.key in str(caught.value)
    installation.require_recovery(by_hand, backups=1)


def test_twenty_at_once_make_one_dump(installation: Installation, proxy: Proxy) -> None:
    desk, names = installation.desk, [f"run/{number}" for number in range(20)]
    found = preflight.examine(desk, actor="test", for_run=True)
    for name in names:
        preflight.record(desk, name, found)
    held = proxy.hold("POST", "archive.dump.age?uploads")
    start, outcomes = threading.Barrier(len(names)), []

    def attempt(name: str) -> None:
        start.wait()
        try:
            run.dump_and_store(desk, name, Tier.DAILY, utc_now(), report=quiet)
            outcomes.append("dumped")
        except PaymeOpsError as error:
            outcomes.append(type(error).__name__)
        if len(outcomes) == len(names) - 1:
            held.release()

    threads = [threading.Thread(target=attempt, args=(name,)) for name in names]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert sorted(outcomes) == ["LeaseHeld"] * 19 + ["dumped"]
    installation.require_recovery(backups=0)
