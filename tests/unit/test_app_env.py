"""The application's variables: every single fault is named, and no value is shown anywhere."""

import json
import re
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from payme_ops.cli import app
from payme_ops.cli.tables import evidence_json
from payme_ops.foundation.errors import SettingsError
from payme_ops.foundation.evidence import Check, Verdict, run_check
from payme_ops.release import app_env
from payme_ops.release.request import Environment

PROJECT = Path(__file__).parents[2]
PRODUCTION, STAGING = Environment.PRODUCTION, Environment.STAGING
GOOD = {
    "DATABASE_URL": "postgresql://payme:s3cr3tpw@db.payme.co.ke:5432/payme",
    "JWT_SECRET": "Qm3vT8kZpL2nR7wXcY5dJ9hG4bF6sA1e",
    "ENCRYPTION_KEY": "00112233445566778899aabbccddeeff0123456789abcdef0f1e2d3c4b5a6978",
    "ARCJET_KEY": "ajkey_01hzq9n3w7",
    "MPESA_ENV": "production",
    "MPESA_CONSUMER_KEY": "kA9xW2mQ7vB4",
    "MPESA_CONSUMER_SECRET": "Zt6rN1yE8uH3",
    "MPESA_SHORTCODE_PAYBILL": "174379",
    "MPESA_PASSKEY_PAYBILL": "bfb279f9aa9bdbcf158e97dd71a467cd",
    "MPESA_CALLBACK_URL": "https://api.payme.co.ke/api/sales/mpesa/callback",
    "PORT": "3000",
    "NODE_ENV": "production",
    "LOG_LEVEL": "info",
    "REDIS_URL": "rediss://cache.payme.co.ke:6379",
    "SENTRY_DSN": "https://0123456789abcdef@o1.ingest.sentry.io/42",
}


def named(values: dict[str, str], environment: Environment = PRODUCTION) -> dict[str, str]:
    return {one.variable: one.what for one in app_env.problems(values, environment)}


def everything(values: dict[str, str]) -> str:
    """Whatever is shown of a finding anywhere."""
    finding = app_env.examine(values, PRODUCTION, "a test")
    found = run_check(Check("application_environment", "", "a test", lambda: finding), actor="a test")
    return json.dumps(evidence_json(found)) + repr(finding) + repr(found)


def test_what_is_whole_passes_and_optional_ones_may_be_left_out() -> None:
    assert named(GOOD) == {}
    few = {name: GOOD[name] for name in app_env.REQUIRED}
    assert named(few, STAGING) == {}
    assert set(named(few)) == set(app_env.REQUIRED_IN_PRODUCTION)
    assert app_env.examine(GOOD, PRODUCTION, "x").verdict is Verdict.PASS


@pytest.mark.blocks("application_environment")
@pytest.mark.parametrize("name", [*app_env.REQUIRED, *app_env.REQUIRED_IN_PRODUCTION])
@pytest.mark.parametrize("value", [None, "", "  "])
def test_every_single_missing_one_is_named(name: str, value: str | None) -> None:
    values = {key: one for key, one in GOOD.items() if key != name} | ({} if value is None else {name: value})
    assert named(values) == {name: "is missing"}
    assert app_env.examine(values, PRODUCTION, "x").verdict is Verdict.FAIL


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        ("ENCRYPTION_KEY", GOOD["ENCRYPTION_KEY"][:-1], "64 hexadecimal"),
        ("ENCRYPTION_KEY", GOOD["ENCRYPTION_KEY"] + "0", "64 hexadecimal"),
        ("ENCRYPTION_KEY", "g" * 64, "64 hexadecimal"),
        ("ENCRYPTION_KEY", "0" * 64, "one byte repeated"),
        ("JWT_SECRET", GOOD["JWT_SECRET"][:31], "shorter than 32"),
        ("DATABASE_URL", "mysql://a:b@db.payme.co.ke/payme", "postgres://"),
        ("DATABASE_URL", "postgresql://db.payme.co.ke", "names no database"),
        ("DATABASE_URL", "postgresql://a:b@127.0.0.1/payme", "names this machine"),
        ("DATABASE_URL", "postgresql://a:b@db:x/payme", "postgres://"),
        ("MPESA_ENV", "sandbox", "is not production"),
        ("MPESA_ENV", "prod", "neither sandbox nor production"),
        ("NODE_ENV", "development", "is not production"),
        ("MPESA_CALLBACK_URL", "http://api.payme.co.ke/cb", "https://"),
        ("MPESA_CALLBACK_URL", "https://yourdomain.com/api/sales/mpesa/callback", "placeholder"),
        ("MPESA_SHORTCODE_PAYBILL", "17437x", "pay bill number"),
        ("SENTRY_DSN", "https://o0.ingest.sentry.io/0", "no DSN"),
        ("SENTRY_DSN", "https://examplePublicKey@o0.ingest.sentry.io/0", "placeholder"),
        ("PORT", "0", "no port"),
        ("PORT", "65536", "no port"),
        ("LOG_LEVEL", "loud", "is none of"),
        ("REDIS_URL", "http://cache.payme.co.ke", "redis://"),
        ("MPESA_CONSUMER_SECRET", GOOD["MPESA_CONSUMER_KEY"], "is the same as MPESA_CONSUMER_KEY"),
        *((name, value, "placeholder") for name in app_env.SECRETS for value in ("your_key_here", "CHANGE_ME", "<x>")),
    ],
)
def test_every_single_malformed_one_is_named_without_its_value(name: str, value: str, says: str) -> None:
    values = {**GOOD, name: value}
    found = named(values)
    assert list(found) == [name]
    assert says in found[name]
    if len(value) > 9:  # shorter ones are words of ours, too
        assert value not in everything(values)


