"""The watchdog's tokens: changed ones count without a restart, and what cannot be read takes none away."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from slack_sdk import WebClient

from payme_ops.cli import watchdog
from payme_ops.foundation.errors import SettingsError
from payme_ops.foundation.payme_api import PaymeApi
from payme_ops.foundation.slack import Slack


def test_changed_tokens_count_and_unreadable_ones_leave_the_former(tmp_path: Path) -> None:
    files = {name: tmp_path / name for name in ("slack", "api", "staging")}
    config: Any = SimpleNamespace(
        slack=SimpleNamespace(token_file=files["slack"]),
        watchdog=SimpleNamespace(
            api_url="https://api.payme.test",
            api_token_file=files["api"],
            staging_api_url="https://staging.payme.test",
            staging_api_token_file=files["staging"],
        ),
    )
    slack = Slack(WebClient("xoxb-at-the-start"), "payme-ops")
    apis: dict[str, PaymeApi] = {}

    def tokens() -> list[str | None]:
        return [slack.client.token, *(apis[name].token for name in ("production", "staging"))]

    for turn in ("first", "second"):
        for name, file in files.items():
            file.write_text(f"{name}-token-{turn}\n")
        watchdog.renew_tokens(slack, apis, config)
        assert tokens() == [f"{name}-token-{turn}" for name in files]
    files["staging"].unlink()
    with pytest.raises(SettingsError, match="STAGING_API_TOKEN_FILE"):
        watchdog.renew_tokens(slack, apis, config)
    assert tokens() == [f"{name}-token-second" for name in files]
