"""The desk's own housekeeping as task bodies; the work is in payme_ops.monitoring."""

import logging
from datetime import timedelta
from typing import Any

from airflow.sdk import get_current_context

from payme_ops.foundation import settings
from payme_ops.foundation.clock import utc_now
from payme_ops.foundation.stop import stoppable
from payme_ops.monitoring import uptime
from payme_ops.orchestration.connections import ops_db
from payme_ops.orchestration.doors import log_reason

_log = logging.getLogger("payme_ops.monitoring")


def looks() -> dict[str, Any]:
    """Sum up the looks of ended days and months, then delete those past their time; answers what was done."""
    log_reason(get_current_context())
    config, now = settings.load().monitoring, utc_now()
    with stoppable():
        done = uptime.roll_up(ops_db(), timedelta(seconds=config.interval_seconds), now)
        for period in done.summed:
            _log.info("summed: %s", period)
        deleted = uptime.delete_old(ops_db(), config.keep_days, now)
    return {"summed": len(done.summed), "not summed": done.incomplete, "looks deleted": deleted}
