"""Step 1: the proof, then docs/restore-by-hand.md, line by line, on a new server, without our code.

What runs is what the page says: its `bash` blocks, in order, in one shell. Only the values of the first block are
the demo's. The shell has stock tools on its path, and a Python that cannot import payme_ops.
"""

import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

from rich.console import Console

from payme_ops.cli.tables import proof_table
from sandbox import postgres, world
from sandbox.demo import newest_backup
from sandbox.supervisor import SandboxError
from sandbox.tour.ground import services
from sandbox.world import PROJECT, World

PAGE = PROJECT / "docs" / "restore-by-hand.md"
_TOOLS = {"age": "age", "zstd": "zstd", "openssl": "openssl", "sha256sum": "coreutils"}
# A heading, or the text of a fenced bash block.
_PARTS = re.compile(r"^## (?P<title>[^\n]+)$|^```bash\n(?P<block>.*?)^```$", re.MULTILINE | re.DOTALL)
_VARIABLE = re.compile(r"^((?:export )?(\w+)=).*$", re.MULTILINE)


def walk(console: Console) -> None:
    """Raises SandboxError when a tool or a backup is missing, or a line of the page fails."""
    _require_tools()
    with services(console) as here:
        os.environ.update(here.env)
        console.print(proof_table(newest_backup()))
        console.print("\nNow the same backup, restored on a new and empty server with stock tools only;")
        console.print(f"the lines are those of {PAGE.relative_to(PROJECT)}.", soft_wrap=True)
        folder = Path(tempfile.mkdtemp(prefix="payme-tour-"))
        try:
            with postgres.temporary_cluster() as target:
                lines = script(PAGE.read_text(), _values(here, folder), colour=console.is_terminal)
                console.file.flush()
                _run(lines, _environment(here, target, folder), folder)
        finally:
            shutil.rmtree(folder)


def script(page: str, values: Mapping[str, str], *, colour: bool) -> str:
    """The page's bash blocks as one script that shows each before it runs; the first block gets these values.

    Raises SandboxError when the page does not name the same variables.
    """
    title = ""
    lines: list[str] = []
    for part in _PARTS.finditer(page):
        if part["title"] is not None:
            title = part["title"]
            continue
        block = part["block"] if lines else _with_values(part["block"], values)
        if title:
            lines += ["echo", _show(title, "1", colour=colour)]
            title = ""
        lines += [_show(block.rstrip(), "36", colour=colour), block]
    return "\n".join(lines)


def _show(text: str, style: str, *, colour: bool) -> str:
    form = f"\\033[{style}m%s\\033[0m\\n" if colour else "%s\\n"
    return f"printf '{form}' {shlex.quote(text)}"


def _with_values(block: str, values: Mapping[str, str]) -> str:
    named = {name for _, name in _VARIABLE.findall(block)}
    if named != set(values):
        raise SandboxError(
            f"the tour does not fit {PAGE.name}",
            expected=f"the variables {', '.join(sorted(values))}",
            found=", ".join(sorted(named)),
            remedy="give sandbox/tour/by_hand.py a value for each variable of the page's first block",
        )
    return _VARIABLE.sub(lambda line: line[1] + shlex.quote(values[line[2]]), block)


def _require_tools() -> None:
    missing = sorted({package for tool, package in _TOOLS.items() if shutil.which(tool) is None})
    if missing:
        names = " ".join(missing)
        raise SandboxError(
            "this step restores with stock tools, and some are not installed",
            found=f"missing: {names}",
            remedy=f"install them, for example: apt-get install {names}",
        )


def _values(here: World, folder: Path) -> dict[str, str]:
    return {
        "BUCKET": world.HOME_BUCKET,
        "DATABASE": "payme",
        "PROFILE": "payme_s3_restore",
        "TRUSTED_KEYS": here.env["PAYME_OPS__BACKUP__TRUSTED_KEYS"],
        "IDENTITY": str(here.root / "keys" / "recovery.age-identity"),
        "CLIENTS": str(postgres.wheel_bin_dir()),
        "TARGET": "payme_restored",
        "WORK": str(folder / "work"),
        "PGSERVICE": "admin",
    }


def _environment(here: World, target: postgres.Cluster, folder: Path) -> dict[str, str]:
    """Stock tools, the profile that may read the bucket, the new server's superuser, and nothing of ours."""
    tools = folder / "tools"
    tools.mkdir()
    (tools / "aws").symlink_to(Path(sys.executable).parent / "aws")
    (tools / "python3").symlink_to(Path(sys.base_prefix, "bin", "python3").resolve())
    service = folder / "pg_service.conf"
    service.write_text(f"[admin]\nhost=127.0.0.1\nport={target.port}\nuser={target.superuser}\n")
    passwords = folder / "pgpass"
    passwords.touch(0o600)
    passwords.write_text(f"127.0.0.1:{target.port}:*:{target.superuser}:{target.password}\n")
    return {
        "PATH": f"{tools}:/usr/local/bin:/usr/bin:/bin",
        "HOME": str(folder),
        "NO_PROXY": here.env["NO_PROXY"],
        "PGSERVICEFILE": str(service),
        "PGPASSFILE": str(passwords),
        "AWS_CONFIG_FILE": here.env["AWS_CONFIG_FILE"],
        "AWS_SHARED_CREDENTIALS_FILE": here.env["AWS_SHARED_CREDENTIALS_FILE"],
    }


def _run(lines: str, env: Mapping[str, str], folder: Path) -> None:
    """One shell that stops at the first line that fails."""
    bash = shutil.which("bash") or "bash"
    ended = subprocess.run([bash, "-eu", "-o", "pipefail", "-c", lines], cwd=folder, env=dict(env), check=False)
    if ended.returncode != 0:
        raise SandboxError(
            f"a line of {PAGE.name} failed",
            found=f"exit code {ended.returncode} after the last command shown above",
        )
