"""How people sign in to Airflow's UI and API. Who may do what: docker/roles.json, docs/roles.md.

Read by the FAB auth manager of every server: AIRFLOW__FAB__CONFIG_FILE names this file.
"""

from flask_appbuilder.const import AUTH_DB
from flask_appbuilder.exceptions import PasswordComplexityValidationError

from payme_ops.orchestration.accounts import MIN_PASSWORD_CHARACTERS, TOO_SHORT, LongPasswords, record_changes

# Accounts are made by an admin, each for one person, with a password in Airflow's database. Nobody registers, and who
# has not signed in sees nothing.
AUTH_TYPE = AUTH_DB
AUTH_USER_REGISTRATION = False
AUTH_ROLE_PUBLIC = None

# Forms are accepted only from pages of this server.
WTF_CSRF_ENABLED = True

# The cookie of a session goes over TLS only, and to no script. Lax, since links in Slack lead here.
SESSION_COOKIE_SECURE = True
SESSION_COOKIE_HTTPONLY = True
SESSION_COOKIE_SAMESITE = "Lax"

# Of the form on the sign-in page, by address. POST /auth/token has no limit: long passwords guard it, and the proxy.
AUTH_RATE_LIMITED = True
AUTH_RATE_LIMIT = "5 per 40 second"


def _long_enough(password: str) -> None:
    if len(password) < MIN_PASSWORD_CHARACTERS:
        raise PasswordComplexityValidationError(TOO_SHORT)


# The forms ask it, and show what it says.
FAB_PASSWORD_COMPLEXITY_ENABLED = True
FAB_PASSWORD_COMPLEXITY_VALIDATOR = _long_enough
# The API and `airflow users` ask no validator.
SECURITY_MANAGER_CLASS = LongPasswords

# Who makes or changes an account stands in Airflow's event log.
record_changes()
