"""A stand-in for Slack: posting, reading a channel or thread, auth.test and incoming webhooks in Slack's wire formats.

    python -m sandbox.slack --port 8090 --state .demo/slack.jsonl

`GET /` shows the messages as Slack would, threads under their parent; `GET /messages.json` gives them as they came.
Like Slack it answers 200 with `"ok": false` to a call it refuses, checks the limits of Block Kit, and posts a reply
whose parent is gone to the channel, which only shows in the answer (`message.thread_ts` is missing there). A channel is
posted to by name or id, and read by id only; metadata is shown to who asks for it. `POST /access {"scopes":
["chat:write"], "member": false}` says what the bot may do, and whether it is in the channels; {} makes all right again.
"""

import base64
import binascii
import hashlib
import html
import json
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs
from zoneinfo import ZoneInfo

from sandbox.mrkdwn import plain, plain_to_html, safe_link, to_html
from sandbox.standin import Answer, Journal, Record, Refused, Request, Server, main, page

BOT_NAME = "PayMe Ops"
_TEAM, _BOT_USER, _BOT, _APP = "T0PAYME", "U0PAYMEOPS", "B0PAYMEOPS", "A0PAYMEOPS"
_EAT = ZoneInfo("Africa/Nairobi")
_CHANNEL_ID = re.compile(r"[CG][A-Z0-9]{8,}")
_DEFAULT_PAGE, _MAX_PAGE = 100, 999
_WEBHOOK = re.compile(r"/services/[^/]+/[^/]+/[^/]+")
_FORM = "application/x-www-form-urlencoded"
SCOPES = ("chat:write", "channels:history")
_NEEDED = {
    "chat.postMessage": "chat:write",
    "conversations.history": "channels:history",
    "conversations.replies": "channels:history",
}
_JSON_ARGUMENTS = ("blocks", "attachments", "metadata")

MAX_TEXT = 40_000
MAX_BLOCKS = 50
_MAX_SECTION_TEXT, _MAX_FIELD_TEXT, _MAX_FIELDS = 3000, 2000, 10
_MAX_HEADER_TEXT, _MAX_BUTTON_TEXT, _MAX_URL = 150, 75, 3000
_MAX_CONTEXT_ELEMENTS, _MAX_ACTIONS = 10, 25


@dataclass
class Access:
    """What the bot may do, and whether it is a member of the channels that there are."""

    scopes: tuple[str, ...] = SCOPES
    member: bool = True

    def set(self, asked: Mapping[str, Any]) -> None:
        """Take what was asked for; what is not named is as it should be."""
        self.scopes, self.member = tuple(asked.get("scopes", SCOPES)), asked.get("member") is not False

    def check(self, method: str) -> None:
        """Raises _ApiError as Slack does."""
        needed = _NEEDED.get(method)
        if needed and needed not in self.scopes:
            raise _ApiError("missing_scope")
        if needed and not self.member:
            raise _ApiError("not_in_channel")


def make_server(port: int, state: Path) -> Server:
    """A server on 127.0.0.1 (port 0: any free one), not yet serving."""
    journal, access = Journal(state), Access()

    def route(request: Request) -> Answer:
        if request.method == "POST" and request.path == "/access":
            access.set(request.json())
            return Answer({"scopes": access.scopes, "member": access.member})
        return _route(journal, access, request)

    def is_api(path: str) -> bool:
        return path.startswith(("/api/", "/services/"))

    return Server(port, route, is_api, {"ok": False, "error": "internal_error"})


def _route(journal: Journal, access: Access, request: Request) -> Answer:
    match request.method, request.path:
        case "GET", "/":
            return page(f"Slack: {len(journal.records())} messages", _STYLE, _render(journal.records()))
        case "GET", "/messages.json":
            return Answer(journal.records())
        case "POST", "/api/chat.postMessage":
            return _api(access, request, lambda arguments: _post_message(journal, arguments))
        case "POST" | "GET", "/api/conversations.history":
            return _api(access, request, lambda arguments: _history(journal, arguments))
        case "POST" | "GET", "/api/conversations.replies":
            return _api(access, request, lambda arguments: _replies(journal, arguments))
        case "POST" | "GET", "/api/auth.test":
            return _api(
                access, request, lambda _: {"url": "https://payme.slack.com/", "team_id": _TEAM, "user_id": _BOT_USER}
            )
        case "POST", path if _WEBHOOK.fullmatch(path):
            return _webhook(journal, request)
        case _, path if path.startswith("/api/"):
            return Answer({"ok": False, "error": "unknown_method", "req_method": path.removeprefix("/api/")})
    raise Refused(404, {"error": f"nothing at {request.method} {request.path}"})


