"""What is compared. Each arm is one command; all talk to the same server and, the limit apart, to the same store."""

import shutil
import sys
from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path

from bench.bed import BUCKET, Bed, Database
from bench.measure import Sample, run
from sandbox.world import PROJECT

# What the old script does, in its order: a plain dump on the local disk, gzip, an upload of the file. Its deletion of
# last week's files is left out.
_SEED = f"""
set -e
pg_dump service=payme_db_read > payme.sql
gzip payme.sql
aws s3 cp --only-show-errors payme.sql.gz s3://{BUCKET}/daily/ --sse AES256 --storage-class STANDARD_IA
"""


class Arm(StrEnum):
    """The arms, in the order of a round; every other round goes backwards."""

    TINY = "tiny"
    LIMIT = "limit"
    NO_TRUTH = "no_truth"
    WHOLE = "whole"
    QUARTER = "quarter"
    SEED = "seed"

    @property
    def database(self) -> str:
        """Name of the database it works on."""
        return self.value if self in (Arm.TINY, Arm.QUARTER) else "whole"


TITLES = {
    Arm.TINY: "ours, whole; next to no data",
    Arm.LIMIT: "pg_dump -Fc -Z0 > /dev/null",
    Arm.NO_TRUTH: "ours, no truth or read-back",
    Arm.WHOLE: "ours, whole",
    Arm.QUARTER: "ours, whole; a quarter",
    Arm.SEED: "pg_dump; gzip; aws s3 cp",
}


def measure(arm: Arm, bed: Bed) -> Sample:
    """One run of the arm. Raises CommandFailed."""
    bed.settle(bed.databases[arm.database])
    return _run(arm, bed, _command(arm, bed.databases[arm.database]))


def verify(bed: Bed) -> None:
    """Read the backup that `whole` has just made: signature, hash, decryption, every block. Raises CommandFailed."""
    _run(Arm.WHOLE, bed, [sys.executable, "-m", "payme_ops", "backup", "verify", "latest"])


def _run(arm: Arm, bed: Bed, command: Sequence[str | Path]) -> Sample:
    database = bed.databases[arm.database]
    return run(
        command,
        env=database.env,
        cwd=bed.scratch if arm is Arm.SEED else PROJECT,
        log=bed.scratch.with_name(f"{arm}.log"),
        server_pid=database.pid,
        store_pid=bed.store_pid,
        stored_bytes=bed.stored_bytes,
    )


def _command(arm: Arm, database: Database) -> Sequence[str | Path]:
    match arm:
        case Arm.LIMIT:
            pg_dump = database.world.cluster.bin_dir / "pg_dump"
            return [pg_dump, "--format=custom", "--compress=0", "service=payme_db_read"]
        case Arm.SEED:
            return [shutil.which("bash") or "bash", "-c", _SEED]
        case Arm.NO_TRUTH:
            return [sys.executable, "-m", "bench.ours", "no_truth"]
        case _:
            return [sys.executable, "-m", "bench.ours", "whole"]
