"""Whether alerts can reach people: Slack knows the token, it may do what alerts need, the bot is in the channel."""

from collections.abc import Callable
from typing import TYPE_CHECKING

from payme_ops.foundation import slack
from payme_ops.foundation.evidence import Check, Finding, Verdict, failed, passed

if TYPE_CHECKING:
    from slack_sdk import WebClient

_WRITE, _READ = "chat:write", ("channels:history", "groups:history")


def checks(
    client: "Callable[[], WebClient]", channel: str, channel_id: Callable[[], str | None]
) -> tuple[Check, Check]:
    """The token, then where it may go; the second hangs on the first.

    `channel` is the setting; `channel_id` answers its id, None where it is not known.
    """
    known = f"known to Slack, with {_WRITE} and {' or '.join(_READ)}"
    return (
        Check("slack_token", known, "Slack", lambda: _token(client())),
        Check("slack_channel", "the bot is in it", "Slack", lambda: _channel(client(), channel, channel_id())),
    )


def _token(client: "WebClient") -> Finding:
    try:
        scopes = slack.scopes(client)
    except slack.NotSent as error:
        return _refused(error, "put a bot token that counts into PAYME_OPS__SLACK__TOKEN_FILE and payme_slack")
    missing = [] if _WRITE in scopes else [_WRITE]
    missing += [] if scopes & {*_READ} else [" or ".join(_READ)]
    if missing:
        return failed({"missing": missing}, "give the app these scopes in Slack and install it again")
    return passed({"scopes": sorted(scopes & {_WRITE, *_READ})})


def _channel(client: "WebClient", channel: str, channel_id: str | None) -> Finding:
    if channel_id is None:
        remedy = "set PAYME_OPS__SLACK__CHANNEL to the channel's id; a name is known once something was sent there"
        return Finding(Verdict.INCONCLUSIVE, {"id": "not known"}, remedy)
    try:
        slack.read_one(client, channel_id)
    except slack.NotSent as error:
        return _refused(error, f"invite the bot into {channel}, or correct PAYME_OPS__SLACK__CHANNEL")
    return passed({"bot": "in it"})


def _refused(error: slack.NotSent, remedy: str) -> Finding:
    if error.away or error.wait or error.maybe:
        return Finding(Verdict.INCONCLUSIVE, {"Slack": str(error)}, "see whether Slack can be reached from here")
    return failed({"Slack": str(error)}, remedy)
