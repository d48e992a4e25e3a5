"""Roles and first accounts of the FAB auth manager: `python -m payme_ops.orchestration.accounts docker/roles.json`.

What the file says is what a role may do, also when somebody clicked otherwise in the UI. Airflow's own `roles import`
leaves a role alone that is there already, and `users create` takes the password as a word of the command, where every
process of the machine can read it.
"""

import json
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from airflow.providers.fab.auth_manager.cli_commands.utils import get_application_builder
from airflow.providers.fab.auth_manager.models import Role, User
from airflow.providers.fab.auth_manager.security_manager.override import FabAirflowSecurityManagerOverride
from fastapi import HTTPException, status
from flask import has_request_context
from flask_login import current_user
from sqlalchemy import event, inspect
from sqlalchemy.orm import Session
from werkzeug.security import check_password_hash

from payme_ops.foundation import secret
from payme_ops.foundation.errors import IntegrityError, PaymeOpsError, SettingsError
from payme_ops.orchestration import internals

# Airflow gives it every permission there is, new ones too; the others that it makes itself are given to nobody.
ADMIN = "Admin"
FIRST_ADMIN, AUDITOR = "first_admin", "auditor"
SECRETS = Path("/run/secrets")
MIN_PASSWORD_CHARACTERS = 16
TOO_SHORT = f"At least {MIN_PASSWORD_CHARACTERS} characters, please."

Permissions = frozenset[tuple[str, str]]

# What the event log is told of.
_KEPT = {User: ("username", "email", "active", "password", "roles", "groups"), Role: ("name", "permissions")}


class LongPasswords(FabAirflowSecurityManagerOverride):
    """Refuses a short password from the API and from `airflow users`, too: whatever sets one, hashes it here.

    FAB's own validator is asked by the forms only.
    """

    def _hash_password(self, password: str) -> str:
        if len(password) < MIN_PASSWORD_CHARACTERS:
            self.session.rollback()  # the API has set the account's new roles already: the next commit would keep them
            raise HTTPException(status.HTTP_422_UNPROCESSABLE_CONTENT, TOO_SHORT)
        return super()._hash_password(password)


def read(file: Path) -> dict[str, Permissions]:
    """Role to (action, resource) of each permission, those of the roles that it includes among them.

    A role includes only roles that stand before it. Raises SettingsError.
    """
    roles = dict[str, Permissions]()
    try:
        for name, said in json.loads(file.read_text()).items():
            own = {(action, resource) for action, named in said["permissions"].items() for resource in named}
            roles[name] = frozenset(own.union(*(roles[other] for other in said["includes"])))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise SettingsError(
            f"{file.name} defines no roles",
            expected='{"name": {"includes": [a role above], "permissions": {action: [resources]}}}',
            found=f"{type(error).__name__}: {error}",
            remedy="correct the file",
        ) from None
    return roles


def load_roles(security: Any, wanted: Mapping[str, Permissions]) -> list[str]:
    """Make the roles as wanted, and take every other role but Admin from all accounts; what was changed, as words.

    `security` is FAB's security manager. Raises SettingsError for a name that Airflow does not know, before anything is
    changed; IntegrityError when a role is not as wanted afterwards: FAB only logs what it could not write.
    """
    _require_known(security, wanted)
    changes = list[str]()
    for name, permissions in wanted.items():
        role = security.add_role(name)
        found = _permissions(role)
        missing, surplus = sorted(permissions - found), sorted(found - permissions)
        if missing or surplus:
            role.permissions = [security.create_permission(*pair) for pair in sorted(permissions)]
            security.session.commit()
        _require(_permissions(security.find_role(name)) == permissions, f"the role {name}", "what the file says")
        changes += _told(f"{name} may now", missing) + _told(f"{name} may no longer", surplus)
    for user in security.get_all_users():
        foreign = [role for role in user.roles if role.name not in {*wanted, ADMIN}]
        if foreign:
            user.roles = [role for role in user.roles if role not in foreign]
            _require(security.update_user(user), f"the account {user.username}", "without roles of Airflow's own")
            changes += [f"{user.username} is no longer {role.name}" for role in foreign]
    return changes


def make_accounts(security: Any, folder: Path = SECRETS) -> list[str]:
    """An admin where there is no active one, and the machines' account; what was changed, as words.

    Passwords are in the folder's files `airflow_first_admin_password`, wanted only while there is no admin, and
    `airflow_auditor_password`, which the account is kept equal to. Raises SettingsError, IntegrityError.
    """
    changes = list[str]()
    if not any(user.is_active and ADMIN in _names(user) for user in security.get_all_users()):
        changes += _make(security, FIRST_ADMIN, ADMIN, _password(folder / f"airflow_{FIRST_ADMIN}_password"))
    return changes + _make(security, AUDITOR, AUDITOR, _password(folder / f"airflow_{AUDITOR}_password"))


