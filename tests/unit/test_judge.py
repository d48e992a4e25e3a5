"""The quick way of judging a row never takes what the envelope refuses, and each fault has its name."""

import hmac
import os
from base64 import urlsafe_b64encode
from functools import partial

import pytest
from hypothesis import given
from hypothesis import strategies as st

from payme_ops.migration import envelope
from payme_ops.migration.envelope import Undecryptable
from payme_ops.migration.judge import Fault, Kind, Row, judge
from payme_ops.migration.names import PHONE_NUMBER as NAMES

KEYS = envelope.derive(os.urandom(32), key_id="k1", names=NAMES)
OTHERS = envelope.derive(os.urandom(32), key_id="k1", names=NAMES)
OTHER_ID = envelope.derive(KEYS.secret, key_id="k2", names=NAMES)
PHONE = "+254700111222"

TEXT = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=40)  # as PostgreSQL has it
NUMBER = st.one_of(TEXT, st.from_regex(r"\+254[17][0-9]{8}", fullmatch=True))


def row(key: int, text: str | None, stored: str | None, index: bytes | None) -> Row:
    return key, None if text is None else text.encode(), None if stored is None else stored.encode(), index


def right(key: int, text: str) -> Row:
    stored = envelope.encrypt(KEYS, NAMES.associated_data(key), text)
    return row(key, text, stored, envelope.blind_index(KEYS, text))


def kinds(*rows: Row, compare: bool = True) -> list[Fault]:
    return judge(KEYS, NAMES, rows, compare=compare)[1]


@given(st.integers(-(2**63), 2**63 - 1), NUMBER)
def test_what_was_encrypted_is_right_and_its_number_comes_out(key: int, text: str) -> None:
    for compare in (True, False):
        assert judge(KEYS, NAMES, [right(key, text)], compare=compare) == ([text.encode()], [])
    key_, _, stored, index = right(key, text)
    assert judge(KEYS, NAMES, [(key_, b"stale", stored, index)], compare=False) == ([text.encode()], [])


ALPHABET = "v1:k2AZaz09-_+/= \n\t*!é"


@given(NUMBER, st.data())
def test_no_other_text_is_taken_for_the_ciphertext_unless_the_envelope_opens_it(text: str, data: st.DataObject) -> None:
    stored = envelope.encrypt(KEYS, NAMES.associated_data(7), text)
    at = data.draw(st.integers(0, len(stored)))
    cut = data.draw(st.integers(0, 3))
    put = data.draw(st.text(ALPHABET, max_size=3))
    changed = stored[:at] + put + stored[at + cut :]
    try:
        opens = envelope.decrypt(KEYS, NAMES.associated_data(7), changed) == text
    except Undecryptable:
        opens = False
    found = kinds(row(7, text, changed, envelope.blind_index(KEYS, text)))
    assert (found == []) == opens
    assert opens or found[0].kind in (Kind.MALFORMED, Kind.UNDECRYPTABLE)


@given(st.binary(max_size=60).filter(lambda sealed: len(sealed) != 41))
def test_random_bytes_never_open(sealed: bytes) -> None:
    stored = "v1:k1:" + urlsafe_b64encode(sealed).rstrip(b"=").decode()
    assert kinds(row(7, PHONE, stored, None))[0].kind in (Kind.MALFORMED, Kind.UNDECRYPTABLE)


SEAL = partial(envelope.encrypt, KEYS)
INDEX = envelope.blind_index(KEYS, PHONE)
OWN = NAMES.associated_data(7)


