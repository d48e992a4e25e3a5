""".env.example: each setting once with its own comment, and nothing that is not a setting."""

import re
from pathlib import Path

from payme_ops.foundation import settings

PROJECT = Path(__file__).parents[2]
# The variables of the PayMe API, as its deployment guide names them.
APPLICATION = {
    *("DATABASE_URL", "ENCRYPTION_KEY", "JWT_SECRET", "ARCJET_KEY", "MPESA_ENV", "MPESA_CONSUMER_KEY"),
    *("MPESA_CONSUMER_SECRET", "MPESA_SHORTCODE_PAYBILL", "MPESA_PASSKEY_PAYBILL", "MPESA_CALLBACK_URL"),
    *("PORT", "NODE_ENV", "LOG_LEVEL", "SENTRY_DSN", "REDIS_URL"),
}


def sections() -> dict[str, str]:
    text = (PROJECT / ".env.example").read_text()
    parts = re.split(r"^# --- (.+?) -+$", text, flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def names(text: str) -> list[str]:
    return [line.split("=")[0] for line in text.splitlines() if line and not line.startswith("#")]


def test_payme_ops_variables_are_those_of_the_settings_with_their_descriptions() -> None:
    text = sections()["payme-ops"]
    commented = dict(re.findall(r"^((?:# .*\n)+)(\w+)=", text, flags=re.MULTILINE))
    found = {name: " ".join(line[2:] for line in comment.splitlines()) for comment, name in commented.items()}
    assert found == settings.variables()
    assert names(text) == list(settings.variables())


def test_defaults_shown_are_the_defaults() -> None:
    shown = dict(line.split("=", 1) for line in sections()["payme-ops"].splitlines() if "=" in line and line[0] != "#")
    defaults = settings.BackupSettings.model_fields
    assert shown["PAYME_OPS__BACKUP__DATABASE"] == defaults["database"].default
    assert shown["PAYME_OPS__BACKUP__STORAGE_CLASS"] == defaults["storage_class"].default
    assert [shown["PAYME_OPS__POSTGRES__CLIENT_DIRS"]] == settings.PostgresSettings().client_dirs
    assert shown["PAYME_OPS__SLACK__CHANNEL"] == settings.SlackSettings().channel
    assert shown["PAYME_OPS__ALERT__OWNER"] == settings.AlertSettings().owner


def test_airflow_section_has_what_production_insists_on_and_no_connection() -> None:
    found = names(sections()["Airflow"])
    wanted = ("API__BASE_URL", "SENTRY__SENTRY_DSN", "WORKERS__SECRETS_BACKEND", "WORKERS__SECRETS_BACKEND_KWARGS")
    assert {f"AIRFLOW__{name}" for name in wanted} <= set(found)
    assert all(name.startswith("AIRFLOW__") for name in found)


def test_compose_section_has_what_the_compose_file_asks_for_beside_settings() -> None:
    compose = (PROJECT / "docker-compose.yaml").read_text()
    asked = set(re.findall(r"\$\{(PAYME_OPS_(?!_)\w+)", compose)) - {"PAYME_OPS_ENV_FILE", "PAYME_OPS_TRIAL"}
    assert set(names(sections()["docker-compose.yaml"])) == asked


def test_first_run_has_each_variable_of_sentry() -> None:
    written = (PROJECT / "docs" / "first-run.md").read_text()
    wanted = [name for name in names(sections()["Airflow"]) if name.startswith("AIRFLOW__SENTRY__")]
    assert wanted == re.findall(r"^(AIRFLOW__SENTRY__\w+)=", written, flags=re.MULTILINE)


def test_airflow_section_shows_the_form_of_every_connection_that_the_code_asks_for() -> None:
    shown = re.findall(r"^# (payme_\w+): ", sections()["Airflow"], flags=re.MULTILINE)
    folder = PROJECT / "plugins" / "payme_ops" / "orchestration"
    code = "".join(path.read_text() for path in folder.glob("*.py"))
    asked = set(
        re.findall(r"\"(payme_(?:db|s3|ops_db|slack|secrets|api|deploy|code|sentry|airflow|status|smtp)\w*)\"", code)
    )
    assert set(shown) - {"payme_api_staging", "payme_deploy_staging"} == asked
    assert len(shown) == len(set(shown))


def test_application_section_has_the_names_of_the_application() -> None:
    assert set(names(sections()["PayMe's application"])) == APPLICATION


def test_no_variable_twice() -> None:
    everything = [name for text in sections().values() for name in names(text)]
    assert len(everything) == len(set(everything))
