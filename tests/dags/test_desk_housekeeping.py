"""The night's housekeeping as its tasks do it, on real databases and with Airflow's own clean."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import psycopg
import pytest
from airflow.sdk.exceptions import AirflowSkipException
from psycopg.conninfo import make_conninfo
from sqlalchemy.engine import make_url

from payme_ops.foundation import evidence, samples
from payme_ops.foundation.clock import utc_now
from payme_ops.foundation.errors import IntegrityError, Unavailable
from payme_ops.foundation.evidence import Verdict
from payme_ops.foundation.health import State
from payme_ops.foundation.samples import Sample
from payme_ops.orchestration import housekeeping
from tests.support import metadata, ops
from tests.support.installation import Installation
from tests.support.site import Site
from tests.support.waiting import eventually

OPS = "service=payme_ops_db"
FAB = "airflow.providers.fab.auth_manager.fab_auth_manager.FabAuthManager"  # as in production
LEFT_OUT = {"trigger", "dag", "celery_taskmeta", "celery_tasksetmeta", "_xcom_archive"}


def test_it_runs_at_half_past_four_in_nairobi_and_cleans_after_the_export_only(dag_bag: Any) -> None:
    dag = dag_bag.dags["desk_housekeeping"]
    assert (dag.timetable.expression, str(dag.timetable.timezone)) == ("30 4 * * *", "Africa/Nairobi")
    edges = {task.task_id: (task.queue, sorted(task.downstream_task_ids)) for task in dag.tasks}
    assert edges == {
        "looks": ("default", []),
        "old_logs": ("desk", []),
        "export_event_log": ("desk", ["clean_airflow"]),
        "clean_airflow": ("desk", []),
    }
    assert dag.get_task("clean_airflow").trigger_rule == "none_failed"


def test_what_is_old_is_summed_and_then_deleted_and_a_second_night_finds_nothing(
    installation: Installation, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(housekeeping, "get_current_context", lambda: {"params": {"reason": None}})
    cluster = installation.site.cluster
    with ops.ops_database(cluster) as conninfo:
        installation.set_all({"AIRFLOW_CONN_PAYME_OPS_DB": json.dumps(ops.connection(cluster, "ops_test"))})
        now = utc_now()
        for subject in ("production", "release/x"):
            for days in (0, 20, 100):
                samples.store(conninfo, subject, Sample(now - timedelta(days=days), State.HEALTHY, 5.0, {}))
        done = housekeeping.looks()
        assert done["looks deleted"] == 2
        assert done["summed"] >= 3  # two days, and the month of the older one
        assert housekeeping.looks() == {"summed": 0, "not summed": [], "looks deleted": 0}
        with psycopg.connect(conninfo) as session:
            assert session.execute("SELECT count(*) FROM ops.health_samples").fetchone() == (4,)


def test_each_table_that_airflow_cleans_is_cleaned_or_left_out_on_purpose() -> None:
    from airflow.utils.db_cleanup import config_dict

    # `session` is there only where FAB is the auth manager.
    assert {*housekeeping.TABLES} | LEFT_OUT == {*config_dict} | {"session"}


def test_the_address_for_airflow_is_the_connections_whatever_its_password() -> None:
    parts = {"user": "airflow", "password": "p/w@d:$HOME %41", "host": "db", "port": "6432", "dbname": "airflow"}
    made = housekeeping.database_url(make_conninfo(**parts, sslmode="verify-full", sslrootcert="/run/secrets/ca.crt"))
    assert "$" not in made  # Airflow would expand it
    url = make_url(made)
    assert (url.drivername, url.query) == (
        "postgresql+psycopg2",
        {"sslmode": "verify-full", "sslrootcert": "/run/secrets/ca.crt"},
    )
    assert [url.username, url.password, url.host, str(url.port), url.database] == list(parts.values())


def test_logs_that_nobody_has_written_to_for_long_are_deleted_and_no_link_is_followed(
    installation: Installation, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "on another disk").symlink_to(tmp_path / "logs")  # the folder itself may be a link
    installation.set_all({"AIRFLOW__LOGGING__BASE_LOG_FOLDER": str(tmp_path / "on another disk")})
    outside = written(tmp_path / "elsewhere" / "kept.txt", days=200)
    written(tmp_path / "logs" / "dag_id=a" / "run_id=1" / "attempt=1.log", days=91)
    written(tmp_path / "logs" / "vanished.log", days=91)
    written(tmp_path / "logs" / "dag_id=a" / "run_id=2" / "attempt=1.log", days=89)
    written(tmp_path / "logs" / "dag_id=b" / "half" / "old.log", days=100)
    written(tmp_path / "logs" / "dag_id=b" / "new.log", days=0)
    (tmp_path / "logs" / "latest").symlink_to(outside.parent)
    (tmp_path / "logs" / "kept.log").symlink_to(outside)
    (tmp_path / "logs" / "dag_id=c" / "just made").mkdir(parents=True)
    long_ago(tmp_path / "logs", days=300)

    def unlink(name: str, *, dir_fd: int, original: Any = os.unlink) -> None:
        if name == "vanished.log":
            original(name, dir_fd=dir_fd)
        original(name, dir_fd=dir_fd)

    monkeypatch.setattr(os, "unlink", unlink)
    assert housekeeping.old_logs() == {"files": 2, "bytes": 10}
    assert outside.exists()
    assert {str(path.relative_to(tmp_path / "logs")) for path in (tmp_path / "logs").rglob("*")} == {
        *("latest", "kept.log", "dag_id=a", "dag_id=a/run_id=2", "dag_id=a/run_id=2/attempt=1.log"),
        *("dag_id=b", "dag_id=b/new.log", "dag_id=c", "dag_id=c/just made"),
    }
    assert housekeeping.old_logs() == {"files": 0, "bytes": 0}


def written(path: Path, days: float) -> Path:
    """A file of five bytes that nobody has written to for so long, in a folder as old."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("12345")
    for one in (path, path.parent):
        long_ago(one, days)
    return path


