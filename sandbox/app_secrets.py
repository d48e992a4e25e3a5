"""The application's variables in the sandbox's AWS Secrets Manager (moto's, too), as `payme/<environment>/secrets`.

They can be meant: what checks them finds nothing. Moto forgets them with its end, so each start puts them there.
"""

import hashlib
import json
from collections.abc import Mapping

import boto3

REGION = "af-south-1"


def put(endpoint: str, secrets: Mapping[str, str]) -> None:
    """Both environments' variables, made of the sandbox's own secrets; what is there is replaced."""
    client = boto3.client(
        "secretsmanager",
        endpoint_url=endpoint,
        region_name=REGION,
        aws_access_key_id="sandbox",
        aws_secret_access_key="sandbox",  # noqa: S106
    )
    for environment in ("production", "staging"):
        name, text = f"payme/{environment}/secrets", json.dumps(values(environment, secrets))
        try:
            client.create_secret(Name=name, SecretString=text)
        except client.exceptions.ResourceExistsException:
            client.put_secret_value(SecretId=name, SecretString=text)


def values(environment: str, secrets: Mapping[str, str]) -> dict[str, str]:
    """The variables of one environment."""
    key = secrets["payme_api.encryption_key"]

    def made(name: str) -> str:
        return hashlib.sha256(f"{environment} {name} {key}".encode()).hexdigest()

    return {
        "NODE_ENV": environment,
        "DATABASE_URL": f"postgresql://payme_app:{made('database')}@db.payme.test:5432/payme",
        "JWT_SECRET": made("jwt"),
        "ENCRYPTION_KEY": key if environment == "production" else made("encryption"),
        "ARCJET_KEY": f"ajkey_{made('arcjet')[:26]}",
        "MPESA_ENV": "production" if environment == "production" else "sandbox",
        "MPESA_CONSUMER_KEY": made("consumer"),
        "MPESA_CONSUMER_SECRET": made("consumer secret"),
        "MPESA_SHORTCODE_PAYBILL": "400200",
        "MPESA_PASSKEY_PAYBILL": made("passkey"),
        "MPESA_CALLBACK_URL": "https://api.payme.test/callbacks/mpesa",
    }
