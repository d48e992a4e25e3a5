"""Is a row's ciphertext what it must be? Each row is opened under its own associated data and compared.

The quick way says only "exactly as it must be"; whatever it does not say that of goes the slow way, which names what
is wrong. Values stay bytes and never get into what is answered.
"""

import hmac
from binascii import Error as NotBase64
from binascii import a2b_base64
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.hmac import HMAC

from payme_ops.migration import envelope
from payme_ops.migration.envelope import NONCE_BYTES, VERSION, Keys, Undecryptable
from payme_ops.migration.names import Names

Row = tuple[int, bytes | None, bytes | None, bytes | None]  # key, plaintext, ciphertext, blind index; text as UTF-8

# base64url to base64; base64's own two characters, which do not belong here, to one that is skipped and so missed.
_FROM_URL = bytes.maketrans(b"-_+/", b"+/**")


class Kind(StrEnum):
    """What can be wrong with a row; the first that is."""

    MISSING = "missing"  # a number without ciphertext
    SURPLUS = "surplus"  # a ciphertext without number
    MALFORMED = "malformed"
    UNDECRYPTABLE = "undecryptable"  # changed, of another key, or of another row
    UNBOUND = "legacy_bound"  # opens under user_new: sealed before its id was known
    STALE = "stale"  # opens, and is another number
    INDEX_KEY_REUSED = "index_key_reused"  # the blind index is made with the ciphertexts' own key
    WRONG_INDEX = "wrong_index"


@dataclass(frozen=True)
class Fault:
    """A row by its key, and what is wrong with it."""

    id: int
    kind: Kind


def judge(keys: Keys, names: Names, rows: Sequence[Row], *, compare: bool) -> tuple[list[bytes | None], list[Fault]]:
    """The numbers of the rows, and what is wrong with which.

    `compare`: the plaintext column is what the ciphertext is compared with. Otherwise (nobody writes it any more, or
    it is gone) a ciphertext has to open and to fit its blind index; the number is what was decrypted.
    """
    values: list[bytes | None] = []
    faults: list[Fault] = []
    add, right, associated_data = values.append, _right(keys), names.associated_data
    for row in rows:
        key, plaintext, stored, index = row
        number = plaintext
        try:
            opened = right(stored, associated_data(key), index) if stored is not None else None
        except (NotBase64, InvalidTag, ValueError):
            opened = None
        if not compare:
            number = opened
        if opened is None or opened != number:
            kind = _wrong(keys, names, row, compare=compare)
            if kind is not None:
                faults.append(Fault(key, kind))
        add(number)
    return values, faults


def _right(keys: Keys) -> Callable[[bytes, bytes, bytes | None], bytes | None]:
    """A function of ciphertext, associated data and blind index: what it decrypts to, None unless all is right."""
    prefix, decrypt = f"{VERSION}:{keys.key_id}:".encode(), keys.aead.decrypt
    begin, fresh = len(prefix), HMAC(keys.index_key, SHA256())

    def right(stored: bytes, associated_data: bytes, index: bytes | None) -> bytes | None:
        encoded = stored[begin:].translate(_FROM_URL)
        sealed = a2b_base64(encoded + b"==")
        # What is no base64 is skipped, and shows in the length.
        if not stored.startswith(prefix) or len(encoded) != (4 * len(sealed) + 2) // 3:
            return None
        text = decrypt(sealed[:NONCE_BYTES], sealed[NONCE_BYTES:], associated_data)
        # Digits after a plus sign, what nearly every number is, are normal as they are.
        normal = text if text[:1] == b"+" and text[1:].isdigit() else envelope.normalise(text.decode()).encode()
        made = fresh.copy()
        made.update(normal)
        return text if made.finalize() == index else None

    return right


def _wrong(keys: Keys, names: Names, row: Row, *, compare: bool) -> Kind | None:
    key, plaintext, stored, index = row
    if stored is None:
        if compare and plaintext is not None:
            return Kind.MISSING
        return None if index is None else Kind.WRONG_INDEX
    if compare and plaintext is None:
        return Kind.SURPLUS
    try:
        key_id, sealed = envelope.parse(stored.decode())
    except Undecryptable:
        return Kind.MALFORMED
    text = open_as(keys, sealed, names.associated_data(key)) if key_id == keys.key_id else None
    if text is None:
        unbound = key_id == keys.key_id and open_as(keys, sealed, names.unbound_associated_data) is not None
        return Kind.UNBOUND if unbound else Kind.UNDECRYPTABLE
    if compare and text.encode() != plaintext:
        return Kind.STALE
    return _wrong_index(keys, text, index)


def open_as(keys: Keys, sealed: bytes, associated_data: bytes) -> str | None:
    """The text, None when it does not open under this associated data."""
    try:
        return keys.aead.decrypt(sealed[:NONCE_BYTES], sealed[NONCE_BYTES:], associated_data).decode()
    except (InvalidTag, UnicodeDecodeError):
        return None


def _wrong_index(keys: Keys, text: str, index: bytes | None) -> Kind | None:
    if index == envelope.blind_index(keys, text):
        return None
    reused = hmac.digest(keys.secret, envelope.normalise(text).encode(), "sha256")
    return Kind.INDEX_KEY_REUSED if index == reused else Kind.WRONG_INDEX