@pytest.mark.parametrize(
    ("kind", "wrong"),
    [
        (Kind.MISSING, row(7, PHONE, None, None)),
        (Kind.MISSING, row(7, "", None, None)),
        (Kind.SURPLUS, row(7, None, SEAL(OWN, PHONE), INDEX)),
        (Kind.SURPLUS, row(7, None, SEAL(OWN, ""), envelope.blind_index(KEYS, ""))),
        (Kind.MALFORMED, row(7, PHONE, PHONE, INDEX)),
        (Kind.MALFORMED, row(7, PHONE, "v1:k1:", INDEX)),
        (Kind.MALFORMED, row(7, PHONE, "v1:k1:AAAA", INDEX)),
        (Kind.MALFORMED, row(7, PHONE, "v2" + SEAL(OWN, PHONE)[2:], INDEX)),
        (Kind.MALFORMED, row(7, PHONE, SEAL(OWN, PHONE) + "\n", INDEX)),
        (Kind.MALFORMED, row(7, PHONE, SEAL(OWN, PHONE) + "=", INDEX)),
        (Kind.UNDECRYPTABLE, row(7, PHONE, envelope.encrypt(OTHERS, OWN, PHONE), INDEX)),
        (Kind.UNDECRYPTABLE, row(7, PHONE, envelope.encrypt(OTHER_ID, OWN, PHONE), INDEX)),
        (Kind.UNDECRYPTABLE, row(7, PHONE, SEAL(NAMES.associated_data(8), PHONE), INDEX)),
        (Kind.UNBOUND, row(7, PHONE, SEAL(NAMES.unbound_associated_data, PHONE), INDEX)),
        (Kind.STALE, row(7, PHONE, SEAL(OWN, "+254700111223"), envelope.blind_index(KEYS, "+254700111223"))),
        (Kind.STALE, row(7, "", SEAL(OWN, " "), envelope.blind_index(KEYS, " "))),
        (Kind.STALE, row(7, "0700111222", SEAL(OWN, PHONE), INDEX)),  # one number, but not that text
        (Kind.WRONG_INDEX, row(7, PHONE, SEAL(OWN, PHONE), None)),
        (Kind.WRONG_INDEX, row(7, PHONE, SEAL(OWN, PHONE), INDEX[:31])),
        (Kind.WRONG_INDEX, row(7, PHONE, SEAL(OWN, PHONE), envelope.blind_index(OTHERS, PHONE))),
        (Kind.WRONG_INDEX, row(7, None, None, INDEX)),
        (Kind.INDEX_KEY_REUSED, row(7, PHONE, SEAL(OWN, PHONE), hmac.digest(KEYS.secret, PHONE.encode(), "sha256"))),
    ],
)
def test_each_fault_by_its_name(kind: Kind, wrong: Row) -> None:
    assert kinds(right(6, PHONE), wrong, right(8, PHONE)) == [Fault(7, kind)]


@pytest.mark.parametrize("plaintext", [None, b"", PHONE.encode(), b"+254700000000"])
def test_without_plaintext_a_ciphertext_has_to_open_and_fit_its_index(plaintext: bytes | None) -> None:
    good = (7, plaintext, SEAL(OWN, PHONE).encode(), INDEX)
    values, faults = judge(KEYS, NAMES, [good, (8, plaintext, None, None)], compare=False)
    assert (values, faults) == ([PHONE.encode(), None], [])
    swapped = (8, *good[1:])
    assert kinds(swapped, compare=False) == [Fault(8, Kind.UNDECRYPTABLE)]
    assert kinds((*good[:3], b"x" * 32), compare=False) == [Fault(7, Kind.WRONG_INDEX)]
    assert kinds((8, plaintext, None, INDEX), compare=False) == [Fault(8, Kind.WRONG_INDEX)]


def test_bytes_that_are_no_text_are_refused_without_showing_them() -> None:
    nonce = os.urandom(12)
    sealed = nonce + KEYS.aead.encrypt(nonce, PHONE.encode() + b"\xff", OWN)
    stored = "v1:k1:" + urlsafe_b64encode(sealed).rstrip(b"=").decode()
    for compare in (True, False):
        assert kinds(row(7, PHONE, stored, INDEX), compare=compare) == [Fault(7, Kind.UNDECRYPTABLE)]
    with pytest.raises(Undecryptable) as raised:
        envelope.decrypt(KEYS, OWN, stored)
    assert PHONE not in repr(raised.value)
    assert raised.value.__suppress_context__
