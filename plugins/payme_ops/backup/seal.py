"""Sealing: a byte stream becomes age ciphertext (X25519 recipients), with its length and SHA-256, in one pass.

The writer needs public keys only. A person with an identity opens it with `age -d`; nothing of ours is needed.
"""

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Protocol

import pyrage

from payme_ops.foundation.errors import IntegrityError, SettingsError

FORMAT = "age-encryption.org/v1"


class Writer(Protocol):
    """Anything with `write(bytes)`."""

    def write(self, data: bytes, /) -> int | None:
        """Take all of `data`."""


class DigestWriter:
    """Counts and hashes what passes through to `target`."""

    def __init__(self, target: Writer) -> None:
        self._target = target
        self._sha256 = hashlib.sha256()
        self.size_bytes = 0

    def write(self, data: bytes) -> int:
        """Pass `data` on."""
        self._sha256.update(data)
        self.size_bytes += len(data)
        self._target.write(data)
        return len(data)

    def flush(self) -> None:
        """Nothing is held back here."""

    @property
    def sha256(self) -> str:
        """Hex digest of everything written so far."""
        return self._sha256.hexdigest()


def parse_recipient(name: str, text: str) -> pyrage.x25519.Recipient:
    """An X25519 recipient. Raises SettingsError naming which one does not parse."""
    try:
        return pyrage.x25519.Recipient.from_str(text)
    except pyrage.RecipientError:
        raise SettingsError(
            f"the {name} recipient does not parse",
            expected="an age X25519 recipient (age1 and 58 characters)",
            found=f"{len(text)} characters beginning {text[:4]!r}",
            remedy=f"copy it again from the public half of the {name} key (docs/keys.md)",
        ) from None


def parse_identity(text: str) -> pyrage.x25519.Identity:
    """The first identity of an age identity file's text. Raises SettingsError; its text is never shown."""
    lines = [line.strip() for line in text.splitlines() if line.strip() and not line.startswith("#")]
    try:
        return pyrage.x25519.Identity.from_str(lines[0])
    except (IndexError, pyrage.IdentityError):
        raise SettingsError(
            "the identity file holds no usable key",
            expected="a line that begins with AGE-SECRET-KEY",
            found=f"{len(lines)} other line(s)",
            remedy="point PAYME_OPS__BACKUP__IDENTITY_FILE at the drill or recovery identity (docs/keys.md)",
        ) from None


def seal(chunks: Iterator[bytes], target: Writer, recipients: dict[str, str]) -> None:
    """Encrypt everything `chunks` yields into `target`. What chunks or target raise comes out as it was raised."""
    keys = [parse_recipient(name, text) for name, text in recipients.items()]
    source, sink = _Source(chunks), _Sink(target.write)
    try:
        pyrage.encrypt_io(source, sink, keys)
    except pyrage.EncryptError as error:
        raise source.error or sink.error or IntegrityError("encryption failed", found=str(error)[:120]) from None
    if sink.error:  # pyrage swallows what its very last write raises
        raise sink.error


def unseal(chunks: Iterator[bytes], target: Writer, identity: pyrage.x25519.Identity) -> None:
    """Decrypt into `target`. Raises IntegrityError when the key is another's or any byte was changed or cut off."""
    source, sink = _Source(chunks), _Sink(target.write)
    try:
        pyrage.decrypt_io(source, sink, [identity])
    except (pyrage.DecryptError, OSError) as error:  # OSError: damage behind the header
        raise (
            source.error
            or sink.error
            or IntegrityError(
                "the archive cannot be opened",
                expected="bytes sealed to this identity, whole and unchanged",
                found=str(error)[:120],
                remedy="check that the identity is this backup's drill or recovery key; if so, the object was damaged",
            )
        ) from None
    if sink.error:
        raise sink.error


@dataclass
class _Source:
    """File-like reader over chunks; pyrage asks for 8 KiB at a time and turns errors into text, so keep them."""

    chunks: Iterator[bytes]
    error: BaseException | None = None
    _rest: memoryview = field(default_factory=lambda: memoryview(b""))

    def read(self, count: int = -1) -> bytes:
        if not self._rest:
            try:
                self._rest = memoryview(next(self.chunks, b""))
            except BaseException as error:  # SystemExit too
                self.error = error
                raise
        if count < 0:
            count = len(self._rest)
        taken, self._rest = self._rest[:count], self._rest[count:]
        return bytes(taken)


@dataclass
class _Sink:
    """File-like writer that keeps the error."""

    target: Callable[[bytes], int | None]
    error: BaseException | None = None

    def write(self, data: bytes) -> int:
        try:
            self.target(data)
        except BaseException as error:  # SystemExit too
            self.error = error
            raise
        return len(data)

    def flush(self) -> None:
        """Nothing is held back here."""
