"""Records: what is read is what was written, or it is refused; no text of theirs becomes markup."""

import html
import json
import os
import re
from dataclasses import replace
from datetime import UTC, datetime
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import example, given, settings
from hypothesis import strategies as st

from payme_ops.foundation import evidence, record, signed_page, signing
from payme_ops.foundation.errors import RecordInvalid, Untrusted
from payme_ops.foundation.evidence import Evidence, Verdict
from payme_ops.foundation.record import Record
from payme_ops.foundation.signed_page import Part
from tests.support import document, release_records

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


def changed(body: bytes, at: int, to: int) -> bytes:
    return body[:at] + bytes([to]) + body[at + 1 :]


@pytest.mark.parametrize("bit", [1, ord("}") ^ ord(" "), ord('"') ^ ord("\n")])
def test_every_flipped_byte_is_noticed_and_within_an_item_it_is_named(bit: int) -> None:
    body = record.signed(THREE, KEY)
    items = [one.span() for one in re.finditer(rb"(?<=^   {\n).*?(?=^   })", body, re.MULTILINE | re.DOTALL)]
    assert len(items) == 3
    for at in range(len(body)):
        with pytest.raises((Untrusted, RecordInvalid)) as caught:
            record.verify(changed(body, at, body[at] ^ bit), TRUSTED, VARIABLE)
        for number, (begins, ends) in enumerate(items):
            if begins <= at < ends:
                assert f"item {number + 1} (" in caught.value.what, f"byte {at}: {caught.value}"


def test_what_nobody_has_signed_is_not_let_in_beside_it() -> None:
    body = json.loads(record.signed(THREE, KEY))
    for place in (body, body["signature"]):
        place["zz"] = "trust me"
        with pytest.raises(RecordInvalid, match="more than was signed"):
            record.verify(record._stored(body), TRUSTED, VARIABLE)
        del place["zz"]
    assert record.verify(record._stored(body), TRUSTED, VARIABLE) == THREE


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


OUR_TAGS = {
    *("html", "head", "meta", "title", "style", "body", "header", "section", "div", "h1", "h2", "p", "br", "b"),
    *("span", "code", "table", "thead", "tbody", "tr", "th", "td", "ul", "li", "details", "summary", "pre"),
}


@given(RECORDS)
def test_the_page_holds_every_text_and_no_markup_but_its_own(some: Record) -> None:
    page = record.to_html(some)
    tags = Tags()
    tags.feed(page)
    assert tags.seen <= OUR_TAGS
    for item in some.evidence:
        assert html.escape(item.remedy).replace("&#x27;", "&#39;").replace("&quot;", "&#34;") in page


def test_a_cell_of_the_table_stays_one_cell() -> None:
    text = record.to_markdown(made(evidence=(finding({"error": "a|b\n# heading <script> [x](http://y) `code`"}),)))
    (row,) = [line for line in text.splitlines() if line.startswith("| 1 | rows")]
    assert row.replace("\\|", "").count("|") == 9
    assert "<script>" not in row.replace("\\<", "")


def test_stock_tools_verify_a_record_as_the_document_says(tmp_path: Path) -> None:
    kept = tmp_path / "record.json"
    lines = document.blocks("records.md")
    values = {"RECORD": str(kept), "KEY": TRUSTED[0]}
    kept.write_bytes(record.signed(BAD, KEY))
    script = [document.with_values(lines[0], values), *lines[1:]]
    assert "Verified Successfully" in document.run(script, os.environ, tmp_path)
    kept.write_bytes(kept.read_bytes().replace(b'"ROLLED BACK"', b'"RELEASED"'))
    with pytest.raises(AssertionError, match="Verification Failure"):
        document.run(script, os.environ, tmp_path)


# -- the page ---------------------------------------------------------------------------------------------------

BAD = release_records.made(bad=True)
PAGE = record.page(BAD, KEY)
PARTS = signed_page.verify(PAGE, TRUSTED, VARIABLE)
STARTS = [sum(len(part.text.encode()) for part in PARTS[:number]) for number in range(len(PARTS) + 1)]
ITEMS = [number for number, part in enumerate(PARTS) if part.name.startswith("item ")]


def visible(page: str) -> str:
    """What a person reads of it, on one line."""
    body = page.partition("<body>")[2].partition("<details>")[0]
    return " ".join(html.unescape(re.sub(r"<[^>]*>", " ", body)).split())


@given(RECORDS)
def test_a_page_proves_the_record_that_it_shows(some: Record) -> None:
    page = record.page(some, KEY)
    assert record.verify(page, TRUSTED, VARIABLE) == some
    assert page.startswith(record.to_html(some).partition('<p class="quiet">This view')[0].encode())


