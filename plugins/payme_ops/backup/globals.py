"""Roles, memberships and role settings of the whole server, without passwords: pg_dump does not hold them."""

import subprocess
from pathlib import Path

from payme_ops.backup.dump import Source
from payme_ops.foundation.errors import DatabaseUnavailable
from payme_ops.foundation.postgres import client_environment, client_invocation, client_tool, tool_failure

TIMEOUT_SECONDS = 120


def dump_globals(source: Source, major: int, application: str) -> bytes:
    """`pg_dumpall --globals-only` as SQL text; some kilobytes. Raises DumpFailed, DatabaseUnavailable."""
    dbname, secrets = client_invocation(source.conninfo, application=application)
    command: list[str | Path] = [
        client_tool("pg_dumpall", major, source.client_dirs),
        "--globals-only",
        "--no-role-passwords",
        "--no-password",
        f"--dbname={dbname}",
    ]
    try:
        ended = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            env=client_environment(secrets),
            timeout=TIMEOUT_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise DatabaseUnavailable(
            "pg_dumpall did not end",
            expected=f"the roles within {TIMEOUT_SECONDS} s",
            remedy="look whether the server is overloaded or somebody locks pg_authid",
        ) from None
    if ended.returncode != 0:
        raise tool_failure("pg_dumpall", ended.returncode, ended.stderr.decode(errors="replace"))
    return ended.stdout
