"""Streams to and from an S3 API. Bytes are never held whole: two or three parts at most.

Errors: StoreUnavailable for 5xx, throttling and silence (after botocore's own retries), StoreRefused for 4xx.
"""

import base64
import hashlib
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import boto3
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError, HTTPClientError

from payme_ops.foundation.errors import AlreadyExists, NotFound, StoreRefused, StoreUnavailable
from payme_ops.foundation.scrub import scrub

if TYPE_CHECKING:
    from mypy_boto3_s3.client import S3Client
    from mypy_boto3_s3.type_defs import CompletedPartTypeDef, CopySourceTypeDef

MIB = 1024 * 1024
# No checksum trailers: botocore's newer defaults have written trailer bytes into objects on other stores (boto3 issues
# 4392 and 4435). Writes carry Content-MD5, and we compare our own SHA-256 after reading everything back.
CLIENT_CONFIG = Config(
    connect_timeout=10,
    read_timeout=60,
    retries={"mode": "standard", "max_attempts": 4},
    request_checksum_calculation="when_required",
    response_checksum_validation="when_required",
    max_pool_connections=4,
)
# S3 takes 10,000 parts. Small parts first keep small databases cheap; the last size bounds
# memory: what is filled and what is under way stay within the budget, and the whole process under 200 MB.
PART_PLAN = ((1000, 16 * MIB), (1000, 32 * MIB), (8000, 40 * MIB))
LARGEST_OBJECT_BYTES = sum(count * part for count, part in PART_PLAN)
_BUFFER_BUDGET = 80 * MIB
# ConditionalRequestConflict (409): another write of the same key was under way; the next try has an answer.
_AGAIN = {
    "ConditionalRequestConflict",
    "SlowDown",
    "RequestTimeout",
    "ThrottlingException",
    "RequestLimitExceeded",
    "InternalError",
}
READ_CHUNK = MIB
# One CopyObject takes 5 GiB at most (S3's own limit); above it UploadPartCopy copies parts of this size.
SINGLE_COPY_BYTES = 5 * 1024 * MIB
COPY_PART_BYTES = 512 * MIB


def profile_client(profile: str, region: str | None = None) -> "S3Client":
    """A client of an AWS profile (AWS_CONFIG_FILE): the door of a shell; in Airflow a connection is the door.

    `region` is the bucket's, where that is not the profile's.
    """
    try:
        return boto3.Session(profile_name=profile, region_name=region).client("s3", config=CLIENT_CONFIG)
    except BotoCoreError as error:
        raise StoreRefused(
            f"AWS profile {profile} cannot be used",
            found=str(error),
            remedy="add the profile to the file that AWS_CONFIG_FILE names",
        ) from None


@contextmanager
def speaking(what: str) -> Iterator[None]:
    """Turn botocore's errors into ours."""
    try:
        yield
    except ClientError as error:
        raise _translate(what, error) from None
    except (BotoCoreError, HTTPClientError, OSError) as error:
        raise StoreUnavailable(
            what,
            expected="an answer from the object store",
            found=f"{type(error).__name__}: {scrub(str(error))[:200]}",
            remedy="check the endpoint and the network; nothing was committed",
        ) from None


def _translate(what: str, error: ClientError) -> Exception:
    status = int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))
    code = error.response.get("Error", {}).get("Code", "")
    message = scrub(error.response.get("Error", {}).get("Message", ""))[:200]
    found = f"HTTP {status} {code} {message}".strip()
    if status >= 500 or status == 429 or code in _AGAIN:
        return StoreUnavailable(what, expected="an answer from the object store", found=found, remedy="try again later")
    if status == 412:
        return AlreadyExists(what, expected="no such object yet", found=found, remedy="look at what is there")
    if status == 404:
        return NotFound(what, expected="it to exist", found=found, remedy="check bucket and key")
    if code == "InvalidObjectState":
        return StoreRefused(
            what,
            expected="bytes that can be read",
            found=found,
            remedy="it lies in an archive: ask for it by `python -m payme_ops backup retrieve`, which takes hours",
        )
    return StoreRefused(
        what,
        expected="permission and a sound request",
        found=found,
        remedy="check the policy of this identity",
    )


