"""docker-compose.yaml: what it says of each service, who holds which secret, and what is refused without an engine."""

import json
import os
import re
import shutil
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from airflow.dag_processing.dagbag import DagBag

from payme_ops.foundation import settings
from payme_ops.release import app_env
from sandbox.trial import CONNECTIONS
from tests.support import compose
from tests.support.compose import PROJECT, Missing

SECRETS = PROJECT / "docker" / "secrets"
SET = {"PAYME_OPS_SECRETS": "/etc/payme-ops/secrets", "AIRFLOW__API__BASE_URL": "https://airflow.payme.co.ke"}
FILE = compose.read(SET)
SERVICES: dict[str, dict[str, Any]] = FILE["services"]
OURS = {name: raw for name, raw in SERVICES.items() if "profiles" not in raw}
DESK = {name: raw for name, raw in OURS.items() if "env_file" in raw}
WORKERS = {name: raw for name, raw in OURS.items() if name.startswith("worker-")}
LONG_RUNNING = {name: raw for name, raw in SERVICES.items() if name != "init"}
named = pytest.mark.parametrize


def held_by(secret: str) -> set[str]:
    """The services that mount it."""
    return {name for name, raw in SERVICES.items() if secret in [source for source, _ in compose.mounted(raw)]}


def test_it_is_valid_by_the_schema_of_the_specification() -> None:
    command = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.compose-spec"]
    found = subprocess.run([*command, str(compose.COMPOSE)], check=False, capture_output=True, text=True)
    assert found.returncode == 0, found.stdout


def test_composes_own_client_takes_it() -> None:
    if subprocess.run(["docker", "compose", "version"], check=False, capture_output=True).returncode:
        pytest.skip("there is no `docker compose` here")
    command = ["docker", "compose", "--env-file", "/dev/null", "--profile", "trial", "config", "--quiet"]
    env = {**os.environ, **SET, "PAYME_OPS_ENV_FILE": ".env.example"}
    found = subprocess.run(command, check=False, capture_output=True, text=True, cwd=PROJECT, env=env)
    assert found.returncode == 0, found.stderr


@named("variable", SET)
def test_without_it_nothing_starts_and_it_is_named(variable: str) -> None:
    with pytest.raises(Missing, match=f"^{variable}: .+"):
        compose.read({name: value for name, value in SET.items() if name != variable})


def test_no_password_has_a_default() -> None:
    said = {
        name: value
        for raw in SERVICES.values()
        for name, value in raw.get("environment", {}).items()
        if value and re.search("PASSWORD|SECRET_KEY|JWT|FERNET|TOKEN|_KEY|BROKER_URL|RESULT_BACKEND|CONN(?!EC)", name)
    }
    places = re.compile(r"(cat )?/run/secrets/[\w.-]+")
    assert {name: value for name, value in said.items() if not places.fullmatch(value)} == {}


# --- each service ---------------------------------------------------------------------------------------------------


@named("service", SERVICES)
def test_a_service_has_no_power_that_it_does_not_need(service: str) -> None:
    raw = SERVICES[service]
    assert raw["cap_drop"] == ["ALL"]
    assert raw["security_opt"] == ["no-new-privileges:true"]
    assert not {"privileged", "pid", "ipc", "network_mode", "devices", "cap_add"} & raw.keys()
    assert not raw["user"].startswith(("0", "root"))
    # No folder of the host, and so not the engine's socket; the trial's world alone.
    assert {volume.split(":")[0] for volume in raw.get("volumes", [])} <= {*FILE["volumes"], "./trial/world"}


@named("service", SERVICES)
def test_a_service_can_neither_fill_the_disk_nor_take_the_machine(service: str) -> None:
    raw = SERVICES[service]
    assert raw["logging"] == {"driver": "json-file", "options": {"max-size": "20m", "max-file": "5"}}
    assert set(raw["deploy"]["resources"]["limits"]) == {"cpus", "memory", "pids"}


