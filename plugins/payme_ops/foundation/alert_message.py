"""An alert as a message in Slack's Block Kit: what whoever is woken reads first."""

from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from payme_ops.foundation.clock import show

if TYPE_CHECKING:
    from payme_ops.foundation.alert import Alert

# Characters. The first five are limits of Slack's Block Kit, or stay below them.
_MAX_HEADER, _MAX_SECTION, _MAX_FIELD, _MAX_CONTEXT, _MAX_URL = 150, 2900, 1900, 2000, 1000
_MAX_NOTIFICATION = 600
_SIGN = {
    "critical": ":red_circle:",
    "warning": ":large_orange_circle:",
    "info": ":large_blue_circle:",
}


def message_of(alert: "Alert", *notes: str, notice: bool = False) -> dict[str, Any]:
    """The message of an alert, for chat.postMessage."""
    return {
        "text": notification(alert),
        "blocks": _notice_blocks(alert) if notice else blocks(alert, *notes),
        "metadata": of_alert(alert.key, alert.occurrence, severity=alert.severity),
        "unfurl_links": False,  # Slack would fetch the links
        "unfurl_media": False,
    }


def of_alert(key: str, occurrence: str, **more: str) -> dict[str, Any]:
    """The message's metadata, by which a later sender finds out whether it went out."""
    return {"event_type": "payme_ops_alert", "event_payload": {"key": key, "occurrence": occurrence, **more}}


def notification(alert: "Alert") -> str:
    """The text of the phone's notification, and of clients that show no blocks."""
    first_line = alert.why.strip().partition("\n")[0]
    return _fit(f"{alert.what}: {first_line}" if first_line else alert.what, _MAX_NOTIFICATION)


def blocks(alert: "Alert", *notes: str) -> list[dict[str, Any]]:
    """The message in Slack's Block Kit. Every text is cut to Slack's limits and escaped where Slack formats it."""
    header = f"{_SIGN[alert.severity]} {alert.what.strip() or alert.key}"
    # A backtick in the error could end the code block, and the rest would be formatted.
    code = _fit(alert.why.strip().replace("`", "'") or "no reason was given", _MAX_SECTION)
    facts = (("Since", show(alert.since)), ("Who to call", alert.owner))
    links = [_link(alert.link, "Open the run"), _link(alert.runbook, "Runbook")]
    context = [f"{alert.severity} · {alert.key} · {alert.occurrence}", *filter(None, notes)]
    built: list[dict[str, Any]] = [
        {"type": "header", "text": {"type": "plain_text", "text": _cut(header, _MAX_HEADER), "emoji": True}},
        _section(f"```{code}```"),
        {"type": "section", "fields": [_mrkdwn(f"*{name}*\n{_fit(text, _MAX_FIELD)}") for name, text in facts]},
        _section(f"*What to do*\n{_fit(alert.next, _MAX_SECTION)}"),
    ]
    if any(links):
        built.append(_section(" · ".join(link for link in links if link)))
    return [*built, {"type": "context", "elements": [_mrkdwn(_fit(text, _MAX_CONTEXT)) for text in context]}]


def _notice_blocks(alert: "Alert") -> list[dict[str, Any]]:
    """Who has seen an alert: one line, which must not look like an alert."""
    why = f": {_fit(alert.why, _MAX_SECTION // 2)}" if alert.why else ""
    return [
        _section(f"*{_fit(alert.what, _MAX_SECTION // 2)}*{why}"),
        {
            "type": "context",
            "elements": [_mrkdwn(_fit(f"Nobody is reminded of it any more · {alert.key}", _MAX_CONTEXT))],
        },
    ]


def _section(text: str) -> dict[str, Any]:
    return {"type": "section", "text": _mrkdwn(text)}


def _mrkdwn(text: str) -> dict[str, Any]:
    # verbatim: Slack makes no links, channels or mentions out of what only looks like them.
    return {"type": "mrkdwn", "text": text, "verbatim": True}


def _link(url: str, label: str) -> str:
    """A link, or nothing when the URL is none that may be shown as one."""
    url = quote(url, safe="%/:?#[]@!$&'()*+,;=")
    if not url.startswith(("http://", "https://")) or len(url) > _MAX_URL:
        return ""
    return f"<{_escape(url)}|{label}>"


def _escape(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def _fit(text: str, limit: int) -> str:
    """Escaped, and no longer than `limit` when escaped."""
    escaped = _escape(text)
    while len(escaped) > limit:
        text = text[: len(text) - max(1, (len(escaped) - limit) // 5)]
        escaped = f"{_escape(text)}…"
    return escaped


def _cut(text: str, limit: int) -> str:
    return text if len(text) <= limit else f"{text[: limit - 1]}…"
