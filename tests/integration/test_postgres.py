"""Connections and client tools: errors show no row, passwords stand where nobody reads, tools are of one version."""

import os
import stat
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from payme_ops.foundation import postgres
from payme_ops.foundation.errors import DatabaseError, DatabaseUnavailable, DumpFailed, NotFound
from payme_ops.foundation.postgres import (
    client_environment,
    client_invocation,
    client_tool,
    connect,
    server_major,
    speaking,
    tool_failure,
    tool_version,
    with_database,
)
from sandbox.payme_db.generate import CANARY_PHONE
from sandbox.postgres import Cluster, debian_bin_dir, free_port, wheel_bin_dir
from tests.support.ops import database


@pytest.fixture(scope="module")
def scratch(cluster: Cluster) -> Iterator[str]:
    with database(cluster, "postgres_test") as conninfo:
        with psycopg.connect(conninfo, autocommit=True) as connection:
            connection.execute(
                "CREATE TABLE users (id int PRIMARY KEY, phone text CONSTRAINT kenyan CHECK (phone ~ '^254'))"
            )
        yield conninfo


def failure(conninfo: str, statement: str) -> DatabaseError:
    with (
        connect(conninfo, application="payme_ops:test") as connection,
        pytest.raises(DatabaseError) as caught,
        speaking("insert a user"),
    ):
        connection.execute(statement)
    return caught.value


def test_an_error_carries_sqlstate_table_and_constraint_and_no_row(scratch: str) -> None:
    error = failure(scratch, f"INSERT INTO users VALUES (1, '{CANARY_PHONE}')")  # noqa: S608
    assert error.sqlstate == "23514"
    assert "SQLSTATE 23514" in error.found
    assert "table users" in error.found
    assert "constraint kenyan" in error.found
    assert CANARY_PHONE not in str(error)
    assert CANARY_PHONE[1:] not in repr(error)
    assert error.__cause__ is None
    assert error.__suppress_context__


def test_a_value_in_the_primary_message_is_scrubbed(scratch: str) -> None:
    error = failure(scratch, f"SELECT '{CANARY_PHONE} '::uuid")
    assert error.sqlstate == "22P02"
    assert CANARY_PHONE not in str(error)


@pytest.mark.parametrize(
    ("parameters", "says"),
    [
        ({"port": "1"}, "refused"),
        ({"password": "wrong-one"}, "password authentication failed"),
        ({"dbname": "nowhere"}, 'database "nowhere" does not exist'),
    ],
)
def test_a_connection_that_fails_says_why_without_the_password(
    scratch: str, parameters: dict[str, str], says: str
) -> None:
    with (
        pytest.raises(DatabaseUnavailable, match=says) as caught,
        connect(psycopg.conninfo.make_conninfo(scratch, **parameters), application="payme_ops:test"),
    ):
        pass
    assert "wrong-one" not in str(caught.value)
    assert caught.value.remedy


def test_a_session_that_was_ended_is_worth_another_try(scratch: str, cluster: Cluster) -> None:
    with connect(scratch, application="payme_ops:test") as connection:
        with psycopg.connect(cluster.conninfo(), autocommit=True) as admin:
            admin.execute("SELECT pg_terminate_backend(%s, 5000)", [connection.info.backend_pid])
        with pytest.raises(DatabaseUnavailable), speaking("select"):
            connection.execute("SELECT 1")


def test_a_connection_is_closed_when_its_block_fails(scratch: str) -> None:
    with pytest.raises(ZeroDivisionError), connect(scratch, application="payme_ops:test") as connection:
        _ = 1 / 0
    assert connection.closed


def test_a_connection_has_our_name_and_commits_by_itself(scratch: str) -> None:
    with connect(scratch, application="payme_ops:somebody") as connection:
        assert connection.autocommit
        assert connection.execute("SELECT current_setting('application_name')").fetchone() == ("payme_ops:somebody",)
        assert connection.execute("SHOW client_connection_check_interval").fetchone() == ("2s",)


def test_tools_of_the_servers_own_version_are_found(cluster: Cluster, scratch: str) -> None:
    with connect(scratch, application="payme_ops:test") as connection:
        major = server_major(connection)
    folders = [str(wheel_bin_dir()), "/usr/lib/postgresql/{major}/bin"]
    for name in ("pg_dump", "pg_dumpall", "pg_restore"):
        tool = client_tool(name, major, folders)
        assert tool == cluster.bin_dir / name
        assert tool_version(tool)[0] == major


