"""No secret and no phone number of a known shape survives `scrub`; ordinary operations text is left alone."""

import json
import re
import string
import time
from datetime import UTC, datetime

import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from psycopg.conninfo import make_conninfo

from payme_ops.foundation.scrub import PHONE, SECRET, scrub, scrub_all

DIGITS = st.sampled_from("0123456789")
HEX = "0123456789abcdef"
SEPARATORS = st.sampled_from(["", "", "", " ", "-", ".", "\u00a0", "\u2011", " - ", ") "])


def digits(size: int) -> st.SearchStrategy[list[str]]:
    return st.lists(DIGITS, min_size=size, max_size=size)


@st.composite
def kenyan_phones(draw: st.DrawFn) -> str:
    """A Kenyan mobile number as people write it: any prefix, any separators between the digits."""
    prefix = draw(st.sampled_from(["0", "254", "+254", "+ 254", "00254", "+254(0)", "+254 (0) "]))
    first = draw(st.sampled_from("17"))
    rest = draw(digits(8))
    gap = draw(SEPARATORS) if prefix != "0" else ""
    return prefix + gap + first + "".join(draw(SEPARATORS) + digit for digit in rest)


@st.composite
def foreign_phones(draw: st.DrawFn) -> str:
    """E.164: a plus sign, then 8 to 15 digits, the first not 0."""
    first = draw(st.sampled_from("13456789"))  # +20.. is Egypt, and also how a date begins after a plus
    rest = draw(st.lists(DIGITS, min_size=7, max_size=14))
    return f"+{first}" + "".join(draw(SEPARATORS) + digit for digit in rest)


# Words around a secret: letters, punctuation, line ends; no digits, which would make a longer number of a phone.
AROUND = st.text(alphabet=string.ascii_letters + " \n\t,;:/_=()[]{}'\"<>|#!?*", max_size=30)


def only_digits(text: str) -> str:
    return "".join(character for character in text if character.isdigit())


@settings(deadline=None)
@given(phone=kenyan_phones() | foreign_phones(), before=AROUND, after=AROUND)
@example(phone="0712345678", before="user", after="")
@example(phone="254712345678", before="COPY payme.users: 17\t", after="\tbytes")
@example(phone="254712345678", before="", after=" B. Kamau")
@example(phone="+254712345678", before='{"phone":"', after='"}')
def test_no_phone_survives(phone: str, before: str, after: str) -> None:
    # These words make a size of it; hypothesis knows them from the source.
    assume(not re.match(r"[ _]?(bytes?|rows?)\b", after))
    assume(not re.search(r"(?i:bytes|size)[\\\"']*\s*[:=]\s*\Z", before))
    cleaned = scrub(before + phone + after)
    assert phone not in cleaned
    assert len(only_digits(cleaned)) <= 3, cleaned


@settings(deadline=None)
@given(phone=kenyan_phones(), number=st.integers(0, 999), sep=st.sampled_from(["\t", " ", ",", ";", "|", "\n"]))
def test_no_phone_survives_between_other_columns(phone: str, number: int, sep: str) -> None:
    cleaned = scrub(f"{number}{sep}{phone}{sep}active")
    assert PHONE in cleaned
    assert only_digits(phone)[-9:] not in only_digits(cleaned)


@settings(deadline=None)
@given(st.lists(kenyan_phones(), min_size=2, max_size=5))
def test_no_phone_of_a_list_survives(phones: list[str]) -> None:
    assert only_digits(scrub(json.dumps(phones))) == ""
    assert only_digits(scrub(repr(phones))) == ""


BECH32 = "QPZRY9X8GF2TVDW0S3JN54KHCE6MUA7L"
BASE64 = string.ascii_letters + string.digits + "+/"
TOKEN = string.ascii_letters + string.digits + "-._~+/"
SHAPES = {
    "age identity": st.text(BECH32, min_size=58, max_size=58).map("AGE-SECRET-KEY-1{}".format),
    "age identity, lower case": st.text(BECH32.lower(), min_size=58, max_size=58).map("age-secret-key-1{}".format),
    "PEM": st.text(BASE64 + "\n", min_size=20, max_size=200).map(
        lambda body: f"-----BEGIN PRIVATE KEY-----\n{body}\n-----END PRIVATE KEY-----"
    ),
    "cut off PEM": st.text(BASE64 + "\n", min_size=20).map("-----BEGIN OPENSSH PRIVATE KEY-----\n{}".format),
    "AWS key id": st.text(string.ascii_uppercase + string.digits, min_size=16, max_size=16).map("AKIA{}".format),
    "Slack token": st.text(string.ascii_letters + string.digits + "-", min_size=10).map("xoxb-{}".format),
    "Slack app token": st.text(string.ascii_letters + string.digits + "-", min_size=10).map("xapp-1-{}".format),
    "64-hex key": st.text(HEX, min_size=64, max_size=64),
    "64-HEX key": st.text(HEX.upper(), min_size=64, max_size=64),
}