@dataclass(frozen=True)
class Item:
    """One object of a listing. `size_bytes` in bytes."""

    key: str
    size_bytes: int
    modified: datetime


@dataclass(frozen=True)
class Version:
    """One version of an object, or a delete marker."""

    key: str
    version_id: str
    latest: bool
    marker: bool
    modified: datetime
    size_bytes: int


@dataclass(frozen=True)
class Head:
    """What S3 says of an object. `restore` is its raw x-amz-restore header, empty when it has none."""

    size_bytes: int
    modified: datetime
    version_id: str
    storage_class: str
    restore: str
    retain_until: datetime | None
    legal_hold: bool


@dataclass(frozen=True)
class Bucket:
    """One bucket through one identity's client."""

    client: "S3Client"
    name: str

    def put_if_absent(self, key: str, body: bytes, **extra: Any) -> None:
        """Write once. Raises AlreadyExists when the key has an object, whoever wrote it."""
        with speaking(f"write {key} to bucket {self.name}"):
            self.client.put_object(
                Bucket=self.name, Key=key, Body=body, ContentMD5=_md5(body), IfNoneMatch="*", **extra
            )

    def put(self, key: str, body: bytes, **extra: Any) -> None:
        """Write, whatever is there; a versioned bucket keeps what was."""
        with speaking(f"write {key} to bucket {self.name}"):
            self.client.put_object(Bucket=self.name, Key=key, Body=body, ContentMD5=_md5(body), **extra)

    def delete(self, key: str) -> None:
        """Put a delete marker on top; in a versioned bucket no byte is lost by it. What is not there is no error."""
        with speaking(f"delete {key} in bucket {self.name}"):
            self.client.delete_object(Bucket=self.name, Key=key)

    def copy(
        self,
        source: "Bucket",
        key: str,
        to: str,
        *,
        size_bytes: int,
        version_id: str | None = None,
        progress: Callable[[int], None] = lambda _: None,
        **extra: Any,
    ) -> None:
        """Copy an object of `source` to the key `to` here, inside the store; our identity must be able to read it.

        Above SINGLE_COPY_BYTES in parts, and then the upload is aborted if a part fails. `progress` gets bytes.
        """
        origin: CopySourceTypeDef = {"Bucket": source.name, "Key": key}
        if version_id:
            origin["VersionId"] = version_id
        with speaking(f"copy {key} from bucket {source.name} to {to} in bucket {self.name}"):
            if size_bytes <= SINGLE_COPY_BYTES:
                self.client.copy_object(
                    Bucket=self.name, Key=to, CopySource=origin, MetadataDirective="REPLACE", **extra
                )
                progress(size_bytes)
            else:
                self._copy_parts(origin, to, size_bytes, progress, extra)

    def _copy_parts(
        self,
        origin: "CopySourceTypeDef",
        to: str,
        size_bytes: int,
        progress: Callable[[int], None],
        extra: dict[str, Any],
    ) -> None:
        upload = self.client.create_multipart_upload(Bucket=self.name, Key=to, **extra)["UploadId"]
        parts: list[CompletedPartTypeDef] = []
        try:
            for number, start in enumerate(range(0, size_bytes, COPY_PART_BYTES), 1):
                end = min(start + COPY_PART_BYTES, size_bytes)
                answer = self.client.upload_part_copy(
                    Bucket=self.name,
                    Key=to,
                    UploadId=upload,
                    PartNumber=number,
                    CopySource=origin,
                    CopySourceRange=f"bytes={start}-{end - 1}",
                )
                parts.append({"PartNumber": number, "ETag": answer["CopyPartResult"]["ETag"]})
                progress(end - start)
            self.client.complete_multipart_upload(
                Bucket=self.name, Key=to, UploadId=upload, MultipartUpload={"Parts": parts}
            )
        except BaseException:
            # The store that failed us may not take this either; the next holder of the lease aborts it.
            with suppress(ClientError, BotoCoreError):
                self.client.abort_multipart_upload(Bucket=self.name, Key=to, UploadId=upload)
            raise

    def get(self, key: str, *, limit: int = 64 * MIB) -> bytes:
        """A small object whole. Raises NotFound, StoreUnavailable when it breaks off, StoreRefused beyond `limit`."""
        with speaking(f"read {key} from bucket {self.name}"):
            answer = self.client.get_object(Bucket=self.name, Key=key)
            if answer["ContentLength"] <= limit:
                return answer["Body"].read()  # without a size: only then botocore compares it with the length
            answer["Body"].close()
        raise StoreRefused(f"{key} is too large", expected=f"at most {limit} bytes", found=f"{answer['ContentLength']}")

    def stream(self, key: str) -> Iterator[bytes]:
        """The object's bytes in chunks of 1 MiB. Raises NotFound, StoreUnavailable when it breaks off."""
        with speaking(f"read {key} from bucket {self.name}"):
            body = self.client.get_object(Bucket=self.name, Key=key)["Body"]
            try:
                yield from body.iter_chunks(READ_CHUNK)
            finally:
                body.close()

    def head(self, key: str) -> Head:
        """Length, class, lock and the state of a retrieval. Raises NotFound."""
        with speaking(f"look at {key} in bucket {self.name}"):
            answer = self.client.head_object(Bucket=self.name, Key=key)
        return Head(
            size_bytes=int(answer["ContentLength"]),
            modified=answer["LastModified"],
            version_id=answer.get("VersionId", ""),
            storage_class=answer.get("StorageClass", "STANDARD"),
            restore=answer.get("Restore", ""),
            retain_until=answer.get("ObjectLockRetainUntilDate"),
            legal_hold=answer.get("ObjectLockLegalHoldStatus") == "ON",
        )

    def items(self, prefix: str) -> Iterator[Item]:
        """All objects below a prefix, in key order."""
        with speaking(f"list {prefix} in bucket {self.name}"):
            for page in self.client.get_paginator("list_objects_v2").paginate(Bucket=self.name, Prefix=prefix):
                for item in page.get("Contents", []):
                    yield Item(item["Key"], item["Size"], item["LastModified"])

    def keys(self, prefix: str) -> Iterator[str]:
        """All keys below a prefix, in order."""
        return (item.key for item in self.items(prefix))

    def versions(self, prefix: str) -> Iterator[Version]:
        """All versions and delete markers below a prefix; of one key the latest comes first."""
        with speaking(f"list versions below {prefix} in bucket {self.name}"):
            for page in self.client.get_paginator("list_object_versions").paginate(Bucket=self.name, Prefix=prefix):
                found = [
                    Version(v["Key"], v["VersionId"], v["IsLatest"], False, v["LastModified"], v["Size"])
                    for v in page.get("Versions", [])
                ] + [
                    Version(m["Key"], m["VersionId"], m["IsLatest"], True, m["LastModified"], 0)
                    for m in page.get("DeleteMarkers", [])
                ]
                yield from sorted(found, key=lambda one: (one.key, not one.latest, -one.modified.timestamp()))

    def abort_uploads(self, prefix: str) -> int:
        """Abort unfinished multipart uploads below a prefix; how many. For the holder of its lease only."""
        aborted = 0
        with speaking(f"abort unfinished uploads below {prefix} in bucket {self.name}"):
            for page in self.client.get_paginator("list_multipart_uploads").paginate(Bucket=self.name, Prefix=prefix):
                for item in page.get("Uploads", []):
                    self.client.abort_multipart_upload(Bucket=self.name, Key=item["Key"], UploadId=item["UploadId"])
                    aborted += 1
        return aborted

    def server_time(self) -> datetime:
        """The store's own clock (Date header), UTC."""
        with speaking(f"reach bucket {self.name}"):
            headers = self.client.head_bucket(Bucket=self.name)["ResponseMetadata"]["HTTPHeaders"]
        return parsedate_to_datetime(headers["date"]).astimezone(UTC)


