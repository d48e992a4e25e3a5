"""A stand-in for the mail server: takes every message by SMTP, delivers none, and shows them all.

    python -m sandbox.mail --port 8094 --smtp-port 8025 --state .demo/mail.json

`GET /` shows the messages, `GET /messages.json` gives them.
"""

import html
from datetime import UTC, datetime
from email import message_from_bytes, policy
from email.message import EmailMessage
from pathlib import Path

from aiosmtpd.controller import Controller
from aiosmtpd.smtp import SMTP, Envelope, Session

from sandbox.standin import Answer, Failing, Journal, Record, Refused, Request, Server, main, page


class _Keeper:
    """aiosmtpd calls it for each message."""

    def __init__(self, journal: Journal, failing: Failing) -> None:
        self._journal, self._failing = journal, failing

    async def handle_DATA(self, _server: SMTP, _session: Session, envelope: Envelope) -> str:
        if self._failing.take() is not None:
            return "451 4.3.0 told to fail"
        content = envelope.content or b""
        message = message_from_bytes(content if isinstance(content, bytes) else content.encode(), policy=policy.default)
        record = _record(message, envelope)
        self._journal.append(lambda: record)
        return "250 2.0.0 kept"


def _record(message: EmailMessage, envelope: Envelope) -> Record:
    body = message.get_body(("plain",))
    return {
        "received": datetime.now(UTC).isoformat(),
        "mail_from": envelope.mail_from,
        "rcpt_to": envelope.rcpt_tos,
        "message_id": message.get("Message-ID", ""),
        "subject": message.get("Subject", ""),
        "text": body.get_content() if body else "",
    }


class MailServer(Server):
    """The page, and beside it the SMTP server on a port of its own."""

    def __init__(self, port: int, state: Path, smtp_port: int) -> None:
        journal = Journal(state)
        super().__init__(port, lambda request: _route(journal, request), lambda _path: False, {})
        self._controller = Controller(_Keeper(journal, self.failing), hostname="127.0.0.1", port=smtp_port)
        self._controller.start()

    def server_close(self) -> None:
        """Stop both."""
        self._controller.stop()
        super().server_close()


def make_server(port: int, state: Path, smtp_port: int) -> MailServer:
    """Servers on 127.0.0.1 (port 0: any free one for the page); SMTP serves already, the page not yet."""
    return MailServer(port, state, smtp_port)


def _route(journal: Journal, request: Request) -> Answer:
    match request.method, request.path:
        case "GET", "/":
            return page(f"Mail: {len(journal.records())} messages", _STYLE, _render(journal.records()))
        case "GET", "/messages.json":
            return Answer(journal.records())
    raise Refused(404, {"error": f"nothing at {request.method} {request.path}"})


def _render(records: list[Record]) -> str:
    shown = "".join(
        f"<article><h3>{html.escape(record['subject'])}</h3><p class='note'>from {html.escape(record['mail_from'])} to"
        f" {html.escape(', '.join(record['rcpt_to']))}, {html.escape(record['received'][:19])} UTC</p>"
        f"<pre>{html.escape(record['text'])}</pre></article>"
        for record in reversed(records)
    )
    return f"<h1>Mail</h1>{shown or '<p>None.</p>'}<p class='note'>Stand-in. Nothing here was delivered.</p>"


_STYLE = """
body{margin:0 auto;max-width:46rem;padding:2rem 1rem;font:15px/1.5 system-ui,sans-serif;color:#1c2733}
article{border-top:1px solid #d0d7de;padding:14px 0}h3{margin:0}.note{color:#6e7781;font-size:13px;margin:2px 0}
pre{white-space:pre-wrap;font:inherit}
"""


if __name__ == "__main__":
    main("mail", make_server, "smtp")
