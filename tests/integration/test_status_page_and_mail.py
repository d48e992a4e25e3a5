"""The status page and mail, on servers of their protocols."""

from collections.abc import Iterator
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path

import pytest

from payme_ops.foundation import mail, status_page
from payme_ops.foundation.clock import EAT, utc_now
from payme_ops.foundation.errors import ServiceRefused, SettingsError, Unavailable
from payme_ops.foundation.mail import MailServer
from payme_ops.foundation.status_page import Maintenance, StatusPage
from tests.support.standins import StandIn, mail_stand_in, status_page_stand_in

PHONE = "+254700999888"


@pytest.fixture
def page(tmp_path: Path) -> Iterator[StandIn]:
    with status_page_stand_in(tmp_path) as running:
        yield running


@pytest.fixture
def smtp(tmp_path: Path) -> Iterator[tuple[StandIn, MailServer]]:
    with mail_stand_in(tmp_path) as running:
        yield running


def test_an_incident_is_opened_and_resolved(page: StandIn) -> None:
    there = StatusPage(page.url, "payme", "key")
    incident = status_page.open_incident(there, name="Payments <are> down", body="We restore.")
    assert "Service disruption" in page.get("/")
    assert "Payments &lt;are&gt; down" in page.get("/")
    status_page.update_incident(there, incident, status="resolved", body="Done.")
    assert [update["status"] for update in page.get("/incidents.json")] == ["investigating", "resolved"]
    assert "All systems work" in page.get("/")


def test_a_maintenance_is_announced_read_back_and_completed(page: StandIn) -> None:
    there = StatusPage(page.url, "payme", "key")
    begins = datetime.now(EAT).replace(microsecond=0) + timedelta(days=1)
    window = {"begins": begins, "ends": begins + timedelta(hours=3)}
    planned = status_page.schedule_maintenance(there, name="PayMe 2.4.1", body="New orders stop.", **window)
    assert status_page.maintenance(there, planned) == Maintenance("scheduled", **window)
    assert "Scheduled maintenance" in page.get("/")
    first, last = (f"{window[name]:%d %b %H:%M:%S} EAT" for name in ("begins", "ends"))
    assert f"{first} to {last}" in page.get("/")
    assert "All systems work" in page.get("/")
    for status, banner in (("in_progress", "Under maintenance"), ("completed", "All systems work")):
        status_page.update_incident(there, planned, status=status, body="")
        assert status_page.maintenance(there, planned).status == status
        assert banner in page.get("/")
    with pytest.raises(ServiceRefused, match="status 404"):
        status_page.maintenance(there, "none")


def test_a_maintenance_whose_time_has_come_is_in_progress_by_itself(page: StandIn) -> None:
    there, now = StatusPage(page.url, "payme", "key"), utc_now()
    window = {"begins": now - timedelta(minutes=1), "ends": now + timedelta(hours=1)}
    planned = status_page.schedule_maintenance(there, name="PayMe 2.4.1", body="New orders stop.", **window)
    assert status_page.maintenance(there, planned).status == "in_progress"
    assert "Under maintenance" in page.get("/")
    status_page.update_incident(there, planned, status="completed", body="")
    assert status_page.maintenance(there, planned).status == "completed"


def test_a_status_page_that_says_no_is_told_from_one_that_is_away(page: StandIn) -> None:
    there = StatusPage(page.url, "payme", "key")
    with pytest.raises(ServiceRefused, match="status 404"):
        status_page.update_incident(there, "none", status="resolved", body="")
    incident = status_page.open_incident(there, name="x", body="")
    with pytest.raises(ServiceRefused, match="status 422"):
        status_page.update_incident(there, incident, status="no such status", body="")
    page.fail(420)  # what Statuspage says to more than one request a second
    with pytest.raises(Unavailable, match="status 420"):
        status_page.open_incident(there, name="x", body="")


def test_a_mail_arrives_without_phone_numbers_and_in_one_line_of_subject(smtp: tuple[StandIn, MailServer]) -> None:
    stand_in, server = smtp
    mail.send(
        server,
        to="support@payme.test",
        subject=f"PayMe is down\nBcc: x@evil.test {PHONE}",
        text=f"Zoë paid by {PHONE}",
        message_id="run.began",
    )
    (got,) = stand_in.get("/messages.json")
    assert got["rcpt_to"] == ["support@payme.test"]
    assert got["subject"] == "PayMe is down Bcc: x@evil.test [phone]"
    assert got["text"].strip() == "Zoë paid by [phone]"
    assert got["message_id"] == "<run.began@payme-ops>"
    assert "PayMe is down" in stand_in.get("/")


def test_no_password_travels_in_the_clear(smtp: tuple[StandIn, MailServer]) -> None:
    stand_in, server = smtp
    with pytest.raises(SettingsError, match="in the clear"):
        mail.send(replace(server, login="ops", password="x"), to="a@b.c", subject="", text="", message_id="m")
    assert stand_in.get("/messages.json") == []


def test_without_tls_where_it_is_asked_for_nothing_is_sent(smtp: tuple[StandIn, MailServer]) -> None:
    stand_in, server = smtp
    with pytest.raises(Unavailable):
        mail.send(replace(server, tls=True), to="a@b.c", subject="", text="", message_id="m")
    assert stand_in.get("/messages.json") == []


def test_a_mail_server_that_asks_to_come_again_is_unavailable(smtp: tuple[StandIn, MailServer]) -> None:
    stand_in, server = smtp
    stand_in.fail(500, count=1)
    with pytest.raises(Unavailable, match="status 451"):
        mail.send(server, to="a@b.c", subject="s", text="t", message_id="m")
    mail.send(server, to="a@b.c", subject="s", text="t", message_id="m")
    assert len(stand_in.get("/messages.json")) == 1


def test_nobody_there_is_unavailable() -> None:
    with pytest.raises(Unavailable, match="ConnectionRefusedError"):
        mail.send(MailServer("127.0.0.1", 1, "ops@payme.test"), to="a@b.c", subject="", text="", message_id="m")
