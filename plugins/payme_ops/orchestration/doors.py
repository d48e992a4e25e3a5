"""What task bodies begin with: the desk, the catalogue, and the name of the run."""

import logging

from airflow.sdk import Context

from payme_ops.backup.catalogue import Catalogue
from payme_ops.backup.run import Desk
from payme_ops.foundation import settings
from payme_ops.foundation.errors import SettingsError
from payme_ops.foundation.scrub import scrub
from payme_ops.orchestration.connections import conninfo, ops_db, stores

_log = logging.getLogger("payme_ops.backup")
# The connections to the desk's own databases, by the word that stands for each in settings.DeskSettings.
_OWN = {"airflow": "payme_airflow_db", "ops": "payme_ops_db"}


def desk() -> Desk:
    """The desk of a backup worker."""
    config = settings.load()
    found = stores("payme_s3_write", config.backup)
    return Desk(config, conninfo("payme_db_read"), ops_db(), found.home, found.copies)


def own_desk(which: str) -> Desk:
    """The same for one of the desk's own databases, "airflow" or "ops", on a worker of the queue `desk`.

    Raises SettingsError when its backups would lie among those of another database.
    """
    config = settings.load()
    names = [config.backup.database, *config.desk.databases.values()]
    if len(set(names)) < len(names):
        raise SettingsError(
            "two databases have one name",
            expected="a name of its own for each: backups are told apart by it",
            found=", ".join(names),
            remedy="correct PAYME_OPS__BACKUP__DATABASE, PAYME_OPS__DESK__AIRFLOW_DATABASE or"
            " PAYME_OPS__DESK__OPS_DATABASE",
        )
    own, conn_id = config.of(which), _OWN[which]
    found = stores("payme_s3_write", own.backup)
    variable = f"{settings.PREFIX}DESK__{which.upper()}_DATABASE"
    return Desk(own, conninfo(conn_id), ops_db(), found.home, found.copies, conn_id, variable)


def catalogue(conn_id: str) -> Catalogue:
    """The catalogue through one S3 identity."""
    backup = settings.load().backup
    return Catalogue.of(stores(conn_id, backup), backup)


def own_catalogue(conn_id: str, which: str) -> Catalogue:
    """The same of one of the desk's own databases."""
    backup = settings.load().of(which).backup
    return Catalogue.of(stores(conn_id, backup), backup)


def log_reason(context: Context) -> None:
    """Why a person triggered the run, when they said so."""
    if reason := context["params"].get("reason"):
        _log.info("reason given: %s", scrub(reason))


def run_name(context: Context) -> str:
    """`<dag_id>/<run_id>`: what evidence, leases and manifests name a run by."""
    dag_run = context["dag_run"]
    return f"{dag_run.dag_id}/{dag_run.run_id}"
