"""docs/restore-by-hand.md, line by line, where payme_ops cannot be imported; then compared with the source."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import psycopg
import pytest

from payme_ops.backup import restore, truth
from payme_ops.foundation.clock import key_stamp, parse_key_stamp
from payme_ops.foundation.objectstore import Bucket
from sandbox import postgres
from tests.support import document
from tests.support.installation import Installation, quiet

pytestmark = pytest.mark.long

PAGE = "restore-by-hand.md"
BLOCKS = document.blocks(PAGE)
TARGET = "payme_restored"
# Of the database itself: pg_restore into an existing one leaves these out.
_OF_DATABASE = """
SELECT datdba::regrole::text, encoding, datcollate, datctype, datacl::text,
       (SELECT array_agg(setconfig::text || ' ' || setrole ORDER BY setrole) FROM
           (SELECT setconfig, CASE setrole WHEN 0 THEN '' ELSE setrole::regrole::text END AS setrole
            FROM pg_db_role_setting WHERE setdatabase = d.oid) AS s)
FROM pg_database AS d WHERE datname = %s
"""


def values(installation: Installation, folder: Path) -> dict[str, str]:
    world = installation.site.world
    return {
        "BUCKET": installation.bucket_name,
        "DATABASE": "payme",
        "PROFILE": "payme_s3_restore",
        # A retired key in front of it must not matter.
        "TRUSTED_KEYS": "A" * 43 + "=," + world.env["PAYME_OPS__BACKUP__TRUSTED_KEYS"],
        "IDENTITY": str(world.root / "keys" / "recovery.age-identity"),
        "CLIENTS": str(installation.site.cluster.bin_dir),
        "TARGET": TARGET,
        "WORK": str(folder / "work"),
        "PGSERVICE": "admin",
    }


def as_superuser(cluster: postgres.Cluster, folder: Path) -> Mapping[str, str]:
    """The reader's libpq files."""
    service, passwords = folder / "service.conf", folder / "pgpass"
    service.write_text(f"[admin]\nhost=127.0.0.1\nport={cluster.port}\nuser={cluster.superuser}\n")
    passwords.write_text(f"127.0.0.1:{cluster.port}:*:{cluster.superuser}:{cluster.password}\n")
    passwords.chmod(0o600)
    return {"PGSERVICEFILE": str(service), "PGPASSFILE": str(passwords)}


def of_database(cluster: postgres.Cluster, name: str) -> Any:
    with psycopg.connect(cluster.conninfo()) as connection:
        return connection.execute(_OF_DATABASE, [name]).fetchone()


def test_the_lines_restore_onto_a_new_server(each_installation: Installation, tmp_path: Path) -> None:
    done = each_installation.back_up()
    source = each_installation.site.cluster
    with postgres.temporary_cluster(bin_dir=source.bin_dir) as target:
        env = {**document.without_us(each_installation.site.world.env, tmp_path), **as_superuser(target, tmp_path)}
        told = document.run(
            [document.with_values(BLOCKS[0], values(each_installation, tmp_path)), *BLOCKS[1:]], env, tmp_path
        )
        found = restore.measure(target.conninfo(TARGET), report=quiet)
        restored = of_database(target, TARGET)

    assert done.key in told
    assert "signature: yes" in told
    assert "every block can be read" in told
    assert f"restored into {TARGET}" in told
    assert [line for line in told.splitlines() if line.endswith(".age: OK")] == ["archive.age: OK", "globals.age: OK"]
    assert [cell.strip() for cell in told.split("tables_that_differ")[1].splitlines()[2].split("|")] == [
        str(len([relation for relation in done.truth.relations if relation.rows is not None])),
        str(done.truth.rows),
        str(done.truth.rows),
        "0",
    ]
    assert truth.differences(done.truth, found) == []
    assert found.grants == done.truth.grants
    assert {role.name for role in done.truth.roles} <= {role.name for role in found.roles}
    assert restored == of_database(source, "payme")
    assert not (tmp_path / "work").exists()


def test_a_forged_manifest_is_named(installation: Installation, tmp_path: Path) -> None:
    done = installation.back_up()
    signed = json.loads(installation.store.get(done.key))
    signed["document"]["truth"]["relations"] = []
    later = key_stamp(parse_key_stamp(done.key.split("/")[3]).replace(year=2099))
    forged = done.key.replace(done.key.split("/")[3], later)
    _write(installation.store, forged, json.dumps(signed).encode())
    first = document.with_values(BLOCKS[0], values(installation, tmp_path))
    told = document.run([first, *BLOCKS[1:4]], document.without_us(installation.site.world.env, tmp_path), tmp_path)
    assert forged in told
    assert "signature: NOT VERIFIED" in told


def _write(bucket: Bucket, key: str, body: bytes) -> None:
    bucket.client.put_object(Bucket=bucket.name, Key=key, Body=body)
