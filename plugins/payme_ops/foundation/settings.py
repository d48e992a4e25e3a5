"""One typed settings object, read from PAYME_OPS__* variables and checked at once.

Settings hold no secret: passwords live in connections, keys in files or secrets named here. The three profiles differ
in what they refuse (DESIGN.md section 3; the table in docs/secrets.md). What stands in a connection or a bucket is
refused where it is first known: orchestration.connections, preflight and doctor.
"""

import json
import os
import re
from enum import StrEnum
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict
from urllib3.util import parse_url

from payme_ops.foundation.errors import SettingsError

PREFIX = "PAYME_OPS__"
MIN_WATCH_MINUTES, SAMPLE_SECONDS, PRODUCTION_TRACES = 120, 30, 0.1
# xxx only as a word: three in a row also occur in keys. <jane@payme.co.ke> is an address.
_PLACEHOLDER = re.compile(r"change.?me|your_|placeholder|example|<[^>@]*>|(?<![\w+/])x{3,}(?![\w+/=])", re.IGNORECASE)
_BASE_URL = re.compile(r"https?://([A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\])(:\d{1,5})?(/[A-Za-z0-9._~%-]+)*", re.ASCII)
_ENDPOINT = re.compile(r"[a-z][a-z0-9_-]{0,40}")
_LOOPBACK = re.compile(r"\b(127\.\d+\.\d+\.\d+|0\.0\.0\.0|localhost)\b|(?<![\w:])::1(?![\w:])")
# Where a token goes to, or what is believed of the answer. Airflow's own address and the replicas' are not among
# them: in their own network they are asked for their health only, unless a login goes to Airflow's, too.
_HTTPS = (
    *("SLACK__API_URL", "WATCHDOG__HEARTBEAT_URL", "WATCHDOG__API_URL", "WATCHDOG__STAGING_API_URL", "SENTRY__URL"),
    *("MONITORING__ENDPOINTS", "AIRFLOW__SENTRY__SENTRY_DSN"),
)
_IN_CLEAR = re.compile(r"(?<![\w+])http://")
# Options of Airflow that name a secret, not hold one.
NAMES_OF_SECRETS = (
    *("DATABASE__SQL_ALCHEMY_CONN_SECRET", "CORE__FERNET_KEY_SECRET"),
    *("API_AUTH__JWT_SECRET_SECRET", "API__SECRET_KEY_SECRET"),
)
_SECRET_OPTIONS = (
    *NAMES_OF_SECRETS,
    *("SECRETS__BACKEND", "SECRETS__BACKEND_KWARGS", "SECRETS__USE_CACHE"),
    *("WORKERS__SECRETS_BACKEND", "WORKERS__SECRETS_BACKEND_KWARGS"),
    *("SENTRY__SENTRY_DSN_SECRET", "LOGGING__LOGGING_LEVEL"),
)
# Where connections come from in production, and the option of that backend which says where exactly.
_BACKENDS = {
    "airflow.providers.amazon.aws.secrets.secrets_manager.SecretsManagerBackend": "connections_prefix",
    "airflow.secrets.local_filesystem.LocalFilesystemBackend": "connections_file_path",
}


def is_loopback(text: str) -> bool:
    """Whether the text names this machine's own address."""
    return bool(_LOOPBACK.search(text))


def goes_in_clear(url: str) -> bool:
    """Whether what is sent to that address can be read on its way.

    A name without a dot is one of the network of these containers, as http://api-server:8080. IPv6 has brackets.
    """
    return url.startswith("http://") and ("." in url or "[" in url)


class Profile(StrEnum):
    """Where this installation runs."""

    SANDBOX = "sandbox"
    STAGING = "staging"
    PRODUCTION = "production"


def _split(value: object) -> object:
    return [part.strip() for part in value.split(",") if part.strip()] if isinstance(value, str) else value


