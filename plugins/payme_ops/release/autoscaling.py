"""The number of replicas is fixed for a deploy; the limits from before come back exactly."""

from typing import Any

from payme_ops.foundation import payme_api
from payme_ops.foundation.evidence import Evidence, Finding, Verdict, failed, passed
from payme_ops.foundation.payme_api import PaymeApi, Replicas

LIMITS = "autoscaling_limits"  # evidence of the limits from before; written before anything is changed


def limits(api: PaymeApi | None) -> dict[str, Any]:
    """The limits as they are; empty where the API does not offer them. Raises Unavailable."""
    now = payme_api.autoscaling(api) if api else None
    return {"minimum": now.minimum, "maximum": now.maximum} if now else {}


def fix(api: PaymeApi | None, before: Evidence | None) -> Finding:
    """Keep the limits, fix the number at the upper one, read it back.

    `before` is what an earlier try has kept: what it fixed must not be taken for the limits. Raises Unavailable.
    """
    now = payme_api.autoscaling(api) if api else None
    if api is None or now is None:
        todo = "the API does not offer it: fix the number of replicas yourself, and write the limits down"
        return Finding(Verdict.INCONCLUSIVE, {"limits": "not told"}, todo)
    kept = saved(before) or now
    fixed = payme_api.set_autoscaling(api, Replicas(kept.maximum, kept.maximum))
    measured = {"minimum": kept.minimum, "maximum": kept.maximum, "fixed at": fixed.minimum if fixed else "not told"}
    if fixed != Replicas(kept.maximum, kept.maximum):
        return failed(measured, "the API does not keep to the number: look at its log")
    return passed(measured)


def restore(api: PaymeApi | None, before: Evidence | None) -> Finding:
    """Bring the kept limits back and read them back. Raises Unavailable."""
    kept = saved(before)
    if api is None or kept is None:
        todo = "bring the limits back that you have written down"
        return Finding(Verdict.INCONCLUSIVE, {"limits": "not kept by us"}, todo)
    now = payme_api.set_autoscaling(api, kept)
    if now is not None:
        now = payme_api.autoscaling(api)
    measured = {
        "minimum": kept.minimum,
        "maximum": kept.maximum,
        "found": f"{now.minimum} to {now.maximum}" if now else "none",
    }
    return passed(measured) if now == kept else failed(measured, "set the limits yourself, to the kept ones")


def saved(before: Evidence | None) -> Replicas | None:
    """The limits in that evidence, if it has them."""
    said = before.measured if before and isinstance(before.measured, dict) else {}
    low, high = said.get("minimum"), said.get("maximum")
    return Replicas(low, high) if type(low) is int and type(high) is int else None