def long_ago(path: Path, days: float) -> None:
    then = (utc_now() - timedelta(days=days)).timestamp()
    os.utime(path, (then, then))


@pytest.fixture
def log(site: Site, installation: Installation, monkeypatch: pytest.MonkeyPatch) -> Iterator[psycopg.Connection]:
    """The metadata database of a desk with old entries, old runs, and a trigger of the health watch that is as old."""
    metadata.make(site)
    dag_run = SimpleNamespace(dag_id="desk_housekeeping", run_id=installation.bucket_name)
    monkeypatch.setattr(housekeeping, "get_current_context", lambda: {"dag_run": dag_run})
    with metadata.emptied(site) as connection:
        connection.execute("""
            INSERT INTO log (dttm, event)
            SELECT now() - make_interval(days => old), 'trigger' FROM unnest(ARRAY[200, 100, 80, 0]) AS days (old)
        """)
        connection.execute("""
            INSERT INTO dag_run (dag_id, run_id, state, run_type, start_date, run_after, log_template_id)
            SELECT 'backup_daily', name, 'success', 'scheduled', now() - make_interval(days => old), now(),
                   (SELECT max(id) FROM log_template)
            FROM (VALUES ('old', 150), ('new', 1)) AS run (name, old)
        """)
        connection.execute("""
            WITH watch AS (
                INSERT INTO trigger (classpath, kwargs, created_date) VALUES ('x', '{}', now() - interval '1 year')
                RETURNING id
            ), what AS (
                INSERT INTO asset (name, uri, "group", extra, created_at, updated_at)
                VALUES ('health', 'x', '', '{}', now(), now())
                RETURNING id
            )
            INSERT INTO asset_watcher (name, asset_id, trigger_id) SELECT 'health', what.id, watch.id FROM watch, what
        """)
        yield connection


def events(log: psycopg.Connection) -> list[tuple[int, str]]:
    return log.execute("SELECT id, event FROM log ORDER BY id").fetchall()


def test_what_was_exported_and_is_old_is_cleaned_and_nothing_that_is_at_work(
    log: psycopg.Connection, installation: Installation, caplog: pytest.LogCaptureFixture
) -> None:
    installation.set_all({"AIRFLOW__CORE__AUTH_MANAGER": FAB})
    caplog.set_level("INFO")
    run = f"desk_housekeeping/{installation.bucket_name}"
    assert housekeeping.export_event_log()["rows"] == 4
    assert evidence.latest(OPS, run, housekeeping.EXPORTED).verdict is Verdict.PASS
    housekeeping.clean_airflow()
    assert evidence.latest(OPS, run, housekeeping.CLEANED).verdict is Verdict.PASS
    looked_at = {line.rpartition(" ")[2] for line in caplog.messages if line.startswith("Checking table ")}
    assert looked_at == {*housekeeping.TABLES}
    assert events(log) == [(3, "trigger"), (4, "trigger"), (5, "cli_cleanup_tables")]
    assert log.execute("SELECT run_id FROM dag_run").fetchall() == [("new",)]
    assert log.execute("SELECT count(*) FROM asset_watcher JOIN trigger ON trigger.id = trigger_id").fetchone() == (1,)
    left = r"SELECT count(*) FROM pg_class WHERE relname LIKE '\_airflow\_deleted%'"
    assert log.execute(left).fetchone() == (0,)
    assert housekeeping.export_event_log()["first_id"] == 5
    with pytest.raises(AirflowSkipException):
        housekeeping.export_event_log()


