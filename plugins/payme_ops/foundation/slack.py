"""Slack's Web API, as much of it as alerts need: send a message, find one that may have been sent, and see whether
both will do.

api.slack.com/methods: chat.postMessage, conversations.history, conversations.replies, auth.test; message metadata.
"""

import re
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
# What Slack refuses for ever of a message, and without what it takes it: plain words, or a new thread, are better than
# silence. A thread takes no replies any more when its first message was deleted, or when it is locked.
_THREAD = ("thread_ts", "reply_broadcast")
_WITHOUT = {
    "invalid_blocks": ("blocks",),
    "invalid_blocks_format": ("blocks",),
    "msg_blocks_too_long": ("blocks",),
    "invalid_metadata_format": ("metadata",),
    "invalid_metadata_schema": ("metadata",),
    "metadata_too_large": ("metadata",),
    "cannot_reply_to_message": _THREAD,
    "restricted_action_thread_locked": _THREAD,
}
# With these Slack may have done it all the same, as its documentation says.
_UNSURE = ("internal_error", "fatal_error")
_CODE = re.compile(r"[a-z0-9_]+")


class NotSent(Exception):
    """Slack did not answer, or refused. `maybe`: it may have done what it was asked for all the same.

    `away`: nothing else would fare better now. `wait`: seconds that it asks us to wait before anything else.
    """

    def __init__(self, why: str, *, maybe: bool = False, away: bool = False, wait: int = 0) -> None:
        self.maybe, self.away, self.wait = maybe, away, wait
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
                if (refused := _WITHOUT.get(str(error.response.get("error")))) is None:
                    raise
                rest = {name: value for name, value in arguments.items() if name not in refused}
                answer = self.client.chat_postMessage(**rest)
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


def scopes(client: "WebClient") -> set[str]:
    """What the token may do; Slack says it in a header of each answer. Raises NotSent."""
    client.retry_handlers = []
    with _asking():
        said = client.auth_test().headers
    found = next((value for name, value in said.items() if name.lower() == "x-oauth-scopes"), "")
    return {one.strip() for one in str(found).split(",") if one.strip()}


def read_one(client: "WebClient", channel_id: str) -> None:
    """Look into a channel, which only a member can. Raises NotSent."""
    client.retry_handlers = []
    with _asking():
        client.conversations_history(channel=channel_id, limit=1)


@contextmanager
def _asking() -> Iterator[None]:
    """Slack's errors as ours. Raises NotSent."""
    from slack_sdk.errors import SlackApiError

    try:
        yield
    except SlackApiError as error:
        status, code = error.response.status_code, str(error.response.get("error"))
        # What is no code of Slack's is no answer of Slack's: a proxy's page, or the beginning of an answer.
        unsure = status == 200 and (code in _UNSURE or not _CODE.fullmatch(code))
        asked = str(error.response.headers.get("Retry-After"))
        wait = int(asked) if status == 429 and asked.isascii() and asked.isdigit() else int(status == 429)
        said = scrub(f"status {status}, {code}")
        raise NotSent(said, maybe=status >= 500 or unsure, away=status >= 500, wait=wait) from None
    except Exception as error:  # an answer that breaks off is an error of http.client, one that is none of any kind
        # What never reached Slack was not taken; of a connection that broke nobody knows.
        unreached = isinstance(error, URLError) and isinstance(error.reason, ConnectionRefusedError | socket.gaierror)
        raise NotSent(scrub(f"{type(error).__name__}: {error}"), maybe=not unreached, away=True) from None


def _has(message: Mapping[str, Any], metadata: Mapping[str, Any]) -> bool:
    told = message.get("metadata") or {}
    found: dict[str, Any] = told.get("event_payload") or {}
    same = all(found.get(name) == value for name, value in metadata["event_payload"].items())
    return same and told.get("event_type") == metadata["event_type"]


def _place(message: Mapping[str, Any], channel_id: str) -> dict[str, str]:
    return {"ts": message["ts"], "thread_ts": message.get("thread_ts") or message["ts"], "channel_id": channel_id}