@named("service", LONG_RUNNING)
def test_a_service_starts_again_and_says_whether_it_is_well(service: str) -> None:
    raw = SERVICES[service]
    assert raw["restart"] == "unless-stopped"
    assert raw["healthcheck"]["test"]
    assert not raw["image"].endswith(":latest")
    assert ":" in raw["image"]


@named("service", [name for name in DESK if name != "init"])
def test_a_service_of_the_desk_waits_until_everything_is_migrated(service: str) -> None:
    assert DESK[service]["depends_on"]["init"] == {"condition": "service_completed_successfully"}


@named("service", WORKERS)
def test_what_a_task_needs_is_stopped_after_its_worker(service: str) -> None:
    # Compose stops in the reverse order: a task that may end in peace still tells Airflow so, and Redis takes its word.
    assert {name: how["condition"] for name, how in WORKERS[service]["depends_on"].items()} == {
        "init": "service_completed_successfully",
        "redis": "service_healthy",
        "api-server": "service_healthy",
    }
    assert set(SERVICES["init"]["depends_on"]) == {"postgres"}


def test_what_airflow_writes_into_files_is_where_housekeeping_deletes_it() -> None:
    said = DESK["dag-processor"]["environment"]
    kept = said["AIRFLOW__LOGGING__DAG_PROCESSOR_CHILD_PROCESS_LOG_DIRECTORY"]
    assert kept.startswith(said["AIRFLOW__LOGGING__BASE_LOG_FOLDER"] + "/")
    assert {name for name, raw in DESK.items() if "logs:/var/log/airflow" in raw.get("volumes", [])} == {
        *("scheduler", "dag-processor", "triggerer"),
        *WORKERS,
    }


def test_an_image_is_built_for_one_service_and_run_by_all() -> None:
    # Compose builds for all services at once, and an engine does not take the same name from two builds.
    built = [raw["image"] for raw in SERVICES.values() if "build" in raw]
    assert sorted(built) == sorted({raw["image"] for raw in SERVICES.values() if raw["image"].startswith("payme-ops")})


def test_only_the_ui_is_published_and_on_loopback_unless_said_otherwise() -> None:
    assert {name: raw["ports"] for name, raw in SERVICES.items() if "ports" in raw} == {
        "api-server": ["127.0.0.1:8080:8080"]
    }
    elsewhere = compose.read({**SET, "PAYME_OPS_UI_ADDRESS": "10.0.0.5", "PAYME_OPS_UI_PORT": "443"})
    assert elsewhere["services"]["api-server"]["ports"] == ["10.0.0.5:443:8080"]
    assert FILE["networks"]["inside"] == {"internal": True}
    assert [name for name, raw in OURS.items() if raw["networks"] == ["inside"]] == ["postgres", "redis"]


def test_each_queue_of_the_dags_has_one_worker_and_no_worker_has_two(dag_bag: DagBag) -> None:
    asked = {task.queue for dag in dag_bag.dags.values() for task in dag.tasks}
    served = {raw["command"].split("--queues ")[1].split()[0]: name for name, raw in WORKERS.items()}
    assert set(served) == asked
    assert served == {queue: f"worker-{queue}" for queue in served}
    assert {raw["environment"]["AIRFLOW__OPERATORS__DEFAULT_QUEUE"] for raw in DESK.values()} == {"default"}


# --- who holds what -------------------------------------------------------------------------------------------------

SERVERS = {"init", "api-server", "scheduler", "dag-processor", "triggerer"}
HOLDERS = {
    "drill.age-identity": {"worker-restore"},
    "verification.pem": {"worker-restore"},
    "encryption_key": {"worker-migration"},
    "signing.pem": {"worker-default", "worker-desk", "init"},
    "sql_alchemy_conn": SERVERS,
    "fernet_key": SERVERS,
    "jwt_secret": SERVERS,
    "secret_key": SERVERS,
    "broker_url": {"scheduler", *WORKERS},
    "celery_result_backend": {"scheduler", *WORKERS},
    "postgres_password": {"init"},
    "postgres_superuser": {"postgres"},
    "postgres.key": {"postgres"},
    "airflow_first_admin_password": {"init"},
    "payme_ops_db_password": {"init"},
    "payme_ops_worker_db_password": {"init"},
    "payme_ops_restore_db_password": {"init"},
    "payme_ops_release_db_password": {"init"},
    "slack_token": {"watchdog"},
    "payme_api_token": {"watchdog"},
    "payme_api_staging_token": {"watchdog"},
    "sentry_dsn": {"watchdog"},
}