def record_changes() -> None:
    """From now on Airflow's event log has every change of an account or a role; FAB itself writes none of them there.

    docker/webserver_config.py calls it, so it holds for all that reads that file: the forms, the API, `airflow users`.
    """
    if not event.contains(Session, "before_flush", _record):
        event.listen(Session, "before_flush", _record)


def _record(session: Session, *_: object) -> None:
    for done, rows in (("made", session.new), ("changed", session.dirty), ("deleted", session.deleted)):
        for row in [row for row in rows if type(row) in _KEPT]:
            attributes = inspect(row).attrs
            changed = [name for name in _KEPT[type(row)] if attributes[name].history.has_changes()]
            if not changed and done == "changed":
                continue  # a sign-in is counted in the same row
            said = {"name": row.username if isinstance(row, User) else row.name, "changed": changed}
            if "roles" in changed:
                said["roles"] = sorted(_names(row))
            internals.write_event(session, f"{type(row).__name__.lower()}_{done}", _by(), json.dumps(said))


def _by() -> str:
    """Who is signed in at the form. What comes by the API or the command line does not say who it is."""
    return current_user.get_name() if has_request_context() and current_user.is_authenticated else "not by a form"


def _make(security: Any, name: str, role: str, password: str) -> list[str]:
    user = security.find_user(username=name)
    if user is None:
        # FAB wants an address and no account may share one; .invalid is in no use anywhere (RFC 2606).
        made = security.add_user(
            name, name, "payme-ops", f"{name}@payme-ops.invalid", security.find_role(role), password
        )
        _require(made, f"the account {name}", "made")
        return [f"the account {name} was made, with the role {role}"]
    if user.is_active and _names(user) == [role] and check_password_hash(user.password or "", password):
        return []
    user.active, user.roles = True, [security.find_role(role)]
    _require(security.update_user(user), f"the account {name}", "active")
    _require(security.reset_password(user.id, password), f"the password of {name}", "set")
    return [f"the account {name} was set to its role and password"]


def _password(file: Path) -> str:
    found = (secret.find(file) or b"").decode(errors="replace").strip()
    if len(found) < MIN_PASSWORD_CHARACTERS:
        raise SettingsError(
            f"the secret {file.name} holds no password",
            expected=f"{MIN_PASSWORD_CHARACTERS} characters or more in {file}",
            found=f"{len(found)} characters" if found else "nothing",
            remedy="write one there that was made at random (docs/roles.md)",
        )
    return found


def _told(what: str, pairs: Iterable[tuple[str, str]]) -> list[str]:
    words = ", ".join(f"{action} {resource}" for action, resource in pairs)
    return [f"{what}: {words}"] if words else []


def _names(user: Any) -> list[str]:
    return [role.name for role in user.roles]


def _permissions(role: Any) -> Permissions:
    return frozenset((one.action.name, one.resource.name) for one in role.permissions)


def _require_known(security: Any, wanted: Mapping[str, Permissions]) -> None:
    pairs = {pair for permissions in wanted.values() for pair in permissions}
    actions = sorted({action for action, _ in pairs if security.get_action(action) is None})
    resources = sorted({resource for _, resource in pairs if security.get_resource(resource) is None})
    if actions or resources:
        raise SettingsError(
            "a role has a permission that Airflow does not know",
            expected="actions and resources as the page Permissions of the UI lists them",
            found=", ".join([*actions, *resources]),
            remedy="correct the name; after an upgrade of Airflow see what it is called now",
        )


def _require(done: object, what: str, expected: str) -> None:
    if not done:
        raise IntegrityError(
            f"Airflow's database does not hold {what} as it should",
            expected=expected,
            found="something else",
            remedy="read what Airflow logged above, and run it again",
        )


def main(file: str, folder: str = str(SECRETS)) -> int:
    """Load the roles and make the accounts; 0, or 1 with what is wrong on stderr."""
    try:
        wanted = read(Path(file))
        with get_application_builder() as appbuilder:
            changes = [*load_roles(appbuilder.sm, wanted), *make_accounts(appbuilder.sm, Path(folder))]
    except PaymeOpsError as error:
        print(f"accounts: {error}", file=sys.stderr)
        return 1
    print("\n".join(changes) or "roles and accounts are as they should be")
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
