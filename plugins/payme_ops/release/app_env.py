"""Are the PayMe application's own variables complete, and can they be meant? No value is shown, not even in part.

The variables are those of the application's deployment guide. All problems are found at once: who repairs one by one
deploys as often as there are problems.
"""

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from io import StringIO
from urllib.parse import urlsplit

from dotenv import dotenv_values

from payme_ops.foundation.errors import SettingsError
from payme_ops.foundation.evidence import Finding, failed, passed
from payme_ops.release.request import Environment

REQUIRED = ("DATABASE_URL", "JWT_SECRET", "ENCRYPTION_KEY", "ARCJET_KEY", "MPESA_CONSUMER_KEY", "MPESA_CONSUMER_SECRET")
# Without these no payment reaches a real shop; the guide's own list has them only in its example.
REQUIRED_IN_PRODUCTION = (
    *("MPESA_ENV", "MPESA_SHORTCODE_PAYBILL", "MPESA_PASSKEY_PAYBILL", "MPESA_CALLBACK_URL", "NODE_ENV"),
)
OPTIONAL = ("SENTRY_DSN", "REDIS_URL", "LOG_LEVEL", "PORT")
KNOWN = (*REQUIRED, *REQUIRED_IN_PRODUCTION, *OPTIONAL)
SECRETS = (
    *("JWT_SECRET", "ENCRYPTION_KEY", "ARCJET_KEY", "MPESA_CONSUMER_KEY", "MPESA_CONSUMER_SECRET"),
    "MPESA_PASSKEY_PAYBILL",
)
MIN_JWT_CHARACTERS = 32
_PLACEHOLDER = re.compile(
    r"change.?me|replace.?me|placeholder|\byour[-_]|yourdomain|dummy|\btodo\b|\bexample|<[^>]*>|^x{3,}$"
    r"|://user:pass\w*@",
    re.IGNORECASE,
)
_HEX = re.compile(r"[0-9a-fA-F]{64}", re.ASCII)
_LEVELS = ("error", "warn", "info", "http", "verbose", "debug", "silly")  # winston's npm levels
_LOOPBACK = ("localhost", "127.0.0.1", "::1", "0.0.0.0")  # noqa: S104  # what must not be there


@dataclass(frozen=True)
class Problem:
    """What is wrong with a variable, in words that hold nothing of its value."""

    variable: str
    what: str
    remedy: str


def problems(values: Mapping[str, str], environment: Environment) -> list[Problem]:
    """Everything that is wrong, in the order of the variables."""
    production = environment is Environment.PRODUCTION
    required = (*REQUIRED, *REQUIRED_IN_PRODUCTION) if production else REQUIRED
    found = [_missing(name) for name in required if not values.get(name, "").strip()]
    for name in KNOWN:
        value = values.get(name, "").strip()
        if not value:
            continue
        if _PLACEHOLDER.search(value):
            found.append(Problem(name, "holds a placeholder", "put the real value there"))
        elif name in _RULES and (what := _RULES[name](value)):
            found.append(Problem(name, what, "correct it where the application's secrets are kept"))
        elif production and (what := _not_for_production(name, value)):
            found.append(Problem(name, what, "put production's value there"))
    found += _twice(values)
    return sorted(found, key=lambda one: (KNOWN.index(one.variable), one.what))


def examine(values: Mapping[str, str], environment: Environment, source: str) -> Finding:
    """The same as a finding. `source` is where the values come from, for people."""
    found = problems(values, environment)
    measured = {
        "source": source,
        "environment": environment.value,
        "variables": sum(bool(values.get(name, "").strip()) for name in KNOWN),
        # Not as one text: a name of a secret and what stands behind its colon is taken for the secret, and scrubbed.
        "problems": [{"variable": one.variable, "what": one.what} for one in found],
        "not set, optional": [name for name in OPTIONAL if not values.get(name, "").strip()],
    }
    if found:
        by_remedy: dict[str, list[str]] = {}
        for one in found:
            by_remedy.setdefault(one.remedy, []).append(one.variable)
        todo = "; ".join(f"{remedy} ({', '.join(dict.fromkeys(names))})" for remedy, names in by_remedy.items())
        return failed(measured, todo)
    return passed(measured)


def read_file(text: str) -> dict[str, str]:
    """The variables of an environment file. Raises SettingsError naming the lines that are none, never their text."""
    lines = text.removeprefix("\ufeff").replace("\r\n", "\n")
    bad = [str(number) for number, line in enumerate(lines.split("\n"), 1) if not _is_line(line)]
    if bad:
        raise SettingsError(
            "the environment file cannot be read",
            expected="NAME=value, a comment or nothing in each line",
            found=f"something else in line {', '.join(bad[:10])}",
            remedy="correct these lines; a value with a line break has to be written with \\n",
        )
    return {name: value or "" for name, value in dotenv_values(stream=StringIO(lines), interpolate=False).items()}


