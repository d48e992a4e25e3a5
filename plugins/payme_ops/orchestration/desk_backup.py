"""The restore test of the desk's own backups as a task body; the work is in payme_ops.backup."""

import logging
from typing import Any

from airflow.sdk import get_current_context

from payme_ops.backup import catalogue as backups
from payme_ops.backup import restore, restore_test
from payme_ops.foundation import record, settings
from payme_ops.foundation.stop import stoppable
from payme_ops.orchestration.connections import conninfo
from payme_ops.orchestration.doors import own_catalogue, run_name

_log = logging.getLogger("payme_ops.backup")


def restore_and_compare(which: str) -> dict[str, Any]:
    """Restore the newest backup of that database into a throw-away server and compare; raises Refuted.

    On a worker of the queue `restore`, which holds the identity that opens it.
    """
    config, where = settings.load(), own_catalogue("payme_s3_restore", which)
    chosen, service = backups.find(where, "latest daily"), config.backup.restore_test_service
    with stoppable():
        found = restore_test.run(
            where,
            chosen,
            restore.load_identity(config.backup.identity_file),
            config,
            f"{run_name(get_current_context())}/{which}",
            given_host=conninfo(service) if service else None,
            report=_log.info,
        )
    _log.info("%s", record.to_markdown(found))
    restore_test.require_verified(found)
    return {"manifest": chosen.key, "verdict": found.verdict, "rto_milliseconds": found.facts["rto_milliseconds"]}
