"""Doctor looks at every connection that some machine's role may read (docs/iam)."""

import re
from pathlib import Path

from payme_ops.cli.kept_connections import KNOWN

IAM = Path(__file__).resolve().parents[2] / "docs" / "iam"


def test_every_connection_that_a_machine_may_read_is_known() -> None:
    readable = {
        name for file in IAM.glob("secrets_*.json") for name in re.findall(r"connections/(payme_\w+)", file.read_text())
    }
    assert readable
    assert readable - set(KNOWN) == set()
