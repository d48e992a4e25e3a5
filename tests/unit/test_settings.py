"""Settings: every fault at once, each with its variable and what to do; production refuses what is not production."""

import os
import re
from pathlib import Path

import pyrage
import pytest

from payme_ops.foundation import settings
from payme_ops.foundation.errors import SettingsError
from payme_ops.foundation.settings import Profile

RECOVERY, DRILL = (str(pyrage.x25519.Identity.generate().to_public()) for _ in range(2))
VALID = {
    "PAYME_OPS__PROFILE": "staging",
    "PAYME_OPS__BACKUP__BUCKET": "payme-backups",
    "PAYME_OPS__BACKUP__REGION": "af-south-1",
    "PAYME_OPS__BACKUP__COPY_BUCKET": "payme-backups-copies",
    "PAYME_OPS__BACKUP__COPY_REGION": "eu-west-1",
    "PAYME_OPS__BACKUP__RECIPIENT_RECOVERY": RECOVERY,
    "PAYME_OPS__BACKUP__RECIPIENT_DRILL": DRILL,
    "PAYME_OPS__BACKUP__SIGNING_KEY_FILE": "/etc/payme-ops/signing.pem",
    "PAYME_OPS__BACKUP__TRUSTED_KEYS": "q83vEjRWeJCrze8SNFZ4kKvN7xI0VniQq83vEjRWeJA=",
    "PAYME_OPS__BACKUP__VERIFICATION_KEYS": "kKvN7xI0VniQq83vEjRWeJCrze8SNFZ4q83vEjRWeJA=",
}
PRODUCTION = {
    **VALID,
    "PAYME_OPS__PROFILE": "production",
    "AIRFLOW__CORE__AUTH_MANAGER": "airflow.providers.fab.auth_manager.fab_auth_manager.FabAuthManager",
    "AIRFLOW__SENTRY__SENTRY_ON": "true",
    "AIRFLOW__SENTRY__SENTRY_DSN": "https://key@o1.ingest.sentry.io/1",
    "AIRFLOW__SENTRY__ENVIRONMENT": "production",
    "AIRFLOW__SENTRY__RELEASE": "payme-ops@0.1.0",
    "AIRFLOW__SENTRY__TRACES_SAMPLE_RATE": "0.1",
    "AIRFLOW__WORKERS__SECRETS_BACKEND": "airflow.providers.amazon.aws.secrets.secrets_manager.SecretsManagerBackend",
    "AIRFLOW__WORKERS__SECRETS_BACKEND_KWARGS": '{"connections_prefix": "payme/production/airflow/connections"}',
}


