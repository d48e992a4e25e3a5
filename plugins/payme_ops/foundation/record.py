"""A record: what was done, by whom, and the evidence; canonical JSON, signed, each naming the digest of the one before.

Restore tests, migrations and releases leave records of this one shape, with one Markdown and one HTML form.
"""

import hashlib
import html
import itertools
import json
import re
from collections import Counter
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from jinja2 import Environment, StrictUndefined, Template
from markupsafe import Markup
from pydantic import TypeAdapter, ValidationError

from payme_ops.foundation import evidence, signed_page, signing
from payme_ops.foundation.approvals import APPROVE
from payme_ops.foundation.clock import show, span
from payme_ops.foundation.errors import AlreadyExists, RecordInvalid, Untrusted
from payme_ops.foundation.evidence import Evidence, Verdict, plain
from payme_ops.foundation.objectstore import Bucket
from payme_ops.foundation.signed_page import Part

_FORMAT, VERSION = "payme-ops/record", 1
_FOLDER = "records"
_BESIDE = ("format", "version", "chain")
_TEMPLATES = Path(__file__).resolve().parents[3] / "include" / "templates"


@dataclass(frozen=True, kw_only=True)
class Record:
    """`verdict` is the word that counts, of the kind's own set; `facts` is JSON data; `previous` chains records."""

    kind: str
    subject: str
    run: str
    actor: str
    verdict: str
    started: datetime
    ended: datetime
    facts: dict[str, Any]
    evidence: tuple[Evidence, ...] = ()
    previous: str = ""


_RECORD = TypeAdapter(Record)


def document(record: Record) -> dict[str, Any]:
    """JSON form, the one that is signed."""
    data: dict[str, Any] = _RECORD.dump_python(record, mode="json")
    return {"format": _FORMAT, "version": VERSION, **data}


def parse(data: Any) -> Record:
    """A record from its (already verified) document. Raises RecordInvalid; evidence must fit its own digest."""
    if not isinstance(data, dict) or data.get("format") != _FORMAT:
        raise RecordInvalid("this is not a record", expected=f'format "{_FORMAT}"')
    version = data.get("version")
    if version != VERSION:
        raise RecordInvalid(
            "the record is of another version",
            expected=f"version {VERSION}",
            found=f"version {version}",
            remedy="use the payme-ops release that wrote it, or a newer one",
        )
    try:
        parsed = _RECORD.validate_json(
            json.dumps({name: value for name, value in data.items() if name not in _BESIDE}), strict=True
        )
    except ValidationError as error:
        fields = ", ".join(".".join(map(str, item["loc"])) for item in error.errors(include_input=False)[:5])
        raise RecordInvalid("the record is malformed", found=f"faults in {fields}") from None
    for item in parsed.evidence:
        if evidence.digest(item.measured) != item.sha256:
            raise RecordInvalid(f"the evidence of {item.item} does not fit its digest", expected=item.sha256)
    return parsed


def chain(data: dict[str, Any]) -> list[str]:
    """One SHA-256 (hex) for the header of a document, and one for each piece of evidence that takes in the one before.

    So what differs from what was signed can be named. It is signed with the document; a record from before it had one
    is read all the same.
    """
    header = {name: value for name, value in data.items() if name not in ("evidence", "chain")}
    links = [evidence.digest(header)]
    for item in data.get("evidence") or []:
        links.append(hashlib.sha256(links[-1].encode() + evidence.canonical(item)).hexdigest())
    return links


def digest(record: Record) -> str:
    """SHA-256 (hex) of the canonical document; the next record's `previous`."""
    return evidence.digest(document(record))


def follow(record: Record, before: Record | None) -> Record:
    """The record chained to the one before it."""
    return replace(record, previous=digest(before)) if before else record


def signed(record: Record, key: Ed25519PrivateKey) -> bytes:
    """What is stored."""
    data = document(record)
    return _stored(signing.sign({**data, "chain": chain(data)}, key))


def _stored(data: Any) -> bytes:
    return json.dumps(data, indent=1, sort_keys=True, ensure_ascii=False).encode()