def test_entries_that_were_tampered_with_fail_the_export_and_with_it_the_clean(
    log: psycopg.Connection, installation: Installation
) -> None:
    log.execute("DELETE FROM log WHERE id < 3")  # none that may be gone by rights
    housekeeping.export_event_log()
    log.execute("UPDATE log SET owner = 'somebody else' WHERE id = 3")
    with pytest.raises(IntegrityError, match="not what was exported"):
        housekeeping.export_event_log()
    run = f"desk_housekeeping/{installation.bucket_name}"
    assert evidence.latest(OPS, run, housekeeping.EXPORTED).verdict is Verdict.FAIL


def test_entries_that_were_tampered_with_are_told_by_the_next_try_when_the_first_was_killed(
    log: psycopg.Connection, installation: Installation, monkeypatch: pytest.MonkeyPatch
) -> None:
    log.execute("DELETE FROM log WHERE id < 3")
    housekeeping.export_event_log()
    log.execute("UPDATE log SET owner = 'somebody else' WHERE id = 3")
    with monkeypatch.context() as patched:
        patched.setattr(evidence, "keep", killed)
        with pytest.raises(KeyboardInterrupt):
            housekeeping.export_event_log()
    log.execute("INSERT INTO log (dttm, event) VALUES (now(), 'trigger')")  # of which the next try makes one more
    with pytest.raises(IntegrityError, match="not what was exported"):
        housekeeping.export_event_log()
    run = f"desk_housekeeping/{installation.bucket_name}"
    assert evidence.latest(OPS, run, housekeeping.EXPORTED).verdict is Verdict.FAIL


def killed(*_: object, **__: object) -> None:
    raise KeyboardInterrupt


# As Airflow runs the tasks: in a process of its own, which can be killed.
_NIGHT = """
import sys
from types import SimpleNamespace
from payme_ops.orchestration import housekeeping
dag_run = SimpleNamespace(dag_id="desk_housekeeping", run_id=sys.argv[1])
housekeeping.get_current_context = lambda: {"dag_run": dag_run}
housekeeping.export_event_log()
housekeeping.clean_airflow()
"""


def test_killed_in_the_middle_of_the_clean_it_ends_and_the_next_try_does_the_rest(
    log: psycopg.Connection, installation: Installation, site: Site
) -> None:
    blocked = "SELECT pid FROM pg_locks WHERE relation = 'job'::regclass AND NOT granted"
    with metadata.connected(site) as other, other.transaction():
        other.execute("LOCK TABLE job")
        night = subprocess.Popen([sys.executable, "-c", _NIGHT, installation.bucket_name])
        try:
            eventually(lambda: log.execute(blocked).fetchone() or False, "the clean to wait", 120)
            clean = psutil.Process(night.pid).children(recursive=True)
        finally:
            night.kill()
            night.wait()
        assert clean
        assert psutil.wait_procs(clean, 30)[1] == []  # nothing goes on beside the next try
    housekeeping.clean_airflow()
    assert log.execute("SELECT run_id FROM dag_run").fetchall() == [("new",)]
    kept = [number for number, _ in events(log)]
    assert kept[:2] == [3, 4]
    # What the killed one has logged of itself comes next, nothing twice.
    made = housekeeping.export_event_log()
    assert (made["number"], made["first_id"], made["last_id"]) == (2, 5, kept[-1])


def test_a_clean_that_airflow_refuses_is_tried_again_and_shows_no_password(
    log: psycopg.Connection, installation: Installation, caplog: pytest.LogCaptureFixture
) -> None:
    housekeeping.export_event_log()
    log.execute("ALTER TABLE job RENAME COLUMN latest_heartbeat TO renamed")
    try:
        with caplog.at_level("INFO"), pytest.raises(Unavailable, match="airflow db clean failed") as caught:
            housekeeping.clean_airflow()
    finally:
        log.execute("ALTER TABLE job RENAME COLUMN renamed TO latest_heartbeat")
    assert installation.site.world.secrets["postgres.airflow"] not in caplog.text + str(caught.value)
    assert "'job'" in caplog.text
