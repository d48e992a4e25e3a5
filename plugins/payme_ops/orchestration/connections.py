"""From Airflow connections to what the domains take: a libpq conninfo, the buckets.

One connection per power (DESIGN.md section 2, promise 4); on a shell the same names are libpq services and AWS
profiles (payme_ops.cli). In production they lie in AWS Secrets Manager or in a file of each service (docs/secrets.md).
None is kept here: each use asks anew, so that a changed one counts at once.
"""

import json
import logging
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from airflow.sdk import Connection
from airflow.sdk.exceptions import AirflowNotFoundException
from airflow.sdk.log import mask_secret
from psycopg.conninfo import make_conninfo

from payme_ops.foundation import secret
from payme_ops.foundation.errors import SecretForbidden, SecretMissing, SettingsError
from payme_ops.foundation.settings import Profile, goes_in_clear, is_loopback, ops_connection
from payme_ops.orchestration import internals

if TYPE_CHECKING:
    from airflow.providers.amazon.aws.utils.connection_wrapper import AwsConnectionWrapper
    from botocore.client import BaseClient as SecretsManagerClient
    from botocore.config import Config
    from slack_sdk import WebClient

    from payme_ops.backup.catalogue import Stores
    from payme_ops.foundation.airflow_api import AirflowApi
    from payme_ops.foundation.mail import MailServer
    from payme_ops.foundation.payme_api import PaymeApi
    from payme_ops.foundation.sentry_api import SentryApi
    from payme_ops.foundation.settings import BackupSettings
    from payme_ops.foundation.status_page import StatusPage
    from payme_ops.release.code_host import GitHub

_log = logging.getLogger("payme_ops.connections")
_WHO = "this process"

# What libpq understands of an Airflow connection's extra field.
_LIBPQ_EXTRAS = ("sslmode", "sslrootcert", "sslcert", "sslkey", "target_session_attrs")


def require(conn_id: str) -> Connection:
    """That connection, as it is now: from AWS Secrets Manager or the file and nowhere else where Airflow has one of
    these for its backend.

    Raises AirflowNotFoundException when it is not there, Unavailable when nobody can tell, SecretForbidden when this
    machine's role may not read it, SettingsError when it cannot be understood or is not fit for production.
    """
    found: Connection
    if kept := internals.secrets_manager():
        found = _kept_connection(kept, conn_id)
    elif file := internals.connections_file():
        found = _filed_connection(file, conn_id)
    else:
        found = Connection.get(conn_id)
    if os.environ.get("PAYME_OPS__PROFILE") == Profile.PRODUCTION:
        _refuse_sandbox(found)
    return found


def _kept_connection(kept: Any, conn_id: str) -> Connection:
    from botocore.exceptions import BotoCoreError

    path = kept.build_path(kept.connections_prefix, conn_id, kept.sep)
    secret.keep_out_of_logs()
    for _ in range(2):  # it may have been away for a moment
        try:
            _client(kept)
            if found := kept.get_connection(conn_id):
                mask_secret(found.password)
                return cast("Connection", found)
        except BotoCoreError as error:  # no answer: to ask once more what it was would take as long
            raise secret.unavailable(path, _WHO, type(error).__name__) from None
        except Exception:
            _log.debug("%s cannot be read as a connection", path)
        try:
            secret.fetch(lambda: _client(kept), path, _WHO)
        except SecretMissing:
            raise AirflowNotFoundException(f"AWS Secrets Manager has no {path}") from None
    raise SettingsError(
        f"connection {conn_id} cannot be used",
        expected="a secret with a JSON object of conn_type, host, login, password, extra",
        found="a secret that Airflow cannot read",
        remedy=f"correct {path} (docs/secrets.md)",
    )


def _filed_connection(file: Path, conn_id: str) -> Connection:
    try:
        filed = json.loads(file.read_bytes())
        if not isinstance(filed, dict):
            raise TypeError("no object")
        if conn_id not in filed:
            raise AirflowNotFoundException(f"{file} has no {conn_id}")
        found: Connection = Connection.from_json(json.dumps(filed[conn_id]), conn_id=conn_id)
        if not found.conn_type:
            raise ValueError("no conn_type")
    except (OSError, ValueError, TypeError, AttributeError) as error:  # not shown: it would quote the file
        raise SettingsError(
            f"connection {conn_id} cannot be used",
            expected=f"{file}, which this user may read: a JSON object of connections by name",
            found=(error.strerror if isinstance(error, OSError) else None) or "a file that is something else",
            remedy="correct it (docs/secrets.md)",
        ) from None
    mask_secret(found.password)
    return found