def verify(body: bytes, trusted_keys: list[str], variable: str) -> Record:
    """A stored record or its page, every byte of it. Raises Untrusted or RecordInvalid naming what was changed."""
    if signed_page.is_page(body):
        parts = signed_page.verify(body, trusted_keys, variable)
        return verify(_carried(parts), trusted_keys, variable)
    try:
        found = read(body, trusted_keys, variable)
    except (Untrusted, RecordInvalid) as error:
        where = changed_part(body)
        if where is None:
            raise
        raise type(error)(
            f"the record was changed in {where}",
            expected="what was signed",
            found=error.found or "something else",
            remedy="ask for it again where it was kept, and find out who had this copy",
        ) from None
    data = json.loads(body)
    signature = {name: data["signature"][name] for name in ("algorithm", "key", "value")}
    wanted = _stored({"document": data["document"], "signature": signature})
    if wanted != body:
        same = itertools.takewhile(lambda pair: pair[0] == pair[1], zip(wanted, body, strict=False))
        place = _place(wanted.decode(), len(wanted[: sum(1 for _ in same)].decode(errors="ignore")))
        raise RecordInvalid(
            f"the record was changed in its layout, in {place}",
            expected="the bytes that were stored",
            found="other blanks, another order or more than was signed",
            remedy="ask for it again where it was kept",
        )
    return found


def changed_part(body: bytes) -> str | None:
    """Which part of a stored record does not fit its chain: the header, or an item; None when that cannot be told."""
    text = body.decode(errors="replace")
    try:
        data = json.loads(body.decode())
    except UnicodeDecodeError as error:
        return _place(text, len(body[: error.start].decode()))
    except json.JSONDecodeError as error:
        return _place(text, error.pos) if _FORMAT in text else None
    try:
        told, links = list(data["document"]["chain"]), chain(data["document"])
        items = [_name(number, one.get("item", "")) for number, one in enumerate(data["document"]["evidence"], 1)]
    except (ValueError, KeyError, TypeError, AttributeError):
        return None
    for number, name in enumerate(["the header", *items]):
        if number >= len(told) or told[number] != links[number]:
            return name
    return None if len(told) == len(links) else "the list of items"


def _name(number: int, item: object) -> str:
    return f"item {number} ({str(item)[:80]})"


# How `_stored` lays the evidence out: an item begins by a line of three blanks and a bracket, perhaps a broken one.
_ITEM_BEGINS = re.compile(r"^(?:...\{|   \S)$(?=\n(?:.{5}|    ))", re.MULTILINE)
_ITEM_IS = re.compile(r'^    "item": "(.*)",$', re.MULTILINE)
_ITEMS_END = re.compile(r"^  \],?$", re.MULTILINE)


def _place(text: str, at: int) -> str:
    """Which part of a stored record that character belongs to, by the layout: a broken record has it, too."""
    # What breaks at the bracket that begins the next item, or ends them all, was broken on the line before.
    at -= 4 if text[at : at + 1] in ("{", "]") else 0
    line_end = text.find("\n", at)
    begun = [one.end() for one in _ITEM_BEGINS.finditer(text) if one.start() <= at]
    if not begun or _ITEMS_END.search(text[: line_end if line_end >= 0 else len(text)], begun[-1]):
        return "the header"
    item = _ITEM_IS.search(text, begun[-1], max(text.find("\n   }", begun[-1]), begun[-1]))
    return _name(len(begun), item[1] if item else "")


def read(body: bytes, trusted_keys: list[str], variable: str) -> Record:
    """A stored record, signature checked. `variable` is the setting of the keys. Raises Untrusted, RecordInvalid."""
    try:
        data = json.loads(body)
    except ValueError:
        raise RecordInvalid("the record is not JSON", expected="a signed record") from None
    return parse(signing.verify(data, trusted_keys, variable))


