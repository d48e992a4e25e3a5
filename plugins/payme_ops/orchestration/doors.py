"""What task bodies begin with: the desk, the catalogue, and the name of the run."""

import logging

from airflow.sdk import Context

from payme_ops.backup.catalogue import Catalogue
from payme_ops.backup.run import Desk
from payme_ops.foundation import settings
from payme_ops.foundation.scrub import scrub
from payme_ops.orchestration.connections import conninfo, ops_db, stores

_log = logging.getLogger("payme_ops.backup")


def desk() -> Desk:
    """The desk of a backup worker."""
    config = settings.load()
    found = stores("payme_s3_write", config.backup)
    return Desk(config, conninfo("payme_db_read"), ops_db(), found.home, found.copies)


def catalogue(conn_id: str) -> Catalogue:
    """The catalogue through one S3 identity."""
    backup = settings.load().backup
    return Catalogue.of(stores(conn_id, backup), backup)


def log_reason(context: Context) -> None:
    """Why a person triggered the run, when they said so."""
    if reason := context["params"].get("reason"):
        _log.info("reason given: %s", scrub(reason))


def run_name(context: Context) -> str:
    """`<dag_id>/<run_id>`: what evidence, leases and manifests name a run by."""
    dag_run = context["dag_run"]
    return f"{dag_run.dag_id}/{dag_run.run_id}"
