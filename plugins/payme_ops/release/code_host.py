"""What the code host says of a commit: reviews, checks, files. GitHub's REST API is the one implementation.

Everything is asked of one exact commit: a review or a green check of another is none. Text from there (logins, names of
checks, headings) is cut here and escaped where it is shown. Every call raises Unavailable (5xx, 429, rate limits) and
ServiceRefused.
"""

import base64
import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Protocol
from urllib.parse import quote

from payme_ops.foundation import http
from payme_ops.foundation.errors import ServiceRefused, Unavailable
from payme_ops.foundation.evidence import Finding, Verdict, failed, passed
from payme_ops.release.request import Request

_SERVICE = "the code host"
_PAGE, _MAX_PAGES = 100, 20
_MOST_ENTRIES = 1000  # of a folder, without a second page
_CUT = 100


@dataclass(frozen=True)
class Pull:
    """A pull request that contains the commit."""

    number: int
    author: str


@dataclass(frozen=True)
class Review:
    """One review; `commit` is what was looked at. States as GitHub has them: APPROVED, CHANGES_REQUESTED, …"""

    id: int
    reviewer: str
    state: str
    commit: str


class CodeHost(Protocol):
    """What is asked of a code host."""

    def exists(self, commit: str) -> bool:
        """Whether it has that commit."""

    def pulls(self, commit: str) -> list[Pull]:
        """Pull requests that contain the commit."""

    def reviews(self, pull: int) -> list[Review]:
        """Their reviews, oldest first."""

    def required_checks(self, branch: str) -> set[str]:
        """Names of the checks that the branch requires."""

    def checks(self, commit: str) -> dict[str, str]:
        """Name to outcome of every check and status of the commit; the newest of each. `success` is good."""

    def file(self, path: str, commit: str) -> bytes | None:
        """A file as it is at the commit; None when it is not there."""

    def directory(self, path: str, commit: str) -> dict[str, str]:
        """Name to git's hash of the files in a folder at the commit; none when it is not there."""


@dataclass(frozen=True)
class GitHub:
    """GitHub's REST API (docs.github.com/rest, version 2022-11-28): base URL, token, owner/name."""

    url: str
    token: str = field(repr=False)
    repository: str

    def exists(self, commit: str) -> bool:
        """GET /repos/{repo}/commits/{ref}; 422 is the answer to what is no commit."""
        return self._get(f"/commits/{commit}", missing=(404, 422)) is not None

    def pulls(self, commit: str) -> list[Pull]:
        """GET /repos/{repo}/commits/{sha}/pulls."""
        return [Pull(int(one["number"]), _login(one)) for one in self._all(f"/commits/{commit}/pulls")]

    def reviews(self, pull: int) -> list[Review]:
        """GET /repos/{repo}/pulls/{number}/reviews, in the order in which they were made."""
        return [
            Review(int(one["id"]), _login(one), str(one.get("state"))[:_CUT], str(one.get("commit_id"))[:_CUT])
            for one in self._all(f"/pulls/{pull}/reviews")
        ]

    def required_checks(self, branch: str) -> set[str]:
        """Of branch protection (GET …/branches/{branch}) and of rulesets (GET …/rules/branches/{branch})."""
        name = quote(branch, safe="")
        protection = (self._get(f"/branches/{name}") or http.Answer(404, {})).body.get("protection") or {}
        found = set((protection.get("required_status_checks") or {}).get("contexts") or [])
        for rule in self._all(f"/rules/branches/{name}"):
            if rule.get("type") == "required_status_checks":
                found |= {str(one.get("context")) for one in rule["parameters"]["required_status_checks"]}
        return {str(one)[:_CUT] for one in found}

    def checks(self, commit: str) -> dict[str, str]:
        """GET …/commits/{ref}/check-runs (the newest of each, by default) and …/commits/{ref}/status."""
        statuses = {
            str(one.get("context"))[:_CUT]: str(one.get("state"))[:_CUT]
            for one in self._all(f"/commits/{commit}/status", "statuses")
        }
        runs = {
            str(one.get("name"))[:_CUT]: str(one.get("conclusion") or one.get("status"))[:_CUT]
            for one in self._all(f"/commits/{commit}/check-runs", "check_runs")
        }
        # Of two with one name the worse counts.
        both = {name for name in statuses.keys() & runs.keys() if statuses[name] != "success"}
        return {**statuses, **runs, **{name: statuses[name] for name in both}}

    def file(self, path: str, commit: str) -> bytes | None:
        """GET …/contents/{path}?ref={sha}."""
        answer = self._get(f"/contents/{quote(path)}?ref={commit}")
        if answer is None or answer.body.get("type") != "file":
            return None
        return base64.b64decode(str(answer.body.get("content", "")))

    def directory(self, path: str, commit: str) -> dict[str, str]:
        """GET …/contents/{path}?ref={sha}. Raises ServiceRefused for a folder that it does not list whole."""
        answer = self._get(f"/contents/{quote(path)}?ref={commit}")
        items = answer.items if answer else []
        if len(items) >= _MOST_ENTRIES:
            raise ServiceRefused(
                f"{path} cannot be listed whole",
                expected=f"fewer than {_MOST_ENTRIES} entries, all that the code host answers",
                found="as many, or more",
                remedy="move what is old into a folder below it",
            )
        found = {str(one["name"]): str(one.get("sha", "")) for one in items if one.get("type") == "file"}
        return dict(sorted(found.items()))

    def _get(self, path: str, missing: tuple[int, ...] = (404,)) -> http.Answer | None:
        url = f"{self.url}/repos/{self.repository}{path}"
        headers = {"Accept": "application/vnd.github+json", "X-GitHub-Api-Version": "2022-11-28"}
        answer = http.call(_SERVICE, "GET", url, authorization=f"Bearer {self.token}", headers=headers)
        if answer.status in missing:
            return None
        if answer.status == 403 and answer.headers.get("x-ratelimit-remaining") == "0":
            raise Unavailable(
                "the code host takes no more questions for now",
                found="its rate limit is used up",
                remedy="wait for an hour, or use a token of its own for the desk",
            )
        http.require_yes(_SERVICE, "GET", url, answer)
        return answer

    def _all(self, path: str, name: str = "") -> Iterator[dict[str, Any]]:
        for number in range(1, _MAX_PAGES + 1):
            answer = self._get(f"{path}?per_page={_PAGE}&page={number}")
            found = [] if answer is None else answer.body.get(name, []) if name else answer.items
            yield from (one for one in found if isinstance(one, dict))
            if len(found) < _PAGE:
                return


