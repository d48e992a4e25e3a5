"""Ciphertexts and blind indexes: what went in comes out for its own row alone, and no bad key is taken."""

import base64
import json
import re
import secrets
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from payme_ops.foundation.errors import KeyRejected
from payme_ops.migration import envelope
from payme_ops.migration.envelope import Keys, Undecryptable
from payme_ops.migration.names import PHONE_NUMBER, Names

PAGE = Path(__file__).resolve().parents[2] / "docs" / "phone-encryption.md"
SECRET = secrets.token_hex(32)
NUMBER = "+254712345678"


def keys_of(secret: str = SECRET, key_id: str = "k1") -> Keys:
    return envelope.load_keys({"ENCRYPTION_KEY": secret}, key_id=key_id, names=PHONE_NUMBER)


KEYS, ROW, OTHER_ROW = keys_of(), PHONE_NUMBER.associated_data(1), PHONE_NUMBER.associated_data(11)
STORED = envelope.encrypt(KEYS, ROW, NUMBER)
TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=200)


@given(TEXT, st.integers(1, 2**63 - 1))
@example("", 1)
@example("7" * 160, 1)
@example("\ufeff\0\U0001f4de e\u0301 \u202e\u0661\u0662", 1)
@settings(deadline=None)
def test_what_went_in_comes_out_to_the_byte(text: str, key: int) -> None:
    row = PHONE_NUMBER.associated_data(key)
    stored = envelope.encrypt(KEYS, row, text)
    assert re.fullmatch(r"v1:k1:[A-Za-z0-9_-]+", stored)
    assert envelope.decrypt(KEYS, row, stored) == text
    with pytest.raises(Undecryptable):
        envelope.decrypt(KEYS, PHONE_NUMBER.associated_data(key + 1), stored)


@given(TEXT)
@settings(deadline=None, max_examples=20)
def test_no_bit_can_be_flipped(text: str) -> None:
    """In the stored text, where spare bits of the last character could hide, and in what it stands for."""
    stored = envelope.encrypt(KEYS, ROW, text)
    body = stored.split(":")[2]
    sealed = base64.urlsafe_b64decode(body + "==")
    changed = [
        stored[:place] + chr(ord(stored[place]) ^ 1 << bit) + stored[place + 1 :]
        for place in range(len(stored))
        for bit in range(7)
    ]
    for place in range(len(sealed)):
        other = bytearray(sealed)
        other[place] ^= 1 << place % 8
        changed.append("v1:k1:" + base64.urlsafe_b64encode(other).rstrip(b"=").decode())
    for value in changed:
        with pytest.raises(Undecryptable):
            envelope.decrypt(KEYS, ROW, value)


@pytest.mark.parametrize("size", range(4))
def test_no_other_spelling_of_the_same_bytes_opens(size: int) -> None:
    stored = envelope.encrypt(KEYS, ROW, "1" * size)
    characters = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
    opened = []
    for last in characters:
        try:
            opened.append(envelope.decrypt(KEYS, ROW, stored[:-1] + last))
        except Undecryptable:
            continue
    assert opened == ["1" * size]


MALFORMED = {
    "nothing": "",
    "a phone number": NUMBER,
    "no body": "v1:k1:",
    "version": STORED.replace("v1:", "v2:", 1),
    "no key id": STORED.replace("k1:", ":", 1),
    "key id too long": STORED.replace("k1", "k" * 17, 1),
    "key id in capitals": STORED.replace("k1", "K1", 1),
    "a fourth part": f"{STORED}:x",
    "padding": f"{STORED}=",
    "a line's end": f"{STORED}\n",
    "a space before": f" {STORED}",
    "one character of base64": "v1:k1:A",
    "other digits": STORED[:-1] + "٣",
    "nonce only": "v1:k1:" + "A" * 16,
    "a byte short of nonce and tag": "v1:k1:" + "A" * 36,
    "cut short": STORED[:-4],
    "longer": STORED + "AAAA",
    "base64, not base64url": "v1:k1:" + "+/" * 30,
}