def keep(bucket: Bucket, record: Record, key: Ed25519PrivateKey) -> str:
    """Store a record that lies beside nothing, and its page, below records/<kind>/; answers the object's key.

    Keys sort by time; of two that end in the same second the later one gets the higher number. Raises StoreRefused,
    StoreUnavailable.
    """
    body = signed(record, key)
    for number in itertools.count():
        stem = f"{_FOLDER}/{record.kind}/{record.ended.astimezone(UTC):%Y%m%dT%H%M%SZ}-{number:02}"
        try:
            bucket.put_if_absent(f"{stem}.json", body, ContentType="application/json")
        except AlreadyExists:
            if bucket.get(f"{stem}.json") != body:  # else the answer to our own write was lost
                continue
        break
    bucket.put(f"{stem}.html", page(record, key), ContentType="text/html; charset=utf-8")
    return f"{stem}.json"


def newest(bucket: Bucket, kind: str, trusted_keys: list[str], variable: str) -> Record | None:
    """The record of that kind that was stored last. Raises Untrusted, RecordInvalid."""
    keys = [key for key in bucket.keys(f"{_FOLDER}/{kind}/") if key.endswith(".json")]
    return read(bucket.get(keys[-1]), trusted_keys, variable) if keys else None


# -- for people -------------------------------------------------------------------------------------------------


_SYMBOLS = {Verdict.PASS: "✓", Verdict.FAIL: "✗", Verdict.INCONCLUSIVE: "?", Verdict.BYPASSED: "!"}


@dataclass(frozen=True)
class _Row:
    """A finding as it is shown. `superseded` is the number of the later one that counts instead, 0 for none."""

    number: int
    found: Evidence
    superseded: int
    answers: list[dict[str, str]]

    @property
    def standing(self) -> str:
        """What it comes to, with the people who were asked."""
        if self.superseded:
            return "superseded"
        if self.found.verdict is Verdict.INCONCLUSIVE and self.answers:
            return "approved" if all(one["choice"] == APPROVE for one in self.answers) else "refused"
        return self.found.verdict.value

    @property
    def symbol(self) -> str:
        """The verdict for those who do not see its colour."""
        return _SYMBOLS[self.found.verdict]


_COUNTED = {
    "pass": "passed",
    "approved": "approved by people",
    "refused": "refused by people",
    "fail": "failed",
    "bypassed": "bypassed",
    "inconclusive": "could not be told",
    "superseded": "measured again later",
}


def _view(record: Record) -> dict[str, Any]:
    """What both forms show."""
    answers = [{name: plain(one.get(name, "")) for name in _ANSWER} for one in _approvals(record)]
    last = {one.item: number for number, one in enumerate(record.evidence, 1)}
    rows = [
        _Row(
            number,
            one,
            last[one.item] if last[one.item] != number else 0,
            [answer for answer in answers if last[one.item] == number and _is_about(answer, one, last)],
        )
        for number, one in enumerate(record.evidence, 1)
    ]
    counts = Counter(row.standing for row in rows)
    sources = {one.source for one in record.evidence}
    wrong = [row for row in rows if row.standing in ("fail", "bypassed")]
    refused = [one for one in answers if one["choice"] != APPROVE]
    left = [row for row in rows if row.standing == "inconclusive"]
    return {
        "r": record,
        "rows": rows,
        "wrong": wrong,
        "refused": refused,
        "left": left,
        "tone": "bad" if wrong or refused else "open" if left else "good",
        "source": sources.pop() if len(sources) == 1 and len(rows) > 1 else "",
        "counts": f"{len(rows)} findings: "
        + (", ".join(f"{counts[name]} {words}" for name, words in _COUNTED.items() if counts[name]) or "none"),
    }


# What `facts["approvals"]` has of each decision; `evidence` is the beginning of the digest that was shown.
_ANSWER = ("gate", "choice", "by", "at", "reason", "evidence")


def _approvals(record: Record) -> list[dict[str, Any]]:
    found = record.facts.get("approvals")
    return [one for one in found if isinstance(one, dict)] if isinstance(found, list) else []


def _is_about(answer: dict[str, str], one: Evidence, items: dict[str, int]) -> bool:
    """Whether that evidence was shown to who answered: a gate has its item's name, or one of its own."""
    if not answer["evidence"]:
        return answer["gate"] == one.item
    return one.sha256.startswith(answer["evidence"]) and (answer["gate"] == one.item or answer["gate"] not in items)


def cell(value: Any) -> str:
    """Text in a Markdown table: nothing in it ends the cell or becomes markup of its own."""
    return re.sub(r"([\\|`*<>\[\]]|\b_|_\b)", r"\\\1", plain(value).replace("\n", " "))


