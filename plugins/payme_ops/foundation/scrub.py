"""Take secrets and phone numbers out of text that leaves its place (DESIGN.md section 2, promise 5).

Only shapes are known here, never values: what looks like one of them goes, even where it was harmless. A bare
nine-digit number (712345678) cannot be told from a row count and stays. Text is scrubbed before it is shortened,
or half a secret would be left that no longer has its shape.
"""

import re
from collections.abc import Mapping
from datetime import date
from typing import Any

PHONE = "[phone]"
SECRET = "[secret]"  # noqa: S105  # what is put in a secret's place

_QUOTE = r"""(?:\\{0,8}["'])?"""  # also \" as in JSON inside JSON
# Values may be cut off before the closing quote. libpq escapes with a backslash.
_SINGLE = r"'(?:[^'\\]|\\.|'')*(?:'|\Z)"
_DOUBLE = r'"(?:[^"\\]|\\.)*(?:"|\Z)'
_ESCAPED = r'\\{1,8}"(?:(?!\\{1,8}").)*(?:\\{1,8}"|\Z)'
_WORD_REST = r"(?:\\.|[^\s\\])"
# name=value (libpq, shell, URL query), where a quote may be part of the word, and "name": value (JSON, repr, YAML).
_EQUALS = rf"=\s*)(?:\[secret\]|{_ESCAPED}|(?:{_SINGLE}|{_DOUBLE}){_WORD_REST}*|{_WORD_REST}+)"
_COLON = rf"(?:=>|:)\s*)(?:\[secret\]|{_ESCAPED}|{_SINGLE}|{_DOUBLE}|{_WORD_REST}+)"
_NAME = (
    r"(?:passw(?:or)?d|pwd|pass_?phrase|secret"
    r"|(?:secret|access|secret[ _-]?access|private|encryption|fernet|signing|api)[ _-]?key"
    r"|(?:auth|access|refresh|session|security|bot|api)[_-]?token|sentry_key)"
)
_HEX_END = r"(?![0-9a-fA-F])"

_SECRETS: tuple[tuple[re.Pattern[str], str], ...] = tuple(
    (re.compile(pattern, re.DOTALL), replacement)
    for pattern, replacement in (
        (r"-----BEGIN [A-Z0-9 ]+-----.*?(?:-----END [A-Z0-9 ]+-----|\Z)", SECRET),
        (r"(?i:AGE-SECRET-KEY-[0-9A-Z-]+)", SECRET),
        (r"(?i:(hooks\.slack\.com/(?:services|workflows|triggers)/)\S+)", rf"\1{SECRET}"),
        (
            r"(?i:\b(authorization" + _QUOTE + r"\s*[:=]\s*" + _QUOTE + r"(?:basic|bearer)\s+)[^\s\"'\\]+)",
            rf"\1{SECRET}",
        ),
        (r"(?i:\b(bearer\s+)(?!(?:tokens?|authentication|authorization)(?:[\s.,;:]|\Z))[^\s\"'\\]+)", rf"\1{SECRET}"),
        (rf"(?i:({_NAME}{_QUOTE}\s*{_COLON})", rf"\1{SECRET}"),
        (rf"(?i:({_NAME}{_QUOTE}\s*{_EQUALS})", rf"\1{SECRET}"),
        (r"(?<![A-Z0-9])(?:AKIA|ASIA)[A-Z0-9]{16}(?![A-Z0-9])", SECRET),
        (r"(?i:xox[a-z](?:\.xox[a-z])?-[\w-]+|xapp-[\w-]+)", SECRET),
        (r"\beyJ[\w-]{8,}\.[\w-]+\.[\w-]*", SECRET),  # JSON web token
    )
)
_WORD = re.compile(r"\S+")
# Where the password of a URL begins, or a key that stands where a user name would (a Sentry DSN).
# postgresql://user@host is kept.
_USERINFO = re.compile(r"(?i:\b[a-z][a-z0-9+.-]{0,30}://[^\s/:@]*:|\bhttps?://(?=[^\s/:@]+\Z))")
# A key and a digest are both 64 hex characters; the label tells them apart.
_HEX_KEY = re.compile(
    r"(?P<keep>(?i:sha-?256)\w{0,30}"
    + _QUOTE
    + r"\s{0,4}(?:=>|[:=])?\s{0,4}"
    + _QUOTE
    + r"[0-9a-fA-F]{64}"
    + _HEX_END
    + r")"
    r"|(?<![0-9a-fA-F])[0-9a-fA-F]{64,}"
)

