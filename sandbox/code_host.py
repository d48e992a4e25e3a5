"""A stand-in for the code host: the part of GitHub's REST API that the desk reads, for the builds of sandbox/builds.py.

    python -m sandbox.code_host --port 8095 --state .demo/code_host.json

Each build has a pull request by `dev`, approved by `reviewer`, green required checks, a rollback plan and one old
migration. `POST /repo` with commit, and reviews, checks, files or required, changes what there is; `GET /` shows it.
"""

import base64
import hashlib
import html
import re
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from sandbox.builds import BUILDS, BY_COMMIT
from sandbox.standin import Answer, Journal, Refused, Request, Server, main, page

REQUIRED = ("lint", "test", "security")
PLAN = "docs/rollback.md"
_REPO = re.compile(r"/repos/([\w.-]+/[\w.-]+)/(.+)")
_PLAN_TEXT = "# Rollback\n\nDeploy the previous commit. Its code runs on the schema of this one.\n"
# What every build has; its migrations have been applied long ago.
_FILES = {PLAN: _PLAN_TEXT, "drizzle/0000_payme.sql": "SELECT 1;\n"}
_SETTABLE = {"reviews": list, "checks": dict, "files": dict, "required": list}


def make_server(port: int, state: Path) -> Server:
    """A server on 127.0.0.1 (port 0: any free one), not yet serving."""
    journal = Journal(state)
    return Server(
        port,
        lambda request: _route(journal, request),
        lambda path: path.startswith("/repos/"),
        {"message": "told to fail"},
    )


def _route(journal: Journal, request: Request) -> Answer:
    if request.method == "POST" and request.path == "/repo":
        return _set(journal, request)
    if request.method == "GET" and request.path == "/":
        return page("Code host", _STYLE, _render(journal))
    found = _REPO.fullmatch(request.path)
    if request.method != "GET" or not found:
        raise Refused(404, {"message": "Not Found"})
    if not request.headers.get("Authorization", "").startswith("Bearer "):
        raise Refused(401, {"message": "Requires authentication"})
    return _read(journal, unquote(found[2]).split("/"), request.query)


def _set(journal: Journal, request: Request) -> Answer:
    try:
        asked = request.json()
    except ValueError:
        asked = None
    if not isinstance(asked, dict) or any(not isinstance(asked.get(k, kind()), kind) for k, kind in _SETTABLE.items()):
        raise Refused(400, {"message": "expected commit, and reviews, checks, files or required"})
    journal.append(lambda: asked)
    return Answer({"kept": True})


def _of(journal: Journal, commit: str, name: str, default: Any) -> Any:
    """What was set last for the commit; files are added to those that are there."""
    found = default
    for record in journal.records():
        if record.get("commit", commit) == commit and name in record:
            found = {**found, **record[name]} if isinstance(found, dict) else record[name]
    return found


def _read(journal: Journal, parts: list[str], query: dict[str, str]) -> Answer:
    match parts:
        case ["commits", commit]:
            return Answer({"sha": _known(commit)})
        case ["commits", commit, "pulls"]:
            pull = {"number": _number(_known(commit)), "user": {"login": "dev"}}
            return Answer([pull] if query.get("page", "1") == "1" else [])
        case ["pulls", number, "reviews"]:
            commit = next(one for one in BY_COMMIT if _number(one) == int(number))
            first = [{"id": 1, "user": {"login": "reviewer"}, "state": "APPROVED", "commit_id": commit}]
            reviews = _of(journal, commit, "reviews", first)
            return Answer(reviews if query.get("page", "1") == "1" else [])
        case ["branches", branch]:
            contexts = _of(journal, branch, "required", list(REQUIRED))
            checks = {"enforcement_level": "everyone", "contexts": contexts}
            return Answer({"name": branch, "protection": {"enabled": True, "required_status_checks": checks}})
        case ["rules", "branches", _]:
            return Answer([])
        case ["commits", commit, "check-runs"]:
            outcomes = _of(journal, _known(commit), "checks", dict.fromkeys(REQUIRED, "success"))
            runs = [{"name": name, "status": "completed", "conclusion": said} for name, said in outcomes.items()]
            return Answer({"total_count": len(runs), "check_runs": runs if query.get("page", "1") == "1" else []})
        case ["commits", commit, "status"]:
            _known(commit)
            return Answer({"state": "pending", "statuses": []})
        case ["contents", *path]:
            return _contents(journal, _known(query.get("ref", "")), "/".join(path))
    raise Refused(404, {"message": "Not Found"})


def _contents(journal: Journal, commit: str, path: str) -> Answer:
    files = _of(journal, commit, "files", _FILES)
    if path in files:
        content = base64.b64encode(str(files[path]).encode()).decode()
        return Answer({"type": "file", "path": path, "encoding": "base64", "content": content})
    inside = {name[len(path) + 1 :]: str(text) for name, text in sorted(files.items()) if name.startswith(f"{path}/")}
    if not inside:
        raise Refused(404, {"message": "Not Found"})
    return Answer(
        [{"type": "file", "name": name, "sha": _blob(text)} for name, text in inside.items() if "/" not in name]
    )


def _blob(text: str) -> str:
    """As git names a file's content."""
    data = text.encode()
    return hashlib.sha1(b"blob %d\0" % len(data) + data, usedforsecurity=False).hexdigest()


def _known(commit: str) -> str:
    if commit not in BY_COMMIT:
        raise Refused(422 if len(commit) == 40 else 404, {"message": f"No commit found for SHA: {commit[:40]}"})
    return commit


def _number(commit: str) -> int:
    return list(BY_COMMIT).index(commit) + 1


def _render(journal: Journal) -> str:
    rows = "".join(
        f"<tr><td>{html.escape(name)}</td><td><code>{build.commit}</code></td><td>"
        + ", ".join(
            f"{html.escape(str(review['user']['login']))} {html.escape(str(review['state']).lower())}"
            for review in _of(journal, build.commit, "reviews", [{"user": {"login": "reviewer"}, "state": "APPROVED"}])
        )
        + "</td></tr>"
        for name, build in BUILDS.items()
    )
    head = "<tr><th>Build</th><th>Commit</th><th>Reviews</th></tr>"
    return f'<h1>payme/api</h1><table>{head}{rows}</table><p class="note">Stand-in.</p>'


_STYLE = """
body{margin:0 auto;max-width:56rem;padding:2rem 1rem;font:15px/1.5 system-ui,sans-serif;color:#1c2733}
h1{font-size:22px}table{border-collapse:collapse}th{text-align:left;color:#57606a;font-weight:500}
th,td{padding:4px 18px 4px 0}code{font-size:13px}.note{color:#6e7781;font-size:13px}
"""


if __name__ == "__main__":
    main("code_host", make_server)
