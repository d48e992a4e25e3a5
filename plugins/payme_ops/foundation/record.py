"""A record: what was done, by whom, and the evidence; canonical JSON, signed, each naming the digest of the one before.

Restore tests, migrations and releases leave records of this one shape, with one Markdown and one HTML form.
"""

import hashlib
import itertools
import json
import re
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from jinja2 import Environment
from pydantic import TypeAdapter, ValidationError

from payme_ops.foundation import evidence, signing
from payme_ops.foundation.clock import show
from payme_ops.foundation.errors import AlreadyExists, RecordInvalid, Untrusted
from payme_ops.foundation.evidence import Evidence, plain
from payme_ops.foundation.objectstore import Bucket

_FORMAT, VERSION = "payme-ops/record", 1
_FOLDER = "records"
_BESIDE = ("format", "version", "chain")


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
    """A stored record, every byte of it. Raises Untrusted or RecordInvalid naming the first part that was changed."""
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
    if _stored(json.loads(body)) != body:
        raise RecordInvalid(
            "the record was changed in its layout",
            expected="the bytes that were stored",
            found="other blanks or another order, with the same content",
            remedy="ask for it again where it was kept",
        )
    return found


def changed_part(body: bytes) -> str | None:
    """Which part of a stored record does not fit its chain: the header, or an item; None when that cannot be told."""
    try:
        data = json.loads(body)["document"]
        told, links = list(data["chain"]), chain(data)
        items = [str(item["item"])[:80] for item in data["evidence"]]
    except (ValueError, KeyError, TypeError):
        return None
    for number, name in enumerate(["the header", *(f"item {number} ({name})" for number, name in enumerate(items, 1))]):
        if number >= len(told) or told[number] != links[number]:
            return name
    return None if len(told) == len(links) else "the list of items"


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
    bucket.put(f"{stem}.html", to_html(record).encode(), ContentType="text/html; charset=utf-8")
    return f"{stem}.json"


def newest(bucket: Bucket, kind: str, trusted_keys: list[str], variable: str) -> Record | None:
    """The record of that kind that was stored last. Raises Untrusted, RecordInvalid."""
    keys = [key for key in bucket.keys(f"{_FOLDER}/{kind}/") if key.endswith(".json")]
    return read(bucket.get(keys[-1]), trusted_keys, variable) if keys else None


def cell(value: Any) -> str:
    """Text in a Markdown table: nothing in it ends the cell or becomes markup of its own."""
    return re.sub(r"([\\|`*<>\[\]]|\b_|_\b)", r"\\\1", plain(value).replace("\n", " "))


_MARKDOWN = """\
# {{ r.kind | cell }}: {{ r.verdict | cell }}

{{ r.subject | cell }}

| | |
|---|---|
| Run | {{ r.run | cell }} |
| By | {{ r.actor | cell }} |
| Began | {{ r.started | at }} |
| Ended | {{ r.ended | at }} |
{% for name, value in r.facts.items() -%}
| {{ name | words | cell }} | {{ value | cell }} |
{% endfor %}
| Item | Verdict | Expected | Found | To do |
|---|---|---|---|---|
{% for e in r.evidence -%}
| {{ e.item | cell }} | {{ e.verdict }} | {{ e.threshold | cell }} | {{ e.measured | cell }} | {{ e.remedy | cell }} |
{% endfor -%}
"""

_HTML = """\
<!doctype html>
<html lang="en"><head><meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<title>{{ r.kind }}: {{ r.verdict }}</title>
<style>
body { font: 15px/1.45 system-ui, sans-serif; max-width: 70rem; margin: 2rem auto; padding: 0 1rem; color: #1a1a1a }
table { border-collapse: collapse; width: 100%; margin: 1rem 0 } th, td { border: 1px solid #ccc; padding: .35rem .6rem;
text-align: left; vertical-align: top; overflow-wrap: anywhere } th { background: #f3f3f3 }
.fail, .inconclusive { background: #fde8e8 } .bypassed { background: #fdf3d8 }
</style></head><body>
<h1>{{ r.kind | words }}: {{ r.verdict }}</h1><p>{{ r.subject }}</p>
<table><tr><th>Run</th><td>{{ r.run }}</td></tr><tr><th>By</th><td>{{ r.actor }}</td></tr>
<tr><th>Began</th><td>{{ r.started | at }}</td></tr><tr><th>Ended</th><td>{{ r.ended | at }}</td></tr>
{% for name, value in r.facts.items() %}<tr><th>{{ name | words }}</th><td>{{ value | plain }}</td></tr>
{% endfor %}</table>
<table><tr><th>Item</th><th>Verdict</th><th>Expected</th><th>Found</th><th>To do</th></tr>
{% for e in r.evidence %}<tr class="{{ e.verdict }}"><td>{{ e.item }}</td><td>{{ e.verdict }}</td>\
<td>{{ e.threshold }}</td><td>{{ e.measured | plain }}</td><td>{{ e.remedy }}</td></tr>
{% endfor %}</table></body></html>
"""


def _environment(*, html: bool) -> Environment:
    made = Environment(autoescape=html, keep_trailing_newline=True)  # noqa: S701  # Markdown is escaped by `cell`
    made.filters |= {"cell": cell, "plain": plain, "at": show, "words": lambda name: str(name).replace("_", " ")}
    return made


def to_markdown(record: Record) -> str:
    """For logs, approval requests and Slack."""
    return _environment(html=False).from_string(_MARKDOWN).render(r=record)


def to_html(record: Record) -> str:
    """One page without script; every text is escaped."""
    return _environment(html=True).from_string(_HTML).render(r=record)