def test_all_problems_are_found_at_once() -> None:
    assert set(named({})) == {*app_env.REQUIRED, *app_env.REQUIRED_IN_PRODUCTION}


# Begins with what no text of ours has.
SECRET = st.text(st.characters(min_codepoint=33, max_codepoint=126), max_size=70).map(lambda text: f"zq~7{text}")


@settings(suppress_health_check=[HealthCheck.too_slow])
@given(st.dictionaries(st.sampled_from(app_env.KNOWN), SECRET))
def test_no_value_is_shown_anywhere(values: dict[str, str]) -> None:
    shown = everything(values)
    assert [name for name, value in values.items() if value in shown] == []


@given(st.text(max_size=200))
def test_any_text_is_a_file_or_names_its_lines_only(text: str) -> None:
    said = ""
    try:
        app_env.read_file(text)
    except SettingsError as error:
        said = str(error)
    assert not said or re.search(r"found something else in line \d", said)


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("A=1\r\nexport B='x # y'\n\n# no\nC=\n", {"A": "1", "B": "x # y", "C": ""}),
        ('\ufeffA="a b"\n', {"A": "a b"}),
        ("A=$B\nD=x=y\n", {"A": "$B", "D": "x=y"}),
        ("A=1 # one\n", {"A": "1"}),
    ],
)
def test_a_file_is_read_as_it_stands(text: str, values: dict[str, str]) -> None:
    assert app_env.read_file(text) == values


@pytest.mark.parametrize("text", ["A=1\nsecret-without-a-name\n", "A='not ended\n", "=x\n"])
def test_a_line_that_is_none_is_named_by_its_number(text: str) -> None:
    with pytest.raises(SettingsError, match=r"in line [12]") as refused:
        app_env.read_file(text)
    assert "secret-without" not in str(refused.value)


@pytest.mark.parametrize("text", ["", "[]", '{"A": {}}', "{", '{"A": null}'])
def test_a_secret_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(SettingsError, match="a JSON object"):
        app_env.read_secret(text)
    assert app_env.read_secret('{"PORT": 3000, "NODE_ENV": "production"}') == {"PORT": "3000", "NODE_ENV": "production"}


def test_the_template_is_not_taken_for_an_environment(tmp_path: Path) -> None:
    text = (PROJECT / ".env.example").read_text().split("# --- PayMe's application")[1]
    file = tmp_path / "application.env"
    file.write_text("#" + text)
    ended = CliRunner().invoke(app, ["env", "check", "--environment", "production", "--file", str(file), "--json"])
    assert ended.exit_code == 3
    found = json.loads(ended.stdout)
    assert {one["variable"] for one in found["measured"]["problems"]} >= set(app_env.REQUIRED)


def test_the_command_passes_what_is_whole_and_shows_no_value(tmp_path: Path) -> None:
    file = tmp_path / "application.env"
    file.write_text("".join(f"{name}={value}\n" for name, value in GOOD.items()))
    command = ["env", "check", "--environment", "production"]
    good = CliRunner().invoke(app, [*command, "--file", str(file)])
    assert good.exit_code == 0, good.output
    process = CliRunner().invoke(app, [*command, "--process"], env={**GOOD, "JWT_SECRET": "too-short-a-secret"})
    assert process.exit_code == 3
    assert "JWT_SECRET" in process.output
    for text in (good.output, process.output):
        assert "too-short-a-secret" not in text
        assert [value for value in GOOD.values() if len(value) > 10 and value in text] == []
    neither = CliRunner().invoke(app, command)
    assert isinstance(neither.exception, SettingsError)
