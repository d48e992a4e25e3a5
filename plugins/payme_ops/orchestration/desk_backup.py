"""The restore test of the desk's own backups as a task body; the work is in payme_ops.backup."""

from typing import Any

from airflow.sdk import get_current_context

from payme_ops.backup import catalogue as backups
from payme_ops.backup import restore_test
from payme_ops.orchestration.doors import own_catalogue, run_name
from payme_ops.orchestration.restore_test import tested


def restore_and_compare(which: str) -> dict[str, Any]:
    """Restore the newest backup of that database into a throw-away server and compare; raises Refuted.

    On a worker of the queue `restore`, which holds the identity that opens it.
    """
    where = own_catalogue("payme_s3_restore", which)
    chosen = backups.find(where, "latest daily")
    found = tested(where, chosen, f"{run_name(get_current_context())}/{which}", look=None)
    restore_test.require_verified(found)
    return {"manifest": chosen.key, "verdict": found.verdict, "rto_milliseconds": found.facts["rto_milliseconds"]}
