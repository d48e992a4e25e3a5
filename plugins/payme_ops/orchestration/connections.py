"""From Airflow connections to what the domains take: a libpq conninfo, the buckets.

One connection per power (DESIGN.md section 2, promise 4); on a shell the same names are libpq services and AWS
profiles (payme_ops.cli).
"""

from typing import TYPE_CHECKING

from airflow.sdk import Connection
from airflow.sdk.exceptions import AirflowNotFoundException
from psycopg.conninfo import make_conninfo

from payme_ops.foundation.errors import SettingsError

if TYPE_CHECKING:
    from botocore.client import BaseClient as SecretsManagerClient

    from payme_ops.backup.catalogue import Stores
    from payme_ops.foundation.airflow_api import AirflowApi
    from payme_ops.foundation.mail import MailServer
    from payme_ops.foundation.payme_api import PaymeApi
    from payme_ops.foundation.sentry_api import SentryApi
    from payme_ops.foundation.settings import BackupSettings
    from payme_ops.foundation.status_page import StatusPage
    from payme_ops.release.code_host import GitHub

# What libpq understands of an Airflow connection's extra field.
_LIBPQ_EXTRAS = ("sslmode", "sslrootcert", "sslcert", "sslkey", "target_session_attrs")


def conninfo(conn_id: str) -> str:
    """The libpq string of a postgres connection. Airflow masks its password in logs; never log the string."""
    connection = Connection.get(conn_id)
    if connection.conn_type != "postgres" or not connection.host:
        raise SettingsError(
            f"connection {conn_id} cannot be used",
            expected="type postgres with host, database, login and password",
            found=f"type {connection.conn_type or 'none'}, host {'set' if connection.host else 'missing'}",
            remedy="correct it in the secrets backend or the environment (docs/first-run.md)",
        )
    extra = {name: value for name, value in connection.extra_dejson.items() if name in _LIBPQ_EXTRAS}
    return make_conninfo(
        host=connection.host,
        port=connection.port,
        dbname=connection.schema,
        user=connection.login,
        password=connection.password,
        **extra,
    )


def ops_db() -> str:
    """The desk's own."""
    return conninfo("payme_ops_db")


def stores(conn_id: str, backup: "BackupSettings") -> "Stores":
    """The two buckets through one identity."""
    # Not at module level: alerts need `conninfo`, and must work where boto3 does not.
    from airflow.providers.amazon.aws.hooks.s3 import S3Hook

    from payme_ops.backup.catalogue import Stores
    from payme_ops.foundation.objectstore import CLIENT_CONFIG, Bucket

    def bucket(name: str, region: str) -> Bucket:
        hook = S3Hook(aws_conn_id=conn_id, region_name=region, config=CLIENT_CONFIG)
        return Bucket(hook.get_conn(), name)

    return Stores(bucket(backup.bucket, backup.region), bucket(backup.copy_bucket, backup.copy_region))


def payme_api(environment: str = "production") -> "PaymeApi | None":
    """The PayMe API (docs/payme-api-contract.md): connection payme_api, or payme_api_staging. None where it is not."""
    return _api("payme_api", environment)


def deploy_api(environment: str) -> "PaymeApi | None":
    """The same with the token that deploys: connection payme_deploy, or payme_deploy_staging."""
    return _api("payme_deploy", environment)


def named(conn_id: str, environment: str) -> str:
    """The connection of that environment: production's has no addition."""
    return conn_id if environment == "production" else f"{conn_id}_{environment}"


def _api(conn_id: str, environment: str) -> "PaymeApi | None":
    from payme_ops.foundation.payme_api import PaymeApi

    found = _optional(named(conn_id, environment))
    return PaymeApi(_url(found), found.password or "") if found else None


def code_host() -> "GitHub | None":
    """The code host; None where the connection payme_code_host is not there. Its extra names the repository."""
    from payme_ops.release.code_host import GitHub

    found = _optional("payme_code_host")
    return GitHub(_url(found), found.password or "", found.extra_dejson.get("repository", "")) if found else None


def secrets_manager() -> "SecretsManagerClient | None":
    """AWS Secrets Manager, for the application's variables; None where the connection payme_secrets is not there."""
    if _optional("payme_secrets") is None:
        return None
    from airflow.providers.amazon.aws.hooks.secrets_manager import SecretsManagerHook

    hook = SecretsManagerHook(aws_conn_id="payme_secrets")  # type: ignore[no-untyped-call]
    client: SecretsManagerClient = hook.get_conn()
    return client


def sentry_api() -> "SentryApi | None":
    """The application's Sentry; None where the connection payme_sentry is not there."""
    from payme_ops.foundation.sentry_api import SentryApi

    found = _optional("payme_sentry")
    if found is None:
        return None
    extra = found.extra_dejson
    parts = (str(extra.get(name, "")) for name in ("organization", "project", "dsn"))
    return SentryApi(_url(found), found.password or "", *parts)


def airflow_api() -> "AirflowApi | None":
    """Airflow's own API, to read its event log; None where the connection payme_airflow_api is not there."""
    from payme_ops.foundation.airflow_api import AirflowApi

    found = _optional("payme_airflow_api")
    return AirflowApi(_url(found), found.login or "", found.password or "") if found else None


def status_page() -> "StatusPage | None":
    """The public status page; None where the connection payme_status_page is not there."""
    from payme_ops.foundation.status_page import StatusPage

    found = _optional("payme_status_page")
    return StatusPage(_url(found), found.extra_dejson.get("page_id", ""), found.password or "") if found else None


def mail_server() -> "MailServer | None":
    """The mail server; None where the connection payme_smtp is not there. Extras as of Airflow's SMTP connection."""
    from payme_ops.foundation.mail import MailServer

    found = _optional("payme_smtp")
    if found is None:
        return None
    extra = found.extra_dejson
    return MailServer(
        host=found.host or "",
        port=found.port or 587,
        sender=extra.get("from_email") or found.login or "",
        login=found.login or "",
        password=found.password or "",
        tls=not extra.get("disable_tls", False),
    )


def _optional(conn_id: str) -> Connection | None:
    try:
        found: Connection = Connection.get(conn_id)
    except AirflowNotFoundException:
        return None
    return found


def _url(connection: Connection) -> str:
    host = (connection.host or "").rstrip("/")
    if not host.startswith(("https://", "http://")):
        raise SettingsError(
            f"connection {connection.conn_id} cannot be used",
            expected="a host that is a base URL, for example https://api.example.com",
            found="no URL" if host else "no host",
            remedy="correct it in the secrets backend or the environment (docs/first-run.md)",
        )
    return host