def _is_line(line: str) -> bool:
    return not line.strip() or line.lstrip().startswith("#") or bool(_LINE.fullmatch(line))


_LINE = re.compile(
    r"""\s*(?:export\s+)?[A-Za-z_][A-Za-z0-9_]*\s*=\s*(?:'(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*"|[^\s'"#][^\n]*|)\s*(?:\#[^\n]*)?"""
)


def read_secret(text: str) -> dict[str, str]:
    """The variables of a secret: a JSON object of texts and numbers. Raises SettingsError, without its content."""
    try:
        found = json.loads(text)
    except ValueError:
        found = None
    if not isinstance(found, dict) or not all(isinstance(value, str | int) for value in found.values()):
        raise SettingsError(
            "the secret cannot be read",
            expected="a JSON object of the application's variables",
            found="something else",
            remedy="store it as key and value in Secrets Manager",
        ) from None
    return {str(name): str(value) for name, value in found.items()}


def _missing(name: str) -> Problem:
    return Problem(name, "is missing", "set it where the application's secrets are kept")


def _twice(values: Mapping[str, str]) -> list[Problem]:
    """One value for two purposes: who learns one has both."""
    seen: dict[str, str] = {}
    found = []
    for name in SECRETS:
        value = values.get(name, "").strip()
        if value and value in seen:
            found.append(Problem(name, f"is the same as {seen[value]}", "make a secret of its own"))
        seen.setdefault(value, name)
    return found


def _not_for_production(name: str, value: str) -> str:
    if name == "MPESA_ENV" and value != "production":
        return "is not production"
    if name == "NODE_ENV" and value != "production":
        return "is not production"
    if name in ("DATABASE_URL", "REDIS_URL", "MPESA_CALLBACK_URL") and _host(value) in _LOOPBACK:
        return "names this machine"
    return ""


def _host(value: str) -> str:
    try:
        return urlsplit(value).hostname or ""
    except ValueError:
        return ""


def _url(value: str, schemes: tuple[str, ...]) -> str:
    try:
        parts = urlsplit(value)
        good = parts.scheme in schemes and bool(parts.hostname) and (parts.port is None or parts.port > 0)
    except ValueError:
        good = False
    return "" if good else f"is no address beginning with {' or '.join(f'{one}://' for one in schemes)}"


def _key(value: str) -> str:
    if not _HEX.fullmatch(value):
        return "is not exactly 64 hexadecimal digits (32 bytes)"
    return "is one byte repeated" if len({value[n : n + 2] for n in range(0, 64, 2)}) == 1 else ""


def _database(value: str) -> str:
    if wrong := _url(value, ("postgres", "postgresql")):
        return wrong
    return "" if urlsplit(value).path.strip("/") else "names no database"


def _dsn(value: str) -> str:
    if wrong := _url(value, ("https", "http")):
        return wrong
    parts = urlsplit(value)
    return "" if parts.username and parts.path.strip("/").isdigit() else "is no DSN: a key and a project's number"


_RULES: Mapping[str, Callable[[str], str]] = {
    "DATABASE_URL": _database,
    "JWT_SECRET": lambda value: (
        "" if len(value) >= MIN_JWT_CHARACTERS else f"is shorter than {MIN_JWT_CHARACTERS} characters"
    ),
    "ENCRYPTION_KEY": _key,
    "MPESA_ENV": lambda value: "" if value in ("sandbox", "production") else "is neither sandbox nor production",
    "MPESA_SHORTCODE_PAYBILL": lambda value: (
        "" if re.fullmatch(r"[0-9]{5,7}", value) else "is no pay bill number of 5 to 7 digits"
    ),
    "MPESA_CALLBACK_URL": lambda value: _url(value, ("https",)),
    "SENTRY_DSN": _dsn,
    "REDIS_URL": lambda value: _url(value, ("redis", "rediss")),
    "LOG_LEVEL": lambda value: "" if value in _LEVELS else f"is none of {', '.join(_LEVELS)}",
    "PORT": lambda value: "" if re.fullmatch(r"[0-9]{1,5}", value) and 0 < int(value) < 65536 else "is no port",
    "NODE_ENV": lambda value: (
        "" if value in ("development", "test", "staging", "production") else "is no environment of the application"
    ),
}