def test_a_tool_of_another_version_is_refused_and_named() -> None:
    with pytest.raises(NotFound) as caught:
        client_tool("pg_dump", 16, [str(wheel_bin_dir()), "/usr/lib/postgresql/15/bin", "/nowhere"])
    assert f"{wheel_bin_dir()}/pg_dump is 17." in caught.value.found
    if debian_bin_dir(15):
        assert "/usr/lib/postgresql/15/bin/pg_dump is 15." in caught.value.found
    assert "PAYME_OPS__POSTGRES__CLIENT_DIRS" in caught.value.remedy


def test_no_tool_at_all() -> None:
    with pytest.raises(NotFound, match="found none"):
        client_tool("pg_dump", 17, ["/nowhere/{major}"])


def fake_tool(folder: Path, body: str) -> Path:
    path = folder / "pg_dump"
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return path


@pytest.mark.parametrize(
    ("body", "version"),
    [
        ("echo 'pg_dump (PostgreSQL) 15.18 (Debian 15.18-0+deb12u1)'", (15, 18)),
        ("echo 'pg_dump (PostgreSQL) 17.10'", (17, 10)),
        ("echo 'pg_dump (PostgreSQL) 18beta2'", (18, 0)),
    ],
)
def test_version_texts(tmp_path: Path, body: str, version: tuple[int, int]) -> None:
    assert tool_version(fake_tool(tmp_path, body)) == version


@pytest.mark.parametrize("body", ["exit 1", "echo nothing", "kill -9 $$"])
def test_a_tool_without_a_version(tmp_path: Path, body: str) -> None:
    with pytest.raises(NotFound):
        tool_version(fake_tool(tmp_path, body))


def test_a_password_goes_by_the_environment_and_a_service_by_its_name(scratch: str) -> None:
    password = psycopg.conninfo.conninfo_to_dict(scratch)["password"]
    dbname, secrets = client_invocation(scratch, application="payme_ops:x")
    assert secrets == {"PGPASSWORD": password}
    assert str(password) not in dbname
    assert psycopg.conninfo.conninfo_to_dict(dbname)["application_name"] == "payme_ops:x"
    dbname, secrets = client_invocation("service=payme_db_read", application="payme_ops:x")
    assert secrets == {}
    assert psycopg.conninfo.conninfo_to_dict(dbname)["service"] == "payme_db_read"


def test_tools_inherit_nothing_that_is_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_SECRET_ACCESS_KEY", "PAYME_OPS__X", "PGPASSWORD", "AIRFLOW_CONN_PAYME_DB_READ"):
        monkeypatch.setenv(name, "secret")
    monkeypatch.setenv("PGSERVICEFILE", "/somewhere")
    inherited = client_environment({"PGPASSWORD": "own"})
    assert "secret" not in inherited.values()
    assert inherited["PGPASSWORD"] == "own"
    assert inherited["PGSERVICEFILE"] == "/somewhere"
    assert inherited["LC_ALL"] == "C"
    assert set(inherited) <= {*postgres._CLIENT_VARIABLES, "LC_ALL", "PGPASSWORD"}
    assert os.environ["AWS_SECRET_ACCESS_KEY"] == "secret"


def test_another_database_of_the_same_server(scratch: str) -> None:
    with connect(with_database(scratch, "postgres"), application="payme_ops:test") as connection:
        assert connection.info.dbname == "postgres"


def test_a_refused_port(scratch: str) -> None:
    with (
        pytest.raises(DatabaseUnavailable),
        connect(psycopg.conninfo.make_conninfo(scratch, port=free_port()), application="payme_ops:test"),
    ):
        pass


@pytest.mark.parametrize(
    ("code", "said", "kind", "found"),
    [
        (1, "pg_dump: error: query failed: server closed the connection unexpectedly", DatabaseUnavailable, "server"),
        (1, 'pg_dump: error: connection to server at "db" failed: timeout', DatabaseUnavailable, "timeout"),
        (1, "pg_dump: error: permission denied for table users", DumpFailed, "exit code 1, saying: pg_dump: error"),
        (-9, "", DumpFailed, "signal 9, saying: nothing"),
    ],
)
def test_what_a_failed_tool_is_called(code: int, said: str, kind: type[Exception], found: str) -> None:
    error = tool_failure("pg_dump", code, said)
    assert type(error) is kind
    assert found in error.found
    assert error.remedy


def test_a_tool_that_prints_a_row_is_scrubbed() -> None:
    said = f'pg_restore: error: COPY failed for table "users"\nCONTEXT:  COPY users, line 1: "1\t{CANARY_PHONE}\tA"'
    assert CANARY_PHONE not in str(tool_failure("pg_restore", 1, said))
