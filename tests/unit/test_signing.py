"""Signatures: exactly this document, by one of these keys, or it counts for nothing."""

import base64
import copy
import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
)
from hypothesis import given
from hypothesis import strategies as st

from payme_ops.foundation.errors import SettingsError, Untrusted
from payme_ops.foundation.evidence import canonical
from payme_ops.foundation.signing import load_private_key, public_key, sign, verify

KEY, OTHER = Ed25519PrivateKey.generate(), Ed25519PrivateKey.generate()
TRUSTED = [public_key(OTHER), public_key(KEY)]
DOCUMENT = {"database": "payme", "rows": 20937, "name": "Nyong'o ≠ Nyongo", "nested": [{"a": None}, True, 1.5]}
JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**53), 2**53)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=10,
)


def pem(key: Any, encryption: Any = None) -> bytes:
    made: bytes = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, encryption or NoEncryption())
    return made


@given(st.dictionaries(st.text(), JSON, max_size=4))
def test_what_was_signed_is_what_comes_back_through_json(document: dict[str, Any]) -> None:
    assert verify(json.loads(json.dumps(sign(document, KEY))), TRUSTED) == document


def test_layout_and_order_of_the_file_do_not_matter() -> None:
    signed = json.loads(json.dumps(sign(DOCUMENT, KEY), indent=4, sort_keys=True, ensure_ascii=True))
    assert verify(signed, TRUSTED) == DOCUMENT


def test_any_flipped_bit_of_document_or_signature_is_found() -> None:
    good = canonical(sign(DOCUMENT, KEY))
    for place in range(len(good)):
        for bit in (1, 32):
            bad = bytearray(good)
            bad[place] ^= bit
            try:
                signed = json.loads(bad)
            except ValueError:
                continue
            if signed == json.loads(good):  # the case of an exponent, or the like
                continue
            with pytest.raises(Untrusted):
                verify(signed, TRUSTED)


def test_a_signature_has_one_form() -> None:
    value = SIGNED["signature"]["value"]
    same = value[:-3] + chr(ord(value[-3]) + 1) + value[-2:]
    assert base64.b64decode(same) == base64.b64decode(value)  # or the test below shows nothing
    with pytest.raises(Untrusted):
        verify({**SIGNED, "signature": {**SIGNED["signature"], "value": same}}, TRUSTED)


def test_another_key_is_named() -> None:
    with pytest.raises(Untrusted, match="not trusted") as caught:
        verify(sign(DOCUMENT, KEY), [public_key(OTHER)])
    assert public_key(KEY) in caught.value.found


def test_a_trusted_name_on_anothers_signature_is_refused() -> None:
    signed = sign(DOCUMENT, KEY)
    signed["signature"]["key"] = public_key(OTHER)
    with pytest.raises(Untrusted, match="does not match"):
        verify(signed, TRUSTED)


def test_no_trusted_key_trusts_nothing() -> None:
    with pytest.raises(Untrusted):
        verify(sign(DOCUMENT, KEY), [])


SIGNED = sign(DOCUMENT, KEY)


@pytest.mark.parametrize(
    "unsigned",
    [
        DOCUMENT,
        {"document": DOCUMENT},
        {"document": DOCUMENT, "signature": None},
        {"document": DOCUMENT, "signature": {}},
        {**SIGNED, "document": [1]},
        {**SIGNED, "signature": {**SIGNED["signature"], "algorithm": "none"}},
        {**SIGNED, "signature": {**SIGNED["signature"], "value": ""}},
        {**SIGNED, "signature": {**SIGNED["signature"], "value": 7}},
        {**SIGNED, "signature": {**SIGNED["signature"], "value": "not base64"}},
        {**SIGNED, "signature": {**SIGNED["signature"], "key": ["a"]}},
        {**SIGNED, "document": {"x": float("nan")}},
        {**SIGNED, "document": {"x": "\ud800"}},
        [],
        None,
        "text",
        7,
    ],
)
def test_unsigned_and_malformed_is_untrusted(unsigned: Any) -> None:
    with pytest.raises(Untrusted) as caught:
        verify(copy.deepcopy(unsigned), TRUSTED)
    assert caught.value.remedy


def test_a_key_that_openssl_made_is_read_and_its_signature_is_checked_by_openssl(tmp_path: Path) -> None:
    """What the error texts tell people to do, and the promise that a reader needs stock tools only."""
    private, public = tmp_path / "signing.pem", tmp_path / "public.pem"
    subprocess.run(["openssl", "genpkey", "-algorithm", "ed25519", "-out", private], check=True)
    subprocess.run(["openssl", "pkey", "-in", private, "-pubout", "-out", public], check=True)
    signed = sign(DOCUMENT, load_private_key(private))
    (tmp_path / "document").write_bytes(canonical(DOCUMENT))
    (tmp_path / "value").write_bytes(base64.b64decode(signed["signature"]["value"]))
    command: list[str | Path] = ["openssl", "pkeyutl", "-verify", "-pubin", "-inkey", public, "-rawin"]
    subprocess.run(
        [*command, "-in", tmp_path / "document", "-sigfile", tmp_path / "value"], check=True, capture_output=True
    )


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (None, "no such file"),
        (b"", "not a signing key"),
        (b"-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n", "not a signing key"),
        (pem(KEY, BestAvailableEncryption(b"secret")), "unencrypted"),
        (pem(rsa.generate_private_key(65537, 2048)), "RSAPrivateKey"),
    ],
)
def test_a_file_that_is_no_signing_key(tmp_path: Path, content: bytes | None, says: str) -> None:
    path = tmp_path / "signing.pem"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(SettingsError, match=says) as caught:
        load_private_key(path)
    assert "openssl genpkey" in caught.value.remedy


def test_no_file_named_at_all() -> None:
    with pytest.raises(SettingsError, match=r"PAYME_OPS__BACKUP__SIGNING_KEY_FILE.*not set"):
        load_private_key(None)
