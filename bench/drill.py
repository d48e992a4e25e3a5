"""`python -m bench.drill`: the mutation score of the restore test.

Every mutant of bench/mutants.py has to be caught and named, and 50 backups taken while PayMe's application writes have
to be verified without a false alarm. Writes bench/drill.json and the table of docs/drill.md. Exit code 1 when a mutant
survived or a good backup was refuted.
"""

import json
import os
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import datetime
from pathlib import Path

from rich.console import Console

from bench import mutants
from bench.mutants import MUTANTS, Ground
from bench.telling import narrator, publish, quiet, tell_failure
from payme_ops.backup.catalogue import Catalogue, Stores
from payme_ops.backup.manifest import Manifest
from payme_ops.cli.backup import take
from payme_ops.foundation import settings
from payme_ops.foundation.clock import EAT, utc_now
from payme_ops.foundation.errors import PaymeOpsError
from payme_ops.foundation.objectstore import Bucket
from sandbox import s3, world
from sandbox.postgres import ClusterError
from sandbox.supervisor import SandboxError
from sandbox.world import PROJECT, World

CLEAN = 50
FILE = Path(__file__).with_name("drill.json")
PAGE = PROJECT / "docs" / "drill.md"


def main() -> int:
    """Run the drill; see the module."""
    console = Console(highlight=False)
    say = narrator(console)

    try:
        with tempfile.TemporaryDirectory(prefix="payme-drill-") as folder:
            Path(folder).chmod(0o711)  # PostgreSQL's own user has to pass through
            with world.running(Path(folder, "world"), say=say) as (here, supervisor):
                os.environ.update(here.env)
                ground = _ground(here)
                survived = _survivors(ground, say)
                supervisor.start(world.application(here))
                alarms = _false_alarms(ground, say)
    except (PaymeOpsError, ClusterError) as error:
        tell_failure(error)
        return 1
    found = {
        "mutants": len(MUTANTS),
        "caught": len(MUTANTS) - len(survived),
        "survived": survived,
        "clean": CLEAN,
        "false_alarms": alarms,
        "day": datetime.now(EAT).strftime("%Y-%m-%d"),
    }
    FILE.write_text(json.dumps(found, indent=1, sort_keys=True) + "\n")
    publish(PAGE, "drill", table(found))
    console.print(score(found))
    return 1 if survived or alarms else 0


def score(found: dict[str, object]) -> str:
    """`mutants caught 33/33, false alarms 0/50`."""
    alarms = found["false_alarms"]
    count = len(alarms) if isinstance(alarms, list) else alarms
    return f"mutants caught {found['caught']}/{found['mutants']}, false alarms {count}/{found['clean']}"


def table(found: dict[str, object]) -> str:
    """The part of docs/drill.md that the drill writes."""
    survived = found["survived"]
    rows = [
        f"| {number} | {mutant.name} | `{mutant.names}` | "
        f"{'**no**' if isinstance(survived, list) and mutant.name in survived else 'yes'} |"
        for number, mutant in enumerate(MUTANTS, 1)
    ]
    return "\n".join(
        [
            f"On {found['day']}: **{score(found)}**.",
            "",
            "| | Planted | Named by | Caught |",
            "|---|---|---|---|",
            *rows,
            "",
        ]
    )


def _survivors(ground: Ground, say: Callable[[str], None]) -> list[str]:
    survived = []
    good = ground.back_up()
    for number, mutant in enumerate(MUTANTS, 1):
        said = mutants.caught(ground, mutant, good, quiet)
        say(f"{number}/{len(MUTANTS)} {mutant.name}: {'SURVIVED' if said is None else said[:150]}")
        if said is None:
            survived.append(mutant.name)
    return survived


def _false_alarms(ground: Ground, say: Callable[[str], None]) -> list[str]:
    alarms = []
    rows = 0
    for number in range(1, CLEAN + 1):
        done = ground.back_up()
        if done.truth.rows <= rows:
            raise SandboxError("the application does not write", expected=f"more than {rows} rows", found="no more")
        rows = done.truth.rows
        said = mutants.verdict(ground, done.key, quiet)
        if said != "VERIFIED":
            alarms.append(said)
        if said != "VERIFIED" or number % 10 == 0:
            say(f"good backup {number}/{CLEAN}, taken while the application writes: {said}")
    return alarms


def _ground(here: World) -> Ground:
    config = settings.load()
    client = s3.client(here.url("s3"))
    stores = Stores(Bucket(client, world.HOME_BUCKET), Bucket(client, world.COPY_BUCKET))
    where = Catalogue.of(stores, config.backup)
    return Ground(where, config, here.cluster.bin_dir, here.cluster.conninfo("payme"), _back_up)


def _back_up() -> Manifest:
    """One whole daily backup."""
    begun = utc_now()
    while utc_now() <= begun:  # keys have a resolution of one second
        time.sleep(0.05)
    return take(f"drill/{utc_now():%Y%m%dT%H%M%SZ}", report=quiet)


if __name__ == "__main__":
    sys.exit(main())
