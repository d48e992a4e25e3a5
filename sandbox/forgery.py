"""What somebody who holds the backup worker's keys could do to a stored backup: change it and sign it again.

The tour and the mutation drill use it to show that the restore test still finds it: the truth in the manifest was taken
in the dump's own snapshot, and a changed archive does not come to it.
"""

import hashlib
import io
import os
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path

import psycopg
import pyrage
from backports import zstd
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from payme_ops.backup.manifest import Manifest, SealedObject, document
from payme_ops.backup.seal import seal, unseal
from payme_ops.foundation.evidence import canonical
from payme_ops.foundation.objectstore import Bucket
from payme_ops.foundation.signing import sign
from sandbox import postgres
from sandbox.postgres import Cluster

_DATABASE = "forged"


def change_content(
    bucket: Bucket,
    done: Manifest,
    change: Callable[[psycopg.Connection], object],
    *,
    identity: pyrage.x25519.Identity,
    signing_key: Ed25519PrivateKey,
    bin_dir: Path,
) -> Manifest:
    """Restore the backup on a server of one's own, `change` it there, dump it again, and put that in its place.

    The new archive's length and SHA-256 go into the manifest, which is signed again; the truth stays. Memory: the
    whole archive; for the sandbox's databases. Raises CalledProcessError when a client tool fails.
    """
    with postgres.temporary_cluster(bin_dir=bin_dir) as cluster, tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "archive")
        path.write_bytes(plain(bucket, done, identity))
        make_roles(cluster, opened(bucket, done.globals, identity))
        with psycopg.connect(cluster.conninfo(), autocommit=True) as admin:
            admin.execute(f"CREATE DATABASE {_DATABASE} TEMPLATE template0")
        _tool(cluster, "pg_restore", "--exit-on-error", str(path))
        with psycopg.connect(cluster.conninfo(_DATABASE), autocommit=True) as connection:
            change(connection)
        inside = done.dump.compression_place == "inside"
        _tool(cluster, "pg_dump", "--format=custom", f"--compress={'zstd:1' if inside else '0'}", f"--file={path}")
        dumped = path.read_bytes()
    return replace_archive(bucket, done, dumped if inside else zstd.compress(dumped, 1), signing_key=signing_key)


def replace_archive(
    bucket: Bucket,
    done: Manifest,
    data: bytes,
    *,
    signing_key: Ed25519PrivateKey,
    recipients: dict[str, str] | None = None,
) -> Manifest:
    """Seal `data` (to the backup's recipients), put it in the archive's place, and sign a manifest that fits it."""
    body = sealed_to(recipients or done.sealing.recipients, data)
    archive = SealedObject(key=done.archive.key, size_bytes=len(body), sha256=hashlib.sha256(body).hexdigest())
    bucket.put(archive.key, body)
    return sign_again(bucket, done.model_copy(update={"archive": archive}), signing_key=signing_key)


def sign_again(bucket: Bucket, changed: Manifest, *, signing_key: Ed25519PrivateKey) -> Manifest:
    """Put the changed manifest in the place of the one there."""
    bucket.put(changed.key, canonical(sign(document(changed), signing_key)))
    return changed


def opened(bucket: Bucket, stored: SealedObject, identity: pyrage.x25519.Identity) -> bytes:
    """The plain bytes of a sealed object."""
    out = io.BytesIO()
    unseal(iter([bucket.get(stored.key, limit=stored.size_bytes)]), out, identity)
    return out.getvalue()


def plain(bucket: Bucket, done: Manifest, identity: pyrage.x25519.Identity) -> bytes:
    """The archive as pg_dump wrote it."""
    data = opened(bucket, done.archive, identity)
    return data if done.dump.compression_place == "inside" else zstd.decompress(data)


def make_roles(cluster: Cluster, script: bytes) -> None:
    """The roles of the backup; what the server has already (its superuser) is no error here."""
    subprocess.run(
        [cluster.bin_dir / "psql", "--quiet", "--no-psqlrc", f"--dbname={cluster.conninfo()}"],
        input=script,
        capture_output=True,
        check=True,
        env={"PATH": os.defpath, "LC_ALL": "C"},
    )


def _tool(cluster: Cluster, name: str, *arguments: str) -> None:
    subprocess.run(
        [cluster.bin_dir / name, f"--dbname={cluster.conninfo(_DATABASE)}", *arguments],
        capture_output=True,
        check=True,
        env={"PATH": os.defpath, "LC_ALL": "C"},
    )


def replace_globals(bucket: Bucket, done: Manifest, script: bytes, *, signing_key: Ed25519PrivateKey) -> Manifest:
    """The same with the roles."""
    sealed = sealed_to(done.sealing.recipients, script)
    stored = SealedObject(key=done.globals.key, size_bytes=len(sealed), sha256=hashlib.sha256(sealed).hexdigest())
    bucket.put(stored.key, sealed)
    return sign_again(bucket, done.model_copy(update={"globals": stored}), signing_key=signing_key)


def sealed_to(recipients: dict[str, str], data: bytes) -> bytes:
    """The bytes sealed to those recipients."""
    sealed = io.BytesIO()
    seal(iter([data]), sealed, recipients)
    return sealed.getvalue()
