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


# What the old way back is: the file, unpacked, and run. psql stops at the first error, or it would count as fast.
_RESTORE_SEED = f"""
set -e
aws s3 cp --only-show-errors s3://{BUCKET}/daily/payme.sql.gz .
gunzip payme.sql.gz
psql --quiet --no-psqlrc --output=/dev/null --set ON_ERROR_STOP=1 --file=payme.sql "$BENCH_TARGET"
"""

# From an archive on the local disk, in three runs as ours: in one, the ledger's deferred trigger and the load of its
# partitions wait for each other.
_RESTORE_LIMIT = """
set -e
pg_restore --exit-on-error --section=pre-data --dbname="$BENCH_TARGET" ../local.dump
pg_restore --exit-on-error --section=data --jobs=2 --dbname="$BENCH_TARGET" ../local.dump
pg_restore --exit-on-error --section=post-data --jobs=2 --dbname="$BENCH_TARGET" ../local.dump
"""


class Arm(StrEnum):
    """The arms of a backup in the order of a round, then those of a restore; every other round goes backwards."""

    TINY = "tiny"
    LIMIT = "limit"
    NO_TRUTH = "no_truth"
    WHOLE = "whole"
    QUARTER = "quarter"
    SEED = "seed"
    RESTORE_LIMIT = "restore_limit"
    RESTORE = "restore"
    RESTORE_SEED = "restore_seed"

    @property
    def restores(self) -> bool:
        """Whether it is a way back."""
        return self in (Arm.RESTORE_LIMIT, Arm.RESTORE, Arm.RESTORE_SEED)

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
    Arm.RESTORE_LIMIT: "pg_restore -j2 of a local archive",
    Arm.RESTORE: "ours, restore",
    Arm.RESTORE_SEED: "aws s3 cp; gunzip; psql",
}


def measure(arm: Arm, bed: Bed) -> Sample:
    """One run of the arm. Raises CommandFailed, for a restore also when it brought back other rows."""
    database = bed.databases[arm.database]
    if arm.restores:
        bed.settle_target(database)
        sample = _run(arm, bed, _command(arm, database))
        bed.require_restored(database)
        return sample
    bed.settle(database)
    return _run(arm, bed, _command(arm, bed.databases[arm.database]))


def prepare_restores(bed: Bed) -> None:
    """What the restore arms begin with: a backup of ours and a file of the old script's in the store, and an archive on
    the local disk. Raises CommandFailed."""
    whole = bed.databases["whole"]
    bed.settle(whole)
    for arm in (Arm.SEED, Arm.WHOLE):
        _run(arm, bed, _command(arm, whole))
    pg_dump = whole.world.cluster.bin_dir / "pg_dump"
    target = f"--file={bed.scratch.with_name('local.dump')}"
    _run(Arm.LIMIT, bed, [pg_dump, "--format=custom", "--compress=zstd:1", target, "service=payme_db_read"])


def verify(bed: Bed) -> None:
    """Read the backup that `whole` has just made: signature, hash, decryption, every block. Raises CommandFailed."""
    _run(Arm.WHOLE, bed, [sys.executable, "-m", "payme_ops", "backup", "verify", "latest"])


def _run(arm: Arm, bed: Bed, command: Sequence[str | Path]) -> Sample:
    database = bed.databases[arm.database]
    return run(
        command,
        env=bed.target_environment(database) if arm.restores else database.env,
        cwd=bed.scratch if arm in (Arm.SEED, Arm.RESTORE_SEED, Arm.RESTORE_LIMIT) else PROJECT,
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
        case Arm.RESTORE_SEED | Arm.RESTORE_LIMIT:
            script = _RESTORE_SEED if arm is Arm.RESTORE_SEED else _RESTORE_LIMIT
            return [shutil.which("bash") or "bash", "-c", script]
        case Arm.RESTORE:
            return [sys.executable, "-m", "bench.ours", "restore"]
        case Arm.NO_TRUTH:
            return [sys.executable, "-m", "bench.ours", "no_truth"]
        case _:
            return [sys.executable, "-m", "bench.ours", "whole"]
