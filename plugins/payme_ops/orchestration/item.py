"""One item of a release's checklist as one task: measure, keep the evidence, ask a person where no machine can tell.

A failed item fails its task; what could not be measured parks it until another person than the requester answers.
Evidence and approvals are filed under the release, so the three DAGs share them.
"""

from datetime import timedelta
from typing import Any

from airflow.providers.standard.exceptions import HITLRejectException
from airflow.sdk import Context

from payme_ops.orchestration.approval import ApprovalGate
from payme_ops.orchestration.health import HealthTrigger
from payme_ops.orchestration.triggers import patience
from payme_ops.orchestration.watching import LooksTrigger
from payme_ops.release.checklist import ITEMS

_ANY_TIME = timedelta(hours=4)  # of a question, until the settings are read


class ReleaseGate(ApprovalGate):
    """A decision of people on evidence of the release. A rejection, or no answer in time, raises GateClosed."""

    def __init__(self, **kwargs: Any) -> None:
        # Skipped instead, what comes after it would be upstream_failed or skipped as the scheduler's luck has it, since
        # the list of what to skip stays in an XCom of the failed task; and a skipped task looks like a marked one.
        super().__init__(response_timeout=_ANY_TIME, fail_on_reject=True, **kwargs)

    def execute(self, context: Context) -> Any:
        """Ask, unless the evidence has passed."""
        from payme_ops.orchestration import release

        self.response_timeout = release.patience()
        return super().execute(context)

    def execute_complete(self, context: Context, event: dict[str, Any]) -> Any:
        """Write the answer down; what comes after a no does not begin."""
        from payme_ops.orchestration import release

        try:
            given = super().execute_complete(context, event)
        except HITLRejectException:
            release.tell_answer(context, self.task_id)
            raise release.rejected(context, self.task_id) from None
        release.tell_answer(context, self.task_id)
        return given

    def _run(self, context: Context) -> str:
        from payme_ops.orchestration import release

        return release.of(context).run

    def _requester(self, context: Context) -> str:
        from payme_ops.orchestration import release

        return release.of(context).requester

    def _thread(self, context: Context) -> str:
        from payme_ops.orchestration import release

        return release.thread(release.of(context))


class ItemOperator(ReleaseGate):
    """The item of that name. With `if_stale` it measures only what is too old or did not pass, for the go/no-go."""

    def __init__(self, *, item: str, if_stale: bool = False, **kwargs: Any) -> None:
        spec = ITEMS[item]
        options = {"task_id": item, "task_display_name": spec.title, **kwargs}
        super().__init__(evidence_item=item, subject=spec.ask or spec.title, **options)
        self.item, self.if_stale = item, if_stale

    def execute(self, context: Context) -> Any:
        """Measure; fail, ask, or go on."""
        from payme_ops.orchestration import release

        if self.if_stale and release.still_holds(context, self.item):
            return None
        release.measure(context, self.item)
        return super().execute(context)


class LooksItem(ItemOperator):
    """An item that passes with so many healthy looks at /health in a row; it holds no worker meanwhile."""

    def __init__(self, *, consecutive: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.consecutive = consecutive

    def execute(self, context: Context) -> Any:
        """Begin to look."""
        from payme_ops.orchestration import release

        if self.if_stale and release.still_holds(context, self.item):
            return None
        plan = release.plan_looks(context, self.item, self.consecutive)
        self.defer(
            trigger=HealthTrigger(**plan),
            method_name="looked",
            kwargs={"begun": plan["begun"]},
            timeout=patience(plan),
        )

    def looked(self, context: Context, event: Any, begun: str) -> Any:  # noqa: ARG002  # an event is only a hint
        """Decide by what is stored; fail, ask, or go on."""
        from payme_ops.orchestration import release

        release.conclude_looks(context, self.item, begun, self.consecutive)
        return ReleaseGate.execute(self, context)


class WatchItem(ItemOperator):
    """Watches the release. Fails after a breach; asks whether to keep it when the watch could not tell.

    Run again, it goes on with the watch that was begun: what was stored counts, and the end stays where it was.
    """

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(item="watch", **kwargs)

    def execute(self, context: Context) -> Any:
        """Begin, or go on."""
        from payme_ops.orchestration import release

        plan = release.plan_watch(context)
        self.defer(
            trigger=LooksTrigger(**plan),
            method_name="watched",
            timeout=patience(plan),
        )

    def watched(self, context: Context, event: Any) -> Any:  # noqa: ARG002  # an event is only a hint
        """Judge by what is stored; fail, ask, or go on."""
        from payme_ops.orchestration import release

        release.conclude_watch(context)
        return ReleaseGate.execute(self, context)