def _client(kept: Any) -> Any:
    """Its client, which is like the one that it would make at its first use, but with time limits."""
    if "client" not in vars(kept):
        from airflow.providers.amazon.aws.utils.connection_wrapper import AwsConnectionWrapper

        known = AwsConnectionWrapper.from_connection_metadata(conn_id="secrets_manager", extra=kept.kwargs)
        kept.client = _aws(known, "secretsmanager", config=secret.limits())
    return kept.client


def _refuse_sandbox(connection: Connection) -> None:
    """What settings refuse in production, of what only a connection tells."""
    kind, extra = connection.conn_type, connection.extra_dejson
    hosts = [connection.host or "", *(str(extra.get(name) or "") for name in ("endpoint_url", "base_url", "dsn"))]
    wanted = found = ""
    if any(is_loopback(host) for host in hosts) or (connection.host or "").startswith("/"):
        wanted, found = "the address of another machine", "a loopback address"
    elif kind == "postgres" and extra.get("sslmode") != "verify-full":
        wanted, found = "extra with sslmode verify-full", f"sslmode {extra.get('sslmode') or 'not set'}"
    elif any(goes_in_clear(host) for host in hosts):
        wanted, found = "an https:// address", "http://"
    elif kind == "smtp" and extra.get("disable_tls"):
        wanted, found = "mail over TLS", "disable_tls"
    if found:
        raise SettingsError(
            f"connection {connection.conn_id} is not fit for production",
            expected=wanted,
            found=found,
            remedy="correct its secret (docs/secrets.md)",
        )


def conninfo(conn_id: str) -> str:
    """The libpq string of a postgres connection. Airflow masks its password in logs; never log the string."""
    connection = require(conn_id)
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
    return conninfo(ops_connection())


def stores(conn_id: str, backup: "BackupSettings") -> "Stores":
    """The two buckets through one identity."""
    # Not at module level: alerts need `conninfo`, and must work where boto3 does not.
    from payme_ops.backup.catalogue import Stores
    from payme_ops.foundation.objectstore import CLIENT_CONFIG, Bucket

    def bucket(name: str, region: str) -> Bucket:
        return Bucket(_aws(require(conn_id), "s3", region, CLIENT_CONFIG), name)

    return Stores(bucket(backup.bucket, backup.region), bucket(backup.copy_bucket, backup.copy_region))


def _aws(
    connection: "Connection | AwsConnectionWrapper",
    service: str,
    region: str | None = None,
    config: "Config | None" = None,
) -> Any:
    """A client by that connection. Airflow's hooks take the machine's own identity where they find none: never here."""
    from airflow.providers.amazon.aws.hooks.base_aws import SessionFactory
    from airflow.providers.amazon.aws.utils.connection_wrapper import AwsConnectionWrapper

    wrapper = AwsConnectionWrapper(connection, region_name=region, botocore_config=config)
    session = SessionFactory(conn=wrapper, region_name=region, config=config).create_session()
    url = wrapper.get_service_endpoint_url(service_name=service)
    make: Any = session.client  # its types want each service by name
    return make(service, endpoint_url=url, config=config, verify=wrapper.verify)


def slack_client(timeout_seconds: int) -> "WebClient":
    """Slack's Web API by the bot token of payme_slack."""
    from slack_sdk import WebClient

    found = require("payme_slack")
    extra = found.extra_dejson
    options = {name: extra[name] for name in ("base_url", "proxy") if extra.get(name)}
    return WebClient(found.password, timeout=timeout_seconds, **options)


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
    found = _optional("payme_secrets")
    return _aws(found, "secretsmanager") if found else None


def sentry_api() -> "SentryApi | None":
    """The application's Sentry; None where the connection payme_sentry is not there."""
    from payme_ops.foundation.sentry_api import SentryApi

    found = _optional("payme_sentry")
    if found is None:
        return None
    extra = found.extra_dejson
    parts = (str(extra.get(name, "")) for name in ("organization", "project", "dsn"))
    return SentryApi(_url(found), found.password or "", *parts)


def sentry_airflow_project() -> str:
    """The slug of Airflow's own project in that Sentry; "" where it is not named."""
    found = _optional("payme_sentry")
    return str(found.extra_dejson.get("airflow_project", "")) if found else ""


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
        return require(conn_id)
    except AirflowNotFoundException:
        return None
    except SecretForbidden as error:  # not a power of this machine's, as if it were not there: a person is asked
        _log.warning("%s", error)
        return None


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
