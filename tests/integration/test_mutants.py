"""Every planted defect is caught and named; `make drill` runs the same list and counts false alarms."""

import pytest

from bench import mutants
from bench.mutants import MUTANTS, Ground, Mutant
from payme_ops.foundation import settings
from tests.support.installation import Installation, quiet

pytestmark = pytest.mark.long


@pytest.fixture
def ground(installation: Installation) -> Ground:
    cluster = installation.site.cluster
    return Ground(
        installation.catalogue, settings.load(), cluster.bin_dir, cluster.conninfo("payme"), installation.back_up
    )


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name.replace(" ", "-"))
def test_the_restore_test_catches_and_names(ground: Ground, mutant: Mutant) -> None:
    good = ground.back_up()
    victim = mutants.clone(ground, good)
    mutant.plant(ground, victim)
    assert mutant.names in mutants.verdict(ground, victim.key, quiet)


def test_a_copy_without_a_defect_is_verified(ground: Ground) -> None:
    """Or every mutant would be caught for being a copy."""
    victim = mutants.clone(ground, ground.back_up())
    assert mutants.verdict(ground, victim.key, quiet) == "VERIFIED"


def test_a_mutant_that_spoils_nothing_is_not_counted_as_caught(ground: Ground) -> None:
    harmless = Mutant("harmless", "table", lambda _ground, _victim: None)
    assert mutants.caught(ground, harmless, ground.back_up(), quiet) is None