# Between two digits; the last part is what JSON and repr make of a no-break space or a dash.
_SEP = "(?:[ \t\u00a0\u2007\u2009\u202f.()\u2010-\u2015-]|" + r"\\xa0|\\u(?:00a0|20[012][0-9a-f])){0,5}"
_NINE = rf"[17](?:{_SEP}\d){{8}}(?!\d)"
_UNIT = r"(?![ _]?(?:bytes?|rows?)\b)"  # 254712345678 is a phone, 254712345678 bytes is a size, and B an initial
_PHONE = re.compile(
    r"(?P<keep>"
    r"(?<!\d)20\d\d-(?:0[1-9]|1[0-2])-(?:0[1-9]|[12]\d|3[01])(?!\d)"  # a date
    r"|(?<![0-9A-Za-z])[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}(?![0-9A-Za-z])"
    r"|(?<![0-9A-Za-z])(?:[0-9a-f]{64}|[0-9a-f]{40}|[0-9a-f]{32})(?![0-9A-Za-z])"  # digest, commit, ETag
    rf"|(?i:\b\w{{0,40}}(?:bytes|size)){_QUOTE}\s*[:=]\s*\d+(?!\d)"
    r")"
    rf"|(?:\+{_SEP}|(?<!\d)00{_SEP})254{_SEP}(?:0{_SEP})?{_NINE}"
    rf"|(?<!\d)254{_SEP}(?:0{_SEP})?{_NINE}{_UNIT}"
    rf"|(?<!\d)0{_NINE}"
    rf"|\+(?!20\d\d-\d\d-\d\d)[1-9](?:{_SEP}\d){{7,14}}"  # any other country, E.164
)


def scrub(text: str) -> str:
    """`text` with phone numbers as [phone] and secrets as [secret].

    Known: phone numbers (Kenyan in international and local form, E.164 with a plus sign; spaces, dashes, dots or
    brackets between the digits), age identities, PEM blocks, passwords and keys in URLs, values of names like
    password, AWS access keys, Slack tokens and webhooks, bearer tokens, JSON web tokens, and 64 hex characters
    unless labelled sha256.
    """
    text = _WORD.sub(_hide_userinfo, text)
    for pattern, replacement in _SECRETS:
        text = pattern.sub(replacement, text)
    text = _HEX_KEY.sub(lambda found: found["keep"] or SECRET, text)
    return _PHONE.sub(lambda found: found["keep"] or PHONE, text)


def _hide_userinfo(word: re.Match[str]) -> str:
    # A password may hold / and @: everything up to the last @ of the word goes.
    before, at, after = word[0].rpartition("@")
    start = _USERINFO.search(before) if at else None
    return f"{before[: start.end()]}{SECRET}@{after}" if start else word[0]


def scrub_all(value: Any) -> Any:
    """`value` (JSON-like: mappings, lists, text, numbers) with every text in it scrubbed, keys included.

    What stands under a name like password goes whole. Anything else but numbers and dates becomes its scrubbed
    repr: nothing that is turned into text later can slip through.
    """
    if isinstance(value, str):
        return scrub(value)
    if isinstance(value, int) and not isinstance(value, bool):
        return value if scrub(str(value)) == str(value) else PHONE
    if value is None or isinstance(value, bool | float | date):
        return value
    if isinstance(value, Mapping):
        return {scrub(str(name)): _scrub_named(str(name), inner) for name, inner in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [scrub_all(inner) for inner in value]
    return scrub(repr(value))


_IS_SECRET_NAME = re.compile(rf"(?i:.*{_NAME})")


def _scrub_named(name: str, value: Any) -> Any:
    if isinstance(value, int) and scrub(f"{name}={value}").endswith(str(value)):
        return value  # a size that happens to look like a phone number
    if value is not None and _IS_SECRET_NAME.fullmatch(name):
        return SECRET
    return scrub_all(value)