@named("secret", HOLDERS)
def test_a_secret_is_in_the_hands_of_exactly(secret: str) -> None:
    assert held_by(secret) == HOLDERS[secret]


def test_no_service_has_another_ones_connections_or_identity() -> None:
    own = re.compile(r"(?:connections|aws_credentials|pg_service)_(.+?)(?:\.json|\.conf)?")
    for name, raw in SERVICES.items():
        for source, _ in compose.mounted(raw):
            if found := own.fullmatch(source):
                assert found[1] == name
    assert {name for name in OURS if held_by(f"connections_{name}.json")} == set(CONNECTIONS)


@named(
    "variable",
    [
        *("BACKUP__SIGNING_KEY_FILE", "BACKUP__IDENTITY_FILE", "BACKUP__VERIFICATION_KEY_FILE", "SLACK__TOKEN_FILE"),
        *("WATCHDOG__API_TOKEN_FILE", "WATCHDOG__STAGING_API_TOKEN_FILE", "WATCHDOG__SENTRY_DSN_FILE"),
    ],
)
def test_a_key_or_token_is_a_file_of_its_service_or_the_secret_that_the_env_names(variable: str) -> None:
    arn, name = "arn:aws:secretsmanager:af-south-1:123456789012:secret:one", f"PAYME_OPS__{variable}"
    given = {service: raw["environment"][name] for service, raw in DESK.items() if raw["environment"][name]}
    assert given
    for service, path in given.items():
        assert path.removeprefix("/run/secrets/") in [target for _, target in compose.mounted(DESK[service])]
    told = compose.read({**SET, name: arn})["services"]
    assert dict.fromkeys(given, arn) == {
        service: told[service]["environment"][name] for service in DESK if told[service]["environment"][name]
    }


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files away")
@named("service", OURS)
def test_a_service_can_read_what_it_mounts(service: str, made: Path) -> None:
    # A secret is a bind mount: the owner and mode of the host's file count, and these are 0400.
    user = int(OURS[service]["user"].split(":")[0])
    assert {(made / source).stat().st_uid for source, _ in compose.mounted(OURS[service])} <= {user}


@named("file", [".env", "trial/env", "trial/secrets/fernet_key"])
def test_what_the_page_has_people_write_here_gets_into_no_commit(file: str) -> None:
    found = subprocess.run(["git", "check-ignore", "--quiet", file], cwd=PROJECT, check=False)
    assert found.returncode == 0


def test_every_secret_is_mounted_somewhere_and_made_or_asked_for_by_the_script(made: Path) -> None:
    assert {name for name in FILE["secrets"] if not held_by(name)} == set()
    assert {name for name in FILE["secrets"] if not (made / name).exists()} == {
        *("trial_s3.json", "trial_security.toml")
    }


@named("service", DESK)
def test_the_applications_secrets_in_the_same_env_reach_nobody_but_the_migration(
    service: str, tmp_path: Path, made: Path
) -> None:
    env = tmp_path / "env"
    lines = [f"{name}=of-the-application" for name in app_env.KNOWN if name != "ENCRYPTION_KEY"]
    env.write_text("\n".join([f"PAYME_OPS_SECRETS={made}", "AIRFLOW__API__BASE_URL=https://airflow.test", *lines]))
    found = compose.services(env, tmp_path, {})[service].environment
    secret = {*app_env.SECRETS, "DATABASE_URL", "REDIS_URL", "SENTRY_DSN"}
    assert {name for name in secret if found.get(name)} == (
        {"ENCRYPTION_KEY"} if service == "worker-migration" else set()
    )


