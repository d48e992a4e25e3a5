"""For doctor: Airflow's own secrets are there. For one that is not, Airflow takes its default and says nothing."""

import json
import os
from collections.abc import Mapping
from typing import Any

import boto3

from payme_ops.foundation import secret
from payme_ops.foundation.errors import SettingsError
from payme_ops.foundation.evidence import Check, Evidence, Finding, failed, passed, run_check
from payme_ops.foundation.settings import NAMES_OF_SECRETS

ITEM = "airflow_secrets"


def of_doctor(actor: str) -> list[Evidence]:
    """Each secret that this environment names, by the role of this machine; nothing where it names none."""
    names = [name for option in NAMES_OF_SECRETS if (name := os.environ.get(f"AIRFLOW__{option}", ""))]
    if not names:
        return []
    where = os.environ.get("AIRFLOW__SECRETS__BACKEND_KWARGS", "")
    check = Check(ITEM, "each is there, with a text", "AWS Secrets Manager", lambda: _examine(names, where))
    return [run_check(check, actor=actor)]


def _examine(names: list[str], backend_kwargs: str) -> Finding:
    kwargs = parsed(backend_kwargs)
    prefix = kwargs.get("config_prefix")
    if not prefix:
        return failed({"config_prefix": "none"}, "name it in AIRFLOW__SECRETS__BACKEND_KWARGS (docs/secrets.md)")
    client = client_of(kwargs)
    missing = [name for name in names if not _is_there(client, f"{prefix}/{name}")]
    if missing:
        return failed(
            {"not to be read": missing},
            f"put them below {prefix}, or let this machine's role read them (docs/secrets.md)",
        )
    return passed({"there": len(names)})


def parsed(backend_kwargs: str) -> Mapping[str, Any]:
    """What Airflow makes of that option of its secrets backend."""
    try:
        found = json.loads(backend_kwargs or "{}")
    except ValueError:  # Airflow takes none then
        return {}
    return found if isinstance(found, dict) else {}


def client_of(kwargs: Mapping[str, Any]) -> Any:
    """Secrets Manager as that backend reaches it, by the role of this machine."""
    return boto3.Session().client(
        "secretsmanager",
        region_name=kwargs.get("region_name"),
        endpoint_url=kwargs.get("endpoint_url"),
        config=secret.limits(),
    )


def _is_there(client: Any, name: str) -> bool:
    try:
        return bool(secret.fetch(lambda: client, name, "this machine's role").strip())
    except SettingsError:
        return False
