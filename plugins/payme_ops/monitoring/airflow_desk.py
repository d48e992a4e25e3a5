"""Whether Airflow is set up as the desk needs it: alive, pools, no connection of its own, DAGs read and not paused."""

from collections.abc import Callable
from datetime import timedelta

from payme_ops.foundation import airflow_api
from payme_ops.foundation.airflow_api import AirflowApi, Reader
from payme_ops.foundation.clock import utc_now
from payme_ops.foundation.evidence import Check, Evidence, Finding, Verdict, failed, passed, run_check
from payme_ops.monitoring import airflow_health, last_looks
from payme_ops.monitoring.sentry_rules import CRON_MONITORS

# Airflow has no list of live workers in its API; what nobody takes from a queue tells it as well.
_LONGEST_WAIT = timedelta(minutes=10)
_SHOWN = 10
_UNREACHED = ("airflow_api_server", "airflow_metadatabase")


def examine(url: str, account: Callable[[], AirflowApi | None] | None, *, actor: str) -> list[Evidence]:
    """Its health, which anybody may ask; then the account, and the rest by it, None where there is none.

    What hangs on something that does not pass is not asked.
    """
    living = "API server, database, scheduler, triggerer, DAG processor live"
    found = [_run("airflow_health", living, lambda: _health(url), actor)]
    if account is None or found[0].verdict is Verdict.INCONCLUSIVE:
        return found
    signed: list[Reader] = []

    def login() -> Finding:
        if api := account():
            signed.append(airflow_api.sign_in(api))
        return passed({"account": "signed in"})

    found.append(_run("airflow_login", "the account that only reads may sign in", login, actor))
    if not signed:
        return found
    (reader,) = signed
    wait = f"no task waits over {_LONGEST_WAIT.seconds // 60} min for a worker of its queue"
    return [
        *found,
        _run("airflow_pools", "those that tasks name are there, a slot for each DAG", lambda: _pools(reader), actor),
        _run("stored_connections", "none in Airflow's own database", lambda: _stored_connections(reader), actor),
        _run("airflow_import_errors", "every DAG file can be read", lambda: _import_errors(reader), actor),
        _run("airflow_paused", "what begins by itself is there and not paused", lambda: _paused(reader), actor),
        _run("airflow_queues", wait, lambda: _queues(reader), actor),
    ]


def _run(item: str, threshold: str, measure: Callable[[], Finding], actor: str) -> Evidence:
    return run_check(Check(item, threshold, "Airflow", measure), actor=actor)


def _health(url: str) -> Finding:
    silent = [sign for sign in airflow_health.look(url) if sign.silent]
    if not silent:
        return passed({"silent": "nothing"})
    measured = {sign.item.removeprefix("airflow_"): sign.why for sign in silent}
    if silent[0].item in _UNREACHED:  # before the first start, or where it cannot be reached from, nobody can tell
        return Finding(Verdict.INCONCLUSIVE, measured, "start Airflow, or see PAYME_OPS__WATCHDOG__AIRFLOW_URL")
    return failed(measured, f"start what is silent again: {', '.join(measured)} (docs/watchdog.md)")


def _pools(reader: Reader) -> Finding:
    slots, wanted, dags = airflow_api.pools(reader), dict[str, int](), dict[str, int]()
    for dag in airflow_api.dags(reader):
        for pool, most in airflow_api.slots_wanted(reader, dag.id).items():
            wanted[pool], dags[pool] = max(wanted.get(pool, 0), most), dags.get(pool, 0) + 1
    # A long dump or a restore test holds its slot for hours: no other DAG may have to wait for it.
    needed = {pool: max(most, dags[pool]) for pool, most in wanted.items()}
    missing = [pool for pool in needed if pool not in slots]
    small = {pool: f"{slots[pool]} of {n}" for pool, n in needed.items() if -1 < slots.get(pool, n) < n}
    if missing or small:
        lines = [f"`airflow pools set {pool} {needed[pool]} desk`" for pool in (*missing, *small)]
        return failed({"missing": missing, "too small": small}, f"make it large enough: {', '.join(lines)}")
    return passed({pool: slots[pool] for pool in sorted(needed)})


def _stored_connections(reader: Reader) -> Finding:
    found = airflow_api.stored_connections(reader)
    if found is None:
        remedy = "look as an admin, in the UI under Admin, Connections; or give that account can_read on Connections"
        return Finding(Verdict.INCONCLUSIVE, {"connections": "the account may not see them"}, remedy)
    if found:
        return failed(
            {"connections": found[:_SHOWN], "count": len(found)},
            "put them where the secrets backend looks (docs/secrets.md), then `airflow connections delete NAME`",
        )
    return passed({"connections": 0})


def _import_errors(reader: Reader) -> Finding:
    found = airflow_api.import_errors(reader)
    if found:
        return failed(
            {"files": found[:_SHOWN], "count": len(found)},
            "see `airflow dags list-import-errors`, mend or remove the file, and wait until it was read again",
        )
    return passed({"files": 0})


def _paused(reader: Reader) -> Finding:
    found = airflow_api.dags(reader)
    # Of the DAG that looks at the applications the item `incident_runs` tells.
    paused = [dag.id for dag in found if dag.scheduled and dag.paused and dag.id != last_looks.DAG]
    missing = sorted({*CRON_MONITORS} - {dag.id for dag in found})
    remedies = [f"`airflow dags unpause {dag}`" for dag in paused]
    remedies += [f"see why the file of {dag} is not read" for dag in missing]
    if remedies:
        return failed({"paused": paused, "missing": missing}, "; ".join(remedies))
    return passed({"run by themselves": sum(dag.scheduled for dag in found)})


def _queues(reader: Reader) -> Finding:
    now = utc_now()
    late = [one for one in airflow_api.waiting(reader) if now - one.since > _LONGEST_WAIT]
    if late:
        queues = sorted({one.queue for one in late})
        return failed(
            {"queues": queues, "tasks": [one.task for one in late[:_SHOWN]]},
            f"see that a worker of the queue {', '.join(queues)} lives and is not full; start it",
        )
    return passed({"waiting too long": 0})
