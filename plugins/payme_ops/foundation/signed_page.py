"""A page of HTML that proves itself: its parts are named, and their digests are signed at its end.

So what was changed can be named, whatever bytes are left of it, and a page verifies with every later release, however
pages look by then. Text that is not the page's own is escaped in it: the mark of the signature can stand there once.
"""

import hashlib
import html
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from payme_ops.foundation import signing
from payme_ops.foundation.errors import RecordInvalid, Untrusted
from payme_ops.foundation.evidence import canonical

_FORMAT, _VERSION = "payme-ops/page", 1
_OPEN = b'<details><summary>The signature of this page</summary>\n<pre id="signature">'
_CLOSE = b"</pre>\n</details>\n</body></html>\n"


@dataclass(frozen=True)
class Part:
    """Some of a page's HTML, under the name by which people are told that it was changed."""

    name: str
    text: str


def sign(parts: Sequence[Part], key: Ed25519PrivateKey) -> bytes:
    """The page of these parts, with its signature as the last thing in its body."""
    listed = [[part.name, len(part.text.encode()), _digest(part.text.encode())] for part in parts]
    signed = signing.sign({"format": _FORMAT, "version": _VERSION, "parts": listed}, key)
    return "".join(part.text for part in parts).encode() + _signature(signed)


def is_page(body: bytes) -> bool:
    """Whether it is meant to be a page, of these or of the ones before them; no JSON can be taken for one."""
    return _OPEN in body or body.lstrip()[:1] == b"<"


def verify(page: bytes, trusted_keys: list[str], variable: str) -> list[Part]:
    """The parts of a page, each as it was signed. Raises Untrusted naming the first one that was changed; RecordInvalid
    when it has no signature.
    """
    text, signed = _split(page)
    document = signing.verify(signed, trusted_keys, variable)
    if document.get("format") != _FORMAT or document.get("version") != _VERSION:
        raise RecordInvalid("the signature at the page's end is none of a page", expected=f"{_FORMAT} {_VERSION}")
    parts, offset = [], 0
    for name, length, told in document["parts"]:
        piece = text[offset : offset + length]
        if _digest(piece) != told:
            raise changed(name)
        parts.append(Part(name, piece.decode()))
        offset += length
    written = {name: signed["signature"][name] for name in ("algorithm", "key", "value")}
    if offset != len(text) or text + _signature({"document": document, "signature": written}) != page:
        raise changed("its signature")
    return parts


def changed(where: str) -> Untrusted:
    """The error for a page whose part of that name is not what was signed."""
    return Untrusted(
        f"the page was changed in {where}",
        expected="what was signed",
        found="something else",
        remedy="do not rely on it: ask for it again where it was kept, and find out who had this copy",
    )


def _split(page: bytes) -> tuple[bytes, Any]:
    """The signed bytes, and the signature as it is told. Raises RecordInvalid."""
    head, mark, told = page.rpartition(_OPEN)
    if not mark:
        raise RecordInvalid(
            "the page has no signature at its end",
            expected="the signed digests of its parts",
            found="a page of an earlier version, a view that was never signed, or one whose end was changed",
            remedy="verify the .json file that lies beside it where it was kept",
        )
    try:
        return head, json.loads(html.unescape(told.removesuffix(_CLOSE).decode()))
    except ValueError:
        raise changed("its signature") from None


def _signature(signed: dict[str, Any]) -> bytes:
    return _OPEN + html.escape(canonical(signed).decode()).encode() + _CLOSE


def _digest(piece: bytes) -> str:
    return hashlib.sha256(piece).hexdigest()
