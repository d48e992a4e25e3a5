"""The object store: streams, write once, and what the client makes of a store or a network that fails."""

import base64
import hashlib
import os
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from botocore.config import Config

from payme_ops.foundation import objectstore
from payme_ops.foundation.errors import AlreadyExists, NotFound, StoreRefused, StoreUnavailable
from payme_ops.foundation.objectstore import MIB, Bucket, MultipartWriter, profile_client
from tests.support.installation import Installation
from tests.support.proxy import Proxy

SSE: dict[str, Any] = {"ServerSideEncryption": "AES256", "StorageClass": "STANDARD_IA"}
# Different in every MiB, so that a part in the wrong place is another object.
BLOB = b"".join(number.to_bytes(4, "big") * 1024 for number in range(16 * 256 + 300))


@pytest.fixture(autouse=True)
def administrator(installation: Installation, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keys that may do everything, behind the same name: here objects lie anywhere."""
    assert installation
    keys = tmp_path / "aws_credentials"
    keys.write_text("[payme_s3_write]\naws_access_key_id = administrator\naws_secret_access_key = administrator\n")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(keys))


@pytest.fixture
def bucket(installation: Installation) -> Bucket:
    return Bucket(profile_client("payme_s3_write"), installation.bucket_name)


@pytest.fixture
def behind(proxy: Proxy, installation: Installation, monkeypatch: pytest.MonkeyPatch) -> Bucket:
    """The bucket through the proxy, with a client that tries once more, not four times: it waits seconds between."""
    assert proxy.url
    patient = objectstore.CLIENT_CONFIG.merge(Config(retries={"mode": "standard", "max_attempts": 1}))
    monkeypatch.setattr(objectstore, "CLIENT_CONFIG", patient)
    return Bucket(profile_client("payme_s3_write"), installation.bucket_name)


def upload(bucket: Bucket, data: bytes = BLOB, step: int = MIB) -> None:
    with MultipartWriter(bucket, "blob", **SSE) as writer:
        for at in range(0, len(data), step):
            writer.write(data[at : at + step])
        writer.complete()


def test_multipart_of_more_than_one_part_comes_back_whole(bucket: Bucket, installation: Installation) -> None:
    upload(bucket)
    assert b"".join(bucket.stream("blob")) == BLOB
    assert bucket.head("blob").size_bytes == len(BLOB)
    head = installation.store.client.head_object(Bucket=bucket.name, Key="blob")
    assert (head["StorageClass"], head["ServerSideEncryption"]) == ("STANDARD_IA", "AES256")
    assert head["ETag"].endswith('-2"')
    assert installation.uploads() == []


def test_stream_has_chunks_of_a_mebibyte(bucket: Bucket) -> None:
    upload(bucket)
    sizes = [len(chunk) for chunk in bucket.stream("blob")]
    assert max(sizes) <= objectstore.READ_CHUNK


def test_an_empty_object(bucket: Bucket) -> None:
    upload(bucket, b"")
    assert b"".join(bucket.stream("blob")) == b""


def test_nothing_is_seen_before_complete_and_leaving_aborts(bucket: Bucket, installation: Installation) -> None:
    with MultipartWriter(bucket, "blob", **SSE) as writer:
        writer.write(BLOB)
        assert installation.uploads() == ["blob"]
        assert list(bucket.keys("")) == []
    assert installation.uploads() == []
    with pytest.raises(NotFound, match="HTTP 404"):
        b"".join(bucket.stream("blob"))


def test_an_error_in_the_block_aborts_and_comes_out(bucket: Bucket, installation: Installation) -> None:
    with pytest.raises(ZeroDivisionError), MultipartWriter(bucket, "blob", **SSE) as writer:
        writer.write(BLOB)
        _ = 1 / 0
    assert installation.uploads() == []


def test_abort_uploads_below_a_prefix_only(bucket: Bucket, installation: Installation) -> None:
    for key in ("postgres/payme/a", "postgres/payme/b", "postgres/other/c"):
        bucket.client.create_multipart_upload(Bucket=bucket.name, Key=key)
    assert bucket.abort_uploads("postgres/payme/") == 2
    assert installation.uploads() == ["postgres/other/c"]


def test_write_once(bucket: Bucket) -> None:
    bucket.put_if_absent("manifest.json", b"one")
    with pytest.raises(AlreadyExists, match="HTTP 412"):
        bucket.put_if_absent("manifest.json", b"two")
    assert bucket.get("manifest.json") == b"one"


def test_get_refuses_what_is_too_large(bucket: Bucket) -> None:
    bucket.put_if_absent("small", b"12345")
    assert bucket.get("small", limit=5) == b"12345"
    with pytest.raises(StoreRefused, match="too large"):
        bucket.get("small", limit=4)


def test_keys_in_order_over_several_pages(bucket: Bucket, monkeypatch: pytest.MonkeyPatch) -> None:
    names = [f"p/{number:03}" for number in range(7)]
    for name in reversed(names):
        bucket.put_if_absent(name, b"x")
    bucket.put_if_absent("q/other", b"x")
    original = bucket.client.list_objects_v2
    # Three to a page.
    monkeypatch.setattr(bucket.client, "list_objects_v2", lambda **more: original(**more, MaxKeys=3))
    assert list(bucket.keys("p/")) == names


@pytest.mark.parametrize("missing", ["get", "stream", "head"])
def test_what_is_not_there_is_not_found(bucket: Bucket, missing: str) -> None:
    with pytest.raises(NotFound):
        found = getattr(bucket, missing)("nothing")
        list(found)


def test_a_missing_bucket_is_not_found(bucket: Bucket) -> None:
    with pytest.raises(NotFound, match="NoSuchBucket"):
        Bucket(bucket.client, "no-such-bucket").put_if_absent("key", b"x")


def test_server_time_is_utc(bucket: Bucket) -> None:
    assert abs(bucket.server_time() - datetime.now(UTC)) < timedelta(seconds=5)


def test_an_unknown_profile_names_the_variable() -> None:
    with pytest.raises(StoreRefused, match="AWS_CONFIG_FILE"):
        profile_client("payme_s3_nobody")


def test_one_error_is_tried_again_unseen(behind: Bucket, proxy: Proxy) -> None:
    rules = [
        proxy.answer("PUT", "partNumber=1", 500, "InternalError", times=1),
        proxy.cut_request("PUT", "partNumber=2", MIB // 2, times=1),
        proxy.answer("POST", "uploadId=", 503, "SlowDown", times=1),
    ]
    upload(behind)
    assert [rule.hits for rule in rules] == [1, 1, 1]
    assert b"".join(behind.stream("blob")) == BLOB


@pytest.mark.parametrize(("status", "code"), [(500, "InternalError"), (503, "SlowDown"), (429, "TooManyRequests")])
def test_a_store_that_goes_on_failing_is_unavailable(
    behind: Bucket, proxy: Proxy, installation: Installation, status: int, code: str
) -> None:
    rule = proxy.answer("PUT", "partNumber=1", status, code)
    with pytest.raises(StoreUnavailable, match=f"HTTP {status} {code}") as caught:
        upload(behind)
    assert "upload part 1" in caught.value.what
    assert rule.hits == 2
    assert installation.uploads() == []
    assert list(installation.store.keys("")) == []


def test_a_connection_cut_in_every_part_is_unavailable(
    behind: Bucket, proxy: Proxy, installation: Installation
) -> None:
    proxy.cut_request("PUT", "partNumber=", MIB)
    with pytest.raises(StoreUnavailable, match="upload part 1"):
        upload(behind)
    assert installation.uploads() == []


def test_no_permission_is_refused_and_not_tried_again(behind: Bucket, proxy: Proxy) -> None:
    rule = proxy.answer("PUT", "/key", 403, "AccessDenied")
    with pytest.raises(StoreRefused, match="HTTP 403 AccessDenied") as caught:
        behind.put_if_absent("key", b"x")
    assert "policy" in caught.value.remedy
    assert rule.hits == 1


def test_an_answer_cut_in_the_middle_is_unavailable_and_never_a_short_object(behind: Bucket, proxy: Proxy) -> None:
    upload(behind)
    proxy.cut_response("GET", "/blob", 5 * MIB)
    read: list[bytes] = []
    with pytest.raises(StoreUnavailable, match="read blob"):
        read.extend(behind.stream("blob"))
    assert len(b"".join(read)) <= 5 * MIB


def test_a_small_object_cut_in_the_middle_is_unavailable(behind: Bucket, proxy: Proxy) -> None:
    behind.put_if_absent("small", b"x" * 1000)
    proxy.cut_response("GET", "/small", 500)
    with pytest.raises(StoreUnavailable):
        behind.get("small")


def test_nobody_listens(installation: Installation) -> None:
    installation.reach_store_at("http://127.0.0.1:1")
    with pytest.raises(StoreUnavailable, match="EndpointConnectionError"):
        Bucket(profile_client("payme_s3_write"), "any").get("key")


def test_no_secret_in_an_error(installation: Installation, behind: Bucket, proxy: Proxy) -> None:
    proxy.answer("GET", "/key", 403, "SignatureDoesNotMatch")
    with pytest.raises(StoreRefused) as caught:
        behind.get("key")
    assert installation.site.world.secrets["s3.payme_s3_write"] not in str(caught.value)
    assert os.environ["AWS_CONFIG_FILE"]


def test_every_write_carries_its_md5(installation: Installation) -> None:
    """S3 refuses writes without it where the bucket has a default retention of Object Lock; moto does not."""
    bucket = installation.desk.bucket
    sent: list[tuple[str, bytes | None]] = []

    def note(request: Any, **_: object) -> None:
        if request.method == "PUT":
            sent.append((request.url.split("?")[0].rsplit("/", 1)[1], request.headers.get("Content-MD5")))

    bucket.client.meta.events.register("before-send.s3", note)
    bucket.put_if_absent("postgres/small", b"one")
    with MultipartWriter(bucket, "postgres/large") as writer:
        writer.write(b"two")
        writer.complete()
    expected = [base64.b64encode(hashlib.md5(body, usedforsecurity=False).digest()) for body in (b"one", b"two")]
    assert sent == [("small", expected[0]), ("large", expected[1])]


# --- copies, versions, deletions ------------------------------------------------------------------------------------


def fill(bucket: Bucket, key: str, body: bytes) -> None:
    bucket.put(key, body, **SSE)


@pytest.mark.parametrize("parts", [1, 3])
def test_a_copy_into_the_other_region_is_the_same_bytes(
    bucket: Bucket, installation: Installation, monkeypatch: pytest.MonkeyPatch, parts: int
) -> None:
    """S3 takes 5 GiB in one copy: the threshold is lowered, and the second run copies in parts."""
    fill(bucket, "blob", BLOB)
    if parts > 1:
        monkeypatch.setattr(objectstore, "SINGLE_COPY_BYTES", 1000)
        monkeypatch.setattr(objectstore, "COPY_PART_BYTES", 6 * MIB)
    copied: list[int] = []
    installation.copies.copy(bucket, "blob", "elsewhere", size_bytes=len(BLOB), progress=copied.append, **SSE)
    assert installation.copies.get("elsewhere") == BLOB
    assert (len(copied), sum(copied)) == (parts, len(BLOB))
    assert installation.copies.head("elsewhere").storage_class == "STANDARD_IA"


def test_a_copy_that_fails_leaves_neither_object_nor_upload(
    bucket: Bucket, installation: Installation, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(bucket, "blob", BLOB)
    monkeypatch.setattr(objectstore, "SINGLE_COPY_BYTES", 1000)
    monkeypatch.setattr(objectstore, "COPY_PART_BYTES", 6 * MIB)

    def stop(_count: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        installation.copies.copy(bucket, "blob", "elsewhere", size_bytes=len(BLOB), progress=stop, **SSE)
    pages = installation.copies.client.list_multipart_uploads(Bucket=installation.copies_name)
    assert pages.get("Uploads", []) == []
    assert list(installation.copies.keys("")) == []


def test_a_deleted_object_keeps_its_versions_and_one_of_them_can_be_copied_back(bucket: Bucket) -> None:
    fill(bucket, "blob", b"first")
    fill(bucket, "blob", b"second")
    bucket.delete("blob")
    bucket.delete("never there")
    assert list(bucket.keys("blob")) == []
    found = [(version.marker, version.latest) for version in bucket.versions("blob")]
    assert found == [(True, True), (False, False), (False, False)]
    second = next(version for version in bucket.versions("blob") if not version.marker)
    bucket.copy(bucket, "blob", "blob", size_bytes=second.size_bytes, version_id=second.version_id, **SSE)
    assert bucket.get("blob") == b"second"


def test_a_head_tells_class_and_lock(bucket: Bucket, installation: Installation) -> None:
    fill(bucket, "blob", b"x")
    plain = bucket.head("blob")
    assert (plain.size_bytes, plain.storage_class, plain.restore) == (1, "STANDARD_IA", "")
    assert (plain.retain_until, plain.legal_hold) == (None, False)
    until = datetime(2099, 1, 1, tzinfo=UTC)
    installation.store.client.put_object_retention(
        Bucket=bucket.name, Key="blob", Retention={"Mode": "GOVERNANCE", "RetainUntilDate": until}
    )
    assert bucket.head("blob").retain_until == until
    installation.store.client.put_object_legal_hold(Bucket=bucket.name, Key="blob", LegalHold={"Status": "ON"})
    assert bucket.head("blob").legal_hold
    (item,) = bucket.items("")
    assert (item.key, item.size_bytes) == ("blob", 1)