@pytest.mark.parametrize(
    "text", ["<!--1-->", '<pre id="record">', '<pre id="signature">', "</pre>", "&lt;", "\r\n\x00", "-->"]
)
def test_no_text_is_taken_for_a_mark(text: str) -> None:
    some = made(subject=text, facts={text: [{text: text}]}, evidence=(finding({text: text}, item=text, remedy=text),))
    assert record.verify(record.page(some, KEY), TRUSTED, VARIABLE) == some


@given(st.integers(0, len(PAGE) - 1), st.integers(1, 255))
@settings(max_examples=400)
@example(0, 1)
@example(len(PAGE) - 1, 1)
def test_every_changed_byte_of_a_page_is_noticed(at: int, bits: int) -> None:
    with pytest.raises((Untrusted, RecordInvalid)):
        record.verify(changed(PAGE, at, PAGE[at] ^ bits), TRUSTED, VARIABLE)


def test_every_byte_of_the_signature_counts() -> None:
    for at in range(STARTS[-1], len(PAGE), 3):
        with pytest.raises((Untrusted, RecordInvalid)):
            record.verify(changed(PAGE, at, PAGE[at] ^ 2), TRUSTED, VARIABLE)


@given(st.sampled_from(ITEMS), st.data())
@settings(max_examples=300)
def test_a_changed_byte_of_a_row_or_of_its_evidence_names_the_item(number: int, data: st.DataObject) -> None:
    at = data.draw(st.integers(STARTS[number], STARTS[number + 1] - 1))
    page = changed(PAGE, at, PAGE[at] ^ data.draw(st.integers(1, 255)))
    with pytest.raises(Untrusted) as caught:
        record.verify(page, TRUSTED, VARIABLE)
    assert caught.value.what == f"the page was changed in {PARTS[number].name}"


def test_each_item_has_a_row_and_its_evidence_as_parts_of_its_name() -> None:
    for number, one in enumerate(BAD.evidence, 1):
        row, stored = [part.text for part in PARTS if part.name == f"item {number} ({one.item})"][-2:]
        assert row.startswith("<tbody")
        assert f"evidence {one.sha256[:16]}" in row.replace("\n", "")
        assert one.sha256 in stored
        assert html.escape(one.actor) in stored


def test_parts_are_named_for_people() -> None:
    names = {part.name for part in PARTS if not part.name.startswith("item ")}
    assert names == {
        *("the page's head", "what was wrong", "the summary", "the table of approvals", "the list of items"),
        *("the end of the page", "the signed record"),
    }


@pytest.mark.parametrize(
    ("of", "to", "named"),
    [
        (b"RELEASED", b"RELEASES", "the page's head"),
        (b"<td>wanjiru</td>", b"<td>otieno</td>", "the summary"),
        (b'"choice">Approve', b'"choice">Reject', "the table of approvals"),
        (b"color-scheme: light", b"color-scheme:light", "the page's head"),
        (b"</body>", b"<script>alert(1)</script></body>", "its signature"),
    ],
)
def test_longer_changes_are_named_too(of: bytes, to: bytes, named: str) -> None:
    page = record.page(release_records.made(), KEY)
    assert of in page
    with pytest.raises((Untrusted, RecordInvalid), match=named):
        record.verify(page.replace(of, to, 1), TRUSTED, VARIABLE)


def test_what_stands_behind_the_end_and_a_row_too_many_are_noticed() -> None:
    row = next(part.text for part in PARTS if part.text.startswith("<tbody")).encode()
    for page in (PAGE + b"\n", PAGE + PAGE, PAGE.replace(row, row + row), PAGE.replace(row, b"")):
        with pytest.raises((Untrusted, RecordInvalid)):
            record.verify(page, TRUSTED, VARIABLE)


@pytest.mark.parametrize(
    ("of", "to"),
    [(b"&quot;", b"&#34;"), (b":", b": "), (b"&quot;value&quot;", b"&quot;trust&quot;:1,&quot;value&quot;")],
)
def test_the_signature_of_a_page_has_one_form(of: bytes, to: bytes) -> None:
    signature = PAGE[STARTS[-1] :]
    assert of in signature
    with pytest.raises(Untrusted, match="changed in its signature"):
        record.verify(PAGE[: STARTS[-1]] + signature.replace(of, to, 1), TRUSTED, VARIABLE)


def test_a_page_counts_only_by_a_trusted_key_also_with_anothers_record_in_it() -> None:
    other = Ed25519PrivateKey.generate()
    with pytest.raises(Untrusted, match=VARIABLE):
        record.verify(record.page(BAD, other), TRUSTED, VARIABLE)
    forged = signed_page.sign(signed_page.verify(record.page(BAD, other), [signing.public_key(other)], VARIABLE), KEY)
    with pytest.raises(Untrusted, match=VARIABLE):
        record.verify(forged, TRUSTED, VARIABLE)
    with pytest.raises(RecordInvalid, match="not JSON"):
        record.verify(signed_page.sign([Part("all", "<!doctype html>")], KEY), TRUSTED, VARIABLE)


