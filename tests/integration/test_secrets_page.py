"""docs/secrets.md: the lines that put a secret in and take it back, typed as they stand."""

import os
import sys
from pathlib import Path

from tests.support import document
from tests.support.secrets import CONNECTIONS, REGION, environment, secrets_manager

SLACK = f"{CONNECTIONS}/payme_slack"


def test_a_secret_is_put_in_changed_and_taken_back(tmp_path: Path) -> None:
    tools = document.tools(tmp_path / "tools", aws=Path(sys.executable).parent / "aws")
    (lines,) = document.blocks("secrets.md")
    for value in ("first", "second"):
        (tmp_path / value).write_text(value)
    with secrets_manager() as kept:
        env = {**environment(kept.url), "PATH": f"{tools}:{os.defpath}", "REGION": REGION, "AWS_PAGER": ""}

        def now(*typed: str) -> str:
            document.run([lines, *typed], {**env, "HOME": str(tmp_path)}, tmp_path)
            # By its stage: without one AWS takes the current version, the stand-in the newest.
            return str(kept.client.get_secret_value(SecretId=SLACK, VersionStage="AWSCURRENT")["SecretString"])

        assert now(f"secret_put {SLACK} first") == "first"
        assert now(f"secret_put {SLACK} second") == "second"
        assert now(f"secret_undo {SLACK}") == "first"
