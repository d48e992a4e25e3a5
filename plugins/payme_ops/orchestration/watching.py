"""A release's environment is looked at for a time, without a worker: what is usual before, and the watch after."""

from typing import Any

from airflow.sdk import BaseOperator, Context

from payme_ops.orchestration.triggers import RepeatedLook, patience


class BaselineOperator(BaseOperator):
    """What is usual: looks at the release's environment, unless enough of the last day are stored."""

    def execute(self, context: Context) -> None:
        """Look, if there is too little."""
        from payme_ops.orchestration import release

        plan = release.plan_baseline(context)
        if plan is not None:
            self.defer(trigger=LooksTrigger(**plan), method_name="resume", timeout=patience(plan))

    def resume(self, context: Context, event: Any) -> None:
        """Enough or not: the watch says so."""


class LooksTrigger(RepeatedLook):
    """Takes a look at a time until the end, or a breach."""

    function = "watch_once"