class _Group(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")  # _unknown_variables finds what is too much


# Lists are comma separated: a shell user need not write JSON.
CommaList = Annotated[list[str], NoDecode, BeforeValidator(_split)]


def _base_urls(values: tuple[str, ...]) -> tuple[str, ...]:
    for number, value in enumerate(values, 1):
        if not _BASE_URL.fullmatch(value) or not _has_port(value):  # the value is not shown: it may hold a password
            raise ValueError(f"number {number} is no base URL like http://10.0.0.5:3000, without a slash at its end")
        if value in values[: number - 1]:
            raise ValueError(f"number {number} is there twice")
    return values


def _has_port(url: str) -> bool:
    try:
        return parse_url(url).port != 0
    except ValueError:  # no address, or no port of a machine
        return False


BaseUrls = Annotated[tuple[str, ...], NoDecode, BeforeValidator(_split), AfterValidator(_base_urls)]


def _endpoints(values: dict[str, str]) -> dict[str, str]:
    for number, (name, url) in enumerate(values.items(), 1):
        if not _ENDPOINT.fullmatch(name):
            raise ValueError(f"number {number} has no name like production= before its URL")
        try:
            _base_urls((url,))
        except ValueError:
            raise ValueError(
                f"{name} is no base URL like https://api.example.com, without a slash at its end"
            ) from None
    return values


def _named(value: object) -> object:
    """`a=x,b=y` as a mapping; what has no name keeps its place, to be refused with it."""
    parts = _split(value)
    if not isinstance(parts, list):
        return value
    pairs = [part.partition("=")[::2] if "=" in part else ("", part) for part in parts]
    if len(names := [name for name, _ in pairs]) != len(set(names)):
        raise ValueError("a name is there twice")
    return dict(pairs)


Endpoints = Annotated[dict[str, str], NoDecode, BeforeValidator(_named), AfterValidator(_endpoints)]


class BackupSettings(_Group):
    """What is backed up, where it goes, and the keys' public halves and places."""

    database: str = Field(
        default="payme",
        pattern=r"^[A-Za-z0-9_.-]{1,63}$",
        description="Name of the database to back up; it is part of every object key.",
    )
    bucket: str = Field(min_length=3, max_length=63, description="Bucket for daily backups (versioned, Object Lock).")
    region: str = Field(
        pattern=r"^[a-z]{2}(-[a-z]+)+-\d$",
        description="Region the bucket must be in, for example af-south-1.",
    )
    copy_bucket: str = Field(
        min_length=3,
        max_length=63,
        description="Bucket for weekly copies and monthly archives, in another region (versioned, Object Lock).",
    )
    copy_region: str = Field(
        pattern=r"^[a-z]{2}(-[a-z]+)+-\d$",
        description="Region of that bucket, another one than PAYME_OPS__BACKUP__REGION.",
    )
    storage_class: str = Field(
        default="STANDARD_IA",
        pattern=r"^(STANDARD|STANDARD_IA|ONEZONE_IA|INTELLIGENT_TIERING)$",
        description="S3 storage class of new backups.",
    )
    archive_class: str = Field(
        default="GLACIER",
        pattern=r"^(GLACIER|DEEP_ARCHIVE)$",
        description="S3 storage class of monthly archives.",
    )
    kms_key_id: str | None = Field(
        default=None, description="KMS key for server-side encryption; without it SSE is AES256."
    )
    recipient_recovery: str = Field(
        pattern=r"^age1[0-9a-z]{58}$",
        description="age X25519 recipient whose identity two people keep offline (docs/keys.md).",
    )
    recipient_drill: str = Field(
        pattern=r"^age1[0-9a-z]{58}$",
        description="age X25519 recipient whose identity only restore workers can read.",
    )
    signing_key_file: Path | None = Field(
        default=None,
        description="Ed25519 private key (PEM, PKCS8) that signs manifests, a file or a secret's ARN; backup workers"
        " only.",
    )
    trusted_keys: CommaList = Field(
        min_length=1,
        description="Base64 raw Ed25519 public keys whose manifests count, comma separated; keep retired ones.",
    )
    identity_file: Path | None = Field(
        default=None,
        description="age identity (drill or recovery) to restore with, a file or a secret's ARN; restore workers only.",
    )
    verification_key_file: Path | None = Field(
        default=None,
        description="Ed25519 private key (PEM, PKCS8) that signs what restore tests found, a file or a secret's ARN;"
        " restore workers only.",
    )
    verification_keys: CommaList = Field(
        min_length=1,
        description="Base64 raw Ed25519 public keys whose verifications count, comma separated; keep retired ones.",
    )
    scratch_dir: Path = Field(
        default=Path("/var/tmp/payme-ops"),  # noqa: S108  # holds folders of mode 0700
        description="Folder for throw-away servers and archives of restore tests; needs room for a whole database.",
    )
    restore_test_service: str = Field(
        default="",
        description="Connection of a server to run restore tests on; empty: a throw-away server on the worker.",
    )
    restore_targets: CommaList = Field(
        default=[],
        description="Databases that backup_restore may replace, comma separated; empty: only the one backed up.",
    )
    keep_replaced_days: int = Field(
        default=7, ge=1, le=90, description="Days for which a database replaced by a restore is kept."
    )


class TargetSettings(_Group):
    """What freshness is measured against."""

    rpo_hours: int = Field(default=26, ge=1, description="Hours that the newest complete backup may be old.")
    proof_days: int = Field(default=8, ge=1, description="Days that the newest verified backup may be old.")
    rto_minutes: int = Field(default=60, ge=1, description="Minutes that the last restore test may have taken.")


class PostgresSettings(_Group):
    """Client tools."""

    client_dirs: CommaList = Field(
        default=["/usr/lib/postgresql/{major}/bin"],
        min_length=1,
        description="Folders with pg_dump and pg_restore, comma separated; {major} stands for the server's version.",
    )


class SlackSettings(_Group):
    """Where alerts go; the token is in the connection payme_slack, and in a file for the watchdog outside Airflow."""

    channel: str = Field(
        default="payme-ops", min_length=1, description="Slack channel for alerts: its id, or its name without #."
    )
    token_file: Path | None = Field(
        default=None,
        description="File or secret's ARN with Slack's bot token, for the watchdog; DAGs have payme_slack.",
    )
    api_url: str = Field(
        default="https://slack.com/api/",
        pattern=r"^https?://\S+/$",
        description="Slack's Web API for the watchdog; another one in the sandbox only.",
    )


class AlertSettings(_Group):
    """Who is named in alerts."""

    owner: str = Field(default="payme-ops on call", min_length=1, description="Whom to call; shown in every alert.")


class NotifySettings(_Group):
    """Who is told of an outage besides Slack; connections payme_smtp and payme_status_page say how."""

    support_email: str = Field(
        default="",
        pattern=r"^$|^[^@\s]+@[^@\s]+$",
        description="Support's address, told when a restore stops the application, or of a release if Slack is away.",
    )


class WatchdogSettings(_Group):
    """The process outside Airflow that tells what went silent (docs/watchdog.md)."""

    airflow_url: str = Field(
        default="",
        pattern=r"^$|^https?://\S+[^/\s]$",
        description="Base URL of Airflow's API server, without a slash at its end: whose health the watchdog asks for.",
    )
    airflow_login: str = Field(
        default="",
        description="Account that only reads Airflow's API, as of the connection payme_airflow_api: to see what is"
        " paused; empty: whoever is on call looks.",
    )
    airflow_password_file: Path | None = Field(
        default=None, description="File or secret's ARN with that account's password."
    )
    heartbeat_url: str = Field(
        default="",
        repr=False,
        pattern=r"^$|^https?://\S+$",
        description="URL of a monitor elsewhere that the watchdog asks for every 30 s while it does its work.",
    )
    api_url: str = Field(
        default="",
        pattern=r"^$|^https?://\S+[^/\s]$",
        description="Base URL of the PayMe API, without a slash at its end: where the watchdog has orders taken again.",
    )
    api_token_file: Path | None = Field(
        default=None,
        description="File or secret's ARN with the token for that API's /admin; DAGs have the connection payme_api.",
    )
    staging_api_url: str = Field(
        default="",
        pattern=r"^$|^https?://\S+[^/\s]$",
        description="The same of staging, whose orders may be stopped, too.",
    )
    staging_api_token_file: Path | None = Field(
        default=None, description="File or secret's ARN with the token for staging's /admin."
    )
    sentry_dsn_file: Path | None = Field(
        default=None,
        description="File with the DSN of Airflow's project in Sentry, which hears what Slack does not take; empty: the"
        " heartbeat stops, and that is all.",
    )


class MigrationSettings(_Group):
    """The encryption of a column. The key is ENCRYPTION_KEY, as for the application; migration workers only."""

    key_id: str = Field(
        default="k1",
        pattern=r"^[a-z0-9]{1,16}$",
        description="Id of ENCRYPTION_KEY, written into every ciphertext; another key gets another id.",
    )
    app_role: str = Field(
        default="payme_app", min_length=1, max_length=63, description="Database role that the application logs in as."
    )
    replicas: BaseUrls = Field(
        default=(),
        description="Base URLs of every replica of the API, comma separated, whose /metrics tells its version; needed"
        " where a pooler or driver hides the version from the database.",
    )
    lock_budget_seconds: int = Field(
        default=60,
        ge=1,
        le=600,
        description="Seconds for which a change of a table is tried again, each try 0.2 s.",
    )
    replica_lag_seconds: float = Field(
        default=5.0, gt=0, description="Seconds a replica may be behind before the backfill waits for it."
    )
    wal_bytes_per_second: int = Field(
        default=100_000_000, ge=1_000_000, description="WAL of the whole server above which the backfill waits."
    )
    canary_p99_ms: int = Field(
        default=250, ge=1, description="Milliseconds that one read by key may take (p99) before the backfill waits."
    )
    rest_ratio: float = Field(
        default=9.0,
        ge=0,
        le=100,
        description="Seconds that the backfill rests after each second of writing, for the application; 0: none.",
    )


class ReleaseSettings(_Group):
    """Releases: what is asked of whom, and how long anything may take."""

    lead_minutes: int = Field(
        default=60, ge=0, le=240, description="Minutes before the window at which the last hour's checklist begins."
    )
    approval_minutes: int = Field(
        default=240, ge=1, description="Minutes for which a question to a person stands; then it counts as rejected."
    )
    rollback_plan: str = Field(
        default="docs/rollback.md", min_length=1, description="File of the application's repository: the rollback plan."
    )
    branch: str = Field(
        default="main", min_length=1, description="Branch whose required checks a release must have passed."
    )
    migrations_path: str = Field(
        default="drizzle",
        min_length=1,
        description="Folder of the application's repository with its migrations; their down scripts are in down/.",
    )
    freeze_seconds: int = Field(
        default=240, ge=8, le=600, description="Seconds after which frozen orders are taken again unless renewed."
    )
    drain_seconds: int = Field(
        default=120, ge=1, le=900, description="Seconds within which orders in flight must have ended."
    )
    test_merchant: str = Field(
        default="",
        pattern=r"^[A-Za-z0-9_-]{0,64}$",
        description="Id of the merchant that probe orders are placed for; empty: a person tries one.",
    )
    settle_seconds: int = Field(
        default=300, ge=1, le=3600, description="Seconds within which a deployed commit must run and answer."
    )
    sample_seconds: int = Field(
        default=30, ge=1, le=60, description="Seconds between two looks of the watch after a release."
    )
    baseline_samples: int = Field(
        default=60, ge=1, le=480, description="Looks before a release, if fewer than 50 of the last day are stored."
    )
    p95_ms: float = Field(
        default=1000.0, gt=0, description="Milliseconds below which a 95th percentile is never too slow."
    )
    errors_per_minute: int = Field(default=5, ge=1, description="Errors a minute in Sentry that are too many.")
    connections_percent: int = Field(
        default=80, ge=1, le=100, description="Percent of the database's connections that are too many."
    )
    query_seconds: float = Field(default=5.0, gt=0, description="Seconds that a query may run during the watch.")
    lock_seconds: float = Field(default=1.0, gt=0, description="Seconds that anybody may wait for a lock.")
    final_backup_minutes: int = Field(
        default=60, ge=1, le=600, description="Minutes for which the final backup is waited for, orders stopped."
    )
    watch_minutes: float = Field(
        default=120, gt=0, le=1440, description="Minutes that a release is watched; production refuses less than 120."
    )


class DeskSettings(_Group):
    """The desk's own databases, which desk_backup backs up, and how long Airflow's keeps what is over."""

    airflow_database: str = Field(
        default="airflow",
        pattern=r"^[A-Za-z0-9_.-]{1,63}$",
        description="Name of Airflow's metadata database, as in the connection payme_airflow_db.",
    )
    ops_database: str = Field(
        default="payme_ops",
        pattern=r"^[A-Za-z0-9_.-]{1,63}$",
        description="Name of the ops database, as in the connection payme_ops_db.",
    )
    ops_connection: str = Field(
        default="payme_ops_db",
        pattern=r"^payme_ops_db(_worker|_restore|_release)?$",
        description="The connection by which this process works in the ops database: its owner's, or that of a role"
        " which can write no answer in place of a person (docs/adr/0030-who-writes-answers.md).",
    )
    keep_days: int = Field(
        default=90,
        ge=32,
        description="Days for which Airflow keeps runs, logs, and its event log, which is exported before.",
    )

    @property
    def databases(self) -> dict[str, str]:
        """The names of both, by the word that stands for each."""
        return {"airflow": self.airflow_database, "ops": self.ops_database}


def ops_connection() -> str:
    """The same, also where the settings cannot be read: a run that failed because of them has to be told too."""
    return os.environ.get("PAYME_OPS__DESK__OPS_CONNECTION") or DeskSettings().ops_connection


class SentrySettings(_Group):
    """Whose alert rules the shell keeps as code; the DAGs have the connection payme_sentry."""

    url: str = Field(
        default="https://sentry.io",
        pattern=r"^https?://\S+[^/\s]$",
        description="Base URL of Sentry, without a slash at its end; https://de.sentry.io for data kept in the EU.",
    )
    organization: str = Field(
        default="", pattern=r"^[a-z0-9_-]*$", description="Slug of the organization in Sentry that has both projects."
    )
    project: str = Field(
        default="", pattern=r"^[a-z0-9_-]*$", description="Slug of the application's project in Sentry."
    )
    airflow_project: str = Field(
        default="",
        pattern=r"^[a-z0-9_-]*$",
        description="Slug of the project that Airflow's own DSN belongs to; empty: it has no rules.",
    )
    team_id: str = Field(
        default="",
        pattern=r"^[0-9]*$",
        description="Number of the team in Sentry that gets mail of the rules; empty: the owners of the issue.",
    )
    token_file: Path | None = Field(
        default=None,
        description="File with a token of alerts:write, for `sentry plan` and `apply` on a shell.",
    )


class MonitoringSettings(_Group):
    """Which applications are looked at all the time, and what is too slow of them."""

    endpoints: Endpoints = Field(
        default={},
        description="Applications whose /health and /metrics are looked at, comma separated:"
        " production=https://api.example.com,staging=...; production and staging are those that releases go to.",
    )
    interval_seconds: float = Field(
        default=30, gt=0, le=60, description="Seconds between two looks at each; production looks every 30."
    )
    slow_ms: float = Field(
        default=2000.0, gt=0, description="Milliseconds above which an answer of /health is too slow."
    )
    keep_days: int = Field(
        default=40, ge=32, le=400, description="Days for which single looks are kept; sums of days and months stay."
    )


class Settings(BaseSettings):
    """All settings of payme-ops."""

    # Compose files pass on variables that nobody has set as empty ones.
    model_config = SettingsConfigDict(
        env_prefix=PREFIX, env_nested_delimiter="__", env_ignore_empty=True, frozen=True, extra="ignore"
    )

    profile: Profile = Field(description="sandbox, staging or production; production refuses demo values.")
    backup: BackupSettings
    targets: TargetSettings = TargetSettings()
    postgres: PostgresSettings = PostgresSettings()
    slack: SlackSettings = SlackSettings()
    alert: AlertSettings = AlertSettings()
    notify: NotifySettings = NotifySettings()
    watchdog: WatchdogSettings = WatchdogSettings()
    migration: MigrationSettings = MigrationSettings()
    release: ReleaseSettings = ReleaseSettings()
    monitoring: MonitoringSettings = MonitoringSettings()
    desk: DeskSettings = DeskSettings()
    sentry: SentrySettings = SentrySettings()

    def of(self, which: str) -> "Settings":
        """The same for the backup of one of the desk's own databases: "airflow" or "ops"."""
        return self.model_copy(
            update={"backup": self.backup.model_copy(update={"database": self.desk.databases[which]})}
        )


def load() -> Settings:
    """Settings from the environment.

    Raises SettingsError that lists every fault at once: the variable's name, what is wrong, what it is for.
    """
    faults: list[str] = []
    settings: Settings | None = None
    try:
        settings = Settings()
    except ValidationError as error:
        faults += [_explain(item["loc"], item["msg"]) for item in error.errors(include_input=False)]
    faults += _unknown_variables()
    if settings and settings.backup.copy_region == settings.backup.region:
        faults.append(f"{PREFIX}BACKUP__COPY_REGION: names the region of the first bucket. Name another region")
    profile = os.environ.get(f"{PREFIX}PROFILE")
    if profile in (Profile.STAGING, Profile.PRODUCTION):
        faults += _of_the_sandbox()
    if profile == Profile.PRODUCTION:
        faults += [*_refusals(), *_secret_refusals()]
        if settings:
            faults += _quick_refusals(settings)
    if faults or settings is None:
        raise SettingsError(
            f"{len(faults)} setting(s) cannot be used:\n  - " + "\n  - ".join(faults),
            remedy="correct the variables named above; .env.example explains each one",
        )
    return settings


def variables() -> dict[str, str]:
    """Every variable with its description, in the order of the models. `.env.example` is held equal to it."""
    names: dict[str, str] = {}
    for name, field in Settings.model_fields.items():
        group = field.annotation
        if isinstance(group, type) and issubclass(group, BaseModel):
            for inner, leaf in group.model_fields.items():
                names[f"{PREFIX}{name}__{inner}".upper()] = leaf.description or ""
        else:
            names[f"{PREFIX}{name}".upper()] = field.description or ""
    return names


def _explain(location: tuple[int | str, ...], message: str) -> str:
    path = [str(part) for part in location if isinstance(part, str)]
    variable = PREFIX + "__".join(path).upper()
    known = variables()
    if variable in known:
        return f"{variable}: {message}. {known[variable]}"
    needed = [name for name in known if name.startswith(f"{variable}__")]
    return f"{variable}: {message}. Set {', '.join(needed)}" if needed else f"{variable}: {message}"


def _unknown_variables() -> list[str]:
    known = variables()
    return [
        f"{name}: no such setting. Remove it or correct its name"
        for name in sorted(os.environ)
        if name.upper().startswith(PREFIX) and name.upper() not in known
    ]


def _quick_refusals(settings: Settings) -> list[str]:
    """What compresses time is for the sandbox."""
    faults, release = [], settings.release
    if release.watch_minutes < MIN_WATCH_MINUTES:
        faults.append(f"{PREFIX}RELEASE__WATCH_MINUTES: production watches for {MIN_WATCH_MINUTES} minutes at least")
    if release.sample_seconds != SAMPLE_SECONDS:
        faults.append(f"{PREFIX}RELEASE__SAMPLE_SECONDS: production looks every {SAMPLE_SECONDS} s")
    if settings.monitoring.interval_seconds != SAMPLE_SECONDS:
        faults.append(f"{PREFIX}MONITORING__INTERVAL_SECONDS: production looks every {SAMPLE_SECONDS} s")
    return faults


def _of_the_sandbox() -> list[str]:
    """What neither staging nor production starts with."""
    faults = []
    for name in [*variables(), "AIRFLOW__SENTRY__SENTRY_DSN"]:
        value = os.environ.get(name, "")
        if _PLACEHOLDER.search(value):
            faults.append(f"{name}: holds a placeholder. Put the real value there")
        if "/.demo/" in value:
            faults.append(f"{name}: points at the sandbox's keys. Make keys of your own (docs/keys.md)")
    # Airflow would fall back to it, stale, in the very moment in which Secrets Manager is away.
    faults += [
        f"{name}: a connection in the environment is a sandbox's. Put it where Airflow looks for them (docs/secrets.md)"
        for name, value in sorted(os.environ.items())
        if name.startswith("AIRFLOW_CONN_PAYME_") and value
    ]
    return faults


def _refusals() -> list[str]:
    """What production does not start with. Connections and buckets are checked where they are first known."""
    faults = []
    for name in [*variables(), "AIRFLOW__SENTRY__SENTRY_DSN"]:
        value = os.environ.get(name, "")
        if is_loopback(value):
            faults.append(f"{name}: a loopback address is a sandbox. Name the real host")
        elif name.removeprefix(PREFIX) in _HTTPS and _IN_CLEAR.search(value):
            faults.append(f"{name}: http:// can be read and changed on its way. Name an https:// address")
    login, url = (os.environ.get(f"{PREFIX}WATCHDOG__AIRFLOW_{part}", "") for part in ("LOGIN", "URL"))
    if login and goes_in_clear(url):
        faults.append(f"{PREFIX}WATCHDOG__AIRFLOW_URL: http:// shows the login's password. Name an https:// address")
    # Airflow's default when the variable is not set.
    if "SimpleAuthManager" in (os.environ.get("AIRFLOW__CORE__AUTH_MANAGER") or "SimpleAuthManager"):
        faults.append("AIRFLOW__CORE__AUTH_MANAGER: SimpleAuthManager keeps plain passwords. Name another auth manager")
    if os.environ.get("AIRFLOW__SENTRY__SENTRY_ON", "").strip().lower() not in ("true", "t", "1"):
        faults.append("AIRFLOW__SENTRY__SENTRY_ON: without it Airflow sends nothing, whatever the DSN. Set it to true")
    if not os.environ.get("AIRFLOW__SENTRY__SENTRY_DSN"):
        faults.append("AIRFLOW__SENTRY__SENTRY_DSN: missing. Failures must reach Sentry in production")
    return faults + _sampling_refusals()


def _secret_refusals() -> list[str]:
    """Where Airflow finds its secrets, and what would show, keep or lose them (docs/secrets.md)."""
    value = {name: os.environ.get(f"AIRFLOW__{name}", "") for name in _SECRET_OPTIONS}
    faults = []
    where = _BACKENDS.get(value["WORKERS__SECRETS_BACKEND"])
    if where is None:
        faults.append(
            "AIRFLOW__WORKERS__SECRETS_BACKEND: connections come from AWS Secrets Manager, or from a file of each"
            f" machine. Set it to {' or '.join(_BACKENDS)}"
        )
    elif not _option(value["WORKERS__SECRETS_BACKEND_KWARGS"], where):
        # Airflow would look elsewhere: below its own prefix, or nowhere.
        faults.append(
            f"AIRFLOW__WORKERS__SECRETS_BACKEND_KWARGS: no JSON object with a {where}. Take the line of"
            " docs/secrets.md; where a file's quotes are kept as they are, leave them out"
        )
    if value["SECRETS__BACKEND"] and not _no_connections(value["SECRETS__BACKEND_KWARGS"]):
        faults.append(
            "AIRFLOW__SECRETS__BACKEND_KWARGS: the API server would hand any connection to any task."
            ' Say "connections_prefix": null there'
        )
    faults += [
        # Without a colon behind the name: what follows that would be taken for the secret, and scrubbed.
        f"AIRFLOW__{name} is not read without AIRFLOW__SECRETS__BACKEND, and Airflow takes its default. Set that, too"
        for name in NAMES_OF_SECRETS
        if value[name] and not value["SECRETS__BACKEND"]
    ]
    if value["SENTRY__SENTRY_DSN_SECRET"]:
        faults.append(
            "AIRFLOW__SENTRY__SENTRY_DSN_SECRET fails every task: Sentry does not know it. Set the DSN itself"
        )
    if value["SECRETS__USE_CACHE"].lower() in ("true", "t", "1"):
        faults.append("AIRFLOW__SECRETS__USE_CACHE: a changed secret would not be seen for minutes. Remove it")
    if value["LOGGING__LOGGING_LEVEL"].upper() == "DEBUG":
        faults.append("AIRFLOW__LOGGING__LOGGING_LEVEL: at DEBUG boto3 logs the secrets that it reads. Set it to INFO")
    return faults


def _no_connections(backend_kwargs: str) -> bool:
    override = os.environ.get("AIRFLOW__SECRETS__BACKEND_KWARG__CONNECTIONS_PREFIX")
    return override is None and _option(backend_kwargs, "connections_prefix") is None


def _option(backend_kwargs: str, name: str) -> object:
    """Where connections are: None for nowhere; "" where it is not said, and Airflow takes its own."""
    try:
        found = json.loads(backend_kwargs or "{}")
    except ValueError:  # Airflow takes none of it then
        return ""
    return found.get(name, "") if isinstance(found, dict) else ""


def _sampling_refusals() -> list[str]:
    """One trace in ten is enough, and every error is needed. Errors that name no installation help nobody."""
    faults = []
    if _number("AIRFLOW__SENTRY__TRACES_SAMPLE_RATE") != PRODUCTION_TRACES:
        faults.append(f"AIRFLOW__SENTRY__TRACES_SAMPLE_RATE: production has {PRODUCTION_TRACES}. Set it to that")
    if os.environ.get("AIRFLOW__SENTRY__SAMPLE_RATE") and _number("AIRFLOW__SENTRY__SAMPLE_RATE") != 1.0:
        faults.append("AIRFLOW__SENTRY__SAMPLE_RATE: drops errors. Remove it, or set it to 1.0")
    faults += [
        f"AIRFLOW__SENTRY__{name}: missing. Sentry must know which installation an error comes from"
        for name in ("ENVIRONMENT", "RELEASE")
        if not os.environ.get(f"AIRFLOW__SENTRY__{name}")
    ]
    return faults


def _number(variable: str) -> float | None:
    try:
        return float(os.environ.get(variable, ""))
    except ValueError:
        return None
