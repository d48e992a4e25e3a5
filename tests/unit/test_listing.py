"""The archive's table of contents: every entry counted once, under its own kind."""

import re
import stat
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from payme_ops.backup import listing
from payme_ops.backup.listing import ListingTee, count_entries

KINDS = [
    *("TABLE", "TABLE DATA", "TABLE ATTACH", "FK CONSTRAINT", "CONSTRAINT", "CHECK CONSTRAINT", "SEQUENCE"),
    *("SEQUENCE SET", "SEQUENCE OWNED BY", "MATERIALIZED VIEW", "MATERIALIZED VIEW DATA", "VIEW", "INDEX"),
    *("INDEX ATTACH", "BLOB", "BLOBS", "BLOB METADATA", "ACL", "DEFAULT ACL", "DEFAULT", "COMMENT", "TYPE", "DOMAIN"),
    *("EXTENSION", "ROW SECURITY", "POLICY", "TRIGGER", "PUBLICATION TABLES IN SCHEMA", "ENCODING", "STDSTRINGS"),
]
NAMES = st.text(st.characters(blacklist_categories=["Cc", "Cs", "Zl", "Zp"]), min_size=1, max_size=20)
ENTRIES = st.tuples(st.integers(1, 10**6), st.integers(0, 10**6), st.integers(0, 10**6), st.sampled_from(KINDS), NAMES)
HEAD = ";\n; Archive created at 2026-01-28 02:00:00 EAT\n;     dbname: payme\n;     TOC Entries: 3\n;\n"


@given(st.lists(ENTRIES, max_size=20))
def test_every_entry_is_counted_under_its_kind(entries: list[tuple[int, int, int, str, str]]) -> None:
    lines = [f"{number}; {oid} {table} {kind} public {name} owner" for number, oid, table, kind, name in entries]
    assert count_entries(HEAD + "\n".join(lines)) == dict(sorted(Counter(entry[3] for entry in entries).items()))


@given(st.text())
def test_no_text_breaks_it_and_nothing_is_lost(text: str) -> None:
    counted = count_entries(text)
    assert sum(counted.values()) == sum(1 for line in text.splitlines() if line and line[0].isdigit() and "; " in line)


def test_a_kind_of_a_later_version_is_counted_as_other() -> None:
    assert count_entries("5; 1 2 PROPERTY GRAPH public ledger owner\n6; 1 2 TABLE public users owner") == {
        "OTHER": 1,
        "TABLE": 1,
    }


def test_every_kind_is_found_although_some_begin_like_others() -> None:
    for kind in listing._KINDS:
        assert count_entries(f"1; 1 1 {kind} public x owner") == {kind: 1}


@pytest.fixture
def pg_restore(tmp_path: Path) -> Path:
    """A stand-in that reads the first two lines and prints them as its listing, as pg_restore reads the head only."""
    path = tmp_path / "pg_restore"
    path.write_text(
        '#!/bin/sh\nread one\nread two\ncase $one in [0-9]*) printf \'%s\\n%s\\n\' "$one" "$two" ;; *) exit 1 ;; esac\n'
    )
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return path


def test_the_tee_reads_the_head_and_lets_the_rest_pass(pg_restore: Path) -> None:
    tee = ListingTee(pg_restore)
    tee.feed(b"1; 1 1 TABLE public a owner\n2; 1 1 TAB")
    tee.feed(b"LE DATA public a owner\n")
    for _ in range(50):
        tee.feed(bytes(100_000))  # pg_restore has ended long before; this must neither block nor fail
    assert tee.counts() == {"TABLE": 1, "TABLE DATA": 1}


def test_a_stream_that_is_no_archive_has_no_counts(pg_restore: Path) -> None:
    tee = ListingTee(pg_restore)
    tee.feed(b"hello")
    assert tee.counts() is None


def test_kill_leaves_no_process(pg_restore: Path) -> None:
    tee = ListingTee(pg_restore)
    tee.feed(b"1; 1 1 TABLE")
    tee.kill()
    assert tee._process.returncode is not None


def test_kinds_are_words() -> None:
    assert all(re.fullmatch(r"[A-Z]+( [A-Z]+)*", kind) for kind in listing._KINDS)