class _ApiError(Exception):
    def __init__(self, code: str, messages: list[str] | None = None) -> None:
        self.code, self.messages = code, messages
        super().__init__(code)


def _api(access: Access, request: Request, method: Callable[[Mapping[str, Any]], Mapping[str, Any]]) -> Answer:
    """One Web API call: errors are told in a body with status 200; a header says what the token may do."""
    headers = {"X-OAuth-Scopes": ",".join(access.scopes)}
    try:
        arguments = _arguments(request)
        _authorise(request, arguments)
        access.check(request.path.removeprefix("/api/"))
        return Answer({"ok": True, **method(arguments)}, headers=headers)
    except _ApiError as error:
        body: dict[str, object] = {"ok": False, "error": error.code}
        if error.messages:
            body |= {"errors": error.messages, "response_metadata": {"messages": error.messages}}
        return Answer(body, headers=headers)


def _arguments(request: Request) -> dict[str, Any]:
    if request.method == "GET":
        return dict(request.query)
    kind = request.headers.get("Content-Type", _FORM).partition(";")[0].strip()
    if kind == "application/json":
        try:
            arguments = request.json() if request.body else {}
        except ValueError:
            raise _ApiError("invalid_json") from None
        if not isinstance(arguments, dict):
            raise _ApiError("json_not_object")
        return arguments
    if kind != _FORM:
        raise _ApiError("invalid_post_type")
    form: dict[str, Any] = {}
    form |= _form(request.body)
    for name in _JSON_ARGUMENTS:
        if name in form:
            try:
                form[name] = json.loads(form[name])
            except ValueError:
                raise _ApiError(f"invalid_{name}_format") from None
    return form


def _form(body: bytes) -> dict[str, str]:
    return {name: values[-1] for name, values in parse_qs(body.decode(errors="replace")).items()}


def _authorise(request: Request, arguments: Mapping[str, Any]) -> None:
    token = request.headers.get("Authorization", "").removeprefix("Bearer ").strip() or arguments.get("token", "")
    if not token:
        raise _ApiError("not_authed")
    if not str(token).startswith(("xoxb-", "xoxp-")):
        raise _ApiError("invalid_auth")


def _post_message(journal: Journal, arguments: Mapping[str, Any]) -> dict[str, Any]:
    channel = str(arguments.get("channel") or "").removeprefix("#")
    if not channel:
        raise _ApiError("channel_not_found")
    record = _accept(journal, {**arguments, "channel": channel}, via="chat.postMessage")
    return {"channel": record["channel"], "ts": record["ts"], "message": _shown(record, metadata=True)}


def _shown(record: Record, *, metadata: bool) -> dict[str, Any]:
    """A message as the API shows it."""
    shown = {"type": "message", "user": _BOT_USER, "bot_id": _BOT, "app_id": _APP, "team": _TEAM}
    names = ("ts", "text", "blocks", "thread_ts", *(["metadata"] if metadata else []))
    shown |= {name: record[name] for name in names if name in record}
    return shown | ({"subtype": "thread_broadcast"} if record.get("reply_broadcast") else {})