def _login(one: dict[str, Any]) -> str:
    return str((one.get("user") or {}).get("login", ""))[:_CUT]


def code_review(host: CodeHost, request: Request) -> Finding:
    """At least one approval of exactly this commit by another person than the author, and nobody asks for changes."""
    pulls = host.pulls(request.commit)
    reviews = [(pull, review) for pull in pulls for review in host.reviews(pull.number)]
    newest: dict[tuple[int, str], tuple[Pull, Review]] = {}
    for pull, review in reviews:
        if review.state in ("APPROVED", "CHANGES_REQUESTED", "DISMISSED"):  # a comment takes nothing back
            newest[pull.number, review.reviewer] = pull, review
    approvals = [(pull, review) for pull, review in newest.values() if review.state == "APPROVED"]
    good = [one for pull, one in approvals if one.commit == request.commit and one.reviewer not in ("", pull.author)]
    against = [one.reviewer for _, one in newest.values() if one.state == "CHANGES_REQUESTED"]
    measured = {
        "pull requests": [pull.number for pull in pulls],
        "approved by": [f"{one.reviewer} (review {one.id})" for one in good],
        "approvals of other commits": sorted({one.commit[:12] for _, one in approvals if one.commit != request.commit}),
        "changes requested by": against,
    }
    if not pulls:
        return failed(measured, "no pull request has this commit: is it the one you mean, and was it pushed?")
    if against:
        return failed(measured, "whoever asked for changes approves, or takes it back")
    if not good:
        return failed(measured, "somebody other than its author approves exactly this commit; a push makes a new one")
    return passed(measured)


def checks_green(host: CodeHost, request: Request, branch: str) -> Finding:
    """Every check that the branch requires has succeeded for this commit; no required check is not enough."""
    required, found = sorted(host.required_checks(branch)), host.checks(request.commit)
    outcomes = {name: found.get(name, "missing") for name in required}
    measured = {"required by": branch, "checks": outcomes}
    if not required:
        return Finding(Verdict.INCONCLUSIVE, measured, f"{branch} requires no check: a person has to see what was run")
    if wrong := [name for name, outcome in outcomes.items() if outcome not in ("success", *_RUNNING)]:
        return failed(measured, f"repair {', '.join(wrong)}, or release a commit where they passed")
    if any(outcome in _RUNNING for outcome in outcomes.values()):
        return Finding(Verdict.INCONCLUSIVE, measured, "wait for the checks to end, then clear this task")
    return passed(measured)


_RUNNING = ("queued", "in_progress", "pending", "waiting", "requested")


def rollback_plan(host: CodeHost, request: Request, path: str) -> Finding:
    """The plan is there at this commit and says something; the commit to go back to exists."""
    text, previous = host.file(path, request.commit), host.exists(request.previous_commit)
    measured = {
        "file": path,
        "bytes": len(text) if text is not None else "not there",
        "digest": f"sha256 {hashlib.sha256(text).hexdigest()}" if text is not None else "",
        "begins": _first_line(text or b""),
        "previous commit": request.previous_commit if previous else "not there",
    }
    if text is None or not text.strip():
        return failed(measured, f"write down in {path} how to go back, and release a commit that has it")
    if not previous:
        return failed(measured, "name a previous commit that the code host has")
    return passed(measured)


def _first_line(text: bytes) -> str:
    lines = [line.strip("# \t") for line in text.decode(errors="replace").splitlines() if line.strip("# \t")]
    return lines[0][:_CUT] if lines else ""
