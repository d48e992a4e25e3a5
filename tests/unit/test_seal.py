"""Sealing: what went in comes out, and not one byte less or other goes unnoticed."""

import hashlib
import io
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pyrage
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from payme_ops.backup.seal import DigestWriter, parse_identity, parse_recipient, seal, unseal
from payme_ops.foundation.errors import IntegrityError, SettingsError, StoreUnavailable

RECOVERY, DRILL, STRANGER = (pyrage.x25519.Identity.generate() for _ in range(3))
RECIPIENTS = {"recovery": str(RECOVERY.to_public()), "drill": str(DRILL.to_public())}
KIB64 = 65536  # age's unit of encryption: sizes around it are where faults hide
CHUNKS = st.lists(
    st.binary(max_size=200) | st.sampled_from([KIB64 - 1, KIB64, KIB64 + 1, 3 * KIB64]).map(bytes), max_size=6
)


class Sink(io.BytesIO):
    """A writer that keeps everything."""


def sealed(chunks: list[bytes]) -> bytes:
    target = Sink()
    seal(iter(chunks), target, RECIPIENTS)
    return target.getvalue()


def opened(data: bytes, identity: pyrage.x25519.Identity, step: int = 1000) -> bytes:
    target = Sink()
    unseal((data[at : at + step] for at in range(0, len(data), step)), target, identity)
    return target.getvalue()


@given(CHUNKS, st.sampled_from([RECOVERY, DRILL]), st.sampled_from([1000, 100_000]))
@settings(deadline=None, max_examples=60)
def test_round_trip(chunks: list[bytes], identity: pyrage.x25519.Identity, step: int) -> None:
    # An empty chunk would be the end of the stream to a reader, so a source never yields one.
    chunks = [chunk for chunk in chunks if chunk]
    assert opened(sealed(chunks), identity, step) == b"".join(chunks)


SMALL, LARGE = sealed([b"payme" * 20]), sealed([bytes(range(256)) * 700])


def test_any_truncation_of_a_small_one_is_found() -> None:
    for length in range(len(SMALL)):
        with pytest.raises(IntegrityError):
            opened(SMALL[:length], DRILL)


@given(st.integers(0, len(LARGE) - 1))
@settings(deadline=None, max_examples=60)
def test_any_truncation_of_a_large_one_is_found(length: int) -> None:
    with pytest.raises(IntegrityError):
        opened(LARGE[:length], DRILL, 50_000)


