"""A run of `incident`: what has begun, the wait for its end without a worker, and how long it was, as evidence."""

from typing import Any

from airflow.sdk import Asset, AssetWatcher, BaseOperator, Context, get_current_context

from payme_ops.orchestration.health_watch import HealthWatch
from payme_ops.orchestration.triggers import RepeatedLook

# The watch gives it one event for each outage.
PAYME_OUTAGE = Asset(
    name="payme_outage",
    uri="payme-ops://outage",
    watchers=[AssetWatcher(name="payme_health_watch", trigger=HealthWatch())],  # type: ignore[no-untyped-call]
)


def take() -> list[int]:
    """Outages that are this run's: those of its events, which may be several in one run, and what nobody has taken."""
    from payme_ops.monitoring import outages
    from payme_ops.orchestration.connections import ops_db
    from payme_ops.orchestration.doors import run_name

    context = get_current_context()
    return outages.claim(ops_db(), run_name(context), _told(context))


def _told(context: Context) -> list[int]:
    events = [event for found in context["triggering_asset_events"].values() for event in found]
    payloads = [event.extra.get("payload") for event in events]
    return [one["outage"] for one in payloads if isinstance(one, dict) and isinstance(one.get("outage"), int)]


def note(outage: int) -> None:
    """What has begun, since when, when it was last well and how quick then, as evidence of the run."""
    from payme_ops.foundation import evidence
    from payme_ops.foundation.clock import show
    from payme_ops.foundation.evidence import Finding, Verdict
    from payme_ops.monitoring import outages
    from payme_ops.orchestration.connections import ops_db
    from payme_ops.orchestration.doors import run_name

    context, ops = get_current_context(), ops_db()
    one = outages.get(ops, outage)
    measured = {
        "outage": one.id,
        "application": one.subject,
        "kind": one.kind,
        "why": one.why,
        "since": show(one.began_at),
        "last well": show(one.last_good_at) if one.last_good_at else "never seen well",
        "p95 ms": one.p95,
        "muted by": one.muted_by,
    }
    finding = Finding(Verdict.FAIL, measured, "read docs/runbooks/incident.md: the first three things to look at")
    evidence.keep(
        ops,
        run_name(context),
        f"outage_{one.id}",
        finding,
        threshold="healthy and quick at every look",
        source="the health watch",
        started=one.began_at,
    )


def recovered(outage: int) -> None:
    """How long it was, as evidence. Raises GateClosed while it is on: the run is green only when it is over."""
    from payme_ops.foundation import evidence
    from payme_ops.foundation.clock import show, span
    from payme_ops.foundation.errors import GateClosed
    from payme_ops.foundation.evidence import passed
    from payme_ops.monitoring import outages
    from payme_ops.orchestration.connections import ops_db
    from payme_ops.orchestration.doors import run_name

    context, ops = get_current_context(), ops_db()
    one = outages.get(ops, outage)
    if one.ended_at is None:
        raise GateClosed(
            f"{one.subject} is not well",
            expected="ten good looks in a row",
            found=one.why,
            remedy="clear the task that waits for its end: somebody has marked it",
        )
    length = one.ended_at - one.began_at
    measured = {
        "outage": one.id,
        "application": one.subject,
        "well since": show(one.ended_at),
        "lasted": span(length),
        "seconds": length.total_seconds(),
    }
    evidence.keep(
        ops,
        run_name(context),
        f"recovery_{one.id}",
        passed(measured),
        threshold="ten good looks in a row",
        source="the health watch",
        started=one.began_at,
    )


class OutageOverOperator(BaseOperator):
    """Succeeds once the outage of that id is over, however long that takes. No worker waits."""

    template_fields = ("outage",)

    def __init__(self, *, outage: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.outage = outage

    def execute(self, context: Context) -> None:  # noqa: ARG002
        """Look, or wait."""
        from payme_ops.monitoring import outages
        from payme_ops.orchestration.connections import ops_db

        one = outages.get(ops_db(), int(self.outage))
        if one.ended_at is None:
            self.defer(trigger=OutageTrigger(outage=one.id, subject=one.subject), method_name="resume")

    def resume(self, context: Context, event: Any) -> None:  # noqa: ARG002  # an event is only a hint
        """The same: the row decides."""
        self.execute(context)


class OutageTrigger(RepeatedLook):
    """Looks whether an outage is over, as often as the watch looks."""

    function = "outage_once"