def _is_table(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(one, dict) and one for one in value)


def _columns(rows: list[dict[str, Any]]) -> list[str]:
    return list(dict.fromkeys(name for row in rows for name in row))


def _wide(measured: Any) -> dict[str, Any]:
    """The tables of what was measured, which get a line of their own."""
    if _is_table(measured):
        return {"found": measured}
    return {name: it for name, it in measured.items() if _is_table(it)} if isinstance(measured, dict) else {}


def _narrow(measured: Any) -> Any:
    """What is left without them."""
    if not _wide(measured):
        return measured
    left = {name: it for name, it in measured.items() if not _is_table(it)} if isinstance(measured, dict) else {}
    return left or "below"


def _word(value: Any) -> str:
    return {True: "yes", False: "no"}[value] if isinstance(value, bool) else plain(value)


def _verdict(row: _Row) -> str:
    return f"{row.found.verdict}, superseded by {row.superseded}" if row.superseded else row.found.verdict


def _people(row: _Row) -> str:
    return "; ".join([*(f"{one['choice']} by {one['by']}" for one in row.answers), row.found.actor])


@cache
def _template(name: str) -> Template:
    """Markdown is escaped by `cell`, a page by Jinja."""
    made = Environment(autoescape=name.endswith(".html"), keep_trailing_newline=True, undefined=StrictUndefined)
    made.filters |= {"cell": cell, "word": _word, "at": show, "span": span, "columns": _columns}
    made.filters |= {"wide": _wide, "narrow": _narrow, "verdict": _verdict, "people": _people}
    made.filters["words"] = lambda text: str(text).replace("_", " ")
    made.tests |= {"table": _is_table, "lines": lambda value: isinstance(value, list) and bool(value)}
    return made.from_string((_TEMPLATES / name).read_text(encoding="utf-8"))


def to_markdown(record: Record) -> str:
    """For logs, approval requests and Slack."""
    return _template("record.md").render(_view(record))


def to_html(record: Record) -> str:
    """One page without script; every text is escaped. What is kept is `page`, which is signed."""
    return "".join(part.text for part in _parts(record, b""))


def page(record: Record, key: Ed25519PrivateKey) -> bytes:
    """The page that proves itself: it carries the signed record, and the signature of all it shows."""
    return signed_page.sign(_parts(record, signed(record, key)), key)


_PART = re.compile(r"<!--(.*?)-->", re.DOTALL)
_CARRIED = '<pre id="record">'  # and the mark of what it carries


def _parts(record: Record, stored: bytes) -> list[Part]:
    """The page in the parts that its template marks. Texts of the record have no mark: they are escaped."""
    names = {str(number): _name(number, one.item) for number, one in enumerate(record.evidence, 1)}
    text = _template("record.html").render(_view(record), stored=_marked(stored.decode()))
    head, *marked = _PART.split(text)
    return [
        Part("the page's head", head),
        *(
            Part(names.get(html.unescape(mark), html.unescape(mark)), text)
            for mark, text in zip(marked[::2], marked[1::2], strict=True)
        ),
    ]


def _marked(stored: str) -> Markup:
    """A stored record as text of the page, each item of it a part."""
    if not stored:
        return Markup()
    begun = [one.start() for one in _ITEM_BEGINS.finditer(stored)]
    ends = _ITEMS_END.search(stored, begun[-1]) if begun else None
    marks = [(0, "the signed record"), *((at, str(number)) for number, at in enumerate(begun, 1))]
    marks += [(ends.start(), "the signed record")] if ends else []
    cuts = [*(at for at, _ in marks[1:]), len(stored)]
    return Markup().join(
        Markup(f"<!--{name}-->") + stored[at:cut]  # noqa: S704  # ours; what is added to it is escaped
        for (at, name), cut in zip(marks, cuts, strict=True)
    )


def _carried(parts: list[Part]) -> bytes:
    """The stored record in a page."""
    text = "".join(part.text for part in parts)
    return html.unescape(text.partition(_CARRIED)[2].partition("</pre>")[0]).encode()
