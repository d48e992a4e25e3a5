"""The sandbox's S3: what the backups rely on works, and all of it survives a stop and a start."""

import contextlib
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from botocore.exceptions import ClientError

from sandbox import postgres, s3

BUCKET = "payme-backups"
MIB = 1024 * 1024


class Server:
    """One `python -m sandbox.s3` on a folder; stop() and start() keep port and folder."""

    def __init__(self, state: Path) -> None:
        self.state = state
        self.port = postgres.free_port()
        self.endpoint = f"http://127.0.0.1:{self.port}"
        self.start()

    def start(self) -> None:
        argv = [sys.executable, "-m", "sandbox.s3", "--port", str(self.port), "--state", str(self.state)]
        self.process = subprocess.Popen(argv, cwd=postgres.PROJECT, stdout=subprocess.PIPE, text=True)
        assert self.process.stdout is not None
        assert self.endpoint in self.process.stdout.readline()

    def stop(self, sig: signal.Signals = signal.SIGTERM) -> int:
        if self.process.poll() is None:
            self.process.send_signal(sig)
        code = self.process.wait(30)
        assert self.process.stdout is not None
        self.process.stdout.close()
        return code

    def restart(self) -> None:
        assert self.stop() == 0
        self.start()

    def memory_bytes(self, name: str = "VmRSS") -> int:
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return 1024 * int(next(line.split()[1] for line in status.splitlines() if line.startswith(name)))


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    running = Server(tmp_path / "s3")
    s3.create_buckets(running.endpoint)
    yield running
    running.stop(signal.SIGKILL)


def multipart(client: Any, key: str, parts: list[bytes], **arguments: Any) -> None:
    upload = client.create_multipart_upload(Bucket=BUCKET, Key=key, **arguments)["UploadId"]
    etags = [
        client.upload_part(Bucket=BUCKET, Key=key, UploadId=upload, PartNumber=n, Body=part)["ETag"]
        for n, part in enumerate(parts, 1)
    ]
    client.complete_multipart_upload(
        Bucket=BUCKET,
        Key=key,
        UploadId=upload,
        MultipartUpload={"Parts": [{"PartNumber": n, "ETag": etag} for n, etag in enumerate(etags, 1)]},
    )


def seen(client: Any, bucket: str) -> dict[str, Any]:
    """All that a client can see of a bucket and its objects, without what differs in every answer."""
    listing = client.list_object_versions(Bucket=bucket)
    objects = []
    for version in listing.get("Versions", []):
        which = {"Bucket": bucket, "Key": version["Key"], "VersionId": version["VersionId"]}
        answer = client.get_object(**which)
        tags = client.get_object_tagging(**which)["TagSet"]
        body = answer.pop("Body").read()
        del answer["ResponseMetadata"]
        objects.append((version, answer, tags, body))
    calls = (
        client.get_bucket_location,
        client.get_bucket_versioning,
        client.get_bucket_encryption,
        client.get_object_lock_configuration,
        client.get_bucket_lifecycle_configuration,
        client.get_public_access_block,
    )
    settings = [call(Bucket=bucket) for call in calls]
    for answer in settings:
        del answer["ResponseMetadata"]
    return {"objects": objects, "markers": listing.get("DeleteMarkers", []), "settings": settings}


def status_of(error: pytest.ExceptionInfo[ClientError]) -> int:
    return int(error.value.response["ResponseMetadata"]["HTTPStatusCode"])


def test_everything_survives_stop_and_start(server: Server) -> None:
    home, second = s3.client(server.endpoint), s3.client(server.endpoint, "eu-west-1")
    for body in (b"first", b"second"):
        home.put_object(Bucket=BUCKET, Key="twice", Body=body, Metadata={"run": body.decode()}, Tagging="tier=daily")
    home.put_object(Bucket=BUCKET, Key="gone", Body=b"deleted later", StorageClass="GLACIER")
    home.restore_object(Bucket=BUCKET, Key="gone", RestoreRequest={"Days": 3})
    home.delete_object(Bucket=BUCKET, Key="gone")
    multipart(
        home,
        "dump",
        [b"a" * 6 * MIB, b"b" * 6 * MIB, b"end"],
        StorageClass="STANDARD_IA",
        ServerSideEncryption="AES256",
        Metadata={"sha256": "0" * 64},
    )
    until = datetime(2099, 1, 1, tzinfo=UTC)
    home.put_object_retention(Bucket=BUCKET, Key="dump", Retention={"Mode": "COMPLIANCE", "RetainUntilDate": until})
    second.put_object(Bucket="payme-backups-dr", Key="copy", Body=b"far away")
    before = {name: seen(home, name) for name in s3.BUCKETS}

    server.restart()
    assert {name: seen(home, name) for name in s3.BUCKETS} == before
    server.restart()  # what was loaded is saved again
    assert {name: seen(home, name) for name in s3.BUCKETS} == before

    assert home.get_object(Bucket=BUCKET, Key="twice")["Body"].read() == b"second"
    dump = home.head_object(Bucket=BUCKET, Key="dump")
    assert dump["StorageClass"] == "STANDARD_IA"
    assert dump["ServerSideEncryption"] == "AES256"
    assert dump["ObjectLockRetainUntilDate"] == until
    with pytest.raises(ClientError, match="AccessDenied"):
        home.delete_object(Bucket=BUCKET, Key="dump", VersionId=dump["VersionId"])
    with pytest.raises(ClientError) as missing:
        home.get_object(Bucket=BUCKET, Key="gone")
    assert status_of(missing) == 404
    assert home.get_bucket_location(Bucket=BUCKET)["LocationConstraint"] == "af-south-1"
    assert second.get_bucket_location(Bucket="payme-backups-dr")["LocationConstraint"] == "eu-west-1"


