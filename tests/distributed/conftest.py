"""One host with all its workers for the whole session."""

from collections.abc import Iterator

import pytest

from tests.distributed import farm as host
from tests.distributed.farm import Farm


@pytest.fixture(scope="session")
def farm() -> Iterator[Farm]:
    """It, healthy; and its settings for what the tests do themselves."""
    with pytest.MonkeyPatch.context() as patch, host.running() as running:
        for name, value in running.world.env.items():
            if name.startswith("PAYME_OPS__") or name == "ENCRYPTION_KEY":
                patch.setenv(name, value)
        yield running
