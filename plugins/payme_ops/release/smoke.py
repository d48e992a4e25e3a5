"""Does it work? The test merchant places an order and gets it back, while orders may be stopped for everybody else."""

import time
from typing import Any

from payme_ops.foundation import payme_api
from payme_ops.foundation.errors import Unavailable
from payme_ops.foundation.evidence import Finding, Verdict, failed, passed
from payme_ops.foundation.payme_api import PaymeApi
from payme_ops.foundation.settings import ReleaseSettings
from payme_ops.release.request import Release

_HEALTHY_IN_A_ROW = 3
_BETWEEN_SECONDS = 1.0


def smoke(release: Release, api: PaymeApi, settings: ReleaseSettings) -> Finding:
    """Healthy three times in a row, then an order and its refund, both read back by id.

    Raises Unavailable, ServiceRefused when the API answers none of it.
    """
    if wrong := healthy_in_a_row(api):
        return failed(wrong, "it is not well: read the API's log; the release goes back if that is safe")
    if not settings.test_merchant:
        todo = "PAYME_OPS__RELEASE__TEST_MERCHANT is not set: support has to try an order"
        return Finding(Verdict.INCONCLUSIVE, {"order": "not tried"}, todo)
    reference = f"{release.id}-smoke"
    placed = payme_api.place_order(api, settings.test_merchant, reference, smoke=True)
    if placed is None:
        return Finding(Verdict.INCONCLUSIVE, {"order": "not offered"}, "the API takes no test orders: try one yourself")
    if not placed.accepted:
        return failed({"order": placed.status}, "the order of the test merchant was refused: read the API's log")
    order = payme_api.read_order(api, placed.id)
    refund = payme_api.refund_order(api, placed.id, reference)
    after = payme_api.read_order(api, placed.id)
    measured = {
        "order": placed.id,
        "status": _word(order, "status"),
        "amount": order.get("amount") if isinstance(order.get("amount"), int) else "not told",
        "refund": _word(refund, "id"),
        "afterwards": _word(after, "status"),
    }
    if (order.get("id"), order.get("status"), after.get("status")) != (placed.id, "accepted", "refunded"):
        return failed(measured, "order or refund do not read back as they were made: read the API's log")
    return passed(measured)


def healthy_in_a_row(api: PaymeApi, count: int = _HEALTHY_IN_A_ROW, patience_seconds: float = 20) -> dict[str, Any]:
    """Empty once it was healthy so often in a row; else what it said last."""
    deadline, row, last = time.monotonic() + patience_seconds, 0, dict[str, Any]()
    while row < count:
        try:
            found = payme_api.health(api)
            row = row + 1 if found.healthy else 0
            last = {"health": found.status, "database": found.database}
        except Unavailable as error:
            row, last = 0, {"health": "no answer", "found": error.found}
        if time.monotonic() > deadline:
            return last
        if row < count:
            time.sleep(_BETWEEN_SECONDS)
    return {}


def _word(said: dict[str, Any], name: str) -> str:
    return str(said.get(name, "not told"))[:60]
