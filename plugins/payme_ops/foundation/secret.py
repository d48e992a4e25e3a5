"""A key or a token that lies in a file, or in a secret of AWS Secrets Manager named by its ARN.

It is read anew at each use, so that a changed one needs no restart, and kept nowhere. Who may read the secret is said
by the policy of the machine's own role (docs/secrets.md), never by an Airflow connection.
"""

import logging
import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from payme_ops.foundation.errors import SecretForbidden, SecretMissing, SettingsError, Unavailable

if TYPE_CHECKING:
    from botocore.config import Config

_ARN = re.compile(r"arn:aws[a-z-]*:secretsmanager:([a-z0-9-]+):\d{12}:secret:\S+")
_CONNECT_SECONDS, _READ_SECONDS, _ATTEMPTS = 5, 10, 2
_KINDS = {"ResourceNotFoundException": SecretMissing, "AccessDeniedException": SecretForbidden}
_AGAIN = {
    *("ThrottlingException", "Throttling", "RequestLimitExceeded", "InternalServiceError", "InternalFailure"),
    *("ExpiredTokenException", "RequestExpired"),  # of a role, whose next token may be late
}


def find(place: Path | None) -> bytes | None:
    """What lies there now; None where nothing is named, or the file is not there.

    Raises SettingsError for a secret that is not there or not ours to read and a file that cannot be read, Unavailable
    while Secrets Manager does not answer.
    """
    if place is None:
        return None
    if str(place).startswith("arn:"):
        return _from_secrets_manager(str(place)).encode()
    try:
        return place.read_bytes() if place.is_file() else None
    except OSError as error:
        raise SettingsError(
            f"{place.name} cannot be read",
            expected="a file that this user may read",
            found=error.strerror or type(error).__name__,
            remedy="see who owns it, and its mode",
        ) from None


def text(place: Path | None) -> str:
    """The same as a text without blanks around it; "" where there is none. Raises as `find`, UnicodeDecodeError."""
    return (find(place) or b"").decode().strip()


def _from_secrets_manager(arn: str) -> str:
    named = _ARN.fullmatch(arn)
    if named is None:
        raise SettingsError(
            "a setting names no secret",
            expected="arn:aws:secretsmanager:REGION:ACCOUNT:secret:NAME",
            found="an ARN of something else",
            remedy="take the ARN from `aws secretsmanager describe-secret --secret-id NAME`",
        )

    def client() -> Any:
        import boto3

        return boto3.Session().client("secretsmanager", region_name=named[1], config=limits())

    return fetch(client, arn, "this machine's role")


def limits() -> "Config":
    """How long Secrets Manager is waited for: some 20 s in all. boto3 waits for three minutes where packets get lost,
    and an alert with it.
    """
    from botocore.config import Config

    return Config(
        connect_timeout=_CONNECT_SECONDS,
        read_timeout=_READ_SECONDS,
        retries={"mode": "standard", "total_max_attempts": _ATTEMPTS},
    )


def keep_out_of_logs() -> None:
    """At level DEBUG botocore logs what was answered, and that is the secret."""
    logging.getLogger("botocore.parsers").setLevel(logging.INFO)


def fetch(client: Callable[[], Any], name: str, who: str) -> str:
    """The text of that secret of AWS Secrets Manager; `who` asks for it.

    Raises SecretMissing, SecretForbidden, SettingsError for another no, Unavailable when nobody can tell.
    """
    from botocore.exceptions import BotoCoreError, ClientError

    keep_out_of_logs()
    shown = name.rpartition(":secret:")[2]
    try:
        return str(client().get_secret_value(SecretId=name)["SecretString"])
    except (ClientError, KeyError) as error:
        response = getattr(error, "response", {})
        code = str(response.get("Error", {}).get("Code", "no text in it"))
        if code in _AGAIN or int(response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)) >= 500:
            raise unavailable(shown, who, code) from None
        raise _KINDS.get(code, SettingsError)(
            f"the secret {shown} cannot be read",
            expected=f"a secret with text that {who} may read",
            found=code,
            remedy="compare its name with `aws secretsmanager list-secrets`, and the policy of who reads it"
            " (docs/secrets.md)",
        ) from None
    except BotoCoreError as error:
        raise unavailable(shown, who, type(error).__name__) from None


def unavailable(name: str, who: str, found: str) -> Unavailable:
    """That nobody can tell; `found` is in place of an answer."""
    return Unavailable(
        f"AWS Secrets Manager could not be asked for {name}",
        expected=f"an answer to {who}, which needs a region and credentials",
        found=found,
        remedy="see whether AWS can be reached from here (docs/secrets.md); nothing old is used instead",
    )