@pytest.mark.parametrize("shape", SHAPES)
@settings(deadline=None)
@given(data=st.data())
def test_no_key_survives(shape: str, data: st.DataObject) -> None:
    secret = data.draw(SHAPES[shape])
    before = data.draw(st.sampled_from(["", "key ", "key=", '"', "(", "\n", "cannot parse: ", "\\x"]))
    after = data.draw(st.sampled_from(["", " is wrong", '"', ")", "\n", ", try again", ";"]))
    cleaned = scrub(before + secret + after)
    assert secret not in cleaned
    assert cleaned in (before + SECRET + after, before + SECRET)  # cut off PEM: everything up to the end


SECRET_TEXT = st.text(string.ascii_letters + string.digits + "!$%()*+,./;<>?@[]^_{|}~-", min_size=6, max_size=40)
NAMES = st.sampled_from(
    [
        "password",
        "PGPASSWORD",
        "Passwd",
        "aws_secret_access_key",
        "SecretAccessKey",
        "AWS_SECRET_ACCESS_KEY",
        "aws_session_token",
        "client_secret",
        "api_key",
        "ENCRYPTION_KEY",
        "secret access key",
        "X-Amz-Security-Token",
    ]
)


@settings(deadline=None)
@given(name=NAMES, secret=SECRET_TEXT, sign=st.sampled_from(["=", ": ", " = ", "=>"]))
def test_no_value_of_a_secret_name_survives(name: str, secret: str, sign: str) -> None:
    assert secret not in scrub(f"env {name}{sign}{secret} end").replace(SECRET, "")


@settings(deadline=None)
@given(name=NAMES, secret=st.text(min_size=6, max_size=40).filter(lambda text: text not in "the secret password"))
def test_no_quoted_value_of_a_secret_name_survives(name: str, secret: str) -> None:
    for text in (
        json.dumps({name: secret, "user": "payme"}),
        json.dumps(json.dumps({name: secret, "user": "payme"})),
        repr({name: secret, "user": "payme"}),
    ):
        cleaned = scrub(text)
        for shown in (secret, json.dumps(secret)[1:-1], repr(secret)[1:-1]):
            assert shown.strip() == "" or shown not in cleaned.replace(SECRET, ""), cleaned
    assert scrub_all({name: secret}) == {scrub(name): SECRET}


@example(secret='"a"bc')
@settings(deadline=None)
@given(secret=st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), min_size=6, max_size=40))
def test_no_libpq_password_survives(secret: str) -> None:
    conninfo = make_conninfo(host="db", user="payme_db_read", password=secret, dbname="payme")
    cleaned = scrub(f"connect with {conninfo}")
    assert cleaned.removesuffix(" dbname=payme") == f"connect with host=db user=payme_db_read password={SECRET}"


@settings(deadline=None)
@given(
    secret=SECRET_TEXT,
    scheme=st.sampled_from(["postgresql", "postgres", "postgresql+psycopg2", "https", "redis", "amqp", "s3"]),
    user=st.sampled_from(["", "payme", "payme_ops"]),
)
def test_no_password_of_a_url_survives(secret: str, scheme: str, user: str) -> None:
    cleaned = scrub(f"connect to {scheme}://{user}:{secret}@db.internal:5432/payme?sslmode=require failed")
    assert cleaned == f"connect to {scheme}://{user}:{SECRET}@db.internal:5432/payme?sslmode=require failed"


@settings(deadline=None)
@given(key=st.text(HEX, min_size=32, max_size=32), host=st.sampled_from(["o1.ingest.sentry.io", "127.0.0.1:9000"]))
def test_no_sentry_key_survives(key: str, host: str) -> None:
    assert scrub(f"dsn=https://{key}@{host}/42") == f"dsn=https://{SECRET}@{host}/42"
    assert key not in scrub(f"X-Sentry-Auth: Sentry sentry_version=7, sentry_key={key}, sentry_client=x/1")


@settings(deadline=None)
@given(token=st.text(TOKEN, min_size=8, max_size=60), header=st.sampled_from(["Authorization: Bearer ", "bearer "]))
def test_no_bearer_token_survives(token: str, header: str) -> None:
    assert token not in scrub(f"{header}{token}").replace("Authorization", "").replace("authorization", "")


@settings(deadline=None)
@given(st.text(max_size=300) | AROUND.flatmap(lambda text: kenyan_phones().map(lambda phone: text + phone)))
def test_scrubbing_twice_changes_nothing_more(text: str) -> None:
    assert scrub(scrub(text)) == scrub(text)