def _history(journal: Journal, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """What a channel shows, the newest first: no replies, but those that were shown in it, too."""
    here = _in_channel(journal, arguments)
    shown = [record for record in here if "thread_ts" not in record or record["reply_broadcast"]]
    return _page(shown[::-1], arguments)


def _replies(journal: Journal, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """A thread, the oldest first, its first message in any case."""
    here, ts = _in_channel(journal, arguments), str(arguments.get("ts") or "")
    found = next((record for record in here if record["ts"] == ts), None)
    if found is None:
        raise _ApiError("thread_not_found")
    first = found.get("thread_ts", ts)
    return _page([record for record in here if first in (record["ts"], record.get("thread_ts"))], arguments, first)


def _in_channel(journal: Journal, arguments: Mapping[str, Any]) -> list[Record]:
    found = [record for record in journal.records() if record["channel"] == arguments.get("channel")]
    if not found:
        raise _ApiError("channel_not_found")  # also for a name
    return found


def _page(records: list[Record], arguments: Mapping[str, Any], always: str = "") -> dict[str, Any]:
    """The part that was asked for by time, and of it the page that was asked for by cursor and limit."""
    oldest, latest = str(arguments.get("oldest") or "0"), str(arguments.get("latest") or "9" * 12)
    try:
        limit = int(arguments.get("limit") or _DEFAULT_PAGE)
        since, until = float(oldest), float(latest)
        begin = int(base64.b64decode(str(arguments.get("cursor") or ""), validate=True).removeprefix(b"from:") or b"0")
    except binascii.Error:
        raise _ApiError("invalid_cursor") from None
    except ValueError:
        raise _ApiError("invalid_arguments") from None
    if not 1 <= limit <= _MAX_PAGE:
        raise _ApiError("invalid_limit")
    asked = [record for record in records if record["ts"] == always or since < float(record["ts"]) < until]
    more = begin + limit < len(asked)
    cursor = base64.b64encode(f"from:{begin + limit}".encode()).decode() if more else ""
    with_metadata = str(arguments.get("include_all_metadata")).lower() in ("true", "1")
    return {
        "messages": [_shown(record, metadata=with_metadata) for record in asked[begin : begin + limit]],
        "has_more": more,
        "response_metadata": {"next_cursor": cursor},
    }


def _webhook(journal: Journal, request: Request) -> Answer:
    """An incoming webhook answers in plain text: `ok`, or the error with status 400."""
    text = request.body.decode(errors="replace")
    if request.headers.get("Content-Type", "").startswith(_FORM):
        text = _form(request.body).get("payload", "")
    try:
        payload = json.loads(text)
    except ValueError:
        payload = None
    if not isinstance(payload, dict):
        return Answer("invalid_payload", 400)
    try:
        _accept(journal, {"channel": "payme-ops", **payload}, via="webhook")
    except _ApiError as error:
        return Answer(error.code, 400)
    return Answer("ok")


def _accept(journal: Journal, arguments: Mapping[str, Any], via: str) -> Record:
    """Check a message and keep it. Raises _ApiError."""
    text, blocks = arguments.get("text") or "", arguments.get("blocks") or []
    if not text and not blocks and not arguments.get("attachments"):
        raise _ApiError("no_text")
    if len(text) > MAX_TEXT:
        raise _ApiError("msg_too_long")
    if faults := block_faults(blocks):
        raise _ApiError("invalid_blocks", [f"[ERROR] {fault}" for fault in faults])
    metadata = arguments.get("metadata")
    if metadata is not None and not (isinstance(metadata, dict) and {"event_type", "event_payload"} <= set(metadata)):
        raise _ApiError("invalid_metadata_format")

    def make() -> Record:
        records = journal.records()
        channel = _channel_id(arguments["channel"], records)
        record: Record = {
            "ts": _new_ts(records),
            "received": datetime.now(UTC).isoformat(),
            "via": via,
            "channel": channel,
            "channel_name": next((r["channel_name"] for r in records if r["channel"] == channel), arguments["channel"]),
            "text": text,
        }
        record |= {name: arguments[name] for name in _JSON_ARGUMENTS if arguments.get(name)}
        parent = str(arguments.get("thread_ts") or "")
        if any(r["channel"] == channel and parent in (r["ts"], r.get("thread_ts")) for r in records):
            record["thread_ts"] = parent
            record["reply_broadcast"] = arguments.get("reply_broadcast") in (True, "true", "1")
        return record

    return journal.append(make)


def _channel_id(channel: str, records: list[Record]) -> str:
    if _CHANNEL_ID.fullmatch(channel) or any(record["channel"] == channel for record in records):
        return channel
    return "C0" + hashlib.sha256(channel.encode()).hexdigest()[:9].upper()


def _new_ts(records: list[Record]) -> str:
    """Slack's message id: seconds and a six-digit number, growing."""
    now = f"{time.time():.6f}"
    if records and now <= records[-1]["ts"]:
        seconds, _, fraction = records[-1]["ts"].partition(".")
        now = f"{seconds}.{int(fraction) + 1:06d}"
    return now


# -- the limits of Block Kit ------------------------------------------------------------------------------------


def block_faults(blocks: object) -> list[str]:
    """What Slack would refuse, each with the JSON pointer to it; empty when all is well."""
    if not isinstance(blocks, list):
        return ["blocks must be an array [json-pointer:/blocks]"]
    faults = [f"no more than {MAX_BLOCKS} items allowed [json-pointer:/blocks]"] if len(blocks) > MAX_BLOCKS else []
    for index, block in enumerate(blocks):
        check = _CHECKS.get(block.get("type", "")) if isinstance(block, dict) else None
        found = [("/type", "unsupported type")] if check is None else check(block)
        faults += [f"{fault} [json-pointer:/blocks/{index}{place}]" for place, fault in found]
    return faults


_Faults = list[tuple[str, str]]


def _text_faults(place: str, text: object, limit: int, kinds: tuple[str, ...] = ("plain_text", "mrkdwn")) -> _Faults:
    if not isinstance(text, dict) or text.get("type") not in kinds:
        return [(place, f"must be a {' or '.join(kinds)} object")]
    value = text.get("text")
    if not isinstance(value, str) or not value:
        return [(f"{place}/text", "must be more than 0 characters")]
    return [(f"{place}/text", f"must be less than {limit + 1} characters")] if len(value) > limit else []


def _section_faults(block: Mapping[str, Any]) -> _Faults:
    faults: _Faults = []
    if "text" in block:
        faults += _text_faults("/text", block["text"], _MAX_SECTION_TEXT)
    fields = block.get("fields", [])
    if "text" not in block and not fields:
        faults.append(("", "missing required field: text or fields"))
    if len(fields) > _MAX_FIELDS:
        faults.append(("/fields", f"no more than {_MAX_FIELDS} items allowed"))
    for index, field in enumerate(fields):
        faults += _text_faults(f"/fields/{index}", field, _MAX_FIELD_TEXT)
    return faults


def _context_faults(block: Mapping[str, Any]) -> _Faults:
    elements = block.get("elements") or []
    if not 1 <= len(elements) <= _MAX_CONTEXT_ELEMENTS:
        return [("/elements", f"must have 1 to {_MAX_CONTEXT_ELEMENTS} items")]
    return [
        fault
        for index, element in enumerate(elements)
        for fault in _text_faults(f"/elements/{index}", element, _MAX_SECTION_TEXT)
    ]


def _actions_faults(block: Mapping[str, Any]) -> _Faults:
    elements = block.get("elements") or []
    if not 1 <= len(elements) <= _MAX_ACTIONS:
        return [("/elements", f"must have 1 to {_MAX_ACTIONS} items")]
    faults: _Faults = []
    for index, element in enumerate(elements):
        place = f"/elements/{index}"
        if not isinstance(element, dict) or element.get("type") != "button":
            faults.append((place, "the stand-in knows buttons only"))
            continue
        faults += _text_faults(f"{place}/text", element.get("text"), _MAX_BUTTON_TEXT, ("plain_text",))
        if len(element.get("url", "")) > _MAX_URL:
            faults.append((f"{place}/url", f"must be less than {_MAX_URL + 1} characters"))
    return faults


def _header_faults(block: Mapping[str, Any]) -> _Faults:
    return _text_faults("/text", block.get("text"), _MAX_HEADER_TEXT, ("plain_text",))


def _no_faults(_block: Mapping[str, Any]) -> _Faults:
    return []


_CHECKS: Mapping[str, Callable[[Mapping[str, Any]], _Faults]] = {
    "header": _header_faults,
    "section": _section_faults,
    "context": _context_faults,
    "actions": _actions_faults,
    "divider": _no_faults,
}


# -- the page ---------------------------------------------------------------------------------------------------


def _render(records: list[Record]) -> str:
    channels = sorted({record["channel_name"] for record in records}) or ["payme-ops"]
    side = "".join(f'<li><a href="#{html.escape(name)}"># {html.escape(name)}</a></li>' for name in channels)
    main_part = "".join(_channel(name, [r for r in records if r["channel_name"] == name]) for name in channels)
    return (
        f'<nav><h1>PayMe</h1><p class="where">sandbox workspace</p><h2>Channels</h2><ul>{side}</ul>'
        '<p class="note">Stand-in for Slack. Nothing here left this machine.</p></nav>'
        f"<main>{main_part}</main>"
    )


def _channel(name: str, records: list[Record]) -> str:
    parents = [record for record in records if "thread_ts" not in record]
    replies: dict[str, list[Record]] = {}
    for record in records:
        if "thread_ts" in record:
            replies.setdefault(record["thread_ts"], []).append(record)
    shown = "".join(_thread(parent, replies.get(parent["ts"], [])) for parent in parents)
    empty = '<p class="empty">No messages yet.</p>'
    # The list is laid out from its end, so that a browser shows the newest message first without a script.
    return (
        f'<section class="channel" id="{html.escape(name)}"><header># {html.escape(name)}</header>'
        f'<div class="scroll"><div class="messages">{shown or empty}</div></div></section>'
    )


def _thread(parent: Record, replies: list[Record]) -> str:
    thread = ""
    if replies:
        count = f"{len(replies)} {'reply' if len(replies) == 1 else 'replies'}"
        inner = "".join(_message(reply, small=True) for reply in replies)
        thread = f'<div class="thread"><p class="count">{count}</p>{inner}</div>'
    return f'<article>{_message(parent)}{thread}</article><hr class="between">'


def _message(record: Record, *, small: bool = False) -> str:
    sent = datetime.fromtimestamp(float(record["ts"]), _EAT)
    broadcast = '<p class="also">also sent to the channel</p>' if record.get("reply_broadcast") else ""
    blocks = record.get("blocks")
    body = (
        "".join(_block(block) for block in blocks) if blocks else f'<div class="text">{to_html(record["text"])}</div>'
    )
    return (
        f'<div class="message{" small" if small else ""}"><div class="avatar">P</div><div class="body">'
        f'<p class="who"><b>{BOT_NAME}</b> <span class="app">APP</span>'
        f' <time title="ts {html.escape(record["ts"])}">{sent:%a %d %b %H:%M:%S} EAT</time></p>'
        f"{broadcast}{body}</div></div>"
    )


def _block(block: Mapping[str, Any]) -> str:
    match block.get("type"):
        case "header":
            return f"<h3>{plain_to_html(block['text']['text'])}</h3>"
        case "divider":
            return "<hr>"
        case "context":
            return f'<div class="context">{"".join(f"<span>{_text(e)}</span>" for e in block["elements"])}</div>'
        case "actions":
            return f'<div class="actions">{"".join(_button(element) for element in block["elements"])}</div>'
        case _:
            text = f'<div class="text">{_text(block["text"])}</div>' if "text" in block else ""
            fields = "".join(f"<div>{_text(field)}</div>" for field in block.get("fields", []))
            return text + (f'<div class="fields">{fields}</div>' if fields else "")


def _text(text: Mapping[str, Any]) -> str:
    return to_html(text["text"]) if text["type"] == "mrkdwn" else plain_to_html(text["text"])


def _button(element: Mapping[str, Any]) -> str:
    label = plain_to_html(element["text"]["text"])
    style = {"primary": " primary", "danger": " danger"}.get(element.get("style", ""), "")
    url = safe_link(plain(element.get("url", "")))
    if url is None:
        return f'<span class="button{style}">{label}</span>'
    return f'<a class="button{style}" href="{html.escape(url)}" rel="noreferrer">{label}</a>'


_STYLE = """
*{box-sizing:border-box}body{margin:0;height:100vh;display:grid;grid-template-columns:230px 1fr;
font:15px/1.47 Lato,"Segoe UI",Roboto,"Helvetica Neue",Arial,sans-serif;color:#1d1c1d;background:#fff}
nav{background:#3f0e40;color:#cfc3cf;padding:16px;display:flex;flex-direction:column}
nav h1{color:#fff;font-size:18px;margin:0}nav .where{margin:0 0 18px;font-size:13px}
nav h2{font-size:14px;font-weight:400;margin:0 0 6px}nav ul{list-style:none;margin:0 -8px;padding:0}
nav li a{display:block;padding:3px 8px;border-radius:6px;background:#1164a3;color:#fff;text-decoration:none}
nav li+li a{background:none;color:#cfc3cf}nav .note{margin-top:auto;font-size:12px}
main{height:100vh;display:flex;flex-direction:column;min-width:0}
.channel{flex:1;min-height:0;display:flex;flex-direction:column}
.channel>header{font-weight:900;font-size:18px;padding:12px 20px;border-bottom:1px solid #ddd}
.scroll{flex:1;min-height:0;overflow-y:auto;display:flex;flex-direction:column-reverse}
.messages{padding:12px 20px 20px}.empty{color:#616061}
.message{display:grid;grid-template-columns:36px 1fr;gap:8px;padding:8px 0}
.avatar{width:36px;height:36px;border-radius:6px;background:#0b6e4f;color:#fff;font-weight:700;display:grid;
place-items:center}.small{grid-template-columns:24px 1fr}
.small .avatar{width:24px;height:24px;font-size:13px;border-radius:4px}
.body{min-width:0;max-width:640px}.who{margin:0}.app{background:#e8e8e8;color:#616061;font-size:10px;font-weight:700;
padding:1px 3px;border-radius:2px;vertical-align:2px}time{color:#616061;font-size:12px}
.also{margin:0;color:#616061;font-size:13px}
h3{font-size:18px;font-weight:900;margin:6px 0 4px;overflow-wrap:anywhere}
.text,.fields>div{overflow-wrap:anywhere}.text{margin:4px 0}
.fields{display:grid;grid-template-columns:1fr 1fr;gap:8px 16px;margin:8px 0}
.context{display:flex;flex-wrap:wrap;gap:4px 10px;color:#616061;font-size:13px;margin:8px 0 2px;overflow-wrap:anywhere}
pre{background:#f8f8f8;border:1px solid #ddd;border-radius:4px;padding:8px;margin:4px 0;font:12px/1.5 Menlo,Consolas,
"DejaVu Sans Mono",monospace;white-space:pre-wrap;overflow-wrap:anywhere}
code{background:#f8f8f8;border:1px solid #ddd;border-radius:3px;padding:1px 3px;color:#c01343;
font:12px Menlo,Consolas,"DejaVu Sans Mono",monospace}
blockquote{margin:4px 0;padding-left:12px;border-left:4px solid #ddd}a{color:#1264a3;text-decoration:none}
a:hover{text-decoration:underline}.mention{background:#fef6d9;color:#1264a3;border-radius:3px;padding:0 2px}
.actions{display:flex;flex-wrap:wrap;gap:8px;margin:8px 0}
.button{border:1px solid #bbb;border-radius:4px;padding:4px 12px;font-weight:700;font-size:13px;color:#1d1c1d;
background:#fff}.primary{background:#007a5a;border-color:#007a5a;color:#fff}.danger{color:#e01e5a;border-color:#e01e5a}
.dot{display:inline-block;width:.8em;height:.8em;border-radius:50%;background:#e01e5a}
.large_orange_circle{background:#f2711c}.large_yellow_circle{background:#ecb22e}
.large_green_circle{background:#2eb67d}.large_blue_circle{background:#36c5f0}
hr{border:0;border-top:1px solid #ddd;margin:12px 0}.between{border-top-color:#f0f0f0;margin:8px 0}
.thread{margin-left:44px;padding-left:12px;border-left:3px solid #e8e8e8}.count{margin:4px 0;color:#1264a3;
font-weight:700;font-size:13px}
"""


if __name__ == "__main__":
    main("slack", make_server)
