"""Airflow's plugin loader runs payme_ops_plugin.py and leaves the package payme_ops alone.

It runs every .py file under plugins/ under its bare name and overwrites sys.modules: `queue.py` somewhere in the
package would replace the standard library's, and every class would exist twice. plugins/.airflowignore prevents it.
"""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

PLUGINS = Path(__file__).resolve().parents[2] / "plugins"

# In a process of its own: what the loader does to sys.modules stays there.
PROBE = """
import importlib, json, sys
from pathlib import Path
manager = importlib.import_module(sys.argv[1])
plugins, errors = manager._get_plugins()
folder = Path(sys.argv[2])
from payme_ops.orchestration import sentry
import sentry_sdk
print(json.dumps({
    "plugins": [plugin.name for plugin in plugins if str(plugin.source).startswith("$PLUGINS_FOLDER")],
    "errors": errors,
    "strays": sorted(
        name for name, module in list(sys.modules.items())
        if str(folder) in str(getattr(module, "__file__", "")) and not name.startswith("payme_ops")
    ),
    "processors": sentry_sdk.get_global_scope()._event_processors.count(sentry.process),
}))
"""


def probe(manager: str, plugins: Path, home: Path) -> dict[str, object]:
    env = {
        **os.environ,
        "AIRFLOW_HOME": str(home),
        "AIRFLOW__CORE__PLUGINS_FOLDER": str(plugins),
        "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
        "AIRFLOW__SENTRY__SENTRY_ON": "True",
        "PYTHONPATH": str(plugins),
    }
    run = subprocess.run(
        [sys.executable, "-c", PROBE, manager, str(plugins)], env=env, capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stderr[-2000:]
    found: dict[str, object] = json.loads(run.stdout.splitlines()[-1])
    return found


@pytest.mark.parametrize("manager", ["airflow.plugins_manager", "airflow.sdk.plugins_manager"])
def test_only_the_plugin_file_is_run(manager: str, tmp_path: Path) -> None:
    found = probe(manager, PLUGINS, tmp_path)
    assert found == {"plugins": ["payme_ops"], "errors": {}, "strays": [], "processors": 1}


def test_without_the_ignore_file_this_test_would_notice(tmp_path: Path) -> None:
    copy = tmp_path / "plugins"
    # Without __main__.py, which the loader would run as a program.
    shutil.copytree(PLUGINS, copy, ignore=shutil.ignore_patterns(".airflowignore", "__pycache__", "__main__.py"))
    strays = probe("airflow.sdk.plugins_manager", copy, tmp_path)["strays"]
    assert isinstance(strays, list)
    assert "alert" in strays


def test_one_python_file_lies_beside_the_package() -> None:
    assert [path.name for path in PLUGINS.glob("*.py")] == ["payme_ops_plugin.py"]
