"""One host with all its workers for the whole session."""

from collections.abc import Iterator

import pytest

from tests.distributed import farm as host
from tests.distributed.farm import Farm


@pytest.fixture(scope="session")
def farm() -> Iterator[Farm]:
    """It, healthy."""
    with host.running() as running:
        yield running
