"""One installation of payme-ops on a site: its own bucket, the command line, and what must hold after any fault."""

import itertools
import json
import os
import subprocess
import sys
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
import pytest
from botocore.config import Config
from botocore.retries.standard import ExponentialBackoff

from payme_ops.backup import catalogue, preflight, run
from payme_ops.backup import restore as restoring
from payme_ops.backup.catalogue import Catalogue, Stores
from payme_ops.backup.manifest import Manifest, Tier
from payme_ops.backup.run import Desk
from payme_ops.foundation import lease, objectstore, settings
from payme_ops.foundation.clock import utc_now
from payme_ops.foundation.objectstore import Bucket, profile_client
from payme_ops.foundation.progress import Report
from sandbox.postgres import PROJECT
from tests.support.site import Site
from tests.support.waiting import eventually

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

_FOREIGN = ("AIRFLOW_", "PAYME_", "PG", "AWS_")
_OTHERS = tuple(f"{settings.PREFIX}{group}__" for group in ("SLACK", "SENTRY", "WATCHDOG"))
_numbers = itertools.count(1)
_clients: "dict[tuple[str, Config], S3Client]" = {}


def quiet(_line: str) -> None:
    """A report that nobody reads."""


@dataclass(frozen=True)
class Ended:
    """What a command came to."""

    code: int
    out: str
    err: str


class Running:
    """A command of the CLI in a session of its own, so that whatever it starts can be found."""

    def __init__(self, arguments: tuple[str, ...], env: dict[str, str], folder: Path) -> None:
        self._out, self._err = folder / f"out-{next(_numbers)}", folder / f"err-{next(_numbers)}"
        with self._out.open("wb") as out, self._err.open("wb") as err:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "payme_ops", *arguments],
                cwd=PROJECT,
                env=env,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
                start_new_session=True,
            )

    def end(self, seconds: float = 60) -> Ended:
        """Wait for its end."""
        code = self.process.wait(seconds)
        return Ended(code, self._out.read_text(), self._err.read_text())

    def errors(self) -> str:
        """What it has said on stderr so far."""
        return self._err.read_text()

    def kill(self) -> None:
        """kill -9, as the kernel does when memory is short."""
        self.process.kill()
        self.process.wait()

    def children(self, name: str) -> list[psutil.Process]:
        """Its living processes of that name."""
        found = []
        for process in self.living():
            with suppress(psutil.NoSuchProcess):
                if process.name() == name:
                    found.append(process)
        return found

    def living(self) -> list[psutil.Process]:
        """Every process of its session, itself included, that still runs."""
        found = []
        for pid in psutil.pids():
            with suppress(ProcessLookupError, psutil.NoSuchProcess):
                if os.getsid(pid) == self.process.pid:
                    process = psutil.Process(pid)
                    if process.status() != psutil.STATUS_ZOMBIE:
                        found.append(process)
        return found


