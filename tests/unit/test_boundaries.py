"""Foundation and domains stand without Airflow: they import with it blocked, and the lint rule that says so bites."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

PROJECT = Path(__file__).parents[2]
PACKAGE = PROJECT / "plugins" / "payme_ops"
# The only folder that may (DESIGN: dependencies point one way).
ADAPTERS = "orchestration"
DOMAINS = {"backup", "migration", "release", "monitoring"}


def modules(*folders: str) -> list[str]:
    """Names of all modules in these folders of the package."""
    found = [path for folder in folders for path in (PACKAGE / folder).rglob("*.py")]
    names = [path.relative_to(PACKAGE.parent).with_suffix("") for path in found]
    return [".".join(name.parts).removesuffix(".__init__") for name in names]


def standing_alone() -> list[str]:
    folders = sorted({"foundation", *DOMAINS} & {path.name for path in PACKAGE.iterdir()})
    return ["payme_ops", *modules("cli", *folders)]


def test_every_module_of_foundation_and_domains_imports_with_airflow_blocked() -> None:
    names = standing_alone()
    assert len(names) > 20
    code = f"""
import importlib, sys

class Block:
    def find_spec(self, name, path=None, target=None):
        if name == "airflow" or name.startswith("airflow."):
            raise ImportError("airflow is blocked: " + name)

sys.meta_path.insert(0, Block())
for name in {names!r}:
    importlib.import_module(name)
assert not [name for name in sys.modules if name.split(".")[0] == "airflow"]
"""
    subprocess.run([sys.executable, "-c", code], cwd=PROJECT / "plugins", check=True, timeout=60)


@pytest.mark.parametrize("domain", sorted(DOMAINS))
def test_domains_do_not_import_each_other_and_foundation_imports_no_domain(domain: str) -> None:
    others = DOMAINS - {domain}
    for folder, forbidden in ((domain, others), ("foundation", DOMAINS | {ADAPTERS})):
        for path in (PACKAGE / folder).rglob("*.py"):
            text = path.read_text()
            for name in forbidden:
                assert f"payme_ops.{name}" not in text, f"{path} imports {name}"
                assert f"from payme_ops import {name}" not in text, f"{path} imports {name}"


def ruff(code: str, filename: str) -> set[str]:
    """Codes of the rules that the project's lint would report for `code` in that file."""
    ended = subprocess.run(
        [sys.executable, "-m", "ruff", "check", "--output-format=json", "--stdin-filename", filename, "-"],
        cwd=PROJECT,
        input=code,
        capture_output=True,
        text=True,
        check=False,
    )
    return {fault["code"] for fault in json.loads(ended.stdout)}


IMPORTS = [
    "import airflow\n\nprint(airflow)\n",
    "from airflow.sdk import dag\n\nprint(dag)\n",
    "import airflow.models as models\n\nprint(models)\n",
    "def late():\n    from airflow.providers.amazon.aws.hooks.s3 import S3Hook\n\n    return S3Hook\n",
]


@pytest.mark.parametrize("code", IMPORTS)
@pytest.mark.parametrize("place", ["foundation/x.py", "backup/x.py", "release/x.py", "cli.py"])
def test_the_lint_rule_bites(code: str, place: str) -> None:
    assert "TID251" in ruff(code, f"plugins/payme_ops/{place}")


@pytest.mark.parametrize("place", ["plugins/payme_ops/orchestration/x.py", "plugins/payme_ops_plugin.py", "dags/x.py"])
def test_the_lint_rule_lets_the_adapters_be(place: str) -> None:
    assert "TID251" not in ruff(IMPORTS[1], place)
