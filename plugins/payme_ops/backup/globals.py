"""Roles, memberships and role settings of the whole server, without passwords: pg_dump does not hold them."""

import subprocess

from payme_ops.backup.dump import Source
from payme_ops.foundation.postgres import client_environment, client_invocation, client_tool, tool_failure


def dump_globals(source: Source, major: int, application: str) -> bytes:
    """`pg_dumpall --globals-only` as SQL text; some kilobytes. Raises DumpFailed, DatabaseUnavailable."""
    dbname, secrets = client_invocation(source.conninfo, application=application)
    ended = subprocess.run(
        [
            client_tool("pg_dumpall", major, source.client_dirs),
            "--globals-only",
            "--no-role-passwords",
            "--no-password",
            f"--dbname={dbname}",
        ],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        env=client_environment(secrets),
        timeout=120,
        check=False,
    )
    if ended.returncode != 0:
        raise tool_failure("pg_dumpall", ended.returncode, ended.stderr.decode(errors="replace"))
    return ended.stdout
