"""Our own arms, each in a process of its own: `python -m bench.ours whole|no_truth|restore`.

`whole` is `python -m payme_ops backup run`, with one difference: three preflight checks still run, but their verdict
is recorded as bypassed. They ask for what `rclone serve s3` has not (it overwrites where S3 answers 412), and no
other store on loopback is fast enough to measure with. The product has no option for that, so it is done here.
"""

import os
import sys
from collections.abc import Iterator
from dataclasses import replace

from payme_ops import cli
from payme_ops.backup import catalogue, preflight, restore, scratch, store
from payme_ops.backup.dump import Dumped, Source, dump
from payme_ops.backup.globals import dump_globals
from payme_ops.backup.run import Desk
from payme_ops.cli import doors
from payme_ops.foundation import settings
from payme_ops.foundation.evidence import Evidence, Verdict

NOT_OF_THIS_STORE = frozenset({"bucket_encryption", "bucket_versioning", "written_once"})


def main() -> None:
    """One backup or restore; the environment is that of the CLI."""
    {"whole": _whole, "no_truth": _no_truth, "restore": _restore}[sys.argv[1]]()


def _whole() -> None:
    examine = preflight.examine

    def examine_this_store(desk: Desk, *, actor: str, for_run: bool, bypass: frozenset[str]) -> list[Evidence]:
        found = examine(desk, actor=actor, for_run=for_run, bypass=bypass)
        return [replace(e, verdict=Verdict.BYPASSED) if e.item in NOT_OF_THIS_STORE else e for e in found]

    preflight.examine = examine_this_store  # type: ignore[assignment]
    sys.argv[1:] = ["backup", "run"]
    cli.main()


def _no_truth() -> None:
    """Dump, seal and store, and the globals: no hashes of rows, no read-back, no lease, no manifest."""
    config = settings.load()
    desk = doors.desk()
    source = Source(desk.database, config.postgres.client_dirs, with_truth=False)

    def put(chunks: Iterator[bytes], name: str) -> None:
        key = f"postgres/{config.backup.database}/bench/{name}"
        store.seal_and_store(chunks, desk.placement, key, desk.recipients, expected_bytes=None, report=_say)

    def consume(chunks: Iterator[bytes], _: Dumped) -> None:
        put(chunks, "archive.dump.age")

    application = f"payme_ops:bench:{os.getpid()}"
    dumped = dump(source, application, consume, report=_say)
    put(iter([dump_globals(source, dumped.server.major, application)]), "globals.sql.age")


def _restore() -> None:
    """The newest backup into the empty database BENCH_TARGET: found, downloaded, compared, decrypted, restored."""
    config, where = settings.load(), doors.catalogue("payme_s3_restore")
    entry = catalogue.find(where, "latest")
    found = entry.trusted
    identity = restore.load_identity(config.backup.identity_file)
    with scratch.folder(config.backup.scratch_dir, needed_bytes=restore.archive_bytes(found), report=_say) as place:
        archive = restore.open_archive(where.stores.of(entry.tier), found, identity, place, report=_say)
        dirs = config.postgres.client_dirs
        restore.fill(archive, found.server.major, os.environ["BENCH_TARGET"], dirs, jobs=2, report=_say)


def _say(line: str) -> None:
    print(line, file=sys.stderr)


if __name__ == "__main__":
    main()
