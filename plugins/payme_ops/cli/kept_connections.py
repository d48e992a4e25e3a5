"""For doctor: the connections of this machine are where Airflow's backend looks, and can be read as connections."""

import json
import os
from collections.abc import Callable, Mapping
from enum import StrEnum
from pathlib import Path
from typing import Any

from payme_ops.cli import airflow_secrets
from payme_ops.foundation import secret
from payme_ops.foundation.errors import SecretForbidden, SecretMissing, SettingsError
from payme_ops.foundation.evidence import Check, Evidence, Finding, Verdict, failed, passed, run_check
from payme_ops.foundation.settings import ops_connection

ITEM = "kept_connections"
_BACKEND, _KWARGS = "AIRFLOW__WORKERS__SECRETS_BACKEND", "AIRFLOW__WORKERS__SECRETS_BACKEND_KWARGS"
_FIELDS = {"conn_type", "host", "port", "schema", "login", "password", "extra"}
_OPS = "payme_ops_db"  # by the name that PAYME_OPS__DESK__OPS_CONNECTION has for it
_EVERYBODY = (_OPS, "payme_slack")


class Part(StrEnum):
    """What runs on a machine: a worker of that queue, or the triggerer, or the DAG processor."""

    DEFAULT = "default"
    RESTORE = "restore"
    MIGRATION = "migration"
    RELEASE = "release"
    DESK = "desk"
    TRIGGERER = "triggerer"
    DAG_PROCESSOR = "dag-processor"


# What each cannot do without (docs/secrets.md); every other connection is optional, or another machine's.
NEEDED: Mapping[Part, tuple[str, ...]] = {
    Part.DEFAULT: (*_EVERYBODY, "payme_db_read", "payme_s3_write", "payme_s3_prune"),
    Part.RESTORE: (*_EVERYBODY, "payme_db_restore", "payme_s3_restore"),
    Part.MIGRATION: (*_EVERYBODY, "payme_db_migrate"),
    Part.RELEASE: _EVERYBODY,
    Part.DESK: (*_EVERYBODY, "payme_airflow_db", "payme_s3_write"),
    Part.TRIGGERER: (*_EVERYBODY, "payme_db_read", "payme_s3_restore"),
    Part.DAG_PROCESSOR: _EVERYBODY,
}
_OPTIONAL = (
    *("payme_ops_db_worker", "payme_ops_db_restore", "payme_ops_db_release"),
    *("payme_api", "payme_api_staging", "payme_deploy", "payme_deploy_staging", "payme_code_host", "payme_sentry"),
    *("payme_airflow_api", "payme_secrets", "payme_status_page", "payme_smtp"),
)
KNOWN = tuple(dict.fromkeys([name for names in NEEDED.values() for name in names] + [*_OPTIONAL]))


def of_doctor(part: Part | None, actor: str) -> list[Evidence]:
    """Each known connection that is there, and those that `part` cannot do without; nothing where this environment
    names no backend.
    """
    backend = os.environ.get(_BACKEND, "").rpartition(".")[2]
    needed = tuple(ops_connection() if name == _OPS else name for name in NEEDED[part]) if part else ()
    places: dict[str, Callable[[Mapping[str, Any]], Finding]] = {
        "SecretsManagerBackend": lambda kwargs: _in_secrets_manager(kwargs, needed),
        "LocalFilesystemBackend": lambda kwargs: _in_file(kwargs, needed),
    }
    if backend not in places:
        return []
    check = Check(
        ITEM,
        f"{f'those of {part}' if part else 'some'} are there, and each can be read as a connection",
        "AWS Secrets Manager" if backend == "SecretsManagerBackend" else "file",
        lambda: places[backend](airflow_secrets.parsed(os.environ.get(_KWARGS, ""))),
    )
    return [run_check(check, actor=actor)]


def _in_secrets_manager(kwargs: Mapping[str, Any], needed: tuple[str, ...]) -> Finding:
    prefix = kwargs.get("connections_prefix")
    if not prefix:
        return failed({"connections_prefix": "none"}, f"name it in {_KWARGS} (docs/secrets.md)")
    client = airflow_secrets.client_of(kwargs)
    found: dict[str, object] = {}
    for name in KNOWN:
        try:
            text = secret.fetch(lambda: client, f"{prefix}/{name}", "this machine's role")
        except (SecretMissing, SecretForbidden):
            continue
        found[name] = _value(text)
    return _judge(found, needed, f"the secrets below {prefix}, and which of them this machine's role may read")


def _in_file(kwargs: Mapping[str, Any], needed: tuple[str, ...]) -> Finding:
    place = kwargs.get("connections_file_path")
    if not place:
        return failed({"connections_file_path": "none"}, f"name it in {_KWARGS} (docs/secrets.md)")
    text = secret.find(Path(str(place)))
    if text is None and not needed:
        return _none(str(place))
    found = _value(text.decode(errors="replace")) if text is not None else None
    if not isinstance(found, dict):
        raise SettingsError(
            "the file of connections cannot be read",
            expected=f"{place}: a JSON object of connections by name",
            found="no file" if text is None else "something else",
            remedy="make it as docs/secrets.md says",
        )
    return _judge(found, needed, str(place))


def _judge(found: Mapping[str, object], needed: tuple[str, ...], where: str) -> Finding:
    """No value is shown, only names."""
    if not found and not needed:
        return _none(where)
    missing = [name for name in needed if name not in found]
    unread = [name for name, value in found.items() if not _is_connection(value)]
    if missing or unread:
        return failed(
            {"missing": missing, "no connection": unread},
            f"put in what is missing, in the form of docs/secrets.md: {where}",
        )
    return passed({"there": sorted(found)})


def _none(where: str) -> Finding:
    """As it is where no task runs; whether one does, `--part` says."""
    remedy = f"on a machine that runs tasks look at {where}, and say what runs there: --part"
    return Finding(Verdict.INCONCLUSIVE, {"there": []}, remedy)


def _is_connection(value: object) -> bool:
    if not isinstance(value, dict):
        return False
    kind, extra = value.get("conn_type"), value.get("extra", {})
    return bool(kind) and isinstance(kind, str) and isinstance(extra, dict) and not value.keys() - _FIELDS


def _value(text: str) -> object:
    try:
        return json.loads(text)
    except ValueError:
        return None
