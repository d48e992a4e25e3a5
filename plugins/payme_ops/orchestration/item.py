"""One item of a release's checklist as one task: measure, keep the evidence, ask a person where no machine can tell.

A failed item fails its task; what could not be measured parks it until another person than the requester answers.
Evidence and approvals are filed under the release, so the three DAGs share them.
"""

import logging
from datetime import timedelta
from typing import Any

from airflow.sdk import Context

from payme_ops.orchestration.approval import ApprovalGate
from payme_ops.release.checklist import ITEMS

_log = logging.getLogger("payme_ops.release")


class ItemOperator(ApprovalGate):
    """The item of that name. With `if_stale` it measures only what is too old or did not pass, for the go/no-go."""

    def __init__(self, *, item: str, if_stale: bool = False, **kwargs: Any) -> None:
        spec = ITEMS[item]
        options = {"task_id": item, "task_display_name": spec.title, **kwargs}
        super().__init__(
            evidence_item=item, subject=spec.ask or spec.title, response_timeout=timedelta(hours=4), **options
        )
        self.item, self.if_stale = item, if_stale

    def execute(self, context: Context) -> Any:
        """Measure; fail, ask, or go on."""
        from payme_ops.orchestration import release

        if not release.measure(context, self.item, if_stale=self.if_stale):
            return None
        self.response_timeout = release.patience()
        return super().execute(context)

    def _run(self, context: Context) -> str:
        from payme_ops.orchestration import release

        return release.of(context).run

    def _requester(self, context: Context) -> str:
        from payme_ops.orchestration import release

        return release.of(context).requester


class ReleaseGate(ApprovalGate):
    """A decision of people on evidence that another task of the release has kept."""

    _run, _requester = ItemOperator._run, ItemOperator._requester