def _md5(body: bytes | bytearray) -> str:
    """Content-MD5: a bucket with a default retention of Object Lock takes no write without it."""
    return base64.b64encode(hashlib.md5(body, usedforsecurity=False).digest()).decode()


class MultipartWriter:
    """A file-like writer that uploads while it is written to; nothing is visible before `complete()`.

    Leaving the block without `complete()` aborts the upload. Raises StoreUnavailable, StoreRefused from `write`
    or `complete`, whichever comes first after a part failed.
    """

    def __init__(self, bucket: Bucket, key: str, **extra: Any) -> None:
        self._bucket, self._key, self._extra = bucket, key, extra
        self._upload_id = ""
        self._buffer = bytearray()
        self._in_flight: deque[Future[str]] = deque()
        self._etags: list[str] = []
        self._sent = 0
        self._pool = ThreadPoolExecutor(max_workers=2, thread_name_prefix="upload")
        self._completed = False

    def __enter__(self) -> Self:
        with speaking(f"start the upload of {self._key} to bucket {self._bucket.name}"):
            answer = self._bucket.client.create_multipart_upload(Bucket=self._bucket.name, Key=self._key, **self._extra)
        self._upload_id = answer["UploadId"]
        return self

    def write(self, data: bytes) -> int:
        """Take bytes; blocks while the allowed parts are in flight."""
        self._buffer += data
        if len(self._buffer) >= self._part_size():
            self._send()
        return len(data)

    def flush(self) -> None:
        """Parts leave when they are full; nothing to do."""

    def complete(self) -> None:
        """Send the rest and make the object appear."""
        if self._buffer or not self._sent:
            self._send()
        self._wait(0)
        with speaking(f"complete the upload of {self._key}"):
            self._bucket.client.complete_multipart_upload(
                Bucket=self._bucket.name,
                Key=self._key,
                UploadId=self._upload_id,
                MultipartUpload={"Parts": [{"PartNumber": n, "ETag": etag} for n, etag in enumerate(self._etags, 1)]},
            )
        self._completed = True

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._pool.shutdown(wait=True, cancel_futures=True)
        if not self._completed and self._upload_id:
            try:
                with speaking(f"abort the upload of {self._key}"):
                    self._bucket.client.abort_multipart_upload(
                        Bucket=self._bucket.name, Key=self._key, UploadId=self._upload_id
                    )
            except (StoreUnavailable, StoreRefused, NotFound):
                # The store that failed us cannot be told now; the next holder of the lease aborts it.
                if error is None:
                    raise

    def _part_size(self) -> int:
        number = self._sent
        for count, part in PART_PLAN:
            if number < count:
                return part
            number -= count
        raise StoreRefused(
            f"{self._key} is too large for one object",
            expected=f"at most {LARGEST_OBJECT_BYTES // 10**9} GB after compression",
            found="more",
            remedy="this database has outgrown a logical dump; move to a physical backup engine (docs/adr)",
        )

    def _send(self) -> None:
        self._wait(min(2, _BUFFER_BUDGET // self._part_size() - 1) - 1)
        self._sent += 1
        body, self._buffer = self._buffer, bytearray()
        self._in_flight.append(self._pool.submit(self._upload, self._sent, body))

    def _wait(self, in_flight: int) -> None:
        """Wait until at most this many parts are under way; raise what stopped an earlier one."""
        while len(self._in_flight) > in_flight:
            self._etags.append(self._in_flight.popleft().result())

    def _upload(self, number: int, body: bytearray) -> str:
        with speaking(f"upload part {number} of {self._key}"):
            return self._bucket.client.upload_part(
                Bucket=self._bucket.name,
                Key=self._key,
                UploadId=self._upload_id,
                PartNumber=number,
                Body=body,  # type: ignore[arg-type]  # botocore takes a bytearray; bytes would be a copy
                ContentMD5=_md5(body),
            )["ETag"]
