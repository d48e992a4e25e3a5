"""What a person with an identity and stock tools would find in a backup."""

import re
import subprocess
from pathlib import Path

from payme_ops.backup.manifest import Manifest, SealedObject
from payme_ops.backup.seal import parse_identity
from sandbox import forgery
from sandbox.postgres import Cluster
from tests.support.installation import Installation


def opened(installation: Installation, stored: SealedObject, *, key: str = "drill") -> bytes:
    """The plain bytes of a sealed object, with the drill or the recovery identity."""
    identity = parse_identity((installation.site.world.root / "keys" / f"{key}.age-identity").read_text())
    return forgery.opened(installation.store, stored, identity)


def archive(installation: Installation, manifest: Manifest, *, key: str = "drill") -> bytes:
    """The archive as pg_dump wrote it."""
    data = opened(installation, manifest.archive, key=key)
    if manifest.dump.compression_place == "inside":
        return data
    return subprocess.run(["zstd", "-d"], input=data, capture_output=True, check=True).stdout


def schema_of(cluster: Cluster, dbname: str) -> str:
    """`pg_dump -s` without what differs in every dump: definitions, owners, privileges, comments.

    In UTC: the bounds of partitions are written in the time zone that the database is set to.
    """
    dumped = subprocess.run(
        [cluster.bin_dir / "pg_dump", "--schema-only", "-d", f"{cluster.conninfo(dbname)} options=-ctimezone=UTC"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    return re.sub(r"^\\(un)?restrict .*$", "", dumped, flags=re.MULTILINE)


def as_sql(cluster: Cluster, data: bytes, folder: Path) -> str:
    """The archive as the SQL that pg_restore would run."""
    path = folder / "archive"
    path.write_bytes(data)
    return subprocess.run(
        [cluster.bin_dir / "pg_restore", "--file=-", path], capture_output=True, text=True, check=True
    ).stdout
