"""Ed25519 signatures over canonical JSON (RFC 8032 keys as PEM files that openssl makes and reads).

A signed document is `{"document": {...}, "signature": {"algorithm", "key", "value"}}`; `key` is the raw public
key in base64, so that a reader can check it against the list of trusted keys and with stock tools.
"""

import base64
from pathlib import Path
from typing import Any

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from payme_ops.foundation import secret
from payme_ops.foundation.errors import SettingsError, Untrusted
from payme_ops.foundation.evidence import canonical

_ALGORITHM = "ed25519"


def load_private_key(path: Path | None, variable: str = "PAYME_OPS__BACKUP__SIGNING_KEY_FILE") -> Ed25519PrivateKey:
    """The key in a PEM file, or in the secret whose ARN `path` is.

    Raises SettingsError naming the variable when it is missing or of another kind, and what `secret.find` raises.
    """
    remedy = "make one with: openssl genpkey -algorithm ed25519 -out FILE (docs/keys.md)"
    pem = secret.find(path)
    if path is None or pem is None:
        raise SettingsError(
            "no signing key",
            expected=f"{variable} to name a readable file",
            found="no such file" if path else "the variable is not set",
            remedy=remedy,
        )
    try:
        key = load_pem_private_key(pem, password=None)
    except (ValueError, TypeError):
        raise SettingsError(
            f"{path.name} is not a signing key", expected="an unencrypted PEM key", remedy=remedy
        ) from None
    if not isinstance(key, Ed25519PrivateKey):
        raise SettingsError(
            f"{path.name} is not a signing key",
            expected="an Ed25519 key",
            found=type(key).__name__,
            remedy=remedy,
        )
    return key


def public_key(key: Ed25519PrivateKey) -> str:
    """Raw public key, base64: the form of PAYME_OPS__BACKUP__TRUSTED_KEYS."""
    return _encoded(key.public_key().public_bytes_raw())


def sign(document: dict[str, Any], key: Ed25519PrivateKey) -> dict[str, Any]:
    """The document with its signature."""
    value = _encoded(key.sign(canonical(document)))
    return {
        "document": document,
        "signature": {"algorithm": _ALGORITHM, "key": public_key(key), "value": value},
    }


def _encoded(raw: bytes) -> str:
    return base64.b64encode(raw).decode()


def verify(signed: Any, trusted_keys: list[str], variable: str = "PAYME_OPS__BACKUP__TRUSTED_KEYS") -> dict[str, Any]:
    """The document, when one of the trusted keys (of that setting) signed exactly it. Raises Untrusted."""
    remedy = "do not use it; find out who wrote it (docs/keys.md, 'a manifest is UNTRUSTED')"
    try:
        document, signature = signed["document"], signed["signature"]
        algorithm, key, value = signature["algorithm"], signature["key"], base64.b64decode(signature["value"])
        # The last character of base64 has bits that count for nothing: only the form that `sign` writes is taken.
        if not isinstance(document, dict) or algorithm != _ALGORITHM or _encoded(value) != signature["value"]:
            raise ValueError
    except (KeyError, TypeError, ValueError):
        raise Untrusted("the document is not signed", expected="an Ed25519 signature", remedy=remedy) from None
    if key not in trusted_keys:
        raise Untrusted(
            "the document is signed by a key that is not trusted",
            expected=f"one of {variable}",
            found=str(key)[:44],
            remedy=remedy,
        )
    try:
        Ed25519PublicKey.from_public_bytes(base64.b64decode(key)).verify(value, canonical(document))
    except (InvalidSignature, ValueError):
        raise Untrusted(
            "the signature does not match the document", expected="an unchanged document", remedy=remedy
        ) from None
    return document