@pytest.mark.parametrize("kind", MALFORMED)
def test_what_is_no_stored_value_is_undecryptable_and_not_shown(kind: str) -> None:
    with pytest.raises(Undecryptable) as caught:
        envelope.decrypt(KEYS, ROW, MALFORMED[kind])
    assert NUMBER not in f"{caught.value!r} {caught.value}"


def test_another_row_another_key_and_another_key_id_do_not_open_it() -> None:
    assert envelope.decrypt(KEYS, ROW, STORED) == NUMBER
    agent = Names(context="agent").associated_data(1)
    for data in (OTHER_ROW, PHONE_NUMBER.unbound_associated_data, b"", ROW + b" ", agent):
        with pytest.raises(Undecryptable, match="does not open"):
            envelope.decrypt(KEYS, data, STORED)
    with pytest.raises(Undecryptable, match="does not open"):
        envelope.decrypt(keys_of(secrets.token_hex(32)), ROW, STORED)
    with pytest.raises(Undecryptable, match="of another key") as caught:
        envelope.decrypt(keys_of(key_id="k2"), ROW, STORED)
    assert (caught.value.expected, caught.value.found) == ("key id k2", "key id k1")


def test_bytes_that_are_no_text_are_undecryptable_and_not_shown() -> None:
    nonce = bytes(12)
    sealed = nonce + KEYS.aead.encrypt(nonce, b"+25471234567\xff", ROW)
    with pytest.raises(Undecryptable, match="no text") as caught:
        envelope.decrypt(KEYS, ROW, "v1:k1:" + base64.urlsafe_b64encode(sealed).rstrip(b"=").decode())
    assert "25471" not in repr(caught.value)
    assert caught.value.__suppress_context__


def test_half_a_surrogate_pair_is_refused_and_the_text_not_shown() -> None:
    for refuse in (lambda text: envelope.encrypt(KEYS, ROW, text), lambda text: envelope.blind_index(KEYS, text)):
        with pytest.raises(ValueError, match="no text") as caught:
            refuse(f"{NUMBER}\ud83d")
        assert NUMBER not in repr(caught.value)
        assert caught.value.__suppress_context__


def test_no_nonce_comes_twice_in_100_000_values() -> None:
    seen = {envelope.parse(envelope.encrypt(KEYS, ROW, ""))[1][: envelope.NONCE_BYTES] for _ in range(100_000)}
    assert len(seen) == 100_000


def test_the_known_answer_of_the_page() -> None:
    """Written once: a change that no longer opens what is stored shows here."""
    found = re.search(r"^```json\n(.*?)^```$", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    assert found
    answer = json.loads(found[1])
    keys = keys_of(answer["ENCRYPTION_KEY"], answer["key_id"])
    row = PHONE_NUMBER.associated_data(answer["user_id"])
    assert row == b"user_42.phone_number"
    assert envelope.decrypt(keys, row, answer["phone_number_encrypted"]) == answer["phone_number"]
    assert envelope.blind_index(keys, answer["phone_number"]).hex() == answer["phone_number_bidx"]


# --- the blind index ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "spelling",
    [
        "+254712345678",
        "0712345678",
        "0712 345 678",
        "(0712) 345-678",
        "0712.345.678",
        "254712345678",
        "+254 712-345-678",
        "00254712345678",
        "00254 (712) 345.678",
        "\t0712345678 ",
    ],
)
def test_every_spelling_of_a_number_has_one_index(spelling: str) -> None:
    assert envelope.normalise(spelling) == NUMBER
    assert envelope.blind_index(KEYS, spelling) == envelope.blind_index(KEYS, NUMBER)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "+254112345678",
        "+1 202 555 0100",
        "07123456789",
        "071234567",
        "0012",
        "٠٧١٢٣٤٥٦٧٨",
        "0712\u00a0345678",
        "ext. 5",
    ],
)
def test_another_number_has_another_index(text: str) -> None:
    assert envelope.normalise(text) != NUMBER
    assert envelope.blind_index(KEYS, text) != envelope.blind_index(KEYS, NUMBER)


