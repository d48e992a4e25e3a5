"""The one Airflow plugin of payme-ops. It registers; what it registers lives in payme_ops.

Airflow runs every file under plugins/ that .airflowignore does not name, in every process: keep this one cheap.
"""

from typing import Any

from airflow.plugins_manager import AirflowPlugin


class PaymeOpsPlugin(AirflowPlugin):
    """Loaded in every Airflow process, also in each task's."""

    name = "payme_ops"

    @classmethod
    def on_load(cls, *_args: Any, **_kwargs: Any) -> None:
        """Events for Sentry are cleaned before they leave."""
        from payme_ops.orchestration import sentry

        sentry.install()
