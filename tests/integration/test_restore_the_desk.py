"""docs/restore-the-desk.md, line by line: both databases of the desk on a new server, as they were."""

import os
from dataclasses import replace
from pathlib import Path

import psycopg
import pytest

from payme_ops.backup import event_log, restore, run, truth
from payme_ops.backup.manifest import Manifest, Tier
from payme_ops.backup.run import Desk
from payme_ops.foundation import lease, settings
from payme_ops.foundation.clock import utc_now
from sandbox import postgres
from tests.support import document, metadata
from tests.support.installation import Installation, quiet

pytestmark = pytest.mark.long

PAGE = "restore-the-desk.md"


def own(installation: Installation, which: str) -> Desk:
    role, database = {"airflow": ("airflow", "airflow"), "ops": ("payme_ops", "payme_ops")}[which]
    conninfo = installation.site.world.conninfo(role, database)
    return replace(installation.desk, settings=settings.load().of(which), database=conninfo)


def back_up(installation: Installation, which: str) -> Manifest:
    desk, name = own(installation, which), installation.passed(f"desk_backup/{which}")
    run.dump_and_store(desk, name, Tier.DAILY, utc_now(), report=quiet)
    run.read_back(desk, name, report=quiet)
    return run.commit(desk, name)


def test_the_lines_bring_both_databases_back_and_nothing_goes_on_by_itself(
    installation: Installation, tmp_path: Path
) -> None:
    metadata.make(installation.site)
    source = installation.site.cluster
    with metadata.emptied(installation.site) as log:
        log.execute("INSERT INTO dag_bundle (name) VALUES ('dags-folder') ON CONFLICT DO NOTHING")
        log.execute("""
            INSERT INTO dag (dag_id, is_paused, is_stale, bundle_name, timetable_type, partition_mapper_info,
                             max_active_tasks, max_consecutive_failed_dag_runs, has_task_concurrency_limits)
            VALUES ('deployment', false, false, 'dags-folder', 'x', '{}', 16, 0, false)
        """)
        log.execute("""
            INSERT INTO dag_run (dag_id, run_id, state, run_type, run_after, log_template_id)
            SELECT 'deployment', 'release-1', 'running', 'manual', now(), max(id) FROM log_template
        """)
        log.execute("INSERT INTO log (dttm, event) SELECT now(), 'trigger' FROM generate_series(1, 3)")
        with psycopg.connect("service=payme_ops_db") as ops:
            ops.execute("INSERT INTO ops.terms VALUES ('freeze:sandbox', 'release/release-1', 7, now(), now())")
        made = {which: back_up(installation, which) for which in ("airflow", "ops")}
        with psycopg.connect("service=payme_ops_db") as ops:
            ops.execute("DELETE FROM ops.terms WHERE name = 'freeze:sandbox'")
        log.execute("INSERT INTO log (dttm, event) SELECT now(), 'lost' FROM generate_series(1, 4)")
        exported = event_log.export(own(installation, "airflow"), "test", keep_since=utc_now(), report=quiet)
        assert exported is not None
    with postgres.temporary_cluster(bin_dir=source.bin_dir) as target:
        told = document.run(lines(installation, target, tmp_path), environment(installation), tmp_path)
        for which, database in (("airflow", "airflow"), ("ops", "payme_ops")):
            assert f"database {database} holds {made[which].truth.rows:,} rows, equal to the manifest" in told
        assert "deployment | release-1 | running" in told
        assert "freeze:sandbox | release/release-1" in told
        # The dump's own lease lies in the backup of the ops database. It is over, and nobody's.
        assert "snapshot:payme_ops" in told
        assert lease.peek(target.conninfo("payme_ops"), "snapshot:payme_ops") is None
        with lease.hold(target.conninfo("payme_ops"), "snapshot:payme_ops", "the new desk") as held:
            assert held.token > made["ops"].fencing_token
        with psycopg.connect(target.conninfo("airflow")) as session:
            assert session.execute("SELECT is_paused FROM dag").fetchall() == [(True,)]
            # Paused by a command, which was logged: above every number that was exported.
            last = session.execute("SELECT last_value FROM log_id_seq").fetchone()
            assert last is not None
            assert last[0] >= exported.upto == 7
        measured = restore.measure(target.conninfo("payme_ops"), report=quiet)
        assert [one for one in truth.differences(made["ops"].truth, measured) if "leases" not in one.name] == []


def lines(installation: Installation, target: postgres.Cluster, folder: Path) -> list[str]:
    service, secret = folder / "service.conf", folder / "sql_alchemy_conn"
    common = f"host=127.0.0.1\nport={target.port}\nuser={target.superuser}\npassword={target.password}\n"
    service.write_text(f"[payme_db_restore]\n{common}dbname=postgres\n[payme_ops_db]\n{common}dbname=payme_ops\n")
    login = f"{target.superuser}:{target.password}@127.0.0.1:{target.port}"
    secret.write_text(f"postgresql+psycopg2://{login}/airflow")
    first, *blocks = document.blocks(PAGE)
    values = {
        "PAYME_OPS__BACKUP__IDENTITY_FILE": str(installation.site.world.root / "keys" / "recovery.age-identity"),
        "PGSERVICEFILE": str(service),
        "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN_CMD": f"cat {secret}",
        "BUCKET": installation.bucket_name,
        "CLIENTS": str(installation.site.cluster.bin_dir),
        "AIRFLOW_DATABASE": "airflow",
        "OPS_DATABASE": "payme_ops",
    }
    return [document.with_values(first, values), *blocks]


def environment(installation: Installation) -> dict[str, str]:
    return {**os.environ, "AIRFLOW_HOME": str(installation.site.world.root / "airflow-home")}