def test_a_signed_document_of_another_kind_is_no_signature_of_a_page() -> None:
    signed = evidence.canonical(signing.sign({"format": "payme-ops/backup", "version": 1}, KEY)).decode()
    page = PAGE[: STARTS[-1]] + PAGE[STARTS[-1] :].partition(b"{")[0] + html.escape(signed).encode()
    with pytest.raises(RecordInvalid, match="none of a page"):
        record.verify(page, TRUSTED, VARIABLE)


@pytest.mark.parametrize("page", [record.to_html(BAD), "<!doctype html>\n<html><body>a page of before</body></html>"])
def test_a_page_without_a_signature_says_what_to_verify_instead(page: str) -> None:
    with pytest.raises(RecordInvalid, match=r"verify the \.json file that lies beside it"):
        record.verify(page.encode(), TRUSTED, VARIABLE)


def test_the_page_tells_someone_who_was_not_there() -> None:
    text = visible(record.to_html(BAD))
    order = ["ROLLED BACK", "What was wrong", "three of ten looks unhealthy", "To do:", "Summary", "Approvals"]
    places = [text.index(words) for words in [*order, "What was checked"]]
    assert places == sorted(places)
    assert "28 findings: 21 passed, 5 approved by people, 1 failed, 1 measured again later" in text
    assert "Ended 2026-12-04 22:25:00 EAT, 2 d 12 h later" in text
    assert "✗ fail superseded by 4" in text
    assert "? inconclusive Approve by otieno Approve by kamau" in text
    assert "took 4 min 11 s evidence bfdc930ab52629a3" in text
    assert "fatuma 2026-12-04 22:03:00 EAT post_deployment/production-2.4.1-4f0c9a1" in text
    for name, value in {"minimum": 3, "fixed at": 5, "rollback_safe": "yes", "frozen": "no"}.items():
        assert f"{name} {value}" in text


def test_a_finding_that_was_measured_again_is_no_more_what_was_wrong() -> None:
    page = record.to_html(release_records.made())
    assert "What was wrong" not in page
    assert '<header class="good">' in page
    assert page.count('<tbody class="superseded">') == 1


def answered(choice: str, sha: str, gate: str = "rows") -> dict[str, Any]:
    return {
        "approvals": [{"gate": gate, "choice": choice, "by": "otieno", "at": "", "reason": "r", "evidence": sha[:16]}]
    }


def test_a_decision_stands_by_the_evidence_that_was_shown_and_by_no_other() -> None:
    asked = replace(finding({"n": 1}), verdict=Verdict.INCONCLUSIVE)
    same = replace(asked, item="others")

    def page(*found: Evidence, **facts: Any) -> str:
        return record.to_html(made(evidence=found, **facts))

    assert '<tbody class="approved">' in page(asked, facts=answered("Approve", asked.sha256))
    assert '<tbody class="approved">' in page(asked, facts=answered("Approve", ""))  # of before digests stood there
    assert '<tbody class="approved">' in page(asked, facts=answered("Approve", asked.sha256, "its_gate"))
    assert '<tbody class="approved">' not in page(asked, facts=answered("Approve", "0" * 64))
    both = page(asked, same, facts=answered("Approve", asked.sha256))
    assert (both.count('<tbody class="approved">'), both.count('<tbody class="inconclusive">')) == (1, 1)
    assert "What could not be told" in both
    again = page(asked, asked, facts=answered("Approve", asked.sha256))
    assert again.count("<b>otieno</b>") == 1  # of two with the same content, beside the one that counts
    refused = page(asked, facts=answered("Reject", asked.sha256))
    assert '<tbody class="refused">' in refused
    assert '<header class="bad">' in refused
    assert "What was wrong" in refused
    assert visible(refused).count("Reject") == 3  # at the top, among approvals, at its item


@given(JSON)
def test_any_facts_and_figures_can_be_shown(some: Any) -> None:
    shown = made(facts={"approvals": some, "x": some}, evidence=(finding(some), finding(some, item="y")))
    assert record.verify(record.page(shown, KEY), TRUSTED, VARIABLE) == shown
    assert record.to_markdown(shown)


def test_markdown_has_decisions_as_a_table_and_says_what_is_superseded() -> None:
    text = record.to_markdown(BAD)
    assert "| gate | choice | by | at | reason | evidence |" in text
    assert "| go\\_no\\_go\\_first | Approve | otieno |" in text or "| go_no_go_first | Approve | otieno |" in text
    assert "| 3 | tests_passing | fail, superseded by 4 |" in text
    assert "Approve by otieno; Approve by kamau; deployment/production-2.4.1-4f0c9a1" in text
