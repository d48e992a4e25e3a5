"""Slack's Web API, as much of it as alerts need: send a message, and find one that may have been sent.

api.slack.com/methods: chat.postMessage, conversations.history, conversations.replies; message metadata.
"""

import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any
from urllib.error import URLError

from payme_ops.foundation.scrub import scrub

if TYPE_CHECKING:
    from slack_sdk import WebClient

# Slack's clock and the ops database's may differ by this.
_SKEW = timedelta(minutes=5)
# A page as Slack recommends it. More messages since the attempt than these are not looked through.
_PAGE, _MAX_PAGES = 200, 5


class NotSent(Exception):
    """Slack did not answer, or refused. `maybe`: it may have done what it was asked for all the same."""

    def __init__(self, why: str, *, maybe: bool = False) -> None:
        self.maybe = maybe
        super().__init__(why)


@dataclass(frozen=True)
class Slack:
    """Where alerts go: a client with its token, and the name or id of a channel."""

    client: "WebClient" = field(repr=False)
    channel: str

    def __post_init__(self) -> None:
        # The SDK would send a message again whose answer was lost. Here it is looked for first.
        self.client.retry_handlers = []

    def post(self, arguments: Mapping[str, Any]) -> dict[str, str]:
        """One message; answers its `ts`, the `thread_ts` it is in and the `channel_id`. Raises NotSent."""
        from slack_sdk.errors import SlackApiError

        arguments = {"channel": self.channel, **arguments}
        with _asking():
            try:
                answer = self.client.chat_postMessage(**arguments)
            except SlackApiError as error:
                # Slack's limits have changed: plain words are better than silence.
                gone = {
                    "invalid_blocks": "blocks",
                    "invalid_blocks_format": "blocks",
                    "invalid_metadata_format": "metadata",
                }
                if (refused := gone.get(str(error.response.get("error")))) is None:
                    raise
                plain = {name: value for name, value in arguments.items() if name != refused}
                answer = self.client.chat_postMessage(**plain)
        # A reply whose first message was deleted goes to the channel, which only shows here. It begins the new thread.
        message = answer.get("message") or {}
        return _place({**message, "ts": answer["ts"]}, str(answer.get("channel") or ""))

    def find(self, channel_id: str, metadata: Mapping[str, Any], since: datetime, thread: str) -> dict[str, str] | None:
        """Where the message is with that metadata (its event's other fields may be any), sent since then, into that
        thread where one is named; None when it is not there. Raises NotSent.
        """
        page: dict[str, Any] = {"channel": channel_id, "include_all_metadata": True, "limit": _PAGE}
        page["oldest"] = f"{(since - _SKEW).timestamp():.6f}"
        for _ in range(_MAX_PAGES):
            with _asking():
                if thread:
                    answer = self.client.conversations_replies(ts=thread, **page)
                else:
                    answer = self.client.conversations_history(**page)
            for message in answer.get("messages") or []:
                if _has(message, metadata):
                    return _place(message, channel_id)
            page["cursor"] = (answer.get("response_metadata") or {}).get("next_cursor") or ""
            if not page["cursor"]:
                return None
        raise NotSent(f"more than {_PAGE * _MAX_PAGES} messages have come since")


@contextmanager
def _asking() -> Iterator[None]:
    """Slack's errors as ours. Raises NotSent."""
    from slack_sdk.errors import SlackApiError, SlackClientError

    try:
        yield
    except SlackApiError as error:
        status = error.response.status_code
        raise NotSent(f"status {status}, {error.response.get('error')}", maybe=status >= 500) from None
    except (SlackClientError, OSError) as error:
        # What never reached Slack was not taken; of a connection that broke nobody knows.
        unreached = isinstance(error, URLError) and isinstance(error.reason, ConnectionRefusedError | socket.gaierror)
        raise NotSent(scrub(f"{type(error).__name__}: {error}"), maybe=not unreached) from None


def _has(message: Mapping[str, Any], metadata: Mapping[str, Any]) -> bool:
    told = message.get("metadata") or {}
    found: dict[str, Any] = told.get("event_payload") or {}
    same = all(found.get(name) == value for name, value in metadata["event_payload"].items())
    return same and told.get("event_type") == metadata["event_type"]


def _place(message: Mapping[str, Any], channel_id: str) -> dict[str, str]:
    return {"ts": message["ts"], "thread_ts": message.get("thread_ts") or message["ts"], "channel_id": channel_id}
