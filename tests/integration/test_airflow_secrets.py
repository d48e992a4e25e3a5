"""Doctor: Airflow's own secrets are there, or it says which are not; Airflow itself would take its defaults."""

import json
from collections.abc import Iterator

import pytest

from payme_ops.cli import airflow_secrets
from payme_ops.foundation.evidence import Evidence, Verdict
from tests.support import secrets
from tests.support.secrets import CONFIG, Kept

NAMES = {"DATABASE__SQL_ALCHEMY_CONN_SECRET": "sql_alchemy_conn", "API_AUTH__JWT_SECRET_SECRET": "jwt_secret"}
VALUE = "value-that-is-never-shown"


@pytest.fixture
def kept(monkeypatch: pytest.MonkeyPatch) -> Iterator[Kept]:
    with secrets.secrets_manager() as running:
        named = {f"AIRFLOW__{option}": name for option, name in NAMES.items()}
        for name, value in {**secrets.environment(running.url), **named}.items():
            monkeypatch.setenv(name, value)
        yield running


def found() -> Evidence:
    (one,) = airflow_secrets.of_doctor("doctor")
    assert VALUE not in str(one)
    return one


def test_all_there_some_missing_and_empty(kept: Kept) -> None:
    assert (found().verdict, found().measured) == (Verdict.FAIL, {"not to be read": list(NAMES.values())})
    for name in NAMES.values():
        kept.put(f"{CONFIG}/{name}", VALUE)
    assert (found().verdict, found().measured) == (Verdict.PASS, {"there": 2})
    kept.put(f"{CONFIG}/jwt_secret", " ")
    assert found().measured == {"not to be read": ["jwt_secret"]}
    assert CONFIG in found().remedy


@pytest.mark.usefixtures("kept")
def test_no_answer_is_inconclusive(monkeypatch: pytest.MonkeyPatch) -> None:
    where = {"config_prefix": CONFIG, "region_name": "af-south-1", "endpoint_url": "http://127.0.0.1:1"}
    monkeypatch.setenv("AIRFLOW__SECRETS__BACKEND_KWARGS", json.dumps(where))
    assert found().verdict is Verdict.INCONCLUSIVE


@pytest.mark.usefixtures("kept")
@pytest.mark.parametrize("kwargs", ["", "{nonsense", "[]", '{"config_prefix": null}'])
def test_without_a_prefix_nothing_can_be_there(monkeypatch: pytest.MonkeyPatch, kwargs: str) -> None:
    monkeypatch.setenv("AIRFLOW__SECRETS__BACKEND_KWARGS", kwargs)
    assert (found().verdict, found().measured) == (Verdict.FAIL, {"config_prefix": "none"})


def test_where_none_is_named_nobody_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    for option in NAMES:
        monkeypatch.delenv(f"AIRFLOW__{option}", raising=False)
    assert airflow_secrets.of_doctor("doctor") == []
