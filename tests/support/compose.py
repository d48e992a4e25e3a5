"""The services of docker-compose.yaml as processes of this machine, by their very command lines and environments.

No container engine runs where the tests do. So the names of containers become ports of this machine, and a container's
folders become folders of the service's own. Everything else is what the file says: command, environment, secrets,
health check.
"""

import os
import re
import shlex
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from dotenv import dotenv_values

PROJECT = Path(__file__).parents[2]
COMPOSE = PROJECT / "docker-compose.yaml"
_VARIABLE = re.compile(r"\$(?:\$|\{(?P<name>\w+)(?::(?P<kind>[-?])(?P<rest>[^{}]*))?\})")
_PROGRAMS = {"python": [sys.executable], "airflow": [sys.executable, "-m", "airflow"]}


class Missing(Exception):
    """A variable without which nothing starts; its text is what the file says about it."""


@dataclass(frozen=True)
class Service:
    """One service as a process. `environment` is all of it: nothing of this process's comes along."""

    name: str
    command: list[str]
    environment: dict[str, str] = field(repr=False)
    health: list[str]
    folder: Path


def read(variables: Mapping[str, str]) -> dict[str, Any]:
    """The file with its variables filled in, as Compose does it. Raises Missing."""

    def filled(value: Any) -> Any:
        if isinstance(value, str):
            return _VARIABLE.sub(lambda found: _value(found, variables), value)
        if isinstance(value, list):
            return [filled(item) for item in value]
        return {name: filled(item) for name, item in value.items()} if isinstance(value, dict) else value

    return dict(filled(yaml.safe_load(COMPOSE.read_text())))


def _value(found: re.Match[str], variables: Mapping[str, str]) -> str:
    if found[0] == "$$":
        return "$"
    if value := variables.get(found["name"]):
        return value
    if found["kind"] == "?":
        raise Missing(f"{found['name']}: {found['rest']}")
    return found["rest"] or ""


def places(*, postgres: int, redis: int, api_server: int) -> dict[str, str]:
    """What the names of containers are here, for `services`."""
    return {
        "postgres:5432": f"localhost:{postgres}",
        '"host": "postgres", "port": 5432': f'"host": "localhost", "port": {postgres}',
        "host=postgres\nport=5432": f"host=localhost\nport={postgres}",
        "redis:6379": f"127.0.0.1:{redis}",
        "--appendonly": f"--bind 127.0.0.1 --port {redis} --appendonly",
        "redis-cli ping": f"redis-cli -p {redis} ping",
        "api-server:8080": f"127.0.0.1:{api_server}",
    }


def services(
    env_file: Path, root: Path, places: Mapping[str, str], *, own: Mapping[str, str] | None = None
) -> dict[str, Service]:
    """Every service, its secrets copied into its folder below `root`.

    `places` says what a name is here: "postgres:5432" becomes "localhost:15432". `own` are variables for all services
    beside those of the file, for a port that containers need not choose.
    """
    variables = {name: value for name, value in dotenv_values(env_file).items() if value}
    file = read(variables)
    return {
        name: _service(name, raw, file["secrets"], env_file, root, places, own or {})
        for name, raw in file["services"].items()
        if "profiles" not in raw
    }


def _service(
    name: str,
    raw: Mapping[str, Any],
    secrets: Mapping[str, Mapping[str, str]],
    env_file: Path,
    root: Path,
    places: Mapping[str, str],
    own: Mapping[str, str],
) -> Service:
    folder = root / name
    here = {
        "/run/secrets": str(folder / "secrets"),
        "/tmp": str(folder / "tmp"),  # noqa: S108  # the container's
        "/var/log/airflow": str(root / "logs"),
        "/var/lib/payme-ops": str(folder / "scratch"),
        "/data": str(folder / "data"),
        "/opt/payme-ops": str(PROJECT),
        **places,
    }

    # In one pass: what is put in may hold a name that is looked for.
    def mover(known: Mapping[str, str]) -> Callable[[str], str]:
        names = re.compile("|".join(re.escape(container) for container in sorted(known, key=len, reverse=True)))
        return lambda text: names.sub(lambda found: known[found[0]], text)

    moved = mover(here)
    # The host's .env names folders of this machine, which may lie below /tmp.
    filled = mover({container: path for container, path in here.items() if container != "/tmp"})  # noqa: S108

    (folder / "secrets").mkdir(parents=True, mode=0o700, exist_ok=True)
    for place in (folder / "tmp", folder / "data", root / "logs"):
        place.mkdir(exist_ok=True)
    for source, target in mounted(raw):
        place = folder / "secrets" / target
        place.unlink(missing_ok=True)
        place.touch(mode=0o600)
        place.write_text(moved(Path(secrets[source]["file"]).read_text()))
    from_file = {} if "env_file" not in raw else {n: v for n, v in dotenv_values(env_file).items() if v is not None}
    said = {
        **{variable: filled(value) for variable, value in {**image(), **from_file}.items()},
        **{variable: moved(str(value)) for variable, value in raw.get("environment", {}).items()},
    }
    environment = {
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "HOME": str(folder),
        "LANG": "C.UTF-8",
        "TMPDIR": str(folder / "tmp"),
        "AIRFLOW_HOME": str(folder / "airflow"),
        "PYTHONPATH": str(PROJECT / "plugins"),
        **said,
        **own,
    }
    return Service(name, _command(raw["command"], moved), environment, _health(raw, moved), folder)


def mounted(raw: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The secrets of a service: (name, file name below /run/secrets)."""
    said = raw.get("secrets", [])
    return [(one, one) if isinstance(one, str) else (one["source"], one["target"]) for one in said]


def image() -> dict[str, str]:
    """What the Dockerfile sets for Airflow."""
    return dict(re.findall(r"^\s+(AIRFLOW__\w+)=(\S+)", (PROJECT / "Dockerfile").read_text(), flags=re.MULTILINE))


def _command(said: str | list[str], moved: Any) -> list[str]:
    words = shlex.split(moved(said)) if isinstance(said, str) else [moved(word) for word in said]
    words = [str(PROJECT / word) if word.startswith("docker/") else word for word in words]
    return [*_PROGRAMS.get(words[0], [words[0]]), *words[1:]]


def _health(raw: Mapping[str, Any], moved: Any) -> list[str]:
    test = raw.get("healthcheck", {}).get("test", [])
    if test[:1] == ["CMD-SHELL"]:
        return ["/bin/sh", "-c", moved(test[1])]
    return _command(test[1:], moved) if test else []