@given(TEXT | st.text("0123456789+-() .\t", max_size=20))
@settings(deadline=None)
def test_normalising_twice_changes_nothing_and_punctuation_never_counts(text: str) -> None:
    once = envelope.normalise(text)
    assert envelope.normalise(once) == once
    assert envelope.normalise("(" + ".-".join(text) + ")\t ") == once
    assert len(envelope.blind_index(KEYS, text)) == 32


def test_the_index_has_a_key_of_its_own_that_changes_with_the_column() -> None:
    other = envelope.load_keys({"ENCRYPTION_KEY": SECRET}, key_id="k1", names=Names(plaintext="contact_phone"))
    assert len({KEYS.index_key, other.index_key, bytes.fromhex(SECRET)}) == 3
    assert envelope.blind_index(other, NUMBER) != envelope.blind_index(KEYS, NUMBER)
    assert envelope.blind_index(keys_of(secrets.token_hex(32)), NUMBER) != envelope.blind_index(KEYS, NUMBER)


# --- keys --------------------------------------------------------------------------------------------------------

REFUSED = {
    "none": {},
    "empty": {"ENCRYPTION_KEY": ""},
    "upper case": {"ENCRYPTION_KEY": SECRET[:-1] + "F"},
    "a digit short": {"ENCRYPTION_KEY": SECRET[:-1]},
    "a digit more": {"ENCRYPTION_KEY": SECRET + "0"},
    "a line's end": {"ENCRYPTION_KEY": SECRET + "\n"},
    "quotes": {"ENCRYPTION_KEY": f'"{SECRET}"'},
    "no digit": {"ENCRYPTION_KEY": SECRET[:40] + "g" + SECRET[41:]},
    "0x": {"ENCRYPTION_KEY": "0x" + SECRET[2:]},
    "other digits": {"ENCRYPTION_KEY": "٣" * 64},
    "zeros": {"ENCRYPTION_KEY": "0" * 64},
    "two digits": {"ENCRYPTION_KEY": "01" * 32},
    "three digits": {"ENCRYPTION_KEY": "0" * 62 + "12"},
    "a word again and again": {"ENCRYPTION_KEY": "deadbeef" * 8},
    "every digit in order": {"ENCRYPTION_KEY": "0123456789abcdef" * 4},
    "the first half again": {"ENCRYPTION_KEY": SECRET[:32] * 2},
    "reused": {"ENCRYPTION_KEY": SECRET, "JWT_SECRET": SECRET},
    "reused in capitals": {"ENCRYPTION_KEY": SECRET, "JWT_SECRET": SECRET.upper()},
    "reused with a line's end": {"ENCRYPTION_KEY": SECRET, "JWT_SECRET": f"{SECRET}\n"},
}


@pytest.mark.parametrize("kind", REFUSED)
def test_a_bad_key_is_refused_and_never_shown(kind: str) -> None:
    environment = REFUSED[kind]
    with pytest.raises(KeyRejected, match="ENCRYPTION_KEY") as caught:
        envelope.load_keys(environment, key_id="k1", names=PHONE_NUMBER)
    shown = f"{caught.value} {caught.value!r} {caught.value.__dict__}"
    given_key = environment.get("ENCRYPTION_KEY", "")
    assert not [part for part in (given_key, given_key[:16], SECRET[8:24]) if part and part in shown]
    if kind.startswith("reused"):
        assert "JWT_SECRET" in shown


def test_a_good_key_is_taken_whatever_else_is_set() -> None:
    environment = {"ENCRYPTION_KEY": SECRET, "JWT_SECRET": secrets.token_hex(32), "EMPTY": "", "PATH": "/usr/bin"}
    keys = envelope.load_keys(environment, key_id="k1", names=PHONE_NUMBER)
    assert envelope.decrypt(keys, ROW, STORED) == NUMBER


def test_no_key_in_a_repr() -> None:
    for part in (SECRET, KEYS.index_key.hex(), repr(KEYS.index_key)[2:-1], repr(KEYS.secret)[2:-1]):
        assert part not in repr(KEYS)
        assert part not in f"{KEYS}"
