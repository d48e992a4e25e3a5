"""What people read of an outage: that it began, is muted, goes on and is over; in one thread for each application."""

from dataclasses import dataclass
from datetime import timedelta

from payme_ops.foundation.alert import Alert, Severity
from payme_ops.foundation.clock import show, span
from payme_ops.monitoring.outages import WORDS, Kind, Outage, Window

KEY = "health:"
_RUNBOOK = "Runbook: docs/runbooks/incident.md"
_TO_DO = {
    Kind.DOWN: "Open {url}/health yourself; read the application's log, and what was released last",
    Kind.SLOW: "See the load of the application and of its database, and what was released last",
    Kind.UNCLEAR: "See who answers at {url}/health in the application's place: a proxy, a cache, a login",
}

_WAS = {Kind.DOWN: "was down", Kind.SLOW: "was slow", Kind.UNCLEAR: "did not say how it was"}


@dataclass(frozen=True)
class Teller:
    """Of one application: whom to call, the page with the runbook, and where it is."""

    owner: str
    page: str
    url: str

    def begun(self, one: Outage) -> Alert:
        """In full: to be acted on."""
        muted = f"\nIt was muted by the release {one.muted_by}, whose window is over." if one.muted_by else ""
        return self._say(one, "", f"{one.subject} {WORDS[one.kind]}", f"{story(one)}{muted}")

    def muted(self, one: Outage, window: Window) -> Alert:
        """While a release is at work."""
        return _alert(
            one,
            "/muted",
            Severity.INFO,
            f"{one.subject} {WORDS[one.kind]}, muted by the release {window.release}",
            f"{story(one)}\nMuted until {show(window.until)}, the end of that release's window.",
            "Nothing by you: the release is at work. If it is still so at the window's end, it is told in full",
            self.owner,
            self.page,
        )

    def worsened(self, one: Outage, window: Window | None) -> Alert:
        """What was slow or unclear has gone down; in a release's window muted, and in full after it."""
        what = f"{one.subject} is down by now"
        if window is None:
            return self._say(one, "/down", what, story(one))
        muted = f"{story(one)}\nMuted by the release {window.release} until {show(window.until)}."
        return self._say(one, "/down/muted", what, muted, Severity.INFO)

    def still(self, one: Outage, of: str, minutes: int, now_seen: str) -> Alert:
        """Nobody has said that they have seen it. `of`: "/down" when it was told that it is down by now."""
        what = f"{one.subject} {WORDS[one.kind]} for more than {span(timedelta(minutes=minutes))}"
        return self._say(one, f"{of}/still/{minutes}", what, f"By now: {now_seen}.\nAt first: {story(one)}")

    def _say(self, one: Outage, part: str, what: str, why: str, severity: Severity | None = None) -> Alert:
        todo = f"{_TO_DO[one.kind].format(url=self.url)}. {_RUNBOOK}"
        return _alert(one, part, severity or _severity(one), what, why, todo, self.owner, self.page)


def over(one: Outage, owner: str, page: str) -> Alert:
    """It is well again: how long it was not."""
    length = span((one.ended_at or one.began_at) - one.began_at)
    what = f"{one.subject} is well again after {length}"
    why = f"It {_WAS[one.kind]} from {show(one.began_at)} for {length}."
    return _alert(one, "/over", Severity.INFO, what, why, "Nothing; what it was stands above", owner, page)


def not_looked_at(one: Outage, owner: str, page: str) -> Alert:
    """It went out of the settings while it was not well."""
    return _alert(
        one,
        "/over",
        Severity.INFO,
        f"{one.subject} is not looked at any more",
        f"It is not in PAYME_OPS__MONITORING__ENDPOINTS; when last looked at it was not well. {story(one)}",
        "If it still serves anybody, put it back",
        owner,
        page,
    )


def story(one: Outage) -> str:
    """What was seen, since when, when it was last well, and how quick it was."""
    good = f"last seen well at {show(one.last_good_at)}" if one.last_good_at else "never seen well"
    quick = f"; p95 as last told: {one.p95:.0f} ms" if one.p95 is not None else ""
    return f"{one.why}\nSince {show(one.began_at)}; {good}{quick}."


def _severity(one: Outage) -> Severity:
    return Severity.CRITICAL if one.kind is Kind.DOWN and one.subject != "staging" else Severity.WARNING


def _alert(one: Outage, part: str, severity: Severity, what: str, why: str, todo: str, owner: str, page: str) -> Alert:
    return Alert(
        key=f"{KEY}{one.subject}",
        occurrence=f"{one.occurrence}{part}",
        severity=severity,
        what=what,
        why=why,
        since=one.began_at,
        next=todo,
        owner=owner,
        runbook=page,
        link="",
    )