@pytest.mark.parametrize("length", [2 * KIB64, KIB64])
def test_a_cut_between_two_units_is_found(length: int) -> None:
    header = len(LARGE) - len(bytes(range(256)) * 700) - 16 * 3
    with pytest.raises(IntegrityError):
        opened(LARGE[: header + length + 16 * (length // KIB64)], DRILL, 50_000)


def test_any_flipped_byte_of_a_small_one_is_found_by_either_key() -> None:
    for place in range(len(SMALL)):
        bad = bytearray(SMALL)
        bad[place] ^= 1
        for identity in (RECOVERY, DRILL):
            with pytest.raises(IntegrityError):
                opened(bytes(bad), identity)


@given(st.integers(0, len(LARGE) - 1), st.integers(1, 255))
@settings(deadline=None, max_examples=60)
def test_any_flipped_byte_of_a_large_one_is_found(place: int, change: int) -> None:
    bad = bytearray(LARGE)
    bad[place] ^= change
    with pytest.raises(IntegrityError):
        opened(bytes(bad), DRILL, 50_000)


@given(st.binary(min_size=1, max_size=50))
def test_bytes_after_the_end_are_found(tail: bytes) -> None:
    with pytest.raises(IntegrityError):
        opened(SMALL + tail, DRILL)


def test_swapped_units_are_found() -> None:
    header = len(LARGE) - len(bytes(range(256)) * 700) - 16 * 3
    unit = KIB64 + 16
    one, two = LARGE[header : header + unit], LARGE[header + unit : header + 2 * unit]
    with pytest.raises(IntegrityError):
        opened(LARGE[:header] + two + one + LARGE[header + 2 * unit :], DRILL, 50_000)


def test_a_strangers_key_opens_nothing_and_the_text_says_what_to_check() -> None:
    with pytest.raises(IntegrityError, match="cannot be opened") as caught:
        opened(SMALL, STRANGER)
    assert "drill or recovery key" in caught.value.remedy


def test_no_plaintext_in_the_sealed_bytes() -> None:
    assert b"payme" not in SMALL


def test_what_the_source_raises_comes_out_as_it_was_and_nothing_more_is_written() -> None:
    def broken() -> Iterator[bytes]:
        yield b"x" * 100_000
        raise StoreUnavailable("the source broke off")

    target = Sink()
    with pytest.raises(StoreUnavailable, match="broke off"):
        seal(broken(), target, RECIPIENTS)
    with pytest.raises(IntegrityError):
        opened(target.getvalue(), DRILL)


class FailsAt:
    """A writer whose nth write fails."""

    def __init__(self, number: int) -> None:
        self.number, self.writes = number, 0

    def write(self, data: bytes) -> int:
        self.writes += 1
        if self.writes == self.number:
            raise StoreUnavailable("no room")
        return len(data)


@pytest.mark.parametrize("size", [0, 1, 9000, KIB64, 200_000])
def test_what_the_target_raises_comes_out_whichever_write_it_was(size: int) -> None:
    """pyrage itself is silent about the very last one."""
    counting = FailsAt(0)
    seal(iter([bytes(size)]), counting, RECIPIENTS)
    assert counting.writes > 0
    for number in range(1, counting.writes + 1):
        with pytest.raises(StoreUnavailable, match="no room"):
            seal(iter([bytes(size)]), FailsAt(number), RECIPIENTS)


def test_what_the_target_of_opening_raises_comes_out_whichever_write_it_was() -> None:
    counting = FailsAt(0)
    unseal(iter([LARGE]), counting, DRILL)
    assert counting.writes > 1
    for number in range(1, counting.writes + 1):
        with pytest.raises(StoreUnavailable, match="no room"):
            unseal(iter([LARGE]), FailsAt(number), DRILL)


@pytest.mark.parametrize("stop", [KeyboardInterrupt, SystemExit(143)])
def test_a_stop_signal_comes_out_as_it_was(stop: BaseException) -> None:
    def stopped() -> Iterator[bytes]:
        yield b"x"
        raise stop

    with pytest.raises(stop if isinstance(stop, type) else type(stop)):
        seal(stopped(), Sink(), RECIPIENTS)


@given(st.lists(st.binary(max_size=50)))
def test_digest_writer_counts_and_hashes_what_passes(chunks: list[bytes]) -> None:
    target = Sink()
    writer = DigestWriter(target)
    for chunk in chunks:
        writer.write(chunk)
    assert target.getvalue() == b"".join(chunks)
    assert writer.size_bytes == len(b"".join(chunks))
    assert writer.sha256 == hashlib.sha256(b"".join(chunks)).hexdigest()


@pytest.mark.parametrize(
    "text",
    ["", "age1", RECIPIENTS["drill"][:-1], RECIPIENTS["drill"].upper() + "q", str(DRILL)],
    ids=["nothing", "beginning", "cut", "too long", "identity"],  # keys are others each time
)
def test_a_recipient_that_does_not_parse_is_named_and_not_shown(text: str) -> None:
    with pytest.raises(SettingsError, match="the drill recipient") as caught:
        parse_recipient("drill", text)
    assert len(text) < 5 or text[5:] not in str(caught.value)


def test_identity_files_as_age_keygen_writes_them() -> None:
    text = f"# created: 2026-01-28\n# public key: {DRILL.to_public()}\n\n{DRILL}\n"
    assert str(parse_identity(text)) == str(DRILL)


@pytest.mark.parametrize("text", ["", "# nothing\n", "AGE-SECRET-KEY-1WRONG\n", "age1abc\n"])
def test_an_identity_file_without_a_key(text: str) -> None:
    with pytest.raises(SettingsError) as caught:
        parse_identity(text)
    assert "WRONG" not in str(caught.value)


def test_stock_age_opens_what_we_seal(tmp_path: Path) -> None:
    (tmp_path / "identity").write_text(f"{RECOVERY}\n")
    try:
        ended = subprocess.run(["age", "-d", "-i", tmp_path / "identity"], input=LARGE, capture_output=True, check=True)
    except FileNotFoundError:
        pytest.skip("age is not installed")
    assert ended.stdout == bytes(range(256)) * 700
