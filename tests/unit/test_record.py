"""Records: what is read is what was written, or it is refused; no text of theirs becomes markup."""

import html
import json
from datetime import UTC, datetime
from html.parser import HTMLParser
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given
from hypothesis import strategies as st

from payme_ops.foundation import evidence, record, signing
from payme_ops.foundation.errors import RecordInvalid, Untrusted
from payme_ops.foundation.evidence import Evidence, Verdict
from payme_ops.foundation.record import Record

KEY = Ed25519PrivateKey.generate()
TRUSTED = [signing.public_key(KEY)]
VARIABLE = "PAYME_OPS__BACKUP__VERIFICATION_KEYS"
AT = st.datetimes(min_value=datetime(2000, 1, 1), timezones=st.just(UTC))  # noqa: DTZ001  # hypothesis wants it naive
# Without surrogates: they are not text that UTF-8 can hold.
TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=40)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=6,
)


@st.composite
def pieces(draw: st.DrawFn) -> Evidence:
    measured = draw(JSON)
    return Evidence(
        *(draw(TEXT), draw(st.sampled_from(Verdict)), measured, draw(TEXT), draw(TEXT), draw(AT), draw(AT)),
        source=draw(TEXT),
        sha256=evidence.digest(measured),
        remedy=draw(TEXT),
    )


RECORDS = st.builds(
    Record,
    **dict.fromkeys(("kind", "subject", "run", "actor", "verdict", "previous"), TEXT),
    started=AT,
    ended=AT,
    facts=st.dictionaries(TEXT, JSON, max_size=3),
    evidence=st.lists(pieces(), max_size=3).map(tuple),
)


def made(**changed: Any) -> Record:
    now = datetime(2026, 1, 28, tzinfo=UTC)
    values = {"kind": "restore_test", "subject": "s", "run": "r", "actor": "a", "verdict": "VERIFIED", "facts": {}}
    return Record(**{**values, "started": now, "ended": now, **changed})


def finding(measured: Any, **changed: Any) -> Evidence:
    now = datetime(2026, 1, 28, tzinfo=UTC)
    values = {"item": "rows", "threshold": "5", "actor": "a", "source": "s", "sha256": evidence.digest(measured)}
    return Evidence(verdict=Verdict.FAIL, measured=measured, started=now, ended=now, **{**values, **changed})


@given(RECORDS)
def test_round_trip(some: Record) -> None:
    assert record.read(record.signed(some, KEY), TRUSTED, VARIABLE) == some


@given(RECORDS, st.data())
def test_any_change_is_noticed(some: Record, data: st.DataObject) -> None:
    body = json.loads(record.signed(some, KEY))
    field = data.draw(st.sampled_from(sorted(body["document"])))
    body["document"][field] = [body["document"][field], "more"]
    with pytest.raises(Untrusted):
        record.read(json.dumps(body).encode(), TRUSTED, VARIABLE)


def test_another_key_counts_for_nothing_and_its_setting_is_named() -> None:
    with pytest.raises(Untrusted, match=VARIABLE):
        record.read(record.signed(made(), Ed25519PrivateKey.generate()), TRUSTED, VARIABLE)


@pytest.mark.parametrize("body", [b"", b"not json", b"[]", b"{}", b'{"document": {}}'])
def test_what_is_no_record_is_refused(body: bytes) -> None:
    with pytest.raises((RecordInvalid, Untrusted)):
        record.read(body, TRUSTED, VARIABLE)


def test_another_version_and_malformed_fields_are_named() -> None:
    with pytest.raises(RecordInvalid, match="version 2"):
        record.parse({**record.document(made()), "version": 2})
    with pytest.raises(RecordInvalid, match="started"):
        record.parse({**record.document(made()), "started": "yesterday"})
    with pytest.raises(RecordInvalid, match="not a record"):
        record.parse({"format": "payme-ops/backup"})


def test_evidence_that_does_not_fit_its_digest_is_refused() -> None:
    wrong = finding({"rows": 5}, sha256=evidence.digest({"rows": 4}))
    with pytest.raises(RecordInvalid, match="evidence of rows"):
        record.parse(record.document(made(evidence=(wrong,))))


def test_records_are_chained() -> None:
    first = made()
    second = record.follow(made(verdict="REFUTED"), first)
    assert second.previous == record.digest(first)
    assert record.digest(record.follow(made(verdict="REFUTED"), None)) != record.digest(second)


THREE = made(evidence=tuple(finding({"rows": number}, item=f"item_{number}") for number in range(3)))


def test_a_whole_record_verifies_and_one_without_a_chain_is_still_read() -> None:
    assert record.verify(record.signed(THREE, KEY), TRUSTED, VARIABLE) == THREE
    old = json.dumps(signing.sign(record.document(THREE), KEY)).encode()
    assert record.read(old, TRUSTED, VARIABLE) == THREE


@given(st.data())
def test_any_flipped_byte_is_noticed(data: st.DataObject) -> None:
    body = bytearray(record.signed(THREE, KEY))
    at = data.draw(st.integers(0, len(body) - 1))
    body[at] ^= 1 << data.draw(st.integers(0, 7))
    with pytest.raises((Untrusted, RecordInvalid)):
        record.verify(bytes(body), TRUSTED, VARIABLE)


@pytest.mark.parametrize("field", ["threshold", "verdict", "measured", "ended", "remedy", "actor"])
@pytest.mark.parametrize("number", [0, 1, 2])
def test_the_item_that_was_changed_is_named(number: int, field: str) -> None:
    body = json.loads(record.signed(THREE, KEY))
    body["document"]["evidence"][number][field] = "pass"
    with pytest.raises((Untrusted, RecordInvalid), match=rf"changed in item {number + 1} \(item_{number}\)"):
        record.verify(json.dumps(body, indent=1, sort_keys=True).encode(), TRUSTED, VARIABLE)


def test_a_changed_header_a_missing_item_and_another_layout_are_named() -> None:
    body = json.loads(record.signed(THREE, KEY))
    body["document"]["verdict"] = "RELEASED"
    with pytest.raises(Untrusted, match="changed in the header"):
        record.verify(json.dumps(body).encode(), TRUSTED, VARIABLE)
    body = json.loads(record.signed(THREE, KEY))
    del body["document"]["evidence"][2]
    with pytest.raises(Untrusted, match="changed in the list of items"):
        record.verify(json.dumps(body).encode(), TRUSTED, VARIABLE)
    with pytest.raises(RecordInvalid, match="layout"):
        record.verify(record.signed(THREE, KEY) + b"\n", TRUSTED, VARIABLE)


class Tags(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.seen: set[str] = set()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.add(tag)
        assert not [name for name, _ in attrs if name.startswith("on")]


@given(RECORDS)
def test_the_page_holds_every_text_and_no_markup_but_its_own(some: Record) -> None:
    page = record.to_html(some)
    tags = Tags()
    tags.feed(page)
    assert tags.seen <= {"html", "head", "meta", "title", "style", "body", "h1", "p", "table", "tr", "th", "td"}
    for item in some.evidence:
        assert html.escape(item.remedy).replace("&#x27;", "&#39;").replace("&quot;", "&#34;") in page


def test_a_cell_of_the_table_stays_one_cell() -> None:
    text = record.to_markdown(made(evidence=(finding({"error": "a|b\n# heading <script> [x](http://y) `code`"}),)))
    (row,) = [line for line in text.splitlines() if line.startswith("| rows")]
    assert row.replace("\\|", "").count("|") == 6
    assert "<script>" not in row.replace("\\<", "")
