"""What every command begins with: the desk, the catalogue, who runs it, and where words go."""

import os
import socket
from pathlib import Path

import boto3
from rich.console import Console

from payme_ops.backup.catalogue import Catalogue, Stores
from payme_ops.backup.run import Desk
from payme_ops.foundation import settings
from payme_ops.foundation.clock import utc_now
from payme_ops.foundation.objectstore import Bucket, profile_client
from payme_ops.foundation.settings import BackupSettings

out = Console()
err = Console(stderr=True, highlight=False)
OPS = "service=payme_ops_db"


def desk() -> Desk:
    """The desk of a backup worker."""
    config = settings.load()
    found = stores("payme_s3_write", config.backup)
    return Desk(config, "service=payme_db_read", OPS, found.home, found.copies)


def stores(profile: str, backup: BackupSettings) -> Stores:
    """The two buckets through one identity."""
    return Stores(
        Bucket(profile_client(profile, backup.region), backup.bucket),
        Bucket(profile_client(profile, backup.copy_region), backup.copy_bucket),
    )


def catalogue(profile: str) -> Catalogue:
    """The catalogue through one identity."""
    backup = settings.load().backup
    return Catalogue.of(stores(profile, backup), backup)


def has_service(name: str) -> bool:
    """Whether libpq knows that service here: PGSERVICEFILE, else the file in the home folder."""
    path = Path(os.environ.get("PGSERVICEFILE") or Path.home() / ".pg_service.conf")
    try:
        return f"[{name}]" in [line.strip() for line in path.read_text().splitlines()]
    except OSError:
        return False


def has_profile(name: str) -> bool:
    """Whether boto3 knows that AWS profile here."""
    return name in boto3.Session().available_profiles


def run_name() -> str:
    """What evidence, leases and manifests name a run on a shell by."""
    return f"cli/{socket.gethostname()}/{os.getpid()}/{utc_now():%Y%m%dT%H%M%SZ}"


def report(line: str) -> None:
    """Progress, on stderr."""
    err.print(line, markup=False, soft_wrap=True)