class Installation:
    """Settings and doors of one test, with an empty bucket."""

    def __init__(self, site: Site, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.site, self._folder, self._monkeypatch = site, folder, monkeypatch
        self.bucket_name = f"payme-test-{os.getpid()}-{next(_numbers)}"
        self.copies_name = f"{self.bucket_name}-copies"
        _make_bucket(site.store, self.bucket_name)
        _make_bucket(site.copy_store, self.copies_name)
        for name in [name for name in os.environ if name.startswith(_FOREIGN)]:
            monkeypatch.delenv(name)
        for name, value in site.world.env.items():
            monkeypatch.setenv(name, value)
        monkeypatch.setenv("PYTHONPATH", str(PROJECT / "plugins"))
        monkeypatch.setenv("COLUMNS", "200")
        # How long botocore waits before it asks a throttling store again is not what is tested.
        monkeypatch.setitem(ExponentialBackoff._DEFAULT_BACKOFF_CONFIG, "throttling_base_scale", 0.02)  # type: ignore[attr-defined]
        self.set("BACKUP__BUCKET", self.bucket_name)
        self.set("BACKUP__COPY_BUCKET", self.copies_name)
        self._newest = utc_now() - timedelta(seconds=1)
        self._started: list[Running] = []

    @property
    def store(self) -> Bucket:
        """The home bucket, without any proxy in between."""
        return Bucket(self.site.store, self.bucket_name)

    @property
    def copies(self) -> Bucket:
        """The other region's bucket, without any proxy in between."""
        return Bucket(self.site.copy_store, self.copies_name)

    @property
    def catalogue(self) -> Catalogue:
        """The catalogue, without any proxy in between."""
        return Catalogue.of(Stores(self.store, self.copies), settings.load().backup)

    @property
    def desk(self) -> Desk:
        """The desk as the CLI makes it."""
        config = settings.load()
        # Making a client takes longer than some tests; one for each endpoint and patience is enough.
        which = (Path(os.environ["AWS_CONFIG_FILE"]).read_text(), objectstore.CLIENT_CONFIG)
        if which not in _clients:
            _clients[which] = profile_client("payme_s3_write")
        home, copies = (Bucket(_clients[which], name) for name in (config.backup.bucket, config.backup.copy_bucket))
        return Desk(config, "service=payme_db_read", "service=payme_ops_db", home, copies)

    def set(self, name: str, value: str | None) -> None:
        """One setting, for this test; None removes it."""
        self.set_all({f"{settings.PREFIX}{name}": value})

    def set_all(self, variables: Mapping[str, str | None]) -> None:
        """Any variables of the environment, for this test; None removes one."""
        for name, value in variables.items():
            if value is None:
                self._monkeypatch.delenv(name, raising=False)
            else:
                self._monkeypatch.setenv(name, value)

    def alone(self) -> None:
        """Without Slack, Sentry, Airflow and the API, which this world has no servers of."""
        for name in [name for name in os.environ if name.startswith(_OTHERS)]:
            self._monkeypatch.delenv(name)

    def reach_store_at(self, url: str) -> None:
        """Go through another endpoint, for example a proxy."""
        config = self._folder / "aws_config"
        original = Path(self.site.world.env["AWS_CONFIG_FILE"]).read_text()
        config.write_text(original.replace(self.site.world.url("s3"), url))
        self._monkeypatch.setenv("AWS_CONFIG_FILE", str(config))

    def connect_as(self, service: str, **parameters: str) -> None:
        """Give a libpq service other parameters (user, dbname, port, password)."""
        path = self._folder / "pg_service.conf"
        text = path.read_text() if path.exists() else Path(self.site.world.env["PGSERVICEFILE"]).read_text()
        blocks = {block.split("]")[0].strip("["): block for block in text.strip().split("\n\n")}
        lines = [line for line in blocks[service].splitlines() if line.split("=")[0] not in parameters]
        blocks[service] = "\n".join(lines + [f"{name}={value}" for name, value in parameters.items()])
        path.write_text("\n\n".join(blocks.values()) + "\n")
        self._monkeypatch.setenv("PGSERVICEFILE", str(path))

    def start(self, *arguments: str) -> Running:
        """Start a command of the CLI."""
        self._started.append(Running(arguments, dict(os.environ), self._folder))
        return self._started[-1]

    def close(self) -> None:
        """End what a failed test has left."""
        for running in self._started:
            for process in running.living():
                process.kill()
            running.process.wait()

    def cli(self, *arguments: str) -> Ended:
        """Run a command of the CLI to its end."""
        return self.start(*arguments).end()

    def json(self, *arguments: str) -> Any:
        """What a command answers with --json."""
        ended = self.cli(*arguments, "--json")
        assert ended.code == 0, ended
        return json.loads(ended.out)

    def back_up(self, report: Report = quiet, bypass: frozenset[str] = frozenset()) -> Manifest:
        """One whole backup in this process; returns the committed manifest."""
        self.next_second()
        name, desk = self.passed(f"test/{next(_numbers)}", bypass), self.desk
        run.dump_and_store(desk, name, Tier.DAILY, utc_now(), report=report)
        run.read_back(desk, name, report=report)
        done = run.commit(desk, name)
        self._newest = max(self._newest, done.snapshot_at)
        return done

    def passed(self, name: str, bypass: frozenset[str] = frozenset()) -> str:
        """Record that the preflight of the run `name` passed, which its dump asks for; returns the name."""
        desk = self.desk
        found = preflight.examine(desk, actor=name, for_run=True, bypass=bypass)
        preflight.require_passed(found)
        preflight.record(desk, name, found)
        return name

    def restore(self, done: Manifest, into: str, conninfo: str = "service=payme_db_restore") -> None:
        """Restore into a new database, which compares every table with the manifest."""
        desk = self.desk
        restoring.restore(
            desk.bucket,
            done,
            restoring.load_identity(desk.settings.backup.identity_file),
            conninfo=conninfo,
            into=into,
            client_dirs=desk.settings.postgres.client_dirs,
            scratch_dir=desk.settings.backup.scratch_dir,
            report=quiet,
        )

    def next_second(self) -> None:
        """Wait for a second that no earlier backup of this test began in: keys have a resolution of one."""
        eventually(lambda: utc_now() > self._newest, "the next second")
        self._newest = utc_now()

    def manifests(self) -> list[Manifest]:
        """Everything in the catalogue; fails when an entry does not count or one of its objects is not there."""
        found = list(catalogue.entries(self.catalogue, tiers=[Tier.DAILY]))
        assert [entry.why for entry in found if entry.why] == []
        manifests = [entry.manifest for entry in found if entry.manifest]
        for manifest in manifests:
            for stored in (manifest.archive, manifest.globals):
                assert self.store.head(stored.key).size_bytes == stored.size_bytes
        self._newest = max([self._newest, *(manifest.snapshot_at for manifest in manifests)])
        return manifests

    def uploads(self) -> list[str]:
        """Keys of unfinished uploads."""
        pages = self.store.client.get_paginator("list_multipart_uploads").paginate(Bucket=self.bucket_name)
        return [item["Key"] for page in pages for item in page.get("Uploads", [])]

    def sessions(self) -> list[str]:
        """Names of our sessions on the server."""
        with self.site.admin("postgres") as connection:
            rows = connection.execute(
                "SELECT application_name FROM pg_stat_activity WHERE application_name LIKE 'payme_ops:%'"
            )
            return [row[0] for row in rows]

    def require_clean(self, *ended: Running, backups: int) -> None:
        """What must hold some seconds after any fault, before anything else has run."""
        for one in ended:
            eventually(lambda one=one: not one.living(), f"the end of {one.living()}")  # type: ignore[misc]
        eventually(lambda: not self.sessions(), "the end of our database sessions")
        assert lease.peek("service=payme_ops_db", self.desk.lease_name) is None
        assert len(self.manifests()) == backups

    def require_recovery(self, *ended: Running, backups: int) -> Manifest:
        """Clean, then the next run succeeds and leaves no unfinished upload."""
        self.require_clean(*ended, backups=backups)
        manifest = self.back_up()
        assert self.uploads() == []
        assert len(self.manifests()) == backups + 1
        return manifest


def _make_bucket(client: "S3Client", name: str) -> None:
    """In the client's region."""
    region: Any = client.meta.region_name
    client.create_bucket(
        Bucket=name, CreateBucketConfiguration={"LocationConstraint": region}, ObjectLockEnabledForBucket=True
    )
    rule: Any = {"ApplyServerSideEncryptionByDefault": {"SSEAlgorithm": "AES256"}}
    client.put_bucket_encryption(Bucket=name, ServerSideEncryptionConfiguration={"Rules": [rule]})
