"""A canary phone number and every secret are searched for wherever a backup leaves a trace. (Airflow: tests/e2e.)"""

import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from payme_ops.migration import envelope
from payme_ops.migration.desk import MigrationDesk
from payme_ops.migration.names import PHONE_NUMBER
from sandbox.payme_db.generate import CANARY_PHONE
from tests.support.installation import Ended, Installation
from tests.support.opening import archive, as_sql
from tests.support.proxy import Proxy
from tests.support.waiting import eventually


def needles(installation: Installation) -> dict[str, bytes]:
    """What must be found nowhere, by name: the phone number, passwords, access keys, private keys."""
    world = installation.site.world
    found = {name: value for name, value in world.secrets.items() if value}
    known = {"postgres.payme_db_read", "postgres.payme_db_restore", "postgres.payme_db_migrate", "postgres.payme_ops"}
    assert known | {"s3.payme_s3_write", "payme_api.encryption_key"} <= set(found)
    assert world.env["ENCRYPTION_KEY"] == found["payme_api.encryption_key"], "set wherever the tests look"
    for name in ("recovery", "drill"):
        found[f"{name} identity"] = (world.root / "keys" / f"{name}.age-identity").read_text().split()[-1]
    found["signing key"] = (world.root / "keys" / "signing.pem").read_text().splitlines()[1]
    found["phone"] = CANARY_PHONE.removeprefix("+")
    found["phone as Kenyans write it"] = CANARY_PHONE.replace("+254", "0")
    return {name: value.encode() for name, value in found.items()}


def require_absent(where: str, text: bytes, what: dict[str, bytes]) -> None:
    assert [name for name, needle in what.items() if needle in text] == [], f"in {where}"


def everything_a_person_does(installation: Installation, proxy: Proxy) -> list[Ended]:
    """Good days and bad ones: every command, and failures that tempt to print a row or a password."""
    away = [installation.cli("doctor"), installation.cli("doctor", "--api-all")]  # Slack, Sentry, Airflow, the API
    assert [one.code for one in away] == [6, 6]
    installation.alone()
    ended = [
        installation.cli(*arguments)
        for arguments in (
            ("doctor",),
            ("doctor", "--json"),
            ("backup", "run"),
            ("backup", "list"),
            ("backup", "show", "latest", "--json"),
            ("backup", "verify", "latest"),
            ("backup", "restore", "latest", "--into", "restored_for_leaks"),
        )
    ]
    assert [one.code for one in ended] == [0] * 7, ended
    ended += away
    # Fails in the restore, on the first user's row, which libpq's error then quotes.
    with installation.site.admin() as admin:
        admin.execute("ALTER TABLE users ADD CONSTRAINT only_here CHECK (id <> 1 OR current_database() = 'payme')")
        try:
            ended.append(installation.cli("backup", "run"))
            ended.append(installation.cli("backup", "restore", "latest", "--into", "restored_in_vain"))
        finally:
            admin.execute("ALTER TABLE users DROP CONSTRAINT only_here")
    assert ended[-1].code == 1
    assert "only_here" in ended[-1].err
    rule = proxy.answer("PUT", "partNumber=", 403, "SignatureDoesNotMatch")
    ended.append(installation.cli("backup", "run"))
    assert (ended[-1].code, rule.hits) == (1, 1)
    proxy.clear()
    wrong = installation.site.world.secrets["postgres.payme_ops"]  # a password, of another role
    installation.connect_as("payme_db_read", password=wrong)
    ended.append(installation.cli("backup", "run"))
    ended.append(installation.cli("doctor"))
    assert (ended[-2].code, ended[-1].code) == (3, 6)  # whether it may come in, libpq does not tell
    installation.connect_as("payme_db_read", password=installation.site.world.secrets["postgres.payme_db_read"])
    return ended


def test_no_secret_and_no_phone_number_anywhere(installation: Installation, proxy: Proxy, tmp_path: Path) -> None:
    what = needles(installation)
    cluster, log = installation.site.cluster, installation.site.log
    begun = log.stat().st_size
    try:
        ended = everything_a_person_does(installation, proxy)
    finally:
        with installation.site.admin("postgres") as admin:
            admin.execute("DROP DATABASE IF EXISTS restored_for_leaks")
    for one in ended:
        require_absent("what the command line printed", (one.out + one.err).encode(), what)
    manifests = installation.manifests()
    assert CANARY_PHONE in as_sql(cluster, archive(installation, manifests[0]), tmp_path), "the canary is in the backup"
    keys = list(installation.store.keys(""))
    assert len(keys) >= 7
    for key in keys:
        require_absent(f"object {key}", installation.store.get(key), what)
        head = installation.store.client.head_object(Bucket=installation.bucket_name, Key=key)
        require_absent(f"metadata of {key}", repr(head).encode(), what)
    ops = subprocess.run(
        [cluster.bin_dir / "pg_dump", "-d", cluster.conninfo("payme_ops")], capture_output=True, check=True
    ).stdout
    assert manifests[0].run.encode() in ops
    require_absent("the ops database", ops, what)
    with log.open("rb") as file:
        file.seek(begun)
        written = file.read()
    assert b"only_here" in written, "the server logs failures"
    require_absent("PostgreSQL's log", written, what)


def test_no_secret_where_every_user_of_the_machine_can_look(installation: Installation, proxy: Proxy) -> None:
    """Command lines are public, and what a tool inherits is more than it needs to know."""
    what = needles(installation)
    password = installation.site.world.secrets["postgres.payme_db_read"]
    installation.connect_as("payme_db_read", password=password)  # in the service file, as libpq allows
    held = proxy.hold("POST", "archive.dump.age?uploads")
    running = installation.start("backup", "run")
    held.wait_until_seen()
    seen = eventually(lambda: running.living() if running.children("pg_dump") else [], "pg_dump")
    for process in seen:
        require_absent(f"the command line of {process.name()}", "\0".join(process.cmdline()).encode(), what)
    tools = [process for process in seen if process.name().startswith("pg_")]
    assert tools
    for process in tools:
        inherited = process.environ()
        require_absent(f"the environment of {process.name()}", repr(inherited).encode(), what)
        assert not [name for name in inherited if name.startswith(("AWS_", "PAYME_", "AIRFLOW_"))]
    titles = "SELECT application_name || query FROM pg_stat_activity"
    with installation.site.admin("postgres") as admin:
        require_absent("what the server shows", repr(admin.execute(titles).fetchall()).encode(), what)
    held.release()
    assert running.end().code == 0


@pytest.mark.parametrize("kind", ["settings", "desk", "source", "bucket", "keys", "migration"])
def test_no_secret_in_a_repr(installation: Installation, kind: str) -> None:
    """A debugger, a test or an error tracker prints locals."""
    desk = installation.desk
    world = installation.site.world

    desk = replace(
        desk, database=world.conninfo("payme_db_read", "payme"), ops=world.conninfo("payme_ops", "payme_ops")
    )
    shown = {
        "settings": desk.settings,
        "desk": desk,
        "source": desk.source,
        "bucket": desk.bucket,
        "keys": envelope.load_keys(world.env, key_id="k1", names=PHONE_NUMBER),
        "migration": MigrationDesk(desk.settings, world.conninfo("payme_db_migrate", "payme"), desk.ops, "test"),
    }[kind]
    require_absent("its repr", repr(shown).encode(), needles(installation))
