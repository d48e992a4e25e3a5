"""The ciphertext and the blind index, as docs/phone-encryption.md gives them to the application.

    v1:<key id>:<base64url without padding of nonce (12) | ciphertext | tag (16)>

AES-256-GCM (NIST SP 800-38D) with a random nonce, so a key is good for 2^32 encryptions; the associated data binds a
value to its row. The blind index is HMAC-SHA-256 under a key derived from the same one by HKDF (RFC 5869): equal
numbers have equal indexes, however they are written.
"""

import os
import re
from base64 import urlsafe_b64decode, urlsafe_b64encode
from binascii import Error as NotBase64
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.hmac import HMAC
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from payme_ops.foundation.errors import IntegrityError, KeyRejected
from payme_ops.foundation.secret import find as find_secret
from payme_ops.migration.names import Names

KEY_VARIABLE = "ENCRYPTION_KEY"
VERSION = "v1"
NONCE_BYTES, _TAG_BYTES = 12, 16
_HEX_KEY = re.compile(r"[0-9a-f]{64}")
_STORED = re.compile(rf"{VERSION}:([a-z0-9]{{1,16}}):([A-Za-z0-9_-]+)")
_PUNCTUATION = str.maketrans("", "", " \t-().")  # named one by one: Python's and JavaScript's \s differ
_NATIONAL, _WITHOUT_PLUS, _WITH_00 = (
    re.compile(r"0([1-9][0-9]{8})"),
    re.compile(r"254([1-9][0-9]{8})"),
    re.compile(r"00([1-9][0-9]{7,14})"),
)


class Undecryptable(IntegrityError):
    """A stored value that its row's associated data and our key do not open. Never says what it is."""


@dataclass(frozen=True)
class Keys:
    """The key of the ciphertexts, its id, and the key of the blind index that follows from it."""

    key_id: str
    aead: AESGCM = field(repr=False)
    index_key: bytes = field(repr=False)
    secret: bytes = field(repr=False)  # what both are made of

    @cached_property
    def index_mac(self) -> HMAC:
        """The blind index's HMAC with its key and no text yet. A copy of it takes a third of the time of a new one."""
        return HMAC(self.index_key, SHA256())


def derive(secret: bytes, *, key_id: str, names: Names) -> Keys:
    """The keys that follow from the application's."""
    info = f"{names.context}.{names.plaintext}.blind-index.{VERSION}".encode()
    return Keys(key_id, AESGCM(secret), HKDF(SHA256(), 32, salt=None, info=info).derive(secret), secret)


def load_keys(environment: Mapping[str, str], *, key_id: str, names: Names) -> Keys:
    """The keys of ENCRYPTION_KEY, 64 lower-case hex digits, or the ARN of the secret or the file that holds them.

    Raises what `secret.find` raises, and KeyRejected for anything else (Node's hex decoder would cut it short in
    silence), for a key that is a pattern, and for one that another secret of the same environment is, too.
    """
    given = environment.get(KEY_VARIABLE, "")
    if given.startswith(("arn:", "/")):
        given = (find_secret(Path(given)) or b"").decode(errors="replace").strip()
    if not _HEX_KEY.fullmatch(given):
        raise KeyRejected(
            f"{KEY_VARIABLE} cannot be used",
            expected="64 lower-case hexadecimal digits (32 bytes)",
            found=f"{len(given)} characters" if given else "none",
            remedy="give migration workers the application's own key, for example from `openssl rand -hex 32`",
        )
    repeats = given in (given + given)[1:-1]  # deadbeef eight times, 64 zeros
    if repeats or len(set(given)) < 4:
        raise KeyRejected(f"{KEY_VARIABLE} is no random key", expected="32 random bytes", found="a pattern")
    reused = sorted(
        name for name, value in environment.items() if value.strip().lower() == given and name != KEY_VARIABLE
    )
    if reused:
        raise KeyRejected(
            f"{KEY_VARIABLE} is used for something else, too",
            expected="a key of its own: the blind index's key is derived from it",
            found=f"the same value in {', '.join(reused)}",
            remedy="make another secret for that",
        )
    return derive(bytes.fromhex(given), key_id=key_id, names=names)


def encrypt(keys: Keys, associated_data: bytes, text: str) -> str:
    """The stored form of a text, which may be empty; another one each time."""
    nonce = os.urandom(NONCE_BYTES)
    sealed = nonce + keys.aead.encrypt(nonce, _utf8(text), associated_data)
    return f"{VERSION}:{keys.key_id}:{_base64url(sealed)}"


def parse(stored: str) -> tuple[str, bytes]:
    """Key id, and what was sealed. Raises Undecryptable when the value is malformed."""
    found = _STORED.fullmatch(stored)
    if found is None:
        raise Undecryptable("a stored value is malformed", expected=f"{VERSION}:<key id>:<base64url>")
    try:
        sealed = urlsafe_b64decode(found[2] + "=" * (-len(found[2]) % 4))
    except NotBase64:
        raise Undecryptable("a stored value is malformed", expected="base64url") from None
    if _base64url(sealed) != found[2]:  # decoders ignore the last character's spare bits: a change would go unseen
        raise Undecryptable("a stored value is malformed", expected="base64url with no bit set after the last byte")
    if len(sealed) < NONCE_BYTES + _TAG_BYTES:
        raise Undecryptable("a stored value is malformed", expected="nonce and tag", found=f"{len(sealed)} bytes")
    return found[1], sealed


def decrypt(keys: Keys, associated_data: bytes, stored: str) -> str:
    """The text. Raises Undecryptable: malformed, another key id, or not sealed by this key for this row."""
    key_id, sealed = parse(stored)
    if key_id != keys.key_id:
        raise Undecryptable(
            "a stored value is of another key", expected=f"key id {keys.key_id}", found=f"key id {key_id}"
        )
    try:
        return keys.aead.decrypt(sealed[:NONCE_BYTES], sealed[NONCE_BYTES:], associated_data).decode()
    except InvalidTag:
        raise Undecryptable(
            "a stored value does not open", expected="one sealed by this key for this row", found="another, or changed"
        ) from None
    except UnicodeDecodeError:  # its own text would show what was decrypted
        raise Undecryptable("a stored value is no text", expected="UTF-8") from None


def blind_index(keys: Keys, text: str) -> bytes:
    """32 bytes, equal for equal numbers."""
    mac = keys.index_mac.copy()
    mac.update(_utf8(normalise(text)))
    return mac.finalize()


def normalise(text: str) -> str:
    """One spelling of a number for the blind index: E.164 where it is one, else the text without punctuation.

    Kenyan numbers may come as 0…, 254… or 00254…; the rules are in docs/phone-encryption.md, too.
    """
    if text[:1] == "+" and text[1:].isdigit():  # most are: nothing below changes them
        return text
    plain = text.translate(_PUNCTUATION)
    for pattern, prefix in ((_NATIONAL, "+254"), (_WITHOUT_PLUS, "+254"), (_WITH_00, "+")):
        if found := pattern.fullmatch(plain):
            return prefix + found[1]
    return plain


def _base64url(data: bytes) -> str:
    return urlsafe_b64encode(data).rstrip(b"=").decode()


def _utf8(text: str) -> bytes:
    try:
        return text.encode()
    except UnicodeEncodeError:  # it holds the text; and PostgreSQL has no such text
        raise ValueError("half a surrogate pair is no text") from None
