"""The home region is gone: all that a restore needs works from the other one, and whoever looks is told."""

from collections.abc import Callable
from contextlib import ExitStack

import pytest

from payme_ops.backup import copy
from payme_ops.backup.manifest import Manifest
from tests.support.installation import Installation, quiet
from tests.support.proxy import proxy_before

pytestmark = pytest.mark.long

Lose = Callable[[Installation, str, ExitStack], None]


def deleted(installation: Installation, _bucket: str, _stack: ExitStack) -> None:
    """The bucket is not there any more."""
    installation.set("BACKUP__BUCKET", f"{installation.bucket_name}-gone")


def forbidden(installation: Installation, bucket: str, stack: ExitStack) -> None:
    """The account is closed."""
    _answer(installation, bucket, stack, 403, "AccountProblem")


def unavailable(installation: Installation, bucket: str, stack: ExitStack) -> None:
    """The region answers nothing else but 503."""
    _answer(installation, bucket, stack, 503, "ServiceUnavailable")


def _answer(installation: Installation, bucket: str, stack: ExitStack, status: int, code: str) -> None:
    proxy = stack.enter_context(proxy_before(installation.site.world.ports["s3"]))
    for method in ("GET", "HEAD", "PUT", "POST"):
        for after in ("/", "?"):  # one bucket's name begins with the other's
            proxy.answer(method, f"/{bucket}{after}", status, code)
    installation.reach_store_at(proxy.url)


def weekly(installation: Installation) -> Manifest:
    return copy.copy(installation.desk, "test/weekly", installation.back_up(), report=quiet)


@pytest.mark.parametrize("lose", [deleted, forbidden, unavailable])
def test_everything_works_from_the_other_region(installation: Installation, lose: Lose) -> None:
    made = weekly(installation)
    with ExitStack() as stack:
        lose(installation, installation.bucket_name, stack)

        ended = installation.cli("backup", "list")
        assert ended.code == 0, ended
        assert "weekly" in ended.out
        assert f"in bucket {installation.bucket_name}" in " ".join(ended.err.split())

        ended = installation.cli("backup", "verify", "latest")
        assert ended.code == 0, ended
        assert ended.out.startswith(made.key)
        assert "a region is away" in ended.err

        stack.callback(drop, installation, "restored_from_copy")
        ended = installation.cli("backup", "restore", "latest", "--into", "restored_from_copy")
        assert ended.code == 0, ended
        assert f"holds {made.truth.rows:,} rows, equal to the manifest {made.key}" in ended.out

        ended = installation.cli("backup", "restore-test", "latest")
        assert ended.code == 0, ended
        assert f"{made.key} is VERIFIED" in ended.out
        (listed,) = installation.json("backup", "list")
        assert (listed["tier"], listed["state"]) == ("weekly", "VERIFIED")


def test_without_the_other_region_the_dailies_are_there_and_so_is_the_warning(installation: Installation) -> None:
    weekly(installation)
    (daily,) = installation.manifests()
    with ExitStack() as stack:
        unavailable(installation, installation.copies_name, stack)
        ended = installation.cli("backup", "verify", "latest")
        assert ended.code == 0, ended
        assert ended.out.startswith(daily.key)
        assert f"in bucket {installation.copies_name}" in ended.err
        # A daily backup does not need it.
        assert installation.cli("backup", "run").code == 0


def test_without_any_region_it_fails_and_names_both(installation: Installation) -> None:
    weekly(installation)
    installation.set("BACKUP__BUCKET", f"{installation.bucket_name}-gone")
    installation.set("BACKUP__COPY_BUCKET", f"{installation.copies_name}-gone")
    ended = installation.cli("backup", "list")
    assert ended.code == 1
    for name in (installation.bucket_name, installation.copies_name):
        assert f"in bucket {name}-gone" in " ".join(ended.err.split())
    ended = installation.cli("backup", "verify", "latest")
    assert ended.code == 1
    assert "not everything could be looked at" in ended.err


def drop(installation: Installation, database: str) -> None:
    with installation.site.admin("postgres") as admin:
        admin.execute(f"DROP DATABASE IF EXISTS {database}")
