"""The file of roles as it is read. What is made of it in Airflow: tests/e2e/test_roles.py."""

from pathlib import Path

import pytest

from payme_ops.foundation.errors import SettingsError
from payme_ops.orchestration import accounts
from sandbox.world import PROJECT

ROLES = accounts.read(PROJECT / "docker/roles.json")
ANSWER, TRIGGER, EVENTS = ("can_edit", "HITL Detail"), ("can_create", "DAG Runs"), ("can_read", "Audit Logs")


def test_each_role_has_what_those_before_it_have() -> None:
    assert list(ROLES) == ["viewer", "operator", "approver", "auditor"]
    assert ROLES["viewer"] < ROLES["operator"] < ROLES["approver"]
    assert ROLES["approver"] - ROLES["operator"] == {ANSWER}
    assert ROLES["auditor"] - ROLES["viewer"] == {EVENTS, ("menu_access", "Audit Logs"), ("can_read", "Connections")}
    assert TRIGGER in ROLES["operator"] - ROLES["viewer"]


@pytest.mark.parametrize(
    "text",
    [
        "not JSON",
        "[]",
        '{"viewer": {}}',
        '{"viewer": {"includes": ["unknown"], "permissions": {}}}',
        '{"viewer": {"includes": [], "permissions": ["can_read"]}}',
    ],
)
def test_a_file_that_defines_no_roles_is_refused(tmp_path: Path, text: str) -> None:
    file = tmp_path / "roles.json"
    file.write_text(text)
    with pytest.raises(SettingsError, match=r"roles\.json defines no roles"):
        accounts.read(file)