@pytest.mark.parametrize("service", DESK)
def test_production_starts_with_what_the_file_and_a_filled_env_say(
    service: str, tmp_path: Path, made: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    env = tmp_path / "env"
    env.write_text((PROJECT / ".env.example").read_text() + "\n".join(f"{n}='{v}'" for n, v in PRODUCTION.items()))
    env.write_text(env.read_text() + f"\nPAYME_OPS_SECRETS={made}\n")
    for name in [name for name in os.environ if name.startswith(("AIRFLOW_", "PAYME_OPS_"))]:
        monkeypatch.delenv(name)
    for name, value in compose.services(env, tmp_path, {})[service].environment.items():
        monkeypatch.setenv(name, value)
    assert settings.load().profile is settings.Profile.PRODUCTION


PRODUCTION = {
    "AIRFLOW__API__BASE_URL": "https://airflow.payme.co.ke",
    "AIRFLOW__SENTRY__SENTRY_DSN": "https://key@o1.ingest.sentry.io/1",
    "PAYME_OPS__BACKUP__BUCKET": "payme-backups",
    "PAYME_OPS__BACKUP__COPY_BUCKET": "payme-backups-dr",
    "PAYME_OPS__BACKUP__RECIPIENT_RECOVERY": "age1ql3z7hjy54pw3hyww5ayyfg7zqgvc7w3j2elw8zmrj2kg5sfn9aqmcac8p",
    "PAYME_OPS__BACKUP__RECIPIENT_DRILL": "age1lggyhqrw2nlhcxprm67z43rta597azn8gknawjehu9d9dl0jq3yqqvfafg",
    "PAYME_OPS__BACKUP__TRUSTED_KEYS": "MCowBQYDK2VwAyEAGb9ECWmEzf6FQbrBZ9w7lw==",
    "PAYME_OPS__BACKUP__VERIFICATION_KEYS": "MCowBQYDK2VwAyEAGb9ECWmEzf6FQbrBZ9w7lx==",
    "PAYME_OPS__WATCHDOG__HEARTBEAT_URL": "https://sentry.io/api/1/cron/watchdog/key/",
    "PAYME_OPS__WATCHDOG__API_URL": "https://api.payme.co.ke",
    "PAYME_OPS__MONITORING__ENDPOINTS": "production=https://api.payme.co.ke",
}


# --- docker/secrets -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the script makes, once."""
    folder = tmp_path_factory.mktemp("compose") / "secrets"
    assert subprocess.run([SECRETS, folder], check=False, capture_output=True).returncode == 3
    return folder


def contents(folder: Path) -> dict[str, tuple[bytes, int]]:
    return {file.name: (file.read_bytes(), file.stat().st_mtime_ns) for file in folder.iterdir()}


def test_it_makes_each_once_for_its_owner_alone_and_names_what_people_have_to_bring(tmp_path: Path) -> None:
    folder = tmp_path / "secrets"
    first = subprocess.run([SECRETS, folder], check=False, capture_output=True, text=True)
    assert first.returncode == 3
    brought = re.findall(r"^secrets: (\S+) is empty. Put there: .+", first.stderr, flags=re.MULTILINE)
    assert set(brought) == {
        *("signing.pem", "verification.pem", "drill.age-identity", "encryption_key"),
        *("slack_token", "payme_api_token", "sentry_dsn"),
    }
    assert {stat.S_IMODE(file.stat().st_mode) for file in folder.iterdir()} == {0o400}
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    before = contents(folder)
    none = {name for name, (text, _) in before.items() if not text and "aws_credentials" not in name}
    assert none == {*brought, "payme_api_staging_token"}
    passwords = [before[name][0] for name in before if name.endswith("_password")]
    assert len(set(passwords)) == len(passwords)
    for name in brought:
        (folder / name).chmod(0o600)
        (folder / name).write_text("brought")
    second = subprocess.run([SECRETS, folder], check=False, capture_output=True, text=True)
    assert (second.returncode, second.stdout, second.stderr) == (0, "", "")
    assert {name: value for name, value in contents(folder).items() if name not in brought} == {
        name: value for name, value in before.items() if name not in brought
    }


def test_a_program_that_fails_leaves_no_empty_secret_behind(tmp_path: Path) -> None:
    programs = tmp_path / "bin"
    programs.mkdir()
    (programs / "openssl").write_text("#!/bin/sh\nexit 1\n")
    (programs / "openssl").chmod(0o700)
    env = {**os.environ, "PATH": f"{programs}:{os.environ['PATH']}"}
    found = subprocess.run([SECRETS, tmp_path / "secrets"], check=False, capture_output=True, text=True, env=env)
    assert found.returncode == 1
    assert "airflow_db_password could not be made" in found.stderr
    assert [file.name for file in (tmp_path / "secrets").glob("[!.]*")] == []


def ops_connection(made: Path, service: str) -> dict[str, Any]:
    """By the name under which that service looks for it."""
    known = json.loads((made / f"connections_{service}.json").read_text())
    return dict(known[SERVICES[service]["environment"]["PAYME_OPS__DESK__OPS_CONNECTION"]])


def test_the_servers_certificate_is_for_the_name_that_connections_use(made: Path) -> None:
    command = ["openssl", "verify", "-CAfile", "postgres_ca.crt", "-verify_hostname", "postgres"]
    assert subprocess.run([*command, "postgres.crt"], cwd=made, check=False, capture_output=True).returncode == 0
    for service in CONNECTIONS:
        connection = ops_connection(made, service)
        assert (connection["host"], connection["extra"]["sslmode"]) == ("postgres", "verify-full")


def test_who_works_in_the_ops_database_as_whom(made: Path) -> None:
    """Only those are its owner who ask people for what is no release: the queue `desk`."""
    found = {service: ops_connection(made, service)["login"] for service in CONNECTIONS}
    for service in ("init", "watchdog"):
        (found[service],) = re.findall(r"^user=(.+)$", (made / f"pg_service_{service}.conf").read_text(), re.MULTILINE)
    assert found == {
        **dict.fromkeys(("worker-desk", "init"), "payme_ops"),
        **dict.fromkeys(
            ("dag-processor", "triggerer", "worker-default", "worker-migration", "watchdog"), "payme_ops_worker"
        ),
        "worker-restore": "payme_ops_restore",
        "worker-release": "payme_ops_release",
    }


# --- the image ------------------------------------------------------------------------------------------------------


def test_the_dockerfile_is_clean_for_its_linter() -> None:
    hadolint = shutil.which("hadolint", path=f"{Path(sys.executable).parent}")
    if hadolint is None:
        pytest.skip("hadolint has no build for this machine")
    found = subprocess.run(
        [hadolint, "--no-color", PROJECT / "Dockerfile"], check=False, capture_output=True, text=True
    )
    assert found.stdout == ""


def test_the_production_image_has_neither_sandbox_nor_tests_nor_secrets() -> None:
    desk, trial = (PROJECT / "Dockerfile").read_text().split("AS trial")
    copied = re.findall(r"^COPY (?:--\S+ )?(\S+)", desk, flags=re.MULTILINE)
    allowed = {"requirements.txt", "docker/install-postgres", "/opt/payme-ops/venv", "dags", "plugins", "include"}
    assert set(copied) == allowed | {"docs/runbooks", "docker"}
    assert "COPY sandbox" in trial
    assert "USER 50000\nENTRYPOINT" in re.sub(r"\n#.*", "", desk)
    assert (PROJECT / ".dockerignore").read_text().split("\n")[1] == "*"


@pytest.mark.parametrize("script", ["docker/secrets", "docker/install-postgres"])
def test_scripts_are_clean_for_shellcheck(script: str) -> None:
    if shutil.which("shellcheck") is None:
        pytest.skip("there is no shellcheck here")
    found = subprocess.run(["shellcheck", PROJECT / script], check=False, capture_output=True, text=True)
    assert found.stdout == ""
