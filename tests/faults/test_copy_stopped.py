"""A copy or an archive is killed at each stage: there is a whole one or none, and the next run makes it."""

import pytest

from payme_ops.backup import catalogue
from payme_ops.backup.catalogue import State
from payme_ops.backup.manifest import Tier
from payme_ops.foundation import lease
from tests.support.installation import Installation
from tests.support.proxy import Proxy
from tests.support.verdicts import judge
from tests.support.waiting import eventually

pytestmark = pytest.mark.long

ARCHIVE = "archive.dump.age"
# Stage; the request that it is caught at, the number of that one; whether the store has done it; copies afterwards.
STAGES = {
    "archive on its way": ("PUT", ARCHIVE, 1, False, 0),
    "archive copied": ("PUT", ARCHIVE, 1, True, 0),
    "reading back": ("GET", ARCHIVE, 1, True, 0),
    "manifest on its way": ("PUT", "manifest.json", 1, False, 0),
    "manifest written, nobody told": ("PUT", "manifest.json", 1, True, 1),
    "verification on its way": ("PUT", "verification.json", 1, False, 1),
}
MONTHLY = {
    "reading back": ("GET", ARCHIVE, 1, True, 0),
    "about to be moved": ("PUT", ARCHIVE, 2, False, 0),
    "moved, nobody told": ("PUT", ARCHIVE, 2, True, 0),
}
CASES = {
    **{f"weekly: {stage}": ("copy", Tier.WEEKLY, *caught) for stage, caught in STAGES.items()},
    **{f"monthly: {stage}": ("archive", Tier.MONTHLY, *caught) for stage, caught in MONTHLY.items()},
}


@pytest.mark.parametrize("case", CASES)
def test_killed(installation: Installation, proxy: Proxy, case: str) -> None:
    command, tier, method, name, number, done_upstream, copies = CASES[case]
    done = installation.back_up()
    judge(installation, done)
    request = f"/{tier}/{done.prefix.split('/')[3]}/{name}"
    proxy.delay(method, request, 0, times=number - 1)  # those before it pass
    held = proxy.hold(method, request, done_upstream=done_upstream)
    running = installation.start("backup", command)
    held.wait_until_seen()
    running.kill()
    held.drop()
    eventually(lambda: lease.peek("service=payme_ops_db", "copy:payme") is None, "the lease is free")
    found = list(catalogue.entries(installation.catalogue, tiers=[tier]))
    assert [entry.why for entry in found] == [""] * copies
    ended = installation.cli("backup", command)
    assert ended.code == 0, ended.err
    (entry,) = catalogue.entries(installation.catalogue, tiers=[tier])
    assert entry.state is State.VERIFIED
    assert entry.manifest is not None
    assert entry.manifest.archive.sha256 == done.archive.sha256
    head = installation.copies.head(entry.manifest.archive.key)
    assert head.size_bytes == done.archive.size_bytes
    assert head.storage_class == ("GLACIER" if tier is Tier.MONTHLY else "STANDARD_IA")
