"""AWS Secrets Manager as the Airflow of production finds it: moto's server, and the backend's variables."""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import boto3
from moto.server import ThreadedMotoServer

from sandbox.http import call

REGION = "af-south-1"
CONNECTIONS, CONFIG = "payme/production/airflow/connections", "payme/production/airflow/config"
BACKEND = "airflow.providers.amazon.aws.secrets.secrets_manager.SecretsManagerBackend"


@dataclass(frozen=True)
class Kept:
    """What a Secrets Manager keeps."""

    url: str
    client: Any

    def put(self, name: str, value: object) -> str:
        """Put a secret there, or another value in its place; its ARN."""
        text = value if isinstance(value, str) else json.dumps(value)
        try:
            return str(self.client.create_secret(Name=name, SecretString=text)["ARN"])
        except self.client.exceptions.ResourceExistsException:
            return str(self.client.put_secret_value(SecretId=name, SecretString=text)["ARN"])

    def connection(self, name: str, value: object) -> None:
        """The same for a connection."""
        self.put(f"{CONNECTIONS}/{name}", value)


def at(url: str) -> Kept:
    """The Secrets Manager behind that URL, which takes any credentials."""
    client = boto3.client(
        "secretsmanager",
        endpoint_url=url,
        region_name=REGION,
        aws_access_key_id="test",
        aws_secret_access_key="test",
    )
    return Kept(url, client)


@contextmanager
def secrets_manager() -> Iterator[Kept]:
    """An empty one, for the block."""
    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    url = f"http://{host}:{port}"
    assert call("POST", f"{url}/moto-api/reset")[0] == 200  # what it keeps is one for the process
    try:
        yield at(url)
    finally:
        server.stop()


def environment(url: str) -> dict[str, str]:
    """Airflow's variables of .env.example, and the role of the machine; no connection among them."""
    where = {"region_name": REGION, "endpoint_url": url}
    workers = {"connections_prefix": CONNECTIONS, "connections_lookup_pattern": "payme_", "config_prefix": None}
    servers = {"connections_prefix": None, "config_prefix": CONFIG}
    return {
        "AIRFLOW__WORKERS__SECRETS_BACKEND": BACKEND,
        "AIRFLOW__WORKERS__SECRETS_BACKEND_KWARGS": json.dumps({**workers, "variables_prefix": None, **where}),
        "AIRFLOW__SECRETS__BACKEND": BACKEND,
        "AIRFLOW__SECRETS__BACKEND_KWARGS": json.dumps({**servers, "variables_prefix": None, **where}),
        "AWS_ENDPOINT_URL_SECRETS_MANAGER": url,
        "AWS_ACCESS_KEY_ID": "secrets_one-machine",  # where the sandbox judges, by docs/iam
        "AWS_SECRET_ACCESS_KEY": "role-of-this-machine",
        "AWS_MAX_ATTEMPTS": "1",
    }


# Airflow's own options that hold a secret, and the name of the secret that takes their place.
_OPTIONS = {
    "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": "sql_alchemy_conn",
    "AIRFLOW__CORE__FERNET_KEY": "fernet_key",
    "AIRFLOW__API_AUTH__JWT_SECRET": "jwt_secret",
    "AIRFLOW__API__SECRET_KEY": "secret_key",
}


def moved(url: str, env: Mapping[str, str]) -> dict[str, str]:
    """An Airflow's environment with its connections and own secrets in the Secrets Manager behind that URL instead."""
    kept = at(url)
    left = dict(env)
    for name in [name for name in env if name.startswith("AIRFLOW_CONN_")]:
        kept.connection(name.removeprefix("AIRFLOW_CONN_").lower(), left.pop(name))
    for option, name in _OPTIONS.items():
        kept.put(f"{CONFIG}/{name}", left.pop(option))
        left[f"{option}_SECRET"] = name
    return left | environment(url)