class Environment:
    """This process's environment with nothing of ours but what a test puts there."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._monkeypatch = monkeypatch
        for name in [name for name in os.environ if name.startswith(("PAYME_OPS__", "AIRFLOW_"))]:
            monkeypatch.delenv(name)

    def load(self, values: dict[str, str], **changed: str) -> settings.Settings:
        for name, value in {**values, **changed}.items():
            self._monkeypatch.setenv(name, value)
        return settings.load()

    def faults(self, values: dict[str, str], **changed: str) -> list[str]:
        with pytest.raises(SettingsError) as caught:
            self.load(values, **changed)
        assert caught.value.remedy
        first, *faults = caught.value.what.split("\n  - ")
        assert first == f"{len(faults)} setting(s) cannot be used:"
        return faults


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch) -> Environment:
    return Environment(monkeypatch)


def without(values: dict[str, str], *names: str) -> dict[str, str]:
    return {name: value for name, value in values.items() if name not in names}


def test_the_desks_own_databases_are_backed_up_by_the_same_settings(environment: Environment) -> None:
    loaded = environment.load(VALID, PAYME_OPS__DESK__OPS_DATABASE="ops")
    assert [loaded.of(which).backup.database for which in loaded.desk.databases] == ["airflow", "ops"]
    assert loaded.of("airflow").backup.bucket == loaded.backup.bucket
    assert loaded.backup.database == "payme"


def test_valid_settings_with_their_defaults(environment: Environment) -> None:
    loaded = environment.load(VALID)
    assert loaded.profile is Profile.STAGING
    assert loaded.backup.database == "payme"
    assert loaded.backup.storage_class == "STANDARD_IA"
    assert loaded.backup.kms_key_id is None
    assert loaded.backup.identity_file is None
    assert loaded.postgres.client_dirs == ["/usr/lib/postgresql/{major}/bin"]
    assert loaded.slack.channel == "payme-ops"


def test_lists_are_comma_separated(environment: Environment) -> None:
    loaded = environment.load(
        VALID, PAYME_OPS__POSTGRES__CLIENT_DIRS="/a, /b/{major}/bin,", PAYME_OPS__BACKUP__TRUSTED_KEYS="one,two"
    )
    assert loaded.postgres.client_dirs == ["/a", "/b/{major}/bin"]
    assert loaded.backup.trusted_keys == ["one", "two"]


def test_all_faults_at_once_each_with_name_and_purpose(environment: Environment) -> None:
    faults = environment.faults(
        without(VALID, "PAYME_OPS__BACKUP__BUCKET", "PAYME_OPS__PROFILE"),
        PAYME_OPS__BACKUP__REGION="Cape Town",
        PAYME_OPS__BACKUP__RECIPIENT_DRILL="age1short",
        PAYME_OPS__BACKUP__STORAGE_CLASS="GLACIER",
        PAYME_OPS__BACKUP__TRUSTED_KEYS=" , ",
        PAYME_OPS__BACKUP__BUKET="payme-backups",
    )
    named = {fault.split(":")[0] for fault in faults}
    assert named == {
        "PAYME_OPS__PROFILE",
        "PAYME_OPS__BACKUP__BUCKET",
        "PAYME_OPS__BACKUP__REGION",
        "PAYME_OPS__BACKUP__RECIPIENT_DRILL",
        "PAYME_OPS__BACKUP__STORAGE_CLASS",
        "PAYME_OPS__BACKUP__TRUSTED_KEYS",
        "PAYME_OPS__BACKUP__BUKET",
    }
    known = settings.variables()
    for fault in faults:
        name = fault.split(":")[0]
        assert known.get(name, "no such setting. Remove it or correct its name") in fault


def test_a_missing_group_names_its_variables(environment: Environment) -> None:
    faults = environment.faults({"PAYME_OPS__PROFILE": "sandbox"})
    assert len(faults) == 1
    assert all(name in faults[0] for name in settings.variables() if name.startswith("PAYME_OPS__BACKUP__"))


def test_an_empty_variable_counts_as_not_set(environment: Environment) -> None:
    loaded = environment.load(VALID, PAYME_OPS__BACKUP__KMS_KEY_ID="", PAYME_OPS__BACKUP__IDENTITY_FILE="")
    assert loaded.backup.kms_key_id is None
    assert loaded.backup.identity_file is None


def test_an_empty_required_variable_is_missing(environment: Environment) -> None:
    assert environment.faults(VALID, PAYME_OPS__BACKUP__BUCKET="")[0].startswith(
        "PAYME_OPS__BACKUP__BUCKET: Field required"
    )


def test_a_faulty_value_is_not_repeated_in_the_text(environment: Environment) -> None:
    text = "\n".join(environment.faults(VALID, PAYME_OPS__BACKUP__RECIPIENT_DRILL="AGE-SECRET-KEY-1PASTEDBYMISTAKE"))
    assert "PASTEDBYMISTAKE" not in text


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("PAYME_OPS__BACKUP__DATABASE", "pay/me"),
        ("PAYME_OPS__BACKUP__DATABASE", "p" * 64),
        ("PAYME_OPS__BACKUP__BUCKET", "ab"),
        ("PAYME_OPS__POSTGRES__CLIENT_DIRS", " , "),
        ("PAYME_OPS__PROFILE", "prod"),
        ("PAYME_OPS__MIGRATION__REPLICAS", "10.0.0.5:3000"),
        ("PAYME_OPS__MIGRATION__REPLICAS", "ftp://10.0.0.5"),
        ("PAYME_OPS__MIGRATION__REPLICAS", "http://"),
        ("PAYME_OPS__MIGRATION__REPLICAS", "http://10.0.0.5:0"),
        ("PAYME_OPS__MIGRATION__REPLICAS", "http://10.0.0.5:65536"),
        ("PAYME_OPS__MIGRATION__REPLICAS", "http://[:::]:3000"),
        ("PAYME_OPS__MIGRATION__REPLICAS", "http://10.0.0.5:3000/"),
        ("PAYME_OPS__MIGRATION__REPLICAS", "http://10.0.0.5:3000?of=metrics"),
        ("PAYME_OPS__MIGRATION__REPLICAS", "http://10.0.0.5 http://10.0.0.6"),
        ("PAYME_OPS__MIGRATION__REPLICAS", "http://desk:secret@10.0.0.5"),
        ("PAYME_OPS__MIGRATION__REPLICAS", "http://é.test"),
        ("PAYME_OPS__MIGRATION__REPLICAS", '["http://10.0.0.5"]'),
        ("PAYME_OPS__MIGRATION__REPLICAS", "http://10.0.0.5,http://10.0.0.6,http://10.0.0.5"),
        ("PAYME_OPS__MONITORING__ENDPOINTS", "http://10.0.0.5"),
        ("PAYME_OPS__MONITORING__ENDPOINTS", "production="),
        ("PAYME_OPS__MONITORING__ENDPOINTS", "Production=http://10.0.0.5"),
        ("PAYME_OPS__MONITORING__ENDPOINTS", "production=http://10.0.0.5/"),
        ("PAYME_OPS__MONITORING__ENDPOINTS", "production=http://10.0.0.5,production=http://10.0.0.6"),
        ("PAYME_OPS__MONITORING__KEEP_DAYS", "31"),
    ],
)
def test_malformed_values_are_refused(environment: Environment, name: str, value: str) -> None:
    assert [fault.split(":")[0] for fault in environment.faults(VALID, **{name: value})] == [name]


def test_endpoints_are_named_base_urls(environment: Environment) -> None:
    loaded = environment.load(
        VALID, PAYME_OPS__MONITORING__ENDPOINTS="production=https://api.payme.test, staging=http://10.0.0.5:3000,"
    )
    assert loaded.monitoring.endpoints == {
        "production": "https://api.payme.test",
        "staging": "http://10.0.0.5:3000",
    }
    (fault,) = environment.faults(VALID, PAYME_OPS__MONITORING__ENDPOINTS="staging=http://desk:hunter2@10.0.0.6")
    assert "staging is no base URL like https://api.example.com" in fault
    assert "hunter2" not in fault


def test_replicas_are_base_urls_and_a_fault_names_the_one(environment: Environment) -> None:
    good = "http://10.0.0.5:3000, https://api-2.payme.test/v1,http://[fd00::5]:3000,"
    name = "PAYME_OPS__MIGRATION__REPLICAS"
    loaded = environment.load(VALID, **{name: good})
    assert loaded.migration.replicas == ("http://10.0.0.5:3000", "https://api-2.payme.test/v1", "http://[fd00::5]:3000")
    assert environment.load(VALID, **{name: ""}).migration.replicas == ()
    (fault,) = environment.faults(VALID, **{name: f"{good}http://desk:hunter2@10.0.0.6"})
    assert "number 4 is no base URL like http://10.0.0.5:3000" in fault
    assert "hunter2" not in fault


def test_production_with_everything_right(environment: Environment) -> None:
    assert environment.load(PRODUCTION).profile is Profile.PRODUCTION


BACKEND = PRODUCTION["AIRFLOW__WORKERS__SECRETS_BACKEND"]
NO_CONNECTIONS = '{"connections_prefix": null, "config_prefix": "payme/production/airflow/config"}'
CONNECTION = '{"conn_type": "postgres", "host": "db", "extra": {"sslmode": "verify-full"}}'
SIMPLE = "airflow.api_fastapi.auth.managers.simple.simple_auth_manager.SimpleAuthManager"
# By the line of the table in docs/secrets.md: variable, value, what the refusal says.
REFUSED: dict[str, list[tuple[str, str, str]]] = {
    "a placeholder": [
        ("PAYME_OPS__BACKUP__BUCKET", "change-me", "placeholder"),
        ("PAYME_OPS__ALERT__OWNER", "<who to call>", "placeholder"),
        ("PAYME_OPS__BACKUP__TRUSTED_KEYS", "your_public_key", "placeholder"),
        ("PAYME_OPS__SLACK__CHANNEL", "xxx", "placeholder"),
        ("AIRFLOW__SENTRY__SENTRY_DSN", "https://<key>@sentry.io/1", "placeholder"),
    ],
    "a key of the sandbox": [
        ("PAYME_OPS__BACKUP__SIGNING_KEY_FILE", "/home/ops/payme-ops/.demo/keys/signing.pem", "sandbox's keys"),
    ],
    "a connection in the environment": [
        ("AIRFLOW_CONN_PAYME_DB_READ", CONNECTION, "where Airflow looks"),
        ("AIRFLOW_CONN_PAYME_SLACK", "slack://:xoxb-token@", "where Airflow looks"),
    ],
    "a loopback address": [
        ("PAYME_OPS__WATCHDOG__AIRFLOW_URL", "http://localhost:8080", "loopback"),
        ("PAYME_OPS__WATCHDOG__API_URL", "https://127.0.0.1:3000", "loopback"),
        ("PAYME_OPS__WATCHDOG__STAGING_API_URL", "https://127.9.9.9", "loopback"),
        ("PAYME_OPS__WATCHDOG__HEARTBEAT_URL", "https://0.0.0.0/ping", "loopback"),
        ("PAYME_OPS__SLACK__API_URL", "https://localhost/api/", "loopback"),
        ("PAYME_OPS__SENTRY__URL", "https://localhost", "loopback"),
        ("PAYME_OPS__MONITORING__ENDPOINTS", "production=https://[::1]:3000", "loopback"),
        ("PAYME_OPS__MIGRATION__REPLICAS", "http://10.0.0.5:3000,http://127.0.0.1:3000", "loopback"),
        ("AIRFLOW__SENTRY__SENTRY_DSN", "https://key@127.0.0.1:9000/1", "loopback"),
    ],
    "an address in clear": [
        ("PAYME_OPS__WATCHDOG__API_URL", "http://api.payme.test", "https://"),
        ("PAYME_OPS__WATCHDOG__STAGING_API_URL", "http://staging.payme.test", "https://"),
        ("PAYME_OPS__WATCHDOG__HEARTBEAT_URL", "http://monitor.payme.test/ping", "https://"),
        ("PAYME_OPS__SLACK__API_URL", "http://slack.com/api/", "https://"),
        ("PAYME_OPS__SENTRY__URL", "http://sentry.io", "https://"),
        ("PAYME_OPS__MONITORING__ENDPOINTS", "production=https://a.test,staging=http://b.test", "https://"),
        ("AIRFLOW__SENTRY__SENTRY_DSN", "http://key@sentry.payme.test/1", "https://"),
    ],
    "`SimpleAuthManager`": [
        ("AIRFLOW__CORE__AUTH_MANAGER", SIMPLE, "SimpleAuthManager"),
        ("AIRFLOW__CORE__AUTH_MANAGER", "", "SimpleAuthManager"),
    ],
    "no Sentry": [
        ("AIRFLOW__SENTRY__SENTRY_ON", "", "sends nothing"),
        ("AIRFLOW__SENTRY__SENTRY_ON", "False", "sends nothing"),
        ("AIRFLOW__SENTRY__SENTRY_DSN", "", "Sentry"),
        ("AIRFLOW__SENTRY__ENVIRONMENT", "", "which installation"),
        ("AIRFLOW__SENTRY__RELEASE", "", "which installation"),
        ("AIRFLOW__SENTRY__TRACES_SAMPLE_RATE", "1.0", "0.1"),
        ("AIRFLOW__SENTRY__TRACES_SAMPLE_RATE", "", "0.1"),
        ("AIRFLOW__SENTRY__TRACES_SAMPLE_RATE", "a tenth", "0.1"),
        ("AIRFLOW__SENTRY__SAMPLE_RATE", "0.5", "drops errors"),
    ],
    "no secrets backend, or one that keeps or shows": [
        ("AIRFLOW__WORKERS__SECRETS_BACKEND", "", "AWS Secrets Manager"),
        ("AIRFLOW__WORKERS__SECRETS_BACKEND", "airflow.secrets.metastore.MetastoreBackend", "from a file"),
        *(
            ("AIRFLOW__WORKERS__SECRETS_BACKEND_KWARGS", value, "connections_prefix")
            for value in ("", "[]", '\'{"connections_prefix": "kept/quotes"}\'', '{"connections_prefix": null}', "{}")
        ),
        ("AIRFLOW__DATABASE__SQL_ALCHEMY_CONN_SECRET", "sql_alchemy_conn", "takes its default"),
        ("AIRFLOW__CORE__FERNET_KEY_SECRET", "fernet_key", "takes its default"),
        ("AIRFLOW__API_AUTH__JWT_SECRET_SECRET", "jwt_secret", "takes its default"),
        ("AIRFLOW__API__SECRET_KEY_SECRET", "secret_key", "takes its default"),
        ("AIRFLOW__SENTRY__SENTRY_DSN_SECRET", "sentry_dsn", "fails every task"),
        ("AIRFLOW__SECRETS__USE_CACHE", "True", "for minutes"),
        ("AIRFLOW__LOGGING__LOGGING_LEVEL", "debug", "boto3 logs"),
    ],
    "compressed time": [
        ("PAYME_OPS__MONITORING__INTERVAL_SECONDS", "5", "every 30 s"),
        ("PAYME_OPS__RELEASE__SAMPLE_SECONDS", "1", "every 30 s"),
        ("PAYME_OPS__RELEASE__WATCH_MINUTES", "5", "120 minutes"),
    ],
}
TABLE = (Path(__file__).parents[2] / "docs" / "secrets.md").read_text()
# What is refused, and in which profiles, in the order sandbox, staging, production.
DOCUMENTED = {
    row[0].strip(): [cell.strip() == "refused" for cell in row[1:]]
    for row in re.findall(r"^\| ([^|]+)\| ([^|]+)\| ([^|]+)\| ([^|]+)\| settings \|$", TABLE, re.MULTILINE)
}


def test_the_table_has_each_refusal() -> None:
    assert list(DOCUMENTED) == list(REFUSED)


@pytest.mark.parametrize(
    ("what", "name", "value", "says"), [(what, *case) for what, cases in REFUSED.items() for case in cases]
)
def test_each_profile_refuses_what_the_table_says(
    environment: Environment, what: str, name: str, value: str, says: str
) -> None:
    for profile, refuses in zip(Profile, DOCUMENTED[what], strict=True):
        changed = {name: value, "PAYME_OPS__PROFILE": profile.value}
        if refuses:
            (fault,) = environment.faults(PRODUCTION, **changed)
            assert re.match(rf"{name}:? ", fault)
            assert says in fault
            assert value not in fault or len(value) < 30
        else:
            assert environment.load(PRODUCTION, **changed)


@pytest.mark.parametrize(
    ("kwargs", "good"),
    [
        (NO_CONNECTIONS, True),
        ('{"config_prefix": "payme/production/airflow/config"}', False),
        ('{"connections_prefix": "payme/production/airflow/connections"}', False),
        ('{"connections_prefix": ""}', False),
        ("", False),
        ("[]", False),
        ("{nonsense", False),
    ],
)
def test_production_lets_the_api_server_hand_out_no_connection(
    environment: Environment, kwargs: str, good: bool
) -> None:
    changed = {"AIRFLOW__SECRETS__BACKEND": BACKEND, "AIRFLOW__SECRETS__BACKEND_KWARGS": kwargs}
    if good:
        assert environment.load(PRODUCTION, **changed, AIRFLOW__CORE__FERNET_KEY_SECRET="fernet_key")
        changed["AIRFLOW__SECRETS__BACKEND_KWARG__CONNECTIONS_PREFIX"] = "payme/production/airflow/connections"
    (fault,) = environment.faults(PRODUCTION, **changed)
    assert "any connection to any task" in fault


def test_production_takes_addresses_of_its_own_network_in_clear(environment: Environment) -> None:
    assert environment.load(
        PRODUCTION,
        PAYME_OPS__WATCHDOG__AIRFLOW_URL="http://api-server:8080",
        PAYME_OPS__MIGRATION__REPLICAS="http://10.0.0.5:3000",
    )


def test_production_sends_no_password_in_clear(environment: Environment) -> None:
    login = {"PAYME_OPS__WATCHDOG__AIRFLOW_LOGIN": "auditor"}
    assert environment.load(PRODUCTION, **login, PAYME_OPS__WATCHDOG__AIRFLOW_URL="https://airflow.payme.test")
    assert environment.load(PRODUCTION, **login, PAYME_OPS__WATCHDOG__AIRFLOW_URL="http://api-server:8080")
    (fault,) = environment.faults(PRODUCTION, **login, PAYME_OPS__WATCHDOG__AIRFLOW_URL="http://airflow.payme.test")
    assert "shows the login's password" in fault


def test_production_takes_connections_from_a_file_that_is_named(environment: Environment) -> None:
    files = {"AIRFLOW__WORKERS__SECRETS_BACKEND": "airflow.secrets.local_filesystem.LocalFilesystemBackend"}
    kwargs = "AIRFLOW__WORKERS__SECRETS_BACKEND_KWARGS"
    assert environment.load(
        PRODUCTION, **files, **{kwargs: '{"connections_file_path": "/run/secrets/connections.json"}'}
    )
    for unnamed in (
        "{}",
        '{"connections_prefix": "payme/production/airflow/connections"}',
        '{"connections_file_path": ""}',
    ):
        (fault,) = environment.faults(PRODUCTION, **files, **{kwargs: unnamed})
        assert "connections_file_path" in fault


@pytest.mark.parametrize(
    "name",
    ["AIRFLOW__CORE__AUTH_MANAGER", "AIRFLOW__SENTRY__SENTRY_DSN", "AIRFLOW__SENTRY__TRACES_SAMPLE_RATE"],
)
def test_production_refuses_what_is_not_set_at_all(environment: Environment, name: str) -> None:
    (fault,) = environment.faults(without(PRODUCTION, name))
    assert fault.startswith(f"{name}: ")


def test_a_key_with_three_x_in_it_is_no_placeholder(environment: Environment) -> None:
    key = "xxxvEjRWeJCrze8SNFZ4kKvN7xI0VniQq83vEjXXXXA="
    recipient = RECOVERY[:20] + "xxxx" + RECOVERY[24:]
    assert environment.load(
        PRODUCTION, PAYME_OPS__BACKUP__TRUSTED_KEYS=key, PAYME_OPS__BACKUP__RECIPIENT_RECOVERY=recipient
    )


def test_an_address_of_a_person_is_no_placeholder(environment: Environment) -> None:
    assert environment.load(PRODUCTION, PAYME_OPS__ALERT__OWNER="Jane Doe <jane@payme.test>")


def test_every_variable_has_a_description() -> None:
    assert all(settings.variables().values())


def test_production_names_malformed_and_refused_values_together(environment: Environment) -> None:
    faults = environment.faults(
        without(PRODUCTION, "AIRFLOW__SENTRY__SENTRY_DSN", "PAYME_OPS__BACKUP__REGION"),
        PAYME_OPS__BACKUP__BUCKET="change-me",
    )
    assert {fault.split(":")[0] for fault in faults} == {
        "PAYME_OPS__BACKUP__REGION",
        "PAYME_OPS__BACKUP__BUCKET",
        "AIRFLOW__SENTRY__SENTRY_DSN",
    }