def test_buckets_are_made_once(server: Server) -> None:
    s3.client(server.endpoint).put_object(Bucket=BUCKET, Key="kept", Body=b"kept")
    s3.create_buckets(server.endpoint)
    client = s3.client(server.endpoint)
    assert client.get_object(Bucket=BUCKET, Key="kept")["Body"].read() == b"kept"
    rules = client.get_bucket_lifecycle_configuration(Bucket=BUCKET)["Rules"]
    # Nothing may expire a backup behind retention's back.
    assert all("Expiration" not in rule and "Transitions" not in rule for rule in rules)
    encryption = client.get_bucket_encryption(Bucket=BUCKET)["ServerSideEncryptionConfiguration"]
    assert encryption["Rules"][0]["ApplyServerSideEncryptionByDefault"] == {"SSEAlgorithm": "AES256"}


def test_conditional_put_has_one_winner(server: Server) -> None:
    client = s3.client(server.endpoint)
    outcomes: list[int] = []

    def commit(body: bytes) -> None:
        try:
            client.put_object(Bucket=BUCKET, Key="manifest.json", Body=body, IfNoneMatch="*")
            outcomes.append(200)
        except ClientError as error:
            outcomes.append(error.response["ResponseMetadata"]["HTTPStatusCode"])

    threads = [threading.Thread(target=commit, args=[f"{n}".encode()]) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(outcomes) == [200] + [412] * 7


def test_a_copy_into_a_bucket_that_locks_needs_no_digest_and_is_locked(server: Server) -> None:
    client = s3.client(server.endpoint)
    client.put_object_lock_configuration(
        Bucket=BUCKET,
        ObjectLockConfiguration={
            "ObjectLockEnabled": "Enabled",
            "Rule": {"DefaultRetention": {"Mode": "GOVERNANCE", "Days": 14}},
        },
    )
    client.put_object(Bucket=BUCKET, Key="a", Body=b"a", ChecksumAlgorithm="CRC32")
    client.copy_object(Bucket=BUCKET, Key="b", CopySource={"Bucket": BUCKET, "Key": "a"})
    assert client.head_object(Bucket=BUCKET, Key="b")["ObjectLockMode"] == "GOVERNANCE"


def test_what_was_acknowledged_before_the_stop_is_there_after_it(server: Server) -> None:
    acknowledged = []

    def write() -> None:
        client = s3.client(server.endpoint)
        with contextlib.suppress(Exception):  # the stop ends it
            for n in range(100_000):
                client.put_object(Bucket=BUCKET, Key=f"{n:06}", Body=b"x")
                acknowledged.append(f"{n:06}")

    writer = threading.Thread(target=write)
    writer.start()
    while len(acknowledged) < 20:
        time.sleep(0.01)
    server.stop()
    writer.join()
    server.start()
    pages = s3.client(server.endpoint).get_paginator("list_objects_v2").paginate(Bucket=BUCKET)
    kept = {item["Key"] for page in pages for item in page.get("Contents", [])}
    assert set(acknowledged) <= kept


def test_kill_while_saving_keeps_the_former_state(server: Server) -> None:
    client = s3.client(server.endpoint)
    client.put_object(Bucket=BUCKET, Key="old", Body=b"old" * MIB)
    server.restart()
    multipart(client, "new", [b"n" * 64 * MIB])
    blobs = server.state / "blobs"
    server.process.send_signal(signal.SIGTERM)
    while len(list(blobs.iterdir())) < 2:  # the new blob is being written
        assert server.process.poll() is None
    server.stop(signal.SIGKILL)
    server.start()
    assert client.get_object(Bucket=BUCKET, Key="old")["Body"].read() == b"old" * MIB
    with pytest.raises(ClientError):
        client.head_object(Bucket=BUCKET, Key="new")
    assert len(list(blobs.iterdir())) == 1


def test_deleted_versions_leave_no_bytes_behind(server: Server) -> None:
    client = s3.client(server.endpoint)
    version = client.put_object(Bucket=BUCKET, Key="short", Body=b"s" * MIB)["VersionId"]
    server.restart()
    client.delete_object(Bucket=BUCKET, Key="short", VersionId=version)
    server.restart()
    assert list((server.state / "blobs").iterdir()) == []


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_saved_objects_do_not_come_back_into_memory(server: Server) -> None:
    client = s3.client(server.endpoint)
    for n in range(4):
        multipart(client, f"large-{n}", [b"l" * 32 * MIB])
    server.restart()
    idle = server.memory_bytes()
    for _ in range(5):
        assert len(client.list_object_versions(Bucket=BUCKET)["Versions"]) == 4
    assert server.memory_bytes() - idle < 16 * MIB
    assert server.memory_bytes("VmHWM") < 160 * MIB  # moto alone takes about 100


def test_state_folder_has_one_server(server: Server) -> None:
    second = subprocess.run(
        [sys.executable, "-m", "sandbox.s3", "--port", str(postgres.free_port()), "--state", str(server.state)],
        cwd=postgres.PROJECT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert second.returncode == 1
    assert "in use by another S3 server" in second.stderr


def test_state_of_another_format_is_refused(server: Server) -> None:
    server.stop()
    (server.state / "state.json").write_text('{"format": 99}')
    with pytest.raises(AssertionError):
        server.start()
    assert server.stop() == 1


def test_clock_of_the_server_is_in_its_answers(server: Server) -> None:
    headers = s3.client(server.endpoint).head_bucket(Bucket=BUCKET)["ResponseMetadata"]["HTTPHeaders"]
    told = datetime.strptime(headers["date"], "%a, %d %b %Y %H:%M:%S %Z").replace(tzinfo=UTC)
    assert abs(datetime.now(UTC) - told) < timedelta(seconds=5)
