"""Whether a bucket's lifecycle rules leave backups alone: which one may go is decided with evidence, not by age."""

from collections.abc import Mapping
from typing import Any

from payme_ops.foundation.errors import NotFound
from payme_ops.foundation.evidence import Finding, failed, passed
from payme_ops.foundation.objectstore import Bucket, speaking


def examine(bucket: Bucket) -> Finding:
    """Rules may abort uploads and expire or move old versions, never what counts now. Raises StoreUnavailable,
    StoreRefused.
    """
    try:
        with speaking(f"read the lifecycle rules of bucket {bucket.name}"):
            rules = bucket.client.get_bucket_lifecycle_configuration(Bucket=bucket.name).get("Rules", [])
    except NotFound:
        return passed({"rules": 0})
    harm = [f"{_name(rule)} {what}" for rule in rules if rule["Status"] == "Enabled" for what in _harm(rule)]
    if harm:
        return failed(
            {"rules": harm},
            "take them out of the bucket: rules are for aborted uploads and old versions only (docs/first-run.md)",
        )
    return passed({"rules": len(rules)})


def _harm(rule: Mapping[str, Any]) -> list[str]:
    expiration = rule.get("Expiration") or {}  # that of a lone delete marker takes no object away
    found = ["expires objects"] if expiration.get("Days") or expiration.get("Date") else []
    return found + (["moves objects to another class"] if rule.get("Transitions") else [])


def _name(rule: Mapping[str, Any]) -> str:
    return str(rule.get("ID") or "a rule without a name")
