"""The way back from Glacier, one step after the other, as S3's HeadObject tells it."""

from collections.abc import Callable, Iterator

import pytest

from payme_ops.backup import archive
from payme_ops.backup.archive import Retrieval
from payme_ops.foundation.errors import NotFound, StoreRefused, StoreUnavailable
from payme_ops.foundation.objectstore import Bucket, profile_client
from tests.support.installation import Installation
from tests.support.proxy import Proxy
from tests.support.retrievals import slow_retrievals

KEY = "postgres/payme/monthly/20260101T020000EAT/archive.dump.age"


@pytest.fixture
def slowly(installation: Installation) -> Iterator[Callable[[], None]]:
    """Retrievals are under way until the function is called, as with S3 they are for hours."""
    with slow_retrievals(installation.site.world.url("s3")) as end:
        yield end


@pytest.mark.parametrize("glacier", ["GLACIER", "DEEP_ARCHIVE"])
def test_from_archived_to_ready(installation: Installation, slowly: Callable[[], None], glacier: str) -> None:
    bucket = installation.copies
    bucket.put(KEY, b"sealed", StorageClass=glacier)
    assert archive.state(bucket, KEY) is Retrieval.ARCHIVED
    with pytest.raises(StoreRefused, match="backup retrieve"):
        bucket.get(KEY)
    archive.request(bucket, KEY)
    assert archive.state(bucket, KEY) is Retrieval.PENDING
    assert archive.state(bucket, KEY) is Retrieval.PENDING
    with pytest.raises(StoreRefused, match="backup retrieve"):
        bucket.get(KEY)
    slowly()
    assert archive.state(bucket, KEY) is Retrieval.READY
    assert bucket.get(KEY) == b"sealed"


def test_what_is_not_archived_can_be_read_at_once(installation: Installation) -> None:
    installation.copies.put(KEY, b"sealed", StorageClass="STANDARD_IA")
    assert archive.state(installation.copies, KEY) is Retrieval.STANDARD
    with pytest.raises(NotFound):
        archive.state(installation.copies, KEY + "x")


@pytest.mark.parametrize(
    ("restore", "found"),
    [
        ('ongoing-request="true"', Retrieval.PENDING),
        ('ongoing-request="false", expiry-date="Fri, 21 Dec 2035 00:00:00 GMT"', Retrieval.READY),
    ],
)
def test_s3s_own_header(installation: Installation, proxy: Proxy, restore: str, found: Retrieval) -> None:
    installation.copies.put(KEY, b"sealed", StorageClass="GLACIER")
    proxy.with_answer_header("HEAD", KEY, "x-amz-restore", restore)
    behind = Bucket(profile_client("payme_s3_restore"), installation.copies_name)
    assert archive.state(behind, KEY) is found


def test_asking_twice_is_no_error_and_a_refusal_is(installation: Installation, proxy: Proxy) -> None:
    installation.copies.put(KEY, b"sealed", StorageClass="GLACIER")
    behind = Bucket(profile_client("payme_s3_restore"), installation.copies_name)
    proxy.answer("POST", "restore", 409, "RestoreAlreadyInProgress", times=1)
    archive.request(behind, KEY)
    proxy.answer("POST", "restore", 403, "AccessDenied", times=1)
    with pytest.raises(StoreRefused, match="AccessDenied"):
        archive.request(behind, KEY)
    proxy.answer("POST", "restore", 503, "SlowDown")
    with pytest.raises(StoreUnavailable):
        archive.request(behind, KEY)
