"""Mail to the outside by SMTP: plain text, encrypted on the way."""

import smtplib
import ssl
from dataclasses import dataclass, field
from email.headerregistry import Address
from email.message import EmailMessage

from payme_ops.foundation.errors import ServiceRefused, SettingsError, Unavailable
from payme_ops.foundation.scrub import scrub

_SECONDS = 20
_SSL_PORT = 465


@dataclass(frozen=True)
class MailServer:
    """Where mail is handed over; with `tls` by STARTTLS (port 465: from the first byte). No login without TLS."""

    host: str
    port: int
    sender: str
    login: str = ""
    password: str = field(default="", repr=False)
    tls: bool = True


def send(server: MailServer, *, to: str, subject: str, text: str, message_id: str) -> None:
    """One message. `message_id` makes a second one of the same event known as that.

    Raises SettingsError for a login without TLS, Unavailable when the server does not answer or asks to come again,
    ServiceRefused when it says no.
    """
    if server.login and not server.tls:
        raise SettingsError(
            "a mail password would travel in the clear",
            expected="a connection payme_smtp without disable_tls",
            found="a login and disable_tls",
            remedy="use TLS, or no login",
        )
    message = EmailMessage()
    message["From"] = Address(addr_spec=server.sender)
    message["To"] = Address(addr_spec=to)
    message["Subject"] = " ".join(scrub(subject).split())
    message["Message-ID"] = f"<{message_id}@payme-ops>"
    message.set_content(scrub(text))
    try:
        _hand_over(server, message)
    except smtplib.SMTPResponseException as error:
        if 400 <= error.smtp_code < 500:
            raise _away(f"status {error.smtp_code}") from None
        raise _refused(f"status {error.smtp_code}") from None
    except smtplib.SMTPRecipientsRefused:
        raise _refused("no such recipient") from None
    except (OSError, smtplib.SMTPException) as error:
        raise _away(type(error).__name__) from None


def _hand_over(server: MailServer, message: EmailMessage) -> None:
    context = ssl.create_default_context()
    whole = server.tls and server.port == _SSL_PORT
    connection = (
        smtplib.SMTP_SSL(server.host, server.port, timeout=_SECONDS, context=context)
        if whole
        else smtplib.SMTP(server.host, server.port, timeout=_SECONDS)
    )
    with connection:
        if server.tls and not whole:
            connection.starttls(context=context)
        if server.login:
            connection.login(server.login, server.password)
        connection.send_message(message)


def _away(found: str) -> Unavailable:
    return Unavailable(
        "the mail server did not take the message",
        expected=f"an answer within {_SECONDS} s",
        found=found,
        remedy="see whether it runs and can be reached from here",
    )


def _refused(found: str) -> ServiceRefused:
    return ServiceRefused(
        "the mail server refused the message",
        expected="sender and recipient that it knows",
        found=found,
        remedy="check the connection payme_smtp and PAYME_OPS__NOTIFY__SUPPORT_EMAIL",
    )
