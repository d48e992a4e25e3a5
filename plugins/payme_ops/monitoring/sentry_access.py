"""Whether Sentry hears and tells: DSN, token, organization and projects, and rules as they are kept as code."""

from collections.abc import Callable, Mapping, Sequence

from urllib3.exceptions import LocationParseError
from urllib3.util import parse_url

from payme_ops.foundation.evidence import Check, Finding, failed, passed
from payme_ops.foundation.sentry_api import SentryApi
from payme_ops.monitoring import sentry_rules
from payme_ops.monitoring.sentry_rules import Act


def dsn_check(dsns: Callable[[], Mapping[str, str]]) -> Check:
    """DSNs by the variable that has, or names, each."""
    return Check("sentry_dsn", "https://<key>@<host>/<number>", "settings", lambda: _dsns(dsns()))


def checks(
    api: Callable[[], SentryApi], projects: Sequence[str], cron_project: str, team_id: str
) -> tuple[Check, Check]:
    """The token and what it is for, then the rules; the second hangs on the first."""
    known = f"Sentry knows {', '.join(projects) or 'the projects'} and lets the token read them (alerts:read)"
    return (
        Check("sentry_access", known, "Sentry", lambda: _access(api(), projects)),
        Check(
            "sentry_rules",
            "as `sentry plan` wants them",
            "Sentry",
            lambda: _rules(api(), projects, cron_project, team_id),
        ),
    )


def _dsns(dsns: Mapping[str, str]) -> Finding:
    bad = [variable for variable, dsn in dsns.items() if not _usable(dsn)]
    if bad:  # the value is not shown: its key is a secret
        return failed({"not usable": bad}, "copy the DSN from Sentry: the project's settings, client keys")
    return passed({"usable": list(dsns)})


def _usable(dsn: str) -> bool:
    try:
        parts = parse_url(dsn)
    except LocationParseError:
        return False
    return bool(parts.scheme and parts.auth and parts.host) and (parts.path or "").rpartition("/")[2].isdigit()


def _access(api: SentryApi, projects: Sequence[str]) -> Finding:
    for project in projects:
        sentry_rules.stream(api, project)
    return passed({"projects": list(projects)})


def _rules(api: SentryApi, projects: Sequence[str], cron_project: str, team_id: str) -> Finding:
    made = sentry_rules.make_plan(api, projects, cron_project, team_id)
    drift = [f"{step.act} {step.name}" for step in made.steps if step.act not in (Act.NONE, Act.NOT_OURS)]
    if drift:
        return failed({"to do": drift, "quiet": list(made.quiet)}, "run `python -m payme_ops sentry apply`")
    if made.quiet:
        return failed({"quiet": list(made.quiet)}, "unmute them in Sentry, under Crons")
    return passed({"rules": sum(step.act is Act.NONE for step in made.steps)})
