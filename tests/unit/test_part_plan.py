"""Parts of an upload: never more than S3 takes, never more memory than planned, in order, and whole."""

import hashlib
import threading
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from payme_ops.foundation import objectstore
from payme_ops.foundation.errors import StoreRefused
from payme_ops.foundation.objectstore import MIB, PART_PLAN, Bucket, MultipartWriter


class Client:
    """Takes parts as S3 does, and counts the bytes that are held for it at the same time."""

    def __init__(self) -> None:
        self.parts: dict[int, bytes] = {}
        self.object: bytes | None = None
        self.aborted = False
        self.held = self.most_held = 0
        self._lock = threading.Lock()

    def create_multipart_upload(self, **_: Any) -> dict[str, str]:
        return {"UploadId": "1"}

    def upload_part(self, *, PartNumber: int, Body: bytearray, **_: Any) -> dict[str, str]:  # S3's names
        with self._lock:
            self.held += len(Body)
            self.most_held = max(self.most_held, self.held)
        self.parts[PartNumber] = bytes(Body)
        with self._lock:
            self.held -= len(Body)
        return {"ETag": hashlib.sha256(Body).hexdigest()}

    def complete_multipart_upload(self, *, MultipartUpload: dict[str, Any], **_: Any) -> None:
        listed = MultipartUpload["Parts"]
        assert [part["PartNumber"] for part in listed] == list(range(1, len(listed) + 1))
        for part in listed:
            assert part["ETag"] == hashlib.sha256(self.parts[part["PartNumber"]]).hexdigest()
        self.object = b"".join(self.parts[part["PartNumber"]] for part in listed)

    def abort_multipart_upload(self, **_: Any) -> None:
        self.aborted = True


@pytest.fixture
def bytes_for_mebibytes(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same plan with a byte where a MiB would be."""
    monkeypatch.setattr(objectstore, "PART_PLAN", tuple((count, part // MIB) for count, part in PART_PLAN))
    monkeypatch.setattr(objectstore, "_BUFFER_BUDGET", objectstore._BUFFER_BUDGET // MIB)


LARGEST = sum(count * part // MIB for count, part in PART_PLAN)


def write(client: Client, total: int, step: int) -> None:
    with MultipartWriter(Bucket(client, "bucket"), "key") as upload:  # type: ignore[arg-type]
        for at in range(0, total, step):
            upload.write(bytes(min(step, total - at)))
        upload.complete()


def test_the_plan_is_what_s3_takes() -> None:
    assert sum(count for count, _ in PART_PLAN) == 10_000
    assert all(5 * MIB <= part <= 5 * 1024 * MIB for _, part in PART_PLAN)
    assert objectstore.LARGEST_OBJECT_BYTES == sum(count * part for count, part in PART_PLAN) > 350 * 10**9


def test_the_largest_part_twice_fits_the_budget() -> None:
    """One is filled while another is under way; the budget itself leaves half of 200 MB to the rest of the process."""
    assert 2 * max(part for _, part in PART_PLAN) <= objectstore._BUFFER_BUDGET <= 100 * MIB


@pytest.mark.usefixtures("bytes_for_mebibytes")
def test_the_largest_object_takes_ten_thousand_parts() -> None:
    client = Client()
    write(client, LARGEST, 8)
    assert len(client.parts) == 10_000
    assert client.object is not None
    assert len(client.object) == LARGEST


@pytest.mark.usefixtures("bytes_for_mebibytes")
def test_one_byte_more_is_refused_with_advice_and_aborted() -> None:
    client = Client()
    with pytest.raises(StoreRefused, match="too large") as caught:
        write(client, LARGEST + 1, 8)
    assert caught.value.remedy
    assert client.aborted
    assert client.object is None


class SlowClient(Client):
    """Holds every part until the writer waits for it, as a slow store does: the most that can be under way is."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = threading.Semaphore(0)

    def upload_part(self, **arguments: Any) -> dict[str, str]:
        with self._lock:
            self.held += len(arguments["Body"])
            self.most_held = max(self.most_held, self.held)
        self.gate.acquire(timeout=0.01)
        with self._lock:
            self.held -= len(arguments["Body"])
        return super().upload_part(**arguments)


@pytest.mark.usefixtures("bytes_for_mebibytes")
@pytest.mark.parametrize("size_index", range(len(PART_PLAN)))
def test_what_is_filled_and_under_way_stays_within_the_budget(monkeypatch: pytest.MonkeyPatch, size_index: int) -> None:
    part = PART_PLAN[size_index][1] // MIB
    monkeypatch.setattr(objectstore, "PART_PLAN", ((20, part),))
    client = SlowClient()
    write(client, 10 * part, part)
    assert client.most_held + part <= objectstore._BUFFER_BUDGET
    assert client.most_held <= 2 * part


@given(st.lists(st.binary(max_size=90), max_size=20))
@settings(deadline=None, max_examples=50)
def test_any_sequence_of_writes_is_the_object(chunks: list[bytes]) -> None:
    client = Client()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(objectstore, "PART_PLAN", ((3, 16), (3, 32), (100, 40)))
        with MultipartWriter(Bucket(client, "bucket"), "key") as upload:  # type: ignore[arg-type]
            for chunk in chunks:
                upload.write(chunk)
            upload.complete()
    assert client.object == b"".join(chunks)


def test_without_complete_the_upload_is_aborted() -> None:
    client = Client()
    with MultipartWriter(Bucket(client, "bucket"), "key") as upload:  # type: ignore[arg-type]
        upload.write(b"x")
    assert client.aborted
    assert client.object is None
