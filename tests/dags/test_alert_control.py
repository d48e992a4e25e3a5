"""alert_control, the form, and `python -m payme_ops alert`, the shell: who says it, and what is refused."""

import json
import sys
from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import psycopg
import pytest

from payme_ops import cli
from payme_ops.cli import alerts, doors
from payme_ops.foundation import alert, silences
from payme_ops.foundation.errors import NotFound, SettingsError
from payme_ops.orchestration import alert_control
from sandbox import postgres
from tests.integration.test_alert import ALERT
from tests.support.standins import StandIn

Say = Callable[..., None]
REASON = "new disks in staging"


@pytest.fixture
def say(slack: StandIn, alert_ops: postgres.Cluster, dag_bag: Any, monkeypatch: pytest.MonkeyPatch) -> Say:
    """Send the form, as `wanjiru`; an alert is open."""
    alert.raise_alert(alert_ops.conninfo(), ALERT, replace(slack.client(), channel="night-watch"))
    form = {name: dag_bag.dags["alert_control"].params[name] for name in ("word", "key", "reason", "minutes")}

    def run(word: str, by: str | None = "wanjiru", **fields: Any) -> None:
        params = {**form, "word": word, **fields}
        context = {"params": params, "dag_run": SimpleNamespace(triggering_user_name=by)}
        monkeypatch.setattr(alert_control, "get_current_context", lambda: context)
        alert_control.say()

    return run


@pytest.fixture
def shell(
    slack: StandIn,
    alert_ops: postgres.Cluster,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> Callable[..., tuple[int, str]]:
    """`python -m payme_ops alert …`: exit code, and what it printed."""
    assert slack.messages == []
    monkeypatch.setattr(doors, "OPS", alert_ops.conninfo())
    for console in (doors.out, doors.err):
        monkeypatch.setattr(console, "_width", 200)

    def run(*arguments: str) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["payme-ops", "alert", *arguments])
        capsys.readouterr()
        try:
            cli.main()
            code = 0
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else 0
        printed = capsys.readouterr()
        return code, printed.out + printed.err

    return run


def test_the_form_acknowledges_in_the_name_of_who_triggered_it(say: Say, slack: StandIn) -> None:
    say("acknowledge", key=ALERT.key, reason="I restart it")
    first, seen = slack.messages
    assert seen["thread_ts"] == first["ts"]
    assert "Seen by wanjiru" in seen["blocks"][0]["text"]["text"]


def test_the_form_silences_and_ends_it(say: Say, slack: StandIn, alert_ops: postgres.Cluster) -> None:
    say("silence", key="health:*", reason=REASON, minutes=240)
    [held] = silences.active(alert_ops.conninfo())
    assert (held.key, held.reason, held.by) == ("health:*", REASON, "wanjiru")
    say("end silence", by="otieno", key="health:*")
    assert silences.active(alert_ops.conninfo()) == []
    assert "Ended by otieno" in slack.messages[-1]["blocks"][1]["text"]["text"]


def test_the_form_as_it_opens_only_looks(say: Say, slack: StandIn, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    say("list", by=None)
    assert f"open: critical {ALERT.key}" in caplog.text
    assert len(slack.messages) == 1


@pytest.mark.parametrize(
    ("fields", "error"),
    [
        ({"word": "acknowledge", "key": ""}, "names no alert"),
        ({"word": "acknowledge", "key": ALERT.key, "by": None}, "nobody says this"),
        ({"word": "silence", "key": "health:*"}, "wants a reason"),
        ({"word": "silence", "key": "health:*", "reason": "short"}, "wants a reason"),
        ({"word": "silence", "key": "health:*", "reason": REASON, "minutes": 241}, "has an end"),
        ({"word": "silence", "key": "silent:daily_age", "reason": REASON}, "never silent"),
        ({"word": "silence", "key": "*", "reason": REASON}, "never silent"),
    ],
)
def test_the_form_refuses_before_anything_is_written(
    say: Say,
    alert_ops: postgres.Cluster,
    fields: dict[str, Any],
    error: str,
) -> None:
    with pytest.raises(SettingsError, match=error):
        say(**fields)
    with psycopg.connect(alert_ops.conninfo()) as session:
        written = "SELECT (SELECT count(*) FROM ops.alerts), (SELECT count(*) FROM ops.alert_silences)"
        assert session.execute(written).fetchone() == (1, 0)


def test_the_form_refuses_what_is_not_there(say: Say) -> None:
    with pytest.raises(NotFound, match="no alert health:production is open"):
        say("acknowledge", key="health:production")
    with pytest.raises(NotFound, match="no silence of health:production"):
        say("end silence", key="health:production")


def test_the_shell_lists_acknowledges_and_silences_as_the_os_user(
    shell: Callable[..., tuple[int, str]],
    alert_ops: postgres.Cluster,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert shell("list") == (0, "No alert is open.\n")
    alert.raise_alert(alert_ops.conninfo(), ALERT, None)
    monkeypatch.setenv("USER", "somebody else")
    me = alerts.os_user()
    assert me != "somebody else"
    code, printed = shell("list")
    assert code == 0
    assert ALERT.key in printed
    assert "nobody" in printed
    assert f"Slack has not taken: {ALERT.key}" in printed
    assert shell("ack", ALERT.key, "--why", "I restart it")[1].startswith(f"Seen by {me}: {ALERT.what}")
    assert shell("silence", "health:*", "--reason", REASON, "--minutes", "30")[0] == 0
    told = json.loads(shell("list", "--json")[1])
    assert [one["by"] for one in told["silences"]] == [me]
    assert shell("silence", "health:*", "--end")[1].startswith("No longer silenced: health:*")


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (("ack", "health:production"), "no alert health:production is open"),
        (("silence", "silent:d*", "--reason", REASON), "would cover what is never silent"),
        (("silence", "health:*"), "wants a reason"),
        (("silence", "health:*", "--reason", REASON, "--minutes", "241"), "within 4 h from now"),
        (("silence", "health:*", "--reason", REASON, "--end"), "ends without a reason"),
    ],
)
def test_the_shell_refuses(shell: Callable[..., tuple[int, str]], arguments: tuple[str, ...], error: str) -> None:
    code, printed = shell(*arguments)
    assert code == 1
    assert error in printed
