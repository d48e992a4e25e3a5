"""Whether the KMS key of the settings can encrypt backups, and who writes them may use it.

The use is tried through S3, as backups use it: the policy allows no other way (docs/iam).
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from botocore.exceptions import BotoCoreError, ClientError

from payme_ops.backup.store import Placement
from payme_ops.foundation.errors import StoreRefused, StoreUnavailable
from payme_ops.foundation.evidence import Check, Finding, failed, passed

PROBE_KEY = "payme-ops/probe/kms"
_PROBE = b"payme-ops writes this object to see that it can be encrypted\n"
_AGAIN = {"KMSInternalException", "DependencyTimeoutException", "ThrottlingException", "KeyUnavailableException"}


def checks(client: Callable[[], Any], placement: Placement, region: str) -> tuple[Check, Check]:
    """The key itself, then its use; `client` makes one for KMS in the bucket's `region`."""
    key_id, source = placement.kms_key_id or "", "KMS, connection payme_s3_write"
    return (
        Check("kms_key", "enabled, symmetric, in the bucket's region", source, lambda: _key(client(), key_id, region)),
        Check("kms_use", "what payme_s3_write writes by it can be read", source, lambda: _use(placement)),
    )


def _key(client: Any, key_id: str, region: str) -> Finding:
    variable = "PAYME_OPS__BACKUP__KMS_KEY_ID"
    parts = key_id.split(":")
    if parts[0] == "arn" and len(parts) > 3 and parts[3] != region:  # KMS would be asked in the wrong region
        return failed({"region": parts[3], "bucket": region}, f"name a key of that region in {variable}")
    with _speaking():
        try:
            found = client.describe_key(KeyId=key_id)["KeyMetadata"]
        except client.exceptions.NotFoundException:
            return failed({"key": "missing"}, f"name a key of the bucket's region and account in {variable}")
    measured = {"state": found["KeyState"], "usage": found.get("KeyUsage"), "spec": found.get("KeySpec")}
    if found["KeyState"] == "PendingDeletion":
        return failed(measured, "stop that: `aws kms cancel-key-deletion`, then `aws kms enable-key`; backups need it")
    if found["KeyState"] != "Enabled":
        return failed(measured, "turn it on: `aws kms enable-key`; without it no backup can be written or read")
    if (measured["usage"], measured["spec"]) != ("ENCRYPT_DECRYPT", "SYMMETRIC_DEFAULT"):
        return failed(measured, f"S3 takes symmetric keys only: name another one in {variable}")
    return passed(measured)


def _use(placement: Placement) -> Finding:
    try:
        placement.bucket.put(PROBE_KEY, _PROBE, **placement.encryption())
        same = placement.bucket.get(PROBE_KEY) == _PROBE
    except StoreRefused as error:
        return failed(
            {"refused": error.found},
            "allow kms:GenerateDataKey and kms:Decrypt on it to payme_s3_write, in its policy and the key's (docs/iam)",
        )
    return passed({"read back": "the same"}) if same else failed({"read back": "something else"}, "run it again")


@contextmanager
def _speaking() -> Iterator[None]:
    what = "describe the KMS key"
    try:
        yield
    except ClientError as error:
        code = error.response.get("Error", {}).get("Code", "")
        if code in _AGAIN or int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)) >= 500:
            raise StoreUnavailable(what, found=code, remedy="ask again later") from None
        raise StoreRefused(
            what, found=code, remedy="allow kms:DescribeKey on it to payme_s3_write (docs/iam)"
        ) from None
    except BotoCoreError as error:
        remedy = "see whether AWS can be reached from here"
        raise StoreUnavailable(what, found=type(error).__name__, remedy=remedy) from None
