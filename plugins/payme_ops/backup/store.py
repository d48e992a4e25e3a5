"""Store, read back, commit: nothing counts before the signed manifest is there, and that is written last."""

import hashlib
import json
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from payme_ops.backup.manifest import Manifest, ReadBack, SealedObject, document
from payme_ops.backup.seal import DigestWriter, seal
from payme_ops.foundation.clock import utc_now
from payme_ops.foundation.errors import AlreadyExists, HashMismatch
from payme_ops.foundation.evidence import canonical
from payme_ops.foundation.objectstore import Bucket, MultipartWriter
from payme_ops.foundation.progress import Progress, Report
from payme_ops.foundation.signing import sign


@dataclass(frozen=True)
class Placement:
    """Where and how objects are written. `by_bucket`: encrypted by the bucket's default, not by an argument."""

    bucket: Bucket
    storage_class: str
    kms_key_id: str | None
    by_bucket: bool = False  # the other region: a KMS key is of no use outside its own

    def encryption(self) -> dict[str, Any]:
        """Server-side encryption arguments of every write."""
        if self.by_bucket:
            return {}
        if self.kms_key_id:
            return {"ServerSideEncryption": "aws:kms", "SSEKMSKeyId": self.kms_key_id}
        return {"ServerSideEncryption": "AES256"}


def seal_and_store(
    chunks: Iterator[bytes],
    placement: Placement,
    key: str,
    recipients: dict[str, str],
    *,
    expected_bytes: int | None,
    report: Report,
) -> SealedObject:
    """Encrypt and upload in one pass. The object appears only when `chunks` ended without an error.

    `expected_bytes` (the size of the one before) is for the progress report only.
    """
    extra = {**placement.encryption(), "StorageClass": placement.storage_class}
    with MultipartWriter(placement.bucket, key, **extra) as upload:
        digest = DigestWriter(upload)
        progress = Progress(f"store {key.rsplit('/', 1)[-1]}", total=expected_bytes, report=report)
        seal(_counted(chunks, progress), digest, recipients)
        upload.complete()
    progress.finish()
    return SealedObject(key=key, size_bytes=digest.size_bytes, sha256=digest.sha256)


def read_back(bucket: Bucket, stored: SealedObject, *, report: Report) -> ReadBack:
    """Read every byte from the store and compare length and SHA-256 with those from before the upload.

    Raises HashMismatch naming expected and found.
    """
    start = time.monotonic()
    progress = Progress(f"read back {stored.key.rsplit('/', 1)[-1]}", total=stored.size_bytes, report=report)
    deque(checked(bucket, stored, progress), maxlen=0)
    progress.finish()
    return ReadBack(at=utc_now(), milliseconds=round((time.monotonic() - start) * 1000))


def checked(bucket: Bucket, stored: SealedObject, progress: Progress) -> Iterator[bytes]:
    """The stored object's bytes. Raises HashMismatch instead of ending when they are not what was recorded."""
    sha256, count = hashlib.sha256(), 0
    for chunk in bucket.stream(stored.key):
        sha256.update(chunk)
        count += len(chunk)
        progress.add(len(chunk))
        yield chunk
    if (count, sha256.hexdigest()) != (stored.size_bytes, stored.sha256):
        raise HashMismatch(
            f"{stored.key} is not what was uploaded",
            expected=f"{stored.size_bytes} bytes with sha256 {stored.sha256}",
            found=f"{count} bytes with sha256 {sha256.hexdigest()}",
            remedy="the store damaged or replaced it: keep it for inspection and take a fresh backup",
        )


def commit(placement: Placement, manifest: Manifest, key: Ed25519PrivateKey) -> None:
    """Write the signed manifest, once: from here on the backup exists.

    A second run of the same commit finds its own manifest and is content. Raises AlreadyExists when another's
    manifest is there.
    """
    write_signed(placement, manifest.key, sign(document(manifest), key))


def write_signed(placement: Placement, key: str, signed: dict[str, Any]) -> None:
    """Write a signed document, once; the very same document that is there already is ours, its answer got lost.

    Raises AlreadyExists when it is another.
    """
    body = json.dumps(signed, indent=1, sort_keys=True, ensure_ascii=False).encode()
    try:
        placement.bucket.put_if_absent(key, body, ContentType="application/json", **placement.encryption())
    except AlreadyExists:
        if canonical(json.loads(placement.bucket.get(key))) != canonical(signed):
            raise


def _counted(chunks: Iterator[bytes], progress: Progress) -> Iterator[bytes]:
    for chunk in chunks:
        progress.add(len(chunk))
        yield chunk
