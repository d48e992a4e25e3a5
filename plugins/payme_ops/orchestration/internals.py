"""What is used of Airflow beyond airflow.sdk and its providers: the one file to look at before an upgrade of Airflow.

Seen in Airflow 3.3.2. Each function says why there is no public way.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from airflow.sdk.exceptions import AirflowRuntimeError

from payme_ops.foundation.errors import Unavailable


def count_runs(dag_id: str, run_id: str, states: Sequence[str] | None = None) -> int:
    """How many runs of that DAG have that id, in those states: 1 or 0. Raises Unavailable.

    Only a task instance may ask for runs, and a trigger has none; this is the way of Airflow's own DagStateTrigger.
    """
    from airflow.sdk.execution_time.task_runner import RuntimeTaskInstance

    try:
        return RuntimeTaskInstance.get_dr_count(
            dag_id=dag_id, run_ids=[run_id], states=list(states) if states else None
        )
    except AirflowRuntimeError as error:
        raise Unavailable("Airflow does not say which runs there are", found=type(error).__name__) from None


def secrets_manager() -> Any | None:
    """This process's backend for connections, where that is AWS Secrets Manager.

    `Connection.get` takes a no, a wrong answer and no answer all for "not there", and asks the next backend.
    """
    return _backend("SecretsManagerBackend", "connections_prefix")


def connections_file() -> Path | None:
    """The file in which this process's connections are, where its backend is Airflow's for local files.

    `Connection.get` asks the next backend for what is not in it, and makes Airflow's database model of what is, with a
    word in each log about a key that no worker has.
    """
    backend = _backend("LocalFilesystemBackend", "connections_file")
    return Path(backend.connections_file) if backend else None


def _backend(name: str, where: str) -> Any | None:
    """The backend of that class that has been told where connections are."""
    from airflow.sdk.execution_time.supervisor import ensure_secrets_backend_loaded

    for backend in ensure_secrets_backend_loaded():
        # By its name: who has none need not import it.
        if type(backend).__name__ == name and getattr(backend, where, None):
            return backend
    return None


def set_sentry_up() -> None:
    """As Airflow does it for tasks: in the DAG processor and the triggerer it does not."""
    from airflow.sdk.execution_time.sentry.configured import ConfiguredSentry

    ConfiguredSentry().prepare_to_enrich_errors("")


def write_event(session: Any, event: str, owner: str, extra: str) -> None:
    """One entry of the event log, with whatever else the session commits. Airflow's own are for calls of its API."""
    from airflow.models.log import Log

    session.add(Log(event, owner=owner, extra=extra))


def failed_task(traceback: Any) -> Any | None:
    """The task instance in whose run an error was raised, by the error's traceback.

    What Airflow tells Sentry names neither the run nor the task's callbacks. The traceback begins in Airflow's task
    runner, where the task instance is the local variable `ti`.
    """
    while traceback is not None:
        frame = traceback.tb_frame
        if frame.f_globals.get("__name__", "").startswith("airflow.sdk.execution_time.") and "ti" in frame.f_locals:
            return frame.f_locals["ti"]
        traceback = traceback.tb_next
    return None