@settings(deadline=None)
@given(digest=st.text(HEX, min_size=64, max_size=64), label=st.sampled_from(["sha256", "SHA-256", "content_sha256"]))
def test_a_labelled_digest_stays(digest: str, label: str) -> None:
    for text in (f"{label}={digest}", f"{label}: {digest}", f"{label} {digest}", json.dumps({label: digest, "n": 1})):
        assert scrub(text) == text


@settings(deadline=None)
@given(instant=st.datetimes(datetime(2020, 1, 1), datetime(2099, 12, 31)), rows=st.integers(0, 10**9))  # noqa: DTZ001
def test_times_keys_and_run_ids_stay(instant: datetime, rows: int) -> None:
    stamp = instant.replace(tzinfo=UTC).isoformat()
    for text in (
        stamp,
        f"manual__{stamp}_Ab1",
        f"scheduled__{stamp}",
        f"postgres/payme/daily/{instant:%Y%m%dT%H%M%S}EAT/manifest.json",
        f"{instant:%Y-%m-%d %H:%M:%S} EAT {rows} rows",
        f"{instant:%Y-%m-%d} {rows} rows",
        f"[{stamp}] {{taskinstance.py:1234}} INFO - exported in {rows / 1e6:.3f} s",
    ):
        assert scrub(text) == text


@settings(deadline=None)
@given(count=st.integers(0, 10**15), unit=st.sampled_from(["bytes", "B", "rows", "byte"]))
@example(count=254712345678, unit="bytes")
def test_sizes_and_counts_stay(count: int, unit: str) -> None:
    for text in (f"wrote {count} {unit}", f"size={count}", f"size_bytes: {count}", json.dumps({"total_bytes": count})):
        assert scrub(text) == text
    assert scrub_all({"size_bytes": count}) == {"size_bytes": count}


@pytest.mark.parametrize(
    "text",
    [
        'FATAL:  password authentication failed for user "payme_db_read"',
        "lease snapshot:payme is held by backup_daily/manual__2026-11-24T02:00:00+00:00 since 02:00:03 EAT, token=17",
        "s3://payme-backups/postgres/payme/daily/20260128T020000EAT/payme.dump.age, 1 073 741 824 bytes",
        "exit status 1: pg_dump: error: query failed: ERROR:  canceling statement due to lock timeout",
        "SQLSTATE 55P03 canceling statement due to lock timeout, table users, constraint users_phone_key",
        "recipient age1ql3z7hjy54pw3hyww5ayyfg7zqgvc7w3j2elw8zmrj2kg5sfn9aqmcac8p does not parse",
        "part 12 of 64, ETag 0712345678abcdef0712345678abcdef-12, 33554432 of 2147483648 bytes, 187.2 MB/s, ETA 9 s",
        "commit 0112345678aabbccddee0112345678aabbccddee",
        "task instance 019b0712-3456-7123-8456-071234567890 was killed (exit code -9)",
        "connect to 127.0.0.1:5432 as payme_db_read: server closed the connection unexpectedly (10.0.17.12)",
        "http://127.0.0.1:8080/dags/backup_daily/runs/manual__2026-11-24T02%3A00%3A00%2B00%3A00/tasks/preflight",
        "postgresql://payme_db_read@db.internal/payme",
        "the request carried no bearer token",
        "sum of hashes -4823947123456789012 expected, 254712345678901234 found",
    ],
)
def test_ordinary_text_stays(text: str) -> None:
    assert scrub(text) == text


def test_scrub_all_goes_everywhere() -> None:
    cleaned = scrub_all(
        {
            "message": "user 0712345678",
            "0712345678": ["+254712345678", ("xoxb-123456789012", 254712345678)],
            "extra": {
                "password": ["hunter2"],
                "note": ValueError("call 0112345678"),
                "when": datetime(2026, 1, 2, tzinfo=UTC),
            },
            "flags": {"secret": None, "ok": True, "share": 0.5, "size_bytes": 254712345678},
        }
    )
    assert cleaned == {
        "message": "user [phone]",
        "[phone]": ["[phone]", ["[secret]", "[phone]"]],
        "extra": {
            "password": "[secret]",
            "note": "ValueError('call [phone]')",
            "when": datetime(2026, 1, 2, tzinfo=UTC),
        },
        "flags": {"secret": None, "ok": True, "share": 0.5, "size_bytes": 254712345678},
    }


@pytest.mark.parametrize(
    "piece",
    ["a", "0712", "+1 2 3", "a://b:", "a@", 'password=\\"', "sha256", "secret ", "bearer ", "254(((0", "a.", "\\", " "],
)
def test_long_text_takes_time_in_proportion(piece: str) -> None:
    """A log of a megabyte made to be slow: patterns that try every start against every end would take hours."""
    text = piece * (1_000_000 // len(piece))
    started = time.monotonic()
    scrub(text)
    assert time.monotonic() - started < 10
